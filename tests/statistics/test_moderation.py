"""Moderated standard errors of several outputs, against the formula."""

import math

import numpy as np
import pytest

from captum_causalseg.statistics.moderation import moderated_errors


def test_errors_are_moderated_output_by_output():
    variance = np.array([[0.04, 1.0], [0.01, 0.0], [0.0, np.nan], [np.nan, 4.0], [9.0, 9.0]])
    factor = np.array([[0.1, 0.2], [0.2, 0.1], [0.1, 0.5], [0.5, 0.1], [0.0, 0.1]])
    freedom = np.array([[9.0, 4.0], [4.0, 4.0], [9.0, 0.0], [0.0, 7.0], [7.0, np.nan]])
    error, total = moderated_errors(variance, factor, freedom)
    # The common scale: the geometric mean of the positive variances of units that have a say. Of output 1, the last has none.
    scales = (0.04 * 0.01 * 9.0) ** (1 / 3), math.sqrt(1.0 * 4.0)
    for u, k in np.ndindex(4, 2):
        d, own = freedom[u, k], np.nan_to_num(variance[u, k])
        assert error[u, k] == pytest.approx(math.sqrt((3 * scales[k] + d * own) / (3 + d) * factor[u, k]), rel=1e-12)
        assert total[u, k] == 3 + d
    assert error[4, 0] == 0, "every donor was used"
    assert math.isnan(error[4, 1])


def test_where_no_unit_shows_a_spread_errors_are_infinite_but_for_those_that_are_exact():
    error, _ = moderated_errors(
        np.array([[0.0], [np.nan], [np.nan]]), np.array([[0.1], [0.5], [0.0]]), np.array([[3.0], [0.0], [0.0]])
    )
    assert error[:, 0].tolist() == [math.inf, math.inf, 0.0]
