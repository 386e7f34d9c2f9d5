"""A case as the command line describes it: image, reference, region of interest, units and donors, read and checked."""

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captum_causalseg.cli.digests import CaseFile, files_of
from captum_causalseg.cli.errors import InputError, naming, naming_arguments
from captum_causalseg.cli.files import image_name, name_of_case, place_name, units_name
from captum_causalseg.cli.mistakes import Mistake, find_mistake, is_mistake
from captum_causalseg.cli.model import read_model
from captum_causalseg.cli.places import find_roi
from captum_causalseg.donors import DonorSource, PatchBank, SameImage
from captum_causalseg.metrics import METRICS
from captum_causalseg.preparation.channels import find_modalities
from captum_causalseg.preparation.grid import Grids
from captum_causalseg.preparation.image_files import DonorFolder, Preparation
from captum_causalseg.preparation.models import PreparedModel, find_class, first_prediction, first_segmentations
from captum_causalseg.preparation.units import Units, find_units
from captum_causalseg.target import SegmentationTarget

__all__ = ["CommandCase", "read_case"]


@dataclass(frozen=True)
class CommandCase:
    """What is explained.

    Args:
        name: of the image in titles; empty with ``--private``.
        grids: the image as its file has it, the prepared one, and the way between them.
        image: the prepared image as a plain tensor, ``(1, C, *spatial)``.
        target: scores of the region of interest.
        roi: boolean ``(*spatial)``, on the prepared grid.
        place: what the region of interest is called.
        output: the class that is explained; ``None`` for a model with one output.
        prediction: where the model sees that class, boolean ``(*spatial)``, on the prepared grid.
        reference: where the reference has it; ``None`` without one.
        donors: what units are replaced by.
        donor_images: the donor images, read when asked for; ``None`` without a folder.
        units: what is replaced.
        described: what each of these is, in words, in the order of a report.
        files: what all of it was read from.
        chosen: what was chosen for the user, in sentences.
    """

    name: str
    grids: Grids
    image: Tensor
    target: SegmentationTarget
    roi: Tensor
    place: str
    output: int | None
    prediction: Tensor
    reference: Tensor | None
    donors: DonorSource
    donor_images: "Sequence[Tensor] | None"
    units: Units
    described: dict[str, str]
    files: Sequence[CaseFile] = ()
    chosen: tuple[str, ...] = ()


def read_case(options: argparse.Namespace, model: PreparedModel | None = None) -> CommandCase:
    """Read and check everything that the options name, and settle the metric where none was.

    Args:
        options: of a command; ``options.metric`` is settled.
        model: the one that they name, where it has been read already.

    Raises:
        InputError: something cannot be used; the message begins with the option.
    """
    if options.metric is not None and options.metric not in METRICS:
        raise InputError(f"--metric: there is no {options.metric!r}; expected one of {', '.join(METRICS)}")
    model = read_model(options) if model is None else model
    preparation = model.preparation
    with naming("--image"):
        prepared = preparation.image(options.image)
        grids = preparation.grids(options.image, prepared)
    image = prepared.as_subclass(Tensor).to(model.device)
    label = None if options.label is None else _label(options.label, grids)
    reference = None
    if label is not None:
        reference = preparation.reference(grids.to_prepared(label[0]) if label[1] else label[0])
    compared_with = None
    if is_mistake(options.roi):
        if reference is None:
            raise InputError(f"--roi: {options.roi} is where prediction and reference differ; give --label, the reference")
        with naming("--model"), naming_arguments():
            prediction, compared_with = (masks.cpu() for masks in first_segmentations(model, image, reference))
    else:
        with naming("--model"), naming_arguments():
            prediction = first_prediction(model, image, reference).cpu()
    _warn_of_intensities(options, preparation, image=image, prediction=prediction)
    with naming("--class"):
        output = find_class(options.class_, prediction.shape[1], preparation.labels)
    channel = 0 if output is None else output
    mistake: Mistake | None = None
    with naming("--roi"):
        if compared_with is None:
            roi, roi_text = find_roi(options.roi, grids, preparation, label=label, prediction=prediction[0], channel=channel)
        else:
            mistake = find_mistake(options.roi, grids, prediction=prediction[0, channel], truth=compared_with[0, channel])
            roi, roi_text = mistake.mask, mistake.described
    chosen = _chosen(options, mistake)
    with naming("--model"), naming_arguments():
        truth = prediction if reference is None else reference
        target = model.make_target(roi=roi, reference=truth, metric=options.metric).to(model.device)
        with torch.no_grad():
            target(image)
            predicted, expected = target.segmentations(image)
    donors: DonorSource = SameImage()
    folder = None
    if options.donors is not None:
        with naming("--donors"):
            folder = DonorFolder(options.donors, preparation, image.shape[1], explained=options.image)
            donors = PatchBank(folder, match=options.match, blend=_blend(options.blend))
    elif options.match is not None or options.blend:
        raise InputError(f"--{'blend' if options.match is None else 'match'}: it goes with --donors, whose images it changes")
    words, parts = options.channels, options.units
    if parts == "channel_block":
        words, parts = ["each"] if words is None else words, None
    with naming("--channels"):
        modalities = find_modalities(words, preparation.channels, image.shape[1])
    with naming("--units"):
        units = find_units(parts, grids, roi).of(modalities)
    named = f" ({', '.join(preparation.channels)})" if len(preparation.channels) == image.shape[1] > 1 else ""
    size = f"{_size(grids)}, {image.shape[1]} channel(s){named}"
    compared = (
        "the model's own prediction" if label is None else name_of_case(options, options.label, "a reference segmentation")
    )
    if not METRICS[options.metric].needs_reference:
        compared = "nothing, the score needs no reference"
    place = place_name(options)
    described = {
        "Image": size if options.private else f"{image_name(options)} ({size})",
        "Model": f"{model.described}, on {model.device}",
        "Class": "the only one" if output is None else _class_in_words(output, prediction.shape[1], preparation.labels),
        "Region of interest": f"{place}, {roi_text}",
        "Places": grids.in_words(),
        "Compared with": compared,
        "Parts of the image": f"{units_name(options)} {units.described}".lstrip(),
        "Replaced by": "other places of the same image"
        if folder is None
        else f"places of {len(folder)} images in {name_of_case(options, options.donors, 'a folder')}{_fit_in_words(options)}",
        "Score": options.metric,
    }
    return CommandCase(
        name=image_name(options),
        grids=grids,
        image=image,
        target=target,
        roi=roi,
        place=place,
        output=output,
        prediction=predicted[0, output or 0].cpu(),
        reference=None if reference is None or expected is None else expected[0, output or 0].cpu(),
        donors=donors,
        donor_images=folder,
        units=units,
        described=described,
        files=files_of(options),
        chosen=chosen,
    )


def _warn_of_intensities(options: argparse.Namespace, preparation: Preparation, image: Tensor, prediction: Tensor) -> None:
    """A network that says the same of every pixel of an image in the file's own intensities was most likely trained on other ones."""
    classes = prediction[0].flatten(1)
    low, high = float(image.min()), float(image.max())
    if preparation.whose or options.normalize != "none" or bool((classes != classes[:, :1]).any()) or (low >= -5 and high <= 5):
        return
    fits = "255, range or zscore" if low >= 0 and high <= 255 else "range or zscore"
    warnings.warn(
        f"the model says the same of every pixel of the image, whose values go from {low:g} to {high:g}; if it was trained on others, "
        f"--normalize {fits} gives them",
        stacklevel=2,
    )


def _chosen(options: argparse.Namespace, mistake: Mistake | None) -> tuple[str, ...]:
    """Settle the metric; what was found and chosen where the user left it open, in words."""
    given = options.metric
    if given is None:
        options.metric = "dice" if mistake is None else mistake.score
    if mistake is None:
        return ()
    why = {
        "false_positive": "it says how much is predicted there, where Dice is 0 until all of it is gone",
        "missed": "it says whether the object is found there",
        "both": "it moves with every pixel, where Dice is 0 until one is right",
    }[mistake.kind]
    scored = f"scored by {options.metric}" + (f": {why} (--metric chooses another)" if given is None else "")
    return (f"{options.roi}: {mistake.described}", scored)


def _blend(width: int) -> int:
    if width < 0:
        raise InputError(f"--blend: expected at least 0, got {width}")
    return width


def _fit_in_words(options: argparse.Namespace) -> str:
    said = {None: "", "mean": ", given the part's own mean", "mean_std": ", given the part's own mean and spread"}
    matched = said.get(options.match, ", given the part's own values in their order")
    return matched + (f", faded in over {options.blend} pixel{'s' * (options.blend > 1)}" if options.blend else "")


def _label(file: Path, grids: Grids) -> tuple[Tensor, bool]:
    """The reference, and whether it lies on the file's grid rather than on the prepared one."""
    with naming("--label"):
        label, is_own = grids.read_labels(file)
    return ((label > 0).long() if torch.unique(label).tolist() in ([0, 255], [255]) else label), is_own


def _class_in_words(output: int, classes: int, labels: Mapping[str, int]) -> str:
    counted = f"{output} of {classes} (counted from 0)"
    return next((f"{name}, {counted}" for name, number in labels.items() if number == output), counted)


def _size(grids: Grids) -> str:
    own, prepared = (" x ".join(map(str, shape)) for shape in (grids.shape, grids.prepared_shape))
    if not grids.known:
        return f"prepared: {prepared} {grids.noun}"
    return f"{own} {grids.noun}" + (f", prepared: {prepared}" if grids.differ else "")
