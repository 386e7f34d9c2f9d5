"""Joint effects and interactions that are exactly zero, though every draw of them is not: levels and false discoveries are held."""

import functools

import numpy as np
import pytest
import torch

from captum_causalseg import JointTreatmentEffect, interaction_effects

UNITS, DONORS = 16, 200
RUNS = {4: 100, 6: 100, 12: 80, 50: 30}
"""By draws: two pairs are the least, 50 draws the default."""


def additive(image):
    return image.flatten(1).sum(1)


def products(image):
    """The first of two neighbors needs the second; their product is 0 on the average, too."""
    x = image.flatten(1)
    return x.sum(1) + 2 * (x[:, 0::2] * x[:, 1::2]).sum(1)


def gated(image):
    x = image.flatten(1)
    return (x * (1 + x.roll(1, 1))).sum(1)


@functools.cache
def donors(kind):
    """Values of ``DONORS`` donors for every unit, whose own value is 0: their mean is exactly 0."""
    rng = np.random.default_rng(0)
    shape = DONORS, UNITS
    values = {
        "normal": lambda: rng.normal(size=shape),
        # The variances spread over units by a factor of 50 either way (two standard deviations).
        "scales spread": lambda: np.exp(rng.normal(size=UNITS)) * rng.normal(size=shape),
        "skewed": lambda: rng.exponential(size=shape),
        "rare steps": lambda: rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=shape),
    }[kind]()
    return values - values.mean(0)


def statistics(score, values, n_draws, context="shapley"):
    """Of as many runs, each with a seed of its own."""
    runs = RUNS[n_draws]
    image, bank = torch.zeros(runs, 1, 4, 4, dtype=torch.float64), torch.from_numpy(values).reshape(-1, 1, 4, 4)
    return JointTreatmentEffect(score).attribute(
        image,
        bank,
        block_size=1,
        context=context,
        n_draws=n_draws,
        seed=list(range(runs)),
        perturbations_per_eval=64,
        support=None,
        return_statistics=True,
    )[1]


def at_most(rates, level):
    """Whether the mean of the rates of independent runs may be this."""
    rates = np.asarray(rates, dtype=float)
    noise = max(rates.std(ddof=1), np.sqrt(level * (1 - level) / 10)) / np.sqrt(len(rates))
    assert rates.mean() <= level + 3 * noise, rates.mean()


CASES = [
    *((additive, kind, n, "shapley") for kind in ("normal", "scales spread", "skewed", "rare steps") for n in (4, 12)),
    *((score, kind, n, "shapley") for score in (products, gated) for kind in ("normal", "skewed") for n in (4, 12)),
    (additive, "scales spread", 6, "shapley"),
    (gated, "normal", 50, "shapley"),
    (products, "skewed", 50, "shapley"),
    (gated, "skewed", 4, "banzhaf"),
    (gated, "skewed", 12, "banzhaf"),
]


@pytest.mark.parametrize(("score", "kind", "n_draws", "context"), CASES)
def test_where_no_unit_has_an_effect_few_runs_find_one(score, kind, n_draws, context):
    stats = statistics(score, donors(kind), n_draws, context)
    assert (stats.effect != 0).any(), "draws are not exactly nothing"
    at_most((stats.p_values() <= 0.05).double().mean(1), 0.05)
    at_most(stats.significant().any(1), 0.05)


@pytest.mark.parametrize("n_draws", [4, 12])
@pytest.mark.parametrize("kind", ["normal", "scales spread", "skewed"])
def test_where_half_of_the_units_have_none_few_discoveries_are_false(kind, n_draws):
    values = donors(kind).copy()
    values[:, 1::2] -= 1.5 * values[:, 1::2].std(0)
    found = statistics(additive, values, n_draws).significant().numpy()
    false = found[:, 0::2].sum(1)
    at_most(false / np.maximum(found.sum(1), 1), 0.05)
    if n_draws >= 12:
        assert found[:, 1::2].mean() > 0.8, "and there are discoveries"


@pytest.mark.parametrize("n_draws", [2, 3, 12])
def test_pairs_that_do_not_interact_are_seldom_found(n_draws):
    runs, pairs = 100, [(unit, unit + 1) for unit in range(0, UNITS, 2)]
    image, bank = torch.zeros(runs, 1, 4, 4, dtype=torch.float64), torch.from_numpy(donors("normal")).reshape(-1, 1, 4, 4)

    class Products(torch.nn.Module):
        def forward(self, x):
            return products(x)

    table = interaction_effects(
        Products(), image, bank, pairs=pairs, block_size=1, n_draws=n_draws, seed=list(range(runs)), perturbations_per_eval=64
    )
    assert (table["interaction"] != 0).all()
    at_most((table["p_value"] <= 0.05).groupby(table["example"]).mean(), 0.05)
    at_most((table["kind"] != "none").groupby(table["example"]).any(), 0.05)
