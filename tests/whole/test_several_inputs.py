"""Models of more than one input, end to end: an image and the clicks of its reader, a query and the examples that explain the task."""

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from captum.attr import FeatureAblation
from torch import Tensor, nn
from torch.nn import functional

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


@pytest.fixture(params=["interactive", "few-shot"])
def kind(request) -> str:
    return request.param


# --- The input face --------------------------------------------------------------------------------------------------


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


# --- What is excluded in which input ---------------------------------------------------------------------------------

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


def asked(exclude, d: int):
    """The mask of the corner for its name."""
    if isinstance(exclude, tuple):
        return tuple(asked(one, d) for one in exclude)
    return CORNER[d] if exclude == "corner" else exclude


@both_dimensions
@pytest.mark.parametrize(
    ("exclude", "in_2d", "in_3d"),
    [
        ("roi", [5, 9, 21, 25], [3, 11]),
        (("roi", "roi"), [5, 9, 21, 25], [3, 11]),
        (("roi", None), [5, 9], [3]),
        ((None, "roi"), [21, 25], [11]),
        (None, [], []),
        ((None, None), [], []),
        ("corner", [3, 19], [6, 14]),
        (("corner", None), [3], [6]),
        ((None, "corner"), [19], [14]),
        (("roi", "corner"), [5, 9, 19], [3, 14]),
        (("corner", "roi"), [3, 21, 25], [6, 11]),
    ],
    ids=str,
)
def test_units_are_excluded_where_it_was_asked_for(exclude, in_2d, in_3d, d):
    found = statistics_of(AverageTreatmentEffect(toy(d)), toy_inputs(d), asked(exclude, d))
    assert len(found.unit_ids) == {2: 32, 3: 16}[d]
    assert excluded_ids(found) == [in_2d if d == 2 else in_3d]
    assert found.effect[found.status == Status.EXCLUDED].isnan().all()
    assert found.effect[found.status != Status.EXCLUDED].isfinite().all()


@both_dimensions
def test_masks_may_be_arrays(d):
    mask = CORNER[d].numpy()
    face = AverageTreatmentEffect(toy(d))
    for exclude in (mask, (None, mask), ("roi", mask)):
        as_tensors = tuple(CORNER[d] if one is mask else one for one in exclude) if isinstance(exclude, tuple) else CORNER[d]
        expected = excluded_ids(statistics_of(face, toy_inputs(d), as_tensors))
        assert excluded_ids(statistics_of(face, toy_inputs(d), exclude)) == expected


@both_dimensions
def test_what_only_the_query_excludes_is_explained_in_the_support_images(d):
    """Excluded units carry 0; the same place of the other input carries its effect, whichever face explains it."""
    inputs, there = toy_inputs(d), {2: ([5, 9], [21, 25]), 3: ([3], [11])}[d]
    blocks = regions.grid(GRID[d], 2)
    for face, options in (
        (AverageTreatmentEffect(toy(d)), {"n_draws": 1}),
        (GradientTreatmentEffect(toy(d)), {}),
        (GradientTreatmentEffect(toy(d)), {"n_steps": 3}),
    ):
        one, other = face.attribute(inputs, 0.0, block_size=2, exclude=("roi", None), **options)
        place = torch.isin(blocks, torch.tensor(there[0]))
        assert (one[0, :, place] == 0).all()
        assert (one[0, :, ~place] != 0).all()
        assert (other[0, :, place] != 0).all()
        both = face.attribute(inputs, 0.0, block_size=2, exclude="roi", **options)
        assert (both[1][0, :, place] == 0).all()


@both_dimensions
def test_units_are_excluded_for_the_roi_that_they_touch_alone(d):
    two = torch.stack([ROI[d], CORNER[d]])
    statistics = statistics_of(AverageTreatmentEffect(toy(d, roi=two)), toy_inputs(d), ("roi", None), target=0)
    assert excluded_ids(statistics) == {2: [[5, 9], [3]], 3: [[3], [6]]}[d]
    statistics = statistics_of(AverageTreatmentEffect(toy(d, roi=two)), toy_inputs(d), (CORNER[d], "roi"), target=0)
    assert excluded_ids(statistics) == {2: [[3, 21, 25], [3, 19]], 3: [[6, 11], [6, 14]]}[d]


@both_dimensions
def test_every_example_excludes_its_own_roi(d):
    of_each = torch.stack([ROI[d], CORNER[d]])[:, None]
    statistics = statistics_of(AverageTreatmentEffect(toy(d, 2, of_each)), toy_inputs(d, 2), ("roi", None))
    assert [excluded_ids(statistics, n) for n in range(2)] == {2: [[[5, 9]], [[3]]], 3: [[[3]], [[6]]]}[d]


@both_dimensions
def test_a_unit_across_inputs_is_excluded_if_it_is_in_one_of_them(d):
    blocks = regions.grid(GRID[d], 2)[None, None]
    options = {"feature_mask": (blocks, blocks), "block_size": None}
    face = AverageTreatmentEffect(toy(d))
    for exclude in (("roi", None), (None, "roi")):
        statistics = statistics_of(face, toy_inputs(d), exclude, **options)
        assert excluded_ids(statistics) == [{2: [5, 9], 3: [3]}[d]]
    expected = {2: [3, 5, 9], 3: [3, 6]}[d]
    assert excluded_ids(statistics_of(face, toy_inputs(d), ("roi", CORNER[d]), **options)) == [expected]


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
@pytest.mark.parametrize("source", ["same image", "bank"])
@pytest.mark.parametrize(
    ("exclude", "avoided"),
    [
        ("roi", (True, True)),
        (("roi", "roi"), (True, True)),
        (("roi", None), (True, False)),
        ((None, "roi"), (True, True)),
        (None, (True, False)),
        ((None, None), (True, False)),
        ("corner", (True, False)),
        (("roi", "corner"), (True, False)),
    ],
    ids=str,
)
def test_donors_avoid_the_roi_where_it_lies(d, source, exclude, avoided):
    """In the segmented image always, in another input if the RoI is excluded there for being the RoI."""
    inputs = toy_inputs(d)
    n_blocks = {2: 16, 3: 8}[d]
    places = set(itertools.product(*(range(length - 1) for length in GRID[d])))
    boxes = {corner: tuple(slice(start, start + 2) for start in corner) for corner in places}
    touching = {corner for corner in places if bool(ROI[d][boxes[corner]].any())}
    # Of the last block, in the far corner.
    own = {corner for corner in places if all(start >= length - 3 for start, length in zip(corner, GRID[d]))}
    assert touching
    assert touching - own
    planned = AverageTreatmentEffect(toy(d)).plan(
        *(inputs, None if source == "same image" else tuple(PatchBank(one) for one in inputs)),
        block_size=2,
        exclude=asked(exclude, d),
        n_draws=1000,
        n_screening_draws=0,
        sampling="uniform",
        support=None,
    )
    for slot in range(2):
        last = (slot + 1) * n_blocks - 1
        found = {corner for one in planned if one.unit == last for _, _, corner in one.donors}
        expected = places - (touching if avoided[slot] else set()) - (own if source == "same image" else set())
        assert found == expected


@both_dimensions
def test_exclusion_per_input_in_a_batch_is_that_of_its_examples(d):
    case = Case("few-shot", d, 2)
    mask = regions.box(SPATIAL[d], 0, 2)
    together = case.explained(exclude=("roi", mask))[1]
    for example in range(2):
        alone = Case("few-shot", d, 2)
        alone.inputs = tuple(x[example : example + 1] for x in case.inputs)
        alone.labels = case.labels[example : example + 1]
        found = alone.explained(exclude=("roi", mask), additional_forward_args=case.others[example : example + 1])[1]
        assert torch.equal(found.status[0], together.status[example])
        torch.testing.assert_close(found.effect[0], together.effect[example], atol=1e-6, rtol=0, equal_nan=True)
    again = case.explained(exclude=("roi", mask))[1]
    assert torch.equal(again.effect.nan_to_num(), together.effect.nan_to_num())


@pytest.mark.parametrize(
    ("exclude", "error", "match"),
    [
        (("roi",), ValueError, r"^exclude: expected one per input \(2\), got 1$"),
        ((), ValueError, r"^exclude: expected one per input \(2\), got 0$"),
        (("roi", None, None), ValueError, r"^exclude: expected one per input \(2\), got 3$"),
        (("roi", "clicks"), ValueError, r"^exclude\[1\]: expected \"roi\", a boolean mask or None, got 'clicks'$"),
        ((True, None), TypeError, r'^exclude\[0\]: expected "roi", a boolean mask or None, got bool$'),
        (("roi", [[True]]), TypeError, r'^exclude\[1\]: expected "roi", a boolean mask or None, got list$'),
        (["roi", None], TypeError, '^exclude: expected "roi", a boolean mask or None, got list$'),
        ((None, ("roi",)), TypeError, r'^exclude\[1\]: expected "roi", a boolean mask or None, got tuple$'),
        (
            ("roi", torch.ones(8, 8) > 0),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask of spatial shape \(4, 6\), got torch.bool \(8, 8\)$",
        ),
        (
            (torch.ones(8, 8), None),
            ValueError,
            r"^exclude\[0\]: expected a boolean mask of spatial shape \(8, 8\), got torch.float32 \(8, 8\)$",
        ),
        (
            (None, torch.ones(1, 4, 6).numpy() > 0),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask of spatial shape \(4, 6\), got bool \(1, 4, 6\)$",
        ),
        (
            (None, torch.ones(4, 6).numpy()),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask of spatial shape \(4, 6\), got float32 \(4, 6\)$",
        ),
        (
            ("roi", "roi"),
            ValueError,
            r"^exclude\[1\]: expected a boolean mask or None, the RoI of spatial shape \(8, 8\) has no place in an input of "
            r'spatial shape \(4, 6\), got "roi"$',
        ),
        (
            (torch.ones(8, 8) > 0, torch.ones(4, 6) > 0),
            ValueError,
            "^exclude: every unit of example 0 is excluded; choose smaller units",
        ),
    ],
)
@pytest.mark.parametrize("face", [AverageTreatmentEffect, GradientTreatmentEffect])
def test_an_exclusion_that_does_not_fit_is_named(face, exclude, error, match):
    inputs = random(1, 1, 8, 8), random(1, 2, 4, 6, seed=2)
    with pytest.raises(error, match=match):
        face(toy(2)).attribute(inputs, 0.0, block_size=2, exclude=exclude)


# --- Extra inputs are left alone -------------------------------------------------------------------------------------


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


# --- The other faces -------------------------------------------------------------------------------------------------


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


# --- Comparing and refuting ------------------------------------------------------------------------------------------


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
    assert [one.name for one in report.refutations] == ["placebo", "split", "subset", "seed", "weights"]
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


# --- What does not fit -----------------------------------------------------------------------------------------------


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
