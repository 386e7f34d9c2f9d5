"""Every bad argument is refused by name, with what came and what was expected, before an intervention is paid for."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refused import INF, METHODS, NAN, QUICKLY, SIZE, Counting, N, images, random, refused

from captum_causalseg import AverageTreatmentEffect, Blur, Constant, PatchBank, PdCR

COUNTS = ("n_draws", "n_screening_draws", "perturbations_per_eval", "seed")


@METHODS
@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [True, False, 2.0, NAN, "3", None, torch.tensor(3), 3j])
def test_counts_must_be_integers(name, value, method):
    # How many draws are usual depends on whether a goal is given: nothing need be said, which is tried below.
    left_open = name == "n_draws" and method is AverageTreatmentEffect
    value = "none" if left_open and value is None else value
    refused(
        TypeError,
        f"^{name}: expected an integer( or one per example)?{' or None' if left_open else ''}, got ",
        at_most=0,
        method=method,
        target=0,
        **{name: value},
    )


@pytest.mark.parametrize(("goal", "usual"), [({}, 12), ({"precision": 0.1}, 50), ({"decide": 0.0}, 50)])
def test_draws_need_not_be_said(goal, usual):
    _, found = AverageTreatmentEffect(Counting()).attribute(
        images(), images(3), target=0, n_draws=None, return_statistics=True, **goal
    )
    assert found.settings["n_draws"] == usual


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


SAMPLING = r'^sampling: expected "stratified", "uniform" or a SamplingScheme, got '
SUPPORT = r'^support: expected "auto", "always" or None, got '


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
