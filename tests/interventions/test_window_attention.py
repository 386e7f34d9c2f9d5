"""Layers that run on several windows of each image, as the attention of Swin transformers, against hooks by hand."""

import pytest
import torch
from monai.networks import nets
from torch import nn

from captum_causalseg import LayerAverageTreatmentEffect, Layout, SegmentationTarget, component_effects, refute, regions
from tests.common.transformer_cases import case


def swin(n_spatial, n):
    """SwinUNETR, whose attention sees 25 windows of an image in its first stage, then 9, 4 and 1; of a volume 64, 8, 1 and 1."""
    if n_spatial == 2:
        return case("swin", n)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4), "window_size": 4}
        model = nets.SwinUNETR(1, 2, **sizes, spatial_dims=3, norm_name="batch").eval()
    generator = torch.Generator().manual_seed(1)
    images, donors = (torch.rand((k, 1, 32, 32, 32), generator=generator) for k in (n, 2))
    labels = torch.randint(0, 2, (n, 32, 32, 32), generator=generator)
    target = SegmentationTarget(model, roi=regions.box((32, 32, 32), start=8, size=12), reference=labels, metric="soft_dice")
    return model, target, images, donors


def hooked(model, module, image, change):
    handle = module.register_forward_pre_hook(lambda _, args: (change(args[0]),))
    with torch.no_grad():
        logits = model(image)
    handle.remove()
    return logits


@pytest.mark.parametrize(("n_spatial", "n", "layer"), [(2, 2, "layers1"), (2, 1, "layers2"), (3, 1, "layers2")])
def test_heads_of_window_attention_are_what_hooks_by_hand_say(n_spatial, n, layer):
    model, target, images, donors = swin(n_spatial, n)
    name = f"swinViT.{layer}.0.blocks.0.attn.proj"
    module, heads = model.get_submodule(name), model.get_submodule(name.removesuffix(".proj")).num_heads
    table = component_effects(target, images, name, donors, "head", output=1)
    assert len(table) == n * heads
    recorded = []
    for donor in donors:
        hooked(model, module, donor[None], lambda x: recorded.append(x.clone()) or x)
    assert len(recorded[0]) > 1  # several windows of each image
    for row in table.to_dict("records"):
        image, truth = images[[row["example"]]], target.reference[[row["example"]]]
        alone = SegmentationTarget(model, roi=target.roi, reference=truth, metric="soft_dice")
        scores = []
        for values in recorded:

            def replaced(x, values=values, head=row["head"]):
                width = x.shape[-1] // heads
                changed = x.clone()
                changed[..., head * width : (head + 1) * width] = values[..., head * width : (head + 1) * width]
                return changed

            scores.append(alone.score(hooked(model, module, image, replaced), image)[0, 1])
        expected = alone(image).detach()[0, 1] - torch.stack(scores).mean()
        assert row["effect"] == pytest.approx(float(expected), abs=2e-6)
        assert row["standard_error"] == 0


class Windows(nn.Module):
    """Halves of the image's columns as windows: of one image side by side, or first the left ones of all images."""

    def __init__(self, side_by_side: bool) -> None:
        super().__init__()
        self.side_by_side, self.middle, self.head = side_by_side, nn.Linear(4, 4), nn.Conv2d(4, 2, 1)
        self.before = nn.Conv2d(1, 4, 1)

    def forward(self, x):
        halves = self.before(x).movedim(1, -1).unflatten(2, (2, -1))  # (N, H, 2, W / 2, C)
        order = (0, 2, 1, 3, 4) if self.side_by_side else (2, 0, 1, 3, 4)
        windows = halves.permute(order).flatten(0, 1).flatten(1, 2)
        found = self.middle(windows).unflatten(1, halves.shape[1:4:2])
        found = found.unflatten(0, (-1, 2) if self.side_by_side else (2, -1))
        back = (0, 2, 1, 3, 4) if self.side_by_side else (1, 2, 0, 3, 4)
        return self.head(found.permute(back).flatten(2, 3).movedim(-1, 1))


def test_attributions_lie_in_the_windows_and_can_be_recomputed_by_hand():
    model = Windows(side_by_side=True)
    images, donors = torch.rand(2, 1, 4, 4), torch.rand(3, 1, 4, 4)
    face = LayerAverageTreatmentEffect(SegmentationTarget.from_prediction(model, images, metric="soft_dice"), model.middle)
    call = {"target": 1, "units": "token", "n_draws": 3, "n_screening_draws": 0}
    attribution, statistics = face.attribute(images, layer_baselines=donors, **call, return_statistics=True)
    assert attribution.shape == (4, 8, 4)  # two windows of eight tokens for each of two images
    for n in range(2):
        mine = attribution[2 * n : 2 * n + 2]
        assert torch.equal(mine.flatten(0, 1)[:, 0], statistics.effect[n, :, 1].to(mine.dtype))
        assert torch.equal(mine, mine[..., :1].expand_as(mine))
    assert refute(face, images, donors, refuters="recompute", **call)["recompute"].verdict == "pass"


def test_windows_that_do_not_lie_side_by_side_are_refused():
    images, donors = torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8)
    for side_by_side in (True, False):
        model = Windows(side_by_side)
        target = SegmentationTarget.from_prediction(model, images, metric="soft_dice")
        face = LayerAverageTreatmentEffect(target, model.middle)
        call = {"layer_baselines": donors, "target": 1}
        if side_by_side:
            assert face.attribute(images, **call).shape == (4, 32, 4)
            with pytest.raises(ValueError, match=r"^layer_mask: the layer runs on several windows of each image"):
                face.attribute(images, **call, layer_mask=torch.zeros(1, 1, 4, dtype=torch.int64))
            continue
        with pytest.raises(
            ValueError, match=r"^layer: it runs on several windows of each image, and those of one image do not"
        ):
            face.attribute(images, **call)


def test_layouts_of_windows_count_all_tokens_of_an_image_as_one_row():
    layout = Layout("NLC", heads=2, windows=3)
    lying = torch.arange(6 * 4 * 2).view(6, 4, 2).float()
    first = layout.channels_first(lying)
    assert first.shape == (2, 2, 12)
    assert torch.equal(first[1, :, 5], lying[3 + 1, 1])
    assert torch.equal(layout.as_it_lies(first), lying)
    assert layout.spatial(lying.shape) == (12,)
    assert layout.n_units("token", lying.shape) == 12
    assert layout.described() == {"axes": "NLC", "windows": 3, "heads": 2}
    with pytest.raises(ValueError, match=r"^layout: 3 windows for each image do not divide the 4"):
        layout.check((4, 4, 2))
    with pytest.raises(ValueError, match=r"^windows: they hold tokens that lie on no grid"):
        Layout("N*C", windows=2)


class QueriesFirst(nn.Module):
    """Queries on the first axis, images on the second, as in the decoders of DETR and Mask2Former."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.pixels, self.inside = nn.Embedding(2, 8), nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x):
        pixels = self.pixels(x)
        queries = self.queries.weight[:, None].expand(-1, len(x), -1) + pixels.mean((2, 3))
        return torch.einsum("qnc,nchw->nqhw", self.inside(queries), pixels)


def test_layers_whose_first_axis_are_no_images_are_refused():
    model, images = QueriesFirst().eval(), torch.rand(3, 1, 8, 8)
    face = LayerAverageTreatmentEffect(SegmentationTarget(model, metric="logit_mean"), model.inside)
    for units in ("layer", "channel"):
        with pytest.raises(
            ValueError, match=r"^layer: its activation is \(2, 1, 8\) of one image and \(2, 2, 8\) of two: .*queries"
        ):
            face.attribute(images[:1], images[1:], target=1, units=units)
