"""Does every public callable refuse bad arguments by name? Each argument of each of them is replaced by some forty bad values.

    python benchmarks/refusals.py [--only ROOM] [--accepted] [--unnamed] [--write FILE]

There is one valid call of every public function, constructor and method; of each, one argument at a time is replaced. A **refusal** is a
TypeError, a ValueError, an OSError (for files that are not there) or a KeyError (for cases that are not); anything else that is raised is a **crash**. A refusal is
**named** if its message opens with the argument's name. The share of named ones is among all that was raised, crashes included. What is
accepted is not judged here, for much of it is good (0 draws to screen with, an empty title); ``--accepted`` lists it, to be read,
``--unnamed`` lists what was raised without a name.
"""

import contextlib
import functools
import importlib
import inspect
import io
import itertools
import json
import logging
import os
import re
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from cases import machine, parser, publish, say, start
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

import captum_causalseg as ccs
import captum_causalseg.demo
import captum_causalseg.visualization
from captum_causalseg import PatchBank, SegmentationTarget, layout, metrics, regions
from captum_causalseg.cohort import explain_cohort, summarize
from captum_causalseg.evaluation import faithfulness, planted, profile
from captum_causalseg.evaluation.refute import REFUTERS, RefutationContext
from captum_causalseg.images import load_image
from captum_causalseg.target.adapters import ADAPTERS

PUBLIC = (
    "captum_causalseg",
    *(f"captum_causalseg.{name}" for name in ("baselines", "bundle", "cli", "cohort", "demo", "donors", "evaluation")),
    *(f"captum_causalseg.evaluation.{name}" for name in ("faithfulness", "planted", "profile", "refute")),
    *(f"captum_causalseg.{name}" for name in ("images", "layout", "metrics", "regions", "statistics", "visualization")),
)
"""Modules whose ``__all__`` is for users."""

LEFT_OUT = {
    "cli.main": "speaks to people: one line and an exit code",
    **dict.fromkeys(
        ("cli.Command.add_arguments", "cli.Command.run"),
        "a protocol: the command line calls it with arguments of its own",
    ),
    **dict.fromkeys(("demo.load_brain_slices", "demo.load_lesion_slices"), "reads a whole brain"),
    "SegmentationTarget.logits_and_scores": "for who runs layers: takes what forward has taken",
    **dict.fromkeys(
        ("donors.MovedPrompts.chosen", "donors.MovedPrompts.split"),
        "as of DonorSource, which is in the catalog: no images to split",
    ),
    "donors.MovedPrompts.bind_places": "for who explains prompts: takes what only the library has",
    "WindowedModel.mixes": "for who runs windows: takes what only the library has",
    **dict.fromkeys(
        (
            "WindowedModel.from_nnunet",
            "load_nnunet",
            *(
                f"NnunetModel.{name}"
                for name in (
                    "prepare",
                    "cases_in",
                    "files_of",
                    "target",
                    "donors",
                    "region",
                    "reference",
                    "masks",
                    "predict",
                    "to_scan",
                    "save_map",
                )
            ),
        ),
        "needs nnU-Net",
    ),
    "NnunetModel": "load_nnunet makes it",
    "Region": "sufficient_region and necessary_region make it",
    "Pathway": "pathway makes it",
    **dict.fromkeys(
        (
            *(
                "Bundle",
                "Comparison",
                "DonorComparison",
                "PerceptionProfile",
                "RefutationReport",
                "evaluation.BackgroundEffect",
                "evaluation.Curve",
                "evaluation.InfluenceMatrix",
            ),
            *("evaluation.Refutation", "evaluation.refute.RefutationContext", "evaluation.planted.PlantedCase"),
            *(
                "evaluation.planted.ShortcutCase",
                "evaluation.planted.ShortcutExamples",
                "cohort.CohortSummary",
                "cohort.ComparisonSummary",
                "demo.BrainSlices",
                "demo.Lesions",
            ),
        ),
        "a result: nobody but the library makes one",
    ),
    **dict.fromkeys(
        (*(f"metrics.{name}" for name in metrics.__all__ if name not in ("METRICS", "Metric", "register")),),
        "runs in every forward pass: the target has checked what it is given",
    ),
    **dict.fromkeys(
        (
            *(
                f"donors.BoundDonors.{name}"
                for name in ("inner_products", "locate", "mean", "mean_value", "population", "read", "read_many", "values")
            ),
            *("DonorSource.bind", "DonorSource.chosen", "PatchBank.chosen", "ActivationBank.chosen", "NeighborBank.chosen"),
        ),
        "a protocol: the engine calls it for every draw, with arguments of its own",
    ),
    **dict.fromkeys(
        (
            *(
                "ActivationBank.recorded",
                "ActivationBank.of_layers",
                "ActivationBank.hear",
                "SegmentationTarget.local_scores",
                "SegmentationTarget.roi_masks",
                "SegmentationTarget.segmentations",
            ),
            *("SegmentationTarget.with_masks_as_arguments", "SegmentationTarget.with_masks_of_calls"),
            *(
                "WindowedModel.forward",
                "WindowedModel.layout",
                "WindowedModel.arguments",
                "WindowedModel.fused",
                "WindowedModel.fused_dtype",
                "WindowedModel.weighted",
                "WindowedModel.answer",
                "WindowedModel.blended",
                "WindowedModel.first_window",
                "WindowedModel.in_each_network",
                "WindowedModel.seen",
            ),
            *("SegmentationTarget.output_axes", "AverageTreatmentEffect.only", "LayerAverageTreatmentEffect.only", "PdCR.only"),
            "PatchBank.own_images",
            "demo.Augmentation.__call__",
        ),
        "called by the library alone",
    ),
}
"""Public callables that are not tried, and why."""

SIZE = 12
SECONDS = 1.0
"""What a bad value makes run for longer counts as accepted."""


# --- What there is ---------------------------------------------------------------------------------------------------


def public_callables() -> dict[str, Callable[..., Any]]:
    """Functions, classes and methods of ours by their shortest public names, such as ``AverageTreatmentEffect.attribute``."""
    found: dict[str, Callable[..., Any]] = {}
    seen: set[int] = set()
    public = {
        id(getattr(importlib.import_module(module), name))
        for module in PUBLIC
        for name in getattr(importlib.import_module(module), "__all__", ())
    }
    for module in PUBLIC:
        for name in getattr(importlib.import_module(module), "__all__", ()):
            value = getattr(importlib.import_module(module), name)
            if not (inspect.isclass(value) or inspect.isfunction(value)) or id(value) in seen:
                continue
            seen.add(id(value))
            full = f"{module}.{name}".removeprefix("captum_causalseg.")
            if inspect.isfunction(value):
                if _parameters(value):
                    found[full] = value
                continue
            if not issubclass(value, (BaseException, int)) and _is_ours(value.__init__):
                found[full] = value
            for member in dir(value):
                method = getattr(value, member)
                if any(getattr(base, member, None) is method and id(base) in public for base in value.__mro__[1:]):
                    continue  # it is that of a base class, which is tried
                is_public = member == "__call__" or not member.startswith("_")
                if callable(method) and is_public and _is_ours(method) and _parameters(method):
                    found[f"{full}.{member}"] = method
    return found


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("captum_causalseg")


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [
        one
        for one in inspect.signature(function).parameters.values()
        if one.kind is not one.VAR_KEYWORD and one.name not in ("self", "cls")
    ]


# --- One valid call of each ------------------------------------------------------------------------------------------


def _seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def small_network(spatial_dims: int = 2) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        return nn.Sequential(conv(1, 3, 3, padding=1), nn.ReLU(), conv(3, 2, 3, padding=1)).eval()


def total(images: Tensor) -> Tensor:
    """A forward function."""
    return images.flatten(1).sum(1)


def random_method(target: Any) -> Any:
    """A method of any target, which knows nothing."""
    return random_map


def random_map(inputs: Tensor) -> Tensor:
    """A method to compare."""
    return _seeded(*inputs.shape, seed=3)


class World:
    """What valid calls are made of; everything is made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def image(self) -> Tensor:
        return _seeded(1, 1, SIZE, SIZE)

    @functools.cached_property
    def volume(self) -> Tensor:
        return _seeded(1, 1, 8, 8, 4)

    @functools.cached_property
    def donors(self) -> Tensor:
        return _seeded(6, 1, SIZE, SIZE, seed=1)

    @functools.cached_property
    def roi(self) -> Tensor:
        return regions.box((SIZE, SIZE), start=4, size=4)

    @functools.cached_property
    def two_rois(self) -> Tensor:
        return torch.stack([self.roi, regions.box((SIZE, SIZE), start=0, size=4)])

    @functools.cached_property
    def labels(self) -> Tensor:
        return (_seeded(SIZE, SIZE, seed=2) > 0.5).long()

    @functools.cached_property
    def network(self) -> nn.Sequential:
        return small_network()  # type: ignore[return-value]

    @property
    def target(self) -> SegmentationTarget:
        return SegmentationTarget(self.network, roi=self.roi, reference=self.labels, metric="soft_dice")

    @property
    def ate(self) -> ccs.AverageTreatmentEffect:
        return ccs.AverageTreatmentEffect(self.target)

    @property
    def arguments(self) -> dict[str, Any]:
        """Of an explainer."""
        return {"inputs": self.image, "baselines": PatchBank(self.donors), "target": 1, "n_draws": 3}

    @property
    def of_layer(self) -> dict[str, Any]:
        return {"inputs": self.image, "layer_baselines": self.donors, "target": 1}

    def _statistics(self, **options: Any) -> ccs.TreatmentEffectStatistics:
        target = SegmentationTarget(
            **({"model": self.network, "roi": self.roi, "reference": self.labels, "metric": "soft_dice"} | options)
        )
        ate = ccs.AverageTreatmentEffect(target)
        more = {"block_size": 4, "n_screening_draws": 0, "return_statistics": True}
        return ate.attribute(**self.arguments | {"target": (1, 0) if "roi" in options else 1} | more)[1]

    @functools.cached_property
    def statistics(self) -> ccs.TreatmentEffectStatistics:
        return self._statistics()

    @functools.cached_property
    def controlled(self) -> ccs.TreatmentEffectStatistics:
        asked = {"block_size": 4, "controls": "edge", "return_statistics": True}
        return self.ate.attribute(**self.arguments, **asked)[1]

    @functools.cached_property
    def statistics_of_rois(self) -> ccs.TreatmentEffectStatistics:
        return self._statistics(roi=self.two_rois)

    @functools.cached_property
    def statistics_of_volume(self) -> ccs.TreatmentEffectStatistics:
        target = SegmentationTarget.from_prediction(
            small_network(3), self.volume, roi=regions.box((8, 8, 4), 0, 4), metric="soft_dice"
        )
        ate = ccs.AverageTreatmentEffect(target)
        return ate.attribute(self.volume, target=1, n_draws=3, block_size=4, return_statistics=True)[1]

    @functools.cached_property
    def profile(self) -> ccs.PerceptionProfile:
        return ccs.perception_profile(self.statistics, self.roi, 1)

    @functools.cached_property
    def comparison(self) -> ccs.Comparison:
        return ccs.compare({"random": random_map}, self.target, self.image, self.donors, output=1, block_size=4, n_controls=1)

    @functools.cached_property
    def donor_comparison(self) -> ccs.DonorComparison:
        given = {"raw": self.donors, "zeros": 0.0}
        return ccs.compare_donors(self.target, self.image, given, 1, block_size=4, n_draws=3)

    @functools.cached_property
    def interactions(self) -> Any:
        arguments = {"baselines": self.donors, "output": 1, "pairs": [(0, 1)], "block_size": 4, "n_draws": 2, "exclude": None}
        return ccs.interaction_effects(self.target, self.image, **arguments)

    @functools.cached_property
    def pathway(self) -> ccs.Pathway:
        return ccs.pathway(self.target, self.image, self.donors, layers="0", output=1, block_size=4, n_draws=3)

    @property
    def heads(self) -> pd.DataFrame:
        return self.components.assign(head=0)

    @property
    def of_clicks(self) -> ccs.PromptTreatmentEffect:
        return ccs.PromptTreatmentEffect(total, maps=[1])

    @property
    def clicked(self) -> Tensor:
        clicks = torch.zeros_like(self.image)
        clicks[..., 2, 2] = 1.0
        return torch.cat([self.image, clicks], 1)

    @functools.cached_property
    def region(self) -> ccs.Region:
        found: ccs.Region = ccs.sufficient_region(self.target, self.image, self.donors, output=1, block_size=4, n_draws=2)
        return found

    @functools.cached_property
    def components(self) -> pd.DataFrame:
        return ccs.component_effects(self.target, self.image, baselines=self.donors, output=1, n_draws=3)

    @property
    def judge(self) -> faithfulness.Faithfulness:
        return faithfulness.Faithfulness(
            self.target, self.image, self.donors, 1, block_size=4, n_draws=1, n_steps=3, n_subsets=5
        )

    @functools.cached_property
    def context(self) -> RefutationContext:
        arguments = {"block_size": 4, "n_draws": 3}
        bank = PatchBank(self.donors)
        statistics = self.statistics.of_output(1)
        return RefutationContext(self.ate, self.image, bank, 1, 0.05, 0, arguments, statistics)

    @property
    def cases(self) -> list[dict[str, Any]]:
        return [{"id": f"case {k}", "image": _seeded(1, SIZE, SIZE, seed=k), "site": "AB"[k % 2]} for k in range(3)]

    def make_target(self, case: dict[str, Any]) -> SegmentationTarget:
        return SegmentationTarget.from_prediction(self.network, case["image"][None], roi=self.roi, metric="soft_dice")

    @property
    def study_arguments(self) -> dict[str, Any]:
        return {
            "cases": self.cases[:1],
            "make_target": self.make_target,
            "method": ccs.AverageTreatmentEffect,
            "out": self.folder / f"study {next(_COUNTER)}",
            "show_progress": False,
            "baselines": 0.0,
            "block_size": 4,
            "n_draws": 1,
            "target": 1,
        }

    @functools.cached_property
    def study(self) -> Any:
        return explain_cohort(**self.study_arguments | {"cases": self.cases, "columns": ["site"]})

    @property
    def comparison_arguments(self) -> dict[str, Any]:
        return {
            "methods": {"random": random_method},
            "cases": self.cases[:1],
            "make_target": self.make_target,
            "out": self.folder / f"comparison {next(_COUNTER)}",
            "metrics": ["irof"],
            "n_controls": 1,
            "show_progress": False,
            "baselines": 0.0,
            "block_size": 4,
            "output": 1,
        }

    @functools.cached_property
    def cohort_comparison(self) -> Any:
        return ccs.compare_cohort(**self.comparison_arguments | {"cases": self.cases, "columns": ["site"]})

    @property
    def comparison_table(self) -> pd.DataFrame:
        return pd.DataFrame(
            [(k, name, "irof", k + n, "higher") for k in range(3) for n, name in enumerate("ab")],
            columns=["case", "method", "metric", "value", "score_direction"],
        )

    @property
    def comparison_summary(self) -> Any:
        return ccs.summarize_comparison(self.comparison_table, "a")

    @functools.cached_property
    def summary(self) -> Any:
        return summarize(self.study, by="site")

    @functools.cached_property
    def summary_of_components(self) -> Any:
        arguments = self.study_arguments | {"cases": self.cases, "method": ccs.component_effects}
        del arguments["block_size"]
        return summarize(explain_cohort(**arguments))

    @functools.cached_property
    def scan(self) -> Path:
        import nibabel

        path = self.folder / "scan.nii"
        nibabel.save(nibabel.Nifti1Image(self.volume[0, 0].numpy(), np.eye(4)), path)
        return path

    @functools.cached_property
    def mask_file(self) -> Path:
        import nibabel

        path = self.folder / "mask.nii"
        nibabel.save(nibabel.Nifti1Image((self.volume[0, 0] > 0.5).numpy().astype("uint8"), np.eye(4)), path)
        return path

    @functools.cached_property
    def saved(self) -> Path:
        path = self.folder / "statistics.npz"
        self.statistics.save(path)
        return path

    @functools.cached_property
    def prepared(self) -> tuple[Any, Any]:
        from monai import transforms

        prepare = transforms.Compose([transforms.Resized("image", (8, 8))])
        return prepare({"image": load_image(self._picture)[0]})["image"][None], prepare

    @functools.cached_property
    def _picture(self) -> Path:
        from PIL import Image

        path = self.folder / "picture.png"
        Image.fromarray(np.arange(SIZE * SIZE, dtype=np.uint8).reshape(SIZE, SIZE)).save(path)
        return path

    @functools.cached_property
    def bundle_folder(self) -> Path:
        folder = self.folder / "bundle"
        (folder / "configs").mkdir(parents=True)
        (folder / "models").mkdir()
        network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
        loading = {
            "_target_": "Compose",
            "transforms": [{"_target_": one, "keys": "image"} for one in ("LoadImaged", "EnsureChannelFirstd")],
        }
        config = {"network_def": network, "preprocessing": loading}
        (folder / "configs" / "inference.json").write_text(json.dumps(config))
        torch.save(nn.Conv2d(1, 2, 1).state_dict(), folder / "models" / "model.pt")
        return folder

    @functools.cached_property
    def bundle(self) -> ccs.Bundle:
        return ccs.load_bundle(self.bundle_folder)

    @functools.cached_property
    def slices(self) -> Any:
        return ccs.evaluation.planted.load_shortcut_slices()[1]

    @functools.cached_property
    def lesions(self) -> Any:
        return ccs.demo.draw_lesions(_seeded(2, 1, 16, 16), torch.ones(2, 16, 16).bool())

    @functools.cached_property
    def shortcut(self) -> Any:
        return planted.load_shortcut_case()


_COUNTER = itertools.count()


@dataclass(frozen=True)
class Call:
    """A valid call: a function and the arguments that it cannot do without (or that make it quick)."""

    room: str
    function: Callable[..., Any]
    arguments: dict[str, Any] = field(default_factory=dict)


def _call(room: str, function: Callable[..., Any], /, **arguments: Any) -> Call:
    return Call(room, function, arguments)


def _image_calls(target: SegmentationTarget, name: str) -> Callable[..., Any]:
    """A method that takes the inputs one by one."""
    return lambda inputs: getattr(target, name)(inputs)


CALLS: dict[str, Callable[[World], Call]] = {
    # What is explained.
    "SegmentationTarget": lambda w: _call("target", SegmentationTarget, model=w.network, roi=w.roi, reference=w.labels),
    "SegmentationTarget.from_prediction": lambda w: _call(
        "target", SegmentationTarget.from_prediction, model=w.network, inputs=w.image
    ),
    **{
        f"SegmentationTarget.{name}": functools.partial(
            lambda name, w: _call("target", _image_calls(w.target, name), inputs=w.image), name
        )
        for name in ("answer", "forward", "logits", "model_inputs", "predict", "varies")
    },
    "SegmentationTarget.sampled": lambda w: _call(
        "target", lambda noise, inputs: w.target.sampled(noise, inputs), noise=[0], inputs=w.image
    ),
    "SegmentationTarget.score": lambda w: _call(
        "target",
        lambda logits, inputs, roi: w.target.score(logits, inputs, roi=roi),
        logits=_seeded(1, 2, SIZE, SIZE),
        inputs=w.image,
        roi=None,
    ),
    "SegmentationTarget.surrogate": lambda w: _call("target", w.target.surrogate),
    "WindowedModel": lambda w: _call(
        "target",
        ccs.WindowedModel,
        network=w.network,
        patch_size=8,
        starts=[(0, 0), (0, 4), (4, 0), (4, 4)],
        weight=torch.ones(8, 8),
        mirror_axes=(0,),
        batch_size=2,
    ),
    "WindowedModel.from_monai": lambda w: _call(
        "target", ccs.WindowedModel.from_monai, inferer=SlidingWindowInferer((8, 8)), network=w.network
    ),
    "SegmentationTarget.with_model": lambda w: _call("target", w.target.with_model, model=w.network),
    "SegmentationTarget.with_scoring": lambda w: _call(
        "target", w.target.with_scoring, metric="iou", activation="auto", threshold=0.5, empty_score=1.0
    ),
    # Attribution.
    "AverageTreatmentEffect": lambda w: _call("attr", ccs.AverageTreatmentEffect, forward_func=total),
    "AverageTreatmentEffect.attribute": lambda w: _call("attr", w.ate.attribute, **w.arguments),
    "AverageTreatmentEffect.plan": lambda w: _call("attr", w.ate.plan, **w.arguments),
    "GradientTreatmentEffect": lambda w: _call("attr", ccs.GradientTreatmentEffect, forward_func=total),
    "GradientTreatmentEffect.attribute": lambda w: _call(
        "attr", ccs.GradientTreatmentEffect(w.target).attribute, inputs=w.image, baselines=w.donors, target=1
    ),
    "interaction_effects": lambda w: _call(
        "attr",
        ccs.interaction_effects,
        target=w.target,
        inputs=w.image,
        baselines=w.donors,
        output=1,
        top=2,
        block_size=4,
        n_draws=2,
    ),
    **{
        name: lambda w, name=name: _call(
            "attr", getattr(ccs, name), target=w.target, inputs=w.image, baselines=w.donors, output=1, block_size=4, n_draws=2
        )
        for name in ("sufficient_region", "necessary_region")
    },
    "MediatedTreatmentEffect": lambda w: _call("attr", ccs.MediatedTreatmentEffect, forward_func=w.target, layers="0"),
    "MediatedTreatmentEffect.attribute": lambda w: _call(
        "attr", ccs.MediatedTreatmentEffect(w.target, "0").attribute, **w.arguments | {"n_draws": 2, "block_size": 4}
    ),
    "pathway": lambda w: _call(
        "attr",
        ccs.pathway,
        target=w.target,
        inputs=w.image,
        baselines=w.donors,
        region_units=0,
        layers="0",
        output=1,
        block_size=4,
        exclude=None,
        n_draws=2,
    ),
    "Pathway.to_dataframe": lambda w: _call("evaluation", w.pathway.to_dataframe, level=0.95),
    "Pathway.shares": lambda w: _call("evaluation", w.pathway.shares, example=0),
    "Pathway.by_distance": lambda w: _call("evaluation", w.pathway.by_distance, example=0),
    "Pathway.plot": lambda w: _call("evaluation", w.pathway.plot, example=0),
    "FrozenStatistics": lambda w: _call("attr", ccs.FrozenStatistics, layers="*", name="norms"),
    "JointTreatmentEffect": lambda w: _call("attr", ccs.JointTreatmentEffect, forward_func=total),
    "JointTreatmentEffect.attribute": lambda w: _call(
        "attr", ccs.JointTreatmentEffect(w.target).attribute, **w.arguments | {"n_draws": 4, "block_size": 4}
    ),
    "PromptTreatmentEffect": lambda w: _call("attr", ccs.PromptTreatmentEffect, forward_func=total),
    "PromptTreatmentEffect.attribute": lambda w: _call("attr", w.of_clicks.attribute, inputs=w.clicked),
    "PromptTreatmentEffect.interactions": lambda w: _call(
        "attr", w.of_clicks.interactions, inputs=w.clicked, baselines=0.0, pairs=[(0, 0)], block_size=4, exclude=None, n_draws=2
    ),
    "PromptTreatmentEffect.table": lambda w: _call(
        "attr", w.of_clicks.table, statistics=w.of_clicks.attribute(w.clicked, return_statistics=True)[1]
    ),
    "LayerJointTreatmentEffect": lambda w: _call(
        "attr", ccs.LayerJointTreatmentEffect, forward_func=w.target, layer=w.network[0]
    ),
    "LayerJointTreatmentEffect.attribute": lambda w: _call(
        "attr", ccs.LayerJointTreatmentEffect(w.target, w.network[0]).attribute, **w.of_layer, n_draws=4
    ),
    "LayerAverageTreatmentEffect": lambda w: _call(
        "attr", ccs.LayerAverageTreatmentEffect, forward_func=w.target, layer=w.network[0]
    ),
    "LayerAverageTreatmentEffect.attribute": lambda w: _call(
        "attr", ccs.LayerAverageTreatmentEffect(w.target, w.network[0]).attribute, **w.of_layer, n_draws=3
    ),
    "LayerAverageTreatmentEffect.plan": lambda w: _call(
        "attr", ccs.LayerAverageTreatmentEffect(w.target, w.network[0]).plan, **w.of_layer, n_draws=3
    ),
    "LayerGradientTreatmentEffect": lambda w: _call(
        "attr", ccs.LayerGradientTreatmentEffect, forward_func=w.target, layer=w.network[0]
    ),
    "LayerGradientTreatmentEffect.attribute": lambda w: _call(
        "attr", ccs.LayerGradientTreatmentEffect(w.target, w.network[0]).attribute, **w.of_layer
    ),
    "PdCR": lambda w: _call("attr", ccs.PdCR, forward_func=total),
    "PdCR.attribute": lambda w: _call("attr", ccs.PdCR(w.target).attribute, **w.arguments | {"block_size": 4}),
    "PdCR.to_paper_heatmap": lambda w: _call("attr", ccs.PdCR.to_paper_heatmap, result=w.image),
    "causal_support": lambda w: _call("attr", ccs.causal_support, target=w.target, inputs=w.image),
    "component_effects": lambda w: _call(
        "attr", ccs.component_effects, target=w.target, inputs=w.image, baselines=w.donors, output=1, n_draws=3
    ),
    "Layout": lambda w: _call("attr", ccs.Layout, axes="NLC", grid=(2, 2)),
    **{
        f"Layout.{name}": functools.partial(
            lambda name, w: _call("attr", getattr(ccs.Layout("NLC", grid=(2, 2), first=1), name), shape=(1, 5, 4)), name
        )
        for name in ("check", "spatial", "special_tokens")
    },
    **{
        f"Layout.{name}": functools.partial(
            lambda name, w: _call("attr", getattr(ccs.Layout("NLC"), name), tensor=_seeded(1, 5, 4)), name
        )
        for name in ("as_it_lies", "channels_first")
    },
    "Layout.n_units": lambda w: _call("attr", ccs.Layout("NLC").n_units, units="token", shape=(1, 5, 4)),
    "layout.Units": lambda w: _call("attr", layout.Units, function=total),
    "layout.register_units": lambda w: _call("attr", layout.register_units, name=f"units {next(_COUNTER)}", function=total),
    "layout.unit_mask": lambda w: _call(
        "attr", layout.unit_mask, layout=ccs.Layout("NC*"), units="block", shape=(1, 4, 6, 8), block_size=2
    ),
    # Donors.
    "ActivationBank": lambda w: _call("donors", ccs.ActivationBank, images=w.donors),
    "Blur": lambda w: _call("donors", ccs.Blur),
    "Blur.bind": lambda w: _call("donors", ccs.Blur().bind, images=w.image),
    "Constant": lambda w: _call("donors", ccs.Constant, value=0.0),
    "Constant.bind": lambda w: _call("donors", ccs.Constant(0.0).bind, images=w.image),
    "PatchBank": lambda w: _call("donors", PatchBank, images=w.donors),
    "PatchBank.bind": lambda w: _call("donors", PatchBank(w.donors).bind, images=w.image),
    "PatchBank.from_dataset": lambda w: _call("donors", PatchBank.from_dataset, dataset=list(w.donors)),
    "PatchBank.from_folder": lambda w: _call("donors", PatchBank.from_folder, folder=w._picture.parent, pattern="*.png"),
    "PatchBank.fitted": lambda w: _call("donors", PatchBank(w.donors).fitted),
    "donors.MovedPrompts": lambda w: _call("donors", ccs.donors.MovedPrompts, radius=3),
    "NeighborBank": lambda w: _call("donors", ccs.NeighborBank, images=w.donors, k=3),
    "NeighborBank.bind": lambda w: _call("donors", ccs.NeighborBank(w.donors, k=3).bind, images=w.image),
    "ActivationBank.split": lambda w: _call("donors", ccs.ActivationBank(w.donors).split, parts=2, seed=0),
    "DonorSource.split": lambda w: _call(
        "donors",
        lambda fractions, parts, seed: PatchBank(w.donors).split(
            *([] if fractions == "none" else [fractions]), parts=parts, seed=seed
        ),
        fractions="none",
        parts=None,
        seed=0,
    ),
    "SameImage.bind": lambda w: _call("donors", ccs.SameImage().bind, images=w.image),
    "donors.SelfDonor.bind": lambda w: _call("donors", ccs.donors.SelfDonor().bind, images=w.image),
    "donors.Shifted": lambda w: _call("donors", ccs.donors.Shifted, pixels=2),
    "donors.Shifted.bind": lambda w: _call("donors", ccs.donors.Shifted().bind, images=w.image),
    "donors.as_donor_source": lambda w: _call("donors", ccs.donors.as_donor_source, baselines=0.0, images=w.image),
    # Statistics.
    "TreatmentEffectStatistics": lambda w: _call(
        "statistics",
        ccs.TreatmentEffectStatistics,
        **{
            name: getattr(w.statistics, name)
            for name in (
                *("effect", "sample_variance", "n_draws", "population", "status", "observed_score", "unit_ids", "feature_mask"),
                *("input_shapes", "n_forwards", "output_axes"),
            )
        },
    ),
    "TreatmentEffectStatistics.from_moments": lambda w: _call(
        "statistics",
        ccs.TreatmentEffectStatistics.from_moments,
        moments=w.statistics.moments,
        **{
            name: getattr(w.statistics, name)
            for name in ("observed_score", "unit_ids", "feature_mask", "input_shapes", "n_forwards", "output_axes")
        },
    ),
    "TreatmentEffectStatistics.replaced": lambda w: _call("statistics", w.statistics.replaced, moments=w.statistics.moments),
    "TreatmentEffectStatistics.adjusted_p_values": lambda w: _call("statistics", w.statistics.adjusted_p_values),
    "TreatmentEffectStatistics.on_image": lambda w: _call("statistics", w.statistics.on_image, spatial_shape=(SIZE, SIZE)),
    "TreatmentEffectStatistics.why_empty": lambda w: _call("statistics", w.statistics.why_empty, target=1),
    "statistics.adjust_p_values": lambda w: _call("statistics", ccs.statistics.adjust_p_values, p_values=np.array([0.1, 0.2])),
    "statistics.is_hypothesis": lambda w: _call("statistics", ccs.statistics.is_hypothesis, status=w.statistics.status),
    "TreatmentEffectStatistics.confidence_interval": lambda w: _call("statistics", w.statistics.confidence_interval),
    "TreatmentEffectStatistics.load": lambda w: _call("statistics", ccs.TreatmentEffectStatistics.load, path=w.saved),
    "TreatmentEffectStatistics.of_output": lambda w: _call("statistics", w.statistics.of_output, target=1),
    "TreatmentEffectStatistics.save": lambda w: _call("statistics", w.statistics.save, path="again.npz"),
    "TreatmentEffectStatistics.select": lambda w: _call(
        "statistics", w.statistics.select, values=w.statistics.effect, target=1
    ),
    "TreatmentEffectStatistics.edge_suspect": lambda w: _call("statistics", w.controlled.edge_suspect),
    "TreatmentEffectStatistics.significant": lambda w: _call("statistics", w.statistics.significant),
    "TreatmentEffectStatistics.to_dataframe": lambda w: _call("statistics", w.statistics.to_dataframe),
    "TreatmentEffectStatistics.to_map": lambda w: _call("statistics", w.statistics.to_map, target=1),
    "statistics.moderate": lambda w: _call(
        "statistics", ccs.statistics.moderate, variance=np.array([0.0, 4.0]), freedom=np.array([4, 4])
    ),
    "statistics.target_index": lambda w: _call(
        "statistics", ccs.statistics.target_index, target=1, n_examples=1, output_shape=(2,), output_axes=("class",)
    ),
    # Regions.
    "regions.boundary": lambda w: _call("regions", regions.boundary, mask=w.roi),
    "regions.box": lambda w: _call("regions", regions.box, spatial_shape=(8, 8), start=2, size=3),
    "regions.component": lambda w: _call("regions", regions.component, mask=w.roi, point=(5, 5)),
    "regions.errors": lambda w: _call("regions", regions.errors, prediction=w.labels * 0, reference=w.labels),
    "regions.from_file": lambda w: _call("regions", regions.from_file, path=w.mask_file),
    "regions.from_label": lambda w: _call("regions", regions.from_label, label_map=w.labels, value=1),
    "regions.from_mask": lambda w: _call("regions", regions.from_mask, mask=w.labels),
    "regions.grid": lambda w: _call("regions", regions.grid, spatial_shape=(8, 8), block_size=4),
    "regions.predicted": lambda w: _call("regions", regions.predicted, prediction=_seeded(1, 2, SIZE, SIZE)),
    "regions.supervoxels": lambda w: _call("regions", regions.supervoxels, image=w.image[0], n_segments=4),
    # Metrics.
    "metrics.Metric": lambda w: _call(
        "metrics", metrics.Metric, name="x", function=total, domain="labels", needs_reference=True, surrogate="soft_dice"
    ),
    "register_adapter": lambda w: _call(
        "target", ccs.register_adapter, name=f"adapter {next(_COUNTER)}", function=total, types=["Found"], activation="softmax"
    ),
    "reveal_heads": lambda w: _call("interventions", ccs.reveal_heads, model=torch.nn.MultiheadAttention(4, 2)),
    "metrics.register": lambda w: _call("metrics", metrics.register, name=f"metric {next(_COUNTER)}", function=total),
    # Files.
    "images.check_same_grid": lambda w: _call("images", ccs.images.check_same_grid, image=w.image, label=w.image),
    "images.invert": lambda w: _call(
        "images", ccs.images.invert, values=_seeded(1, 1, 8, 8), image=w.prepared[0], transform=w.prepared[1]
    ),
    "images.load_image": lambda w: _call("images", ccs.images.load_image, path=w.scan),
    "images.load_label": lambda w: _call("images", ccs.images.load_label, path=w.mask_file),
    "images.save_map": lambda w: _call("images", ccs.images.save_map, path="map.nii", values=w.volume, like=w.scan),
    "images.spacing_of": lambda w: _call("images", ccs.images.spacing_of, image=w.image),
    "images.with_metadata": lambda w: _call("images", ccs.images.with_metadata, values=_seeded(1, 1, 8, 8), like=w.prepared[0]),
    "load_bundle": lambda w: _call("bundle", ccs.load_bundle, path=w.bundle_folder),
    "Bundle.prepare": lambda w: _call("bundle", w.bundle.prepare, image_file=w._picture),
    "Bundle.target": lambda w: _call("bundle", w.bundle.target, metric="volume"),
    # Pictures.
    "visualization.plot_donors": lambda w: _call("visualization", ccs.visualization.plot_donors, comparison=w.donor_comparison),
    "visualization.plot_comparison": lambda w: _call(
        "visualization", ccs.visualization.plot_comparison, comparison=w.comparison
    ),
    "visualization.plot_interactions": lambda w: _call(
        "visualization", ccs.visualization.plot_interactions, table=w.interactions, image=w.image
    ),
    "visualization.plot_region": lambda w: _call(
        "visualization", ccs.visualization.plot_region, image=w.image, region=w.region, roi=w.roi
    ),
    "visualization.plot_pathway": lambda w: _call("visualization", ccs.visualization.plot_pathway, pathway=w.pathway),
    "visualization.plot_components": lambda w: _call("visualization", ccs.visualization.plot_components, table=w.components),
    "visualization.plot_convergence": lambda w: _call(
        "visualization", ccs.visualization.plot_convergence, runs=[w.statistics, w.statistics], target=1
    ),
    "visualization.plot_effects": lambda w: _call(
        "visualization", ccs.visualization.plot_effects, image=w.image, statistics=w.statistics, target=1, panels=("effect",)
    ),
    "visualization.plot_heads": lambda w: _call("visualization", ccs.visualization.plot_heads, table=w.heads),
    "visualization.plot_prompts": lambda w: _call(
        "visualization",
        ccs.visualization.plot_prompts,
        image=w.clicked,
        statistics=w.of_clicks.attribute(w.clicked, return_statistics=True)[1],
    ),
    "visualization.plot_influence": lambda w: _call(
        "visualization", ccs.visualization.plot_influence, matrix=profile.influence_matrix(w.statistics_of_rois, 1)
    ),
    "visualization.plot_profile": lambda w: _call("visualization", ccs.visualization.plot_profile, profile=w.profile),
    "visualization.plot_support": lambda w: _call(
        "visualization", ccs.visualization.plot_support, image=w.image, support=ccs.causal_support(w.target, w.image)
    ),
    "visualization.plot_volume": lambda w: _call(
        "visualization",
        ccs.visualization.plot_volume,
        image=w.volume,
        statistics=w.statistics_of_volume,
        target=1,
        n_slices=1,
    ),
    # Evaluation.
    "compare": lambda w: _call(
        "evaluation",
        ccs.compare,
        methods={"random": random_map},
        target=w.target,
        inputs=w.image,
        baselines=w.donors,
        output=1,
        metrics=["irof"],
        n_controls=0,
        faithfulness={"n_draws": 1, "n_steps": 2},
    ),
    "compare_donors": lambda w: _call(
        "evaluation",
        ccs.compare_donors,
        target=w.target,
        inputs=w.image,
        donors={"raw": w.donors, "zeros": 0.0},
        output=1,
        block_size=4,
        n_draws=2,
    ),
    "DonorComparison.plot": lambda w: _call("evaluation", w.donor_comparison.plot),
    "DonorComparison.sign_differs": lambda w: _call("evaluation", w.donor_comparison.sign_differs, first="raw", second="zeros"),
    "Comparison.plot": lambda w: _call("evaluation", w.comparison.plot),
    "PerceptionProfile.radius": lambda w: _call("evaluation", w.profile.radius),
    "perception_profile": lambda w: _call("evaluation", ccs.perception_profile, statistics=w.statistics, roi=w.roi, target=1),
    "refute": lambda w: _call(
        "evaluation",
        lambda explainer, inputs, baselines, target, refuters, alpha, seed: ccs.refute(
            explainer, inputs, baselines, target, refuters=refuters, alpha=alpha, seed=seed, block_size=4, n_draws=3
        ),
        **{"explainer": w.ate, "inputs": w.image, "baselines": PatchBank(w.donors), "target": 1},
        **{"refuters": ["placebo"], "alpha": 0.05, "seed": 0},
    ),
    "evaluation.Faithfulness": lambda w: _call(
        "evaluation",
        faithfulness.Faithfulness,
        forward_func=w.target,
        inputs=w.image,
        baselines=w.donors,
        target=1,
        n_subsets=5,
    ),
    **{
        f"evaluation.Faithfulness.{name}": functools.partial(
            lambda name, w: _call("evaluation", getattr(w.judge, name), attributions=_seeded(1, 1, SIZE, SIZE)), name
        )
        for name in (
            *("correlation", "deletion", "evaluate", "infidelity", "insertion", "irof", "leakage", "retention"),
            "unit_attributions",
        )
    },
    "evaluation.FaithfulnessMetric": lambda w: _call(
        "evaluation", faithfulness.FaithfulnessMetric, name="x", function=total, score_direction="higher", source="x"
    ),
    "evaluation.faithfulness.register": lambda w: _call(
        "evaluation",
        faithfulness.register,
        name=f"metric {next(_COUNTER)}",
        function=total,
        score_direction="higher",
        source="x",
    ),
    "evaluation.Faithfulness.forecast": lambda w: _call("evaluation", w.judge.forecast, metrics=["irof"]),
    **{
        f"evaluation.{name}": functools.partial(
            lambda name, w: _call(
                "evaluation",
                getattr(ccs.evaluation, name),
                judge=w.judge,
                attributions=_seeded(1, 1, SIZE, SIZE),
            ),
            name,
        )
        for name in ("attribution_score", "road", "sensitivity_n")
    },
    "evaluation.max_sensitivity": lambda w: _call(
        "evaluation", ccs.evaluation.max_sensitivity, explain=random_map, inputs=w.image, n_perturbations=2
    ),
    "evaluation.map_agreement": lambda w: _call(
        "evaluation", ccs.evaluation.map_agreement, maps=[_seeded(1, 1, SIZE, SIZE, seed=k) for k in range(2)]
    ),
    "evaluation.roi_kind": lambda w: _call("evaluation", ccs.evaluation.roi_kind, prediction=w.roi, reference=w.roi, roi=w.roi),
    "evaluation.influence_matrix": lambda w: _call(
        "evaluation", profile.influence_matrix, statistics=w.statistics_of_rois, target=1
    ),
    "evaluation.background_effect": lambda w: _call(
        "evaluation", profile.background_effect, statistics=w.statistics, roi=w.roi, target=1
    ),
    "evaluation.profile_of_map": lambda w: _call(
        "evaluation", profile.profile_of_map, effects=torch.ones(SIZE, SIZE), roi=w.roi, block_size=4
    ),
    "evaluation.planted.PlantedCause": lambda w: _call(
        "evaluation", planted.PlantedCause, start=(0, 0), size=(4, 4), sign=1, share=0.2
    ),
    "evaluation.planted.PlantedNetwork": lambda w: _call(
        "evaluation", planted.PlantedNetwork, roi=w.roi, causes=[planted.PlantedCause((0, 0), (4, 4), 1, 0.2)]
    ),
    "evaluation.planted.PlantedNetwork.forward": lambda w: _call(
        "evaluation", planted.PlantedNetwork(w.roi, [planted.PlantedCause((0, 0), (4, 4), 1, 0.2)]).forward, images=w.image
    ),
    "evaluation.planted.PlantedCase.target": lambda w: _call(
        "evaluation", planted.planted_case((24, 24), 4, 4, n_donors=2).target
    ),
    "evaluation.planted.ShortcutCase.target": lambda w: _call("evaluation", w.shortcut.target),
    "evaluation.planted.build_shortcut_network": lambda w: _call("evaluation", planted.build_shortcut_network),
    "evaluation.planted.draw_shortcut_examples": lambda w: _call(
        "evaluation", planted.draw_shortcut_examples, slices=w.slices, which=[0]
    ),
    "evaluation.planted.load_shortcut_case": lambda w: _call("evaluation", planted.load_shortcut_case),
    "evaluation.planted.marker_findings": lambda w: _call(
        "evaluation", planted.marker_findings, attributions=torch.ones_like(w.shortcut.images), case=w.shortcut
    ),
    "evaluation.planted.planted_case": lambda w: _call(
        "evaluation", planted.planted_case, spatial_shape=(24, 24), roi_size=4, block_size=4, n_donors=2
    ),
    **{
        f"evaluation.refute.{name}": functools.partial(
            lambda name, w: _call(
                "evaluation", getattr(importlib.import_module("captum_causalseg.evaluation.refute"), name), context=w.context
            ),
            name,
        )
        for name in (
            "crossed",
            "dose",
            "joints",
            "other_seed",
            "placebo",
            "random_weights",
            "recompute",
            "split_donors",
            "subset_of_donors",
        )
    },
    # Methods of others.
    "baselines.MiSuRe": lambda w: _call("baselines", ccs.baselines.MiSuRe, forward_func=w.target),
    "baselines.MiSuRe.attribute": lambda w: _call(
        "baselines", ccs.baselines.MiSuRe(w.target).attribute, inputs=w.image, target=0, n_steps=2
    ),
    "baselines.RiseSegmentation.attribute": lambda w: _call(
        "baselines", ccs.baselines.RiseSegmentation(w.target).attribute, inputs=w.image, target=1, n_masks=2
    ),
    "baselines.SegHiResGradCam": lambda w: _call(
        "baselines", ccs.baselines.SegHiResGradCam, forward_func=w.target, layer=w.network[0]
    ),
    "baselines.SegHiResGradCam.attribute": lambda w: _call(
        "baselines", ccs.baselines.SegHiResGradCam(w.target, w.network[0]).attribute, inputs=w.image, target=1
    ),
    # Cohorts.
    "cohort.Cohort": lambda w: _call("cohort", type(w.study), folder=w.study.folder),
    "cohort.Cohort.statistics": lambda w: _call("cohort", w.study.statistics, case="case 0"),
    "cohort.Cohort.file": lambda w: _call("cohort", w.study.file, case="case 0", name="units.parquet"),
    "cohort.Cohort.units": lambda w: _call("cohort", w.study.units),
    "cohort.Cohort.has": lambda w: _call("cohort", w.study.has, case="case 0", name="units.parquet"),
    "cohort.Cohort.mediation": lambda w: _call("cohort", w.study.mediation, cases=[]),
    "cohort.CohortSummary.significant_units": lambda w: _call("cohort", w.summary.significant_units),
    "cohort.explain_cohort": lambda w: _call("cohort", explain_cohort, **w.study_arguments),
    "cohort.CohortComparison": lambda w: _call("cohort", type(w.cohort_comparison), folder=w.cohort_comparison.folder),
    "cohort.CohortComparison.attributions": lambda w: _call(
        "cohort", w.cohort_comparison.attributions, case="case 0", method="random"
    ),
    "compare_cohort": lambda w: _call("cohort", ccs.compare_cohort, **w.comparison_arguments),
    "cohort.ComparisonSummary.plot": lambda w: _call("cohort", w.comparison_summary.plot, metric="irof"),
    "cohort.plot_cohort_comparison": lambda w: _call(
        "cohort", ccs.cohort.plot_cohort_comparison, summary=w.comparison_summary, metric="irof"
    ),
    "summarize_comparison": lambda w: _call("cohort", ccs.summarize_comparison, comparison=w.comparison_table),
    "cohort.plot_cohort_components": lambda w: _call(
        "cohort", ccs.cohort.plot_cohort_components, summary=w.summary_of_components
    ),
    "cohort.plot_cohort_profile": lambda w: _call(
        "cohort", ccs.cohort.plot_cohort_profile, summary=w.summary, panels=("mean_effect",)
    ),
    "cohort.summarize": lambda w: _call("cohort", summarize, cohort=w.study),
    # The demo's parts.
    "demo.Augmentation": lambda w: _call("demo", ccs.demo.Augmentation),
    "demo.BrainSlices.select": lambda w: _call("demo", w.slices.select, indices=torch.tensor([0])),
    "demo.BrainSlices.split": lambda w: _call("demo", w.slices.split, slabs=1, slab=4, margin=1),
    "demo.Lesions.select": lambda w: _call("demo", w.lesions.select, indices=torch.tensor([0])),
    "demo.build_network": lambda w: _call("demo", ccs.demo.build_network),
    "demo.draw_lesions": lambda w: _call(
        "demo", ccs.demo.draw_lesions, images=_seeded(2, 1, 16, 16), places=torch.ones(2, 16, 16).bool()
    ),
    "demo.fit": lambda w: _call(
        "demo",
        ccs.demo.fit,
        network=small_network(),
        images=_seeded(2, 1, 16, 16),
        labels=torch.ones(2, 16, 16).long(),
        steps=1,
    ),
    "demo.load_demo_network": lambda w: _call("demo", ccs.demo.load_demo_network, task="tissue"),
    "demo.mean_dice": lambda w: _call("demo", ccs.demo.mean_dice, network=w.network, images=w.image, labels=w.labels[None]),
}
"""By the name of :func:`public_callables`."""


# --- Bad values ------------------------------------------------------------------------------------------------------


def _image() -> Tensor:
    return _seeded(1, 1, SIZE, SIZE)


BAD_VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "10**12": lambda: 10**12,
    "2j": lambda: 2j,
    "''": lambda: "",
    "'nope'": lambda: "nope",
    "b'nope'": lambda: b"nope",
    "[]": lambda: [],
    "()": lambda: (),
    "[-1, 'a']": lambda: [-1, "a"],
    "(1, 2, 3, 4, 5, 6, 7)": lambda: (1, 2, 3, 4, 5, 6, 7),
    "{}": lambda: {},
    "{'a': 1}": lambda: {"a": 1},
    "object()": lambda: object(),
    "int": lambda: int,
    "range(3)": lambda: range(3),
    "a path that is not there": lambda: Path("not") / "there.png",
    "a module": lambda: nn.Identity(),
    "a function": lambda: lambda: None,
    "tensor(1.)": lambda: torch.tensor(1.0),
    "tensor without elements": lambda: torch.rand(0),
    "tensor (12, 12)": lambda: _image()[0, 0],
    "tensor (3, 12, 12)": lambda: _seeded(3, SIZE, SIZE),
    "tensor (1, 1, 5, 7)": lambda: _seeded(1, 1, 5, 7),
    "tensor (3, 1, 12, 12)": lambda: _seeded(3, 1, SIZE, SIZE),
    "tensor (1, 4, 12, 12)": lambda: _seeded(1, 4, SIZE, SIZE),
    "tensor (1, 1, 2, 12, 12)": lambda: _seeded(1, 1, 2, SIZE, SIZE),
    "integer tensor": lambda: (100 * _image()).int(),
    "boolean tensor, all False": lambda: torch.zeros(SIZE, SIZE, dtype=torch.bool),
    "complex tensor": lambda: _image() + 0j,
    "tensor with NaN": lambda: _image() / 0 * 0,
    "list of tensors": lambda: [_image(), _image()],
    "tuple of tensors": lambda: (_image(), _image()),
    "nested lists": lambda: _image().tolist(),
    "array (2, 3)": lambda: np.ones((2, 3)),
    "array of strings": lambda: np.array([["a", "b"]]),
    "data frame": lambda: pd.DataFrame({"a": [1]}),
}
"""What callers give by mistake, made anew for each trial; some of it is good somewhere."""


# --- Running them ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of one bad value."""

    room: str
    name: str
    argument: str
    value: str
    kind: str
    """``"accepted"``, ``"named"``, ``"unnamed"`` or ``"crash"``."""
    said: str = ""


class _OutOfTimeError(BaseException):
    pass


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    # Again after as long: what is raised while an object is deleted, Python passes over.
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """In a folder of its own, saying nothing, with the open tables as they were afterward."""
    tables = [metrics.METRICS, faithfulness.METRICS, faithfulness.ON_REQUEST, REFUTERS, ADAPTERS, layout.UNIT_KINDS]
    before, here, level = [dict(table) for table in tables], Path.cwd(), logging.root.manager.disable
    # A number in the place of a path is a file descriptor to Python: 1 is what this prints to.
    streams = [os.dup(number) for number in (0, 1, 2)]
    os.chdir(folder)
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        logging.disable(level)
        os.chdir(here)
        for table, held in zip(tables, before):
            table.clear()  # type: ignore[attr-defined]
            table.update(held)  # type: ignore[attr-defined]


def arguments_of(name: str, function: Callable[..., Any]) -> list[str]:
    """The arguments of a call that are replaced."""
    return [one.name for one in _parameters(function)]


def trial(world: World, name: str, argument: str, value: str) -> Outcome:
    """Replace one argument of one valid call."""
    call = CALLS[name](world)
    kind, said = "accepted", ""
    try:
        with _at_most(SECONDS):
            call.function(**call.arguments | {argument: BAD_VALUES[value]()})
    except _OutOfTimeError:
        said = f"stopped after {SECONDS:g} s"
    except (TypeError, ValueError, OSError, KeyError) as error:
        # Of a KeyError, str gives the repr of its message.
        message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        said = f"{type(error).__name__}: {message}"
        kind = "named" if re.match(rf"(\w+, )*{argument}\b", message) else "unnamed"
    except Exception as error:
        kind, said = "crash", f"{type(error).__name__}: {error}"
    return Outcome(call.room, name, argument, value, kind, " ".join(said.split()))


def all_trials(world: World) -> list[tuple[str, str, str, str]]:
    """Room, callable, argument and bad value, of everything that can be tried."""
    values = list(BAD_VALUES)
    found = []
    for name, made in CALLS.items():
        call = made(world)
        found += [(call.room, name, argument, value) for argument in arguments_of(name, call.function) for value in values]
    return found


def shares(outcomes: list[Outcome]) -> pd.DataFrame:
    """Per room: how often what came of it, and the share of named ones among all that was raised, in percent."""
    rows = {}
    for room in dict.fromkeys(one.room for one in outcomes):
        here = [one for one in outcomes if one.room == room]
        counts = Counter(one.kind for one in here)
        raised = counts["named"] + counts["unnamed"] + counts["crash"]
        rows[room] = {
            "callables": len({one.name for one in here}),
            "trials": len(here),
            **{kind: counts[kind] for kind in ("accepted", "named", "unnamed", "crash")},
            "share": 100 * counts["named"] / max(raised, 1),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    sums = table.drop(columns="share").sum()
    return pd.concat(
        [table, pd.DataFrame({**sums, "share": 100 * sums["named"] / (sums.named + sums.unnamed + sums.crash)}, ["all"])]
    )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default=None, metavar="ROOM", help="one room, or one callable")
    made.add_argument("--accepted", action="store_true", help="list what was accepted")
    made.add_argument("--unnamed", action="store_true", help="list what was raised without the argument's name first")
    options = start(made)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        with quiet(Path(folder)):
            everything = all_trials(world)
        if options.only:
            everything = [one for one in everything if options.only in one[:2]]
        if options.quick:
            everything = everything[::20]
        outcomes = []
        for name in dict.fromkeys(one[1] for one in everything):
            since = time.perf_counter()
            with quiet(Path(folder)):
                outcomes += [trial(world, *one[1:]) for one in everything if one[1] == name]
            if time.perf_counter() - since > 5:
                say(f"{name}: {time.perf_counter() - since:.0f} s")
    seconds = time.perf_counter() - began
    for kinds in ([("accepted",)] if options.accepted else []) + ([("unnamed", "crash")] if options.unnamed else []):
        for one in outcomes:
            if one.kind in kinds:
                print(f"{one.kind}\t{one.name}\t{one.argument}\t{one.value}\t{one.said[:200]}")
    table = shares(outcomes)
    lines = [
        "## Bad arguments",
        "",
        machine(options),
        "",
        f"Each argument of {int(table.loc['all', 'callables'])} public callables replaced by each of {len(BAD_VALUES)} bad values, one at a "
        f"time; {seconds:.0f} s. Named: a TypeError, ValueError, OSError or KeyError whose message opens with the argument's name; crash: any other "
        "exception. The share is of all that was raised.",
        "",
        "| room | callables | trials | accepted | refused by name | refused without | crashed | share by name |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for room, row in table.iterrows():
        counts = " | ".join(str(int(row[name])) for name in ("callables", "trials", "accepted", "named", "unnamed", "crash"))
        lines.append(f"| {room} | {counts} | {row['share']:.1f} % |")
    publish(lines, options)


if __name__ == "__main__":
    main()
