"""What controls say of the effects that they are controls for."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from made_statistics import make

from captum_causalseg import Status, TreatmentEffectStatistics
from captum_causalseg.statistics.controls import larger_than_control
from captum_causalseg.statistics.moments import UnitMoments

NAMES = [field.name for field in dataclasses.fields(UnitMoments)]


def student_above(t, freedom, steps=200_000):
    """``P(T > t)`` for ``t > 0`` by the trapezoidal rule on the density."""
    x = np.linspace(0, t, steps)
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    return 0.5 - np.trapezoid(constant * (1 + x**2 / freedom) ** (-(freedom + 1) / 2), x)


def test_the_rule_by_formula():
    effect, error, freedom = 0.30, 0.03, 20.0
    control, own_error, own_freedom = -0.22, 0.02, 9.0
    t = (0.30 - 0.22) / math.sqrt(0.03**2 + 0.02**2)
    together = (0.03**2 + 0.02**2) ** 2 / (0.03**4 / 20 + 0.02**4 / 9)
    p = student_above(t, together)
    for alpha, expected in ((p * 1.001, True), (p * 0.999, False)):
        found = larger_than_control(([effect], [error], [freedom]), ([control], [own_error], [own_freedom]), alpha)
        assert found.tolist() == [expected]
    # In whichever direction: the signs do not matter.
    for sign, other in ((1, 1), (-1, 1), (-1, -1)):
        found = larger_than_control(
            ([sign * effect], [error], [freedom]), ([other * 0.22], [own_error], [own_freedom]), p * 1.001
        )
        assert found.tolist() == [True]


@pytest.mark.parametrize(
    ("effect", "control", "expected"),
    [
        ((0.2, 0.0, 5), (0.1, 0.0, 5), True),  # both exact
        ((0.1, 0.0, 5), (-0.1, 0.0, 5), False),
        ((0.1, 0.01, 5), (0.3, 0.01, 5), False),
        ((0.1, 0.01, 5), (0.0, math.inf, 5), True),  # no shift of any unit moved the score
        ((0.1, 0.01, 5), (0.02, math.inf, 5), False),  # one that moved it, and nothing is known of the spread
        ((0.1, 0.01, 5), (math.nan, math.nan, math.nan), False),
        ((math.nan, math.nan, math.nan), (0.1, 0.01, 5), False),
    ],
)
def test_what_is_exact_and_what_is_not_known(effect, control, expected):
    found = larger_than_control([[one] for one in effect], [[one] for one in control], 0.05)
    assert found.tolist() == [expected]


def with_control(effect=(0.5, -0.5, 0.5, 0.001), control=(0.01, 0.45, math.nan, 0.2), output_shape=(), **options):
    shown = make(control, variance=(0.04,) * 4, draws=(8,) * 4, status=(0, 0, 3, 0), output_shape=output_shape).moments
    several = {"draws": (10,) * 4, "population": (math.inf,) * 4, "variance": (0.04,) * 4}
    return make(effect, **several, output_shape=output_shape, controls={"edge_shifted": shown}, **options)


def test_suspect_is_what_is_significant_and_not_larger_than_its_control():
    stats = with_control()
    assert stats.significant().tolist() == [[True, True, True, False]]
    assert stats.edge_suspect().tolist() == [[False, True, False, False]]  # no control is no suspicion
    assert stats.to_map("edge_suspect")[0, 0].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    control = stats.controls["edge_shifted"]
    assert isinstance(control, TreatmentEffectStatistics)
    assert control.effect.isnan().tolist() == [[False, False, True, False]]
    assert float(control.standard_error[0, 0]) == pytest.approx(math.sqrt(0.04 / 8))
    lower, upper = control.confidence_interval()
    assert float(lower[0, 1]) < 0.45 < float(upper[0, 1])


def test_without_controls_nothing_is_suspected_and_that_is_said():
    with pytest.raises(
        ValueError,
        match=r"^control: expected one of these statistics' controls \(none\), got 'edge_shifted'; controls=\"edge\"",
    ):
        make().edge_suspect()
    with pytest.raises(
        ValueError, match=r"^control: expected one of these statistics' controls \('edge_shifted'\), got 'edge'"
    ):
        with_control().edge_suspect(control="edge")
    assert make().controls == {}
    assert "edge_suspect" not in make().to_dataframe()


def test_controls_are_in_the_table_at_the_level_that_is_asked_for():
    stats = with_control()
    table = stats.to_dataframe(0.8)
    lower, upper = stats.controls["edge_shifted"].confidence_interval(0.8)
    np.testing.assert_array_equal(table["edge_shifted"], stats.controls["edge_shifted"].effect[0])
    np.testing.assert_array_equal(table["edge_shifted_lower"], lower[0])
    np.testing.assert_array_equal(table["edge_shifted_upper"], upper[0])
    assert table["edge_suspect"].tolist() == [False, True, False, False]


def test_controls_go_through_a_file_and_files_of_before_can_be_read(tmp_path):
    stats = with_control(settings={"forwards": {"edge_shifted": 24}})
    stats.save(tmp_path / "with.npz")
    again = TreatmentEffectStatistics.load(tmp_path / "with.npz")
    assert list(again.controls) == ["edge_shifted"]
    assert again.controls["edge_shifted"].n_forwards == 24
    for name in NAMES:
        expected = getattr(stats.control_moments["edge_shifted"], name)
        np.testing.assert_array_equal(getattr(again.control_moments["edge_shifted"], name), expected)
    assert torch.equal(again.edge_suspect(), stats.edge_suspect())
    with np.load(tmp_path / "with.npz", allow_pickle=False) as file:
        assert json.loads(str(file["about"]))["format"] == 3  # older versions refuse it, and do not misread it
    make().save(tmp_path / "without.npz")
    with np.load(tmp_path / "without.npz", allow_pickle=False) as file:
        about = json.loads(str(file["about"]))
    assert about["format"] == 2
    assert "controls" not in about
    assert TreatmentEffectStatistics.load(tmp_path / "without.npz").controls == {}


def test_one_output_is_that_of_the_controls_too():
    stats = with_control(output_shape=(3,), output_axes=("class",))
    stats.controls["edge_shifted"].effect[..., 2] = 7.0
    one = stats.of_output(2)
    assert (one.controls["edge_shifted"].effect == 7.0).all()
    assert one.controls["edge_shifted"].output_shape == ()
    assert torch.equal(one.controls["edge_shifted"].observed_score, one.observed_score)


def test_what_is_replaced_keeps_its_controls():
    stats = with_control()
    other = stats.replaced(settings={"seed": 1})
    assert torch.equal(other.edge_suspect(), stats.edge_suspect())
    assert other.controls["edge_shifted"].settings == {"seed": 1}
    assert stats.replaced(controls={}).controls == {}


def test_controls_of_other_units_are_refused():
    with pytest.raises(ValueError, match=r"^controls\['edge_shifted'\]: expected moments of shape \(1, 4\), got \(1, 2\)"):
        make(controls={"edge_shifted": UnitMoments.missing((1, 2), ())})
    with pytest.raises(TypeError, match=r"^controls\['edge_shifted'\]: expected moments of units"):
        make(controls={"edge_shifted": make()})


def test_excluded_units_have_no_say_in_a_controls_errors():
    stats = with_control()
    assert stats.controls["edge_shifted"].status[0, 2] == Status.EXCLUDED
    assert stats.controls["edge_shifted"].standard_error[0, 2].isnan()
