"""Scans, pictures and label maps read from files."""

from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg._checks import NONE, PATH, checked, integer, one_of
from captum_causalseg.images.formats import oriented, read_file, with_axes

if TYPE_CHECKING:
    from monai.data import MetaTensor
from captum_causalseg.images.grid import with_metadata

__all__ = ["load_image", "load_label"]


_READING = {"path": PATH, "spatial_dims": one_of(2, 3, None)}


@checked(**_READING, n_channels=NONE | integer(1))
def load_image(
    path: str | Path, *, n_channels: int | None = None, spatial_dims: int | None = None, orientation: str | None = None
) -> "MetaTensor":
    """Read one image: NIfTI, NRRD, MetaImage, a DICOM file or a folder with one DICOM series, PNG, JPEG, BMP or TIFF.

    MONAI's readers do the reading. Scans keep the axes of their file, and the affine maps voxels to millimeters (RAS, as in NIfTI).
    **Pictures come as** ``(1, C, rows, columns)``, as in Pillow and torchvision; MONAI's own ``LoadImage`` swaps the two axes.
    Intensities are those of the file.

    Args:
        path: the file or folder.
        n_channels: how many channels there must be. ``None``: any number in a picture, one in a scan. A fourth axis of a volume
            is taken for channels only where their number is given here: it may as well be time.
        spatial_dims: how many spatial axes there must be, 2 or 3; with 2, a volume of one slice along its last axis is that slice.
        orientation: turn a volume so that its axes run toward these directions, such as ``"RAS"`` (MONAI's ``Orientation``).

    Returns:
        ``MetaTensor`` ``(1, C, *spatial)``, float32.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ImportError: the package that reads this format is not installed.
        ValueError: the file is damaged or of an unknown kind, has other axes than expected, or holds NaN or infinite values.

    Example:
        >>> import tempfile, pathlib, nibabel, numpy
        >>> from captum_causalseg import images
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "scan.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(numpy.zeros((4, 5, 6), dtype="float32"), numpy.diag([1, 1, 3, 1])), path)
        >>> scan = images.load_image(path)
        >>> scan.shape, scan.affine.diagonal().tolist()
        (torch.Size([1, 1, 4, 5, 6]), [1.0, 1.0, 3.0, 1.0])
    """
    image, kind = read_file(path, labels=False)
    image = with_axes(image, path, spatial_dims)
    if n_channels is None and image.shape[0] > 1 and kind.has_geometry:
        raise ValueError(
            f"path: {path} holds {image.ndim - 1} spatial axes and another of length {image.shape[0]}; "
            f"pass n_channels={image.shape[0]} if these are channels, or take one image out of the series"
        )
    if n_channels is not None and image.shape[0] != n_channels:
        raise ValueError(f"path: {path} holds {image.shape[0]} channel(s), expected n_channels={n_channels}")
    missing = int((~image.as_tensor().isfinite()).sum())
    if missing:
        raise ValueError(f"path: {path} holds {missing} NaN or infinite values")
    return oriented(image, orientation)[None]


@checked(**_READING)
def load_label(path: str | Path, *, spatial_dims: int | None = None, orientation: str | None = None) -> "MetaTensor":
    """Read a label map (one whole number per pixel) from any file that :func:`load_image` reads.

    Numbers are those of the file: a mask drawn as a picture is mostly 0 and 255. In pictures with a palette they are the indices.

    Args:
        path: the file.
        spatial_dims: as in :func:`load_image`.
        orientation: as in :func:`load_image`; give both the same.

    Returns:
        ``MetaTensor`` ``(1, 1, *spatial)``, int64.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        ImportError: the package that reads this format is not installed.
        ValueError: the file is damaged or of an unknown kind, has other axes than expected, or holds fractions.

    Example:
        >>> import tempfile, pathlib, nibabel, numpy
        >>> from captum_causalseg import images, regions
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "label.nii.gz"
        >>> nibabel.save(nibabel.Nifti1Image(numpy.array([[[0, 1, 2]]], dtype="uint8"), numpy.eye(4)), path)
        >>> label = images.load_label(path)
        >>> regions.from_label(label, 2).tolist()
        [[[[[False, False, True]]]]]
    """
    image, _ = read_file(path, labels=True)
    image = with_axes(image, path, spatial_dims)
    if image.shape[0] != 1:
        raise ValueError(f"path: {path} holds {image.shape[0]} channels, expected one, with a label per pixel")
    values = image.as_tensor()
    # A scale factor in the header is a float32, and what it multiplies is whole to its rounding only.
    if not bool(((values - values.round()).abs() <= 1e-4).all()):
        raise ValueError(f"path: {path} holds fractions or NaN, expected whole numbers as labels")
    return oriented(with_metadata(values.round().long(), image), orientation)[None]
