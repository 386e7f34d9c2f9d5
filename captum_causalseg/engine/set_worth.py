"""What a set of units is worth: how much of a score is kept with it alone, or lost without it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from captum_causalseg.engine.set_scores import SetScores
from captum_causalseg.statistics.intervals import half_width

__all__ = ["Kind", "Of", "SetWorth", "ShareAsked"]

Kind = Literal["sufficient", "necessary"]
"""Whether a set is kept while all else is replaced, or replaced while all else is kept."""

Of = Literal["span", "score"]
"""What shares are shares of: of the way from the score with everything replaced to the observed one, or of the observed score."""

# Of fewer draws, a set gets them all.
_FEWEST_TO_GIVE_UP = 4


@dataclass(frozen=True)
class ShareAsked:
    """What a set has to come to.

    Args:
        kind: kept, or lost.
        share: how much of it.
        of: of what.
    """

    kind: Kind
    share: float
    of: Of = "span"


class SetWorth:
    """How much of the whole sets of units keep, or take away, draw by draw.

    A set's worth is a ratio of two means over draws: of its amounts, and of the whole. With shares of the span ``M(x) - M(all replaced)``, the empty
    set is worth 0 and all units 1, in every draw.

    Args:
        scores: of the units' sets.
        asked: kept or lost, and of what.
        n_draws: the first so many are looked at; by default all that there are.
    """

    def __init__(self, scores: SetScores, asked: ShareAsked, n_draws: int | None = None) -> None:
        self.scores, self.asked = scores, asked
        self.n_draws = scores.n_draws if n_draws is None else min(n_draws, scores.n_draws)
        n = len(scores.game.units)
        self.all_replaced: np.ndarray = scores(np.ones((1, n), dtype=bool), self.n_draws)[0]
        """``(d,)``: the score with every unit replaced."""
        self.whole: np.ndarray = scores.observed - (self.all_replaced if asked.of == "span" else np.zeros(self.n_draws))
        """``(d,)``: what shares are of."""
        self.sign = float(np.sign(self.whole.mean()))

    @property
    def has_whole(self) -> bool:
        """Whether there is something to take shares of: the 95 % interval of its mean does not hold 0."""
        half = float(half_width(_error(self.whole), self.n_draws - 1, 0.95))
        return bool(abs(self.whole.mean()) > max(self.scores.rounding, half))

    def with_more_draws(self) -> "SetWorth | None":
        """The same looking at twice as many draws; ``None`` where there are no more."""
        if self.n_draws == self.scores.n_draws:
            return None
        return SetWorth(self.scores, self.asked, 2 * self.n_draws)

    def replaced(self, sets: np.ndarray) -> np.ndarray:
        """Which units are replaced for the sake of these sets, ``(s, n)``."""
        replaced: np.ndarray = ~sets if self.asked.kind == "sufficient" else sets
        return replaced

    def amounts(self, sets: np.ndarray, n_draws: int | None = None) -> np.ndarray:
        """What the sets ``(s, n)`` keep or take away, in the score's units, ``(s, d)``."""
        found = self.scores(self.replaced(sets), self.n_draws if n_draws is None else min(n_draws, self.n_draws))
        amounts: np.ndarray = self.scores.observed - found
        if self.asked.kind == "sufficient":
            amounts = found - (self.all_replaced[: found.shape[1]] if self.asked.of == "span" else 0.0)
        return amounts

    def surplus(self, sets: np.ndarray, n_draws: int | None = None) -> np.ndarray:
        """By how much each draw has more than the share that is asked for, ``(s, d)``, in the score's units."""
        amounts = self.amounts(sets, n_draws)
        surplus: np.ndarray = self.sign * (amounts - self.asked.share * self.whole[: amounts.shape[1]])
        return surplus

    def reach(self, sets: np.ndarray) -> np.ndarray:
        """Which sets ``(s,)`` reach the share, by one standard error: a set that barely does in the draws at hand may not do so in others.

        Of many draws, a set is given up after a quarter of them if it falls short in each, and in their mean by three standard errors.
        """
        reached = np.ones(len(sets), dtype=bool)
        first = self.n_draws // 4
        if first >= _FEWEST_TO_GIVE_UP:
            surplus = self.surplus(sets, first)
            reached = ~((surplus < 0).all(1) & (surplus.mean(1) + 3 * _error(surplus) < -self.scores.rounding))
        surplus = self.surplus(sets[reached])
        reached[reached] = surplus.mean(1) - _error(surplus) >= -self.scores.rounding
        return reached


def _error(values: np.ndarray) -> np.ndarray:
    """The standard error of a mean over the last axis; 0 of a single draw, which is all there is."""
    n = values.shape[-1]
    error: np.ndarray = values.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(values.shape[:-1])
    return error
