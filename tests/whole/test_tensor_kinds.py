"""Every kind of tensor and model: precision, memory layout, gradients, scripted, compiled and spread models."""

import sys

import pytest
import torch
from captum_cases import FACES, Case, largest, random
from torch import nn

from captum_causalseg import ActivationBank, LayerAverageTreatmentEffect

ALL_FACES = [
    *FACES,
    "gradient",
    "layer gradient",
]


@pytest.mark.parametrize("face", ALL_FACES)
def test_the_case_is_not_dull(face):
    assert largest(Case().attribute(face)) > 0.01


@pytest.mark.parametrize("face", ALL_FACES)
def test_float64_gives_what_float32_gives(face):
    found = Case(torch.float64).attribute(face)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), Case().attribute(face), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("face", ALL_FACES)
def test_half_precision_models_give_nearly_what_float32_gives(face, dtype):
    found = Case(dtype).attribute(face)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), Case().attribute(face), atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("face", FACES)
def test_donors_of_another_precision_are_converted(face, dtype):
    case = Case(dtype)
    found = case.attribute(face, donors=Case().donors)
    torch.testing.assert_close(found, case.attribute(face), atol=0.01, rtol=0)
    assert found.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"memory_budget": 1}, {"reduction": "mean"}], ids=["memory", "file", "mean"])
def test_banks_of_half_precision_activations(dtype, options):
    found = Case(dtype).attribute("layer", donors=ActivationBank(Case(dtype).donors, **options))
    expected = Case().attribute("layer", donors=ActivationBank(Case().donors, **options))
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("face", ALL_FACES)
def test_under_autocast_it_gives_nearly_what_float32_gives(face, dtype):
    case = Case()
    expected = case.attribute(face)
    with torch.autocast("cpu", dtype=dtype):
        found = case.attribute(face)
    # Inputs stay float32; the layer's activation is in the lower precision then, and so is its attribution.
    assert found.dtype == (dtype if "layer" in face else torch.float32)
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0)
    assert float((found.float() - expected).abs().amax()) > 0, "autocast was in force"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_observed_and_intervened_scores_are_of_one_precision(dtype):
    """If it were in force for one of them alone, an intervention that changes nothing would seem to have an effect."""
    case = Case()
    model = nn.Sequential(nn.Identity(), case.model)
    method = LayerAverageTreatmentEffect(case.target(model), model[0])
    with torch.autocast("cpu", dtype=dtype):
        attributions = method.attribute(
            case.images[:1], layer_baselines=case.images[:1], units="block", block_size=4, target=1, n_screening_draws=0
        )
    assert torch.equal(attributions, torch.zeros_like(attributions))


def test_a_bank_recorded_under_autocast_is_recorded_anew_without():
    case = Case()
    bank = ActivationBank(case.donors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        case.attribute("layer", donors=bank)
    assert torch.equal(case.attribute("layer", donors=bank), case.attribute("layer"))


LAYOUTS = {
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "every other column": lambda x: torch.stack([x, -x], -1).flatten(-2)[..., ::2],
    "transposed": lambda x: x.mT.contiguous().mT,
    "part of a batch": lambda x: torch.cat([x, x], 1)[:, :1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("face", ALL_FACES)
def test_memory_layouts_of_images_and_donors_make_no_difference(face, layout):
    case = Case()
    expected = case.attribute(face)
    found = case.attribute(face, images=LAYOUTS[layout](case.images), donors=LAYOUTS[layout](case.donors))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.is_contiguous()


@pytest.mark.parametrize("face", ALL_FACES)
def test_channels_last_models(face):
    case = Case()
    expected = case.attribute(face)
    case.model.to(memory_format=torch.channels_last)
    found = case.attribute(face, images=LAYOUTS["channels_last"](case.images))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.is_contiguous()


@pytest.mark.parametrize("face", ALL_FACES)
def test_one_image_expanded_to_a_batch(face):
    case = Case()
    found = case.attribute(face, images=case.images[:1].expand(3, 1, 8, 8))
    torch.testing.assert_close(found, case.attribute(face)[:1].expand(found.shape), atol=1e-6, rtol=0)


@pytest.mark.parametrize("face", ALL_FACES)
def test_tensors_that_require_grad_make_no_difference_and_gather_none(face):
    case = Case()
    expected = case.attribute(face)
    leaf, donors = case.images.clone().requires_grad_(), case.donors.clone().requires_grad_()
    for images in (leaf, leaf * 1.0):
        found = case.attribute(face, images=images, donors=donors)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert not found.requires_grad
    assert leaf.grad is None
    assert donors.grad is None
    assert all(parameter.grad is None and parameter.requires_grad for parameter in case.model.parameters())
    assert leaf.requires_grad


def test_activations_that_require_grad_serve_as_donors():
    case = Case()
    activations = case.model.middle(torch.sin(3 * case.model.early(case.donors)))
    assert activations.requires_grad
    found = case.attribute("layer", donors=activations)
    torch.testing.assert_close(found, case.attribute("layer"), atol=1e-6, rtol=0)
    assert not found.requires_grad


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("face", FACES)
def test_the_callers_grad_mode_makes_no_difference(face, context):
    case = Case()
    expected = case.attribute(face)
    with context():
        found = case.attribute(face, images=case.images.clone())
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA it spreads the batch: test_devices.py")
@pytest.mark.parametrize("face", ALL_FACES)
def test_data_parallel_without_cuda_calls_its_module(face):
    case = Case()
    parallel = nn.DataParallel(case.model)
    assert parallel.device_ids == []
    assert torch.equal(case.attribute(face, model=parallel), case.attribute(face))


def test_no_device_ids_are_the_same_as_none():
    case = Case()
    by_ids = case.layer(device_ids=[]).attribute(case.images, layer_baselines=case.donors, **case.quick)
    assert torch.equal(by_ids, case.attribute("layer"))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("how", ["trace", "script"])
def test_torchscript_models_on_the_input_face(how):
    case = Case()
    scripted = torch.jit.trace(case.model, case.images) if how == "trace" else torch.jit.script(case.model)
    torch.testing.assert_close(case.attribute("input", model=scripted), case.attribute("input"), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="hooks do not run inside TorchScript; give the eager module"):
        LayerAverageTreatmentEffect(case.target(scripted), scripted.middle).attribute(case.images, target=1)


@pytest.fixture
def compiled():
    """Compiles without a compiler: graphs are captured and guarded, and then run as they are."""
    yield lambda model: torch.compile(model, backend="eager")
    torch._dynamo.reset()


# Dynamo looks at .grad of every tensor that requires it and warns of what it sees itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("face", ALL_FACES)
@pytest.mark.parametrize("first", ["it is called first", "it is explained first"])
def test_compiled_models(compiled, face, first):
    """Layers run uncompiled, for code that was compiled without the hook does not call it."""
    if face != "input" and not hasattr(torch.compiler, "set_stance"):
        pytest.skip("torch 2.5 cannot run a compiled model uncompiled: give the original module")
    case = Case()
    expected, outputs = case.attribute(face), case.model(case.images).detach()
    model = compiled(case.model)
    if first == "it is called first":
        for n in (1, 2, 5):
            model(random(n, 1, 8, 8))
            with torch.no_grad():
                model(random(n, 1, 8, 8))
    found = case.attribute(face, model=model)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(model(case.images).detach(), outputs, msg="no intervention was compiled into the model")
    assert "torch._dynamo" in sys.modules
