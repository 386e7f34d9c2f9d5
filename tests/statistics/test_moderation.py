"""Moderated standard errors of several outputs, against the formula."""

import math

import numpy as np
import pytest

from captum_causalseg.statistics.moderation import mean_over_geometric_mean, moderated_errors


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_geometric_mean_of_variances_of_normal_samples_is_smaller_than_the_variance_by_that(n):
    variances = np.random.default_rng(0).normal(scale=3.0, size=(200_000, n)).var(1, ddof=1)
    geometric = math.exp(np.log(variances).mean())
    assert geometric * float(mean_over_geometric_mean(n - 1)) == pytest.approx(9.0, rel=0.02)


def test_errors_are_moderated_output_by_output():
    variance = np.array([[0.04, 1.0], [0.01, 0.0], [0.0, np.nan], [np.nan, 4.0], [9.0, 9.0]])
    factor = np.array([[0.1, 0.2], [0.2, 0.1], [0.1, 0.5], [0.5, 0.1], [0.0, 0.1]])
    freedom = np.array([[9.0, 4.0], [4.0, 4.0], [9.0, 0.0], [0.0, 7.0], [7.0, np.nan]])
    error, total = moderated_errors(variance, factor, freedom)
    # The common scale: the geometric mean of the positive variances of units that have a say. Of output 1, the last has none.
    scales = (0.04 * 0.01 * 9.0) ** (1 / 3), math.sqrt(1.0 * 4.0)
    # The prior's weight: 3 times the share k / (k + 1), with k the others that show a spread.
    priors = np.array([[2.0, 1.5], [2.0, 2.0], [2.25, 2.0], [2.25, 1.5]])
    for u, k in np.ndindex(4, 2):
        d, own = freedom[u, k], np.nan_to_num(variance[u, k])
        assert error[u, k] == pytest.approx(
            math.sqrt((priors[u, k] * scales[k] + d * own) / (priors[u, k] + d) * factor[u, k]), rel=1e-12
        )
        assert total[u, k] == priors[u, k] + d
    assert error[4, 0] == 0, "every donor was used"
    assert math.isnan(error[4, 1])


def test_where_no_unit_shows_a_spread_errors_are_infinite_but_for_those_that_are_exact():
    error, _ = moderated_errors(
        np.array([[0.0], [np.nan], [np.nan]]), np.array([[0.1], [0.5], [0.0]]), np.array([[3.0], [0.0], [0.0]])
    )
    assert error[:, 0].tolist() == [math.inf, math.inf, 0.0]


def test_a_unit_that_is_alone_has_the_freedom_of_its_own_draws():
    error, total = moderated_errors(np.array([[0.04], [0.0]]), np.array([[0.1], [0.1]]), np.array([[5.0], [np.nan]]))
    assert error[0, 0] == pytest.approx(math.sqrt(0.04 * 0.1), rel=1e-12)
    assert total[0, 0] == 5
    assert math.isnan(error[1, 0])
    alone, _ = moderated_errors(np.array([[np.nan]]), np.array([[0.5]]), np.array([[0.0]]))
    assert alone[0, 0] == math.inf
