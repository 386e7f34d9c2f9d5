"""Where the segmentation is in what a model returns, and the image in what it takes."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg._checks import shown
from captum_causalseg.target.adapters import ADAPTERS, adapter_for
from captum_causalseg.target.masks import is_one_hot
from captum_causalseg.target.queries import refuse_queries

__all__ = [
    "HardOutput",
    "find_logits",
    "first_image",
    "interpolated",
    "no_batch_axis",
    "resized",
    "spatial_axes_of",
    "with_channels",
]

logger = logging.getLogger(__name__)

_CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}
_OUTPUT_NAMES = ("out", "logits", "pred")


def find_logits(returned: Any, output: Any, image: Tensor | None = None) -> Tensor:
    """The logits at ``output`` (a key, an index, an attribute, an adapter's name, a callable), or where they usually are (``None``).

    What an adapter is for is read by it. A list or tuple gives its first tensor of the spatial shape of ``image`` ``(N, C, *spatial)``; if there is none, the first
    that is a segmentation of it at another resolution; else its first tensor.
    """
    found = returned
    reading = adapter_for(returned, output)
    if reading is None and isinstance(returned, Tensor) and isinstance(output, (str, int)):
        # Its first axis are the examples, its attributes are no outputs.
        raise TypeError(
            f"output: the model returns a tensor, which holds no other to choose from; expected None or a callable, got {shown(output)}"
            + (f" (adapters are {_adapter_names()})" if isinstance(output, str) else "")
        )
    if reading is not None:
        return _tensor_of(reading.logits(returned, image), f"the adapter {reading.adapter.name!r}")
    if callable(output):
        found = output(returned)
    elif output is not None:
        by_name = isinstance(output, str) and not isinstance(returned, Mapping)
        try:
            found = getattr(returned, str(output)) if by_name else returned[output]
        except (AttributeError, LookupError, TypeError):
            found = None
    else:
        names = [name for name in _OUTPUT_NAMES if _has(found, name)]
        if names:
            found = found[names[0]] if isinstance(found, Mapping) else getattr(found, names[0])
    if isinstance(found, (list, tuple)):
        found = _main_one(list(_tensors(found)), image)
    refuse_queries(returned, found, is_asked=output is not None)
    if not isinstance(found, Tensor):
        held = f" with keys {sorted(map(str, returned))}" if isinstance(returned, Mapping) else ""
        where = "" if output is None else f" at output={output!r}"
        raise TypeError(
            f"model: no logits found in what it returns ({type(returned).__name__}{held}){where}; "
            f"say where they are with `output` (a key, an index or a callable), or how they are read: {_adapter_names()}"
        )
    return _tensor_of(found, "output")


def first_image(inputs: tuple[Any, ...]) -> Tensor:
    """The first tensor with spatial axes among a model's arguments."""
    for value in inputs:
        if isinstance(value, Tensor) and value.ndim > 2:
            return value
    came = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in inputs) or "nothing"
    raise ValueError(f"inputs: expected an image batch (N, C, *spatial) as the first tensor, got {came}")


def no_batch_axis(image: Tensor) -> str:
    """What to say of one image in the place of a batch."""
    return (
        f"inputs: expected (N, C, *spatial) with {image.ndim - 1} spatial axes, got {tuple(image.shape)}; add the batch axis with "
        "image[None]"
    )


def spatial_axes_of(model: Any) -> int | None:
    """How many spatial axes a model's first convolution has; None if it has no convolutions, or they cannot be seen."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return next((axes for module in modules for axes, kinds in _CONVOLUTIONS.items() if isinstance(module, kinds)), None)


def with_channels(found: Tensor, image: Tensor) -> Tensor:
    """What was found as ``(N, C, *spatial)``, of whatever resolution.

    Raises:
        ValueError: it is no segmentation of the image.
    """
    spatial = image.shape[2:]
    if found.ndim == image.ndim - 1 and found.shape[1:] == spatial:
        found = found.unsqueeze(1)
    if found.ndim != image.ndim or found.shape[0] != image.shape[0]:
        where = "`output` says where to find them"
        if found.shape[1:] == (1, *spatial) and image.shape[0] == 1:
            where = f"`output='vista3d'` reads them as {len(found)} classes or prompts of one image"
        raise ValueError(
            f"model: expected logits (N, C, *spatial) with N={image.shape[0]} and {len(spatial)} spatial axes for inputs of "
            f"shape {tuple(image.shape)}, got {tuple(found.shape)}; {where}"
        )
    if found.numel() == 0:
        raise ValueError(f"model: expected logits (N, C, *spatial), got {tuple(found.shape)}, which holds none")
    if found.shape[1:-1] == spatial and found.shape[2:] != spatial:
        raise ValueError(
            f"model: expected logits (N, C, *spatial), got {tuple(found.shape)} for images of {tuple(spatial)}, with the classes on the last "
            "axis; output=lambda y: y.movedim(-1, 1) brings them to the second"
        )
    return found


def resized(logits: Tensor, spatial: torch.Size, *, hard: bool) -> Tensor:
    """Logits ``(N, C, *own)`` at the image's resolution: linearly, as models of less resolution do it; labels by the nearest."""
    if logits.shape[2:] == spatial:
        return logits
    return functional.interpolate(logits, size=spatial, mode="nearest-exact") if hard else interpolated(logits, spatial)


def interpolated(values: Tensor, spatial: Sequence[int]) -> Tensor:
    """Values ``(N, C, *own)`` at another resolution of one to three spatial axes: linearly between the centers of pixels."""
    mode = ("linear", "bilinear", "trilinear")[len(spatial) - 1]
    return functional.interpolate(values, size=tuple(spatial), mode=mode, align_corners=False)


class HardOutput:
    """What is known of a model that returns labels in place of logits; one for all targets that are made from one another.

    Attributes:
        dtype: of the labels; ``None`` for a model that returns logits or probabilities, or has not run yet.
        is_map: label maps, in which classes exclude each other, rather than one mask per label.
        n_classes: how many classes label maps have, once that is known.
        counts_itself: take that from the label maps themselves; otherwise the reference tells.
    """

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None
        self.is_map = False
        self.n_classes: int | None = None
        self.counts_itself = False

    def read(self, found: Tensor, reference: Tensor | None, n_spatial: int) -> Tensor:
        """Labels ``(N, 1 or C, *spatial)`` as zeros and ones ``(N, C, *spatial)``; logits stay what they are.

        Raises:
            ValueError: the number of classes is not known, or cannot be what the reference says.
        """
        if found.is_complex():
            raise ValueError(f"model: expected floating-point logits or probabilities, got {found.dtype}")
        if found.is_floating_point():
            self.dtype = None
            return found
        self.dtype, self.is_map = found.dtype, found.dtype != torch.bool and found.shape[1] == 1
        if not self.is_map:
            return found.float()
        if self.n_classes is None and self.counts_itself:
            self.n_classes = max(2, int(found.max()) + 1)
        if self.n_classes is None and reference is not None:
            self._count(reference, n_spatial, int(found.max()))
        if self.n_classes is None:
            raise ValueError(
                f"model: expected floating-point logits or probabilities, got {found.dtype}: label maps. How many classes they have "
                "is read from the reference, and there is none; give one, or find one mask per class with `output` (a callable)"
            )
        classes = torch.arange(self.n_classes, device=found.device).view(-1, *(1,) * n_spatial)
        return (found == classes).float()

    def _count(self, reference: Tensor, n_spatial: int, largest_found: int) -> None:
        """Settle the number of classes: a one-hot reference's channels, or one more than the largest label, at least 2."""
        lead = reference.ndim - n_spatial
        is_definite = True
        if lead == 2 and reference.shape[1] > 1:
            n_classes = reference.shape[1]
        elif lead == 1 and len(reference) > 1 and is_one_hot(reference, len(reference), exclusive=True):
            n_classes = len(reference)
        else:
            is_definite = reference.dtype == torch.bool
            largest = int(reference.max())
            if largest == 255 and bool(((reference == 0) | (reference == 255)).all()):
                raise ValueError("reference: expected labels 0..C-1, got a mask of 0 and 255; divide it by 255")
            n_classes = max(2, largest + 1)
        if largest_found >= n_classes:
            if is_definite:
                raise ValueError(
                    f"reference: it has {n_classes} classes, the model's labels go up to {largest_found}, which is {largest_found + 1} "
                    "classes; give a label map of the model's classes, or one mask per class"
                )
            logger.warning(
                "reference: its labels are of %d classes, the model's go up to %d; labels are read as the model's classes, and those from "
                "%d on are not scored",
                n_classes,
                largest_found,
                n_classes,
            )
        self.n_classes = n_classes

    def resolve(self, planes: Tensor, activation: str) -> tuple[str, bool]:
        """The activation in force, ``"labels"``, and whether classes exclude each other.

        Raises:
            ValueError: another activation was asked for, or the masks hold other values than 0 and 1.
        """
        if activation not in ("auto", "none"):
            raise ValueError(
                f'activation: the model returns labels ({self.dtype}), which take none; expected "auto" or "none", got {activation!r}'
            )
        if not bool(((planes == 0) | (planes == 1)).all()):
            raise ValueError(
                f"model: it returns {self.dtype} in {planes.shape[1]} channels, which read as one mask per class, but with values up to "
                f"{float(planes.max()):g}; say what they are with `output` (a callable)"
            )
        return "labels", self.is_map


def _tensor_of(found: Any, whose: str) -> Tensor:
    if not isinstance(found, Tensor):
        raise TypeError(f"output: {whose} should give a tensor (N, C, *spatial), got {shown(type(found).__name__)}")
    return found.as_subclass(Tensor) if type(found) is not Tensor else found


def _adapter_names() -> str:
    return ", ".join(repr(name) for name in sorted(ADAPTERS))


def _main_one(tensors: list[Tensor], image: Tensor | None) -> Tensor | None:
    if image is not None:
        # Losses and class scores are no segmentations; deep supervision comes in several resolutions, in either order.
        n, spatial = image.shape[0], image.shape[2:]
        alike = [t for t in tensors if t.ndim == image.ndim and t.shape[0] == n]
        full = [t for t in tensors if (t.ndim == image.ndim and t.shape[2:] == spatial) or t.shape[1:] == spatial]
        heads = dict.fromkeys(
            tuple(t.shape) for t in full if t.ndim == image.ndim and t.shape[0] == n and t.is_floating_point()
        )
        if len(heads) > 1:
            # Deep supervision and test-time copies have the same classes; a reconstruction or a map of edges beside them has not.
            raise ValueError(
                f"output: the model returns several maps of the images' size, {' and '.join(map(str, heads))}; say which one is the "
                "segmentation (an index, or a callable)"
            )
        fitting = [t for t in full if t.shape[0] == n] + alike
        if fitting:
            return fitting[0]
    return tensors[0] if tensors else None


def _tensors(value: list[Any] | tuple[Any, ...]) -> Iterator[Tensor]:
    for item in value:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (list, tuple)):
            yield from _tensors(item)


def _has(value: Any, name: str) -> bool:
    if isinstance(value, Mapping):
        return name in value
    if dataclasses.is_dataclass(value):
        return hasattr(value, name)
    return hasattr(value, "_fields") and name in value._fields
