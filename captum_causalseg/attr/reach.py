"""What of the problem can reach its regions of interest, and the window that is enough to compute them."""

import numpy as np
from torch import Tensor

from captum_causalseg.attr.problem import Problem
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.reach import Reach, probe
from captum_causalseg.interventions.units import paste
from captum_causalseg.target import SegmentationTarget

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
        problem.evaluator.switched_off["support"] = _why_everything(problem)
        return everything_reaches(problem)
    return probe(problem.evaluator, local, [_collage(problem, k) for k in range(_N_COLLAGES)], batch_size=batch_size)


def _why_everything(problem: Problem) -> str:
    """Why it is not asked what reaches the RoI."""
    target = problem.forward_func
    if not isinstance(target, SegmentationTarget):
        return "where a plain function looks is not known; a SegmentationTarget has an RoI"
    if problem.rois is None:
        return "without an RoI nothing lies outside it"
    if problem.evaluator.noise_population > 1:
        return "the model is stochastic, and a part of the image would get other noise"
    return "the metric may look beyond the RoI"


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
        replaced = Interventions(example=np.arange(problem.n_examples), row=example[part], unit=unit[part], donor=spread)
        paste(tensors, problem.units, problem.donors, interventions=replaced)
    return tensors
