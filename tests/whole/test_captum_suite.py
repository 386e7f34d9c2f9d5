"""Compatibility with Captum: its own test configurations, its wrappers and metrics, and every kind of model and tensor.

`test_captum_dropin.py` holds the input face's arguments against `FeatureAblation`; here come Captum's configurations for both
faces, the layer face in full, and what both make of precisions, layouts, wrappers of models and of methods.
"""

import copy
from typing import Any

import captum.attr
import matplotlib
import pytest
import torch
from captum.attr import (
    DataLoaderAttribution,
    DeepLiftShap,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    LayerAttribution,
    LayerFeatureAblation,
    LayerGradientXActivation,
    NoiseTunnel,
)
from captum.attr import visualization as captum_visualization
from captum.metrics import infidelity, sensitivity_max
from captum_cases import CONV, FACES, Case, largest, random, tuple_of
from torch import Tensor, nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PdCR,
    SegmentationTarget,
    regions,
)

try:
    from captum.testing.attr.helpers.gen_test_utils import get_target_layer
    from captum.testing.attr.helpers.test_config import config as CONFIG
except ImportError:  # Captum 0.8 ships no captum.testing: the tests parametrized with it are skipped there
    CONFIG = []


def assert_close(found: Any, expected: Any, atol: float = 1e-5, rtol: float = 1e-5) -> None:
    assert isinstance(found, tuple) == isinstance(expected, tuple)
    assert len(tuple_of(found)) == len(tuple_of(expected))
    for one, other in zip(tuple_of(found), tuple_of(expected)):
        torch.testing.assert_close(one, other, atol=atol, rtol=rtol)


def configurations(algorithm: type, noise_tunnel: bool = False) -> list[Any]:
    return [
        pytest.param(case, id=case["name"])
        for case in CONFIG
        if algorithm in case["algorithms"]
        and case.get("noise_tunnel", False) == noise_tunnel
        and not isinstance(case.get("layer"), list)
    ]


def in_float64(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(in_float64, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def arguments_of(case: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: in_float64(value) for name, value in case["attribute_args"].items() if name not in without}


def model_of(case: dict[str, Any]) -> nn.Module:
    """The configuration's model; of the convolutional one the logits, for its probabilities are the same for all classes."""
    model = copy.deepcopy(case["model"]).double()
    if hasattr(model, "softmax"):
        model.softmax = nn.Identity()
    return model


def n_examples(arguments: dict[str, Any]) -> int:
    return len(tuple_of(arguments["inputs"])[0])


def one_example(arguments: dict[str, Any], n: int) -> dict[str, Any]:
    """The same arguments for the n-th example alone."""
    total = n_examples(arguments)

    def cut(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(cut(item) for item in value)
        return value[n : n + 1] if isinstance(value, (Tensor, list)) and len(value) == total else value

    target = arguments.get("target")
    cut_target = target if isinstance(target, tuple) else cut(target)
    return {name: cut(value) for name, value in arguments.items()} | {"target": cut_target}


def example_by_example(attribute: Any, arguments: dict[str, Any]) -> Any:
    parts = [attribute(**one_example(arguments, n)) for n in range(n_examples(arguments))]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(slot) for slot in zip(*parts))
    return torch.cat(parts)


def single_features(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"block_size": 1} if tuple_of(arguments["inputs"])[0].ndim > 2 else {}


def test_captums_configurations_are_found_where_captum_ships_them():
    if captum.__version__.startswith("0.8"):
        assert CONFIG == []
    else:
        assert len(configurations(FeatureAblation)) >= 11
        assert len(configurations(LayerFeatureAblation)) >= 10
        assert len(configurations(FeatureAblation, noise_tunnel=True)) >= 6


@pytest.mark.parametrize("case", configurations(FeatureAblation))
def test_input_configurations_equal_feature_ablation_in_a_batch_and_one_by_one(case):
    arguments = arguments_of(case, "perturbations_per_eval")
    model = model_of(case)
    method = AverageTreatmentEffect(model)
    expected = FeatureAblation(model).attribute(**arguments)
    own = {"exclude": None, **single_features(arguments)}
    # Captum pairs a baseline with each example; a tensor is a distribution of donors here, so that only one by one they agree.
    given = arguments if "baselines" in arguments else arguments | {"baselines": 0}
    alone = example_by_example(lambda **one: method.attribute(**one, **own), given)
    assert largest(expected) > 1e-4
    assert_close(alone, expected)
    if "baselines" not in arguments:
        for size in (1, 3, 20):
            assert_close(method.attribute(**given, **own, perturbations_per_eval=size), expected)


@pytest.mark.parametrize("case", [*configurations(GradientShap), *configurations(DeepLiftShap)])
def test_distributions_of_baselines_are_distributions_of_donors(case):
    arguments = arguments_of(case, "n_samples", "stdevs")
    donors = [tuple_of(arguments["baselines"])[i] for i in range(len(tuple_of(arguments["baselines"])))]
    ablation = FeatureAblation(model_of(case))
    each = []
    for d in range(len(donors[0])):
        baseline = tuple(slot[d : d + 1] for slot in donors)
        each.append(ablation.attribute(**arguments | {"baselines": baseline if len(baseline) > 1 else baseline[0]}))
    expected = (
        tuple(torch.stack(slot).mean(0) for slot in zip(*each)) if isinstance(each[0], tuple) else torch.stack(each).mean(0)
    )
    found = AverageTreatmentEffect(model_of(case)).attribute(**arguments, n_screening_draws=0)
    assert_close(found, expected)


@pytest.mark.parametrize("case", configurations(FeatureAblation, noise_tunnel=True))
def test_noise_tunnel_configurations_without_noise_are_the_plain_attribution(case):
    arguments = arguments_of(case)
    plain = arguments_of(case, "nt_samples", "stdevs", "nt_samples_batch_size")
    method = AverageTreatmentEffect(model_of(case), baselines=0)
    assert_close(NoiseTunnel(method).attribute(**arguments), method.attribute(**plain))


def per_element(model: nn.Module, layer: nn.Module, arguments: dict[str, Any]) -> dict[str, Any]:
    """Units of one element each, as Captum has them by default."""
    seen = []
    with torch.no_grad(), layer.register_forward_hook(lambda m, args, out: seen.append(tuple_of(out)[0].ndim)):
        model(*tuple_of(arguments["inputs"]), *arguments.get("additional_forward_args", ()))
    return {"units": "channel_block", "block_size": 1} if seen[0] > 2 else {"units": "channel"}


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("case", configurations(LayerFeatureAblation))
def test_layer_configurations_equal_layer_feature_ablation_in_a_batch_and_one_by_one(case, at_input):
    model, arguments = model_of(case), arguments_of(case, "perturbations_per_eval") | {"attribute_to_layer_input": at_input}
    layer = get_target_layer(model, case["layer"])
    units = per_element(model, layer, arguments_of(case))
    # Captum 0.9's cannot take lists of targets in a batch.
    expected = example_by_example(LayerFeatureAblation(model, layer).attribute, arguments)
    method = LayerAverageTreatmentEffect(model, layer)
    assert largest(expected) > 1e-4
    assert_close(example_by_example(lambda **one: method.attribute(**one, **units), arguments), expected)
    for size in (1, 3, 20):
        assert_close(method.attribute(**arguments, **units, perturbations_per_eval=size), expected)
    assert_no_hooks(model)


def assert_no_hooks(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


@pytest.mark.parametrize("case", configurations(LayerFeatureAblation))
@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 99},
        {"target": [0, 1]},
        {"layer_mask": torch.zeros(1, 77, dtype=torch.int64)},
        {"layer_baselines": torch.zeros(2, 77)},
        {"additional_forward_args": (1, 2, 3, 4, 5, 6)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_hooks_are_gone_after_every_kind_of_error(case, wrong):
    model = model_of(case)
    method = LayerAverageTreatmentEffect(model, get_target_layer(model, case["layer"]))
    with pytest.raises((ValueError, TypeError)):
        method.attribute(**arguments_of(case, "perturbations_per_eval") | wrong)
    assert_no_hooks(model)


def test_lists_of_layers_are_refused():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(TypeError, match=r"layer: expected a torch\.nn\.Module, got list"):
        LayerAverageTreatmentEffect(model, [model[0], model[1]])


@pytest.mark.parametrize("case", configurations(InputXGradient))
def test_gradient_configurations_equal_input_x_gradient(case):
    arguments = arguments_of(case)
    method = GradientTreatmentEffect(model_of(case))
    own = {"baselines": 0, **single_features(arguments)}
    for tensor in tuple_of(arguments["inputs"]):
        tensor.requires_grad_()  # or Captum warns
    expected = InputXGradient(model_of(case)).attribute(**arguments)
    assert_close(method.attribute(**arguments, **own), expected)
    assert_close(example_by_example(lambda **one: method.attribute(**one, **own), arguments), expected)


@pytest.mark.parametrize("case", configurations(LayerGradientXActivation))
def test_layer_gradient_configurations_equal_layer_gradient_x_activation(case):
    model, arguments = model_of(case), arguments_of(case)
    layer = get_target_layer(model, case["layer"])
    units = per_element(model, layer, arguments)
    method = LayerGradientTreatmentEffect(model, layer)
    expected = LayerGradientXActivation(model, layer).attribute(**arguments)
    assert_close(method.attribute(**arguments, **units), expected)
    assert_close(example_by_example(lambda **one: method.attribute(**one, **units), arguments), expected)
    assert_no_hooks(model)


class Classifier(nn.Module):
    """Convolutions, pooling, a head: logits ``(N, 3)``."""

    def __init__(self, d: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(d)
            self.first, self.second = CONV[d](2, 4, 3, padding=1), CONV[d](4, 3, 3, padding=1)
            self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sin(4 * self.second(torch.sin(4 * self.first(x))))
        return self.head(x.flatten(2).mean(2))


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(y)


class Branched(nn.Module):
    """A layer with two inputs and two outputs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.branches = TwoBranches()
            self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.branches(torch.sin(x), x**2)
        return self.head(torch.cat([torch.tanh(first), first[:, :1] * second], 1).flatten(2).mean(2))


SPATIAL = {2: (5, 6), 3: (4, 3, 5)}
# Of the activation (N=2, C, *spatial), made from C and the spatial shape.
MASKS = {
    "(C,1,1)": lambda c, s: torch.arange(c).view(-1, *(1,) * len(s)) % 3,
    "(1,C,1,1)": lambda c, s: torch.arange(c).view(1, -1, *(1,) * len(s)),
    "(1,1,*S)": lambda c, s: regions.grid(s, 2)[None, None],
    "(1,C,*S)": lambda c, s: torch.randint(0, 5, (1, c, *s), generator=torch.Generator().manual_seed(1)),
    "(N,C,*S)": lambda c, s: torch.randint(0, 4, (2, c, *s), generator=torch.Generator().manual_seed(2)),
    "(N,1,*S)": lambda c, s: torch.randint(0, 4, (2, 1, *s), generator=torch.Generator().manual_seed(3)),
    "with gaps": lambda c, s: torch.arange(c).view(1, -1, *(1,) * len(s)) * 7 + 3,
}


def assert_equals_layer_ablation(model: nn.Module, layer: nn.Module, inputs: Any, **arguments: Any) -> None:
    expected = LayerFeatureAblation(model, layer).attribute(inputs, **arguments)
    assert largest(expected) > 1e-3
    for size in (1, 7):
        found = LayerAverageTreatmentEffect(model, layer).attribute(inputs, **arguments, perturbations_per_eval=size)
        assert_close(found, expected)


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("d", [2, 3])
def test_with_one_donor_it_equals_layer_feature_ablation(d, mask, at_input):
    model, images = Classifier(d).eval(), random(2, 2, *SPATIAL[d])
    channels = 4 if at_input else 3
    for baseline in (0, 0.5, random(1, channels, *SPATIAL[d], seed=4)):
        assert_equals_layer_ablation(
            model,
            model.second,
            images,
            layer_baselines=baseline,
            layer_mask=MASKS[mask](channels, SPATIAL[d]),
            attribute_to_layer_input=at_input,
            target=1,
        )


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_linear_layers_equal_layer_feature_ablation(at_input):
    torch.manual_seed(0)
    model, table = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), random(3, 5)
    width = 6 if at_input else 4
    for mask in (torch.arange(width)[None], torch.arange(width) % 2, torch.tensor([[9] * width])):
        for baseline in (0, -1.0, random(1, width, seed=2)):
            assert_equals_layer_ablation(
                *(model, model[2], table),
                layer_baselines=baseline,
                layer_mask=mask,
                attribute_to_layer_input=at_input,
                target=2,
            )


@pytest.mark.parametrize("at_input", [False, True], ids=["output", "input"])
def test_layers_with_several_tensors_equal_layer_feature_ablation(at_input):
    model, images = Branched().eval(), random(2, 2, 5, 6)
    channels = (2, 2) if at_input else (2, 3)
    masks = torch.arange(channels[0]).view(1, -1, 1, 1), torch.arange(channels[1]).view(1, -1, 1, 1) + 10
    for baselines in ((0, 0), (0.5, random(1, channels[1], 5, 6, seed=4))):
        assert_equals_layer_ablation(
            *(model, model.branches, images),
            layer_baselines=baselines,
            layer_mask=masks,
            attribute_to_layer_input=at_input,
            target=0,
        )


def test_ids_shared_across_the_tensors_of_a_layer_are_one_unit():
    model, images = Branched().eval(), random(2, 2, 5, 6)
    masks = torch.tensor([4, 9]).view(1, 2, 1, 1), torch.tensor([9, 4, 30]).view(1, 3, 1, 1)
    first, second = LayerAverageTreatmentEffect(model, model.branches).attribute(images, layer_mask=masks, target=1)

    def without(*channels: tuple[int, int]) -> Tensor:
        def drop(module: nn.Module, args: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            kept = tuple(part.clone() for part in out)
            for slot, channel in channels:
                kept[slot][:, channel] = 0
            return kept

        with torch.no_grad(), model.branches.register_forward_hook(drop):
            return model(images)[:, 1]

    observed = without()
    for unit, places in {4: ((0, 0), (1, 1)), 9: ((0, 1), (1, 0)), 30: ((1, 2),)}.items():
        effect = observed - without(*places)
        for slot, channel in places:
            torch.testing.assert_close((first, second)[slot][:, channel, 2, 3], effect, msg=f"unit {unit}")


@pytest.mark.parametrize("size", [1, 2, 9])
@pytest.mark.parametrize("target", [[2, 0], torch.tensor([2, 0]), [(2,), (0,)]], ids=["list", "tensor", "tuples"])
def test_a_target_per_example_goes_with_its_example_in_any_batch(size, target):
    """Captum 0.9's LayerFeatureAblation fails there: one by one instead."""
    model, images = Classifier(2).eval(), random(2, 2, 5, 6)
    mask = torch.arange(3).view(1, -1, 1, 1)
    ablation = LayerFeatureAblation(model, model.second)
    expected = torch.cat(
        [ablation.attribute(images[n : n + 1], target=picked, layer_mask=mask) for n, picked in enumerate((2, 0))]
    )
    found = LayerAverageTreatmentEffect(model, model.second).attribute(images, target=target, perturbations_per_eval=size)
    assert_close(found, expected)


def test_models_of_several_inputs_and_additional_arguments_equal_layer_feature_ablation():
    class Fused(Classifier):
        def forward(self, x: Tensor, table: Tensor, shift: Tensor, scale: float, mode: str) -> Tensor:
            assert mode == "plain"
            return super().forward(x * scale) * (1 + table[:, :3]) + shift[:, None]

    model, inputs = Fused(2).eval(), (random(2, 2, 5, 6), random(2, 4, seed=1))
    mask = torch.arange(3).view(1, -1, 1, 1)
    further = (torch.tensor([0.5, -2.0]), 0.7, "plain")
    for layer in (model.second, model.head):
        own_mask = {"layer_mask": mask} if layer is model.second else {}
        assert_equals_layer_ablation(model, layer, inputs, target=1, additional_forward_args=further, **own_mask)


class Scaled(Classifier):
    def forward(self, x: Tensor, shift: Any = 0.0, options: Any = (1.0,)) -> Tensor:
        shift = shift.view(-1, 1) if isinstance(shift, Tensor) and shift.ndim else shift
        return super().forward(x * options[0] + 0.0) + shift


@pytest.mark.parametrize("further", [(0.0, [0.5]), (torch.tensor(0.0), [0.5]), (0.0, (0.5,))], ids=["list", "scalar", "tuple"])
def test_donor_images_are_run_with_the_additional_arguments(further):
    model, images, donors = Scaled(2).eval(), random(2, 2, 5, 6), random(4, 2, 5, 6, seed=3)

    def activations(factor: float) -> Tensor:
        with torch.no_grad():
            return model.second(torch.sin(4 * model.first(donors * factor)))

    method = LayerAverageTreatmentEffect(model, model.second)
    everything = {"target": 1, "additional_forward_args": further, "n_screening_draws": 0}
    bank = ActivationBank(donors)
    expected = method.attribute(images, layer_baselines=activations(0.5), **everything)
    for given in (donors, bank, bank):
        assert_close(method.attribute(images, layer_baselines=given, **everything), expected)
    everything["additional_forward_args"] = (0.0, type(further[1])([0.9]))
    other = method.attribute(images, layer_baselines=bank, **everything)
    assert_close(other, method.attribute(images, layer_baselines=activations(0.9), **everything))
    assert largest(other - expected) > 1e-3


def test_donor_images_have_no_entry_in_additional_tensors_per_example():
    model, images, donors = Scaled(2).eval(), random(2, 2, 5, 6), random(4, 2, 5, 6, seed=3)
    method, further = LayerAverageTreatmentEffect(model, model.second), (torch.tensor([0.5, 1.0]), [1.0])
    with pytest.raises(ValueError, match="layer_baselines: donor images cannot be run, for the model takes additional tensors"):
        method.attribute(images, layer_baselines=donors, target=1, additional_forward_args=further)
    by_number = method.attribute(images, layer_baselines=0, target=1, additional_forward_args=further)
    assert_close(by_number, method.attribute(images, layer_baselines=0, target=1))


def test_masks_that_are_arguments_do_not_keep_donor_images_from_the_model():
    case = Case()
    rois = torch.stack([case.roi, case.roi.flip(0)])
    target = SegmentationTarget(case.model, roi="argument", reference=case.reference, metric="soft_dice")
    found = case.layer(target=target).attribute(
        case.images, layer_baselines=case.donors, additional_forward_args=rois, **case.quick
    )
    for n in range(2):
        alone = SegmentationTarget(case.model, roi=rois[n], reference=case.reference, metric="soft_dice")
        single = case.layer(target=alone).attribute(case.images[n : n + 1], layer_baselines=case.donors, **case.quick)
        assert_close(found[n : n + 1], single)


def test_donor_images_of_integers_are_refused():
    case = Case()
    with pytest.raises(ValueError, match=r"layer_baselines: donor images are torch\.uint8: normalize them"):
        case.layer().attribute(case.images, layer_baselines=(255 * case.donors).byte(), target=1)


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("n", [1, 2])
def test_noise_tunnel_runs_over_the_layer_face(nt_type, n):
    case = Case()
    method = case.layer(layer_baselines=ActivationBank(case.donors))
    images = case.images[:n]
    plain = method.attribute(images, **case.quick)
    noisy = NoiseTunnel(method).attribute(images, nt_type=nt_type, nt_samples=3, stdevs=0.1, **case.quick)
    still = NoiseTunnel(method).attribute(
        images, nt_type=nt_type, nt_samples=3, nt_samples_batch_size=2, stdevs=1e-6, **case.quick
    )
    assert noisy.shape == still.shape == plain.shape == (n, 4, 8, 8)
    expected = {"smoothgrad": plain, "smoothgrad_sq": plain**2, "vargrad": torch.zeros_like(plain)}[nt_type]
    torch.testing.assert_close(still, expected, atol=1e-5, rtol=0)
    assert largest(noisy - still) > 1e-4


def test_noise_tunnel_repeats_targets_and_masks_with_the_examples():
    case = Case()
    method = case.layer(layer_baselines=case.donors)
    mask = torch.randint(0, 3, (2, 4, 1, 1), generator=torch.Generator().manual_seed(0))
    one_by_one = [
        method.attribute(case.images[n : n + 1], target=n, layer_mask=mask[n : n + 1], n_screening_draws=0) for n in range(2)
    ]
    # Captum repeats feature_mask but knows no layer_mask: one per example needs as many samples per batch as examples.
    shared = mask[:1]
    first = method.attribute(case.images, target=[0, 1], layer_mask=shared, n_screening_draws=0)
    smooth = NoiseTunnel(method).attribute(
        case.images, nt_samples=2, stdevs=1e-6, target=[0, 1], layer_mask=shared, n_screening_draws=0
    )
    torch.testing.assert_close(smooth, first, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        method.attribute(case.images, target=[0, 1], layer_mask=mask, n_screening_draws=0),
        torch.cat(one_by_one),
        atol=1e-6,
        rtol=0,
    )
    with pytest.raises(ValueError, match=r"layer_mask: shape \(2, 4, 1, 1\) cannot be broadcast"):
        NoiseTunnel(method).attribute(case.images, nt_samples=2, target=0, layer_mask=mask)


def test_sensitivity_max_runs_over_the_layer_face():
    case = Case()
    method = case.layer(layer_baselines=case.donors)

    def explain(*inputs: Any, **arguments: Any) -> tuple[Tensor]:
        return (method.attribute(*inputs, **arguments),)

    moved = sensitivity_max(explain, case.images, perturb_radius=0.2, n_perturb_samples=2, **case.quick)
    assert moved.shape == (2,)
    assert bool((moved > 0).all())
    still = sensitivity_max(explain, case.images, lambda x: x, n_perturb_samples=2, **case.quick)
    assert torch.equal(still, torch.zeros(2)), "the same donors for every perturbed copy"


@pytest.mark.parametrize("kind", [LayerAverageTreatmentEffect, LayerFeatureAblation])
def test_sensitivity_max_needs_a_tuple_of_any_layer_method(kind):
    """It passes the inputs as a tuple and takes it that a tuple comes back; layer methods return what the layer does."""
    case = Case()
    with pytest.raises(RuntimeError, match="must match the size"):
        sensitivity_max(kind(case.target(), case.model.middle).attribute, case.images, n_perturb_samples=2, target=1)


def on_the_image(attributions: Tensor, spatial: tuple[int, ...]) -> Tensor:
    return LayerAttribution.interpolate(attributions.sum(1, keepdim=True), spatial, interpolate_mode="bilinear")


def test_infidelity_runs_over_the_layers_attributions_on_the_image():
    case = Case()
    image_wise = on_the_image(case.attribute("layer"), (8, 8))
    assert image_wise.shape == case.images.shape

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(x)
        return noise, x - noise

    value = infidelity(case.target(), perturb, case.images, image_wise, target=1, n_perturb_samples=3)
    assert value.shape == (2,)
    assert bool((value >= 0).all())


@pytest.mark.parametrize("method", ["heat_map", "blended_heat_map", "masked_image", "alpha_scaling"])
@pytest.mark.parametrize("face", FACES)
def test_captums_picture_takes_the_attributions(face, method):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    case = Case()
    attributions = case.attribute(face)
    attributions = attributions if face == "input" else on_the_image(attributions, (8, 8))
    sign = "all" if "heat_map" in method else "absolute_value"
    figure, _ = captum_visualization.visualize_image_attr(
        attributions[0].permute(1, 2, 0).numpy(),
        case.images[0].expand(3, 8, 8).permute(1, 2, 0).numpy(),
        method=method,
        sign=sign,
        use_pyplot=False,
    )
    assert figure.axes[0].images
    pyplot.close("all")


def test_layer_attributions_are_upsampled_by_captums_own_method():
    attributions = torch.tensor([[[[1.0, -2.0]]]])
    assert LayerAverageTreatmentEffect.interpolate(attributions, (1, 4)).tolist() == [[[[1.0, 1.0, -2.0, -2.0]]]]


@pytest.mark.parametrize(
    "method",
    [AverageTreatmentEffect(lambda x: x.sum(1)), PdCR(lambda x: x.sum(1)), LayerAverageTreatmentEffect(*[nn.Linear(3, 1)] * 2)],
    ids=lambda method: type(method).__name__,
)
def test_dataloader_attribution_takes_captums_own_classes_alone(method):
    """It looks the very type up in a list: a subclass of FeatureAblation, changed in nothing, is rejected as well."""

    class Mine(FeatureAblation):
        pass

    for rejected in (method, Mine(lambda x: x.sum(1))):
        with pytest.raises(AssertionError, match="DataloaderAttribution does not support"):
            DataLoaderAttribution(rejected)
    assert DataLoaderAttribution(FeatureAblation(lambda x: x.sum(1)))
