"""From an image layer, a region drawn on it and a model to layers with effects; without napari and without Qt."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.progress import Report
from captum_causalseg.bundle.weights import is_torchscript
from captum_causalseg.donors import DonorSource, PatchBank, SameImage
from captum_causalseg.images import load_image
from captum_causalseg.metrics import METRICS
from captum_causalseg.napari.layers import LayerData, layers_of
from captum_causalseg.preparation.grid import Grids
from captum_causalseg.preparation.image_files import DonorFolder, FilePreparation, Preparation
from captum_causalseg.preparation.models import (
    PreparedModel,
    bundle_model,
    find_class,
    find_device,
    first_prediction,
    nnunet_model,
    scripted,
)
from captum_causalseg.preparation.units import Units, find_units
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target import SegmentationTarget

__all__ = ["KINDS", "NORMALIZE", "Explained", "LayerImage", "Question", "explain_layers", "kind_of"]

KINDS = ("bundle", "nnunet", "torchscript")
NORMALIZE = ("none", "255", "range", "zscore")
Masks: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class LayerImage:
    """An image as a viewer has it.

    Args:
        values: ``(*spatial)``, or with ``rgb`` ``(*spatial, 3)`` or ``(*spatial, 4)``, whose fourth channel is left out.
        rgb: whether the last axis is that of colors.
        placement: where it lies, ``scale``, ``affine`` and so on, as arguments of a layer; all results get the same.
        file: that it was opened from.
        name: what it is called.
    """

    values: np.ndarray[Any, Any]
    rgb: bool = False
    placement: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None
    name: str = "image"

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape."""
        return tuple(self.values.shape[:-1] if self.rgb else self.values.shape)

    def tensor(self) -> Tensor:
        """``(1, C, *spatial)``, float32.

        Raises:
            ValueError: it has other than 2 or 3 spatial axes, or holds NaN or infinite values.
        """
        if len(self.shape) not in (2, 3):
            raise ValueError(f"image: expected 2 or 3 spatial axes, got {len(self.shape)}: {self.shape}")
        values = np.moveaxis(self.values[..., :3], -1, 0) if self.rgb else self.values[None]
        found = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
        missing = int((~found.isfinite()).sum())
        if missing:
            raise ValueError(f"image: it holds {missing} NaN or infinite values")
        return found


@dataclass(frozen=True)
class Question:
    """What is asked of a model.

    Args:
        model: a MONAI bundle, a folder of nnU-Net's results, or a TorchScript file.
        kind: which of them, of :data:`KINDS`; ``None``: see :func:`kind_of`.
        class_: number or name of the class that is explained; ``None``: the only one, or the second of two.
        units: edges of blocks in the image's pixels, ``"8"`` or ``"8x8x4"``; ``None``: as many as make 8 pixels of the prepared image.
        n_draws: interventions per unit.
        metric: the score in the region.
        normalize: intensities of image and donors, of :data:`NORMALIZE`; for models that do not prepare their images themselves.
        donors: a folder of images to cut donors from; ``None``: other places of the same image.
        match: what donors are given of the part that they replace: ``"mean"``, ``"mean_std"``, ``"histogram"``; ``None``: nothing.
        device: such as ``"cpu"``; ``None``: the first CUDA device if there is one.
        seed: of the draws.
    """

    model: Path
    kind: str | None = None
    class_: str | None = None
    units: str | None = None
    n_draws: int = 20
    metric: str = "dice"
    normalize: str = "none"
    donors: Path | None = None
    match: Literal["mean", "mean_std", "histogram"] | None = None
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Explained:
    """What was found.

    Args:
        statistics: effects of the class that is explained, with their uncertainty.
        layers: what a viewer shows, from bottom to top.
        said: what was done, in a sentence or two.
    """

    statistics: TreatmentEffectStatistics
    layers: list[LayerData]
    said: str


def kind_of(model: Path) -> str:
    """Which of :data:`KINDS` a file or folder is.

    Raises:
        ValueError: it is none of them.
    """
    if model.is_dir():
        if (model / "plans.json").is_file():
            return "nnunet"
        if (model / "configs").is_dir():
            return "bundle"
        raise ValueError(
            f"model: {model} is neither a MONAI bundle (with a folder configs) nor a folder of nnU-Net's results (with plans.json)"
        )
    if not model.is_file():
        raise ValueError(f"model: there is no {model}")
    if not is_torchscript(model):
        raise ValueError(
            f"model: {model} is no TorchScript file; of weights alone it is not known to which network they belong"
        )
    return "torchscript"


def explain_layers(
    image: LayerImage,
    roi: Masks,
    question: Question,
    *,
    reference: Masks | None = None,
    show_progress: bool | Report = False,
) -> Explained:
    """Estimate the effect of every unit of an image on the score of a region, as layers over the image.

    Args:
        image: that is explained. Bundles and nnU-Nets prepare their images from files: the layer has to hold what its file does.
        roi: the region, boolean ``(*spatial)``.
        question: the model, and what is asked of it.
        reference: label map ``(*spatial)`` to compare with; ``None``: the model's own prediction.
        show_progress: as of :meth:`captum_causalseg.AverageTreatmentEffect.attribute`: a function is told, and what it raises ends the work.

    Returns:
        Statistics and layers. Effects are positive where a unit supports the segmentation in the region.

    Raises:
        ValueError, OSError, ImportError: something cannot be used; messages begin with what it is about.
    """
    tell = show_progress if callable(show_progress) else _ignored
    for name, given in (("roi", roi), ("reference", reference)):
        if given is not None and tuple(given.shape) != image.shape:
            raise ValueError(f"{name}: expected the image's shape {image.shape}, got {tuple(given.shape)}")
    if not roi.any():
        raise ValueError("roi: it is empty; draw a shape on the image, or paint a label")
    if question.metric not in METRICS:
        raise ValueError(f"metric: there is no {question.metric!r}; expected one of {', '.join(METRICS)}")
    if question.match is not None and question.donors is None:
        raise ValueError("match: it goes with a folder of donors, whose images it changes")
    tell("reading the model", 0, 0)
    model = _model(question)
    tell("preparing the image", 0, 0)
    prepared, grids = _prepared(image, model.preparation)
    inputs = prepared.as_subclass(Tensor).to(model.device)
    labels = None
    if reference is not None:
        labels = model.preparation.reference(grids.to_prepared(torch.from_numpy(reference.astype(np.int64))))
    tell("segmenting the image", 0, 0)
    prediction = first_prediction(model, inputs, labels).cpu()
    output = _named("class", find_class, question.class_, prediction.shape[1], model.preparation.labels)
    region = _region(roi, grids)
    target = model.make_target(roi=region, reference=prediction if labels is None else labels, metric=question.metric)
    target = target.to(model.device)
    units = _named("units", find_units, question.units, grids, region)
    _, found = AverageTreatmentEffect(target).attribute(
        inputs,
        baselines=_donors(question, image, model.preparation, channels=inputs.shape[1]),
        target=output,
        n_draws=question.n_draws,
        n_screening_draws=min(3, question.n_draws),
        seed=question.seed,
        show_progress=show_progress,
        return_statistics=True,
        **units.arguments,
    )
    statistics = found.of_output(output)
    segmented = prediction[0, output or 0].bool()
    layers = layers_of(statistics, units, grids, region=region, prediction=segmented, placement=image.placement)
    return Explained(statistics, layers, _in_words(question, model, statistics, units=units, compared=labels is not None))


def _ignored(what: str, done: int, most: int) -> None:
    """Nobody wants to know."""


def _named(name: str, find: Any, *args: Any) -> Any:
    """What is wrong with it is about this argument, in place of one that the user never saw."""
    try:
        return find(*args)
    except ValueError as error:
        raise ValueError(f"{name}: {re.sub(r'^[a-z_]+: ', '', str(error))}") from error


def _model(question: Question) -> PreparedModel:
    kind = kind_of(question.model) if question.kind is None else question.kind
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    device = _named("device", find_device, question.device)
    as_they_are = FilePreparation(question.normalize, None)
    if kind == "bundle":
        model = bundle_model(question.model, as_they_are, weights=None, device=device, dims=None)
    elif kind == "nnunet":
        model = nnunet_model(question.model, [0], checkpoint="checkpoint_final.pth", device=device, dims=None)
    else:
        network = _named("model", scripted, question.model, device)
        model = PreparedModel(
            make_target=partial(SegmentationTarget, network),
            preparation=as_they_are,
            device=device,
            described=f"TorchScript {question.model.name}",
        )
    if model.preparation.whose and question.normalize != "none":
        raise ValueError(f"normalize: {model.preparation.whose} prepares its images itself, choose none")
    return model


def _prepared(image: LayerImage, preparation: Preparation) -> tuple[Any, Grids]:
    """What the network is shown, and where that lies in the layer."""
    values = image.tensor()
    if isinstance(preparation, FilePreparation):
        prepared = _named("image", preparation.normalized, values, image.name)
        return prepared, Grids(values, prepared, picture=True, whose="the layer")
    file = image.file
    if file is None:
        raise ValueError(
            f"image: {preparation.whose} prepares its images from their files, and the layer {image.name} was not opened from one"
        )
    _check_holds_file(image, values, file)
    prepared = preparation.image([file])
    grids = preparation.grids([file], prepared)
    if not grids.known:
        raise ValueError(f"image: {preparation.whose} does not tell where in {file.name} the prepared image lies")
    return prepared, grids


def _check_holds_file(image: LayerImage, values: Tensor, file: Path) -> None:
    """A layer whose axes another reader has turned would be explained in the wrong place."""
    own = load_image(file).as_subclass(Tensor)
    if own.shape != values.shape or not torch.equal(own, values):
        raise ValueError(
            f"image: the layer {image.name} {tuple(values.shape[2:])} does not hold what its file {file.name} does, {tuple(own.shape[2:])}; "
            "open the file with this plugin, which leaves axes and values as they are in it"
        )


def _region(roi: Masks, grids: Grids) -> Tensor:
    """On the prepared grid."""
    drawn = torch.from_numpy(np.ascontiguousarray(roi, dtype=bool))
    found = grids.to_prepared(drawn & grids.kept()) if grids.differ else drawn
    if not bool(found.any()):
        raise ValueError("roi: it lies outside of what the pre-processing leaves of the image")
    return found


def _donors(question: Question, image: LayerImage, preparation: Preparation, *, channels: int) -> DonorSource:
    if question.donors is None:
        return SameImage()
    if len(image.shape) == 3 and isinstance(preparation, FilePreparation):
        # Donors are read with the axes of their files: those of the layer should be, too.
        if image.file is None:
            raise ValueError(
                f"donors: the axes of {image.name} may be others than those of files, as it was not opened from one"
            )
        _check_holds_file(image, image.tensor(), image.file)
    explained: Sequence[Path] = () if image.file is None else (image.file,)
    folder = _named("donors", partial(DonorFolder, explained=explained), question.donors, preparation, channels)
    return PatchBank(folder, match=question.match)


def _in_words(
    question: Question, model: PreparedModel, statistics: TreatmentEffectStatistics, *, units: Units, compared: bool
) -> str:
    observed = float(statistics.observed_score[0])
    effects = statistics.effect[0]
    significant = statistics.significant(0.05)[0]
    raising, lowering = int((significant & (effects > 0)).sum()), int((significant & (effects < 0)).sum())
    against = "" if compared or not METRICS[question.metric].needs_reference else " against the model's own prediction"
    return (
        f"{question.metric} in the region is {observed:.3f}{against}. Of {len(effects)} units ({units.described}), {raising} significantly raise it, {lowering} "
        f"lower it (5 % false discoveries). {model.described}, {statistics.n_forwards} forward passes."
    )
