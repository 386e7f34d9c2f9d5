"""Faithfulness scores against hand-written loops, on functions whose effects are known exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_causalseg import PatchBank, SegmentationTarget, regions
from captum_causalseg.donors import Constant
from captum_causalseg.evaluation import Faithfulness
from captum_causalseg.evaluation import faithfulness as room

EFFECTS = torch.tensor([[3.0, -1.0, 0.5], [0.0, -2.0, 1.0]])


class Additive(nn.Module):
    """The score is ten plus the sum over blocks of effect times mean: on an image of ones, replacing a block by 0 takes its effect."""

    def __init__(self, effects: Tensor = EFFECTS, block: int = 4) -> None:
        super().__init__()
        weight = effects.double()
        for axis in range(effects.ndim):
            weight = weight.repeat_interleave(block, axis)
        self.weight = weight / block**effects.ndim
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return 10 + (self.weight * x[:, 0]).flatten(1).sum(1)


def ones(n: int = 1, *spatial: int) -> Tensor:
    return torch.ones(n, 1, *(spatial or (8, 12)), dtype=torch.float64)


def painted(values: Tensor, block: int = 4) -> Tensor:
    found = values.double()
    for axis in range(values.ndim):
        found = found.repeat_interleave(block, axis)
    return found[None, None]


def judge(model: nn.Module, inputs, baselines=0.0, **options) -> Faithfulness:
    return Faithfulness(model, inputs, baselines, **({"block_size": 4, "n_draws": 2, "n_steps": 10} | options))


def by_hand(effects: list[float], order: list[int], kind: str, fraction: np.ndarray) -> np.ndarray:
    scores = []
    for share in fraction:
        count = round(share * len(order))
        gone = order[:count] if kind == "deletion" else order[count:]
        scores.append(10 + sum(effects) - sum(effects[u] for u in gone))
    return np.array(scores)


@pytest.mark.parametrize("kind", ["deletion", "insertion"])
@pytest.mark.parametrize("order", ["supporting", "harming"])
def test_curves_are_those_of_a_loop(kind, order):
    effects = EFFECTS.flatten().tolist()
    f = judge(Additive(), ones())
    curve = getattr(f, kind)(painted(EFFECTS), order)
    ranked = sorted(range(6), key=lambda u: effects[u], reverse=order == "supporting")
    expected = by_hand(effects, ranked, kind, np.linspace(0, 1, 11) ** 2)
    np.testing.assert_allclose(curve.score[0], expected)
    counts = [round(share * 6) / 6 for share in np.linspace(0, 1, 11) ** 2]
    area = sum((counts[i + 1] - counts[i]) * (expected[i] + expected[i + 1]) / 2 for i in range(10))
    assert curve.area[0] == pytest.approx(area)
    np.testing.assert_allclose(curve.fraction[0], counts)
    # One donor only: every draw is the same.
    np.testing.assert_allclose(curve.standard_error, 0, atol=1e-12)


def test_what_the_first_steps_say_by_name():
    f = judge(Additive(), ones(), n_steps=40)
    falling = f.deletion(painted(EFFECTS), "supporting").score[0]
    rising = f.deletion(painted(EFFECTS), "harming").score[0]
    assert falling.min() == pytest.approx(10 - 3)  # all that supports is gone, all that harms is left
    assert rising.max() == pytest.approx(10 + 4.5)
    assert falling[-1] == rising[-1] == pytest.approx(10)
    assert f.insertion(painted(EFFECTS), "supporting").score[0].max() == pytest.approx(14.5)
    assert f.insertion(painted(EFFECTS), "harming").score[0].min() == pytest.approx(7)


def test_the_true_effects_are_as_faithful_as_can_be():
    f = judge(Additive(), ones(), subset_share=0.4)
    assert f.correlation(painted(EFFECTS))[0] == pytest.approx(1)
    assert f.correlation(painted(-EFFECTS))[0] == pytest.approx(-1)
    assert f.correlation(painted(EFFECTS), ranks=True)[0] == pytest.approx(1)
    assert f.infidelity(painted(EFFECTS))[0] == pytest.approx(0, abs=1e-9)
    # The map's own scale is of no importance; its shape is.
    assert f.infidelity(17 * painted(EFFECTS))[0] == pytest.approx(0, abs=1e-9)
    assert f.infidelity(painted(EFFECTS.abs()))[0] > 0.5


def test_infidelity_is_that_of_a_loop():
    model, n = Additive(), 7
    f = judge(model, ones(), n_subsets=n, subset_share=0.4, perturbations_per_eval=3)
    claim = torch.tensor([[1.0, 0.0, 2.0], [-1.0, 0.5, 0.3]]).double()
    a, b = [], []
    for subset in f._subsets[0]:
        gone = painted(torch.from_numpy(subset).reshape(2, 3).double())
        a.append(float(claim.flatten()[torch.from_numpy(subset)].sum()))
        b.append(float(model(ones()) - model(ones() * (1 - gone))))
    beta = sum(x * y for x, y in zip(a, b)) / sum(x * x for x in a)
    expected = sum((beta * x - y) ** 2 for x, y in zip(a, b)) / n
    assert f.infidelity(painted(claim))[0] == pytest.approx(expected)


def test_irof_is_the_area_over_the_relative_curve():
    f = judge(Additive(), ones())
    curve = f.deletion(painted(EFFECTS))
    width, height = np.diff(curve.fraction[0]), 1 - curve.score[0] / 11.5
    expected = (width * (height[1:] + height[:-1]) / 2).sum()
    assert f.irof(painted(EFFECTS))[0] == pytest.approx(expected)


def test_maps_without_a_sign_say_nothing_of_harm():
    f = judge(Additive(), ones())
    table = f.evaluate(painted(EFFECTS.abs())).set_index("metric")["value"]
    assert table[["deletion, harming", "insertion, harming"]].isna().all()
    assert table.drop(["deletion, harming", "insertion, harming", "leakage"]).notna().all()
    nothing = f.evaluate(torch.zeros(1, 1, 8, 12)).set_index("metric")["value"]
    assert (
        nothing[["deletion, supporting", "insertion, supporting", "irof", "faithfulness correlation", "mu fidelity"]]
        .isna()
        .all()
    )


class TwoPlaces(nn.Module):
    """Inside columns 0-3 the logit is what column 4-7 holds on average, in the last four columns what columns 8-11 hold."""

    def forward(self, x: Tensor) -> Tensor:
        logit = torch.zeros_like(x[:, :1])
        logit[:, :, :, :4] = x[:, :1, :, 4:8].mean((2, 3), keepdim=True) - 0.5
        logit[:, :, :, 12:] = x[:, :1, :, 8:12].mean((2, 3), keepdim=True) - 0.5
        return logit


@pytest.mark.parametrize(("column", "expected"), [(4, 0.0), (8, 1.0)])
def test_leakage_is_what_moves_elsewhere(column, expected):
    target = SegmentationTarget(TwoPlaces(), roi=regions.box((4, 16), 0, 4), metric="probability_mean")
    strongest = torch.zeros(1, 1, 4, 16)
    strongest[..., column : column + 4] = 1
    f = Faithfulness(target, torch.ones(1, 1, 4, 16), 0.0, block_size=4, n_draws=2, leakage_share=0.3)
    assert f.leakage(strongest)[0] == pytest.approx(expected, abs=1e-6)


def test_leakage_in_between():
    class Half(TwoPlaces):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            x[:, :, :, 8:12] = x[:, :, :, 4:8]
            return super().forward(x)

    roi = regions.box((4, 16), 0, 4)
    target = SegmentationTarget(Half(), roi=roi, metric="probability_mean")
    strongest = torch.zeros(1, 1, 4, 16)
    strongest[..., 4:8] = 1
    f = Faithfulness(target, torch.ones(1, 1, 4, 16), 0.0, block_size=4, n_draws=1, leakage_share=0.3)
    high, low = torch.tensor(0.5).sigmoid(), torch.tensor(-0.5).sigmoid()
    inside = float(high - low)  # all of the region
    outside = float(high - low) / 2  # half of the 8 columns that are neither the region nor replaced
    assert f.leakage(strongest)[0] == pytest.approx(outside / (inside + outside), abs=1e-6)


def test_leakage_needs_a_region():
    assert np.isnan(judge(Additive(), ones()).leakage(painted(EFFECTS))).all()
    everywhere = SegmentationTarget(TwoPlaces(), metric="probability_mean")
    f = Faithfulness(everywhere, torch.ones(1, 1, 4, 16), 0.0, block_size=4)
    assert np.isnan(f.leakage(torch.rand(1, 1, 4, 16))).all()


def test_units_that_touch_the_region_are_left_alone():
    target = SegmentationTarget(TwoPlaces(), roi=regions.box((4, 16), 0, 4), metric="probability_mean")
    assert Faithfulness(target, torch.ones(1, 1, 4, 16), 0.0, block_size=4).replaceable.tolist() == [[False, True, True, True]]
    alone = Faithfulness(target, torch.ones(1, 1, 4, 16), 0.0, block_size=4, exclude=None)
    assert alone.replaceable.all()


def segmentation(n: int, d: int, **options):
    generator = torch.Generator().manual_seed(0)
    spatial = (16,) * d
    conv = (nn.Conv2d, nn.Conv3d)[d - 2]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(conv(1, 4, 5, padding=2), nn.Tanh(), conv(4, 3, 5, padding=2)).double()
    images = torch.rand(n, 1, *spatial, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (n, *spatial), generator=generator)
    rois = torch.stack([regions.box(spatial, 4, 4), regions.box(spatial, 8, 6)])
    bank = PatchBank(torch.rand(6, 1, *spatial, generator=generator, dtype=torch.float64))
    target = SegmentationTarget(model, roi=rois, reference=labels, metric="soft_dice", **options)
    maps = torch.randn(n, 1, *spatial, generator=generator, dtype=torch.float64)
    return model, target, images, labels, rois, bank, maps


@pytest.mark.parametrize("d", [2, 3])
def test_a_batch_is_its_examples_one_by_one(d):
    n_examples = 5 - d
    model, target, images, labels, rois, bank, maps = segmentation(n_examples, d)
    settings_ = {"block_size": 4, "n_draws": 2, "n_steps": 4, "n_subsets": 4, "target": (2, 1)}
    together = Faithfulness(target, images, bank, **settings_).evaluate(maps)
    for n in range(n_examples):
        one = SegmentationTarget(model, roi=rois, reference=labels[n], metric="soft_dice")
        alone = Faithfulness(one, images[n : n + 1], bank, **settings_).evaluate(maps[n : n + 1])
        of_batch = together[together["example"] == n]
        # Captum's normalized infidelity is in single steps of the same sums, in another order.
        np.testing.assert_allclose(of_batch["value"], alone["value"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("how", ["given", "argument"])
def test_masks_per_example_and_targets_in_every_form(how):
    model, target, images, labels, rois, bank, maps = segmentation(2, 2)
    settings_ = {"block_size": 4, "n_draws": 1, "n_steps": 3, "n_subsets": 5}
    expected = Faithfulness(target, images, bank, target=(1, 0), **settings_).evaluate(maps)
    if how == "argument":
        target = SegmentationTarget(model, roi="argument", reference="argument", metric="soft_dice")
        masks = rois[None].expand(2, *rois.shape), labels
        found = Faithfulness(target, images, bank, [(1, 0), (1, 0)], masks, **settings_).evaluate(maps)
    else:
        found = Faithfulness(target, images, bank, [(1, 0), (1, 0)], **settings_).evaluate(maps)
    np.testing.assert_allclose(found["value"], expected["value"], rtol=1e-9)


def test_the_region_of_the_explained_output():
    _, target, images, _, rois, bank, _ = segmentation(2, 2)
    f = Faithfulness(target, images, bank, target=[(0, 1), (2, 0)], block_size=4)
    assert torch.equal(f.roi, torch.stack([rois[1], rois[0]]))
    assert judge(Additive(), ones()).roi is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 3))
def test_irregular_units_take_the_mean_of_the_map(seed, channels):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, 5, (1, 1 if seed % 2 else channels, 6, 7), generator=generator)
    image = torch.rand(2, channels, 6, 7, generator=generator)
    f = Faithfulness(lambda x: x.flatten(1).sum(1), image, 0.0, feature_mask=mask, n_draws=1)
    attribution = torch.randn(2, channels, 6, 7, generator=generator)
    full = mask.expand(1, channels, 6, 7)[0]
    for n in range(2):
        for row, unit in enumerate(mask.unique().tolist()):
            expected = float(attribution[n][full == unit].double().mean())
            assert f.unit_attributions(attribution)[n, row] == pytest.approx(expected)


def test_several_inputs():
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return 2 * x.flatten(1).sum(1) - 3 * y.sum(1)

    inputs = torch.ones(2, 1, 4, 4), torch.ones(2, 2)
    f = Faithfulness(forward, inputs, (0.0, 0.0), block_size=((4, 4), ()), n_draws=1, n_steps=3, n_subsets=20, subset_share=0.4)
    # Units: the image as a whole (effect 32), each of the two features (effect -3).
    effects = torch.full((2, 1, 4, 4), 32.0), torch.full((2, 2), -3.0)
    np.testing.assert_allclose(f.deletion(effects, "harming").score[0], [26, 26, 29, 0], atol=1e-4)
    np.testing.assert_allclose(f.correlation(effects), 1)
    np.testing.assert_allclose(f.infidelity(effects), 0, atol=1e-3)
    assert f.evaluate(effects)["value"].notna().sum() == 16  # all but leakage


def test_forwards_are_counted_and_curves_are_not_measured_twice():
    model = Additive()
    f = judge(model, ones(2))
    assert f.n_forwards == model.seen == 2
    f.evaluate(painted(EFFECTS).expand(2, -1, -1, -1))
    assert f.n_forwards == model.seen
    before = model.seen
    f.irof(painted(EFFECTS).expand(2, -1, -1, -1))
    assert model.seen == before


def test_same_seed_same_numbers_and_batches_do_not_matter():
    _, target, images, _, _, bank, maps = segmentation(2, 2)
    tables = [
        Faithfulness(target, images, bank, (1, 1), block_size=4, n_steps=4, n_subsets=9, perturbations_per_eval=size, seed=seed)
        .evaluate(maps)["value"]
        .to_numpy()
        for size, seed in ((16, 5), (1, 5), (16, 6))
    ]
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-6, atol=1e-9)
    assert np.abs(tables[0] - tables[2]).max() > 1e-6


def test_nothing_is_left_behind():
    model, target, images, _, _, bank, maps = segmentation(1, 2)
    model.insert(1, nn.BatchNorm2d(4).double())
    model.train()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="training mode"):
        Faithfulness(target, images, bank, (1, 1), block_size=4, n_steps=2, n_subsets=4).evaluate(maps)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert int(model[1].num_batches_tracked) == 0


def test_equal_attributions_are_taken_in_another_order_each_draw():
    f = judge(Additive(), ones(), n_draws=3)
    orders = [tuple(next(f._ranked(np.zeros((1, 6)), "supporting", draw))) for draw in range(3)]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(6)) for order in orders)


def test_a_metric_of_ones_own():
    room.register("largest", lambda f, a: f.unit_attributions(a).max(1), "higher", "nowhere")
    try:
        table = judge(Additive(), ones()).evaluate(painted(EFFECTS), ["largest"])
        assert table.to_dict("records") == [
            {"example": 0, "metric": "largest", "value": 3.0, "score_direction": "higher", "source": "nowhere", "why": ""}
        ]
        with pytest.raises(ValueError, match="name: 'largest' is taken"):
            room.register("largest", lambda f, a: f.unit_attributions(a).max(1), "higher", "nowhere")
    finally:
        del room.METRICS["largest"]
    with pytest.raises(ValueError, match='score_direction: expected "higher" or "lower", got \'up\''):
        room.register("x", lambda f, a: f.irof(a), "up", "nowhere")


def test_every_metric_says_what_is_better_and_where_it_comes_from():
    assert {m.score_direction for m in room.METRICS.values()} == {"higher", "lower"}
    assert all(m.source for m in room.METRICS.values())
    # Overlap with an object or a mask is no faithfulness.
    assert not any("locali" in name or "pointing" in name for name in room.METRICS)


@pytest.mark.parametrize(
    ("maps", "error", "said"),
    [
        (torch.zeros(1, 1, 4, 6), ValueError, r"expected the input's shape \(1, 1, 8, 12\) .* got \(1, 1, 4, 6\).*interpolate"),
        (torch.zeros(2, 1, 8, 12), ValueError, r"got \(2, 1, 8, 12\)"),
        ((torch.zeros(1, 1, 8, 12),) * 2, ValueError, r"one map per input \(1\), got 2"),
        (np.zeros((1, 1, 8, 12)), TypeError, "attributions: expected a tensor of real numbers, got ndarray"),
        (torch.full((1, 1, 8, 12), torch.nan), ValueError, "NaN or infinite"),
    ],
)
def test_maps_that_are_none(maps, error, said):
    with pytest.raises(error, match=said):
        judge(Additive(), ones()).evaluate(maps)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_draws": 0}, "n_draws: expected at least 1, got 0"),
        ({"n_steps": 0}, "n_steps"),
        ({"n_subsets": 2}, "n_subsets: expected at least 3"),
        ({"subset_share": 1.0}, "subset_share: expected a number between 0 and 1, got 1.0"),
        ({"leakage_share": 0.0}, "leakage_share"),
        ({"seed": -1}, "seed"),
        ({"perturbations_per_eval": 0}, "perturbations_per_eval"),
        ({"target": 3}, "target: 3 does not pick"),
    ],
)
def test_arguments_that_make_no_sense(options, said):
    with pytest.raises(ValueError, match=said):
        judge(Additive(), ones(), **options)


def test_unknown_metrics_and_orders():
    f = judge(Additive(), ones())
    with pytest.raises(ValueError, match=r"metrics: expected names from .*'irof'.*, got \['pointing game'\]"):
        f.evaluate(painted(EFFECTS), ["irof", "pointing game"])
    with pytest.raises(ValueError, match='order: expected "supporting" or "harming", got \'magnitude\''):
        f.deletion(painted(EFFECTS), "magnitude")


def test_donors_are_the_ones_given():
    """Whatever replaces a unit comes from the bank: here only values that the image does not hold."""
    seen = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x.flatten(1).sum(1)

    Faithfulness(forward, ones(1, 8, 8), Constant(7.0), block_size=4, n_draws=1, n_steps=3).deletion(torch.rand(1, 1, 8, 8))
    values = torch.cat([x.flatten() for x in seen]).unique().tolist()
    assert values == [1.0, 7.0]
    assert bool((seen[1][-1] == 7).all())  # the last step: all of it


def test_where_no_unit_can_reach_the_region_nothing_is_replaced_and_no_score_is_given():
    roi = regions.box((16, 16), start=5, size=6)  # the blocks that reach it touch it
    image = torch.rand(1, 1, 16, 16)
    target = SegmentationTarget.from_prediction(torch.nn.Conv2d(1, 2, 3, padding=1), image, roi=roi, metric="soft_dice")
    faithfulness = Faithfulness(target, image, 0.0, target=1, block_size=4, n_draws=2)
    curve = faithfulness.insertion(torch.rand(1, 1, 16, 16))
    assert not curve.fraction.any()
    assert np.isnan(curve.area).all()
    np.testing.assert_allclose(curve.score, float(target(image).detach()[0, 1]), rtol=1e-6)


@pytest.mark.parametrize(("d", "n", "per_eval"), [(2, 2, 3), (3, 1, 16)])
def test_the_cost_is_known_before(d, n, per_eval):
    """Of batches and volumes; what maps share is counted once."""
    shape = (8,) * d
    model = (nn.Conv2d, nn.Conv3d)[d - 2](1, 2, 3, padding=1)
    images = torch.rand(n, 1, *shape)
    rois = torch.stack([regions.box(shape, 0, 4), regions.box(shape, 4, 4)])
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    effort = {"block_size": 4, "n_draws": 2, "n_steps": 3, "n_subsets": 7, "perturbations_per_eval": per_eval}
    f = Faithfulness(target, images, torch.rand(5, 1, *shape), (1, 0), **effort)
    expected, before = f.forecast(n_maps=2), f.n_forwards
    for seed in range(2):
        f.evaluate(torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)))
    # Curves of few units come by the same image more than once.
    assert 0 < f.n_forwards - before <= expected
    assert f.forecast(["mu fidelity", "infidelity", "leakage"]) == n * (7 + 3)
    assert f.forecast(["irof", "deletion, supporting"]) == n * 2 * 4


def test_what_was_segmented_is_that_of_the_explained_class():
    shape, n = (8, 8), 2
    model = nn.Conv2d(1, 3, 3, padding=1)
    images, labels = torch.rand(n, 1, *shape), torch.randint(3, (n, *shape))
    target = SegmentationTarget(model, roi=regions.box(shape, 0, 4), reference="argument", metric="soft_dice")
    f = Faithfulness(target, images, 0.0, [2, 1], labels, block_size=4, n_draws=1)
    prediction, reference = f.replacements.segmented()
    assert torch.equal(reference, torch.stack([labels[0] == 2, labels[1] == 1]))
    whole = target.predict(images)
    assert torch.equal(prediction, torch.stack([whole[0, 2], whole[1, 1]]))
    assert judge(Additive(), ones()).replacements.segmented() is None


def test_a_score_that_no_subset_changes_says_nothing_of_infidelity():
    """Every map would have 0, the best there is."""

    def forward(x: Tensor) -> Tensor:
        return 5 + 0 * x.flatten(1).sum(1)

    f = judge(forward, ones(), n_subsets=6)
    assert np.isnan(f.infidelity(painted(EFFECTS))).all()
    assert not np.isnan(judge(Additive(), ones(), n_subsets=6).infidelity(painted(EFFECTS))).any()
