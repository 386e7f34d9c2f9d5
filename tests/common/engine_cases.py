"""Plans, evaluators that look scores up, and designs on a ranking."""

import numpy as np
import torch

from captum_causalseg.engine.design import StratifiedDesign
from captum_causalseg.engine.estimator import StratifiedEstimator
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.engine.sample import Sample


def generator(seed=0):
    return np.random.default_rng(seed)


class Table:
    """An evaluator that looks scores up: ``observed - differences[example, unit, donor]``."""

    def __init__(self, differences, observed, fails_above=10**9):
        self.differences, self.observed = differences, observed
        self.fails_above = fails_above
        self.batches = []

    def observe(self, examples):
        if len(examples) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.from_numpy(self.observed[examples])

    def __call__(self, interventions):
        examples = interventions.example
        if len(examples) > self.fails_above:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(examples))
        assert interventions.row.tolist() == list(range(len(examples)))
        return torch.from_numpy(
            self.observed[examples] - self.differences[examples, interventions.unit, interventions.donor[:, 0]]
        )


def make_plan(differences, n_draws=10, n_screening_draws=0, seed=0, active=None, rankings=(), **options):
    """``rankings``: the orders of the rows' candidates."""
    n, u, donors, k = differences.shape
    example, unit = np.divmod(np.arange(n * u), u)
    return Plan(
        example=example,
        unit=unit,
        key=unit,
        population=np.full((n * u, 1), donors),
        active=np.ones((n * u, k), bool) if active is None else active,
        n_draws=n_draws,
        n_screening_draws=n_screening_draws,
        seed=(seed,),
        rankings=[None if order is None else Ranking(order) for order in rankings],
        **options,
    )


def table(n=2, u=5, donors=30, k=3, seed=0):
    return generator(seed).normal(size=(n, u, donors, k)), generator(seed + 1).normal(size=(n, k))


def stratified(donors, n_first, order, n_screening=0, seed=0):
    return StratifiedDesign(generator(seed), [donors], n_first=n_first, n_screening=n_screening, ranking=np.asarray(order))


def ranks_of(design, n, ranked):
    """The ranks of the first draws; ``ranked`` are the candidates in the order of the ranking."""
    rank = {donor: place for place, donor in enumerate(ranked)}
    return [rank[donor] for donor in design.donors(n)[:, 0].tolist()]


def estimated(design, values, stage=1):
    """What the library makes of the values of all draws up to the end of a stage."""
    return StratifiedEstimator().estimate(Sample(values, design.selection(stage)))
