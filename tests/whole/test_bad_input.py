"""Every bad argument is refused by name, with what came and what was expected, before an intervention is paid for."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, Blur, Constant, PatchBank, PdCR, SegmentationTarget, regions

QUICKLY = settings(max_examples=50, deadline=None, derandomize=True)
SIZE = 8
N = 2
NAN, INF = math.nan, math.inf


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def images(n: int = N, channels: int = 1) -> Tensor:
    return random(n, channels, SIZE, SIZE)


class Counting(nn.Module):
    """Counts the calls of a function of the number of the call and its arguments; by default three scores per example."""

    def __init__(self, function=None) -> None:
        super().__init__()
        self.calls = 0
        self.function = function or (lambda call, x, *_: torch.stack([x.flatten(1).sum(1) * k for k in (1, 2, 3)], 1))

    def forward(self, *arguments):
        self.calls += 1
        return self.function(self.calls, *arguments)


def refused(expected, match, *, at_most: int, method=AverageTreatmentEffect, model=None, explained=None, **arguments) -> str:
    """Attribute, expect the error, count what it cost, and return the message. ``model`` counts what ``explained`` costs."""
    model = model or Counting()
    arguments = {"inputs": images(), "baselines": 0, "block_size": 2, "perturbations_per_eval": 2} | arguments
    if "feature_mask" in arguments and arguments["block_size"] == 2:
        del arguments["block_size"]
    with pytest.raises(expected, match=match) as caught:
        method(explained or model).attribute(**arguments)
    assert model.calls <= at_most, f"{model.calls} forwards were spent before: {caught.value}"
    return str(caught.value)


# --- Arguments of any forward function: nothing is spent -------------------------------------------------------------

COUNTS = ("n_draws", "n_screening_draws", "perturbations_per_eval", "seed")
METHODS = pytest.mark.parametrize("method", [AverageTreatmentEffect, PdCR])


@METHODS
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, False, 2.0, NAN, "3", None, torch.tensor(3), 3j])
def test_counts_must_be_integers(name, value, method):
    refused(
        TypeError,
        f"^{name}: expected an integer( or one per example)?, got ",
        at_most=0,
        method=method,
        target=0,
        **{name: value},
    )


@METHODS
@given(name=st.sampled_from(COUNTS), value=st.integers(max_value=0))
@QUICKLY
def test_counts_must_be_large_enough(method, name, value):
    least = 0 if name in ("n_screening_draws", "seed") else 1
    if value >= least:
        return
    refused(
        ValueError, rf"^{name}: expected at least {least}, got {value}$", at_most=0, method=method, target=0, **{name: value}
    )


@pytest.mark.parametrize(
    ("seed", "error", "match"),
    [
        ([], ValueError, r"^seed: expected one, or one per example \(2\), got 0$"),
        ([1, 2, 3], ValueError, r"^seed: expected one, or one per example \(2\), got 3$"),
        ([1, True], TypeError, r"^seed\[1\]: expected an integer, got True$"),
        ([1, -2], ValueError, r"^seed\[1\]: expected at least 0, got -2$"),
        ("12", TypeError, "^seed: expected an integer or one per example, got '12'$"),
        (np.array([1, 2]), TypeError, r"^seed: expected an integer or one per example, got array\(\[1, 2\]\)$"),
    ],
)
def test_seeds_per_example(seed, error, match):
    refused(error, match, at_most=0, target=0, seed=seed)


@METHODS
@pytest.mark.parametrize("value", [NAN, INF, -INF, -1e-9, -1, True, "0.1", None, torch.tensor(0.1)])
def test_the_threshold_must_be_a_finite_number_from_0_on(value, method):
    match = "^screening_threshold: expected a finite number of at least 0, got "
    refused(ValueError, match, at_most=0, method=method, target=0, screening_threshold=value)


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (images().int(), TypeError, "^inputs: expected a floating-point image as the model takes it, got torch.int32$"),
        (images() > 0.5, TypeError, "^inputs: expected a floating-point image .*, got torch.bool$"),
        (images().to(torch.complex64), TypeError, "^inputs: expected a floating-point image .*, got torch.complex64$"),
        (images(0), ValueError, r"^inputs: expected shape \(N, C, \*spatial\) without empty axes, got \(0, 1, 8, 8\)$"),
        (images(channels=0), ValueError, r"^inputs: .* without empty axes, got \(2, 0, 8, 8\)$"),
        (torch.rand(8), ValueError, r"^inputs: expected shape \(N, C, \*spatial\) .*, got \(8,\)$"),
        (torch.tensor(1.0), ValueError, r"^inputs: expected shape \(N, C, \*spatial\) .*, got \(\)$"),
        ([images()], TypeError, "^inputs: expected a tensor or a tuple of tensors, got list$"),
        (images().tolist(), TypeError, "^inputs: expected a tensor or a tuple of tensors, got list$"),
        (images().numpy(), TypeError, "^inputs: expected a tensor or a tuple of tensors, got ndarray$"),
        (None, TypeError, "^inputs: expected a tensor or a tuple of tensors, got NoneType$"),
        ((), ValueError, "^inputs: the tuple is empty$"),
        ((images(), [1.0]), TypeError, r"^inputs\[1\]: expected a tensor .*, got list$"),
        ((images(), images().long()), TypeError, r"^inputs\[1\]: expected a floating-point image .*, got torch.int64$"),
        ((images(), images(3)), ValueError, r"^inputs\[1\]: it holds 3 examples, the first input 2$"),
        ((images(), images() / 0), ValueError, r"^inputs\[1\]: it holds NaN or infinite values$"),
    ],
)
def test_inputs(inputs, error, match):
    for method in (AverageTreatmentEffect, PdCR):
        refused(error, match, at_most=0, method=method, inputs=inputs, target=0)


@given(place=st.integers(0, N * SIZE**2 - 1), value=st.sampled_from([NAN, INF, -INF]), in_donors=st.booleans())
@QUICKLY
def test_not_finite_anywhere_in_inputs_or_donors(place, value, in_donors):
    holes = images()
    holes.view(-1)[place] = value
    if not in_donors:
        refused(ValueError, "^inputs: it holds NaN or infinite values$", at_most=0, inputs=holes)
        return
    match = f"^baselines: donor image {place // SIZE**2} holds NaN or infinite values$"
    for baselines in (holes, PatchBank(holes), PatchBank(list(holes)), PatchBank(holes, "aligned")):
        refused(ValueError, match, at_most=0, target=0, baselines=baselines)


INTEGER_OR_AXES = r"^block_size: expected one integer or 2 of them \(one per spatial axis\), got "


@METHODS
@pytest.mark.parametrize(
    ("block_size", "error", "match"),
    [
        (0, ValueError, "^block_size: expected at least 1, got 0$"),
        (-8, ValueError, "^block_size: expected at least 1, got -8$"),
        (True, TypeError, "^block_size: expected an integer, got True$"),
        (2.0, TypeError, "^block_size: expected an integer, got 2.0$"),
        ("2", TypeError, "^block_size: expected an integer, got '2'$"),
        (torch.tensor(2), TypeError, r"^block_size: expected an integer, got tensor\(2\)$"),
        (9, ValueError, r"^block_size: a block of \(9, 9\) is larger than the image of \(8, 8\)$"),
        ((2, 9), ValueError, r"^block_size: a block of \(2, 9\) is larger than the image of \(8, 8\)$"),
        ((0, 2), ValueError, r"^block_size\[0\]: expected at least 1, got 0$"),
        ((2, -2), ValueError, r"^block_size\[1\]: expected at least 1, got -2$"),
        ((2,), ValueError, INTEGER_OR_AXES + r"\(2,\)$"),
        ((2, 2, 2), ValueError, INTEGER_OR_AXES + r"\(2, 2, 2\)$"),
        ((2, 2.0), ValueError, INTEGER_OR_AXES + r"\(2, 2.0\)$"),
        ((2, True), ValueError, INTEGER_OR_AXES + r"\(2, True\)$"),
        ((2, None), ValueError, INTEGER_OR_AXES + r"\(2, None\)$"),
        (((2, 2),), ValueError, INTEGER_OR_AXES),
    ],
)
def test_block_size(block_size, error, match, method):
    refused(error, match, at_most=0, method=method, target=0, block_size=block_size)


@given(length=st.integers(1, 9), extra=st.integers(1, 20), axes=st.integers(1, 3))
@QUICKLY
def test_blocks_larger_than_the_image(length, extra, axes):
    match = r"^block_size: a block of .* is larger than the image of "
    refused(ValueError, match, at_most=0, inputs=torch.rand(1, 1, *(length,) * axes), block_size=length + extra)


def test_block_sizes_of_several_inputs():
    inputs = images(), random(N, 1, 4)
    match = r"^block_size: expected one per input \(2\), got 3$"
    refused(ValueError, match, at_most=0, inputs=inputs, target=0, block_size=((2, 2), 2, 2))
    match = r"^block_size: a block of \(5,\) is larger than the image of \(4,\)$"
    refused(ValueError, match, at_most=0, inputs=inputs, target=0, block_size=((2, 2), 5))
    for bad in (0, -1):
        refused(ValueError, "^block_size: expected at least 1", at_most=0, inputs=random(N, 3), target=0, block_size=bad)


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (torch.zeros(SIZE, SIZE), TypeError, "^feature_mask: expected a tensor of integers, got torch.float32$"),
        (torch.zeros(SIZE, SIZE, dtype=torch.bool), TypeError, "^feature_mask: .* integers, got torch.bool$"),
        (torch.zeros(SIZE, SIZE, dtype=torch.complex64), TypeError, "^feature_mask: .* integers, got torch.complex64$"),
        (np.zeros((SIZE, SIZE), int), TypeError, "^feature_mask: expected a tensor of integers, got ndarray$"),
        ([[0, 1]], TypeError, "^feature_mask: expected a tensor of integers, got list$"),
        ("grid", TypeError, "^feature_mask: expected a tensor of integers, got str$"),
        (torch.arange(64).reshape(8, 8) - 5, ValueError, "^feature_mask: expected ids of at least 0, got -5$"),
        ((torch.zeros(8, 8).long(),) * 2, ValueError, r"^feature_mask: expected one mask per input \(1\), got 2$"),
    ],
)
def test_feature_mask(mask, error, match):
    refused(error, match, at_most=0, target=0, feature_mask=mask)


@given(shape=st.lists(st.integers(0, 9), min_size=0, max_size=6))
@QUICKLY
def test_feature_masks_of_another_shape(shape):
    full = (1,) * (4 - len(shape)) + tuple(shape)
    if len(full) == 4 and all(m in (1, t) for m, t in zip(full, (N, 1, SIZE, SIZE))):
        return
    match = r"^feature_mask: shape \(.*\) cannot be broadcast to the input's \(2, 1, 8, 8\)$"
    refused(ValueError, match, at_most=0, target=0, feature_mask=torch.zeros(shape, dtype=torch.int64))


def test_feature_mask_and_block_size():
    match = "^feature_mask, block_size: give one of them$"
    refused(ValueError, match, at_most=0, target=0, feature_mask=torch.zeros(SIZE, SIZE).long(), block_size=4)


DONOR_KINDS = r"^baselines: expected a donor source \(PatchBank, \.\.\.\), a number, a tensor or None, got "
DISTRIBUTION = r"^baselines: expected a tensor \(D, 1, 8, 8\), a distribution along its first axis, got "


@METHODS
@pytest.mark.parametrize(
    ("baselines", "error", "match"),
    [
        ("zero", TypeError, DONOR_KINDS + "str$"),
        (True, TypeError, DONOR_KINDS + "bool$"),
        ([0], TypeError, DONOR_KINDS + r"\[0\]; images are a PatchBank\(images\)$"),
        (1j, TypeError, DONOR_KINDS + "complex$"),
        (np.zeros((1, 1, 8, 8)), TypeError, DONOR_KINDS + r"an array .*; images are a PatchBank\(images\)$"),
        (PatchBank, TypeError, DONOR_KINDS),
        (NAN, ValueError, "^baselines: expected a finite number, got nan$"),
        (-INF, ValueError, "^baselines: expected a finite number, got -inf$"),
        (torch.tensor(NAN), ValueError, "^baselines: expected a finite number, got nan$"),
        ((0, 0), ValueError, r"^baselines: expected one per input \(1\), got 2$"),
        (torch.zeros(8, 8), ValueError, DISTRIBUTION + r"\(8, 8\)"),
        (torch.zeros(3, 2, 8, 8), ValueError, DISTRIBUTION + r"\(3, 2, 8, 8\)"),
        (torch.zeros(3, 1, 4, 4), ValueError, DISTRIBUTION + r"\(3, 1, 4, 4\); patches .* are a PatchBank$"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"^baselines: expected at least one donor, got .* \(0, 1, 8, 8\)$"),
        (torch.zeros(1, 1, 8, 8).int(), ValueError, "^baselines: donors are torch.int32, the input torch.float32: normalize"),
    ],
)
def test_baselines(baselines, error, match, method):
    refused(error, match, at_most=0, method=method, target=0, baselines=baselines)
    if baselines is not PatchBank:
        model = Counting()
        with pytest.raises(error, match=match):
            method(model, baselines=baselines).attribute(images(), target=0, block_size=2)
        assert model.calls == 0


@METHODS
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: PatchBank(random(3, 2, 8, 8)),
            r"^baselines: donor image 0 has shape \(2, 8, 8\); expected .* C=3 and 2 spatial",
        ),
        (lambda: PatchBank([random(3, 8, 8), random(4, 8, 8)]), r"^baselines: donor image 1 has shape \(4, 8, 8\); expected"),
        (lambda: PatchBank(random(3, 3, 8, 8, 8)), r"^baselines: donor image 0 has shape \(3, 8, 8, 8\); expected"),
        (
            lambda: PatchBank(random(3, 3, 3, 8)),
            r"^baselines: donor image 0 of \(3, 8\) pixels is smaller than a unit of \(4, 4\)",
        ),
        (lambda: PatchBank(random(3, 3, 4, 4), "aligned"), r"^baselines: with aligned placement .* image 0 has \(4, 4\)$"),
        (
            lambda: PatchBank(torch.zeros(3, 3, 8, 8, dtype=torch.uint8)),
            "^baselines: donors are torch.uint8, the input torch.float",
        ),
        (
            lambda: PatchBank(np.zeros((3, 3, 8, 8), int)),
            "^baselines: donors are torch.int64, the input torch.float32: normalize",
        ),
        (lambda: Constant([0.0, 1.0]), "^baselines: 2 values given for images of 3 channels$"),
        (lambda: None, r"^baselines: the image of \(8, 8\) pixels has no place for a donor of \(8, 8\) pixels"),
    ],
)
def test_donors_that_do_not_fit(make, match, method):
    donors = make()
    block = 4 if donors is not None else 8
    refused(
        ValueError, match, at_most=0, method=method, inputs=images(channels=3), target=0, baselines=donors, block_size=block
    )


def test_donors_for_inputs_without_spatial_axes():
    table = random(N, 5)
    match = r"^baselines: inputs of shape \(2, 5\) have no spatial axes, .*; give baselines \(0 is Captum's default\)$"
    refused(ValueError, match, at_most=0, inputs=table, target=0, block_size=None, baselines=None)
    match = "^baselines: Blur needs images with spatial axes$"
    refused(ValueError, match, at_most=0, inputs=table, target=0, block_size=None, baselines=Blur())


def test_baselines_of_several_inputs():
    inputs = images(), images()
    match = "^baselines: with 2 inputs, give a tuple of as many baselines$"
    refused(ValueError, match, at_most=0, inputs=inputs, target=0, baselines=torch.zeros(1, 1, 8, 8))
    match = r"^baselines: expected one per input \(2\), got 3$"
    refused(ValueError, match, at_most=0, inputs=inputs, target=0, baselines=(0, 0, 0))
    match = r"^feature_mask: expected one mask per input \(2\), got 1$"
    refused(ValueError, match, at_most=0, inputs=inputs, target=0, feature_mask=torch.zeros(8, 8).long())


@pytest.mark.parametrize(
    ("exclude", "error", "match"),
    [
        ("ROI", ValueError, "^exclude: expected \"roi\", a boolean mask or None, got 'ROI'$"),
        (True, TypeError, '^exclude: expected "roi", a boolean mask or None, got bool$'),
        ([[True]], TypeError, '^exclude: expected "roi", a boolean mask or None, got list$'),
        (object(), TypeError, '^exclude: expected "roi", a boolean mask or None, got object$'),
        (
            torch.ones(8, 8),
            ValueError,
            r"^exclude: expected a boolean mask of spatial shape \(8, 8\), got torch.float32 \(8, 8\)$",
        ),
        (torch.ones(4, 4) > 0, ValueError, r"^exclude: expected a boolean mask .* \(8, 8\), got torch.bool \(4, 4\)$"),
        (torch.ones(1, 1, 8, 8) > 0, ValueError, r"^exclude: expected a boolean mask .* got torch.bool \(1, 1, 8, 8\)$"),
        (torch.ones(8, 8) > 0, ValueError, "^exclude: every unit of example 0 is excluded; choose smaller units"),
    ],
)
def test_exclude(exclude, error, match):
    refused(error, match, at_most=0, target=0, exclude=exclude)


SAMPLING = r'^sampling: expected "stratified" or "uniform", got '
SUPPORT = r'^support: expected "auto" or None, got '


@pytest.mark.parametrize("value", ["everything", "", "Stratified", 1, True, None, ("uniform",)])
def test_sampling(value):
    refused(ValueError, SAMPLING + re.escape(repr(value)) + "$", at_most=0, target=0, sampling=value)


@pytest.mark.parametrize("value", ["everything", "", "AUTO", 1, 0, True, False, ["auto"]])
def test_support(value):
    refused(ValueError, SUPPORT + re.escape(repr(value)) + "$", at_most=0, target=0, support=value)


def test_the_papers_protocol_is_no_kind_of_sampling():
    refused(ValueError, SAMPLING + "'paper'$", at_most=0, target=0, sampling="paper")


@pytest.mark.parametrize("value", [NAN, INF, -INF, -1e-9, -1, True, False, "0.1", torch.tensor(0.1), 1j, [0.1]])
def test_a_precision_must_be_a_finite_number_above_0(value):
    refused(ValueError, "^precision: expected a positive number( or None)?, got ", at_most=0, target=0, precision=value)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, np.float64(0)])
def test_a_precision_of_0_is_refused(value):
    match = "^precision: expected a positive number( or None)?, got "
    refused(ValueError, match, at_most=0, target=0, precision=value)


@pytest.mark.parametrize("value", [NAN, INF, -INF, True, "0.1", torch.tensor(0.1), 1j, [0.1]])
def test_a_threshold_to_decide_on_must_be_a_finite_number(value):
    refused(ValueError, "^decide: expected a finite number( or None)?, got ", at_most=0, target=0, decide=value)


@pytest.mark.parametrize("goal", [{}, {"decide": 0.0}, {"precision": 0.1}])
@pytest.mark.parametrize("value", [0, 1, 0.0, 1.0, -0.05, 2, NAN, INF, True, "0.05", None, torch.tensor(0.05)])
def test_an_error_rate_must_lie_between_0_and_1(value, goal):
    refused(ValueError, "^alpha: expected a number between 0 and 1, got ", at_most=0, target=0, alpha=value, **goal)


@pytest.mark.parametrize("value", [1, 0, None, "reduce-overhead", np.True_, torch.tensor(True), {"mode": "default"}])
def test_compile_is_a_switch(value):
    refused(TypeError, "^compile: expected True or False, got ", at_most=0, target=0, compile=value)


@pytest.mark.parametrize(
    "value", [torch.float32, torch.float64, torch.int8, "bfloat16", True, False, 16, np.float16, torch.tensor(1.0)], ids=str
)
def test_autocast_is_a_data_type_of_half_precision(value):
    match = r"^autocast: expected torch\.bfloat16, torch\.float16 or None, got "
    message = refused(TypeError, match, at_most=0, target=0, autocast=value)
    assert message.endswith(f"got {value!r}")


def test_new_arguments_are_taken_when_they_are_right():
    arguments = {"baselines": PatchBank(random(20, 1, SIZE, SIZE)), "block_size": 4, "target": 0, "n_draws": 4}
    for right in (
        {"precision": np.float32(0.5)},
        {"precision": 1},
        {"decide": -0.5, "alpha": np.float64(0.1)},
        {"decide": 0},
        {"sampling": "uniform", "support": None},
        {"autocast": torch.bfloat16, "compile": False},
    ):
        AverageTreatmentEffect(Counting()).attribute(images(), **arguments, **right)


@METHODS
@pytest.mark.parametrize("name", ["n_samples", "sliding_window_shapes", "return_convergence_delta", "n_draw"])
def test_unknown_keywords(name, method):
    refused(TypeError, f"unexpected keyword argument '{name}'", at_most=0, method=method, target=0, **{name: 1})


@pytest.mark.parametrize(
    "name", ["feature_mask", "exclude", "sampling", "support", "precision", "decide", "alpha", "compile", "autocast"]
)
def test_the_papers_protocol_has_fewer_arguments(name):
    refused(TypeError, f"unexpected keyword argument '{name}'", at_most=0, method=PdCR, target=0, **{name: None})


@pytest.mark.parametrize(
    ("arguments", "index", "shape"),
    [(torch.zeros(3), 0, "(3,)"), ((1, torch.zeros(1, 2)), 1, "(1, 2)"), (torch.zeros(0, 2), 0, "(0, 2)")],
)
def test_additional_tensors_of_another_batch(arguments, index, shape):
    message = refused(ValueError, r"^additional_forward_args\[", at_most=0, target=0, additional_forward_args=arguments)
    assert message == f"additional_forward_args[{index}]: a tensor needs one entry per example (2), got shape {shape}"


# --- Forward functions -----------------------------------------------------------------------------------------------


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


# --- target: known to be bad once the model has been looked at -------------------------------------------------------


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


# --- A segmentation target -------------------------------------------------------------------------------------------


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
