"""Image files as layers whose axes and values are those of the file, so that a model's own pre-processing finds the same places."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from captum_causalseg.images import load_image, spacing_of
from captum_causalseg.images.grid import known_affine
from captum_causalseg.napari.layers import LayerData

__all__ = ["find_reader", "read"]


def find_reader(path: str | list[str]) -> Callable[[str], list[LayerData]] | None:
    """Who reads a file, or a folder with a DICOM series; nobody reads several at once as a stack.

    Args:
        path: as npe2 hands it over.
    """
    return read if isinstance(path, str) else None


def read(path: str) -> list[LayerData]:
    """One image layer.

    Args:
        path: a file, or a folder with a DICOM series.

    Returns:
        ``(*spatial)``, pictures in color ``(*spatial, 3)``. Scans lie where their affine says if their axes run along those of the patient, else only their
        voxels have the right edges: napari cuts slices along the axes of the world.
    """
    image = load_image(path)
    values = image.as_subclass(Tensor)[0].numpy()
    if len(values) not in (1, 3):
        raise ValueError(f"path: {path} holds {len(values)} channels, expected 1, or 3 of a picture in colors")
    colored = len(values) == 3
    array = np.ascontiguousarray(np.moveaxis(values, 0, -1)) if colored else values[0]
    is_whole = bool((array == np.round(array)).all()) and array.min() >= 0 and array.max() <= 255
    arguments = {"name": Path(path).name, "rgb": colored, **_placement(image)}
    # Colors are shown from 0 to 255 where they are whole numbers.
    return [(array.astype(np.uint8) if colored and is_whole else array, arguments, "image")]


def _placement(image: Tensor) -> dict[str, np.ndarray]:
    spacing, affine = spacing_of(image), known_affine(image)
    if spacing is None or affine is None:
        return {}
    edges = affine[:-1, :-1]
    if np.abs(edges - np.diag(np.diag(edges))).max() > 1e-3 * min(spacing):
        return {"scale": np.array(spacing)}
    return {"affine": affine}
