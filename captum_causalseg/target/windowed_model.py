"""A network in sliding windows as a module that knows its windows."""

import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._captum import keeps_one_call
from captum_causalseg._checks import (
    FUNCTION,
    NONE,
    TEXT,
    Check,
    checked,
    instance,
    integer,
    number,
    one_of,
    sequence,
    tensor_of,
)
from captum_causalseg.boxes import Box, box_at, size_of
from captum_causalseg.target.local_scores import around
from captum_causalseg.target.outputs import find_logits, with_channels
from captum_causalseg.target.rounding import relative_tolerance
from captum_causalseg.target.window_layout import Padding, Starts, Weight, WindowLayout, find_patch_size
from captum_causalseg.target.window_recipes import (
    MonaiStarts,
    MonaiWeight,
    NnunetStarts,
    nnunet_networks,
    nnunet_weight,
    why_no_monai,
)

__all__ = ["WindowedModel"]

Network = nn.Module | Callable[..., Any]

_DEVICE = NONE | TEXT | instance(torch.device)
_CORNERS = Check(
    "corners of windows, or a callable that gives them for a spatial shape",
    lambda value: callable(value) or isinstance(value, (Sequence, np.ndarray)),
    by_type=True,
)


class WindowedModel(nn.Module):
    """A network that is run in windows, added up: an image batch ``(N, C, *spatial)`` to logits ``(N, C_out, *spatial)``.

    What a sliding-window inferer does, as a model like any other: in a :class:`~captum_causalseg.SegmentationTarget`, in Captum's
    methods, and with gradients. Because it knows its windows, :class:`~captum_causalseg.AverageTreatmentEffect` runs only those
    that hold what is replaced *and* touch the region of interest, which changes no effect; a function around an inferer has to
    run them all.

    A voxel's logits are ``sum(weight * logits) / sum(weight)`` over the windows that hold it, added up in float32 (float64 for
    images of that) in the order of the windows. With mirroring, a window's logits are the mean over all flips along
    ``mirror_axes``; with several networks (folds), the result is the mean over them. Images that are smaller than a window are
    padded, and the result is cut to their size.

    Args:
        network: what is run on windows ``(B, C, *patch_size)``, returning ``(B, C_out, *patch_size)``; or a sequence of such (folds). What
            it is given besides is what the model is given besides: tensors ``(N, ...)`` go with their image, all else as it is.
        patch_size: of a window, one number or one per spatial axis; ``None``, 0 or less for the image's own length.
        starts: corners of the windows ``(W, d)``, for images of one shape; or a callable that gives them for a (padded) image's
            spatial shape. Together they have to hold every voxel.
        weight: how much each element of a window counts, ``(*patch_size)``; or a callable that gives that for a window's size.
        mirror_axes: spatial axes (0 is the first) along which windows are flipped, in all combinations.
        batch_size: windows in one forward pass of the network.
        output: how to find the logits in what the network returns, as in :class:`~captum_causalseg.SegmentationTarget`.
        padding_mode: of images smaller than a window: ``"constant"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        padding_value: of what is padded with ``"constant"``.
        window_device: where windows are run; ``None``: where the image is.
        device: where they are added up, and the result is; ``None``: where the image is.

    Raises:
        ValueError: windows that leave a part of the image out, or a network that returns no logits of a window's size.

    Example:
        >>> import torch
        >>> from captum_causalseg import WindowedModel
        >>> network = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> corners = [(0, 0), (0, 4), (4, 0), (4, 4)]
        >>> model = WindowedModel(network, 8, corners, torch.ones(8, 8), mirror_axes=(0, 1))
        >>> model(torch.rand(3, 1, 12, 12)).shape
        torch.Size([3, 2, 12, 12])
    """

    @checked(
        network=instance(nn.Module) | FUNCTION | sequence(instance(nn.Module) | FUNCTION, 1, expected="a sequence of networks"),
        patch_size=integer() | sequence(NONE | integer(), 1),
        starts=_CORNERS,
        weight=instance(Tensor) | FUNCTION,
        mirror_axes=sequence(integer(0)),
        batch_size=integer(1),
        output=NONE | TEXT | integer() | FUNCTION,
        padding_mode=one_of("constant", "reflect", "replicate", "circular"),
        padding_value=number(),
        window_device=_DEVICE,
        device=_DEVICE,
    )
    def __init__(
        self,
        network: Network | Sequence[Network],
        patch_size: int | Sequence[int | None],
        starts: Starts,
        weight: Weight,
        mirror_axes: Sequence[int] = (),
        *,
        batch_size: int = 1,
        output: str | int | Callable[[Any], Tensor] | None = None,
        padding_mode: str = "constant",
        padding_value: float = 0.0,
        window_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        given: Any = network
        if callable(given) and not isinstance(given, nn.ModuleList):
            self.network: Any = given
            given = [given]
        else:
            given = list(given)
            self.folds: Any = nn.ModuleList(given) if all(isinstance(one, nn.Module) for one in given) else given
        self.patch_size = patch_size if isinstance(patch_size, int) else tuple(patch_size)
        self.starts, self.weight, self.mirror_axes = starts, weight, tuple(sorted(set(mirror_axes)))
        self.batch_size, self.output = batch_size, output
        self.padding = Padding(padding_mode, float(padding_value))
        self.window_device, self.device = window_device, device
        self._latest = _Latest()
        # Frozen TorchScript is in evaluation mode for good and has no such attribute.
        self.training = getattr(given[0], "training", False)

    @classmethod
    @checked(network=instance(nn.Module) | FUNCTION)
    def from_monai(
        cls, inferer: Any, network: Network, output: str | int | Callable[[Any], Tensor] | None = None
    ) -> "WindowedModel":
        """The model that a ``monai.inferers.SlidingWindowInferer`` makes of a network: ``inferer(image, network)``, to the same bits.

        All of its modes, overlaps and paddings, ``sw_batch_size``, ``sw_device``, ``device`` and a weight map of one's own are taken over.

        Args:
            inferer: it, or a ``SlidingWindowInfererAdapt``.
            network: what it is given to run.
            output: how to find the logits in what the network returns.

        Raises:
            TypeError, ValueError: the inferer does what is not done here (buffers, coordinates for the network, a threshold for
                the device); the message names its argument.

        Example:
            >>> import torch
            >>> from monai.inferers import SlidingWindowInferer
            >>> from captum_causalseg import WindowedModel
            >>> network, image = torch.nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 20, 24)
            >>> inferer = SlidingWindowInferer((8, 8), sw_batch_size=4, overlap=0.5, mode="gaussian")
            >>> model = WindowedModel.from_monai(inferer, network)
            >>> torch.equal(model(image), inferer(image, network))
            True
        """
        reason = why_no_monai(inferer)
        if reason is not None:
            raise (TypeError if reason.startswith("inferer:") else ValueError)(reason)
        size: Any = inferer.roi_size if isinstance(inferer.roi_size, int) else tuple(inferer.roi_size)
        own = inferer.roi_weight_map
        return cls(
            network,
            size,
            MonaiStarts(size, inferer.overlap),
            MonaiWeight(inferer.mode, inferer.sigma_scale) if own is None else torch.as_tensor(own),
            batch_size=int(inferer.sw_batch_size),
            output=output,
            padding_mode=str(getattr(inferer.padding_mode, "value", inferer.padding_mode)),
            padding_value=float(inferer.cval),
            window_device=inferer.sw_device,
            device=inferer.device,
        )

    @classmethod
    def from_nnunet(cls, predictor: Any) -> "WindowedModel":
        """The model that an ``nnUNetPredictor`` runs on a preprocessed image, in float32 and with gradients.

        Its window positions, its Gaussian, its mirroring, and the mean over its folds. nnU-Net itself adds up in half precision, in
        inference mode, and one image at a time; apart from that the logits are the same.

        Args:
            predictor: initialized, from a folder or by hand. Its network is copied, once for each fold.

        Raises:
            ValueError: the predictor has no network yet, or it segments slices of volumes (a 2d configuration).

        Example:
            >>> from captum_causalseg import WindowedModel
            >>> def explained(model_folder):  # where nnunetv2 is installed
            ...     from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
            ...
            ...     predictor = nnUNetPredictor()
            ...     predictor.initialize_from_trained_model_folder(model_folder, use_folds=(0, 1))
            ...     return WindowedModel.from_nnunet(predictor)
            >>> callable(explained)
            True
        """
        if getattr(predictor, "network", None) is None or getattr(predictor, "configuration_manager", None) is None:
            raise ValueError(
                "predictor: expected an initialized nnUNetPredictor, got one without a network; call "
                "initialize_from_trained_model_folder or manual_initialization first"
            )
        patch_size = tuple(map(int, predictor.configuration_manager.patch_size))
        mirrored = predictor.use_mirroring and predictor.allowed_mirroring_axes
        return cls(
            nnunet_networks(predictor),
            patch_size,
            NnunetStarts(patch_size, predictor.tile_step_size),
            nnunet_weight(predictor, patch_size),
            tuple(predictor.allowed_mirroring_axes) if mirrored else (),
            window_device=predictor.device,
        )

    @checked(
        inputs=tensor_of("real", "(N, C, *spatial)", (3, math.inf), may_be_empty=False),
        rois=NONE | tensor_of("boolean", "(N or 1, R, *spatial)", (3, math.inf), may_be_empty=False),
    )
    def forward(self, inputs: Tensor, *args: Any, rois: Tensor | None = None) -> Tensor:
        """Logits ``(N, C_out, *spatial)`` of images ``(N, C, *spatial)``, all windows added up.

        With ``rois``, boolean ``(N or 1, R, *spatial)``, only the windows that touch a region of their image are run, and the result
        ``(N, C_out, *box)`` is that of the box around all of the regions, one element wider where there is room. In the regions these are the logits of
        all windows; beside them some windows are missing.

        Raises:
            ValueError: an image without a region; or one of Captum's methods that see one call of a module only.

        Example:
            >>> import torch
            >>> from captum_causalseg import WindowedModel
            >>> half = WindowedModel(torch.nn.Identity(), (4,), [(0,), (2,)], torch.ones(4))
            >>> half(torch.arange(6.0).view(1, 1, 6))
            tensor([[[0., 1., 2., 3., 4., 5.]]])
            >>> first = torch.tensor([[[True, False, False, False, False, False]]])
            >>> half(torch.arange(6.0).view(1, 1, 6), rois=first)  # from one of the two windows
            tensor([[[0., 1.]]])
        """
        # Windows are cut and pasted many times, which a MetaTensor would keep books of.
        images = inputs.as_subclass(Tensor)
        layout = self.layout(images.shape[2:])
        dtype, device = self.fused_dtype(images), self.device or images.device
        self._refuse_one_call(layout, len(images))
        box, run = self._needed(images, args, layout, rois=rois)
        places = {window: (inside, there) for window, inside, there in layout.parts(box)}
        examples, windows = np.nonzero(run)
        # Once: the gradient of every window would be as large as the images.
        around_windows = layout.around(windows)
        near = images[(slice(None), slice(None), *around_windows)]
        totals: list[Tensor] = []
        for begin in range(0, len(windows), self.batch_size):
            batch = slice(begin, begin + self.batch_size)
            for k, part in enumerate(
                self._weighted_of(
                    images, args, layout, where=(examples[batch], windows[batch]), cut_from=(near, around_windows)
                )
            ):
                if len(totals) <= k:
                    totals.append(torch.zeros((len(images), part.shape[1], *size_of(box)), dtype=dtype, device=device))
                for row, (example, window) in enumerate(zip(examples[batch].tolist(), windows[batch].tolist())):
                    if window in places:
                        inside, there = places[window]
                        place: Any = (example, slice(None), *there)
                        taken: Any = (row, slice(None), *inside)
                        totals[k][place].add_(part[taken].to(device))
        return self.fused(totals, layout.count(dtype)[box].to(device))

    def _weighted_of(
        self,
        images: Tensor,
        args: Sequence[Any],
        layout: WindowLayout,
        *,
        where: tuple[np.ndarray, np.ndarray],
        cut_from: tuple[Tensor, Box | None],
    ) -> list[Tensor]:
        """See :meth:`weighted`; of these examples and windows, cut from that box of the images (``None``: from the images)."""
        examples, windows = where
        cut = layout.cut(cut_from[0], examples, windows, part=cut_from[1])
        return self.weighted(cut, layout, self.arguments(args, examples, images))

    def _needed(
        self, images: Tensor, args: Sequence[Any], layout: WindowLayout, *, rois: Tensor | None
    ) -> tuple[Box, np.ndarray]:
        """The part of the images that is asked for, and boolean ``(N, W)`` which windows are run for it."""
        every = np.ones((len(images), len(layout)), dtype=bool)
        if rois is None:
            return box_at([0] * len(layout.spatial), layout.spatial), every
        if rois.shape[2:] != layout.spatial or len(rois) not in (1, len(images)):
            raise ValueError(f"rois: expected (N or 1, R, *spatial) for images {tuple(images.shape)}, got {tuple(rois.shape)}")
        touching = np.asarray(layout.touching(rois.cpu()).any(2))
        if not bool(touching.any(1).all()):
            raise ValueError("rois: expected regions in every image, got an image without")
        run = np.broadcast_to(touching, every.shape)
        box: Box = around(rois)[2:]
        return box, every if self._mixes(images, args, layout, run=run) else run

    def _mixes(self, images: Tensor, args: Sequence[Any], layout: WindowLayout, *, run: np.ndarray) -> bool:
        """Whether what is said of a window may depend on which others are run."""
        if len(layout) == 1 or any(getattr(module, "training", False) for _, module in self._modules_inside()):
            return True
        if self._latest.mixes is None:

            def weighted(windows: np.ndarray) -> list[Tensor]:
                return self._weighted_of(images, args, layout, where=(np.zeros_like(windows), windows), cut_from=(images, None))

            self._latest.mixes = self.mixes(run[0], weighted)
        return self._latest.mixes

    def mixes(self, touching: np.ndarray, weighted: Callable[[np.ndarray], list[Tensor]]) -> bool:
        """Whether a window is answered otherwise beside others than alone.

        Args:
            touching: boolean ``(W,)``, the windows that matter, of which the first is asked about.
            weighted: from windows of an image to what :meth:`weighted` gives.
        """
        if self.batch_size == 1:
            return False
        # Different ones: beside itself, a window may be answered as alone.
        windows = np.argsort(~touching, kind="stable")[np.arange(self.batch_size) % len(touching)]
        together, alone = weighted(windows), weighted(windows[:1])
        return any(
            not bool(((one[:1] - other).abs() <= relative_tolerance([other]) * other.abs().amax()).all())
            for one, other in zip(together, alone)
        )

    @property
    def windows_run(self) -> int:
        """How many windows have gone through a network in this thread so far, each flip by itself."""
        return self._latest.count

    @property
    def is_watched(self) -> bool:
        """Whether hooks look at the result, or at modules inside the networks: they see all windows."""
        return bool(_hooks_of(self)) or any(True for _, module in self._modules_inside() for _ in _hooks_of(module))

    def _modules_inside(self) -> Iterator[tuple[str, nn.Module]]:
        networks = (network for network in self.networks if isinstance(network, nn.Module))
        return (named for network in networks for named in network.named_modules())

    def _refuse_one_call(self, layout: WindowLayout, n_examples: int) -> None:
        """Raise where something of Captum's keeps what a module gives in one call, and there are several."""
        n_calls = self.runs_per_window * -(-n_examples * len(layout) // self.batch_size)
        for name, module in self._modules_inside():
            if n_calls > 1 and any(map(keeps_one_call, _hooks_of(module))):
                raise ValueError(
                    f"forward_func: its module {name or type(module).__name__!r} is called {n_calls} times in one forward pass, for "
                    f"{len(layout)} windows of an image, and Captum's methods that watch modules (those for layers, DeepLift, LRP) see one of these calls. "
                    "LayerAverageTreatmentEffect, LayerGradientTreatmentEffect and component_effects explain layers in windows; or explain "
                    "the network itself on one window"
                )

    @checked(spatial=sequence(integer(1), 1))
    def layout(self, spatial: Sequence[int]) -> WindowLayout:
        """Where the windows of images of this spatial shape lie.

        Raises:
            ValueError: there are no such windows.

        Example:
            >>> import torch
            >>> from captum_causalseg import WindowedModel
            >>> model = WindowedModel(torch.nn.Identity(), (4,), [(0,), (2,)], torch.ones(4))
            >>> model.layout((6,)).starts.tolist()
            [[0], [2]]
        """
        key = tuple(int(length) for length in spatial)
        found = self._latest.layout
        if found is None or found.spatial != key:
            size = find_patch_size(self.patch_size, key)
            if self.mirror_axes and self.mirror_axes[-1] >= len(key):
                raise ValueError(f"mirror_axes: expected spatial axes 0 to {len(key) - 1}, got {self.mirror_axes[-1]}")
            self._latest.layout = found = WindowLayout(key, size, starts=self.starts, weight=self.weight, padding=self.padding)
        return found

    @property
    def networks(self) -> tuple[Network, ...]:
        """What is run on windows, one after the other."""
        return tuple(self.folds) if hasattr(self, "folds") else (self.network,)

    @property
    def runs_per_window(self) -> int:
        """How often a window goes through a network: once for each network and flip."""
        return len(self.networks) << len(self.mirror_axes)

    @staticmethod
    def fused_dtype(images: Tensor) -> torch.dtype:
        """What windows are added up in: the images' own precision, at least single."""
        return images.dtype if images.dtype.itemsize >= 4 else torch.float32

    def weighted(self, windows: Tensor, layout: WindowLayout, args: Sequence[Any] = ()) -> list[Tensor]:
        """Weighted logits of windows ``(B, C, *size)``, ``(B, C_out, *size)`` for each network, where windows are run."""
        padded = self.seen(windows, layout)
        return self.blended(
            lambda fold, flip: self.answer(fold, padded.flip(flip) if flip else padded, args), layout, self.fused_dtype(padded)
        )

    def seen(self, windows: Tensor, layout: WindowLayout) -> Tensor:
        """Windows ``(B, C, *size)`` as a network sees them, unflipped: padded to ``(B, C, *patch_size)``, where they are run."""
        return layout.padded(windows.to(self.window_device or windows.device))

    def blended(
        self, answer: Callable[[int, tuple[int, ...]], Tensor], layout: WindowLayout, dtype: torch.dtype
    ) -> list[Tensor]:
        """Weighted logits ``(B, C_out, *size)`` for each network from those of every flip ``(B, C_out, *patch_size)``.

        Args:
            answer: ``(fold, flip)`` to what that network says of windows flipped along these axes of theirs.
            layout: of the windows.
            dtype: to be added up in.
        """
        blended = []
        for fold in range(len(self.networks)):
            first, *others = self.flips
            logits = answer(fold, first)
            for flip in others:
                logits = logits + answer(fold, flip).flip(flip)
            logits = logits / (1 + len(others)) if others else logits
            weight = layout.weight.to(device=logits.device, dtype=dtype)
            blended.append(layout.unpadded(logits).to(dtype) * weight)
        return blended

    @property
    def flips(self) -> tuple[tuple[int, ...], ...]:
        """The axes of a window ``(B, C, *patch_size)`` along which it is flipped, each time; the first time along none."""
        axes = [axis + 2 for axis in self.mirror_axes]
        return tuple(flip for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count))

    def answer(self, fold: int, windows: Tensor, args: Sequence[Any] = ()) -> Tensor:
        """The logits of one network, of windows as it sees them.

        Raises:
            TypeError, ValueError: it gives labels, or logits of another size than a window's.
        """
        self._latest.add(len(windows))
        logits = with_channels(find_logits(self.networks[fold](windows, *args), self.output, windows), windows)
        if not logits.is_floating_point():
            raise TypeError(
                f"network: expected logits or probabilities, got labels ({logits.dtype}), which cannot be averaged over windows"
            )
        if logits.shape[2:] != windows.shape[2:]:
            raise ValueError(
                f"network: expected logits of a window's size {tuple(windows.shape[2:])}, got {tuple(logits.shape[2:])}; a function around "
                "MONAI's inferer adds up logits of another resolution"
            )
        return logits

    def first_window(self, images: Tensor, args: Sequence[Any] = ()) -> list[Any]:
        """The first window of the first image as a network sees it, and what the network is given besides."""
        layout, first = self.layout(images.shape[2:]), np.zeros(1, dtype=np.int64)
        return [self.seen(layout.cut(images, first, first), layout), *self.arguments(args, first, images)]

    def in_each_network(self, layer: nn.Module) -> "tuple[nn.Module, ...] | None":
        """A module inside one of the networks, and those of its name in the others, in their order; ``None`` where it is in none.

        A function whose modules cannot be seen may run any.
        """
        for network in self.networks:
            if isinstance(network, nn.Module):
                name = next((name for name, module in network.named_modules() if module is layer), None)
                if name is not None:
                    return tuple(one.get_submodule(name) for one in self.networks if isinstance(one, nn.Module))
        outside = all(module is not layer for module in self.modules())
        return (layer,) if outside and not isinstance(self.networks[0], nn.Module) and len(self.networks) == 1 else None

    def fused(self, totals: Sequence[Tensor], count: Tensor) -> Tensor:
        """From what the windows of each network add up to, to logits; in place, for a scan's take gigabytes."""
        for total in totals:
            total.div_(count)
        logits = totals[0]
        for total in totals[1:]:
            logits.add_(total)
        return logits.div_(len(totals)) if len(totals) > 1 else logits

    def arguments(self, args: Sequence[Any], examples: np.ndarray, images: Tensor) -> list[Any]:
        """What the network is given besides windows of these examples.

        Raises:
            ValueError: one is an image itself, of which a window would be needed.
        """
        given = []
        for index, value in enumerate(args):
            if isinstance(value, Tensor) and value.ndim > 2 and value.shape[2:] == images.shape[2:]:
                raise ValueError(
                    f"args[{index}]: expected no image beside the first input, got {tuple(value.shape)}; put both into one tensor along the "
                    "channels, with a network that takes them apart"
                )
            rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(images)
            given.append(value.index_select(0, torch.as_tensor(examples, device=value.device)) if rows else value)
        return given

    def extra_repr(self) -> str:
        """What ``repr`` says besides the networks."""
        mirrored = f", mirror_axes={self.mirror_axes}" if self.mirror_axes else ""
        return f"patch_size={self.patch_size}{mirrored}, batch_size={self.batch_size}"


def _hooks_of(module: nn.Module) -> list[Any]:
    held = (getattr(module, kind, {}) for kind in ("_forward_hooks", "_forward_pre_hooks"))  # TorchScript may have none
    return [hook for hooks in held for hook in hooks.values()]


class _Latest:
    """What was found out. The layout is that of the shape asked for last: it holds a number per voxel, and scans of a cohort differ in shape.

    It is no part of what a model is: no copy, no other process and no fingerprint has it.
    """

    def __init__(self) -> None:
        self.layout: WindowLayout | None = None
        # Whether windows in evaluation mode are answered otherwise beside others, once that is known.
        self.mixes: bool | None = None
        # Others may run the same model at the same time.
        self._of_thread = threading.local()

    @property
    def count(self) -> int:
        """Windows that this thread has run."""
        return getattr(self._of_thread, "count", 0)

    def add(self, n_windows: int) -> None:
        """This thread runs so many more."""
        self._of_thread.count = self.count + n_windows

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()
