"""Explanations to be refuted."""

import torch
from torch import nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg.evaluation.refute import refute

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
SPATIAL = {2: (20, 18), 3: (9, 8, 10)}


def network(d):
    """Convolutions with random weights, of a scale at which labels flip here and there; a window of the image is not enough."""
    generator = torch.Generator().manual_seed(d)
    sizes = {2: 5, 3: 3}[d]
    model = nn.Sequential(CONVOLUTIONS[d](1, 4, sizes, padding="same"), nn.Tanh(), CONVOLUTIONS[d](4, 2, sizes, padding="same"))
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 10
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / scale)
    return model


def case(d, n=1, metric="dice"):
    """A target with the network's own prediction as the reference, images, and donor images."""
    generator = torch.Generator().manual_seed(10 + d)
    images, donors = (torch.randn(count, 1, *SPATIAL[d], generator=generator) for count in (n, 40))
    roi = regions.box(SPATIAL[d], start=2, size=5)
    return SegmentationTarget.from_prediction(network(d), images, roi=roi, metric=metric), images, donors


OPTIONS = {2: {"block_size": 2}, 3: {"block_size": 2}}


def shifted(face, by, *arguments):
    """An explainer whose effects are all wrong by so much, per output."""

    class Shifted(face):
        def attribute(self, *given, **options):
            attributions, statistics = super().attribute(*given, **options)
            statistics.effect = statistics.effect + torch.as_tensor(by, dtype=statistics.effect.dtype)
            return attributions, statistics

    return Shifted(*arguments)


def look_up(table):
    """A forward function whose interventions have exactly these effects ``(U, D)``: pixel u holding donor d's number.

    Units are pixels, donors numbers along the first axis of a tensor.
    """
    values = torch.from_numpy(table)

    def forward(x):
        donor = x[:, 0].round().long()
        unit = (donor >= 0).int().argmax(1)
        moved = values[unit, donor.gather(1, unit[:, None])[:, 0].clamp_min(0)]
        return torch.where((donor >= 0).any(1), -moved, 0.0)

    units, donors = table.shape
    numbers = torch.arange(donors, dtype=torch.float64).view(-1, 1, 1).expand(-1, 1, units)
    return forward, torch.full((1, 1, units), -1.0, dtype=torch.float64), numbers


def run_on_table(table, name, seed=0, **options):
    forward, image, numbers = look_up(table)
    options = {"block_size": 1, "sampling": "uniform", "perturbations_per_eval": 4096, "n_screening_draws": 0} | options
    return refute(AverageTreatmentEffect(forward), image, numbers, refuters=[name], seed=seed, **options)
