"""What the faces share: the plan, the run, the statistics."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._state import undisturbed
from captum_causalseg.attr.controls import Control, controlled
from captum_causalseg.attr.effort import Effort
from captum_causalseg.attr.forecast import Forecast, Runs
from captum_causalseg.attr.inputs_and_layers import prepare_inputs_and_layers
from captum_causalseg.attr.layer import prepare_layer
from captum_causalseg.attr.options import InputAndLayerUnits, InputUnits, LayerUnits, Options, PromptUnits
from captum_causalseg.attr.problem import Problem, prepare_inputs
from captum_causalseg.attr.progress import Progress
from captum_causalseg.attr.prompts import prepare_prompts
from captum_causalseg.attr.ranking import rank_donors
from captum_causalseg.attr.reach import find_reach
from captum_causalseg.donors import BoundDonors
from captum_causalseg.donors.gather import some_channels
from captum_causalseg.donors.source import Recipients
from captum_causalseg.engine.allocation import ROUNDS
from captum_causalseg.engine.design import Design
from captum_causalseg.engine.goal import Goal
from captum_causalseg.engine.joint import run_in_context
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import Outcome, observe, run
from captum_causalseg.images import with_metadata
from captum_causalseg.interventions.activation import as_they_lie
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.execution import WHOLE
from captum_causalseg.interventions.outputs import Outputs
from captum_causalseg.interventions.reach import Reach
from captum_causalseg.interventions.repeatability import COMPANY, Witness, refuse_examples_that_mix
from captum_causalseg.interventions.sites import Site
from captum_causalseg.interventions.units import Piece
from captum_causalseg.interventions.windows import by_windows
from captum_causalseg.layout import Layout
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.statistics.slopes import SlopeSums

__all__ = [
    "Intervention",
    "PlannedInterventions",
    "Running",
    "answer",
    "estimate",
    "goal_of",
    "interventions",
    "prepare",
    "refuse_too_many_outputs",
    "running",
    "statistics_of",
    "where_units_lie",
]

logger = logging.getLogger(__name__)

# Moments of so many units times outputs take about a gigabyte: more is a segmentation map passed off as a score.
_MOST_OUTPUTS = 20_000_000
# A window is small, but not so small that a batch of them costs more in bookkeeping than it saves.
_MOST_PER_BATCH = 1024


@dataclass(frozen=True)
class Intervention:
    """One planned intervention.

    Args:
        example: which example.
        unit: the unit's id in the feature mask.
        draw: 0 for the unit's first, and so on.
        weight: of the draw in the mean ``sum(weight * (observed - intervened))``. That is the effect, or, where donors are ranked, the effect
            plus its ``adjustment`` in the statistics.
        donors: per input that the unit reaches into, ``(input, donor image, corner)``: where the donor's bounding box begins in
            the donor image (-1 for sources that have no images, such as a constant).
        numbers: per entry of ``donors``, which of the unit's donors it is.
        sources: per entry of ``donors``, what it is read from, and the part of the unit that lies there.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> first = AverageTreatmentEffect(case.target()).plan(case.images, case.donors, n_draws=2)[0]
        >>> first.example, first.draw, len(first.donors)
        (0, 0, 1)
    """

    example: int
    unit: int
    draw: int
    weight: float
    donors: tuple[tuple[int, int, tuple[int, ...]], ...]
    numbers: tuple[int, ...] = ()
    sources: tuple[tuple[BoundDonors, Piece], ...] = field(default=(), repr=False, compare=False)

    def read(self) -> tuple[Tensor, ...]:
        """The values that the unit is given, one ``(its channels or 1, *bounding box)`` per entry of ``donors``; a layer's channels first.

        They are read one by one, by the simplest way that a donor source has.

        Example:
            >>> import torch
            >>> from captum_causalseg import AverageTreatmentEffect, PatchBank
            >>> ate, bank = AverageTreatmentEffect(lambda image: image.amax((1, 2, 3))), PatchBank(torch.rand(5, 1, 16, 16))
            >>> planned = ate.plan(torch.rand(1, 1, 16, 16), bank, block_size=4, n_draws=2)
            >>> [values.shape for values in planned[0].read()]
            [torch.Size([1, 4, 4])]
        """
        return tuple(
            _read(source, self.example, piece=piece, number=number)
            for (source, piece), number in zip(self.sources, self.numbers)
        )


class PlannedInterventions(list[Intervention]):
    """What ``plan`` returns: a list of interventions that knows whether it is complete.

    Args:
        interventions: those that are known.
        unassigned: how many more will be made, at most, of which it shows only when these are scored which units they go to. Then the weights of a
            unit's draws change as well. 0 if all are here.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank
        >>> ate, bank = AverageTreatmentEffect(lambda image: image.amax((1, 2, 3))), PatchBank(torch.rand(50, 1, 16, 16))
        >>> half, whole = (
        ...     ate.plan(torch.rand(1, 1, 16, 16), bank, block_size=8, n_draws=12, allocation=allocation)
        ...     for allocation in ("needed", "equal")
        ... )
        >>> len(half), half.unassigned, len(whole), whole.unassigned  # four blocks, twelve draws each
        (24, 24, 48, 0)
    """

    def __init__(self, interventions: Iterable[Intervention] = (), *, unassigned: int = 0) -> None:
        super().__init__(interventions)
        self.unassigned = unassigned

    def __repr__(self) -> str:
        if not self.unassigned:
            return f"{len(self)} interventions"
        return (
            f"{len(self)} interventions; {self.unassigned} more are shared out when these are scored: "
            'give allocation="equal", or the statistics of attribute'
        )


@dataclass(frozen=True)
class _Prepared:
    """What is known before the first intervention."""

    plan: Plan
    observed: np.ndarray
    outputs: Outputs
    reach: Reach


def prepare(options: Options) -> Problem:
    """Check every argument, and tie donors to the inputs or to the layer: the one way from options to a problem."""
    units = options.units
    if options.controls is not None and not options.return_statistics:
        raise ValueError(f"controls: {options.controls!r} is measured for the statistics; give return_statistics=True")
    if isinstance(units, InputAndLayerUnits):
        return prepare_inputs_and_layers(options, units)
    if isinstance(units, PromptUnits):
        return prepare_prompts(options, units)
    return prepare_layer(options, units) if isinstance(units, LayerUnits) else prepare_inputs(options, units)


@dataclass(frozen=True)
class Running:
    """What there is while interventions are made.

    Args:
        problem: the call.
        plan: which units are intervened on, and where their donors come from.
        outputs: which scores there are.
        reach: which units reach them; its evaluator computes scores.
        observed: the scores ``(N, K)`` of the inputs as they are.
        baseline: the same, computed as those under interventions are.
        batch_size: interventions per batch.
        progress: what is shown.
        witness: who has looked whether answers can be compared, and looks again in the end.
    """

    problem: Problem
    plan: Plan
    outputs: Outputs
    reach: Reach
    observed: np.ndarray
    baseline: np.ndarray
    batch_size: int
    progress: Progress
    witness: Witness | None

    @property
    def evaluator(self) -> ModelEvaluator:
        """Computes scores under interventions."""
        return self.reach.evaluator

    @property
    def treated(self) -> np.ndarray:
        """``(M, K)``: for the sake of which outputs a row of the plan may be replaced."""
        treated: np.ndarray = self.problem.treated_for(self.outputs)[self.plan.example, self.plan.unit]
        return treated

    def forecast(
        self,
        goal: Goal | None = None,
        *,
        in_context: bool,
        controls: Mapping[str, Control] | None = None,
        runs: Runs | None = None,
    ) -> Forecast:
        """Tells the progress bar of a run of the plan; arguments as of :class:`Forecast`."""
        return Forecast(
            self.progress,
            self.plan,
            self.evaluator,
            witness=self.witness,
            goal=goal,
            in_context=in_context,
            controls=controls or {},
            runs=runs,
        )

    def forwards(self, n_interventions: int) -> dict[str, int]:
        """What went through the model, by purpose."""
        found = self.evaluator.forwards(self.problem.n_examples, n_interventions)
        return {**found, **self.problem.evaluator.ledger.forwards}


@contextmanager
def running(options: Options) -> Iterator[Running]:
    """Within, interventions are made: before, everything is found out that is to be known; after, whether the model is as it was."""
    with Progress(f"{options.name} attribution", options.show_progress) as progress:
        # The modules of the function are looked for once.
        with undisturbed(options.executed.function):
            problem = prepare(options)
            n = problem.n_examples
            with undisturbed(problem.scorer.function):
                prepared = _prepare(problem, options, _plan(problem, options), doing=progress.doing)
                plan, evaluator = prepared.plan, prepared.reach.evaluator
                batch_size = _batch_size(problem, prepared.reach)
                witness = _witness(plan, evaluator, batch_size)
                if witness is not None:
                    progress.doing("looking whether answers can be compared")
                    witness.before()
                # Differences between two ways of computing the same score are no effects: what is compared is computed alike.
                baseline = prepared.observed
                if evaluator.execution.differs:
                    baseline = observe(evaluator, n, as_intervened=True)
                    evaluator.note("observed again", n)
                yield Running(
                    problem=problem,
                    plan=plan,
                    outputs=prepared.outputs,
                    reach=prepared.reach,
                    observed=prepared.observed,
                    baseline=baseline,
                    batch_size=batch_size,
                    progress=progress,
                    witness=witness,
                )
                if witness is not None:
                    witness.after()
        progress.finish()


def estimate(options: Options) -> tuple[Problem, TreatmentEffectStatistics]:
    """Carry the interventions out and gather what they say.

    Raises:
        ValueError: effects in a context are asked for some of the units.
    """
    if options.joint is not None and options.execution.part != WHOLE:
        raise ValueError(
            "shards: contexts are made of all units of a case, which cannot be divided among workers; give shards=1"
        )
    effort = options.effort
    with running(options) as now:
        problem, plan, evaluator = now.problem, now.plan, now.evaluator
        if effort.shares_out and options.execution.part != WHOLE:
            evaluator.ledger.disable("allocation", "units are explained in parts, which do not know of each other's errors")
        goal = goal_of(effort, now)
        forecast = now.forecast(goal, in_context=options.joint is not None, controls=problem.controls)
        how: dict[str, Any] = {"batch_size": now.batch_size, "goal": goal, "on_progress": forecast.run}
        if options.joint is None:
            needed = now.outputs.on_every_roi() if plan.unassigned() else None
            outcome = run(plan, evaluator, now.baseline, screening_threshold=effort.screening_threshold, needed=needed, **how)
        else:
            outcome = run_in_context(plan, options.joint, evaluator, observed=now.baseline, treated=now.treated, **how)
        controls = controlled(
            problem.controls,
            plan,
            evaluator,
            observed=now.baseline,
            moments=outcome.moments,
            batch_size=outcome.batch_size,
            on_progress=forecast.controls,
        )

    return problem, statistics_of(now, options, outcome, controls=controls)


def goal_of(effort: Effort, now: Running) -> Goal | None:
    """Until when draws go on, if that is asked for."""
    if not effort.has_goal:
        return None
    return Goal(
        precision=effort.precision,
        decide=effort.decide,
        alpha=effort.alpha,
        level=0.95,
        outputs=now.outputs.on_every_roi(),
        budget=effort.n_draws * int(now.plan.active.any(1).sum()),
        most_draws=effort.most_draws,
    )


def statistics_of(
    now: Running, options: Options, outcome: Outcome, *, controls: Mapping[str, UnitMoments] | None = None
) -> TreatmentEffectStatistics:
    """What a run of the plan says of all units.

    Args:
        now: the run.
        options: what was asked for.
        outcome: of the plan's rows and the scores' outputs.
        controls: of the same rows.
    """
    problem, plan, evaluator, effort = now.problem, now.plan, now.evaluator, options.effort
    ledger = problem.evaluator.ledger
    n, forwards = problem.n_examples, now.forwards(outcome.n_forwards)
    moments = _of_all_units(problem, now, outcome.moments, decide=effort.decide)
    return TreatmentEffectStatistics.from_moments(
        moments.with_outputs(now.outputs.shape),
        controls={
            name: _control_of_all_units(plan, rows, moments).with_outputs(now.outputs.shape)
            for name, rows in (controls or {}).items()
        },
        observed_score=torch.from_numpy(now.observed.reshape(n, *now.outputs.shape)),
        **where_units_lie(problem),
        n_forwards=sum(forwards.values()),
        output_axes=now.outputs.axes,
        settings=problem.settings
        | evaluator.settings()
        | problem.scorer.metric_settings()
        | effort.settings()
        | {
            "n_screening_draws": plan.n_screening_draws if plan.screens else 0,
            "sampling": plan.scheme.name,
            "allocation": "needed" if plan.unassigned() else "equal",
            "support": None if "support" in ledger.disabled else effort.support,
            "batch_size": outcome.batch_size,
            "window": None if now.reach.window is None else list(now.reach.window),
            "forwards": forwards,
            "disabled": evaluator.disabled(),
        }
        | _settings_of_context(options),
        slope_sums=_slope_sums_of_part(problem, now, outcome) if options.execution.part != WHOLE else None,
    )


def refuse_too_many_outputs(problem: Problem, n_outputs: int) -> None:
    """Raise where statistics of so many outputs per example would not fit."""
    if len(problem.units) * problem.n_examples * n_outputs > _MOST_OUTPUTS:
        raise ValueError(
            f"forward_func: it returns {n_outputs} values per example, too many to track; wrap the model in a "
            "SegmentationTarget, which scores a region"
        )


def where_units_lie(problem: Problem) -> dict[str, Any]:
    """What statistics hold of the units and the tensors that they are parts of, by the names of the constructor's arguments."""
    shown = problem.site.shown
    layouts = tuple(None if one is None else one.merged for one in problem.site.layouts[shown])
    return {
        "unit_ids": torch.from_numpy(problem.units.ids),
        "feature_mask": as_they_lie(problem.units.masks[shown], layouts),
        "input_shapes": [tensor.shape for tensor in as_they_lie(problem.site.tensors[shown], layouts)],
        "layouts": layouts,
        "inputs_are_tuple": problem.site.is_tuple,
    }


def _settings_of_context(options: Options) -> dict[str, Any]:
    """What is kept with the statistics of effects that are asked for in a context."""
    if options.context is None:
        return {}
    if options.joint is None:
        return {"context": options.context.in_words}
    return {"context": options.context.in_words, "sampling": "in context"}


def _slope_sums_of_part(problem: Problem, prepared: Running, outcome: Outcome) -> Tensor | None:
    """Of a part of the units, what those of other parts have to know of it: ``(N, U, *outputs, C)``."""
    if outcome.slope_sums is None:
        return None
    full = SlopeSums.missing((problem.n_examples, len(problem.units), outcome.slope_sums.shape[1]))
    full[prepared.plan.example, prepared.plan.unit] = outcome.slope_sums
    return torch.from_numpy(full.reshape(*full.shape[:2], *prepared.outputs.shape, full.shape[-1]))


def _of_all_units(problem: Problem, prepared: Running, rows: UnitMoments, *, decide: float | None) -> UnitMoments:
    """From rows ``(M, K)`` to examples and units ``(N, U, K)``, with what is known of those that were not intervened on."""
    allowed = problem.treated_for(prepared.outputs)
    moments = rows.spread(prepared.plan.example, prepared.plan.unit, *allowed.shape[:2])
    moments.status[problem.units.present & (moments.status == Status.ABSENT).all(2)] = Status.EXCLUDED
    moments.status[(moments.status != Status.ABSENT) & ~allowed] = Status.EXCLUDED
    outside = (
        ~prepared.outputs.of_rois(prepared.reach.reaches)
        & (moments.status != Status.EXCLUDED)
        & (moments.status != Status.ABSENT)
    )
    moments.status[outside] = Status.OUTSIDE_SUPPORT
    # These effects are 0 for certain.
    moments.effect[outside] = 0.0
    if decide is not None:
        moments.decision[outside] = int(np.sign(-decide))
    return moments


def _control_of_all_units(plan: Plan, rows: UnitMoments, effects: UnitMoments) -> UnitMoments:
    """From a control's rows ``(M, K)`` to examples and units ``(N, U, K)``: EXCLUDED where there is none."""
    control = rows.spread(plan.example, plan.unit, *effects.population.shape)
    undone = control.n_draws == 0
    control.status[undone] = Status.EXCLUDED
    control.population[undone.all(2)] = np.nan
    for status in (Status.ABSENT, Status.OUTSIDE_SUPPORT):
        control.status[effects.status == status] = status
    control.effect[effects.status == Status.OUTSIDE_SUPPORT] = 0.0
    return control


def interventions(options: Options, statistics: TreatmentEffectStatistics | None = None) -> PlannedInterventions:
    """All interventions that would be made if no unit were screened out, before errors are looked at; or, by their statistics, those that were."""
    problem, effort = prepare(options), options.effort
    with undisturbed(problem.scorer.function):
        plan = _plan(problem, options)
        if plan.scheme.design.needs_ranking or effort.support is not None:
            plan = _prepare(problem, options, plan).plan
    made = None if statistics is None else _made(problem, statistics)
    planned = PlannedInterventions(unassigned=plan.unassigned() if statistics is None else 0)
    for row in np.flatnonzero(plan.active.any(1)).tolist():
        example, unit = int(plan.example[row]), int(plan.unit[row])
        pieces = problem.units.pieces(example, unit)
        design = plan.design(row)
        stage = 1 if made is None else _stage_of(design, int(made[example, unit]), int(problem.units.ids[unit]))
        numbers = problem.evaluator.unit_donors.spread(design.donors(design.end(stage))).tolist()
        for draw, (weight, number) in enumerate(zip(design.selection(stage).weights.tolist(), numbers)):
            donors = tuple((p.slot, *problem.donors[p.slot].locate(example, p.box, number[p.slot])) for p in pieces)
            planned.append(
                Intervention(
                    example=example,
                    unit=int(problem.units.ids[unit]),
                    draw=draw,
                    weight=weight,
                    donors=donors,
                    numbers=tuple(number[p.slot] for p in pieces),
                    sources=tuple((problem.donors[p.slot], p) for p in pieces),
                )
            )
    return planned


def _made(problem: Problem, statistics: TreatmentEffectStatistics) -> np.ndarray:
    """How many draws every unit had, ``(N, U)``; of several outputs, the one that was not screened out."""
    ids = problem.units.ids.tolist()
    if statistics.unit_ids.tolist() != ids or len(statistics.n_draws) != problem.n_examples:
        raise ValueError(
            f"statistics: expected those of these inputs, {problem.n_examples} example(s) with {len(ids)} units, got "
            f"{len(statistics.n_draws)} with {len(statistics.unit_ids)}; give the arguments that they were made with"
        )
    found: np.ndarray = (
        statistics.n_draws.flatten(2).amax(2).numpy() if statistics.n_draws.ndim > 2 else statistics.n_draws.numpy()
    )
    return found


def _stage_of(design: Design, n_draws: int, unit: int) -> int:
    """The stage at whose end a unit has so many draws."""
    for stage in range(1, ROUNDS + 2):
        if design.end(stage) == n_draws:
            return stage
    if design.end(0) == n_draws:
        return 0
    raise ValueError(
        f"statistics: unit {unit} has {n_draws} draws in them, which it does not come to here; give the arguments that they were made "
        "with, without precision and decide"
    )


def _read(source: BoundDonors, example: int, *, piece: Piece, number: int) -> Tensor:
    if type(source).values is BoundDonors.values:
        return some_channels(source.read(example, piece.box, number)[None], piece.channels)[0]
    # What the unit becomes depends on which elements are its own.
    unit = Recipients.one(example, piece.box, channels=piece.channels, mask=piece.mask)
    return source.values(unit, np.array([number]))[0]


def answer(options: Options, problem: Problem, statistics: TreatmentEffectStatistics) -> Any:
    """What ``attribute`` returns: the attribution, and the statistics if they were asked for."""
    attribution = _paint(statistics, problem.site, options.target)
    if isinstance(options.units, InputUnits):
        attribution = with_metadata(attribution, options.inputs)
    _warn_if_empty(statistics, options)
    return (attribution, statistics) if options.return_statistics else attribution


def _paint(statistics: TreatmentEffectStatistics, site: Site, target: Any) -> Any:
    """The attribution: one output's effects over what the site shows, 0 where nothing is known, in its dtype and device."""
    maps, shown = statistics.to_map("effect", target), site.tensors[site.shown]
    layouts = site.layouts[site.shown] or (None,) * len(shown)
    painted = tuple(
        _in_windows(one, layout).nan_to_num(0.0).to(device=tensor.device, dtype=tensor.dtype)
        for one, tensor, layout in zip(maps if isinstance(maps, tuple) else (maps,), shown, layouts)
    )
    return painted if statistics.inputs_are_tuple else painted[0]


def _in_windows(values: Tensor, layout: Layout | None) -> Tensor:
    """Of tokens that count as one row, the windows that they lie in."""
    return values if layout is None or layout.windows == 1 else layout.as_it_lies(layout.merged.channels_first(values))


def _warn_if_empty(statistics: TreatmentEffectStatistics, options: Options) -> None:
    """One line in the log about maps that show nothing; a warning to who sees nothing but the map."""
    reasons = (statistics.why_empty(options.target, example=n) for n in range(len(statistics.effect)))
    empty = {n: why for n, why in enumerate(reasons) if why is not None}
    if not empty:
        return
    which = "the map is empty"
    if len(statistics.effect) > 1:
        which = f"{len(empty)} of {len(statistics.effect)} maps are empty, that of example {next(iter(empty))}"
    level = logging.INFO if options.return_statistics else logging.WARNING
    logger.log(level, "%s: %s: %s", options.name, which, next(iter(empty.values())))


def _plan(problem: Problem, options: Options) -> Plan:
    effort = options.effort
    seeds = effort.seeds
    if len(seeds) not in (1, problem.n_examples):
        raise ValueError(f"seed: expected one, or one per example ({problem.n_examples}), got {len(seeds)}")
    example, unit = np.nonzero(problem.treated() & options.execution.part.units(len(problem.units)))
    # A part of the units cannot know where draws are needed in the others, and one unit alone gets them all.
    shares_out = effort.shares_out and options.execution.part == WHOLE and np.bincount(example).max(initial=0) > 1
    return Plan(
        example=example,
        unit=unit,
        key=problem.units.ids[unit],
        population=problem.evaluator.populations(example, unit),
        active=np.ones((len(example), 1), dtype=bool),
        n_draws=effort.n_draws if effort.shares_out else effort.n_first,
        n_first=effort.n_first if shares_out else None,
        n_screening_draws=effort.n_screening_draws,
        seed=seeds,
        sampling="paper" if effort.paper else effort.sampling,
        drains=effort.drains(len(problem.units)) if isinstance(options.units, (LayerUnits, PromptUnits)) else 0,
        with_noise=problem.evaluator.noise_population > 1,
    )


def _witness(plan: Plan, evaluator: ModelEvaluator, batch_size: int) -> Witness | None:
    """Who sees whether the model's answers can be compared; None where no interventions are made."""
    active = np.flatnonzero(plan.active.any(1)).tolist()
    if not active:
        return None
    at_stake = plan.unassigned() + sum(plan.first_draws(row) for row in active)
    evaluator.expect(at_stake)
    if not evaluator.execution.witnessed:
        return None
    # Interventions on its first image that are made in the first batch, of different units where there are several.
    rows, donors, stage = list[np.ndarray](), list[np.ndarray](), 0 if plan.screens else 1
    for row in active:
        if plan.example[row] != plan.example[active[0]] or sum(map(len, rows)) >= batch_size:
            break
        design = plan.design(row)
        donors.append(design.donors(design.end(stage)))
        rows.append(np.full(len(donors[-1]), row))
    all_rows, all_donors = np.concatenate(rows)[:batch_size], np.concatenate(donors)[:batch_size]
    chosen = np.unique(np.linspace(0, len(all_rows) - 1, COMPANY).astype(np.int64)[[0, 2, 1]], return_index=True)
    some = chosen[0][np.argsort(chosen[1])]
    return Witness(evaluator, plan.interventions(all_rows[some], all_donors[some]), batch_size, at_stake=at_stake)


def _prepare(problem: Problem, options: Options, plan: Plan, *, doing: Callable[[str], None] = lambda what: None) -> _Prepared:
    """Observe, find out what can reach the RoIs, and rank the donors."""
    effort = options.effort
    doing("the observed score")
    observed = observe(problem.evaluator, problem.n_examples)
    refuse_too_many_outputs(problem, observed.shape[1])
    outputs = problem.call.outputs(problem.evaluator.output_shape or (), options.target)
    evaluator = problem.evaluator.localized()
    if effort.support is not None:
        evaluator = by_windows(evaluator)
    refuse_examples_that_mix(evaluator)
    if effort.support is None:
        reach = Reach.everything(evaluator)
    else:
        doing("looking for what can reach the RoI")
        at_stake = int(sum(max(plan.first_draws(row), min(plan.total(row), effort.n_draws)) for row in range(len(plan))))
        if options.joint is not None:
            at_stake = effort.n_draws * len(plan)
        most = None if effort.support == "always" else at_stake
        reach = find_reach(problem, evaluator, images=options.images, at_stake=most)
    active = problem.treated_for(outputs) & outputs.of_rois(reach.reaches)
    plan = replace(plan, active=active[plan.example, plan.unit])
    if plan.scheme.design.needs_ranking:
        doing("ranking donors")
        ranked = rank_donors(problem, reach.evaluator, plan, outputs=outputs.on_every_roi(), effort=effort)
        plan = plan.unranked() if ranked is None else replace(plan, rankings=ranked[0])
        if ranked is not None and ranked[1]:
            evaluator.ledger.count("gradient", ranked[1] * reach.evaluator.runs_of_gradient)
    return _Prepared(plan=plan, observed=observed, outputs=outputs, reach=reach)


def _batch_size(problem: Problem, reach: Reach) -> int:
    """As many windows as take the memory of so many whole images; on a CPU no more than its caches like."""
    size, whole = problem.batch_size, problem.call.spatial
    if reach.evaluator.execution.by_windows:
        return size  # each intervention is a few windows, which are run as the model runs them
    if reach.window is not None:
        size = max(size, min(size * math.prod(whole) // math.prod(reach.window), _MOST_PER_BATCH))
    return int(min(problem.in_caches(size, reach.window or whole), reach.evaluator.at_once))
