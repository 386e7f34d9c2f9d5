"""The table of adapters by name, open to the user's own."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from captum_causalseg._checks import BOOLEAN, FUNCTION, TEXT, checked, one_of, shown
from captum_causalseg.target.adapters.candidates import best_candidate
from captum_causalseg.target.adapters.queries import class_scores, object_masks
from captum_causalseg.target.adapters.volumes import of_prompts

__all__ = ["ADAPTERS", "Adapter", "Reading", "adapter_for", "model_adapter", "register_adapter"]

AdapterActivation = Literal["auto", "sigmoid", "softmax", "shares", "none"]


@dataclass(frozen=True)
class Adapter:
    """A way to read what a kind of model returns.

    Args:
        name: its name in ``SegmentationTarget(output=...)``.
        function: ``(returned, image) -> (N, C, *spatial)``, of whatever resolution; with ``has_entries`` it is passed a third
            argument, an integer or ``None``.
        types: names of the classes of what is returned, or of models, that it is for; for these it is chosen by itself.
        activation: what ``activation="auto"`` of the target means for it.
        one_image: the model takes one image at a time, whatever its batch looks like.
        has_entries: whether ``"name:2"`` asks for one entry of several.
        instances: channels are objects in no order, and a reference's are its objects.
    """

    name: str
    function: Callable[..., Tensor]
    types: frozenset[str] = frozenset()
    activation: AdapterActivation = "auto"
    one_image: bool = False
    has_entries: bool = False
    instances: bool = False


class Reading(NamedTuple):
    """An adapter, and which entry it is asked for."""

    adapter: Adapter
    entry: int | None = None

    def logits(self, returned: Any, image: Tensor | None) -> Any:
        """What the adapter finds."""
        more = (self.entry,) if self.adapter.has_entries else ()
        return self.adapter.function(returned, image, *more)


ADAPTERS: dict[str, Adapter] = {}


@checked(
    name=TEXT,
    function=FUNCTION,
    activation=one_of("auto", "sigmoid", "softmax", "shares", "none"),
    one_image=BOOLEAN,
    instances=BOOLEAN,
)
def register_adapter(
    name: str,
    function: Callable[[Any, Tensor], Tensor],
    *,
    types: Sequence[type | str] = (),
    activation: AdapterActivation = "auto",
    one_image: bool = False,
    instances: bool = False,
) -> None:
    """Teach :class:`SegmentationTarget` to read what a kind of model returns.

    Args:
        name: the name to use in ``SegmentationTarget(output=name)``; it must not be taken.
        function: ``(returned, image) -> (N, C, *spatial)``: what the model returned, and the batch of images that it was given, to
            one channel per class or prompt, of whatever resolution. Gradients go through it if it is made of torch operations.
        types: classes of what the model returns, or of the model itself (or their names). For these, and what is derived from
            them, the adapter is chosen without being named.
        activation: what ``activation="auto"`` of the target then means.
        one_image: images are run one by one, for a model that does not take several, or whose prompts belong to one image.
        instances: the channels are objects in no order (queries, boxes) rather than classes, and the labels or masks of a reference are
            objects as well; see ``output="instances"`` of :class:`SegmentationTarget`.

    Raises:
        ValueError: the name is taken.

    Example:
        >>> import torch
        >>> from captum_causalseg import SegmentationTarget, register_adapter
        >>> class Found(dict):
        ...     pass
        >>> def network(image):  # its output has the classes on the last axis
        ...     return Found(planes=torch.stack([image[:, 0], 1 - image[:, 0]], -1))
        >>> register_adapter("last axis", lambda returned, image: returned["planes"].movedim(-1, 1), types=[Found])
        >>> SegmentationTarget(network, metric="volume").logits(torch.rand(1, 1, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
        >>> from captum_causalseg.target.adapters import ADAPTERS
        >>> del ADAPTERS["last axis"]
    """
    if name in ADAPTERS:
        raise ValueError(f"name: an adapter called {name!r} exists already")
    if ":" in name or not name:
        raise ValueError(f"name: expected a name without a colon, which asks for an entry, got {shown(name)}")
    if isinstance(types, (str, type)) or not all(isinstance(kind, (str, type)) for kind in types):
        raise TypeError(f"types: expected a sequence of classes or of their names, got {shown(types)}")
    names = frozenset(kind if isinstance(kind, str) else kind.__name__ for kind in types)
    ADAPTERS[name] = Adapter(name, function, types=names, activation=activation, one_image=one_image, instances=instances)


def adapter_for(returned: Any, output: Any) -> Reading | None:
    """The adapter called ``output``, or, if that is ``None``, the one for what was returned; ``None`` if there is none.

    A key or an attribute of what was returned comes first.
    """
    if output is None:
        return _of_type(returned)
    if not isinstance(output, str) or _holds(returned, output):
        return None
    return _called(output)


def model_adapter(model: Any, output: Any) -> Reading | None:
    """The adapter called ``output``, or, if that is ``None``, the one for this kind of model, before it has returned anything."""
    if isinstance(output, str):
        return _called(output)
    if output is not None:
        return None
    while isinstance(model, functools.partial):
        model = model.func
    return _of_type(getattr(model, "module", model)) or _of_type(model)


def _called(output: str) -> Reading | None:
    name, colon, entry = output.partition(":")
    adapter = ADAPTERS.get(name)
    if adapter is None:
        return None
    if not colon:
        return Reading(adapter)
    if not adapter.has_entries or not entry.isdecimal():
        expected = f"{name!r} or '{name}:<number>'" if adapter.has_entries else repr(name)
        raise ValueError(f"output: expected {expected}, got {output!r}")
    return Reading(adapter, int(entry))


def _of_type(value: Any) -> Reading | None:
    names = [kind.__name__ for kind in type(value).__mro__]
    # What was registered last comes first: it is the user's own.
    found: Iterator[Adapter] = (one for one in reversed(list(ADAPTERS.values())) if not one.types.isdisjoint(names))
    return next((Reading(adapter) for adapter in found), None)


def _holds(returned: Any, name: str) -> bool:
    if isinstance(returned, Tensor):
        return False
    return name in returned if isinstance(returned, Mapping) else hasattr(returned, name)


def _add(
    name: str, function: Callable[..., Tensor], activation: AdapterActivation, *, types: Sequence[str] = (), **more: bool
) -> None:
    ADAPTERS[name] = Adapter(name, function, types=frozenset(types), activation=activation, **more)


_fine = functools.partial(class_scores, fine_masks=True)
_UNIVERSAL = "ForUniversalSegmentationOutput"
_SAMS = ("Sam", "SamHQ", "Sam2", "EdgeTam", "Sam3", "Sam3Tracker")
# Mask2Former and EoMT bring the masks to the image's size before they are added up, the others the sums.
_add("mask2former", _fine, "shares", types=[f"Mask2Former{_UNIVERSAL}"])
_add("eomt", _fine, "shares", types=[f"Eomt{_UNIVERSAL}", f"EomtDinov3{_UNIVERSAL}"])
_add("maskformer", class_scores, "shares", types=["MaskFormerForInstanceSegmentationOutput"])
_add("oneformer", class_scores, "shares", types=[f"OneFormer{_UNIVERSAL}"])
_add("detr", class_scores, "shares", types=["DetrSegmentationOutput", "ConditionalDetrSegmentationOutput"])
_add("instances", object_masks, "none", has_entries=True, instances=True)
_add("sam", best_candidate, "sigmoid", types=[f"{model}ImageSegmentationOutput" for model in _SAMS], has_entries=True)
_add("vista3d", of_prompts, "sigmoid", types=["VISTA3D"], one_image=True)
