"""Do 95 % intervals hold the truth? Against exhaustive truth: every donor of every unit, a trained U-Net, a real brain."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, regions
from captum_causalseg.demo import load_brain_slices, load_demo_network

N_DONORS = 120


@pytest.fixture(scope="module", params=["dice", "soft_dice"])
def everything(request) -> tuple[str, np.ndarray]:
    """``observed - intervened`` of grey matter for every unit and donor, ``(U, D)``; units inside the RoI left out."""
    train, held_out = load_brain_slices().split()
    rows, columns = slice(152, 216), slice(72, 136)
    image, label = held_out.images[12:13, :, rows, columns], held_out.labels[12, rows, columns]
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(60, 140, (N_DONORS, 2), generator=generator).tolist()
    which = torch.randint(len(train), (N_DONORS,), generator=generator).tolist()
    bank = torch.stack([train.images[i, :, r : r + 8, c : c + 8] for i, (r, c) in zip(which, corners)])
    target = SegmentationTarget(
        load_demo_network(), roi=regions.box((64, 64), start=(0, 48), size=16), reference=label, metric=request.param
    )
    face = AverageTreatmentEffect(target)
    planned = face.plan(image, baselines=PatchBank(bank), n_draws=N_DONORS)
    units = sorted({step.unit for step in planned})
    mask = regions.grid((64, 64), 8)
    differences = np.empty((len(units), N_DONORS))
    with torch.no_grad():
        observed = target(image)[0, 1]
        for u, unit in enumerate(units):
            place = (mask == unit).nonzero().min(0).values.tolist()
            batch = image.repeat(N_DONORS, 1, 1, 1)
            batch[:, :, place[0] : place[0] + 8, place[1] : place[1] + 8] = bank
            differences[u] = (observed - target(batch)[:, 1]).numpy()
    return request.param, differences


def look_up(differences: np.ndarray):
    """A forward function whose interventions have exactly these effects: pixel u holding donor d's number moves it."""
    table = torch.from_numpy(differences)

    def forward(x: Tensor) -> Tensor:
        donor = x[:, 0].long()
        unit = (donor >= 0).int().argmax(1)
        moved = table[unit, donor.gather(1, unit[:, None])[:, 0].clamp_min(0)]
        return torch.where((donor >= 0).any(1), -moved, 0.0)

    units, donors = differences.shape
    numbers = torch.arange(donors, dtype=torch.float64).view(-1, 1, 1).expand(-1, 1, units)
    return forward, torch.full((1, 1, units), -1.0, dtype=torch.float64), numbers


def trials(differences: np.ndarray, **options):
    forward, image, numbers = look_up(differences)
    runs = [
        AverageTreatmentEffect(forward).attribute(
            image, baselines=numbers, block_size=1, seed=seed, perturbations_per_eval=4096, return_statistics=True, **options
        )[1]
        for seed in range(30)
    ]
    ends = [run.confidence_interval(0.95) for run in runs]
    low, high = (torch.stack([end[side][0] for end in ends]).numpy() for side in (0, 1))
    effects = torch.stack([run.effect[0] for run in runs]).numpy()
    errors = torch.stack([run.standard_error[0] for run in runs]).numpy()
    return effects, errors, low, high, runs


@pytest.mark.parametrize("n_draws", [6, 12, 30])
def test_intervals_hold_the_exhaustive_truth(everything, n_draws):
    _, differences = everything
    truth = differences.mean(1)
    effects, errors, low, high, _ = trials(differences, n_draws=n_draws, n_screening_draws=0)
    held = (low <= truth) & (truth <= high)
    assert held.size >= 1000
    assert held.mean() >= 0.92
    # Also among the units that do something, where the interval has to be wide enough rather than merely not empty.
    alive = np.abs(differences).max(1) > 1e-6
    assert alive.sum() >= 15
    assert held[:, alive].mean() >= 0.92
    # And not by being wide for nothing.
    assert np.sqrt((errors**2).mean()) <= 1.6 * np.sqrt(((effects - truth) ** 2).mean())


def test_plain_intervals_would_not_do_on_hard_dice(everything):
    """What moderation is for: a unit none of whose few draws flips a pixel gets an interval of width 0 without it."""
    metric, differences = everything
    effects, _, low, high, runs = trials(differences, n_draws=6, n_screening_draws=0)
    variance = torch.stack([run.sample_variance[0] for run in runs]).numpy()
    half = scipy_stats.t.ppf(0.975, 5) * np.sqrt(variance / 6 * (1 - 6 / N_DONORS))
    truth = differences.mean(1)
    plain = (np.abs(effects - truth) <= half).mean()
    moderated = ((low <= truth) & (truth <= high)).mean()
    if metric == "dice":
        assert plain < 0.9 < 0.92 <= moderated
    else:
        assert plain >= 0.9


def test_intervals_hold_the_truth_with_screening_on_too(everything):
    _, differences = everything
    truth = differences.mean(1)
    _, _, low, high, runs = trials(differences, n_draws=12, n_screening_draws=3)
    assert ((low <= truth) & (truth <= high)).mean() >= 0.92
    assert any(bool((run.status == Status.SCREENED).any()) for run in runs)


def test_the_estimate_is_unbiased(everything):
    _, differences = everything
    effects, *_ = trials(differences, n_draws=12, n_screening_draws=0)
    alive = np.abs(differences).max(1) > 1e-6
    spread = effects[:, alive].std(0, ddof=1) / np.sqrt(len(effects))
    z = (effects[:, alive].mean(0) - differences[alive].mean(1)) / np.maximum(spread, 1e-6)
    assert np.abs(z).max() < 4.5


def test_what_screening_costs_is_what_the_documentation_says():
    """A block that moves the score in 20 % of the draws is lost with probability 0.8**3 = 51 %."""
    differences = np.zeros((400, 1000))
    for row in differences:
        row[:200] = 1.0
    forward, image, numbers = look_up(differences)
    _, stats = AverageTreatmentEffect(forward).attribute(
        image, baselines=numbers, block_size=1, n_draws=10, perturbations_per_eval=4096, return_statistics=True
    )
    lost = (stats.status == Status.SCREENED).double().mean()
    assert float(lost) == pytest.approx(0.512, abs=4 * np.sqrt(0.512 * 0.488 / 400))
    assert (stats.effect[stats.status == Status.SCREENED] == 0).all()
