"""What a face was asked for arrives whole, each argument under its own name."""

import dataclasses
import inspect
from typing import Any

import pytest
import torch

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PdCR,
)
from captum_causalseg.attr import (
    average_treatment_effect,
    gradient_treatment_effect,
    layer_average_treatment_effect,
    layer_gradient_treatment_effect,
    pdcr,
)
from captum_causalseg.attr.options import InputUnits, Options

MODEL = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
IMAGE = torch.rand(1, 1, 8, 8)
# Every value another one, and none a default.
GIVEN = {
    "inputs": IMAGE,
    "baselines": 0.25,
    "layer_baselines": 0.75,
    "target": 1,
    "additional_forward_args": ("more",),
    "feature_mask": torch.zeros(1, 1, 8, 8, dtype=torch.long),
    "layer_mask": torch.ones(1, 1, 8, 8, dtype=torch.long),
    "block_size": 3,
    "exclude": None,
    "channels": (0,),
    "controls": "edge",
    "attribute_to_layer_input": True,
    "units": "token",
    "layout": "NC*",
    "n_draws": 41,
    "n_screening_draws": 7,
    "screening_threshold": 0.0125,
    "sampling": "uniform",
    "allocation": "needed",
    "support": None,
    "perturbations_per_eval": 5,
    "seed": 13,
    "show_progress": True,
    "return_statistics": True,
    "precision": 0.5,
    "decide": 0.125,
    "alpha": 0.0625,
    "compile": True,
    "autocast": torch.bfloat16,
    "memory_format": torch.channels_last,
}
# What options call otherwise than Captum does.
OPTION = {"layer_baselines": "baselines", "attribute_to_layer_input": "at_input", "units": "kind"}


class Asked(Exception):
    """Instead of an answer."""


def asked(monkeypatch: pytest.MonkeyPatch, module: Any, call: Any, **given: Any) -> Options:
    found: list[Options] = []

    def caught(options: Options, *_: Any) -> None:
        found.append(options)
        raise Asked

    for name in ("estimate", "interventions", "backpropagate"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, caught)
    with pytest.raises(Asked):
        call(**given)
    return found[0]


def flat(options: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        values |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


INPUT, LAYER = AverageTreatmentEffect(MODEL), LayerAverageTreatmentEffect(MODEL, MODEL[0])
CALLS = {
    "AverageTreatmentEffect.attribute": (average_treatment_effect, INPUT.attribute),
    "AverageTreatmentEffect.plan": (average_treatment_effect, INPUT.plan),
    "PdCR.attribute": (pdcr, PdCR(MODEL).attribute),
    "GradientTreatmentEffect.attribute": (gradient_treatment_effect, GradientTreatmentEffect(MODEL).attribute),
    "LayerAverageTreatmentEffect.attribute": (layer_average_treatment_effect, LAYER.attribute),
    "LayerAverageTreatmentEffect.plan": (layer_average_treatment_effect, LAYER.plan),
    "LayerGradientTreatmentEffect.attribute": (
        layer_gradient_treatment_effect,
        LayerGradientTreatmentEffect(MODEL, MODEL[0]).attribute,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_arrives_under_its_own_name(name, monkeypatch):
    module, call = CALLS[name]
    given = {key: GIVEN[key] for key in inspect.signature(call).parameters if key in GIVEN}
    options = flat(asked(monkeypatch, module, call, **given))
    wrong = [key for key, value in given.items() if options[OPTION.get(key, key)] is not value]
    assert wrong == []
    assert options["forward_func"] is not None


@pytest.mark.parametrize("face", [INPUT, LAYER])
def test_a_plan_is_asked_for_what_attribute_is(face, monkeypatch):
    module = average_treatment_effect if face is INPUT else layer_average_treatment_effect
    both = {key: GIVEN[key] for key in inspect.signature(face.plan).parameters if key != "statistics"}
    planned, estimated = (flat(asked(monkeypatch, module, call, **both)) for call in (face.plan, face.attribute))
    # A plan is of no method's name, and screens nothing out.
    assert {key for key in planned if planned[key] is not estimated[key] and planned[key] != estimated[key]} == {
        "name",
        "screening_threshold",
    }


def test_options_are_frozen_and_name_their_arguments():
    options = Options(forward_func=MODEL, inputs=IMAGE, units=InputUnits())
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.inputs = None
    for kind in (Options, *(type(getattr(options, name)) for name in ("units", "effort"))):
        assert all(field.kw_only for field in dataclasses.fields(kind)), kind
