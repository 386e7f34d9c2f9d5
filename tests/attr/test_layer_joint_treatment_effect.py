"""Joint effects of parts of layers: against a literal loop that sets the activation by a hook, one set at a time."""

import joint_oracle as oracle
import numpy as np
import pytest
import torch
from layer_cases import case
from monai.inferers import SlidingWindowInferer
from torch import nn

from captum_causalseg import (
    ActivationBank,
    LayerAverageTreatmentEffect,
    LayerJointTreatmentEffect,
    SegmentationTarget,
    Status,
    WindowedModel,
    regions,
)
from captum_causalseg.layout import Layout, unit_mask


def activation_of(model, layer, images):
    """What the layer takes, and what it returns."""
    heard = []
    handle = layer.register_forward_hook(lambda module, given, returned: heard.append((given[0], returned)))
    with torch.no_grad():
        model(images)
    handle.remove()
    return heard[0]


def scores_with(target, layer, image, at_input=False):
    """From the layer's activation ``(1, ...)`` to the scores of the image."""

    def score(activation):
        if at_input:
            handle = layer.register_forward_pre_hook(lambda module, given: (activation,))
        else:
            handle = layer.register_forward_hook(lambda module, given, returned: activation)
        try:
            return oracle.scorer(target)(image)
        finally:
            handle.remove()

    return score


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("context", ["shapley", "banzhaf"])
@pytest.mark.parametrize(("units", "block_size"), [("channel", None), ("block", 4), ("layer", None)])
@pytest.mark.parametrize("support", ["always", None])
def test_against_the_literal_loop(d, context, units, block_size, support):
    model, images, labels, donors, roi = case(d)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    _, stats = LayerJointTreatmentEffect(target, model.middle).attribute(
        images,
        donors,
        target=1,
        units=units,
        block_size=block_size,
        context=context,
        n_draws=8,
        support=support,
        seed=2,
        return_statistics=True,
    )
    own, others = (activation_of(model, model.middle, given)[1] for given in (images, donors))
    mask = unit_mask(Layout("NC*"), units, own.shape, block_size=block_size)
    ids = mask.unique().tolist()
    for n in range(2):
        alone = SegmentationTarget(model, roi=roi, reference=labels[n : n + 1], metric="soft_dice")
        score = scores_with(alone, model.middle, images[n : n + 1])
        q = None if context == "shapley" else 0.5
        pairs = oracle.literal(score, own[n : n + 1], mask, others, ids, q=q, n_draws=8, seed=2)
        expected = np.stack([pairs[unit].mean(0) for unit in ids])
        np.testing.assert_allclose(stats.effect[n], expected, atol=3e-6)
    outside = stats.status == Status.OUTSIDE_SUPPORT
    assert (stats.effect[outside] == 0).all()
    assert stats.settings["context"] == context


def test_values_of_a_layer_add_up():
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    _, stats = LayerJointTreatmentEffect(target, model.middle).attribute(
        images, donors[:1], target=1, n_draws=4, return_statistics=True
    )
    _, other = activation_of(model, model.middle, donors[:1])
    handle = model.middle.register_forward_hook(lambda module, given, returned: other.expand(returned.shape))
    gone = target(images)
    handle.remove()
    torch.testing.assert_close(stats.effect.sum(1), (target(images) - gone).detach().double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "at_input", "units", "mask"),
    [
        ("vit.blocks.1.attn.out_proj", True, "head", torch.arange(16).view(1, 1, 16) // 8),
        ("vit.blocks.0", False, "token", torch.arange(16).view(1, 16, 1)),
    ],
)
def test_heads_and_tokens(name, at_input, units, mask):
    pytest.importorskip("transformers")
    from transformer_cases import case as transformer

    model, target, image, donors = transformer("vit")
    layer = model.get_submodule(name)
    _, stats = LayerJointTreatmentEffect(target, layer).attribute(
        image, donors, target=1, units=units, n_draws=4, attribute_to_layer_input=at_input, return_statistics=True
    )
    own, others = (activation_of(model, layer, given)[not at_input] for given in (image, donors))
    ids = mask.unique().tolist()
    score = scores_with(target, layer, image, at_input=at_input)
    pairs = oracle.literal(score, own, mask, others, ids, n_draws=4)
    np.testing.assert_allclose(stats.effect[0], np.stack([pairs[unit].mean(0) for unit in ids]), atol=3e-6)


def test_no_context_gives_the_numbers_of_the_plain_effect():
    model, images, labels, donors, roi = case(2)
    target, bank = SegmentationTarget(model, roi=roi, reference=labels), ActivationBank(donors)
    settings = {"target": 1, "n_draws": 4, "return_statistics": True}
    attr, stats = LayerJointTreatmentEffect(target, model.middle).attribute(images, bank, context=0, **settings)
    plain, single = LayerAverageTreatmentEffect(target, model.middle).attribute(images, bank, **settings)
    assert torch.equal(attr, plain)
    assert torch.equal(stats.standard_error, single.standard_error)


def test_an_ensemble_inside_one_layer_is_seen_together_only():
    """Two channels that say the same, of which the next layer takes the larger."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(2), nn.Identity())
    model[0].weight.data = torch.tensor([1.0, 1.0, 0.5]).view(3, 1, 1, 1)

    def either(x):
        return model(x).amax(2).amax(1)

    image = torch.ones(1, 1, 2, 2)
    for context, expected in ((0, [0, 0, 0]), ("shapley", [5 / 12, 5 / 12, 1 / 6])):
        _, stats = LayerJointTreatmentEffect(either, model[0]).attribute(
            image, 0.0, context=context, n_draws=2000, return_statistics=True, perturbations_per_eval=1000
        )
        error = stats.standard_error[0].numpy()
        assert (np.abs(stats.effect[0].numpy() - expected) <= 4 * error).all()


def test_values_of_a_layer_in_windows_add_up():
    """A network in sliding windows has an activation of its own in each; all of them replaced is the donor's, window by window."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 3, padding=1)).double().eval()
    model = WindowedModel.from_monai(SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian"), network)
    image, donor = torch.rand(1, 1, 20, 18).double(), torch.rand(1, 1, 20, 18).double()
    target = SegmentationTarget.from_prediction(model, image, roi=regions.box((20, 18), 2, 3), metric="soft_dice")
    _, stats = LayerJointTreatmentEffect(target, network[1]).attribute(
        image, donor, target=1, n_draws=4, return_statistics=True
    )
    heard, place = [], iter(range(99))
    with torch.no_grad():
        handle = network[1].register_forward_hook(lambda module, given, returned: heard.append(returned))
        model(donor)
        handle.remove()
        handle = network[1].register_forward_hook(lambda module, given, returned: heard[next(place)])
        gone = target(image)
        handle.remove()
        expected = (target(image) - gone)[0]
    torch.testing.assert_close(stats.effect[0].sum(0), expected.double(), atol=1e-9, rtol=0)
    assert float(stats.effect.abs().max()) > 1e-3
