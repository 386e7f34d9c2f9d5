"""Fitted donors in the engine: against literal loops, the same draws, exact where the bank is used up."""

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    regions,
)
from captum_causalseg.boxes import box_at
from captum_causalseg.donors import NeighborBank, SelfDonor
from captum_causalseg.donors.fit import Feather, Poisson, matched
from captum_causalseg.donors.gather import Request
from captum_causalseg.donors.source import Recipients

FITS: list[dict[str, Any]] = [
    {"match": "mean"},
    {"match": "mean_std"},
    {"match": "histogram"},
    {"blend": 1},
    {"border": "poisson"},
    {"match": "mean", "blend": 1},
    {"match": "mean", "border": "poisson"},
    {"match": "histogram", "border": "poisson"},
]


@functools.cache
def border_of(
    mask: bytes, shape: tuple[int, ...], sides: tuple[tuple[bool, bool], ...], blend: int | None
) -> Feather | Poisson:
    inside = np.frombuffer(mask, dtype=bool).reshape(shape)
    return Poisson(inside, sides) if blend is None else Feather(inside, sides, blend)


def literal(donor: Tensor, own: Tensor, mask: Tensor, sides: list[tuple[bool, bool]], fit: dict[str, Any]) -> Tensor:
    """One donor ``(C, *box)`` fitted to one unit; what lies outside the mask is the image's own."""
    donor, own = donor.double(), own.double()
    if fit.get("match") is not None:
        donor = matched(donor[None], own[None], mask[None], fit["match"])[0]
    if fit.get("border") == "poisson" or fit.get("blend"):
        donor = border_of(mask.numpy().tobytes(), tuple(mask.shape), tuple(sides), fit.get("blend"))(donor[None], own[None])[0]
    return torch.where(mask, donor, own)


def irregular(spatial: tuple[int, ...]) -> Tensor:
    """Blocks of 6 (and what is left at the far ends), of which the first and its neighbors along every axis are one unit, 0."""
    units = regions.grid(spatial, 6).clone()
    for axis in range(len(spatial)):
        neighbor = units[tuple(6 * (other == axis) for other in range(len(spatial)))].clone()
        units[units == neighbor] = 0
    return torch.unique(units, return_inverse=True)[1]


def score(weights: Tensor) -> Any:
    def forward(x: Tensor) -> Tensor:
        return ((x.double() * weights).flatten(1).sum(1)).tanh()

    return forward


@pytest.mark.parametrize("fit", FITS, ids=str)
@pytest.mark.parametrize(
    ("spatial", "placement"), [((16, 17), "anywhere"), ((16, 17), "aligned"), ((12, 12, 10), "aligned")], ids=str
)
def test_a_bank_that_is_used_up_is_the_literal_loop(fit: dict[str, Any], spatial: tuple[int, ...], placement: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 2, *spatial, generator=generator)
    donors = 2 * torch.rand(2, 2, *(n if placement == "aligned" else 12 for n in spatial), generator=generator)
    weights = torch.randn(2, *spatial, generator=generator, dtype=torch.float64) / 40
    units, forward = irregular(spatial), score(weights)
    bank = PatchBank(donors, placement, **fit)
    _, stats = AverageTreatmentEffect(forward).attribute(
        images, bank, feature_mask=units[None, None], n_draws=1000, n_screening_draws=0, return_statistics=True
    )
    assert float(stats.standard_error.max()) == 0
    checked = 0
    for unit in sorted({0, int(units.max()) // 2, int(units.max())}):
        mask = units == unit
        box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in mask.nonzero().T)
        size = tuple(side.stop - side.start for side in box)
        sides = [(side.start > 0, side.stop < n) for side, n in zip(box, spatial)]
        for example in range(2):
            places = [tuple(side.start for side in box)]
            if placement == "anywhere":
                places = list(itertools.product(*(range(12 - n + 1) for n in size)))
            found = []
            for donor, place in itertools.product(donors, places):
                changed = images[example].clone()
                inside = (slice(None), *box)
                patch = donor[(slice(None), *box_at(place, size))]
                changed[inside] = literal(patch, images[example][inside], mask[box], sides, fit).float()
                found.append(float(forward(images[example][None]) - forward(changed[None])))
            assert float(stats.effect[example, unit]) == pytest.approx(np.mean(found), abs=1e-7)
            checked += int(np.ptp(found) > 1e-4)
    assert checked >= 3


@pytest.mark.parametrize("fit", FITS, ids=str)
def test_inner_products_and_means_are_those_of_the_values(fit: dict[str, Any]) -> None:
    """Whatever shorter way is taken to them: weights pulled back through the fit, the fit of the mean donor."""
    generator = torch.Generator().manual_seed(1)
    images, donors = torch.rand(1, 3, 16, 16, generator=generator), torch.rand(2, 3, 13, 13, generator=generator) * 3
    units = irregular((16, 16))

    class OneByOne:
        def __len__(self) -> int:
            return len(donors)

        def __getitem__(self, index: int) -> Tensor:
            return donors[index]

    for given, unit in itertools.product((donors, OneByOne()), (0, 1)):
        bound = PatchBank(given, **fit).bind(images)
        mask = units == unit
        box = tuple(slice(int(i.min()), int(i.max()) + 1) for i in mask.nonzero().T)
        inside = None if unit == 1 else mask[box][None]
        numbers = np.arange(bound.population(0, box))
        for channels in (slice(None), slice(1, 2)):
            values = bound.values(Recipients.one(0, box, channels, inside, count=len(numbers)), numbers).double()
            weights = torch.randn(values.shape[1:], generator=generator, dtype=torch.float64)
            weights = weights if inside is None else weights * inside
            (found,) = bound.inner_products([Request(0, box, numbers, weights, channels, inside)])
            np.testing.assert_allclose(found, (values * weights).flatten(1).sum(1).numpy(), atol=1e-5)
            mean, wanted = bound.mean_value(0, box, channels, inside), values.mean(0)
            where = torch.ones_like(wanted, dtype=torch.bool) if inside is None else inside.expand(wanted.shape)
            torch.testing.assert_close(mean[where], wanted[where], atol=1e-6, rtol=0)


@pytest.mark.parametrize("fit", FITS, ids=str)
def test_the_same_draws_as_without(fit: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    image, donors = torch.rand(1, 1, 24, 24, generator=generator), torch.rand(30, 1, 24, 24, generator=generator)
    weights = torch.randn(1, 24, 24, generator=generator, dtype=torch.float64) / 30
    ate = AverageTreatmentEffect(score(weights))
    given: dict[str, Any] = {"block_size": 6, "n_draws": 5, "sampling": "uniform", "n_screening_draws": 0}
    bank = PatchBank(donors)
    for other in (PatchBank(donors, **fit), bank.fitted(**fit)):
        plans = [ate.plan(image, one, **given) for one in (bank, other)]
        assert [one.donors for one in plans[0]] == [one.donors for one in plans[1]]
        effects = [
            ate.attribute(image, one, screening_threshold=0.0, return_statistics=True, **given | {})[1].effect
            for one in (bank, other)
        ]
        assert float((effects[0] - effects[1]).abs().max()) > 1e-4


@pytest.mark.parametrize("fit", FITS, ids=str)
def test_units_given_their_own_values_have_exactly_no_effect(fit: dict[str, Any]) -> None:
    """The image itself as the bank, aligned: every unit is its own donor."""
    generator = torch.Generator().manual_seed(3)
    image = 3 * torch.rand(2, 2, 18, 18, generator=generator)
    weights = torch.randn(2, 18, 18, generator=generator, dtype=torch.float64)
    for one in image:
        found = AverageTreatmentEffect(score(weights)).attribute(
            one[None], PatchBank(one[None], "aligned", **fit), feature_mask=irregular((18, 18))[None, None], n_draws=2
        )
        assert float(found.abs().max()) == 0


def trained() -> tuple[SegmentationTarget, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 2, 5, padding=2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    image, donors = torch.rand(1, 1, 48, 48, generator=generator), torch.rand(12, 1, 48, 48, generator=generator)
    roi = regions.box((48, 48), start=20, size=8)
    return SegmentationTarget.from_prediction(model, image, roi=roi, metric="soft_dice"), image, donors


@pytest.mark.parametrize("fit", FITS, ids=str)
def test_windows_and_the_whole_image_agree(fit: dict[str, Any]) -> None:
    target, image, donors = trained()
    given: dict[str, Any] = {"target": 1, "block_size": 6, "n_draws": 6, "return_statistics": True, "n_screening_draws": 0}
    runs = [
        AverageTreatmentEffect(target).attribute(image, PatchBank(donors, **fit), support=support, **given)[1]
        for support in ("auto", None)
    ]
    assert runs[0].settings["window"] is not None
    torch.testing.assert_close(runs[0].effect, runs[1].effect, atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("fit", FITS, ids=str)
def test_the_first_order_effect_is_that_of_fitted_donors(fit: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(5)
    image, donors = torch.rand(1, 1, 12, 12, generator=generator), 2 * torch.rand(6, 1, 12, 12, generator=generator)
    weights = torch.randn(1, 12, 12, generator=generator, dtype=torch.float64)

    def linear(x: Tensor) -> Tensor:
        return (x.double() * weights).flatten(1).sum(1)

    bank, units = PatchBank(donors, "aligned", **fit), irregular((12, 12))[None, None]
    exact = AverageTreatmentEffect(linear).attribute(image, bank, feature_mask=units, n_draws=6)
    first = GradientTreatmentEffect(linear).attribute(image, bank, feature_mask=units)
    torch.testing.assert_close(first, exact, atol=1e-5, rtol=0)


def test_rankings_know_of_the_fit() -> None:
    """On a linear score the stratified estimate with a fitted bank has next to no error: its ranking is that of the fitted donors."""
    generator = torch.Generator().manual_seed(6)
    image, donors = torch.rand(1, 1, 18, 18, generator=generator), torch.rand(200, 1, 18, 18, generator=generator)
    donors = donors + 5 * torch.rand(200, 1, 1, 1, generator=generator)  # raw, brightness alone makes the ranking
    weights = torch.randn(1, 18, 18, generator=generator)

    def linear(x: Tensor) -> Tensor:
        return (x * weights).flatten(1).sum(1)

    bank = PatchBank(donors, "aligned", match="mean")
    given: dict[str, Any] = {"block_size": 6, "n_screening_draws": 0}
    exact = AverageTreatmentEffect(linear).attribute(image, bank, n_draws=200, **given)
    errors = {
        sampling: float(
            (AverageTreatmentEffect(linear).attribute(image, bank, n_draws=20, sampling=sampling, **given) - exact)
            .square()
            .mean()
            .sqrt()
        )
        for sampling in ("stratified", "uniform")
    }
    assert errors["stratified"] < errors["uniform"] / 4


@pytest.mark.parametrize("fit", [{"match": "mean"}, {"match": "histogram"}, {"blend": 1}], ids=str)
def test_units_of_a_layer(fit: dict[str, Any]) -> None:
    target, image, _ = trained()
    layer = target.model[1]
    generator = torch.Generator().manual_seed(7)
    donors = torch.rand(3, 4, 48, 48, generator=generator)
    given: dict[str, Any] = {"units": "channel_block", "block_size": 24, "target": 1, "n_draws": 3, "return_statistics": True}
    _, stats = LayerAverageTreatmentEffect(target, layer).attribute(image, PatchBank(donors, "aligned", **fit), **given)
    with torch.no_grad():
        activation = target.model[:2](image)
        rest = SegmentationTarget(target.model[2], roi=target.roi, reference=target.reference, metric="soft_dice")
        observed = float(rest(activation)[0, 1])
        for unit in (0, 5, 15):
            mask = stats.feature_mask[0][0] == unit
            channel, rows, columns = mask.nonzero()[0].tolist()
            box = (slice(rows, rows + 24), slice(columns, columns + 24))
            found = []
            for donor in donors:
                changed = activation.clone()
                sides = [(side.start > 0, side.stop < 48) for side in box]
                inside = (slice(channel, channel + 1), *box)
                changed[(0, *inside)] = literal(
                    donor[inside], activation[(0, *inside)], torch.ones(24, 24, dtype=torch.bool), sides, fit
                ).float()
                found.append(observed - float(rest(changed)[0, 1]))
            assert float(stats.effect[0, unit, 1]) == pytest.approx(np.mean(found), abs=1e-6)


def test_neighbors_can_be_fitted() -> None:
    generator = torch.Generator().manual_seed(8)
    images, image = torch.rand(5, 1, 16, 16, generator=generator), torch.rand(1, 1, 16, 16, generator=generator)
    raw, shifted = (NeighborBank(images, 6, ring=2, **fit).bind(image) for fit in ({}, {"match": "mean"}))
    box = box_at((4, 4), (4, 4))
    for number in range(6):
        assert raw.locate(0, box, number) == shifted.locate(0, box, number)
        wanted = raw.read(0, box, number) - raw.read(0, box, number).mean() + image[(0, slice(None), *box)].mean()
        torch.testing.assert_close(shifted.read(0, box, number), wanted)


def test_what_cannot_be_fitted() -> None:
    image, donors = torch.rand(1, 1, 12, 12), torch.rand(4, 1, 12, 12)
    donors[2] = 0.3
    ate = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3)))
    for match in ("mean", "mean_std", "histogram"):
        with pytest.raises(ValueError, match="match: a unit of one pixel has only its own value to be given"):
            ate.attribute(image, PatchBank(donors, match=match), block_size=1, n_draws=2)
    with pytest.raises(
        ValueError, match=r'match: "mean_std" .* is constant; "mean" shifts it only \(donor image 2, at \(4, 8\)\)'
    ):
        PatchBank(donors, "aligned", match="mean_std").bind(image).read(0, box_at((4, 8), (4, 4)), 2)
    with pytest.raises(ValueError, match=r"blend: expected less than 2 pixel\(s\) for a unit of \(4, 4\) pixels, got 2"):
        ate.attribute(image, PatchBank(donors, blend=2), block_size=4, feature_mask=None, n_draws=2)
    for wrong in ({"match": "median"}, {"blend": -1}, {"blend": 1.5}, {"border": "hard"}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(wrong))}: expected"):
            PatchBank(donors, **wrong)


def test_what_was_fitted_is_said_in_the_settings() -> None:
    bank = PatchBank(torch.rand(4, 1, 12, 12), match="mean", blend=1)
    _, stats = AverageTreatmentEffect(lambda x: x.mean((1, 2, 3))).attribute(
        torch.rand(1, 1, 12, 12), bank, block_size=4, n_draws=2, return_statistics=True
    )
    assert "match='mean', blend=1" in stats.settings["baselines"]
    first, second = bank.split(0.5, 0.5)
    assert repr(first) == repr(second) == "PatchBank(2 images, placement='anywhere', match='mean', blend=1)"
    assert SelfDonor().of_the_image


class AnyBrightness(nn.Module):
    """An image at a level of its own at each answer; the middle layer is what is intervened on."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.middle, self.weights = nn.Identity(), nn.Parameter(weights)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.middle(x + 3 * torch.randn(1, dtype=x.dtype))
        return (seen * self.weights).sum((1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])


@pytest.mark.parametrize("fit", [{"match": "mean"}, {"border": "poisson"}], ids=str)
def test_in_a_stochastic_model_donors_are_fitted_to_the_activation_of_that_very_answer(fit: dict[str, Any]) -> None:
    """Whatever the level, a unit at its own mean loses its texture alone: the effect is the same in every answer, without error.

    Fitted to the activation of another answer, units would be at that one's level.
    """
    generator = torch.Generator().manual_seed(9)
    x = torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    weights = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    model, donors = AnyBrightness(weights), torch.rand(1, 1, 8, 8, generator=generator, dtype=torch.float64)
    target = SegmentationTarget(model, roi=regions.box((8, 8), 0, 4), metric="logit_mean", n_samples=2, activation="sigmoid")
    _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
        x,
        PatchBank(donors, "aligned", **fit),
        units="block",
        block_size=4,
        n_draws=6,
        n_screening_draws=0,
        return_statistics=True,
    )
    for unit, box in enumerate(box_at(corner, (4, 4)) for corner in itertools.product((0, 4), repeat=2)):
        inside = (0, slice(None), *box)
        sides = [(side.start > 0, side.stop < 8) for side in box]
        replaced = literal(donors[inside], x[inside], torch.ones(4, 4, dtype=torch.bool), sides, fit)
        wanted = float(((x[inside] - replaced) * weights[box]).sum())
        assert float(stats.effect[0, unit]) == pytest.approx(wanted, abs=1e-9)
        assert float(stats.sample_variance[0, unit]) == pytest.approx(0, abs=1e-16)
