"""The shortcut's shipped network: interventions find the marker that it goes by."""

import itertools
import json
import runpy
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from scipy import ndimage

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect
from captum_causalseg.evaluation.planted import (
    ShortcutCase,
    draw_shortcut_examples,
    load_shortcut_case,
    load_shortcut_network,
    load_shortcut_slices,
    marker_findings,
    shortcut_record,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "train_shortcut_model.py"


@pytest.fixture(scope="module")
def shortcut() -> ShortcutCase:
    pytest.importorskip("nilearn")
    return load_shortcut_case(0, 24)


def one_of(case, index):
    """The fixture's example ``index`` as a case of its own."""
    parts = {name: getattr(case, name)[index : index + 1] for name in ("images", "without_marker", "reference", "roi", "z_mm")}
    return ShortcutCase(**{**vars(case), **parts})


def whole_dice(case, images):
    with torch.no_grad():
        found = case.model(images)[:, 0] > 0
    return 2 * (found & case.reference).flatten(1).sum(1) / (found.flatten(1).sum(1) + case.reference.flatten(1).sum(1))


def test_the_shipped_weights_reach_what_their_record_says(shortcut):
    record = shortcut_record()
    with_marker, without = whole_dice(shortcut, shortcut.images), whole_dice(shortcut, shortcut.without_marker)
    said = record["held_out_dice_with_marker"], record["held_out_dice_without_marker"]
    assert float(with_marker.mean()) == pytest.approx(said[0]["mean"], abs=5e-3)
    assert float(with_marker.min()) == pytest.approx(said[0]["least"], abs=2e-2)
    assert float(without.mean()) == pytest.approx(said[1]["mean"], abs=5e-3)
    assert float(without.max()) == pytest.approx(said[1]["largest"], abs=2e-2)
    assert float(with_marker.min()) >= 0.8
    assert float(without.max()) <= 0.1
    assert sorted(shortcut.z_mm.tolist()) == record["held_out_z_mm"]
    assert sum(p.numel() for p in shortcut.model.parameters()) == record["parameters"]


def test_the_weights_are_small_and_plain():
    file = resources.files("captum_causalseg.evaluation.planted").joinpath("shortcut_unet.pt")
    with resources.as_file(file) as path:
        assert path.stat().st_size < 700_000
        torch.load(path, weights_only=True)
    network = load_shortcut_network()
    assert not network.training
    assert next(network.parameters()).device.type == "cpu"


def test_removing_the_marker_removes_the_segmentation(shortcut):
    target = shortcut.target()
    assert float(target(shortcut.images).min()) > 0.8
    assert float(target(shortcut.without_marker).max()) < 0.1


def test_marker_and_region_are_where_they_should_be(shortcut):
    block = shortcut.units == shortcut.marker_unit
    assert torch.equal(block, shortcut.marker)
    assert int(block.sum()) == 64
    assert not bool(shortcut.without_marker[:, 0][:, block].any())  # air
    assert bool(((shortcut.images != shortcut.without_marker)[:, 0] <= block).all())
    burned = shortcut.images[:, 0][:, block]
    assert set(burned.unique().tolist()) == {0.0, 1.0}
    assert not bool((shortcut.roi[:, 0] & block).any())
    assert bool((shortcut.reference <= shortcut.roi[:, 0]).all())
    assert shortcut.roi.shape == (24, 1, 96, 96)
    # The RoI is made of whole blocks.
    for roi in shortcut.roi[:, 0]:
        assert int(torch.isin(shortcut.units, shortcut.units[roi].unique()).sum()) == int(roi.sum())


def test_lesions_are_bright_and_nothing_else_changes(shortcut):
    train, held_out = load_shortcut_slices()
    assert not set(train.z_mm.tolist()) & set(held_out.z_mm.tolist())
    examples = draw_shortcut_examples(held_out, [0, 12, 12], seed=4)
    for index, image, lesion in zip([0, 12, 12], examples.images[:, 0], examples.lesions):
        plain = held_out.images[index, 0]
        assert 40 < int(lesion.sum()) < 300
        assert float(image[lesion].mean()) > 1 > float(plain.max()) - 1e-6
        far = torch.from_numpy(~ndimage.binary_dilation(lesion.numpy(), iterations=3))
        assert torch.equal(image[far], plain[far])
    assert not torch.equal(examples.lesions[1], examples.lesions[2])
    again = draw_shortcut_examples(held_out, [0, 12, 12], seed=4)
    assert torch.equal(again.images, examples.images)


def test_donors_are_hospital_b(shortcut):
    assert len(shortcut.donors) == 48
    bound = shortcut.donors.bind(shortcut.images)
    whole = (slice(0, 96), slice(0, 96))
    assert bound.population(0, whole) == 48
    for number in range(48):
        image = bound.read(0, whole, number)[0]
        assert not bool(image[shortcut.marker].any())
        assert float(image.max()) > 1.0  # a lesion


@pytest.mark.parametrize("index", [0, 5, 11])
def test_interventions_find_the_marker(shortcut, index):
    case = one_of(shortcut, index)
    attr, stats = AverageTreatmentEffect(case.target()).attribute(
        case.images, baselines=case.donors, n_draws=8, return_statistics=True
    )
    found = marker_findings(attr, case).iloc[0]
    assert found["found"]
    assert (found["rank"], found["signed_rank"], found["sign"]) == (1, 1, 1)
    assert found["share"] > 0.5
    # Donors that look like a letter keep the lesion; most do not.
    assert float(stats.effect[0, case.marker_unit]) > 0.5


def test_gradients_need_not_find_it(shortcut):
    attr = GradientTreatmentEffect(shortcut.target()).attribute(shortcut.images, baselines=shortcut.donors)
    assert marker_findings(attr, shortcut)["found"].mean() < 0.5


def test_an_example_of_many_is_the_example_alone(shortcut):
    alone = load_shortcut_case(7)
    assert len(alone) == 1
    for name in ("images", "without_marker", "reference", "roi", "z_mm"):
        assert torch.equal(getattr(alone, name), getattr(shortcut, name)[7:8]), name
    assert torch.equal(alone.target()(alone.images), shortcut.target()(shortcut.images)[7:8])
    assert load_shortcut_case(7, model=shortcut.model).model is shortcut.model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "index: expected at least 0, got -1"),
        ((0, 0), "n_examples: expected at least 1, got 0"),
        ((True,), "index: expected an integer"),
        ((20, 5), "there are 24 held-out slices, got index=20 and n_examples=5"),
    ],
)
def test_bad_arguments_of_the_shortcut(arguments, message):
    pytest.importorskip("nilearn")
    with pytest.raises(ValueError, match=message):
        load_shortcut_case(*arguments)


def by_hand(attributions, case, example):
    """Rank, signed rank and share of the marker with explicit loops."""
    values = {}
    for row, column in itertools.product(range(12), range(12)):
        block = slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8)
        if not case.roi[(example, 0, *block)].any():
            values[row, column] = float(attributions[(example, slice(None), *block)].double().mean())
    marker = values[1, 1]
    stronger = [place for place, value in values.items() if abs(value) >= abs(marker)]
    more = [place for place, value in values.items() if value >= marker]
    return len(stronger), len(more), abs(marker) / sum(map(abs, values.values())), len(values)


def test_findings_by_hand(shortcut):
    generator = torch.Generator().manual_seed(0)
    attributions = torch.randn(24, 3, 96, 96, generator=generator)
    attributions[::2, :, 8:16, 8:16] += 0.2
    found = marker_findings(attributions, shortcut)
    assert len(found) == 24
    for example in range(24):
        row = found.iloc[example]
        rank, signed_rank, share, n_units = by_hand(attributions, shortcut, example)
        assert (row["rank"], row["signed_rank"], row["n_units"]) == (rank, signed_rank, n_units)
        assert row["share"] == pytest.approx(share, rel=1e-9)
        assert row["found"] == (rank == 1 and attributions[example, :, 8:16, 8:16].mean() > 0)


def test_findings_of_plain_maps(shortcut):
    case = one_of(shortcut, 0)
    n_units = 144 - int(case.roi.sum()) // 64

    def row(value, elsewhere=0.0, inside=0.0):
        attributions = torch.full((1, 1, 96, 96), elsewhere)
        attributions[case.roi] = inside
        attributions[..., case.marker] = value
        return marker_findings(attributions, case).iloc[0].to_dict()

    # What is said of the RoI itself does not count.
    assert row(2.0, inside=9.0) == {"rank": 1, "signed_rank": 1, "sign": 1, "share": 1.0, "found": True, "n_units": n_units}
    harmful = row(-2.0)
    assert (harmful["rank"], harmful["signed_rank"], harmful["sign"], harmful["found"]) == (1, n_units, -1, False)
    # Among equals the last place; a map of zeros finds nothing.
    assert row(1.0, 1.0)["rank"] == n_units
    nothing = row(0.0)
    assert (nothing["rank"], nothing["sign"], nothing["share"], nothing["found"]) == (n_units, 0, 0.0, False)


def test_findings_of_bad_maps(shortcut):
    case = one_of(shortcut, 0)
    with pytest.raises(ValueError, match=r"attributions: expected \(N, C, \*spatial\) with N=1 .* got \(1, 1, 3, 3\)"):
        marker_findings(torch.zeros(1, 1, 3, 3), case)
    with pytest.raises(ValueError, match="attributions: expected"):
        marker_findings(torch.zeros(2, 1, 96, 96), case)
    with pytest.raises(ValueError, match="attributions: it holds NaN"):
        marker_findings(torch.full((1, 1, 96, 96), float("nan")), case)


def test_the_training_script_writes_weights_and_a_record(tmp_path, monkeypatch):
    pytest.importorskip("nilearn")
    out = tmp_path / "new" / "weights.pt"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--out", str(out), "--steps", "2", "--examples", "4"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    load_shortcut_network().load_state_dict(torch.load(out, weights_only=True))
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert record.keys() == shortcut_record().keys()
    assert record["steps"] == 2
