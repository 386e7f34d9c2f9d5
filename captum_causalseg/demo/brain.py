"""Axial slices of a real brain with tissue labels, read from files which nilearn ships in its wheel.

The ICBM152 2009a nonlinear symmetric average of 152 adult T1-weighted scans (skull removed, 1 mm) and its grey- and
white-matter probability maps are part of the nilearn package, so nothing is downloaded. Because it is an average of
152 people mirrored at the mid-sagittal plane, it is blurrier than a single scan and its hemispheres are identical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from monai.transforms import ResizeWithPadOrCrop
from torch import Tensor
from torch.nn import functional

from captum_causalseg._checks import checked, integer, shown, tensor_of

CLASS_NAMES: tuple[str, str, str] = ("background", "grey matter", "white matter")
"""Meaning of the label values 0, 1 and 2. Background is air, fluid, vessels and everything else that is not tissue."""

NORMALIZATION = "T1 intensity divided by the maximum of the skull-stripped volume: [0, 1], 0 outside the brain"
"""How the image intensities are scaled."""


@dataclass(frozen=True)
class BrainSlices:
    """Axial T1 slices with tissue labels, ordered from inferior to superior.

    Rows run from anterior (row 0) to posterior and columns from the left of the brain to its right (the neurological
    convention), so ``imshow`` draws a slice nose up with the left hemisphere on the left. A pixel is 1 mm x 1 mm.

    Attributes:
        images: ``(D, 1, H, W)`` float32 in [0, 1], normalized over the whole volume (see ``NORMALIZATION``).
        labels: ``(D, H, W)`` int64, indices into ``CLASS_NAMES``.
        z_mm: ``(D,)`` float32, height of each slice in MNI space in mm, ascending.

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import BrainSlices
        >>> slices = BrainSlices(torch.rand(60, 1, 8, 8), torch.zeros(60, 8, 8, dtype=torch.long), torch.arange(60.0))
        >>> train, held_out = slices.split(slabs=2, slab=8)
        >>> len(train), len(held_out), len(slices.select(torch.tensor([3, 4])))
        (24, 16, 2)
    """

    images: Tensor
    labels: Tensor
    z_mm: Tensor

    def __len__(self) -> int:
        return len(self.z_mm)

    @checked(indices=tensor_of("labels", "(n,)", (1, 1)))
    def select(self, indices: Tensor) -> BrainSlices:
        """Return the slices at ``indices`` (int64) or where ``indices`` (bool, ``(D,)``) is true."""
        fits = len(indices) == len(self) if indices.dtype == torch.bool else bool((indices < len(self)).all())
        if not fits:
            raise ValueError(f"indices: expected booleans ({len(self)},) or integers below {len(self)}, got {shown(indices)}")
        indices = indices if indices.dtype == torch.bool else indices.long()
        return BrainSlices(self.images[indices], self.labels[indices], self.z_mm[indices])

    @checked(slabs=integer(1), slab=integer(1), margin=integer(0))
    def split(self, *, slabs: int = 3, slab: int = 8, margin: int = 5) -> tuple[BrainSlices, BrainSlices]:
        """Split into train and held-out slices that are not near copies of each other.

        Slices 1 mm apart are nearly the same picture, so single held-out slices would be known from their neighbors.
        Instead, contiguous slabs spread evenly over the height of the brain are held out, and the slices around each
        of them go to neither part. With the default margin, a held-out slice is at least 6 mm from any train slice, and
        copying the labels of the nearest one reaches a Dice of only about 0.6.

        Args:
            slabs: number of held-out slabs.
            slab: slices per slab.
            margin: slices dropped on each side of a slab.

        Returns:
            The train slices and the held-out slices.
        """
        depth = len(self)
        if slabs * (slab + 2 * margin) >= depth:
            raise ValueError(
                f"slabs, slab, margin: {slabs} slabs of {slab} slices with margins of {margin} leave none of {depth} to train"
            )
        held_out = torch.zeros(depth, dtype=torch.bool)
        train = torch.ones(depth, dtype=torch.bool)
        for i in range(slabs):
            center = depth * (2 * i + 1) // (2 * slabs)
            start = center - slab // 2
            held_out[start : start + slab] = True
            train[max(start - margin, 0) : start + slab + margin] = False
        return self.select(train), self.select(held_out)


def load_brain_slices(*, size: tuple[int, int] = (240, 208), min_brain_mm2: float = 5000.0) -> BrainSlices:
    """Cut the ICBM152 T1 brain that comes with nilearn into labeled axial slices, without network access.

    A pixel is labeled with the most probable of background, grey matter and white matter, where the probability of
    background is what the other two leave.

    Args:
        size: height and width in pixels (mm) to which the slices are padded or cropped about the center of the
            volume. The default holds the whole 233 x 197 volume and is divisible by 16, as the demo network needs.
        min_brain_mm2: slices with less brain than this, in mm², are left out.

    Raises:
        ImportError: if nilearn is not installed.

    Example:
        >>> from captum_causalseg.demo import CLASS_NAMES, load_brain_slices
        >>> slices = load_brain_slices()
        >>> slices.images.shape[1:], CLASS_NAMES[int(slices.labels.max())]
        (torch.Size([1, 240, 208]), 'white matter')
    """
    try:
        from nilearn import datasets
    except ImportError as error:
        raise ImportError('the demo brain comes with nilearn: install it with pip install "captum-causalseg[demo]"') from error

    template, z_mm = _read_axial(datasets.load_mni152_template)
    grey, _ = _read_axial(datasets.load_mni152_gm_template)
    white, _ = _read_axial(datasets.load_mni152_wm_template)
    labels = np.stack([1.0 - grey - white, grey, white]).argmax(axis=0)

    keep = (template > 0).sum(axis=(1, 2)) >= min_brain_mm2
    fit_size = ResizeWithPadOrCrop(spatial_size=size)
    return BrainSlices(
        images=torch.as_tensor(np.asarray(fit_size(template[keep])))[:, None].contiguous(),
        labels=torch.as_tensor(np.asarray(fit_size(labels[keep]))).long().contiguous(),
        z_mm=torch.from_numpy(z_mm[keep]),
    )


def coarse_brain_slices() -> tuple[BrainSlices, BrainSlices]:
    """Train and held-out slices, 96 x 96 pixels of 2 mm, labeled 1 where most of a pixel is tissue: what lesions are drawn into."""
    slices = load_brain_slices(size=(192, 192))
    images = functional.avg_pool2d(slices.images, 2)
    tissue = functional.avg_pool2d((slices.labels > 0).float()[:, None], 2)[:, 0] > 0.5
    return BrainSlices(images, tissue.long(), slices.z_mm).split()


def _read_axial(load: Callable[..., Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return a 1 mm template as ``(z, rows, columns)`` slices, anterior up and left on the left, and their z in mm."""
    from nilearn.image import reorder_img

    # Canonical axes run to the right, to the front and up, whatever the storage order of the file.
    image = reorder_img(load(resolution=1))
    volume = np.asarray(image.dataobj, dtype=np.float32)
    z_mm = image.affine[2, 3] + image.affine[2, 2] * np.arange(volume.shape[2])
    return np.flip(volume.transpose(2, 1, 0), axis=1).copy(), z_mm.astype(np.float32)
