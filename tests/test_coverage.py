"""Do 95 % intervals hold the truth? Against exhaustive truth: every donor of every unit, a trained U-Net, a real brain."""

import numpy as np
import pytest
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, Status, regions
from captum_causalseg.demo import load_brain_slices, load_demo_network

N_DONORS = 120


class Everything:
    """Every intervention there is.

    Attributes:
        metric: what the effects are effects on.
        differences: ``observed - intervened`` of grey matter for every unit and donor, ``(U, D)``; units inside the RoI left out.
        first_order: what one backward pass through the surrogate says of them, ``(U, D)``.
        truth: the units' effects, ``(U,)``.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        train, held_out = load_brain_slices().split()
        rows, columns = slice(152, 216), slice(72, 136)
        image, label = held_out.images[12:13, :, rows, columns], held_out.labels[12, rows, columns]
        generator = torch.Generator().manual_seed(0)
        corners = torch.randint(60, 140, (N_DONORS, 2), generator=generator).tolist()
        which = torch.randint(len(train), (N_DONORS,), generator=generator).tolist()
        bank = torch.stack([train.images[i, :, r : r + 8, c : c + 8] for i, (r, c) in zip(which, corners)])
        roi = regions.box((64, 64), start=(0, 48), size=16)
        target = SegmentationTarget(load_demo_network(), roi=roi, reference=label, metric=metric)
        leaf = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(target.surrogate()(leaf)[0, 1], leaf)
        mask = regions.grid((64, 64), 8)
        units = sorted(set(mask.unique().tolist()) - set(mask[roi].tolist()))
        self.differences, self.first_order = np.empty((2, len(units), N_DONORS))
        with torch.no_grad():
            observed = target(image)[0, 1]
            for u, unit in enumerate(units):
                row, column = (mask == unit).nonzero().min(0).values.tolist()
                inside = (slice(None), slice(None), slice(row, row + 8), slice(column, column + 8))
                batch = image.repeat(N_DONORS, 1, 1, 1)
                batch[inside] = bank
                self.differences[u] = (observed - target(batch)[:, 1]).numpy()
                self.first_order[u] = (gradient[inside] * (image[inside] - bank)).sum((1, 2, 3)).numpy()
        self.truth = self.differences.mean(1)
        self.alive = np.abs(self.differences).max(1) > 1e-6


@pytest.fixture(scope="module", params=["dice", "soft_dice"])
def everything(request) -> Everything:
    return Everything(request.param)


def look_up(differences: np.ndarray, first_order: np.ndarray | None = None):
    """A forward function whose interventions have exactly these effects: pixel u holding donor d's number moves it.

    Its gradient says ``first_order`` of them: the donors' second channel holds that.
    """
    table = torch.from_numpy(differences)

    def forward(x: Tensor) -> Tensor:
        donor = x[:, 0].long()
        unit = (donor >= 0).int().argmax(1)
        moved = table[unit, donor.gather(1, unit[:, None])[:, 0].clamp_min(0)]
        linear = x[:, 1].sum(1)
        return torch.where((donor >= 0).any(1), -moved, 0.0) + (linear - linear.detach())

    units, donors = differences.shape
    numbers = torch.zeros(donors, 2, units, dtype=torch.float64)
    numbers[:, 0] = torch.arange(donors, dtype=torch.float64)[:, None]
    if first_order is not None:
        numbers[:, 1] = -torch.from_numpy(first_order).T
    image = torch.zeros(1, 2, units, dtype=torch.float64)
    image[:, 0] = -1.0
    return forward, image, numbers


def trials(differences: np.ndarray, first_order: np.ndarray | None = None, n_seeds: int = 30, **options):
    forward, image, numbers = look_up(differences, first_order)
    options = {"sampling": "uniform" if first_order is None else "stratified"} | options
    runs = [
        AverageTreatmentEffect(forward).attribute(
            image, baselines=numbers, block_size=1, seed=seed, perturbations_per_eval=4096, return_statistics=True, **options
        )[1]
        for seed in range(n_seeds)
    ]
    assert all(run.settings["sampling"] == options["sampling"] for run in runs)
    ends = [run.confidence_interval(0.95) for run in runs]
    low, high = (torch.stack([end[side][0] for end in ends]).numpy() for side in (0, 1))
    effects = torch.stack([run.effect[0] for run in runs]).numpy()
    errors = torch.stack([run.standard_error[0] for run in runs]).numpy()
    return effects, errors, low, high, runs


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
@pytest.mark.parametrize("n_draws", [6, 12, 30])
def test_intervals_hold_the_exhaustive_truth(everything, n_draws, sampling):
    ranking = everything.first_order if sampling == "stratified" else None
    effects, errors, low, high, _ = trials(everything.differences, ranking, n_draws=n_draws, n_screening_draws=0)
    held = (low <= everything.truth) & (everything.truth <= high)
    assert held.size >= 1000
    assert held.mean() >= 0.92
    # Also among the units that do something, where the interval has to be wide enough rather than merely not empty.
    assert everything.alive.sum() >= 15
    assert held[:, everything.alive].mean() >= 0.92
    # And not by being wide for nothing.
    assert np.sqrt((errors**2).mean()) <= 1.6 * np.sqrt(((effects - everything.truth) ** 2).mean())


def test_plain_intervals_would_not_do_on_hard_dice(everything):
    """What moderation is for: a unit none of whose few draws flips a pixel gets an interval of width 0 without it."""
    effects, _, low, high, runs = trials(everything.differences, n_draws=6, n_screening_draws=0)
    variance = torch.stack([run.sample_variance[0] for run in runs]).numpy()
    half = scipy_stats.t.ppf(0.975, 5) * np.sqrt(variance / 6 * (1 - 6 / N_DONORS))
    plain = (np.abs(effects - everything.truth) <= half).mean()
    moderated = ((low <= everything.truth) & (everything.truth <= high)).mean()
    if everything.metric == "dice":
        assert plain < 0.9 < 0.92 <= moderated
    else:
        assert plain >= 0.9


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_intervals_hold_the_truth_with_screening_on_too(everything, sampling):
    ranking = everything.first_order if sampling == "stratified" else None
    _, _, low, high, runs = trials(everything.differences, ranking, n_draws=12, n_screening_draws=3)
    assert ((low <= everything.truth) & (everything.truth <= high)).mean() >= 0.92
    assert any(bool((run.status == Status.SCREENED).any()) for run in runs)


@pytest.mark.parametrize("ranking", ["uniform", "first order", "useless", "upside down"])
def test_the_estimate_is_unbiased_whatever_the_ranking_is_worth(everything, ranking):
    worth = {
        "uniform": None,
        "first order": everything.first_order,
        "useless": np.random.default_rng(0).normal(size=everything.differences.shape),
        "upside down": -everything.differences,
    }
    # Screening goes to the ends of the ranking first; that must not bias the estimate. At threshold 0 no unit is given up.
    effects, *_ = trials(
        everything.differences, worth[ranking], n_seeds=40, n_draws=12, n_screening_draws=3, screening_threshold=0.0
    )
    spread = effects[:, everything.alive].std(0, ddof=1) / np.sqrt(len(effects))
    z = (effects[:, everything.alive].mean(0) - everything.truth[everything.alive]) / np.maximum(spread, 1e-6)
    assert np.abs(z).max() < 4.5


def test_intervals_hold_the_truth_under_a_useless_ranking(everything):
    useless = np.random.default_rng(1).normal(size=everything.differences.shape)
    _, _, low, high, _ = trials(everything.differences, useless, n_draws=12, n_screening_draws=0)
    assert ((low <= everything.truth) & (everything.truth <= high)).mean() >= 0.92


@pytest.mark.parametrize("n_draws", [12, 30])
def test_ranked_donors_make_the_error_smaller(everything, n_draws):
    plain, *_ = trials(everything.differences, n_draws=n_draws, n_screening_draws=0)
    ranked, *_ = trials(everything.differences, everything.first_order, n_draws=n_draws, n_screening_draws=0)
    assert ((ranked - everything.truth) ** 2).mean() < 0.9**2 * ((plain - everything.truth) ** 2).mean()


def test_ranked_screening_misses_fewer_units_for_the_same_three_draws(everything):
    """A unit is missed if it is screened out though its effect is as large as the threshold."""
    threshold = 0.001
    matters = np.abs(everything.truth) >= threshold
    assert matters.sum() >= 15
    missed = {}
    for name, ranking in (("random", None), ("ranked", everything.first_order)):
        *_, runs = trials(everything.differences, ranking, n_draws=20, n_screening_draws=3, screening_threshold=threshold)
        screened = torch.stack([run.status[0] == Status.SCREENED for run in runs]).numpy()
        missed[name] = screened[:, matters].mean()
    assert missed["ranked"] < missed["random"]


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_intervals_that_were_stopped_at_a_precision_hold_the_truth(everything, sampling):
    ranking = everything.first_order if sampling == "stratified" else None
    precision = 2 * float(np.median(everything.differences[everything.alive].std(1, ddof=1))) / np.sqrt(8)
    *_, low, high, runs = trials(everything.differences, ranking, n_draws=40, n_screening_draws=0, precision=precision)
    assert ((low <= everything.truth) & (everything.truth <= high)).mean() >= 0.92
    # The budget is enough for most, and goes to those that need it.
    assert ((high - low) / 2 <= precision).mean() > 0.9
    spent = np.array([run.settings["forwards"]["interventions"] for run in runs])
    assert (spent <= 40 * len(everything.truth)).all()
    draws = torch.stack([run.n_draws[0] for run in runs]).numpy()
    assert draws.min() < draws.max()


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_decisions_are_wrong_no_more_often_than_said(everything, sampling):
    ranking = everything.first_order if sampling == "stratified" else None
    threshold = float(np.median(everything.truth[everything.alive]))
    *_, runs = trials(everything.differences, ranking, n_draws=40, n_screening_draws=0, decide=threshold, alpha=0.05)
    decisions = torch.stack([run.decision[0] for run in runs]).numpy()
    wrong = (decisions != 0) & (decisions != np.sign(everything.truth - threshold))
    assert decisions.size >= 1000
    assert wrong.mean() <= 0.05
    assert (decisions != 0).mean() > 0.5


def test_what_screening_costs_is_what_the_documentation_says():
    """A block that moves the score in 20 % of the draws is lost with probability 0.8**3 = 51 %."""
    differences = np.zeros((400, 1000))
    for row in differences:
        row[:200] = 1.0
    *_, (stats,) = trials(differences, n_seeds=1, n_draws=10, n_screening_draws=3)
    lost = (stats.status == Status.SCREENED).double().mean()
    assert float(lost) == pytest.approx(0.512, abs=4 * np.sqrt(0.512 * 0.488 / 400))
    assert (stats.effect[stats.status == Status.SCREENED] == 0).all()
