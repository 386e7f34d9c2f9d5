"""The paper's attribution score and relative areas, against loops and on scores that cannot move."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg import PatchBank, SegmentationTarget, regions
from captum_causalseg.evaluation import Faithfulness, attribution_score


@pytest.mark.parametrize(("d", "n"), [(2, 2), (3, 1)])
def test_the_attribution_score_is_that_of_a_loop(d, n):
    """Blocks outside the region of interest are replaced but for the highest k; of the second of two regions."""
    shape = (12,) * d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential((nn.Conv2d, nn.Conv3d)[d - 2](1, 2, 5, padding=2), nn.Upsample(scale_factor=1))
    images, maps = torch.rand(n, 1, *shape), torch.rand(n, 1, *shape)
    rois = torch.stack([regions.box(shape, 0, 4), regions.box(shape, 4, 4)])
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    steps = 4
    judge = Faithfulness(target, images, 0.25, (1, 1), block_size=4, n_draws=1, n_steps=steps, support=None)
    found = attribution_score(judge, maps)
    blocks = regions.grid(shape, 4)
    free = [block for block in blocks.unique().tolist() if not (blocks == block)[rois[1]].any()]
    for example in range(n):
        means = {block: float(maps[example, 0][blocks == block].mean()) for block in free}
        ranked = sorted(free, key=lambda block: -means[block])
        scores, shares = [], []
        for step in range(steps + 1):
            count = round(step / steps * len(free))
            image = images.clone()
            for block in ranked[count:]:
                image[example, 0][blocks == block] = 0.25
            scores.append(float(target(image).detach()[example, 1, 1]))
            shares.append(count / len(free))
        area = sum((shares[k + 1] - shares[k]) * (scores[k + 1] + scores[k]) / 2 for k in range(steps))
        assert found[example] == pytest.approx(area, abs=1e-6)
        half = np.interp(0.5, shares, scores)
        assert attribution_score(judge, maps, 0.5)[example] == pytest.approx(half, abs=1e-6)


class Sum(nn.Module):
    """The score is the sum of an image of ones, four blocks of four pixels."""

    def forward(self, x):
        return x.flatten(1).sum(1)


def test_relative_areas_lie_between_all_replaced_and_observed():
    effects = torch.tensor([4.0, 3.0, 2.0, 1.0]).repeat_interleave(4)[None, None]

    class Weighted(nn.Module):
        def forward(self, x):
            return 5 + (x * effects / 4).flatten(1).sum(1)

    image = torch.ones(1, 1, 16)
    judge = Faithfulness(Weighted(), image, 0.0, block_size=4, n_draws=2, n_steps=4)
    values = judge.evaluate(effects, ["attribution score", "attribution score, relative", "deletion, relative"])["value"]
    # Kept 0, 1, 2, 3, 4 of the units: 5, 9, 12, 14, 15.
    area = (5 / 2 + 9 + 12 + 14 + 15 / 2) / 4
    assert values[0] == pytest.approx(area)
    assert values[1] == pytest.approx((area - 5) / 10)
    reached = np.round(np.linspace(0, 1, 5) ** 2 * 4) / 4
    curve = 15 - 10 * np.interp(reached, [0, 0.25, 0.5, 0.75, 1], [0, 0.4, 0.7, 0.9, 1])
    assert values[2] == pytest.approx((np.trapezoid(curve, reached) - 5) / 10)


def test_a_score_that_cannot_move_is_no_number_and_its_soft_twin_is_one():
    """Everything is lesion, whatever the donors: Dice is 1 at every step, and soft Dice is not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(1, 1, 5, padding=2)
    conv.weight.data.abs_()
    conv.bias.data[:] = 0.5
    image = torch.rand(1, 1, 12, 12) + 1
    roi = regions.box((12, 12), 4, 4)
    target = SegmentationTarget.from_prediction(conv, image, roi=roi)
    judge = Faithfulness(target, image, PatchBank(torch.rand(6, 1, 12, 12) / 4), block_size=4, n_draws=3, n_steps=4)
    relative = ["attribution score, relative", "deletion, relative", "insertion, relative"]
    hard = judge.evaluate(image, relative)
    soft = judge.evaluate(image, [f"{name}, soft" for name in relative])
    assert hard["value"].isna().all()
    assert soft["value"].between(0, 1).all()
    assert soft["metric"].tolist() == [f"{name}, soft" for name in relative]
    by_hand = Faithfulness(
        target.surrogate(), image, PatchBank(torch.rand(6, 1, 12, 12) / 4), block_size=4, n_draws=3, n_steps=4
    )
    assert by_hand.soft is by_hand
    assert judge.soft.observed[0] == pytest.approx(by_hand.observed[0])


def test_soft_judging_costs_what_was_forecast():
    image, model = torch.rand(1, 1, 32, 32), nn.Conv2d(1, 1, 5, padding=2)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((32, 32), 12, 8))
    judge = Faithfulness(target, image, torch.rand(4, 1, 32, 32), block_size=4, n_draws=2, n_steps=3, support=None)
    asked = ["irof", "irof, soft", "deletion, supporting, soft"]
    expected = judge.forecast(asked)
    assert expected == 2 * 2 * 4
    before, twin = judge.n_forwards, judge.soft.n_forwards
    judge.evaluate(image, asked)
    assert 0 < judge.n_forwards - before - twin <= expected


def test_bad_names_and_shares():
    judge = Faithfulness(Sum(), torch.ones(1, 1, 16), 0.0, block_size=4, n_draws=1)
    with pytest.raises(ValueError, match="share: expected"):
        attribution_score(judge, torch.ones(1, 1, 16), 1.5)
    with pytest.raises(ValueError, match="metrics: expected names from"):
        judge.evaluate(torch.ones(1, 1, 16), ["iro, soft"])
    with pytest.raises(ValueError, match="metrics: a plain function has no soft version"):
        judge.evaluate(torch.ones(1, 1, 16), ["irof, soft"])
