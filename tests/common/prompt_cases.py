"""Small promptable networks, and the literal loop over their prompts."""

import itertools

import torch
from torch import Tensor, nn
from transformers import SamConfig, SamModel

from captum_causalseg import SegmentationTarget, regions


def sam() -> SamModel:
    """SAM from a small configuration, with weights so large that prompts can be seen in the masks."""
    width = {"hidden_size": 8, "mlp_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SamConfig(
        vision_config={
            **width,
            "hidden_size": 16,
            "output_channels": 8,
            "image_size": 32,
            "patch_size": 8,
            "window_size": 2,
            "global_attn_indexes": [0],
            "num_pos_feats": 4,
        },
        prompt_encoder_config={"hidden_size": 8, "image_size": 32, "patch_size": 8, "mask_input_channels": 4},
        mask_decoder_config={**width, "iou_head_depth": 2, "iou_head_hidden_dim": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SamModel(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    return model


class SamMasks(nn.Module):
    """SAM's first candidate of every object, ``(N, objects, H, W)``; arguments are called as SAM's own."""

    def __init__(self) -> None:
        super().__init__()
        self.sam = sam()

    def forward(
        self,
        pixel_values: Tensor,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
    ) -> Tensor:
        masks: Tensor = self.sam(pixel_values, input_points, input_labels, input_boxes, input_masks).pred_masks[:, :, 0]
        return masks


def sam_case(n: int = 2, objects: int = 1) -> tuple[SegmentationTarget, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """A target with two regions, images, and three clicks and a box per object."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand((n, 3, 32, 32), generator=generator)
    points = (torch.rand((n, objects, 3, 2), generator=generator) * 28 + 2).round()
    labels = torch.tensor([1, 0, 1]).expand(n, objects, 3).clone()
    boxes = torch.tensor([4.0, 6.0, 24.0, 26.0]).expand(n, objects, 4).clone()
    rois = torch.stack([regions.box((32, 32), start=4, size=12), regions.box((32, 32), start=16, size=12)])
    reference = torch.randint(0, 2, (n, objects, 32, 32), generator=generator)
    target = SegmentationTarget(SamMasks(), roi=rois, reference=reference, metric="soft_dice", activation="sigmoid")
    return target, images, (points, labels, boxes)


class ClickGuided(nn.Module):
    """Channels of the image, and behind them maps of clicks of label 1 and of label 0, of every class.

    What is bright spreads from the clicks of a class over what is bright beside them: the clicks guide an attention over the features.
    """

    def __init__(self, n_spatial: int, n_classes: int = 1, steps: int = 4) -> None:
        super().__init__()
        self.n_classes, self.steps = n_classes, steps
        self.grow = (nn.MaxPool2d, nn.MaxPool3d)[n_spatial - 2](3, stride=1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        bright, clicks = x[:, :1], x[:, 1:]
        found = []
        for k in range(self.n_classes):
            wanted, unwanted = clicks[:, 2 * k : 2 * k + 1], clicks[:, 2 * k + 1 : 2 * k + 2]
            for _ in range(self.steps):
                wanted = self.grow(wanted) * bright
                unwanted = self.grow(unwanted) * bright.sqrt()
            found.append(4 * (wanted - unwanted) - 1)
        return torch.cat(found, 1)


def drawn_case(
    n_spatial: int, n_classes: int = 1, n: int = 1
) -> tuple[SegmentationTarget, Tensor, list[list[tuple[int, tuple[int, ...]]]]]:
    """A target, images with drawn clicks, and for every example its clicks: channel and first corner (each is of 2 pixels an edge)."""
    side = 16 if n_spatial == 2 else 10
    shape = (side,) * n_spatial
    generator = torch.Generator().manual_seed(3)
    images = torch.zeros((n, 1 + 2 * n_classes, *shape))
    images[:, 0] = 0.3 + 0.7 * torch.rand((n, *shape), generator=generator)
    clicks = []
    for example in range(n):
        mine = []
        for k in range(n_classes):
            for channel, corner in ((1 + 2 * k, 2), (1 + 2 * k, side - 4 - example), (2 + 2 * k, side - 6)):
                at = (corner, *((corner + 1,) * (n_spatial - 1)))
                images[(example, channel, *(slice(a, a + 2) for a in at))] = 1.0 - 0.1 * k
                mine.append((channel, at))
        clicks.append(sorted(mine))
    reference = (torch.rand((n, n_classes, *shape), generator=generator) > 0.5).long()
    rois = torch.stack([regions.box(shape, start=1, size=6), regions.box(shape, start=side - 7, size=6)])
    model = ClickGuided(n_spatial, n_classes)
    return SegmentationTarget(model, roi=rois, reference=reference, metric="soft_dice", activation="sigmoid"), images, clicks


def redrawn(images: Tensor, click: tuple[int, tuple[int, ...]], step: tuple[int, ...] | None) -> Tensor:
    """One image ``(1, C, *spatial)`` with a click of two pixels an edge wiped out, and drawn a step further (None: nowhere)."""
    channel, at = click
    there = (0, channel, *(slice(a, a + 2) for a in at))
    changed = images.clone()
    drawn = changed[there].clone()
    changed[there] = 0.0
    if step is not None:
        place = (0, channel, *(slice(a + s, a + s + 2) for a, s in zip(at, step)))
        changed[place] = torch.maximum(changed[place], drawn)
    return changed


def steps_of(
    radius: int, lower: tuple[float, ...], upper: tuple[float, ...], spatial: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """All whole steps in the ball that keep what lies between two corners inside the image."""
    return [
        step
        for step in itertools.product(range(-radius, radius + 1), repeat=len(lower))
        if 0 < sum(s**2 for s in step) <= radius**2
        and all(a + s >= 0 and b + s <= length - 1 for a, b, s, length in zip(lower, upper, step, spatial))
    ]
