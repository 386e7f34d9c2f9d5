"""Constants, and images blurred: one donor each."""

import torch
from donor_cases import box

from captum_causalseg import Blur, Constant


def test_constants_and_blur_have_one_donor():
    image = torch.rand(2, 3, 16, 16)
    unit = box((4, 4), (4, 4))
    constant = Constant([1.0, 2.0, 3.0]).bind(image)
    assert constant.population(0, unit) == 1
    assert constant.read(0, unit, 0).flatten().tolist() == [1, 2, 3]
    blur = Blur(2.0).bind(image)
    assert blur.population(1, unit) == 1
    blurred = blur.read(1, unit, 0)
    assert blurred.shape == (3, 4, 4)
    assert blurred.std() < image[1, :, 4:8, 4:8].std() / 2
    flat = Blur(2.0).bind(torch.full((1, 1, 16, 16), 0.7)).read(0, box((0, 0), (16, 16)), 0)
    torch.testing.assert_close(flat, torch.full((1, 16, 16), 0.7))  # no dark rim at the edges
