"""Donors in disjoint parts, whatever form they were given in."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from captum_causalseg.donors.any_source import AnySource, CannotSplit
from captum_causalseg.donors.every_other import EveryOther
from captum_causalseg.donors.images import random_parts
from captum_causalseg.donors.source import DonorSource

__all__ = ["LEAST_TO_HALVE", "donor_parts", "halves"]

# Two donors in each half: one that is alone in it says nothing of how donors differ.
LEAST_TO_HALVE = 4


def donor_parts(baselines: Any, shares: tuple[float, ...], seed: int, least: int) -> list[Any] | str:
    """Baselines from disjoint random subsets of the donor images, or the reason why there are none.

    Of a tuple of baselines each is split, those of equal length alike; those that have one donor only stay as they are.
    """
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    counts = [count for one in given if (count := _n_images(one))]
    if counts and min(counts) < least:
        return f"too few donor images to split ({min(counts)})"
    split = [_parts(one, shares, seed) for one in given]
    if not any(split):
        return f"there are no donor images to split (baselines={baselines!r})"
    parts = [tuple(one if found is None else found[part] for one, found in zip(given, split)) for part in range(len(shares))]
    return parts if isinstance(baselines, tuple) else [part[0] for part in parts]


def halves(source: DonorSource, seed: int) -> tuple[DonorSource, DonorSource]:
    """Two sources of disjoint donors: of a random half of the donor images each, or, where there are no images, of every other donor.

    Raises:
        ValueError: there are fewer than four donor images.
    """
    n_images = source.n_images
    if n_images is None:
        return EveryOther(source, 0), EveryOther(source, 1)
    if n_images < LEAST_TO_HALVE:
        raise ValueError(
            f"baselines: expected at least {LEAST_TO_HALVE} donor images, half of them to search with and half to judge what was found, got {n_images}"
        )
    first, second = source.split(0.5, 0.5, seed=seed)
    return first, second


def _n_images(baselines: Any) -> int | None:
    if isinstance(baselines, Tensor):
        return len(baselines) if baselines.ndim else None
    return baselines.n_images if isinstance(baselines, AnySource) else None


def _parts(baselines: Any, shares: tuple[float, ...], seed: int) -> Sequence[Any] | None:
    """``None`` of what cannot be split."""
    if isinstance(baselines, Tensor) and baselines.ndim:
        return [baselines[indices] for indices in random_parts(len(baselines), shares, seed)]
    if not isinstance(baselines, AnySource):
        return None
    try:
        return baselines.split(*shares, seed=seed)
    except CannotSplit:
        return None
