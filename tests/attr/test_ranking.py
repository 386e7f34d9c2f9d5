"""Predicted effects reach the estimator, and are those of a literal loop over all donors."""

import numpy as np
import pytest
import torch
from torch import nn

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.engine.design import StratifiedDesign, UniformDesign
from captum_causalseg.engine.estimator import StratifiedEstimator
from captum_causalseg.engine.sampling import SamplingScheme


class Watched(StratifiedEstimator):
    """Keeps the samples that it is given."""

    def __init__(self):
        self.samples = []

    def estimate(self, sample):
        self.samples.append(sample)
        return super().estimate(sample)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 3, 5, padding=2)).eval()


def random(*shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


IMAGES, BANK = random(2, 1, 16, 16, seed=1), random(40, 1, 16, 16, seed=2)
TARGET = SegmentationTarget(
    network(), roi=regions.box((16, 16), start=6, size=4), reference=random(2, 16, 16, seed=3).mul(3).long(), metric="dice"
)
CLASS = 2


def gradients(model, tensor):
    """Of the class's smooth score of each example, with respect to what goes into ``model``; float64."""
    found = []
    for n in range(len(tensor)):
        leaf = tensor[n : n + 1].clone().requires_grad_()
        alone = SegmentationTarget(
            model, roi=TARGET.roi, reference=TARGET.reference[n : n + 1], metric=TARGET.surrogate().metric
        )
        found.append(torch.autograd.grad(alone(leaf)[0, CLASS], leaf)[0][0].double())
    return found


def check(planned, samples, tensors, slopes, all_donors, n_draws):
    """Samples of rows in order; ``all_donors(box)``: every donor's values, ``(D, C, *box)``."""
    rows = [planned[start : start + n_draws] for start in range(0, len(planned), n_draws)]
    assert len(rows) == len(samples) > 20
    for row, sample in zip(rows, samples):
        one = row[0]
        ((_, piece),) = one.sources
        box = piece.box
        here, slope = tensors[one.example][(slice(None), *box)].double(), slopes[one.example][(slice(None), *box)]
        drawn = [float((slope * (here - draw.read()[0].double())).sum()) for draw in row]
        every = [float((slope * (here - donor.double())).sum()) for donor in all_donors(box)]
        assert sample.controls.shape == (*sample.values.shape, 1)
        for k in range(sample.values.shape[1]):
            np.testing.assert_allclose(sample.controls[:, k, 0], drawn, rtol=1e-5, atol=1e-9)
            assert sample.control_means[k, 0] == pytest.approx(np.mean(every), rel=1e-5, abs=1e-9)
        strata = sample.selection.strata
        assert strata.n_candidates == len(every)
        means, variances = sample.first_order.within(strata)
        for h, part in enumerate(np.split(np.sort(every), strata.edges[1:-1])):
            assert means[h] == pytest.approx(np.mean(part), rel=1e-5, abs=1e-8)
            assert variances[h] == pytest.approx(np.var(part), rel=1e-4, abs=1e-12)
        assert sample.first_order.outputs.tolist() == [k == CLASS for k in range(3)]


def test_predicted_effects_reach_the_estimator_and_are_exact():
    watched = Watched()
    options = {"target": CLASS, "block_size": 4, "n_draws": 6, "n_screening_draws": 0, "support": None}
    ate, bank = AverageTreatmentEffect(TARGET), PatchBank(BANK, placement="aligned")
    scheme = SamplingScheme(StratifiedDesign, watched)
    _, stats = ate.attribute(IMAGES, bank, sampling=scheme, return_statistics=True, **options)
    planned = ate.plan(IMAGES, bank, sampling=scheme, **options)
    check(
        planned, watched.samples, IMAGES, gradients(TARGET.model, IMAGES), lambda box: BANK[(slice(None), slice(None), *box)], 6
    )
    # What the default estimator makes of them is what it made before.
    _, plain = ate.attribute(IMAGES, bank, sampling="stratified", return_statistics=True, **options)
    assert torch.equal(plain.effect.nan_to_num(9), stats.effect.nan_to_num(9))
    assert stats.settings["sampling"] == "StratifiedDesign, Watched"
    assert plain.settings["sampling"] == "stratified"


def test_those_of_a_layer_as_well():
    watched, layer = Watched(), TARGET.model[0]
    scheme = SamplingScheme(StratifiedDesign, watched)
    options = {"target": CLASS, "units": "channel_block", "block_size": 8, "n_draws": 5, "sampling": scheme}
    late = LayerAverageTreatmentEffect(TARGET, layer)
    late.attribute(IMAGES, BANK, n_screening_draws=0, **options)
    planned = late.plan(IMAGES, BANK, n_screening_draws=0, **options)
    with torch.no_grad():
        activation, donors = layer(IMAGES), layer(BANK)
    slopes = gradients(nn.Sequential(*TARGET.model[1:]), activation)
    samples = watched.samples
    rows = [planned[start : start + 5] for start in range(0, len(planned), 5)]
    assert len(rows) == len(samples) == 2 * 4 * 4
    for row, sample in zip(rows, samples):
        one = row[0]
        ((_, piece),) = one.sources
        box = piece.box
        # Units are numbered channel by channel.
        inside = (slice(one.unit // 4, one.unit // 4 + 1), *box)
        slope, here = slopes[one.example][inside], activation[one.example][inside].double()
        every = [float((slope * (here - donor[inside].double())).sum()) for donor in donors]
        assert sample.control_means[0, 0] == pytest.approx(np.mean(every), rel=1e-4, abs=1e-8)
        drawn = [every[draw.numbers[0]] for draw in row]
        np.testing.assert_allclose(sample.controls[:, 0, 0], drawn, rtol=1e-4, atol=1e-8)


def test_uniform_draws_have_no_predicted_effects():
    watched = Watched()
    AverageTreatmentEffect(TARGET).attribute(
        IMAGES, PatchBank(BANK), target=CLASS, block_size=4, n_draws=4, sampling=SamplingScheme(UniformDesign, watched)
    )
    assert watched.samples
    assert all(sample.controls.shape[2] == 0 and sample.first_order is None for sample in watched.samples)
