"""MiSuRe: the least of the image that is enough for the segmentation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import BOOLEAN, checked, instance, integer, number, per_axis
from captum_causalseg._state import undisturbed
from captum_causalseg.attr.problem import Call
from captum_causalseg.baselines.call import counting, prepare_image, scores_of_outputs
from captum_causalseg.images import with_metadata
from captum_causalseg.interventions.frames import gather
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.target.gradient import why_no_gradient
from captum_causalseg.target.outputs import interpolated
from captum_causalseg.target.scorer import Scorer

__all__ = ["MiSuRe"]

_NO_GRADIENT = "forward_func: the model's output has no gradient with respect to its input; MiSuRe needs one"
_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


class MiSuRe(PerturbationAttribution):
    r"""Which part of the image is enough for the model to segment as it does? The rest is hidden.

    With the model's own prediction ``y0`` of one class in the RoI, in two stages:

    1. A region ``M`` grows from where the class is predicted, by dilation, until ``Dice(f(x * M), y0) >= tau``: it is sufficient.
    2. Inside it, a mask ``m`` with values in [0, 1] is made as small and smooth as it can be,

       .. math:: \min_m\; 1 - \mathrm{softDice}(f(x \odot m), y_0) + \lambda_1\, \mathrm{mean}\,|m| + \lambda_2\, \mathrm{TV}(m),

       by Adam from ``m = M``, clipped to [0, 1] after each step. The result is the mask of the smallest loss on the way.

    Hidden pixels become ``baselines``. Both Dice scores are those of a :class:`~captum_causalseg.SegmentationTarget` with the same
    model, RoI, activation and threshold, and ``y0`` as the reference; the given target's own metric and reference play no part. Each
    example has its own region, which stops growing on its own, and its own loss.

    **Sign and unit.** At least 0, at most 1: how much of the pixel is kept. It shows what *suffices*, given that all else is hidden.
    It has no sign: it does not show what harms the segmentation, and a pixel that it drops may still matter when nothing is hidden.

    MiSuRe (Hasany, Mériaudeau, Petitjean 2024, *MiSuRe is all you need to explain your image segmentation*, arXiv 2406.12173).
    The paper's constants are not public: the defaults of ``tau``, ``dilation``, ``n_steps``, ``learning_rate``, ``l1``, ``l2`` and
    ``cell_size`` are ours. So is the unit of the penalties: both are divided by the number of pixels of ``M``, so that they do not
    depend on how much image lies around it, and ``mean |m|`` is 1 at the start.

    Args:
        forward_func: a :class:`~captum_causalseg.SegmentationTarget` with a named metric. Its model needs a gradient.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, regions
        >>> from captum_causalseg.baselines import MiSuRe
        >>> class Bright(torch.nn.Module):
        ...     def forward(self, x):
        ...         return 20 * (x - 0.5)
        >>> image = torch.zeros(1, 1, 16, 16)
        >>> image[..., 4:8, 4:8] = 1
        >>> image[..., 12:14, 12:14] = 1  # segmented as well, but not in the RoI
        >>> target = SegmentationTarget.from_prediction(Bright(), image, roi=regions.box((16, 16), start=2, size=8))
        >>> kept = MiSuRe(target).attribute(image)
        >>> bool((kept[..., 4:8, 4:8] > 0.5).all()), float(kept[..., 10:, 10:].max())
        (True, 0.0)
    """

    @checked(forward_func=instance(SegmentationTarget, expected="a SegmentationTarget, whose model's prediction is explained"))
    def __init__(self, forward_func: SegmentationTarget) -> None:
        if callable(forward_func.metric):
            raise ValueError(
                "forward_func: expected a target with a named metric, whose outputs are classes and RoIs, got one whose metric is a function; "
                'give one with metric="dice"'
            )
        super().__init__(forward_func)

    @classmethod
    def get_name(cls) -> str:
        """The name in progress bars; Captum would split it at its capitals."""
        return "MiSuRe"

    @log_usage(part_of_slo=True)
    @checked(
        tau=number(above=0, most=1),
        dilation=integer(1),
        n_steps=integer(0),
        learning_rate=number(above=0),
        l1=number(0),
        l2=number(0),
        show_progress=BOOLEAN,
    )
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        target: TargetType = None,
        additional_forward_args: Any = None,
        baselines: Tensor | float = 0.0,
        tau: float = 0.95,
        dilation: int = 2,
        n_steps: int = 100,
        learning_rate: float = 0.05,
        l1: float = 0.1,
        l2: float = 0.05,
        cell_size: int | tuple[int, ...] = 1,
        show_progress: bool = False,
    ) -> Any:
        """The minimally sufficient region of one class in one RoI.

        Args:
            inputs: ``(N, C, *spatial)`` with 1 to 3 spatial axes.
            target: which class (and RoI), in all of Captum's forms; needed if the target has several outputs.
            additional_forward_args: further arguments of the target; tensors ``(N, ...)`` have one entry per example.
            baselines: what hidden pixels become: a number, or a tensor ``(1 or N, C, *spatial)``.
            tau: Dice at which a region is sufficient, larger than 0 and at most 1.
            dilation: pixels by which the region grows at a time, along every axis and diagonal.
            n_steps: of the second stage; 0 for the region of the first stage itself, as 0 and 1.
            learning_rate: of Adam. A pixel needs at least ``1 / learning_rate`` steps to go from kept to hidden.
            l1: weight of the mask's mean over ``M``.
            l2: weight of its total variation (absolute differences of neighbors along every axis) per pixel of ``M``.
            cell_size: pixels per cell of the mask along each axis: with more than 1 it is searched for on a coarser grid and enlarged
                linearly.
            show_progress: show a progress bar for each stage.

        Returns:
            Like ``inputs`` (shape and dtype), all channels of a pixel alike, values in [0, 1] and 0 outside ``M``. As many forwards per
            example as the region took steps to grow, and ``n_steps`` forwards and backwards.

        Raises:
            TypeError, ValueError: an argument is not as described, the class is not predicted in the RoI, or the model has no
                gradient; the message names it, what came and what was expected.
        """
        call, baseline = prepare_image(self.forward_func, inputs, baselines, additional_forward_args=additional_forward_args)
        image = call.inputs[0]
        spatial = image.shape[2:]
        cells = per_axis("cell_size", cell_size, len(spatial), each=integer(1))
        name = self.get_name()
        with undisturbed(call.scorer.function, gradients=True):
            question = _ask(call, baseline, target)
            longest = -(-max(spatial) // dilation) + 1
            with counting(show_progress, longest, f"{name}: growing the region") as count:
                region = _grow(question, tau, dilation, count=count)
            with counting(show_progress, n_steps, f"{name}: reducing the mask") as count:
                mask = _reduce(
                    question, region, n_steps=n_steps, learning_rate=learning_rate, l1=l1, l2=l2, cell_size=cells, count=count
                )
        result = mask.to(image).expand_as(image).contiguous()
        return with_metadata((result,) if isinstance(inputs, tuple) else result, inputs)


@dataclass(frozen=True)
class _Question:
    """How well one class is still segmented in one RoI when only a part of each image is kept.

    Args:
        image: ``(N, C, *spatial)``.
        baseline: what stands where nothing is kept, of the same shape.
        arguments: further arguments of the model.
        roi: boolean ``(N, 1, *spatial)``, per example the one in question.
        prediction: boolean ``(N, classes, *spatial)``, what the model predicts on the whole image.
        label: ``(N,)`` the class in question.
        hard, soft: score masked images; take the RoI and the reference as arguments.
    """

    image: Tensor
    baseline: Tensor
    arguments: tuple[Any, ...]
    roi: Tensor
    prediction: Tensor
    label: Tensor
    hard: Scorer
    soft: Scorer

    @property
    def start(self) -> Tensor:
        """Where the class is predicted in the RoI, boolean ``(N, 1, *spatial)``."""
        rows = torch.arange(len(self.label), device=self.prediction.device)
        predicted = self.prediction[rows, self.label.to(rows.device)]
        return predicted[:, None] & self.roi

    def dice(self, scored_by: Scorer, mask: Tensor, examples: np.ndarray) -> Tensor:
        """``(B,)`` of these examples with the masks ``(B, 1, *spatial)``."""
        values = gather([self.image, self.baseline, *self.arguments, self.roi, self.prediction, self.label], examples)
        image, baseline, *others, label = values
        masked = torch.lerp(baseline, image, mask.to(image.dtype).expand_as(image))
        answered: Tensor = scored_by(masked, *others)
        if (reason := why_no_gradient(answered)) is not None:
            raise ValueError(f"{_NO_GRADIENT} ({reason})")
        scores = answered.reshape(len(examples), -1)
        return scores.gather(1, label.view(-1, 1).to(scores.device))[:, 0].to(image.device)


def _ask(call: Call, baseline: Tensor, target: TargetType) -> _Question:
    """Find the class and RoI that ``target`` picks and what the model predicts there."""
    explained, image = call.scorer, call.inputs[0]
    everyone = np.arange(len(image))
    with torch.no_grad():
        observed = explained(*gather(call.inputs + call.arguments, everyone))
    _, outputs = scores_of_outputs(call, observed, target)
    places = dict(zip(outputs.axes, outputs.places()))
    nowhere = np.zeros(len(image), dtype=np.int64)
    arguments = explained.model_inputs(image, *call.arguments)[1:]
    prediction = explained.predict(*gather([image, *arguments], everyone)).to(image.device)
    if call.rois is None:
        roi = torch.ones((len(image), 1, *call.spatial), dtype=torch.bool, device=image.device)
    else:
        rois = call.rois.to(image.device).expand(len(image), *call.rois.shape[1:])
        roi = rois[torch.from_numpy(everyone), torch.from_numpy(places.get("roi", nowhere))][:, None]
    hard, soft = (explained.with_masks_of_calls(metric) for metric in ("dice", "soft_dice"))
    label = torch.from_numpy(places.get("class", nowhere)).to(image.device)
    question = _Question(
        image=image,
        baseline=baseline,
        arguments=tuple(arguments),
        roi=roi,
        prediction=prediction,
        label=label,
        hard=hard,
        soft=soft,
    )
    empty = (~question.start.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"inputs: the model predicts nothing of the class in the RoI for example(s) {empty}, so there is no prediction to explain; "
            "choose another target or RoI"
        )
    return question


def _grow(question: _Question, tau: float, dilation: int, count: Callable[[int], None]) -> Tensor:
    """The sufficient regions, boolean ``(N, 1, *spatial)``."""
    region = question.start
    unfinished = np.arange(len(region))
    while len(unfinished):
        rows = torch.from_numpy(unfinished).to(region.device)
        with torch.no_grad():
            dice = question.dice(question.hard, region[rows], unfinished)
        go_on = (dice < tau) & ~region[rows].flatten(1).all(1)
        unfinished, rows = unfinished[go_on.cpu().numpy()], rows[go_on]
        region[rows] = _dilated(region[rows], dilation)
        count(1)
    return region


def _dilated(region: Tensor, by: int) -> Tensor:
    """``(B, 1, *spatial)`` grown by so many pixels along every axis and diagonal."""
    if not len(region):
        return region
    pooled = _MAX_POOL[region.ndim - 2](region.float(), 2 * by + 1, stride=1, padding=by)
    return pooled > 0


def _reduce(
    question: _Question,
    region: Tensor,
    n_steps: int,
    learning_rate: float,
    l1: float,
    l2: float,
    cell_size: Sequence[int],
    count: Callable[[int], None],
) -> Tensor:
    """The masks of the smallest loss that Adam comes by, ``(N, 1, *spatial)``."""
    everyone, spatial = np.arange(len(region)), region.shape[2:]
    dtype = torch.promote_types(question.image.dtype, torch.float32)
    inside = region.to(dtype)
    area = inside.flatten(1).sum(1)
    best, smallest = inside, torch.full_like(area, torch.inf)
    if n_steps == 0:
        return best
    grid = [-(-length // edge) for length, edge in zip(spatial, cell_size)]
    cells = torch.ones((len(region), 1, *grid), dtype=dtype, device=region.device, requires_grad=True)
    optimizer = torch.optim.Adam([cells], lr=learning_rate)
    for step in range(n_steps + 1):
        values = cells
        if tuple(grid) != tuple(spatial):
            values = interpolated(cells, spatial)
        mask = values * inside
        dice = question.dice(question.soft, mask, everyone)
        variation = torch.stack([mask.diff(dim=axis).abs().flatten(1).sum(1) for axis in range(2, mask.ndim)]).sum(0)
        penalty = (l1 * mask.flatten(1).sum(1) + l2 * variation) / area
        loss = (1 - dice + penalty).detach()
        smaller = (loss < smallest).view(-1, *(1,) * (mask.ndim - 1))
        best, smallest = torch.where(smaller, mask.detach(), best), torch.minimum(loss, smallest)
        if step == n_steps:
            break
        # Times the area, which changes no minimum: gradients of large images would come near Adam's epsilon.
        lost = -_gradient(dice, mask) * area.view(-1, *(1,) * (mask.ndim - 1))
        (cells.grad,) = torch.autograd.grad((mask, penalty), cells, (lost, area))
        optimizer.step()
        with torch.no_grad():
            cells.clamp_(0, 1)
        count(1)
    return best


def _gradient(dice: Tensor, mask: Tensor) -> Tensor:
    found = torch.autograd.grad(dice.sum(), mask, allow_unused=True)[0] if dice.requires_grad else None
    if found is None:
        raise ValueError(_NO_GRADIENT)
    if not bool(found.isfinite().all()):
        raise ValueError("forward_func: the gradient of the Dice score holds NaN or infinite values")
    return found
