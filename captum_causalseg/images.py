"""Images with geometry: scans read from files, and effect maps written so that any viewer opens them over the scan.

Reading and writing need packages that come with ``pip install "captum-causalseg[io]"``.
"""

from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from captum_causalseg._checks import NONE, PATH, TEXT, array_of, checked, integer, number, one_of, tensor_of
from captum_causalseg._files import written_whole
from captum_causalseg._image_files import NIFTI_ENDINGS, needed_package, oriented, read_file, reason, with_axes

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["check_same_grid", "invert", "load_image", "load_label", "save_map", "spacing_of", "with_metadata"]

_GRID = tensor_of("real", "(N, C, *spatial) with 1 to 3 spatial axes", (3, 5), may_be_empty=False)
_READING = {"path": PATH, "spatial_dims": one_of(2, 3, None)}

# MONAI takes seconds to import and this module is imported with the package, so the functions import it when they need it.


@checked(**_READING, n_channels=NONE | integer(1))
def load_image(
    path: str | Path, *, n_channels: int | None = None, spatial_dims: int | None = None, orientation: str | None = None
) -> "MetaTensor":
    """Read one image: NIfTI, NRRD, MetaImage, a DICOM file or a folder with one DICOM series, PNG, JPEG, BMP or TIFF.

    MONAI's readers do the reading. Scans keep the axes of their file, and the affine maps voxels to millimeters (RAS, as in NIfTI).
    **Pictures come as** ``(1, C, rows, columns)``, as Pillow and torchvision have them; MONAI's own ``LoadImage`` turns them.
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


@checked(image=_GRID, label=_GRID, tolerance=number(0))
def check_same_grid(image: Tensor, label: Tensor, tolerance: float = 0.01) -> None:
    """Raise unless two images have the same pixels at the same places.

    Args:
        image: ``(N, C, *spatial)``.
        label: ``(N, C, *spatial)``; both numbers of channels are free.
        tolerance: how far apart corners may lie, in edges of the smallest voxel side. Tensors without an affine are compared
            by their shapes.

    Raises:
        ValueError: shapes or affines differ; the message says both.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> scan = MetaTensor(torch.rand(1, 1, 8, 8, 4), affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))
        >>> images.check_same_grid(scan, scan > 0.5)
        >>> images.check_same_grid(scan, MetaTensor(scan.as_tensor() > 0.5))
        Traceback (most recent call last):
        ...
        ValueError: label: it lies elsewhere than the image. Affine of the image: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0]]; of the label: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    """
    if image.shape[2:] != label.shape[2:] or len(image) != len(label):
        raise ValueError(
            f"label: expected the image's grid, {len(image)} example(s) of {tuple(image.shape[2:])}, got {len(label)} of "
            f"{tuple(label.shape[2:])}"
        )
    for first, second in zip(_affines(image), _affines(label)):
        if first is None or second is None:
            continue
        axes = [(0, max(length - 1, 1)) for length in image.shape[2:]] + [(0, 0)] * (5 - image.ndim)
        corners = np.array([*np.meshgrid(*axes, indexing="ij"), np.ones((2, 2, 2))]).reshape(4, -1)
        edges = np.linalg.norm(first[:3, : image.ndim - 2], axis=0)
        apart = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
        if not apart <= tolerance * edges.min():
            raise ValueError(
                "label: it lies elsewhere than the image. Affine of the image: "
                f"{_written(first)}; of the label: {_written(second)}"
            )


def with_metadata(values: Any, like: Any) -> Any:
    """The same values with the metadata (affine, applied transforms) of the images they are about.

    Attributions of :class:`~captum_causalseg.AverageTreatmentEffect` and of its peers went through this already.

    Args:
        values: a tensor, or a tuple of them; metadata of its own is replaced.
        like: a ``MetaTensor`` of the same spatial shape, or a tuple of as many; what is no ``MetaTensor`` leaves the values as
            they are.

    Returns:
        ``MetaTensor`` (or a tuple of them), on the same memory.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> scan = MetaTensor(torch.rand(1, 1, 8, 8), affine=torch.diag(torch.tensor([2.0, 2.0, 1.0, 1.0])))
        >>> images.with_metadata(torch.zeros(1, 1, 8, 8), scan).affine.diagonal().tolist()
        [2.0, 2.0, 1.0, 1.0]
    """
    if isinstance(values, tuple):
        if not isinstance(like, (tuple, list)) or len(like) != len(values):
            raise ValueError(f"like: expected a tuple of {len(values)}, as many as there are values")
        return tuple(with_metadata(one, other) for one, other in zip(values, like))
    tensor_of()("values", values)
    tensor_of()("like", like)
    if type(like) is Tensor:
        return values
    from monai.data import MetaTensor

    if not isinstance(like, MetaTensor):
        return values
    if values.shape[2:] != like.shape[2:]:
        raise ValueError(
            f"values: expected the spatial shape of the images, {tuple(like.shape[2:])}, whose places they are about, got "
            f"{tuple(values.shape)}"
        )
    # MONAI's own copy_meta_from would share the affine: who changes one changes both.
    result = MetaTensor(values.as_subclass(Tensor))
    vars(result).update(deepcopy(vars(like)))
    return result


@checked(path=PATH, values=array_of("real", may_be_empty=False), like=_GRID | PATH)
def save_map(path: str | Path, values: Tensor | np.ndarray, like: "MetaTensor | str | Path") -> None:
    """Write a map of effects (or of anything else) as NIfTI, so that viewers open it over the scan.

    The file appears when it is complete: it is written beside and renamed.

    Args:
        path: the file to write, ``.nii`` or ``.nii.gz``; what is there is replaced.
        values: one map ``(*spatial)``, ``(C, *spatial)`` or ``(1, C, *spatial)``, such as an attribution or
            ``statistics.to_map()``; NaN stays NaN. Several channels become the file's fourth axis.
        like: the image it belongs to, ``(1, C, *spatial)`` with its affine, or the file that it came from.

    Raises:
        FileNotFoundError: there is no folder for ``path``, or nothing at ``like``.
        ImportError: nibabel is not installed.
        TypeError: ``like`` has no geometry.
        ValueError: another ending, or a map of another shape than the image.

    Example:
        >>> import tempfile, pathlib, torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> scan = MetaTensor(torch.rand(1, 1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0])))
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "effects.nii.gz"
        >>> images.save_map(path, torch.zeros(4, 5, 6), like=scan)
        >>> images.load_image(path).pixdim.tolist()
        [1.0, 1.0, 3.0]
    """
    destination = Path(path).expanduser()
    ending = next((known for known in reversed(NIFTI_ENDINGS) if destination.name.endswith(known)), None)
    if ending is None:
        raise ValueError(f"path: expected a name that ends in .nii or .nii.gz, got {destination.name}")
    if not destination.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {destination.parent}")
    nibabel = needed_package("nibabel", "NIfTI files")
    shape, affine = _grid(like)
    array = values.detach().as_subclass(Tensor).cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    lead = array.ndim - len(shape)
    if not 0 <= lead <= 2 or array.shape[lead:] != shape or (lead == 2 and len(array) != 1):
        raise ValueError(
            f"values: expected one map of the image's spatial shape {shape} (or with axes for channels and one example before "
            f"them), got {array.shape}"
        )
    array = array.astype(np.float32).reshape(-1, *shape, *(1,) * (3 - len(shape)))
    picture = nibabel.Nifti1Image(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1), affine)
    picture.header.set_xyzt_units("mm")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        # Some programs read this field only; it has no room for shears.
        picture.set_qform(affine, code="aligned")
    with written_whole(destination) as beside:
        nibabel.save(picture, beside)


@checked(values=_GRID, image=_GRID, key=TEXT)
def invert(values: Tensor, image: "MetaTensor", transform: Any, key: str = "image") -> "MetaTensor":
    """Bring a map from the network's grid back to the scan's own: MONAI's ``Invertd``, each pixel taking its nearest unit's value.

    What the transforms cut away was never shown to the network: it comes back as 0, which is also its effect.

    Args:
        values: ``(N, C, *spatial)``, on the grid of ``image``; attributions, effect maps, unit masks.
        image: what the network was given, ``(N, C', *spatial)``, with the record of the transforms that made it.
        transform: the ``Compose`` of dictionary transforms that made it.
        key: under which name of the dictionary they did.

    Returns:
        ``MetaTensor`` ``(N, C, *scan spatial)`` with the scan's affine.

    Raises:
        TypeError: ``image`` is no ``MetaTensor``, or ``transform`` no ``Compose``.
        ValueError: the image was not made by ``transform``, ``values`` lie on another grid, or the scans of the batch differ in shape.

    Example:
        >>> import torch
        >>> from monai import transforms
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> prepare = transforms.Compose([transforms.Resized("image", (8, 8)), transforms.SpatialPadd("image", (16, 16))])
        >>> scan = MetaTensor(torch.rand(1, 20, 20))
        >>> network_image = prepare({"image": scan})["image"][None]
        >>> images.invert(torch.zeros(1, 1, 16, 16), network_image, prepare).shape
        torch.Size([1, 1, 20, 20])
    """
    from monai.data import MetaTensor, list_data_collate
    from monai.transforms import Compose, Invertd

    if not isinstance(image, MetaTensor):
        raise TypeError(f"image: expected a MetaTensor, which knows the transforms that made it, got {type(image).__name__}")
    if values.ndim != image.ndim or len(values) != len(image) or values.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"values: expected a map (N, C, *spatial) on the grid of the image {tuple(image.shape)}, got {tuple(values.shape)}"
        )
    if not isinstance(transform, Compose):
        raise TypeError(f"transform: expected a MONAI Compose of dictionary transforms, got {type(transform).__name__}")
    keys = sorted({str(name) for step in transform.flatten().transforms for name in getattr(step, "keys", ())})
    if key not in keys:
        raise ValueError(f"key: transform has no step for {key!r}; its steps are for {keys}")
    inverse = Invertd("map", transform=transform, orig_keys=key, nearest_interp=True)
    found = []
    for index in range(len(image)):
        one = image[index]
        if not one.applied_operations:
            raise ValueError("image: it has no record of transforms; give the image as transform returned it")
        try:
            inverted = inverse({key: one, "map": MetaTensor(values[index].detach().as_subclass(Tensor))})["map"]
        except RuntimeError as error:
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            raise ValueError(f"transform: it is not what made the image: {reason(cause)}") from error
        found.append(inverted)
    shapes = {tuple(one.shape) for one in found}
    if len(shapes) > 1:
        raise ValueError(
            f"image: the scans of this batch differ in shape ({sorted(shapes)}); invert one example at a time, values[i:i + 1] and "
            "image[i:i + 1]"
        )
    return found[0][None] if len(found) == 1 else list_data_collate(found)


@checked(image=tensor_of("real", "(N, C, *spatial) with 1 to 3 spatial axes", (3, 5)), example=integer(0))
def spacing_of(image: Tensor, example: int = 0) -> tuple[float, ...] | None:
    """Edges of a voxel in millimeters, for distances: ``perception_profile(..., spacing=spacing_of(scan), length_unit="mm")``.

    Args:
        image: ``(N, C, *spatial)``; other tensors than a ``MetaTensor`` have no geometry.
        example: which of the batch, where each has an affine of its own.

    Returns:
        One length per spatial axis, whichever way the axes run; ``None`` where nothing is known of it: without an affine, and where
        that is the identity, which is what pictures and tensors without geometry have.

    Raises:
        TypeError, ValueError: no batch of images, or it has no such example.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> from captum_causalseg import images
        >>> images.spacing_of(MetaTensor(torch.rand(1, 1, 8, 8, 4), affine=torch.diag(torch.tensor([-0.5, -0.5, 3.0, 1.0]))))
        (0.5, 0.5, 3.0)
        >>> images.spacing_of(MetaTensor(torch.rand(1, 1, 8, 8))), images.spacing_of(torch.rand(1, 1, 8, 8))
        (None, None)
    """
    integer(0, len(image) - 1)("example", example)
    affine = getattr(image, "affine", None)
    if affine is None:
        return None
    matrix = np.asarray(affine.detach().cpu() if isinstance(affine, Tensor) else affine, dtype=np.float64)
    # Collated by a data loader, each example has its own.
    matrix = matrix[example] if matrix.ndim == 3 else matrix
    axes = image.ndim - 2
    lengths = np.linalg.norm(matrix[:-1, :axes], axis=0)
    is_known = len(lengths) == axes and np.isfinite(lengths).all() and (lengths > 0).all()
    return tuple(map(float, lengths)) if is_known and not np.array_equal(matrix, np.eye(len(matrix))) else None


def _affines(image: Tensor) -> list[np.ndarray] | list[None]:
    """As :func:`_affines_of`; None where nothing is known."""
    from monai.data import MetaTensor

    return _affines_of(image) if isinstance(image, MetaTensor) else [None] * len(image)


def _affines_of(image: "MetaTensor") -> list[np.ndarray]:
    """Per example, voxels to millimeters in three dimensions."""
    from monai.data.utils import to_affine_nd

    affine = np.asarray(image.affine.cpu(), dtype=np.float64)
    # Collated by a data loader, each example has its own.
    return [to_affine_nd(3, one) for one in (affine if affine.ndim == 3 else [affine] * len(image))]


def _grid(like: Any) -> tuple[tuple[int, ...], np.ndarray]:
    from monai.data import MetaTensor

    image = read_file(like, labels=False, name="like")[0][None] if isinstance(like, (str, Path)) else like
    if not isinstance(image, MetaTensor):
        raise TypeError(f"like: expected a MetaTensor or the path of an image file, got {type(like).__name__}")
    if image.ndim not in (3, 4, 5) or len(image) != 1:
        raise ValueError(f"like: expected one image (1, C, *spatial), got {tuple(image.shape)}")
    return tuple(image.shape[2:]), _affines_of(image)[0]


def _written(affine: np.ndarray) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{value + 0.0:.6g}" for value in row) + "]" for row in affine[:3]) + "]"
