"""The demo's synthetic lesions, and the network that was trained on them."""

import json
import runpy
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from scipy import ndimage

from captum_causalseg.demo import Lesions, draw_lesions, load_demo_network, load_lesion_slices, mean_dice
from captum_causalseg.demo.brain import coarse_brain_slices

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_lesion_model.py"
RECORD = json.loads(resources.files("captum_causalseg.demo").joinpath("lesion_unet.json").read_text(encoding="utf-8"))


def middle_of(*spatial: int, n: int = 1) -> torch.Tensor:
    places = torch.zeros(n, *spatial, dtype=torch.bool)
    places[(slice(None), *(length // 2 for length in spatial))] = True
    return places


@pytest.fixture(scope="module")
def held_out() -> Lesions:
    pytest.importorskip("nilearn")
    return load_lesion_slices()[1]


@pytest.mark.parametrize("spatial", [(40,), (40, 48), (32, 36, 40)])
def test_a_lesion_lies_where_it_may_in_any_number_of_dimensions(spatial):
    images = torch.full((3, 1, *spatial), 0.8)
    lesions = draw_lesions(images, middle_of(*spatial, n=3))
    assert lesions.images.shape == images.shape
    middle = torch.tensor([length // 2 for length in spatial])
    far = torch.stack(torch.meshgrid(*map(torch.arange, spatial), indexing="ij"), -1).sub(middle).float().norm(dim=-1) > 18
    for image, before, mask in zip(lesions.images[:, 0], images[:, 0], lesions.masks):
        assert mask[tuple(middle)]
        assert ndimage.label(mask.numpy(), ndimage.generate_binary_structure(mask.ndim, mask.ndim))[1] == 1
        assert far.any()
        assert torch.equal(image[far], before[far])


def test_cores_are_dark_and_rims_are_bright():
    lesions = draw_lesions(torch.full((40, 1, 40, 40), 0.8), middle_of(40, 40, n=40))
    assert 10 < int(lesions.has_rim.sum()) < 30
    without = lesions.select(~lesions.has_rim)
    # What was there before was 0.8 everywhere.
    torch.testing.assert_close(without.images[:, 0, 19:22, 19:22].mean((1, 2)), 0.8 - without.contrast, atol=0.1, rtol=0)
    brightest = lesions.images.flatten(1).amax(1)
    assert brightest[lesions.has_rim].min() > 0.85
    assert brightest[~lesions.has_rim].max() < 0.85


def test_there_is_no_lesion_outside_the_head():
    images = torch.full((8, 1, 40, 40), 0.8)
    images[..., 20:] = 0
    lesions = draw_lesions(images, middle_of(40, 38, n=8).new_zeros(8, 40, 40).index_fill(2, torch.tensor([19]), True))
    assert not lesions.masks[..., 20:].any()
    assert torch.equal(lesions.images[..., 20:], images[..., 20:])


def test_a_lesion_depends_on_its_seed_and_number_alone():
    images, places = torch.full((3, 1, 32, 32), 0.8), middle_of(32, 32, n=3)
    three, two = draw_lesions(images, places, seed=4), draw_lesions(images[:2], places[:2], seed=4)
    assert torch.equal(three.images[:2], two.images)
    assert not torch.equal(three.images[0], three.images[1])
    assert not torch.equal(draw_lesions(images, places, seed=5).images, three.images)


def test_images_and_places_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"images, places: expected shapes .* got \(1, 1, 8, 8\) and \(1, 8, 9\)"):
        draw_lesions(torch.zeros(1, 1, 8, 8), torch.ones(1, 8, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"places: expected at least one place .* none in image 1"):
        draw_lesions(torch.zeros(2, 1, 8, 8), torch.tensor([True, False])[:, None, None].expand(2, 8, 8))
    with pytest.raises(ValueError, match=r"indices: expected booleans \(1,\)"):
        draw_lesions(torch.full((1, 1, 8, 8), 0.8), middle_of(8, 8)).select(torch.tensor([1]))


def test_slices_of_one_copy_are_those_of_many(held_out):
    again = load_lesion_slices(copies=2)[1]
    assert len(again) == 2 * len(held_out)
    assert torch.equal(again.images[: len(held_out)], held_out.images)
    assert not torch.equal(again.masks[len(held_out) :], held_out.masks)


def test_the_shipped_network_reaches_what_its_record_says():
    pytest.importorskip("nilearn")
    network = load_demo_network("lesion")
    test = load_lesion_slices(copies=10, seed=100)[1]
    assert len(test) == RECORD["test_lesions"]
    with torch.no_grad():
        assert mean_dice(network, test.images, test.masks.long()).item() == pytest.approx(RECORD["test_dice"]["all"], abs=0.005)
        missed = ~((network(test.images)[:, 0] > 0) & test.masks).flatten(1).any(1)
        made_up = (network(coarse_brain_slices()[1].images) > 0).flatten(1).any(1)
    assert abs(int(missed.sum()) - RECORD["test_lesions_missed"]) <= 1
    assert abs(int(made_up.sum()) - RECORD["held_out_slices_without_lesion_where_one_is_found"]) <= 1
    assert RECORD["test_dice"]["all"] > 0.75


def test_no_such_network():
    with pytest.raises(ValueError, match='task: expected "tissue" or "lesion", got \'tumor\''):
        load_demo_network("tumor")


def test_the_training_script_writes_weights_and_a_record(tmp_path, monkeypatch):
    pytest.importorskip("nilearn")
    out = tmp_path / "new" / "weights.pt"
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), "--out", str(out), "--steps", "2", "--copies", "1"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    load_demo_network("lesion").load_state_dict(torch.load(out, weights_only=True))
    record = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert record.keys() == RECORD.keys()
    assert record["steps"] == 2
