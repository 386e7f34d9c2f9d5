"""Is an attribution faithful to the model? Scores of any attribution map, from what the model does when units are replaced.

A map is faithful if it says what the model does when the image is changed. Whether it lies on an object (pointing game, overlap with a mask) is
another question, about the model and the picture, and no such score is found here. Units are replaced by natural donors, which should
be **held out**: not those that a treatment effect was estimated with.

Supporting and harming units are ranked apart: removing what supports the segmentation should lower the score of the region of
interest, removing what harms it should raise it. A map without a negative value says nothing of harm, and gets NaN there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from captum.metrics import infidelity as captum_infidelity
from scipy import integrate
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import (
    BOOLEAN,
    FRACTION,
    FUNCTION,
    NONE,
    SEED,
    TEXT,
    check_all,
    checked,
    integer,
    one_of,
    sequence,
    shown,
)
from captum_causalseg._state import undisturbed
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.evaluation.judging_cost import MEASUREMENTS, SOFT, Effort, forecast
from captum_causalseg.evaluation.replacements import Attributions, Replacements
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.target.scorer import as_scorer

__all__ = ["METRICS", "Curve", "Faithfulness", "FaithfulnessMetric", "register"]

Order = Literal["supporting", "harming"]
Kind = Literal["deletion", "insertion", "retention"]
_ORDER = one_of("supporting", "harming")


@dataclass(frozen=True)
class Curve:
    """The score of the region of interest while units are removed or restored one after the other.

    Args:
        fraction: ``(N, S)`` of the units, from 0 to 1; denser at the beginning, where a good ranking shows.
        score: ``(N, S)``, mean over draws of donors.
        standard_error: ``(N, S)``, of that mean over the draws; NaN with one draw.
        area: ``(N,)`` under the curve (trapezoids), in the score's own units. NaN where the map says nothing of this kind.

    Example:
        >>> from captum_causalseg.evaluation import Faithfulness
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
        >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
        >>> curve = faithfulness.deletion(case.effects_of_map())  # the most supporting units first
        >>> wrong = faithfulness.deletion(-case.effects_of_map())  # the harming ones first
        >>> curve.fraction[0, [0, -1]].tolist(), bool(curve.area[0] < wrong.area[0])
        ([0.0, 1.0], True)
    """

    fraction: np.ndarray
    score: np.ndarray
    standard_error: np.ndarray
    area: np.ndarray


class Faithfulness:
    """Scores attribution maps of one batch of images by replacing units with natural donors.

    All maps get the same donors, subsets, and orders of ties, so that they can be compared.

    Args:
        forward_func: what the maps explain: a :class:`~captum_causalseg.SegmentationTarget` or any forward function with one score
            per example and output.
        inputs: the explained images ``(N, C, *spatial)``, or a tuple of inputs.
        baselines: donors, as in :meth:`AverageTreatmentEffect.attribute`; held out from those that effects were estimated with.
        target: which output the maps explain, as in ``attribute``.
        additional_forward_args: further arguments of the forward function.
        feature_mask: units as in ``attribute``.
        block_size: or blocks.
        exclude: units that are never replaced, as in ``attribute``: by default those that touch the region of interest.
        support: ``"auto"``: units that cannot reach the region of interest through the model, as ``attribute`` finds them out, are
            left alone as well. Nothing would come of replacing them, and curves and subsets would be of the image's size: the more
            of it lies out of reach, the smaller the area over a curve of deletion. What a map says of such units is not looked at.
            ``None``: every unit, no forwards are spent on that.
        n_draws: sets of donors that curves and leakage are averaged over.
        n_steps: points of a curve after the first.
        n_subsets: random subsets for the correlations and infidelity.
        subset_share: share of the units in such a subset, in (0, 1).
        leakage_share: share of the units, the most supporting ones, whose removal :meth:`leakage` looks at, in (0, 1).
        perturbations_per_eval: images per example in one forward pass.
        seed: of the donors, subsets and ties.

    Raises:
        TypeError, ValueError: as ``attribute`` raises them.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.evaluation import Faithfulness
        >>> model, image = torch.nn.Conv2d(1, 2, 9, padding=4), torch.rand(1, 1, 32, 32)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8), metric="soft_dice")
        >>> bank, held_out = PatchBank(torch.rand(10, 1, 32, 32)), PatchBank(torch.rand(10, 1, 32, 32))
        >>> attribution = AverageTreatmentEffect(target).attribute(image, bank, target=1, block_size=4, n_draws=10)
        >>> table = Faithfulness(target, image, held_out, target=1, block_size=4).evaluate(attribution)
        >>> table.columns.tolist()
        ['example', 'metric', 'value', 'score_direction', 'source', 'why']
    """

    @checked(
        forward_func=FUNCTION,
        n_draws=integer(1),
        n_steps=integer(1),
        n_subsets=integer(3),
        subset_share=FRACTION,
        leakage_share=FRACTION,
        perturbations_per_eval=integer(1),
        seed=SEED,
        support=one_of("auto", None),
    )
    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Any = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        *,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        exclude: Exclude = "roi",
        n_draws: int = 4,
        n_steps: int = 20,
        n_subsets: int = 100,
        subset_share: float = 0.1,
        leakage_share: float = 0.1,
        perturbations_per_eval: int = 16,
        seed: int = 0,
        support: Literal["auto"] | None = "auto",
    ) -> None:
        self._twin: Faithfulness | None = None
        self._options: dict[str, Any] = {
            "inputs": inputs,
            "baselines": baselines,
            "target": target,
            "additional_forward_args": additional_forward_args,
            "feature_mask": feature_mask,
            "block_size": block_size,
            "exclude": exclude,
            "n_draws": n_draws,
            "n_steps": n_steps,
            "n_subsets": n_subsets,
            "subset_share": subset_share,
            "leakage_share": leakage_share,
            "perturbations_per_eval": perturbations_per_eval,
            "seed": seed,
            "support": support,
        }
        self._forward_func = forward_func
        self._world = Replacements(
            Options(
                forward_func=forward_func,
                inputs=inputs,
                baselines=baselines,
                target=target,
                additional_forward_args=additional_forward_args,
                units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude),
                execution=Execution(perturbations_per_eval=perturbations_per_eval),
            ),
            n_draws=n_draws,
            seed=seed,
            support=support,
        )
        self.seed = seed
        self.n_draws, self.n_steps, self.n_subsets = n_draws, n_steps, n_subsets
        self._effort = Effort(n_examples=self._world.n_examples, n_draws=n_draws, n_steps=n_steps, n_subsets=n_subsets)
        self._subset_share, self._leakage_share = subset_share, leakage_share
        self._curves: dict[tuple[str, str, bytes], Curve] = {}

    @property
    def n_examples(self) -> int:
        """The batch size."""
        return self._world.n_examples

    @property
    def n_forwards(self) -> int:
        """Images that went through the model so far."""
        twin = 0 if self._twin is None or self._twin is self else self._twin.n_forwards
        return self._world.n_forwards + twin

    @property
    def soft(self) -> "Faithfulness":
        """The same judge by the differentiable twin of the target's metric (soft Dice for Dice): hard ones cannot move where the model is sure.

        Itself, where the metric is its own twin. ``"irof, soft"``, and likewise of every other metric, is the name of what it finds.

        Raises:
            ValueError: the metric has no twin.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget, regions
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> model, image = torch.nn.Conv2d(1, 2, 9, padding=4), torch.rand(1, 1, 32, 32)
            >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8))
            >>> judge = Faithfulness(target, image, torch.rand(4, 1, 32, 32), target=1, block_size=8)
            >>> judge.evaluate(image, ["irof", "irof, soft"])["metric"].tolist(), bool(judge.soft.observed[0] < 1)
            (['irof', 'irof, soft'], True)
        """
        if self._twin is None:
            scorer = as_scorer(self._forward_func)
            if not scorer.knows_model:
                raise ValueError("metrics: a plain function has no soft version; give a SegmentationTarget")
            twin = scorer.surrogate().function
            same = scorer.metric_settings().get("metric") == as_scorer(twin).metric_settings().get("metric")
            self._twin = self if same else Faithfulness(twin, **self._options)
        return self._twin

    @checked(metrics=NONE | sequence(TEXT), n_maps=integer(1))
    def forecast(self, metrics: list[str] | None = None, *, n_maps: int = 1) -> int:
        """Images that will go through the model at most to judge so many maps by these metrics; what maps share counts once.

        An image that several metrics ask for is scored once, so it may be fewer. Metrics of your own count only with ``measurements`` (:func:`register`).

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> before, expected = faithfulness.n_forwards, faithfulness.forecast()
            >>> table = faithfulness.evaluate(case.effects_of_map())
            >>> expected, 0 < faithfulness.n_forwards - before <= expected
            (441, True)
        """
        chosen = (metric_of(name).measurements or () for name in metric_names(metrics))
        return forecast((one for measurements in chosen for one in measurements), self._effort, n_maps)

    @property
    def replacements(self) -> Replacements:
        """Images with units replaced, and their scores: what metrics are computed from."""
        return self._world

    @property
    def replaceable(self) -> np.ndarray:
        """``(N, U)``, boolean: units that are replaced; those that touch the region of interest or cannot reach it are not."""
        return self._world.replaceable

    @property
    def roi(self) -> Tensor | None:
        """``(N, *spatial)``: the region of interest of the explained output; ``None`` without one."""
        return self._world.roi

    @property
    def observed(self) -> np.ndarray:
        """``(N,)``: the score of the images as they are."""
        return self._world.observed

    def unit_attributions(self, attributions: Attributions) -> np.ndarray:
        """``(N, U)``: the mean of a map over the elements of each unit; units in ascending order of their ids.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> units = faithfulness.unit_attributions(case.effects_of_map())
            >>> units.shape, bool((units[0] == case.effects.nan_to_num().float().double().numpy()).all())
            ((1, 16), True)
        """
        return self._world.unit_attributions(attributions)

    @checked(metrics=NONE | sequence(TEXT))
    def evaluate(self, attributions: Attributions, metrics: list[str] | None = None) -> pd.DataFrame:
        """Every metric of :data:`METRICS` (or those named) of a map: one row per example and metric.

        Columns: ``example``, ``metric``, ``value``, ``score_direction`` (``"higher"`` or ``"lower"`` is better), ``source`` and ``why``: a metric that has nothing
        to say about this map is NaN, and ``why`` says the reason; elsewhere it is empty.

        Args:
            attributions: like ``inputs``; one channel may stand for all.
            metrics: names from :data:`METRICS` and :data:`ON_REQUEST`; with ``", soft"`` behind it, by :attr:`soft`.
        """
        rows = []
        for name in metric_names(metrics):
            metric = metric_of(name)
            for example, value in enumerate(metric.function(self, attributions)):
                why = metric.undefined if math.isnan(value) else ""
                rows.append((example, name, float(value), metric.score_direction, metric.source, why))
        return pd.DataFrame(rows, columns=["example", "metric", "value", "score_direction", "source", "why"])

    @checked(order=_ORDER)
    def deletion(self, attributions: Attributions, order: Order = "supporting") -> Curve:
        """The score while units are replaced by donors, those that the map ranks first in this order first.

        ``"supporting"``: from the largest attribution down; a faithful map makes the score fall at once, so a **smaller** area is
        better. ``"harming"``: from the most negative up; the score should rise, and a **larger** area is better.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> right, wrong = (faithfulness.deletion(sign * case.effects_of_map()) for sign in (1, -1))
            >>> bool(right.area[0] < wrong.area[0])  # what supports goes first, so the score falls sooner
            True
        """
        return self._curve(attributions, order, "deletion")

    @checked(order=_ORDER)
    def insertion(self, attributions: Attributions, order: Order = "supporting") -> Curve:
        """The score while units are put back into an image in which all have been replaced.

        ``"supporting"``: from the largest attribution down; **larger** area is better. ``"harming"``: from the most negative up; **smaller** is
        better.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> right, wrong = (faithfulness.insertion(sign * case.effects_of_map()) for sign in (1, -1))
            >>> bool(right.area[0] > wrong.area[0])
            True
        """
        return self._curve(attributions, order, "insertion")

    def retention(self, attributions: Attributions) -> Curve:
        """The score when only the highest units are left as they are, and all others are replaced: the paper's attribution score.

        In equal steps from no unit to all; units that are never replaced, such as those of the region of interest, are there throughout. **Larger** is better. The same images as of
        :meth:`insertion`, by share of the units kept, not denser at the beginning.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8, n_steps=4)
            >>> right, wrong = (faithfulness.retention(sign * case.effects_of_map()) for sign in (1, -1))
            >>> bool(right.area[0] > wrong.area[0]), bool(right.score[0, -1] == faithfulness.observed[0])
            (True, True)
        """
        return self._curve(attributions, "supporting", "retention")

    def irof(self, attributions: Attributions) -> np.ndarray:
        """Iterative removal of features ``(N,)``: area over the deletion curve relative to the observed score, larger is better.

        ``1 - mean over the removed fraction of score / observed score``. NaN where the observed score is 0.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> right, wrong = (faithfulness.irof(sign * case.effects_of_map()) for sign in (1, -1))
            >>> bool(right[0] > wrong[0])
            True
        """
        observed = self._world.observed
        relative: np.ndarray = 1 - self.deletion(attributions).area / np.where(observed == 0, np.nan, observed)
        return relative

    @checked(ranks=BOOLEAN)
    def correlation(self, attributions: Attributions, *, ranks: bool = False) -> np.ndarray:
        """How well summed attributions of random subsets predict what replacing these does to the score, ``(N,)``, in [-1, 1].

        Args:
            attributions: the map.
            ranks: Spearman's correlation instead of Pearson's.

        Returns:
            NaN where the sums or the changes are all the same.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> faithfulness.correlation(case.effects_of_map()).round(1).tolist()
            [0.8]
            >>> faithfulness.correlation(-case.effects_of_map()).round(1).tolist()
            [-0.8]
        """
        units = self.unit_attributions(attributions)
        found = np.full(self.n_examples, np.nan)
        for n, changes in enumerate(self._subset_changes):
            claimed = self._subsets[n] @ units[n]
            if np.ptp(claimed) > 0 and np.ptp(changes) > 0:
                found[n] = (scipy_stats.spearmanr if ranks else scipy_stats.pearsonr)(claimed, changes).statistic
        return found

    def infidelity(self, attributions: Attributions) -> np.ndarray:
        """Captum's ``infidelity`` ``(N,)`` with random subsets of units replaced by donors as perturbations, smaller is better.

        The perturbation is 1 where a unit is replaced, and its product with the map is the sum of the units' attributions; ``normalize=True``, so that neither the map's scale nor its sign counts. In squared units of
        the score. NaN where no subset changes the score: then every map would be without a fault.

        Example:
            >>> import torch
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> truth, nothing = case.effects_of_map(), torch.ones_like(case.images)  # the same everywhere
            >>> bool(faithfulness.infidelity(truth)[0] < faithfulness.infidelity(nothing)[0])
            True
        """
        world, count = self._world, self.n_subsets
        units = torch.from_numpy(np.where(self.replaceable, self.unit_attributions(attributions), 0))
        whole, number = torch.ones_like(units), torch.arange(self.n_examples, device="cpu").double()[:, None]
        beside = torch.cat([number, torch.zeros_like(number)], 1)  # of which example, and with donors of which draw

        # Captum's formula on units in the place of pixels: what their replacement does is known, no image is run for a map.
        def perturb(_: Any) -> tuple[Any, Any]:
            replaced = torch.from_numpy(self._subsets.reshape(-1, units.shape[1]).astype(np.float64))
            rows = beside.repeat_interleave(count, 0)
            drawn = torch.stack([rows[:, 0], (torch.arange(len(rows), device="cpu") % count % self.n_draws).double()], 1)
            return (replaced, torch.zeros_like(rows)), (1 - replaced, drawn)

        def score(kept: Tensor, which: Tensor) -> Tensor:
            examples, draws = which.long().numpy().T
            changed = (kept == 0).numpy()
            scores = np.where(changed.any(1), 0.0, world.observed[examples])
            scores[changed.any(1)] = world.scores(*(part[changed.any(1)] for part in (examples, draws, changed)))
            return torch.from_numpy(scores)

        values = captum_infidelity(
            score,
            perturb,
            (whole, beside),
            (units, torch.zeros_like(beside)),
            n_perturb_samples=count,
            normalize=True,
        )
        found: np.ndarray = values.double().cpu().numpy().reshape(self.n_examples)
        found[(self._subset_changes == 0).all(1)] = np.nan
        return found

    def leakage(self, attributions: Attributions) -> np.ndarray:
        """How much of what the most supporting units do they do elsewhere, ``(N,)``, in [0, 1]; smaller is more specific.

        ``|change outside| / (|change outside| + |change inside|)`` when the strongest ``leakage_share`` of the units are replaced,
        the mean over draws. "Outside" is the same score over all pixels but the regions of interest and the replaced units.
        NaN without a :class:`~captum_causalseg.SegmentationTarget` that has a region of interest, and where nothing changes.

        Example:
            >>> from captum_causalseg.evaluation import Faithfulness
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
            >>> faithfulness = Faithfulness(case.target(), case.images, case.donors, block_size=8)
            >>> found = faithfulness.leakage(case.effects_of_map())
            >>> found.shape, bool(0 <= found[0] <= 1)
            ((1,), True)
        """
        world, everyone = self._world, np.arange(self.n_examples)
        if world.rois is None:
            return np.full(self.n_examples, np.nan)
        found = np.full((self.n_draws, self.n_examples), np.nan)
        units = self.unit_attributions(attributions)

        def logits_of(images: Sequence[Tensor]) -> tuple[Any, tuple[Any, ...]]:
            given = (*images, *world.arguments)
            with undisturbed(world.scorer.function):
                logits = world.scorer.logits(*world.scorer.model_inputs(*given))
            world.count(self.n_examples)
            return logits, given

        unchanged = logits_of(world.tensors)
        for draw in range(self.n_draws):
            replaced = np.zeros(units.shape, dtype=bool)
            for n, ranked in enumerate(self._ranked(units, "supporting", draw)):
                replaced[n, ranked[: max(1, round(self._leakage_share * len(ranked)))]] = True
            outside = ~world.rois.any(1).cpu() & ~world.covered(replaced)
            inside, elsewhere = [], []
            intervened = logits_of(world.images(everyone, np.full(self.n_examples, draw), replaced))
            for logits, given in (unchanged, intervened):
                inside.append(world.pick(world.scorer.score(logits, *given), everyone))
                scores = world.scorer.score(logits, *given, roi=outside[:, None].to(logits.device))
                elsewhere.append(world.pick_class(scores))
            change, leak = np.abs(inside[1] - inside[0]), np.abs(elsewhere[1] - elsewhere[0])
            known = (change + leak > 0) & outside.flatten(1).any(1).numpy()
            found[draw, known] = (leak / np.where(known, change + leak, 1))[known]
        count = (~np.isnan(found)).sum(0)
        mean: np.ndarray = np.where(count > 0, np.nansum(found, 0) / np.maximum(count, 1), np.nan)
        return mean

    def _curve(self, attributions: Attributions, order: Order, kind: Kind) -> Curve:
        units = self.unit_attributions(attributions)
        key = kind, order, units.tobytes()
        if key not in self._curves:
            self._curves[key] = self._measured_curve(units, order, kind)
        return self._curves[key]

    def _measured_curve(self, units: np.ndarray, order: Order, kind: Kind) -> Curve:
        fraction = np.linspace(0, 1, self.n_steps + 1) ** (1 if kind == "retention" else 2)
        shape = self.n_draws, self.n_examples, len(fraction)
        draws, examples = (axis.ravel() for axis in np.indices(shape)[:2])
        replaced = np.zeros((*shape, units.shape[1]), dtype=bool)
        reached = np.zeros((self.n_examples, len(fraction)))
        for draw in range(self.n_draws):
            for n, ranked in enumerate(self._ranked(units, order, draw)):
                counts = np.round(fraction * len(ranked)).astype(int)
                reached[n] = counts / max(len(ranked), 1)  # without any, nothing is replaced at any step
                for step, count in enumerate(counts):
                    replaced[draw, n, step, ranked[:count] if kind == "deletion" else ranked[count:]] = True
        scores = self._world.scores(examples, draws, replaced.reshape(-1, units.shape[1])).reshape(shape)
        mean, error = scores.mean(0), np.full(shape[1:], np.nan)
        if self.n_draws > 1:
            error = scores.std(0, ddof=1) / np.sqrt(self.n_draws)
        sign = 1 if order == "supporting" else -1
        says = (sign * np.where(self.replaceable, units, 0) > 0).any(1)
        return Curve(
            fraction=reached,
            score=mean,
            standard_error=error,
            area=np.where(says, integrate.trapezoid(mean, reached, axis=1), np.nan),
        )

    def _ranked(self, units: np.ndarray, order: Order, draw: int) -> Iterator[np.ndarray]:
        """Per example, its replaceable units in this order; equal ones in a random order, the same for every map."""
        return self._world.ranked(units, -1 if order == "supporting" else 1, self._ties[draw])

    @cached_property
    def _ties(self) -> np.ndarray:
        """``(D, U)``: random numbers that order equal units."""
        return self._world.random_numbers(2, self.n_draws)

    @cached_property
    def _subsets(self) -> np.ndarray:
        """``(N, S, U)``, boolean: random subsets of the replaceable units, alike for examples with the same ones."""
        keys = np.where(self.replaceable[:, None], self._world.random_numbers(1, self.n_subsets), np.inf)
        sizes: np.ndarray = np.maximum(1, np.round(self._subset_share * self.replaceable.sum(1)))
        chosen: np.ndarray = keys.argsort(2).argsort(2) < sizes[:, None, None]
        return chosen

    @cached_property
    def _subset_changes(self) -> np.ndarray:
        """``(N, S)``: observed score minus the score with the subset replaced; the same for every map."""
        examples, subsets = (axis.ravel() for axis in np.indices(self._subsets.shape[:2]))
        scores = self._world.scores(examples, subsets % self.n_draws, self._subsets.reshape(len(examples), -1))
        changes: np.ndarray = self._world.observed[:, None] - scores.reshape(self._subsets.shape[:2])
        return changes


@dataclass(frozen=True)
class FaithfulnessMetric:
    """A named score of attribution maps.

    Args:
        name: its name in tables.
        function: ``(faithfulness, attributions) -> (N,)``.
        score_direction: whether ``"higher"`` or ``"lower"`` is better.
        source: where it comes from.
        measurements: what it is computed from, names in :data:`captum_causalseg.evaluation.judging_cost.MEASUREMENTS`: the cost is known
            from these. ``None`` where it is not known.
        undefined: when it is NaN, in words.

    Example:
        >>> from captum_causalseg.evaluation.faithfulness import METRICS
        >>> metric = METRICS["infidelity"]
        >>> metric.score_direction, metric.source
        ('lower', 'Yeh et al. 2019 (arXiv 1901.09392), captum.metrics.infidelity')
    """

    name: str
    function: Callable[[Faithfulness, Attributions], np.ndarray]
    score_direction: Literal["higher", "lower"]
    source: str
    measurements: tuple[str, ...] | None = None
    undefined: str = "it is not defined for this map"

    def __post_init__(self) -> None:
        check_all(
            vars(self),
            name=TEXT,
            function=FUNCTION,
            score_direction=one_of("higher", "lower"),
            source=TEXT,
            measurements=NONE | sequence(one_of(*MEASUREMENTS, *(f"{name}{SOFT}" for name in MEASUREMENTS))),
            undefined=TEXT,
        )


METRICS: dict[str, FaithfulnessMetric] = {}
"""By name, what maps are judged by unless something else is asked; :func:`register` adds to it."""
ON_REQUEST: dict[str, FaithfulnessMetric] = {}
"""By name, further metrics, which cost more: judged by only where they are named."""


def register(
    name: str,
    function: Callable[[Faithfulness, Attributions], np.ndarray],
    score_direction: Literal["higher", "lower"],
    source: str,
    measurements: Sequence[str] | None = None,
    *,
    on_request: bool = False,
    undefined: str = "it is not defined for this map",
) -> None:
    """Add your own metric to the table :data:`METRICS`; its name must not be taken.

    Args:
        name, function, score_direction, source, measurements: as of :class:`FaithfulnessMetric`.
        on_request: add it to :data:`ON_REQUEST` instead.
        undefined: when it is NaN, in words.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.evaluation import faithfulness
        >>> def share_replaceable(judge, attributions):
        ...     units = np.abs(judge.unit_attributions(attributions))
        ...     return (units * judge.replaceable).sum(1) / units.sum(1)
        >>> faithfulness.register("share replaceable", share_replaceable, "higher", "mine")
        >>> faithfulness.METRICS.pop("share replaceable").score_direction
        'higher'
    """
    needs = None if measurements is None else tuple(measurements)
    metric = FaithfulnessMetric(
        name, function, score_direction=score_direction, source=source, measurements=needs, undefined=undefined
    )
    if name in METRICS or name in ON_REQUEST:
        raise ValueError(f"name: {name!r} is taken")
    (ON_REQUEST if on_request else METRICS)[name] = metric


def metric_names(metrics: Sequence[str] | None) -> list[str]:
    """The metrics asked for, all by default; refused where one is not in the table."""
    names = list(METRICS) if metrics is None else list(metrics)
    known = METRICS | ON_REQUEST
    unknown = [name for name in names if name not in known and name.removesuffix(SOFT) not in known]
    if unknown:
        raise ValueError(f"metrics: expected names from {list(known)}, got {shown(unknown)}")
    return names


def metric_of(name: str) -> FaithfulnessMetric:
    """A metric by its name, as of :func:`metric_names`."""
    known = METRICS | ON_REQUEST
    if name in known:
        return known[name]
    hard = known[name.removesuffix(SOFT)]
    needs = None if hard.measurements is None else tuple(f"{one}{SOFT}" for one in hard.measurements)
    return replace(hard, name=name, function=partial(_softly, hard.function), measurements=needs)


def without_known_cost(metrics: Sequence[str]) -> list[str]:
    """Those of these metrics that no forecast counts: whoever registered them did not say what they are computed from.

    Example:
        >>> from captum_causalseg.evaluation.faithfulness import without_known_cost
        >>> without_known_cost(["irof", "leakage"])
        []
    """
    return [name for name in metrics if metric_of(name).measurements is None]


def _softly(
    function: Callable[[Faithfulness, Attributions], np.ndarray], judge: Faithfulness, attributions: Attributions
) -> np.ndarray:
    return function(judge.soft, attributions)


_CURVES = "Petsiuk et al. 2018 (arXiv 1806.07421), with donors and signs"
_SUBSETS = "Bhatt et al. 2020 (arXiv 2005.00631)"
_INFIDELITY = "Yeh et al. 2019 (arXiv 1901.09392), captum.metrics.infidelity"
_AREAS: tuple[tuple[str, Callable[[Faithfulness, Attributions], np.ndarray], Literal["higher", "lower"]], ...] = (
    ("deletion, supporting", lambda f, a: f.deletion(a, "supporting").area, "lower"),
    ("deletion, harming", lambda f, a: f.deletion(a, "harming").area, "higher"),
    ("insertion, supporting", lambda f, a: f.insertion(a, "supporting").area, "higher"),
    ("insertion, harming", lambda f, a: f.insertion(a, "harming").area, "lower"),
)
for _name, _area, _direction in _AREAS:
    _side = "above" if _name.endswith("supporting") else "below"
    register(_name, _area, _direction, source=_CURVES, measurements=(_name,), undefined=f"the map has no value {_side} 0")
register(
    "irof",
    lambda f, a: f.irof(a),
    "higher",
    source="Rieger and Hansen 2020 (arXiv 2003.08747)",
    measurements=("deletion, supporting",),
    undefined="the map has no value above 0, or the observed score is 0",
)
_SAME = "the sums of the map, or the changes of the score, are the same for all sets of parts"
register(
    "faithfulness correlation",
    lambda f, a: f.correlation(a),
    "higher",
    source=_SUBSETS,
    measurements=("subsets",),
    undefined=_SAME,
)
register(
    "mu fidelity",
    lambda f, a: f.correlation(a, ranks=True),
    "higher",
    source=f"{_SUBSETS}, by ranks",
    measurements=("subsets",),
    undefined=_SAME,
)
register(
    "infidelity",
    lambda f, a: f.infidelity(a),
    "lower",
    source=_INFIDELITY,
    measurements=("subsets",),
    undefined="no set of parts changes the score",
)
register(
    "leakage",
    lambda f, a: f.leakage(a),
    "lower",
    source="this library",
    measurements=("leakage",),
    undefined="nothing changes when the parts are replaced, or there is no region of interest",
)
