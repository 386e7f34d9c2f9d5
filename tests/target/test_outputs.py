"""What models return: deep supervision in any order, structures of every kind, other resolutions, and labels in place of logits."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor
from output_cases import SPATIAL, Wrapped, both_dimensions, generator, images, labels, returning
from target_cases import SIZES, every_size
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions


def resolutions(d: int, n: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of three classes at the whole, half and a quarter of the resolution."""
    return tuple(
        torch.randn(n, 3, *(side // factor for side in SPATIAL[d]), generator=generator(factor)) for factor in (1, 2, 4)
    )


@both_dimensions
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
@pytest.mark.parametrize("form", [list, tuple, lambda items: {"out": list(items)}, lambda items: [[items[0]], list(items[1:])]])
def test_of_deep_supervision_the_full_resolution_is_taken(d, order, form):
    given = resolutions(d, 2)
    returned = form([given[i] for i in order])
    target = SegmentationTarget(returning(returned), metric="volume")
    assert torch.equal(target.logits(images(d, 2)), given[0])


@both_dimensions
def test_without_one_of_full_resolution_the_first_is_taken_and_resized(d):
    _, half, quarter = resolutions(d)
    for returned in ([half, quarter], (quarter, half)):
        expected = functional.interpolate(
            returned[0], size=SPATIAL[d], mode={2: "bilinear", 3: "trilinear"}[d], align_corners=False
        )
        found = SegmentationTarget(returning(returned), metric="volume").logits(images(d))
        assert torch.equal(found, expected)


def test_of_two_at_full_resolution_the_first_is_taken_and_output_chooses_another():
    first, second = torch.randn(1, 2, 12, 16), torch.randn(1, 2, 12, 16)
    target = SegmentationTarget(lambda image: [first, second], metric="volume")
    assert torch.equal(target.logits(images(2)), first)
    last = SegmentationTarget(lambda image: [first, second], metric="volume", output=-1)
    assert torch.equal(last.logits(images(2)), second)


@both_dimensions
@pytest.mark.parametrize("form", [list, tuple, lambda items: {"out": items}, lambda items: [[items[0]], items[1]]])
def test_maps_of_different_heads_are_not_guessed_among(d, form):
    segmentation, reconstruction = torch.randn(2, 3, *SPATIAL[d]), torch.randn(2, 1, *SPATIAL[d])
    for items in ([segmentation, reconstruction], [reconstruction, segmentation]):
        target = SegmentationTarget(returning(form(items)), metric="volume")
        with pytest.raises(
            ValueError, match=r"output: the model returns several maps of the images' size, \(2, .* and \(2, .*; say which"
        ):
            target.logits(images(d, 2))
    chosen = SegmentationTarget(returning([reconstruction, segmentation]), metric="volume", output=1)
    assert torch.equal(chosen.logits(images(d, 2)), segmentation)
    # Labels beside the logits that they come from, or a coarser output of another head, leave nothing open.
    for beside in (segmentation.argmax(1), torch.randn(2, 1, *(side // 2 for side in SPATIAL[d]))):
        assert torch.equal(
            SegmentationTarget(returning((segmentation, beside)), metric="volume").logits(images(d, 2)), segmentation
        )


@both_dimensions
def test_losses_and_class_scores_beside_the_segmentation_are_passed_over(d):
    full, half, _ = resolutions(d, 2)
    for segmentation in (full, half):
        for returned in (
            (torch.tensor(0.5), segmentation),  # a loss
            (torch.randn(2, 7), segmentation),  # what is in the image
            (torch.randn(3, 3, *SPATIAL[d]), segmentation),  # of another batch
        ):
            found = SegmentationTarget(returning(returned), metric="volume").logits(images(d, 2))
            assert found.shape == (2, 3, *SPATIAL[d])
            assert torch.equal(found, full) == (segmentation is full)


def test_the_full_resolution_without_channels_is_found_too():
    coarse, fine = torch.randn(2, 1, 6, 8), torch.randn(2, 12, 16)
    found = SegmentationTarget(lambda image: [coarse, fine], metric="volume").logits(images(2, 2))
    assert torch.equal(found, fine[:, None])


def test_a_key_or_an_index_may_lead_to_a_list():
    full, half, _ = resolutions(2)
    for returned, output in (
        ({"decoder": [half, full]}, "decoder"),
        (("loss", [half, full]), 1),
        ({"decoder": [half, full]}, lambda found: found["decoder"]),
    ):
        target = SegmentationTarget(returning(returned), metric="volume", output=output)
        assert torch.equal(target.logits(images(2)), full)


def test_samples_stacked_on_an_axis_of_their_own_are_refused():
    stacked = torch.randn(1, 4, 3, 12, 16)
    with pytest.raises(ValueError, match=r"got \(1, 4, 3, 12, 16\); `output` says where to find them"):
        SegmentationTarget(lambda image: stacked, metric="volume").logits(images(2))
    first = SegmentationTarget(lambda image: stacked, metric="volume", output=lambda returned: returned[:, 0])
    assert torch.equal(first.logits(images(2)), stacked[:, 0])


@dataclass
class Output:
    logits: Tensor
    features: Tensor


Named = namedtuple("Named", ["features", "pred"])


@both_dimensions
@pytest.mark.parametrize(
    "form",
    [
        lambda found, other: {"features": other, "out": found},
        lambda found, other: OrderedDict(loss=torch.tensor(1.0), logits=found),
        lambda found, other: {"image": other, "pred": found},
        lambda found, other: Named(other, found),
        lambda found, other: Output(found, other),
    ],
)
def test_usual_names_are_found_in_whatever_has_them(d, form):
    found, other = torch.randn(1, 3, *SPATIAL[d]), torch.randn(1, 3, *SPATIAL[d])
    target = SegmentationTarget(lambda image: form(found, other), metric="volume")
    assert torch.equal(target.logits(images(d)), found)


def test_the_outputs_of_hugging_face_are_read():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    coarse = torch.randn(1, 3, 3, 4)
    expected = functional.interpolate(coarse, size=(12, 16), mode="bilinear", align_corners=False)
    for returned in (
        outputs.SemanticSegmenterOutput(logits=coarse),
        outputs.SemanticSegmenterOutput(loss=torch.tensor(1.0), logits=coarse),
        outputs.SemanticSegmenterOutput(loss=torch.tensor(1.0), logits=coarse).to_tuple(),
    ):
        assert torch.equal(SegmentationTarget(returning(returned), metric="volume").logits(images(2)), expected)


@both_dimensions
@pytest.mark.parametrize("activation", ["auto", "sigmoid"])
def test_effects_of_a_model_of_a_quarter_resolution(d, activation):
    mode = {2: "bilinear", 3: "trilinear"}[d]
    pool = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[d]
    model = Wrapped(d, lambda scores: {"logits": pool(scores, 4)})
    image, donors, roi = images(d), 2 * images(d, 2, seed=1), regions.box(SPATIAL[d], start=4, size=4)
    truth = functional.one_hot(labels(d), 3).movedim(-1, 1)

    def score(x: Tensor) -> Tensor:
        logits = functional.interpolate(pool(model.scores(x), 4), size=SPATIAL[d], mode=mode, align_corners=False)
        p = logits.softmax(1) if activation == "auto" else logits.sigmoid()
        return 2 * (p * truth)[..., roi].sum(-1) / (p[..., roi].sum(-1) + truth[..., roi].sum(-1))

    target = SegmentationTarget(model, roi, truth, metric="soft_dice", activation=activation)
    statistics = AverageTreatmentEffect(target).attribute(
        *(image, PatchBank(donors, placement="aligned"), 1), block_size=4, n_draws=2, return_statistics=True
    )[1]
    with torch.no_grad():
        observed = score(image)
        torch.testing.assert_close(statistics.observed_score.float(), observed)
        changed = image.repeat(2, *[1] * (d + 1))
        corner = (..., *[slice(0, 4)] * d)
        changed[corner] = donors[corner]
        effect = observed[0] - score(changed).mean(0)
    torch.testing.assert_close(statistics.effect[0, 0].float(), effect, atol=1e-5, rtol=0)
    assert float(effect.abs().max()) > 1e-4


@both_dimensions
@pytest.mark.parametrize(
    ("make", "classes", "hard", "named"),
    [
        (lambda s: s, 1, lambda s: s > 0, "sigmoid"),
        (lambda s: s.sigmoid(), 1, lambda s: s > 0, "none"),
        (lambda s: s, 3, lambda s: functional.one_hot(s.argmax(1), 3).movedim(-1, 1).bool(), "softmax"),
        (lambda s: s.softmax(1), 3, lambda s: functional.one_hot(s.argmax(1), 3).movedim(-1, 1).bool(), "none"),
        (lambda s: s.sigmoid(), 3, lambda s: s > 0, "none"),  # labels that may overlap
    ],
)
@pytest.mark.parametrize("form", [lambda y: y, lambda y: [y], lambda y: {"out": y}, lambda y: (torch.tensor(0.0), y)])
def test_activations_are_read_alike_whatever_holds_the_output(d, form, make, classes, hard, named):
    image = images(d, 2)
    model = Wrapped(d, lambda scores: form(make(scores)), classes)
    target = SegmentationTarget(model, metric="volume")
    assert torch.equal(target.predict(image), hard(model.scores(image)))
    assert f"activation=auto -> {named}," in repr(target)


LOGITS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
Pair = namedtuple("Pair", ["aux", "out"])
LogitsLast = namedtuple("LogitsLast", ["loss", "logits"])


class ModelOutput(OrderedDict):
    """What Hugging Face's models return: an ordered mapping, whose items are attributes and positions too."""

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key):
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@pytest.mark.parametrize(
    "returned",
    [
        LOGITS,
        [LOGITS, OTHER],
        (LOGITS, OTHER),
        [[LOGITS, OTHER], OTHER],
        {"aux": OTHER, "out": LOGITS},
        {"loss": torch.tensor(1.0), "logits": LOGITS},
        {"image": OTHER, "pred": LOGITS},
        OrderedDict(aux=OTHER, out=LOGITS),
        {"out": [LOGITS, OTHER]},
        Pair(OTHER, LOGITS),
        LogitsLast(torch.tensor(1.0), LOGITS),
        ModelOutput(loss=torch.tensor(1.0), logits=LOGITS),
        MetaTensor(LOGITS),
    ],
    ids=lambda returned: type(returned).__name__,
)
def test_logits_are_found(returned):
    found = SegmentationTarget(lambda image: returned, metric="volume").logits(torch.zeros(2, 1, 8, 8))
    assert type(found) is Tensor
    assert torch.equal(found, LOGITS)


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        ({"out": OTHER, "main": LOGITS}, "main"),
        (Pair(LOGITS, OTHER), "aux"),
        (SimpleNamespace(mask=LOGITS), "mask"),
        ([OTHER, LOGITS], 1),
        ((OTHER, OTHER, LOGITS), -1),
        ({0: OTHER, 1: LOGITS}, 1),
        (ModelOutput(loss=OTHER, masks=LOGITS), "masks"),
        ([{"deep": LOGITS}], lambda returned: returned[0]["deep"]),
        (torch.cat([OTHER, LOGITS], 1), lambda returned: returned[:, 3:]),
    ],
)
def test_output_says_where_the_logits_are(returned, output):
    target = SegmentationTarget(lambda image: returned, metric="volume", output=output)
    assert torch.equal(target.logits(torch.zeros(2, 1, 8, 8)), LOGITS)
    assert torch.equal(target.surrogate("logit_sum").logits(torch.zeros(2, 1, 8, 8)), LOGITS)


@pytest.mark.parametrize(
    ("returned", "output", "match"),
    [
        (
            {"b": LOGITS, "a": OTHER},
            None,
            r"model: no logits found in what it returns \(dict with keys \['a', 'b'\]\); .*`output`",
        ),
        (None, None, r"\(NoneType\); say where they are with `output` \(a key, an index or a callable\)"),
        ([], None, r"\(list\)"),
        (LOGITS.numpy(), None, r"\(ndarray\)"),
        ({"a": LOGITS}, "b", r"\(dict with keys \['a'\]\) at output='b'"),
        ([LOGITS], 3, r"\(list\) at output=3"),
        (Pair(OTHER, LOGITS), "mask", r"\(Pair\) at output='mask'"),
        (None, 0, r"\(NoneType\) at output=0"),
        ({"a": LOGITS}, lambda returned: None, r"\(dict with keys \['a'\]\) at output=<function"),
    ],
)
def test_where_no_logits_are_found_the_error_says_what_there_was(returned, output, match):
    target = SegmentationTarget(lambda image: returned, metric="volume", output=output)
    with pytest.raises(TypeError, match=match) as caught:
        target(torch.zeros(2, 1, 8, 8))
    assert str(caught.value).startswith("model: no logits found in what it returns (")


@pytest.mark.parametrize("output", [0, -1, 1, "real", "T", "logits"])
def test_a_tensor_is_no_collection_of_outputs(output):
    """Index 0 of a batch of as many images as classes would be the first image's classes, taken for images."""
    target = SegmentationTarget(nn.Identity(), metric="volume", output=output)
    with pytest.raises(TypeError, match=f"output: the model returns a tensor, .* expected None or a callable, got {output!r}"):
        target(torch.randn(3, 3, 8, 8))


@pytest.mark.parametrize(("n_spatial", "mode"), [(1, "linear"), (2, "bilinear"), (3, "trilinear")])
@pytest.mark.parametrize("n", [1, 3])
def test_smaller_logits_are_resized_to_the_input(n_spatial, mode, n):
    spatial, small = (12, 16, 8)[:n_spatial], (3, 4, 2)[:n_spatial]
    logits = torch.randn(n, 3, *small)
    target = SegmentationTarget(lambda image: logits, None, torch.zeros(spatial))
    expected = functional.interpolate(logits, size=spatial, mode=mode, align_corners=False)
    assert torch.equal(target.logits(torch.zeros(n, 1, *spatial)), expected)
    assert target(torch.zeros(n, 1, *spatial)).shape == (n, 3)


@every_size
def test_a_model_without_channel_axis_has_one_channel(n_spatial, n):
    model = nn.Flatten(1, 2)  # (N, 1, H, ...) to (N, H, ...)
    images, labels = torch.randn(n, 1, *SIZES[n_spatial]), torch.randint(0, 2, SIZES[n_spatial])
    expected = SegmentationTarget(nn.Identity(), None, labels)(images)
    assert torch.equal(SegmentationTarget(model, None, labels)(images), expected)


@pytest.mark.parametrize(
    ("returned", "match"),
    [
        (
            torch.zeros(2, 5),
            r"model: expected logits \(N, C, \*spatial\) with N=2 and 2 spatial axes .*\(2, 1, 8, 8\), got \(2, 5\)",
        ),
        (torch.zeros(3, 1, 8, 8), r"with N=2 .* got \(3, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, 8), r"got \(2, 1, 8, 8, 8\)"),
        (torch.zeros(2, 0, 8, 8), r"model: expected logits \(N, C, \*spatial\), got \(2, 0, 8, 8\), which holds none"),
        (
            torch.zeros(2, 8, 8, 3),
            r"got \(2, 8, 8, 3\) for images of \(8, 8\), with the classes on the last axis; output=lambda y: y.movedim",
        ),
        (torch.zeros(2, 1, 8, 8, dtype=torch.long), "model: expected floating-point logits or probabilities, got torch.int64"),
    ],
)
def test_logits_that_do_not_fit_the_image_are_refused(returned, match):
    with pytest.raises(ValueError, match=match):
        SegmentationTarget(lambda image: returned, metric="volume")(torch.zeros(2, 1, 8, 8))
