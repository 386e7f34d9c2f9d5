"""Numbers of places."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg.donors.numbering import skip_holes


@given(st.lists(st.integers(0, 40), unique=True, max_size=20), st.integers(0, 30))
def test_skipping_holes_is_counting_what_is_left(holes, number):
    left = [k for k in range(100) if k not in holes]
    numbers = np.array([number, 0, number + 3])
    assert skip_holes(numbers, np.array(sorted(holes), dtype=np.int64)).tolist() == [left[k] for k in numbers]
