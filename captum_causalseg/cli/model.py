"""The model that the command line names: a bundle, an nnU-Net, a function that makes a network, or TorchScript; and the device it runs on."""

import argparse
import importlib
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from captum_causalseg.bundle.weights import checkpoint, mismatch, reason, state_of
from captum_causalseg.cli.errors import InputError, naming
from captum_causalseg.cli.files import name_of
from captum_causalseg.preparation.image_files import FilePreparation
from captum_causalseg.preparation.models import PreparedModel, bundle_model, find_device, nnunet_model, scripted
from captum_causalseg.target import SegmentationTarget

__all__ = ["read_model"]


def read_model(options: argparse.Namespace) -> PreparedModel:
    """The model of ``--bundle``, ``--nnunet``, or ``--model`` and ``--weights``, on ``--device``."""
    model = _read(options)
    if model.preparation.whose and options.normalize != "none":
        raise InputError(f"--normalize: {model.preparation.whose} prepares its images itself, leave it out")
    return model


def _read(options: argparse.Namespace) -> PreparedModel:
    as_in_file = FilePreparation(options.normalize, options.dims)
    with naming("--device"):
        device = find_device(options.device)
    if options.bundle is not None:
        with naming("--bundle"):
            return bundle_model(options.bundle, as_in_file, weights=options.weights, device=device, dims=options.dims)
    if options.nnunet is not None:
        folds = [int(fold) if fold.isdecimal() else fold for fold in options.fold]
        file = "checkpoint_final.pth" if options.weights is None else str(options.weights)
        with naming("--nnunet"):
            return nnunet_model(options.nnunet, folds, checkpoint=file, device=device, dims=options.dims)
    network, described = _network(options, device)
    return PreparedModel(
        make_target=partial(SegmentationTarget, network), preparation=as_in_file, device=device, described=described
    )


def _network(options: argparse.Namespace, device: torch.device) -> tuple[nn.Module, str]:
    with naming("--model"):
        module_name, colon, factory = options.model.partition(":")
        if Path(options.model).is_file() or not colon:
            if options.weights is not None:
                raise InputError("--weights: a TorchScript file brings its own weights, leave them out")
            return scripted(Path(options.model), device), f"TorchScript {name_of(options.model)}"
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
