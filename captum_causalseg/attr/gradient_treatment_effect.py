"""The backpropagated treatment effect of regions of the input."""

from collections.abc import Callable
from typing import Any, Literal, overload

from torch import Tensor

from captum_causalseg._captum import GradientAttribution, TargetType, log_usage
from captum_causalseg._checks import BOOLEAN, FUNCTION, checked, integer
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.gradient import backpropagate
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target.scorer import as_scorer

__all__ = ["GradientTreatmentEffect"]


class GradientTreatmentEffect(GradientAttribution):
    r"""The first-order estimate of every unit's treatment effect, from one backward pass instead of many interventions.

    Where :class:`~captum_causalseg.AverageTreatmentEffect` replaces a unit ``p`` by donors ``b`` and runs the model again, this
    follows the gradient of the score ``M``:

    .. math:: \text{effect}(p) = \mathbb{E}_b \langle \nabla_p M,\; x[p] - b \rangle
              = \langle \nabla_p M,\; x[p] - \mathbb{E}\, b \rangle

    The mean donor is exact, over **all** donors that the unit has, not over a sample of them; the statistics of a bank are taken once
    per bank and serve every image.

    **Sign and unit** are those of :class:`~captum_causalseg.AverageTreatmentEffect`: the score's own units, positive for what
    supports the segmentation.

    **What it estimates.** With ``n_steps=1`` the gradient is that at the image. The effect is then the interventional one if
    ``M`` is linear in the unit while the rest of the image stays as it is; otherwise it is its first-order Taylor term. With
    ``n_steps > 1`` the gradient is averaged (midpoint rule) along the straight line from the image in which **every unit that
    is not excluded** holds its mean donor, to the image itself. With ``n_steps`` to infinity the effects of all units sum to
    ``M(image) - M(mean-donor image)``: the completeness of integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365). A
    single unit's effect is then its share of that difference, which need not be its interventional effect.

    A donor is far from what it replaces: on trained U-Nets the effects' magnitudes rank as the interventional ones do (0.75 to
    0.90), their signs often do not. ``docs/method.md`` has the figures.

    **Related methods.** Baseline 0, single elements as units: ``InputXGradient``. ``n_steps`` large: ``IntegratedGradients`` from
    the mean-donor image, summed over units. ``GradientShap`` draws whole baselines and points on the path at random, where this
    takes the mean donor and fixed points. On a layer (:class:`~captum_causalseg.LayerGradientTreatmentEffect`) it is attribution
    patching (Nanda 2023; Syed et al. 2023, arXiv 2310.10348). The effect itself is that of PdCR (arXiv 2602.20511).

    Args:
        forward_func: any forward function that Captum accepts, whose score is differentiable. Of a
            :class:`~captum_causalseg.SegmentationTarget` the differentiable twin is explained, ``target.surrogate()``
            (``dice`` becomes ``soft_dice``).
        baselines: a default for ``attribute``'s argument of this name. ``NoiseTunnel`` passes on tensors and numbers only: give
            donors here.

    Example:
        >>> import torch
        >>> from captum_causalseg import GradientTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> model = torch.nn.Conv2d(1, 2, 5, padding=2)
        >>> image = torch.rand(1, 1, 32, 32)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8))
        >>> gradient = GradientTreatmentEffect(target)
        >>> gradient.attribute(image, baselines=PatchBank(torch.rand(20, 1, 32, 32)), block_size=4, target=1).shape
        torch.Size([1, 1, 32, 32])
    """

    @checked(forward_func=FUNCTION)
    def __init__(self, forward_func: Callable[..., Any], baselines: Baselines = None) -> None:
        super().__init__(forward_func)
        self.baselines = baselines

    @property
    def multiplies_by_inputs(self) -> bool:
        """True, in Captum's sense: the gradient is multiplied by ``x - E b``."""
        return True

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
    @checked(n_steps=integer(1), channels=CHANNELS, units=UNITS, return_statistics=BOOLEAN)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        baselines: Baselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        feature_mask: Tensor | tuple[Tensor, ...] | None = None,
        block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
        n_steps: int = 1,
        exclude: Exclude = "roi",
        channels: Channels = None,
        units: UnitKind = "block",
        return_statistics: bool = False,
    ) -> Any:
        """Every unit's backpropagated effect on one output.

        The batch goes through the model together: one forward and one backward pass, or with ``n_steps > 1`` as many, and one
        more forward.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            baselines: what units are compared with, as in :meth:`AverageTreatmentEffect.attribute`: a donor source
                (:class:`~captum_causalseg.PatchBank`, ...), a number, a tensor ``(D, C, *spatial)`` (a distribution along its
                first axis), a tuple of these (one per input), or ``None``: donors cut from the other positions of the same image.
            target: which output to attribute, in all of Captum's forms (int, tuple, tensor, list); needed if there are several.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` have one entry per example.
            feature_mask: units as integers that can be broadcast to the input; equal numbers, across inputs too, are one unit.
            block_size: edge of the block units in pixels, as in :meth:`AverageTreatmentEffect.attribute`; 8 by default.
            n_steps: 1 for the gradient at the image, more for its average over this many midpoints of the path (see above).
            exclude: ``"roi"``: units that touch the RoI are left as they are and carry 0; a boolean mask ``(*spatial)`` in its
                place; or ``None``. With several inputs, a tuple of these says it for each, as in
                :meth:`AverageTreatmentEffect.attribute`.
            channels, units: ``"each"`` or some channels, and kinds of units, as in :meth:`AverageTreatmentEffect.attribute`.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well. Their effects are known of the output that ``target``
                picks alone (``settings["outputs"]``, per example); there they have the status FIRST_ORDER, and on other outputs EXCLUDED,
                with NaN. No intervention is made: ``n_draws`` is 0, and ``population`` the number of donors in the mean. **Errors are not
                known:** standard errors, intervals and p-values are NaN, and nothing is ``significant``.

        Returns:
            Attributions like ``inputs`` (tensor or tuple, same shapes and dtypes), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described, or the score has no gradient; the message names it, what came
                and what was expected.

        Example:
            >>> import torch
            >>> from captum_causalseg import GradientTreatmentEffect
            >>> image, baseline = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8)
            >>> attr = GradientTreatmentEffect(lambda x: x.sum((1, 2, 3))).attribute(image, baseline, block_size=4)
            >>> torch.allclose(attr[..., :4, :4].mean(), (image - baseline)[..., :4, :4].sum())  # exact: the score is linear
            True
            >>> gradient = GradientTreatmentEffect(lambda x: x.sum((1, 2, 3)))
            >>> _, stats = gradient.attribute(torch.ones(1, 1, 8, 8), 0.25, block_size=4, return_statistics=True)
            >>> stats.effect, stats.standard_error.isnan().all()  # of each block, 16 * (1 - 0.25)
            (tensor([[12., 12., 12., 12.]], dtype=torch.float64), tensor(True))
        """
        options = Options(
            forward_func=as_scorer(self.forward_func).surrogate(),
            inputs=inputs,
            baselines=self.baselines if baselines is None else baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=InputUnits(feature_mask=feature_mask, block_size=block_size, exclude=exclude, channels=channels, kind=units),
            return_statistics=return_statistics,
        )
        return backpropagate(options, n_steps)
