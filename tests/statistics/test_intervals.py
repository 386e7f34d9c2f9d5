"""Student's t, against its definition, and that nobody else takes quantiles of it."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy.special import gamma

import captum_causalseg
from captum_causalseg.statistics.intervals import half_width, p_value, p_value_above, satterthwaite


def density(t, freedom):
    """Student's (1908), written out."""
    scale = gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * gamma(freedom / 2))
    return scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@given(st.floats(0.1, 40), st.floats(0.05, 0.99), st.floats(1e-3, 1e3))
def test_an_interval_holds_as_much_of_the_density_as_its_level_says(freedom, level, error):
    half = float(half_width(error, freedom, level)) / error
    # Over the tail's logarithm: with a tenth of a degree of freedom it is long.
    held = 1 - 2 * integrate.quad(lambda u: density(math.exp(u), freedom) * math.exp(u), math.log(half), 700, limit=400)[0]
    assert held == pytest.approx(level, abs=1e-6)


@given(st.floats(-30, 30), st.floats(0.5, 40), st.floats(1e-3, 1e3))
def test_a_p_value_is_the_level_of_the_interval_that_just_holds_0(t, freedom, error):
    p = float(p_value(t * error, error, freedom))
    assert 0 <= p <= 1
    if 1e-9 < p < 1 - 1e-9:
        assert float(half_width(error, freedom, 1 - p)) == pytest.approx(abs(t) * error, rel=1e-5)


@pytest.mark.parametrize("freedom", [3.0, math.inf])
def test_what_is_exact_is_a_point_and_what_is_not_known_stays_unknown(freedom):
    assert half_width([0.0, math.inf, math.nan], freedom, 0.9).tolist() == [0, math.inf, pytest.approx(math.nan, nan_ok=True)]
    p = p_value([0.0, -0.1, 0.3, math.nan, math.nan], [0.0, 0.0, math.inf, 1.0, 0.0], freedom)
    assert p[:3].tolist() == [1, 0, 1]
    assert np.isnan(p[3:]).all()


def test_satterthwaites_degrees_of_freedom():
    variances, freedoms = np.array([[1.0, 2.0], [3.0, 0.0], [0.5, 0.0]]), np.array([[4.0, 5.0], [9.0, 1.0], [2.0, 0.0]])
    expected = 4.5**2 / (1 / 4 + 9 / 9 + 0.25 / 2)
    np.testing.assert_allclose(satterthwaite(variances, freedoms), [expected, 5.0], rtol=1e-14)


def test_students_t_is_asked_in_one_place():
    package = Path(captum_causalseg.__file__).parent
    asked = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("ppf", "isf", "sf", "cdf")
        and ast.unparse(node.value).endswith(".t")
    }
    assert asked == {"statistics/intervals.py"}


def test_one_sided_p_values_are_half_of_the_two_sided_ones_on_their_side():
    estimate, error = np.array([0.5, -0.5, 0.0, 2.0]), np.array([0.2, 0.2, 0.3, 0.0])
    above, two_sided = p_value_above(estimate, error, 7), p_value(estimate, error, 7)
    np.testing.assert_allclose(above, [two_sided[0] / 2, 1 - two_sided[1] / 2, 0.5, 0.0], rtol=1e-12)
    assert p_value_above([0.0, np.nan], [0.0, 0.0], 3).tolist()[0] == 1
    assert np.isnan(p_value_above([np.nan], [0.1], 3)).all()
