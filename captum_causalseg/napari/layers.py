"""What a viewer shows of effects, as npe2 takes it from plugins: values, arguments and the kind of each layer."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from torch import Tensor

from captum_causalseg.preparation.grid import Grids
from captum_causalseg.preparation.units import Units
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["LayerData", "layers_of", "unit_table"]

LayerData: TypeAlias = tuple[np.ndarray[Any, Any], dict[str, Any], str]

# Of what raises the score and what lowers it, as in the pictures.
_RAISES, _LOWERS = (0.70, 0.09, 0.17, 1.0), (0.13, 0.40, 0.67, 1.0)


def layers_of(
    statistics: TreatmentEffectStatistics,
    units: Units,
    grids: Grids,
    *,
    region: Tensor,
    prediction: Tensor,
    placement: Mapping[str, Any],
) -> list[LayerData]:
    """Layers over the image, from bottom to top: prediction, units, standard error, significance, effect, region.

    Args:
        statistics: of one image and one output.
        units: what was replaced.
        grids: of the image.
        region: boolean ``(*spatial)``, on the prepared grid.
        prediction: likewise, where the model sees the class.
        placement: where the image lies, as arguments of a layer.

    Returns:
        Layers ``(*spatial)`` on the grid of the image's file. Where an effect is not known, as in the region, it is 0 and its standard error -1.
    """
    effect, error = (
        units.own_map(statistics, None, grids, field=name).numpy().astype(np.float32) for name in ("effect", "standard_error")
    )
    significant = units.own_map(statistics, None, grids, field="significant").nan_to_num(0.0).numpy() > 0
    effect = np.where(np.isfinite(effect), effect, 0.0).astype(np.float32)
    error = np.where(np.isfinite(error), error, -1.0).astype(np.float32)
    signs = np.where(significant, np.where(effect > 0, 1, 2), 0).astype(np.uint8)
    # A map that is 0 everywhere has a scale, too.
    largest = float(np.abs(effect).max()) or 1.0
    table = unit_table(statistics)
    on_it = dict(placement)
    return [
        (_own(prediction, grids), {"name": "prediction", "opacity": 0.3, "visible": False, **on_it}, "labels"),
        (
            units.own_labels(statistics, grids).numpy().astype(np.int32),
            {"name": "units", "opacity": 0.4, "visible": False, "features": table, **on_it},
            "labels",
        ),
        (
            error,
            {
                "name": "standard error",
                "colormap": "magma",
                "contrast_limits": (0.0, float(error.max()) if error.max() > 0 else 1.0),
                "blending": "translucent",
                "interpolation2d": "nearest",
                "visible": False,
                **on_it,
            },
            "image",
        ),
        (
            signs,
            {
                "name": "significant",
                "opacity": 0.7,
                "visible": False,
                "colormap": {None: (0, 0, 0, 0), 0: (0, 0, 0, 0), 1: _RAISES, 2: _LOWERS},
                "features": pd.DataFrame({"index": [0, 1, 2], "significantly": ["", "raises the score", "lowers the score"]}),
                **on_it,
            },
            "labels",
        ),
        (
            effect,
            {
                "name": "effect",
                "colormap": {"name": "causal effect", "colors": _diverging()},
                "contrast_limits": (-largest, largest),
                "blending": "translucent",
                "interpolation2d": "nearest",
                "metadata": {"observed_score": float(statistics.observed_score[0]), "settings": dict(statistics.settings)},
                **on_it,
            },
            "image",
        ),
        (
            _own(region, grids),
            {
                "name": "region",
                "opacity": 0.9,
                "colormap": {None: (0, 0, 0, 0), 0: (0, 0, 0, 0), 1: (1, 0.9, 0.1, 1)},
                **on_it,
            },
            "labels",
        ),
    ]


def unit_table(statistics: TreatmentEffectStatistics) -> pd.DataFrame:
    """A row per unit: ``index``, its label (the unit's number and 1), and its effect, standard error, interval, draws and significance.

    Args:
        statistics: of one image and one output.
    """
    lower, upper = statistics.confidence_interval()
    return pd.DataFrame(
        {
            "index": statistics.unit_ids.numpy() + 1,
            "effect": statistics.effect[0].numpy(),
            "standard_error": statistics.standard_error[0].numpy(),
            "lower": lower[0].numpy(),
            "upper": upper[0].numpy(),
            "n_draws": statistics.n_draws[0].numpy(),
            "significant": statistics.significant(0.05)[0].numpy(),
            "status": [Status(int(code)).name.lower() for code in statistics.status[0]],
        }
    )


def _own(mask: Tensor, grids: Grids) -> np.ndarray[Any, Any]:
    return grids.to_own(mask.to(torch.uint8)).numpy()


def _diverging() -> np.ndarray[Any, Any]:
    """Blue below 0, red above, and the nearer to 0 the more of the image shows: colors ``(257, 4)``, from the most negative to the most positive."""
    position = np.linspace(-1, 1, 257)
    colors = np.asarray(colormaps["RdBu_r"]((position + 1) / 2), dtype=np.float32)
    colors[:, 3] = np.clip(1.6 * np.abs(position), 0, 0.85)
    return colors
