"""What the study does by itself: which regions it takes, which units lie on a ruler, how many tests it corrects for, which layers it looks at."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import study_cases
import study_rulers
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
    cases = study_cases.cases_of("net", _Shown(), of(seen, there), 9)
    found = {case["place"]: case for case in cases}
    assert [case["place"] for case in cases] == ["boundary", "false positive", "missed"]  # the other picture shows nothing
    for place, case in found.items():
        assert case["roi"].sum() == 64
        assert roi_kind(seen[0], there[0], case["roi"]) == place
    # Against the truth, Dice of a false positive could not move.
    assert torch.equal(found["false positive"]["reference"], seen[0])
    assert torch.equal(found["boundary"]["reference"], there[0])


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
