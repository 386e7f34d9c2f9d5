"""Pictures of effects on images: what they show is what the statistics say."""

import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from picture_cases import case, statistics_of
from pictures_read import ALL, drawn, of_regions, outline

from captum_causalseg import Status, regions, visualization
from captum_causalseg.visualization import plot_effects, plot_volume
from captum_causalseg.visualization.pictures import grayscale


def title_of(figure):
    return " ".join(text.get_text() for text in figure.findobj(Text))


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
    # Letters and numbers on a picture are about it.
    on_pictures = [text for text in texts if text.axes is not None and text in text.axes.texts]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text not in on_pictures]
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
    assert (error.get_alpha() > 0.65).all()


def test_the_statistics_are_left_as_they_are():
    image, statistics, roi = case((12, 8, 4), 4, 0, 4)
    before = statistics.effect.clone(), image.clone(), torch.get_rng_state()
    plot_effects(image, statistics, roi, panels=ALL)
    plot_volume(image, statistics, roi)
    torch.testing.assert_close(statistics.effect, before[0], equal_nan=True, rtol=0, atol=0)
    assert torch.equal(image, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


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
