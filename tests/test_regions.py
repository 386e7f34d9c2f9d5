"""RoIs and units against loops over pixels."""

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from captum_causalseg import SegmentationTarget, regions

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)


def positions(shape):
    return itertools.product(*map(range, shape))


@st.composite
def masks(draw, levels=2):
    shape = draw(SHAPES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, levels, shape)


# box


@given(SHAPES, st.data())
def test_box_holds_the_positions_from_start_on(shape, data):
    start = tuple(data.draw(st.integers(0, length - 1)) for length in shape)
    size = tuple(data.draw(st.integers(1, length - begin)) for length, begin in zip(shape, start))
    mask = regions.box(shape, start, size)
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    for position in positions(shape):
        assert mask[position] == all(begin <= p < begin + n for p, begin, n in zip(position, start, size))


@pytest.mark.parametrize("spatial_shape", [(6, 8), [6, 8], torch.Size([6, 8]), np.array([6, 8])])
@pytest.mark.parametrize(("start", "size"), [(2, 3), ((2, 2), 3), (2, [3, 3]), (np.int64(2), np.array([3, 3]))])
def test_box_takes_one_number_for_all_axes_or_one_per_axis(spatial_shape, start, size):
    assert torch.equal(regions.box(spatial_shape, start, size), regions.box((6, 8), (2, 2), (3, 3)))


@pytest.mark.parametrize(
    ("start", "size", "match"),
    [
        ((0, -1), 2, "start, size: the box -1..1 leaves axis 1 of the image, which has 8 pixels"),
        ((5, 0), 2, r"start, size: the box 5\.\.7 leaves axis 0 of the image, which has 6 pixels"),
        (0, (7, 2), r"start, size: the box 0\.\.7 leaves axis 0"),
        (0, 0, r"start, size: the box 0\.\.0"),
        ((1, 2, 3), 2, r"start: expected one integer or 2 of them \(one per spatial axis\), got \(1, 2, 3\)"),
        (0, (2,), "size: expected one integer or 2 of them"),
        (1.5, 2, "start: expected one integer or 2 of them .*, got 1.5"),
        (1, (2, 2.0), "size: expected one integer or 2 of them"),
        (True, 2, "start: expected one integer or 2 of them"),
        ("ab", 2, "start: expected one integer or 2 of them"),
        (None, 2, "start: expected one integer or 2 of them"),
    ],
)
def test_box_refuses(start, size, match):
    with pytest.raises(ValueError, match=match):
        regions.box((6, 8), start, size)


# component


@given(masks(levels=3))
def test_component_is_what_a_flood_from_the_point_reaches(values):
    point = tuple(int(p) for p in np.unravel_index(values.argmax(), values.shape))
    assume(values[point] > 0)
    reached, front = {point}, [point]
    while front:
        here = front.pop()
        for step in itertools.product((-1, 0, 1), repeat=values.ndim):
            there = tuple(h + s for h, s in zip(here, step))
            inside = all(0 <= t < length for t, length in zip(there, values.shape))
            if inside and there not in reached and values[there] == values[point]:
                reached.add(there)
                front.append(there)
    expected = torch.tensor([position in reached for position in positions(values.shape)]).reshape(values.shape)
    assert torch.equal(regions.component(values, point), expected)
    assert torch.equal(regions.component(torch.from_numpy(values), point), expected)


def test_component_of_a_boolean_mask_leaves_the_other_objects_out():
    mask = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=torch.bool)
    assert regions.component(mask, (0, 0)).int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("point", [(0,), (0, 0, 0), (-1, 0), (0, 3), (2, 0)])
def test_component_refuses_a_point_that_is_no_position(point):
    with pytest.raises(ValueError, match=r"point: \(.*\) is no position in a mask of shape \(2, 3\)"):
        regions.component(torch.ones(2, 3), point)


def test_component_refuses_a_point_in_the_background():
    with pytest.raises(ValueError, match=r"point: the mask is 0 at \(0, 1\); choose a point inside"):
        regions.component(torch.tensor([[1, 0]]), (0, 1))


# errors


def flood(places):
    """Sets of positions that hang together, diagonally too, in the order of their first position."""
    left, found = sorted(places), []
    while left:
        group, border = {left[0]}, [left[0]]
        while border:
            here = border.pop()
            near = {p for p in left if p not in group and max(abs(a - b) for a, b in zip(p, here)) <= 1}
            group |= near
            border += near
        found.append(group)
        left = [p for p in left if p not in group]
    return found


@pytest.mark.parametrize("kind", ["any", "false_positive", "missed"])
@pytest.mark.parametrize("label", [None, 1, 2])
@pytest.mark.parametrize("spatial", [(80,), (9, 8), (5, 4, 6)])
def test_errors_are_the_floods_of_what_differs_the_largest_first(spatial, label, kind):
    rng = np.random.default_rng(len(spatial))
    truth = rng.integers(0, 3, spatial)
    found = np.where(rng.random(spatial) < 0.7, truth, rng.integers(0, 3, spatial))

    def is_wrong(p, t):
        if label is not None:
            p, t = int(p == label), int(t == label)
        return p != t and {"any": True, "false_positive": p != 0, "missed": t != 0}[kind]

    groups = flood([place for place in np.ndindex(spatial) if is_wrong(found[place], truth[place])])
    groups.sort(key=len, reverse=True)
    assert len(groups) >= 2
    for rank, group in enumerate(groups, start=1):
        roi = regions.errors(torch.from_numpy(found), truth, kind, rank, label=label)
        assert {tuple(place) for place in roi.nonzero().tolist()} == group
    with pytest.raises(ValueError, match=f"^rank: prediction and reference differ in {len(groups)} connected"):
        regions.errors(found, truth, kind, len(groups) + 1, label=label)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("label", [None, 1])
def test_errors_of_a_batch_are_one_roi_per_example_for_a_target(classes, label):
    torch.manual_seed(0)
    model = nn.Conv2d(2, classes, 3, padding=1).eval()
    images, truth = torch.rand(2, 2, 12, 12) - 0.5, torch.randint(0, max(classes, 2), (2, 12, 12))
    target = SegmentationTarget(model, reference=truth)
    masks = target.predict(images)
    maps = masks[:, 0].long() if classes == 1 else masks.int().argmax(1)
    rois = regions.errors(masks, truth, "missed", label=label)
    assert rois.shape == (2, 1, 12, 12)
    for n in range(2):
        expected = regions.errors(maps[n], truth[n], "missed", label=label)
        assert torch.equal(rois[n, 0], expected)
        assert torch.equal(regions.errors(masks[n : n + 1], truth[n], "missed", label=label)[0, 0], expected)
    one_hot = torch.nn.functional.one_hot(truth, max(classes, 2)).movedim(-1, 1).bool()[:, -classes:]
    assert torch.equal(regions.errors(masks, one_hot, "missed", label=label), rois)
    assert SegmentationTarget(model, reference=truth, roi=rois)(images).shape == ((2,) if classes == 1 else (2, classes))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (([0, 1, 1], [0, 1, 1]), "^rank: prediction and reference differ in 0 connected errors, got 1"),
        (([0, 1], [0, 1, 1]), r"^reference: expected the shape \(2,\), as prediction is \(2,\); got \(3,\)"),
        ((torch.ones(2, 3, 4, 4, dtype=torch.bool), torch.ones(4, 4)), r"^reference: expected the shape .* or \(2, 4, 4\), as"),
        ((torch.ones(1, 2, 4, 4, dtype=torch.bool), torch.ones(4, 4)), "^label: the channels of prediction overlap or leave"),
        ((torch.ones(1, 2, 4, 4), torch.ones(4, 4)), "^prediction: expected boolean hard masks"),
    ],
)
def test_errors_refuse(arguments, match):
    with pytest.raises(ValueError, match=match):
        regions.errors(*map(torch.as_tensor, arguments))
    with pytest.raises(ValueError, match=r"^label: expected 0\.\.1, got 2"):
        regions.errors(torch.ones(1, 2, 4, 4, dtype=torch.bool), torch.ones(4, 4), label=2)


# from_label


@given(masks(levels=4), st.sampled_from(["int64", "uint8", "float32", ">i2"]), st.booleans())
def test_from_label_is_where_the_label_is(values, dtype, as_tensor):
    values = values.astype(dtype)
    given_map = torch.from_numpy(values) if as_tensor and dtype != ">i2" else values
    for label in range(5):
        if label not in values:
            there = ", ".join(str(int(value)) for value in sorted(set(values.flatten().tolist())))
            with pytest.raises(ValueError, match=f"value: the label map holds {there}, got {label}$"):
                regions.from_label(given_map, label)
            continue
        found = regions.from_label(given_map, label)
        assert found.dtype == torch.bool
        assert found.tolist() == (values == label).tolist()


def test_from_label_keeps_the_shape_and_refuses_fractions():
    assert regions.from_label(torch.tensor([[[[0, 1]]]]), 1).shape == (1, 1, 1, 2)
    assert regions.from_label(np.array([True, False]), 1).tolist() == [True, False]
    with pytest.raises(ValueError, match="label_map: expected whole numbers, got float32, some of them fractions"):
        regions.from_label(torch.tensor([0.0, 0.5, 1.0]), 1)
    with pytest.raises(ValueError, match="label_map: expected whole numbers, got float64"):
        regions.from_label(np.array([np.nan, 1.0]), 1)


def test_from_label_lists_the_first_of_many_values():
    with pytest.raises(ValueError, match=r"value: the label map holds 0, 1, 2, .*, 19 and 80 more, got -1$"):
        regions.from_label(torch.arange(100), -1)


# from_file


def write_nifti(path, values, affine=None):
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1, 2, 3, 1]) if affine is None else affine), path)
    return path


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6)])
def test_from_file_is_what_the_mask_draws(tmp_path, shape, value):
    drawn = regions.box(shape, 1, 2).numpy()
    path = write_nifti(tmp_path / "roi.nii.gz", (drawn * value).astype(np.uint8))
    like = MetaTensor(torch.rand(2, 3, *shape), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
    for image in (None, like, like.as_tensor()):
        roi = regions.from_file(path, like=image)
        assert type(roi) is torch.Tensor
        assert roi.dtype == torch.bool
        np.testing.assert_array_equal(roi, drawn)


def test_from_file_reads_a_volume_of_one_slice_for_a_slice(tmp_path):
    drawn = regions.box((4, 5, 1), 0, (2, 2, 1)).numpy()
    path = write_nifti(tmp_path / "roi.nii", drawn.astype(np.uint8))
    assert regions.from_file(path).shape == (4, 5, 1)
    np.testing.assert_array_equal(regions.from_file(path, like=torch.rand(1, 1, 4, 5)), drawn[..., 0])


def test_from_file_refuses(tmp_path):
    labels = write_nifti(tmp_path / "labels.nii", np.array([[[0, 1, 3]]], np.uint8))
    with pytest.raises(
        ValueError, match=r"path: .*labels\.nii holds several labels, 0, 1, 3; choose one with regions.from_label"
    ):
        regions.from_file(labels)
    empty = write_nifti(tmp_path / "empty.nii", np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"path: .*empty\.nii is 0 everywhere, so it contains no RoI"):
        regions.from_file(empty)
    drawn = write_nifti(tmp_path / "drawn.nii", np.ones((1, 2, 3), np.uint8))
    with pytest.raises(
        ValueError, match=r"label: expected the image's grid, 1 example\(s\) of \(1, 2, 4\), got 1 of \(1, 2, 3\)"
    ):
        regions.from_file(drawn, like=torch.rand(1, 1, 1, 2, 4))
    with pytest.raises(ValueError, match="label: it is not on the image's grid"):
        regions.from_file(drawn, like=MetaTensor(torch.rand(1, 1, 1, 2, 3), affine=torch.eye(4)))
    with pytest.raises(ValueError, match=r"drawn\.nii holds 3 spatial axes \(1, 2, 3\), expected 2"):
        regions.from_file(drawn, like=torch.rand(1, 1, 2, 3))
    with pytest.raises(FileNotFoundError, match=r"path: there is no file .*nowhere\.nii"):
        regions.from_file(tmp_path / "nowhere.nii")


@pytest.mark.parametrize("spatial", [(9,), (8, 9), (6, 7, 8)])
def test_every_region_of_a_metatensor_is_a_plain_tensor(spatial):
    labels = torch.zeros(spatial, dtype=torch.int64)
    labels[(slice(1, 4),) * len(spatial)] = 2
    scores = torch.randn(2, 3, *spatial)
    inside = (2,) * len(spatial)
    for found, expected in [
        (regions.component(MetaTensor(labels), inside), regions.component(labels, inside)),
        (regions.boundary(MetaTensor(labels), 1), regions.boundary(labels, 1)),
        (regions.predicted(MetaTensor(scores), 1), regions.predicted(scores, 1)),
        (regions.from_label(MetaTensor(labels), 2), labels == 2),
        (regions.from_mask(MetaTensor(labels)), labels // 2),
        # Around what a model predicts.
        (regions.boundary(regions.predicted(MetaTensor(scores), 1)[0, 0]), regions.boundary(scores[0].argmax(0) == 1)),
    ]:
        assert type(found) is torch.Tensor
        assert torch.equal(found, expected)


# boundary


@given(masks(), st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]))
def test_boundary_is_what_lies_within_the_width_of_the_other_side(values, width):
    if values.min() == values.max():
        with pytest.raises(ValueError, match="mask: it is the same everywhere and has no outline"):
            regions.boundary(values, width)
        return
    expected = np.zeros(values.shape, dtype=bool)
    for position in positions(values.shape):
        others = np.argwhere(values != values[position])
        expected[position] = np.sqrt(((others - position) ** 2).sum(1).min()) <= width
    for mask in (values, values.astype(bool), torch.from_numpy(values).float()):
        found = regions.boundary(mask, width)
        assert found.dtype == torch.bool
        np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_boundary_refuses_a_width_that_is_not_positive(width):
    with pytest.raises(ValueError, match="width: expected a positive number, got"):
        regions.boundary(np.array([0, 1]), width)


# predicted


@pytest.mark.parametrize("spatial", [(9,), (5, 6), (4, 5, 3)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("as_array", [True, False])
def test_predicted_is_where_the_label_wins(spatial, n, as_array):
    scores = torch.randn(n, 3, *spatial)
    given_scores = scores.numpy() if as_array else scores
    hard = nn.functional.one_hot(scores.argmax(1), 3).movedim(-1, 1).bool()
    for label in range(3):
        expected = (scores.argmax(1) == label)[:, None]
        for prediction in (given_scores, hard):
            found = regions.predicted(prediction, label)
            assert found.dtype == torch.bool
            assert torch.equal(found, expected)


def test_predicted_takes_overlapping_masks_label_by_label():
    overlapping = torch.tensor([[[1, 1, 0], [0, 1, 1]]], dtype=torch.bool)
    assert regions.predicted(overlapping, 0).tolist() == [[[True, True, False]]]
    assert regions.predicted(overlapping, 1).tolist() == [[[False, True, True]]]


@pytest.mark.parametrize("channels", [1, 3])
def test_what_predicted_returns_is_one_roi_per_example_for_a_target(channels):
    images = torch.randn(3, channels, 6, 6)
    target = SegmentationTarget(nn.Identity(), metric="volume")
    roi = regions.predicted(target.predict(images), label=1)
    inside = SegmentationTarget(nn.Identity(), roi=roi, metric="volume")(images).reshape(3, -1)
    assert roi.shape == (3, 1, 6, 6)
    assert torch.equal(inside[:, -1 if channels == 1 else 1], roi.flatten(1).sum(1).float())


@pytest.mark.parametrize(
    ("prediction", "label", "match"),
    [
        (torch.zeros(2, 3), 1, r"prediction: expected shape \(N, C, \*spatial\), got \(2, 3\)"),
        (torch.zeros(1, 3, 4), 3, r"label: expected 0\.\.2, got 3"),
        (torch.zeros(1, 3, 4), -1, r"label: expected 0\.\.2, got -1"),
        (torch.zeros(1, 1, 4), 1, "prediction: with a single channel, give a boolean mask and label=1"),
        (torch.ones(1, 1, 4, dtype=torch.bool), 0, "prediction: with a single channel"),
        (torch.tensor([[[0.0], [1.0]], [[1.0], [0.0]]]), 1, r"label: label 1 is not predicted anywhere in example\(s\) \[1\]"),
        (torch.zeros(2, 1, 4, dtype=torch.bool), 1, r"example\(s\) \[0, 1\]"),
    ],
)
def test_predicted_refuses(prediction, label, match):
    with pytest.raises(ValueError, match=match):
        regions.predicted(prediction, label)


# grid


@given(SHAPES, st.data())
def test_grid_numbers_blocks_along_the_last_axis_first_and_remainders_are_units(shape, data):
    block = tuple(data.draw(st.integers(1, length)) for length in shape)
    units = regions.grid(shape, block)
    assert units.dtype == torch.int64
    blocks = {tuple(p // b for p, b in zip(position, block)) for position in positions(shape)}
    number = {place: n for n, place in enumerate(sorted(blocks))}
    for position in positions(shape):
        assert units[position] == number[tuple(p // b for p, b in zip(position, block))]


def test_grid_takes_one_number_for_all_axes():
    assert torch.equal(regions.grid((5, 6, 7), 3), regions.grid([5, 6, 7], (3, 3, 3)))


@pytest.mark.parametrize(
    ("block_size", "match"),
    [
        (0, "block_size: expected at least 1, got 0"),
        ((2, -1), r"block_size\[1\]: expected at least 1, got -1"),
        (7, r"block_size: a block of \(7, 7\) is larger than the image of \(6, 8\)"),
        ((2, 9), r"block_size: a block of \(2, 9\) is larger than the image of \(6, 8\)"),
        ((2, 2, 2), "block_size: expected one integer or 2 of them"),
        (1.5, "block_size: expected one integer or 2 of them .*, got 1.5"),
        (False, "block_size: expected one integer or 2 of them"),
    ],
)
def test_grid_refuses(block_size, match):
    with pytest.raises(ValueError, match=match):
        regions.grid((6, 8), block_size)


# from_mask


@given(masks(levels=5), st.sampled_from(["int64", "int16", "uint8", "uint16", "bool", ">i2"]), st.booleans())
def test_from_mask_renumbers_in_ascending_order(values, dtype, as_tensor):
    values = (values * 50).astype(dtype)
    present = sorted(set(values.flatten().tolist()))
    given_mask = torch.from_numpy(values) if as_tensor and dtype != ">i2" else values
    units = regions.from_mask(given_mask)
    assert units.dtype == torch.int64
    assert units.shape == values.shape
    for position in positions(values.shape):
        assert units[position] == present.index(values[position])


def test_from_mask_takes_negative_labels():
    assert regions.from_mask(torch.tensor([3, -1, 0, 3])).tolist() == [2, 0, 1, 2]


def test_from_mask_of_a_grid_is_the_grid():
    units = regions.grid((7, 9), 4)
    assert torch.equal(regions.from_mask(units), units)


def test_from_mask_refuses_fractions():
    with pytest.raises(ValueError, match=r"mask: expected integers, got torch\.float32"):
        regions.from_mask(torch.tensor([0.5, 1.0]))


# supervoxels


@pytest.mark.parametrize("shape", [(24, 24), (12, 12, 12)])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("scale", [1, 1000])
def test_supervoxels_follow_the_image(shape, channels, scale):
    pytest.importorskip("skimage")
    # A block that is no union of the squares that nearness in space alone would give.
    bright = regions.box(shape, 5, 5)
    image = scale * bright.float().expand(channels, *shape) - 7
    for given_image in (image, image.numpy()):
        units = regions.supervoxels(given_image, n_segments=30)
        assert units.dtype == torch.int64
        assert units.shape == shape
        assert units.unique().tolist() == list(range(int(units.max()) + 1))
        assert 10 < units.max() < 60
        assert not set(units[bright].tolist()) & set(units[~bright].tolist())


def test_very_compact_supervoxels_are_the_blocks_of_a_constant_image():
    pytest.importorskip("skimage")
    blocks = regions.supervoxels(torch.full((1, 16, 16), 3.0), n_segments=16)
    assert blocks.max() == 15
    image = torch.rand(1, 16, 16)
    assert torch.equal(regions.supervoxels(image, n_segments=16, compactness=1e6), blocks)
    assert not torch.equal(regions.supervoxels(image, n_segments=16), blocks)


@pytest.mark.parametrize(
    ("image", "n_segments", "match"),
    [
        (torch.zeros(16, 16), 4, r"image: expected shape \(C, H, W\) or \(C, H, W, D\), got \(16, 16\)"),
        (torch.zeros(1, 1, 4, 4, 4), 4, r"image: expected shape .*, got \(1, 1, 4, 4, 4\)"),
        (torch.full((1, 8, 8), torch.nan), 4, "image: it holds NaN or infinite values"),
        (torch.full((1, 8, 8), torch.inf), 4, "image: it holds NaN or infinite values"),
        (torch.zeros(1, 8, 8), 0, "n_segments: expected at least 1, got 0"),
    ],
)
def test_supervoxels_refuse(image, n_segments, match):
    pytest.importorskip("skimage")
    with pytest.raises(ValueError, match=match):
        regions.supervoxels(image, n_segments)


def test_without_scikit_image_supervoxels_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r'pip install "captum-causalseg\[supervoxels\]"'):
        regions.supervoxels(torch.zeros(1, 8, 8))
