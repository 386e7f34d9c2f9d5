"""The table of units."""

import numpy as np
from made_statistics import make

from captum_causalseg import Status


def test_the_table_has_a_row_per_example_unit_and_output_and_says_where_units_lie():
    stats = make(output_shape=(2,), output_axes=("class",))
    table = stats.to_dataframe(level=0.8)
    assert len(table) == 8
    assert table["class"].tolist() == [0, 1] * 4
    assert table["unit"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["start_0"].tolist() == [0, 0, 2, 2, 4, 4, 6, 6]
    assert table["stop_0"].tolist() == [2, 2, 4, 4, 6, 6, 8, 8]
    assert set(table["status"]) == {"ESTIMATED"}
    low, high = stats.confidence_interval(0.8)
    np.testing.assert_array_equal(table["lower"], low.ravel())
    np.testing.assert_array_equal(table["upper"], high.ravel())
    assert (table["observed_score"] == 0.75).all()


def test_absent_units_are_left_out_of_the_table():
    assert make(status=(0, Status.ABSENT, 0, 0)).to_dataframe()["unit"].tolist() == [0, 2, 3]
