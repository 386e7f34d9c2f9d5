"""What a picture of effects shows: which input, output and region of interest, and which planes of a volume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import integer, shown
from captum_causalseg.evaluation.unit_space import check_example
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target.masks import check_roi, mask_source, plain_tensor, roi_of_batch
from captum_causalseg.visualization.geometry import Geometry, geometry_of
from captum_causalseg.visualization.segmentations import class_mask

__all__ = [
    "About",
    "Layout",
    "Output",
    "Plane",
    "View",
    "center",
    "chosen_slices",
    "layout_of",
    "peak",
    "shown_outputs",
    "view_of",
]


@dataclass(frozen=True)
class About:
    """What a caller may say of an image besides its values; None where nothing is said.

    Attributes:
        segmentation: the predicted one.
        reference: the other.
        spacing: edges of a voxel.
        affine: from voxels to millimeters.
    """

    segmentation: Any = None
    reference: Any = None
    spacing: float | Sequence[float] | None = None
    affine: Any = None


@dataclass(frozen=True)
class View:
    """One example of one input.

    Attributes:
        image: ``(C, *spatial)`` on the CPU.
        example: which example of the batch.
        slot: which of the inputs.
        channel: whose units are shown.
        geometry: of its voxels.
        rois: boolean ``(R, *spatial)``; None where none was given.
        given: the segmentations of the batch as the caller gave them, by the argument's name.
    """

    image: Tensor
    example: int
    slot: int
    channel: int
    geometry: Geometry
    rois: np.ndarray | None
    given: Mapping[str, Any]

    def segmentations(self, n_examples: int, output: int | None) -> dict[str, np.ndarray]:
        """Of the class that is explained: boolean masks ``(*spatial)`` by the arguments' names."""
        about: dict[str, Any] = {"spatial": self.image.shape[1:], "n_examples": n_examples, "example": self.example}
        found = {name: class_mask(name, given, output=output, **about) for name, given in self.given.items()}
        return {name: mask for name, mask in found.items() if mask is not None}

    def map(self, statistics: TreatmentEffectStatistics, field: str, target: TargetType) -> np.ndarray:
        """One quantity ``(*spatial)``."""
        maps = statistics.to_map(field, target)
        found = maps[self.slot] if isinstance(maps, tuple) else maps
        return found[self.example, min(self.channel, found.shape[1] - 1)].numpy()


@dataclass(frozen=True)
class Output:
    """One output.

    Attributes:
        target: what picks it.
        roi: its region of interest ``(*spatial)``.
        name: what that is called.
        segmentations: of its class, boolean ``(*spatial)``: ``segmentation`` is the predicted one, ``reference`` the other.
    """

    target: TargetType
    roi: np.ndarray | None
    name: str
    segmentations: Mapping[str, np.ndarray]


Window = tuple[tuple[int, int], ...]
"""The part of an image that is shown: along each axis of the array the first index and the one behind the last."""


@dataclass(frozen=True)
class Plane:
    """One slice of a volume (``axis``, ``index``), or all of an image (``axis`` None), as it is shown.

    Attributes:
        geometry: of the image.
        shape: of the image, ``(*spatial)``.
        window: which part is shown.
        cross: the position that the planes of a volume have in common.
    """

    geometry: Geometry
    shape: tuple[int, ...]
    window: Window
    axis: int | None = None
    index: int = 0
    cross: tuple[int, ...] | None = None

    @property
    def axes(self) -> tuple[int, int]:
        """Of the array, those of the rows and of the columns."""
        return (0, 1) if self.axis is None else self.geometry.plane_axes(self.axis)

    @property
    def aspect(self) -> float:
        """A pixel's height over its width."""
        row, column = self.axes
        return self.geometry.spacing[row] / self.geometry.spacing[column]

    @property
    def size(self) -> tuple[float, float]:
        """Height and width of what is shown, in the unit of the spacing."""
        row, column = ((self.window[a][1] - self.window[a][0]) * self.geometry.spacing[a] for a in self.axes)
        return row, column

    @property
    def limits(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Of the rows (from the top) and of the columns that are shown."""
        row, column = (
            sorted((self._shown(a, start), self._shown(a, stop - 1))) for a in self.axes for start, stop in [self.window[a]]
        )
        return (row[0] - 0.5, row[1] + 0.5), (column[0] - 0.5, column[1] + 0.5)

    @property
    def is_part(self) -> bool:
        """Whether there is more than what is shown."""
        return any(self.window[a] != (0, self.shape[a]) for a in self.axes)

    @property
    def name(self) -> str:
        """Which slice of a volume it is."""
        return "" if self.axis is None else f"{self.geometry.cut_name(self.axis)}\nslice {self.index}"

    def cut(self, values: np.ndarray) -> np.ndarray:
        """``(H, W, ...)`` of ``(*spatial, ...)``."""
        found = values if self.axis is None else np.take(values, self.index, self.axis)
        row, column = self.axes
        found = found if row < column else found.swapaxes(0, 1)
        return found[:: -1 if self.geometry.turned(row) else 1, :: -1 if self.geometry.turned(column) else 1]

    def place(self, position: Sequence[float]) -> tuple[float, float]:
        """Row and column of a position of the array."""
        row, column = (self._shown(a, position[a]) for a in self.axes)
        return row, column

    def _shown(self, axis: int, index: float) -> float:
        return self.shape[axis] - 1 - index if self.geometry.turned(axis) else index


@dataclass(frozen=True)
class Layout:
    """Where the planes of an image go: through which position, and which part of them is shown."""

    geometry: Geometry
    shape: tuple[int, ...]
    window: Window

    def whole(self) -> Plane:
        """The plane of a picture."""
        return Plane(self.geometry, self.shape, self.window)

    def across(self, axis: int, indices: Sequence[int]) -> list[Plane]:
        """Slices of a volume."""
        return [Plane(self.geometry, self.shape, self.window, axis=axis, index=index) for index in indices]

    @property
    def thin(self) -> int | None:
        """The axis along which a volume has so few slices, or so thin ones, that planes across the others would be strips."""
        if len(self.shape) == 2:
            return None
        edges = [(stop - start) * edge for (start, stop), edge in zip(self.window, self.geometry.spacing)]
        shortest = int(np.argmin(edges))
        return shortest if edges[shortest] < _THIN * sorted(edges)[1] else None

    def through(self, position: Sequence[int]) -> list[Plane]:
        """A picture's only plane; of a volume the three planes through a position, or, of a thin one, the slice through it."""
        if len(self.shape) == 2:
            return [self.whole()]
        if self.thin is not None:
            return self.across(self.thin, [position[self.thin]])
        cross = tuple(position)
        return [
            Plane(self.geometry, self.shape, self.window, axis=axis, index=cross[axis], cross=cross)
            for axis in self.geometry.cuts()
        ]


_THIN = 0.2
# Of the picture's area, what a part may take up to be worth an enlargement; and the margin around it, of its longest edge.
_WORTH, _MARGIN, _LEAST_MARGIN = 0.6, 0.12, 4


def layout_of(shape: Sequence[int], geometry: Geometry, reached: np.ndarray | None, *, zoom: bool | str) -> Layout:
    """Of the whole image, or of the part that can reach the region of interest and a margin.

    Args:
        shape: ``(*spatial)``.
        geometry: of the voxels.
        reached: boolean ``(*spatial)``: what has to be seen; None for all.
        zoom: whether to enlarge that part; ``"auto"`` for where it is much smaller than the image.
    """
    whole: Window = tuple((0, length) for length in shape)
    if zoom is False or reached is None or not reached.any():
        return Layout(geometry, tuple(shape), whole)
    places = [
        np.flatnonzero(reached.any(tuple(other for other in range(reached.ndim) if other != axis)))
        for axis in range(reached.ndim)
    ]
    longest = max((found[-1] + 1 - found[0]) * edge for found, edge in zip(places, geometry.spacing))
    window: Window = tuple(
        (max(0, int(found[0]) - margin), min(length, int(found[-1]) + 1 + margin))
        for found, length, edge in zip(places, shape, geometry.spacing)
        for margin in [max(_LEAST_MARGIN if length > 8 * _LEAST_MARGIN else 0, round(_MARGIN * longest / edge))]
    )
    shares = [(stop - start) / length for (start, stop), length in zip(window, shape)]
    if zoom == "auto" and max(a * b for i, a in enumerate(shares) for b in shares[:i]) > _WORTH:
        return Layout(geometry, tuple(shape), whole)
    return Layout(geometry, tuple(shape), window)


def view_of(
    image: Any,
    statistics: TreatmentEffectStatistics,
    roi: Any,
    *,
    example: int,
    input_index: int,
    channel: int | None,
    about: About,
) -> View:
    """Check what the caller gave against the statistics."""
    if not isinstance(statistics, TreatmentEffectStatistics):
        raise TypeError(f"statistics: expected TreatmentEffectStatistics, got {type(statistics).__name__}")
    example = check_example(statistics, example)
    count = len(statistics.input_shapes)
    integer(0, count - 1)("input_index", input_index)
    if isinstance(image, tuple):
        if len(image) != count:
            raise ValueError(f"image: the statistics are of {count} input(s), got {len(image)}")
        image = image[input_index]
    if not isinstance(image, Tensor):
        raise TypeError(f"image: expected a tensor or a tuple of tensors, got {type(image).__name__}")
    if image.ndim not in (4, 5):
        raise ValueError(f"image: expected (N, C, *spatial) with 2 or 3 spatial axes, got {tuple(image.shape)}")
    explained = statistics.input_shapes[input_index]
    if (image.shape[0], *image.shape[2:]) != (explained[0], *explained[2:]):
        raise ValueError(f"image: expected the explained input, of shape {explained}, got {tuple(image.shape)}")
    if channel is not None:
        integer(0, image.shape[1] - 1)("channel", channel)
    if isinstance(roi, str):
        raise TypeError(f"roi: expected a mask to outline, got {shown(roi)}")
    given = mask_source("roi", roi)[1]
    masks = None
    if given is not None:
        batch = roi_of_batch(check_roi(given), image.shape[2:], image.shape[0], is_argument=False)
        masks = batch[example if len(batch) > 1 else 0].cpu().numpy()
    return View(
        image=plain_tensor(image[example]).cpu(),
        example=example,
        slot=input_index,
        channel=channel or 0,
        geometry=geometry_of(image, about.spacing, about.affine, example=example),
        rois=masks,
        given={"segmentation": about.segmentation, "reference": about.reference},
    )


def shown_outputs(statistics: TreatmentEffectStatistics, target: TargetType, view: View) -> list[Output]:
    """One output, or one per region of interest where the target leaves that open."""
    chosen = _of_example(target, view.example, len(statistics.effect))
    axes = statistics.output_axes
    masks = view.rois
    given = 0 if masks is None else len(masks)
    segmentations = view.segmentations(len(statistics.effect), _class_of(chosen, statistics))
    if "roi" not in axes:
        if given > 1:
            raise ValueError(
                f"roi: a stack of {given} masks, but the statistics are of one region of interest; pass its mask, or "
                "(N, 1, *spatial) for a mask per example"
            )
        return [Output(chosen, None if masks is None else masks[0], "", segmentations=segmentations)]
    count = statistics.output_shape[axes.index("roi")]
    picked: tuple[Any, ...] = () if chosen is None else chosen if isinstance(chosen, tuple) else (chosen,)
    if len(picked) == 0 and axes == ("class", "roi") and statistics.output_shape[0] == 1:
        picked = (0,)
    if len(picked) == len(axes) or len(picked) < len(axes) - 1:
        # Also targets that pick nothing, for the statistics to say so.
        statistics.select(statistics.effect, chosen)
        if given not in (0, 1, count):
            raise ValueError(f"roi: the statistics are of {count} regions of interest, got {given} masks")
        number = int(picked[-1])
        mask = None if masks is None else masks[number if given > 1 else 0]
        return [Output(chosen, mask, f"RoI {number % count}" if count > 1 else "", segmentations=segmentations)]
    if given not in (0, count):
        raise ValueError(
            f"roi: the statistics are of {count} regions of interest and the target picks none of them: expected "
            f"{count} masks, got {given}"
        )
    targets = [(*picked, number) if picked else number for number in range(count)]
    return [
        Output(one, None if masks is None else masks[number], f"RoI {number}" if count > 1 else "", segmentations=segmentations)
        for number, one in enumerate(targets)
    ]


def _class_of(chosen: TargetType, statistics: TreatmentEffectStatistics) -> int | None:
    """Which class is explained; None where there is but one."""
    if "class" not in statistics.output_axes:
        return None
    place = statistics.output_axes.index("class")
    if chosen is None:
        return 0 if statistics.output_shape[place] == 1 else None
    return int(chosen[place] if isinstance(chosen, tuple) else chosen)


def _of_example(target: TargetType, example: int, n_examples: int) -> TargetType:
    """A target per example, as Captum takes it in a list or a tensor, is that of the example."""
    if isinstance(target, list) and len(target) == n_examples:
        return target[example]
    if isinstance(target, Tensor) and target.numel() in (1, n_examples):
        return int(target.flatten()[example if target.numel() > 1 else 0])
    return target


def center(roi: np.ndarray) -> tuple[int, ...]:
    """A position in a region of interest, as near to its middle as there is one."""
    return _nearest_to_middle(np.argwhere(roi))


def peak(effect: np.ndarray, roi: np.ndarray | None) -> tuple[int, ...]:
    """Where the effect is largest: the middle of that unit; the middle of the RoI or of the image where all are 0."""
    size = np.nan_to_num(np.abs(effect))
    if size.max() > 0:
        places = np.argwhere(size == size.max())
    elif roi is not None:
        places = np.argwhere(roi)
    else:
        return tuple(length // 2 for length in effect.shape)
    return _nearest_to_middle(places)


def _nearest_to_middle(places: np.ndarray) -> tuple[int, ...]:
    """One of the places: the middle of a bent unit may lie beside it."""
    nearest = np.square(places - places.mean(0)).sum(1).argmin()
    return tuple(map(int, places[nearest]))


def chosen_slices(effect: np.ndarray, roi: np.ndarray | None, axis: int, count: int) -> tuple[list[int], int | None]:
    """Slices spread evenly over those that have effects, the one with the largest among them, and which that is."""
    others = tuple(a for a in range(effect.ndim) if a != axis)
    largest = np.nan_to_num(np.abs(effect)).max(others)
    strongest: int | None = peak(effect, None)[axis]
    if largest.max() > 0:
        candidates = np.flatnonzero(largest)
    else:
        strongest = None
        candidates = np.arange(effect.shape[axis]) if roi is None else np.flatnonzero(roi.any(others))
    places = np.linspace(0, len(candidates) - 1, min(count, len(candidates)))
    if len(places) == 1:
        places = np.array([(len(candidates) - 1) / 2])
    chosen = candidates[np.floor(places + 0.5).astype(int)].tolist()
    if strongest is not None and strongest not in chosen:
        chosen[int(np.argmin(np.abs(np.array(chosen) - strongest)))] = strongest
    return sorted(chosen), strongest
