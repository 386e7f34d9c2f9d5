"""No tensor is made on a device other than its data's.

CUDA is seldom there, so the CPU plays the device of the data here: what is made without saying where would land on the
default device. One test finds the places in the code, the other makes `meta` the default device, whose tensors hold no
values and do not mix with others. Tests marked `gpu` do the same with a real device.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

import captum_causalseg
from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    Blur,
    Constant,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    PdCR,
    SameImage,
    SegmentationTarget,
    regions,
)
from captum_causalseg.baselines import MiSuRe, RiseSegmentation, SegHiResGradCam
from captum_causalseg.evaluation import Faithfulness

PACKAGE = Path(captum_causalseg.__file__).parent


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """Makes no tensor itself."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.early, self.middle, self.late = (nn.Conv2d(c, k, 3, padding=1) for c, k in ((1, 4), (4, 4), (4, 2)))

    def forward(self, x: Tensor) -> Tensor:
        return 6 * self.late(torch.sin(3 * self.middle(torch.sin(3 * self.early(x)))))


class Problem:
    """A model, images, donors, a target; on a device."""

    def __init__(self, device: Any = "cpu", dtype: torch.dtype = torch.float32, model: nn.Module | None = None) -> None:
        self.net = Net().to(device, dtype).eval() if model is None else model
        self.images = random(2, 1, 12, 12).to(device, dtype)
        self.donors = random(6, 1, 12, 12, seed=9).to(device, dtype)
        self.activations = random(3, 4, 12, 12, seed=5).to(device, dtype)
        self.roi = regions.box((12, 12), start=4, size=4)
        self.reference = (random(12, 12, seed=1) > 0.5).long()

    def target(self, **options: Any) -> SegmentationTarget:
        roi, reference = options.pop("roi", self.roi), options.pop("reference", self.reference)
        target = SegmentationTarget(
            self.net, roi=roi, reference=reference, **{"metric": "soft_dice", "activation": "softmax"} | options
        )
        return target.to(self.images.device)


QUICK = {"target": 1, "n_draws": 4}


def by_input(baselines: Callable[[Problem], Any], **more: Any) -> Callable[[Problem], Tensor]:
    def attribute(case: Problem) -> Tensor:
        arguments = {"block_size": 4, "exclude": None} | QUICK | more
        return AverageTreatmentEffect(case.target()).attribute(case.images, baselines=baselines(case), **arguments)

    return attribute


def by_layer(baselines: Callable[[Problem], Any], **more: Any) -> Callable[[Problem], Tensor]:
    def attribute(case: Problem) -> Tensor:
        face = LayerAverageTreatmentEffect(case.target(), case.net.middle)
        return face.attribute(case.images, layer_baselines=baselines(case), **QUICK | more)

    return attribute


def per_example(case: Problem) -> Tensor:
    rois = torch.stack([case.roi, case.roi.flip(0)])[:, None]
    target = case.target(roi=rois, reference=torch.stack([case.reference] * 2)[:, None])
    return AverageTreatmentEffect(target).attribute(case.images, baselines=0, block_size=4, **QUICK)


def controls(case: Problem) -> Tensor:
    """What a joint does by itself, of irregular units of the input and of blocks of a layer."""
    asked = QUICK | {"n_screening_draws": 0, "controls": "edge", "return_statistics": True, "target": 1}
    row, column = np.indices((12, 12))
    mask = torch.from_numpy(2 * (row // 4 * 3 + column // 4) + (row + column) % 2)[None, None]
    of_input = AverageTreatmentEffect(case.target()).attribute(
        case.images, PatchBank(case.donors), feature_mask=mask, exclude=None, **asked
    )[1]
    of_layer = LayerAverageTreatmentEffect(case.target(), case.net.middle).attribute(
        case.images, case.donors, units="block", block_size=4, **asked
    )[1]
    found = [control.effect.nan_to_num(-1.0).flatten() for stats in (of_input, of_layer) for control in stats.controls.values()]
    return torch.cat(found).to(case.images)


def without_roi(case: Problem) -> Tensor:
    target = case.target(roi=None, metric="probability_mean", reference=None)
    return AverageTreatmentEffect(target).attribute(case.images, baselines=0, block_size=4, **QUICK)


def of_a_function(case: Problem) -> Tensor:
    return AverageTreatmentEffect(lambda x: x.flatten(1)[:, :5]).attribute(case.images.flatten(1), baselines=0, **QUICK)


def pdcr(case: Problem) -> Tensor:
    return PdCR(case.target(metric="dice")).attribute(case.images, PatchBank(case.donors), block_size=4, **QUICK)


def gradient(baselines: Callable[[Problem], Any], **more: Any) -> Callable[[Problem], Tensor]:
    return lambda case: GradientTreatmentEffect(case.target()).attribute(
        case.images, baselines=baselines(case), block_size=4, target=1, **more
    )


def layer_gradient(baselines: Callable[[Problem], Any], **more: Any) -> Callable[[Problem], Tensor]:
    return lambda case: LayerGradientTreatmentEffect(case.target(), case.net.middle).attribute(
        case.images, layer_baselines=baselines(case), target=1, **more
    )


def faithfulness(case: Problem) -> Tensor:
    """All scores of two maps, the image and the image upside down."""
    target, bank = case.target(), PatchBank(case.donors)
    judge = Faithfulness(target, case.images, bank, target=1, block_size=4, n_draws=2, n_steps=3, n_subsets=5)
    tables = [judge.evaluate(values) for values in (case.images - 0.5, case.images.flip(2) - 0.5)]
    values = torch.tensor([table["value"].tolist() for table in tables], dtype=torch.float64, device="cpu")
    return values.nan_to_num(-1.0).to(case.images)


FACES: dict[str, Callable[[Problem], Tensor]] = {
    "input, bank": by_input(lambda case: PatchBank(case.donors)),
    "input, aligned": by_input(lambda case: case.donors),
    "input, lazily read": by_input(lambda case: PatchBank(list(case.donors))),
    "input, number": by_input(lambda case: 0),
    "input, constant": by_input(lambda case: Constant([0.5])),
    "input, same image": by_input(lambda case: SameImage(), exclude="roi"),
    "input, mask": by_input(lambda case: 0, block_size=None, feature_mask=random(1, 1, 12, 12).mul(4).long()),
    "input, excluded": by_input(lambda case: 0, exclude=regions.box((12, 12), start=0, size=4)),
    "input, target per example": by_input(lambda case: 0, target=torch.tensor([1, 0])),
    "input, masks per example": per_example,
    "input, no RoI": without_roi,
    "input and layer, controls": controls,
    "input, function": of_a_function,
    "input, blur": by_input(lambda case: Blur(1.0)),
    "PdCR": pdcr,
    "layer, images": by_layer(lambda case: case.donors),
    "layer, list of images": by_layer(lambda case: ActivationBank(list(case.donors))),
    "layer, file": by_layer(lambda case: ActivationBank(case.donors, memory_budget=1)),
    "layer, mean": by_layer(lambda case: ActivationBank(case.donors, reduction="mean")),
    "layer, activations": by_layer(lambda case: case.activations),
    "layer, matched": by_layer(lambda case: ActivationBank(case.donors, match="mean")),
    "layer, number": by_layer(lambda case: 0),
    "layer, blocks": by_layer(lambda case: 0, units="block", block_size=4),
    "layer, whole": by_layer(lambda case: 0, units="layer"),
    "layer, at its input": by_layer(lambda case: case.donors, attribute_to_layer_input=True),
    "gradient, bank": gradient(lambda case: PatchBank(case.donors)),
    "gradient, same image": gradient(lambda case: SameImage(), n_steps=2),
    "layer gradient, images": layer_gradient(lambda case: case.donors),
    "layer gradient, steps": layer_gradient(lambda case: 0, n_steps=2),
    "RISE": lambda case: RiseSegmentation(case.target()).attribute(case.images, target=1, n_masks=5),
    "MiSuRe": lambda case: MiSuRe(case.target()).attribute(case.images, target=1, n_steps=3),
    "Seg-HiRes-Grad-CAM": lambda case: SegHiResGradCam(case.target(metric="logit_sum"), case.net.middle).attribute(
        case.images, target=1
    ),
    "faithfulness": faithfulness,
}


# --- Without a GPU ---------------------------------------------------------------------------------------------------


class MadeAnywhere(TorchFunctionMode):
    """Notes every tensor that the package's own code makes without saying on which device."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _device_constructors() and kwargs.get("device") is None:
            caller = sys._getframe(1)
            path, name = Path(caller.f_code.co_filename), caller.f_code.co_name
            of_a_tensor = func is torch.as_tensor and isinstance(args[0], Tensor)  # stays where it is
            if PACKAGE in path.parents and not of_a_tensor:
                self.places.add(f"{path.relative_to(PACKAGE)}:{caller.f_lineno} {name} {func.__name__}")
        return func(*args, **kwargs)


def test_a_tensor_made_anywhere_is_noticed():
    ours = compile("torch.zeros(2); torch.ones(2, device='cpu'); torch.arange(3)", str(PACKAGE / "made_up.py"), "exec")
    with MadeAnywhere() as made:
        torch.zeros(2)  # not the package's
        exec(ours, {"torch": torch})
    assert made.places == {"made_up.py:1 <module> zeros", "made_up.py:1 <module> arange"}


@pytest.mark.parametrize("face", FACES)
def test_no_tensor_is_made_without_saying_where(face):
    case = Problem()
    with MadeAnywhere() as made:
        FACES[face](case)
    assert not made.places


@pytest.mark.parametrize("face", FACES)
def test_the_default_device_makes_no_difference(face):
    """As under torch.set_default_device("cuda"): what is made there and meets the data is an error."""
    assert_default_device_makes_no_difference(face, Problem())


def assert_default_device_makes_no_difference(face: str, case: Problem) -> None:
    expected = FACES[face](case)
    with torch.device("meta"):
        found = FACES[face](case)
    assert found.device == case.images.device
    assert torch.equal(found, expected)


# --- With a GPU ------------------------------------------------------------------------------------------------------


def on_the_cpu(face: str) -> Tensor:
    return FACES[face](Problem())


@pytest.fixture
def exact_arithmetic():
    """No TF32: its ten bits are not what is compared."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("face", FACES)
def test_a_gpu_gives_what_the_cpu_gives(face, dtype):
    if face in ("PdCR", "MiSuRe", "faithfulness") and dtype in (torch.float16, torch.bfloat16):
        pytest.skip("hard Dice moves in steps, and so do ranks: a pixel at the threshold falls either way")
    found = FACES[face](Problem("cuda", dtype))
    assert found.device.type == "cuda"
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 0.03, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(found.cpu().float(), on_the_cpu(face), atol=tolerance, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("face", FACES)
def test_on_a_gpu_the_same_call_gives_the_same_bits(face):
    case = Problem("cuda")
    assert torch.equal(FACES[face](case), FACES[face](case))


@pytest.mark.gpu
@pytest.mark.parametrize("face", FACES)
def test_on_a_gpu_the_default_device_makes_no_difference(face):
    assert_default_device_makes_no_difference(face, Problem("cuda"))


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("pinned", [False, True], ids=["pageable", "pinned"])
@pytest.mark.parametrize("face", [face for face in FACES if "image" in face or "bank" in face or "activations" in face])
def test_donors_on_the_cpu_for_data_on_the_gpu(face, pinned):
    case = Problem("cuda")
    case.donors, case.activations = case.donors.cpu(), case.activations.cpu()
    if pinned:
        case.donors, case.activations = case.donors.pin_memory(), case.activations.pin_memory()
    found = FACES[face](case)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.cpu(), on_the_cpu(face), atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("face", [face for face in FACES if "image" in face or "bank" in face or "activations" in face])
def test_donors_on_the_gpu_for_data_on_the_cpu(face):
    """Copies to the CPU are waited for, or what is pasted is not there yet."""
    case = Problem()
    case.donors, case.activations = case.donors.cuda(), case.activations.cuda()
    for _ in range(3):
        torch.testing.assert_close(FACES[face](case), on_the_cpu(face), atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("face", [face for face in FACES if face != "PdCR"])
def test_autocast_on_a_gpu_gives_nearly_what_the_cpu_gives(face, dtype):
    with torch.autocast("cuda", dtype=dtype):
        found = FACES[face](Problem("cuda"))
    tolerance = {torch.float16: 0.03, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(found.cpu().float(), on_the_cpu(face), atol=tolerance, rtol=0)


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_arithmetic")
@pytest.mark.parametrize("how", ["of the model", "given"])
@pytest.mark.parametrize("face", [face for face in FACES if face != "input, function"])
def test_data_parallel_over_all_devices(face, how):
    case = Problem("cuda")
    parallel = nn.DataParallel(case.net)
    assert parallel.device_ids == list(range(torch.cuda.device_count()))
    target = case.target
    case.target = lambda **options: _with_model(target(**options), parallel, how)
    found = FACES[face](case)
    assert found.device.index == 0
    torch.testing.assert_close(found.cpu(), on_the_cpu(face), atol=1e-4, rtol=0)


def _with_model(target: SegmentationTarget, model: nn.Module, how: str) -> SegmentationTarget:
    target.model = model if how == "of the model" else _Hidden(model)
    return target


class _Hidden(nn.Module):
    """A DataParallel that is part of another module, which passes its device_ids on."""

    def __init__(self, parallel: nn.DataParallel) -> None:
        super().__init__()
        self.parallel, self.device_ids = parallel, parallel.device_ids

    def forward(self, x: Tensor) -> Tensor:
        return self.parallel(x)


@pytest.mark.gpu
def test_what_is_kept_of_a_gpus_results_is_on_the_cpu():
    case = Problem("cuda")
    _, statistics = AverageTreatmentEffect(case.target()).attribute(
        case.images, baselines=0, block_size=4, return_statistics=True, **QUICK
    )
    assert statistics.effect.device.type == "cpu"
    assert statistics.observed_score.device.type == "cpu"
