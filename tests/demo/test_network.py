"""The demo's shipped weights and its training loop."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_causalseg.demo import Augmentation, BrainSlices, build_network, fit, load_demo_network, mean_dice

PACKAGE = resources.files("captum_causalseg.demo")

STILL = Augmentation(flip=(), rotation_deg=0, scale=0, shift=0, gain=0, offset=0, gamma=0, noise=0)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(PACKAGE.joinpath("brain_unet.json").read_text(encoding="utf-8"))
    return loaded


def disk(height: int, width: int, row: float, column: float, radius: float) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).long()


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_shipped_weights_reach_the_recorded_held_out_dice(brain: BrainSlices, record: dict[str, Any]) -> None:
    _, held_out = brain.split()
    assert held_out.z_mm.tolist() == record["held_out_z_mm"]
    reached = mean_dice(load_demo_network(), held_out.images, held_out.labels)
    assert reached.tolist() == pytest.approx(list(record["held_out_dice"].values()), abs=0.005)
    assert reached.mean().item() == pytest.approx(record["held_out_dice_mean"], abs=0.005)
    assert reached.min() > 0.9


def test_shipped_weights_are_small_plain_tensors_loaded_safely(record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    load = torch.load

    def spy(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spy)
    network = load_demo_network()
    assert [options["weights_only"] for options in calls] == [True]
    assert not network.training
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert all(value.isfinite().all() for value in network.state_dict().values())
    assert sum(parameter.numel() for parameter in network.parameters()) == record["parameters"]
    assert len(PACKAGE.joinpath("brain_unet.pt").read_bytes()) < 1.2e6


def test_a_distant_block_changes_the_segmentation_but_the_far_side_of_the_picture_does_not() -> None:
    """The reach is that of a U-Net with batch normalization: wide, yet bounded."""
    picture = torch.rand(1, 1, 240, 320, generator=torch.Generator().manual_seed(0))
    network = load_demo_network()

    def change(column: int) -> float:
        masked = picture.clone()
        masked[..., 104:136, column : column + 32] = 0
        with torch.no_grad():
            return float((network(masked) - network(picture))[..., 104:136, 0:32].abs().max())

    assert change(64) > 1e-3
    assert change(32 + 112) < 1e-5


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch() -> None:
    pictures = torch.rand(3, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    network = load_demo_network()
    with torch.no_grad():
        torch.testing.assert_close(network(pictures)[:1], network(pictures[:1]), rtol=1e-4, atol=1e-4)


def test_mean_dice_is_that_of_a_hand_count_and_skips_pictures_without_the_class() -> None:
    labels = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 2]]])
    predicted = torch.tensor([[[0, 1], [1, 0]], [[2, 0], [0, 2]]])
    one_hot = torch.nn.functional.one_hot(predicted, 3).movedim(-1, 1).float()
    # Class 1: 2 * 2 / (2 + 3), in the first picture only; class 2: 2 * 1 / (2 + 1), in the second only.
    reached = mean_dice(torch.nn.Identity(), one_hot, labels, batch_size=1)
    torch.testing.assert_close(reached, torch.tensor([0.8, 2 / 3]))


def test_mean_dice_of_a_binary_mask_counts_where_the_logit_is_above_0() -> None:
    labels = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [0, 0]]])
    logits = torch.tensor([[[-2.0, 0.1], [3, -1]], [[-1, 2], [-1, -1]]])[:, None]
    # 2 * 2 / (2 + 3) in the first picture; the second has none.
    torch.testing.assert_close(mean_dice(torch.nn.Identity(), logits, labels), torch.tensor([0.8]))


def test_a_network_of_fewer_levels_halves_the_resolution_less_often() -> None:
    network = build_network(out_channels=1, channels=(4, 8))
    assert network.eval()(torch.rand(1, 1, 6, 10)).shape == (1, 1, 6, 10)
    with pytest.raises(ValueError, match="channels: expected"):
        build_network(channels=(4,))


def test_augmentation_turned_off_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(2, 3, 16, 32, generator=generator), torch.randint(3, (2, 16, 32), generator=generator)
    same, same_labels = STILL(images, labels, generator)
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    assert torch.equal(same_labels, labels)


@pytest.mark.parametrize("axis", [-1, -2])
def test_augmentation_flips_the_named_axis_of_image_and_label(axis: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(1, 1, 16, 32, generator=generator), torch.randint(3, (1, 16, 32), generator=generator)
    out, out_labels = Augmentation(**{**vars(STILL), "flip": (axis,)})(
        images.expand(20, -1, -1, -1), labels.expand(20, -1, -1), generator
    )
    flipped = (out_labels == labels.flip(axis)).flatten(1).all(dim=1)
    kept = (out_labels == labels).flatten(1).all(dim=1)
    assert (flipped ^ kept).all()
    assert 0 < flipped.sum() < 20
    torch.testing.assert_close(out[flipped], images.flip(axis).expand_as(out[flipped]), atol=1e-4, rtol=0)


def test_augmentation_moves_labels_with_the_image_and_keeps_a_disk_round() -> None:
    """Rotation in a picture that is not square would squeeze the disk if the aspect ratio were forgotten.

    At 20 degrees, the reflections which fill the corners do not yet hold a second disk.
    """
    label = disk(64, 128, 32, 80, 10)[None].expand(16, -1, -1)
    turn = Augmentation(**{**vars(STILL), "rotation_deg": 20})
    image, moved = turn(label[:, None].float(), label, torch.Generator().manual_seed(0))
    assert dice(image[:, 0] > 0.5, moved == 1) > 0.97
    assert moved.sum(dim=(1, 2)).float().mean() == pytest.approx(float(label[0].sum()), rel=0.02)
    for mask in moved:
        rows, columns = mask.nonzero().T
        assert (rows.max() - rows.min()).item() == pytest.approx(20, abs=1)
        assert (columns.max() - columns.min()).item() == pytest.approx(20, abs=1)
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in moved}) > 8


def tiny_task() -> tuple[Tensor, Tensor]:
    labels = torch.stack([disk(32, 48, 12, 16 + 4 * i, 8) + disk(32, 48, 12, 16 + 4 * i, 4) for i in range(3)])
    return labels[:, None] / 2, labels


def weights(seed: int) -> Tensor:
    network = fit(build_network(seed=1), *tiny_task(), steps=3, seed=seed, batch_size=2)
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


def test_fit_is_deterministic_for_a_seed() -> None:
    torch.manual_seed(11)
    first = weights(0)
    torch.manual_seed(12)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_initial_weights_follow_the_seed() -> None:
    one, same, other = (next(build_network(seed=seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_global_random_state_is_untouched() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    weights(0)
    load_demo_network()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True))


def test_fit_reports_every_step_lowers_the_loss_and_ends_in_eval_mode() -> None:
    network = build_network()
    losses: dict[int, float] = {}
    with torch.no_grad():
        trained = fit(network, *tiny_task(), steps=30, batch_size=4, progress=losses.__setitem__)
    assert trained is network
    assert not network.training
    assert list(losses) == list(range(1, 31))
    assert losses[30] < 0.8 * losses[1]
    with pytest.raises(ValueError, match="steps"):
        fit(network, *tiny_task(), steps=0)


def test_fit_learns_the_binary_mask_of_a_single_rgb_picture() -> None:
    mask = disk(64, 64, 28, 36, 14)
    color = torch.tensor([0.8, 0.6, 0.5])[:, None, None] - mask * torch.tensor([0.4, 0.4, 0.3])[:, None, None]
    noise = 0.05 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    picture = (color + noise)[None]
    network = fit(build_network(3, 1), picture, mask[None], steps=60, augmentation=Augmentation(flip=(-1, -2)))
    with torch.no_grad():
        logits = network(picture)
    assert logits.shape == (1, 1, 64, 64)
    assert dice(logits[0, 0] > 0, mask == 1) > 0.9
