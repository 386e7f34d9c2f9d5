"""Models that are run by another runtime, in integers, or as a program; and prompts in the same tensor as the image."""

import pytest
import torch
from captum.attr import InputXGradient, IntegratedGradients, Occlusion, Saliency
from family_cases import Interactive
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    regions,
)
from captum_causalseg.baselines import MiSuRe

ROI = regions.box((16, 16), 4, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x)))


def example() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return Net().eval(), torch.rand(1, 1, 16, 16), torch.rand(2, 1, 16, 16)


def explained(model, image: Tensor, donors: Tensor):
    target = SegmentationTarget(model, ROI, metric="probability_mean")
    return target, AverageTreatmentEffect(target).attribute(
        *(image, PatchBank(donors, placement="aligned"), 1), block_size=8, n_draws=2, n_screening_draws=0, exclude=None
    )


def assert_explained(model, atol: float) -> SegmentationTarget:
    """A block's effect and Captum's occlusion of it are those made by hand with this very model."""
    _, image, donors = example()
    target, found = explained(model, image, donors)

    def score(x: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x).softmax(1)[0, 1][ROI].mean()

    scores = []
    for donor in [*donors, torch.zeros(1, 16, 16)]:
        changed = image.clone()
        changed[..., 8:, 8:] = donor[..., 8:, 8:]
        scores.append(score(changed))
    expected = score(image) - (scores[0] + scores[1]) / 2
    torch.testing.assert_close(found[0, 0, 12, 12], expected, atol=atol, rtol=0)
    assert expected.abs() > 1e-4
    occluded = Occlusion(target).attribute(image, (1, 8, 8), strides=(1, 8, 8), target=1)
    torch.testing.assert_close(occluded[0, 0, 12, 12], score(image) - scores[2], atol=atol, rtol=0)
    return target


@pytest.mark.parametrize("batch", ["any", "one"])
def test_exported_programs(batch):
    """A program that was exported for one image is run image by image without being asked."""
    model, image, _ = example()
    shapes = ({0: torch.export.Dim("batch")},) if batch == "any" else None
    program = torch.export.export(model, (image.expand(2, -1, -1, -1) if batch == "any" else image,), dynamic_shapes=shapes)
    target = assert_explained(program.module(), 1e-6)
    assert target.takes_batches is (batch == "any")
    found = IntegratedGradients(target).attribute(image, target=1, n_steps=4)
    eager = IntegratedGradients(SegmentationTarget(model, ROI, metric="probability_mean"))
    torch.testing.assert_close(found, eager.attribute(image, target=1, n_steps=4))
    layer = LayerAverageTreatmentEffect(target, program.module())
    with pytest.raises(ValueError, match="layer"):
        layer.attribute(image, image, target=1)


def quantized() -> nn.Module:
    """Weights and activations in eight bits."""
    from torch.ao.quantization import DeQuantStub, QuantStub, convert, get_default_qconfig, prepare

    model, image, donors = example()
    wrapped = nn.Sequential(QuantStub(), model, DeQuantStub()).eval()
    wrapped.qconfig = get_default_qconfig(torch.backends.quantized.engine)
    prepared = prepare(wrapped)
    prepared(torch.cat([image, donors]))
    return convert(prepared)


@pytest.mark.filterwarnings("ignore")  # torch names the package that follows
def test_quantized_models():
    model = quantized()
    target = assert_explained(model, 1e-6)
    _, image, donors = example()
    layer = LayerAverageTreatmentEffect(target, model[2])  # what leaves the eight bits
    found = layer.attribute(image, donors, target=1, n_draws=2, n_screening_draws=0, layout="NC*")
    assert found.shape == (1, 2, 16, 16)
    assert found.any()


def test_sessions_of_onnx_runtime(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, image, donors = example()
    torch.onnx.export(
        *(model, (image.expand(2, -1, -1, -1),), tmp_path / "model.onnx"),
        input_names=["image"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
    )
    session = runtime.InferenceSession(tmp_path / "model.onnx")

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"image": x.detach().numpy()})[0])

    target = assert_explained(run, 1e-6)
    eager = explained(model, image, donors)[1]
    torch.testing.assert_close(explained(run, image, donors)[1], eager, atol=1e-5, rtol=0)
    with pytest.raises(RuntimeError, match=r"^model: its output is cut off from its inputs"):
        IntegratedGradients(target).attribute(image, target=1, n_steps=2)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_models_without_gradient_say_so_to_every_method_that_wants_one():
    """Through NumPy, as a runtime would be called."""
    model, image, donors = example()

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(model(x.detach()).numpy())

    soft = SegmentationTarget(run, ROI, metric="probability_mean")
    compared = SegmentationTarget.from_prediction(run, image, roi=ROI)
    cut = "model: its output is cut off from its inputs .* methods that perturb the image need none"
    for target in (soft, compared.surrogate(), compared.surrogate("logit_sum")):
        for method in (IntegratedGradients, Saliency, InputXGradient):
            with pytest.raises(RuntimeError, match=f"^{cut}"):
                method(target).attribute(image.clone(), target=1)
        with pytest.raises(ValueError, match=rf"^forward_func: its score has no gradient \({cut}"):
            GradientTreatmentEffect(target).attribute(image, donors, 1, block_size=4)
    with pytest.raises(ValueError, match=rf"^forward_func: the model's output has no gradient .* MiSuRe needs one \({cut}"):
        MiSuRe(compared).attribute(image, target=1)
    assert explained(run, image, donors)[1].any()


def test_prompts_in_the_same_tensor_as_the_image():
    """Donors are for the channels of the image; those of the prompts stay."""
    torch.manual_seed(0)
    model = Interactive().eval()
    image = torch.rand(1, 8, 16, 16, 16)
    image[:, 1:] = 0
    image[:, 3, 8, 8, 8] = 1
    donors = torch.rand(2, 8, 16, 16, 16)
    roi = regions.box((16, 16, 16), 4, 8)
    target = SegmentationTarget(model, roi, metric="probability_mean")
    found = AverageTreatmentEffect(target).attribute(
        *(image, PatchBank(donors, placement="aligned"), 1),
        block_size=8,
        n_draws=2,
        n_screening_draws=0,
        exclude=None,
        channels=(0,),
    )

    @torch.no_grad()
    def score(x: Tensor) -> Tensor:
        return model(x).softmax(1)[0, 1][roi].mean()

    scores = []
    for donor in donors:
        changed = image.clone()
        changed[:, 0, 8:, 8:, 8:] = donor[0, 8:, 8:, 8:]
        scores.append(score(changed))
    expected = score(image) - torch.stack(scores).mean()
    torch.testing.assert_close(found[0, 0, 12, 12, 12], expected, atol=1e-6, rtol=0)
    assert not found[:, 1:].any()
    assert expected.abs() > 1e-5
