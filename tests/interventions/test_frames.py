"""Windows and entries of batches."""

import numpy as np
import pytest
import torch

from captum_causalseg.interventions.frames import Frame, gather


@pytest.mark.parametrize("shape", [(9,), (6, 8), (4, 5, 6)])
def test_a_window_is_put_back_where_it_was_cut(shape):
    values = torch.rand(2, 3, *shape)
    frame = Frame(np.array([[1] * len(shape), [0] * len(shape)]), [length - 1 for length in shape])
    back = frame.uncrop(frame.crop(values), shape)
    places = torch.zeros(values.shape, dtype=torch.bool)
    for example, first in enumerate((1, 0)):
        places[(example, slice(None), *(slice(first, first + length - 1) for length in shape))] = True
    assert torch.equal(back, torch.where(places, values, 0.0))


def test_what_is_gathered_are_copies():
    tensor = torch.arange(6.0).view(3, 2)
    found, scalar, word = gather([tensor, torch.tensor(2.0), "word"], np.array([2, 0, 0]))
    assert torch.equal(found, tensor[[2, 0, 0]])
    assert (scalar, word) == (2, "word")
    found.zero_()
    assert tensor.sum() == 15
