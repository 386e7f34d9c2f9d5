"""Seg-HiRes-Grad-CAM, with the window pooling of Seg-XRes-CAM."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg._captum import GradientAttribution, LayerAttribution, TargetType, log_usage
from captum_causalseg._checks import BOOLEAN, checked, integer, one_of, per_axis
from captum_causalseg._state import undisturbed
from captum_causalseg.attr.layer import LAYER
from captum_causalseg.attr.problem import prepare_call
from captum_causalseg.baselines.call import scores_of_outputs
from captum_causalseg.interventions.frames import gather
from captum_causalseg.interventions.recording import record
from captum_causalseg.interventions.sites import Layer, LayersSite
from captum_causalseg.target.gradient import has_gradient

__all__ = ["SegHiResGradCam"]

_POOLING: dict[str, dict[int, Callable[..., Tensor]]] = {
    "mean": {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d},
    "max": {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d},
}


class SegHiResGradCam(LayerAttribution, GradientAttribution):
    r"""Gradient times activation of a layer, summed over its channels: where the layer's features favor the segmentation.

    With the score ``y`` (a class's logits summed over the RoI) and the layer's channels :math:`A_k`,

    .. math:: \mathrm{map} = \mathrm{ReLU}\Big(\sum_k \frac{\partial y}{\partial A_k} \odot A_k\Big).

    Grad-CAM averages the gradient over space first, and so forgets where the RoI is; this does not. It is HiResCAM (Draelos, Carin
    2020, arXiv 2011.08891) for segmentation: Seg-HiRes-Grad-CAM (Rheude, Wirtz, Kuijper, Wesarg 2024, *Leveraging CAM Algorithms
    for Explaining Medical Semantic Segmentation*, MELBA 2:023, arXiv 2409.20287).

    With ``pool_size`` the gradient is pooled over windows first, and every position takes its own window's value: Seg-XRes-CAM
    (Hasany, Petitjean, Mériaudeau 2023, *Seg-XRes-CAM: Explaining Spatially Local Regions in Image Segmentation*, CVPR workshops).
    One window over the whole map, ``pool_size=None`` with the mean, is Grad-CAM.

    **Sign and unit.** Of the score, to first order: positive where the activation raises it. The map is in the score's units
    without the ReLU (``relu_attributions=False``), where negative values are what lowers it.

    Args:
        forward_func: any forward function that Captum accepts, with a differentiable score, of which ``layer`` is a part. It is
            explained as it is: for the papers' score give ``target.surrogate("logit_sum")`` of a
            :class:`~captum_causalseg.SegmentationTarget`.
        layer: a module that is called exactly once when ``forward_func`` runs and returns one tensor ``(N, K, *spatial)``.
        device_ids: devices of a ``DataParallel`` model, if ``forward_func`` has no ``device_ids`` of its own.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, regions
        >>> from captum_causalseg.baselines import SegHiResGradCam
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 3, padding=1))
        >>> image = torch.rand(1, 1, 16, 16)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=8))
        >>> cam = SegHiResGradCam(target.surrogate("logit_sum"), model[1])
        >>> heatmap = cam.attribute(image, target=1)
        >>> heatmap.shape, bool(heatmap[..., :3].any())  # one convolution reaches one pixel beyond the RoI
        (torch.Size([1, 1, 16, 16]), False)
    """

    @checked(LAYER)
    def __init__(self, forward_func: Callable[..., Any], layer: nn.Module, device_ids: list[int] | None = None) -> None:
        # Of the two bases only one constructor takes a layer.
        GradientAttribution.__init__(self, forward_func)
        LayerAttribution.__init__(self, forward_func, layer, device_ids=device_ids)

    @classmethod
    def get_name(cls) -> str:
        """The method's name; Captum would split it at its capitals."""
        return "Seg-HiRes-Grad-CAM"

    @property
    def multiplies_by_inputs(self) -> bool:
        """True, in Captum's sense: the gradient is multiplied by the activation."""
        return True

    @log_usage(part_of_slo=True)
    @checked(LAYER, relu_attributions=BOOLEAN, pooling=one_of("mean", "max"))
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        pool_size: int | tuple[int, ...] | None = 1,
        pooling: Literal["mean", "max"] = "mean",
    ) -> Tensor:
        """The map of one output.

        Args:
            inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
            target: which output to attribute, in all of Captum's forms; needed if there are several.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` have one entry per example.
            attribute_to_layer_input: take what the layer takes instead of what it returns.
            relu_attributions: keep what is positive only, as in the papers.
            pool_size: edges of the windows over which the gradient is pooled, in the activation's own pixels, an integer or one per
                spatial axis; windows at the edges may be smaller. 1: no pooling. ``None``: one window over the whole map.
            pooling: what is taken of a window's gradients, their ``"mean"`` or their ``"max"``.

        Returns:
            ``(N, 1, *layer spatial)``, of the activation's dtype. ``LayerAttribution.interpolate`` brings it to the image's size.

        Raises:
            TypeError, ValueError: an argument is not as described, the layer has no one activation, or the score has no gradient;
                the message names it, what came and what was expected.
        """
        call = prepare_call(self.forward_func, inputs, additional_forward_args)
        device_ids = tuple((call.scorer.device_ids if self.device_ids is None else self.device_ids) or ()) or None
        watch: dict[str, Any] = {"at_input": attribute_to_layer_input, "device_ids": device_ids}
        everyone = np.arange(len(call.inputs[0]))
        with undisturbed(call.scorer.function, gradients=True):
            copies = gather(call.inputs + call.arguments, everyone)
            activation, observed = record(call.scorer, self.layer, copies, **watch)
            values = _checked(activation.tensors, len(everyone))
            spatial = values.shape[2:]
            windows = tuple(spatial) if pool_size is None else per_axis("pool_size", pool_size, len(spatial), each=integer(1))
            _, outputs = scores_of_outputs(call, observed, target)
            leaf = values.clone().requires_grad_()
            layer = Layer(self.layer, activation, attribute_to_layer_input)
            site = LayersSite(layers=(layer,), inputs=call.inputs, arguments=call.arguments, device_ids=device_ids)
            # A copy: a model may work in place, on a leaf autograd does not allow it.
            scores = site.run(call.scorer, [leaf.clone()], everyone)
            gradient = _gradient(scores, torch.from_numpy(outputs.chosen), leaf)
        heatmap = (_pooled(gradient, windows, pooling) * values).sum(1, keepdim=True)
        return (functional.relu(heatmap) if relu_attributions else heatmap).contiguous()


def _checked(tensors: Sequence[Tensor], n_examples: int) -> Tensor:
    if len(tensors) != 1:
        raise TypeError(
            f"layer: expected one that returns (or takes) one tensor, got {len(tensors)} tensors; choose a layer inside it"
        )
    values = tensors[0]
    if values.ndim < 2 or len(values) != n_examples:
        raise ValueError(
            f"layer: expected an activation (N, K, *spatial) with N={n_examples} examples and K channels, got {tuple(values.shape)}"
        )
    return values


def _gradient(scores: Tensor, index: Tensor, leaf: Tensor) -> Tensor:
    """Of each example's chosen score with respect to its part of the leaf."""
    chosen = scores.reshape(len(leaf), -1).gather(1, index.view(-1, 1).to(scores.device)).sum()
    found = torch.autograd.grad(chosen, leaf, allow_unused=True)[0] if has_gradient(scores) else None
    if found is None:
        raise ValueError(
            "forward_func: its score has no gradient (it comes from hard labels, or is detached from the layer); give a differentiable "
            'score, such as SegmentationTarget.surrogate("logit_sum")'
        )
    if not bool(found.isfinite().all()):
        raise ValueError("forward_func: the gradient of its score holds NaN or infinite values")
    return found


def _pooled(gradient: Tensor, windows: tuple[int, ...], pooling: str) -> Tensor:
    """Every value replaced by the mean (or largest) of its window, ``(N, K, *spatial)``."""
    spatial = gradient.shape[2:]
    edges = tuple(min(edge, length) for edge, length in zip(windows, spatial))
    if all(edge == 1 for edge in edges):
        return gradient
    if len(spatial) not in _POOLING[pooling]:
        raise ValueError(f"pool_size: windows are for activations with 1 to 3 spatial axes, got {tuple(gradient.shape)}")
    pooled = _POOLING[pooling][len(spatial)](gradient, edges, edges, ceil_mode=True)
    for axis, (edge, length) in enumerate(zip(edges, spatial), start=2):
        # Not by interpolation: where edges leave a remainder, that would shift the windows.
        pooled = pooled.repeat_interleave(edge, dim=axis).narrow(axis, 0, length)
    return pooled
