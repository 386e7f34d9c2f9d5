"""Which scores an example has, which of them is asked for, and what is known of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg.statistics import target_index
from captum_causalseg.target.scorer import Scorer
from captum_causalseg.target.scores import WRAPPED

__all__ = ["Outputs"]


@dataclass(frozen=True, eq=False)
class Outputs:
    """The scores of ``N`` examples, ``K`` of each.

    Args:
        shape: of one example's scores.
        axes: their names.
        chosen: ``(N,)``: per example, the flat index of the output that ``target`` picks.
        has_own_metric: which score belongs to which RoI is not known.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    chosen: np.ndarray
    has_own_metric: bool

    @classmethod
    def of(cls, scorer: Scorer, spatial: Sequence[int], *, shape: Sequence[int], n: int, target: TargetType) -> "Outputs":
        """The outputs of a scorer.

        Args:
            scorer: what is explained.
            spatial: of the image that is segmented.
            shape: of one example's scores.
            n: how many examples there are.
            target: in all of Captum's forms.

        Raises:
            ValueError: it picks no output, or several. Of a segmentation in the place of scores, that is said first.
        """
        axes = tuple(scorer.axes(len(shape), spatial))
        try:
            chosen = target_index(target, n, shape, output_axes=axes).numpy()
        except ValueError as error:
            if not _is_map(shape, axes, spatial):
                raise
            raise ValueError(
                f"forward_func: it returns {tuple(shape)} per example, a segmentation and not scores; wrap the model first: {WRAPPED} "
                f"scores a region of it, by classes to pick from ({error})"
            ) from error
        return cls(shape=tuple(shape), axes=axes, chosen=chosen, has_own_metric=scorer.has_own_metric)

    def region(self, rois: Tensor) -> Tensor:
        """The region of interest ``(N, *spatial)`` of the chosen output, of all ``(N or 1, R, *spatial)``."""
        n = len(self.chosen)
        which = dict(zip(self.axes, self.places())).get("roi", np.zeros(n, dtype=np.int64))
        everyone = torch.arange(n, device=rois.device)
        return rois.expand(n, *rois.shape[1:])[everyone, torch.from_numpy(which).to(rois.device)]

    @property
    def count(self) -> int:
        """``K``."""
        return math.prod(self.shape)

    def of_rois(self, per_roi: np.ndarray) -> np.ndarray:
        """From ``(N, U, R or 1)`` to ``(N, U, K)``: the outputs are ``(C, R)``, ``(C,)`` or ``(R,)``."""
        if self.has_own_metric or self.count % per_roi.shape[2]:
            per_roi = np.all(per_roi, axis=2, keepdims=True)
        return np.tile(per_roi, (1, 1, self.count // per_roi.shape[2]))

    def of_chosen(self, of_all: np.ndarray) -> np.ndarray:
        """From ``(N, U, K)`` to ``(N, U)``: of the output that is asked for."""
        chosen: np.ndarray = of_all[np.arange(len(of_all)), :, self.chosen]
        return chosen

    def places(self) -> tuple[np.ndarray, ...]:
        """Per axis of the scores, the position ``(N,)`` of the output that is asked for."""
        return np.unravel_index(self.chosen, self.shape) if self.shape else ()

    def on_every_roi(self) -> np.ndarray:
        """Boolean ``(N, K)``: the output that is asked for, for every RoI."""
        found = np.zeros((len(self.chosen), *self.shape), dtype=bool)
        for n, position in enumerate(zip(*self.places()) if self.shape else [()] * len(found)):
            found[(n, *(slice(None) if name == "roi" else p for name, p in zip(self.axes, position)))] = True
        return found.reshape(len(found), -1)


def _is_map(shape: Sequence[int], axes: Sequence[str], spatial: Sequence[int]) -> bool:
    """Whether outputs ``(C, *spatial)`` or ``(*spatial)`` are a map of an image, at its resolution or a coarser one."""
    n = len(spatial)
    if not n or len(shape) not in (n, n + 1) or not all(name.startswith("output") for name in axes):
        return False
    own = tuple(shape[-n:])
    ratios = {side / mine for side, mine in zip(spatial, own)}
    return own == tuple(spatial) or (n > 1 and len(ratios) == 1 and min(own) > 1 and max(ratios) > 1)
