"""What a planned intervention tells about its donors."""

import collections

import numpy as np
import pytest
import torch
from exhaustive import look_up

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, Status
from captum_causalseg.interventions.execution import Part


def cut(images, number, corner, size):
    return images[number][(slice(None), *(slice(start, start + length) for start, length in zip(corner, size)))]


@pytest.mark.parametrize("sampling", ["uniform", "stratified"])
def test_donors_are_read_where_the_plan_says_they_are(sampling):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 1, 8, 6, generator=generator), torch.rand(2, 2, 4, generator=generator)
    banks = torch.rand(5, 1, 9, 9, generator=generator), torch.rand(6, 2, 4, generator=generator)
    both = torch.arange(8)[None, None, :, None].expand(1, 1, 8, 6) // 4, torch.tensor([[[1, 1, 1, 2]]])
    planned = AverageTreatmentEffect(lambda x, y: x.amax((1, 2, 3)) * y.sum((1, 2))).plan(
        inputs, tuple(map(PatchBank, banks)), feature_mask=both, n_draws=4, sampling=sampling
    )
    sizes = {(0, 0): (4, 6), (0, 1): (4, 6), (1, 1): (3,), (1, 2): (1,)}
    assert len(planned) == 2 * 3 * 4
    for step in planned:
        assert len(step.numbers) == len(step.donors)
        for (slot, image, corner), values in zip(step.donors, step.read(), strict=True):
            assert torch.equal(values, cut(banks[slot], image, corner, sizes[slot, step.unit]))


def test_donors_of_a_layer_are_activations_with_channels_first():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(48, 1))
    donors = torch.rand(5, 1, 6, 6)
    activations = model[0](donors).detach()
    planned = LayerAverageTreatmentEffect(model, model[0]).plan(torch.rand(1, 1, 6, 6), donors, n_draws=3)
    assert {step.unit for step in planned} == {0, 1, 2}
    for step in planned:
        torch.testing.assert_close(step.read()[0], activations[step.donors[0][1], step.unit : step.unit + 1])


def uneven():
    """Units whose donors differ by more and more; the first does nothing."""
    generator = np.random.default_rng(0)
    scale = np.array([0, 0.1, 0.2, 0.5, 1, 4])[:, None]
    differences = generator.exponential(size=(6, 200)) * scale
    return differences, differences + (scale + 0.1) * generator.normal(size=(6, 200))


def test_with_statistics_a_plan_is_what_was_done():
    differences, predicted = uneven()
    forward, image, numbers = look_up(differences, predicted)
    ate = AverageTreatmentEffect(forward)
    options = {"block_size": 1, "n_draws": 14}
    _, stats = ate.attribute(image, numbers, return_statistics=True, **options)
    assert stats.settings["allocation"] == "needed"
    assert stats.settings["n_draws"] == 14
    draws = stats.n_draws[0].tolist()
    assert draws[0] == 3
    assert int(stats.status[0, 0]) == Status.SCREENED
    assert max(draws) >= 28
    assert sum(draws) <= 6 * 14
    half = ate.plan(image, numbers, **options)
    assert collections.Counter(step.unit for step in half) == dict.fromkeys(range(6), 7)
    assert half.unassigned == 6 * 7
    assert repr(half) == (
        '42 interventions; 42 more are shared out when these are scored: give allocation="equal", or the statistics of attribute'
    )
    planned = ate.plan(image, numbers, statistics=stats, **options)
    assert planned.unassigned == 0
    assert repr(planned) == f"{sum(draws)} interventions"
    assert [collections.Counter(step.unit for step in planned)[unit] for unit in range(6)] == draws
    for unit in range(6):
        steps = [step for step in planned if step.unit == unit]
        mean = sum(step.weight * differences[unit, step.numbers[0]] for step in steps)
        assert mean == pytest.approx(float(stats.effect[0, unit] + stats.adjustment[0, unit]), abs=1e-9)
    with pytest.raises(
        ValueError, match="statistics: unit 0 has 3 draws in them, which it does not come to here; give the arg"
    ):
        ate.plan(image, numbers, statistics=stats, **options | {"n_screening_draws": 2})
    with pytest.raises(
        ValueError, match=r"statistics: expected those of these inputs, 1 example\(s\) with 1 units, got 1 with 6"
    ):
        ate.plan(image, numbers, statistics=stats, feature_mask=torch.zeros(1, 1, 6, dtype=torch.long))


EQUAL = (
    {"allocation": "equal"},
    {"n_draws": 11},
    {"n_screening_draws": 7},
    {"precision": 0.5},
    {"decide": 0.5},
    {"sampling": "uniform"},
    {"feature_mask": torch.zeros(1, 1, 6, dtype=torch.long)},
)


def test_draws_are_shared_out_where_that_is_right_and_settings_say_so():
    differences, predicted = uneven()
    forward, image, numbers = look_up(differences, predicted)
    ate = AverageTreatmentEffect(forward)

    def settings(explainer=ate, **options):
        options = {"n_draws": 14, "block_size": None if "feature_mask" in options else 1} | options
        _, stats = explainer.attribute(image, numbers, return_statistics=True, **options)
        return stats.settings

    assert settings()["allocation"] == settings(n_screening_draws=20)["allocation"] == "needed"
    assert settings(n_draws=None)["allocation"] == settings(n_draws=12)["allocation"] == "needed"
    for options in EQUAL:
        assert settings(**options)["allocation"] == "equal", options
    # Without a gradient, draws are uniform.
    assert settings(AverageTreatmentEffect(lambda values: forward(values).detach()))["allocation"] == "equal"
    part = settings(ate.only(Part(0, 2)))
    assert part["allocation"] == "equal"
    assert part["disabled"]["allocation"] == "units are explained in parts, which do not know of each other's errors"
    assert "allocation" not in settings(ate.only(Part(0, 2)), allocation="equal")["disabled"]
    with pytest.raises(ValueError, match='allocation: expected "needed" or "equal", got'):
        settings(allocation="most")


def test_a_bank_of_up_to_n_draws_donors_is_used_up_and_its_effects_are_exact():
    differences, predicted = uneven()
    forward, image, numbers = look_up(differences[:, :14], predicted[:, :14])
    _, stats = AverageTreatmentEffect(forward).attribute(
        image, numbers, block_size=1, n_draws=14, n_screening_draws=0, return_statistics=True
    )
    assert (stats.n_draws == 14).all()
    assert (stats.standard_error == 0).all()
    assert stats.settings["allocation"] == "equal"
    assert AverageTreatmentEffect(forward).plan(image, numbers, block_size=1, n_draws=20).unassigned == 0


def test_no_more_draws_are_unassigned_than_there_are_donors():
    differences, predicted = uneven()
    forward, image, numbers = look_up(differences[:, :15], predicted[:, :15])
    # Seven of fifteen donors each, and seven more for every unit: the eighth is left of none.
    planned = AverageTreatmentEffect(forward).plan(image, numbers, block_size=1, n_draws=14)
    assert (len(planned), planned.unassigned) == (6 * 7, 6 * 7)
    planned = AverageTreatmentEffect(forward).plan(image, 0.0, block_size=1)
    assert (len(planned), planned.unassigned) == (6, 0)


@pytest.mark.parametrize("options", EQUAL[:3] + EQUAL[5:])
def test_where_draws_are_equal_a_plan_is_complete(options):
    differences, predicted = uneven()
    forward, image, numbers = look_up(differences, predicted)
    options = {"n_draws": 14, "block_size": None if "feature_mask" in options else 1} | options
    planned = AverageTreatmentEffect(forward).plan(image, numbers, **options)
    units = {step.unit for step in planned}
    assert collections.Counter(step.unit for step in planned) == dict.fromkeys(units, options["n_draws"])
    assert planned.unassigned == 0


def test_a_layer_shares_out_its_draws_too_and_its_plan_says_how_many_are_missing():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(48, 1)).eval()
    layer, image, donors = LayerAverageTreatmentEffect(model, model[0]), torch.rand(1, 1, 6, 6), torch.rand(40, 1, 6, 6)
    _, stats = layer.attribute(image, donors, n_draws=12, return_statistics=True)
    assert stats.settings["allocation"] == "needed"
    half, whole = (layer.plan(image, donors, n_draws=12, allocation=allocation) for allocation in ("needed", "equal"))
    assert (len(half), half.unassigned, len(whole), whole.unassigned) == (18, 18, 36, 0)
    # Of the usual 32 draws, twice as many donors are all used.
    assert layer.plan(image, donors).unassigned == 0
