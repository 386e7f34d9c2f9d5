"""Statistics in a file: arrays and JSON, no pickle."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from captum_causalseg.layout import Layout
from captum_causalseg.statistics.moments import UnitMoments

if TYPE_CHECKING:
    from captum_causalseg.statistics.treatment_effect_statistics import TreatmentEffectStatistics

__all__ = ["read", "write"]

# What older versions could not read is written under another number.
_FORMAT, _WITH_CONTROLS = 2, 3
# Keys of settings that were called otherwise once.
_FORMER_KEYS = {"switched_off": "disabled"}


def write(statistics: "TreatmentEffectStatistics", path: str | Path) -> None:
    """See :meth:`TreatmentEffectStatistics.save`."""
    arrays = vars(statistics.moments) | {name: getattr(statistics, name).numpy() for name in ("observed_score", "unit_ids")}
    if statistics.slope_sums is not None:
        arrays["slope_sums"] = statistics.slope_sums.numpy()
    arrays |= {f"feature_mask_{i}": mask.numpy() for i, mask in enumerate(statistics.feature_mask)}
    names = list(statistics.controls)
    for i, moments in enumerate(statistics.control_moments.values()):
        arrays |= {f"control_{i}_{field}": values for field, values in vars(moments).items()}
    about = {
        "format": _WITH_CONTROLS if names else _FORMAT,
        "input_shapes": statistics.input_shapes,
        "n_forwards": statistics.n_forwards,
        "inputs_are_tuple": statistics.inputs_are_tuple,
        "output_axes": statistics.output_axes,
        "settings": statistics.settings,
        "layouts": [None if layout is None else layout.described() for layout in statistics.layouts],
    }
    if names:
        about["controls"] = names
    with open(path, "wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)


def read(path: str | Path) -> dict[str, Any]:
    """The arguments of :class:`TreatmentEffectStatistics` that make those in a file again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"path: {str(path)!r} is not a file written by TreatmentEffectStatistics.save") from error
    if about.pop("format") not in (_FORMAT, _WITH_CONTROLS):
        raise ValueError(f"path: {str(path)!r} was written by another version of captum_causalseg, in another format")
    masks = [torch.from_numpy(arrays.pop(f"feature_mask_{i}")) for i in range(len(about["input_shapes"]))]
    fields = [field.name for field in dataclasses.fields(UnitMoments)]
    about["controls"] = {
        name: UnitMoments(**{field: arrays.pop(f"control_{i}_{field}") for field in fields})
        for i, name in enumerate(about.get("controls", []))
    }
    about |= {name: torch.from_numpy(array) for name, array in arrays.items()}
    about["settings"] = {_FORMER_KEYS.get(key, key): value for key, value in about["settings"].items()}
    about["layouts"] = [None if one is None else Layout(**one) for one in about.get("layouts", [])]
    return {"feature_mask": masks, **about}
