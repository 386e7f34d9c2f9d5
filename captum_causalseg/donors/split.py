"""Donors in disjoint parts, whatever form they were given in."""

from typing import Any

from torch import Tensor

from captum_causalseg.donors.activation_bank import ActivationBank
from captum_causalseg.donors.images import ChosenImages, random_parts
from captum_causalseg.donors.patch_bank import PatchBank

__all__ = ["donor_parts"]


def donor_parts(baselines: Any, shares: tuple[float, ...], seed: int, least: int) -> list[Any] | str:
    """Baselines from disjoint random subsets of the donor images, or the reason why there are none.

    Of a tuple of baselines each is split, those of equal length alike; those that have one donor only stay as they are.
    """
    given = baselines if isinstance(baselines, tuple) else (baselines,)
    counts = [_n_images(one) for one in given]
    if not any(counts):
        return f"there are no donor images to split (baselines={baselines!r})"
    fewest = min(count for count in counts if count)
    if fewest < least:
        return f"too few donor images to split ({fewest})"
    parts = []
    for part in range(len(shares)):
        chosen = tuple(
            one if count is None else _chosen(one, random_parts(count, shares, seed)[part]) for one, count in zip(given, counts)
        )
        parts.append(chosen if isinstance(baselines, tuple) else chosen[0])
    return parts


def _n_images(baselines: Any) -> int | None:
    """How many donor images there are to split; ``None`` for a source that has none."""
    if isinstance(baselines, PatchBank) or (isinstance(baselines, ActivationBank) and baselines.reduction is None):
        return len(baselines)
    return len(baselines) if isinstance(baselines, Tensor) and baselines.ndim > 0 else None


def _chosen(baselines: Any, indices: list[int]) -> Any:
    if isinstance(baselines, PatchBank):
        return baselines._chosen(indices)
    if isinstance(baselines, ActivationBank):
        images = tuple(one[indices] if isinstance(one, Tensor) else ChosenImages(one, indices) for one in baselines._images)
        return ActivationBank(images, batch_size=baselines.batch_size, memory_budget=baselines.memory_budget)
    return baselines[indices]
