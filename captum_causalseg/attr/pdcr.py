"""The paper's protocol to the letter."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import FUNCTION, checked, instance, tensor_of
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.effort import EFFORT, Effort
from captum_causalseg.attr.estimate import answer, estimate
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.attr.parts import InParts
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.target.scorer import as_scorer

__all__ = ["PdCR"]


class PdCR(InParts, PerturbationAttribution):
    r"""Perturbation-driven causal reasoning exactly as published (arXiv 2602.20511), to reproduce and compare.

    For new work use :class:`~captum_causalseg.AverageTreatmentEffect`. This class keeps the protocol's constants and quirks:

    - 8 x 8 blocks, three screening draws, fifty further draws, threshold 0.0002 in Dice (0.02 of 100 points);
    - donors are drawn **with** replacement; the screening draws are forgotten and the fine estimate uses new ones;
    - a block none of whose screening draws moves the score by the threshold has effect 0, and so has one whose **fine estimate**
      is smaller than the threshold;
    - blocks that touch the RoI are not intervened on, nor are incomplete blocks at the edges, where no patch fits;
    - the score is the hard Dice of the output thresholded at > 0.5 **without activation**, and empty against empty is **0**.

    **Sign and unit.** Attributions and statistics have the library's: ``M(x) - E_b M(do(x[p] := b))``, in Dice of [0, 1], positive for
    what supports the segmentation. The paper's heat map is ``E_b[M_b - M0]`` in Dice points of 100, -100 times as much:
    :meth:`to_paper_heatmap`. What the paper calls *positive* blocks are the harmful ones.

    The statistics hold the standard error of the fine draws also where the second threshold has set the effect to 0.

    Args:
        forward_func: a :class:`~captum_causalseg.SegmentationTarget`, of which the model, RoI and reference are used and the score
            is set as above; or any other forward function, whose score is then its own affair.
        baselines: a default for ``attribute``'s argument of this name.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank, PdCR, SegmentationTarget, regions
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 9, padding=4), torch.nn.Sigmoid())
        >>> image, label = torch.rand(1, 1, 64, 64), torch.rand(64, 64) > 0.5
        >>> target = SegmentationTarget(model, roi=regions.box((64, 64), start=24, size=16), reference=label)
        >>> attr = PdCR(target).attribute(image, baselines=PatchBank(torch.rand(100, 1, 8, 8)), n_draws=5)
        >>> PdCR.to_paper_heatmap(attr).shape
        (64, 64)
    """

    @checked(forward_func=FUNCTION)
    def __init__(self, forward_func: Callable[..., Any], baselines: Baselines = None) -> None:
        as_published = as_scorer(forward_func).with_scoring("dice", activation="none", threshold=0.5, empty_score=0.0)
        super().__init__(as_published.function)
        self.baselines = baselines

    @classmethod
    def get_name(cls) -> str:
        """The name in progress bars; Captum would split it at its capitals."""
        return "PdCR"

    @log_usage(part_of_slo=True)
    @checked(EFFORT)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        block_size: int | tuple[int, ...] = 8,
        n_draws: int = 50,
        n_screening_draws: int = 3,
        screening_threshold: float = 0.0002,
        perturbations_per_eval: int = 16,
        seed: int | Sequence[int] = 0,
        show_progress: bool = False,
        return_statistics: bool = False,
    ) -> Any:
        """Run the protocol; arguments and results are those of :meth:`AverageTreatmentEffect.attribute`.

        Only ``n_draws`` differs: it counts the fine draws, which come on top of the screening draws.

        Example:
            >>> from captum_causalseg import PdCR
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
            >>> pdcr = PdCR(case.target())
            >>> _, stats = pdcr.attribute(case.images, case.donors, n_draws=20, return_statistics=True)
            >>> stats.settings["sampling"]
            'paper'
        """
        options = Options(
            name=self.get_name(),
            forward_func=self.forward_func,
            inputs=inputs,
            baselines=self.baselines if baselines is None else baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=InputUnits(block_size=block_size, exclude="roi", whole_blocks_only=True),
            effort=Effort(
                n_draws=n_draws,
                n_screening_draws=n_screening_draws,
                screening_threshold=screening_threshold,
                seed=seed,
                paper=True,
            ),
            execution=Execution(perturbations_per_eval=perturbations_per_eval, part=self.part),
            show_progress=show_progress,
            return_statistics=return_statistics,
        )
        problem, statistics = estimate(options)
        small = (statistics.effect.abs() < screening_threshold) | (statistics.status == Status.SCREENED)
        statistics.effect = torch.where(small, torch.zeros_like(statistics.effect), statistics.effect)
        return answer(options, problem, statistics)

    @staticmethod
    @checked(
        result=instance(TreatmentEffectStatistics) | tensor_of("real", "(1, C, *spatial)", (3, math.inf), may_be_empty=False)
    )
    def to_paper_heatmap(result: Tensor | TreatmentEffectStatistics) -> np.ndarray:
        """The paper's array ``(H, W)`` (``(H, W, D)`` in 3D): ``E_b[M_b - M0]`` in Dice points of 100, 0 where nothing was found.

        Args:
            result: an attribution of one example ``(1, C, *spatial)``, or statistics of one example and one output.

        Example:
            >>> import torch
            >>> from captum_causalseg import PdCR
            >>> effects = torch.zeros(1, 1, 2, 2)
            >>> effects[..., 0, 0] = 0.25  # supports: without it, the Dice falls by 25 points of 100
            >>> PdCR.to_paper_heatmap(effects)
            array([[-25.,   0.],
                   [  0.,   0.]])
        """
        effects = result.to_map("effect") if isinstance(result, TreatmentEffectStatistics) else result
        if not isinstance(effects, Tensor) or effects.ndim < 3 or effects.shape[0] != 1:
            raise ValueError("result: expected an attribution (1, C, *spatial) of one example")
        heatmap: np.ndarray = -100 * effects[0, 0].cpu().double().nan_to_num(0.0).numpy()
        return heatmap + 0.0  # no negative zeros
