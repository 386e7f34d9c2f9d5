"""The backpropagated treatment effect of parts of a layer's activation."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from captum_causalseg._captum import GradientAttribution, LayerAttribution, TargetType, log_usage
from captum_causalseg._checks import BOOLEAN, checked, integer
from captum_causalseg.attr.gradient import backpropagate
from captum_causalseg.attr.layer import LAYER, LayerBaselines, Layouts
from captum_causalseg.attr.options import LayerUnits, Options
from captum_causalseg.layout import UnitKind
from captum_causalseg.target.scorer import as_scorer

__all__ = ["LayerGradientTreatmentEffect"]


class LayerGradientTreatmentEffect(LayerAttribution, GradientAttribution):
    r"""The first-order estimate of the treatment effect of every unit of a layer, from one backward pass.

    For every unit ``p`` of the layer's activation ``a`` (a channel by default) and its values ``b`` on natural donor images,

    .. math:: \text{effect}(p) = \langle \nabla_{a[p]} M,\; a[p] - \mathbb{E}\, b \rangle,

    with the mean over all donors taken exactly. It equals the effect that
    :class:`~captum_causalseg.LayerAverageTreatmentEffect` measures if the score ``M`` is linear in the unit while the rest of the
    activation (and what runs past the layer) stays as it is. What ``n_steps`` does is said at
    :class:`~captum_causalseg.GradientTreatmentEffect`: the path leads from the activation in which every unit holds its mean donor to
    the activation itself.

    With one donor this is attribution patching (Nanda 2023, neelnanda.io/mechanistic-interpretability/attribution-patching;
    Syed et al. 2023, arXiv 2310.10348); with baseline 0 and single elements as units it is activation times gradient.

    **Sign and unit.** In the score's own units, positive for what supports the segmentation.

    Args:
        forward_func: any forward function that Captum accepts, of which ``layer`` is a part and whose score is differentiable. Of a
            :class:`~captum_causalseg.SegmentationTarget` the differentiable twin is explained, ``target.surrogate()``.
        layer: a module that is called exactly once when ``forward_func`` runs; one that is called more often is refused.
            Inside the network of a :class:`~captum_causalseg.WindowedModel` it is called once per window, and replaced in every window that touches
            the RoI; activations, attributions and blocks are then those of a window.
        device_ids: devices of a ``DataParallel`` model, if ``forward_func`` has no ``device_ids`` of its own.
        layer_baselines: a default for ``attribute``'s argument of this name.

    Example:
        >>> import torch
        >>> from captum_causalseg import LayerGradientTreatmentEffect, SegmentationTarget, regions
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
        >>> image = torch.rand(1, 1, 16, 16)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=8))
        >>> layer = LayerGradientTreatmentEffect(target, model[1])
        >>> layer.attribute(image, layer_baselines=torch.rand(30, 1, 16, 16), target=1).shape
        torch.Size([1, 4, 16, 16])
    """

    @checked(LAYER)
    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        layer_baselines: LayerBaselines = None,
    ) -> None:
        # Of the two bases only one constructor takes a layer.
        GradientAttribution.__init__(self, forward_func)
        LayerAttribution.__init__(self, forward_func, layer, device_ids=device_ids)
        self.layer_baselines = layer_baselines

    @property
    def multiplies_by_inputs(self) -> bool:
        """True, in Captum's sense: the gradient is multiplied by ``a - E b``."""
        return True

    @log_usage(part_of_slo=True)
    @checked(LAYER, n_steps=integer(1), return_statistics=BOOLEAN)
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        layer_baselines: LayerBaselines = None,
        target: TargetType = None,
        additional_forward_args: Any = None,
        layer_mask: Tensor | tuple[Tensor, ...] | None = None,
        attribute_to_layer_input: bool = False,
        units: UnitKind = "channel",
        block_size: int | tuple[int, ...] | None = None,
        n_steps: int = 1,
        layout: Layouts = "auto",
        return_statistics: bool = False,
    ) -> Any:
        """Every unit's backpropagated effect on one output.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            layer_baselines, layer_mask, attribute_to_layer_input, units, block_size, layout: as in
                :meth:`LayerAverageTreatmentEffect.attribute`.
            target: which output to attribute, in all of Captum's forms; needed if there are several.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` have one entry per example.
            n_steps: 1 for the gradient at the activation, more for its average over this many midpoints of the path.
            return_statistics: return :class:`~captum_causalseg.TreatmentEffectStatistics` as well. Their maps lie over the activation, and their effects are known of the output that ``target``
                picks alone (``settings["outputs"]``, per example); there they have the status FIRST_ORDER, and on other outputs EXCLUDED,
                with NaN. No intervention is made: ``n_draws`` is 0, and ``population`` the number of donors in the mean. **Errors are not
                known:** standard errors, intervals and p-values are NaN, and nothing is ``significant``.

        Returns:
            Attributions like the layer's activation (a tensor or a tuple), every element carrying its unit's whole effect; with
            ``return_statistics`` a pair of them and the statistics.

        Raises:
            TypeError, ValueError: an argument is not as described, or the score has no gradient; the message names it, what came
                and what was expected.

        Example:
            >>> import torch
            >>> from captum_causalseg import LayerGradientTreatmentEffect
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1, bias=False), torch.nn.Flatten(), torch.nn.Linear(128, 1))
            >>> _ = torch.nn.init.ones_(model[2].weight)  # the score is the sum of the activation
            >>> image = torch.rand(1, 1, 8, 8)
            >>> attr = LayerGradientTreatmentEffect(model, model[0]).attribute(image, layer_baselines=0.0, target=0)
            >>> torch.allclose(attr[0, :, 0, 0], model[0](image)[0].sum((1, 2)), atol=1e-5)  # exact: the score is linear
            True
            >>> layer = LayerGradientTreatmentEffect(model, model[0])
            >>> _, stats = layer.attribute(image, layer_baselines=0.0, target=0, return_statistics=True)
            >>> stats.effect.shape, stats.standard_error.isnan().all()  # one output, two channels
            (torch.Size([1, 2, 1]), tensor(True))
        """
        options = Options(
            forward_func=as_scorer(self.forward_func).surrogate(),
            inputs=inputs,
            baselines=self.layer_baselines if layer_baselines is None else layer_baselines,
            target=target,
            additional_forward_args=additional_forward_args,
            units=LayerUnits(
                layer=self.layer,
                device_ids=self.device_ids,
                at_input=attribute_to_layer_input,
                layer_mask=layer_mask,
                kind=units,
                block_size=block_size,
                layout=layout,
            ),
            return_statistics=return_statistics,
        )
        return backpropagate(options, n_steps)
