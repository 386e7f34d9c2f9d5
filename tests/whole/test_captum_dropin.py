"""AverageTreatmentEffect and PdCR are Captum methods: they go wherever Occlusion and FeatureAblation go."""

import ast
import importlib
import re
from pathlib import Path

import captum
import matplotlib
import pytest
import torch
import tqdm
from captum.attr import FeatureAblation, NoiseTunnel, Occlusion
from captum.attr import visualization as captum_visualization
from captum.attr._utils.attribution import PerturbationAttribution
from captum.metrics import infidelity, sensitivity_max
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import captum_causalseg
from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    PdCR,
    SegmentationTarget,
    Status,
    causal_support,
    compare,
    component_effects,
    refute,
    regions,
)
from captum_causalseg.baselines import MiSuRe, RiseSegmentation, SegHiResGradCam
from captum_causalseg.evaluation import Faithfulness

PACKAGE = Path(captum_causalseg.__file__).parent

SHAPES = st.sampled_from([(6,), (5, 7), (4, 4), (4, 3, 5)])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def ids(*shape: int, n: int = 5, seed: int = 0) -> Tensor:
    return torch.randint(0, n, shape, generator=torch.Generator().manual_seed(seed))


class Scores(nn.Module):
    """Any number of inputs of any shape to ``n_outputs`` scores per example (none: ``(N,)``), not linear in them."""

    def __init__(self, *sizes: int, n_outputs: int | None = 3) -> None:
        super().__init__()
        self.n_outputs = n_outputs
        total = sum(sizes)
        weight = torch.randn(n_outputs or 1, total, generator=torch.Generator().manual_seed(7))
        self.weight = nn.Parameter(weight / total**0.5)

    def forward(self, *inputs: Tensor) -> Tensor:
        flat = torch.cat([x.flatten(1) for x in inputs], 1)
        scores = torch.tanh(flat @ self.weight.to(flat.dtype).T) + (flat**2).mean(1, keepdim=True)
        return scores if self.n_outputs else scores[:, 0]


@pytest.fixture
def segmentation() -> SegmentationTarget:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 2, 7, padding=3).eval()
    roi = regions.box((12, 12), start=4, size=4)
    return SegmentationTarget(model, roi=roi, reference=(random(12, 12, seed=1) > 0.5).long(), metric="soft_dice")


# --- The interface ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [AverageTreatmentEffect, PdCR])
def test_it_is_a_perturbation_attribution_that_captum_can_unwrap(method):
    assert issubclass(method, PerturbationAttribution)
    assert method.attribute.__wrapped__ is not method.attribute
    assert method(Scores(4)).has_convergence_delta() is False
    assert method(Scores(4)).forward_func(random(2, 4)).shape == (2, 3)


def test_in_a_loop_over_methods_only_documented_arguments_differ(segmentation):
    images = random(2, 1, 12, 12)
    methods = {
        Occlusion(segmentation): {"sliding_window_shapes": (1, 4, 4), "strides": (1, 4, 4)},
        FeatureAblation(segmentation): {"feature_mask": regions.grid((12, 12), 4)[None, None]},
        AverageTreatmentEffect(segmentation): {"block_size": 4, "exclude": None},
    }
    maps = [
        method.attribute(images, baselines=0, target=1, perturbations_per_eval=2, show_progress=False, **own)
        for method, own in methods.items()
    ]
    for attributions in maps:
        assert attributions.shape == images.shape
        torch.testing.assert_close(attributions, maps[0], atol=1e-6, rtol=0)
    assert maps[0].abs().amax() > 0.01


def test_a_tensor_gives_a_tensor_and_a_tuple_a_tuple():
    image, table = random(2, 1, 4, 4), random(2, 3)
    one = AverageTreatmentEffect(Scores(16)).attribute(image, baselines=0, target=0, block_size=2)
    alone = AverageTreatmentEffect(Scores(16)).attribute((image,), baselines=0, target=0, block_size=2)
    both = AverageTreatmentEffect(Scores(16, 3)).attribute((image, table), baselines=0, target=0, block_size=2)
    assert isinstance(one, Tensor)
    assert isinstance(alone, tuple)
    assert len(alone) == 1
    assert torch.equal(alone[0], one)
    assert isinstance(both, tuple)
    assert [part.shape for part in both] == [image.shape, table.shape]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
def test_attributions_have_the_inputs_shape_and_dtype_detached_and_contiguous(dtype, layout):
    images = random(2, 3, 8, 8).to(dtype)
    if layout == "channels_last":
        images = images.to(memory_format=torch.channels_last)
    if layout == "sliced":
        images = random(2, 3, 8, 16).to(dtype)[..., ::2]
    images.requires_grad_()
    attributions = AverageTreatmentEffect(lambda x: x.flatten(1).sum(1)).attribute(images, baselines=0, block_size=4)
    assert attributions.shape == images.shape
    assert attributions.dtype == dtype
    assert attributions.is_contiguous()
    assert not attributions.requires_grad
    assert attributions.grad_fn is None


def test_float64_is_computed_in_float64():
    images = random(1, 1, 4, 4, dtype=torch.float64)
    images[0, 0, 0, 0] = 1e-12  # lost next to the rest in single precision
    attributions = AverageTreatmentEffect(lambda x: x.sum((1, 2, 3))).attribute(images, baselines=0, block_size=1)
    torch.testing.assert_close(attributions, images, atol=1e-14, rtol=0)


# --- target ----------------------------------------------------------------------------------------------------------

PICKS = torch.tensor([2, 0])


@pytest.mark.parametrize(
    ("target", "picked"),
    [
        (1, [1, 1]),
        (-1, [2, 2]),
        ((2,), [2, 2]),
        (torch.tensor(1), [1, 1]),
        (torch.tensor([1]), [1, 1]),
        (PICKS, [2, 0]),
        ([2, 0], [2, 0]),
        ([(2,), (0,)], [2, 0]),
    ],
)
def test_target_in_all_of_captums_forms(target, picked):
    images, weights = random(2, 1, 4, 4), random(3, 16, seed=1)
    attributions = AverageTreatmentEffect(lambda x: x.flatten(1) @ weights.T).attribute(
        images, baselines=0, target=target, block_size=1
    )
    torch.testing.assert_close(attributions, images * weights[picked].reshape(2, 1, 4, 4))
    reference = FeatureAblation(lambda x: x.flatten(1) @ weights.T).attribute(images, baselines=0, target=target)
    torch.testing.assert_close(attributions, reference, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("target", "picked"), [((1, 2), [5, 5]), ([(0, 1), (1, 0)], [1, 3])])
def test_target_over_two_output_axes(target, picked):
    images, weights = random(2, 1, 4, 4), random(6, 16, seed=1)
    attributions = AverageTreatmentEffect(lambda x: (x.flatten(1) @ weights.T).reshape(-1, 2, 3)).attribute(
        images, baselines=0, target=target, block_size=1
    )
    torch.testing.assert_close(attributions, images * weights[picked].reshape(2, 1, 4, 4))


# --- additional_forward_args -----------------------------------------------------------------------------------------


def test_additional_tensors_travel_with_their_example_and_all_else_is_passed_on():
    images, factors, scalar, option = random(3, 1, 4, 4), torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor(0.5), object()
    seen = []

    def forward(x: Tensor, factor: Tensor, half: Tensor, something: object, name: str) -> Tensor:
        seen.append((len(x), tuple(factor.shape), half.ndim, something is option, name))
        return x.sum((1, 2, 3)) * factor[:, 0] * half

    attributions = AverageTreatmentEffect(forward).attribute(
        images, baselines=0, block_size=2, additional_forward_args=(factors, scalar, option, "name"), perturbations_per_eval=5
    )
    blocks = images.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) * factors.reshape(3, 1, 1, 1) / 2
    torch.testing.assert_close(attributions, blocks.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert all((n, 1) == shape and (ndim, same, name) == (0, True, "name") for n, shape, ndim, same, name in seen)


def test_a_single_additional_argument_needs_no_tuple():
    images = random(2, 1, 4, 4)
    attributions = AverageTreatmentEffect(lambda x, factor: factor * x.sum((1, 2, 3))).attribute(
        images, baselines=0, block_size=1, additional_forward_args=2.0
    )
    torch.testing.assert_close(attributions, 2 * images)


# --- feature_mask: as Captum's FeatureAblation, to 1e-6 --------------------------------------------------------------


def assert_equals_ablation(forward_func, inputs, feature_mask, baselines=0, target=0, **own) -> None:
    expected = FeatureAblation(forward_func).attribute(
        inputs, baselines=baselines, target=target, feature_mask=feature_mask, perturbations_per_eval=1
    )
    found, statistics = AverageTreatmentEffect(forward_func).attribute(
        inputs, baselines=baselines, target=target, feature_mask=feature_mask, exclude=None, return_statistics=True, **own
    )
    for one, other in zip(
        found if isinstance(found, tuple) else (found,), expected if isinstance(found, tuple) else (expected,)
    ):
        torch.testing.assert_close(one, other.to(one.dtype), atol=1e-6, rtol=0)
    known = ~statistics.effect.isnan()
    assert bool(known.any())
    assert bool((statistics.standard_error[known] == 0).all()), "one donor leaves nothing to be unsure of"
    outside = statistics.status == Status.OUTSIDE_SUPPORT
    assert bool((statistics.n_draws[known & ~outside] == 1).all())
    assert bool((statistics.n_draws[outside] == 0).all())


@given(data=st.data(), spatial=SHAPES, n=st.sampled_from([1, 3]), channels=st.integers(1, 3), seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_with_one_donor_it_equals_feature_ablation(data, spatial, n, channels, seed):
    lead = data.draw(st.sampled_from([(1, 1), (), (1, channels), (channels,), (n, 1), (n, channels)]), "mask's first axes")
    mask = ids(*lead, *spatial, n=data.draw(st.integers(1, 9), "units"), seed=seed)
    if data.draw(st.booleans(), "gaps"):
        mask = mask * 7 + 3
    images = random(n, channels, *spatial, seed=seed)
    forward_func = Scores(images[0].numel(), n_outputs=data.draw(st.sampled_from([None, 3]), "outputs"))
    target = None if forward_func.n_outputs is None else 1
    donor = (1, channels, *data.draw(st.sampled_from([spatial, (1,) * len(spatial)]), "donor's extent"))
    baselines = data.draw(st.sampled_from([0, 0.25, random(*donor, seed=seed + 1)]), "baselines")
    assert_equals_ablation(forward_func, images, mask, baselines, target)


# Captum 0.8 ablates input by input, also where they share ids.
ABLATES_ACROSS_INPUTS = not captum.__version__.startswith("0.8")


@given(
    n=st.sampled_from([1, 3]),
    shared=st.sampled_from([False, ABLATES_ACROSS_INPUTS]),
    per_example=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_with_one_donor_and_several_inputs_it_equals_feature_ablation(n, shared, per_example, seed):
    inputs = random(n, 2, 4, 5, seed=seed), random(n, 1, 3, 2, 2, seed=seed + 1), random(n, 6, seed=seed + 2)
    lead = n if per_example else 1
    masks = ids(lead, 1, 4, 5, seed=seed), ids(1, 1, 3, 2, 2, seed=seed), ids(lead, 6, n=3, seed=seed)
    if not shared:
        masks = masks[0], masks[1] + 10, masks[2] + 20
    forward_func = Scores(*(tensor[0].numel() for tensor in inputs))
    assert_equals_ablation(forward_func, inputs, masks, (0, random(1, 1, 3, 2, 2, seed=3), 0.5), target=2)


def test_the_same_id_in_two_inputs_is_one_unit():
    first, second = random(1, 1, 2, 2), random(1, 3)
    masks = torch.tensor([[[[4, 4], [9, 9]]]]), torch.tensor([[9, 9, 30]])
    (one, other), statistics = AverageTreatmentEffect(lambda a, b: a.sum((1, 2, 3)) * b.sum(1)).attribute(
        (first, second), baselines=0, feature_mask=masks, return_statistics=True
    )
    whole = first.sum() * second.sum()
    joint = whole - first[0, 0, 0].sum() * second[0, 2]
    assert statistics.unit_ids.tolist() == [4, 9, 30]
    torch.testing.assert_close(one[0, 0, 1], joint.expand(2))
    torch.testing.assert_close(other[0, :2], joint.expand(2))
    torch.testing.assert_close(other[0, 2], whole - first.sum() * second[0, :2].sum())


def test_every_element_carries_its_units_whole_effect():
    images = torch.ones(1, 1, 4, 4)
    attributions = AverageTreatmentEffect(lambda x: x.sum((1, 2, 3))).attribute(images, baselines=0, block_size=2)
    assert torch.equal(attributions, torch.full((1, 1, 4, 4), 4.0))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("n_outputs", [None, 3])
def test_tabular_inputs_are_ablated_feature_by_feature(n, n_outputs):
    table, forward_func = random(n, 5, dtype=torch.float64), Scores(5, n_outputs=n_outputs)
    target = None if n_outputs is None else 2
    expected = FeatureAblation(forward_func).attribute(table, baselines=0, target=target)
    found = AverageTreatmentEffect(forward_func).attribute(table, baselines=0, target=target)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert len(found.unique()) == 5 * n


@pytest.mark.parametrize(
    ("spatial", "block"), [((8, 8), (4, 4)), ((7, 9), (3, 2)), ((4, 6, 4), (2, 3, 2)), ((5, 4, 3), (2, 2, 2))]
)
@pytest.mark.parametrize("n", [1, 3])
def test_with_one_donor_it_equals_occlusion_with_stride_as_long_as_the_window(spatial, block, n):
    images = random(n, 2, *spatial)
    forward_func = Scores(images[0].numel())
    expected = Occlusion(forward_func).attribute(images, (2, *block), strides=(2, *block), baselines=0, target=1)
    found = AverageTreatmentEffect(forward_func).attribute(images, baselines=0, target=1, block_size=block, exclude=None)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_segmentation_target_with_several_outputs_equals_feature_ablation(segmentation):
    segmentation.roi = torch.stack([regions.box((12, 12), 2, 3), regions.box((12, 12), 6, 5)])
    images, mask = random(3, 1, 12, 12), regions.grid((12, 12), 3)[None, None]
    assert segmentation(images).shape == (3, 2, 2)
    assert_equals_ablation(segmentation, images, mask, target=(1, 0))


# --- Captum's wrappers -----------------------------------------------------------------------------------------------


@pytest.fixture
def with_bank(segmentation) -> AverageTreatmentEffect:
    return AverageTreatmentEffect(segmentation, baselines=PatchBank(random(6, 1, 12, 12, seed=3)))


QUICK = {"n_draws": 4, "n_screening_draws": 0}


@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("n", [1, 2])
def test_noise_tunnel_runs_over_it(with_bank, nt_type, n):
    torch.manual_seed(0)
    images = random(n, 1, 12, 12)
    mask = ids(n, 1, 12, 12, n=6)
    result = NoiseTunnel(with_bank).attribute(
        images, nt_type=nt_type, nt_samples=3, stdevs=0.1, target=1, feature_mask=mask, exclude=None, **QUICK
    )
    assert result.shape == images.shape
    assert bool(result.isfinite().all())
    assert float(result.abs().amax()) > 0


def test_noise_tunnel_with_hardly_any_noise_is_the_plain_attribution(with_bank):
    images = random(2, 1, 12, 12)
    arguments = {"target": torch.tensor([1, 0]), "feature_mask": regions.grid((12, 12), 3)[None, None], "seed": 5, **QUICK}
    plain = with_bank.attribute(images, **arguments)
    smooth = NoiseTunnel(with_bank).attribute(images, nt_samples=4, nt_samples_batch_size=3, stdevs=1e-6, **arguments)
    assert plain.abs().amax() > 1e-3
    torch.testing.assert_close(smooth, plain, atol=1e-5, rtol=0)
    varied = NoiseTunnel(with_bank).attribute(images, nt_type="vargrad", nt_samples=4, stdevs=1e-6, **arguments)
    assert float(varied.abs().amax()) < 1e-8, "the same donors for every noisy copy"


def test_noise_tunnel_carries_additional_arguments_and_numbers_as_baselines():
    images, factors = random(2, 1, 4, 4), torch.tensor([1.0, -3.0])
    method = AverageTreatmentEffect(lambda x, factor: factor * x.sum((1, 2, 3)))
    result = NoiseTunnel(method).attribute(
        images, nt_samples=3, stdevs=1e-7, baselines=0, additional_forward_args=factors, block_size=1
    )
    torch.testing.assert_close(result, images * factors.reshape(2, 1, 1, 1), atol=1e-5, rtol=0)


def test_sensitivity_max_runs_over_it(with_bank):
    torch.manual_seed(0)
    images = random(2, 1, 12, 12)
    sensitivity = sensitivity_max(
        with_bank.attribute, images, perturb_radius=0.05, n_perturb_samples=2, target=1, block_size=4, exclude=None, **QUICK
    )
    assert sensitivity.shape == (2,)
    assert bool(sensitivity.isfinite().all())
    still = sensitivity_max(with_bank.attribute, images, lambda x: x, n_perturb_samples=2, target=1, block_size=4, **QUICK)
    assert torch.equal(still, torch.zeros(2)), "the same donors for every perturbed copy"


def test_infidelity_runs_over_its_attributions(with_bank, segmentation):
    torch.manual_seed(0)
    images = random(2, 1, 12, 12)
    attributions = with_bank.attribute(images, target=1, block_size=4, exclude=None, **QUICK)

    def perturb(x: Tensor) -> tuple[Tensor, Tensor]:
        noise = 0.1 * torch.randn_like(x)
        return noise, x - noise

    value = infidelity(segmentation, perturb, images, attributions, target=1, n_perturb_samples=3)
    assert value.shape == (2,)
    assert bool(value.isfinite().all())


def test_captums_picture_takes_its_attributions(with_bank):
    matplotlib.use("Agg")
    from matplotlib import pyplot

    image = random(1, 1, 12, 12)
    attributions = with_bank.attribute(image, target=1, block_size=4, exclude=None, **QUICK)
    figure, _ = captum_visualization.visualize_image_attr(
        attributions[0].permute(1, 2, 0).numpy(),
        image[0].permute(1, 2, 0).numpy(),
        method="blended_heat_map",
        sign="all",
        use_pyplot=False,
    )
    assert figure.axes[0].images
    pyplot.close("all")


# --- Forward functions -----------------------------------------------------------------------------------------------


class CallableObject:
    def __call__(self, x: Tensor) -> Tensor:
        return x.sum((1, 2, 3))


@pytest.mark.parametrize(
    ("forward_func", "target"),
    [
        (lambda x: x.sum((1, 2, 3)), None),
        (lambda x: x.sum((1, 2, 3))[:, None], None),
        (lambda x: x.sum((1, 2, 3))[:, None], 0),
        (lambda x: torch.stack([-x.sum((1, 2, 3)), x.sum((1, 2, 3))], 1), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).requires_grad_(False), 0),
        (CallableObject(), None),
    ],
    ids=["(N,)", "(N,1)", "(N,1) with target", "(N,K)", "module", "object"],
)
def test_forward_functions_of_every_kind(forward_func, target):
    if isinstance(forward_func, nn.Module):
        nn.init.ones_(forward_func[1].weight)
    images = random(2, 1, 4, 4)
    attributions = AverageTreatmentEffect(forward_func).attribute(images, baselines=0, target=target, block_size=1)
    torch.testing.assert_close(attributions, images, atol=1e-5, rtol=0)


# --- Progress bar ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "name"), [(AverageTreatmentEffect, "Average Treatment Effect"), (PdCR, "PdCR")])
def test_the_progress_bar_is_named_and_reaches_its_end(method, name, capfd):
    roi = regions.box((12, 12), start=4, size=4)
    segmentation = SegmentationTarget(nn.Sigmoid(), roi=roi, reference=random(12, 12, seed=1) > 0.5)
    arguments = {
        "baselines": PatchBank(random(9, 1, 12, 12, seed=4)),
        "block_size": 4,
        "n_draws": 5,
        "screening_threshold": 0.0,
    }
    if method is AverageTreatmentEffect:
        arguments["support"] = None  # of a model that looks at one pixel nothing else reaches the RoI
    method(segmentation).attribute(random(1, 1, 12, 12), show_progress=True, **arguments)
    last = capfd.readouterr().err.strip().split("\r")[-1]
    done, total = re.search(r"(\d+)/(\d+)", last).groups()
    assert last.startswith(f"{name} attribution: 100%")
    # Of 9 blocks the one in the middle is the RoI; the paper draws three times for screening and then anew.
    assert done == total == {"PdCR": "64"}.get(name, "40")
    assert not tqdm.tqdm._instances


def test_the_progress_bar_reaches_its_end_when_units_are_screened_out(capfd):
    bank = PatchBank(random(30, 1, 8, 8))
    method = AverageTreatmentEffect(lambda x: x[..., :4].mean((1, 2, 3)))
    method.attribute(random(1, 1, 8, 8), baselines=bank, block_size=4, n_draws=10, show_progress=True)
    last = capfd.readouterr().err.strip().split("\r")[-1]
    assert "100%" in last
    assert "26/26" in last, "two units are left after 3 draws, two are followed for 10"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_progress_bar_is_closed_on_error(error, capfd):
    calls = []

    def forward(x: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise error("stop")
        return x.sum((1, 2, 3))

    with pytest.raises(error, match="stop") as caught:
        AverageTreatmentEffect(forward).attribute(
            random(1, 1, 4, 4), baselines=0, block_size=1, perturbations_per_eval=2, show_progress=True
        )
    assert "Average Treatment Effect attribution" in capfd.readouterr().err
    # The traceback keeps the bar alive: it is gone only if it was closed.
    assert caught.tb is not None
    assert not tqdm.tqdm._instances


def test_no_progress_bar_unless_asked_for(capfd):
    AverageTreatmentEffect(lambda x: x.sum((1, 2, 3))).attribute(random(1, 1, 4, 4), baselines=0, block_size=2)
    assert capfd.readouterr().err == ""


# --- Private names ---------------------------------------------------------------------------------------------------


def captum_imports(path: Path) -> list[tuple[str, str]]:
    """``(module, name)`` of everything that a file imports from Captum; the name is empty for ``import captum.x``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [(node.module, alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.split(".")[0] == "captum"]


def test_private_names_of_captum_are_imported_in_one_file():
    public = {"captum", "captum.attr", "captum.attr.visualization", "captum.metrics"}
    for path in PACKAGE.rglob("*.py"):
        for module, name in captum_imports(path):
            if path.name != "_captum.py":
                assert module in public, f"{path}: {module}"
                assert not name.startswith("_"), f"{path}: {module}.{name}"
    assert captum_imports(PACKAGE / "_captum.py"), "this test looks into the right place"


def test_private_attributes_of_captum_objects_are_not_used_elsewhere():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "captum":
                assert node.attr == "__version__", f"{path}:{node.lineno}"


@pytest.mark.parametrize(("module", "name"), captum_imports(PACKAGE / "_captum.py"))
def test_private_names_exist_in_the_installed_captum(module, name):
    assert hasattr(importlib.import_module(module), name)


# --- A segmentation model that was not wrapped -----------------------------------------------------------------------


class Unwrapped(nn.Module):
    """A segmentation model of three classes; what it returns is made of its logits."""

    def __init__(self, d: int, make) -> None:
        super().__init__()
        self.net, self.make = {2: nn.Conv2d, 3: nn.Conv3d}[d](1, 3, 3, padding=1), make

    def forward(self, x: Tensor):
        return self.make(self.net(x))


RETURNED = {
    "logits": lambda y: y,
    "labels": lambda y: y.argmax(1),
    "a quarter of the resolution": lambda y: y[(..., *[slice(None, None, 4)] * (y.ndim - 2))],
    "dict": lambda y: {"out": y},
    "list": lambda y: [y, y],
}
OURS = {
    "AverageTreatmentEffect": lambda m, x, d, t: AverageTreatmentEffect(m).attribute(x, d, t, block_size=4),
    "plan": lambda m, x, d, t: AverageTreatmentEffect(m).plan(x, d, t, block_size=4),
    "PdCR": lambda m, x, d, t: PdCR(m).attribute(x, d, target=t, block_size=4),
    "GradientTreatmentEffect": lambda m, x, d, t: GradientTreatmentEffect(m).attribute(x, d, target=t, block_size=4),
    "LayerAverageTreatmentEffect": lambda m, x, d, t: LayerAverageTreatmentEffect(m, m.net).attribute(x, d, t),
    "LayerGradientTreatmentEffect": lambda m, x, d, t: LayerGradientTreatmentEffect(m, m.net).attribute(x, d, t),
    "MiSuRe": lambda m, x, d, t: MiSuRe(m).attribute(x, target=t),
    "RiseSegmentation": lambda m, x, d, t: RiseSegmentation(m).attribute(x, target=t),
    "SegHiResGradCam": lambda m, x, d, t: SegHiResGradCam(m, m.net).attribute(x, target=t),
    "component_effects": lambda m, x, d, t: component_effects(m, x, baselines=d, output=t),
    "causal_support": lambda m, x, d, t: causal_support(m, x),
    "Faithfulness": lambda m, x, d, t: Faithfulness(m, x, d, t, block_size=4),
    "compare": lambda m, x, d, t: compare({"ours": AverageTreatmentEffect(m)}, m, x, d, output=t, block_size=4),
    "refute": lambda m, x, d, t: refute(AverageTreatmentEffect(m), x, d, t, block_size=4),
}


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("returned", RETURNED)
@pytest.mark.parametrize("face", OURS)
def test_whoever_gives_a_segmentation_model_is_told_to_wrap_it(face, returned, d):
    size = {2: (12, 16), 3: (8, 12, 8)}[d]
    model, images, donors = Unwrapped(d, RETURNED[returned]), random(2, 1, *size), random(6, 1, *size, seed=1)
    for target in (None, 1):
        with pytest.raises((TypeError, ValueError)) as caught:
            OURS[face](model, images, donors, target)
        said = str(caught.value)
        assert re.match(r"(forward_func|target): ", said)
        assert "SegmentationTarget" in said.split("(target")[0]


def test_a_pixel_of_a_segmentation_is_a_score_and_so_are_tables_of_scores():
    model, images, donors = Unwrapped(2, RETURNED["logits"]), random(2, 1, 12, 16), random(6, 1, 12, 16, seed=1)
    pixel = AverageTreatmentEffect(model).attribute(images, donors, (1, 5, 6), block_size=4, n_draws=2)
    expected = AverageTreatmentEffect(lambda x: model(x)[:, 1, 5, 6]).attribute(images, donors, block_size=4, n_draws=2)
    torch.testing.assert_close(pixel, expected)
    for shape in ((3, 2), (2, 4, 5), (1, 1)):

        def table(x: Tensor, shape: tuple[int, ...] = shape) -> Tensor:
            return x.sum((1, 2, 3)).view(-1, *[1] * len(shape)).expand(-1, *shape)

        with pytest.raises(ValueError, match=r"^target: 7 does not pick one of") as caught:
            AverageTreatmentEffect(table).attribute(images, donors, 7)
        assert "SegmentationTarget" not in str(caught.value)
