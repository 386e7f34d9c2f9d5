"""Segmentations as users have them: masks, masks per class, labels."""

import numpy as np
import pytest
import torch

from captum_causalseg.visualization.segmentations import class_mask

LABELS = torch.tensor([[0, 1, 2], [2, 1, 0]])
ABOUT = {"spatial": (2, 3), "n_examples": 2, "example": 1}
PER_CLASS = torch.stack([torch.stack([labels == c for c in range(3)]) for labels in (torch.zeros_like(LABELS), LABELS)])


@pytest.mark.parametrize(
    ("given", "output"),
    [
        (LABELS == 2, None),
        (LABELS == 2, 1),  # a boolean mask is that of the class, whichever this is
        ((LABELS == 2).numpy(), None),
        (torch.stack([LABELS == 0, LABELS == 2]), None),
        (torch.stack([LABELS == 0, LABELS == 2])[:, None], None),
        ((LABELS == 2).long(), None),
        (LABELS, 2),
        (LABELS.float(), 2),
        (torch.stack([LABELS * 0, LABELS]), 2),
        (PER_CLASS, 2),
        (PER_CLASS, -1),
        (PER_CLASS.float(), 2),
        (PER_CLASS[1:], 2),
    ],
)
def test_every_form_gives_the_mask_of_the_class(given, output):
    np.testing.assert_array_equal(class_mask("reference", given, output=output, **ABOUT), LABELS == 2)


def test_nothing_is_nothing():
    assert class_mask("segmentation", None, output=None, **ABOUT) is None


@pytest.mark.parametrize(
    ("given", "output", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.bool), None, r"segmentation: expected a mask of the image's spatial shape \(2, 3\)"),
        (torch.zeros(3, 2, 3, dtype=torch.bool), None, r"for 2 example\(s\); got \(3, 2, 3\)"),
        (PER_CLASS, None, "segmentation: it has 3 classes, and the target does not say which is explained"),
        (PER_CLASS, 3, "segmentation: it has 3 classes, and class 3 is explained"),
        (PER_CLASS * 2, 1, "segmentation: expected one boolean mask per class"),
        (LABELS, None, "segmentation: its labels go to 2, and the target does not say which is explained"),
        (LABELS / 3, 1, "segmentation: expected a boolean mask or whole numbers as labels, got torch.float32 with fractions"),
    ],
)
def test_what_says_nothing_of_the_class_is_refused(given, output, message):
    with pytest.raises(ValueError, match=message):
        class_mask("segmentation", given, output=output, **ABOUT)


def test_other_types_are_refused():
    for given in ("argument", [1, 2]):
        with pytest.raises(TypeError, match="segmentation: expected"):
            class_mask("segmentation", given, output=None, **ABOUT)
