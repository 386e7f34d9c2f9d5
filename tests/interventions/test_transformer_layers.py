"""Layers of transformers: what their axes mean, and effects of tokens, heads and channels against a literal loop."""

import numpy as np
import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn
from transformers import BeitConfig, BeitForSemanticSegmentation, SegformerConfig, SegformerForSemanticSegmentation

from captum_causalseg import (
    ActivationBank,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    Layout,
    SegmentationTarget,
    component_effects,
    regions,
)
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.visualization import plot_effects

SIZE = {"segformer": 64, "beit": 64, "unetr": 32, "swin": 64, "vit": 32, "plain": 32}


PLAIN = {"sampling": "uniform", "support": None}


class PlainViT(nn.Module):
    """A class token, PyTorch's own encoder layers, and a head that lays the tokens out on their grid."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 8, stride=8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(*(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(2)))
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.blocks(torch.cat([self.class_token.expand(len(x), -1, -1), tokens], 1))
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        return nn.functional.interpolate(self.head(maps), scale_factor=8.0, mode="bilinear")


class ViT(nn.Module):
    """MONAI's encoder, whose tokens become the segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = nets.ViT(1, (32, 32), (8, 8), hidden_size=16, mlp_dim=32, num_layers=2, num_heads=2, spatial_dims=2)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens, _ = self.vit(x)
        maps = self.head(tokens).reshape(len(x), 4, 4, 2).permute(0, 3, 1, 2)
        return nn.functional.interpolate(maps, scale_factor=8.0)


def network(name: str) -> nn.Module:
    """With weights so large that what happens in a layer can be seen in the segmentation."""
    model = untrained(name)
    generator = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, std=0.4, generator=generator)
    return model


def untrained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "segformer":
            config = SegformerConfig(
                num_channels=1,
                num_labels=2,
                depths=[1] * 4,
                hidden_sizes=[8, 8, 16, 16],
                num_attention_heads=[1, 1, 2, 2],
                sr_ratios=[4, 2, 1, 1],
                mlp_ratios=[2] * 4,
                decoder_hidden_size=8,
            )
            return SegformerForSemanticSegmentation(config).eval()
        if name == "beit":
            config = BeitConfig(
                image_size=64,
                patch_size=8,
                num_channels=1,
                hidden_size=16,
                num_hidden_layers=4,
                num_attention_heads=2,
                intermediate_size=32,
                num_labels=2,
                out_indices=[1, 2, 3, 4],
                pool_scales=[1, 2],
                use_auxiliary_head=False,
            )
            return BeitForSemanticSegmentation(config).eval()
        if name == "unetr":
            sizes = {"feature_size": 4, "hidden_size": 16, "mlp_dim": 32, "num_heads": 2}
            return nets.UNETR(1, 2, (32, 32), **sizes, spatial_dims=2, norm_name="instance").eval()
        if name == "swin":
            sizes = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
            return nets.SwinUNETR(1, 2, **sizes, spatial_dims=2, norm_name="instance").eval()
        return (ViT() if name == "vit" else PlainViT()).eval()


def case(name: str, n: int = 1):
    model, size = network(name), SIZE[name]
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((n, 1, size, size), generator=generator)
    donors = torch.rand((3, 1, size, size), generator=generator)
    labels = torch.randint(0, 2, (n, size, size), generator=generator)
    roi = regions.box((size, size), start=8, size=16)
    return model, SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice"), images, donors


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


@pytest.fixture(scope="module")
def cases():
    return {name: case(name) for name in SIZE}


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


def literal(model, layer, image, donor, inside, at_input):
    """What the model answers with the elements ``inside`` of the layer's activation replaced by those on the donor image.

    The layer's own method is replaced, not hooked: hooks that the model has on it (Hugging Face's) see what it returns now.
    """
    seen = []
    forward = layer.forward

    def visit(value):
        first = value[0] if isinstance(value, tuple) else value
        if len(seen) == 0:
            seen.append(first.clone())
            return value
        new = torch.where(inside, seen[0], first)
        return (new, *value[1:]) if isinstance(value, tuple) else new

    def changed(*args, **kwargs):
        return forward(*visit(args), **kwargs) if at_input else visit(forward(*args, **kwargs))

    layer.forward = changed
    try:
        with torch.no_grad():
            model(donor)
            return model(image)
    finally:
        layer.forward = forward


def unit_of(kind: str, u: int, shape: tuple[int, ...], channels_last: bool, heads: int, grid: tuple[int, int]) -> Tensor:
    """Where unit ``u`` lies, written index by index."""
    inside = torch.zeros((1, *shape), dtype=torch.bool)
    if kind == "channel" and channels_last:
        inside[..., u] = True
    elif kind == "channel":
        inside[:, u] = True
    elif kind == "head":
        width = shape[-1] // heads
        inside[..., u * width : (u + 1) * width] = True
    elif kind == "token" and len(shape) == 2:
        inside[:, u] = True
    elif kind == "token":
        inside[:, u // shape[1], u % shape[1]] = True
    elif kind == "block" and len(shape) == 3:  # N*C, blocks of 4
        rows, columns = u // (grid[1] // 4), u % (grid[1] // 4)
        inside[:, 4 * rows : 4 * rows + 4, 4 * columns : 4 * columns + 4] = True
    else:  # tokens behind one special token, blocks of 4 x 4; the special token last
        per_row = grid[1] // 4
        if u == per_row * (grid[0] // 4):
            inside[:, 0] = True
        else:
            for row in range(4 * (u // per_row), 4 * (u // per_row) + 4):
                for column in range(4 * (u % per_row), 4 * (u % per_row) + 4):
                    inside[:, 1 + row * grid[1] + column] = True
    return inside


LITERAL = [
    ("beit", "beit.layers.1", "channel", False, {}),
    ("beit", "beit.layers.1", "token", False, {}),
    ("beit", "beit.layers.1", "block", False, {"grid": (8, 8), "block_size": 4}),
    ("beit", "beit.layers.2", "token", False, {}),
    ("beit", "beit.layers.1.attention.o_proj", "head", True, {"heads": 2}),
    ("segformer", "segformer.stages.2.blocks.0.attention.o_proj", "head", True, {"heads": 2}),
    ("segformer", "segformer.stages.2.blocks.0.attention", "channel", False, {}),
    ("segformer", "segformer.stages.3.blocks.0", "token", False, {}),
    ("unetr", "vit.blocks.6", "token", False, {}),
    ("unetr", "vit.blocks.6.attn.out_proj", "head", True, {"heads": 2}),
    ("swin", "swinViT.layers2.0.blocks.0", "channel", False, {}),
    ("swin", "swinViT.layers2.0.downsample", "token", False, {}),
    ("swin", "swinViT.layers2.0.blocks.0", "block", False, {"grid": (16, 16), "block_size": 4}),
    ("vit", "vit.blocks.1.attn.out_proj", "head", True, {"heads": 2}),
    ("plain", "blocks.0", "token", False, {}),
    ("plain", "blocks.1", "channel", False, {}),
]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("name", "layer", "kind", "at_input", "more"), LITERAL)
def test_effects_equal_the_literal_loop(name, layer, kind, at_input, more, n):
    model, target, images, donors = case(name, n)
    module = model.get_submodule(layer)
    arguments = {"units": kind, "attribute_to_layer_input": at_input, "block_size": more.get("block_size"), "target": 1}
    # All three donors of each unit: the effect is the mean, and exact.
    attr, stats = LayerAverageTreatmentEffect(target, module).attribute(
        images, donors, **arguments, n_draws=3, screening_threshold=0.0, return_statistics=True
    )
    attr = attr[0] if isinstance(attr, tuple) else attr
    shape, channels_last = tuple(attr.shape[1:]), stats.layouts[0].axes != "NC*"
    units = stats.unit_ids.tolist()
    some = units if len(units) <= 8 else [units[0], units[1], units[7], units[-2], units[-1]]
    for example in range(n):
        image, labels = images[example : example + 1], target.reference[example : example + 1]

        def score(answer, image=image, labels=labels):
            return SegmentationTarget(lambda x: answer, roi=target.roi, reference=labels, metric="soft_dice")(image)[0].double()

        with torch.no_grad():
            observed = score(model(image))
        largest = 0.0
        for u in some:
            inside = unit_of(kind, u, shape, channels_last, more.get("heads", 1), more.get("grid", (1, 1)))
            answers = [literal(model, module, image, donor[None], inside, at_input) for donor in donors]
            expected = torch.stack([observed - score(answer) for answer in answers]).mean(0)
            torch.testing.assert_close(stats.effect[example, units.index(u)], expected, atol=2e-6, rtol=0)
            largest = max(largest, float(expected.abs().max()))
            painted = attr[example][inside[0]]
            effect = float(stats.effect[example, units.index(u), 1])
            torch.testing.assert_close(painted, torch.full_like(painted, effect))
        assert largest > 5e-5, "the case is too dull to prove anything"


class Opaque(nn.Module):
    """The layer in the middle is between functions that tell nothing of what its axes mean."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.middle, self.after = nn.Conv2d(1, 4, 1), nn.Identity(), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.middle(torch.cumsum(self.before(x), 2))
        return self.after(torch.cumsum(hidden, 2))


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
    assert stats.settings["switched_off"]["window"] == "which axes of the activation are spatial is not known (layout=)"


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
        ("plain", "blocks.0.self_attn", "a torch.nn.MultiheadAttention, which projects them inside one function"),
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


def test_special_tokens_are_told_from_the_grid_which_is_laid_out_on_the_image(cases):
    model, target, images, donors = cases["beit"]
    face = LayerAverageTreatmentEffect(target, model.beit.layers[1])
    _, stats = face.attribute(images, donors, target=1, units="token", n_draws=2, n_screening_draws=0, return_statistics=True)
    assert stats.settings["layout"] == [{"axes": "NLC", "grid": [8, 8], "first": 1}]
    table = stats.to_dataframe()
    assert (table["stop_0"] - table["start_0"] == 1).all()
    shown = stats.on_image((64, 64))
    assert shown.settings["not_on_image"] == [0]
    found = shown.to_map(target=1)
    assert found.shape == (1, 1, 64, 64)
    for token in (1, 2, 9, 64):
        row, column = divmod(token - 1, 8)
        block = found[0, 0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert (block == stats.effect[0, token, 1]).all()
    assert torch.equal(shown.standard_error, stats.standard_error)
    figure = plot_effects(images, shown, target.roi, target=1)
    assert figure.axes[1].get_title() == "Effect of each unit"
    # An image that the grid does not divide: every pixel has the token that lies over it.
    assert stats.on_image((13, 5)).feature_mask[0][0, 0, :, 0].tolist() == [1, 1, 9, 9, 17, 25, 25, 33, 33, 41, 49, 49, 57]
    _, channels = face.attribute(images, target=1, n_draws=1, n_screening_draws=0, return_statistics=True)
    with pytest.raises(ValueError, match=r"units: those of an activation .* differ from channel to channel are no places"):
        channels.on_image((64, 64))
    with pytest.raises(ValueError, match="spatial_shape: expected 2 numbers"):
        stats.on_image((64, 64, 64))


def test_positions_of_swin_are_laid_out_on_the_image(cases):
    model, target, images, donors = cases["swin"]
    face = LayerAverageTreatmentEffect(target, model.swinViT.layers2[0].downsample)
    _, stats = face.attribute(
        images, donors, target=1, units="block", block_size=(2, 4), n_draws=1, n_screening_draws=0, return_statistics=True
    )
    assert stats.feature_mask[0].shape == (1, 8, 8, 1)
    columns = ["start_0", "stop_0", "start_1", "stop_1"]
    box = stats.to_dataframe().query("unit == 3 and `class` == 1")[columns]
    assert box.to_numpy().tolist() == [[2, 4, 4, 8]]
    assert (stats.on_image((64, 64)).feature_mask[0][0, 0, 16:32, 32:] == 3).all()


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


@pytest.mark.parametrize(("name", "layer"), [("swin", "swinViT.layers3.0.blocks.0"), ("beit", "beit.layers.2")])
def test_backpropagated_effects_of_channels_equal_the_formula(cases, name, layer):
    model, target, images, donors = cases[name]
    module = model.get_submodule(layer)
    attr = LayerGradientTreatmentEffect(target, module).attribute(images, donors, target=1)
    recorded, leaves = [], []
    handle = module.register_forward_hook(lambda m, a, out: recorded.append(out.detach()))
    with torch.no_grad():
        model(donors)
    handle.remove()

    def leaf(m, a, out):
        leaves.append(out.detach().requires_grad_())
        return leaves[0]

    handle = module.register_forward_hook(leaf, prepend=True)
    target.surrogate()(images)[0, 1].backward()
    handle.remove()
    product = leaves[0].grad * (leaves[0].detach() - recorded[0].mean(0, keepdim=True))
    effect = product.sum(tuple(range(1, product.ndim - 1)), keepdim=True).expand_as(product)
    assert effect.abs().max() > 1e-5
    torch.testing.assert_close(attr, effect, atol=1e-6, rtol=1e-4)


class ChannelsLast(nn.Module):
    """A local network whose middle works on (N, H, W, C), for what can be left out of it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mix(self.norm(self.before(x).permute(0, 2, 3, 1)))
        return self.after(hidden.permute(0, 3, 1, 2))


@pytest.mark.parametrize("kind", ["channel", "block"])
def test_support_and_window_of_channels_last_are_right(kind):
    torch.manual_seed(0)
    model = ChannelsLast().eval()
    images, donors = torch.rand(2, 1, 64, 64), torch.rand(3, 1, 64, 64)
    target = SegmentationTarget.from_prediction(model, images, roi=regions.box((64, 64), (6, 40), 8), metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.mix)
    arguments = {"units": kind, "block_size": 4 if kind == "block" else None, "target": 1, "n_draws": 3}
    attr, stats = face.attribute(images, donors, **arguments, screening_threshold=0.0, return_statistics=True)
    plain, _ = face.attribute(images, donors, **arguments, screening_threshold=0.0, support=None, return_statistics=True)
    torch.testing.assert_close(attr, plain, atol=1e-6, rtol=0)
    assert plain.abs().max() > 1e-3
    assert stats.settings["window"] is not None
    assert np.prod(stats.settings["window"]) < 64 * 64 / 4
    if kind == "block":
        outside = (stats.status[0, :, 1] == 2).reshape(8, 8)
        # The RoI lies in rows 3 to 6 and columns 20 to 23 of the activation.
        assert [tuple(place) for place in (~outside).nonzero().tolist()] == [(0, 5), (1, 5)]


def test_a_row_of_tokens_is_run_on_the_whole_image_and_it_is_said(cases):
    model, target, images, _ = cases["beit"]
    _, stats = LayerAverageTreatmentEffect(target, model.beit.layers[1]).attribute(
        images, target=1, n_draws=1, n_screening_draws=0, return_statistics=True
    )
    assert stats.settings["window"] is None
    assert (
        stats.settings["switched_off"]["window"]
        == "the activation is a row of tokens, a window of the image is no window of it"
    )


def test_components_by_token_and_head(cases):
    model, target, images, donors = cases["beit"]
    few = {"baselines": donors, "output": 1, "n_draws": 2, "n_screening_draws": 0}
    tokens = component_effects(target, images, ["beit.layers.1", "fpn.fpn1"], level="token", **few)
    assert sorted(tokens["token"]) == list(range(65))
    assert tokens.loc[tokens["special"], "token"].tolist() == [0]
    assert set(tokens["layout"]) == {"NLC"}
    assert tokens.attrs["left_out"] == {"fpn.fpn1": "it returns no tokens"}
    heads = component_effects(target, images, "beit.layers.1.attention*", level="head", **few)
    assert heads.attrs["left_out"] == {
        f"beit.layers.1.attention{part}": "it is no output projection of attention heads"
        for part in (".q_proj", ".k_proj", ".v_proj", "")
    }
    _, stats = LayerAverageTreatmentEffect(target, model.beit.layers[1].attention.o_proj).attribute(
        *(images, donors, 1),
        attribute_to_layer_input=True,
        units="head",
        n_draws=2,
        n_screening_draws=0,
        return_statistics=True,
    )
    assert heads.sort_values("head")["effect"].tolist() == stats.effect[0, :, 1].tolist()
    assert set(heads["module"]) == {"beit.layers.1.attention.o_proj"}
    channels = component_effects(target, images, "beit.layers.1", level="channel", **few)
    assert sorted(channels["channel"]) == list(range(16))


def test_components_leave_out_what_has_no_entry_per_example_or_no_clear_axes(cases):
    _, target, images, _ = cases["swin"]
    layers = "swinViT.layers2.0.blocks.0.*"
    table = component_effects(target, images, layers, level="channel", output=1, n_draws=1, n_screening_draws=0)
    assert table.groupby("module").size().to_dict() == {
        "swinViT.layers2.0.blocks.0.mlp": 24,
        "swinViT.layers2.0.blocks.0.mlp.fn": 96,
        "swinViT.layers2.0.blocks.0.mlp.linear1": 96,
        "swinViT.layers2.0.blocks.0.mlp.linear2": 24,
        "swinViT.layers2.0.blocks.0.norm1": 24,
        "swinViT.layers2.0.blocks.0.norm2": 24,
    }
    assert set(table["layout"]) == {"N*C"}
    reason = "its activation has not one entry per example, but 9"
    assert table.attrs["left_out"]["swinViT.layers2.0.blocks.0.attn"] == reason

    model = Opaque().eval()
    target = SegmentationTarget.from_prediction(model, images[..., :8, :6], metric="soft_dice")
    few = {"output": 1, "n_draws": 1, "n_screening_draws": 0}
    table = component_effects(target, images[..., :8, :6], level="channel", **few)
    assert table.attrs["left_out"] == {"middle": "what the axes of its activation mean cannot be told (give layout)"}
    given = component_effects(target, images[..., :8, :6], "middle", level="channel", layout={"mid*": "N*C"}, **few)
    assert sorted(given["channel"]) == list(range(6))
    whole = component_effects(target, images[..., :8, :6], **few)
    assert whole.set_index("module")["layout"].to_dict() == {"before": "NC*", "middle": "", "after": "NC*"}
