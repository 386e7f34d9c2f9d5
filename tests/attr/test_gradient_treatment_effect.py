"""The backpropagated effect: against interventions, autograd by hand and Captum."""

import copy
import math

import captum.attr
import pytest
import torch
from gradient_cases import Curved, case
from torch import Tensor, nn

from captum_causalseg import (
    ActivationBank,
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    TreatmentEffectStatistics,
    regions,
)
from captum_causalseg._state import undisturbed

SOURCES = {
    "anywhere": lambda spatial: PatchBank(torch.rand(3, 1, *(length - 1 for length in spatial))),
    "aligned": lambda spatial: PatchBank(torch.rand(7, 1, *spatial), placement="aligned"),
    "tensor": lambda spatial: torch.rand(5, 1, *spatial),
    "same image": lambda spatial: None,
    "number": lambda spatial: 0.3,
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("d", [2, 3])
def test_where_the_score_is_linear_the_effect_is_that_of_interventions(d, source):
    model, images, labels, roi = case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="logit_sum")
    arguments = {"baselines": SOURCES[source](images.shape[2:]), "target": 1, "block_size": 3}
    truth, stats = AverageTreatmentEffect(target).attribute(
        images, **arguments, n_draws=10**4, n_screening_draws=0, perturbations_per_eval=64, return_statistics=True
    )
    assert float(stats.standard_error.nan_to_num(0.0).max()) == 0, "the bank is not used up"
    for n_steps in (1, 3):
        attr = GradientTreatmentEffect(target).attribute(images, **arguments, n_steps=n_steps)
        torch.testing.assert_close(attr, truth, atol=1e-6 * max(1.0, float(truth.abs().max())), rtol=0)
    assert float(truth.abs().max()) > 0.01


def test_one_step_is_the_gradient_at_the_image_times_the_distance_to_the_mean_donor():
    model, images, labels, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    donors = torch.rand(5, 1, 12, 10)
    attr = GradientTreatmentEffect(target).attribute(images, baselines=donors, target=2, block_size=(4, 5), exclude=None)
    leaf = images.clone().requires_grad_()
    target.surrogate()(leaf)[:, 2].sum().backward()
    product = leaf.grad * (images - donors.mean(0))
    grid = regions.grid((12, 10), (4, 5))
    for unit in grid.unique():
        inside = grid == unit
        for n in range(2):
            torch.testing.assert_close(attr[n, 0][inside], product[n, 0][inside].sum().expand(int(inside.sum())))
    kept = GradientTreatmentEffect(target).attribute(images, baselines=donors, target=2, block_size=(4, 5))
    touching = torch.isin(grid, grid[roi].unique())
    assert bool(touching.any())
    assert bool((kept[:, 0][:, touching] == 0).all())
    assert torch.equal(kept[:, 0][:, ~touching], attr[:, 0][:, ~touching])


def test_single_elements_against_zero_are_captums_input_times_gradient():
    model, images, labels, roi = case(2, Curved)
    surrogate = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    elements = torch.arange(120).view(1, 1, 12, 10)
    attr = GradientTreatmentEffect(surrogate).attribute(images, baselines=0, target=1, feature_mask=elements, exclude=None)
    leaf = images.clone().requires_grad_()
    torch.testing.assert_close(attr, captum.attr.InputXGradient(surrogate).attribute(leaf, target=1).detach())


def test_many_steps_are_integrated_gradients_and_complete():
    model, images, _, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, metric="logit_mean")
    bank = PatchBank(torch.rand(5, 1, 9, 9))
    grid = regions.grid((12, 10), 4)
    attr = GradientTreatmentEffect(target).attribute(images, baselines=bank, target=1, block_size=4, n_steps=200)
    bound, baseline = bank.bind(images), images.clone()
    units = [unit for unit in grid.unique() if not bool((roi & (grid == unit)).any())]
    for unit in units:
        rows, columns = (grid == unit).nonzero().T
        inside = (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1))
        baseline[(slice(None), slice(None), *inside)] = bound.mean(0, inside).float()
    effects = torch.stack([attr[:, 0][:, grid == unit][:, 0] for unit in units], 1)
    with torch.no_grad():
        difference = target(images)[:, 1] - target(baseline)[:, 1]
    assert float(difference.abs().max()) > 0.01
    torch.testing.assert_close(effects.sum(1), difference, atol=1e-3, rtol=0)
    once = GradientTreatmentEffect(target).attribute(images, baselines=bank, target=1, block_size=4)
    assert float((once - attr).abs().max()) > 1e-3, "the case is too dull to tell the path from its end"
    integrated = captum.attr.IntegratedGradients(target).attribute(
        images, baselines=baseline, target=1, n_steps=200, method="riemann_middle"
    )
    for i, unit in enumerate(units):
        torch.testing.assert_close(effects[:, i], integrated[:, 0][:, grid == unit].sum(1).float(), atol=1e-5, rtol=0)


def test_tuples_of_inputs_and_units_across_them():
    def score(image: Tensor, other: Tensor, table: Tensor, unused: Tensor) -> Tensor:
        return (image.mean((1, 2, 3)) + 2 * other.sum((1, 2, 3))) * 3 + table @ torch.tensor([1.0, -2.0])

    inputs = torch.rand(2, 1, 4, 4), torch.rand(2, 2, 3, 3), torch.rand(2, 2), torch.rand(2, 1, 4, 4)
    masks = (
        torch.zeros(1, 1, 4, 4, dtype=torch.int64),
        torch.tensor([0, 5]).view(1, 2, 1, 1),  # channel 0 belongs with the image
        torch.tensor([[7, 9]]),
        torch.full((1, 1, 1, 1), 11),
    )
    attr = GradientTreatmentEffect(score).attribute(inputs, baselines=(0, torch.ones(3, 2, 3, 3), 0.5, 0.0), feature_mask=masks)
    assert [a.shape for a in attr] == [x.shape for x in inputs]
    image, other, table, _ = inputs
    shared = 3 * image.mean((1, 2, 3)) + 6 * (other[:, 0] - 1).sum((1, 2))
    torch.testing.assert_close(attr[0], shared.view(2, 1, 1, 1).expand(2, 1, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(attr[1][:, 0], shared.view(2, 1, 1).expand(2, 3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(attr[1][:, 1, 0, 0], 6 * (other[:, 1] - 1).sum((1, 2)), atol=1e-5, rtol=0)
    torch.testing.assert_close(attr[2], (table - 0.5) * torch.tensor([1.0, -2.0]), atol=1e-6, rtol=0)
    assert not bool(attr[3].any())


@pytest.mark.parametrize("target", [1, [1, 2], torch.tensor([1, 2]), torch.tensor(2)])
def test_every_form_of_target_and_masks_per_example(target):
    model, images, labels, roi = case(2, Curved)
    rois = torch.stack([roi, roi.flip(0)])[:, None]
    donors = torch.rand(4, 1, 12, 10)
    mask = torch.stack([regions.grid((12, 10), 3), 50 + regions.grid((12, 10), 4)])[:, None]
    whole = SegmentationTarget(model, roi=rois, reference=labels)
    together = GradientTreatmentEffect(whole).attribute(images, baselines=donors, target=target, feature_mask=mask)
    layer = LayerGradientTreatmentEffect(whole, model.first).attribute(images, layer_baselines=donors, target=target)
    chosen = torch.as_tensor(target).expand(2).tolist()
    for n in range(2):
        alone = SegmentationTarget(model, roi=rois[n, 0], reference=labels[n])
        one = {"target": chosen[n]}
        single = GradientTreatmentEffect(alone).attribute(
            images[n : n + 1], baselines=donors, feature_mask=mask[n : n + 1], **one
        )
        torch.testing.assert_close(together[n], single[0], atol=1e-6, rtol=0)
        single = LayerGradientTreatmentEffect(alone, model.first).attribute(images[n : n + 1], layer_baselines=donors, **one)
        torch.testing.assert_close(layer[n], single[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_unit_is_excluded_for_the_roi_that_it_touches_alone(n_steps):
    model, images, labels, roi = case(2, Curved)
    stack = torch.stack([roi, regions.box((12, 10), start=(8, 6), size=3)])
    donors = torch.rand(4, 1, 12, 10)
    both = GradientTreatmentEffect(SegmentationTarget(model, roi=stack, reference=labels))
    for r in range(2):
        alone = GradientTreatmentEffect(SegmentationTarget(model, roi=stack[r], reference=labels))
        torch.testing.assert_close(
            both.attribute(images, baselines=donors, target=(1, r), block_size=4, n_steps=n_steps),
            alone.attribute(images, baselines=donors, target=1, block_size=4, n_steps=n_steps),
        )


@pytest.mark.filterwarnings("ignore:The model is in training mode")
def test_nothing_is_left_behind():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1)).train()
    target = SegmentationTarget(model, roi=regions.box((12, 10), start=4, size=3), reference=torch.randint(0, 2, (12, 10)))
    images = torch.rand(2, 1, 12, 10, requires_grad=True)
    with torch.no_grad():
        model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    arguments = {"target": 1, "n_steps": 2}
    for recording in (torch.enable_grad, torch.no_grad):
        with recording():
            found = [
                GradientTreatmentEffect(target).attribute(images, baselines=0, block_size=4, **arguments),
                LayerGradientTreatmentEffect(target, model[1]).attribute(images, **arguments),
            ]
            assert torch.is_grad_enabled() == (recording is torch.enable_grad)
    for attr in found:
        assert not attr.requires_grad
        assert attr.is_contiguous()
        assert attr.dtype == images.dtype
        assert bool(attr.any())
    assert images.grad is None
    assert bool((model[0].weight.grad == 7).all())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "0.weight")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    still = GradientTreatmentEffect(SegmentationTarget(model.eval(), roi=target.roi, reference=target.reference))
    torch.testing.assert_close(still.attribute(images, baselines=0, block_size=4, **arguments), found[0])


def test_gradients_are_recorded_also_in_inference_mode():
    model, images, labels, roi = case(2, Curved)
    face = GradientTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels))
    outside = face.attribute(images, baselines=0, target=1, block_size=4, n_steps=2)
    with torch.inference_mode():
        assert torch.equal(face.attribute(images, baselines=0, target=1, block_size=4, n_steps=2), outside)
    with undisturbed(model):
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_have_the_inputs_type(dtype):
    model, images, labels, roi = case()
    target = SegmentationTarget(model.to(dtype), roi=roi, reference=labels)
    attr = GradientTreatmentEffect(target).attribute(images.to(dtype), baselines=0.5, target=1, block_size=4, n_steps=2)
    assert attr.dtype == dtype
    assert bool(attr.any())
    layer = LayerGradientTreatmentEffect(target, model.first).attribute(images.to(dtype), target=1)
    assert layer.dtype == dtype


def test_captums_noise_tunnel_runs_on_it():
    model, images, labels, roi = case(2, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels[0])
    face = GradientTreatmentEffect(target, baselines=PatchBank(torch.rand(5, 1, 9, 9)))
    tunnel = captum.attr.NoiseTunnel(face)
    plain = face.attribute(images, target=1, block_size=4)
    smooth = tunnel.attribute(images, nt_samples=3, stdevs=1e-6, target=1, block_size=4)
    torch.testing.assert_close(smooth, plain, atol=1e-4, rtol=0)
    squared = tunnel.attribute(images, nt_type="smoothgrad_sq", nt_samples=2, stdevs=0.1, target=1, block_size=4)
    assert bool((squared >= 0).all())
    layer = LayerGradientTreatmentEffect(target, model.first, layer_baselines=ActivationBank(torch.rand(4, 1, 12, 10)))
    smooth = captum.attr.NoiseTunnel(layer).attribute(images, nt_samples=2, stdevs=1e-6, target=1)
    torch.testing.assert_close(smooth, layer.attribute(images, target=1), atol=1e-4, rtol=0)


def test_they_are_captums():
    model = nn.Conv2d(1, 1, 1)
    face, layer = GradientTreatmentEffect(model), LayerGradientTreatmentEffect(model, model)
    assert isinstance(face, captum.attr.GradientAttribution)
    assert isinstance(layer, captum.attr.GradientAttribution)
    assert isinstance(layer, captum.attr.LayerAttribution)
    assert face.multiplies_by_inputs
    assert layer.multiplies_by_inputs
    assert [face.get_name(), layer.get_name()] == ["Gradient Treatment Effect", "Layer Gradient Treatment Effect"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": None}, ValueError, "target: the forward function has 3 outputs .* say which one"),
        ({"target": 3}, ValueError, "target: 3 does not pick one of 3 outputs"),
        ({"n_steps": 0}, ValueError, "n_steps: expected at least 1, got 0"),
        ({"n_steps": 2.0}, TypeError, r"n_steps: expected an integer, got 2\.0"),
        ({"block_size": 40}, ValueError, "block_size: a block of"),
        ({"exclude": "all"}, ValueError, 'exclude: expected "roi"'),
        ({"baselines": math.inf}, ValueError, "baselines: expected a finite number"),
        ({"baselines": PatchBank(torch.rand(2, 1, 3, 3))}, ValueError, "is smaller than a unit of"),
        ({"n_draws": 5}, TypeError, "n_draws"),
    ],
)
def test_bad_arguments_are_explained(arguments, error, message):
    model, images, labels, roi = case()
    face = GradientTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels))
    with pytest.raises(error, match=message):
        face.attribute(images, **{"target": 1, "block_size": 4, "baselines": 0} | arguments)


def test_scores_without_a_gradient_are_refused():
    model, images, labels, roi = case()

    def hard(probabilities: Tensor, reference: Tensor, roi: Tensor) -> Tensor:
        return (probabilities > 0.5).double().mean((2, 3))

    plain = r".* SegmentationTarget\.surrogate"
    for score, help in (
        (SegmentationTarget(model, roi=roi, reference=labels, metric=hard), r".*'hard' .* target\.surrogate\(\"soft_dice\"\)"),
        (lambda x: model(x.detach()).mean((2, 3)), plain),
        (lambda x: model(x).argmax(1).double().mean((1, 2))[:, None].expand(-1, 3), plain),
    ):
        for n_steps in (1, 2):
            with pytest.raises(ValueError, match=f"forward_func: its score has no gradient {help}"):
                GradientTreatmentEffect(score).attribute(images, baselines=0, target=1, block_size=4, n_steps=n_steps)
    with pytest.raises(ValueError, match="forward_func: the gradient of its score holds NaN or infinite values"):
        GradientTreatmentEffect(lambda x: (x * 0).sqrt().sum((1, 2, 3))).attribute(images, baselines=0, block_size=4)
    with pytest.raises(ValueError, match="forward_func: expected one score per example"):
        GradientTreatmentEffect(lambda x: x.sum()).attribute(images, baselines=0, block_size=4)
    with pytest.raises(TypeError, match="forward_func: expected a callable"):
        GradientTreatmentEffect("model")


def test_units_without_a_donor_are_refused():
    model, images, labels, _ = case(n=1)
    roi = torch.ones(12, 10, dtype=torch.bool)
    roi[0, 0] = False
    target = SegmentationTarget(model, roi=roi, reference=labels)
    with pytest.raises(ValueError, match="baselines: no donor is left for unit 0"):
        GradientTreatmentEffect(target).attribute(images, baselines=PatchBank(images), target=1, block_size=4, exclude=None)


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("d", [2, 3])
def test_statistics_of_a_gradient_hold_effects_of_the_output_asked_for_and_no_errors(d, n_steps):
    model, images, labels, roi = case(d, Curved)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    ran = []
    model.register_forward_hook(lambda module, inputs, output: ran.append(len(output)))
    face, donors = GradientTreatmentEffect(target), torch.rand(5, *images.shape[1:])
    arguments = {"baselines": donors, "target": [1, 2], "block_size": 3, "n_steps": n_steps}
    attr, stats = face.attribute(images, **arguments, return_statistics=True)
    assert stats.n_forwards == sum(ran) == sum(stats.settings["forwards"].values())
    assert torch.equal(attr, face.attribute(images, **arguments))
    torch.testing.assert_close(stats.to_map(target=[1, 2]).nan_to_num(0).float(), attr, atol=0, rtol=1e-6)
    grid = regions.grid(images.shape[2:], 3)
    touching = torch.isin(stats.unit_ids, grid[roi].unique())
    assert stats.effect.shape == (2, len(stats.unit_ids), 3)
    for n, chosen in enumerate((1, 2)):
        others = [k for k in range(3) if k != chosen]
        assert stats.status[n, ~touching, chosen].unique().tolist() == [Status.FIRST_ORDER]
        assert stats.status[n, touching, chosen].unique().tolist() == [Status.EXCLUDED]
        assert stats.status[n][:, others].unique().tolist() == [Status.EXCLUDED]
        assert torch.equal(stats.effect[n, :, chosen].isnan(), touching)
        assert bool(stats.effect[n][:, others].isnan().all())
    for unknown in (stats.standard_error, *stats.confidence_interval(), stats.p_values(), stats.adjusted_p_values(None)):
        assert bool(unknown.isnan().all())
    assert not bool(stats.significant().any() | stats.hypotheses.any() | stats.n_draws.any())
    assert bool((stats.population[:, ~touching] == 5).all() & stats.population[:, touching].isnan().all())
    with torch.no_grad():
        torch.testing.assert_close(stats.observed_score, target.surrogate()(images).double(), atol=1e-6, rtol=0)
    assert {"sampling": "first order", "n_steps": n_steps, "outputs": [[1], [2]], "metric": "soft_dice"}.items() <= (
        stats.settings.items()
    )
    assert "p-values are NaN" in stats.settings["disabled"]["errors"]


def test_statistics_of_a_linear_score_by_hand(tmp_path, caplog):
    image, donors = torch.full((1, 1, 4, 4), 3.0), torch.stack([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 4.0)])
    weights = torch.tensor([[1.0, 1.0, -2.0, -2.0]]).expand(4, 4)
    face = GradientTreatmentEffect(lambda x: (weights * x).sum((1, 2, 3)))
    _, stats = face.attribute(image, donors, block_size=2, return_statistics=True)
    assert stats.effect.tolist() == [[4.0, -8.0, 4.0, -8.0]]  # 4 pixels, weight 1 or -2, 3 less the mean of 0 and 4
    assert stats.population.tolist() == [[2.0] * 4]
    assert stats.observed_score.tolist() == [-24.0]
    assert stats.unit_ids[stats.significant()[0]].tolist() == []
    assert not bool(stats.significant(correction=None).any())
    assert caplog.text.count("first-order effects have no standard error") == 1
    assert stats.why_empty() is None
    table = stats.to_dataframe()
    assert table["status"].tolist() == ["FIRST_ORDER"] * 4
    assert table[["start_0", "stop_1", "n_draws"]].to_numpy().tolist() == [[0, 2, 0], [0, 4, 0], [2, 2, 0], [2, 4, 0]]
    assert bool(table[["standard_error", "lower", "upper", "p_value"]].isna().all(axis=None))
    stats.save(tmp_path / "statistics.npz")
    again = TreatmentEffectStatistics.load(tmp_path / "statistics.npz")
    assert repr(again) == repr(stats) == "TreatmentEffectStatistics(1 example(s), 4 units: 4 FIRST_ORDER; 3 forwards)"
    assert torch.equal(again.effect, stats.effect)
    assert bool(again.standard_error.isnan().all())
    assert again.settings == stats.settings


def test_statistics_of_tuples_and_of_units_that_an_example_lacks():
    inputs = torch.ones(2, 1, 4, 4), torch.ones(2, 2)
    masks = torch.tensor([[0, 0, 3, 3], [0, 0, 7, 7]]).view(2, 1, 1, 4).expand(2, 1, 4, 4), torch.tensor([[9, 9]])
    face = GradientTreatmentEffect(lambda image, table: image.sum((1, 2, 3)) + 5 * table.sum(1))
    attr, stats = face.attribute(inputs, (0.5, torch.zeros(3, 2)), feature_mask=masks, return_statistics=True)
    torch.testing.assert_close(
        stats.effect, torch.tensor([[4, 4, math.nan, 10], [4, math.nan, 4, 10]]).double(), equal_nan=True
    )
    first, absent = int(Status.FIRST_ORDER), int(Status.ABSENT)
    assert stats.status.tolist() == [[first, first, absent, first], [first, absent, first, first]]
    assert stats.population[0, [0, 1, 3]].tolist() == [1, 1, 3]
    for painted, known in zip(stats.to_map(), attr):
        assert torch.equal(painted.float(), known)


def test_statistics_of_a_segmentation_in_the_place_of_scores_are_refused():
    face = GradientTreatmentEffect(lambda x: x.flatten(1))
    inputs = torch.rand(1, 1, 128, 128)
    assert face.attribute(inputs, 0.0, target=0).shape == inputs.shape
    elements = torch.arange(128**2).view(1, 1, 128, 128)
    with pytest.raises(ValueError, match="forward_func: it returns 16384 values per example, too many to track"):
        face.attribute(inputs, 0.0, target=0, feature_mask=elements, return_statistics=True)
    with pytest.raises(TypeError, match="return_statistics: expected True or False, got 'yes'"):
        face.attribute(inputs, 0.0, target=0, return_statistics="yes")
