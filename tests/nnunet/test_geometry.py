"""Every voxel of a prepared grid is where its affine says, in the scan that it comes from."""

import itertools

import numpy as np
import pytest

from captum_causalseg.nnunet.geometry import CaseGeometry, spacing_on

AFFINE = np.array([[-0.8, 0.5, 0.1, 10.0], [0.4, 1.1, 0.0, -5.0], [0.2, 0.0, 1.7, 3.0], [0.0, 0.0, 0.0, 1.0]])
SCAN = (7, 6, 5)
BOX = ((1, 5), (0, 4), (1, 5))  # of the turned grid


def sitk_stuff(affine):
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return {"spacing": spacing, "origin": lps[:3, 3], "direction": (lps[:3, :3] / spacing).ravel()}


def nibabel_stuff(affine, turned):
    import nibabel

    image = nibabel.Nifti1Image(np.zeros(SCAN, dtype=np.uint8), affine)
    about = {"original_affine": affine}
    if turned:
        about["reoriented_affine"] = image.as_reoriented(nibabel.io_orientation(affine)).affine
    return about


def read_shape(scan, about, affine):
    """Of a scan as nnU-Net's reader gives it."""
    if "reoriented_affine" not in about:
        return scan[::-1]
    import nibabel

    return tuple(
        nibabel.Nifti1Image(np.zeros(scan, dtype=np.uint8), affine).as_reoriented(nibabel.io_orientation(affine)).shape[::-1]
    )


def case(order, kind):
    affine = AFFINE
    if kind == "turned":  # of a scan whose axes lie crosswise
        affine = AFFINE[:, [2, 0, 1, 3]]
    about = sitk_stuff(affine) if kind == "sitk" else nibabel_stuff(affine, kind == "turned")
    read = read_shape(SCAN, about, affine)
    properties = {
        "sitk_stuff" if kind == "sitk" else "nibabel_stuff": about,
        "spacing": [1.0, 2.0, 3.0],
        "shape_before_cropping": tuple(read[axis] for axis in order),
        "bbox_used_for_cropping": BOX,
        "shape_after_cropping_and_before_resampling": tuple(stop - start for start, stop in BOX),
    }
    return CaseGeometry(properties, order, tuple(stop - start for start, stop in BOX), False), affine


@pytest.mark.parametrize("kind", ["sitk", "nibabel", "turned"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_a_voxel_lies_where_the_affine_says(order, kind):
    geometry, affine = case(order, kind)
    assert np.allclose(geometry.scan_affine, affine)
    for place in itertools.product(*map(range, geometry.shape)):
        prepared = np.zeros(geometry.shape)
        prepared[place] = 1
        scan = geometry.scan_of(geometry.to_array(prepared))
        assert scan.shape == geometry.scan_shape == SCAN
        (found,) = np.argwhere(scan)
        assert np.allclose(geometry.affine @ [*place, 1], affine @ [*found, 1])
        # And back.
        assert np.array_equal(geometry.from_array(geometry.array_of(scan)), prepared)


def test_the_middle_of_a_coarser_voxel():
    geometry, _affine = case((0, 1, 2), "sitk")
    coarse = CaseGeometry(geometry.properties, geometry.order, (2, 2, 2), False)
    # Of four voxels two are made: the first lies in the middle of the first two.
    first = geometry.affine @ [0.5, 0.5, 0.5, 1]
    assert np.allclose(coarse.affine @ [0, 0, 0, 1], first)
    assert np.allclose(coarse.affine @ [1, 1, 1, 1], geometry.affine @ [2.5, 2.5, 2.5, 1])


def test_a_picture_has_rows_and_columns():
    properties = {
        "spacing": (999, 1, 1),
        "shape_before_cropping": (1, 6, 5),
        "bbox_used_for_cropping": ((0, 1), (2, 5), (1, 4)),
        "shape_after_cropping_and_before_resampling": (1, 3, 3),
    }
    geometry = CaseGeometry(properties, (0, 1, 2), (1, 3, 3), True)
    assert geometry.scan_shape == (6, 5)
    assert np.array_equal(geometry.scan_affine, np.eye(4))
    picture = np.arange(30).reshape(6, 5)
    inside = geometry.from_array(geometry.array_of(picture))
    assert np.array_equal(inside[0], picture[2:5, 1:4])
    back = geometry.scan_of(geometry.to_array(inside))
    assert np.array_equal(back[2:5, 1:4], picture[2:5, 1:4])
    assert back.sum() == picture[2:5, 1:4].sum()
    assert (geometry.affine @ [0, 0, 0, 1]).tolist() == [2, 1, 0, 1]


def test_a_plane_in_a_file_of_two_axes():
    about = {"spacing": (0.5, 0.7), "origin": (1.0, 2.0), "direction": (1.0, 0.0, 0.0, 1.0)}
    properties = {
        "sitk_stuff": about,
        "spacing": [700.0, 0.7, 0.5],
        "shape_before_cropping": (1, 6, 5),
        "bbox_used_for_cropping": ((0, 1), (0, 6), (0, 5)),
        "shape_after_cropping_and_before_resampling": (1, 6, 5),
    }
    geometry = CaseGeometry(properties, (0, 1, 2), (1, 6, 5), False)
    assert geometry.scan_shape == (5, 6)
    assert np.allclose(geometry.scan_affine.diagonal(), [-0.5, -0.7, 1, 1])
    plane = np.arange(30).reshape(5, 6)
    assert np.array_equal(geometry.scan_of(geometry.to_array(geometry.from_array(geometry.array_of(plane)))), plane)


def test_a_2d_configuration_keeps_the_distance_of_slices():
    assert spacing_on(3, [1.0, 2.0], [5.0, 1.5, 1.5]) == [5.0, 1.0, 2.0]
    assert spacing_on(3, [3.0, 1.0, 2.0], [5.0, 1.5, 1.5]) == [3.0, 1.0, 2.0]
