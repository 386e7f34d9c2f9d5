"""Image files as other libraries write them."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

nibabel = pytest.importorskip("nibabel")

# Turned by 20 degrees about the third axis, voxels of 1 x 1.5 x 3 mm, one axis flipped.
TURN = np.array([[np.cos(0.35), -np.sin(0.35), 0], [np.sin(0.35), np.cos(0.35), 0], [0, 0, 1]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([1, -1.5, 3])
OBLIQUE[:3, 3] = [-7, 5, 9]
VOLUME = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


def write_nifti(path, values, affine=OBLIQUE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def scan(*shape, affine=OBLIQUE):
    return MetaTensor(torch.rand(*shape), affine=torch.tensor(affine))
