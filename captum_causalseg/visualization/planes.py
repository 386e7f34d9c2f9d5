"""What a picture of effects shows: which input, output and region of interest, and which planes of a volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import integer, number, per_axis, shown
from captum_causalseg.evaluation.unit_space import check_example
from captum_causalseg.images import spacing_of
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target.masks import check_roi, mask_source, plain_tensor, roi_of_batch

__all__ = ["Output", "Plane", "View", "chosen_slices", "peak", "pixel_spacing", "shown_outputs", "view_of"]


@dataclass(frozen=True)
class View:
    """One example of one input.

    Attributes:
        image: ``(C, *spatial)`` on the CPU.
        example: which example of the batch.
        slot: which of the inputs.
        channel: whose units are shown.
        spacing: edges of a pixel, one per spatial axis.
        rois: boolean ``(R, *spatial)``; None where none was given.
    """

    image: Tensor
    example: int
    slot: int
    channel: int
    spacing: tuple[float, ...]
    rois: np.ndarray | None

    def map(self, statistics: TreatmentEffectStatistics, field: str, target: TargetType) -> np.ndarray:
        """One quantity ``(*spatial)``."""
        maps = statistics.to_map(field, target)
        found = maps[self.slot] if isinstance(maps, tuple) else maps
        return found[self.example, min(self.channel, found.shape[1] - 1)].numpy()


@dataclass(frozen=True)
class Output:
    """One output: the ``target`` that picks it, its region of interest ``(*spatial)`` and what that is called."""

    target: TargetType
    roi: np.ndarray | None
    name: str


@dataclass(frozen=True)
class Plane:
    """One slice of a volume (``axis``, ``index``), or all of an image (``axis`` None).

    Attributes:
        aspect: a pixel's height over its width.
        size: height and width in the unit of the spacing.
        cross: row and column of the position that the planes of a volume have in common.
    """

    axis: int | None
    index: int
    aspect: float
    size: tuple[float, float]
    cross: tuple[int, int] | None = None

    @classmethod
    def whole(cls, shape: Sequence[int], spacing: Sequence[float]) -> "Plane":
        """The plane of a picture: all of it."""
        return cls(None, 0, spacing[0] / spacing[1], (shape[0] * spacing[0], shape[1] * spacing[1]))

    @classmethod
    def of_volume(
        cls, shape: Sequence[int], spacing: Sequence[float], axis: int, index: int, position: Sequence[int] | None = None
    ) -> "Plane":
        """The plane of a volume at this index along an axis."""
        row, column = (a for a in range(3) if a != axis)
        size = shape[row] * spacing[row], shape[column] * spacing[column]
        cross = None if position is None else (position[row], position[column])
        return cls(axis, index, spacing[row] / spacing[column], size, cross)

    @classmethod
    def through(cls, shape: Sequence[int], spacing: Sequence[float], position: Sequence[int]) -> "list[Plane]":
        """The three planes through a position, that of the last axis first."""
        return [cls.of_volume(shape, spacing, axis=axis, index=position[axis], position=position) for axis in (2, 1, 0)]

    def cut(self, values: np.ndarray) -> np.ndarray:
        """``(H, W, ...)`` of ``(*spatial, ...)``."""
        return values if self.axis is None else np.take(values, self.index, self.axis)


def view_of(
    image: Any,
    statistics: TreatmentEffectStatistics,
    roi: Any,
    *,
    example: int,
    input_index: int,
    channel: int | None,
    spacing: float | Sequence[float] | None,
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
        spacing=pixel_spacing(image, spacing, example),
        rois=masks,
    )


def pixel_spacing(image: Tensor, spacing: float | Sequence[float] | None, example: int) -> tuple[float, ...]:
    """One length per spatial axis: as given, as the affine of a MetaTensor says, or 1."""
    axes = image.ndim - 2
    if spacing is None:
        return spacing_of(image, example) or (1.0,) * axes
    return tuple(map(float, per_axis("spacing", spacing, axes, each=number(above=0))))


def shown_outputs(statistics: TreatmentEffectStatistics, target: TargetType, view: View) -> list[Output]:
    """One output, or one per region of interest where the target leaves that open."""
    chosen = _of_example(target, view.example, len(statistics.effect))
    axes = statistics.output_axes
    masks = view.rois
    given = 0 if masks is None else len(masks)
    if "roi" not in axes:
        if given > 1:
            raise ValueError(
                f"roi: a stack of {given} masks, but the statistics are of one region of interest; pass its mask, or "
                "(N, 1, *spatial) for a mask per example"
            )
        return [Output(chosen, None if masks is None else masks[0], "")]
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
        return [Output(chosen, mask, f"RoI {number % count}" if count > 1 else "")]
    if given not in (0, count):
        raise ValueError(
            f"roi: the statistics are of {count} regions of interest and the target picks none of them: expected "
            f"{count} masks, got {given}"
        )
    targets = [(*picked, number) if picked else number for number in range(count)]
    return [
        Output(one, None if masks is None else masks[number], f"RoI {number}" if count > 1 else "")
        for number, one in enumerate(targets)
    ]


def _of_example(target: TargetType, example: int, n_examples: int) -> TargetType:
    """A target per example, as Captum takes it in a list or a tensor, is that of the example."""
    if isinstance(target, list) and len(target) == n_examples:
        return target[example]
    if isinstance(target, Tensor) and target.numel() in (1, n_examples):
        return int(target.flatten()[example if target.numel() > 1 else 0])
    return target


def peak(effect: np.ndarray, roi: np.ndarray | None) -> tuple[int, ...]:
    """Where the effect is largest: the middle of that unit; the middle of the RoI or of the image where all are 0."""
    size = np.nan_to_num(np.abs(effect))
    if size.max() > 0:
        places = np.argwhere(size == size.max())
    elif roi is not None:
        places = np.argwhere(roi)
    else:
        return tuple(length // 2 for length in effect.shape)
    # One of the places: the middle of a bent unit may lie beside it.
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
