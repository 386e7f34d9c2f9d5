"""The model that the command line names: a bundle, an nnU-Net, a function that makes a network, or TorchScript; and the device it runs on."""

import argparse
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_causalseg.bundle import load_bundle
from captum_causalseg.bundle.weights import checkpoint, is_torchscript, mismatch, reason, state_of
from captum_causalseg.cli.errors import InputError, naming
from captum_causalseg.cli.files import name_of
from captum_causalseg.cli.preparation import BundlePreparation, FilePreparation, NnunetPreparation, Preparation
from captum_causalseg.nnunet import load_nnunet
from captum_causalseg.target import SegmentationTarget

__all__ = ["CommandModel", "find_device", "first_prediction", "first_segmentations", "read_model"]


@dataclass(frozen=True)
class CommandModel:
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


def read_model(options: argparse.Namespace) -> CommandModel:
    """The model of ``--bundle``, ``--nnunet``, or ``--model`` and ``--weights``, on ``--device``."""
    model = _read(options)
    if model.preparation.whose and options.normalize != "none":
        raise InputError(f"--normalize: {model.preparation.whose} prepares its images itself, leave it out")
    return model


def _read(options: argparse.Namespace) -> CommandModel:
    as_in_file = FilePreparation(options.normalize, options.dims)
    with naming("--device"):
        device = find_device(options.device)
    if options.bundle is not None:
        with naming("--bundle"):
            bundle = load_bundle(options.bundle, weights=options.weights, device=device)
        if isinstance(bundle.model, torch.jit.ScriptModule):
            bundle = replace(bundle, model=_Hookable(bundle.model))
        preparation: Preparation = as_in_file
        if bundle.preprocessing is not None:
            preparation = BundlePreparation(bundle, options.dims)
        return CommandModel(
            make_target=bundle.target,
            preparation=preparation,
            device=device,
            described=f"MONAI bundle {name_of(options.bundle)}",
        )
    if options.nnunet is not None:
        folds = [int(fold) if fold.isdecimal() else fold for fold in options.fold]
        checkpoint = "checkpoint_final.pth" if options.weights is None else str(options.weights)
        with naming("--nnunet"):
            net = load_nnunet(options.nnunet, folds, checkpoint=checkpoint, device=device)
        of_folds = f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
        return CommandModel(
            make_target=net.target,
            preparation=NnunetPreparation(net, options.dims),
            device=device,
            described=f"nnU-Net {name_of(options.nnunet)}, {of_folds}",
        )
    network, described = _network(options, device)
    return CommandModel(
        make_target=partial(SegmentationTarget, network), preparation=as_in_file, device=device, described=described
    )


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


def first_prediction(model: CommandModel, image: Tensor, reference: Tensor | None) -> Tensor:
    """The model's hard segmentation ``(1, C, *spatial)``: the first time that the user's network meets the image."""
    return _watched(model, reference).predict(image)


def first_segmentations(model: CommandModel, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the reference of every class, boolean ``(1, C, *spatial)``."""
    prediction, truth = _watched(model, reference).segmentations(image)
    assert truth is not None  # a reference was given
    return prediction, truth


def _watched(model: CommandModel, reference: Tensor | None) -> SegmentationTarget:
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
            hint = "; --dims 2 takes a volume of one slice as that slice" if len(shape) == 5 and shape[-1] == 1 else ""
            raise InputError(f"--image: the model failed on the image {shape}: {_first_line(error)}{hint}") from error


def _first_line(error: BaseException) -> str:
    """TorchScript puts a trace of its own code before what went wrong, and ends with that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "TorchScript" in lines[0]:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0]}"


def _network(options: argparse.Namespace, device: torch.device) -> tuple[nn.Module, str]:
    with naming("--model"):
        module_name, colon, factory = options.model.partition(":")
        if Path(options.model).is_file() or not colon:
            if options.weights is not None:
                raise InputError("--weights: a TorchScript file brings its own weights, leave them out")
            return _scripted(Path(options.model), device), f"TorchScript {name_of(options.model)}"
        network = _made(module_name, factory)
    if options.weights is None:
        return network.to(device), f"{options.model}, weights as it makes them"
    with naming("--weights"):
        if not options.weights.is_file():
            raise ValueError(f"there is no file {options.weights}")
        state = state_of(checkpoint(options.weights), network, options.weights)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{options.weights} does not fit the network of {options.model}: {mismatch(network, state) or reason(error)}"
            ) from error
    return network.to(device), f"{options.model}, weights {name_of(options.weights)}"


def _scripted(file: Path, device: torch.device) -> nn.Module:
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


def _made(module_name: str, factory: str) -> nn.Module:
    """What the user's function returns; the current folder counts as a place of modules, as under ``python -m``."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ValueError(f"{module_name} cannot be imported: {reason(error)}") from error
        function = getattr(module, factory, None)
        if not callable(function):
            raise ValueError(f"{module_name} has no function {factory!r}")
        try:
            network = function()
        except Exception as error:
            raise ValueError(f"{module_name}:{factory} failed: {reason(error)}") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    if not isinstance(network, nn.Module):
        raise ValueError(f"expected {module_name}:{factory} to return a torch.nn.Module, got {type(network).__name__}")
    return network.eval()
