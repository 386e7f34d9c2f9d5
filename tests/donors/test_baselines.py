"""What Captum's baselines mean, as sources of donors; constants, blurred images, and what does not fit."""

import pytest
import torch
from donor_cases import box, three_examples

from captum_causalseg import Blur, Constant, PatchBank, SameImage
from captum_causalseg.donors import SelfDonor, as_donor_source


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_a_units_own_values_are_its_only_donor(d):
    images = three_examples(d)
    bound = SelfDonor().bind(images)
    unit = box((1,) * d, (2, 3, 2)[:d])
    for example in range(3):
        assert bound.population(example, unit) == 1
        assert torch.equal(bound.read(example, unit, 0), images[example][(slice(None), *unit)])


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


def test_what_baselines_mean():
    image = torch.rand(2, 3, 8, 8)
    assert isinstance(as_donor_source(None, image), SameImage)
    assert isinstance(as_donor_source(0, image), Constant)
    assert isinstance(as_donor_source(torch.tensor(0.5), image), Constant)
    tensor = as_donor_source(torch.rand(5, 3, 1, 1), image)
    assert isinstance(tensor, PatchBank)
    bound = tensor.bind(image)
    assert bound.population(0, box((1, 1), (2, 2))) == 5
    assert bound.read(0, box((1, 1), (2, 2)), 3).shape == (3, 2, 2)
    bank = PatchBank(image)
    assert as_donor_source(bank, image) is bank


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(4, 2, 8, 8), r"donor image 0 has shape \(2, 8, 8\); expected .* C=3"),
        (torch.rand(4, 3, 8), r"donor image 0 has shape \(3, 8\); expected .* 2 spatial axes"),
        (torch.full((4, 3, 8, 8), float("nan")), "donor image 0 holds NaN or infinite"),
        ([torch.rand(3, 8, 8), torch.full((3, 8, 8), float("inf"))], "donor image 1 holds NaN or infinite"),
        (torch.randint(0, 255, (4, 3, 8, 8), dtype=torch.uint8), r"donors are torch\.uint8, the input torch\.float32"),
    ],
)
def test_donors_that_do_not_fit_are_refused(images, message):
    with pytest.raises(ValueError, match=f"baselines: .*{message}"):
        PatchBank(images).bind(torch.rand(1, 3, 16, 16))
