"""Noisy linear imputation: the system by hand in one to three dimensions, and the score by a loop."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg import SegmentationTarget, regions
from captum_causalseg.evaluation import Faithfulness, imputation, road
from captum_causalseg.evaluation.imputation import impute


def by_hand(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Every removed pixel is the weighted mean of its neighbors, solved densely."""
    places = [tuple(place) for place in np.argwhere(removed)]
    number = {place: k for k, place in enumerate(places)}
    system, right = np.zeros((len(places),) * 2), np.zeros((len(places), len(image)))
    for k, place in enumerate(places):
        for step in itertools.product((-1, 0, 1), repeat=removed.ndim):
            m = sum(map(abs, step))
            other = tuple(a + b for a, b in zip(place, step))
            if m == 0 or not all(0 <= a < size for a, size in zip(other, removed.shape)):
                continue
            weight = 0.5 ** (m - 1)
            system[k, k] += weight
            if other in number:
                system[k, number[other]] -= weight
            else:
                right[k] += weight * image[(slice(None), *other)]
    filled, solved = image.copy(), np.linalg.solve(system, right)
    for k, place in enumerate(places):
        filled[(slice(None), *place)] = solved[k]
    return filled


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("solver", ["factorized", "iterated"])
def test_the_system_is_solved(d, solver, monkeypatch):
    generator = np.random.default_rng(d)
    image = generator.random((2, *(9, 6, 4)[:d]))
    removed = generator.random(image.shape[1:]) < 0.6
    if solver == "iterated":
        monkeypatch.setattr(imputation, "_LARGEST", 0)
    np.testing.assert_allclose(impute(image, removed), by_hand(image, removed), atol=1e-4 if solver == "iterated" else 1e-12)


def test_in_two_dimensions_weights_are_those_of_the_paper():
    image = np.arange(9.0).reshape(1, 3, 3) ** 2
    removed = np.zeros((3, 3), dtype=bool)
    removed[1, 1] = True
    direct, diagonal = image[0, [0, 1, 1, 2], [1, 0, 2, 1]].sum(), image[0, [0, 0, 2, 2], [0, 2, 0, 2]].sum()
    assert impute(image, removed)[0, 1, 1] == pytest.approx(direct / 6 + diagonal / 12)


def test_what_nothing_borders_on_has_the_mean():
    image = np.random.default_rng(0).random((2, 4, 4))
    filled = impute(image, np.ones((4, 4), dtype=bool))
    np.testing.assert_allclose(filled, np.broadcast_to(image.mean((1, 2), keepdims=True), image.shape))
    np.testing.assert_array_equal(impute(image, np.zeros((4, 4), dtype=bool)), image)


@pytest.mark.parametrize(("d", "n"), [(2, 2), (3, 1)])
def test_the_score_is_that_of_a_loop(d, n, monkeypatch):
    """Without noise, of one of two regions, of each example of a batch."""
    monkeypatch.setattr(imputation, "_NOISE", 0.0)
    shape = (8,) * d
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (nn.Conv2d, nn.Conv3d)[d - 2](2, 2, 5, padding=2)
    images, maps = torch.rand(n, 2, *shape), torch.rand(n, 1, *shape)
    rois = torch.stack([regions.box(shape, 0, 4), regions.box(shape, 4, 4)])
    target = SegmentationTarget.from_prediction(model, images, roi=rois, metric="soft_dice")
    judge = Faithfulness(target, images, 0.0, (1, 1), block_size=4, n_draws=1, support=None)
    found = road(judge, maps)
    blocks = regions.grid(shape, 4).numpy()
    free = [block for block in np.unique(blocks) if not (blocks == block)[rois[1].numpy()].any()]
    for example in range(n):
        ranked = sorted(free, key=lambda block: -float(maps[example, 0].numpy()[blocks == block].mean()))
        scores = []
        for share in (0, 0.2, 0.4, 0.6, 0.8, 1):
            removed = np.isin(blocks, ranked[: round(share * len(free))])
            image = images.clone()
            image[example] = torch.from_numpy(
                by_hand(images[example].double().numpy(), removed) if removed.any() else images[example].numpy()
            )
            scores.append(float(target(image).detach()[example, 1, 1]))
        assert found[example] == pytest.approx(0.2 * (sum(scores) - (scores[0] + scores[-1]) / 2), abs=1e-5)


def test_noise_is_small_and_seeded_and_silent_maps_are_no_numbers():
    model, image = nn.Conv2d(1, 1, 5, padding=2), torch.rand(1, 1, 12, 12)
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((12, 12), 4, 4), metric="soft_dice")
    judges = [Faithfulness(target, image, 0.0, block_size=4, n_draws=1, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (road(judge, image)[0] for judge in judges)
    assert first == again
    assert first != other
    assert first == pytest.approx(other, abs=0.02)
    assert np.isnan(road(judges[0], -image)).all()

    def of_vectors(x):
        return x.sum(1)

    vectors = Faithfulness(of_vectors, torch.rand(2, 6), 0.0, feature_mask=torch.arange(6)[None], n_draws=1)
    assert np.isnan(road(vectors, torch.ones(2, 6))).all()
