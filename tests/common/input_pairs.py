"""Models of an image and something beside it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, Status, regions

SPATIAL = {2: (12, 12), 3: (8, 8, 8)}
CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
both_dimensions = pytest.mark.parametrize("d", [2, 3])
ALL_OF_THEM = {"n_draws": 2, "return_statistics": True}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seeded(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return module.eval()


class Interactive(nn.Module):
    """Segments an image with the help of maps of positive and negative clicks; ``strength`` says how much they count."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.of_image, self.of_clicks = CONVOLUTION[d](1, 4, 3, padding=1), CONVOLUTION[d](2, 4, 5, padding=2)
        self.mixed, self.head = nn.Tanh(), CONVOLUTION[d](4, 2, 3, padding=1)
        seeded(self)

    def forward(self, image: Tensor, clicks: Tensor, strength: float = 1.0) -> Tensor:
        return self.head(self.mixed(self.of_image(image) + strength * self.of_clicks(clicks)))


class FewShot(nn.Module):
    """Segments a query by the prototypes of the masked support images: queries ``(N, 1, ...)``, support and masks ``(N, K, ...)``."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.d = d
        self.features = CONVOLUTION[d](1, 6, 3, padding=1)
        self.decoder = CONVOLUTION[d](6, 6, 1)
        seeded(self)

    def forward(self, query: Tensor, support: Tensor, masks: Tensor) -> Tensor:
        n, k = support.shape[:2]
        spatial = tuple(range(2, 2 + self.d))
        # Two calls of one module would leave no one activation: query and support go through together.
        seen = torch.tanh(self.features(torch.cat([query, support.flatten(0, 1).unsqueeze(1)])))
        of_query = torch.tanh(self.decoder(seen[:n]))
        of_support = torch.tanh(seen[n:])
        logits = []
        for weights in (1 - masks, masks):
            weights = weights.flatten(0, 1).unsqueeze(1)
            sums = (of_support * weights).sum(spatial).view(n, k, -1).sum(1)
            prototypes = sums / weights.sum(spatial).view(n, k, -1).sum(1)
            logits.append(4 * functional.cosine_similarity(of_query, prototypes.view(n, -1, *(1,) * self.d), dim=1))
        return torch.stack(logits, 1)


class Case:
    """A model of two inputs with donors for each, and scores by hand."""

    def __init__(self, kind: str, d: int, n: int = 1) -> None:
        s = SPATIAL[d]
        self.kind, self.d, self.n = kind, d, n
        self.image, self.labels = random(n, 1, *s), (random(n, *s, seed=1) > 0).long()
        self.roi = regions.box(s, start={2: 4, 3: 1}[d], size=3)
        if kind == "interactive":
            self.model: nn.Module = Interactive(d)
            self.second, self.others = (random(n, 2, *s, seed=2) > 1).float(), 0.75
            self.donors = 2 * random(2, 1, *s, seed=4), (random(2, 2, *s, seed=5) > 0.5).float()
        else:
            self.model = FewShot(d)
            self.second, self.others = random(n, 3, *s, seed=2), (random(n, 3, *s, seed=3) > 0.3).float()
            self.donors = 2 * random(2, 1, *s, seed=4), 2 * random(2, 3, *s, seed=5)
        self.inputs = self.image, self.second
        self.banks = tuple(PatchBank(donors, placement="aligned") for donors in self.donors)
        blocks = regions.grid(s, 4)[None, None]
        count = int(blocks.max()) + 1
        # The second input's channels are units of their own: the sign of a click, one of the support images.
        channels = torch.arange(self.second.shape[1]).view(1, -1, *(1,) * d)
        self.masks = blocks, count + blocks + count * channels
        # The region of interest is a place in the query; what lies at the same place of a support image is another matter.
        self.options = {
            "feature_mask": self.masks,
            "target": 1,
            "additional_forward_args": self.others,
            "exclude": "roi" if kind == "interactive" else ("roi", None),
        }
        self.with_roi = self.masks if kind == "interactive" else self.masks[:1]

    def target(self, metric: str = "soft_dice") -> SegmentationTarget:
        return SegmentationTarget(self.model, self.roi, self.labels, metric=metric)

    def score(self, *inputs: Tensor, example: int = 0, model: Callable[..., Tensor] | None = None) -> Tensor:
        """Soft Dice of both classes ``(2,)`` for the inputs of one example ``(1, C, ...)``."""
        others = self.others[example : example + 1] if isinstance(self.others, Tensor) else self.others
        p = (self.model if model is None else model)(*inputs, others).softmax(1)[0]
        r = torch.stack([self.labels[example] == 0, self.labels[example] == 1]).float()
        p, r = p[:, self.roi], r[:, self.roi]
        return 2 * (p * r).sum(-1) / (p.sum(-1) + r.sum(-1))

    @torch.no_grad()
    def effect_of(self, unit: int, example: int = 0) -> Tensor:
        """Its effect on both classes: all it holds comes from the first donor, then from the second, of every input."""
        mine = [x[example : example + 1] for x in self.inputs]
        scores = []
        for first in range(2):
            for second in range(2):
                donors = self.donors[0][first : first + 1], self.donors[1][second : second + 1]
                scores.append(
                    self.score(
                        *(torch.where(mask == unit, b, x) for mask, b, x in zip(self.masks, donors, mine)), example=example
                    )
                )
        return self.score(*mine, example=example) - torch.stack(scores).mean(0)

    def explained(self, **options):
        face = AverageTreatmentEffect(self.target())
        return face.attribute(self.inputs, self.banks, **{**self.options, **ALL_OF_THEM, **options})


# Blocks of 2 are numbered row by row, those of the second input after the first's: 16 and 16 in 2D, 8 and 8 in 3D.
GRID = {2: (8, 8), 3: (4, 4, 4)}
ROI = {2: regions.box((8, 8), (2, 2), (3, 2)), 3: regions.box((4, 4, 4), (0, 2, 2), (1, 2, 2))}
CORNER = {2: regions.box((8, 8), (0, 7), 1), 3: regions.box((4, 4, 4), (3, 3, 0), 1)}


def sum_of_both(image: Tensor, other: Tensor) -> Tensor:
    """Logits in which every pixel of both inputs counts for every pixel of the output."""
    means = image.flatten(1).mean(1) + other.flatten(1).mean(1)
    return image[:, :1] + means.view(-1, *(1,) * (image.ndim - 1))


def toy(d: int, n: int = 1, roi: Tensor | None = None) -> SegmentationTarget:
    labels = random(n, *GRID[d], seed=1) > 0
    return SegmentationTarget(sum_of_both, ROI[d] if roi is None else roi, labels, "soft_dice")


def toy_inputs(d: int, n: int = 1) -> tuple[Tensor, Tensor]:
    return random(n, 1, *GRID[d]), random(n, 2, *GRID[d], seed=2)


def excluded_ids(statistics, example: int = 0) -> list[list[int]]:
    """Per output, the units that were left alone."""
    status = statistics.status[example].reshape(len(statistics.unit_ids), -1)
    return [statistics.unit_ids[one == Status.EXCLUDED].tolist() for one in status.unbind(1)]


def statistics_of(face: AverageTreatmentEffect, inputs, exclude, **options):
    options = {"block_size": 2, "n_draws": 1, "return_statistics": True} | options
    return face.attribute(inputs, 0.0, exclude=exclude, **options)[1]
