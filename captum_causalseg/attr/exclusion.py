"""Which parts of which input are left as they are, and from which places no donor is cut."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import shown
from captum_causalseg.interventions.units import Units

__all__ = ["Exclude", "Exclusion", "find_exclusion"]

Exclude: TypeAlias = Literal["roi"] | Tensor | tuple[Literal["roi"] | Tensor | None, ...] | None


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """What the argument ``exclude`` means for these inputs.

    Args:
        units: boolean ``(N, U, R)``: units that touch an excluded place of any of the inputs that they are part of, and are left as
            they are for the sake of RoI ``r``; ``R`` is 1 where RoIs do not matter.
        forbidden: per input, boolean ``(N or 1, *spatial)``: pixels that no donor may hold where it is cut from this very input.
        in_words: what was excluded, for the statistics: ``"roi"``, a mask by its shape, or None where nothing was; of a tuple, per
            input.
    """

    units: np.ndarray
    forbidden: list[Tensor | None]
    in_words: Any


def find_exclusion(exclude: Any, tensors: tuple[Tensor, ...], *, rois: Tensor | None, units: Units) -> Exclusion:
    """Read ``exclude``.

    Args:
        exclude: as the user gave it. One value is that of the segmented image and of every input of its spatial shape. Of a tuple,
            each must fit its own input.
        tensors: the inputs.
        rois: boolean ``(N or 1, R, *spatial)``.
        units: of the inputs.
    """
    places = _all_places(exclude, tensors, rois)
    return Exclusion(
        units=_touching(units, places, 1 if rois is None else rois.shape[1]),
        forbidden=_forbidden(exclude, tensors, rois),
        in_words=_in_words(exclude, places),
    )


def _all_places(exclude: Any, tensors: tuple[Tensor, ...], rois: Tensor | None) -> list[Tensor | None]:
    """Per input, boolean ``(N or 1, R or 1, *spatial)``: whose units are not intervened on for the sake of which RoI."""
    if not isinstance(exclude, tuple):
        places = _places("exclude", exclude, tensors[_segmented(tensors)].shape[2:], rois=rois)
        return [None if places is None or tensor.shape[2:] != places.shape[2:] else places for tensor in tensors]
    if len(exclude) != len(tensors):
        raise ValueError(f"exclude: expected one per input ({len(tensors)}), got {len(exclude)}")
    return [_places(f"exclude[{slot}]", exclude[slot], tensor.shape[2:], rois=rois) for slot, tensor in enumerate(tensors)]


def _in_words(exclude: Any, places: list[Tensor | None]) -> Any:
    def one(asked: Any, place: Tensor | None) -> str | None:
        if place is None:
            return None
        return "roi" if isinstance(asked, str) else f"mask {tuple(place.shape[2:])}"

    if isinstance(exclude, tuple):
        return [one(asked, place) for asked, place in zip(exclude, places)]
    return next((one(exclude, place) for place in places if place is not None), None)


def _touching(units: Units, places: list[Tensor | None], n_rois: int) -> np.ndarray:
    """Boolean ``(N, U, R)``."""
    excluded = np.zeros((units.n_examples, len(units), n_rois), dtype=bool)
    for slot, masks in enumerate(places):
        if masks is None:
            continue
        masks = masks.expand(-1, n_rois, *masks.shape[2:])
        for n, r in np.ndindex(units.n_examples, n_rois):
            excluded[n, :, r] |= units.touching(slot, n, masks[n if len(masks) > 1 else 0, r])
    return excluded


def _forbidden(exclude: Any, tensors: tuple[Tensor, ...], rois: Tensor | None) -> list[Tensor | None]:
    """Of the segmented image its RoIs, whatever is excluded; of another input the same places if they are excluded for being the RoI."""
    if rois is None:
        return [None] * len(tensors)
    union, segmented = rois.any(1), _segmented(tensors)
    asked = exclude if isinstance(exclude, tuple) else (exclude,) * len(tensors)
    return [
        union if tensor.shape[2:] == union.shape[1:] and (slot == segmented or isinstance(asked[slot], str)) else None
        for slot, tensor in enumerate(tensors)
    ]


def _segmented(tensors: tuple[Tensor, ...]) -> int:
    """The first input with spatial axes, as for the target; of inputs that all have none, the first."""
    return next((slot for slot, tensor in enumerate(tensors) if tensor.ndim > 2), 0)


def _places(name: str, given: Any, spatial: torch.Size, rois: Tensor | None) -> Tensor | None:
    """What one value of ``exclude`` means for an input of this spatial shape."""
    if given is None:
        return None
    if isinstance(given, str):
        if given != "roi":
            raise ValueError(f'{name}: expected "roi", a boolean mask or None, got {shown(given)}')
        if rois is not None and rois.shape[2:] != spatial:
            raise ValueError(
                f"{name}: expected a boolean mask or None, the RoI of spatial shape {tuple(rois.shape[2:])} has no place in an input of "
                f'spatial shape {tuple(spatial)}, got "roi"'
            )
        return rois
    if not isinstance(given, (Tensor, np.ndarray)):
        raise TypeError(f'{name}: expected "roi", a boolean mask or None, got {type(given).__name__}')
    boolean = given.dtype == (torch.bool if isinstance(given, Tensor) else np.dtype(bool))
    if not boolean or tuple(given.shape) != tuple(spatial):
        raise ValueError(
            f"{name}: expected a boolean mask of spatial shape {tuple(spatial)}, got {given.dtype} {tuple(given.shape)}"
        )
    return (given if isinstance(given, Tensor) else torch.from_numpy(given))[None, None]
