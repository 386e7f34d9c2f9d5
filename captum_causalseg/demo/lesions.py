"""Synthetic lesions in a real brain: drawn at random, so that there are as many different ones as wanted, and no patient's data."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg._checks import SEED, checked, integer, shown, tensor_of
from captum_causalseg.demo.brain import BrainSlices, coarse_brain_slices

_SEMI_AXES = (3.0, 8.0)
_IRREGULARITY = 0.15
_SOFTNESS = 0.25
_CORE_LEVELS, _RIM_LEVELS = (0.15, 0.6), (0.9, 1.1)
_RIM_SHARE, _RIM_INNER = 0.5, 0.7
_TEXTURE = 0.04
_DEPTH = 3


@dataclass(frozen=True)
class Lesions:
    """Images with one synthetic lesion in each, as :func:`draw_lesions` draws them.

    Attributes:
        images: ``(N, 1, *spatial)`` float32 with the lesions; healthy tissue lies in [0, 1].
        masks: ``(N, *spatial)`` bool, the lesions, their rims included.
        has_rim: ``(N,)`` bool, which lesions have a bright rim.
        contrast: ``(N,)`` float32, how much darker the core is than what was there before, in units of intensity. It is negative where
            a lesion lies in what was darker still.

    Example:
        >>> from captum_causalseg.demo import load_lesion_slices
        >>> _, held_out = load_lesion_slices()
        >>> with_rim = held_out.select(held_out.has_rim)
        >>> bool(with_rim.has_rim.all()), 0 < len(with_rim) < len(held_out)
        (True, True)
    """

    images: Tensor
    masks: Tensor
    has_rim: Tensor
    contrast: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @checked(indices=tensor_of("labels", "(n,)", (1, 1)))
    def select(self, indices: Tensor) -> "Lesions":
        """Return the images at ``indices`` (int64) or where ``indices`` (bool, ``(N,)``) is true."""
        fits = len(indices) == len(self) if indices.dtype == torch.bool else bool((indices < len(self)).all())
        if not fits:
            raise ValueError(f"indices: expected booleans ({len(self)},) or integers below {len(self)}, got {shown(indices)}")
        indices = indices if indices.dtype == torch.bool else indices.long()
        return Lesions(**{name: values[indices] for name, values in vars(self).items()})


@checked(
    images=tensor_of("float", "(N, 1, *spatial)", (3, np.inf), finite=True, may_be_empty=False),
    places=tensor_of("labels", "(N, *spatial)", (2, np.inf)),
    seed=SEED,
)
def draw_lesions(images: Tensor, places: Tensor, *, seed: int = 0) -> Lesions:
    """Draw one synthetic lesion into each image: size, outline, brightness, texture and place are random.

    A lesion is an ellipsoid with an irregular, soft edge; its semi-axes are 3 to 8 pixels long. Its core is as dark as fluid, as bright as
    gray matter, or in between, and half of the lesions have a bright rim, as some have after contrast medium was given. They are made up:
    no scan of a patient was used, and their statistics are not those of any disease.

    Args:
        images: ``(N, 1, *spatial)`` float of any number of spatial dimensions, tissue in [0, 1] and 0 where there is none.
        places: ``(N, *spatial)`` bool, where the middle of a lesion may lie; at least one place in each image.
        seed: of the lesions. Lesion ``i`` depends on the seed, on ``i`` and on image ``i`` alone.

    Raises:
        ValueError: shapes that do not go together, or an image without a place.

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import draw_lesions
        >>> volumes = torch.full((2, 1, 24, 24, 24), 0.8)
        >>> places = torch.zeros(2, 24, 24, 24, dtype=torch.bool)
        >>> places[:, 12, 12, 12] = True
        >>> lesions = draw_lesions(volumes, places)
        >>> lesions.images.shape, lesions.masks[:, 12, 12, 12].tolist()
        (torch.Size([2, 1, 24, 24, 24]), [True, True])
    """
    if images.shape[1] != 1 or places.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"images, places: expected shapes (N, 1, *spatial) and (N, *spatial), got {tuple(images.shape)} and {tuple(places.shape)}"
        )
    drawn = []
    for number, (image, allowed) in enumerate(zip(images[:, 0].cpu().numpy(), places.cpu().numpy())):
        if not allowed.any():
            raise ValueError(f"places: expected at least one place for a lesion in each image, got none in image {number}")
        drawn.append(_with_lesion(image, allowed.astype(bool), np.random.default_rng([seed, number])))
    pictures, masks, rims, contrasts = zip(*drawn)
    return Lesions(
        images=torch.from_numpy(np.stack(pictures).astype(np.float32))[:, None].to(images.device),
        masks=torch.from_numpy(np.stack(masks)).to(images.device),
        has_rim=torch.tensor(rims, device=images.device),
        contrast=torch.tensor(contrasts, dtype=torch.float32, device=images.device),
    )


def _with_lesion(
    image: npt.NDArray[np.float32], places: npt.NDArray[np.bool_], rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_], bool, float]:
    """The image with a lesion, the lesion, whether it has a rim, and its contrast."""
    center = rng.choice(np.argwhere(places))
    axes = rng.uniform(*_SEMI_AXES, image.ndim)
    turn, _ = np.linalg.qr(rng.standard_normal((image.ndim, image.ndim)))
    away = (np.indices(image.shape).reshape(image.ndim, -1).T - center) @ turn / axes
    bumps = _smooth_noise(image.shape, float(axes.mean()) / 3, rng)
    radius = np.linalg.norm(away, axis=1).reshape(image.shape) * np.exp(_IRREGULARITY * bumps)
    mask = (radius <= 1) & (image > 0)

    core, rim = rng.uniform(*_CORE_LEVELS), rng.uniform(*_RIM_LEVELS)
    has_rim = bool(rng.random() < _RIM_SHARE)
    level = core + (rim - core) * _step(radius - _RIM_INNER) * has_rim
    level = level + _TEXTURE * _smooth_noise(image.shape, 1.0, rng)
    inside = _step(1 - radius) * (image > 0)
    contrast = float(image[mask].mean() - core) if mask.any() else 0.0
    return np.maximum(image + inside * (level - image), 0), mask, has_rim, contrast


def _step(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """From 0 to 1 where the distance passes 0, softly."""
    return np.asarray(np.clip(distance / _SOFTNESS + 0.5, 0, 1))


def _smooth_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Of mean 0 and variance 1 over the image."""
    noise = np.asarray(ndimage.gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap"))
    return np.asarray((noise - noise.mean()) / max(float(noise.std()), float(np.finfo(np.float64).tiny)))


@checked(copies=integer(1), seed=SEED)
def load_lesion_slices(*, copies: int = 1, seed: int = 0) -> tuple[Lesions, Lesions]:
    """Slices of the demo's brain with a synthetic lesion in each, to train with and held out; needs nilearn, downloads nothing.

    A slice has 96 x 96 pixels of 2 mm. Held-out slices are at least 6 mm away from all others, as in :meth:`BrainSlices.split`, and
    lesions lie at least 3 pixels deep in tissue.

    Args:
        copies: how many times each slice is repeated, with another lesion each time. The first 67 train slices and the first 24
            held-out ones, from the bottom up, are the same whatever the number.
        seed: of the lesions.

    Raises:
        ImportError: nilearn, whose wheel holds the brain, is not installed.

    Example:
        >>> from captum_causalseg.demo import load_demo_network, load_lesion_slices
        >>> _, held_out = load_lesion_slices()
        >>> found = load_demo_network("lesion")(held_out.images)[:, 0] > 0
        >>> overlap = 2 * (found & held_out.masks).sum() / (found.sum() + held_out.masks.sum())
        >>> held_out.images.shape, bool(overlap > 0.7)
        (torch.Size([24, 1, 96, 96]), True)
    """
    train, held_out = (
        _drawn_into(slices, copies=copies, seed=seed + part) for part, slices in enumerate(coarse_brain_slices())
    )
    return train, held_out


def _drawn_into(slices: BrainSlices, *, copies: int, seed: int) -> Lesions:
    tissue = (slices.labels > 0).numpy()
    deep = torch.from_numpy(np.stack([ndimage.binary_erosion(one, iterations=_DEPTH) for one in tissue]))
    return draw_lesions(slices.images.repeat(copies, 1, 1, 1), deep.repeat(copies, 1, 1), seed=seed)
