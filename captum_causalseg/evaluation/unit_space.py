"""Where units lie, seen from a region of interest (RoI): distances, bins of distance, displacements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg._checks import NONE, TEXT, array_of, for_each_axis, integer, number, one_of, per_axis, shown
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target.masks import check_roi

__all__ = [
    "DISTANCES",
    "Array",
    "Metric",
    "Ruler",
    "UnitSpace",
    "check_example",
    "distance_to",
    "integer_map",
    "to_numpy",
    "unit_distances",
    "unit_labels",
]

Array = Tensor | np.ndarray
Metric = Literal["chebyshev", "euclidean", "cityblock"]

# What the arguments of profiles that say how distances are measured have to be.
DISTANCES = {
    "spacing": NONE | for_each_axis(number(above=0)),
    "bin_width": NONE | for_each_axis(number(above=0)),
    "metric": one_of("chebyshev", "euclidean", "cityblock"),
    "length_unit": NONE | TEXT,
}


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """How distances are measured.

    Args:
        spacing: edge of a pixel, one number or one per axis; 1 by default.
        metric: which distance.
        bin_width: of distances, one number or one per axis; the edge of the units by default.
        length_unit: what the spacing is measured in.
    """

    spacing: float | Sequence[float] | None = None
    metric: Metric = "chebyshev"
    bin_width: float | Sequence[float] | None = None
    length_unit: str | None = None

    def step(self, axes: int) -> np.ndarray:
        """Edges of a pixel, ``(axes,)``."""
        return np.ones(axes) if self.spacing is None else _lengths("spacing", self.spacing, axes)


class UnitSpace:
    """Where an example's units lie, seen from the RoI.

    Args:
        labels: ``(C, *spatial)`` ids of the units; equal ids in several channels are one unit.
        roi: boolean mask ``(*spatial)``.
        ruler: how distances are measured.
        beside: ids of units that the default width of a bin is not taken from.
    """

    def __init__(self, labels: np.ndarray, roi: Array, ruler: Ruler, *, beside: np.ndarray | None = None) -> None:
        spacing, bin_width, length_unit = ruler.spacing, ruler.bin_width, ruler.length_unit
        spatial = labels.shape[1:]
        axes = len(spatial)
        self.roi = _roi(roi, spatial)
        step = ruler.step(axes)
        self.ids, unit = np.unique(labels, return_inverse=True)
        index = unit.reshape(labels.shape) + 1
        if length_unit is not None and spacing is None:
            raise ValueError(f"length_unit: it is the unit of spacing, so it needs spacing; got {shown(length_unit)}")
        self.distance_unit = "pixel" if spacing is None else length_unit or "spacing"
        scale, self.bin_width = step, 1.0
        if bin_width is None:
            counted = np.ones(len(self.ids), bool) if beside is None else ~np.isin(self.ids, beside)
            self.bin_width = float(np.max(_edges(index, counted) * step))
        elif np.ndim(bin_width) == 0:
            self.bin_width = float(_lengths("bin_width", bin_width, axes)[0])
        else:
            scale, self.distance_unit = step / _lengths("bin_width", bin_width, axes), "bin"
        reach = np.broadcast_to(distance_to(self.roi, scale, ruler.metric), labels.shape)
        number = np.arange(len(self.ids)) + 1
        self.distance = np.asarray(ndimage.minimum(reach, index, number))
        # Far from 0 in no bin's favor: 3 * 0.1 belongs to the third bin of width 0.1.
        self.bins = np.ceil(self.distance / self.bin_width - 1e-9).astype(np.int64)
        center = np.array(ndimage.center_of_mass(np.broadcast_to(1.0, labels.shape), index, number))[:, 1:]
        self.displacement = (center - np.array(ndimage.center_of_mass(self.roi))) * step


def unit_distances(labels: np.ndarray, roi: Array, ruler: Ruler) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the units in ``labels`` ``(C, *spatial)`` and their smallest distances from the RoI, as :class:`UnitSpace` has them."""
    spatial = labels.shape[1:]
    DISTANCES["metric"]("metric", ruler.metric)
    step = ruler.step(len(spatial))
    ids, unit = np.unique(labels, return_inverse=True)
    reach = np.broadcast_to(distance_to(_roi(roi, spatial), step, ruler.metric), labels.shape)
    return ids, np.asarray(ndimage.minimum(reach, unit.reshape(labels.shape) + 1, np.arange(len(ids)) + 1))


def distance_to(roi: np.ndarray, spacing: np.ndarray, metric: Metric) -> np.ndarray:
    """Exact distance of every pixel's center to the nearest pixel center of the RoI, ``(*spatial)``.

    Args:
        roi: boolean ``(*spatial)``, not empty.
        spacing: ``(axes,)`` edges of a pixel.
        metric: ``"chebyshev"``, ``"euclidean"`` or ``"cityblock"``.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.evaluation.unit_space import distance_to
        >>> distance_to(np.array([[True, False, False], [False, False, False]]), np.array([1.0, 0.5]), "chebyshev")
        array([[0. , 0.5, 1. ],
               [1. , 1. , 1. ]])
    """
    if metric == "euclidean":
        return np.asarray(ndimage.distance_transform_edt(~roi, sampling=spacing))
    if metric == "cityblock":
        # Separable: along each axis, the smallest of (distance so far + steps along the axis), from either side.
        distance = np.where(roi, 0.0, np.inf)
        for axis, step in enumerate(spacing):
            along = np.moveaxis(distance, axis, -1)
            position = step * np.arange(along.shape[-1])
            ahead = np.minimum.accumulate(along - position, axis=-1) + position
            behind = np.flip(np.minimum.accumulate(np.flip(along + position, -1), axis=-1), -1) - position
            distance = np.moveaxis(np.minimum(ahead, behind), -1, axis)
        return distance
    if (spacing == spacing[0]).all():
        return np.asarray(ndimage.distance_transform_cdt(~roi, "chessboard") * spacing[0])
    # The box that is within the distance grows by one pixel along one axis at a time, at the distances step, 2 step, ... of that
    # axis; a pixel's distance is that at which it is met first. Other ways are exact for equal spacing only, or slower.
    events = sorted((step * k, axis) for axis, step in enumerate(spacing) for k in range(1, roi.shape[axis]))
    distance, met = np.where(roi, 0.0, np.inf), roi.copy()
    for radius, axis in events:
        if met.all():
            break
        grown = met.copy()
        to, source = np.moveaxis(grown, axis, 0), np.moveaxis(met, axis, 0)
        to[1:] |= source[:-1]
        to[:-1] |= source[1:]
        distance[grown & ~met] = radius
        met = grown
    return distance


def _edges(index: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Per spatial axis, the median edge of the counted units' bounding boxes; the longer of the two in the middle."""
    boxes = ndimage.find_objects(index)
    edges = np.array([[side.stop - side.start for side in box[1:]] for box, counts in zip(boxes, counted) if counts])
    return np.asarray(np.quantile(edges, 0.5, axis=0, method="higher"))


def unit_labels(statistics: TreatmentEffectStatistics, row: int) -> np.ndarray:
    """Ids of one example's units in the first input, ``(C or 1, *spatial)``."""
    mask, spatial = statistics.feature_mask[0], statistics.input_shapes[0][2:]
    if not spatial:
        raise ValueError("statistics: the first input has no spatial axes, so its units have no positions")
    labels = mask[row if mask.shape[0] > 1 else 0].numpy()
    return np.broadcast_to(labels, (labels.shape[0], *spatial))


def _roi(roi: Array, spatial: tuple[int, ...]) -> np.ndarray:
    array_of("real")("roi", roi)
    if tuple(roi.shape) != tuple(spatial):
        raise ValueError(f"roi: expected one mask of the spatial shape {tuple(spatial)}, got {tuple(roi.shape)}")
    return check_roi(torch.from_numpy(to_numpy(roi).copy())).numpy()


def integer_map(name: str, values: Array | None, spatial: tuple[int, ...]) -> np.ndarray:
    """A user's integers ``(*spatial)``, checked."""
    array_of("integer")(name, values)
    assert values is not None
    array = to_numpy(values)
    if array.shape != tuple(spatial):
        raise ValueError(f"{name}: expected the spatial shape {tuple(spatial)}, got {array.shape}")
    return array


def _lengths(name: str, value: float | Sequence[float], axes: int) -> np.ndarray:
    """One positive number per axis."""
    return np.asarray(per_axis(name, value, axes, each=number(above=0)), dtype=np.float64)


def to_numpy(values: Array) -> np.ndarray:
    """On the CPU, without gradient."""
    array: np.ndarray = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    return array


def check_example(statistics: TreatmentEffectStatistics, example: int) -> int:
    """A user's choice of an example, checked."""
    integer(0, statistics.effect.shape[0] - 1)("example", example)
    return int(example)
