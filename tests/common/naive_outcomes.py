"""Outcomes beyond Dice, written naively: distances, components, volumes, calibration; and masks to try them on."""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.metrics import METRICS

Pixel = tuple[int, ...]
NEW = [
    *("average_surface_distance", "hausdorff_95", "detection", "uniformity", "boundary_alignment", "soft_boundary_alignment"),
    *("relative_volume", "soft_relative_volume", "volumetric_similarity", "soft_volumetric_similarity", "brier"),
    "best_dice",
]

SHAPES = [(12,), (7, 8), (4, 5, 4)]


def pixels_of(mask: np.ndarray) -> list[Pixel]:
    return list(map(tuple, np.argwhere(mask)))


def naive_outline(mask: np.ndarray, roi: np.ndarray) -> list[Pixel]:
    """Pixels in object and RoI with a face neighbor that is in the RoI but not in the object, or is no pixel at all."""
    found = []
    for pixel in pixels_of(mask & roi):
        neighbors = [(*pixel[:a], pixel[a] + step, *pixel[a + 1 :]) for a in range(mask.ndim) for step in (-1, 1)]
        outside = [any(not 0 <= i < length for i, length in zip(other, mask.shape)) for other in neighbors]
        if any(out or (roi[other] and not mask[other]) for out, other in zip(outside, neighbors)):
            found.append(pixel)
    return found


def naive_distances(first: np.ndarray, second: np.ndarray, roi: np.ndarray, spacing: np.ndarray):
    """Distances there and back, or a single number where there are none."""
    one, other = naive_outline(first, roi), naive_outline(second, roi)
    where = np.argwhere(roi)
    worst = np.linalg.norm((where.max(0) - where.min(0) + 1) * spacing)
    if not one or not other:
        return 0.0 if not one and not other and pixels_of(first & roi) == pixels_of(second & roi) else worst

    def nearest(pixel: Pixel, others: list[Pixel]) -> float:
        return min(float(np.linalg.norm(np.subtract(pixel, q) * spacing)) for q in others)

    return [nearest(p, other) for p in one], [nearest(q, one) for q in other]


def percentile(values: list[float], share: float) -> float:
    """With linear interpolation between the order statistics."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def naive_hausdorff(first, second, roi, spacing=1.0) -> float:
    found = naive_distances(first, second, roi, np.broadcast_to(spacing, first.ndim))
    return -found if isinstance(found, float) else -max(percentile(found[0], 0.95), percentile(found[1], 0.95))


def blobs(rng: np.random.Generator, shape: tuple[int, ...], filled: float) -> np.ndarray:
    """Objects with an inside that fill this share of the image."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 0.8, mode="wrap")
    return noise > np.quantile(noise, 1 - filled) if 0 < filled < 1 else np.full(shape, filled > 0.5)


def masks(seed: int, shape: tuple[int, ...], n: int = 1, c: int = 1, r: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Hard prediction ``(n, c, *shape)``, reference and RoIs ``(n, r, *shape)``; now and then empty or full ones."""
    rng = np.random.default_rng(seed)
    shares = [0.0, 0.2, 0.4, 0.6, 1.0]
    first, second = (
        np.stack([[blobs(rng, shape, rng.choice(shares)) for _ in range(c)] for _ in range(n)]).astype(np.float64) for _ in "ab"
    )
    roi = rng.random((n, r, *shape)) < 0.9
    for example, k in np.ndindex(n, r):
        cut = [np.sort(rng.choice(length + 1, 2, replace=False)) for length in shape]
        box = np.zeros(shape, dtype=bool)
        box[tuple(slice(a, b) for a, b in cut)] = True
        roi[example, k] &= box
        roi[example, k][tuple(a for a, _ in cut)] = True
    return torch.from_numpy(first), torch.from_numpy(second), torch.from_numpy(roi)


def softened(prediction: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.7 * prediction + 0.3 * torch.rand(prediction.shape, generator=generator, dtype=prediction.dtype)).clamp(0, 1)


def values_for(metric: str, prediction: Tensor, seed: int) -> Tensor:
    return prediction if METRICS[metric].domain == "labels" else softened(prediction, seed)


def whole(values: Tensor) -> Tensor:
    return torch.ones_like(values[:, :1], dtype=torch.bool)


def score(metric: str, prediction: Tensor, reference: Tensor, roi: Tensor, **options) -> float:
    target = SegmentationTarget(nn.Identity(), roi, reference, metric, "none", **options)
    return target(prediction[None, None].double()).item()


class Net(nn.Module):
    """Three exclusive classes that depend on what lies up to four pixels away; steep, so that donors flip pixels."""

    def __init__(self, n_spatial: int) -> None:
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[n_spatial]
        with torch.random.fork_rng():
            torch.manual_seed(n_spatial)
            self.first = conv(1, 4, 3, padding=1)
            self.second = conv(4, 3, 3, padding=3, dilation=3)

    def forward(self, x: Tensor) -> Tensor:
        return 4 * self.second(torch.sin(8 * self.first(x)))


EXPLAINED = {2: ((16, 12), (4, 4), 8, 4), 3: ((8, 12, 8), (2, 4, 2), 4, 4)}
"""Image, corner and edge of the RoI, edge of a unit."""


def scene(n_spatial: int) -> tuple[nn.Module, Tensor, Tensor, Tensor, Tensor, int]:
    spatial, start, size, block = EXPLAINED[n_spatial]
    generator = torch.Generator().manual_seed(n_spatial)
    images, donors = (torch.rand((n, 1, *spatial), generator=generator) for n in (2, 3))
    model = Net(n_spatial).eval()
    # A reference that the model meets in part: its own prediction on a slightly different image.
    labels = model(images + 0.02 * torch.randn(images.shape, generator=generator)).argmax(1)
    return model, images, donors, labels, regions.box(spatial, start, size if n_spatial == 2 else (4, 4, 4)), block


def score_of(metric: str, n_spatial: int = 2, **options) -> tuple[SegmentationTarget, Tensor, Tensor]:
    model, images, donors, labels, roi, _ = scene(n_spatial)
    return SegmentationTarget(model, roi, reference=labels, metric=metric, **options), images, donors
