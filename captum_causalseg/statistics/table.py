"""Effects as a table, and where their units lie."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage

from captum_causalseg.layout import Layout
from captum_causalseg.statistics.controls import EDGE_SHIFTED
from captum_causalseg.statistics.status import Status

if TYPE_CHECKING:
    from captum_causalseg.statistics.treatment_effect_statistics import TreatmentEffectStatistics

__all__ = ["as_table"]


def as_table(statistics: "TreatmentEffectStatistics", level: float) -> pd.DataFrame:
    """See :meth:`TreatmentEffectStatistics.to_dataframe`."""
    lower, upper = statistics.confidence_interval(level)
    n, units = statistics.effect.shape[:2]
    axes = np.indices((n, units, *statistics.output_shape)).reshape(2 + len(statistics.output_shape), -1)
    columns: dict[str, Any] = {"example": axes[0], "unit": statistics.unit_ids.numpy()[axes[1]]}
    columns |= dict(zip(statistics.output_axes, axes[2:]))
    boxes = _boxes(statistics)
    for name in boxes:
        columns[name] = boxes[name][axes[0], axes[1]]
    columns["status"] = np.array([s.name for s in Status])[statistics.status.numpy().ravel()]
    observed = statistics.observed_score.unsqueeze(1).expand(statistics.effect.shape)
    for name, values in {
        "effect": statistics.effect,
        "standard_error": statistics.standard_error,
        "lower": lower,
        "upper": upper,
        "p_value": statistics.p_values(),
        "n_draws": statistics.n_draws,
        "observed_score": observed,
    }.items():
        columns[name] = values.numpy().ravel()
    for name, control in statistics.controls.items():
        ends = control.confidence_interval(level)
        for column, values in ((name, control.effect), (f"{name}_lower", ends[0]), (f"{name}_upper", ends[1])):
            columns[column] = values.numpy().ravel()
    if EDGE_SHIFTED in statistics.controls:
        columns["edge_suspect"] = statistics.edge_suspect().numpy().ravel()
    frame = pd.DataFrame(columns)
    return frame[frame["status"] != Status.ABSENT.name].reset_index(drop=True)


def _boxes(statistics: "TreatmentEffectStatistics") -> dict[str, np.ndarray]:
    """Per example and unit: the first input that holds the unit, the one channel that it lies in (-1: several), and the bounding box there."""
    n, units = statistics.effect.shape[:2]
    layouts = [layout or Layout("NC*") for layout in statistics.layouts]
    masks = [layout.channels_first(mask) for layout, mask in zip(layouts, statistics.feature_mask)]
    lengths = [layout.spatial(shape) for layout, shape in zip(layouts, statistics.input_shapes)]
    most = max(map(len, lengths))
    inputs = np.full((n, units), -1)
    channels = np.full((n, units), -1)
    corners = np.full((2, most, n, units), -1)
    for slot, mask in reversed(list(enumerate(masks))):
        labels = torch.searchsorted(statistics.unit_ids, mask.contiguous()).numpy() + 1
        for m in range(len(labels)):
            rows = slice(None) if len(labels) == 1 else slice(m, m + 1)
            for u, found in enumerate(ndimage.find_objects(labels[m], max_label=units)):
                if found is None:
                    continue
                inputs[rows, u] = slot
                channels[rows, u] = found[0].start if mask.shape[1] > 1 and found[0].stop - found[0].start == 1 else -1
                corners[:, :, rows, u] = -1
                for axis, side in enumerate(found[1:]):
                    # An axis of length 1 in the mask stands for the whole of it.
                    stop = lengths[slot][axis] if mask.shape[axis + 2] == 1 else side.stop
                    corners[0, axis, rows, u], corners[1, axis, rows, u] = side.start, stop
    columns = {"input": inputs} if len(statistics.feature_mask) > 1 else {}
    # A layer's units have the channels' numbers.
    if any(layout is None and mask.shape[1] > 1 and mask.ndim > 2 for layout, mask in zip(statistics.layouts, masks)):
        columns["channel"] = channels
    for axis in range(most):
        columns |= {f"start_{axis}": corners[0, axis], f"stop_{axis}": corners[1, axis]}
    return columns
