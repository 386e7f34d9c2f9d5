"""What of the problem can reach its regions of interest, and the window that is enough to compute them."""

import numpy as np
from torch import Tensor

from captum_causalseg.attr._problem import Problem
from captum_causalseg.interventions.reach import Reach, probe
from captum_causalseg.interventions.units import paste

__all__ = ["everything_reaches", "find_reach"]

# Collages of donors that the support has to stand.
_N_COLLAGES = 2
_UNITS_AT_ONCE = 256


def everything_reaches(problem: Problem) -> Reach:
    """Nothing is left out."""
    return Reach.everything(problem.evaluator)


def find_reach(problem: Problem, batch_size: int) -> Reach:
    """Probe the model; the forwards that it takes are added to what the evaluator has spent."""
    local = problem.evaluator.local_scores()
    if local is None or problem.rois is None:
        # One's own metric may look anywhere, and nothing lies outside the whole image.
        return everything_reaches(problem)
    return probe(problem.evaluator, local, [_collage(problem, k) for k in range(_N_COLLAGES)], batch_size)


def _collage(problem: Problem, k: int) -> list[Tensor]:
    """The tensors with every unit that has donors replaced by one of them."""
    example, unit = np.nonzero(problem.units.present & ~problem.excluded.all(2))
    population = problem.populations(example, unit)
    donors = np.random.default_rng(k).integers(0, population)
    tensors = [tensor.clone() for tensor in problem.tensors]
    # In parts: the donors of a whole volume would be another volume per channel.
    for begin in range(0, len(example), _UNITS_AT_ONCE):
        part = slice(begin, begin + _UNITS_AT_ONCE)
        spread = problem.evaluator.spread(donors[part])
        paste(tensors, problem.units, problem.donors, example[part], unit[part], spread, onto=example[part])
    return tensors
