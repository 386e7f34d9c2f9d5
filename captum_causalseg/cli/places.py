"""Places as the command line names them: the region of interest, in the file's own voxels."""

import re
from dataclasses import dataclass

from torch import Tensor

from captum_causalseg import regions
from captum_causalseg.cli.arguments import box_of
from captum_causalseg.preparation.grid import Grids
from captum_causalseg.preparation.image_files import Preparation

__all__ = ["find_region", "find_roi"]

_EXPECTED_ROI = "expected box:72,88+32, point:80,90, label:2, boundary:3, error:1 or a file"
_KINDS = ("box", "point", "label", "boundary")


def find_roi(
    text: str, grids: Grids, preparation: Preparation, *, label: tuple[Tensor, bool] | None, prediction: Tensor, channel: int
) -> tuple[Tensor, str]:
    """The region of interest on the prepared grid, boolean ``(*spatial)``, and how large it is, in words.

    Args:
        text: as it was given; places in it are on the file's grid.
        grids: of the image.
        preparation: which knows names of classes.
        label: the reference, if there is one, and whether it lies on the file's grid rather than on the prepared one.
        prediction: hard ``(C, *spatial)``, on the prepared grid.
        channel: the class that is explained.
    """
    source = _Predicted(prediction, channel, preparation) if label is None else _Labeled(*label, preparation)
    found, is_own = _roi(text, grids, source, predicted=prediction[channel])
    if not grids.differ:
        return found, f"{int(found.sum())} {grids.noun}" + ("" if grids.known else " of the prepared image")
    if not is_own:
        return found, f"{int(found.sum())} {grids.noun} of the prepared image"
    carried = _carried(found, grids, text)
    lost = int((found & ~grids.kept()).sum())
    said = f"{int(found.sum())} {grids.noun} of the image file, {int(carried.sum())} of the prepared image"
    return carried, said + (f"; pre-processing cut away {lost} of the file's" if lost else "")


def find_region(text: str, grids: Grids) -> Tensor:
    """A region to be replaced, on the prepared grid, boolean ``(*spatial)``: a box on the file's grid, or a mask file."""
    box = box_of(text)
    if box is None:
        if text.partition(":")[0] in _KINDS and ":" in text:
            raise ValueError(f"expected box:START+SIZE or a mask file, got {text!r}")
        is_own = grids.read_labels(text)[1]
        found = regions.from_file(text, like=grids.own if is_own else grids.prepared)
        return _carried(found, grids, text) if is_own and grids.differ else found
    if len(box[0]) != len(grids.shape) or len(box[1]) != len(grids.shape):
        raise ValueError(f"{text} has {len(box[0])} axes, the image {len(grids.shape)}")
    found = regions.box(grids.shape, *box)
    return _carried(found, grids, text) if grids.differ else found


def _carried(found: Tensor, grids: Grids, text: str) -> Tensor:
    """From the file's grid to the prepared one."""
    carried = grids.to_prepared(found & grids.kept())
    if not bool(carried.any()):
        sides = " x ".join(f"{first}-{last}" for first, last in grids.kept_box())
        raise ValueError(f"{text} lies outside of what the pre-processing leaves of the image, {sides} of its {grids.noun}")
    return carried


@dataclass(frozen=True, eq=False)
class _Labeled:
    """The reference.

    Args:
        labels: ``(*spatial)``.
        is_own: whether it lies on the file's grid rather than on the prepared one.
        preparation: which knows names of classes.
    """

    labels: Tensor
    is_own: bool
    preparation: Preparation

    def of(self, name: str) -> Tensor:
        """Where a class is, by its name or number."""
        if name.isdecimal():
            return regions.from_label(self.labels, int(name))
        return _not_empty(self.preparation.named(name, self.labels), f"{name} is nowhere in the reference")


@dataclass(frozen=True, eq=False)
class _Predicted:
    """The model's prediction, where there is no reference.

    Args:
        prediction: hard ``(C, *spatial)``, on the prepared grid.
        channel: the class that is explained.
        preparation: which knows names of classes.
    """

    prediction: Tensor
    channel: int
    preparation: Preparation
    is_own = False

    @property
    def labels(self) -> Tensor:
        """Label map ``(*spatial)``; of classes that may overlap, that of the one that is explained."""
        if len(self.prediction) > 1 and bool((self.prediction.sum(0) == 1).all()):
            return self.prediction.long().argmax(0)
        return self.prediction[self.channel].long()

    def of(self, name: str) -> Tensor:
        """Where a class is, by its name or number."""
        if len(self.prediction) == 1:  # 1 is the object
            return regions.from_label(self.labels, int(name) if name.isdecimal() else 1)
        number = int(name) if name.isdecimal() else self.preparation.labels[name]
        if number >= len(self.prediction):
            raise ValueError(f"expected one of the model's classes 0..{len(self.prediction) - 1}, got {name}")
        return _not_empty(self.prediction[number].bool(), f"the model predicts {name} nowhere")


def _not_empty(mask: Tensor, said: str) -> Tensor:
    if not bool(mask.any()):
        raise ValueError(said)
    return mask


def _roi(text: str, grids: Grids, source: _Labeled | _Predicted, predicted: Tensor) -> tuple[Tensor, bool]:
    """Boolean, and whether it lies on the file's grid rather than on the prepared one."""
    kind, colon, rest = text.partition(":")
    box = box_of(text)
    if box is not None:
        if len(box[0]) != len(grids.shape) or len(box[1]) != len(grids.shape):
            raise ValueError(f"{text} has {len(box[0])} axes, the image {len(grids.shape)}")
        return regions.box(grids.shape, *box), True
    if kind == "boundary" and re.fullmatch(r"\d+(\.\d+)?", rest):
        return regions.boundary(predicted, float(rest)), False
    names = source.preparation.labels
    if kind == "label" and (rest.isdecimal() or rest in names):
        return source.of(rest), source.is_own
    if kind == "label" and colon and names:
        raise ValueError(f"expected a number or one of {', '.join(names)}, got {text!r}")
    if kind == "point" and re.fullmatch(r"\d+(,\d+)*", rest):
        point = tuple(map(int, rest.split(",")))
        labels = source.labels
        where = point if source.is_own else _prepared_point(text, point, grids, labels=labels)
        return regions.component(labels, where), source.is_own
    if kind in _KINDS and colon:
        raise ValueError(f"{_EXPECTED_ROI}, got {text!r}")
    is_own = grids.read_labels(text)[1]
    return regions.from_file(text, like=grids.own if is_own else grids.prepared), is_own


def _prepared_point(text: str, point: tuple[int, ...], grids: Grids, labels: Tensor) -> tuple[int, ...]:
    """The same point on the prepared grid; what is wrong with it is said in the file's voxels."""
    if len(point) != len(grids.shape) or any(i >= n for i, n in zip(point, grids.shape)):
        raise ValueError(f"{point} is no position in an image of shape {grids.shape}")
    index = grids.prepared_index(point)
    if index is None:
        raise ValueError(f"{text} was cut away by the pre-processing")
    if not int(labels[index]):
        raise ValueError(f"the label map or prediction is 0 at {point}; choose a point inside the object")
    return index
