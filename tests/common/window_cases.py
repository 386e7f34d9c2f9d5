"""Models and images whose windows are looked for, and effects on the window against those on the whole image."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, TreatmentEffectStatistics, regions

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NAN = float("nan")


class Local(nn.Module):
    """Reaches three pixels far, and bends."""

    def __init__(self, d: int = 2, channels: int = 1, classes: int = 2) -> None:
        super().__init__()
        self.first, self.second = CONV[d](channels, 4, 5, padding=2), CONV[d](4, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.second(torch.sin(4 * self.first(x)))


class Strided(nn.Module):
    """Half the resolution inside; sizes that are no multiple of two as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        small = torch.sin(4 * self.first(x))
        up = functional.interpolate(small, scale_factor=2, mode="nearest")
        return 3 * self.second(up[(..., *map(slice, x.shape[2:]))])


def on_and_off(face, inputs, **arguments) -> tuple[TreatmentEffectStatistics, TreatmentEffectStatistics]:
    """Statistics with support and without it, which say the same."""
    if not ({"block_size", "feature_mask", "units", "layer_mask"} & set(arguments)):
        arguments["block_size"] = 4
    plain = {"n_draws": 3, "n_screening_draws": 0, "sampling": "uniform", "return_statistics": True, **arguments}
    if isinstance(face, AverageTreatmentEffect):
        plain.setdefault("exclude", None)
    on, off = (face.attribute(inputs, **plain, support=support)[1] for support in ("always", None))
    assert "support" not in off.settings["forwards"]
    assert off.settings["window"] is None
    outside = on.status == Status.OUTSIDE_SUPPORT
    assert torch.equal(on.status[~outside], off.status[~outside])
    for name in ("effect", "standard_error"):
        left, right = getattr(on, name), getattr(off, name)
        torch.testing.assert_close(left[~outside], right[~outside], atol=2e-6, rtol=0, equal_nan=True)
        assert (left[outside] == 0).all()
    assert not outside.any() or float(off.effect[outside].abs().max()) <= 1e-6
    assert torch.equal(on.observed_score, off.observed_score)
    assert float(off.effect.nan_to_num().abs().max()) > 1e-3, "the case is too dull to prove anything"
    return on, off


def is_outside(statistics: TreatmentEffectStatistics) -> bool:
    return bool((statistics.status == Status.OUTSIDE_SUPPORT).any())


def left_nothing_out(statistics: TreatmentEffectStatistics) -> bool:
    return statistics.settings["window"] is None and not is_outside(statistics)


def pixels(*shape: int, count: int = 1) -> Tensor:
    return torch.rand((count, 1, *shape))


class Shapes(nn.Module):
    """A second input of another shape, which is resized, or a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.coarse = Local(), nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if other.ndim == 2:
            return self.near(x + 0.3 * torch.sin(other.sum(1))[:, None, None, None])
        return self.near(x) + 3 * functional.interpolate(self.coarse(other), size=x.shape[2:])


def case(**options) -> tuple[SegmentationTarget, Tensor, Tensor]:
    image = pixels(32, 32)
    target = SegmentationTarget(Local(), roi=regions.box((32, 32), start=9, size=6), **options)
    return target, image, pixels(32, 32, count=3)


class Sixteen(Local):
    """Takes sizes that are multiples of sixteen only."""

    def forward(self, x: Tensor) -> Tensor:
        if any(side % 16 for side in x.shape[2:]):
            raise RuntimeError(f"sizes must be multiples of 16, got {tuple(x.shape)}")
        return super().forward(x)


class Coordinates(Local):
    """Sees where in the image it is."""

    def __init__(self, channels: int = 1, weight: float = 1.0) -> None:
        super().__init__(channels=2)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        place = torch.linspace(0, 1, x.shape[3], dtype=x.dtype, device=x.device).expand_as(x)
        return super().forward(torch.cat([x, self.weight * place], 1))


class NanHider(Local):
    """Takes NaN for 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.nan_to_num(0.0)
        return super().forward(x) + x.mean((1, 2, 3), keepdim=True)


def compared(model: nn.Module, *, side: int = 32, start=9, dtype=torch.float32, donors=None, image=None):
    image = pixels(side, side) if image is None else image
    donors = pixels(side, side, count=4) if donors is None else donors
    roi = regions.box((side, side), start=start, size=6)
    target = SegmentationTarget(model.eval().to(dtype), roi=roi, metric="logit_mean", activation="softmax")
    return on_and_off(AverageTreatmentEffect(target), image.to(dtype), baselines=PatchBank(donors.to(dtype)), target=1)[0]
