"""Where windows lie, on images that are smaller as well."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from captum_causalseg.target.window_layout import Padding, WindowLayout, find_patch_size

NONE = Padding()


def layout(spatial, size, corners, weight=None, padding=NONE):
    return WindowLayout(spatial, size, starts=corners, weight=torch.ones(size) if weight is None else weight, padding=padding)


def test_lengths_of_the_images_own():
    assert find_patch_size(4, (9, 8)) == (4, 4)
    assert find_patch_size((4, None), (9, 8)) == (4, 8)
    assert find_patch_size((0, -1), (9, 8)) == (9, 8)
    with pytest.raises(ValueError, match="patch_size: expected one number for each of the image's 3 spatial axes"):
        find_patch_size((4, 4), (9, 8, 7))


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_a_part_that_is_padded_is_a_part_of_what_is_padded(mode):
    image = torch.rand(2, 3, 5, 12)
    found = layout((5, 12), (8, 6), [(0, 0), (0, 6)], padding=Padding(mode, 0.5 if mode == "constant" else 0.0))
    value = {"value": 0.5} if mode == "constant" else {}
    whole = functional.pad(image, (0, 0, 1, 2), mode=mode, **value)
    assert found.size == (5, 6)
    windows = found.padded(found.cut(image, np.array([1, 0]), np.array([0, 1])))
    assert torch.equal(windows, torch.stack([whole[1, :, :, :6], whole[0, :, :, 6:]]))
    assert torch.equal(found.unpadded(windows), torch.stack([image[1, :, :, :6], image[0, :, :, 6:]]))


def test_what_weights_add_up_to():
    found = layout((6,), (4,), [(0,), (2,)], torch.tensor([1.0, 2, 3, 4]))
    assert found.count(torch.float32).tolist() == [1, 2, 4, 6, 3, 4]
    assert found.count(torch.float64).dtype == torch.float64
    assert layout((3,), (4,), [(0,)], torch.tensor([1.0, 2, 3, 4])).weight.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        ([(0, 0)], "corners of windows, each of 1 integers"),
        ([], "corners of windows"),
        ([(0.5,)], "corners of windows"),
        ([(3,)], r"the window of \(4,\) at \(3,\) does not lie in an image of \(6,\)"),
        ([(-1,)], "does not lie in an image"),
        ([(0,)], r"in an image of \(6,\), no window that counts there holds the element \(4,\)"),
    ],
)
def test_windows_that_do_not_make_an_image(corners, message):
    with pytest.raises(ValueError, match=message):
        layout((6,), (4,), corners)


def test_weights_that_do_not_fit():
    with pytest.raises(ValueError, match="weight: expected one number per element"):
        layout((6,), (4,), [(0,), (2,)], torch.ones(5))
    with pytest.raises(ValueError, match="weight: expected a tensor"):
        layout((6,), (4,), [(0,), (2,)], torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"no window that counts there holds the element \(0,\)"):
        layout((6,), (4,), [(0,), (2,)], torch.tensor([0.0, 1, 1, 1]))
