"""The paper's own picture, mask and patches, where they lie beside the project (they are not part of it)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from captum_causalseg import PatchBank, PdCR, SegmentationTarget, Status, regions
from captum_causalseg.demo.cases import _read_patches, _read_picture

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "ISIC_0033556.jpg").exists(), reason="needs the paper's demo picture, which is not part of the project"
)


class Darker(torch.nn.Module):
    """1 where the picture is darker than its surroundings: a lesion, roughly. A block reaches no further than this far."""

    reach = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gray, side = x.mean(1, keepdim=True), 2 * self.reach + 1
        around = torch.nn.functional.avg_pool2d(gray, (side, 1), 1, (self.reach, 0))
        around = torch.nn.functional.avg_pool2d(around, (1, side), 1, (0, self.reach))
        return 0.5 + 40 * (around - gray)


def test_the_protocol_on_the_papers_picture_has_the_papers_numbers():
    """256 x 256, RoI 32 x 32 at (72, 88), blocks of 8: 1008 blocks, 3 + 50 patches each at most, effects near the RoI only."""
    resize = {"size": (256, 256), "mode": "nearest"}
    image = torch.nn.functional.interpolate(_read_picture(DATA / "ISIC_0033556.jpg", "RGB")[None], **resize)
    mask = torch.nn.functional.interpolate(_read_picture(DATA / "ISIC_0033556_segmentation.png", "L")[None], **resize)[0, 0] > 0
    bank = PatchBank(_read_patches(DATA / "isic_patches_8x8.npz"))
    assert len(bank) == 1000
    model, reach = Darker(), Darker.reach
    roi = regions.box((256, 256), start=(72, 88), size=32)
    target = SegmentationTarget(model, roi=roi, reference=mask)
    attr, stats = PdCR(target).attribute(image, baselines=bank, perturbations_per_eval=8, return_statistics=True)

    assert int((stats.status == Status.EXCLUDED).sum()) == 16
    assert int((stats.status != Status.EXCLUDED).sum()) == 1008
    assert 1 + 1008 * 3 < stats.n_forwards <= 1 + 1008 * 53
    draws = stats.n_draws[stats.status == Status.ESTIMATED]
    assert (draws == 50).all()
    # Eleven: the observed image, answered again alone and among others, four at a time.
    assert stats.n_forwards == 1 + 1008 * 3 + 50 * len(draws) + 11
    heatmap = PdCR.to_paper_heatmap(attr)
    assert heatmap.shape == (256, 256)
    far = np.ones((256, 256), bool)
    far[72 - reach - 7 : 104 + reach + 7, 88 - reach - 7 : 120 + reach + 7] = False
    assert (heatmap[far] == 0).all()
    assert (np.abs(heatmap[heatmap != 0]) >= 0.02).all()
    assert (heatmap != 0).sum() / 64 >= 10
