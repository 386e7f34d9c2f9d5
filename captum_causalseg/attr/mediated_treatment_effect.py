"""Through which parts of the network a region of the input acts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import FUNCTION, NONE, TEXT, checked, integer, one_of
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.effort import DRAWS, EFFORT, OPEN_DRAWS, Effort, draws_of
from captum_causalseg.attr.estimate import Running, answer, goal_of, running, statistics_of
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.forecast import Runs
from captum_causalseg.attr.mediator_names import LAYERS, FrozenStatistics, find_mediators
from captum_causalseg.attr.one_region import region_excluded
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.attr.problem import Problem
from captum_causalseg.engine.run import Outcome, run
from captum_causalseg.engine.sampling import SamplingScheme
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.grouped import GroupsEvaluator
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.mediated import QUANTITIES, MediatedEvaluator
from captum_causalseg.interventions.mediators import Mediator
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics.mediation import LayerMediation, MediationStatistics, Quantity
from captum_causalseg.target.scorer import as_scorer

__all__ = ["Layers", "MediatedTreatmentEffect", "split_effects"]

_One = nn.Module | str | FrozenStatistics
Layers = _One | Sequence[_One | Sequence[_One]] | Mapping[str, _One | Sequence[_One]]
"""Mediators as a user names them."""


class MediatedTreatmentEffect(PerturbationAttribution):
    r"""Through which layers of the network does each part of the input act on the RoI's score?

    A unit ``p`` of the input is replaced by a donor. Let ``a`` be what a layer (the *mediator*) returns. Four runs of the model with the same donor say
    how the effect travels:

    .. math::
        \text{total} &= M(x) - M(\mathrm{do}\, p) \\
        \text{indirect} &= M(x) - M(x;\ a := a(\mathrm{do}\, p)) \\
        \text{direct} &= M(x) - M(\mathrm{do}\, p;\ a := a(x)) \\
        \text{interaction} &= \text{total} - \text{indirect} - \text{direct}

    The indirect effect is what travels through the layer alone, the direct effect what goes around it, and the interaction what takes both ways at once: a
    decoder that needs the change in the skip connection *and* in the depth has all of its effect there. These are the natural effects of Pearl (2001). Where
    the layers together are a cut through the network, the direct effect is 0. No assumption is made about worlds that cannot be seen together: the network
    is run in both.

    **Sign and unit** are those of the plain effect: positive for what supports the segmentation. The total effect is that of
    :class:`~captum_causalseg.AverageTreatmentEffect`, with the same draws the same numbers.

    **Cost.** Up to ``1 + 2 L`` forwards per draw for ``L`` mediators. What does not depend on the mediator is not computed again: the indirect run begins at
    the layer, the direct one has what the run under the intervention has made before it. ``settings["forwards"]`` counts each kind.
    Of a stochastic model (a target with ``n_samples``) all runs of a draw meet the same random numbers, and nothing is left out.

    Args:
        forward_func: any forward function that Captum accepts, with one score or a fixed number of scores per example, around a torch module.
        layers: the mediators: a module of the model; its name; a name with wildcards (each that fits is a mediator); ``"levels"`` (by default) or ``"skips"`` of a U-Net;
            :class:`~captum_causalseg.FrozenStatistics`; a list of these. A tuple in the list is *one* mediator, of all of its layers at once. A mapping gives
            names of your own.
        baselines: a default for ``attribute``'s argument of this name, for Captum's wrappers.

    Example:
        >>> import torch
        >>> from captum_causalseg import MediatedTreatmentEffect
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> mediated = MediatedTreatmentEffect(model, "1")  # nothing goes around the second layer
        >>> _, stats = mediated.attribute(torch.ones(1, 2), torch.zeros(1, 2), target=0, return_statistics=True)
        >>> layer = stats.of_layer("1")
        >>> bool(layer.indirect.effect.allclose(layer.total.effect)), layer.direct.effect.flatten().tolist()
        (True, [0.0, 0.0])
    """

    @checked(forward_func=FUNCTION, layers=LAYERS)
    def __init__(self, forward_func: Callable[..., Any], layers: Layers = "levels", baselines: Baselines = None) -> None:
        super().__init__(forward_func)
        self.layers, self.baselines = layers, baselines

    @overload
    def attribute(self, inputs: Tensor, *args: Any, return_statistics: Literal[False] = ..., **kwargs: Any) -> Tensor: ...
    @overload
    def attribute(
        self, inputs: tuple[Tensor, ...], *args: Any, return_statistics: Literal[False] = ..., **kwargs: Any
    ) -> tuple[Tensor, ...]: ...
    @overload
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], *args: Any, return_statistics: Literal[True], **kwargs: Any
    ) -> tuple[Any, MediationStatistics]: ...

    @log_usage(part_of_slo=True)
    @checked(
        EFFORT,
        n_draws=OPEN_DRAWS,
        channels=CHANNELS,
        units=UNITS,
        quantity=one_of("total", "indirect", "direct", "interaction"),
        layer=NONE | TEXT | integer(),
    )
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        quantity: Quantity = "indirect",
        layer: str | int | None = None,
        n_draws: int | None = None,
        n_screening_draws: int = 3,
        screening_threshold: float = 0.0002,
        sampling: Literal["stratified", "uniform"] | SamplingScheme = "stratified",
        support: Literal["auto", "always"] | None = "auto",
        exclude: Exclude = "roi",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
        precision: float | None = None,
        decide: float | None = None,
        alpha: float = 0.05,
        memory_format: torch.memory_format | None = None,
        channels: Channels = None,
        units: UnitKind = "block",
        allocation: Literal["needed", "equal"] = "equal",
    ) -> Any:
        """Estimate every unit's effect and what of it travels through each mediator.

        Args:
            inputs, baselines, target, additional_forward_args, feature_mask, block_size: as in :meth:`AverageTreatmentEffect.attribute`.
            n_draws, n_screening_draws, screening_threshold, sampling, support, exclude: likewise. All quantities of a unit come from the same
                draws; a unit is left after its screening draws only if none of them moved.
            perturbations_per_eval, seed, show_progress, memory_format, channels, units: likewise.
            allocation: likewise, but where nothing is said, every unit has as many draws: they would go where the sum of all quantities' errors is large.
            quantity: which one is returned as the attribution: ``"indirect"``, ``"direct"``, ``"interaction"`` or ``"total"``.
            layer: of which mediator, by name or number; by default the first.
            return_statistics: return :class:`~captum_causalseg.statistics.mediation.MediationStatistics` as well: all quantities of all mediators.
            precision, decide, alpha: draws go on until total, indirect and direct effects of all mediators are known so well.

        Returns:
            Attributions like ``inputs`` (tensor or tuple, same shapes and dtypes), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described; a mediator is not called exactly once in a forward pass; the model is a
                :class:`~captum_causalseg.WindowedModel`.

        Example:
            >>> import torch
            >>> from captum_causalseg import MediatedTreatmentEffect, SegmentationTarget, regions
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3, padding=1))
            >>> image, donors = torch.rand(1, 1, 16, 16), torch.rand(20, 1, 16, 16)
            >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=8), metric="soft_dice")
            >>> mediated = MediatedTreatmentEffect(target, ["0", "1"])
            >>> attr, stats = mediated.attribute(image, donors, target=1, block_size=4, return_statistics=True)
            >>> stats.layers, attr.shape
            (('0', '1'), torch.Size([1, 1, 16, 16]))
        """
        options = Options(
            name=self.get_name(),
            forward_func=self.forward_func,
            inputs=inputs,
            baselines=self.baselines if baselines is None else baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units),
            effort=Effort(
                n_draws=draws_of(n_draws, DRAWS, precision, decide),
                n_screening_draws=n_screening_draws,
                screening_threshold=screening_threshold,
                seed=seed,
                sampling=sampling,
                allocation=allocation,
                support=support,
                precision=precision,
                decide=decide,
                alpha=alpha,
            ),
            execution=Execution(perturbations_per_eval=perturbations_per_eval, memory_format=memory_format),
            show_progress=show_progress,
            return_statistics=return_statistics,
        )
        problem, statistics, _ = split_effects(options, self.layers)
        chosen = statistics.of_layer(0 if layer is None else layer)
        found = answer(options, problem, chosen.of_quantity(quantity))
        return (found[0], statistics) if return_statistics else found


def split_effects(options: Options, layers: Layers) -> tuple[Problem, MediationStatistics, tuple[Mediator, ...]]:
    """The effects of a call's units, split at the mediators that a user names; and the mediators that were meant."""
    inputs = options.inputs if isinstance(options.inputs, tuple) else (options.inputs,)
    image = next((x for x in inputs if isinstance(x, Tensor) and x.ndim > 2), None)
    model = as_scorer(options.forward_func).model
    mediators = find_mediators(model, layers, n_spatial=0 if image is None else image.ndim - 2)
    with running(options) as now:
        if isinstance(options.units, InputUnits) and options.units.region is not None:
            # Of several RoIs, the one that is asked for.
            lost = np.flatnonzero(~now.outputs.of_chosen(now.problem.treated_for(now.outputs)).any(1))
            if len(lost):
                raise region_excluded(int(lost[0]))
        base = _run_on_images(now)
        # What was run, and how often, is asked of the evaluator that runs it.
        now = replace(now, reach=replace(now.reach, evaluator=base))
        mediated = MediatedEvaluator(base, mediators, now.baseline)
        n, k = mediated.n_columns, now.baseline.shape[1]
        effort, goal = options.effort, goal_of(options.effort, now)
        # Interactions and rests are differences of the others, and are known as they are.
        looked_at = np.repeat([True] + [True, True, False, False] * len(mediators), k)
        if goal is not None:
            goal = replace(goal, outputs=np.tile(goal.outputs, n) & looked_at)
        needed = np.tile(now.outputs.on_every_roi(), n) & looked_at if now.plan.unassigned() else None
        outcome = run(
            now.plan.in_aspects(n),
            mediated,
            np.tile(now.baseline, n),
            batch_size=now.batch_size,
            screening_threshold=effort.screening_threshold,
            goal=goal,
            needed=needed,
            on_progress=now.forecast(goal, in_context=False, runs=Runs(mediated.runs_each, mediated.most_checks)).run,
        )
    found = [statistics_of(now, options, _column(outcome, place, k)) for place in range(n)]
    parts = [found[first : first + len(QUANTITIES)] for first in range(1, n, len(QUANTITIES))]
    statistics = MediationStatistics(
        {
            mediator.name: LayerMediation(mediator.name, found[0], **dict(zip(QUANTITIES, part)))
            for mediator, part in zip(mediators, parts)
        }
    )
    return now.problem, statistics, tuple(mediators)


def _run_on_images(now: Running) -> InputEvaluator:
    """What runs the model on intervened inputs, one image or window per intervention."""
    evaluator = now.evaluator
    # Each group of RoIs would have mediators of its own.
    evaluator = evaluator.whole if isinstance(evaluator, GroupsEvaluator) else evaluator
    if not isinstance(evaluator, InputEvaluator):
        raise ValueError(
            "forward_func: in a sliding window, layers run once per window; mediated effects are of a network that is given the whole image"
        )
    return evaluator


def _column(outcome: Outcome, place: int, k: int) -> Outcome:
    """One of the quantities."""
    columns = slice(place * k, (place + 1) * k)
    return replace(outcome, observed=outcome.observed[:, columns], moments=outcome.moments.of_columns(columns), slope_sums=None)
