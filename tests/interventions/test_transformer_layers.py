"""Effects of tokens, heads and channels against a literal loop."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformer_cases import Opaque, case

from captum_causalseg import (
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    SegmentationTarget,
    component_effects,
    regions,
)
from captum_causalseg.visualization import plot_effects


def visited(model, layer, image, at_input, visit):
    """What the model answers with the layer's activation changed by ``visit``.

    The layer's own method is replaced, not hooked: hooks that the model has on it (Hugging Face's) see what it returns now.
    """
    forward = layer.forward

    def one(value):
        return (visit(value[0]), *value[1:]) if isinstance(value, tuple) else visit(value)

    def changed(*args, **kwargs):
        return forward(*one(args), **kwargs) if at_input else one(forward(*args, **kwargs))

    layer.forward = changed
    try:
        with torch.no_grad():
            return model(image)
    finally:
        layer.forward = forward


def activation(model, layer, image, at_input):
    seen = []
    visited(model, layer, image, at_input, lambda value: seen.append(value.clone()) or value)
    (found,) = seen
    return found


def literal(model, layer, image, donated, inside, at_input):
    """What the model answers with the elements ``inside`` of the layer's activation replaced by those on a donor image."""
    return visited(model, layer, image, at_input, lambda value: torch.where(inside, donated, value))


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


# A batch, and of each network one layer for an image alone, whose first axis says nothing.
ALONE = list({case[0]: case for case in LITERAL}.values())


@pytest.mark.parametrize(
    ("name", "layer", "kind", "at_input", "more", "n"), [*((*case, 2) for case in LITERAL), *((*case, 1) for case in ALONE)]
)
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
    donated = [activation(model, module, donor[None], at_input) for donor in donors]
    for example in range(n):
        image, labels = images[example : example + 1], target.reference[example : example + 1]

        def score(answer, image=image, labels=labels):
            return SegmentationTarget(lambda x: answer, roi=target.roi, reference=labels, metric="soft_dice")(image)[0].double()

        with torch.no_grad():
            observed = score(model(image))
        largest = 0.0
        for u in some:
            inside = unit_of(kind, u, shape, channels_last, more.get("heads", 1), more.get("grid", (1, 1)))
            answers = [literal(model, module, image, one, inside, at_input) for one in donated]
            expected = torch.stack([observed - score(answer) for answer in answers]).mean(0)
            torch.testing.assert_close(stats.effect[example, units.index(u)], expected, atol=2e-6, rtol=0)
            largest = max(largest, float(expected.abs().max()))
            painted = attr[example][inside[0]]
            effect = float(stats.effect[example, units.index(u), 1])
            torch.testing.assert_close(painted, torch.full_like(painted, effect))
        assert largest > 5e-5, "the case is too dull to prove anything"


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
    with pytest.raises(ValueError, match=r"units: those of an activation .* differ from channel to channel have no positions"):
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
    attr, stats = face.attribute(images, donors, **arguments, screening_threshold=0.0, support="always", return_statistics=True)
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
    assert stats.settings["disabled"]["window"] == "the activation is a row of tokens, a window of the image is no window of it"


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
