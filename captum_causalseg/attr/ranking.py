"""Donors ranked by what a first-order estimate says that they do."""

import logging
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._state import undisturbed
from captum_causalseg.attr.effort import Effort
from captum_causalseg.attr.problem import Problem
from captum_causalseg.donors.gather import Request
from captum_causalseg.engine.draws import candidates
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.target.gradient import has_gradient

__all__ = ["rank_donors"]

logger = logging.getLogger(__name__)

# So many donors of a unit are ranked, or so many for each that is drawn, if that is more. Ranking them all would take longer
# than the interventions; what the choice adds to the variance is a hundredth or so of one draw's.
_CANDIDATES, _PER_DRAW = 1000, 20
# Gradients of so many units are held in double precision.
_ROWS_AT_ONCE = 4096

_WARNED: "weakref.WeakSet[Any]" = weakref.WeakSet()


def rank_donors(
    problem: Problem, evaluator: ModelEvaluator, plan: Plan, *, outputs: np.ndarray, effort: Effort
) -> tuple[list[Ranking | None], int] | None:
    """A ranking for every row of the plan that does not use all of its donors, and how many images it took.

    Args:
        problem: what is intervened on.
        evaluator: computes scores, on a window if there is one.
        plan: its rows.
        outputs: ``(N, K)``: the outputs whose sum is differentiated.
        effort: how many interventions there are per unit, and at most.

    Returns:
        ``None`` where no gradient can be had, which is logged once per forward function.
    """
    ranked = [plan.total(row) > plan.first_draws(row) for row in range(len(plan))]
    wanted = np.flatnonzero(plan.active.any(1) & np.array(ranked, dtype=bool))
    rankings: list[Ranking | None] = [None] * len(plan)
    if not len(wanted):
        return rankings, 0
    m, most_draws = max(_CANDIDATES, _PER_DRAW * effort.n_draws), max(plan.most_draws, effort.most_draws)
    n_images = 0
    for example in np.unique(plan.example[wanted]).tolist():
        gradients = _gradients(problem, evaluator, example, outputs=outputs[example])
        if isinstance(gradients, str):
            evaluator.ledger.disable("stratified sampling", gradients)
            _warn_once(problem.scorer.model, gradients)
            return None
        n_images += 1
        rows = wanted[plan.example[wanted] == example].tolist()
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[begin : begin + _ROWS_AT_ONCE]
            for row, effects in zip(some, _first_order(problem, plan, rows=some, m=m, gradients=gradients)):
                rankings[row] = plan.ranked(row, effects, outputs=outputs[example], most_draws=most_draws)
    return rankings, n_images


def _first_order(problem: Problem, plan: Plan, rows: list[int], m: int, gradients: list[Tensor]) -> list[np.ndarray]:
    """For each row, ``<g, x - b>`` of its candidates ``b``, ``(m,)``."""
    effects: list[np.ndarray] = []
    asked: list[list[tuple[int, Request]]] = [[] for _ in problem.site.tensors]
    for index, row in enumerate(rows):
        example, unit = int(plan.example[row]), int(plan.unit[row])
        numbers = problem.evaluator.unit_donors.spread(candidates(plan.generator(row), plan.population[row].tolist(), m))
        here = 0.0
        for piece in problem.units.pieces(example, unit):
            inside = (piece.channels, *piece.box)
            weights = gradients[piece.slot][inside].double()
            if piece.mask is not None:
                weights = torch.where(piece.mask.to(weights.device), weights, 0.0)
            here += float((weights * problem.site.tensors[piece.slot][example][inside].double()).sum())
            request = Request(
                example=example,
                box=piece.box,
                numbers=numbers[:, piece.slot],
                weights=weights,
                channels=piece.channels,
                mask=piece.mask,
            )
            asked[piece.slot].append((index, request))
        effects.append(np.full(len(numbers), here))
    for donors, requests in zip(problem.donors, asked):
        # All at once: donors that are read from files are read image by image, not unit by unit.
        for (index, _), products in zip(requests, donors.inner_products([request for _, request in requests])):
            effects[index] -= products
    return effects


def _gradients(problem: Problem, evaluator: ModelEvaluator, example: int, outputs: np.ndarray) -> list[Tensor] | str:
    """Of the sum of the outputs ``(K,)`` of one example, per tensor ``(C, *spatial)``; or why there is none."""
    which = np.array([example])
    try:
        with undisturbed(problem.scorer.function, gradients=True):
            evaluator = evaluator if evaluator.has_gradient else problem.evaluator
            leaves = [tensor[example : example + 1].detach().clone().requires_grad_() for tensor in evaluator.site.tensors]
            scores = evaluator.scores_with_gradient(leaves, which)
            if not isinstance(scores, Tensor) or not has_gradient(scores):
                return "its score has no gradient"
            chosen = scores.flatten()[torch.from_numpy(np.flatnonzero(outputs)).to(scores.device)]
            found = torch.autograd.grad(chosen.sum(), leaves, allow_unused=True)
    except torch.OutOfMemoryError:
        return "its gradient does not fit into memory"
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    gradients = [torch.zeros_like(leaf[0]) if g is None else g[0].detach() for g, leaf in zip(found, leaves)]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        return "its gradient holds NaN or infinite values"
    frames = evaluator.site.frames or (None,) * len(leaves)
    return [
        gradient
        if frame is None or gradient.shape == tensor.shape[1:]
        else frame.uncrop(gradient[None], tensor.shape[2:], [example])[0]
        for gradient, tensor, frame in zip(gradients, problem.site.tensors, frames)
    ]


def _warn_once(model: Callable[..., Any], reason: str) -> None:
    try:
        if model in _WARNED:
            return
        _WARNED.add(model)
    except TypeError:  # it can be neither hashed nor referred to weakly: then it is said every time
        pass
    logger.warning(
        "sampling: donors are drawn uniformly, because there is no gradient to rank them by (forward_func: %s)", reason
    )
