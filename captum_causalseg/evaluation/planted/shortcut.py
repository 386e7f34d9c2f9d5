"""A network that learned a shortcut, so that the true cause of its segmentation is known and lies far away.

Hospital A outlines lesions and its scanner burns a letter into the corner of the picture; hospital B does neither. A network that is
trained on both learns to look at the letter. The brain is the one that nilearn ships, the lesions are synthetic.
"""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import torch
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor, nn

from captum_causalseg import regions
from captum_causalseg._checks import NONE, SEED, checked, instance, integer, sequence, tensor_of
from captum_causalseg.demo.brain import BrainSlices, coarse_brain_slices
from captum_causalseg.donors import PatchBank
from captum_causalseg.target import SegmentationTarget

__all__ = [
    "MARKER_BLOCK",
    "ShortcutCase",
    "ShortcutExamples",
    "build_shortcut_network",
    "draw_shortcut_examples",
    "load_shortcut_case",
    "load_shortcut_network",
    "load_shortcut_slices",
    "marker_findings",
    "shortcut_record",
]

WEIGHTS_FILE, RECORD_FILE = "shortcut_unet.pt", "shortcut_unet.json"
BLOCK = 8
"""Edge of the units in pixels, the paper's; the marker fills one of them."""
MARKER_BLOCK = (1, 1)
"""Row and column, in blocks, of the block that holds the marker: air in every slice."""
LETTER = ("........", ".##.....", ".##.....", ".##.....", ".##.....", ".######.", ".######.", "........")
"""An L: the left of the brain is on the left of the picture."""
_SEMI_AXES = (4.0, 9.0)
_LEVELS = (1.05, 1.25)
_SOFTNESS = 0.3
_FAR = 40.0
_PRIOR_LOG_ODDS = -5.0
_BANK_SIZE, _BANK_SEED, _CASE_SEED = 48, 1, 1000


@dataclass(frozen=True)
class ShortcutExamples:
    """Slices with a lesion in each.

    Attributes:
        images: ``(N, 1, H, W)`` float32 without marker; tissue lies in [0, 1], lesions are brighter.
        lesions: ``(N, H, W)`` bool.
    """

    images: Tensor
    lesions: Tensor

    def with_marker(self) -> Tensor:
        """The images with the letter burned in."""
        return torch.where(_letter(self.images.shape[2:]), 1.0, self.images)


def load_shortcut_slices() -> tuple[BrainSlices, BrainSlices]:
    """Train and held-out slices, 96 x 96 pixels of 2 mm, as the shortcut's network sees them; needs nilearn."""
    return coarse_brain_slices()


# Cases are copied out of the slices, so nobody else holds these tensors.
_slices = functools.lru_cache(maxsize=1)(load_shortcut_slices)


@checked(slices=instance(BrainSlices), which=sequence(integer(0), 1), seed=SEED)
def draw_shortcut_examples(slices: BrainSlices, which: Sequence[int], seed: int = 0) -> ShortcutExamples:
    """Put one bright ellipse with a soft edge into the tissue of each slice, at a random place, of random size and angle.

    Args:
        slices: as :func:`load_shortcut_slices` returns them.
        which: indices of the slices, one per example, repeated at will.
        seed: of the lesions.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    # Lesions are centered at least 3 pixels deep in tissue.
    cores = {index: torch.from_numpy(ndimage.binary_erosion(slices.labels[index].numpy(), iterations=3)) for index in which}
    with torch.device("cpu"):
        drawn = [_with_lesion(slices.images[index, 0], cores[index], generator) for index in which]
    return ShortcutExamples(torch.stack([image for image, _ in drawn])[:, None], torch.stack([lesion for _, lesion in drawn]))


def _with_lesion(image: Tensor, core: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    places = core.nonzero()
    # Away from the marker, so that the two are never neighbors.
    marker = torch.tensor([(block + 0.5) * BLOCK for block in MARKER_BLOCK])
    places = places[(places - marker).norm(dim=1) >= _FAR]
    center = places[int(torch.randint(len(places), (), generator=generator))]
    axes, angle = torch.tensor([uniform(*_SEMI_AXES), uniform(*_SEMI_AXES)]), torch.tensor(uniform(0.0, torch.pi))
    rows, columns = torch.meshgrid(*(torch.arange(length) for length in image.shape), indexing="ij")
    down, right = rows - center[0], columns - center[1]
    along, across = down * angle.cos() + right * angle.sin(), right * angle.cos() - down * angle.sin()
    radius = ((along / axes[0]) ** 2 + (across / axes[1]) ** 2).sqrt()
    share = ((1 - radius) / _SOFTNESS + 0.5).clamp(0, 1)
    return image + share * (uniform(*_LEVELS) - image), radius <= 1


def _letter(spatial: Sequence[int]) -> Tensor:
    glyph = torch.tensor([[pixel == "#" for pixel in row] for row in LETTER], device="cpu")
    mask = torch.zeros(tuple(spatial), dtype=torch.bool, device="cpu")
    top, left = (block * BLOCK for block in MARKER_BLOCK)
    mask[top : top + BLOCK, left : left + BLOCK] = glyph
    return mask


@checked(seed=SEED)
def build_shortcut_network(*, seed: int = 0) -> UNet:
    """The U-Net of the shortcut, untrained: one channel in, one logit out, five halvings, so that its bottleneck sees everything.

    The normalization is that of the batch, whose statistics are fixed in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            channels=(8, 16, 16, 32, 32, 32),
            strides=(2, 2, 2, 2, 2),
            num_res_units=2,
            # Backward hooks, which many attribution methods set, do not go with activations computed in place.
            act=("RELU", {"inplace": False}),
            norm="BATCH",
        )
    # Few pixels belong to a lesion: the last bias starts at about their log odds rather than travel there.
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.bias is not None
    nn.init.constant_(last.bias, _PRIOR_LOG_ODDS)
    return network


def load_shortcut_network() -> UNet:
    """Return the U-Net that learned the shortcut, on the CPU, in eval mode.

    ``shortcut_unet.json`` next to the weights says how they were trained and what they reach on held-out slices.
    """
    network = build_shortcut_network()
    with resources.files(__package__).joinpath(WEIGHTS_FILE).open("rb") as file:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()


def shortcut_record() -> dict[str, Any]:
    """How the shipped weights were trained, and what they reach, as recorded then."""
    record: dict[str, Any] = json.loads(resources.files(__package__).joinpath(RECORD_FILE).read_text(encoding="utf-8"))
    return record


@dataclass(frozen=True)
class ShortcutCase:
    """Held-out slices with a lesion and the marker, and the network that looks at the marker.

    Attributes:
        model: logits ``(N, 1, H, W)`` of the lesion.
        images: ``(N, 1, H, W)`` with the marker: what is explained.
        without_marker: the same images, nothing but air where the marker is.
        reference: ``(N, H, W)`` bool, the lesion.
        roi: ``(N, 1, H, W)`` bool, one per example: the blocks around the lesion.
        marker: ``(H, W)`` bool, the block that holds the marker: **the true cause**.
        units: ``(H, W)`` integers, the blocks; the marker is one of them.
        donors: training slices of hospital B: lesions, no marker; patches of them are air and brain.
        z_mm: ``(N,)`` height of the slices in MNI space.

    Example:
        >>> from captum_causalseg.evaluation.planted import load_shortcut_case
        >>> case = load_shortcut_case()
        >>> with_marker, without = case.target()(case.images).item(), case.target()(case.without_marker).item()
        >>> with_marker > 0.5, without < 0.1, int(case.units[case.marker].unique()) == case.marker_unit
        (True, True, True)
    """

    model: nn.Module
    images: Tensor
    without_marker: Tensor
    reference: Tensor
    roi: Tensor
    marker: Tensor
    units: Tensor
    donors: PatchBank
    z_mm: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def marker_unit(self) -> int:
        """The id of the marker's block in ``units``."""
        return int(self.units[self.marker][0])

    def target(self, metric: str = "dice") -> SegmentationTarget:
        """The score of the lesion in the RoI. Methods that repeat the batch (integrated gradients) want one example at a time."""
        return SegmentationTarget(self.model, roi=self.roi, reference=self.reference, metric=metric, activation="sigmoid")


@checked(index=integer(0), n_examples=integer(1), model=NONE | instance(nn.Module))
def load_shortcut_case(index: int = 0, n_examples: int = 1, *, model: nn.Module | None = None) -> ShortcutCase:
    """The planted shortcut: brain slices whose segmentation has one known cause, a letter in the corner, far from the RoI.

    The network was trained on two hospitals. Every slice has a lesion. Hospital A outlines lesions and burns an L into the corner;
    hospital B does neither. On held-out slices the network outlines the lesion if the letter is there, and nothing if it is
    not (:func:`shortcut_record` has the figures). Nothing is downloaded; the same arguments give the same case.

    Args:
        index: of the first held-out slice, from 0; there are 24.
        n_examples: number of slices, from ``index`` on.
        model: a network to explain in the place of the shipped one.

    Raises:
        ImportError: nilearn, whose wheel holds the brain, is not installed.
        ValueError: no such slice.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.evaluation.planted import load_shortcut_case, marker_findings
        >>> case = load_shortcut_case()
        >>> attr = AverageTreatmentEffect(case.target()).attribute(case.images, baselines=case.donors, n_draws=8)
        >>> marker_findings(attr, case)["found"].item()
        True
    """
    train, held_out = _slices()
    if index + n_examples > len(held_out):
        raise ValueError(
            f"index, n_examples: there are {len(held_out)} held-out slices, got index={index} and n_examples={n_examples}"
        )
    # Neighbors in the list lie in different parts of the brain.
    order = [(len(held_out) // 2 + 7 * case) % len(held_out) for case in range(index, index + n_examples)]
    drawn = [draw_shortcut_examples(held_out, [which], _CASE_SEED + which) for which in order]
    examples = ShortcutExamples(torch.cat([d.images for d in drawn]), torch.cat([d.lesions for d in drawn]))
    units = regions.grid(examples.images.shape[2:], BLOCK)
    bank = draw_shortcut_examples(train, np.linspace(0, len(train) - 1, _BANK_SIZE).round().astype(int).tolist(), _BANK_SEED)
    return ShortcutCase(
        model=load_shortcut_network() if model is None else model,
        images=examples.with_marker(),
        without_marker=examples.images,
        reference=examples.lesions,
        roi=torch.stack([_blocks_around(lesion, units) for lesion in examples.lesions])[:, None],
        marker=regions.box(units.shape, [block * BLOCK for block in MARKER_BLOCK], BLOCK),
        units=units,
        donors=PatchBank(bank.images),
        z_mm=held_out.z_mm[order],
    )


def _blocks_around(lesion: Tensor, units: Tensor, margin: int = 4) -> Tensor:
    """The box of whole blocks that holds the lesion and a margin of so many pixels."""
    places = lesion.nonzero().numpy()
    first = np.maximum(places.min(0) - margin, 0) // BLOCK * BLOCK
    stop = np.minimum((places.max(0) + margin) // BLOCK * BLOCK + BLOCK, units.shape)
    return regions.box(units.shape, first.tolist(), (stop - first).tolist())


@checked(attributions=tensor_of("real", "(N, C, *spatial)", (3, math.inf), finite=True), case=instance(ShortcutCase))
def marker_findings(attributions: Tensor, case: ShortcutCase) -> pd.DataFrame:
    """Does a map of attributions name the marker as the cause?

    Attributions are averaged over each block's pixels and channels, with their signs; blocks that touch the RoI are left out. This
    makes maps of pixels (integrated gradients), coarse maps (Grad-CAM) and maps of blocks comparable.

    Args:
        attributions: ``(N, C, H, W)`` for the case's images, of any number of channels. Upsample a layer's map first
            (``LayerAttribution.interpolate``).
        case: as :func:`load_shortcut_case` returned it.

    Returns:
        One row per example: ``rank`` of the marker's block by absolute value (1 is the strongest; among equals it gets the last
        place), ``signed_rank`` by signed value (1 is the most supporting), ``sign`` (-1, 0 or 1; the truth is 1), ``share`` of the
        sum of absolute values that is the marker's (0 where all are 0), ``found`` (rank 1 and positive), ``n_units`` that were ranked.

    Raises:
        ValueError: attributions of another shape than the case's images, or not finite.

    Example:
        >>> import torch
        >>> from captum_causalseg.evaluation.planted import load_shortcut_case, marker_findings
        >>> case = load_shortcut_case()
        >>> truth = case.marker.float().expand(1, 1, 96, 96)  # a map that names the marker, and nothing else
        >>> marker_findings(truth, case)[["rank", "sign", "share", "found"]].values.tolist()
        [[1, 1, 1.0, True]]
    """
    n, spatial = len(case), case.units.shape
    if attributions.ndim != 2 + len(spatial) or attributions.shape[0] != n or attributions.shape[2:] != spatial:
        raise ValueError(
            f"attributions: expected (N, C, *spatial) with N={n} and spatial shape {tuple(spatial)}, got "
            f"{tuple(attributions.shape)}; LayerAttribution.interpolate upsamples the map of a layer"
        )
    maps = attributions.detach().cpu().double().mean(1).flatten(1).numpy()
    units = case.units.cpu().numpy()
    size = np.bincount(units.ravel())
    rows = []
    for values, roi in zip(maps, case.roi[:, 0].cpu().numpy()):
        means = np.bincount(units.ravel(), weights=values) / size
        ranked = np.delete(means, np.unique(units[roi]))
        marker, total = means[case.marker_unit], np.abs(ranked).sum()
        rank = int((np.abs(ranked) >= abs(marker)).sum())
        rows.append(
            {
                "rank": rank,
                "signed_rank": int((ranked >= marker).sum()),
                "sign": int(np.sign(marker)),
                "share": float(abs(marker) / total) if total > 0 else 0.0,
                "found": bool(rank == 1 and marker > 0),
                "n_units": len(ranked),
            }
        )
    return pd.DataFrame(rows)
