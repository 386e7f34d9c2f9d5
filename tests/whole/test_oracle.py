"""Faces and engine equal the paper's loop, written naively, on the same draws."""

import numpy as np
import oracle
import pytest
import torch
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, PdCR, SegmentationTarget, Status, regions
from captum_causalseg.attr.effort import Effort
from captum_causalseg.attr.estimate import interventions
from captum_causalseg.attr.options import InputUnits, Options


class Net(nn.Module):
    """A small smooth network, wide enough for units to reach the RoI."""

    def __init__(self, n_spatial: int, channels: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[n_spatial]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first = conv(channels, 6, 5, padding=2)
            self.second = conv(6, classes, 5, padding=4, dilation=2)

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            x = x + other
        # Steep, so that donors flip pixels at a distance.
        return self.second(torch.sin(8 * self.first(x)))


PLAIN = {"sampling": "uniform", "support": None}
"""Draws that are all equally likely, of every unit, on the whole image."""


def case(spatial: tuple[int, ...], classes: int, n: int, channels: int = 1):
    generator = torch.Generator().manual_seed(len(spatial) * 100 + classes * 10 + n)
    images = torch.rand((n, channels, *spatial), generator=generator)
    labels = torch.randint(0, max(classes, 2), (n, *spatial), generator=generator)
    donors = torch.rand((5, channels, *(length + 3 for length in spatial)), generator=generator)
    return Net(len(spatial), channels, classes).eval(), images, labels, donors


def run_oracle(score, inputs, masks, banks, planned, populations, n_screening, threshold, n_outputs):
    """Per (example, output): effects and errors by unit id, screened ones marked."""
    moved = oracle.differences(score, inputs, masks, banks, planned)
    results = {}
    for example in range(inputs[0].shape[0]):
        units = [unit for n, unit in moved if n == example]
        for k in range(n_outputs):
            kept = [oracle.screen([float(v[k]) for v in moved[example, unit]], n_screening, threshold) for unit in units]
            effects, errors = oracle.effect_and_error(
                [draws for draws, _ in kept], [populations[example, unit] for unit in units]
            )
            for unit, effect, error, (_, screened) in zip(units, effects, errors, kept):
                results[example, unit, k] = effect, error, screened
    return results


def assert_equal(stats, expected, n_outputs):
    effect = stats.effect.reshape(*stats.effect.shape[:2], -1)
    error = stats.standard_error.reshape(*effect.shape)
    status = stats.status.reshape(*effect.shape)
    assert len(expected) == int((status != Status.EXCLUDED).sum())
    for (example, unit, k), (mean, standard_error, screened) in expected.items():
        u = stats.unit_ids.tolist().index(unit)
        assert float(effect[example, u, k]) == pytest.approx(mean, abs=1e-6)
        assert float(error[example, u, k]) == pytest.approx(standard_error, abs=1e-6)
        assert status[example, u, k] == (Status.SCREENED if screened else Status.ESTIMATED)
    moving = [mean for mean, _, _ in expected.values() if abs(mean) > 1e-3]
    assert len(moving) > len(expected) / 10, "the case is too dull to prove anything"


@pytest.mark.parametrize("perturbations_per_eval", [1, 7, 64])
@pytest.mark.parametrize(
    ("spatial", "classes", "n"), [((13, 11), 1, 1), ((13, 11), 3, 3), ((7, 9, 6), 3, 1), ((7, 9, 6), 1, 3)]
)
def test_effects_and_standard_errors_equal_the_literal_loop(spatial, classes, n, perturbations_per_eval):
    model, images, labels, donors = case(spatial, classes, n)
    labels = labels.clamp_max(1) if classes == 1 else labels
    roi = regions.box(spatial, start=2, size=3)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    face = AverageTreatmentEffect(target)
    arguments = {"baselines": PatchBank(donors), "block_size": 4, "n_draws": 6, "seed": 3} | PLAIN
    output = {"target": 1} if classes > 1 else {}

    _, stats = face.attribute(
        images,
        **arguments,
        **output,
        n_screening_draws=2,
        perturbations_per_eval=perturbations_per_eval,
        return_statistics=True,
    )

    def score(example: int, inputs: tuple[Tensor, ...]) -> np.ndarray:
        if classes > 1:
            return oracle.dice_scores(model, inputs, labels[example], [roi])
        with torch.no_grad():
            hard = model(*inputs)[0, 0].sigmoid() > 0.5
        return np.array([oracle.hard_dice(hard, labels[example] == 1, roi, 1.0)])

    planned = face.plan(images, **arguments)
    mask = regions.grid(spatial, 4)[None, None]
    populations = {
        (example, unit): 5 * np.prod([side + 3 - s + 1 for side, s in zip(spatial, extent(mask[0, 0], unit))])
        for example in range(n)
        for unit in mask.unique().tolist()
    }
    expected = run_oracle(score, [images], [mask], [donors], planned, populations, 2, 0.0002, classes)
    assert_equal(stats, expected, classes)
    assert {step.unit for step in planned} == set(mask.unique().tolist()) - set(mask[0, 0][roi].tolist())


def extent(mask: Tensor, unit: int) -> list[int]:
    places = (mask == unit).nonzero()
    return (places.max(0).values - places.min(0).values + 1).tolist()


def test_two_inputs_with_units_across_both_equal_the_literal_loop():
    spatial = (10, 9)
    model, images, labels, donors = case(spatial, 3, 2, channels=2)
    second = images.flip(0) / 2
    roi = regions.box(spatial, start=3, size=3)
    # Unit 0 lies in both inputs, unit 1 in one channel of the first, unit 2 is irregular; 9 is left alone by the RoI.
    first_mask = torch.full((1, 2, *spatial), 9)
    first_mask[:, :, :2], first_mask[:, 1, 7:], first_mask[:, :, 2:7, 7] = 0, 1, 2
    first_mask[:, :, 2, 6] = 2
    second_mask = torch.full((1, 1, *spatial), 9)
    second_mask[..., :2, 4:] = 0
    target = SegmentationTarget(model, roi=roi, reference=labels)
    bank = [donors, donors.flip(0)[:3]]
    face = AverageTreatmentEffect(target)
    arguments = {
        "baselines": tuple(PatchBank(images) for images in bank),
        "feature_mask": (first_mask, second_mask),
        "n_draws": 7,
        **PLAIN,
    }
    _, stats = face.attribute(
        (images, second), **arguments, target=2, n_screening_draws=0, return_statistics=True, perturbations_per_eval=5
    )

    def score(example: int, inputs: tuple[Tensor, ...]) -> np.ndarray:
        return oracle.dice_scores(model, inputs, labels[example], [roi])

    planned = face.plan((images, second), **arguments)
    places = {0: 5 * (13 - 2 + 1) * (12 - 9 + 1) * 3 * (13 - 2 + 1) * (12 - 5 + 1), 1: 5 * 11 * 4, 2: 5 * 9 * 11}
    populations = {(n, unit): size for n in range(2) for unit, size in places.items()}
    expected = run_oracle(score, [images, second], [first_mask, second_mask], bank, planned, populations, 0, 0.0, 3)
    assert_equal(stats, expected, 3)


@pytest.mark.parametrize("screening", [0, 2])
def test_every_roi_at_once_equals_one_run_per_roi_at_the_forwards_of_one(screening):
    spatial = (16, 15)
    model, images, labels, donors = case(spatial, 3, 2)
    rois = torch.stack([regions.box(spatial, start=s, size=4) for s in ((1, 1), (9, 8), (4, 10), (6, 6), (10, 1))])
    arguments = {"baselines": PatchBank(donors), "block_size": 4, "n_draws": 6, "n_screening_draws": screening} | PLAIN
    everything = []
    runs = []
    for count in (1, 5):
        target = SegmentationTarget(model, roi=rois[:count], reference=labels)
        runs.append(AverageTreatmentEffect(target).attribute(images, **arguments, target=(1, 0), return_statistics=True)[1])
    stacked = runs[1]
    assert stacked.effect.shape == (2, 16, 3, 5)
    for r, roi in enumerate(rois):
        target = SegmentationTarget(model, roi=roi, reference=labels)
        _attr, alone = AverageTreatmentEffect(target).attribute(images, **arguments, target=1, return_statistics=True)
        for name in ("effect", "n_draws", "status", "sample_variance", "standard_error"):
            torch.testing.assert_close(getattr(stacked, name)[..., r], getattr(alone, name), equal_nan=True, atol=1e-12, rtol=0)
        everything.append(alone.settings["forwards"]["interventions"])
    spent = stacked.settings["forwards"]["interventions"]
    if screening == 0:
        # Blocks that touch one RoI are still wanted for the others: never more than every block once.
        assert spent == 2 * 16 * 6
        assert spent < sum(everything) / 3
    assert spent <= 2 * 16 * 6


def assert_effects_equal(stats, expected, least_moving=0.1):
    """``expected`` ``(K,)`` by example and unit id; of every output, before predicted effects adjust it."""
    effect = (stats.effect + stats.adjustment).reshape(*stats.effect.shape[:2], -1)
    ids = stats.unit_ids.tolist()
    assert len(expected) > 0
    for (example, unit), value in expected.items():
        np.testing.assert_allclose(effect[example, ids.index(unit)], value, atol=1e-6, rtol=0)
    moving = [np.abs(value).max() > 1e-3 for value in expected.values()]
    assert np.mean(moving) > least_moving, "the case is too dull to prove anything"


def assert_weights_sum_to_one(planned):
    total: dict[tuple[int, int], float] = {}
    for step in planned:
        total[step.example, step.unit] = total.get((step.example, step.unit), 0.0) + step.weight
    assert list(total.values()) == pytest.approx([1.0] * len(total), abs=1e-12)


STRATIFIED = {"sampling": "stratified", "support": None}


@pytest.mark.parametrize("screening", [0, 2])
@pytest.mark.parametrize(
    ("spatial", "classes", "n", "metric"),
    [((13, 11), 1, 1, "dice"), ((13, 11), 3, 3, "soft_dice"), ((7, 9, 6), 3, 1, "dice"), ((7, 9, 6), 1, 2, "dice")],
)
def test_stratified_effects_equal_the_weighted_literal_loop(spatial, classes, n, metric, screening):
    model, images, labels, donors = case(spatial, classes, n)
    labels = labels.clamp_max(1) if classes == 1 else labels
    roi = regions.box(spatial, start=2, size=3)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric=metric)
    face = AverageTreatmentEffect(target)
    output = {"target": 1} if classes > 1 else {}
    arguments = {"baselines": PatchBank(donors), "block_size": 4, "n_draws": 6, "seed": 3} | STRATIFIED | output
    arguments["n_screening_draws"] = screening
    attr, stats = face.attribute(images, **arguments, screening_threshold=0.0, return_statistics=True)

    def score(example: int, inputs: tuple[Tensor, ...]) -> np.ndarray:
        single = SegmentationTarget(model, roi=roi, reference=labels[example], metric=metric)
        if metric != "dice":
            with torch.no_grad():
                return single(*inputs)[0].double().numpy()
        if classes > 1:
            return oracle.dice_scores(model, inputs, labels[example], [roi])
        with torch.no_grad():
            hard = model(*inputs)[0, 0].sigmoid() > 0.5
        return np.array([oracle.hard_dice(hard, labels[example] == 1, roi, 1.0)])

    planned = face.plan(images, **arguments)
    assert_weights_sum_to_one(planned)
    assert len({step.weight for step in planned}) > 1, "strata of 715 donors are not all of one size"
    mask = regions.grid(spatial, 4)[None, None]
    moved = oracle.differences(score, [images], [mask], [donors], planned)
    assert {len(values) for values in moved.values()} == {6}
    expected = oracle.weighted_effects(moved, planned)
    assert {unit for _, unit in expected} == set(mask.unique().tolist()) - set(mask[0, 0][roi].tolist())
    assert_effects_equal(stats, expected)
    assert stats.settings["sampling"] == "stratified"
    effect = stats.of_output(output.get("target")).effect
    for example, unit in expected:
        inside = (mask[0] == unit).expand(attr[example].shape)
        np.testing.assert_allclose(attr[example][inside], effect[example, stats.unit_ids.tolist().index(unit)], atol=1e-6)


@pytest.mark.parametrize("screening", [0, 3])
def test_stratified_effects_of_units_across_two_inputs_equal_the_weighted_literal_loop(screening):
    spatial = (10, 9)
    model, images, labels, donors = case(spatial, 3, 2, channels=2)
    second = images.flip(0) / 2
    roi = regions.box(spatial, start=3, size=3)
    first_mask = torch.full((1, 2, *spatial), 9)
    first_mask[:, :, :2], first_mask[:, 1, 7:], first_mask[:, :, 2:7, 7] = 0, 1, 2
    first_mask[:, :, 2, 6] = 2
    second_mask = torch.full((1, 1, *spatial), 9)
    second_mask[..., :2, 4:] = 0
    second_mask[..., 7:, 1] = 2
    face = AverageTreatmentEffect(SegmentationTarget(model, roi=roi, reference=labels))
    bank = [donors, donors.flip(0)[:3]]
    arguments = {
        "baselines": tuple(PatchBank(images) for images in bank),
        "feature_mask": (first_mask, second_mask),
        "n_draws": 7,
        "n_screening_draws": screening,
        "target": 2,
    } | STRATIFIED
    _, stats = face.attribute((images, second), **arguments, screening_threshold=0.0, return_statistics=True)

    def score(example: int, inputs: tuple[Tensor, ...]) -> np.ndarray:
        return oracle.dice_scores(model, inputs, labels[example], [roi])

    planned = face.plan((images, second), **arguments)
    assert_weights_sum_to_one(planned)
    moved = oracle.differences(score, [images, second], [first_mask, second_mask], bank, planned)
    assert set(moved) == {(n, unit) for n in range(2) for unit in (0, 1, 2)}
    assert_effects_equal(stats, oracle.weighted_effects(moved, planned))


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
@pytest.mark.parametrize(
    ("spatial", "n", "metric"), [((32, 28), 1, "dice"), ((32, 28), 2, "soft_dice"), ((20, 12, 20), 1, "dice")]
)
def test_leaving_out_what_cannot_reach_the_rois_changes_no_effect(spatial, n, metric, sampling):
    model, images, labels, donors = case(spatial, 3, n)
    rois = torch.stack([regions.box(spatial, start=s, size=3) for s in (1, 4)])
    rois = torch.stack([rois, rois.flip(1)])[:n] if n > 1 else rois
    face = AverageTreatmentEffect(SegmentationTarget(model, roi=rois, reference=labels, metric=metric))
    arguments = {"baselines": PatchBank(donors), "block_size": 4, "n_draws": 5, "n_screening_draws": 0, "target": (1, 0)}
    arguments["sampling"] = sampling
    _, whole = face.attribute(images, **arguments, support=None, return_statistics=True)
    _, local = face.attribute(images, **arguments, support="auto", return_statistics=True)
    outside = local.status == Status.OUTSIDE_SUPPORT
    assert 0.1 < outside.double().mean() < 0.95
    assert local.settings["window"] is not None
    assert not (whole.status == Status.OUTSIDE_SUPPORT).any()
    assert torch.equal((whole.status == Status.EXCLUDED), (local.status == Status.EXCLUDED))
    # Sums of probabilities are rounded in another order when other blocks change, and hard labels are not.
    assert whole.effect[outside].abs().max() <= (1e-6 if metric == "soft_dice" else 0)
    assert (whole.sample_variance[outside] == 0).all()
    assert (local.effect[outside] == 0).all()
    assert (local.standard_error[outside] == 0).all()
    assert (local.n_draws[outside] == 0).all()
    for name in ("effect", "sample_variance", "standard_error"):
        torch.testing.assert_close(
            getattr(local, name)[~outside], getattr(whole, name)[~outside], atol=1e-6, rtol=0, equal_nan=True
        )
    assert torch.equal(local.n_draws[~outside], whole.n_draws[~outside])
    assert (whole.effect[~outside].nan_to_num(0).abs() > 1e-3).double().mean() > 0.1
    # The plan leaves out what the run leaves out, and nothing else.
    planned = {(step.example, step.unit) for step in face.plan(images, **arguments, support="auto")}
    ids = local.unit_ids.tolist()
    estimated = (local.status == Status.ESTIMATED).flatten(2).any(2)
    assert planned == {(example, ids[unit]) for example, unit in estimated.nonzero().tolist()}
    spent = sum(local.settings["forwards"].values())
    assert local.n_forwards == spent
    assert local.settings["forwards"]["interventions"] == 5 * len(planned)


def test_the_memory_format_changes_nothing_but_last_digits_and_is_noted():
    spatial = (24, 20)
    model, images, labels, donors = case(spatial, 3, 2)
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride(1) == 1))
    face = AverageTreatmentEffect(
        SegmentationTarget(model, roi=regions.box(spatial, start=8, size=6), reference=labels, metric="soft_dice")
    )
    arguments = {"baselines": PatchBank(donors), "block_size": 4, "n_draws": 5, "target": 1, "return_statistics": True}
    plain = face.attribute(images, **arguments)[1]
    assert not any(seen)
    assert plain.settings["memory_format"] == "contiguous"
    seen.clear()
    found = face.attribute(images, **arguments, memory_format=torch.channels_last)[1]
    assert any(seen)
    assert found.settings["memory_format"] == "channels_last"
    torch.testing.assert_close(found.effect, plain.effect, atol=1e-5, rtol=0, equal_nan=True)


def test_a_drained_bank_is_exact():
    spatial = (12, 12)
    model, images, labels, donors = case(spatial, 3, 1)
    roi = regions.box(spatial, start=5, size=3)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    bank = donors[:, :, :12, :12]
    _attr, stats = AverageTreatmentEffect(target).attribute(
        images, baselines=bank, block_size=4, n_draws=50, n_screening_draws=0, target=0, return_statistics=True, **PLAIN
    )
    mask = regions.grid(spatial, 4)[None, None]
    for u, unit in enumerate(stats.unit_ids.tolist()):
        if stats.status[0, u, 0] == Status.EXCLUDED:
            continue
        place = (mask[0, 0] == unit).nonzero().min(0).values.tolist()
        truth = np.mean(
            [
                oracle.dice_scores(model, (images,), labels[0], [roi])
                - oracle.dice_scores(model, (oracle.paste(images[0], mask[0], unit, d, place)[None],), labels[0], [roi])
                for d in bank
            ],
            axis=0,
        )
        torch.testing.assert_close(stats.effect[0, u].numpy(), truth, atol=1e-6, rtol=0)
    known = stats.status != Status.EXCLUDED
    assert (stats.n_draws[known] == 5).all()
    assert (stats.standard_error[known] == 0).all()
    low, high = stats.confidence_interval()
    assert torch.equal(low[known], high[known])


@pytest.mark.parametrize(("spatial", "n"), [((20, 16), 1), ((20, 16), 2), ((8, 12, 9), 1)])
def test_pdcr_equals_the_literal_protocol(spatial, n):
    model, images, labels, _donors = case(spatial, 1, n)
    labels = labels.bool()
    if n > 1:
        labels[0] = labels[0] & ~regions.box(spatial, start=4, size=4)  # an empty reference in the RoI of the first
    roi = regions.box(spatial, start=4, size=4)
    target = SegmentationTarget(model, roi=roi, reference=labels, activation="sigmoid", threshold=0.3, empty_score=1.0)
    patches = torch.rand((20, 1, *(4,) * len(spatial)), generator=torch.Generator().manual_seed(9)) * 2
    face = PdCR(target)
    attr, stats = face.attribute(
        images, baselines=PatchBank(patches), block_size=4, n_draws=6, n_screening_draws=3, seed=5, return_statistics=True
    )

    def score(example: int, inputs: tuple[Tensor, ...]) -> np.ndarray:
        with torch.no_grad():
            hard = model(*inputs)[0, 0] > 0.5  # as it is, no activation
        return np.array([oracle.hard_dice(hard, labels[example], roi, 0.0)])

    planned = interventions(
        Options(
            forward_func=face.forward_func,
            inputs=images,
            baselines=PatchBank(patches),
            units=InputUnits(block_size=4, whole_blocks_only=True),
            effort=Effort(n_draws=6, n_screening_draws=3, screening_threshold=0.0002, seed=5, paper=True),
        )
    )
    assert {step.weight for step in planned} == {0.0, 1 / 6}
    mask = regions.grid(spatial, 4)[None, None]
    moved = oracle.differences(score, [images], [mask], [patches], planned)
    assert all(len(values) == 9 for values in moved.values())
    whole = [u for u in mask.unique().tolist() if extent(mask[0, 0], u) == [4] * len(spatial)]
    touching = set(mask[0, 0][roi].tolist())
    assert {unit for _, unit in moved} == set(whole) - touching
    heatmap = np.zeros((n, *spatial))
    for (example, unit), values in moved.items():
        effect = oracle.paper_effect([float(v[0]) for v in values], 3, 0.0002)
        heatmap[example][mask[0, 0].numpy() == unit] = -100 * effect
    assert (np.abs(heatmap) > 0.02).any()
    for example in range(n):
        np.testing.assert_allclose(PdCR.to_paper_heatmap(attr[example : example + 1]), heatmap[example], atol=1e-4)
    if n == 1:
        np.testing.assert_allclose(PdCR.to_paper_heatmap(stats), heatmap[0], atol=1e-4)
    # With replacement: some unit meets the same patch twice among nine draws of twenty.
    assert any(len({step.donors for step in planned if step.unit == unit}) < 9 for unit in whole if unit not in touching)


def test_the_second_threshold_sets_small_fine_effects_to_zero():
    """One screening draw is large, the fine mean is small: the paper reports 0, the corrected form does not."""

    def score(x: Tensor) -> Tensor:
        return x[:, 0, 0, 0] * 1e-4 + (x[:, 0, 0, 0] > 0.99) * 0.01

    values = torch.linspace(0, 0.98, 50)
    patches = torch.cat([values, torch.ones(3)]).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    image = torch.full((1, 1, 4, 4), 0.5)
    arguments = {"baselines": PatchBank(patches), "block_size": 2, "return_statistics": True}
    small = set()
    for seed in range(40):
        _, paper = PdCR(score).attribute(image, **arguments, n_draws=50, seed=seed, screening_threshold=0.003)
        _, ours = AverageTreatmentEffect(score).attribute(image, **arguments, n_draws=50, seed=seed, n_screening_draws=0)
        effect = float(paper.effect[0, 0])
        assert effect == 0 or abs(effect) >= 0.003
        assert float(ours.effect[0, 0]) != 0
        small.add(effect)
    assert 0 in small
