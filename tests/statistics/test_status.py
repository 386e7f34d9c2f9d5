"""What becomes of a unit, by number and by name."""

import numpy as np
import pandas as pd
import pytest
import torch

from captum_causalseg import Status
from captum_causalseg.statistics import is_hypothesis


def test_statuses_by_number_and_by_name():
    every = list(Status)
    expected = [True, True, False, False, False, False]
    assert is_hypothesis(np.array([int(one) for one in every])).tolist() == expected
    assert is_hypothesis(torch.tensor([[int(one)] for one in every])).tolist() == [[one] for one in expected]
    assert is_hypothesis(pd.Series([one.name for one in every])).tolist() == expected
    assert is_hypothesis(pd.Series([], dtype=object)).tolist() == []
    with pytest.raises(TypeError, match=r"^status: expected a tensor or an array.*got str"):
        is_hypothesis("ESTIMATED")
