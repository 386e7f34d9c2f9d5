"""What the draws say, from the engine's rows to the statistics and back."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from captum_causalseg import AverageTreatmentEffect, Status, TreatmentEffectStatistics
from captum_causalseg.statistics.moments import UnitMoments

NAMES = [field.name for field in dataclasses.fields(UnitMoments)]


def moments(*shape, seed=0):
    """All fields different, everywhere."""
    generator = np.random.default_rng(seed)
    found = UnitMoments.missing(shape[:-1], shape[-1:])
    for name in NAMES:
        values = getattr(found, name)
        values[...] = generator.permutation(np.arange(1000))[: values.size].reshape(values.shape)
    return found


def statistics(n=2, u=3):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(3, 1, u, generator=generator)
    return AverageTreatmentEffect(lambda x: torch.stack([(x * w).sum((1, 2)) for w in weights], 1)).attribute(
        torch.rand(n, 1, u, generator=generator),
        torch.rand(40, 1, u, generator=generator),
        target=0,
        block_size=1,
        n_draws=6,
        return_statistics=True,
    )[1]


def test_units_that_there_are_not_say_nothing():
    nothing = UnitMoments.missing((2, 4), (3,))
    for name in ("effect", "sample_variance", "variance_factor", "variance_freedom", "population"):
        assert np.isnan(getattr(nothing, name)).all()
    assert (nothing.n_draws == 0).all()
    assert (nothing.decision == 0).all()
    assert (nothing.status == Status.ABSENT).all()
    assert nothing.population.shape == (2, 4)


def test_rows_are_spread_to_their_examples_and_units():
    rows, example, unit = moments(3, 2), np.array([1, 0, 1]), np.array([4, 2, 0])
    full = rows.spread(example, unit, 2, 5)
    missing = UnitMoments.missing((2, 5), (2,))
    for name in NAMES:
        expected = getattr(missing, name).copy()
        for row, (n, u) in enumerate(zip(example, unit)):
            expected[n, u] = getattr(rows, name)[row]
        np.testing.assert_array_equal(getattr(full, name), expected)


def test_one_output_may_differ_from_example_to_example():
    some = moments(2, 3, 6).with_outputs((2, 3))
    assert some.effect.shape == (2, 3, 2, 3)
    assert some.population.shape == (2, 3)
    one = some.of_output(np.array([5, 1]))
    for name in NAMES[:-1]:
        values = getattr(some, name)
        np.testing.assert_array_equal(getattr(one, name), np.stack([values[0, :, 1, 2], values[1, :, 0, 1]]))
    np.testing.assert_array_equal(one.population, some.population)


def test_parts_are_put_together_unit_by_unit():
    parts = [moments(2, 5, 3, seed=seed) for seed in range(3)]
    whose = np.array([0, 1, 2, 0, 1])
    merged = UnitMoments.merged(parts, whose)
    for name in NAMES:
        for u, k in enumerate(whose):
            np.testing.assert_array_equal(getattr(merged, name)[:, u], getattr(parts[k], name)[:, u])


def test_statistics_give_their_moments_and_are_made_of_them():
    stats = statistics()
    for name in NAMES:
        assert getattr(stats.moments, name) is not None
        np.testing.assert_array_equal(getattr(stats.moments, name), getattr(stats, name).numpy())
    again = stats.replaced()
    assert torch.equal(again.standard_error, stats.standard_error)
    assert again.settings == stats.settings
    assert again.output_axes == stats.output_axes


def test_what_is_replaced_is_replaced_and_errors_are_made_anew():
    stats = statistics()
    wider = dataclasses.replace(stats.moments, sample_variance=4 * stats.moments.sample_variance)
    changed = stats.replaced(wider, n_forwards=7)
    torch.testing.assert_close(changed.standard_error, 2 * stats.standard_error)
    assert changed.n_forwards == 7
    assert changed.unit_ids is stats.unit_ids
    with pytest.raises(TypeError, match="n_forward"):
        stats.replaced(n_forward=7)
    with pytest.raises(TypeError, match="moments: expected moments of units"):
        stats.replaced({"effect": 1})


def test_one_output_has_the_errors_that_it_has_among_all():
    stats = statistics()
    for target in range(3):
        one = stats.of_output(target)
        assert torch.equal(one.effect, stats.effect[..., target])
        assert torch.equal(one.standard_error, stats.standard_error[..., target])
        assert torch.equal(one.observed_score, stats.observed_score[:, target])
        assert one.output_axes == ()
    assert not math.isnan(float(stats.standard_error.sum()))
    assert isinstance(stats.of_output(1), TreatmentEffectStatistics)
