"""Channels as units of their own, and channels that are left as they are."""

import numpy as np
import pytest
import torch

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    JointTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    regions,
)
from captum_causalseg.attr.channels import of_channels
from captum_causalseg.layout import UNIT_KINDS, register_units
from captum_causalseg.statistics import Status, TreatmentEffectStatistics


def seeded(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("d", [2, 3])
def test_each_channel_by_itself_is_the_loop_over_hand_made_masks(d):
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        (torch.nn.Conv2d if d == 2 else torch.nn.Conv3d)(3, 4, 3, padding=1),
        torch.nn.ReLU(),
        (torch.nn.Conv2d if d == 2 else torch.nn.Conv3d)(4, 2, 3, padding=1),
    ).eval()
    shape = (16,) * 2 if d == 2 else (12,) * 3
    image, bank = seeded(2, 3, *shape), PatchBank(seeded(4, 3, *shape, seed=1), placement="aligned")
    roi = regions.box(shape, start=4, size=4)
    ate = AverageTreatmentEffect(SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice"))
    # The bank is drained: whatever the order of the draws.
    given = {"baselines": bank, "target": 1, "n_draws": 4, "n_screening_draws": 0, "return_statistics": True}
    attr, stats = ate.attribute(image, block_size=4, channels="each", **given)
    blocks = regions.grid(shape, 4)
    by_hand = torch.stack([3 * blocks + channel for channel in range(3)])[None]
    expected, other = ate.attribute(image, feature_mask=by_hand, **given)
    assert torch.equal(attr, expected)
    assert torch.equal(stats.effect.nan_to_num(-1), other.effect.nan_to_num(-1))
    # And the literal loop: one block of one channel, the others as they are.
    block, channel = 1, 2
    inside = blocks == block
    with torch.no_grad():
        observed = ate.forward_func(image)
        changed = []
        for donor in seeded(4, 3, *shape, seed=1):
            replaced = image.clone()
            replaced[:, channel, inside] = donor[channel, inside]
            changed.append(observed - ate.forward_func(replaced))
    unit = int((stats.unit_ids == 3 * block + channel).nonzero())
    assert torch.allclose(stats.effect[:, unit], torch.stack(changed).mean(0).double(), atol=1e-6)
    table = stats.to_dataframe()
    assert table["channel"].tolist() == (table["unit"] % 3).tolist()


def test_some_channels_are_replaced_together_and_the_others_stay():
    def score(x):  # of the image's channels and a map of clicks
        return x[:, 0].mean((1, 2)) + 10 * x[:, 1].mean((1, 2)) + 100 * x[:, 2].mean((1, 2))

    image, zero = seeded(1, 3, 8, 8), 0.0
    ate = AverageTreatmentEffect(score)
    attr, stats = ate.attribute(image, zero, block_size=4, channels=(0, 1), return_statistics=True)
    expected = (image[:, 0] + 10 * image[:, 1])[0].reshape(2, 4, 2, 4).sum((1, 3)) / 64
    assert torch.allclose(attr[0, 0, ::4, ::4], expected, atol=1e-5)
    assert torch.equal(attr[:, 0], attr[:, 1])
    assert not attr[:, 2].any()
    assert stats.status[0, -1] == Status.EXCLUDED
    assert not any(one.unit == int(stats.unit_ids[-1]) for one in ate.plan(image, zero, block_size=4, channels=[1, 0]))
    assert torch.allclose(GradientTreatmentEffect(score).attribute(image, zero, block_size=4, channels=(0, 1)), attr, atol=1e-5)


def test_modalities_as_wholes():
    image = seeded(1, 2, 8, 8)
    ate = AverageTreatmentEffect(lambda x: x[:, 0].mean((1, 2)) - x[:, 1].mean((1, 2)))
    whole = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    _, stats = ate.attribute(image, 0.0, feature_mask=whole, channels="each", return_statistics=True)
    assert stats.effect[0].tolist() == pytest.approx([float(image[0, 0].mean()), -float(image[0, 1].mean())])


def test_several_inputs_keep_their_features():
    masks = [torch.tensor([[[[0, 1]]]]), torch.tensor([[2, 3, 4]])]
    tensors = [torch.rand(1, 2, 1, 2), torch.rand(1, 3)]
    found, left = of_channels(masks, tensors, "each")
    assert found[0].tolist() == [[[[0, 2]], [[1, 3]]]]
    assert found[1].tolist() == [[4, 6, 8]]
    assert left == -1
    found, left = of_channels(masks, tensors, [1])
    assert left == 5
    assert found[0].tolist() == [[[[5, 5]], [[0, 1]]]]
    assert found[1] is masks[1]


def test_the_statistics_survive_their_file(tmp_path):
    image = seeded(1, 2, 8, 8)
    _, stats = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(
        image, 0.0, block_size=4, channels="each", return_statistics=True
    )
    stats.save(tmp_path / "a.npz")
    read = TreatmentEffectStatistics.load(tmp_path / "a.npz")
    assert read.settings["channels"] == "each"
    assert np.array_equal(read.to_dataframe()["channel"], stats.to_dataframe()["channel"])


@pytest.mark.parametrize(
    ("channels", "said"),
    [
        ("both", "channels: "),
        ((), "channels: expected channels"),
        ((0, 3), r"channels: expected 0\.\.2, got 3"),
        ((-1,), "channels"),
        (1.5, "channels"),
    ],
)
def test_bad_channels(channels, said):
    with pytest.raises((TypeError, ValueError), match=said):
        AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(seeded(1, 3, 8, 8), 0.0, channels=channels)


def test_one_channel_is_nothing_to_tell_apart():
    with pytest.raises(ValueError, match=r"channels: expected images of several channels, got 1; each is a unit already"):
        AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(seeded(1, 1, 8, 8), 0.0, channels="each")


@pytest.mark.parametrize("d", [2, 3])
def test_blocks_of_channels_are_blocks_with_each_channel_by_itself(d):
    torch.manual_seed(0)
    network = (torch.nn.Conv2d if d == 2 else torch.nn.Conv3d)(3, 2, 3, padding=1)
    shape = (12,) * d
    image, bank = seeded(2, 3, *shape), PatchBank(seeded(5, 3, *shape, seed=1))
    target = SegmentationTarget.from_prediction(network, image, roi=regions.box(shape, start=4, size=4), metric="soft_dice")
    given = {"baselines": bank, "target": 1, "block_size": 4}
    for method in (AverageTreatmentEffect, JointTreatmentEffect):
        drawn = given | {"n_draws": 4, "return_statistics": True}
        attr, stats = method(target).attribute(image, units="channel_block", **drawn)
        expected, other = method(target).attribute(image, channels="each", **drawn)
        assert torch.equal(attr, expected)
        assert stats.to_dataframe().equals(other.to_dataframe())
        assert (stats.settings["units"], stats.settings["block_size"]) == ("channel_block", [4] * d)
    gradient = GradientTreatmentEffect(target)
    assert torch.equal(
        gradient.attribute(image, units="channel_block", **given), gradient.attribute(image, channels="each", **given)
    )
    # Of some channels only.
    attr = AverageTreatmentEffect(target).attribute(image, units="channel_block", channels=[2], n_draws=4, **given)
    assert torch.equal(attr[:, 2], expected_of_channel(target, image, given)[:, 2])
    assert not attr[:, :2].any()


def expected_of_channel(target, image, given):
    return AverageTreatmentEffect(target).attribute(image, channels="each", n_draws=4, **given)


def test_kinds_of_units_of_inputs():
    image = seeded(1, 2, 8, 8)
    ate = AverageTreatmentEffect(lambda x: x[:, 0].mean((1, 2)) - x[:, 1].mean((1, 2)))
    _, stats = ate.attribute(image, 0.0, units="channel", return_statistics=True)
    assert stats.effect[0].tolist() == pytest.approx([float(image[0, 0].mean()), -float(image[0, 1].mean())])
    assert stats.to_dataframe()["channel"].tolist() == [0, 1]
    # A kind of one's own, also beside features that have none.
    register_units(
        "rows", lambda layout, shape, block_size: torch.arange(shape[2]).view(1, 1, -1, 1) // block_size[0], in_blocks=True
    )
    try:
        both = AverageTreatmentEffect(lambda x, y: x.mean((1, 2, 3)) + y.sum(1))
        _, stats = both.attribute((image, torch.ones(1, 3)), 0.0, units="rows", block_size=4, return_statistics=True)
        assert stats.effect[0].tolist() == pytest.approx(
            [*(float(image[0, :, i : i + 4].sum()) / 128 for i in (0, 4)), 1, 1, 1]
        )
    finally:
        del UNIT_KINDS["rows"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"units": "voxel"}, "units: expected .channel., .*'voxel'"),
        ({"units": "token"}, "units: an activation .* has no tokens"),
        ({"units": "channel", "block_size": 4}, "block_size: units='channel' are no blocks, leave it out"),
        ({"units": "channel_block", "feature_mask": torch.zeros(1, 1, 8, 8).long()}, "feature_mask, units: give one of them"),
    ],
)
def test_bad_kinds(given, said):
    with pytest.raises((TypeError, ValueError), match=said):
        AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(seeded(1, 3, 8, 8), 0.0, **given)
