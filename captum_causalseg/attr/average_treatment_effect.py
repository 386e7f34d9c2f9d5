"""The average treatment effect of regions of the input."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import FUNCTION, NONE, checked, instance
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.controls import CONTROLS, Controls
from captum_causalseg.attr.effort import DRAWS, EFFORT, OPEN_DRAWS, Effort, draws_of
from captum_causalseg.attr.estimate import PlannedInterventions, answer, estimate, interventions
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.attr.parts import InParts
from captum_causalseg.attr.progress import SHOW_PROGRESS, Report
from captum_causalseg.donors import DonorSource
from captum_causalseg.engine.sampling import SamplingScheme
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["AverageTreatmentEffect"]

Baselines = DonorSource | Tensor | float | tuple[DonorSource | Tensor | float | None, ...] | None


class AverageTreatmentEffect(InParts, PerturbationAttribution):
    r"""Which parts of the input made the model segment the RoI the way it did, and how sure are we?

    Every unit ``p`` (a block of the image by default) is replaced by natural donors ``b`` and the score ``M`` of the RoI is
    measured again:

    .. math:: \text{effect}(p) = M(x) - \mathbb{E}_b\, M(\mathrm{do}(x[p] := b))

    **Sign and unit.** In the score's own units (Dice in [0, 1]). Positive: what is there supports the segmentation; negative:
    it harms it. This is the sign of Captum's ``FeatureAblation``; the paper's heat map (PdCR, arXiv 2602.20511) is -100 times it.

    **Cost.** Units that cannot reach the RoI through the model are detected and skipped, and if a part of the image is enough to
    compute the RoI, only that part is run (``support``). Donors are ranked by a first-order estimate of their effect and drawn from
    the whole ranking (``sampling``). Neither is an approximation.

    The estimate is unbiased if nothing is screened out and all units have as many draws; draws that go where they are needed, as they do from 12 on
    (``allocation``), bias it by little. Screening misses rare effects: a block that moves the score in 20 % of the
    draws moves it in none of three screening draws with probability ``0.8**3`` = 51 %. Its effect is then the mean of those three,
    which is 0; its status is SCREENED, and its interval stays wide. ``n_screening_draws=0`` turns screening off.

    Args:
        forward_func: any forward function that Captum accepts, with one score or a fixed number of scores per example. A
            :class:`~captum_causalseg.SegmentationTarget` also tells where the RoI is.
        baselines: a default for ``attribute``'s argument of this name. Captum's wrappers (``NoiseTunnel``, ``sensitivity_max``) pass
            on tensors and numbers only: give them donors here.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> model = torch.nn.Conv2d(1, 2, 5, padding=2)
        >>> image = torch.rand(1, 1, 32, 32)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8))
        >>> ate = AverageTreatmentEffect(target)
        >>> attr, stats = ate.attribute(
        ...     image, baselines=PatchBank(torch.rand(20, 1, 32, 32)), block_size=4, target=1, n_draws=10, return_statistics=True
        ... )
        >>> attr.shape, stats.effect.shape
        (torch.Size([1, 1, 32, 32]), torch.Size([1, 64, 2]))
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
    @checked(EFFORT, CONTROLS, n_draws=OPEN_DRAWS, channels=CHANNELS, units=UNITS, show_progress=SHOW_PROGRESS)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        n_draws: int | None = None,
        n_screening_draws: int = 3,
        screening_threshold: float = 0.0002,
        sampling: Literal["stratified", "uniform"] | SamplingScheme = "stratified",
        support: Literal["auto", "always"] | None = "auto",
        exclude: Exclude = "roi",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool | Report = False,
        return_statistics: bool = False,
        precision: float | None = None,
        decide: float | None = None,
        alpha: float = 0.05,
        compile: bool = False,
        autocast: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
        controls: Controls = None,
        channels: Channels = None,
        units: UnitKind = "block",
        allocation: Literal["needed", "equal"] = "needed",
    ) -> Any:
        """Estimate every unit's average treatment effect.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            baselines: what units are replaced by: a donor source (:class:`~captum_causalseg.PatchBank`, ...), a number, a tensor
                ``(D, C, *spatial)``, a tuple of these (one per input), or ``None``: donors cut from the other positions of the
                same image. **A tensor is a distribution of donors along its first axis, for every example**, as in Captum's
                ``GradientShap``; ``FeatureAblation`` would pair it with the examples. With ``D = 1`` the two agree.
            target: which output to attribute, in all of Captum's forms (int, tuple, tensor, list); the statistics hold every
                output all the same.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` have one entry per example.
            feature_mask: units as integers that can be broadcast to the input; equal numbers, across inputs too, are one unit.
            block_size: edge of the block units in pixels, one number or one per spatial axis (for inputs that need different
                ones, a tuple of such tuples, one per input); edge remainders are units of their own. By default 8, the paper's, or the image's edge if that is
                shorter. Inputs without spatial axes have every feature as a unit.
            n_draws: interventions per unit, the screening draws included, by default 12. From 12 on they go where they are needed (``allocation``): then this
                is their mean over the example's units that are not screened out, at most. If a bank has no more donors, all are used, and the effect is exact. With ``precision`` or
                ``decide``, a budget, by default 50: the average per unit over all units.
            n_screening_draws: how many draws are made first, to decide whether the others are made.
            screening_threshold: the other draws of a unit are made if one of these moves the score by at least this, in the score's units.
            sampling: ``"stratified"``: donors are ranked by their first-order effect on the target's output (one backward pass
                per example through the differentiable twin of the score), the ranking is cut into as many strata as there are
                draws, and one donor is drawn from each; screening takes the extremes. Unbiased whatever the ranking is worth, and
                more precise the better it is. ``"uniform"``: donors drawn without replacement, all equally likely. Without a
                gradient, draws are uniform as well, and the log says so once.
                Also a :class:`~captum_causalseg.engine.sampling.SamplingScheme`: a design and an estimator of your own.
            support: ``"auto"`` (or ``"always"``, which differs for layers only): units that cannot reach the RoI through the
                model get effect 0 without a forward, and if a window of the image is enough to compute the RoI, only the window is run. What can reach the RoI
                is found by setting parts of the input to NaN, and checked; if a check fails, nothing is left out, and the log
                says so. Needs a :class:`~captum_causalseg.SegmentationTarget` with an RoI. ``None``: the whole image, every unit.
            exclude: ``"roi"``: units that touch the RoI are not intervened on; a boolean mask ``(*spatial)`` in its place; or
                ``None``. Excluded units carry 0 in the attribution and NaN in the statistics. Of several inputs, the first with
                spatial axes is the segmented image; one value holds for it and for every input of its spatial shape, a tuple
                says it for each input, masks in the input's own spatial shape. The RoI lies in a map of clicks too: ``"roi"``. In
                the support images of a few-shot model the same place is another matter: ``("roi", None)``. Whatever is excluded,
                no donor is cut from the RoI of the segmented image itself, nor from that place of an input for which ``"roi"`` is
                given.
            perturbations_per_eval: interventions per example in one forward pass (of windows, as many as have that many pixels; on a
                CPU fewer of large images, see ``settings["batch_size"]``); halved when memory runs out. With 1, every image goes through the model alone, which is right for models that mix
                the images of a batch.
            seed: of the draws. They depend on the seed and the unit's id alone, so that examples, models and repeated calls
                use the same donors; give one seed per example for independent draws (not under Captum's wrappers, which do not
                repeat it with the examples).
            show_progress: say what is being done, how many forwards (windows, of a sliding window) there are at most and about how long they take at
                the pace of those that were run by then, and show a bar over them. A function is told in place of the bar, for a window or a log of your own:
                ``show_progress(what, done, most)``, what is being done, and how many forwards of how many at most, 0 as long as that is not known. What it
                raises ends the call, and leaves the model as it was.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well.
            precision: continue until the 95 % interval of every effect (of the target's class, on every RoI) has at most this
                half-width, in the score's units. Units with the largest standard errors come first; each further look doubles a
                unit's draws, up to 16 times ``n_draws``.
            decide: continue until every effect is known to lie above or below this threshold: ``statistics.decision``.
            alpha: with ``decide``, the chance of a wrong decision about a unit over all looks at it (Bonferroni over the looks).
            compile: run the model through :func:`torch.compile`; worth it for long runs, because the warm-up takes a while. Not exact
                to the last digit.
            autocast: run the model in this precision (``torch.bfloat16``). **Not exact**: effects change by what the model's output
                changes; see the documentation's page on benchmarks for how much that was.
            memory_format: ``torch.channels_last`` (in volumes, its 3D form): intervened images lie pixel by pixel in memory, which
                some convolutional networks are faster on, above all if their weights do as well
                (``model.to(memory_format=torch.channels_last)``). Not exact to the last digit. ``None``: channel by channel.
            controls: ``"edge"``: of every unit whose effect is estimated (not of those that are screened out), measure as well what a joint does
                by itself, and keep it in the statistics' ``controls``. ``"edge_shifted"``: the unit's own tissue, shifted by one and by two pixels
                along each axis, forth and back, wherever that fits; ``"edge_matched"``: as many uniform draws of the donors, shifted to the
                unit's own mean, channel by channel (not where the donors are fitted already). Both are effects of the same sign and unit as
                any, with their intervals; every shift is made, and the interval is that of the mean over joints of which these are
                a sample. ``statistics.edge_suspect()`` says which effects may be nothing but the joint. The cost: up to 16 forwards per unit
                in 2D, 24 in 3D.
            allocation: ``"needed"``: from 12 draws on, half of an example's draws are spread evenly over its units, and the others go where they lower
                the squared errors the most, summed over the target's outputs, each relative to its mean: units' draws are doubled, up to
                three times. It costs no more than equal draws: what units do not need (screened out, or the bank is used up) is saved, and
                ``n_draws`` is the mean over the others, at most. It depends on nothing but the example itself. Because draws are looked at, effects have a small bias (in the
                documentation's page on coverage). ``"equal"``: every unit has ``n_draws``. So it is,
                whatever is said here, with fewer than 12 draws, with at least half as many screening draws, with ``precision`` or ``decide``
                (which share out draws by themselves), with uniform draws (also where there is no gradient: intervals of the fewest would hold the
                truth too rarely), with a scheme of your own, and where units are explained in parts, by several
                processes; ``settings["allocation"]`` says which it was.
            channels: ``"each"``: every channel of a unit (a modality, such as T1 or T2) is a unit by itself, replaced while the others stay:
                unit ``u`` becomes ``u * C + c``, and the table has a column ``channel``. Numbers: only these channels are replaced, together,
                such as the image's and not those of a map of clicks; the others carry 0. ``None``: all channels together.
            units: what units are where there is no ``feature_mask``, of the kinds in :data:`captum_causalseg.layout.UNIT_KINDS`: ``"block"``, across all
                channels; ``"channel_block"``, one channel of one block (blocks with ``channels="each"``, to the same numbers); ``"channel"``, all of
                one channel, which touches the RoI (``exclude=None``); or a kind of your own (:func:`captum_causalseg.layout.register_units`).

        Returns:
            Attributions like ``inputs`` (tensor or tuple, same shapes and dtypes), every element carrying its unit's whole effect,
            as in ``FeatureAblation``; with ``return_statistics`` a pair of them and the statistics. For MONAI's ``MetaTensor``
            they are ``MetaTensor`` with the same affine; inside, plain tensors are computed with.

        Raises:
            TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> attr = ate.attribute(case.images, case.donors, n_draws=len(case.donors), n_screening_draws=0)
            >>> float((attr - case.effects_of_map()).abs().max()) < 1e-6  # exact: the bank is used up
            True
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
            execution=Execution(
                perturbations_per_eval=perturbations_per_eval,
                compile=compile,
                autocast=autocast,
                memory_format=memory_format,
                part=self.part,
            ),
            show_progress=show_progress,
            return_statistics=return_statistics,
            controls=controls,
        )
        return answer(options, *estimate(options))

    @checked(EFFORT, n_draws=OPEN_DRAWS, channels=CHANNELS, units=UNITS, statistics=NONE | instance(TreatmentEffectStatistics))
    def plan(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        n_draws: int | None = None,
        n_screening_draws: int = 3,
        sampling: Literal["stratified", "uniform"] | SamplingScheme = "stratified",
        support: Literal["auto", "always"] | None = "auto",
        exclude: Exclude = "roi",
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        channels: Channels = None,
        units: UnitKind = "block",
        allocation: Literal["needed", "equal"] = "needed",
        statistics: TreatmentEffectStatistics | None = None,
    ) -> PlannedInterventions:
        """The interventions that :meth:`attribute` makes with these arguments when nothing is screened out.

        Each names the example, the unit, the number of the draw, its weight in the estimate, and, for every input that the unit
        reaches into, the donor image and the place in it. With uniform draws and without support, the model is not run.

        **From 12 draws on, this is half of them.** Which units get the other half (``allocation``) shows only when the first one is scored: what is
        planned is the first half, with its weights, and ``unassigned`` counts the draws that are missing. All of them are there with
        ``allocation="equal"``; and with the ``statistics`` that :meth:`attribute` returned to the same arguments: then it is what was done, every
        unit's draws, further ones included, screened units' no more than the screening draws.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> plan = ate.plan(case.images, case.donors, n_draws=4, sampling="uniform", support=None)
            >>> len(plan)  # four draws for each of the 15 blocks that do not touch the RoI
            60
            >>> plan[0].unit, plan[0].draw, plan[0].weight
            (0, 0, 0.25)
            >>> print(ate.plan(case.images, case.donors, n_draws=12, support=None))
            90 interventions; 90 more are shared out when these are scored: give allocation="equal", or the statistics of attribute
        """
        return interventions(
            Options(
                forward_func=self.forward_func,
                inputs=inputs,
                baselines=self.baselines if baselines is None else baselines,
                target=target,
                additional_forward_args=additional_forward_args,
                units=InputUnits(
                    feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units
                ),
                effort=Effort(
                    n_draws=draws_of(n_draws, DRAWS),
                    n_screening_draws=n_screening_draws,
                    seed=seed,
                    sampling=sampling,
                    allocation=allocation,
                    support=support,
                ),
                execution=Execution(perturbations_per_eval=perturbations_per_eval, part=self.part),
            ),
            statistics,
        )
