"""Targets, regions and models that cannot be explained are refused by name, with what came and what was expected."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refused import INF, METHODS, NAN, QUICKLY, SIZE, Counting, N, images, random, refused
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, PdCR, SegmentationTarget, regions


@METHODS
@pytest.mark.parametrize("forward_func", [None, 3, "model", [nn.Identity()], torch.zeros(1)])
def test_a_forward_function_must_be_callable(forward_func, method):
    with pytest.raises(TypeError, match=r"^forward_func: expected a callable, got "):
        method(forward_func)
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        method(nn.Identity(), donors=0)


@pytest.mark.parametrize(
    ("forward_func", "reason"),
    [
        (lambda: torch.zeros(N), "too many positional arguments"),
        (lambda x, y: torch.zeros(N), "missing a required argument: 'y'"),
        (lambda *, x: torch.zeros(N), "too many positional arguments"),
    ],
)
def test_a_forward_function_must_take_the_inputs(forward_func, reason):
    with pytest.raises(TypeError) as caught:
        AverageTreatmentEffect(forward_func).attribute(images(), baselines=0, block_size=2)
    assert str(caught.value).startswith("forward_func: it cannot be called with 1 input(s) and 0 additional_forward_args: ")
    assert reason in str(caught.value)


def per_example(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


AGGREGATES = (
    r"^forward_func: expected one score per example, \(N, \.\.\.\) with N=\d, got .*; a function that aggregates over the batch"
)


@METHODS
@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda call, x: x.sum(), ValueError, AGGREGATES),
        (lambda call, x: x.sum()[None], ValueError, AGGREGATES),
        (lambda call, x: torch.zeros(3, 2), ValueError, AGGREGATES),
        (
            lambda call, x: (per_example(x),),
            TypeError,
            "^forward_func: expected a tensor of .*, got tuple; a segmentation model is wrapped first: SegmentationTarget",
        ),
        (
            lambda call, x: {"out": per_example(x)},
            TypeError,
            "^forward_func: expected a tensor of .*, got dict; a segmentation model is wrapped first: SegmentationTarget",
        ),
        (lambda call, x: None, TypeError, "^forward_func: expected a tensor of one score per example, got NoneType$"),
        (lambda call, x: 1.0, TypeError, "^forward_func: expected a tensor of one score per example, got float$"),
        (lambda call, x: per_example(x).numpy(), TypeError, "^forward_func: expected a tensor of .*, got ndarray$"),
        (lambda call, x: per_example(x) + 0j, TypeError, "^forward_func: expected real scores, got complex ones$"),
        (lambda call, x: per_example(x) / 0, ValueError, r"^forward_func: the score of example 0 is not finite: \[inf\]$"),
        (
            lambda call, x: torch.stack([per_example(x), per_example(x)], 1) + torch.tensor([[0, 0], [0, NAN]]),
            ValueError,
            r"^forward_func: the score of example 1 is not finite: \[.*, nan\]$",
        ),
    ],
)
def test_what_a_forward_function_returns_is_checked_on_the_observed_pass(function, error, match, method):
    refused(error, match, at_most=1, method=method, model=Counting(function))


# Some calls come before the interventions: the observed images, and these again, alone and together.
LATE = [2, 7, 9]


@METHODS
@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (lambda x: x.sum(), ValueError, AGGREGATES),
        (lambda x: x.sum()[None], ValueError, AGGREGATES),
        (
            lambda x: per_example(x)[:, None],
            ValueError,
            r"^forward_func: its scores changed their shape, from \(\) .* to \(1,\)$",
        ),
        (
            lambda x: (per_example(x),),
            TypeError,
            "^forward_func: expected a tensor of .*, got tuple; a segmentation model is wrapped first: SegmentationTarget",
        ),
    ],
)
def test_what_a_forward_function_returns_is_checked_on_every_call(function, error, match, late, method):
    model = Counting(lambda call, x: per_example(x) if call < late else function(x))
    refused(error, match, at_most=late + 1, method=method, model=model)
    # What aggregates over the batch returns a score where an image is alone.
    assert model.calls == late or late == 2


@METHODS
@pytest.mark.parametrize("late", LATE[1:])
def test_scores_of_interventions_are_finite(late, method):
    model = Counting(lambda call, x: per_example(x) * (1 if call < late else NAN))
    match = r"^forward_func: it returned a score that is not finite \(\[nan\]\) for example"
    refused(ValueError, match, at_most=late, method=method, model=model)


def test_a_segmentation_map_is_no_score():
    match = "^forward_func: it returns 9000000 values per example, too many .*; wrap the model in a SegmentationTarget"
    model = Counting(lambda call, x: torch.zeros(1, 1, 3000, 3000))
    refused(ValueError, match, at_most=1, model=model, inputs=images(1), target=0)


@METHODS
@pytest.mark.parametrize(
    "target",
    [3, -4, (3,), (0, 0), (), "a", 1.0, [0], [0, 1, 2], [0, 3], [0.0, 1.0], [], [(0,), (3,)], slice(0, 1), True]
    + [torch.tensor(t) for t in (3, -4, 1.5, [0, 1, 2], [0, 3], [[0, 1]], [0.0, 1.0])],
    ids=str,
)
def test_a_target_that_picks_no_output(target, method):
    message = refused(ValueError, r"^target: .*3 outputs", at_most=1, method=method, target=target)
    assert message.startswith("target: ")
    assert str(target) in message or repr(target) in message


@given(
    target=st.one_of(st.integers(-(2**40), -4), st.integers(3, 2**40)),
    form=st.sampled_from([int, torch.tensor, lambda t: (t,)]),
)
@QUICKLY
def test_a_target_out_of_range(target, form):
    refused(ValueError, rf"^target: .*{target}.* does not pick one of 3 outputs", at_most=1, target=form(target))


@METHODS
def test_several_outputs_and_no_target(method):
    refused(ValueError, "^target: the forward function has 3 outputs .*per example; say which one$", at_most=1, method=method)


def two_classes(call: int, x: Tensor) -> Tensor:
    return torch.cat([x, 1 - x], 1)


LABELS = (random(SIZE, SIZE, seed=1) > 0.5).long()
ROI = regions.box((SIZE, SIZE), start=2, size=3)


def segmentation(function=two_classes, **options) -> SegmentationTarget:
    return SegmentationTarget(Counting(function), **{"roi": ROI, "reference": LABELS, "activation": "softmax"} | options)


def refused_target(error, match, at_most=0, function=two_classes, options=None, **arguments) -> str:
    made = segmentation(function, **options or {})
    return refused(error, match, at_most=at_most, model=made.model, explained=made, **{"target": 0} | arguments)


@pytest.mark.parametrize("roi", [torch.zeros(8, 8, dtype=torch.bool), torch.zeros(8, 8), np.zeros((8, 8), bool)])
def test_an_empty_roi(roi):
    with pytest.raises(ValueError, match=r"^roi: it is empty, no pixel is True$"):
        segmentation(roi=roi)


def test_an_roi_that_is_empty_for_one_example():
    roi = torch.stack([ROI, torch.zeros_like(ROI)])
    refused_target(ValueError, r"^roi: it is empty for \(example, RoI\) \[\[1, 0\]\]$", options={"roi": roi[:, None]})
    refused_target(ValueError, r"^roi: it is empty for \(example, RoI\) \[\[0, 1\]\]$", options={"roi": roi})
    options = {"roi": "argument"}
    refused_target(ValueError, r"^roi: it is empty for \(example, RoI\)", options=options, additional_forward_args=roi)


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@QUICKLY
def test_an_roi_of_another_shape(shape):
    shape = tuple(shape)
    if shape[-2:] == (SIZE, SIZE) and (len(shape) < 4 or shape[0] in (1, N)) and len(shape) < 5:
        return
    refused_target(ValueError, "^roi: ", options={"roi": torch.ones(shape, dtype=torch.bool)})


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=5))
@QUICKLY
def test_a_reference_of_another_shape(shape):
    shape = tuple(shape)
    if shape[-2:] == (SIZE, SIZE) and len(shape) < 5:
        return
    refused_target(ValueError, "^reference: ", options={"reference": torch.zeros(shape, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("reference", "match"),
    [
        (LABELS + 1, r"^reference: labels 1\.\.2 are outside the model's classes 0\.\.1$"),
        (LABELS - 1, r"^reference: labels -1\.\.0 are outside the model's classes 0\.\.1$"),
        (
            LABELS * 255,
            r"^reference: labels 0\.\.255 are outside the model's classes 0\.\.1; a mask of 0 and 255 has to be divided by 255$",
        ),
        (LABELS * 0.5, "^reference: expected whole numbers as labels, got fractions$"),
        (
            torch.stack([LABELS] * 3)[None],
            "^reference: it has 3 channels, the model 2; give a label map or one channel per class$",
        ),
    ],
)
def test_labels_outside_the_classes(reference, match):
    refused_target(ValueError, match, at_most=1, options={"reference": reference})


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (
            {"roi": torch.rand(8, 8)},
            ValueError,
            r"^roi: expected a boolean mask \(or 0 and 1\), got torch.float32 with other values$",
        ),
        ({"roi": torch.full((8, 8), 2)}, ValueError, "^roi: expected a boolean mask .*, got torch.int64 with other values$"),
        ({"roi": [[True]]}, TypeError, "^roi: expected a tensor or an array, got list$"),
        ({"roi": "all"}, ValueError, "^roi: expected a mask, None or \"argument\", got 'all'$"),
        ({"reference": [[1]]}, TypeError, "^reference: expected a tensor or an array, got list$"),
        ({"reference": None}, ValueError, "^reference: metric 'dice' compares with a reference segmentation; give one"),
        ({"metric": "jaccard"}, ValueError, "^metric: expected one of .* or a callable, got 'jaccard'$"),
        ({"metric": 3}, TypeError, "^metric: expected a name or a callable, got int$"),
        ({"activation": "tanh"}, ValueError, "^activation: expected .*, got 'tanh'$"),
        ({"empty_score": 2}, ValueError, r"^empty_score: expected a finite number of at least 0 and at most 1, got 2$"),
        ({"empty_score": NAN}, ValueError, r"^empty_score: expected a finite number of at least 0 and at most 1, got nan$"),
        ({"empty_score": None}, TypeError, "^empty_score: expected a finite number .*, got None$"),
        ({"empty_score": True}, TypeError, "^empty_score: expected a finite number .*, got True$"),
        # A comparison with NaN is false: everything would be background.
        ({"threshold": NAN}, ValueError, "^threshold: expected a finite number, got nan$"),
        ({"threshold": np.float32(NAN)}, ValueError, "^threshold: expected a finite number, got .*nan"),
        ({"threshold": -INF}, ValueError, "^threshold: expected a finite number, got -inf$"),
        ({"threshold": None}, TypeError, "^threshold: expected a finite number, got None$"),
        ({"threshold": "0.5"}, TypeError, "^threshold: expected a finite number, got '0.5'$"),
        ({"threshold": True}, TypeError, "^threshold: expected a finite number, got True$"),
        ({"threshold": torch.tensor(0.5)}, TypeError, r"^threshold: expected a finite number, got tensor\(0.5000\)$"),
        ({"output": 1.5}, TypeError, "^output: expected a string, an integer, a callable or None, got float$"),
        ({"output": True}, TypeError, "^output: expected .*, got bool$"),
        ({"output": ["logits"]}, TypeError, "^output: expected"),
    ],
)
def test_a_target_is_checked_when_it_is_built(options, error, match):
    with pytest.raises(error, match=match):
        segmentation(**options)


@pytest.mark.parametrize("name", ["roi", "reference"])
def test_masks_as_arguments(name):
    masks = {"roi": ROI, "reference": LABELS}
    match = f'^{name}: this target takes it as its last positional argument \\({name}="argument"\\)'
    refused_target(ValueError, match, options={name: "argument"})
    batch = masks[name].expand(3, SIZE, SIZE)
    match = r"^additional_forward_args\[0\]: a tensor needs one entry per example \(2\), got shape \(3, 8, 8\)$"
    refused_target(ValueError, match, options={name: "argument"}, additional_forward_args=batch)
    match = f"^{name}: it holds 3 examples, the batch 2"
    refused_target(ValueError, match, options={name: batch[:, None]})


def test_an_roi_that_leaves_no_unit():
    match = "^exclude: every unit of example 0 is excluded; choose smaller units, a smaller RoI, or pass exclude=None$"
    refused_target(ValueError, match, block_size=8)
    everywhere = torch.stack([ROI, torch.ones_like(ROI)])[:, None]
    refused_target(ValueError, "^exclude: every unit of example 1 is excluded", options={"roi": everywhere})
    target = SegmentationTarget(Counting(two_classes), roi=ROI, reference=LABELS)
    for block_size in (5, 8, (3, 8)):
        with pytest.raises(ValueError, match=r"^block_size: no whole block of example 0 lies outside the RoI; choose smaller"):
            PdCR(target).attribute(images(), baselines=0, block_size=block_size)
    assert target.model.calls == 0


def test_a_bank_that_holds_nothing_but_the_explained_region():
    corner_and_rest = torch.ones(SIZE, SIZE, dtype=torch.int64)
    corner_and_rest[0, 0] = 0
    refused_target(
        ValueError,
        "^baselines: no donor is left for unit 1 once places that touch the image's own RoI are left out$",
        inputs=images(1),
        baselines=PatchBank(images(1)),
        feature_mask=corner_and_rest,
        exclude=None,
    )


def test_a_model_that_returns_nan():
    match = "^model: it returned NaN; check the model and its inputs"
    refused_target(ValueError, match, at_most=1, function=lambda call, x: torch.cat([x, x / 0 * 0], 1))
    late = segmentation(lambda call, x: two_classes(call, x) * (NAN if call > 6 else 1))
    match = (
        r"^forward_func: it returned a score that is not finite \(\[nan, nan\]\) for example 0 with unit \d+ replaced by donor"
    )
    plain = {"sampling": "uniform", "support": None}
    refused(ValueError, match, at_most=7, model=late.model, explained=late, target=0, **plain)
    assert late.model.calls == 7


def test_nan_is_a_doubt_while_the_model_is_looked_at_and_a_fault_among_the_interventions():
    match = "^forward_func: (it returned a score that is not finite |.* were NaN or infinite in one of the two: )"

    def near(call: int, x: Tensor) -> Tensor:
        return two_classes(call, nn.functional.avg_pool2d(x, 3, 1, 1))

    sound = segmentation(near)
    arguments = {"baselines": 0, "block_size": 2, "target": 0, "perturbations_per_eval": 2}
    _, stats = AverageTreatmentEffect(sound).attribute(images(), **arguments, return_statistics=True)
    assert stats.settings["forwards"]["support"] > 0
    assert stats.settings["forwards"]["interventions"] > 0
    for good in (1, 2, sound.model.calls // 2, sound.model.calls - 1):
        late = segmentation(lambda call, x, good=good: near(call, x) * (NAN if call > good else 1))
        refused(ValueError, match, at_most=200, model=late.model, explained=late, target=0)


@pytest.mark.parametrize(
    ("function", "error", "match"),
    [
        (
            lambda call, x: x.sum(),
            ValueError,
            r"^model: expected logits \(N, C, \*spatial\) with N=2 and 2 spatial axes .*, got \(\)",
        ),
        (
            lambda call, x: torch.cat([x, x]),
            ValueError,
            r"^model: expected logits .* with N=2 .*, got \(4, 1, 8, 8\); `output` says where",
        ),
        (lambda call, x: x.flatten(1), ValueError, r"^model: expected logits .*, got \(2, 64\)"),
        (lambda call, x: {"a": x, "b": x}, TypeError, r"^model: no logits found .* \(dict with keys \['a', 'b'\]\); say where"),
        (lambda call, x: None, TypeError, r"^model: no logits found in what it returns \(NoneType\); say where they are"),
        (
            lambda call, x: (x > 0.5).long(),
            ValueError,
            r"^activation: the model returns labels \(torch.int64\), which take none; expected \"auto\" or \"none\", got 'softmax'$",
        ),
    ],
)
def test_a_model_that_returns_no_segmentation(function, error, match):
    # Twice: does it take one image at a time?
    refused_target(error, match, at_most=2, function=function)


@pytest.mark.parametrize(
    ("metric", "error", "match"),
    [
        (lambda p, t, r: p.sum(), ValueError, r"^metric: expected scores of shape \(N, K\) with N=2, got \(\)$"),
        (lambda p, t, r: p.sum()[None], ValueError, r"^metric: expected scores of shape \(N, K\) with N=2, got \(1,\)$"),
        (lambda p, t, r: 0.5, ValueError, r"^metric: expected scores of shape \(N, K\) with N=2, got float$"),
        (lambda p, t, r: p.flatten(1).sum(1) / 0, ValueError, "^forward_func: the score of example 0 is not finite"),
    ],
)
def test_a_metric_of_ones_own_that_returns_no_scores(metric, error, match):
    refused_target(error, match, at_most=1, options={"metric": metric})
