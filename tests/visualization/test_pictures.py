"""Pictures of effects: what they show is what the statistics say, of images and volumes, of one region or several."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.text import Text
from monai.data import MetaTensor
from picture_cases import case, statistics_of
from skimage.color import deltaE_ciede2000, rgb2lab

from captum_causalseg import Status, regions, visualization
from captum_causalseg.visualization import plot_effects, plot_volume
from captum_causalseg.visualization.pictures import PALETTES, grayscale, robust_maximum, round_up, scale_labels
from captum_causalseg.visualization.planes import chosen_slices, peak

ALL = ("image", "effect", "standard_error", "lower", "upper", "significant", "p_value", "n_draws")
GREEN = {name: to_rgb(palette.outline) for name, palette in PALETTES.items()}


def drawn(axes):
    """The values that lie over the picture."""
    return np.ma.filled(axes.images[1].get_array(), np.nan)


def hatched(axes, hatch):
    """Which pixels are hatched so."""
    shape = axes.images[0].get_array().shape[:2]
    pixels = np.argwhere(np.ones(shape))
    inside = np.zeros(shape, bool)
    for found in axes.findobj(QuadContourSet):
        if found.hatches == [hatch]:
            for path in found.get_paths():
                inside[tuple(pixels.T)] |= path.contains_points(pixels[:, ::-1])
    return inside


def outline(axes, color=GREEN["accessible"]):
    """Corners ``(rows, columns)`` of the outline: first row, last row, first column, last column; None where there is none."""
    for found in axes.findobj(QuadContourSet):
        if not found.filled and tuple(found.get_edgecolor()[0][:3]) == pytest.approx(color):
            points = np.concatenate([path.vertices for path in found.get_paths()])
            (left, top), (right, bottom) = points.min(0) + 0.5, points.max(0) - 0.5
            return pytest.approx((top, bottom, left, right), abs=0.05)
    return None


def title_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


# -------------------------------------------------------------------------------------------------------------------- one image


@pytest.mark.parametrize(("spatial", "channels"), [((16, 20), 1), ((16, 20), 3), ((20, 16), 5)])
def test_by_default_there_are_three_panels_and_two_labelled_scales(spatial, channels, tmp_path):
    image, statistics, roi = case(spatial, 4, (4, 8), 4, channels=channels)
    figure = plot_effects(image, statistics, roi, title="a title", score_name="Dice")
    assert isinstance(figure, Figure)
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "Image and region of interest",
        "Effect of each unit",
        "Standard error of the effect",
    ]
    assert [axes.get_ylabel() for axes in figure.axes[3:]] == [
        "effect on the Dice\nharms \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} supports",
        "standard error, Dice",
    ]
    assert figure.get_suptitle() == "a title"
    # The picture itself: in color where it has three channels, else the first.
    shown = np.asarray(figure.axes[0].images[0].get_array())
    assert shown.shape == ((*spatial, 3) if channels == 3 else spatial)
    first = image[0, 0].numpy()
    np.testing.assert_allclose(shown[..., 0] if channels == 3 else shown, (first - first.min()) / np.ptp(first), atol=1e-6)
    figure.savefig(tmp_path / "picture.png")


def test_every_panel_shows_its_field():
    """Four units in a row by hand: significant, not significant, out of reach, excluded."""
    mask = np.repeat(np.arange(4), 4)[None].repeat(4, 0)
    status = [[Status.ESTIMATED, Status.ESTIMATED, Status.OUTSIDE_SUPPORT, Status.EXCLUDED]]
    statistics = statistics_of([[0.4, -0.1, 0.0, 9.0]], mask, [[0.1, 0.1, 0.0, 0.1]], status, n_draws=[[5, 20, 0, 0]])
    roi = regions.box((4, 16), (0, 12), 4)
    figure = plot_effects(torch.rand(1, 1, 4, 16), statistics, roi, panels=ALL)
    panels = dict(zip(ALL, figure.axes))
    normal = 1.959964  # of the standard normal distribution, at 97.5 %
    expected = {
        "effect": [0.4, -0.1, 0, 0],
        "standard_error": [0.1, 0.1, 0, 0],
        "lower": [0.4 - 0.1 * normal, -0.1 - 0.1 * normal, 0, 0],
        "upper": [0.4 + 0.1 * normal, -0.1 + 0.1 * normal, 0, 0],
        "significant": [0.4, -0.1, 0, 0],
        # Of 4 standard errors 0.00006, below the scale's end; of 1 standard error.
        "p_value": [1e-4, math.erfc(1 / math.sqrt(2)), 1, 1],
        "n_draws": [5, 20, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(drawn(panels[name]), np.repeat(values, 4)[None].repeat(4, 0), rtol=2e-5, err_msg=name)
    # Intervals on the scale of the effect: the largest, rounded up to two digits.
    for name in ("effect", "lower", "upper", "significant"):
        norm = panels[name].images[1].norm
        assert (norm.vmin, norm.vcenter, norm.vmax) == pytest.approx((-0.4, 0, 0.4))
    assert panels["n_draws"].images[1].norm.vmax == 20
    excluded = mask == 3
    for name in ALL[1:]:
        np.testing.assert_array_equal(hatched(panels[name], "////"), excluded)
        np.testing.assert_array_equal(hatched(panels[name], "...."), (mask == 1) & (name == "significant"))
        assert outline(panels[name]) == (0, 3, 12, 15)
    assert len(panels["image"].images) == 1
    assert outline(panels["image"]) == (0, 3, 12, 15)
    said = figure.get_supxlabel()
    assert "hatched: not intervened on" in said
    assert "dotted: does not differ from 0" in said
    assert "beyond the dashed line: cannot reach" in said


def test_larger_effects_are_more_opaque():
    mask = np.arange(3)[None].repeat(3, 0)
    figure = plot_effects(torch.rand(1, 1, 3, 3), statistics_of([[0.0, 0.1, -0.4]], mask), panels=("effect",))
    np.testing.assert_allclose(figure.axes[0].images[1].get_alpha()[0], [0, 0.95 * 0.5, 0.95], rtol=1e-6)


@pytest.mark.parametrize("palette", PALETTES)
def test_colors_are_red_for_support_and_blue_for_harm(palette):
    statistics = statistics_of([[0.5, -0.5]], np.arange(2)[None].repeat(2, 0))
    for name in ("effect", "lower", "upper", "significant"):
        shown = plot_effects(torch.rand(1, 1, 2, 2), statistics, palette=palette, panels=(name,)).axes[0].images[1]
        colors = shown.cmap(shown.norm(np.array([0.3, -0.3])))[:, :3]
        assert colors.argmax(1).tolist() == [0, 2], name


def test_the_papers_colors():
    assert PALETTES["paper"].outline == "#00ff00"
    ends = colormaps[PALETTES["paper"].effects](np.array([0.0, 0.5, 1.0]))[:, :3]
    np.testing.assert_allclose(ends, [[0, 0, 1], [1, 1, 1], [1, 0, 0]], atol=0.01)


# Machado, Oliveira and Fernandes (2009): what dichromats see, of linear RGB.
SEEN = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def difference(one, other, seen):
    """CIEDE2000 of two colors as a dichromat sees them; 2 is just noticed, 20 is plain."""
    colors = np.array([one, other])
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4) @ np.array(SEEN[seen]).T
    linear = linear.clip(0, 1)
    back = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return float(deltaE_ciede2000(*rgb2lab(back[None])[0]))


def least_difference(colors, seen):
    return min(difference(colors(0.5 + size)[:3], colors(0.5 - size)[:3], seen) for size in (0.125, 0.25, 0.375, 0.5))


@pytest.mark.parametrize("seen", SEEN)
def test_the_default_signs_differ_for_the_color_blind(seen):
    assert least_difference(colormaps[PALETTES["accessible"].effects], seen) > 19
    # The measure tells: red against green does not pass.
    if seen != "tritanopia":
        assert least_difference(colormaps["RdYlGn"], seen) < 10


def test_words_for_scores_without_better_or_worse():
    image, statistics, roi = case((16, 20), 4, (4, 8), 4)
    said = title_of(plot_effects(image, statistics, roi, words=("raises", "lowers")))
    assert "lowers \N{LEFTWARDS ARROW} 0 \N{RIGHTWARDS ARROW} raises" in said
    assert "supports" not in said


def test_the_example_of_a_batch_and_the_channel():
    mask = np.arange(2)[None].repeat(2, 0)
    statistics = statistics_of([[0.1, 0.2], [0.3, -0.4]], mask, channels=2)
    image = torch.rand(2, 2, 2, 2)
    figure = plot_effects(image, statistics, example=1, channel=1)
    np.testing.assert_allclose(drawn(figure.axes[1]), [[0.3, -0.4]] * 2)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), grayscale(image[1], 1))
    # Three channels are a color picture unless one is named.
    colored, gray = (grayscale(torch.rand(3, 4, 4), channel) for channel in (None, 2))
    assert (colored.shape, gray.shape) == ((4, 4, 3), (4, 4))
    masks = torch.zeros(2, 1, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, 0] = masks[1, 0, 1, 1] = True
    assert outline(plot_effects(image, statistics, masks, example=1).axes[0]) == (1, 1, 1, 1)
    assert outline(plot_effects(image, statistics, masks.numpy(), example=0).axes[0]) == (0, 0, 0, 0)


def test_what_is_no_number_is_dark_and_does_not_set_the_scale():
    image = torch.tensor([[[0.0, 2.0], [math.nan, 1.0], [math.inf, -math.inf]]])
    assert grayscale(image).tolist() == [[0, 1], [0, 0.5], [0, 0]]
    assert grayscale(torch.full((1, 2, 2), math.nan)).tolist() == [[0, 0], [0, 0]]
    assert grayscale(torch.full((1, 1, 2), 7)).tolist() == [[0, 0]]


def test_units_of_a_channel_are_shown_with_it():
    statistics = statistics_of([[0.1, 0.2]], np.array([[0, 0], [1, 1]]), channels=2)
    statistics.feature_mask = (torch.tensor([0, 1]).view(1, 2, 1, 1).expand(1, 2, 2, 2),)
    image = torch.rand(1, 2, 2, 2)
    found = [drawn(plot_effects(image, statistics, channel=c, panels=("effect",)).axes[0])[0, 0] for c in (0, 1)]
    assert found == pytest.approx([0.1, 0.2])


def test_several_inputs():
    masks = np.array([[0, 0], [1, 1]]), np.array([[2, 2, 2]])
    statistics = statistics_of([[0.1, 0.2, 0.3]], masks)
    images = torch.rand(1, 1, 2, 2), torch.rand(1, 1, 1, 3)
    for given_image in (images, images[1]):
        figure = plot_effects(given_image, statistics, input_index=1)
        np.testing.assert_allclose(drawn(figure.axes[1]), [[0.3, 0.3, 0.3]])
    np.testing.assert_allclose(drawn(plot_effects(images, statistics).axes[1]), [[0.1, 0.1], [0.2, 0.2]])


# --------------------------------------------------------------------------------------------------------------- several regions


def of_regions():
    """Two classes, two RoIs; effects say class, RoI and unit: 0.1 * class + 0.01 * RoI + 0.001 * unit."""
    mask = np.arange(4)[None].repeat(2, 0)
    classes, rois, units = np.ogrid[1:3, 1:3, 1:5]
    effect = (0.1 * classes + 0.01 * rois + 0.001 * units).transpose(2, 0, 1)[None]
    masks = torch.zeros(2, 2, 4, dtype=torch.bool)
    masks[0, :, 0] = masks[1, :, 3] = True
    return torch.rand(1, 1, 2, 4), statistics_of(effect, mask, axes=("class", "roi")), masks


@pytest.mark.parametrize("target", [1, (1,), [1], torch.tensor([1])])
def test_a_row_for_each_region_that_the_target_leaves_open(target):
    image, statistics, rois = of_regions()
    figure = plot_effects(image, statistics, rois, target, panels=("image", "effect"))
    pictures = figure.axes[:4]
    assert [axes.get_ylabel() for axes in pictures] == ["RoI 0", "RoI 1", "", ""]
    assert [axes.get_title() for axes in pictures] == ["Image and region of interest", "", "Effect of each unit", ""]
    for axes, values, corners in zip(pictures[2:], (0.21, 0.22), ((0, 1, 0, 0), (0, 1, 3, 3))):
        np.testing.assert_allclose(drawn(axes)[0], values + 0.001 * np.arange(1, 5))
        assert outline(axes) == corners
    # One scale for both: 0.224 rounded up.
    assert [axes.images[1].norm.vmax for axes in pictures[2:]] == pytest.approx([0.23, 0.23])


@pytest.mark.parametrize("target", [(0, 1), [(0, 1)]])
def test_one_region_of_several(target):
    image, statistics, rois = of_regions()
    for masks in (rois, rois[1]):
        figure = plot_effects(image, statistics, masks, target, panels=("effect",))
        assert len(figure.axes) == 2
        np.testing.assert_allclose(drawn(figure.axes[0])[0], 0.12 + 0.001 * np.arange(1, 5))
        assert outline(figure.axes[0]) == (0, 1, 3, 3)
        assert figure.axes[0].get_ylabel() == "RoI 1"


@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1])])
def test_a_target_for_each_example(target):
    effect = np.array([[[0.1, 0.2]], [[0.3, 0.4]]])
    mask = np.zeros((2, 2), int)
    image = torch.rand(2, 1, 2, 2)
    of_classes = statistics_of(effect, mask, axes=("class",))
    figure = plot_effects(image, of_classes, target=target, example=1, panels=("effect",))
    np.testing.assert_allclose(drawn(figure.axes[0]), 0.4)
    # Classes per example, all regions.
    of_both = statistics_of(np.stack([effect, effect + 1], -1), mask, axes=("class", "roi"))
    figure = plot_effects(image, of_both, target=target, example=1, panels=("effect",))
    assert [drawn(axes)[0, 0] for axes in figure.axes[:2]] == pytest.approx([0.4, 1.4])


def test_regions_without_classes():
    mask = np.arange(2)[None].repeat(2, 0)
    statistics = statistics_of(np.arange(6).reshape(1, 2, 3), mask, axes=("roi",))
    figure = plot_effects(torch.rand(1, 1, 2, 2), statistics, panels=("effect",))
    assert [drawn(axes)[0].tolist() for axes in figure.axes[:3]] == [[0, 3], [1, 4], [2, 5]]
    assert drawn(plot_effects(torch.rand(1, 1, 2, 2), statistics, target=2, panels=("effect",)).axes[0])[0].tolist() == [2, 5]


# ---------------------------------------------------------------------------------------------------------------------- volumes


def volume():
    """Blocks of 4 x 4 x 2 in 12 x 8 x 6 voxels; the largest effect is harmful, in the block that ends the volume."""
    image, statistics, roi = case((12, 8, 6), (4, 4, 2), 0, (4, 4, 2))
    statistics.effect[0, -1] = -0.5
    statistics.status[0, -1] = Status.ESTIMATED
    return image, statistics, roi


def test_a_volume_is_shown_in_the_planes_through_the_largest_effect():
    image, statistics, roi = volume()
    figure = plot_effects(image, statistics, roi, panels=("image", "effect"), spacing=(1, 2, 5))
    values = statistics.to_map("effect")[0, 0].nan_to_num(0)
    # The middle of the block at rows 8-11, columns 4-7, slices 4-5; of the two in the middle the first.
    position = (9, 5, 4)
    assert [axes.get_ylabel() for axes in figure.axes[:3]] == ["axis 2, slice 4", "axis 1, slice 5", "axis 0, slice 9"]
    for row, (axis, aspect) in enumerate([(2, 1 / 2), (1, 1 / 5), (0, 2 / 5)]):
        for axes in (figure.axes[row], figure.axes[3 + row]):
            assert axes.get_aspect() == pytest.approx(aspect)
        np.testing.assert_allclose(drawn(figure.axes[3 + row]), values.select(axis, position[axis]))
        picture = grayscale(image[0]).take(position[axis], axis)
        np.testing.assert_allclose(figure.axes[row].images[0].get_array(), picture)
        # Where the other two planes cross it.
        crossing = [line.get_xydata()[0] for line in figure.axes[row].lines]
        across, down = (position[a] for a in range(3) if a != axis)
        assert (crossing[0][1], crossing[1][0]) == (across, down)
    # The pictures' boxes have the volume's proportions: 12 x 8 voxels of 1 x 2, and so on.
    for axes, (height, width) in zip(figure.axes[:3], [(12, 16), (12, 30), (16, 30)]):
        box = axes.get_position()
        wide, high = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
        assert high / wide == pytest.approx(height / width)


def test_voxel_sizes_are_read_from_the_affine():
    image, statistics, roi = volume()
    # Rotated by a permutation, flipped, of spacing 0.5, 2 and 3 along the axes of the array.
    affine = torch.tensor([[0, -2.0, 0, 7], [0.5, 0, 0, 1], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    scan = MetaTensor(image, affine=affine)
    for one in (scan, MetaTensor(image, affine=affine[None])):
        figure = plot_effects(one, statistics, roi, panels=("effect",))
        assert [axes.get_aspect() for axes in figure.axes[:3]] == pytest.approx([0.5 / 2, 0.5 / 3, 2 / 3])
    told = plot_effects(scan, statistics, roi, panels=("effect",), spacing=1)
    assert [axes.get_aspect() for axes in told.axes[:3]] == [1, 1, 1]
    assert plot_volume(scan, statistics, roi, axis=1, n_slices=1).axes[0].get_aspect() == pytest.approx(0.5 / 3)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_the_montage_has_the_largest_effect_marked(axis):
    image, statistics, roi = volume()
    figure = plot_volume(image, statistics, roi, axis=axis, n_slices=4, score_name="Dice")
    values = statistics.to_map("effect")[0, 0].nan_to_num(0)
    strongest = (9, 5, 4)[axis]
    pictures = [axes for axes in figure.axes if axes.get_title().startswith("slice")]
    assert len(pictures) == 4
    marked = 0
    for axes in pictures:
        name, _, largest = axes.get_title().partition(": ")
        index = int(name.split()[1])
        np.testing.assert_allclose(drawn(axes), values.select(axis, index))
        assert (largest == "largest") == (index == strongest)
        thick = axes.spines["top"].get_linewidth() > 2
        assert thick == (index == strongest)
        marked += thick
    assert marked == 1
    assert f"slices along axis {axis % 3} of {image.shape[2:][axis]}" in figure.get_supxlabel()


def test_slices_without_effects_are_those_of_the_region():
    image, statistics, roi = case((8, 8, 10), (4, 4, 2), (0, 0, 4), (4, 4, 4))
    statistics.effect[:] = torch.where(statistics.effect.isnan(), torch.nan, 0.0)
    figure = plot_volume(image, statistics, roi, n_slices=3)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == ["slice 4", "slice 6", "slice 7"]
    assert "all effects are 0" in figure.get_supxlabel()
    assert plot_effects(image, statistics, roi).axes[0].get_ylabel() == "axis 2, slice 5"


@given(
    values=st.lists(st.sampled_from([0.0, 0.0, 0.5, -1.0, 2.0, math.nan]), min_size=1, max_size=30),
    count=st.integers(1, 12),
)
def test_slices_are_even_and_hold_the_largest(values, count):
    effect = np.array(values)[None, :, None]
    chosen, strongest = chosen_slices(effect, None, 1, count)
    known = np.nan_to_num(np.abs(values))
    available = np.flatnonzero(known) if known.any() else np.arange(len(values))
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(available)
    assert len(chosen) == min(count, len(available))
    if known.any():
        assert known[strongest] == known.max()
        assert strongest in chosen
    else:
        assert strongest is None
    # Evenly: neighbors are within one and a half steps, but for the one that made room for the largest.
    if len(chosen) > 2:
        places = np.searchsorted(available, chosen)
        assert np.diff(places).max() <= 1.5 * (len(available) - 1) / (len(chosen) - 1) + 1


@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 6)])
def test_the_position_is_inside_the_strongest_unit(shape):
    effect = np.zeros(shape)
    # An L, whose middle lies beside it.
    effect[1:4, 0] = effect[3, 0:4] = -3.0
    effect[0, -1] = 2.0
    found = peak(effect, None)
    assert effect[found] == -3.0
    assert peak(np.full(shape, math.nan), None) == tuple(length // 2 for length in shape)


# ------------------------------------------------------------------------------------------------------------------- odd pictures


def odd_cases():
    image, statistics, roi = case((16, 16), 4, 4, 4)
    tiny = case((16, 16), 4, 4, 4, scale=1e-5)
    zero = case((16, 16), 4, 4, 4, scale=0)
    unknown = statistics_of([[0.1, -0.2]], np.arange(2)[None].repeat(2, 0), math.inf)
    excluded = statistics_of([[0.1]], np.zeros((8, 8), int), status=Status.EXCLUDED)
    large = statistics_of([[2e4, -3e6]], np.arange(2)[None].repeat(2, 0), 1e3)
    holes = image.clone()
    holes[0, 0, :4] = math.nan
    return {
        "usual": (image, statistics, roi),
        "tiny": tiny,
        "zero": zero,
        "infinite": (torch.rand(1, 1, 2, 2), unknown, None),
        "all excluded": (torch.zeros(1, 1, 8, 8), excluded, regions.box((8, 8), 2, 2)),
        "one unit": (torch.rand(1, 1, 8, 8), statistics_of([[0.3]], np.zeros((8, 8), int)), None),
        "large": (torch.rand(1, 1, 2, 2) * 1000, large, None),
        "holes": (holes, statistics, roi),
        "wide": case((8, 64), 4, (4, 28), 4),
        "narrow": case((64, 8), 4, (28, 4), 4),
        "volume": case((12, 8, 4), 4, 0, 4),
        "flat volume": case((40, 40, 2), (8, 8, 2), (8, 8, 0), (8, 8, 2)),
        "integers": ((image * 255).byte(), statistics, roi),
        "region at the border": (image, statistics, regions.box((16, 16), 0, 4)),
    }


@pytest.mark.parametrize("panels", [("image", "effect", "standard_error"), ALL, ("effect",)])
@pytest.mark.parametrize("name", odd_cases())
def test_nothing_overlaps_or_falls_off(name, panels):
    image, statistics, roi = odd_cases()[name]
    title = "A title that is a good deal longer than one panel of a picture is wide, so that it must be broken"
    figure = plot_effects(image, statistics, roi, panels=panels, title=title, score_name="RoI's Dice [0, 1]")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    width, height = canvas.get_width_height()
    for said, box in boxes:
        assert box.x0 >= -1, said
        assert box.y0 >= -1, said
        assert box.x1 <= width + 1, said
        assert box.y1 <= height + 1, said
    pictures = [(f"picture {i}", axes.get_window_extent(renderer)) for i, axes in enumerate(figure.axes)]
    for i, (said, box) in enumerate(boxes):
        for other, other_box in boxes[i + 1 :] + pictures:
            across = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
            down = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
            assert min(across, down) < 1.5, (said, other)
    for _, box in pictures:
        assert box.width > 8
        assert box.height > 8


def test_what_is_not_known_or_nothing_is_said():
    def said(name):
        image, statistics, roi = odd_cases()[name]
        return plot_effects(image, statistics, roi).get_supxlabel()

    assert "all effects are 0" in said("zero")
    assert "every unit touches the region of interest or was excluded" in said("all excluded").replace("\n", " ")
    assert "standard errors that are not known are drawn as the largest" in said("infinite")
    # As the largest, not as none.
    image, statistics, _ = odd_cases()["infinite"]
    error = plot_effects(image, statistics, panels=("standard_error",)).axes[0].images[1]
    assert (np.asarray(error.get_array()) >= error.norm.vmax).all()
    assert (error.get_alpha() > 0.9).all()


def test_scales_are_robust_and_round():
    assert robust_maximum(np.array([0.0, np.nan, np.inf])) == 1.0
    assert robust_maximum(np.r_[np.full(999, 1.0), 1000]) < 10
    assert [round_up(x) for x in (0.01234, 0.99, 1.0, 123.0)] == pytest.approx([0.013, 0.99, 1.0, 130])
    assert scale_labels([-2.5e-5, -0.0, 0.00125, 2.0, 120000.0]) == ["-2.5e-5", "0", "0.00125", "2", "1.2e+5"]


def test_the_statistics_are_left_as_they_are():
    image, statistics, roi = case((12, 8, 4), 4, 0, 4)
    before = statistics.effect.clone(), image.clone(), torch.get_rng_state()
    plot_effects(image, statistics, roi, panels=ALL)
    plot_volume(image, statistics, roi)
    torch.testing.assert_close(statistics.effect, before[0], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(image, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


# ---------------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"image": torch.rand(1, 1, 16)},
            ValueError,
            r"image: expected \(N, C, \*spatial\) with 2 or 3 spatial axes, got \(1, 1, 16\)",
        ),
        (
            {"image": torch.rand(1, 1, 16, 12)},
            ValueError,
            r"image: expected the explained input, of shape \(1, 1, 16, 16\), got \(1, 1,",
        ),
        ({"image": torch.rand(2, 1, 16, 16)}, ValueError, "image: expected the explained input"),
        ({"image": [torch.rand(1, 1, 16, 16)]}, TypeError, "image: expected a tensor or a tuple of tensors, got list"),
        ({"image": (torch.rand(1, 1, 16, 16),) * 2}, ValueError, r"image: the statistics are of 1 input\(s\), got 2"),
        ({"statistics": torch.rand(3)}, TypeError, "statistics: expected TreatmentEffectStatistics, got Tensor"),
        (
            {"roi": torch.ones(3, 16, 16, dtype=torch.bool)},
            ValueError,
            "roi: a stack of 3 masks, but the statistics are of one region",
        ),
        (
            {"roi": torch.ones(4, 4, dtype=torch.bool)},
            ValueError,
            r"roi: expected a mask of the images' spatial shape \(16, 16\)",
        ),
        ({"roi": torch.zeros(16, 16, dtype=torch.bool)}, ValueError, "roi: it is empty"),
        ({"roi": torch.rand(16, 16)}, ValueError, "roi: expected a boolean mask"),
        ({"roi": "argument"}, TypeError, "roi: expected a mask to outline, got 'argument'"),
        ({"target": 3}, ValueError, "target: 3 does not pick one of 1 outputs"),
        ({"example": 1}, ValueError, "example: expected an integer from 0 to 0, got 1"),
        (
            {"panels": ("effect", "sign")},
            ValueError,
            r"panels: expected some of \('image', 'effect', .*got \('effect', 'sign'\)",
        ),
        ({"panels": "effect"}, ValueError, "panels: expected some of"),
        ({"panels": ()}, ValueError, "panels: expected some of"),
        ({"palette": "jet"}, ValueError, r"palette: expected \"accessible\" or \"paper\", got 'jet'"),
        ({"words": "up"}, ValueError, "words: expected two strings, for effects above and below 0, got 'up'"),
        ({"words": ("up", "down", "none")}, ValueError, "words: expected two strings"),
        (
            {"spacing": (1, 2, 3)},
            ValueError,
            r"spacing: expected one positive number or 2 of them \(one per spatial axis\), got \(1, 2, 3\)",
        ),
        ({"spacing": 0}, ValueError, "spacing: expected a positive number"),
        ({"channel": 1}, ValueError, "channel: expected an integer from 0 to 0, got 1"),
        ({"input_index": 1}, ValueError, "input_index: expected an integer from 0 to 0, got 1"),
    ],
)
def test_wrong_arguments_are_named(change, error, message):
    image, statistics, roi = case((16, 16), 4, 4, 4)
    with pytest.raises(error, match=message):
        plot_effects(**{"image": image, "statistics": statistics, "roi": roi, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"axis": 3}, "axis: expected an integer from -3 to 2, got 3"),
        ({"axis": 1.0}, "axis: expected an integer, got 1.0"),
        ({"n_slices": 0}, "n_slices: expected at least 1, got 0"),
        ({"columns": 0}, "columns: expected at least 1, got 0"),
        ({"panel": "image"}, r"panel: expected \"effect\", \"standard_error\", .*got 'image'"),
    ],
)
def test_wrong_arguments_of_a_montage_are_named(change, message):
    image, statistics, roi = volume()
    with pytest.raises(ValueError, match=message):
        plot_volume(image, statistics, roi, **change)


def test_images_and_several_regions_are_no_montage():
    image, statistics, rois = of_regions()
    with pytest.raises(ValueError, match=r"image: expected a volume \(N, C, \*spatial\) with 3 spatial axes, got 2"):
        plot_volume(image, statistics, rois, (1, 1))
    mask = np.zeros((2, 2, 2), int)
    several = statistics_of(np.ones((1, 1, 2)), mask, axes=("roi",))
    with pytest.raises(ValueError, match=r"target: it leaves 2 regions of interest open, pick one: \(class, roi\)"):
        plot_volume(torch.rand(1, 1, 2, 2, 2), several)
    assert plot_volume(torch.rand(1, 1, 2, 2, 2), several, target=1).axes[0].get_title() == "slice 0: largest"


def test_masks_that_do_not_fit_the_regions_are_refused():
    image, statistics, rois = of_regions()
    with pytest.raises(
        ValueError, match="the statistics are of 2 regions of interest and the target picks none of them: expected 2"
    ):
        plot_effects(image, statistics, rois[0], 1)
    with pytest.raises(ValueError, match="roi: the statistics are of 2 regions of interest, got 3 masks"):
        plot_effects(image, statistics, rois[[0, 1, 1]], (1, 1))
    with pytest.raises(ValueError, match="target: the forward function has 4 outputs"):
        plot_effects(image, statistics, rois)


def test_everything_public_is_a_plot():
    assert all(name.startswith("plot_") and callable(getattr(visualization, name)) for name in visualization.__all__)
    assert sorted(visualization.__all__) == visualization.__all__
