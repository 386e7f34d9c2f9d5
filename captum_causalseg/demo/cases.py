"""Cases to explain: a brain slice with a trained network, or a picture of one's own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import regions
from captum_causalseg.demo.brain import CLASS_NAMES, load_brain_slices
from captum_causalseg.demo.network import WEIGHTS_FILE, build_network, fit, load_demo_network
from captum_causalseg.donors import DonorSource, PatchBank, SameImage

__all__ = ["BRAIN_ROI", "BRAIN_SLICE", "FIT_STEPS", "PICTURE_ROI", "PICTURE_SIZE", "Case", "brain_case", "picture_case"]


# In the held-out slice 10 mm above the anterior commissure: occipital cortex, where the network's Dice is 0.86.
BRAIN_SLICE = 12
BRAIN_ROI = ((184, 88), 32)
# The paper's size of images and its RoI on the picture that it shows.
PICTURE_SIZE = 256
PICTURE_ROI = ((72, 88), 32)
FIT_STEPS = 150


@dataclass(frozen=True)
class Case:
    """Something to explain: one image, a model, where to look, and donors.

    Args:
        title: says what it is.
        image: ``(1, C, H, W)``.
        network: the model.
        roi: boolean ``(H, W)``.
        reference: label map ``(H, W)``.
        donors: what blocks are replaced by.
        target: the class that is explained; ``None`` for a single one.
        class_name: what that class is called.
        place: what the region of interest is called.
        model_name: what the network is, in words.
        donors_name: what the donors are, in words.
        files: what each file is that the case was read from, and where it is.
    """

    title: str
    image: Tensor
    network: nn.Module
    roi: Tensor
    reference: Tensor
    donors: DonorSource
    target: int | None
    class_name: str
    place: str = "the region of interest"
    model_name: str = "a small U-Net"
    donors_name: str = "donors"
    files: tuple[tuple[str, Path], ...] = ()


def brain_case(box: tuple[tuple[int, ...], int] | None = None) -> Case:
    """A held-out brain slice with an RoI on the cortex; donors from the slices that the network was trained on."""
    train, held_out = load_brain_slices().split()
    image, reference = held_out.images[BRAIN_SLICE : BRAIN_SLICE + 1], held_out.labels[BRAIN_SLICE]
    start, size = box or BRAIN_ROI
    return Case(
        title=f"ICBM152 brain, axial slice at z = {held_out.z_mm[BRAIN_SLICE]:.0f} mm (held out)",
        image=image,
        network=load_demo_network(),
        roi=regions.box(image.shape[2:], start, size),
        reference=reference,
        donors=PatchBank(train.images),
        target=1,
        class_name=CLASS_NAMES[1],
        place=_place(start, size),
        model_name="the small U-Net that ships with the package",
        donors_name=f"places of the {len(train)} slices that the network was trained on",
        files=(("model", Path(__file__).parent / WEIGHTS_FILE),),
    )


def picture_case(
    image_file: Path, label_file: Path, patches_file: Path | None, box: tuple[tuple[int, ...], int] | None, seed: int = 0
) -> Case:
    """A picture of one's own with its mask, such as the paper's; a small network is fitted to augmented copies of it.

    Args:
        image_file: an RGB picture; it is resized to 256 x 256, as in the paper.
        label_file: a mask of the same size, 0 for background.
        patches_file: an ``.npz`` file that holds 8-bit patches ``(D, h, w, 3)``; without one, donors are cut from the picture.
        box: start and size of the RoI in the resized picture.
        seed: of the fit.
    """
    image, label = _read_picture(image_file, "RGB"), _read_picture(label_file, "L")
    if image.shape[1:] != label.shape[1:]:
        raise ValueError(f"--label: it has {_size(label)} pixels, the picture {_size(image)}")
    image = functional.interpolate(image[None], (PICTURE_SIZE,) * 2, mode="bilinear", align_corners=False, antialias=True)
    label = functional.interpolate(label[None], (PICTURE_SIZE,) * 2, mode="nearest-exact")[0, 0] > 0
    if not label.any() or label.all():
        raise ValueError(f"--label: {label_file} is the same everywhere; expected a mask with 0 for background")
    donors: DonorSource = SameImage()
    donors_name = "other places of the same picture"
    files = (("image", image_file), ("reference", label_file))
    if patches_file is not None:
        donors = PatchBank(_read_patches(patches_file))
        donors_name = f"the {len(donors)} patches of {patches_file.name}"
    print(f"No trained network goes with this picture: fitting a small one to it, {FIT_STEPS} steps ...", flush=True)
    network = fit(build_network(3, 1), image, label[None].long(), steps=FIT_STEPS, batch_size=4, seed=seed)
    start, size = box or PICTURE_ROI
    return Case(
        title=f"{image_file.stem}, a network fitted to this picture",
        image=image,
        network=network,
        roi=regions.box((PICTURE_SIZE,) * 2, start, size),
        reference=label,
        donors=donors,
        target=None,
        class_name="mask",
        place=_place(start, size),
        model_name=f"a small U-Net, fitted to this picture in {FIT_STEPS} steps",
        donors_name=donors_name,
        files=files if patches_file is None else (*files, ("donors", patches_file)),
    )


def _place(start: tuple[int, ...], size: int) -> str:
    return f"box:{','.join(map(str, start))}+{size}"


def _read_picture(file: Path, mode: str) -> Tensor:
    """``(C, H, W)`` in [0, 1]."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            values = np.asarray(picture.convert(mode), dtype=np.float32) / 255
    except (OSError, UnidentifiedImageError) as error:
        raise ValueError(f"{file}: cannot be read as a picture ({error})") from error
    return torch.from_numpy(values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0).copy())


def _read_patches(file: Path) -> Tensor:
    """``(D, 3, h, w)`` in [0, 1]."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            patches = archive["patches" if "patches" in archive.files else archive.files[0]]
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{file}: cannot be read as an .npz file of patches ({error})") from error
    if patches.ndim != 4 or patches.shape[-1] != 3 or patches.dtype != np.uint8:
        raise ValueError(f"{file}: expected 8-bit patches of shape (D, h, w, 3), found {patches.dtype} {patches.shape}")
    return torch.from_numpy(np.moveaxis(patches, -1, 1).astype(np.float32) / 255)


def _size(picture: Tensor) -> str:
    return f"{picture.shape[2]} x {picture.shape[1]}"
