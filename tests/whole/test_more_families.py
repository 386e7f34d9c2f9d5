"""Families of models whose output takes an adapter, whose prompts are arguments, or whose package the tests do not bring."""

import functools

import pytest
import torch
from captum.attr import IntegratedGradients, Occlusion
from family_cases import FAMILIES, Family, decided, swin_v2
from torch import Tensor
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, SegmentationTarget, regions


class Example:
    """A family with an image and two donors; and its scores by hand: the mean probability of each class in a region."""

    def __init__(self, family: Family) -> None:
        torch.manual_seed(1)
        self.family, self.model = family, decided(family.make(), family.spread).double()
        values = torch.Generator().manual_seed(2)
        self.image = torch.rand(1, family.channels, *family.spatial, generator=values, dtype=torch.double)
        self.donors = torch.rand(2, family.channels, *family.spatial, generator=values, dtype=torch.double)
        self.roi = regions.box(family.spatial, start=4, size=8)
        self.side = family.spatial[0] // 2
        self.given = family.arguments()
        callable_ = functools.partial(self.model, **self.given) if self.given else self.model
        self.target = SegmentationTarget(callable_, self.roi, metric="probability_mean", output=family.output)
        self.activation = family.activation

    def score(self, x: Tensor) -> Tensor:
        """``(C,)``, of one image."""
        found = self.family.logits(self.model(x, **self.given))
        if found.shape[2:] != x.shape[2:]:
            mode = "bilinear" if x.ndim == 4 else "trilinear"
            found = functional.interpolate(found, size=x.shape[2:], mode=mode, align_corners=False)
        p = {"softmax": lambda y: y.softmax(1), "sigmoid": torch.sigmoid, "shares": lambda y: y / y.sum(1, keepdim=True)}
        return p[self.activation](found)[0, :, self.roi].mean(-1)

    @property
    def output(self) -> int | None:
        """Of which Captum's methods are asked."""
        return 0 if len(self.score(self.image)) > 1 else None

    @property
    def corner(self) -> tuple[slice, ...]:
        """The last block."""
        return (..., *(slice(self.side, None),) * len(self.family.spatial))


@pytest.fixture(scope="module", params=FAMILIES)
def example(request) -> Example:
    return Example(FAMILIES[request.param])


@torch.no_grad()
def test_a_block_of_the_image(example):
    attribution, statistics = AverageTreatmentEffect(example.target).attribute(
        example.image,
        PatchBank(example.donors, placement="aligned"),
        target=example.output,
        block_size=example.side,
        n_draws=2,
        n_screening_draws=0,
        exclude=None,
        return_statistics=True,
    )
    torch.testing.assert_close(statistics.observed_score[0].flatten(), example.score(example.image), atol=1e-9, rtol=0)
    scores = []
    for donor in example.donors:
        changed = example.image.clone()
        changed[example.corner] = donor[example.corner]
        scores.append(example.score(changed))
    expected = example.score(example.image) - torch.stack(scores).mean(0)
    torch.testing.assert_close(statistics.effect[0, -1].flatten(), expected, atol=1e-9, rtol=0)
    assert attribution.shape == example.image.shape
    assert float(statistics.effect.abs().max()) > 1e-5, "the case is too dull to prove anything"


@torch.no_grad()
def test_a_unit_of_a_layer(example):
    layer = example.model.get_submodule(example.family.layer)
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(_first(output).clone()))
    for donor in example.donors:
        example.score(donor[None])
    handle.remove()
    options = {"n_draws": 2, "n_screening_draws": 0, "support": None, "return_statistics": True}
    _, statistics = LayerAverageTreatmentEffect(example.target, layer).attribute(
        example.image,
        example.donors,
        target=example.output,
        units=example.family.units,
        layout=example.family.layout,
        **options,
    )
    effects = statistics.effect[0].reshape(len(statistics.unit_ids), -1)
    assert len(effects) == seen[0].shape[example.family.axis]  # channels, or tokens
    unit = int(effects.abs().amax(1).argmax())
    scores = []
    for donor in seen:

        def swap(module, args, output, donor=donor):
            found = _first(output).clone()
            found.select(example.family.axis, unit).copy_(donor.select(example.family.axis, unit))
            return (found, *output[1:]) if isinstance(output, tuple) else found

        # First of all: transformers keep the outputs of layers for their decoders by hooks of their own.
        handle = layer.register_forward_hook(swap, prepend=True)
        scores.append(example.score(example.image))
        handle.remove()
    expected = example.score(example.image) - torch.stack(scores).mean(0)
    torch.testing.assert_close(effects[unit], expected, atol=1e-9, rtol=0)
    assert float(effects.abs().max()) > 1e-6, "the case is too dull to prove anything"


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def test_captums_occlusion_of_the_same_target(example):
    window = (example.family.channels, *(example.side,) * len(example.family.spatial))
    found = Occlusion(example.target).attribute(example.image, window, strides=window, target=example.output)
    changed = example.image.clone()
    changed[example.corner] = 0
    expected = (example.score(example.image) - example.score(changed))[0]
    torch.testing.assert_close(found[example.corner].mean(), expected.float(), atol=1e-6, rtol=0)  # Captum rounds them


def test_captums_integrated_gradients_of_the_same_target(example):
    found = IntegratedGradients(example.target).attribute(
        example.image, target=example.output, n_steps=2, method="riemann_middle"
    )
    gradients = []
    for share in (0.25, 0.75):
        point = (share * example.image).requires_grad_()
        gradients.append(torch.autograd.grad(example.score(point)[0], point)[0])
    expected = example.image * torch.stack(gradients).mean(0)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-3)
    assert found.any()


@pytest.mark.slow
def test_the_smallest_swin_v2_of_volumes():
    """All four in a few of its runs, those without a gradient in single precision: one takes as long as a dozen of the others'."""
    model = decided(swin_v2(3))
    values = torch.Generator().manual_seed(2)
    image, donor = torch.rand(2, 1, 1, 32, 32, 32, generator=values)
    roi = regions.box((32, 32, 32), start=4, size=8)
    target = SegmentationTarget(model, roi, metric="probability_mean")

    def score(x: Tensor) -> Tensor:
        return model(x).softmax(1)[0, 1, roi].mean()

    options = {"n_draws": 1, "n_screening_draws": 0, "support": None}
    half = (..., slice(16, None))
    with torch.no_grad():
        observed = score(image)
        found = AverageTreatmentEffect(target).attribute(
            image, PatchBank(donor, placement="aligned"), 1, block_size=(32, 32, 16), exclude=None, **options
        )
        changed = image.clone()
        changed[half] = donor[half]
        expected = observed - score(changed)
        torch.testing.assert_close(found[half].mean(), expected, atol=1e-5, rtol=1e-4)
        assert expected.abs() > 1e-4
        changed[half] = 0
        occluded = Occlusion(target).attribute(image, (1, 32, 32, 16), strides=(1, 32, 32, 16), target=1)
        torch.testing.assert_close(occluded[half].mean(), observed - score(changed), atol=1e-5, rtol=1e-4)

        layer = model.swinViT.layers1c[0]
        taken: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, args, output: taken.append(output))
        score(donor)
        handle.remove()
        first = torch.ones(1, n_channels := taken[0].shape[1], 1, 1, 1, dtype=torch.long)
        first[:, : n_channels // 2] = 0
        found = LayerAverageTreatmentEffect(target, layer).attribute(image, donor, 1, layer_mask=first, **options)

        def swap(module, args, output):
            return torch.where(first == 0, taken[0], output)

        handle = layer.register_forward_hook(swap)
        expected = observed - score(image)
        handle.remove()
        torch.testing.assert_close(found[0, 0].mean(), expected, atol=1e-5, rtol=1e-4)
        assert expected.abs() > 1e-5
    model.double()
    image = image.double()
    integrated = IntegratedGradients(target).attribute(image, target=1, n_steps=2, method="riemann_middle")
    gradients = []
    for share in (0.25, 0.75):
        point = (share * image).requires_grad_()
        gradients.append(torch.autograd.grad(score(point), point)[0])
    torch.testing.assert_close(integrated, image * torch.stack(gradients).mean(0), atol=1e-9, rtol=1e-3)
