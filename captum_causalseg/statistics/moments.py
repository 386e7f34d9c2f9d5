"""What the draws say of the units' effects, before it is told in errors and intervals."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from captum_causalseg.statistics.status import Status

__all__ = ["UnitMoments"]


@dataclass(frozen=True)
class UnitMoments:
    """What errors, intervals and p-values of effects are made of.

    Arrays are of shape ``(*units, *outputs)``, where ``units`` is ``(N, U)`` (examples and units) or, in the engine, ``(M,)``: a row per unit of an
    example that may be intervened on.

    Args:
        effect: the estimates, float64; NaN where nothing is known.
        sample_variance: of one draw; NaN where the draws do not show it, exactly 0 where no two differ by more than rounding.
        variance_factor: the squared standard error is this times the moderated variance; 0 where every donor was used.
        variance_freedom: degrees of freedom of ``sample_variance``; NaN where there are no draws.
        test_variance: what stands for ``sample_variance`` in tests of many units; at least as large.
        adjustment: what predicted effects took from the weighted mean of the draws to give ``effect``; 0 where they are not used.
        n_draws: interventions that went into the estimate, int64.
        status: :class:`Status` as int64.
        decision: int64: 1 above a threshold, -1 below, 0 undecided.
        population: number of different donors, ``(*units)``; infinite when drawn with replacement.

    Example:
        >>> from captum_causalseg.statistics.moments import UnitMoments
        >>> UnitMoments.missing((1, 2), (3,)).effect.shape
        (1, 2, 3)
    """

    effect: np.ndarray
    sample_variance: np.ndarray
    variance_factor: np.ndarray
    variance_freedom: np.ndarray
    test_variance: np.ndarray
    adjustment: np.ndarray
    n_draws: np.ndarray
    status: np.ndarray
    decision: np.ndarray
    population: np.ndarray

    @classmethod
    def missing(cls, units: Sequence[int], outputs: Sequence[int]) -> "UnitMoments":
        """Of units that there are not: NaN, no draws, ABSENT."""
        shape = (*units, *outputs)
        return cls(
            effect=np.full(shape, np.nan),
            sample_variance=np.full(shape, np.nan),
            variance_factor=np.full(shape, np.nan),
            variance_freedom=np.full(shape, np.nan),
            test_variance=np.full(shape, np.nan),
            adjustment=np.zeros(shape),
            n_draws=np.zeros(shape, dtype=np.int64),
            status=np.full(shape, int(Status.ABSENT)),
            decision=np.zeros(shape, dtype=np.int64),
            population=np.full(tuple(units), np.nan),
        )

    def spread(self, example: np.ndarray, unit: np.ndarray, n_examples: int, n_units: int) -> "UnitMoments":
        """Rows ``(M, K)`` laid out by their ``example`` and ``unit``, both ``(M,)``: ``(N, U, K)``; the rest is missing."""
        full = UnitMoments.missing((n_examples, n_units), self.effect.shape[1:])
        for name, values in vars(self).items():
            getattr(full, name)[example, unit] = values
        return full

    def with_outputs(self, output_shape: Sequence[int]) -> "UnitMoments":
        """The same with outputs of another shape, which has as many."""
        units = self.population.shape
        shapes = {
            name: values.shape if name == "population" else (*units, *output_shape) for name, values in vars(self).items()
        }
        return UnitMoments(**{name: values.reshape(shapes[name]) for name, values in vars(self).items()})

    def of_columns(self, columns: slice) -> "UnitMoments":
        """Some outputs of rows ``(M, K)``."""
        return UnitMoments(
            **{name: values if name == "population" else values[:, columns] for name, values in vars(self).items()}
        )

    def of_output(self, index: np.ndarray) -> "UnitMoments":
        """Of examples and units ``(N, U, *outputs)`` one output, whose flat ``index`` ``(N,)`` may differ from example to example."""
        whose = index.reshape(-1, 1, 1)

        def chosen(values: np.ndarray) -> np.ndarray:
            return np.take_along_axis(values.reshape(*values.shape[:2], -1), whose, 2)[..., 0]

        picked = {name: chosen(values) for name, values in vars(self).items() if name != "population"}
        return dataclasses.replace(self, **picked)

    @classmethod
    def merged(cls, parts: "Sequence[UnitMoments]", whose: np.ndarray) -> "UnitMoments":
        """Of examples and units ``(N, U, *outputs)``: unit ``u`` as it is in part ``whose[u]``."""

        def gathered(name: str) -> np.ndarray:
            found: np.ndarray = getattr(parts[0], name).copy()
            for k, part in enumerate(parts):
                found[:, whose == k] = getattr(part, name)[:, whose == k]
            return found

        return cls(**{field.name: gathered(field.name) for field in dataclasses.fields(cls)})
