"""Models whose outputs take some reading."""

import pytest
import torch
from torch import Tensor, nn

CONVOLUTION = {2: nn.Conv2d, 3: nn.Conv3d}
SPATIAL = {2: (12, 16), 3: (8, 12, 8)}
both_dimensions = pytest.mark.parametrize("d", [2, 3])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Scores(nn.Module):
    """Two convolutions: the scores of classes that the models below turn into outputs of many kinds."""

    def __init__(self, d: int, classes: int = 3) -> None:
        super().__init__()
        self.first = CONVOLUTION[d](1, 4, 3, padding=1)
        self.last = CONVOLUTION[d](4, classes, 3, padding=1)
        values = generator(d)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=values)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)))


class Wrapped(nn.Module):
    """Scores, and what is made of them."""

    def __init__(self, d: int, make, classes: int = 3) -> None:
        super().__init__()
        self.scores, self.make = Scores(d, classes), make

    def forward(self, x: Tensor):
        return self.make(self.scores(x))


def returning(value):
    """A model that returns this whatever it is given."""
    return lambda image: value


def images(d: int, n: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(n, 1, *SPATIAL[d], generator=generator(seed))


def labels(d: int, n: int = 1, classes: int = 3) -> Tensor:
    """That hold every class."""
    values = torch.randint(0, classes, (n, *SPATIAL[d]), generator=generator(5))
    values.flatten()[:classes] = torch.arange(classes)
    return values
