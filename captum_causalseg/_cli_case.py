"""A case as the command line describes it: model, image, reference, region of interest, units and donors, read and checked."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg import regions
from captum_causalseg._bundle_weights import checkpoint, is_torchscript, mismatch, reason, state_of
from captum_causalseg._cli_arguments import box_of
from captum_causalseg.bundle import Bundle, load_bundle
from captum_causalseg.donors import DonorSource, PatchBank, SameImage
from captum_causalseg.images import check_same_grid, load_image, load_label
from captum_causalseg.metrics import METRICS
from captum_causalseg.target import SegmentationTarget

__all__ = ["CommandCase", "read_case"]

# Files without geometry: their effects are no NIfTI.
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class CommandCase:
    """What is explained.

    Args:
        scan: the image with its geometry, ``(1, C, *spatial)``.
        image: the same as a plain tensor.
        target: scores of the region of interest.
        roi: boolean ``(*spatial)``.
        output: the class that is explained; ``None`` for a model with one output.
        donors: what units are replaced by.
        donor_images: the donor images, read when asked for; ``None`` without a folder.
        units: ``block_size`` or ``feature_mask``, as arguments of ``attribute``.
        has_geometry: whether the image is a scan rather than a picture.
        described: what each of these is, in words, in the order of a report.
    """

    scan: Any
    image: Tensor
    target: SegmentationTarget
    roi: Tensor
    output: int | None
    donors: DonorSource
    donor_images: "Sequence[Tensor] | None"
    units: dict[str, Any]
    has_geometry: bool
    described: dict[str, str]


def read_case(options: argparse.Namespace) -> CommandCase:
    """Read and check everything that the options name.

    Raises:
        ValueError: something cannot be used; the message begins with the option.
    """
    if options.metric not in METRICS:
        raise ValueError(f"--metric: there is no {options.metric!r}; expected one of {', '.join(METRICS)}")
    make_target, bundle, model_text = _model(options)
    prepare = partial(_prepared, bundle=bundle, normalize=options.normalize, dims=options.dims)
    with _naming("--image"):
        scan = prepare(options.image)
    image = scan.as_subclass(Tensor)
    spatial = tuple(image.shape[2:])
    label = None
    if options.label is not None:
        with _naming("--label"):
            found = load_label(options.label, spatial_dims=image.ndim - 2)
            check_same_grid(scan, found)
            label = found.as_subclass(Tensor)[0, 0]
            values = label.unique().tolist()
            if values in ([0, 255], [255]):
                label = (label > 0).long()
    with _naming("--image"):
        prediction = _prediction(make_target, image, label)
    output = _output(options.class_, prediction.shape[1])
    with _naming("--roi"):
        roi = _roi(options.roi, scan, label, prediction[0], 0 if output is None else output)
    reference = prediction if label is None else label
    with _naming("--label" if label is not None else "--model"):
        target = make_target(roi=roi, reference=reference, metric=options.metric)
        with torch.no_grad():
            target(image)
    donors: DonorSource = SameImage()
    folder = None
    if options.donors is not None:
        with _naming("--donors"):
            folder = _DonorFolder(options.donors, prepare, image.shape[1])
            donors = PatchBank(folder)
    with _naming("--units"):
        units = _units(options.units, scan)
        _refuse_all_touching(units, roi)
    described = {
        "Image": f"{options.image} ({' x '.join(map(str, spatial))}, {image.shape[1]} channel(s))",
        "Model": model_text,
        "Class": "the only one" if output is None else f"{output} of {prediction.shape[1]} (counted from 0)",
        "Region of interest": f"{options.roi}, {int(roi.sum())} pixels",
        "Compared with": "the model's own prediction" if label is None else str(options.label),
        "Replaced by": "other places of the same image"
        if folder is None
        else f"places of {len(folder)} images in {options.donors}",
        "Score": options.metric,
    }
    has_geometry = not options.image.name.lower().endswith(_PICTURES) and hasattr(scan, "affine")
    return CommandCase(scan, image, target, roi, output, donors, folder, units, has_geometry, described)


class _DonorFolder(Sequence[Tensor]):
    """Donor images of a folder, prepared as the image was."""

    def __init__(self, folder: Path, prepare: Callable[[Path], Tensor], channels: int) -> None:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        self._files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        if not self._files:
            raise ValueError(f"there is no file in {folder}")
        self._prepare, self._channels = prepare, channels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        with _naming("--donors"):
            image = self._prepare(self._files[index]).as_subclass(Tensor)[0].cpu()
        if len(image) != self._channels:
            raise ValueError(f"--donors: {self._files[index]} holds {len(image)} channel(s), the image {self._channels}")
        return image


def _model(options: argparse.Namespace) -> tuple[Callable[..., SegmentationTarget], Bundle | None, str]:
    """How to make targets, the bundle if it is one, and what it is."""
    if options.bundle is not None:
        with _naming("--bundle"):
            bundle = load_bundle(options.bundle, weights=options.weights)
        return bundle.target, bundle, f"MONAI bundle {options.bundle}"
    with _naming("--model"):
        module_name, colon, factory = options.model.partition(":")
        is_file = Path(options.model).is_file()
        if is_file or not colon:
            if options.weights is not None:
                raise ValueError("a TorchScript file brings its own weights, leave out --weights")
            return partial(SegmentationTarget, _scripted(Path(options.model))), None, f"TorchScript {options.model}"
        network = _made(module_name, factory)
    if options.weights is None:
        return partial(SegmentationTarget, network), None, f"{options.model}, weights as it makes them"
    with _naming("--weights"):
        if not options.weights.is_file():
            raise ValueError(f"there is no file {options.weights}")
        state = state_of(checkpoint(options.weights), network, options.weights)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{options.weights} does not fit the network of {options.model}: {mismatch(network, state) or reason(error)}"
            ) from error
    return partial(SegmentationTarget, network), None, f"{options.model}, weights {options.weights}"


def _scripted(file: Path) -> nn.Module:
    if not file.is_file():
        raise ValueError(f"expected package.module:factory or a TorchScript file, and there is no file {file}")
    if not is_torchscript(file):
        raise ValueError(f"{file} is no TorchScript file; weights alone need --model package.module:factory --weights {file}")
    try:
        scripted: nn.Module = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ValueError(f"{file} cannot be read as TorchScript: {reason(error)}") from error
    return scripted.eval()


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


def _prepared(file: Path, bundle: Bundle | None, normalize: str, dims: int | None) -> Any:
    if bundle is not None and bundle.preprocessing is not None:
        return bundle.prepare(file)
    image = load_image(file, spatial_dims=dims)
    values = image.as_subclass(Tensor)
    low, high, spread = float(values.min()), float(values.max()), float(values.std())
    if normalize in ("range", "zscore") and low == high:
        raise ValueError(f"{file} is {low:g} everywhere, it cannot be normalized")
    if normalize == "255":
        return image / 255
    if normalize == "range":
        return (image - low) / (high - low)
    return (image - float(values.mean())) / spread if normalize == "zscore" else image


def _prediction(make_target: Callable[..., SegmentationTarget], image: Tensor, label: Tensor | None) -> Tensor:
    """The model's hard segmentation ``(1, C, *spatial)``."""
    try:
        return make_target(metric="volume", reference=label).predict(image)
    except ValueError:
        raise
    except Exception as error:
        # The user's network runs here for the first time.
        hint = "; --dims 2 takes a volume of one slice as that slice" if image.ndim == 5 and image.shape[-1] == 1 else ""
        raise ValueError(f"the model fails on an image of shape {tuple(image.shape)}{hint}: {reason(error)}") from error


def _output(chosen: int | None, classes: int) -> int | None:
    if chosen is None:
        if classes > 2:
            raise ValueError(f"--class: the model has {classes} classes, say which one (0..{classes - 1})")
        return None if classes == 1 else 1
    if classes == 1 and chosen in (0, 1):
        return None
    if not 0 <= chosen < classes:
        raise ValueError(f"--class: expected 0..{classes - 1}, got {chosen}")
    return chosen


def _roi(text: str, scan: Any, label: Tensor | None, prediction: Tensor, channel: int) -> Tensor:
    spatial = tuple(scan.shape[2:])
    kind, colon, rest = text.partition(":")
    box = box_of(text)
    if box is not None:
        if len(box[0]) != len(spatial) or len(box[1]) != len(spatial):
            raise ValueError(f"{text} has {len(box[0])} axes, the image {len(spatial)}")
        return regions.box(spatial, *box)
    # With one channel, 1 is the object.
    labels = label if label is not None else (prediction[0].long() if len(prediction) == 1 else prediction.long().argmax(0))
    if kind == "point" and re.fullmatch(r"\d+(,\d+)*", rest):
        return regions.component(labels, [int(index) for index in rest.split(",")])
    if kind == "label" and rest.isdecimal():
        return regions.from_label(labels, int(rest))
    if kind == "boundary" and re.fullmatch(r"\d+(\.\d+)?", rest):
        return regions.boundary(prediction[channel], float(rest))
    if kind in ("box", "point", "label", "boundary") and colon:
        raise ValueError(f"expected box:72,88+32, point:80,90, label:2, boundary:3 or a file, got {text!r}")
    return regions.from_file(text, like=scan)


def _units(text: str | None, scan: Any) -> dict[str, Any]:
    spatial = tuple(scan.shape[2:])
    if text is None:
        return {"block_size": tuple(min(8, length) for length in spatial)}
    if re.fullmatch(r"\d+(x\d+)*", text):
        sizes = tuple(map(int, text.split("x")))
        sizes = sizes * len(spatial) if len(sizes) == 1 else sizes
        regions.grid(spatial, sizes)  # refused with the option's name
        return {"block_size": sizes}
    found = load_label(text, spatial_dims=len(spatial))
    check_same_grid(scan, found)
    return {"feature_mask": regions.from_mask(np.asarray(found.as_subclass(Tensor)[0, 0]))[None, None]}


def _refuse_all_touching(units: dict[str, Any], roi: Tensor) -> None:
    mask = units["feature_mask"][0, 0] if "feature_mask" in units else regions.grid(roi.shape, units["block_size"])
    if len(mask[roi].unique()) == len(mask.unique()):
        raise ValueError(
            "every unit touches the region of interest, none is left to replace; choose smaller ones, or a smaller --roi"
        )


@contextmanager
def _naming(option: str) -> Iterator[None]:
    """Say which option an error is about, in place of the name of an argument that the user never saw."""
    try:
        yield
    except (ValueError, ImportError, OSError) as error:
        said = str(error)
        if said.startswith("--"):
            raise
        raise ValueError(f"{option}: {re.sub(r'^[a-z_]+(, [a-z_]+)*: ', '', said)}") from error
