"""Scores as evaluators give them."""

import numpy as np
import torch

from captum_causalseg.engine.scores import read


def test_scores_are_copied_in_double_precision_with_their_resolution():
    given = torch.tensor([[0.25, 0.5]])
    values, resolution = read(given)
    given.zero_()
    assert values.dtype == np.float64
    assert values.tolist() == [[[0.25], [0.5]]]
    assert resolution == torch.finfo(torch.float32).eps


def test_controls_stay_where_they_are_and_integers_are_exact():
    values, resolution = read(torch.tensor([[[1, 7], [2, 8]]]))
    assert values.tolist() == [[[1, 7], [2, 8]]]
    assert resolution == 0
