"""Layouts of the activations of transformers: told, asked for, or refused."""

import pytest
import torch
from transformer_cases import Opaque

from captum_causalseg import ActivationBank, LayerAverageTreatmentEffect, Layout, SegmentationTarget
from captum_causalseg.statistics import TreatmentEffectStatistics

PLAIN = {"sampling": "uniform", "support": None}

# Of each kind of layer: its activation, its layout, and the number of units of each kind that it has.
TABLE = [
    ("segformer", "segformer.stages.0.patch_embeddings.proj", (8, 16, 16), "NC*", {"channel": 8}),
    ("segformer", "segformer.stages.0.patch_embeddings.layer_norm", (256, 8), "NLC", {"channel": 8, "token": 256}),
    ("segformer", "segformer.stages.0.patch_embeddings", (256, 8), "NLC", {"channel": 8, "token": 256}),
    ("segformer", "segformer.stages.1.blocks.0.attention", (64, 8), "NLC", {"channel": 8, "token": 64}),
    ("segformer", "segformer.stages.2.blocks.0.attention.q_proj", (16, 16), "NLC", {"channel": 16, "token": 16, "head": 2}),
    ("segformer", "segformer.stages.1.blocks.0.attention.k_proj", (16, 8), "NLC", {"channel": 8, "token": 16, "head": 1}),
    ("segformer", "segformer.stages.0.blocks.0.mlp.dwconv", (256, 16), "NLC", {"channel": 16, "token": 256}),
    ("segformer", "segformer.stages.0.blocks.0.mlp.dwconv.dwconv", (16, 16, 16), "NC*", {"channel": 16}),
    ("segformer", "segformer.stages.2.blocks.0", (16, 16), "NLC", {"channel": 16, "token": 16}),
    ("segformer", "segformer.stages.2", (16, 4, 4), "NC*", {"channel": 16}),
    ("segformer", "segformer.stages.3", (16, 2, 2), "NC*", {"channel": 16}),
    ("segformer", "decode_head.linear_projections.0", (256, 8), "NLC", {"channel": 8, "token": 256}),
    ("segformer", "decode_head.batch_norm", (8, 16, 16), "NC*", {"channel": 8}),
    ("segformer", "decode_head.activation", (8, 16, 16), "NC*", {"channel": 8}),
    ("beit", "beit.embeddings.patch_embeddings.projection", (16, 8, 8), "NC*", {"channel": 16}),
    ("beit", "beit.embeddings.patch_embeddings", (64, 16), "NLC", {"channel": 16, "token": 64}),
    ("beit", "beit.embeddings", (65, 16), "NLC", {"channel": 16, "token": 65}),
    ("beit", "beit.layers.1", (65, 16), "NLC", {"channel": 16, "token": 65}),
    ("beit", "beit.layers.1.attention", (65, 16), "NLC", {"channel": 16, "token": 65}),
    ("beit", "beit.layers.1.attention.v_proj", (65, 16), "NLC", {"channel": 16, "token": 65, "head": 2}),
    ("beit", "beit.layers.1.mlp.activation_fn", (65, 32), "NLC", {"channel": 32, "token": 65}),
    ("beit", "beit.layers.3", (65, 16), "NLC", {"channel": 16, "token": 65}),
    ("beit", "fpn.fpn1", (16, 32, 32), "NC*", {"channel": 16}),
    ("unetr", "vit.patch_embedding", (4, 16), "NLC", {"channel": 16, "token": 4}),
    ("unetr", "vit.blocks.3", (4, 16), "NLC", {"channel": 16, "token": 4}),
    ("unetr", "vit.blocks.3.attn", (4, 16), "NLC", {"channel": 16, "token": 4}),
    ("unetr", "vit.blocks.3.attn.out_rearrange", (4, 16), "NLC", {"channel": 16, "token": 4, "head": 2}),
    ("unetr", "encoder2", (8, 16, 16), "NC*", {"channel": 8}),
    ("unetr", "decoder2.transp_conv", (4, 32, 32), "NC*", {"channel": 4}),
    ("swin", "swinViT.patch_embed", (12, 32, 32), "NC*", {"channel": 12}),
    ("swin", "swinViT.layers1.0.blocks.0", (32, 32, 12), "N*C", {"channel": 12, "token": 1024}),
    ("swin", "swinViT.layers2.0.blocks.0.norm1", (16, 16, 24), "N*C", {"channel": 24, "token": 256}),
    ("swin", "swinViT.layers2.0.blocks.0.mlp", (16, 16, 24), "N*C", {"channel": 24, "token": 256}),
    ("swin", "swinViT.layers2.0.downsample", (8, 8, 48), "N*C", {"channel": 48, "token": 64}),
    ("swin", "swinViT.layers2.0", (48, 8, 8), "NC*", {"channel": 48}),
    ("swin", "swinViT.layers4.0.blocks.0.attn", (16, 96), "NLC", {"channel": 96, "token": 16}),
    ("swin", "encoder2", (12, 32, 32), "NC*", {"channel": 12}),
    ("vit", "vit.patch_embedding", (16, 16), "NLC", {"channel": 16, "token": 16}),
    ("vit", "vit.blocks.0", (16, 16), "NLC", {"channel": 16, "token": 16}),
    ("vit", "vit.norm", (16, 16), "NLC", {"channel": 16, "token": 16}),
    ("plain", "patches", (16, 4, 4), "NC*", {"channel": 16}),
    ("plain", "blocks.0", (17, 16), "NLC", {"channel": 16, "token": 17}),
    ("plain", "blocks.0.self_attn", (17, 16), "NLC", {"channel": 16, "token": 17}),
    ("plain", "blocks.0.linear1", (17, 32), "NLC", {"channel": 32, "token": 17}),
    ("plain", "blocks.1", (17, 16), "NLC", {"channel": 16, "token": 17}),
]


@pytest.mark.parametrize(("name", "layer", "shape", "axes", "units"), TABLE, ids=[f"{row[0]}-{row[1]}" for row in TABLE])
def test_the_axes_of_layers_are_told_and_units_are_what_their_name_says(cases, name, layer, shape, axes, units):
    model, target, images, _ = cases[name]
    face = LayerAverageTreatmentEffect(target, model.get_submodule(layer))
    for kind in ("channel", "token", "head"):
        arguments = {"units": kind, "target": 1, "n_draws": 1, "n_screening_draws": 0, **PLAIN}
        if kind in units:
            planned = {step.unit for step in face.plan(images, **arguments)}
            assert planned == set(range(units[kind]))
        else:
            with pytest.raises(ValueError, match=r"units: "):
                face.plan(images, **arguments)
    attr, stats = face.attribute(
        images, target=1, units="layer", n_draws=1, n_screening_draws=0, **PLAIN, return_statistics=True
    )
    first = attr[0] if isinstance(attr, tuple) else attr
    assert first.shape == (1, *shape)
    assert stats.layouts[0].axes == axes


def test_where_the_axes_cannot_be_told_it_is_asked():
    model = Opaque().eval()
    image = torch.rand(1, 1, 8, 6)
    face = LayerAverageTreatmentEffect(SegmentationTarget.from_prediction(model, image, metric="soft_dice"), model.middle)
    message = (
        r"^layout: what the model does with the activation \(1, 4, 8, 6\) of middle \(Identity\) does not tell which of its axes holds "
        r'the channels; say which it is: "NC\*" \(4 channels at 8 x 6 positions\) or "N\*C" \(6 channels at 4 x 8 positions\)$'
    )
    with pytest.raises(ValueError, match=message):
        face.attribute(image, target=1)
    shapes = {}
    for layout in ("NC*", "N*C"):
        attr, stats = face.attribute(image, target=1, layout=layout, n_draws=1, n_screening_draws=0, return_statistics=True)
        assert attr.shape == (1, 4, 8, 6)
        shapes[layout] = stats.effect.shape[1]
    assert shapes == {"NC*": 4, "N*C": 6}
    # A whole layer needs no layout; no window is made of what is not known.
    _, stats = face.attribute(image, target=1, units="layer", n_draws=1, n_screening_draws=0, return_statistics=True)
    assert stats.settings["layout"] == [None]
    assert stats.settings["disabled"]["window"] == "which axes of the activation are spatial is not known (layout=)"


@pytest.mark.parametrize(
    ("layout", "error", "message"),
    [
        (
            "NHWC",
            ValueError,
            r'layout: expected "auto", "NC\*", "N\*C", "NLC" or a Layout or one per tensor of the activation, got .NHWC.$',
        ),
        (3, TypeError, "layout: expected .* or a Layout.*, got 3$"),
        (("NLC", "NLC"), ValueError, r"layout: expected one per tensor of the activation \(1\), got 2"),
        (Layout("NLC", grid=(9, 9)), ValueError, r"layout: a grid of 9 x 9 tokens after 0 special ones needs 81 tokens"),
        (Layout("NLC", heads=3), ValueError, "layout: 3 heads do not divide the 16 channels"),
    ],
)
def test_layouts_that_do_not_fit_are_refused(cases, layout, error, message):
    model, target, images, _ = cases["beit"]
    with pytest.raises(error, match=f"^{message}"):
        LayerAverageTreatmentEffect(target, model.beit.layers[0]).plan(images, target=1, layout=layout)


def test_tokens_are_no_four_axes(cases):
    model, target, images, _ = cases["swin"]
    with pytest.raises(ValueError, match=r'^layout: "NLC" is of activations of 3 axes'):
        LayerAverageTreatmentEffect(target, model.swinViT.layers1[0].blocks[0]).plan(images, target=1, layout="NLC")


@pytest.mark.parametrize("arguments", [{"axes": "NHWC"}, {"axes": "N*C", "grid": (2, 2)}, {"axes": "NLC", "first": 1}])
def test_layouts_that_mean_nothing_are_refused(arguments):
    with pytest.raises(ValueError, match=r"^(axes|grid|first): "):
        Layout(**arguments)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        (
            "beit",
            "beit.layers.1.attention",
            r"a projection has mixed them\); give the module 'beit.layers.1.attention.o_proj' with attr",
        ),
        (
            "beit",
            "beit.layers.1.attention.o_proj",
            r"give the module 'beit.layers.1.attention.o_proj' with attribute_to_layer_input",
        ),
        (
            "segformer",
            "segformer.stages.2.blocks.0.attention",
            "give the module 'segformer.stages.2.blocks.0.attention.o_proj' with",
        ),
        ("unetr", "vit.blocks.2.attn", "give the module 'vit.blocks.2.attn.out_proj' with attribute_to_layer_input=True"),
        (
            "plain",
            "blocks.0.self_attn",
            r"after captum_causalseg.reveal_heads\(model\), give 'blocks.0.self_attn.out_proj' with attr",
        ),
        ("plain", "patches", "no attention heads side by side .*, and no module around it has a num_heads"),
    ],
)
def test_heads_behind_the_projection_are_refused_with_the_module_to_give(cases, name, layer, message):
    model, target, images, _ = cases[name]
    face = LayerAverageTreatmentEffect(target, model.get_submodule(layer))
    with pytest.raises(ValueError, match=message):
        face.plan(images, target=1, units="head")
    if name == "beit":
        with pytest.raises(ValueError, match=message):  # saying how many there are does not make them separate again
            face.plan(images, target=1, units="head", layout=Layout("NLC", heads=2))


def test_statistics_of_tokens_are_saved_with_their_layout(cases, tmp_path):
    model, target, images, _ = cases["beit"]
    face = LayerAverageTreatmentEffect(target, model.beit.layers[1])
    _, stats = face.attribute(images, target=1, units="token", n_draws=1, n_screening_draws=0, return_statistics=True)
    stats.save(tmp_path / "tokens.npz")
    loaded = TreatmentEffectStatistics.load(tmp_path / "tokens.npz")
    assert loaded.layouts == stats.layouts == (Layout("NLC", grid=(8, 8), first=1),)
    assert torch.equal(loaded.on_image((64, 64)).to_map(target=1), stats.on_image((64, 64)).to_map(target=1))
    assert loaded.of_output(1).layouts == stats.layouts


@pytest.mark.parametrize(("name", "layer"), [("swin", "swinViT.layers2.0.blocks.0"), ("beit", "beit.layers.1")])
def test_activations_can_be_given_as_they_lie_and_masks_as_well(cases, name, layer):
    model, target, images, donors = cases[name]
    module = model.get_submodule(layer)
    face = LayerAverageTreatmentEffect(target, module)
    arguments = {"target": 1, "n_draws": 3, "screening_threshold": 0.0, "return_statistics": True}
    attr, _ = face.attribute(images, donors, **arguments)
    seen = []
    handle = module.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    with torch.no_grad():
        model(donors)
    handle.remove()
    again, _ = face.attribute(images, seen[0], **arguments)
    torch.testing.assert_close(again, attr, atol=2e-6, rtol=0)
    with pytest.raises(ValueError, match="layer_baselines: expected activations"):
        face.attribute(images, seen[0].movedim(-1, 1), **arguments)
    # The mask of channels, written for the activation as it lies.
    masked, _ = face.attribute(images, donors, layer_mask=torch.arange(attr.shape[-1]), **arguments)
    torch.testing.assert_close(masked, attr, atol=2e-6, rtol=0)
    bank = ActivationBank(donors)
    as_channels = face.attribute(images, bank, target=1, n_draws=3, layout="NC*")
    assert as_channels.shape == attr.shape
    torch.testing.assert_close(face.attribute(images, bank, **arguments)[0], attr, atol=0, rtol=0)
