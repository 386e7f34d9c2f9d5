"""What the study does by itself: which regions it takes and in which order, which units lie on a ruler, how many tests it corrects for, what varies."""

import itertools
import math
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import Attribution
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import study
import study_cases
import study_profiles
import study_robustness
import study_rulers
import study_tables
from study_data import Data
from study_kinds import KINDS, last_layer, lowest_layer

from captum_causalseg.demo import Augmentation
from captum_causalseg.evaluation import roi_kind


class _Shown(nn.Module):
    """Sees what the first channel shows."""

    def forward(self, images):
        return images[:, :1] - 0.5


def of(seen, there):
    images = torch.stack([seen, seen, seen], 1).float()
    names = tuple(f"picture {number}" for number in range(len(images)))
    return Data("skin", images, there.long(), images, there.long(), names, names, 1, None, Augmentation())


def test_regions_are_of_the_kinds_they_are_called():
    there, seen = torch.zeros(2, 64, 64, dtype=torch.bool), torch.zeros(2, 64, 64, dtype=torch.bool)
    there[0, 12:36, 8:32] = True  # its upper border runs through the middle of blocks
    seen[0, 12:36, 8:24] = True  # the blocks of columns 24 to 32 are missed
    seen[0, 48:53, 48:53] = True
    cases = study_cases.cases_of("SegNet", _Shown(), of(seen, there), 9)
    found = {case["place"]: case for case in cases}
    assert [case["place"] for case in cases] == ["boundary", "false positive", "missed"]  # the other picture shows nothing
    for place, case in found.items():
        assert case["roi"].sum() == 64
        assert roi_kind(seen[0], there[0], case["roi"]) == place
    # Against the truth, Dice of a false positive could not move.
    assert torch.equal(found["false positive"]["reference"], seen[0])
    assert torch.equal(found["boundary"]["reference"], there[0])


def test_regions_come_from_as_many_groups_as_there_are_and_networks_begin_at_others():
    there = torch.zeros(24, 64, 64, dtype=torch.bool)
    there[:, 12:36, 8:32] = True
    there[:, 48:56, 48:56] = True
    seen = there.clone()
    seen[:, 48:56] = False
    data = replace(of(seen, there), clusters=tuple(f"group {number // 2}" for number in range(24)))
    cases = study_cases.cases_of("SegNet", _Shown(), data, 24)
    assert len({case["cluster"] for case in cases[:12]}) == 12
    assert {case["cluster"] for case in cases[12:]} == {case["cluster"] for case in cases[:12]}
    assert [case["place"] for case in cases[:4]] == ["boundary", "missed"] * 2
    fewer = study_cases.cases_of("SegNet", _Shown(), data, 5)
    assert [case["id"] for case in fewer] == [case["id"] for case in cases[:5]]
    other = study_cases.cases_of("DynUNet", _Shown(), data, 5)
    assert not {case["picture"] for case in fewer[:3]} & {case["picture"] for case in other[:3]}


def test_what_is_left_is_explained_with_the_fewest_regions_first(monkeypatch, tmp_path):
    data, done = of(*torch.zeros(2, 1, 64, 64)), []
    monkeypatch.setattr(study, "networks", lambda options: [(data, kind, None) for kind in ("SegNet", "DynUNet")])
    monkeypatch.setattr(study, "_explained", lambda out, data, kind, network, asked: done.append((kind, *asked)))
    options = Namespace(work=tmp_path, regions=4, defaults=2, wait=False, kinds=["SegNet", "DynUNet"], sets=["skin"])
    study.explain(options, math.inf)
    equal = [("SegNet", "equal", 3), ("DynUNet", "equal", 3), ("SegNet", "equal", 4), ("DynUNet", "equal", 4)]
    assert done == [*equal, ("SegNet", "defaults", 2), ("DynUNet", "defaults", 2)]


def test_the_claim_is_tested_over_its_own_rows_alone():
    generator = np.random.default_rng(0)
    rows = []
    for data, case, metric in itertools.product(
        ("skin", "brain"), range(12), ("attribution score", "road", "mu fidelity, soft")
    ):
        for method, value in (("effects", 0.5), ("PdCR", 0.4), ("MiSuRe", 0.4), ("Seg-Grad-CAM", 0.2), ("RISE", 0.1)):
            rows.append({"data": data, "case": f"{data} {case}", "cluster": f"{data} {case // 2}", "metric": metric})
            rows[-1] |= {"budget": "equal", "score_direction": "higher", "method": method}
            rows[-1]["value"] = value + 0.05 * generator.normal()
    found = study_tables.claims(pd.DataFrame(rows))
    assert len(found) == 2 * 2 * 2 * 2
    assert set(found["n_pairs"]) == {6}
    against = found[found["against"] == "Seg-Grad-CAM"]
    assert (against["p_claim"] >= against["p_value"]).all()
    assert found["p_claim"].min() == pytest.approx(16 * found["p_value"].min())
    assert against.groupby("method")["difference"].mean().tolist() == pytest.approx([0.2, 0.3], abs=0.05)


def test_profiles_are_by_rings_and_of_all_units():
    there = torch.zeros(1, 64, 64, dtype=torch.bool)
    there[0, 12:36, 8:32] = True
    near = nn.Sequential(nn.AvgPool2d(5, 1, 2, count_include_pad=False), _Shown())  # reaches two pixels beyond a region
    data = replace(of(there, there), train_images=torch.rand(8, 3, 64, 64))
    first, second = study_profiles.profiles_of(near, data, 0)
    assert first != second  # other draws
    assert first["ring 1"] == first["mean ring"] == 1
    assert first["reached"] == pytest.approx(8 / 63)
    assert first["null"] >= 55 / 63
    assert study_profiles.profiles_of(near, of(~there & there, ~there & there), 0) is None


def test_variance_is_split_as_it_was_made():
    generator = np.random.default_rng(0)
    sizes = (400, 40, 2)
    picture, network = 2 * generator.normal(size=(400, 1, 1)), 3 * generator.normal(size=(1, 40, 1))
    values = picture + network + generator.normal(size=(400, 40, 1)) + 0.5 * generator.normal(size=sizes)
    assert study_profiles.variances(values) == pytest.approx([network.var(ddof=1), picture.var(ddof=1), 1, 0.25], rel=0.05)
    assert study_profiles.variances(network + np.zeros(sizes))[1:] == pytest.approx([0, 0, 0], abs=1e-12)


class _Noise(Attribution):
    """A map of random numbers alone."""

    def attribute(self, inputs, seed=0):
        return (
            torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
            .repeat_interleave(8, 2)
            .repeat_interleave(8, 3)
        )


class _Itself(Attribution):
    """The picture, in which nothing is random."""

    def attribute(self, inputs):
        return inputs.clone()


def test_robustness_is_of_what_moves():
    there = torch.zeros(2, 64, 64, dtype=torch.bool)
    there[:, 12:36, 8:32] = True
    data = of(there, there)
    case = study_cases.border_case(data, 0)
    noise, itself = (study_robustness.found_of(method, case, data, _Shown()) for method in (_Noise, _Itself))
    assert noise["sensitivity"] == 0  # the same numbers whatever the picture
    assert abs(noise["agreement"]) < 0.3
    assert 0 < itself["sensitivity"] < study_robustness.RADIUS * 5
    assert itself["agreement"] is None


def test_a_ruler_is_where_its_line_is():
    flat = study_rulers.ruler_mask(pd.Series({"x0": 10, "y0": 100, "x1": 50, "y1": 100, "width": 6}))
    assert flat.sum() == 40 * 6
    assert flat[97:103, 10:50].all()
    slanted = study_rulers.ruler_mask(pd.Series({"x0": 0, "y0": 0, "x1": 100, "y1": 100, "width": 10}))
    assert slanted.sum() == pytest.approx(100 * 2**0.5 * 10, rel=0.06)  # corners beyond the picture
    assert np.array_equal(slanted, slanted.T)


def test_partners_lie_as_the_units_of_the_ruler_do():
    roi = torch.zeros(64, 64, dtype=torch.bool)
    roi[24:40, 24:40] = True
    ruler = np.zeros((256, 256), dtype=bool)
    ruler[230:246, 32:192] = True  # the lowest row of blocks, whose mirror image is the highest
    units = study_rulers.units_of(ruler, roi)
    assert units.ruler.tolist() == [[7, column] for column in range(1, 6)]
    assert not {tuple(one) for one in units.ruler.tolist()} & {tuple(one) for one in units.skin.tolist()}
    assert all(0 in place or 7 in place for place in units.skin.tolist())  # at the edge of the picture as well
    assert int(units.mask("ruler", (64, 64)).sum()) == 5 * 64
    roi[56:, 16:24] = True
    assert [7, 2] not in study_rulers.units_of(ruler, roi).ruler.tolist()


@pytest.mark.parametrize("kind", ["SegNet", "HRNet-like", "UNeXt-like", "UNet, batch norm"])
def test_networks_have_logits_for_every_pixel_and_layers_for_the_grad_cams(kind):
    network, image = KINDS[kind].build(1, 3, (64, 48)), torch.zeros(1, 1, 64, 48)
    again = KINDS[kind].build(1, 3, (64, 48))
    assert network(image).shape == (1, 3, 64, 48)
    assert all(torch.equal(one, other) for one, other in zip(network.state_dict().values(), again.state_dict().values()))
    shapes = []
    for layer in (lowest_layer(network, image), last_layer(network, image, 3)):
        hook = layer.register_forward_hook(lambda module, _, made: shapes.append(made.shape))
        network(image)
        hook.remove()
    assert shapes[0][2] < shapes[1][2]
    assert shapes[1][1] != 3
