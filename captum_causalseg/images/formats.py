"""Image files: which of MONAI's readers reads them, and what to say of those that cannot be read."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_causalseg._checks import shown
from captum_causalseg.images.dicom import dicom_reader, is_dicom

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["NIFTI_ENDINGS", "ImageFormat", "needed_package", "oriented", "read_file", "reason", "with_axes"]

NIFTI_ENDINGS = (".nii", ".nii.gz")


@dataclass(frozen=True)
class ImageFormat:
    """A kind of file, known by the endings of its names."""

    name: str
    endings: tuple[str, ...]
    package: str
    """What MONAI's reader needs."""
    make_reader: Callable[[Path, bool], Any]
    """From the path, and whether values are labels."""
    has_geometry: bool = True


def read_file(path: str | Path, labels: bool, name: str = "path") -> "tuple[MetaTensor, ImageFormat]":
    """The image ``(C, *spatial)`` as its file has it; labels in float64, which holds large ones.

    ``name`` is the argument that the path came in.
    """
    from monai.data import MetaTensor
    from monai.transforms import EnsureChannelFirst

    source = Path(path).expanduser()
    if not source.exists():
        raise FileNotFoundError(f"{name}: there is no file {source}")
    kind = _format_of(source, name)
    needed_package(kind.package, f"{kind.name} files")
    reader = kind.make_reader(source, labels)
    try:
        # LoadImage does the same, but makes a reader of every kind first (with warnings of their own) and, where the right one
        # fails, tries the others and reports on them all.
        array, metadata = reader.get_data(reader.read(source))
    except Exception as error:
        raise ValueError(f"{name}: {source} cannot be read as {kind.name}: {reason(error)}") from error
    # In native byte order; PyTorch knows no other.
    array = np.asarray(array).astype(np.float64 if labels else np.float32)
    image = EnsureChannelFirst()(MetaTensor.ensure_torch_and_prune_meta(array, metadata | {"filename_or_obj": str(source)}))
    if image.numel() == 0:
        raise ValueError(f"{name}: {source} is empty, its shape is {tuple(image.shape)}")
    return image, kind


def with_axes(image: "MetaTensor", path: str | Path, spatial_dims: int | None) -> "MetaTensor":
    """With as many spatial axes as asked for, at least 2 and at most 3."""
    axes = image.ndim - 1
    if spatial_dims == 2 and axes == 3 and image.shape[-1] == 1:
        return image[..., 0]
    if axes not in ((2, 3) if spatial_dims is None else (spatial_dims,)):
        expected = "2 or 3" if spatial_dims is None else str(spatial_dims)
        raise ValueError(f"path: {path} holds {axes} spatial axes {tuple(image.shape[1:])}, expected {expected}")
    return image


def oriented(image: "MetaTensor", orientation: str | None) -> "MetaTensor":
    """With the axes of a volume turned toward these directions; None leaves them."""
    if orientation is None:
        return image
    from monai.transforms import Orientation

    if image.ndim != 4:
        raise ValueError(f"orientation: expected a volume to turn to {orientation!r}, got an image of {tuple(image.shape[1:])}")
    pairs = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}
    if sorted(pairs.get(letter, "") for letter in str(orientation)) != ["AP", "RL", "SI"]:
        raise ValueError(
            f'orientation: expected one of R/L, of A/P and of S/I in any order, such as "RAS", got {shown(orientation)}'
        )
    return Orientation(axcodes=orientation, labels=(("L", "R"), ("P", "A"), ("I", "S")))(image)


def _format_of(source: Path, argument: str) -> ImageFormat:
    if source.is_dir():
        return _DICOM
    name = source.name.lower()
    for kind in (*_FORMATS, _DICOM):
        if name.endswith(kind.endings):
            return kind
    if is_dicom(source):
        return _DICOM
    known = ", ".join(ending for kind in (*_FORMATS, _DICOM) for ending in kind.endings)
    raise ValueError(f"{argument}: the kind of {source} is not known; expected a DICOM file or a name that ends in {known}")


def _nifti_reader(source: Path, labels: bool) -> Any:
    from monai.data import NibabelReader

    return NibabelReader(squeeze_non_spatial_dims=True)


def _nrrd_reader(source: Path, labels: bool) -> Any:
    from monai.data import NrrdReader

    return NrrdReader(dtype=np.float64 if labels else np.float32)


def _itk_reader(source: Path, labels: bool) -> Any:
    from monai.data import ITKReader

    return ITKReader()


def _picture_reader(source: Path, labels: bool) -> Any:
    from monai.data import PILReader

    def one_frame(picture: Any) -> Any:
        # Read here, so that the file is closed, also where it turns out to be damaged.
        with picture:
            # Phones put a second, smaller picture into their JPEG files.
            if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
                raise ValueError(f"it holds {picture.n_frames} frames, expected one")
            picture.load()
        if picture.mode != "P" or labels:
            return picture
        # The numbers of a palette mean labels or nothing.
        colored = picture.convert("RGB")
        colored.format = picture.format
        return colored

    return PILReader(converter=one_frame, reverse_indexing=False)


def _dicom(source: Path, labels: bool) -> Any:
    return dicom_reader(source)


_FORMATS = (
    ImageFormat(name="NIfTI", endings=NIFTI_ENDINGS, package="nibabel", make_reader=_nifti_reader),
    ImageFormat(name="NRRD", endings=(".nrrd",), package="nrrd", make_reader=_nrrd_reader),
    ImageFormat(name="MetaImage", endings=(".mha", ".mhd"), package="itk", make_reader=_itk_reader),
    ImageFormat(
        name="PNG, JPEG, BMP or TIFF",
        endings=(".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"),
        package="PIL",
        make_reader=_picture_reader,
        has_geometry=False,
    ),
)
_DICOM = ImageFormat(name="DICOM", endings=(".dcm",), package="pydicom", make_reader=_dicom)


def needed_package(name: str, purpose: str) -> Any:
    """Import a package, or say what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        distribution = {"nrrd": "pynrrd", "PIL": "pillow"}.get(name, name)
        install = "pip install itk" if name == "itk" else 'pip install "captum-causalseg[io]"'
        raise ImportError(f"{purpose} need {distribution}: {install}") from error


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
