"""A handful of effects by hand: of inputs and layers, in windows, with arguments, masks and targets per example."""

import pytest
import torch
from planted_faults import altered, next_unit_is_replaced, scaled
from refutation_cases import case, network
from torch import nn

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, SegmentationTarget, regions
from captum_causalseg.evaluation.refute import refute


def test_effects_in_windows_are_those_of_the_whole_image():
    generator = torch.Generator().manual_seed(0)
    image, donors = (torch.randn(count, 1, 40, 44, generator=generator) for count in (1, 9))
    target = SegmentationTarget.from_prediction(network(2), image, roi=regions.box((40, 44), start=15, size=6))
    options = {"n_draws": 4, "n_screening_draws": 0, "block_size": 4, "refuters": "recompute"}
    report = refute(AverageTreatmentEffect(target), image, PatchBank(donors), 1, **options)
    assert report.statistics.settings["window"] is not None
    found = report["recompute"]
    assert (found.verdict, found.n_units) == ("pass", 5), found
    spent = report.statistics.settings["forwards"]
    planning = sum(count for what, count in spent.items() if what not in ("interventions", "answered again", "observed again"))
    by_hand = 5 * (4 + 1) + 1  # their draws, their own values with the last bit changed, the image as it is
    assert found.n_forwards == planning + by_hand + 1  # and a look at the image, for the activation


@pytest.mark.parametrize("kind", ["channel", "block"])
@pytest.mark.parametrize("at_input", [False, True])
def test_effects_of_a_layer(kind, at_input):
    target, images, donors = case(2, n=2, metric="soft_dice")
    options = {"units": kind, "block_size": 5 if kind == "block" else None, "attribute_to_layer_input": at_input, "n_draws": 6}
    layer = LayerAverageTreatmentEffect(target, target.model[1])
    assert refute(layer, images, donors, 1, refuters="recompute", **options)["recompute"].verdict == "pass"
    with next_unit_is_replaced():
        assert refute(layer, images, donors, 1, refuters="recompute", **options)["recompute"].verdict == "fail"


class Scaled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, factor):
        return self.model(x) * factor.view(-1, 1, 1, 1)


def test_masks_targets_and_arguments_go_with_their_example():
    target, images, donors = case(2, n=2)
    rois = torch.stack([regions.box((20, 18), start=start, size=4) for start in (2, 8)])[:, None]
    reference = target.predict(images).long()[:, 1].roll(1, 0)
    both = SegmentationTarget(Scaled(target.model), roi=rois, reference=reference, metric="soft_dice")
    options = {"additional_forward_args": torch.tensor([1.0, 3.0]), "block_size": 4, "n_draws": 5, "sampling": "uniform"}
    found = refute(AverageTreatmentEffect(both), images, PatchBank(donors), [1, 0], refuters="recompute", **options)[
        "recompute"
    ]
    assert (found.verdict, found.statistic) == ("pass", 0.0), found


def test_units_of_several_inputs_and_of_some_channels():
    def scores(x, y):
        return (x[:, 0] * x[:, 1]).sum((1, 2)) + (y**2).sum(1)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 2, 6, 6, generator=generator), torch.rand(2, 3, generator=generator)
    first = torch.zeros(1, 2, 6, 6, dtype=torch.int64)
    first[:, 1], first[:, :, 2:4, 1] = 1, 2
    masks = first, torch.tensor([[0, 1, 3]])
    banks = PatchBank(torch.rand(9, 2, 6, 6, generator=generator)), torch.rand(7, 3, generator=generator)
    for sampling in ("uniform", "stratified"):
        options = {"feature_mask": masks, "n_draws": 5, "sampling": sampling}
        found = refute(AverageTreatmentEffect(scores), inputs, banks, refuters="recompute", **options)["recompute"]
        assert (found.verdict, found.statistic, found.n_units) == ("pass", 0.0, 5), found


def test_the_first_sample_of_an_estimate_with_a_goal():
    target, images, donors = case(2, metric="soft_dice")
    options = {"precision": 1e-4, "block_size": 2, "n_draws": 6, "refuters": "recompute"}
    for face, verdict in ((AverageTreatmentEffect(target), "pass"), (altered(target, scaled), "fail")):
        assert refute(face, images, PatchBank(donors), 1, **options)["recompute"].verdict == verdict


def test_draws_that_were_shared_out_are_recomputed_all_of_them():
    target, images, donors = case(2, metric="soft_dice")
    options = {"allocation": "needed", "block_size": 2, "n_draws": 12, "n_screening_draws": 0}
    face = AverageTreatmentEffect(target)
    _, stats = face.attribute(images, PatchBank(donors), target=1, return_statistics=True, **options)
    assert stats.settings["allocation"] == "needed"
    largest = stats.effect[..., 1].abs().nan_to_num(0).argmax()
    assert int(stats.n_draws[..., 1].flatten()[largest]) != 6
    for explainer, verdict in ((face, "pass"), (altered(target, scaled), "fail")):
        found = refute(explainer, images, PatchBank(donors), 1, refuters="recompute", **options)["recompute"]
        assert (found.verdict, found.n_units) == (verdict, 5), found


def test_it_says_which_unit_is_wrong_and_by_how_much():
    image = torch.tensor([[3.0, 2.0, 1.0]])
    face = altered(lambda x: x.sum(1), scaled)
    found = refute(face, image, 0.0, refuters="recompute")["recompute"]
    assert (found.verdict, found.statistic, found.threshold) == ("fail", pytest.approx(0.3), 0.01)
    assert found.message.startswith("unit 0 of example 0 has effect 2.1, by hand 3")


def test_what_cannot_be_recomputed_is_inconclusive():
    target, images, donors = case(2)
    sampled = SegmentationTarget(
        nn.Sequential(target.model, nn.Dropout(0.1)), roi=target.roi, reference=target.reference, n_samples=2
    )
    for face, reason in (
        (AverageTreatmentEffect(sampled), "the model is stochastic (n_samples)"),
        (AverageTreatmentEffect(target), "no unit was estimated with exactly the planned draws"),
    ):
        options = {"block_size": 4, "n_draws": 4, "n_screening_draws": 1, "screening_threshold": 9.0}
        found = refute(face, images, PatchBank(donors), 1, refuters="recompute", **options)["recompute"]
        assert (found.verdict, found.message) == ("inconclusive", reason)


def test_donors_that_are_fitted_to_irregular_units():
    target, images, donors = case(2, metric="soft_dice")
    mask = torch.zeros(1, 1, 20, 18, dtype=torch.int64)
    mask[..., :4, :4], mask[..., 2, 4], mask[..., 8:12, 8:14], mask[..., 9, 9] = 1, 1, 2, 0
    bank = PatchBank(donors, match="mean_std", blend=1)
    options = {"feature_mask": mask, "exclude": None, "n_draws": 8, "refuters": "recompute"}
    found = refute(AverageTreatmentEffect(target), images, bank, 1, **options)["recompute"]
    assert (found.verdict, found.statistic, found.n_units) == ("pass", 0.0, 3), found
