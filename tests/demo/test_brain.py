"""The demo's brain slices."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from captum_causalseg.demo import BrainSlices, load_brain_slices
from captum_causalseg.demo.brain import _read_axial


def synthetic_slices(depth: int) -> BrainSlices:
    return BrainSlices(torch.zeros(depth, 1, 16, 16), torch.zeros(depth, 16, 16, dtype=torch.long), torch.arange(depth).float())


def dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_slices_have_the_documented_shapes_types_and_ranges(brain: BrainSlices) -> None:
    depth = len(brain)
    assert depth > 100
    assert brain.images.shape == (depth, 1, 240, 208)
    assert brain.images.dtype == torch.float32
    assert brain.images.min() == 0
    assert 0.9 < brain.images.max() <= 1
    assert brain.labels.shape == (depth, 240, 208)
    assert brain.labels.dtype == torch.int64
    assert brain.labels.flatten().bincount().min() > 100_000
    assert brain.labels.min() == 0
    assert brain.labels.max() == 2
    assert brain.z_mm.shape == (depth,)
    assert torch.equal(brain.z_mm.diff(), torch.ones(depth - 1))


def test_padding_keeps_the_whole_brain_and_every_slice_has_enough_of_it(brain: BrainSlices) -> None:
    inside = brain.images[:, 0] > 0
    assert inside.sum(dim=(1, 2)).min() >= 5000
    edge = torch.ones(240, 208, dtype=torch.bool)
    edge[1:-1, 1:-1] = False
    assert not (inside & edge).any()
    assert not (brain.labels[~inside] > 0).any()


def test_white_matter_is_bright_and_fluid_is_dark_as_in_a_t1_scan(brain: BrainSlices) -> None:
    fluid, grey, white = (brain.images[:, 0][(brain.labels == c) & (brain.images[:, 0] > 0)].mean() for c in range(3))
    assert fluid + 0.1 < grey
    assert grey + 0.1 < white


def test_anterior_is_up(brain: BrainSlices) -> None:
    """Low slices cut the cerebellum, which is at the back, where higher ones have brain from front to back."""
    inside = brain.images[:, 0] > 0
    rows = torch.arange(240.0)

    def center(z: float) -> float:
        per_row = inside[brain.z_mm == z][0].sum(dim=1)
        return ((rows * per_row).sum() / per_row.sum()).item()

    assert center(-45) > center(10) + 15


def test_left_is_left_whatever_the_storage_order() -> None:
    """The average brain is mirror-symmetric and cannot tell, so a volume with a marked corner does."""
    pytest.importorskip("nilearn")
    import nibabel

    volume = np.zeros((5, 6, 4), dtype=np.float32)
    # The first axis of the array runs from right (x = 4) to left (x = 0): this voxel is left, anterior, inferior.
    volume[4, 5, 0] = 1
    image = nibabel.Nifti1Image(volume, np.array([[-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, -7], [0, 0, 0, 1.0]]))
    slices, z_mm = _read_axial(lambda resolution: image)
    assert slices.shape == (4, 6, 5)
    assert np.argwhere(slices).tolist() == [[0, 0, 0]]
    assert z_mm.tolist() == [-7, -6, -5, -4]


def test_missing_nilearn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(ImportError, match=r'pip install "captum-causalseg\[demo\]"'):
        load_brain_slices()


@pytest.mark.parametrize(("depth", "slabs", "slab", "margin"), [(121, 3, 8, 5), (121, 1, 7, 0), (60, 4, 3, 2)])
def test_split_holds_out_slabs_with_a_margin(depth: int, slabs: int, slab: int, margin: int) -> None:
    train, held_out = synthetic_slices(depth).split(slabs=slabs, slab=slab, margin=margin)
    assert len(held_out) == slabs * slab
    assert len(train) == depth - slabs * (slab + 2 * margin)
    assert (held_out.z_mm.diff() > 1).sum() == slabs - 1
    assert (held_out.z_mm[:, None] - train.z_mm).abs().min() == margin + 1


def test_split_refuses_to_leave_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="leave none"):
        synthetic_slices(54).split(slabs=3, slab=8, margin=5)
    with pytest.raises(ValueError, match="slabs: expected at least 1, got 0"):
        synthetic_slices(54).split(slabs=0)


def test_held_out_slices_are_no_near_copies_of_train_slices(brain: BrainSlices) -> None:
    """Labels of the nearest train slice must be a poor guess, and those of the next slice a good one (the leak)."""
    train, held_out = brain.split()
    nearest = (held_out.z_mm[:, None] - train.z_mm).abs().argmin(dim=1)
    following = torch.searchsorted(brain.z_mm, held_out.z_mm) + 1
    assert dice(held_out.labels == 1, train.labels[nearest] == 1) < 0.65
    assert dice(held_out.labels == 1, brain.labels[following] == 1) > 0.85
