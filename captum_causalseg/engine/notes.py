"""What is written down of a plan's rows while their draws are made."""

from dataclasses import replace

import numpy as np

from captum_causalseg.engine.estimator import Estimate
from captum_causalseg.statistics import Status
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.statistics.slopes import SlopeSums, lean

__all__ = ["Notes"]


class Notes:
    """Estimates of rows, each from its own draws, and what they are when they lean on each other.

    Rows are written down one by one, in any order and again when they have more draws; what they make of each other is
    found from all that stands here, so that neither order nor batches matter.

    Args:
        example: ``(M,)`` of the rows.
        population: ``(M,)`` how many different donors they have.
        n_outputs: ``K``.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.engine.estimator import Estimate
        >>> from captum_causalseg.engine.notes import Notes
        >>> notes = Notes(np.array([0]), np.array([20.0]), n_outputs=2)
        >>> estimate = Estimate(np.array([0.5, 0.1]), variance=np.array([0.2, 0.3]), factor=0.1, freedom=5, n=6)
        >>> notes.write(0, estimate, which=np.array([True, False]))
        >>> notes.moments().effect.tolist()
        [[0.5, nan]]
    """

    def __init__(self, example: np.ndarray, population: np.ndarray, n_outputs: int) -> None:
        self._example = example
        self.alone = UnitMoments.missing((len(example),), (n_outputs,))
        """What every row's own draws say; status and decision are for others to write."""
        self.alone.status[:] = Status.ESTIMATED
        self.alone.population[:] = population
        self.sums: np.ndarray | None = None
        """``(M, K, C)`` as of :class:`~captum_causalseg.statistics.slopes.SlopeSums`; ``None`` where no row has predicted effects."""

    def write(
        self,
        row: int,
        estimate: Estimate,
        *,
        which: np.ndarray,
        still: np.ndarray | bool = False,
        rounding: np.ndarray | float = 0.0,
    ) -> None:
        """Put down what all draws of a row so far say of some outputs.

        Args:
            row: which.
            estimate: from all of its draws.
            which: ``(K,)`` the outputs.
            still: ``(K,)`` where no draw moved the score by more than rounding.
            rounding: ``(K,)`` how much that is.
        """
        out = self.alone
        mean, rounding = np.where(still, 0.0, estimate.mean), np.full(len(estimate.mean), rounding)
        variance = np.where(estimate.variance <= rounding**2, 0.0, estimate.variance)
        out.effect[row, which] = mean[which]
        out.sample_variance[row, which] = out.test_variance[row, which] = variance[which]
        out.variance_freedom[row, which] = estimate.freedom
        out.variance_factor[row, which] = estimate.factor
        out.n_draws[row, which] = estimate.n
        if estimate.sums is not None:
            if self.sums is None:
                self.sums = SlopeSums.missing(out.effect.shape)
            self.sums[row, which] = replace(estimate.sums, mean=mean, rounding=rounding).array()[which]
        elif self.sums is not None:
            self.sums[row, which] = np.nan

    def moments(self, *, chosen_by_errors: bool = False) -> UnitMoments:
        """Of all rows, ``(M, K)``, each leaning on the others of its example where its estimator wants that.

        Args:
            chosen_by_errors: whether draws go on until errors are small. The smallest ones of many would be chosen to stop at: intervals take
                the steadier variance of tests then.
        """
        found = self.alone if self.sums is None else lean(self.alone, self.sums, self._example)
        return replace(found, sample_variance=found.test_variance) if chosen_by_errors else found
