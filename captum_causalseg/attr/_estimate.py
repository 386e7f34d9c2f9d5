"""What the faces share: the plan, the run, the statistics."""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._captum import TargetType, progress
from captum_causalseg._state import undisturbed
from captum_causalseg.attr._problem import Problem, check_integer
from captum_causalseg.engine.plan import Plan, Sampler, without_replacement
from captum_causalseg.engine.run import observe, run
from captum_causalseg.statistics import Status, TreatmentEffectStatistics, target_index
from captum_causalseg.target import SegmentationTarget

__all__ = ["Draws", "Intervention", "allowed_outputs", "estimate", "interventions", "output_axes", "paint"]

# Moments of so many units times outputs take about a gigabyte: more is a segmentation map passed off as a score.
_MOST_OUTPUTS = 20_000_000


@dataclass(frozen=True)
class Draws:
    """How donors are drawn and when to stop; checked on construction."""

    n_draws: int
    n_screening_draws: int
    screening_threshold: float
    perturbations_per_eval: int
    seed: int | Sequence[int]
    sampler: Sampler = without_replacement
    fresh_draws: bool = False

    def __post_init__(self) -> None:
        check_integer("n_draws", self.n_draws, 1)
        check_integer("n_screening_draws", self.n_screening_draws, 0)
        check_integer("perturbations_per_eval", self.perturbations_per_eval, 1)
        threshold = self.screening_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not 0 <= threshold < math.inf:
            raise ValueError(f"screening_threshold: expected a finite number of at least 0, got {threshold!r}")
        for seed in self.seeds:
            check_integer("seed", seed, 0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for all examples, or one per example."""
        one = isinstance(self.seed, str) or not isinstance(self.seed, Sequence)
        return (self.seed,) if one else tuple(self.seed)  # type: ignore[return-value, arg-type]


@dataclass(frozen=True)
class Intervention:
    """One planned intervention.

    Args:
        example: which example.
        unit: the unit's id in the feature mask.
        draw: 0 for the unit's first, and so on.
        donors: per input that the unit reaches into, ``(input, donor image, corner)``: where the donor's bounding box begins in
            the donor image (-1 for sources that have no images, such as a constant).
    """

    example: int
    unit: int
    draw: int
    donors: tuple[tuple[int, int, tuple[int, ...]], ...]


def estimate(
    problem: Problem, draws: Draws, target: TargetType, show_progress: bool, description: str
) -> TreatmentEffectStatistics:
    """Carry the interventions out and gather what they say. ``target`` is only checked, before the first of them."""
    plan = _plan(problem, draws)
    evaluator = problem.evaluator
    bar = progress(desc=description) if show_progress else None
    reported = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal reported
        if bar is not None:
            bar.total = total
            bar.update(done - reported)
            reported = done

    try:
        with undisturbed(problem.forward_func):
            observed = observe(evaluator, problem.n_examples)
            if len(problem.units) * observed.size > _MOST_OUTPUTS:
                raise ValueError(
                    f"forward_func: it returns {observed.shape[1]} values per example, too many to follow each; wrap the model in "
                    "a SegmentationTarget, which scores a region"
                )
            output_shape = evaluator.output_shape or ()
            axes = output_axes(problem, len(output_shape))
            target_index(target, problem.n_examples, output_shape, axes)
            plan = replace(plan, active=allowed_outputs(problem, observed.shape[1])[plan.example, plan.unit])
            outcome = run(
                plan,
                evaluator,
                observed,
                batch_size=draws.perturbations_per_eval * problem.n_examples,
                screening_threshold=draws.screening_threshold,
                on_progress=on_progress,
            )
    finally:
        if bar is not None:
            bar.close()

    n, u, k = problem.n_examples, len(problem.units), observed.shape[1]
    status = np.full((n, u, k), int(Status.ABSENT))
    present = problem.units.present
    status[present] = int(Status.EXCLUDED)
    where = plan.example, plan.unit
    status[where] = np.where(
        plan.active, np.where(outcome.screened, int(Status.SCREENED), int(Status.ESTIMATED)), int(Status.EXCLUDED)
    )
    population = np.full((n, u), np.nan)
    population[where] = [plan.total(row) for row in range(len(plan))]
    shape = (n, u, *output_shape)

    def spread(values: np.ndarray, missing: float) -> Tensor:
        full = np.full((n, u, k), missing, dtype=values.dtype)
        full[where] = values
        return torch.from_numpy(full.reshape(shape))

    return TreatmentEffectStatistics(
        effect=spread(outcome.moments.mean, np.nan),
        sample_variance=spread(outcome.moments.variance, np.nan),
        n_draws=spread(outcome.moments.n, 0),
        population=torch.from_numpy(population),
        status=torch.from_numpy(status.reshape(shape)),
        observed_score=torch.from_numpy(observed.reshape(n, *output_shape)),
        unit_ids=torch.from_numpy(problem.units.ids),
        feature_mask=problem.units.masks,
        input_shapes=[tensor.shape for tensor in problem.tensors],
        n_forwards=outcome.n_forwards + n + problem.more_forwards,
        inputs_are_tuple=problem.is_tuple,
        output_axes=axes,
        settings=problem.settings
        | {
            "n_draws": int(draws.n_draws),
            "n_screening_draws": int(draws.n_screening_draws),
            "screening_threshold": float(draws.screening_threshold),
            "seed": list(map(int, draws.seeds)) if isinstance(draws.seed, Sequence) else int(draws.seed),
        },
    )


def interventions(problem: Problem, draws: Draws) -> list[Intervention]:
    """All interventions that would be made if no unit were screened out, in order."""
    plan = _plan(problem, draws)
    planned = []
    for row in range(len(plan)):
        example, unit = int(plan.example[row]), int(plan.unit[row])
        pieces = problem.units.pieces(example, unit)
        for draw, numbers_ in enumerate(plan.donors(row).tolist()):
            columns = [0 if problem.paired else p.slot for p in pieces]
            donors = tuple(
                (p.slot, *problem.donors[p.slot].locate(example, p.box, numbers_[c])) for p, c in zip(pieces, columns)
            )
            planned.append(Intervention(example, int(problem.units.ids[unit]), draw, donors))
    return planned


def paint(statistics: TreatmentEffectStatistics, inputs: tuple[Tensor, ...], target: Any) -> Any:
    """The attribution: one output's effects over the inputs, 0 where nothing is known, in the inputs' dtype and device."""
    maps = statistics.to_map("effect", target)
    painted = tuple(
        one.nan_to_num(0.0).to(device=tensor.device, dtype=tensor.dtype)
        for one, tensor in zip(maps if isinstance(maps, tuple) else (maps,), inputs)
    )
    return painted if statistics.inputs_are_tuple else painted[0]


def _plan(problem: Problem, draws: Draws) -> Plan:
    seeds = draws.seeds
    if len(seeds) not in (1, problem.n_examples):
        raise ValueError(f"seed: expected one, or one per example ({problem.n_examples}), got {len(seeds)}")
    example, unit = np.nonzero(problem.units.present & ~problem.excluded.all(2))
    return Plan(
        example=example,
        unit=unit,
        key=problem.units.ids[unit],
        population=problem.populations(example, unit),
        active=np.ones((len(example), 1), dtype=bool),
        n_draws=draws.n_draws,
        n_screening_draws=draws.n_screening_draws,
        seed=seeds,
        sampler=draws.sampler,
        fresh_draws=draws.fresh_draws,
    )


def allowed_outputs(problem: Problem, n_outputs: int) -> np.ndarray:
    """``(N, U, K)``: a unit that touches an RoI is intervened on for the other RoIs' sake, not for that one's."""
    allowed = ~problem.excluded
    if callable(getattr(problem.forward_func, "metric", None)) or n_outputs % allowed.shape[2]:
        # Which score of a metric of the user's own belongs to which RoI is not known.
        allowed = np.all(allowed, axis=2, keepdims=True)
    return np.tile(allowed, (1, 1, n_outputs // allowed.shape[2]))


def output_axes(problem: Problem, n_axes: int) -> tuple[str, ...]:
    """Names of the axes of one example's scores."""
    if isinstance(problem.forward_func, SegmentationTarget):
        return problem.forward_func.output_axes(n_axes, problem.spatial)
    return ("output",) if n_axes == 1 else tuple(f"output_{axis}" for axis in range(n_axes))
