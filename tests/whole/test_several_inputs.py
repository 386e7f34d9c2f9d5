"""Models of more than one input, end to end: an image and the clicks of its reader, a query and the examples that explain the task."""

import functools
from collections.abc import Callable, Sequence

import pytest
import torch
from captum.attr import FeatureAblation
from input_pairs import (
    ALL_OF_THEM,
    CORNER,
    ROI,
    SPATIAL,
    Case,
    both_dimensions,
    excluded_ids,
    random,
    statistics_of,
    toy,
    toy_inputs,
)
from torch import Tensor, nn

from captum_causalseg import (
    AverageTreatmentEffect,
    Constant,
    GradientTreatmentEffect,
    LayerAverageTreatmentEffect,
    LayerGradientTreatmentEffect,
    PatchBank,
    SegmentationTarget,
    Status,
    compare,
    regions,
)
from captum_causalseg.evaluation import refute
from captum_causalseg.evaluation.refute import REFUTERS


@both_dimensions
@pytest.mark.parametrize("n", [1, 2])
def test_effects_on_each_input_are_those_made_by_hand(kind, d, n):
    case = Case(kind, d, n)
    attributions, statistics = case.explained()
    assert [one.shape for one in attributions] == [x.shape for x in case.inputs]
    assert statistics.inputs_are_tuple
    excluded = statistics.status[0, :, 1] == Status.EXCLUDED
    touching = {unit for mask in case.with_roi for unit in mask[..., case.roi].unique().tolist()}
    assert set(statistics.unit_ids[excluded].tolist()) == touching
    for example in range(n):
        expected = case.score(*(x[example : example + 1] for x in case.inputs), example=example)
        torch.testing.assert_close(statistics.observed_score[example].float(), expected, atol=1e-6, rtol=0)
        for index, unit in enumerate(statistics.unit_ids.tolist()):
            if excluded[index]:
                continue
            by_hand = case.effect_of(unit, example)
            torch.testing.assert_close(statistics.effect[example, index].float(), by_hand, atol=1e-5, rtol=0)
            for painted, mask, tensor in zip(attributions, case.masks, case.inputs):
                place = (mask == unit).expand(1, *tensor.shape[1:])[0]
                torch.testing.assert_close(painted[example][place], by_hand[1].expand(int(place.sum())), atol=1e-5, rtol=0)
    for painted in attributions:
        assert float(painted.abs().max()) > 1e-3


@both_dimensions
def test_a_batch_gives_what_its_examples_give_alone(kind, d):
    case = Case(kind, d, 2)
    together = case.explained()[1]
    for example in range(2):
        alone = Case(kind, d, 2)
        alone.inputs = tuple(x[example : example + 1] for x in case.inputs)
        alone.labels = case.labels[example : example + 1]
        alone.options["additional_forward_args"] = (
            case.others[example : example + 1] if isinstance(case.others, Tensor) else case.others
        )
        found = alone.explained()[1]
        torch.testing.assert_close(found.effect[0], together.effect[example], atol=1e-6, rtol=0, equal_nan=True)


@both_dimensions
def test_a_unit_across_both_inputs_is_replaced_in_both(kind, d):
    case = Case(kind, d)
    last = case.masks[0].max()
    joined = torch.where(case.masks[1] == case.masks[1].max(), last, case.masks[1])
    case.masks = case.masks[0], joined
    # Four pairs of donors, all of them drawn.
    statistics = case.explained(feature_mask=case.masks, n_draws=4)[1]
    index = statistics.unit_ids.tolist().index(int(last))
    assert statistics.n_draws[0, index, 1] == 4
    torch.testing.assert_close(statistics.effect[0, index].float(), case.effect_of(int(last)), atol=1e-5, rtol=0)


@both_dimensions
def test_each_input_has_units_and_donors_of_its_own_kind(d):
    """Blocks of the image, the two click maps as wholes; natural patches here, no clicks there."""
    case = Case("interactive", d)
    whole = torch.arange(2).view(1, 2, *(1,) * d) + 100
    masks = case.masks[0], whole
    attributions, statistics = AverageTreatmentEffect(case.target()).attribute(
        *(case.inputs, (case.banks[0], Constant(0.0))),
        **{**case.options, **ALL_OF_THEM, "feature_mask": masks, "exclude": None},
    )
    no_clicks = torch.stack([case.second * (torch.arange(2).view(1, 2, *(1,) * d) != channel) for channel in range(2)])
    with torch.no_grad():
        expected = [case.score(*case.inputs) - case.score(case.image, clicks) for clicks in no_clicks]
    for channel in range(2):
        index = statistics.unit_ids.tolist().index(100 + channel)
        torch.testing.assert_close(statistics.effect[0, index].float(), expected[channel], atol=1e-5, rtol=0)
        torch.testing.assert_close(attributions[1][0, channel].mean(), expected[channel][1], atol=1e-5, rtol=0)
    # One donor, and Captum's own method on the same score.
    ablation = FeatureAblation(case.target()).attribute(
        case.inputs, feature_mask=masks, target=1, additional_forward_args=case.others
    )
    torch.testing.assert_close(attributions[1], ablation[1], atol=1e-6, rtol=0)


def test_clicks_may_be_coordinates():
    """No map but numbers ``(N, 2)``: they have no spatial axes, and every one is a unit."""

    class ByCoordinates(nn.Module):
        def forward(self, image: Tensor, clicks: Tensor) -> Tensor:
            rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
            distance = (rows - clicks[:, 0, None, None]) ** 2 + (columns - clicks[:, 1, None, None]) ** 2
            return (image[:, 0] - distance / 20)[:, None]

    image, clicks, donors = random(1, 1, 12, 12), torch.tensor([[4.0, 5.0]]), torch.tensor([[9.0, 1.0], [2.0, 2.0]])
    target = SegmentationTarget(ByCoordinates(), regions.box((12, 12), 2, 6), random(12, 12, seed=1) > 0, "soft_dice")
    attributions, statistics = AverageTreatmentEffect(target).attribute(
        (image, clicks), (0.0, donors), n_draws=2, block_size=((6, 6), ()), exclude=None, return_statistics=True
    )
    for axis in range(2):
        moved = clicks.repeat(2, 1)
        moved[:, axis] = donors[:, axis]
        expected = target(image, clicks) - torch.stack([target(image, one[None]) for one in moved]).mean(0)
        torch.testing.assert_close(attributions[1][:, axis], expected, atol=1e-6, rtol=0)
    assert statistics.effect.shape == (1, 4 + 2)


@both_dimensions
def test_masks_may_be_arrays(d):
    mask = CORNER[d].numpy()
    face = AverageTreatmentEffect(toy(d))
    for exclude in (mask, (None, mask), ("roi", mask)):
        as_tensors = tuple(CORNER[d] if one is mask else one for one in exclude) if isinstance(exclude, tuple) else CORNER[d]
        expected = excluded_ids(statistics_of(face, toy_inputs(d), as_tensors))
        assert excluded_ids(statistics_of(face, toy_inputs(d), exclude)) == expected


def test_masks_are_those_of_each_inputs_own_shape():
    image, other = random(1, 1, 8, 8), random(1, 2, 4, 6, seed=2)
    face = AverageTreatmentEffect(toy(2))
    mask = regions.box((4, 6), (3, 5), 1)
    assert excluded_ids(statistics_of(face, (image, other), "roi")) == [[5, 9]]
    assert excluded_ids(statistics_of(face, (image, other), CORNER[2])) == [[3]]
    assert excluded_ids(statistics_of(face, (image, other), ("roi", mask))) == [[5, 9, 21]]
    assert excluded_ids(statistics_of(face, (image, other), (CORNER[2], mask))) == [[3, 21]]
    # The one with spatial axes is the segmented one, wherever it stands.
    target = SegmentationTarget(
        lambda clicks, image: image + clicks.mean(1).view(-1, 1, 1, 1), ROI[2], random(8, 8) > 0, "soft_dice"
    )
    clicks = random(1, 2, seed=5)
    assert excluded_ids(statistics_of(AverageTreatmentEffect(target), (clicks, image), "roi")) == [[7, 11]]
    assert excluded_ids(statistics_of(AverageTreatmentEffect(target), (clicks, image), (None, "roi"))) == [[7, 11]]


def test_a_tuple_of_one():
    target = SegmentationTarget(lambda image: image, ROI[2], random(8, 8, seed=1) > 0, "soft_dice")
    for inputs in (random(1, 1, 8, 8), (random(1, 1, 8, 8),)):
        for exclude in ("roi", ("roi",)):
            assert excluded_ids(statistics_of(AverageTreatmentEffect(target), inputs, exclude)) == [[5, 9]]


@both_dimensions
def test_what_is_an_additional_argument_is_never_replaced(kind, d):
    """The model sees the second input of each example as it is, at every one of its forwards."""
    case = Case(kind, d, 2)
    seen: list[Tensor] = []

    def watched(image: Tensor, second: Tensor, others) -> Tensor:
        seen.append(second.clone())
        return case.model(image, second, others)

    target = SegmentationTarget(watched, case.roi, case.labels, metric="soft_dice")
    more = {"feature_mask": case.masks[0], "additional_forward_args": (case.second, case.others), "exclude": "roi"}
    options = {**case.options, **more}
    attribution, statistics = AverageTreatmentEffect(target).attribute(
        case.image, case.banks[0], **{**options, **ALL_OF_THEM, "support": None}
    )
    assert attribution.shape == case.image.shape
    for batch in seen:
        for second in batch:
            assert any(torch.equal(second, own) for own in case.second)
    both = case.explained()[1]
    mine = torch.isin(both.unit_ids, statistics.unit_ids)
    torch.testing.assert_close(statistics.effect, both.effect[:, mine], atol=1e-6, rtol=0, equal_nan=True)


@both_dimensions
def test_masks_among_the_arguments_come_after_the_models_own(kind, d):
    case = Case(kind, d, 2)
    expected = case.explained()[1]
    target = SegmentationTarget(case.model, "argument", "argument", metric="soft_dice")
    rois = case.roi.expand(2, *case.roi.shape)
    found = AverageTreatmentEffect(target).attribute(
        *(case.inputs, case.banks),
        **{**case.options, **ALL_OF_THEM, "additional_forward_args": (case.others, rois, case.labels)},
    )[1]
    torch.testing.assert_close(found.effect, expected.effect, atol=1e-6, rtol=0, equal_nan=True)


def by_hook(layer: nn.Module, change: Callable[[Tensor], Tensor], run: Callable[[], Tensor]) -> Tensor:
    handle = layer.register_forward_hook(lambda module, args, output: change(output))
    try:
        return run()
    finally:
        handle.remove()


@both_dimensions
def test_layer_effects_with_pairs_of_donors_are_those_made_by_hand(d):
    """The layer takes what it is on an image *and its clicks*: two pairs are two donors, not four."""
    case = Case("interactive", d)
    layer = case.model.mixed
    attribution, statistics = LayerAverageTreatmentEffect(case.target(), layer).attribute(
        case.inputs, layer_baselines=case.donors, target=1, additional_forward_args=case.others, **ALL_OF_THEM
    )
    assert attribution.shape == (1, 4, *SPATIAL[d])
    assert statistics.settings["forwards"]["donors"] == 2
    with torch.no_grad():
        donors = torch.tanh(case.model.of_image(case.donors[0]) + case.others * case.model.of_clicks(case.donors[1]))
        for channel in range(4):
            scores = []
            for donor in donors:

                def swap(output: Tensor, donor: Tensor = donor, channel: int = channel) -> Tensor:
                    return torch.where(torch.arange(4).view(1, 4, *(1,) * d) == channel, donor, output)

                scores.append(by_hook(layer, swap, lambda: case.score(*case.inputs)))
            expected = case.score(*case.inputs) - torch.stack(scores).mean(0)
            torch.testing.assert_close(statistics.effect[0, channel].float(), expected, atol=1e-5, rtol=0)
    assert float(attribution.abs().max()) > 1e-3


@both_dimensions
@pytest.mark.parametrize("n", [1, 2])
def test_layer_effects_of_a_few_shot_model(d, n):
    """Masks are additional tensors, which donor images have none of: they are refused with the way out, and that works."""
    case = Case("few-shot", d, n)
    face = LayerAverageTreatmentEffect(case.target(), case.model.decoder)
    options = {"target": 1, "additional_forward_args": case.others} | ALL_OF_THEM
    with pytest.raises(ValueError, match=r"layer_baselines: donor images cannot be run.*give activations \(D, ...\)"):
        face.attribute(case.inputs, layer_baselines=case.donors, **options)
    with torch.no_grad():
        donors = case.model.decoder(torch.tanh(case.model.features(case.donors[0])))
        attribution, statistics = face.attribute(case.inputs, layer_baselines=donors, **options)
        assert attribution.shape == (n, 6, *SPATIAL[d])
        for example in range(n):
            mine = tuple(x[example : example + 1] for x in case.inputs)
            effects = []
            for donor in donors:

                def swap(output: Tensor, donor: Tensor = donor) -> Tensor:
                    return torch.cat([output[:, :2], donor[None, 2:3], output[:, 3:]], 1)

                run = functools.partial(case.score, *mine, example=example)
                effects.append(run() - by_hook(case.model.decoder, swap, run))
            expected = torch.stack(effects).mean(0)
            torch.testing.assert_close(statistics.effect[example, 2].float(), expected, atol=1e-5, rtol=0)
    # With the masks as a third input, there are donor images of all three.
    three, third = (*case.inputs, case.others), (case.others[:1].flip(2), case.others[:1].flip(1))
    triples = (*case.donors, torch.cat(third))
    found = face.attribute(three, layer_baselines=triples, target=1, **ALL_OF_THEM)[1]
    torch.testing.assert_close(found.effect, statistics.effect, atol=1e-5, rtol=0)  # the masks do not reach this layer


@both_dimensions
def test_gradients_of_each_input_are_those_of_autograd(kind, d):
    case = Case(kind, d, 2)
    found = GradientTreatmentEffect(case.target("dice")).attribute(case.inputs, case.banks, **case.options)
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    scores = [case.score(*(x[e : e + 1] for x in leaves), example=e)[1] for e in range(2)]
    gradients = torch.autograd.grad(sum(scores), leaves)
    for attribution, gradient, x, donors, mask in zip(found, gradients, case.inputs, case.donors, case.masks):
        products = gradient * (x - donors.mean(0, keepdim=True))
        for unit in mask.unique().tolist()[1:]:
            inside = (mask == unit).expand(1, *x.shape[1:])[0]
            if any(mask is one for one in case.with_roi) and bool((inside.any(0) & case.roi).any()):
                continue
            for example in range(2):
                expected = products[example][inside].sum()
                torch.testing.assert_close(attribution[example][inside].mean(), expected, atol=1e-6, rtol=1e-4)


@both_dimensions
def test_gradients_of_a_layer(kind, d):
    case = Case(kind, d, 2)
    layer = case.model.mixed if kind == "interactive" else case.model.decoder
    found = LayerGradientTreatmentEffect(case.target(), layer).attribute(
        case.inputs, layer_baselines=0.0, target=1, additional_forward_args=case.others
    )
    kept: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1]

    for example in range(2):
        mine = tuple(x[example : example + 1] for x in case.inputs)
        score = by_hook(layer, keep, lambda mine=mine, example=example: case.score(*mine, example=example)[1])
        (gradient,) = torch.autograd.grad(score, kept[-1])
        expected = (gradient * kept[-1]).flatten(2).sum(-1)[0]
        torch.testing.assert_close(found[example].flatten(1).mean(1), expected, atol=1e-6, rtol=1e-4)


def many(donors: Sequence[Tensor]) -> tuple[PatchBank, ...]:
    """Enough donors to be split among methods and scores."""
    return tuple(PatchBank(torch.cat([one, -one, one.flip(-1), 0.5 * one]), placement="aligned") for one in donors)


@both_dimensions
def test_methods_are_compared_on_all_inputs(kind, d):
    case = Case(kind, d)
    target = case.target()
    given = {name: case.options[name] for name in ("feature_mask", "additional_forward_args", "exclude")}
    found = compare(
        {
            "effects": (AverageTreatmentEffect(target), {"n_draws": 4, "n_screening_draws": 0}),
            "first order": GradientTreatmentEffect(target),
            "ablation": (FeatureAblation(target), {"feature_mask": case.masks}),
        },
        *(target, case.inputs, many(case.donors)),
        output=1,
        faithfulness={"n_draws": 1, "n_steps": 4},
        n_controls=1,
        **given,
    )
    for maps in found.attributions.values():
        assert [one.shape for one in maps] == [x.shape for x in case.inputs]
    expected = FeatureAblation(target).attribute(
        case.inputs, feature_mask=case.masks, target=1, additional_forward_args=case.others
    )
    for one, other in zip(found.attributions["ablation"], expected):
        torch.testing.assert_close(one, other)
    table = found.wide()
    assert table.loc["effects", "forwards"] > 0
    assert table.drop(columns=["seconds"]).loc["effects"].notna().all()
    assert found.plot().axes


@pytest.mark.parametrize("d", [2])
def test_estimates_are_refuted_with_all_inputs(kind, d):
    case = Case(kind, d, 2)
    report = refute(
        *(AverageTreatmentEffect(case.target()), case.inputs, many(case.donors)),
        **{**case.options, "n_draws": 4, "n_screening_draws": 0},
    )
    assert [one.name for one in report.refutations] == [name for name in REFUTERS if name != "joints"]
    assert report["placebo"].verdict == "pass"
    assert report["placebo"].n_units == int((report.statistics.status[..., 1] == Status.ESTIMATED).sum())
    assert report["split"].verdict != "fail"
    assert report["seed"].verdict != "fail"


def test_a_layers_estimate_is_refuted_with_pairs_of_donors():
    case = Case("interactive", 2)
    donors = tuple(torch.cat([one, -one, one.flip(-1), 0.5 * one]) for one in case.donors)
    report = refute(
        *(LayerAverageTreatmentEffect(case.target(), case.model.mixed), case.inputs, donors),
        *(1,),
        additional_forward_args=case.others,
        n_draws=4,
        refuters=["placebo", "split", "seed"],
    )
    assert report["placebo"].verdict == "pass"
    assert "fail" not in [one.verdict for one in report.refutations]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"baselines": (0.0,)}, ValueError, r"baselines: expected one per input \(2\), got 1"),
        ({"baselines": torch.zeros(2, 1, 12, 12)}, ValueError, "baselines: with 2 inputs, give a tuple of as many baselines"),
        ({"feature_mask": torch.zeros(1, 1, 12, 12, dtype=torch.long)}, ValueError, r"one mask per input \(2\), got 1"),
        ({"block_size": ((8, 8), (8, 8), (8, 8)), "feature_mask": None}, ValueError, r"one per input \(2\), got 3"),
        (
            {"additional_forward_args": torch.zeros(3, 3, 12, 12)},
            ValueError,
            r"additional_forward_args\[0\]: .* per example \(2\)",
        ),
    ],
)
def test_what_does_not_fit_the_inputs_is_named(options, error, match):
    case = Case("few-shot", 2, 2)
    arguments = {"baselines": case.banks, **case.options} | options
    with pytest.raises(error, match=match):
        AverageTreatmentEffect(case.target()).attribute(case.inputs, **arguments)
    with pytest.raises(ValueError, match=r"inputs\[1\]: it holds 1 examples, the first input 2"):
        AverageTreatmentEffect(case.target()).attribute((case.image, case.second[:1]), case.banks, **case.options)
