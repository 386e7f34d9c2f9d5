"""What Captum's baselines mean, as sources of donors, and what does not fit."""

import pytest
import torch
from donor_cases import box

from captum_causalseg import Constant, PatchBank, SameImage
from captum_causalseg.donors import as_donor_source


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
