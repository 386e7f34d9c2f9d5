"""Donors for a layer: its activations on natural donor images."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._checks import checked, integer, one_of
from captum_causalseg.donors.any_source import AnySource
from captum_causalseg.donors.fitted import FIT, Match
from captum_causalseg.donors.images import BankImages, ChosenImages, SizedImages, check_images
from captum_causalseg.donors.patch_bank import PatchBank

__all__ = ["ActivationBank"]


class ActivationBank(AnySource):
    """The activations of a layer on natural donor images, recorded once per layer, in one pass.

    A unit of the layer is replaced by the same unit of the activation that a donor image gives: a value that the network
    does produce, unlike 0.

    Args:
        images: donor images ``(D, C, *spatial)`` of the explained image's size, a data set of images ``(C, *spatial)``, or for a
            model of several inputs a tuple of these.
        reduction: ``"mean"`` takes the mean activation over the images as the one donor.
        batch_size: images per forward pass while recording.
        memory_budget: bytes. Activations that take more are kept in a temporary file and mapped into memory.
        match: what of the unit's own activation a donor is given, channel by channel over the unit's places, as of :class:`PatchBank`:
            ``"mean"``, ``"mean_std"`` or ``"histogram"``, so that a donor brings another pattern with it and not another level. ``None``: as
            recorded. Of units of one value per channel (tokens, channels of 1 x 1 maps) nothing would be left to replace: refused.
        placement: of a layer inside a sliding window, from which window of a donor image its activation comes. ``"aligned"``: from the same
            window as the one that it is put into, of an image of the same size. ``"anywhere"``: from one window of each donor image, picked at
            random by the image's number in the bank, put into all windows; images may be of any size.

    The recording is kept as long as the layer lives and the model's parameters and buffers stay as they are.

    Example:
        >>> import torch
        >>> from captum_causalseg import ActivationBank, LayerAverageTreatmentEffect
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> layer = LayerAverageTreatmentEffect(model, model[0])
        >>> bank = ActivationBank(torch.rand(20, 1, 8, 8))
        >>> layer.attribute(torch.rand(1, 1, 8, 8), layer_baselines=bank, target=1).shape
        torch.Size([1, 4, 6, 6])
    """

    @checked(
        reduction=one_of("mean", None),
        batch_size=integer(1),
        memory_budget=integer(1),
        match=FIT["match"],
        placement=one_of("aligned", "anywhere"),
    )
    def __init__(
        self,
        images: Tensor | SizedImages | Sequence[Any] | tuple[Tensor, ...],
        *,
        reduction: Literal["mean"] | None = None,
        batch_size: int = 16,
        memory_budget: int = 2**30,
        match: Match | None = None,
        placement: Literal["aligned", "anywhere"] = "aligned",
    ) -> None:
        self._images = images if isinstance(images, tuple) else (images,)
        for index, one in enumerate(self._images):
            check_images(f"images[{index}]" if isinstance(images, tuple) else "images", one)
        lengths = {len(one) for one in self._images}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"images: expected as many donors for every input, and at least one, got {sorted(lengths)}")
        self.reduction = reduction
        self.batch_size, self.memory_budget, self.match, self.placement = batch_size, memory_budget, match, placement
        self._recorded: weakref.WeakKeyDictionary[nn.Module, dict[Any, list[PatchBank]]] = weakref.WeakKeyDictionary()
        self._company: Sequence[nn.Module] = ()
        self._heard: dict[tuple[nn.Module, Any], list[Any]] = {}

    def __len__(self) -> int:
        return len(self._images[0])

    def __repr__(self) -> str:
        match = "" if self.match is None else f", match={self.match!r}"
        placement = "" if self.placement == "aligned" else f", placement={self.placement!r}"
        return f"ActivationBank({len(self)} images, reduction={self.reduction!r}{match}{placement})"

    @property
    def n_images(self) -> int | None:
        """See :attr:`DonorSource.n_images`; the mean over all images is one donor, and cannot be split."""
        return len(self) if self.reduction is None else None

    def chosen(self, indices: Sequence[int]) -> "ActivationBank":
        """See :meth:`DonorSource.chosen`."""
        indices = list(indices)
        images = tuple(one[indices] if isinstance(one, Tensor) else ChosenImages(one, indices) for one in self._images)
        return self._of(images)

    def describe(self) -> dict[str, Any]:
        """See :meth:`DonorSource.describe`."""
        kept = {
            key: one for key, one in super().describe().items() if key not in ("_images", "_recorded", "_company", "_heard")
        }
        return kept | {"images": [BankImages(images, 1) for images in self._images]}

    def fresh(self) -> "ActivationBank":
        """A bank of the same images with nothing recorded yet.

        Example:
            >>> import torch
            >>> from captum_causalseg import ActivationBank
            >>> ActivationBank(torch.rand(20, 1, 8, 8), reduction="mean").fresh()
            ActivationBank(20 images, reduction='mean')
        """
        return self._of(self._images)

    def _of(self, images: tuple[Any, ...]) -> "ActivationBank":
        return ActivationBank(
            images,
            reduction=self.reduction,
            batch_size=self.batch_size,
            memory_budget=self.memory_budget,
            match=self.match,
            placement=self.placement,
        )

    def of_layers(self, layers: Sequence[nn.Module]) -> "ActivationBank":
        """A bank of the same images that records all of these layers when the first of them is asked for, in one pass.

        What it hears of the others is kept until they are asked for.
        """
        bank = self.fresh()
        bank._company = layers
        return bank

    def hear(self, layer: nn.Module, state: Any, record: Callable[[Sequence[nn.Module]], Sequence[Any]]) -> Any:
        """What ``record`` says of a layer for the next batch of images, in the state that the model is in.

        Args:
            layer: which.
            state: whatever that depends on besides the images.
            record: runs the batch, and says something of each of several layers.
        """
        waiting = self._heard.get((layer, state))
        if waiting:
            return waiting.pop(0)
        layers = [layer, *(one for one in self._company if one is not layer)] if layer in self._company else [layer]
        # Of another state of the model nothing is asked for any more.
        self._heard = {key: values for key, values in self._heard.items() if key[1] == state}
        found = record(layers)
        for other, value in zip(layers[1:], found[1:]):
            self._heard.setdefault((other, state), []).append(value)
        return found[0]

    def recorded(
        self,
        layer: nn.Module,
        state: Any,
        run: Callable[[tuple[Tensor, ...]], list[Tensor]],
        *,
        like: Sequence[Tensor],
        at_once: int | None = None,
    ) -> list[PatchBank]:
        """The donors of a layer, per tensor of its activation.

        Args:
            layer: whose activations they are.
            state: whatever the recording depends on besides the layer; another state records anew.
            run: image batches, one per input, to the layer's activation.
            like: the activation that is intervened on: what the recorded ones must be shaped like.
            at_once: images that are run at once, if not ``batch_size``.
        """
        kept = self._recorded.setdefault(layer, {})
        if state in kept:
            return kept[state]
        stores: list[Tensor] = []
        size = self.batch_size if at_once is None else at_once
        for start in range(0, len(self), size):
            images = tuple(self._batch(one, slice(start, start + size), like[0].device) for one in self._images)
            found = run(images)
            if not stores:
                self._check(found, like)
                n_bytes = len(self) * sum(tensor[0].numel() * tensor.element_size() for tensor in found)
                stores = [self._store(tensor, in_memory=n_bytes <= self.memory_budget) for tensor in found]
            for store, tensor in zip(stores, found):
                if self.reduction == "mean":
                    store += tensor.double().sum(0, keepdim=True) / len(self)
                else:
                    store[start : start + len(tensor)] = tensor.to(store.device)
        if self.reduction == "mean":
            stores = [store.to(tensor.dtype) for store, tensor in zip(stores, like)]
        # Of an older state nothing is needed any more.
        kept.clear()
        kept[state] = [PatchBank(store, placement="aligned", match=self.match) for store in stores]
        return kept[state]

    def _batch(self, images: Any, which: slice, device: torch.device) -> Tensor:
        if isinstance(images, Tensor):
            batch = images[which]
        else:
            batch = torch.stack([_as_tensor(images[i]) for i in range(which.start, min(which.stop, len(images)))])
        if not batch.is_floating_point():
            raise ValueError(f"layer_baselines: donor images are {batch.dtype}: normalize them as the model's input")
        return batch.to(device, copy=True)  # the model may work in place

    def _check(self, found: Sequence[Tensor], like: Sequence[Tensor]) -> None:
        for tensor, wanted in zip(found, like):
            if tensor.shape[1:] != wanted.shape[1:]:
                raise ValueError(
                    f"layer_baselines: on the donor images the layer's activation has shape {tuple(tensor.shape[1:])}, on the "
                    f"explained image {tuple(wanted.shape[1:])}: give donor images of its size"
                )

    def _store(self, tensor: Tensor, *, in_memory: bool) -> Tensor:
        if self.reduction == "mean":
            return torch.zeros((1, *tensor.shape[1:]), dtype=torch.float64, device=tensor.device)
        shape = (len(self), *tensor.shape[1:])
        if in_memory:
            return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)
        folder = tempfile.mkdtemp(prefix="captum_causalseg-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        # numpy has no bfloat16: the file holds float32 then, which is exact.
        dtype = np.float32 if tensor.dtype == torch.bfloat16 else torch.empty(0, dtype=tensor.dtype, device="cpu").numpy().dtype
        return torch.from_numpy(np.lib.format.open_memmap(f"{folder}/activations.npy", mode="w+", dtype=dtype, shape=shape))


def _as_tensor(image: Any) -> Tensor:
    # torch.as_tensor would put it on the default device.
    return image if isinstance(image, Tensor) else torch.from_numpy(np.asarray(image))
