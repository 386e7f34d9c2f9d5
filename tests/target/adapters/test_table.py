"""Adapters by name and by type; one's own."""

import functools

import pytest
import torch
from output_cases import returning
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, WindowedModel, regions, register_adapter
from captum_causalseg.target.adapters import ADAPTERS


@pytest.fixture
def own():
    """Adapters that are gone after the test."""
    before = dict(ADAPTERS)
    yield register_adapter
    for name in set(ADAPTERS) - set(before):
        del ADAPTERS[name]


class Found:
    """What a model of one's own returns."""

    def __init__(self, planes: Tensor) -> None:
        self.planes = planes


class Network(nn.Module):
    """Its classes are on the last axis of what it returns; several images at once are a mistake."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.scores = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, x: Tensor, returns: bool = True):
        self.seen.append(len(x))
        planes = self.scores(x).movedim(1, -1)
        return Found(planes) if returns else planes


def last_to_second(returned, image: Tensor) -> Tensor:
    return (returned.planes if isinstance(returned, Found) else returned).movedim(-1, 1)


def test_an_adapter_of_ones_own_by_name_and_by_type(own):
    model, images = Network(), torch.rand(2, 1, 8, 8)
    plain = SegmentationTarget(model, metric="volume")
    with pytest.raises(TypeError, match=r"no logits found in what it returns \(Found\); .* or how they are read: .*'sam'"):
        plain(images)
    own("last axis", last_to_second, types=[Found], activation="sigmoid")
    for target in (plain, SegmentationTarget(model, metric="volume", output="last axis")):
        assert torch.equal(target.logits(images), model.scores(images))
        # Three channels would be exclusive classes, were it not said.
        assert torch.equal(target.predict(images), model.scores(images) > 0)
    # What is derived from the type as well; what is the user's own before what is ours.
    derived = SegmentationTarget(lambda x: type("More", (Found,), {})(model(x).planes), metric="volume")
    assert torch.equal(derived.logits(images), model.scores(images))
    own("rather", lambda returned, image: -last_to_second(returned, image), types=["Found"])
    assert torch.equal(plain.logits(images), -model.scores(images))


def test_a_model_of_a_known_type_is_read_before_it_has_returned_anything(own):
    model, images = Network(), torch.rand(3, 1, 8, 8)
    own("last axis", last_to_second, types=[Network], one_image=True)
    for form in (
        model,
        functools.partial(model, returns=False),
        nn.DataParallel(model) if not torch.cuda.is_available() else model,
    ):
        model.seen.clear()
        assert torch.allclose(SegmentationTarget(form, metric="volume").logits(images), model.scores(images), atol=1e-6)
        assert model.seen == [1, 1, 1]


def test_gradients_and_effects_go_through_an_adapter(own):
    own("last axis", last_to_second, types=[Found])
    model, image = Network(), torch.rand(1, 1, 8, 8)
    wrapped = SegmentationTarget.from_prediction(model, image, roi=regions.box((8, 8), 2, 4))
    plain = SegmentationTarget.from_prediction(model.scores, image, roi=regions.box((8, 8), 2, 4))
    image.requires_grad_()
    (found,) = torch.autograd.grad(wrapped.surrogate()(image)[0, 1], image)
    (expected,) = torch.autograd.grad(plain.surrogate()(image)[0, 1], image)
    assert torch.equal(found, expected)
    effects = [
        AverageTreatmentEffect(target).attribute(
            image.detach(), torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), 1, block_size=2, n_draws=2
        )
        for target in (wrapped, plain)
    ]
    assert torch.equal(*effects)


def test_a_field_of_that_name_comes_first(own):
    logits = torch.randn(1, 2, 4, 4)
    target = SegmentationTarget(returning({"sam": logits}), metric="volume", output="sam", activation="softmax")
    assert torch.equal(target.logits(torch.rand(1, 1, 4, 4)), logits)


def test_networks_in_windows_are_read_by_adapters_too(own):
    own("last axis", last_to_second, types=[Found])
    model, images = Network(), torch.rand(1, 1, 8, 8)
    windowed = WindowedModel(model, patch_size=8, starts=[(0, 0)], weight=torch.ones(8, 8))
    assert torch.allclose(windowed(images), model.scores(images))


def test_bad_adapters(own):
    for arguments, error, match in (
        (("sam", last_to_second), ValueError, "name: an adapter called 'sam' exists already"),
        (("a:b", last_to_second), ValueError, "name: expected a name without a colon, which asks for an entry, got 'a:b'"),
        (("", last_to_second), ValueError, "name: expected"),
        ((3, last_to_second), TypeError, "name: expected"),
        (("mine", 3), TypeError, "function: expected"),
    ):
        with pytest.raises(error, match=match):
            own(*arguments)
    for types in (Found, "Found", [3]):
        with pytest.raises(TypeError, match="types: expected a sequence of classes or of their names, got"):
            own("mine", last_to_second, types=types)
    with pytest.raises(ValueError, match="activation: expected"):
        own("mine", last_to_second, activation="relu")
    own("nothing", lambda returned, image: None)
    with pytest.raises(
        TypeError, match=r"output: the adapter 'nothing' should give a tensor \(N, C, \*spatial\), got 'NoneType'"
    ):
        SegmentationTarget(returning(torch.rand(1, 1, 4, 4)), metric="volume", output="nothing")(torch.rand(1, 1, 4, 4))
