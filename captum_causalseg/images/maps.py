"""Maps of effects, on the scan's own grid and written to files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from captum_causalseg._checks import NONE, PATH, TEXT, array_of, checked, listed
from captum_causalseg.images.formats import NIFTI_ENDINGS, needed_package, read_file, reason
from captum_causalseg.writing.files import written_whole

if TYPE_CHECKING:
    from monai.data import MetaTensor
from captum_causalseg.images.grid import GRID, affines_of, same_places, spacing_of

__all__ = ["invert", "save_map"]


@checked(path=PATH, values=array_of("real", may_be_empty=False), like=NONE | GRID | PATH)
def save_map(path: str | Path, values: Tensor | np.ndarray, like: "MetaTensor | str | Path | None" = None) -> None:
    """Write a map of effects (or of anything else) as NIfTI, so that viewers open it over the scan.

    The file appears when it is complete: it is written under another name and renamed.

    Args:
        path: the file to write, ``.nii`` or ``.nii.gz``; what is there is replaced.
        values: one map ``(*spatial)``, ``(C, *spatial)`` or ``(1, C, *spatial)``, such as an attribution or
            ``statistics.to_map()``; NaN stays NaN. Several channels become the file's fourth axis. Whole numbers and booleans make a
            file of whole numbers, as label maps should be; others one of single precision.
        like: the image it belongs to, ``(1, C, *spatial)`` with its affine, or the file that it came from. May be left out for a ``MetaTensor``
            ``(1, C, *spatial)``, such as an attribution of a scan, which has its geometry with it.

    Raises:
        FileNotFoundError: there is no folder for ``path``, or nothing at ``like``.
        ImportError: nibabel is not installed.
        TypeError: ``like`` has no geometry, or is left out and ``values`` have none.
        ValueError: another ending, or a map of another shape than the image, or with another affine of its own.

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
    shape, affine = _grid(values, "values") if like is None else _grid(like, "like")
    array = values.detach().as_subclass(Tensor).cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    lead = array.ndim - len(shape)
    if not 0 <= lead <= 2 or array.shape[lead:] != shape or (lead == 2 and len(array) != 1):
        raise ValueError(
            f"values: expected one map of the image's spatial shape {shape} (or with axes for channels and one example before "
            f"them), got {array.shape}"
        )
    if like is not None and lead == 2 and isinstance(values, Tensor) and spacing_of(values) is not None:
        own = affines_of(values)[0]
        if not same_places(own, affine, shape):
            raise ValueError(
                "values: they lie on another grid than the image, as after transforms that turn or flip a scan, and the map would come out in the wrong "
                "place; bring it back first: images.invert(values, prepared_image, transform)"
            )
    array = array.astype(_kind(array)).reshape(-1, *shape, *(1,) * (3 - len(shape)))
    picture = nibabel.Nifti1Image(array[0] if len(array) == 1 else np.moveaxis(array, 0, -1), affine)
    picture.header.set_xyzt_units("mm")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-4):
        # Some programs read this field only; it has no room for shears.
        picture.set_qform(affine, code="aligned")
    with written_whole(destination) as beside:
        nibabel.save(picture, beside)


@checked(values=GRID, image=GRID, key=TEXT)
def invert(values: Tensor, image: "MetaTensor", transform: Any, key: str = "image") -> "MetaTensor":
    """Bring a map from the network's grid back to the scan's own: MONAI's ``Invertd``, each pixel taking its nearest unit's value.

    Parts that the transforms cropped were never shown to the network: they come back as 0, which is also their effect.

    Args:
        values: ``(N, C, *spatial)``, on the grid of ``image``; attributions, effect maps, unit masks.
        image: what the network was given, ``(N, C', *spatial)``, with the record of the transforms that made it.
        transform: the ``Compose`` of dictionary transforms that made it.
        key: the name of the image in the dictionary.

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
    if image.ndim == values.ndim - 1 and image.shape[1:] == values.shape[2:]:
        raise ValueError(
            f"image: expected (N, C, *spatial) as values have, got {tuple(image.shape)}; add the batch axis with image[None]"
        )
    if values.ndim != image.ndim or len(values) != len(image) or values.shape[2:] != image.shape[2:]:
        raise ValueError(
            f"values: expected a map (N, C, *spatial) on the grid of the image {tuple(image.shape)}, got {tuple(values.shape)}"
        )
    if not isinstance(transform, Compose):
        raise TypeError(f"transform: expected a MONAI Compose of dictionary transforms, got {type(transform).__name__}")
    keys = sorted({str(name) for step in transform.flatten().transforms for name in getattr(step, "keys", ())})
    if not keys:
        raise ValueError(
            "transform: expected dictionary transforms, such as LoadImaged(keys='image'), which can be undone for another map; got array "
            f"transforms only ({listed(type(step).__name__ for step in transform.flatten().transforms)})"
        )
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


def _kind(array: np.ndarray) -> type:
    """How numbers are stored: whole ones as few bytes as every viewer reads."""
    if array.dtype.kind not in "bui":
        return np.float32
    fitting = [one for one in (np.uint8, np.int16) if np.iinfo(one).min <= array.min() and array.max() <= np.iinfo(one).max]
    return fitting[0] if fitting else np.int32


def _grid(like: Any, name: str) -> tuple[tuple[int, ...], np.ndarray]:
    from monai.data import MetaTensor

    image = read_file(like, labels=False, name=name)[0][None] if isinstance(like, (str, Path)) else like
    if not isinstance(image, MetaTensor):
        expected = "a MetaTensor or the path of an image file" if name == "like" else "a MetaTensor where like is left out"
        raise TypeError(f"{name}: expected {expected}, got {type(like).__name__}")
    if image.ndim not in (3, 4, 5) or len(image) != 1:
        raise ValueError(f"{name}: expected one image (1, C, *spatial), got {tuple(image.shape)}")
    return tuple(image.shape[2:]), affines_of(image)[0]
