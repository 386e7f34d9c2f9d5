"""Treatment effects with their uncertainty: standard errors, intervals, p-values, false discovery rates, tables."""

import dataclasses
import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import (
    ANY,
    BOOLEAN,
    FILE,
    FRACTION,
    NEW_FILE,
    NONE,
    TEXT,
    checked,
    instance,
    integer,
    mapping,
    one_of,
    sequence,
    shown,
    tensor_of,
)
from captum_causalseg.layout import Layout
from captum_causalseg.statistics import emptiness, files, table
from captum_causalseg.statistics.controls import EDGE_SHIFTED, larger_than_control
from captum_causalseg.statistics.corrections import CORRECTIONS, adjust_p_values
from captum_causalseg.statistics.intervals import half_width, p_value
from captum_causalseg.statistics.moderation import moderated_errors
from captum_causalseg.statistics.moments import UnitMoments
from captum_causalseg.statistics.on_image import laid_out
from captum_causalseg.statistics.outputs import target_index
from captum_causalseg.statistics.status import Status, is_hypothesis
from captum_causalseg.statistics.unit_places import UnitPlaces

__all__ = ["TreatmentEffectStatistics"]

logger = logging.getLogger(__name__)

# Of fewer, false discoveries among many units are more than said (measured by benchmarks/coverage.py, and by joint_coverage.py in a context).
_FEWEST_UNIFORM_DRAWS = 50
_FEW_DRAWS = {
    "uniform": "%d uniform draws do not hold the level among many units: at 0.05, up to a quarter of the discoveries were false on trained "
    'networks; draw along a ranking (sampling="stratified", which takes a score with a gradient), make at least %d draws, or use up the bank',
    "in context": "%d draws in a context do not hold the level among many units: at 0.05, up to a tenth of the discoveries were false on "
    "trained networks; make at least %d draws",
}
_FEW_DRAWS["paper"] = _FEW_DRAWS["uniform"]
_WARNED: "weakref.WeakSet[TreatmentEffectStatistics]" = weakref.WeakSet()

_PER_UNIT = tensor_of("real", "(N, U, *output_shape)", (2, math.inf))
_FIELDS = ("effect", "standard_error", "n_draws", "status", "p_value", "significant", "lower", "upper", "edge_suspect")
_ABOUT = (
    "observed_score",
    "unit_ids",
    "feature_mask",
    "input_shapes",
    "n_forwards",
    "inputs_are_tuple",
    "output_axes",
    "settings",
    "layouts",
    "slope_sums",
)
"""What the constructor takes besides the moments."""


class TreatmentEffectStatistics:
    """What is known about every unit's effect, per example ``n``, unit ``u``, and output.

    Arrays are CPU tensors of shape ``(N, U, *output_shape)``; ``output_shape`` is ``()`` for one score per example, ``(C,)``,
    ``(R,)`` or ``(C, R)`` as the target's scores are. Effects are in the score's own units (Dice in [0, 1]). **Sign:**
    ``effect = observed score - mean score under intervention``: positive effects support the segmentation, negative ones
    harm it.

    Attributes:
        effect: the average treatment effect; NaN for units that are EXCLUDED or ABSENT, 0 OUTSIDE_SUPPORT. FIRST_ORDER: an approximation of it.
        standard_error: of the effect, moderated across units (see below); 0 where every donor was used; infinite where the
            draws tell nothing about the spread; NaN where there are no draws to tell of (EXCLUDED, ABSENT, FIRST_ORDER).
        sample_variance: of ``observed - intervened``, of one draw (within its stratum, if draws were stratified); NaN where the
            draws do not show it.
        variance_factor: the squared standard error is this times the moderated variance; 0 where every donor was used. For
            ``n`` of ``D`` donors drawn without replacement it is ``(1 - n/D) / n``.
        variance_freedom: degrees of freedom of ``sample_variance``; NaN where there are no draws.
        test_variance: what :meth:`p_values` take in the place of ``sample_variance``; at least as large: more so where draws were stratified (see below).
        adjustment: how much the effect is less than the weighted mean of ``observed - intervened`` over the draws, because their predicted
            effects differ on the average from those of all donors (see below); 0 where they are not used.
        n_draws: interventions that the effect was estimated from.
        population: number of different donors ``(N, U)``; infinite when drawn with replacement; for a stochastic model
            (``n_samples``), times the number of random states that are drawn with them.
        status: a :class:`Status`.
        observed_score: ``(N, *output_shape)``.
        unit_ids: ``(U,)`` the units' ids in ``feature_mask``.
        feature_mask: per input, the units as integers, ``(N or 1, C or 1, *spatial)``.
        n_forwards: images (or windows of images) that went through the model, for whatever purpose; ``settings["forwards"]``
            says for which.
        decision: with ``decide=`` in ``attribute``: 1 where the effect lies above the threshold, -1 below, 0 undecided (also what
            screening gave up, and what is EXCLUDED); all 0 without.
        settings: how it was computed: arguments, seed, versions, and what the forwards were spent on.
        layouts: per input, what its axes mean where it is a layer's activation (a :class:`~captum_causalseg.Layout`); ``None``, or
            nothing at all, where they are ``(N, C, *spatial)``.
        controls: with ``controls="edge"`` in ``attribute``, by name (``"edge_shifted"``, ``"edge_matched"``) statistics of the same units
            and outputs that were given donors of which only the joint can matter: see :meth:`edge_suspect`. EXCLUDED, with NaN, where a
            unit has no control. Else empty.
        slope_sums: of a part of a case's units, what is needed to put the parts together; ``None`` otherwise.

    **Standard error.** A hard Dice moves in steps: among a few draws often none flips, the sample variance is 0 though the
    effect is not, and a plain t-interval has width 0. As in limma (Smyth 2004), each unit's variance ``s^2`` with
    ``d = n - 1`` degrees of freedom is shrunk toward ``s0^2``, the geometric mean of the non-zero variances of the same
    example's and output's units: ``(d0 s0^2 + d s^2) / (d0 + d)``, and intervals take Student's t with ``d0 + d``. The
    prior has ``d0 = 3 k / (k + 1)`` degrees of freedom where ``k`` other units show a spread: none for a unit that is alone. Draws without replacement from ``D`` donors have the factor ``1 - n/D``. Stratified draws
    have one donor per stratum, and ``s^2`` comes from their differences along the strata
    (:class:`captum_causalseg.engine.estimator.StratifiedEstimator`).

    **Predicted effects.** The first-order effects that stratified donors are ranked by are known for all donors. From 6 draws on, the effect is the
    draws' weighted mean, less a slope times how much their predicted effects differ from those of all donors. The slope is the unit's own, shrunk toward
    that of the other units of the example and output, and ``s^2`` is what predictions leave over
    (:func:`captum_causalseg.statistics.slopes.leaning`). P-values are compared among many units, so that the smallest variances decide: they take
    ``test_variance``, which is larger and steadier than that of the intervals (and the same below 12 draws). So an interval may exclude 0
    where the p-value is above 0.05, and hardly ever the other way round.

    **Hypotheses.** "This unit has no effect" is a question only of units that were intervened on: those that are ESTIMATED or
    SCREENED (:attr:`hypotheses`). What is OUTSIDE_SUPPORT is known to have none, and of what is EXCLUDED or ABSENT nothing was asked.
    They take no part in corrections for multiple testing, in shares of the units, or in the common scale ``s0^2``, so that no
    answer depends on how much of the image cannot reach the RoI.

    **First-order effects** (FIRST_ORDER, of :class:`~captum_causalseg.GradientTreatmentEffect`) have no error. Over the donors there is none, since their mean
    is exact; how far the gradient is from the intervention, no gradient tells. So errors, intervals and p-values are NaN, no unit is a
    hypothesis, and nothing is significant.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
        >>> stats.effect.shape
        torch.Size([1, 16])
        >>> known = stats.effect.nan_to_num()  # NaN of the block that touches the RoI
        >>> int(known.argmax()), int(known.argmin()), case.cause_units
        (12, 13, (12, 15, 13))
    """

    @checked(
        effect=_PER_UNIT,
        sample_variance=_PER_UNIT,
        n_draws=_PER_UNIT,
        population=tensor_of("real", "(N, U)", (2, 2)),
        status=_PER_UNIT,
        observed_score=tensor_of("real", "(N, *output_shape)", (1, math.inf)),
        unit_ids=tensor_of("integer", "(U,)", (1, 1)),
        feature_mask=sequence(tensor_of("integer", "(N or 1, C or 1, *spatial)", (2, math.inf)), 1),
        input_shapes=sequence(sequence(integer(1), 2), 1),
        n_forwards=integer(0),
        variance_factor=NONE | _PER_UNIT,
        variance_freedom=NONE | _PER_UNIT,
        test_variance=NONE | _PER_UNIT,
        adjustment=NONE | _PER_UNIT,
        decision=NONE | _PER_UNIT,
        inputs_are_tuple=BOOLEAN,
        output_axes=sequence(TEXT),
        settings=NONE | mapping(TEXT, ANY),
        layouts=sequence(NONE | instance(Layout)),
        controls=NONE | mapping(TEXT, instance(UnitMoments, expected="moments of units (UnitMoments)")),
        slope_sums=NONE | tensor_of("real", "(N, U, *output_shape, C)", (3, math.inf)),
    )
    def __init__(
        self,
        *,
        effect: Tensor,
        sample_variance: Tensor,
        n_draws: Tensor,
        population: Tensor,
        status: Tensor,
        observed_score: Tensor,
        unit_ids: Tensor,
        feature_mask: Sequence[Tensor],
        input_shapes: Sequence[Sequence[int]],
        n_forwards: int,
        variance_factor: Tensor | None = None,
        variance_freedom: Tensor | None = None,
        test_variance: Tensor | None = None,
        adjustment: Tensor | None = None,
        decision: Tensor | None = None,
        inputs_are_tuple: bool = False,
        output_axes: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        layouts: Sequence[Layout | None] = (),
        controls: Mapping[str, UnitMoments] | None = None,
        slope_sums: Tensor | None = None,
    ) -> None:
        units = tuple(effect.shape[:2])
        if effect.shape[:1] + effect.shape[2:] != observed_score.shape:
            raise ValueError(
                f"observed_score, effect: expected shapes (N, *output_shape) and (N, U, *output_shape), got "
                f"{tuple(observed_score.shape)} and {tuple(effect.shape)}"
            )
        for name, values, shape in (
            ("sample_variance", sample_variance, effect.shape),
            ("n_draws", n_draws, effect.shape),
            ("status", status, effect.shape),
            ("population", population, units),
            ("unit_ids", unit_ids, units[1:]),
            ("variance_factor", variance_factor, effect.shape),
            ("variance_freedom", variance_freedom, effect.shape),
            ("test_variance", test_variance, effect.shape),
            ("adjustment", adjustment, effect.shape),
            ("decision", decision, effect.shape),
        ):
            if values is not None and tuple(values.shape) != tuple(shape):
                raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(values.shape)}")
        if len(input_shapes) != len(feature_mask):
            raise ValueError(f"input_shapes: expected {len(feature_mask)}, one per feature mask, got {len(input_shapes)}")
        if layouts and len(layouts) != len(feature_mask):
            raise ValueError(f"layouts: expected {len(feature_mask)}, one per feature mask, got {len(layouts)}")
        self.effect = effect
        self.sample_variance = sample_variance
        self.n_draws = n_draws
        self.population = population
        self.status = status
        self.observed_score = observed_score
        self.unit_ids = unit_ids
        self.feature_mask = tuple(feature_mask)
        self.input_shapes = tuple(tuple(int(length) for length in shape) for shape in input_shapes)
        if variance_factor is None or variance_freedom is None:
            variance_factor, variance_freedom = _of_simple_random_draws(n_draws, population)
        self.variance_factor, self.variance_freedom = variance_factor, variance_freedom
        self.test_variance = sample_variance if test_variance is None else test_variance
        self.adjustment = torch.zeros_like(effect) if adjustment is None else adjustment
        self.slope_sums = slope_sums
        self.decision = torch.zeros_like(status) if decision is None else decision
        self.n_forwards = int(n_forwards)
        self.inputs_are_tuple = bool(inputs_are_tuple)
        self.layouts = tuple(layouts) or (None,) * len(self.feature_mask)
        self.output_axes = tuple(output_axes)
        self.settings = dict(settings or {})
        self.standard_error, self.degrees_of_freedom = _errors(self.moments, self.sample_variance)
        for name, moments in (controls or {}).items():
            if moments.effect.shape != tuple(effect.shape):
                raise ValueError(
                    f"controls[{name!r}]: expected moments of shape {tuple(effect.shape)}, got {moments.effect.shape}"
                )
        self.controls = {name: self._control(name, moments) for name, moments in (controls or {}).items()}

    def __repr__(self) -> str:
        counts = ", ".join(f"{int((self.status == s).sum())} {s.name}" for s in Status if bool((self.status == s).any()))
        examples, units = self.effect.shape[:2]
        outputs = f", outputs {self.output_shape}" if self.output_shape else ""
        return f"TreatmentEffectStatistics({examples} example(s), {units} units{outputs}: {counts}; {self.n_forwards} forwards)"

    @classmethod
    @checked(moments=instance(UnitMoments, expected="moments of units (UnitMoments)"))
    def from_moments(cls, moments: UnitMoments, **about: Any) -> "TreatmentEffectStatistics":
        """What the draws say, and all else that the constructor takes.

        Args:
            moments: of examples and units, ``(N, U, *output_shape)``.
            about: the arguments of the constructor that are not moments.

        Example:
            >>> import torch
            >>> from captum_causalseg import TreatmentEffectStatistics
            >>> from captum_causalseg.statistics.moments import UnitMoments
            >>> TreatmentEffectStatistics.from_moments(
            ...     UnitMoments.missing((1, 4), ()),
            ...     observed_score=torch.ones(1),
            ...     unit_ids=torch.arange(4),
            ...     feature_mask=[torch.arange(4).view(1, 1, 2, 2)],
            ...     input_shapes=[(1, 1, 2, 2)],
            ...     n_forwards=1,
            ... )
            TreatmentEffectStatistics(1 example(s), 4 units: 4 ABSENT; 1 forwards)
        """
        tensors: dict[str, Any] = {
            name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in vars(moments).items()
        }
        return cls(**tensors, **about)

    @property
    def moments(self) -> UnitMoments:
        """What the draws say, as arrays that share memory with the tensors here."""
        return UnitMoments(**{field.name: getattr(self, field.name).numpy() for field in dataclasses.fields(UnitMoments)})

    @checked(moments=NONE | instance(UnitMoments, expected="moments of units (UnitMoments)"))
    def replaced(self, moments: UnitMoments | None = None, **about: Any) -> "TreatmentEffectStatistics":
        """The same but for other moments or other arguments of the constructor; errors are made anew.

        Args:
            moments: of examples and units; its own by default.
            about: the arguments of the constructor that change.

        Example:
            >>> import torch
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> ate = AverageTreatmentEffect(lambda x: x.sum((1, 2)))
            >>> _, stats = ate.attribute(torch.ones(1, 1, 4), 0.0, block_size=2, return_statistics=True)
            >>> stats.replaced(settings={}).settings
            {}
        """
        kept = {name: getattr(self, name) for name in _ABOUT} | {"controls": self.control_moments}
        return TreatmentEffectStatistics.from_moments(moments or self.moments, **kept | about)

    @property
    def control_moments(self) -> dict[str, UnitMoments]:
        """What the draws say of the controls, by name."""
        return {name: control.moments for name, control in self.controls.items()}

    def _control(self, name: str, moments: UnitMoments) -> "TreatmentEffectStatistics":
        forwards = int(self.settings.get("forwards", {}).get(name, 0))
        about = {about: getattr(self, about) for about in _ABOUT} | {"n_forwards": forwards, "slope_sums": None}
        return TreatmentEffectStatistics.from_moments(moments, **about)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of one example's scores: ``()``, ``(C,)``, ``(R,)`` or ``(C, R)``.

        Example:
            >>> import torch
            >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget
            >>> target = SegmentationTarget(torch.nn.Conv2d(1, 3, 1), metric="probability_mean")  # three classes, no RoI
            >>> ate, image = AverageTreatmentEffect(target), torch.rand(1, 1, 8, 8)
            >>> _, stats = ate.attribute(image, target=1, block_size=4, return_statistics=True)
            >>> stats.output_shape
            (3,)
        """
        return tuple(self.observed_score.shape[1:])

    @property
    def hypotheses(self) -> Tensor:
        """Of which units "no effect" is a question, boolean ``(N, U, *output_shape)``: those intervened on for this output.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect, Status
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> stats.hypotheses.equal((stats.status == Status.ESTIMATED) | (stats.status == Status.SCREENED))
            True
        """
        return torch.from_numpy(is_hypothesis(self.status))

    @checked(level=FRACTION)
    def confidence_interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the two-sided interval for each effect, both ``(N, U, *output_shape)``.

        Args:
            level: coverage, in (0, 1).

        Raises:
            ValueError: ``level`` outside (0, 1).

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> lower, upper = stats.confidence_interval(0.95)
            >>> causes = list(case.cause_units)
            >>> bool(((lower[0] <= case.effects) & (case.effects <= upper[0]))[causes].all())
            True
        """
        half = torch.from_numpy(half_width(self.standard_error, self.degrees_of_freedom, level))
        return self.effect - half, self.effect + half

    def p_values(self) -> Tensor:
        """Two-sided p-values of "no effect", ``(N, U, *output_shape)``; exact effects have 0 or 1, unknown ones NaN.

        They are made to be compared among many units: where draws were stratified they take the variance ``test_variance``, which is larger than
        that of the intervals, so that the two may disagree about a unit that is just at the level.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> p = stats.p_values()
            >>> bool((p[0, list(case.cause_units)] < 0.001).all())
            True
        """
        error, freedom = _errors(self.moments, self.test_variance)
        return torch.from_numpy(p_value(self.effect, error, freedom))

    @checked(correction=one_of(*CORRECTIONS))
    def adjusted_p_values(self, correction: str | None = "fdr_bh") -> Tensor:
        """P-values adjusted over the hypotheses of each example and output, ``(N, U, *output_shape)``; NaN of other units.

        Args:
            correction: one of :data:`CORRECTIONS`, as in :func:`adjust_p_values`.

        Raises:
            ValueError: an unknown correction.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> p = stats.p_values()
            >>> adjusted = stats.adjusted_p_values("bonferroni")
            >>> tested = stats.hypotheses
            >>> bool((adjusted[tested] == (p[tested] * tested.sum()).clamp(max=1)).all())
            True
        """
        p, hypotheses = (values.numpy().reshape(*values.shape[:2], -1) for values in (self.p_values(), self.hypotheses))
        adjusted = np.full(p.shape, np.nan)
        for n, k in np.ndindex(p.shape[0], p.shape[2]):
            adjusted[n, :, k] = adjust_p_values(p[n, :, k], correction, hypotheses=hypotheses[n, :, k])
        return torch.from_numpy(adjusted.reshape(self.effect.shape))

    @checked(alpha=FRACTION, correction=one_of(*CORRECTIONS))
    def significant(self, alpha: float = 0.05, correction: str | None = "fdr_bh") -> Tensor:
        """Which effects differ from 0, boolean ``(N, U, *output_shape)``; ``False`` where that is no question (:attr:`hypotheses`).

        Of first-order effects it cannot be told: all ``False``, and the log says so once.

        Args:
            alpha: the error rate, in (0, 1).
            correction: over the hypotheses of each example and output, as in :func:`adjust_p_values`: ``"fdr_bh"`` or ``"fdr_by"``
                hold the expected share of false ones, ``"holm"`` or ``"bonferroni"`` the chance of any; ``None`` is unit by unit.

        **Few uniform draws do not hold the level.** Where a few donors do much and the others little, a small random sample says too little of both
        effect and spread, and among many units those samples are picked out. Measured on trained networks at 0.05
        (``benchmarks/coverage.py``), ``"fdr_bh"``, the lowest and the highest of six cases, with an effect taken away from half of the
        units, and from all of them (the chance of any):

        =============  =============  ============
        uniform draws  half null      all null
        =============  =============  ============
        6              0.03 to 0.14   0.14 to 0.56
        12             0.02 to 0.26   0.12 to 0.56
        20             0.02 to 0.20   0.09 to 0.55
        50             0.02 to 0.04   0.05 to 0.33
        =============  =============  ============

        ``"fdr_by"`` does not mend it (up to 0.19 with half of the units null at 20 draws, 0.02 at 50). So the log warns where many units are tested by fewer than 50
        uniform draws, or by fewer than 50 in a context (``benchmarks/joint_coverage.py``). Stratified draws held at most 0.04 with half of the units null, from 6 draws on; a bank that is used up is exact.

        Raises:
            ValueError: ``alpha`` outside (0, 1), or an unknown correction.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> stats.unit_ids[stats.significant(alpha=0.05)[0]].tolist(), sorted(case.cause_units)
            ([12, 13, 15], [12, 13, 15])
        """
        self._warn_of_first_order()
        if correction is not None:
            self._warn_of_few_uniform_draws()
        # NaN is not at most anything.
        return self.adjusted_p_values(correction) <= alpha

    @checked(alpha=FRACTION, control=TEXT)
    def edge_suspect(self, alpha: float = 0.05, control: str = EDGE_SHIFTED) -> Tensor:
        """Which effects may be nothing but the joint of the pasted donors, boolean ``(N, U, *output_shape)``.

        Those that are :meth:`significant` and not significantly larger in size than what a joint does by itself at the unit's place, in
        whichever direction: than the control ``"edge_shifted"``, the unit's own tissue shifted by a pixel or two. The rule, unit by unit:
        the one-sided p-value of ``t = (|effect| - |control|) / sqrt(error_e^2 + error_c^2)`` is above ``alpha``
        (:func:`captum_causalseg.statistics.controls.larger_than_control`).

        The other control, ``"edge_matched"``, is read the other way round: its donors are of another texture, and an effect of the texture may
        be what one looks for, so as large an effect is no ground for suspicion. Where it is much smaller, the effect is one of
        brightness, and whether of the tissue's or of the step that a patch brings with it, no donor tells. That step is larger than the
        joint of shifted tissue: what is not suspect here is not acquitted of it. Units without a control are not called suspect: nothing is
        known of them.

        Args:
            alpha: error rate of both tests, in (0, 1).
            control: of which control.

        Raises:
            ValueError: there is no such control; ask for it with ``controls="edge"`` in ``attribute``.

        Example:
            >>> import torch
            >>> from captum_causalseg import AverageTreatmentEffect, PatchBank
            >>> ramp = (torch.arange(24.0) / 24).expand(1, 1, 24, 24)  # an image that grows brighter to the right
            >>> brighter = AverageTreatmentEffect(lambda image: image.mean((1, 2, 3)))
            >>> edges = AverageTreatmentEffect(lambda image: image.diff(dim=3).abs().mean((1, 2, 3)))
            >>> steps = ramp + torch.tensor([-2.0, -1.0, 1.0, 2.0]).view(-1, 1, 1, 1) / 24  # the same tissue, darker or brighter
            >>> asked = {"block_size": 8, "controls": "edge", "return_statistics": True}
            >>> _, stats = edges.attribute(ramp, steps, **asked)
            >>> bool(stats.edge_suspect().all())  # all that a network can answer to is the joint
            True
            >>> _, stats = brighter.attribute(ramp, ramp + 0.5, **asked)
            >>> bool(stats.edge_suspect().any())
            False
            >>> [name for name in stats.to_dataframe() if "shifted" in name]
            ['edge_shifted', 'edge_shifted_lower', 'edge_shifted_upper']
        """
        if control not in self.controls:
            found = ", ".join(map(shown, self.controls)) or "none"
            raise ValueError(
                f"control: expected one of these statistics' controls ({found}), got {shown(control)}; "
                'controls="edge" in attribute measures them'
            )
        effects, joints = (
            (one.effect.numpy(), one.standard_error.numpy(), one.degrees_of_freedom.numpy())
            for one in (self, self.controls[control])
        )
        surely = torch.from_numpy(larger_than_control(effects, joints, alpha))
        return self.significant(alpha) & ~surely & ~self.controls[control].effect.isnan()

    @checked(example=integer(0))
    def why_empty(self, target: TargetType = None, *, example: int = 0) -> str | None:
        """Why the map of one example and output shows nothing, in words; ``None`` where it shows something.

        A map is empty if no effect differs from 0 (:meth:`significant` at 0.05), and at least half of the units that can reach the RoI
        did nothing: no draw changed the score, or screening gave them up (SCREENED). That is the usual case with a hard score of
        exactly 1 or 0: it changes only where a pixel changes its label, and a well trained network is too sure of itself for that.
        It is also empty if no unit was intervened on.

        Args:
            target: which output, as in ``attribute``; needed if there are several.
            example: which example of the batch.

        Returns:
            A sentence without its period: what was found, and what to do about it where that is known.

        Raises:
            ValueError: ``target`` picks no output, or there is no such example.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> stats.why_empty() is None  # the map shows something
            True
            >>> _, nothing = ate.attribute(case.images, 0.7, n_draws=1, return_statistics=True)  # bright, as the blocks are
            >>> nothing.why_empty().split(":")[0]
            'no effect differs from 0'
        """
        return emptiness.why_empty(self, target, example)

    @checked(field=one_of(*_FIELDS))
    def to_map(self, field: str = "effect", target: TargetType = None) -> Tensor | tuple[Tensor, ...]:
        """Paint one quantity over the inputs: every element of a unit carries the unit's value.

        Args:
            field: ``"effect"``, ``"standard_error"``, ``"n_draws"``, ``"status"``, ``"p_value"``, ``"significant"``, ``"lower"`` or
                ``"upper"`` (ends of the 95 % interval), or ``"edge_suspect"`` (:meth:`edge_suspect`).
            target: which output, as in ``attribute``; needed if there are several.

        Returns:
            A double tensor of the input's shape (a tuple of them for a tuple of inputs). Unknown effects are NaN.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> effect, error = stats.to_map("effect"), stats.to_map("standard_error")
            >>> effect.shape == error.shape == case.images.shape
            True
            >>> row, column = case.causes[0].start
            >>> float(effect[0, 0, row, column]) == float(stats.effect[0, case.cause_units[0]])
            True
        """
        values = self.select(self._field(field).double(), target)
        places = UnitPlaces(self.unit_ids, self.feature_mask)
        maps = [places.painted(slot, values).expand(shape).contiguous() for slot, shape in enumerate(self.input_shapes)]
        return tuple(maps) if self.inputs_are_tuple else maps[0]

    @checked(values=_PER_UNIT)
    def select(self, values: Tensor, target: TargetType = None) -> Tensor:
        """One output of ``values`` ``(N, U, *output_shape)``, as ``target`` picks it in ``attribute``: ``(N, U)``.

        Example:
            >>> import torch
            >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget
            >>> target = SegmentationTarget(torch.nn.Conv2d(1, 3, 1), metric="probability_mean")  # three classes, no RoI
            >>> ate, image = AverageTreatmentEffect(target), torch.rand(1, 1, 8, 8)
            >>> _, stats = ate.attribute(image, target=1, block_size=4, return_statistics=True)
            >>> stats.effect.shape, stats.select(stats.effect, target=2).shape
            (torch.Size([1, 4, 3]), torch.Size([1, 4]))
        """
        if values.shape != self.effect.shape:
            raise ValueError(f"values: expected shape {tuple(self.effect.shape)}, got {tuple(values.shape)}")
        index = target_index(target, self.effect.shape[0], self.output_shape, output_axes=self.output_axes)
        flat = values.reshape(*values.shape[:2], -1)
        return flat.gather(2, index.view(-1, 1, 1).expand(-1, flat.shape[1], 1))[..., 0]

    def of_output(self, target: TargetType = None) -> "TreatmentEffectStatistics":
        """The statistics of one output alone, as ``target`` picks it in ``attribute``.

        Example:
            >>> import torch
            >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget
            >>> target = SegmentationTarget(torch.nn.Conv2d(1, 3, 1), metric="probability_mean")  # three classes, no RoI
            >>> ate, image = AverageTreatmentEffect(target), torch.rand(1, 1, 8, 8)
            >>> _, stats = ate.attribute(image, target=1, block_size=4, return_statistics=True)
            >>> one = stats.of_output(1)
            >>> one.output_shape, torch.equal(one.effect, stats.effect[..., 1])
            ((), True)
        """
        n = self.effect.shape[0]
        index = target_index(target, n, self.output_shape, output_axes=self.output_axes)
        return self.replaced(
            self.moments.of_output(index.numpy()),
            observed_score=self.observed_score.reshape(n, -1).gather(1, index.view(-1, 1))[:, 0],
            output_axes=(),
            controls={name: moments.of_output(index.numpy()) for name, moments in self.control_moments.items()},
            slope_sums=None,
        )

    @checked(spatial_shape=sequence(integer(1), 1, expected="a sequence of lengths"))
    def on_image(self, spatial_shape: Sequence[int]) -> "TreatmentEffectStatistics":
        """The same effects of a layer's tokens or blocks, with the units laid out on the image: for maps and pictures of them.

        The grid of the units is stretched to the image, every pixel taking the unit that lies over it. Special tokens (a class token)
        lie nowhere: they keep their effects and are on no map; ``settings["not_on_image"]`` lists their ids.

        Args:
            spatial_shape: of the image, ``(H, W)`` or ``(H, W, D)``.

        Returns:
            Statistics whose ``feature_mask`` is ``(N or 1, 1, *spatial_shape)``, for
            :func:`~captum_causalseg.visualization.plot_effects` with the image.

        Raises:
            ValueError: the units are no places (channels, heads), the grid of the tokens is not known, or it has another number of
                axes than the image.

        Example:
            >>> import torch
            >>> from captum_causalseg import LayerAverageTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 4, stride=4), torch.nn.Flatten(), torch.nn.Linear(64, 1))
            >>> image, layer = torch.rand(1, 1, 16, 16), LayerAverageTreatmentEffect(model, model[0])
            >>> _, stats = layer.attribute(image, target=0, units="block", block_size=2, n_draws=1, return_statistics=True)
            >>> stats.to_map().shape, stats.on_image((16, 16)).to_map().shape
            (torch.Size([1, 4, 4, 4]), torch.Size([1, 1, 16, 16]))
        """
        spatial = tuple(int(length) for length in spatial_shape)
        layouts = [layout or Layout("NC*") for layout in self.layouts]
        masks = [
            laid_out(layout, mask, shape, spatial=spatial)
            for layout, mask, shape in zip(layouts, self.feature_mask, self.input_shapes)
        ]
        drawn = np.concatenate([np.unique(mask.numpy()) for mask in masks])
        missing = np.setdiff1d(self.unit_ids.numpy(), drawn).tolist()
        return self.replaced(
            feature_mask=masks,
            input_shapes=[(shape[0], 1, *spatial) for shape in self.input_shapes],
            settings=self.settings | {"not_on_image": missing},
            layouts=(),
        )

    @checked(level=FRACTION)
    def to_dataframe(self, level: float = 0.95) -> pd.DataFrame:
        """One row per example, unit and output, ABSENT units left out.

        Columns: ``example``, ``unit``, one per output axis (``class``, ``roi``), ``input`` and ``start_<axis>``, ``stop_<axis>`` (the
        unit's bounding box in the first input that it lies in), ``status``, ``effect``, ``standard_error``, ``lower``, ``upper`` (of
        the interval at ``level``), ``p_value``, ``n_draws``, ``observed_score``. With :attr:`controls`, per control its effect and the ends of
        its interval (``edge_shifted``, ``edge_shifted_lower``, ``edge_shifted_upper``), and ``edge_suspect``.

        Example:
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> table = stats.to_dataframe()
            >>> print(table.nlargest(2, "effect")[["unit", "start_0", "start_1", "status"]].to_string(index=False))
             unit  start_0  start_1    status
               12       24        0 ESTIMATED
               15       24       24 ESTIMATED
        """
        return table.as_table(self, level)

    @checked(path=NEW_FILE)
    def save(self, path: str | Path) -> None:
        """Write everything to a compressed ``.npz`` file: arrays and JSON, no pickle.

        Example:
            >>> import pathlib, tempfile
            >>> from captum_causalseg import AverageTreatmentEffect, TreatmentEffectStatistics
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "statistics.npz"
            >>> stats.save(path)
            >>> TreatmentEffectStatistics.load(path).standard_error.nan_to_num().equal(stats.standard_error.nan_to_num())
            True
        """
        files.write(self, path)

    @classmethod
    @checked(path=FILE)
    def load(cls, path: str | Path) -> "TreatmentEffectStatistics":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: not such a file, or one of a later format.

        Example:
            >>> import pathlib, tempfile
            >>> from captum_causalseg import AverageTreatmentEffect, TreatmentEffectStatistics
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> ate = AverageTreatmentEffect(case.target())
            >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
            >>> path = pathlib.Path(tempfile.mkdtemp()) / "statistics.npz"
            >>> stats.save(path)
            >>> again = TreatmentEffectStatistics.load(path)
            >>> repr(again) == repr(stats), again.settings["seed"]
            (True, 0)
        """
        return cls(**files.read(path))

    def _warn_of_few_uniform_draws(self) -> None:
        """Once: if some of many units are tested by fewer uniform draws than hold the level."""
        warning = _FEW_DRAWS.get(str(self.settings.get("sampling")))
        if self in _WARNED or warning is None:
            return
        among_many = self.hypotheses & (self.hypotheses.sum(1, keepdim=True) > 1)
        tested = among_many & (self.status == Status.ESTIMATED) & (self.variance_factor > 0)
        fewest = int(self.n_draws[tested].min()) if bool(tested.any()) else _FEWEST_UNIFORM_DRAWS
        if fewest < _FEWEST_UNIFORM_DRAWS:
            _WARNED.add(self)
            logger.warning(f"significant: {warning}", fewest, _FEWEST_UNIFORM_DRAWS)

    def _warn_of_first_order(self) -> None:
        """Once: if effects of a gradient are asked whether they differ from 0."""
        if self not in _WARNED and bool((self.status == Status.FIRST_ORDER).any()):
            _WARNED.add(self)
            logger.warning(
                "significant: first-order effects have no standard error, so that none of them is called significant; whether an effect "
                "differs from 0 is what interventions tell (AverageTreatmentEffect, LayerAverageTreatmentEffect)"
            )

    def _field(self, field: str) -> Tensor:
        if field in ("effect", "standard_error", "n_draws", "status"):
            return getattr(self, field)  # type: ignore[no-any-return]
        if field == "p_value":
            return self.p_values()
        if field == "significant":
            return self.significant()
        if field == "edge_suspect":
            return self.edge_suspect()
        return self.confidence_interval()[field == "upper"]


def _errors(moments: UnitMoments, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Standard errors by some variance of one draw, and the degrees of freedom of their intervals, both ``(N, U, *output_shape)``."""
    shape, flat = moments.effect.shape, moments.with_outputs((-1,))
    rows = flat.effect.shape
    # What is no hypothesis has no say in the common scale, whatever stands in its moments.
    said = np.where(is_hypothesis(flat.status), flat.variance_freedom, np.nan)
    examples = [moderated_errors(*one) for one in zip(variance.numpy().reshape(rows), flat.variance_factor, said)]
    error, freedom = (np.stack(values) for values in zip(*examples))
    error = np.where(flat.status == Status.OUTSIDE_SUPPORT, 0.0, error)
    error = np.where((flat.status == Status.EXCLUDED) | (flat.status == Status.ABSENT), np.nan, error)
    return torch.from_numpy(error.reshape(shape)), torch.from_numpy(freedom.reshape(shape))


def _of_simple_random_draws(n_draws: Tensor, population: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and degrees of freedom of the variance of draws without replacement; NaN where there are none."""
    n = torch.where(n_draws > 0, n_draws.double(), torch.nan)
    donors = population.reshape(*population.shape, *(1,) * (n.ndim - 2))
    return (1 - n / donors).clamp_min(0) / n, n - 1
