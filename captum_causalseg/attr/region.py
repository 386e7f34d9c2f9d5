"""A region that is enough for a score, or without which it is lost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
from torch import Tensor

__all__ = ["Region"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Region:
    """What :func:`~captum_causalseg.sufficient_region` and :func:`~captum_causalseg.necessary_region` return for one image.

    All scores and shares are means over donors that the search has not seen.

    Args:
        kind: ``"sufficient"``: the region is kept and all other units are replaced; ``"necessary"``: it is replaced and all others are kept.
        units: ids of its units, in ascending order.
        mask: boolean, where the region is: of the shape of the image ``(1, C, *spatial)``; of several inputs a tuple.
        image: what the model is shown in the first of the draws: the image with donors in the place of what is replaced, of the same shape(s).
        share: that was asked for.
        share_of: of ``"span"``, the observed score less the mean with all units replaced, or of the observed ``"score"``.
        share_reached: the share that the region keeps (sufficient) or takes away (necessary); NaN where there is nothing to take shares of.
        share_interval: its 95 % interval. Infinite where what shares are of is not told from 0.
        score: the mean score with the region kept, or replaced.
        score_interval: its 95 % interval.
        observed_score: with nothing replaced.
        replaced_score: the mean with all units replaced.
        reached: whether ``share_reached`` is at least ``share``.
        reason: why it is not, in words; ``None`` where it is.
        complete: whether the search ended by itself: none of the region's units could be left out in the draws that were searched with.
            ``False`` where ``max_forwards`` ended it: there may be a smaller region.
        smallest: whether all smaller sets of units were tried in these draws.
        n_candidates: how many units the region was chosen from.
        n_draws: of donors that the region was judged by.
        n_forwards: images (or windows) that went through the model in the whole call, for all examples and alternatives.
        settings: what was done.
        alternatives: further regions, each disjoint from the others and reaching the share.

    Example:
        >>> import torch
        >>> from captum_causalseg import sufficient_region
        >>> region = sufficient_region(torch.nn.Flatten(), torch.ones(1, 1, 1, 1), 0.0, exclude=None)
        >>> region.units, region.share_reached, region.mask.shape
        ((0,), 1.0, torch.Size([1, 1, 1, 1]))
        >>> print(region)
        sufficient: 1 of 1 units keeps 1.000 of the span [1.000, 1.000]; score 1.0000, observed 1.0000, all replaced 0.0000
    """

    kind: Literal["sufficient", "necessary"]
    units: tuple[int, ...]
    mask: Tensor | tuple[Tensor, ...]
    image: Tensor | tuple[Tensor, ...]
    share: float
    share_of: Literal["span", "score"]
    share_reached: float
    share_interval: tuple[float, float]
    score: float
    score_interval: tuple[float, float]
    observed_score: float
    replaced_score: float
    reached: bool
    reason: str | None
    complete: bool
    smallest: bool
    n_candidates: int
    n_draws: int
    n_forwards: int
    settings: Mapping[str, Any]
    alternatives: "tuple[Region, ...]" = ()

    def __iter__(self) -> "Iterator[Region]":
        """The region, then its alternatives."""
        return iter((self, *self.alternatives))

    def to_dataframe(self) -> pd.DataFrame:
        """One row for the region and for each alternative.

        Columns: ``region`` (0, 1, ...), ``kind``, ``n_units``, ``units`` (ids, separated by blanks), ``share``, ``share_of``, ``share_reached``, ``share_lower``,
        ``share_upper``, ``score``, ``score_lower``, ``score_upper``, ``observed_score``, ``replaced_score``, ``reached``, ``reason``, ``complete``, ``smallest``,
        ``n_candidates`` and ``n_draws``.

        Example:
            >>> import torch
            >>> from captum_causalseg import necessary_region
            >>> class Both(torch.nn.Module):  # both of two pixels are needed
            ...     def forward(self, image):
            ...         return image.flatten(1).amin(1)
            >>> region = necessary_region(Both(), torch.ones(1, 1, 1, 2), 0.0, block_size=1, exclude=None, alternatives=1)
            >>> region.to_dataframe()[["region", "units", "share_reached", "reached"]].values.tolist()
            [[0, '0', 1.0, True], [1, '1', 1.0, True]]
        """
        rows = []
        for number, one in enumerate(self):
            (share_lower, share_upper), (lower, upper) = one.share_interval, one.score_interval
            row: dict[str, Any] = {
                "region": number,
                "kind": one.kind,
                "n_units": len(one.units),
                "units": " ".join(map(str, one.units)),
            }
            row |= {"share": one.share, "share_of": one.share_of, "share_reached": one.share_reached}
            row |= {"share_lower": share_lower, "share_upper": share_upper}
            row |= {"score": one.score, "score_lower": lower, "score_upper": upper}
            row |= {"observed_score": one.observed_score, "replaced_score": one.replaced_score}
            row |= {"reached": one.reached, "reason": one.reason, "complete": one.complete, "smallest": one.smallest}
            rows.append(row | {"n_candidates": one.n_candidates, "n_draws": one.n_draws})
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        """Without its pictures."""
        return f"Region({self._said()}; alternatives={len(self.alternatives)})"

    def __str__(self) -> str:
        """In a sentence, with one line more for each alternative."""
        return "\n".join(one._said() for one in self)

    def _said(self) -> str:
        n, lower, upper = len(self.units), *self.share_interval
        s = "s" if n == 1 else ""
        does = f"keep{s}" if self.kind == "sufficient" else f"take{s} away"
        said = f"{self.kind}: {n} of {self.n_candidates} units {does} {self.share_reached:.3f} of the {self.share_of} [{lower:.3f}, {upper:.3f}]"
        said += f"; score {self.score:.4f}, observed {self.observed_score:.4f}, all replaced {self.replaced_score:.4f}"
        return said if self.reason is None else f"{said}; not reached: {self.reason}"
