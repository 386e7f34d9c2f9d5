"""What of the problem can reach its regions of interest, and the window that is enough to compute them."""

import numpy as np
from torch import Tensor

from captum_causalseg.attr.problem import Problem
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.reach import ImageSearch, Reach, most_forwards, probe, saved_at_best, too_dear
from captum_causalseg.interventions.windows import WindowsEvaluator

__all__ = ["find_reach"]

# Collages of donors that the support is verified with.
_N_COLLAGES = 2
_UNITS_AT_ONCE = 256


def find_reach(
    problem: Problem, evaluator: ModelEvaluator, *, images: ImageSearch | None = None, at_stake: int | None = None
) -> Reach:
    """What the geometry of windows says, or else what probing the model on the problem's images does; the ledger is told how many.

    Args:
        problem: what is intervened on.
        evaluator: computes scores.
        images: what calls about other layers have found out about the same images; ``None`` where there are none.
        at_stake: so many interventions are planned; the model is not probed, or not to the end, if that may take more forwards than it can
            save on them. ``None``: it is probed anyway.
    """
    images = ImageSearch() if images is None else images
    if isinstance(evaluator, WindowsEvaluator):
        return Reach(evaluator.held.reaching, evaluator)
    if problem.call.rois is not None and evaluator.local is not None and evaluator.site.no_support is None:
        if at_stake is not None and evaluator.site.bypass:
            cost, saved = most_forwards(evaluator, images), saved_at_best(evaluator, at_stake)
            if cost > saved:
                evaluator.ledger.disable("support", too_dear(cost, saved, at_stake))
                return Reach.everything(evaluator)
        size = problem.in_caches(problem.batch_size, problem.call.spatial)
        return probe(evaluator, [_collage(problem, k) for k in range(_N_COLLAGES)], size, images=images, at_stake=at_stake)
    why = evaluator.site.no_support or problem.scorer.why_not_local(*evaluator.site.inputs, *evaluator.site.arguments)
    evaluator.ledger.disable("support", why)
    return Reach.everything(evaluator)


def _collage(problem: Problem, k: int) -> list[Tensor]:
    """The tensors with every unit that has donors replaced by one of them."""
    example, unit = np.nonzero(problem.treated())
    population = problem.evaluator.populations(example, unit)
    donors = np.random.default_rng(k).integers(0, population)
    tensors = [tensor.clone() for tensor in problem.site.tensors]
    # In parts: the donors of a whole volume would be another volume per channel.
    for begin in range(0, len(example), _UNITS_AT_ONCE):
        part = slice(begin, begin + _UNITS_AT_ONCE)
        replaced = Interventions(example=np.arange(problem.n_examples), row=example[part], unit=unit[part], donor=donors[part])
        problem.evaluator.unit_donors.paste(tensors, replaced)
    return tensors
