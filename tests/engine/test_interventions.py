"""Sets of units per row: how batches of them are put together, taken apart, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg.engine.interventions import Interventions

SETS = st.lists(st.dictionaries(st.integers(0, 5), st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4), max_size=6)


def as_sets(interventions):
    """Row by row the set of ``(unit, donors)``."""
    found = [set() for _ in range(len(interventions))]
    for row, unit, donor in zip(interventions.row, interventions.unit, interventions.donor):
        found[row].add((int(unit), tuple(donor.tolist())))
    return found


def batch(sets, with_noise=True):
    example = np.arange(len(sets)) % 2
    noise = np.arange(len(sets)) * 10 if with_noise else None
    return Interventions.of_sets(example, [list(one.items()) for one in sets], noise)


@given(SETS, st.lists(st.integers(0, 5), max_size=8), st.booleans())
def test_rows_are_taken_with_their_sets(sets, which, with_noise):
    which = np.array([row for row in which if row < len(sets)], dtype=np.int64)
    found = batch(sets, with_noise).rows(which)
    assert as_sets(found) == [set(sets[row].items()) for row in which]
    assert found.example.tolist() == (which % 2).tolist()
    assert found.noise is None if not with_noise else found.noise.tolist() == (which * 10).tolist()


@given(SETS, st.integers(0, 63))
def test_emptied_rows_replace_nothing(sets, bits):
    which = np.array([bool(bits >> row & 1) for row in range(len(sets))], dtype=bool)
    found = batch(sets).emptied(which)
    assert as_sets(found) == [set() if gone else set(one.items()) for gone, one in zip(which, sets)]
    assert found.noise.tolist() == [0 if gone else 10 * row for row, gone in enumerate(which)]


def test_what_is_looked_at_goes_with_its_row():
    outputs = np.array([[True, False], [False, True]])
    both = Interventions.single(np.array([1, 0]), np.array([4, 2]), np.array([[7], [8]]), outputs=outputs)
    assert both.rows(np.array([1, 1, 0])).outputs.tolist() == outputs[[1, 1, 0]].tolist()
    assert both.emptied(np.array([True, False])).outputs.tolist() == outputs.tolist()
    assert both.of_donors(np.array([[1], [2]])).outputs.tolist() == outputs.tolist()


def test_one_unit_each_and_nothing():
    one = Interventions.single(np.array([1, 0]), np.array([4, 2]), np.array([[7], [8]]))
    assert as_sets(one) == [{(4, (7,))}, {(2, (8,))}]
    assert as_sets(Interventions.nothing(np.array([1, 0]))) == [set(), set()]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"row": [0, 0], "unit": [3, 3], "donor": [[0], [1]]}, "unit: expected every unit once in a set, got 3 several times in row 0"),
        ({"row": [0, 2], "unit": [3, 3], "donor": [[0], [1]]}, "row: expected rows 0 to 1, got 0 to 2"),
        ({"row": [0, 1], "unit": [3], "donor": [[0], [1]]}, r"unit, donor: expected \(P,\) and \(P, slots\) with P=2"),
        ({"row": [0, 1], "unit": [3, 3], "donor": [[0], [1]], "noise": [1]}, "noise: expected one per row"),
        ({"row": [0, 1], "unit": [3, 3], "donor": [[0], [1]], "outputs": [[True]]}, r"outputs: expected \(B, K\) with B=2, got \(1, 1\)"),
    ],
)  # fmt: skip
def test_what_is_no_batch_of_sets(given, said):
    with pytest.raises(ValueError, match=said):
        Interventions(example=np.array([0, 1]), **{name: np.array(value) for name, value in given.items()})
