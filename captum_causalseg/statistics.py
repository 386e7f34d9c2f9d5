"""Treatment effects with their uncertainty: standard errors, intervals, p-values, false discovery rates, tables."""

import json
import math
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg._captum import TargetType, select_targets
from captum_causalseg._checks import (
    ANY,
    BOOLEAN,
    FILE,
    FRACTION,
    NEW_FILE,
    NONE,
    TEXT,
    array_of,
    checked,
    instance,
    integer,
    mapping,
    number,
    one_of,
    sequence,
    shown,
    tensor_of,
)
from captum_causalseg.layout import Layout

__all__ = ["CORRECTIONS", "Status", "TreatmentEffectStatistics", "adjust_p_values", "is_hypothesis", "moderate", "target_index"]

PRIOR_DEGREES_OF_FREEDOM = 3.0
CORRECTIONS = ("fdr_bh", "fdr_by", "holm", "bonferroni", None)
"""Names of the corrections for multiple testing; see :func:`adjust_p_values`."""
_FORMAT = 2


class Status(IntEnum):
    """How a unit's effect on one output came about.

    Example:
        >>> from captum_causalseg import Status
        >>> Status(2), Status.SCREENED.name
        (<Status.OUTSIDE_SUPPORT: 2>, 'SCREENED')
    """

    ESTIMATED = 0
    """All its draws were made."""
    SCREENED = 1
    """No screening draw moved the score by the threshold: the effect is the mean of those few draws."""
    OUTSIDE_SUPPORT = 2
    """The unit cannot reach the RoI through the model: the effect is exactly 0."""
    EXCLUDED = 3
    """The unit was not intervened on (it touches the RoI): nothing is known."""
    ABSENT = 4
    """This example has no such unit (feature masks that differ between examples)."""


_PER_UNIT = tensor_of("real", "(N, U, *output_shape)", (2, math.inf))
_FIELDS = ("effect", "standard_error", "n_draws", "status", "p_value", "significant", "lower", "upper")
_COLUMN = instance(pd.Series, expected="a column of a table")
_HYPOTHESES = (Status.ESTIMATED, Status.SCREENED)


class TreatmentEffectStatistics:
    """What is known about every unit's effect, per example ``n``, unit ``u`` and output.

    Arrays are CPU tensors of shape ``(N, U, *output_shape)``; ``output_shape`` is ``()`` for one score per example, ``(C,)``,
    ``(R,)`` or ``(C, R)`` as the target's scores are. Effects are in the score's own units (Dice in [0, 1]). **Sign:**
    ``effect = observed score - mean score under intervention``: positive effects support the segmentation, negative ones
    harm it.

    Attributes:
        effect: the average treatment effect; NaN for units that are EXCLUDED or ABSENT, 0 OUTSIDE_SUPPORT.
        standard_error: of the effect, moderated across units (see below); 0 where every donor was used; infinite where the
            draws tell nothing about the spread.
        sample_variance: of ``observed - intervened``, of one draw (within its stratum, if draws were stratified); NaN where the
            draws do not show it.
        variance_factor: the squared standard error is this times the moderated variance; 0 where every donor was used. For
            ``n`` of ``D`` donors drawn without replacement it is ``(1 - n/D) / n``.
        variance_freedom: degrees of freedom of ``sample_variance``; NaN where there are no draws.
        n_draws: interventions that the effect is the mean of.
        population: number of different donors ``(N, U)``; infinite when drawn with replacement; for a model that answers differently
            each time (``n_samples``), times the random states that are drawn with them.
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

    **Standard error.** A hard Dice moves in steps: among a few draws often none flips, the sample variance is 0 though the
    effect is not, and a plain t-interval has width 0. As in limma (Smyth 2004), each unit's variance ``s^2`` with
    ``d = n - 1`` degrees of freedom is shrunk toward ``s0^2``, the geometric mean of the non-zero variances of the same
    example's and output's units: ``(d0 s0^2 + d s^2) / (d0 + d)``, with ``d0 = 3`` prior degrees of freedom, and intervals
    take Student's t with ``d0 + d``. Draws without replacement from ``D`` donors have the factor ``1 - n/D``. Stratified draws
    have one donor per stratum, and ``s^2`` comes from successive differences along the strata
    (:class:`captum_causalseg.engine.draws.StratifiedDraws`).

    **Hypotheses.** "This unit has no effect" is a question only of units that were intervened on: those that are ESTIMATED or
    SCREENED (:attr:`hypotheses`). What is OUTSIDE_SUPPORT is known to have none, and of what is EXCLUDED or ABSENT nothing was asked.
    They take no part in corrections for multiple testing, in shares of the units, or in the common scale ``s0^2``, so that no
    answer depends on how much of the image cannot reach the RoI.

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
        decision=NONE | _PER_UNIT,
        inputs_are_tuple=BOOLEAN,
        output_axes=sequence(TEXT),
        settings=NONE | mapping(TEXT, ANY),
        layouts=sequence(NONE | instance(Layout)),
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
        decision: Tensor | None = None,
        inputs_are_tuple: bool = False,
        output_axes: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        layouts: Sequence[Layout | None] = (),
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
            variance_factor, variance_freedom = _of_plain_draws(n_draws, population)
        self.variance_factor, self.variance_freedom = variance_factor, variance_freedom
        self.decision = torch.zeros_like(status) if decision is None else decision
        self.n_forwards = int(n_forwards)
        self.inputs_are_tuple = bool(inputs_are_tuple)
        self.layouts = tuple(layouts) or (None,) * len(self.feature_mask)
        self.output_axes = tuple(output_axes)
        self.settings = dict(settings or {})
        self.standard_error, self.degrees_of_freedom = self._standard_error()

    def __repr__(self) -> str:
        counts = ", ".join(f"{int((self.status == s).sum())} {s.name}" for s in Status if bool((self.status == s).any()))
        examples, units = self.effect.shape[:2]
        outputs = f", outputs {self.output_shape}" if self.output_shape else ""
        return f"TreatmentEffectStatistics({examples} example(s), {units} units{outputs}: {counts}; {self.n_forwards} forwards)"

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
        quantile = scipy_stats.t.ppf(0.5 + level / 2, self.degrees_of_freedom.numpy())
        half = torch.from_numpy(np.asarray(quantile)) * self.standard_error
        # Infinite degrees of freedom and a standard error of 0 stand for exactness: 0, not NaN.
        half = torch.where(self.standard_error == 0, torch.zeros_like(half), half)
        return self.effect - half, self.effect + half

    def p_values(self) -> Tensor:
        """Two-sided p-values of "no effect", ``(N, U, *output_shape)``; exact effects have 0 or 1, unknown ones NaN.

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
        exact = self.standard_error == 0
        ratio = (self.effect / torch.where(exact, 1.0, self.standard_error)).abs().numpy()
        p = torch.from_numpy(np.asarray(2 * scipy_stats.t.sf(ratio, self.degrees_of_freedom.numpy())))
        return torch.where(exact, (self.effect == 0).double(), p)

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

        Args:
            alpha: the error rate, in (0, 1).
            correction: over the hypotheses of each example and output, as in :func:`adjust_p_values`: ``"fdr_bh"`` or ``"fdr_by"``
                hold the expected share of false ones, ``"holm"`` or ``"bonferroni"`` the chance of any; ``None`` is unit by unit.

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
        # NaN is not at most anything.
        return self.adjusted_p_values(correction) <= alpha

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
        integer(0, self.effect.shape[0] - 1)("example", example)
        chosen = self.of_output(target)
        tested, status = chosen.hypotheses[example], chosen.status[example]
        n = int(tested.sum())
        reaching = " that can reach the region of interest" if bool((status == Status.OUTSIDE_SUPPORT).any()) else ""
        if n == 0:
            if reaching:
                return "no unit beside the region of interest can reach it through the model: the effects are exactly 0"
            return "every unit touches the region of interest or was excluded: no effect is known"
        # Of a single draw there is no variance.
        still = tested & (chosen.effect[example] == 0) & ~(chosen.sample_variance[example] > 0)
        quiet = still | (status == Status.SCREENED)
        count = int(quiet.sum())
        if 2 * count < n or bool(chosen.significant()[example].any()):
            return None
        said = f"no effect differs from 0: of {n} {'unit' if n == 1 else 'units'}{reaching}, {count} "
        if bool((quiet == still).all()):
            said += "did not change the score in any draw"
        else:
            threshold = self.settings.get("screening_threshold")
            said += "changed the score by less than " + ("the screening threshold" if threshold is None else f"{threshold:g}")
            said += " in the draws that they had"
        metric, smooth = self.settings.get("metric"), self.settings.get("smooth_metric")
        score = float(chosen.observed_score[example])
        if smooth is not None:
            value = f"exactly {score:.0f}" if score in (0, 1) else f"{score:.4g}"
            said += f'. metric="{metric}" is {value} and changes only where a pixel changes its label; metric="{smooth}" on the same '
            said += "target shows what happens before that"
            said += ", if the reference holds the class in the region" if score == 0 else ""
            return said + (", with AverageTreatmentEffect" if self.settings.get("sampling") == "paper" else "")
        if bool((quiet != still).any()):
            return said + ". n_screening_draws=0 goes on measuring such units"
        if metric is not None and score == 0:
            said += f'. metric="{metric}" is exactly 0 whatever is replaced: does the reference hold the class in the region of interest?'
        return said

    @checked(field=one_of(*_FIELDS))
    def to_map(self, field: str = "effect", target: TargetType = None) -> Tensor | tuple[Tensor, ...]:
        """Paint one quantity over the inputs: every element of a unit carries the unit's value.

        Args:
            field: ``"effect"``, ``"standard_error"``, ``"n_draws"``, ``"status"``, ``"p_value"``, ``"significant"``, ``"lower"`` or
                ``"upper"`` (ends of the 95 % interval).
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
        maps = []
        for mask, shape in zip(self.feature_mask, self.input_shapes):
            index = torch.searchsorted(self.unit_ids, mask.contiguous())
            example = torch.arange(shape[0], device="cpu").view(-1, *(1,) * (mask.ndim - 1))
            maps.append(values[example, index].expand(shape).contiguous())
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
        index = target_index(target, self.effect.shape[0], self.output_shape, self.output_axes)
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
        index = target_index(target, n, self.output_shape, self.output_axes)
        observed = self.observed_score.reshape(n, -1).gather(1, index.view(-1, 1))[:, 0]
        return TreatmentEffectStatistics(
            effect=self.select(self.effect, target),
            sample_variance=self.select(self.sample_variance, target),
            n_draws=self.select(self.n_draws, target),
            variance_factor=self.select(self.variance_factor, target),
            variance_freedom=self.select(self.variance_freedom, target),
            decision=self.select(self.decision, target),
            status=self.select(self.status, target),
            population=self.population,
            observed_score=observed,
            unit_ids=self.unit_ids,
            feature_mask=self.feature_mask,
            input_shapes=self.input_shapes,
            n_forwards=self.n_forwards,
            inputs_are_tuple=self.inputs_are_tuple,
            settings=self.settings,
            layouts=self.layouts,
        )

    @checked(spatial_shape=sequence(integer(1), 1))
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
            _places(layout, mask, shape, spatial) for layout, mask, shape in zip(layouts, self.feature_mask, self.input_shapes)
        ]
        drawn = np.concatenate([np.unique(mask.numpy()) for mask in masks])
        missing = np.setdiff1d(self.unit_ids.numpy(), drawn).tolist()
        return TreatmentEffectStatistics(
            **{name: getattr(self, name) for name in _ARRAYS},
            feature_mask=masks,
            input_shapes=[(shape[0], 1, *spatial) for shape in self.input_shapes],
            n_forwards=self.n_forwards,
            inputs_are_tuple=self.inputs_are_tuple,
            output_axes=self.output_axes,
            settings=self.settings | {"not_on_image": missing},
        )

    @checked(level=FRACTION)
    def to_dataframe(self, level: float = 0.95) -> pd.DataFrame:
        """One row per example, unit and output, ABSENT units left out.

        Columns: ``example``, ``unit``, one per output axis (``class``, ``roi``), ``input`` and ``start_<axis>``, ``stop_<axis>`` (the
        unit's bounding box in the first input that it lies in), ``status``, ``effect``, ``standard_error``, ``lower``, ``upper`` (of
        the interval at ``level``), ``p_value``, ``n_draws``, ``observed_score``.

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
        lower, upper = self.confidence_interval(level)
        n, units = self.effect.shape[:2]
        axes = np.indices((n, units, *self.output_shape)).reshape(2 + len(self.output_shape), -1)
        columns: dict[str, Any] = {"example": axes[0], "unit": self.unit_ids.numpy()[axes[1]]}
        columns |= dict(zip(self.output_axes, axes[2:]))
        boxes = self._boxes()
        for name in boxes:
            columns[name] = boxes[name][axes[0], axes[1]]
        columns["status"] = np.array([s.name for s in Status])[self.status.numpy().ravel()]
        observed = self.observed_score.unsqueeze(1).expand(self.effect.shape)
        for name, values in {
            "effect": self.effect,
            "standard_error": self.standard_error,
            "lower": lower,
            "upper": upper,
            "p_value": self.p_values(),
            "n_draws": self.n_draws,
            "observed_score": observed,
        }.items():
            columns[name] = values.numpy().ravel()
        frame = pd.DataFrame(columns)
        return frame[frame["status"] != Status.ABSENT.name].reset_index(drop=True)

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
        arrays = {name: getattr(self, name).numpy() for name in _ARRAYS}
        arrays |= {f"feature_mask_{i}": mask.numpy() for i, mask in enumerate(self.feature_mask)}
        about = {
            "format": _FORMAT,
            "input_shapes": self.input_shapes,
            "n_forwards": self.n_forwards,
            "inputs_are_tuple": self.inputs_are_tuple,
            "output_axes": self.output_axes,
            "settings": self.settings,
            "layouts": [None if layout is None else layout.described() for layout in self.layouts],
        }
        with open(path, "wb") as file:
            np.savez_compressed(file, about=np.array(json.dumps(about)), **arrays)

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
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
        except (OSError, ValueError, KeyError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise ValueError(f"path: {str(path)!r} is not a file written by TreatmentEffectStatistics.save") from error
        if about.pop("format") != _FORMAT:
            raise ValueError(f"path: {str(path)!r} was written by another version of captum_causalseg, in another format")
        masks = [torch.from_numpy(arrays.pop(f"feature_mask_{i}")) for i in range(len(about["input_shapes"]))]
        about |= {name: torch.from_numpy(array) for name, array in arrays.items()}
        about["layouts"] = [None if one is None else Layout(**one) for one in about.get("layouts", [])]
        return cls(feature_mask=masks, **about)

    def _field(self, field: str) -> Tensor:
        if field in ("effect", "standard_error", "n_draws", "status"):
            return getattr(self, field)  # type: ignore[no-any-return]
        if field == "p_value":
            return self.p_values()
        if field == "significant":
            return self.significant()
        return self.confidence_interval()[field == "upper"]

    def _standard_error(self) -> tuple[Tensor, Tensor]:
        n, units = self.effect.shape[:2]
        shape = self.effect.shape
        flat = [values.reshape(n, units, -1).numpy() for values in (self.sample_variance, self.variance_factor)]
        status = self.status.reshape(n, units, -1).numpy()
        # What is no hypothesis has no say in the common scale, whatever stands in its moments.
        given = np.where(is_hypothesis(status), self.variance_freedom.reshape(n, units, -1).numpy(), np.nan)
        moderated, freedom = np.full(given.shape, np.nan), np.full(given.shape, np.nan)
        for i, k in np.ndindex(given.shape[0], given.shape[2]):
            moderated[i, :, k], freedom[i, :, k] = moderate(flat[0][i, :, k], given[i, :, k])
        # Not inf * 0, where a single draw says nothing about the spread but is all there is.
        with np.errstate(invalid="ignore"):
            error = np.where(flat[1] == 0, 0.0, np.sqrt(moderated * flat[1]))
        error = np.where(status == Status.OUTSIDE_SUPPORT, 0.0, error)
        error = np.where((status == Status.EXCLUDED) | (status == Status.ABSENT), np.nan, error)
        return torch.from_numpy(error.reshape(shape)), torch.from_numpy(freedom.reshape(shape))

    def _boxes(self) -> dict[str, np.ndarray]:
        """Per example and unit: the first input that holds the unit, and the bounding box there."""
        n, units = self.effect.shape[:2]
        layouts = [layout or Layout("NC*") for layout in self.layouts]
        masks = [layout.channels_first(mask) for layout, mask in zip(layouts, self.feature_mask)]
        lengths = [layout.spatial(shape) for layout, shape in zip(layouts, self.input_shapes)]
        most = max(map(len, lengths))
        inputs = np.full((n, units), -1)
        corners = np.full((2, most, n, units), -1)
        for slot, mask in reversed(list(enumerate(masks))):
            labels = torch.searchsorted(self.unit_ids, mask.contiguous()).numpy() + 1
            for m in range(len(labels)):
                rows = slice(None) if len(labels) == 1 else slice(m, m + 1)
                for u, found in enumerate(ndimage.find_objects(labels[m], max_label=units)):
                    if found is None:
                        continue
                    inputs[rows, u] = slot
                    corners[:, :, rows, u] = -1
                    for axis, side in enumerate(found[1:]):
                        # An axis of length 1 in the mask stands for the whole of it.
                        stop = lengths[slot][axis] if mask.shape[axis + 2] == 1 else side.stop
                        corners[0, axis, rows, u], corners[1, axis, rows, u] = side.start, stop
        columns = {"input": inputs} if len(self.feature_mask) > 1 else {}
        for axis in range(most):
            columns |= {f"start_{axis}": corners[0, axis], f"stop_{axis}": corners[1, axis]}
        return columns


_ARRAYS = (
    *("effect", "sample_variance", "variance_factor", "variance_freedom", "n_draws", "decision", "population", "status"),
    *("observed_score", "unit_ids"),
)


def _places(layout: Layout, mask: Tensor, shape: tuple[int, ...], spatial: tuple[int, ...]) -> Tensor:
    """Units that are places, stretched to the image's spatial shape: ``(N or 1, 1, *spatial)``."""
    own = layout.spatial(shape)
    placed = layout.channels_first(mask)
    if placed.shape[1] > 1:
        raise ValueError(
            f'units: those of an activation {shape} that differ from channel to channel are no places; give effects of units="token" '
            'or "block"'
        )
    placed = placed.expand(len(placed), 1, *own)
    if layout.axes == "NLC":
        if layout.grid is None:
            raise ValueError(
                f'layout: which grid the {own[0]} tokens lie on is not known; give attribute Layout("NLC", grid=(rows, columns))'
            )
        placed = placed[..., layout.first : layout.first + math.prod(layout.grid)].reshape(len(placed), 1, *layout.grid)
        own = layout.grid
    if len(own) != len(spatial):
        raise ValueError(f"spatial_shape: expected {len(own)} numbers, as many as the units' grid {own} has, got {spatial}")
    for axis, (coarse, fine) in enumerate(zip(own, spatial)):
        placed = placed.index_select(axis + 2, torch.arange(fine, device="cpu") * coarse // fine)
    return placed


def _of_plain_draws(n_draws: Tensor, population: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and degrees of freedom of the variance of draws without replacement; NaN where there are none."""
    n = torch.where(n_draws > 0, n_draws.double(), torch.nan)
    donors = population.reshape(*population.shape, *(1,) * (n.ndim - 2))
    return (1 - n / donors).clamp_min(0) / n, n - 1


@checked(n_examples=integer(0), output_shape=sequence(integer(0)), output_axes=sequence(TEXT))
def target_index(target: TargetType, n_examples: int, output_shape: Sequence[int], output_axes: Sequence[str]) -> Tensor:
    """Per example, the flat index ``(N,)`` of the output that Captum's ``target`` (an int, tuple, tensor or list) picks.

    Raises:
        ValueError: it picks no output, or several.
    """
    count = math.prod(output_shape)
    described = f"{count} outputs"
    if output_axes:
        described += " (" + " x ".join(f"{length} {name}" for length, name in zip(output_shape, output_axes)) + ")"
    if target is None:
        if count != 1:
            raise ValueError(f"target: the forward function has {described} per example; say which one")
        return torch.zeros(n_examples, dtype=torch.int64, device="cpu")
    indices = torch.arange(count, device="cpu").reshape(1, *output_shape).expand(n_examples, *output_shape)
    try:
        chosen: Tensor = select_targets(indices, target)
    except (IndexError, RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise ValueError(
            f"target: {shown(target)} does not pick one of {described} for each of {n_examples} example(s)"
        ) from error
    if chosen.shape != (n_examples,):
        raise ValueError(f"target: {shown(target)} picks {math.prod(chosen.shape[1:])} of {described} per example; pick one")
    return chosen


@checked(status=array_of() | _COLUMN)
def is_hypothesis(status: "Tensor | np.ndarray | pd.Series[Any]") -> np.ndarray:
    """Whether "no effect" is a question of units with this status: of those that were intervened on.

    Args:
        status: :class:`Status` as numbers or as names, of any shape; a tensor, an array, or the column ``status`` of a table.

    Returns:
        Booleans of the same shape: True where ESTIMATED or SCREENED, False where OUTSIDE_SUPPORT, EXCLUDED or ABSENT.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics import Status, is_hypothesis
        >>> is_hypothesis(np.array([Status.SCREENED, Status.OUTSIDE_SUPPORT])), is_hypothesis(np.array(["ESTIMATED", "EXCLUDED"]))
        (array([ True, False]), array([ True, False]))
    """
    values = np.asarray(status)
    if values.dtype.kind in "iubf":
        return np.isin(values, [int(one) for one in _HYPOTHESES])
    return np.isin(values.astype(str), [one.name for one in _HYPOTHESES])


@checked(
    p_values=array_of("real") | _COLUMN,
    correction=one_of(*CORRECTIONS),
    hypotheses=NONE | array_of("boolean") | _COLUMN,
    n_tests=NONE | integer(0),
)
def adjust_p_values(
    p_values: "Tensor | np.ndarray | pd.Series[Any]",
    correction: str | None = "fdr_bh",
    *,
    hypotheses: "Tensor | np.ndarray | pd.Series[Any] | None" = None,
    n_tests: int | None = None,
) -> np.ndarray:
    """P-values of one family of tests, adjusted for their number: those of at most ``alpha`` pass at the error rate ``alpha``.

    Args:
        p_values: of any shape, all one family; NaN is no test. A tensor, an array, or a column of a table.
        correction: ``"fdr_bh"`` (Benjamini and Hochberg 1995) or ``"fdr_by"`` (Benjamini and Yekutieli 2001, under any dependence):
            the expected share of false ones among those that pass; ``"holm"`` (Holm 1979) or ``"bonferroni"``: the chance of any
            false one; ``None``: as they are.
        hypotheses: booleans of the same shape, which of them are tests at all (:func:`is_hypothesis`); all by default.
        n_tests: how many tests there are, where ``p_values`` are only the smallest of them. The adjusted ones are right up to the
            smallest p-value that was left out.

    Returns:
        Float64 of the same shape, NaN where there is no test.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics import adjust_p_values
        >>> adjust_p_values(np.array([0.01, 1.0, 0.04, np.nan]), hypotheses=np.array([True, False, True, True]))
        array([0.02,  nan, 0.04,  nan])
    """
    p = np.asarray(p_values, dtype=np.float64)
    tests = ~np.isnan(p) if hypotheses is None else ~np.isnan(p) & np.asarray(hypotheses, dtype=bool)
    adjusted = np.full(p.shape, np.nan)
    values = p[tests]
    if ((values < 0) | (values > 1)).any():
        raise ValueError(f"p_values: expected numbers from 0 to 1, got {values[(values < 0) | (values > 1)][0]}")
    count = len(values)
    total = count if n_tests is None else n_tests
    if not count:
        return adjusted
    if correction in ("fdr_bh", "fdr_by"):
        # Linear in the number of tests; under dependence, that times the harmonic sum.
        values = scipy_stats.false_discovery_control(values, method="bh") * (total / count)
        values = values * (1 / np.arange(1, total + 1)).sum() if correction == "fdr_by" else values
    elif correction == "holm":
        order = np.argsort(values, kind="stable")
        values[order] = np.maximum.accumulate(values[order] * (total - np.arange(count)))
    elif correction == "bonferroni":
        values = values * total
    adjusted[tests] = np.minimum(values, 1)
    return adjusted


@checked(
    variance=array_of("real", "(U,)", (1, 1)),
    freedom=array_of("real", "(U,)", (1, 1)),
    prior_degrees_of_freedom=number(above=0),
)
def moderate(
    variance: np.ndarray, freedom: np.ndarray, prior_degrees_of_freedom: float = PRIOR_DEGREES_OF_FREEDOM
) -> tuple[np.ndarray, np.ndarray]:
    """Shrink sample variances toward their common scale (Smyth 2004).

    Args:
        variance: ``(U,)`` sample variances of one example's and output's units; NaN where they cannot be seen.
        freedom: ``(U,)`` their degrees of freedom; 0 where they cannot be seen, NaN for units without draws.
        prior_degrees_of_freedom: weight of the common scale.

    Returns:
        Moderated variances ``(U,)`` and their degrees of freedom ``(U,)``. The variances are infinite where no unit has a
        spread to learn the scale from, and NaN for units without draws.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics import moderate
        >>> moderate(np.array([0.0, 4.0]), np.array([4, 4]), prior_degrees_of_freedom=4)[0]
        array([2., 4.])
    """
    if len(freedom) != len(variance):
        raise ValueError(f"freedom: expected {len(variance)}, one per variance, got {len(freedom)}")
    weight = np.nan_to_num(np.asarray(freedom, dtype=np.float64))
    own = np.where(weight > 0, np.nan_to_num(variance), 0.0)
    positive = own[own > 0]
    d0 = prior_degrees_of_freedom
    if len(positive) == 0:
        moderated = np.full(len(own), np.inf)
    else:
        scale = math.exp(float(np.mean(np.log(positive))))
        moderated = (d0 * scale + weight * own) / (d0 + weight)
    return np.where(np.isnan(freedom), np.nan, moderated), d0 + np.asarray(freedom, dtype=np.float64)
