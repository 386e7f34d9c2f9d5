"""Networks that are built so that their causes are known."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from captum_causalseg import regions
from captum_causalseg._checks import (
    NONE,
    SEED,
    check_all,
    checked,
    instance,
    integer,
    number,
    one_of,
    per_axis,
    renamed,
    sequence,
    tensor_of,
)
from captum_causalseg.donors import PatchBank
from captum_causalseg.target import SegmentationTarget

__all__ = ["PlantedCase", "PlantedCause", "PlantedNetwork", "planted_case"]

_THRESHOLD, _BRIGHT, _DARK = 0.5, 0.7, 0.3
_JITTER, _CONTRAST = 0.02, 0.15
_LARGEST_CONTROLLED = 0.6
# Logits of 12 where the image is bright: soft Dice equals the hard one to 1e-4, and float32 still has a gradient.
_SHARPNESS = 60.0


@dataclass(frozen=True)
class PlantedCause:
    """A far block that decides about a part of the RoI.

    Attributes:
        start: first index of the block, per spatial axis.
        size: number of pixels, per spatial axis.
        sign: 1 if a bright block makes the part come out right, so that brightness supports the segmentation; -1 if it makes
            it come out wrong.
        share: of the RoI's pixels that the block decides about, in (0, 1]; rounded to whole pixels.

    Example:
        >>> from captum_causalseg.evaluation.planted import PlantedCause
        >>> PlantedCause(start=(0, 8), size=(8, 8), sign=1, share=0.5).box
        (slice(0, 8, None), slice(8, 16, None))
    """

    start: tuple[int, ...]
    size: tuple[int, ...]
    sign: int
    share: float

    def __post_init__(self) -> None:
        check_all(vars(self), start=sequence(integer(0), 1, expected="a sequence of indices"))
        check_all(
            vars(self),
            size=sequence(integer(1), length=len(self.start), expected="a sequence of lengths"),
            sign=one_of(1, -1),
            share=number(above=0, most=1),
        )

    @property
    def box(self) -> tuple[slice, ...]:
        """The block as an index into the spatial axes."""
        return tuple(slice(begin, begin + length) for begin, length in zip(self.start, self.size))


class PlantedNetwork(nn.Module):
    r"""A segmentation network with known causes: parts of the RoI are segmented by what far blocks look like.

    The RoI's pixels, in the order of memory, are dealt out to the causes, to each its share in whole pixels; the others are left
    over. With brightness ``x`` (the mean over channels), threshold ``t`` and sharpness ``s`` the logit is

    - in the part of a cause: ``sign * s * (mean of x over its block - t)``, the same at each pixel;
    - everywhere else: ``s * (x - t)`` of the pixel itself.

    So hard decisions are steps, but every logit is linear in the image, and its gradient has the cause's sign everywhere.

    Args:
        roi: boolean ``(*spatial)``.
        causes: blocks outside the RoI that lie inside the image and do not overlap.
        threshold: brightness at which decisions flip.
        sharpness: logits per unit of brightness.

    Raises:
        ValueError: a cause that touches the RoI or another one, leaves the image, controls no pixel or has no proper sign; causes
            that control more than the RoI; images of another spatial shape.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> from captum_causalseg.evaluation.planted import PlantedCause, PlantedNetwork
        >>> cause = PlantedCause(start=(0, 0), size=(4, 4), sign=1, share=0.5)
        >>> network = PlantedNetwork(regions.box((16, 16), start=8, size=4), [cause])
        >>> bright = torch.full((1, 1, 16, 16), 0.7)
        >>> dark = bright.clone()
        >>> dark[..., :4, :4] = 0.3
        >>> [int((network(image)[0, 0, 8:12, 8:12] > 0).sum()) for image in (bright, dark)]
        [16, 8]
    """

    parts: Tensor

    @checked(
        roi=tensor_of("boolean", "(*spatial)", (1, math.inf)),
        causes=sequence(instance(PlantedCause)),
        threshold=number(),
        sharpness=number(above=0),
    )
    def __init__(
        self,
        roi: Tensor,
        causes: Sequence[PlantedCause],
        *,
        threshold: float = _THRESHOLD,
        sharpness: float = _SHARPNESS,
    ) -> None:
        super().__init__()
        if not bool(roi.any()):
            raise ValueError("roi: expected a boolean mask that is not empty, no pixel is True")
        taken = roi.clone()
        for cause in causes:
            block = regions.box(roi.shape, cause.start, cause.size).to(roi.device)
            if bool((block & taken).any()):
                raise ValueError(f"causes: the block at {cause.start} of size {cause.size} touches the RoI or another cause")
            taken |= block
        counts = _counts(causes, int(roi.sum()))
        if any(count < 1 for count in counts) or sum(counts) > int(roi.sum()):
            raise ValueError(
                f"causes: expected shares of at least a pixel each and at most 1 in sum, got {[cause.share for cause in causes]} of "
                f"{int(roi.sum())} pixels"
            )
        # -1 outside the RoI and where nothing far away decides.
        dealt = [number for number, count in enumerate(counts) for _ in range(count)]
        parts = torch.full(roi.shape, -1, dtype=torch.int64, device=roi.device)
        parts[roi] = torch.tensor(dealt + [-1] * (int(roi.sum()) - len(dealt)), device=roi.device)
        self.register_buffer("parts", parts, persistent=False)
        self.causes = tuple(causes)
        self.threshold, self.sharpness = float(threshold), float(sharpness)

    @checked(images=tensor_of("float", "(N, C, *spatial)", (3, math.inf)))
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 1, *spatial)`` of images ``(N, C, *spatial)``.

        Example:
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> case = planted_case((32, 32), roi_size=8, n_examples=2)
            >>> case.model(case.images).shape
            torch.Size([2, 1, 32, 32])
        """
        if images.shape[2:] != self.parts.shape:
            raise ValueError(
                f"images: expected (N, C, *spatial) with spatial shape {tuple(self.parts.shape)}, got {tuple(images.shape)}"
            )
        margin = images.mean(1, keepdim=True) - self.threshold
        logits = self.sharpness * margin
        for index, cause in enumerate(self.causes):
            decision = cause.sign * self.sharpness * margin[(slice(None), slice(None), *cause.box)].flatten(1).mean(1)
            logits = torch.where(self.parts == index, decision.view(-1, *(1,) * (images.ndim - 1)), logits)
        return logits


def _counts(causes: Sequence[PlantedCause], n_pixels: int) -> list[int]:
    """How many of the RoI's pixels each cause decides about."""
    # Sums are rounded rather than shares, so that shares of sum 1 never ask for more than there are.
    stops = [round(total * n_pixels) for total in itertools.accumulate((cause.share for cause in causes), initial=0.0)]
    return [stop - start for start, stop in itertools.pairwise(stops)]


@dataclass(frozen=True)
class PlantedCase:
    """Images, a network with known causes, donors, and the true effect of every unit.

    Attributes:
        model: the network.
        images: ``(N, 1, *spatial)``, in each of which every cause's block is bright.
        roi: boolean ``(*spatial)``.
        reference: boolean ``(*spatial)``: the whole RoI is foreground.
        donors: a finite bank of patches as large as a block; ``n_draws`` of at least ``len(donors)`` use it up.
        dark_share: what share of them is dark.
        units: ``(*spatial)`` integers, the grid of blocks.
        causes: the blocks that matter.
        effects: ``(U,)`` float64, every unit's **true** average treatment effect on the hard Dice of the RoI, the same for every
            example; NaN for units that touch the RoI, which are not intervened on. See :func:`planted_case` for the formula.

    Example:
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), supporting=2, harming=1, roi_size=8)
        >>> len(case), case.effects[list(case.cause_units)].sign().tolist()
        (1, [1.0, 1.0, -1.0])
        >>> bool((case.target()(case.images) < 1).all()), case.effects_of_map().shape == case.images.shape
        (True, True)
    """

    model: PlantedNetwork
    images: Tensor
    roi: Tensor
    reference: Tensor
    donors: PatchBank
    dark_share: float
    units: Tensor
    causes: tuple[PlantedCause, ...]
    effects: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def cause_units(self) -> tuple[int, ...]:
        """The ids in ``units`` of the causes' blocks, in their order."""
        return tuple(int(self.units[cause.start]) for cause in self.causes)

    def effects_of_map(self) -> Tensor:
        """What a perfect attribution returns: like ``images``, every element its unit's effect, 0 where none was measured."""
        painted = self.effects.nan_to_num(nan=0.0)[self.units].to(self.images)
        return painted.expand_as(self.images).contiguous()

    def target(self, metric: str = "dice") -> SegmentationTarget:
        """The score that the effects are effects on (with the hard Dice), or another one."""
        return SegmentationTarget(self.model, roi=self.roi, reference=self.reference, metric=metric, activation="sigmoid")


@checked(
    spatial_shape=sequence(integer(1), 1, expected="a sequence of lengths"),
    supporting=integer(0),
    harming=integer(0),
    n_examples=integer(1),
    seed=SEED,
    shares=NONE | sequence(number(above=0, most=1)),
    n_donors=integer(1),
    dark_share=number(0, 1),
)
def planted_case(
    spatial_shape: Sequence[int] = (64, 64),
    roi_size: int | Sequence[int] = 16,
    block_size: int | Sequence[int] = 8,
    supporting: int = 2,
    harming: int = 1,
    n_examples: int = 1,
    seed: int = 0,
    *,
    shares: Sequence[float] | None = None,
    n_donors: int = 32,
    dark_share: float = 0.5,
) -> PlantedCase:
    r"""A network, images and donors for which the true average treatment effect of every block is known exactly.

    The RoI has ``n`` pixels, all foreground in the reference. Far block ``k`` decides about ``n_k`` of them (:class:`PlantedNetwork`).
    All deciding blocks are bright, so the parts of the supporting ones are right and those of the harming ones wrong:
    ``c = n - sum of the harming n_k`` pixels are right. Nothing outside the RoI is scored, so with ``c`` right pixels the Dice is

    .. math:: M(c) = \frac{2 c}{c + n}

    A bright donor changes nothing; a dark one flips the block's part, to ``c - n_k`` pixels for a supporting block and to
    ``c + n_k`` for a harming one. With the share ``q`` of dark donors in the bank the effects are

    .. math:: \text{supporting: } q\,[M(c) - M(c - n_k)] > 0, \qquad
              \text{harming: } q\,[M(c) - M(c + n_k)] < 0, \qquad \text{any other block: } 0

    ``soft_dice`` has the same effects to 1e-4, for the logits are saturated, and the sign of its gradient with respect to a deciding
    block is that of the effect.

    Args:
        spatial_shape: of the images, of any number of axes.
        roi_size: edge of the RoI in pixels, per axis (one number for all). It lies in the middle, its start on the grid of blocks.
        block_size: edge of the units and of the donors, per axis (one number for all).
        supporting: how many blocks support the segmentation.
        harming: how many harm it.
        n_examples: number of images; they differ in their texture.
        seed: of everything that is random: places of the causes, textures, donors.
        shares: of the RoI that the causes control, the supporting ones first; by default 0.6 in sum, falling from the first to
            the last in equal steps, so that no two effects are the same.
        n_donors: size of the bank.
        dark_share: of the donors, in [0, 1], rounded to whole donors; the case holds the share that results.

    Raises:
        ValueError: an argument is not as described, or there are fewer far blocks than causes.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case()
        >>> ate = AverageTreatmentEffect(case.target())
        >>> attr = ate.attribute(case.images, baselines=case.donors, n_draws=len(case.donors), n_screening_draws=0)
        >>> float((attr - case.effects_of_map()).abs().max()) < 1e-6
        True
    """
    units = regions.grid(spatial_shape, block_size)
    blocks, edges = (
        per_axis(name, value, units.ndim, each=integer(1))
        for name, value in (("block_size", block_size), ("roi_size", roi_size))
    )
    middle = [max(length - edge, 0) // 2 // block * block for length, edge, block in zip(units.shape, edges, blocks)]
    with renamed(**{"start, size": "roi_size"}):
        roi = regions.box(units.shape, middle, edges)

    # Each thing has its own stream: an example is the same whatever the number of examples, and so are causes and donors.
    def stream(*of: int) -> np.random.Generator:
        return np.random.default_rng([seed, *of])

    signs = [1] * supporting + [-1] * harming
    starts = _far_blocks(units, roi, blocks=blocks, n_causes=len(signs), rng=stream(0))
    given = _falling_shares(len(signs)) if shares is None else [float(share) for share in shares]
    if len(given) != len(signs):
        raise ValueError(f"shares: expected {len(signs)}, one per cause, got {len(given)}")
    causes = tuple(
        PlantedCause(start=start, size=blocks, sign=sign, share=share) for start, sign, share in zip(starts, signs, given)
    )
    n_dark = round(dark_share * n_donors)
    return PlantedCase(
        model=PlantedNetwork(roi, causes).eval(),
        images=_tensor([_image(roi, causes, stream(1, example)) for example in range(n_examples)]),
        roi=roi,
        reference=roi.clone(),
        donors=PatchBank(_patches(blocks, n_dark, n_donors, rng=stream(2))),
        dark_share=n_dark / n_donors,
        units=units,
        causes=causes,
        effects=_true_effects(units, roi, causes, dark_share=n_dark / n_donors),
    )


def _image(roi: Tensor, causes: Sequence[PlantedCause], rng: np.random.Generator) -> np.ndarray:
    image = 0.5 + _texture(roi.shape, 0.3, rng)
    # Pixels of the RoI decide by themselves: none may come near the threshold.
    image[roi.numpy()] = (_BRIGHT + _texture(roi.shape, _JITTER, rng))[roi.numpy()]
    for cause in causes:
        image[cause.box] = _BRIGHT + _texture(cause.size, _CONTRAST, rng)
    return image


def _patches(blocks: Sequence[int], n_dark: int, n_donors: int, rng: np.random.Generator) -> Tensor:
    levels = rng.permutation([_DARK] * n_dark + [_BRIGHT] * (n_donors - n_dark)) + rng.uniform(-_JITTER, _JITTER, n_donors)
    return _tensor([level + _texture(blocks, _CONTRAST, rng) for level in levels])


def _true_effects(units: Tensor, roi: Tensor, causes: Sequence[PlantedCause], dark_share: float) -> Tensor:
    """The formula of :func:`planted_case`."""
    n = int(roi.sum())
    counts = _counts(causes, n)
    right = n - sum(count for cause, count in zip(causes, counts) if cause.sign < 0)

    def dice(correct: int) -> float:
        return 2 * correct / (correct + n)

    effects = torch.zeros(int(units.max()) + 1, dtype=torch.float64, device="cpu")
    for cause, count in zip(causes, counts):
        effects[units[cause.start]] = dark_share * (dice(right) - dice(right - cause.sign * count))
    effects[units[roi]] = torch.nan
    return effects


def _far_blocks(
    units: Tensor, roi: Tensor, blocks: tuple[int, ...], n_causes: int, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """First indices of whole blocks that are chosen at random among those with at least a block between them and the RoI."""
    whole = np.stack(np.meshgrid(*(np.arange(n // block) * block for n, block in zip(units.shape, blocks)), indexing="ij"), -1)
    corners = whole.reshape(-1, units.ndim)
    places = roi.nonzero().numpy()
    first, last = places.min(0) // blocks * blocks, places.max(0) // blocks * blocks
    gap = np.maximum(first - corners, corners - last) // blocks
    far = corners[gap.max(1) >= 2]
    if len(far) < n_causes:
        raise ValueError(
            f"supporting, harming: {n_causes} causes asked for, but only {len(far)} whole blocks of {blocks} have a block between them "
            f"and the RoI in an image of {tuple(units.shape)}"
        )
    return [tuple(corner) for corner in far[rng.choice(len(far), n_causes, replace=False)].tolist()]


def _falling_shares(n_causes: int) -> list[float]:
    weights = range(n_causes, 0, -1)
    return [_LARGEST_CONTROLLED * weight / sum(weights) for weight in weights]


def _texture(shape: Sequence[int], amplitude: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and largest absolute value ``amplitude``."""
    noise = np.asarray(ndimage.gaussian_filter(rng.standard_normal(tuple(shape)), sigma=1.5, mode="wrap"))
    noise -= noise.mean()
    # A block of a single pixel has no texture.
    return amplitude * noise / max(float(np.abs(noise).max()), float(np.finfo(np.float64).tiny))


def _tensor(values: Sequence[np.ndarray]) -> Tensor:
    """``(N, *spatial)`` as float32 with a channel axis."""
    return torch.from_numpy(np.stack(values).astype(np.float32))[:, None]
