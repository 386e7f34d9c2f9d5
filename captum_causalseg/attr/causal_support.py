"""Which part of the input can reach the region of interest at all."""

from functools import partial
from typing import Any

from torch import Tensor

from captum_causalseg._checks import NONE, SEED, checked, for_each_axis, instance, integer
from captum_causalseg._state import undisturbed
from captum_causalseg.attr.problem import prepare_call
from captum_causalseg.interventions.sites import InputSite
from captum_causalseg.interventions.support import Support, find_support
from captum_causalseg.target import SegmentationTarget

__all__ = ["causal_support"]


@checked(
    target=instance(SegmentationTarget, expected="a SegmentationTarget, which knows where the RoI is"),
    block_size=NONE | for_each_axis(integer(1)),
    perturbations_per_eval=integer(1),
    seed=SEED,
)
def causal_support(
    target: SegmentationTarget,
    inputs: Tensor | tuple[Tensor, ...],
    additional_forward_args: Any = None,
    *,
    block_size: int | tuple[int, ...] | None = None,
    perturbations_per_eval: int = 16,
    seed: int = 0,
) -> Support:
    """Which part of the inputs can reach each region of interest through the model: elsewhere, every effect is exactly 0.

    Parts of the input are set to NaN; where NaN does not arrive in the RoI's output nothing else does. The
    answer is checked: NaN inside the RoI must arrive, and random values, up to a thousand times as large as the image's, pasted
    over everything outside must leave the RoI's output as it is. If a check fails, everything counts as reaching. A network with
    global operations (instance norm, attention, squeeze and excitation) reaches everywhere.

    Args:
        target: model and RoI; the metric does not matter.
        inputs: ``(N, C, *spatial)``, or a tuple of such tensors.
        additional_forward_args: further arguments of the model, as in Captum.
        block_size: also probe blocks of this size, one by one, within the box that was found; ``None`` for the box.
        perturbations_per_eval: images per forward pass.
        seed: of the random values.

    Returns:
        ``masks`` per input, boolean ``(N, R, *spatial)``; ``doubt``, why everything counts as reaching, or None; ``n_forwards``.

    Raises:
        TypeError, ValueError: an argument is not as described.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, causal_support, regions
        >>> model = torch.nn.Conv2d(1, 2, 5, padding=2)
        >>> target = SegmentationTarget(model, roi=regions.box((32, 32), start=12, size=8), metric="logit_sum")
        >>> int(causal_support(target, torch.rand(1, 1, 32, 32)).masks[0].sum())
        144
    """
    call = prepare_call(target, inputs, additional_forward_args)
    if call.rois is None:
        raise ValueError("target: it has no RoI; without one everything is inside")
    arguments = call.scorer.model_inputs(*call.inputs, *call.arguments)[len(call.inputs) :]
    site = InputSite(call.inputs, arguments)
    with undisturbed(call.scorer.function):
        return find_support(
            partial(site.run, call.scorer.logits),
            call.inputs,
            call.rois.cpu(),
            block_size=block_size,
            batch_size=perturbations_per_eval,
            seed=seed,
        )
