"""Models with their pre-processing: a MONAI bundle, an nnU-Net, TorchScript; the device they run on, and what they see first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_causalseg.bundle import load_bundle
from captum_causalseg.bundle.weights import is_torchscript, reason
from captum_causalseg.nnunet import load_nnunet
from captum_causalseg.preparation.image_files import BundlePreparation, NnunetPreparation, Preparation
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.writing.names import name_of

__all__ = [
    "PreparedModel",
    "bundle_model",
    "find_class",
    "find_device",
    "first_prediction",
    "first_segmentations",
    "nnunet_model",
    "scripted",
]


@dataclass(frozen=True)
class PreparedModel:
    """A model that has been read.

    Args:
        make_target: its targets, with the arguments of :class:`SegmentationTarget` after the model.
        preparation: how image files become its input.
        device: where it is.
        described: what it is, in words.
    """

    make_target: Callable[..., SegmentationTarget]
    preparation: Preparation
    device: torch.device
    described: str


def bundle_model(
    folder: Path, otherwise: Preparation, *, weights: Path | None, device: torch.device, dims: int | None
) -> PreparedModel:
    """A MONAI bundle.

    Args:
        folder: of the bundle.
        otherwise: how images are prepared where the bundle does not say.
        weights: instead of the bundle's own.
        device: where it runs.
        dims: how many spatial axes an image must have; ``None``: those that it has.
    """
    bundle = load_bundle(folder, weights=weights, device=device)
    if isinstance(bundle.model, torch.jit.ScriptModule):
        bundle = replace(bundle, model=_Hookable(bundle.model))
    preparation = otherwise if bundle.preprocessing is None else BundlePreparation(bundle, dims)
    return PreparedModel(
        make_target=bundle.target, preparation=preparation, device=device, described=f"MONAI bundle {name_of(folder)}"
    )


def nnunet_model(
    folder: Path, folds: Sequence[int | str], *, checkpoint: str, device: torch.device, dims: int | None
) -> PreparedModel:
    """A folder of nnU-Net's results; its folds are averaged.

    Args:
        folder: of the results.
        folds: numbers, or ``"all"``.
        checkpoint: its name in each fold.
        device: where it runs.
        dims: how many spatial axes an image must have; ``None``: those that it has.
    """
    net = load_nnunet(folder, folds, checkpoint=checkpoint, device=device)
    of_folds = f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
    return PreparedModel(
        make_target=net.target,
        preparation=NnunetPreparation(net, dims),
        device=device,
        described=f"nnU-Net {name_of(folder)}, {of_folds}",
    )


def scripted(file: Path, device: torch.device) -> nn.Module:
    """The network of a TorchScript file, in evaluation mode.

    Raises:
        ValueError: it is none.
    """
    if not file.is_file():
        raise ValueError(f"expected package.module:factory or a TorchScript file, and there is no file {file}")
    if not is_torchscript(file):
        raise ValueError(f"{file} is no TorchScript file; weights alone need --model package.module:factory --weights {file}")
    try:
        # Opened here: torch's own code takes only names that are UTF-8.
        with open(file, "rb") as opened:
            scripted: nn.Module = torch.jit.load(opened, map_location=device)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ValueError(f"{file} cannot be read as TorchScript: {reason(error)}") from error
    return _Hookable(scripted.eval())


def find_class(asked: str | None, classes: int, labels: Mapping[str, int]) -> int | None:
    """The class that is explained, ``None`` of a model that has a single output.

    Args:
        asked: its number or name; ``None``: the only one, or the second of two.
        classes: how many there are.
        labels: names of classes.

    Raises:
        ValueError: there is no such class, or it has to be said which.
    """
    names = f" ({', '.join(labels)})" if labels else ""
    if asked is not None and asked not in labels and not asked.lstrip("-").isdecimal():
        raise ValueError(f"expected 0..{classes - 1}{names}, got {asked!r}")
    chosen = None if asked is None else labels.get(asked, int(asked) if asked not in labels else 0)
    if chosen is None:
        if classes > 2:
            raise ValueError(f"the model has {classes} classes, say which one (0..{classes - 1}{names})")
        return None if classes == 1 else 1
    if classes == 1 and chosen in (0, 1):
        return None
    if not 0 <= chosen < classes:
        raise ValueError(f"expected 0..{classes - 1}{names}, got {chosen}")
    return chosen


def find_device(name: str | None) -> torch.device:
    """The device of that name; by default the first CUDA device if there is one, else the CPU.

    Raises:
        ValueError: there is no such device here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not number.isdecimal()):
        raise ValueError(f"expected cpu, cuda, cuda:1 or mps, got {name!r}")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(number or 0) >= available:
        there = "there is none here" if available == 0 else f"there are only {available} of that kind, counted from 0"
        raise ValueError(f"{name} is not available, {there}")
    return torch.device(name)


def first_prediction(model: PreparedModel, image: Tensor, reference: Tensor | None) -> Tensor:
    """The model's hard segmentation ``(1, C, *spatial)``: the first time that the user's network meets the image."""
    return _watched(model, reference).predict(image)


def first_segmentations(model: PreparedModel, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the reference of every class, boolean ``(1, C, *spatial)``."""
    prediction, truth = _watched(model, reference).segmentations(image)
    assert truth is not None  # a reference was given
    return prediction, truth


def _watched(model: PreparedModel, reference: Tensor | None) -> SegmentationTarget:
    """What the network says is told apart from what is said of its output."""
    target = model.make_target(metric="volume", reference=reference)
    return target.with_model(_Watched(target.model))


class _Hookable(nn.Module):
    """Around TorchScript, which takes no hooks: forward passes are counted with one."""

    def __init__(self, scripted: nn.Module) -> None:
        super().__init__()
        self.scripted = scripted
        self.training = getattr(scripted, "training", False)  # frozen TorchScript has no such attribute

    def forward(self, *inputs: Any) -> Any:
        return self.scripted(*inputs)


class _Watched(nn.Module):
    """A network whose errors are about the input."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.training = getattr(network, "training", False)

    def forward(self, *inputs: Any) -> Any:
        try:
            return self.network(*inputs)
        except Exception as error:
            shape = tuple(inputs[0].shape)
            # A slice that is stored as a volume is a usual cause.
            hint = "; with 2 dims, a volume of one slice is taken as that slice" if len(shape) == 5 and shape[-1] == 1 else ""
            raise ValueError(f"inputs: the model failed on the image {shape}: {_first_line(error)}{hint}") from error


def _first_line(error: BaseException) -> str:
    """TorchScript puts a trace of its own code before what went wrong, and ends with that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "TorchScript" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"
