"""What the faces of joint effects share: the arguments that say in which context, and how much is drawn."""

import inspect
from dataclasses import replace
from typing import Any

from captum_causalseg._checks import NONE, number
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.effort import EFFORT, OPEN_DRAWS, Effort
from captum_causalseg.engine.contexts import CONTEXT, Context

__all__ = ["JOINT", "JOINT_DRAWS", "effort_in"]

JOINT = EFFORT | {
    "context": CONTEXT,
    "n_draws": OPEN_DRAWS,
    "n_screening_draws": NONE | EFFORT["n_screening_draws"],
    "screening_threshold": NONE | number(0),
    "sampling": NONE | EFFORT["sampling"],
    "allocation": NONE | EFFORT["allocation"],
}
"""What the arguments of ``attribute`` that say how trials are drawn have to be."""

JOINT_DRAWS = 50
"""Draws per unit in a context, where nothing is said: contexts differ, too, and donors are not ranked."""

# Of the plain effect, as its own face has them.
_PLAIN = {name: one.default for name, one in inspect.signature(AverageTreatmentEffect.attribute).parameters.items()}
# What says in a context what is done there anyway.
_AS_IN_CONTEXT: dict[str, Any] = {"n_screening_draws": 0, "sampling": "uniform", "allocation": "equal"}


def effort_in(context: Context, effort: Effort, **alone: Any) -> Effort:
    """The effort, once it is known what makes sense in this context.

    Args:
        context: which.
        effort: with all that makes sense in any.
        alone: what makes sense for the plain effect only: values, ``None`` where the user gave none.

    Raises:
        ValueError: one of these was given in another context, or there are too few draws to see how they spread.
    """
    if context.alone:
        return replace(effort, **{name: _PLAIN[name] if value is None else value for name, value in alone.items()})
    for name, value in alone.items():
        if value is not None and (name not in _AS_IN_CONTEXT or value != _AS_IN_CONTEXT[name]):
            raise ValueError(
                f"{name}: only for the plain effect (context=0); in a context, units are replaced together, donors drawn uniformly and none is screened "
                f"out, got {value!r}"
            )
    per_trial, n = context.per_trial, effort.n_draws
    if n < 2 * per_trial:
        what = "two antithetic pairs" if per_trial == 2 else "two draws of the context"
        raise ValueError(f"n_draws: expected at least {2 * per_trial}, {what}, got {n}")
    if n % per_trial:
        raise ValueError(f"n_draws: expected an even number, because draws come in antithetic pairs, got {n}")
    return replace(effort, n_screening_draws=0, screening_threshold=0.0, sampling="uniform")
