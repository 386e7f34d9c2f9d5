"""Which way a volume is shown, and how long its edges are."""

import sys

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from captum_causalseg.visualization.geometry import Geometry, geometry_of

VOLUME = torch.zeros(2, 1, 4, 5, 6)
# The axes of the array run to the left, the front and the feet.
LAI = np.array([[-2.0, 0, 0, 9], [0, 1.0, 0, 3], [0, 0, -3.0, 5], [0, 0, 0, 1]])


def test_an_affine_says_spacing_and_directions():
    found = geometry_of(VOLUME, None, LAI, example=0)
    assert found == Geometry((2.0, 1.0, 3.0), "LAI", in_mm=True, askew=0.0)
    assert found == geometry_of(MetaTensor(VOLUME, affine=torch.tensor(LAI)), None, None, example=1)
    # The patient's left on the right, the front at the top or on the left, the head at the top.
    assert [(found.beginning(axis), found.end(axis)) for axis in range(3)] == [("R", "L"), ("A", "P"), ("S", "I")]
    assert [found.turned(axis) for axis in range(3)] == [False, True, False]
    assert found.cuts() == [2, 1, 0]
    assert [found.cut_name(axis) for axis in range(3)] == ["sagittal", "coronal", "axial"]
    # Axial: rows from front to back; coronal and sagittal: from head to feet.
    assert [found.plane_axes(axis) for axis in (2, 1, 0)] == [(1, 0), (2, 0), (2, 1)]


def test_examples_have_affines_of_their_own():
    several = MetaTensor(VOLUME, affine=torch.tensor(np.stack([LAI, np.diag([1.0, 1, 4, 1])])))
    assert [geometry_of(several, None, None, example=i).toward for i in (0, 1)] == ["LAI", "RAS"]


def test_scans_in_the_directions_of_dicom_are_turned_around():
    scan = MetaTensor(VOLUME, affine=torch.diag(torch.tensor([2.0, 1, 3, 1])), meta={"space": "LPS"})
    assert geometry_of(scan, None, None, example=0).toward == "LPS"


def test_without_an_affine_nothing_is_said_of_directions():
    for given, expected in ((None, (1.0,) * 3), (2, (2.0,) * 3), ((1, 2, 3), (1.0, 2.0, 3.0))):
        found = geometry_of(VOLUME, given, None, example=0)
        assert found == Geometry(expected)
        assert [found.cut_name(axis) for axis in found.cuts()] == ["axis 2", "axis 1", "axis 0"]
    # A tensor with MONAI's identity has no geometry.
    assert geometry_of(MetaTensor(VOLUME), None, None, example=0) == Geometry((1.0,) * 3)


def test_a_spacing_that_is_given_goes_before_the_affine_and_may_be_in_other_units():
    told = geometry_of(VOLUME, (2, 1, 3), LAI, example=0)
    assert told.in_mm
    other = geometry_of(VOLUME, 1, LAI, example=0)
    assert (other.spacing, other.toward, other.in_mm) == ((1.0,) * 3, "LAI", False)


def test_pictures_have_edges_and_no_directions():
    found = geometry_of(torch.zeros(1, 3, 4, 5), None, np.diag([0.5, 0.25, 1]), example=0)
    assert found == Geometry((0.5, 0.25), in_mm=True)


def test_scans_that_lie_askew_are_told():
    angle = np.radians(20)
    turned = LAI.copy()
    turned[:2, :2] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ LAI[:2, :2]
    found = geometry_of(VOLUME, None, turned, example=0)
    assert found.toward == "LAI"
    assert found.notes() == ["the scan lies askew by up to 20 degrees: letters name the nearest direction"]
    assert geometry_of(VOLUME, None, LAI, example=0).notes() == []


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_what_is_no_affine_is_refused(affine):
    with pytest.raises(ValueError, match=r"affine: expected a matrix \(4, 4\) from voxels to millimeters"):
        geometry_of(VOLUME, None, affine, example=0)


def test_without_nibabel_only_an_affine_that_was_given_is_missed(monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    monkeypatch.setattr("captum_causalseg.visualization.geometry.find_spec", lambda name: None)
    scan = MetaTensor(VOLUME, affine=torch.tensor(LAI))
    assert geometry_of(scan, None, None, example=0) == Geometry((2.0, 1.0, 3.0), in_mm=True)
    with pytest.raises(ImportError, match="in the orientation of the patient need nibabel"):
        geometry_of(VOLUME, None, LAI, example=0)
