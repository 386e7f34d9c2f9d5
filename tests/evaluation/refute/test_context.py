"""What refuters are given: masks, arguments, donors of the explainer's own; and that nothing is left behind."""

import numpy as np
import pytest
import torch
from refutation_cases import OPTIONS, SPATIAL, case, look_up, shifted
from torch import nn

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.evaluation.refute import REFUTERS, Refutation, refute


def test_only_the_output_that_the_target_picks_is_tested():
    def scores(x):
        total = x.amax((1, 2, 3))
        return torch.stack([total, 2 * total], 1)

    explainer = shifted(AverageTreatmentEffect, [0.0, 0.1], scores)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    verdicts = [refute(explainer, images, 0.0, output, refuters=["placebo"], block_size=4)["placebo"] for output in (0, 1)]
    assert [(one.verdict, one.n_units) for one in verdicts] == [("pass", 8), ("fail", 8)]


def test_masks_per_example_and_additional_arguments_go_along():
    target, images, donors = case(2, n=2)
    reference = target.predict(images).long()[:, 1].roll(1, 0)
    rois = torch.stack([regions.box(SPATIAL[2], start=start, size=4) for start in (2, 8)])[:, None]

    class Scaled(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, factor):
            return self.model(x) * factor.view(-1, 1, 1, 1)

    both = SegmentationTarget(Scaled(target.model), roi=rois, reference=reference)
    report = refute(
        AverageTreatmentEffect(both),
        images,
        PatchBank(donors),
        1,
        additional_forward_args=torch.tensor([1.0, 2.0]),
        n_draws=30,
        **OPTIONS[2],
    )
    assert report.passed, str(report)
    assert {one.verdict for one in report.refutations} == {"pass", "reported"}


def test_default_baselines_of_the_explainer_are_taken():
    target, images, donors = case(2)
    bank = PatchBank(donors)
    options = {"refuters": ["split"], "n_draws": 6, **OPTIONS[2]}
    given = refute(AverageTreatmentEffect(target), images, bank, 1, **options)
    held = refute(AverageTreatmentEffect(target, baselines=bank), images, None, 1, **options)
    assert given.refutations == held.refutations
    layer = LayerAverageTreatmentEffect(target, target.model[0], layer_baselines=donors)
    assert refute(layer, images, None, 1, refuters=["split"], n_draws=6)["split"].verdict == "pass"


def test_the_same_call_gives_the_same_report_and_leaves_no_trace():
    target, images, donors = case(2)
    options = {"n_draws": 6, **OPTIONS[2]}
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (refute(AverageTreatmentEffect(target), images, PatchBank(donors), 1, **options) for _ in range(2))
    assert first.refutations == second.refutations
    assert torch.equal(state[0], torch.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()
    other = refute(AverageTreatmentEffect(target), images, PatchBank(donors), 1, seed=5, **options)
    assert other["split"].statistic != first["split"].statistic


def test_refuters_of_ones_own(monkeypatch):
    def always(context):
        again = context.estimate(n_draws=2)
        return Refutation("always", "pass", float(again.n_draws.max()), 0.0, 1, again.n_forwards, "as ever")

    monkeypatch.setitem(REFUTERS, "always", always)
    forward, image, numbers = look_up(np.ones((2, 9)))
    report = refute(AverageTreatmentEffect(forward), image, numbers, refuters=["always", "placebo"], block_size=1)
    assert [one.name for one in report.refutations] == ["always", "placebo"]
    assert report["always"].statistic == 2


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"explainer": nn.Flatten()},
            TypeError,
            "explainer: expected an AverageTreatmentEffect or a Joint.*, or one of a layer, got Flatten",
        ),
        ({"refuters": ["placebos"]}, ValueError, r"refuters: expected some of \['crossed', .*\], got \['placebos'\]"),
        ({"refuters": []}, ValueError, r"refuters: expected some of .*, got \[\]"),
        ({"alpha": 0.0}, ValueError, "alpha: expected a number between 0 and 1, got 0.0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"seed": [1]}, ValueError, r"seed: expected an integer, got \[1\]"),
        ({"return_statistics": True}, TypeError, "return_statistics: the statistics are in the report"),
        ({"layer_baselines": 0.0}, TypeError, "layer_baselines: give them as baselines"),
        ({"blocksize": 4}, TypeError, "unexpected keyword argument 'blocksize'"),
        ({"n_draws": 0}, ValueError, "n_draws: expected at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_forward(changed, error, message):
    def never(x):
        raise AssertionError("it was run")

    given = {"explainer": AverageTreatmentEffect(never), "inputs": torch.rand(1, 1, 8, 8), "baselines": 0.0} | changed
    with pytest.raises(error, match=message):
        refute(**given)
