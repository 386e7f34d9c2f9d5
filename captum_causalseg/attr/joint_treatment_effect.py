"""The effect of regions of the input together with others."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import FUNCTION, checked
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.effort import DRAWS, Effort, draws_of
from captum_causalseg.attr.estimate import answer, estimate
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.joint import JOINT, JOINT_DRAWS, effort_in
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.engine.contexts import ContextArgument, context_of
from captum_causalseg.engine.sampling import SamplingScheme
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["JointTreatmentEffect"]


class JointTreatmentEffect(PerturbationAttribution):
    r"""How much of the RoI's score is owed to each part of the input, where parts stand in for each other or need each other?

    :class:`~captum_causalseg.AverageTreatmentEffect` replaces one unit and leaves all others as they are. Where either of two units is enough,
    each of their effects is 0, though the two together carry the whole score; no list of such effects says what a *set* of units does. Here a
    unit ``p`` is replaced by donors while others have been replaced as well, and its effect is averaged over these contexts ``S`` and over the
    donors ``b``:

    .. math:: \text{effect}(p) = \mathbb{E}_{S, b}\, [M(\mathrm{do}(x[S] := b)) - M(\mathrm{do}(x[S] := b, x[p] := b))]

    With ``context="shapley"``, ``S`` are the units that come before ``p`` in a random order. These are Shapley values of the game whose worth is the
    score, and they add up: their sum over all units is ``M(x)`` less the mean of ``M(all units replaced)``, exactly, also of a few draws.

    **Sign and unit** are those of the plain effect: the score's own units, positive for what supports the segmentation. A unit that cannot
    reach the RoI has effect 0, exactly. It is another question than the plain one: compare the two rather than replace one by the other.

    **Cost.** A permutation of ``m`` units (one draw for each of them) takes ``m`` forwards, a pair ``2m``. Units that cannot reach the RoI take none,
    and if a part of the image is enough to compute the RoI, only that part is run. So ``n_draws`` cost what they cost with ``AverageTreatmentEffect`` without
    screening.

    **Sampling.** Every permutation has a donor of its own for each unit, drawn independently; over the permutations, a unit goes through all of its donors
    before one comes again. A permutation is followed by its reverse. Standard errors are those of the mean over pairs, which are independent; intervals and p-values are as of all
    effects (:class:`~captum_causalseg.TreatmentEffectStatistics`). The estimate is that of Castro, Gomez and Tejada (2009), with antithetic pairs
    (Mitchell, Cooper, Frank and Holmes 2022). Packages for games in general, such as ``shapiq``, approximate values of *one* game, whose donors are
    fixed or averaged over in each evaluation, and give no standard errors; here donors are a part of what is sampled.

    Args:
        forward_func: any forward function that Captum accepts, with one score or a fixed number of scores per example. A
            :class:`~captum_causalseg.SegmentationTarget` also tells where the RoI is.
        baselines: a default for ``attribute``'s argument of this name, for Captum's wrappers.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, JointTreatmentEffect
        >>> either = lambda image: torch.maximum(image[:, 0, 0, 0], image[:, 0, 0, 1])  # one of two pixels is enough
        >>> image, gone = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
        >>> AverageTreatmentEffect(either).attribute(image, gone, block_size=1).flatten().tolist()
        [0.0, 0.0]
        >>> JointTreatmentEffect(either).attribute(image, gone, block_size=1).flatten().tolist()
        [0.5, 0.5]
    """

    @checked(forward_func=FUNCTION)
    def __init__(self, forward_func: Callable[..., Any], baselines: Baselines = None) -> None:
        super().__init__(forward_func)
        self.baselines = baselines

    @overload
    def attribute(self, inputs: Tensor, *args: Any, return_statistics: Literal[False] = ..., **kwargs: Any) -> Tensor: ...
    @overload
    def attribute(
        self, inputs: tuple[Tensor, ...], *args: Any, return_statistics: Literal[False] = ..., **kwargs: Any
    ) -> tuple[Tensor, ...]: ...
    @overload
    def attribute(
        self, inputs: Tensor | tuple[Tensor, ...], *args: Any, return_statistics: Literal[True], **kwargs: Any
    ) -> tuple[Any, TreatmentEffectStatistics]: ...

    @log_usage(part_of_slo=True)
    @checked(JOINT, channels=CHANNELS, units=UNITS)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        context: ContextArgument = "shapley",
        n_draws: int | None = None,
        n_screening_draws: int | None = None,
        screening_threshold: float | None = None,
        sampling: Literal["stratified", "uniform"] | SamplingScheme | None = None,
        support: Literal["auto", "always"] | None = "auto",
        exclude: Exclude = "roi",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
        precision: float | None = None,
        decide: float | None = None,
        alpha: float = 0.05,
        compile: bool = False,
        autocast: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
        channels: Channels = None,
        units: UnitKind = "block",
        allocation: Literal["needed", "equal"] | None = None,
    ) -> Any:
        """Estimate every unit's effect, averaged over contexts.

        Args:
            inputs, baselines, target, additional_forward_args, feature_mask, block_size: as in :meth:`AverageTreatmentEffect.attribute`.
            support, perturbations_per_eval, seed, show_progress, compile, autocast, memory_format, channels, units: likewise.
            context: which other units are replaced as well.

                - ``"shapley"``: those that come before the unit in a random order; every order is followed by its reverse.
                - ``"banzhaf"``: each with probability 1/2. Banzhaf values do not add up to the score, and depend less on sets of a size that
                  hardly occurs (nearly all units, or nearly none).
                - a number ``q`` from 0 to 1: each with probability ``q``. With 0 all others stay, which is the plain effect: the very numbers of
                  :class:`~captum_causalseg.AverageTreatmentEffect`.
                - a function ``(generator, unit_ids) -> mask``: it draws a set of units with a ``numpy.random.Generator``, and gets the ids ``(n,)`` of all units
                  that may be replaced for the output's sake, in ascending order. ``mask`` is boolean ``(n,)``; each unit's context is the set without
                  it. Draws are independent, without antithetic pairs.
            n_draws: differences per unit, by default 50 (those of the plain effect with ``context=0``); an even number, at least 4, for
                they come in antithetic pairs (with a function: at least 2, of any parity). With ``"shapley"``, the number of permutations. With ``precision`` or ``decide``, a budget: the average per unit over all units.
            n_screening_draws, screening_threshold, sampling, allocation: of the plain effect only (``context=0``), as in :meth:`AverageTreatmentEffect.attribute`. In other
                contexts no unit can be left out after a few draws, and donors are drawn uniformly.
            exclude: as in :meth:`AverageTreatmentEffect.attribute`; excluded units are never replaced, in no other unit's context either. Of several RoIs, those
                with the same excluded units (and all classes) are scored from the same forwards; others are games of their own, with their
                own forwards.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well; ``settings["context"]`` says in which context.
            precision: continue with more pairs until the 95 % interval of every effect (of the target's class, on every RoI) has at most this half-width, in the
                score's units, or ``n_draws`` are used up. Each further look doubles the pairs.
            decide: continue until every effect is known to lie above or below this threshold: ``statistics.decision``.
            alpha: with ``decide``, the chance of a wrong decision about a unit over all looks at it (Bonferroni over the looks).

        Returns:
            Attributions like ``inputs`` (tensor or tuple, same shapes and dtypes), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

        Example:
            >>> from captum_causalseg import JointTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> joint = JointTreatmentEffect(case.target())
            >>> attr, stats = joint.attribute(case.images, case.donors, n_draws=20, return_statistics=True)
            >>> known = stats.effect.nan_to_num()
            >>> int(known.argmax()) in case.cause_units, stats.settings["context"]
            (True, 'shapley')
        """
        drawn_in = context_of(context)
        options = Options(
            name=self.get_name(),
            forward_func=self.forward_func,
            inputs=inputs,
            baselines=self.baselines if baselines is None else baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units),
            context=drawn_in,
            effort=effort_in(
                drawn_in,
                Effort(
                    n_draws=draws_of(n_draws, DRAWS if drawn_in.alone else JOINT_DRAWS, precision, decide),
                    seed=seed,
                    support=support,
                    precision=precision,
                    decide=decide,
                    alpha=alpha,
                ),
                n_screening_draws=n_screening_draws,
                screening_threshold=screening_threshold,
                sampling=sampling,
                allocation=allocation,
            ),
            execution=Execution(
                perturbations_per_eval=perturbations_per_eval, compile=compile, autocast=autocast, memory_format=memory_format
            ),
            show_progress=show_progress,
            return_statistics=return_statistics,
        )
        return answer(options, *estimate(options))
