"""Donors whose surroundings resemble the unit's: against a literal search, and what cannot be asked."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg.boxes import box_at
from captum_causalseg.cohort import explain_cohort
from captum_causalseg.donors import NeighborBank, PatchBank


def literal_features(image: Tensor, corner: tuple[int, ...], size: tuple[int, ...], reach: list[tuple[int, int]]) -> np.ndarray:
    values = image.double().numpy()
    steps = [np.gradient(values, axis=axis) ** 2 for axis in range(1, values.ndim) if values.shape[axis] > 1]
    edges = np.sqrt(np.sum(steps, axis=0))
    ring = np.zeros(values.shape[1:], dtype=bool)
    ring[tuple(slice(c - r[0], c + s + r[1]) for c, s, r in zip(corner, size, reach))] = True
    ring[tuple(slice(c, c + s) for c, s in zip(corner, size))] = False
    return np.concatenate([values[:, ring].mean(1), values[:, ring].std(1), edges[:, ring].mean(1)])


@pytest.mark.parametrize(
    ("spatial", "size", "ring"), [((14,), (3,), 2), ((12, 10), (4, 3), 3), ((6, 7, 8), (2, 3, 2), 2), ((9, 1), (3, 1), 2)]
)
def test_the_nearest_places_of_a_literal_search(spatial: tuple[int, ...], size: tuple[int, ...], ring: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 2, *spatial, generator=generator)
    explained = torch.stack([torch.rand(2, *spatial, generator=generator), images[2]])
    forbidden = torch.zeros(1, *spatial, dtype=torch.bool)
    forbidden[(0, *(slice(2, 4) if length > 1 else slice(None) for length in spatial))] = True
    k = 5
    donors = NeighborBank(images, k, ring=ring, n_candidates=10**6).bind(explained, forbidden)
    ends = [tuple(length - side for length, side in zip(spatial, size)), (0,) * len(spatial)]
    for example, corner in itertools.product((0, 1), [*ends, tuple(end // 2 for end in ends[0])]):
        reach = [(min(ring, c), min(ring, n - c - s)) for c, s, n in zip(corner, size, spatial)]
        places = [range(r[0], n - s - r[1] + 1) for r, n, s in zip(reach, spatial, size)]
        pool = [(i, place) for i in range(len(images)) for place in itertools.product(*places)]
        found = np.array([literal_features(images[i], place, size, reach) for i, place in pool])
        spread = found.std(0)
        spread[spread < 1e-12] = np.inf
        distance = np.linalg.norm((found - literal_features(explained[example], corner, size, reach)) / spread, axis=1)
        for row, (i, place) in enumerate(pool):
            if example == 1 and i == 2 and bool(forbidden[(0, *box_at(place, size))].any()):
                distance[row] = np.inf
        wanted = [pool[row] for row in np.argsort(distance, kind="stable")[:k]]
        box = box_at(corner, size)
        assert donors.population(example, box) == k
        assert [donors.locate(example, box, number) for number in range(k)] == wanted
        for number, (i, place) in enumerate(wanted):
            assert torch.equal(donors.read(example, box, number), images[i][(slice(None), *box_at(place, size))])
        many = donors.read_many(np.full(k, example), np.array([corner] * k), size, np.arange(k), slice(1, 2))
        assert torch.equal(many, torch.stack([donors.read(example, box, number)[1:] for number in range(k)]))


def test_the_pool_is_a_random_sample_that_the_seed_fixes() -> None:
    images, box = torch.rand(5, 1, 20, 20, generator=torch.Generator().manual_seed(1)), box_at((8, 8), (4, 4))

    def places(seed: int) -> set[tuple[int, tuple[int, ...]]]:
        donors = NeighborBank(images, 60, ring=2, n_candidates=60, seed=seed).bind(images[:1])
        return {donors.locate(0, box, number) for number in range(60)}

    assert places(0) == places(0)
    assert places(0) != places(1)
    assert {image for image, _ in places(0)} == set(range(5))


def test_lazily_read_images_give_the_same_neighbors() -> None:
    images = torch.rand(5, 2, 16, 16, generator=torch.Generator().manual_seed(2))

    class OneByOne:
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> Tensor:
            return images[index]

    box = box_at((4, 8), (4, 4))
    stacked, lazy = (NeighborBank(given, 9, ring=3).bind(images[:1] + 1) for given in (images, OneByOne()))
    numbers = np.arange(9)
    given = np.zeros(9, dtype=np.int64), np.array([[4, 8]] * 9), (4, 4), numbers
    assert torch.equal(stacked.read_many(*given), lazy.read_many(*given))
    assert [stacked.locate(0, box, n) for n in numbers] == [lazy.locate(0, box, n) for n in numbers]


def test_a_kept_pool_is_read_again_and_only_for_the_same_bank(tmp_path: Path) -> None:
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    box = box_at((4, 4), (4, 4))
    first = NeighborBank(images, 5, ring=2, cache=tmp_path).bind(images)
    wanted = [first.locate(0, box, number) for number in range(5)]
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = NeighborBank(images, 5, ring=2, cache=tmp_path).bind(images)
    assert [again.locate(0, box, number) for number in range(5)] == wanted
    assert [one.stat().st_mtime_ns for one in tmp_path.iterdir()] == [written]
    other = images.clone()
    other[1, 0, 9, 9] = 2.0
    NeighborBank(other, 5, ring=2, cache=tmp_path).bind(images).population(0, box)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_drained_pool_is_the_mean_over_its_neighbors() -> None:
    generator = torch.Generator().manual_seed(4)
    images, image = torch.rand(6, 1, 12, 12, generator=generator), torch.rand(1, 1, 12, 12, generator=generator)
    weights = torch.rand(12, 12, generator=generator)

    def score(x: Tensor) -> Tensor:
        return (x[:, 0] * weights).sum((1, 2)) ** 2

    bank = NeighborBank(images, 8, ring=2)
    _, stats = AverageTreatmentEffect(score).attribute(image, bank, block_size=4, n_draws=8, return_statistics=True)
    donors = bank.bind(image)
    for unit, (row, column) in enumerate(itertools.product(range(0, 12, 4), repeat=2)):
        box, found = box_at((row, column), (4, 4)), []
        for number in range(8):
            changed = image.clone()
            changed[(0, slice(None), *box)] = donors.read(0, box, number)
            found.append(float(score(image) - score(changed)))
        assert float(stats.effect[0, unit]) == pytest.approx(np.mean(found), abs=1e-3)
        assert float(stats.standard_error[0, unit]) == 0


def test_neighbors_stand_where_the_surroundings_are_alike() -> None:
    """Two kinds of tissue: a unit in the dark one is given dark donors, though nobody looked at what is inside."""
    generator = torch.Generator().manual_seed(5)
    images = 0.05 * torch.rand(6, 1, 24, 24, generator=generator)
    images[..., 12:] += 1.0
    explained = images[:1] + 0.0
    explained[..., 4:8, 4:8] = 0.5  # what stands there is of neither kind
    box = box_at((4, 4), (4, 4))
    neighbors, anywhere = (bank.bind(explained) for bank in (NeighborBank(images, 20, ring=3), PatchBank(images)))
    means = [float(neighbors.read(0, box, number).mean()) for number in range(20)]
    assert max(means) < 0.1
    assert max(float(anywhere.read(0, box, number).mean()) for number in range(0, anywhere.population(0, box), 7)) > 0.9


def test_what_cannot_be_asked() -> None:
    images = torch.rand(2, 1, 10, 10)
    with pytest.raises(ValueError, match=r"k: expected at most n_candidates \(10\), got 11"):
        NeighborBank(images, 11, n_candidates=10)
    for wrong in (0, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="k: expected"):
            NeighborBank(images, wrong)
        with pytest.raises((TypeError, ValueError), match="ring: expected"):
            NeighborBank(images, ring=wrong)
    donors = NeighborBank(images, 19, ring=3).bind(images + 1)
    with pytest.raises(ValueError, match="k: expected at most 18, the places with their surroundings"):
        donors.population(0, box_at((4, 4), (2, 2)))
    whole = NeighborBank(images, 1, ring=3).bind(images + 1)
    with pytest.raises(ValueError, match=r"ring: a unit of \(10, 10\) pixels fills its image"):
        whole.population(0, box_at((0, 0), (10, 10)))
    with pytest.raises(ValueError, match="no spatial axes"):
        NeighborBank(torch.rand(4, 3), 2).bind(torch.rand(1, 3))
    with pytest.raises(ValueError, match="donor image 0 has shape"):
        NeighborBank(images, 2).bind(torch.rand(1, 3, 10, 10))


def test_a_bank_of_neighbors_is_a_source_like_others() -> None:
    """Split by images, described by what it was made with, named in the settings; a bank that is given is not read again."""
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(6))
    bank = PatchBank(images, "aligned", match="mean")
    neighbors = NeighborBank(bank, 5, ring=2, seed=3, blend=1)
    assert neighbors.bank is bank
    assert repr(neighbors) == "NeighborBank(6 images, k=5, ring=2, n_candidates=20000, seed=3, blend=1)"
    before = neighbors.describe()
    neighbors.bind(images[:1] + 1).population(0, box_at((4, 4), (4, 4)))
    assert neighbors.describe() == before
    assert neighbors.fresh().describe() == before
    halves = neighbors.split(parts=2, seed=1)
    assert [repr(half) for half in halves] == ["NeighborBank(3 images, k=5, ring=2, n_candidates=20000, seed=3, blend=1)"] * 2
    chosen = [{float(half.bank.images[i].sum()) for i in range(3)} for half in halves]
    assert chosen[0].isdisjoint(chosen[1])
    ate = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3)))
    _, stats = ate.attribute(images[:1] + 1, neighbors, block_size=4, n_draws=2, return_statistics=True)
    assert stats.settings["baselines"] == repr(neighbors)


def test_a_study_with_neighbors_is_continued(tmp_path: Path) -> None:
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(7))
    cases = [{"id": k, "image": images[k]} for k in range(2)]

    def study(**changed: object) -> None:
        explain_cohort(
            cases,
            lambda case: lambda x: x.amax((1, 2, 3)),
            method=AverageTreatmentEffect,
            out=tmp_path / "study",
            baselines=NeighborBank(images[2:], **{"k": 4, "ring": 2} | changed),
            block_size=8,
            n_draws=4,
            show_progress=False,
        )

    study()
    study()
    with pytest.raises(ValueError, match="baselines"):
        study(k=5)
