"""RISE for segmentation: random masks, weighted by the score that is left in the RoI."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._captum import PerturbationAttribution, TargetType, log_usage
from captum_causalseg._checks import BOOLEAN, SEED, checked, integer, number, per_axis
from captum_causalseg._state import undisturbed
from captum_causalseg.baselines.call import counting, prepare_image, scores_of_outputs
from captum_causalseg.images import with_metadata
from captum_causalseg.interventions.frames import gather
from captum_causalseg.target.outputs import interpolated
from captum_causalseg.target.scores import checked_scores

__all__ = ["RiseSegmentation"]


class RiseSegmentation(PerturbationAttribution):
    r"""How good is the segmentation, on average, when a pixel is kept and others are hidden at random?

    Masks :math:`m_i` with values in [0, 1] hide random parts of the image, ``x * m + baseline * (1 - m)``, and each is weighted
    by the score :math:`s_i` that the RoI has then (with a hard or soft Dice, the agreement that is left):

    .. math:: \mathrm{map}(p) = \frac{\sum_i s_i\, m_i(p)}{\sum_i m_i(p)} - \frac{1}{n} \sum_i s_i.

    The first term estimates the expected score given that pixel ``p`` is kept. The paper divides by ``n`` times the probability,
    which is the sum's expectation; dividing by the sum itself takes out how often a pixel happened to be kept. The second
    term, the mean score over all masks, is ours (``centered``): it makes the map signed.

    **Sign and unit.** In the score's own units. Centered: positive where keeping the pixel raises the score above that of the
    average mask, so it supports the segmentation, negative where it lowers it; 0 where it makes no difference. Not centered: the
    expected score itself, which has no sign.

    **Masks**, as in the paper: cells of a coarse grid are kept with a probability, each on its own; the grid is enlarged linearly to
    one cell more than the image along every axis, and cut to it at a random place. Mask ``i`` is drawn from
    ``numpy.random.default_rng((seed, i))`` and from nothing else: all examples get the same masks, however they are batched.

    RISE (Petsiuk, Das, Saenko 2018, arXiv 1806.07421), which explains a classifier; the score in an RoI takes its place.

    Args:
        forward_func: any forward function that Captum accepts, with one score or a fixed number of scores per example; it needs no
            gradient. Usually a :class:`~captum_causalseg.SegmentationTarget`.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, regions
        >>> from captum_causalseg.baselines import RiseSegmentation
        >>> model = torch.nn.Conv2d(1, 2, 5, padding=2)
        >>> image = torch.rand(1, 1, 32, 32)
        >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), start=12, size=8))
        >>> RiseSegmentation(target).attribute(image, target=1, n_masks=50).shape
        torch.Size([1, 1, 32, 32])
    """

    @log_usage(part_of_slo=True)
    @checked(
        n_masks=integer(1),
        probability=number(above=0, most=1),
        perturbations_per_eval=integer(1),
        seed=SEED,
        centered=BOOLEAN,
        show_progress=BOOLEAN,
    )
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor],
        baselines: Tensor | float = 0.0,
        target: TargetType = None,
        additional_forward_args: Any = None,
        n_masks: int = 1000,
        grid_size: int | tuple[int, ...] = 8,
        probability: float = 0.5,
        perturbations_per_eval: int = 16,
        seed: int = 0,
        centered: bool = True,
        show_progress: bool = False,
    ) -> Any:
        """The map of one output.

        Args:
            inputs: ``(N, C, *spatial)`` with 1 to 3 spatial axes.
            baselines: what hidden pixels become: a number, or a tensor ``(1 or N, C, *spatial)``.
            target: which output to attribute, in all of Captum's forms; needed if there are several.
            additional_forward_args: further arguments of the forward function; tensors ``(N, ...)`` have one entry per example.
            n_masks: number of masked images that go through the model per example, besides the whole one.
            grid_size: cells along each axis of the image, an integer or one per axis; never more than its pixels. A cell should not
                be larger than what is to be told apart.
            probability: that a cell is kept, larger than 0 and smaller than 1.
            perturbations_per_eval: masks per forward pass.
            seed: of the masks.
            centered: subtract the mean score over all masks.
            show_progress: show a progress bar over the masks.

        Returns:
            Like ``inputs`` (shape and dtype), all channels of a pixel alike. A pixel that no mask keeps is given the mean score.

        Raises:
            TypeError, ValueError: an argument is not as described, or a score is not finite; the message names it, what came and
                what was expected.
        """
        if probability == 1:
            raise ValueError("probability: expected less than 1, got 1; nothing would be hidden")
        call, baseline = prepare_image(self.forward_func, inputs, baselines, additional_forward_args=additional_forward_args)
        image = call.inputs[0]
        n, spatial = len(image), image.shape[2:]
        sizes = per_axis("grid_size", grid_size, len(spatial), each=integer(1))
        cells = tuple(min(size, length) for size, length in zip(sizes, spatial))
        # On the CPU, in float64 and mask by mask: the same sums whatever the batches.
        kept = torch.zeros(spatial, dtype=torch.float64, device="cpu")
        weighted = torch.zeros((n, *spatial), dtype=torch.float64, device="cpu")
        total = torch.zeros(n, dtype=torch.float64, device="cpu")
        with undisturbed(call.scorer.function), counting(show_progress, n_masks, f"{self.get_name()} attribution") as count:
            # On the whole images first: a target reads its model's activation from what it sees first.
            observed, outputs = scores_of_outputs(
                call, call.scorer(*gather(call.inputs + call.arguments, np.arange(n))), target
            )
            for first in range(0, n_masks, perturbations_per_eval):
                numbers = range(first, min(first + perturbations_per_eval, n_masks))
                masks = [_mask(seed, number, cells=cells, spatial=spatial, probability=probability) for number in numbers]
                # Rows: mask by mask, and within a mask example by example.
                examples = np.tile(np.arange(n), len(masks))
                weights = torch.stack(masks).to(image).repeat_interleave(n, dim=0).unsqueeze(1)
                others, images = gather([baseline, *call.arguments], examples), gather([image], examples)
                found = call.scorer(torch.lerp(others[0], images[0], weights), *others[1:])
                rows = checked_scores(found, len(examples), tuple(observed.shape[1:])).reshape(len(examples), -1)
                chosen = rows.detach().cpu().double().gather(1, torch.from_numpy(outputs.chosen).repeat(len(masks)).view(-1, 1))
                if not bool(chosen.isfinite().all()):
                    raise ValueError("forward_func: a score under a mask is NaN or infinite")
                for mask, scores in zip(masks, chosen.view(len(masks), n)):
                    kept += mask
                    weighted += scores.view(n, *(1,) * len(spatial)) * mask
                    total += scores
                count(len(masks))
        mean = (total / n_masks).view(n, *(1,) * len(spatial))
        expected = torch.where(kept > 0, weighted / kept.clamp_min(torch.finfo(torch.float64).tiny), mean)
        result = (expected - mean if centered else expected).to(image).unsqueeze(1).expand_as(image).contiguous()
        return with_metadata((result,) if isinstance(inputs, tuple) else result, inputs)


def _mask(seed: int, number: int, cells: Sequence[int], spatial: Sequence[int], probability: float) -> Tensor:
    """One mask, float64 on the CPU: cells kept at random, enlarged linearly, cut out at a random place."""
    generator = np.random.default_rng((seed, number))
    edges = [-(-length // count) for length, count in zip(spatial, cells)]
    grid = generator.random(tuple(cells)) < probability
    starts = [int(generator.integers(edge)) for edge in edges]
    values = torch.from_numpy(grid.astype(np.float64))[None, None]
    size = [(count + 1) * edge for count, edge in zip(cells, edges)]
    mask = interpolated(values, size)[0, 0]
    return mask[tuple(slice(start, start + length) for start, length in zip(starts, spatial))]
