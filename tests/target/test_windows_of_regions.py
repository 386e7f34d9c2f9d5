"""A target in sliding windows runs those that touch its regions: the scores and gradients of all windows, to the bit."""

import itertools
import re

import pytest
import torch
from captum import attr
from monai.inferers import SlidingWindowInferer
from torch import nn
from window_cases import CONV, Local, pixels

from captum_causalseg import PatchBank, SegmentationTarget, WindowedModel, compare, regions
from captum_causalseg.evaluation import Faithfulness
from captum_causalseg.metrics import METRICS


class Counted(nn.Module):
    """Counts the windows that it sees."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, 0

    def forward(self, *args):
        self.seen += len(args[0])
        return self.network(*args)


def windowed(d, *, n_folds=1, mirror_axes=(), batch_size=1, channels=1):
    torch.manual_seed(d)
    spatial = (21, 14, 9)[:d]
    folds = [Counted(Local(d, channels, 3)).eval() for _ in range(n_folds)]
    corners = list(itertools.product(*[sorted({*range(0, n - 8, 5), n - 8}) for n in spatial]))
    model = WindowedModel(folds, 8, corners, torch.rand((8,) * d) + 0.1, mirror_axes, batch_size=batch_size)
    return model, pixels(*spatial, count=2).repeat(1, channels, *(1,) * d)


def all_windows(model):
    """The same model as a function, of which nothing is known."""
    return lambda *inputs: model(*inputs)


def two(spatial):
    """Regions in opposite corners."""
    return torch.stack([regions.box(spatial, start=1, size=3), regions.box(spatial, start=[n - 5 for n in spatial], size=3)])


def seen(model):
    return sum(network.seen for network in model.networks)


CASES = [(1, 1, ()), (2, 1, ()), (2, 2, (0, 1)), (3, 1, (2,)), (3, 2, ())]


@pytest.mark.parametrize(("d", "n_folds", "mirror_axes"), CASES)
@pytest.mark.parametrize("kind", ["one", "stack", "of each image", "argument"])
def test_scores_and_gradients_are_those_of_all_windows_to_the_bit(d, n_folds, mirror_axes, kind):
    model, images = windowed(d, n_folds=n_folds, mirror_axes=mirror_axes)
    spatial, more = images.shape[2:], ()
    roi = {"one": two(spatial)[0], "stack": two(spatial), "of each image": two(spatial)[:, None], "argument": "argument"}[kind]
    if kind == "argument":
        more = (two(spatial)[:, None],)
    labels = torch.randint(0, 3, (2, *spatial))
    values = set()
    for metric in ("dice", "soft_dice", "surface_dice"):
        given = {"roi": roi, "reference": labels, "metric": metric, "activation": "softmax"}
        near, whole = SegmentationTarget(model, **given), SegmentationTarget(all_windows(model), **given)
        near(images, *more)  # all windows tell what the output is
        one, other = (images.clone().requires_grad_() for _ in range(2))
        before = seen(model)
        found = near(one, *more)
        run, before = seen(model) - before, seen(model)
        expected = whole(other, *more)
        assert torch.equal(found, expected)
        assert run < seen(model) - before
        values |= set(found.flatten().tolist())
        if METRICS[metric].domain != "labels":
            weights = torch.rand(found.shape)
            (found * weights).sum().backward()
            (expected * weights).sum().backward()
            assert torch.equal(one.grad, other.grad)
            assert bool(one.grad.any())
    assert len(values) > 4


def test_exactly_the_windows_that_touch_a_region_of_their_image_run():
    model, images = windowed(2, mirror_axes=(0,), n_folds=2)
    rois = two(images.shape[2:])
    layout = model.layout(images.shape[2:])

    def touching(roi):
        return sum(bool(roi[layout.box(window)].any()) for window in range(len(layout)))

    for given, windows in (
        (rois[0], 2 * touching(rois[0])),
        (rois, 2 * touching(rois.any(0))),
        (rois[:, None], touching(rois[0]) + touching(rois[1])),
    ):
        target = SegmentationTarget(model, given, metric="volume", activation="softmax")
        target(images)
        before = seen(model)
        target(images)
        assert seen(model) - before == windows * model.runs_per_window


def test_several_windows_at_once_and_what_the_network_is_given_besides():
    class Scaled(Local):
        def forward(self, x, factor):
            return super().forward(x * factor[:, None, None, None])

    torch.manual_seed(0)
    network = Scaled().eval()
    model = WindowedModel.from_monai(SlidingWindowInferer((8, 8), 3, overlap=0.5, mode="gaussian"), network)
    images, factor = pixels(20, 18, count=3), torch.tensor([1.0, 2.0, 0.5])
    given = {"roi": two((20, 18)), "metric": "soft_dice", "reference": torch.randint(0, 2, (3, 20, 18))}
    near, whole = SegmentationTarget(model, **given), SegmentationTarget(all_windows(model), **given)
    near(images, factor)
    torch.testing.assert_close(near(images, factor), whole(images, factor), atol=1e-6, rtol=0)
    assert near._batches.taken


def test_regions_of_calls_are_checked():
    model, images = windowed(2)
    roi = two(images.shape[2:])[None]
    with pytest.raises(
        ValueError, match=r"rois: expected \(N or 1, R, \*spatial\) for images \(2, 1, 21, 14\), got \(3, 2, 21, 14\)"
    ):
        model(images, rois=roi.expand(3, -1, -1, -1))
    with pytest.raises(ValueError, match="rois: expected regions in every image"):
        model(images, rois=torch.stack([roi[0], torch.zeros_like(roi[0])]))
    with pytest.raises(TypeError, match="rois: expected booleans"):
        model(images, rois=roi.long())


class Mixing(Local):
    """Subtracts the mean over the batch."""

    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


def mean_inside(prediction, reference, roi):
    return prediction.flatten(2).mean(2)


@pytest.mark.parametrize(
    ("network", "options", "prepared"),
    [
        (Local, {"metric": mean_inside}, None),
        (Local, {"roi": None}, None),
        (Local, {"output": lambda found: found}, None),
        (Local, {}, lambda model: model.train()),
        (Local, {}, lambda model: model.register_forward_hook(lambda module, given, found: None)),
        (Local, {}, lambda model: model.network.network.register_forward_hook(lambda module, given, found: None)),
        (Mixing, {}, None),
    ],
    ids=["own metric", "no RoI", "output", "training", "watched", "watched inside", "mixing"],
)
def test_all_windows_run_where_they_may_matter(network, options, prepared):
    torch.manual_seed(0)
    model = WindowedModel.from_monai(SlidingWindowInferer((8, 8), 4, overlap=0.5), Counted(network()).eval())
    if prepared is not None:
        prepared(model)
    images, given = pixels(20, 20), {"roi": regions.box((20, 20), start=1, size=3), "metric": "volume", **options}
    target = SegmentationTarget(model, activation="softmax", **given)
    expected = target(images)
    target(images)
    before = model.network.seen
    assert torch.equal(target(images), expected)
    assert model.network.seen - before == len(model.layout((20, 20)))


@pytest.mark.parametrize("d", [2, 3])
def test_captums_methods_say_what_all_windows_say(d):
    model, images = windowed(d, channels=2)
    labels = torch.randint(0, 3, (2, *images.shape[2:]))
    given = {"roi": two(images.shape[2:])[0], "reference": labels, "metric": "soft_dice", "activation": "softmax"}
    near, whole = SegmentationTarget(model, **given), SegmentationTarget(all_windows(model), **given)
    near(images)
    mask = regions.grid(images.shape[2:], (7,) * d)[None, None]
    for method, arguments in (
        (attr.Saliency, {"abs": False}),
        (attr.IntegratedGradients, {"n_steps": 3, "internal_batch_size": 2}),
        (attr.FeatureAblation, {"feature_mask": mask}),
        (attr.Occlusion, {"sliding_window_shapes": (2, *(9,) * d), "strides": (2, *(9,) * d)}),
    ):
        found, expected = (
            method(target).attribute(images.clone().requires_grad_(), target=1, **arguments) for target in (near, whole)
        )
        assert torch.equal(found, expected), method
        assert bool(found.any())


class Bent(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.relu, self.last = CONV[2](1, 4, 3, padding=1), nn.ReLU(), CONV[2](4, 2, 3, padding=1)

    def forward(self, x):
        return self.last(self.relu(self.first(x)))


def bent():
    torch.manual_seed(0)
    model = WindowedModel.from_monai(SlidingWindowInferer((8, 8), 4, overlap=0.5), Bent().eval())
    images = pixels(20, 20).requires_grad_()
    roi = regions.box((20, 20), start=1, size=3)
    return model, SegmentationTarget.from_prediction(model, images, roi=roi).surrogate(), images


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")  # says DeepLift
@pytest.mark.parametrize(
    "explain",
    [
        lambda target, layer, images: attr.LayerGradCam(target, layer).attribute(images, target=1),
        lambda target, layer, images: attr.LayerIntegratedGradients(target, layer).attribute(images, target=1, n_steps=2),
        lambda target, layer, images: attr.LayerActivation(target, layer).attribute(images),
        lambda target, layer, images: attr.LayerFeatureAblation(target, layer).attribute(images, target=1),
        lambda target, layer, images: attr.DeepLift(target).attribute(images, target=1),
        lambda target, layer, images: attr.NeuronGradient(target, layer).attribute(images, (0, 0, 0)),
    ],
)
def test_captums_methods_that_keep_one_call_of_a_module_are_refused(explain):
    """They took the last window for the layer, and gave its map in the place of the image's."""
    model, target, images = bent()
    with pytest.raises(
        ValueError, match=r"forward_func: its module '\w+' is called \d+ times in one forward pass, for 16 windows"
    ):
        explain(target, model.network.first, images)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
def test_methods_that_watch_each_call_by_itself_are_not():
    model, target, images = bent()
    whole = SegmentationTarget(all_windows(model), target.roi, target.reference, metric=target.metric, activation="softmax")
    found = attr.GuidedBackprop(target.model).attribute(images, target=(1, 2, 2))
    assert found.shape == images.shape
    watched = attr.LayerGradCam(target, model).attribute(images, target=1)  # the model is called once
    logits = model(images).detach().requires_grad_()
    gradient = torch.autograd.grad(whole.score(logits, images)[:, 1].sum(), logits)[0]
    expected = (gradient.mean((2, 3), keepdim=True) * logits).sum(1, keepdim=True)
    torch.testing.assert_close(watched, expected.detach())


def test_faithfulness_runs_the_windows_that_touch_the_region():
    model, images = windowed(2)
    images = images[:1]
    given = {"roi": two(images.shape[2:])[0], "reference": torch.randint(0, 3, (1, *images.shape[2:]))}
    near, whole = (
        SegmentationTarget(one, activation="softmax", metric="soft_dice", **given) for one in (model, all_windows(model))
    )
    bank, names = PatchBank(pixels(*images.shape[2:], count=3)), ["irof", "insertion, harming", "mu fidelity", "infidelity"]
    effort = {"block_size": 5, "n_draws": 2, "n_steps": 4, "n_subsets": 6, "target": 1, "exclude": None, "support": None}
    maps, tables, counts = torch.randn(images.shape), [], []
    near(images)
    for target in (near, whole):
        before = model.networks[0].seen
        tables.append(Faithfulness(target, images, bank, **effort).evaluate(maps, names)["value"])
        counts.append(model.networks[0].seen - before)
    assert tables[0].tolist() == tables[1].tolist()
    assert not tables[0].isna().any()
    assert counts[0] * 2 < counts[1]


def test_what_comparing_takes_is_said_before_it_begins(capfd):
    model, images = windowed(2, mirror_axes=(0,))
    images = images[:1]
    roi = two(images.shape[2:])[0]
    target = SegmentationTarget.from_prediction(model, images, roi=roi, metric="soft_dice")
    bank, maps = PatchBank(pixels(*images.shape[2:], count=4)), {"a": torch.randn(images.shape), "b": torch.randn(images.shape)}
    options = {"output": 1, "block_size": 5, "metrics": ["irof", "mu fidelity", "leakage"], "n_controls": 1, "exclude": None}
    before = seen(model)
    compare(maps, target, images, bank, show_progress=True, faithfulness={"n_subsets": 5, "n_draws": 2}, **options)
    said = re.search(
        r"methods: (\d+) windows so far, at most (\d+) to come for the scores of 3 maps; what .* about", capfd.readouterr().err
    )
    each, whole = model.runs_per_window, len(model.layout(images.shape[2:])) * model.runs_per_window
    assert int(said[1]) == each
    # Three curves and a measure of leakage each, with two sets of donors; the subsets are shared.
    assert int(said[2]) == 3 * 2 * 21 * each + 5 * each + 3 * (2 + 1) * whole
    # Two scores of the image as it is come before.
    assert 0.5 * int(said[2]) < seen(model) - before <= int(said[2]) + 2 * whole
