"""What the two gradient faces share: gradients, mean donors, and their product summed over each unit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._state import undisturbed
from captum_causalseg.attr.estimate import prepare, refuse_too_many_outputs, where_units_lie
from captum_causalseg.attr.options import InputUnits, LayerUnits, Options
from captum_causalseg.attr.problem import Problem
from captum_causalseg.images import with_metadata
from captum_causalseg.interventions.activation import as_they_lie
from captum_causalseg.interventions.outputs import Outputs
from captum_causalseg.interventions.repeatability import refuse_unrepeatable
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.statistics.unit_places import UnitPlaces
from captum_causalseg.target.gradient import has_gradient, why_no_gradient
from captum_causalseg.target.scores import checked_scores

__all__ = ["backpropagate"]

_NO_ERRORS = (
    "the mean donor is exact, and how far a first-order effect is from that of interventions no gradient tells: "
    "standard errors, intervals and p-values are NaN"
)


def backpropagate(options: Options, n_steps: int) -> Any:
    """Every unit's ``<g, x - E b>``, painted over what units are parts of; ``g`` at ``x``, or averaged on the path to it.

    With ``options.return_statistics`` a pair of that and the statistics.
    """
    problem = prepare(options)
    if problem.evaluator.site_varies:
        raise ValueError(
            "forward_func: the gradient at a layer is not defined for a stochastic model (n_samples), because its "
            "activation differs from run to run; LayerAverageTreatmentEffect measures the effects"
        )
    n = problem.n_examples
    # In float64 on the CPU: the sums over units are then exact to rounding and the same every time.
    values = [tensor.detach().cpu().double() for tensor in problem.site.tensors]
    with undisturbed(problem.scorer.function):
        refuse_unrepeatable(problem.evaluator)
    with undisturbed(problem.scorer.function, gradients=True):
        leaves = [tensor.detach().clone().requires_grad_() for tensor in problem.site.tensors]
        with torch.set_grad_enabled(n_steps == 1):
            scores = checked_scores(_scores(problem, leaves), n, None)
        shape = tuple(scores.shape[1:])
        outputs = problem.call.outputs(shape, options.target)
        if options.return_statistics:
            refuse_too_many_outputs(problem, outputs.count)
        index = torch.from_numpy(outputs.chosen)
        used = outputs.of_chosen(problem.treated_for(outputs))
        examples, units = np.nonzero(used)
        population = np.full(used.shape, np.nan)
        # Raises where there is no donor. Of several tensors, each donor of one goes with each of the others.
        population[examples, units] = problem.evaluator.unit_donors.populations(examples, units).prod(1, dtype=np.float64)
        means = _mean_donors(problem, values, examples=examples, units=units)
        if n_steps == 1:
            gradients = _gradients(scores, index, leaves)
        else:
            gradients = [torch.zeros_like(value) for value in values]
            for step in range(n_steps):
                share = (step + 0.5) / n_steps
                leaves = [
                    torch.lerp(mean, value, share).to(device=tensor.device, dtype=tensor.dtype).requires_grad_()
                    for mean, value, tensor in zip(means, values, problem.site.tensors)
                ]
                found = _gradients(checked_scores(_scores(problem, leaves), n, shape), index, leaves)
                gradients = [total + gradient / n_steps for total, gradient in zip(gradients, found)]
    places = UnitPlaces(torch.from_numpy(problem.units.ids), problem.units.masks)
    products = [gradient * (value - mean) for gradient, value, mean in zip(gradients, values, means)]
    sums = sum(places.sums(slot, product, product.shape) for slot, product in enumerate(products))
    effects = torch.from_numpy(np.where(used, sums, 0.0))
    shown = problem.site.shown
    painted = [
        places.painted(slot, effects).to(device=tensor.device, dtype=tensor.dtype).expand(tensor.shape).contiguous()
        for slot, tensor in enumerate(problem.site.tensors[shown])
    ]
    painted = as_they_lie(painted, problem.site.layouts[shown])
    attribution: Any = tuple(painted) if problem.site.is_tuple else painted[0]
    if isinstance(options.units, InputUnits):
        attribution = with_metadata(attribution, options.inputs)
    if not options.return_statistics:
        return attribution
    moments = _moments(problem, outputs, effects.numpy(), used=used, population=population)
    observed = scores.detach().cpu().double()
    return attribution, _statistics(problem, options, outputs, moments=moments, observed=observed, n_steps=n_steps)


def _moments(
    problem: Problem, outputs: Outputs, effects: np.ndarray, *, used: np.ndarray, population: np.ndarray
) -> UnitMoments:
    """Of the effects ``(N, U)`` on the output that is asked for, where they are in use; of the other outputs nothing is known."""
    moments = UnitMoments.missing(used.shape, (outputs.count,))
    moments.status[problem.units.present] = Status.EXCLUDED
    examples, units = np.nonzero(used)
    chosen = outputs.chosen[examples]
    moments.effect[examples, units, chosen] = effects[examples, units]
    moments.status[examples, units, chosen] = Status.FIRST_ORDER
    moments.population[:] = population
    return moments.with_outputs(outputs.shape)


def _statistics(
    problem: Problem, options: Options, outputs: Outputs, *, moments: UnitMoments, observed: Tensor, n_steps: int
) -> TreatmentEffectStatistics:
    """What a gradient says: effects of one output, and neither draws nor errors."""
    evaluator = problem.evaluator
    # One pass at the image, and those on the path to it.
    passes = 1 if n_steps == 1 else n_steps + 1
    evaluator.ledger.count("gradient", problem.n_examples * passes * evaluator.runs_of_gradient)
    # A layer's activation was recorded before; at the inputs, the scores come with the gradient.
    recorded = problem.n_examples if isinstance(options.units, LayerUnits) else 0
    forwards = {name: n for name, n in (evaluator.forwards(recorded, 0) | evaluator.ledger.forwards).items() if n}
    chosen = [list(map(int, place)) for place in zip(*outputs.places())] if outputs.shape else []
    return TreatmentEffectStatistics.from_moments(
        moments,
        observed_score=observed,
        **where_units_lie(problem),
        n_forwards=sum(forwards.values()),
        output_axes=outputs.axes,
        settings=problem.settings
        | evaluator.settings()
        | problem.scorer.metric_settings()
        | {
            "sampling": "first order",
            "n_steps": n_steps,
            "outputs": chosen,
            "forwards": forwards,
            "disabled": evaluator.disabled() | {"errors": _NO_ERRORS},
        },
    )


def _scores(problem: Problem, leaves: Sequence[Tensor]) -> Any:
    """Scores of all examples with these in the place of the site's tensors."""
    return problem.evaluator.scores_with_gradient(leaves, np.arange(problem.n_examples))


def _mean_donors(problem: Problem, values: Sequence[Tensor], *, examples: np.ndarray, units: np.ndarray) -> list[Tensor]:
    """The tensors with these units of examples, both ``(M,)``, replaced by the means of their donors."""
    means = [value.clone() for value in values]
    for example, unit in zip(examples.tolist(), units.tolist()):
        for piece in problem.units.pieces(example, unit):
            mean = problem.donors[piece.slot].mean_value(example, piece.box, channels=piece.channels, mask=piece.mask).cpu()
            place = means[piece.slot][example][(piece.channels, *piece.box)]
            place.copy_(mean if piece.mask is None else torch.where(piece.mask, mean, place))
    return means


def _gradients(scores: Tensor, index: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of each example's chosen score with respect to the leaves, float64 on the CPU."""
    chosen = scores.reshape(len(index), -1).gather(1, index.view(-1, 1).to(scores.device))
    found = torch.autograd.grad(chosen.sum(), leaves, allow_unused=True) if has_gradient(scores) else (None,)
    if all(gradient is None for gradient in found):
        if (reason := why_no_gradient(scores)) is not None:
            raise ValueError(f"forward_func: its score has no gradient ({reason})")
        raise ValueError(
            "forward_func: its score has no gradient (it comes from hard labels, or is detached from what is attributed to); give "
            "a differentiable score, such as SegmentationTarget.surrogate(), or estimate the effect by interventions "
            "(AverageTreatmentEffect)"
        )
    gradients = [
        torch.zeros(leaf.shape, dtype=torch.float64, device="cpu") if gradient is None else gradient.detach().cpu().double()
        for gradient, leaf in zip(found, leaves)
    ]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise ValueError("forward_func: the gradient of its score holds NaN or infinite values")
    return gradients
