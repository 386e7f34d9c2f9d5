"""One way to refuse an argument: its name, what was expected, what came."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from captum.log import log_usage

from captum_causalseg import _checks
from captum_causalseg._checks import (
    BOOLEAN,
    FILE,
    FRACTION,
    FUNCTION,
    NEW_FILE,
    NONE,
    PATH,
    TEXT,
    ArgumentTypeError,
    Check,
    array_of,
    checked,
    instance,
    integer,
    listed,
    mapping,
    nearest,
    number,
    one_of,
    per_axis,
    renamed,
    sequence,
    shown,
    tensor_of,
)

NAN, INF = math.nan, math.inf


def refusal_of(check: Check, value: Any) -> tuple[type[Exception], str] | None:
    try:
        check("x", value)
    except (TypeError, ValueError, OSError) as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize(
    ("check", "good"),
    [
        (integer(1), [1, 7, np.int64(3)]),
        (integer(0, 2), [0, 2]),
        (number(0), [0, 0.5, np.float32(1), 10**9]),
        (number(above=0, most=1), [1, 0.1]),
        (FRACTION, [0.5, np.float64(0.01)]),
        (BOOLEAN, [True, False]),
        (TEXT, ["", "a"]),
        (one_of("a", None, 3), ["a", None, 3]),
        (FUNCTION, [len, torch.nn.Identity()]),
        (PATH, ["a.png", __import__("pathlib").Path("b")]),
        (NONE | integer(1), [None, 1]),
        (sequence(integer(0), 1), [[0], (1, 2), range(3)]),
        (mapping(TEXT, integer()), [{}, {"a": 1}]),
        (tensor_of("float", "(N, C, *spatial)", (2, INF), finite=True), [torch.ones(1, 1), torch.ones(2, 3, 4, 5)]),
        (array_of("labels", "spatial"), [np.zeros((2, 2), np.uint8), torch.zeros(3, dtype=torch.bool)]),
        (instance(dict, list), [{}, []]),
    ],
)
def test_what_is_good_passes(check, good):
    for value in good:
        assert check("x", value) is None


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (integer(1), True, TypeError, "x: expected an integer, got True"),
        (integer(1), 2.0, TypeError, "x: expected an integer, got 2.0"),
        (integer(1), 0, ValueError, "x: expected at least 1, got 0"),
        (integer(0, 2), 3, ValueError, "x: expected an integer from 0 to 2, got 3"),
        (number(0), "half", TypeError, "x: expected a finite number of at least 0, got 'half'"),
        (number(0), NAN, ValueError, "x: expected a finite number of at least 0, got nan"),
        (number(), -INF, ValueError, "x: expected a finite number, got -inf"),
        (number(above=0, most=1), 0, ValueError, "x: expected a finite number of more than 0 and at most 1, got 0"),
        (FRACTION, 1, ValueError, "x: expected a number between 0 and 1, got 1"),
        (FRACTION, NAN, ValueError, "x: expected a number between 0 and 1, got nan"),
        (FRACTION, None, TypeError, "x: expected a number between 0 and 1, got None"),
        (BOOLEAN, np.bool_(True), TypeError, "x: expected True or False, got np.True_"),
        (BOOLEAN, 1, TypeError, "x: expected True or False, got 1"),
        (one_of(np.dtype("f2")), np.float16, TypeError, "x: expected dtype('float16'), got <class 'numpy.float16'>"),
        (one_of("a", "b", None), "c", TypeError, 'x: expected "a", "b" or None, got \'c\''),
        (one_of("a", 1), [1], TypeError, 'x: expected "a" or 1, got [1]'),
        (one_of("a", 1), True, TypeError, 'x: expected "a" or 1, got True'),
        (one_of("a"), np.ones(4), TypeError, 'x: expected "a", got an array of shape (4,) and float64'),
        (FUNCTION, 3, TypeError, "x: expected a callable, got int"),
        (PATH, 3, TypeError, "x: expected a path, got 3"),
        (PATH, "", ValueError, "x: expected a path, got ''"),
        (NEW_FILE, "nope/a.png", FileNotFoundError, "x: there is no folder 'nope'"),
        (FILE, "nope.png", FileNotFoundError, "x: there is no 'nope.png'"),
        (
            NONE | integer(1) | sequence(integer(1)),
            "8",
            TypeError,
            "x: expected an integer, a sequence of which each is an integer or None, got '8'",
        ),
        (NONE | integer(1) | sequence(integer(1)), [8, 0], ValueError, "x[1]: expected at least 1, got 0"),
        (NONE | one_of("auto"), "no", TypeError, "x: expected \"auto\" or None, got 'no'"),
        (sequence(integer(0), 1), [], ValueError, "x: expected at least 1 of them, got []"),
        (sequence(integer(0), length=2), [1], ValueError, "x: expected 2 of them, got [1]"),
        (mapping(TEXT, integer()), {"a": "b"}, TypeError, "x['a']: expected an integer, got 'b'"),
        (mapping(TEXT, integer()), {1: 1}, TypeError, "x: key: expected a string, got 1"),
        (tensor_of("float"), [1.0], TypeError, "x: expected a tensor of floating-point numbers, got list"),
        (tensor_of("float"), torch.ones(2).int(), TypeError, "x: expected floating-point numbers, got torch.int32"),
        (tensor_of("integer"), torch.ones(2) > 0, TypeError, "x: expected integers, got torch.bool"),
        (tensor_of(None, "(N, C)", (2, 2)), torch.ones(2), ValueError, "x: expected shape (N, C), got (2,)"),
        (array_of("real", finite=True), np.array([NAN, 1]), ValueError, "x: it holds NaN or infinite values"),
        (array_of("real"), np.array(["a"]), TypeError, "x: expected real numbers, got <U1"),
        (instance(dict), None, TypeError, "x: expected a dict, got NoneType"),
    ],
)
def test_what_is_not_is_refused_by_name(check, value, error, message):
    kind, said = refusal_of(check, value)
    assert issubclass(kind, error)
    assert (kind is ArgumentTypeError) == (error is TypeError)
    assert said == message


def test_a_value_of_another_kind_is_caught_either_way():
    for error in (TypeError, ValueError):
        with pytest.raises(error):
            integer()("x", "3")


@pytest.mark.parametrize(
    "value",
    [
        torch.rand(1000, 1000),
        np.random.default_rng(0).random((100, 100)),
        list(range(10**5)),
        [torch.rand(100, 100)] * 3,
        {i: i for i in range(1000)},
        "x" * 10**5,
        b"x" * 10**5,
        10**1000,
        object(),
        torch.nn.Sequential(*[torch.nn.Linear(1, 1)] * 500),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_value_is_shown_over_pages(value):
    assert len(shown(value)) <= 90
    assert len(refusal_of(NONE, value)[1]) <= 130


def test_of_many_a_few_are_listed():
    assert listed(map(str, range(5))) == "0, 1, 2, 3, 4"
    assert listed(map(str, range(8))) == "0, 1, 2, 3, 4 and 3 more"


def test_a_module_that_is_not_there():
    names = [f"encoder.{i}.conv" for i in range(40)]
    assert _checks.no_module("encodr.3.conv", names).startswith(
        "no module is named 'encodr.3.conv'; did you mean encoder.3.conv, "
    )
    assert _checks.no_module("x*", names).endswith(
        "; there are encoder.0.conv, encoder.1.conv, encoder.2.conv, encoder.3.conv, encoder.4.conv and 35 more"
    )


def test_the_nearest_names_come_first():
    names = [f"encoder.{i}.conv" for i in range(40)] + ["decoder.up.conv", "bottleneck"]
    assert nearest("botleneck", names) == ["bottleneck"]
    assert nearest("decoder.up.cnov", names)[0] == "decoder.up.conv"
    assert len(nearest("encoder", names)) == 5
    assert nearest("zzz", names) == []


@pytest.mark.parametrize(("value", "expected"), [(3, (3, 3)), ((1, 2), (1, 2)), ([4, 5], (4, 5)), (np.int64(2), (2, 2))])
def test_one_for_all_axes_or_one_each(value, expected):
    assert per_axis("x", value, 2, integer(1)) == expected


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("a", TypeError, "x: expected one integer or 2 of them (one per spatial axis), got 'a'"),
        (1.5, TypeError, "x: expected one integer or 2 of them (one per spatial axis), got 1.5"),
        ((1, 2, 3), ValueError, "x: expected one integer or 2 of them (one per spatial axis), got (1, 2, 3)"),
        ((1, 0), ValueError, "x[1]: expected at least 1, got 0"),
        (0, ValueError, "x: expected at least 1, got 0"),
    ],
)
def test_neither_one_nor_one_per_axis(value, error, message):
    with pytest.raises(error) as caught:
        per_axis("x", value, 2, integer(1))
    assert str(caught.value) == message


# --- Callables -------------------------------------------------------------------------------------------------------


class Method:
    """As Captum's classes are built."""

    @log_usage(part_of_slo=True)
    @checked(n_draws=integer(1), block_size=NONE | integer(1))
    def attribute(
        self, inputs: int, *, n_draws: int = 5, block_size: int | None = None, perturbations_per_eval: int = 1
    ) -> int:
        """Doc."""
        return inputs + n_draws


def test_a_callable_says_what_it_takes_and_stays_what_it_is():
    assert Method().attribute(1, n_draws=2) == 3
    assert list(inspect.signature(Method.attribute).parameters) == [
        "self",
        "inputs",
        "n_draws",
        "block_size",
        "perturbations_per_eval",
    ]
    assert Method.attribute.__doc__ == "Doc."
    assert Method.attribute.__qualname__ == "Method.attribute"
    with pytest.raises(ValueError, match=r"^n_draws: expected at least 1, got 0$"):
        Method().attribute(1, n_draws=0)


@pytest.mark.parametrize(
    ("keyword", "message"),
    [
        ("sliding_window_shapes", "; here it is block_size (the edge of the blocks"),
        ("strides", "; here it is block_size (blocks lie side by side"),
        ("n_samples", "; here it is n_draws (donors per unit)"),
        ("n_steps", "; here it is n_draws "),
        ("internal_batch_size", "; here it is perturbations_per_eval ("),
        ("layer", "; the layer is an argument of the constructor of LayerAverageTreatmentEffect"),
        ("blocksize", "; did you mean block_size?"),
        ("zzz", "; it takes inputs, n_draws, block_size, perturbations_per_eval"),
    ],
)
def test_a_keyword_that_there_is_not_names_the_nearest(keyword, message):
    with pytest.raises(TypeError) as caught:
        Method().attribute(1, **{keyword: 3})
    assert str(caught.value).startswith(
        f"{keyword}: Method.attribute() got an unexpected keyword argument {keyword!r}{message}"
    )


def test_what_is_missing_is_said_by_python():
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'inputs'"):
        Method().attribute()


def test_a_declaration_that_fits_no_argument_is_found_at_once():
    with pytest.raises(TypeError, match=r"has no argument \['n_darws'\]"):
        checked(n_darws=integer())(lambda n_draws: None)


def test_callables_share_tables():
    shared = {"n_draws": integer(1), "seed": integer(0)}

    @checked(shared, n_draws=integer(5))
    def few(n_draws: int) -> int:
        return n_draws

    with pytest.raises(ValueError, match="n_draws: expected at least 5, got 3"):
        few(3)


@pytest.mark.parametrize("error", [TypeError, ValueError, ArgumentTypeError])
def test_refusals_of_what_is_handed_on_have_the_name_that_it_came_by(error):
    with pytest.raises(error, match=r"^output\[1\]: expected less$"), renamed(target="output"):
        raise error("target[1]: expected less")
    with pytest.raises(error, match=r"^targets: other$"), renamed(target="output"):
        raise error("targets: other")


def test_keywords_that_are_handed_on_are_checked_where_they_arrive():
    @checked(a=integer())
    def outer(a: int, **rest: int) -> int:
        return a + sum(rest.values())

    assert outer(1, anything=2) == 3


def test_it_lies_lowest():
    source = inspect.getsource(_checks)
    assert "import captum_causalseg" not in source
    assert "from captum_causalseg" not in source
