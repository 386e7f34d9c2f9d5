"""Pairs of units as a table: what the two do together that they do not do one by one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from captum_causalseg.attr.estimate import Running
from captum_causalseg.engine.pairs import PairOutcome
from captum_causalseg.statistics import adjust_p_values
from captum_causalseg.statistics.intervals import half_width, p_value
from captum_causalseg.statistics.moderation import moderated_errors
from captum_causalseg.statistics.moments import UnitMoments

__all__ = ["asked_pairs", "pair_table"]


def asked_pairs(now: Running, pairs: dict[int, list[tuple[int, int]]]) -> np.ndarray:
    """Pairs of ids as pairs of rows of the plan, ``(P, 2)``.

    Raises:
        ValueError: there is no such unit, or it is left as it is for the output's sake.
    """
    plan, rows = now.plan, []
    may = now.treated[np.arange(len(plan)), now.outputs.chosen[plan.example]]
    place = {(n, key): row for row, (n, key) in enumerate(zip(plan.example.tolist(), plan.key.tolist())) if may[row]}
    known = set(now.problem.units.ids.tolist())
    for n, of_example in pairs.items():
        for pair in of_example:
            for unit in pair:
                if unit not in known:
                    raise ValueError(f"pairs: there is no unit {unit}; the ids are {min(known)} to {max(known)}")
                if (n, unit) not in place:
                    raise ValueError(
                        f"pairs: unit {unit} of example {n} is excluded or absent, so that its effects are not known"
                    )
            rows.append([place[n, unit] for unit in pair])
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def pair_table(
    now: Running, asked: np.ndarray, reach: np.ndarray, *, label: Callable[[int], Any], found: PairOutcome | None, alpha: float
) -> pd.DataFrame:
    """One row per pair, as of :func:`captum_causalseg.interaction_effects`.

    Args:
        now: the run.
        asked: pairs of rows of the plan, ``(P, 2)``.
        reach: boolean ``(P,)``: which of them can reach the RoI.
        label: what a unit of this id is called.
        found: what is known of those that can; ``None`` where none can.
        alpha: the false discovery rate at which a pair is called redundant or synergistic.
    """
    plan = now.plan
    example = plan.example[asked[:, 0]]
    columns: dict[str, Any] = {"example": example}
    for place, name in enumerate(("first", "second")):
        columns[name] = [label(key) for key in plan.key[asked[:, place]].tolist()]
    names = (
        "effect_first",
        "effect_second",
        "joint",
        "joint_lower",
        "joint_upper",
        "interaction",
        "standard_error",
        "lower",
        "upper",
    )
    columns |= {name: np.zeros(len(asked)) for name in names}
    centers = {"first": _centers(now, asked[:, 0]), "second": _centers(now, asked[:, 1])}
    columns |= {f"{name}_{axis}": found[:, axis] for name, found in centers.items() for axis in range(found.shape[1])}
    columns |= {
        "p_value": np.ones(len(asked)),
        "p_adjusted": np.ones(len(asked)),
        "n_draws": np.zeros(len(asked), dtype=np.int64),
    }
    settled = np.zeros(len(asked))
    for n in np.unique(example[reach]).tolist() if found is not None else ():
        assert found is not None
        mine, here = reach & (example == n), example[reach] == n
        k = int(now.outputs.chosen[n])
        joint, _, joint_half, joint_p = _inferred(found.together, here, k)
        effect, error, half, p = _inferred(found.interaction, here, k)
        written = (
            *found.single[here][..., k].T,
            joint,
            joint - joint_half,
            joint + joint_half,
            effect,
            error,
            effect - half,
            effect + half,
        )
        for name, values in zip(names, written):
            columns[name][mine] = values
        columns["p_value"][mine], columns["p_adjusted"][mine] = p, adjust_p_values(p, "fdr_bh")
        columns["n_draws"][mine] = found.interaction.n_draws[here][:, k]
        settled[mine] = np.where(joint_p <= alpha, np.sign(joint), 0)
    agrees = settled * np.sign(columns["interaction"])
    kind = np.select([agrees > 0, agrees < 0], ["redundant", "synergistic"], "unclear")
    table = pd.DataFrame(columns | {"kind": np.where(columns["p_adjusted"] <= alpha, kind, "none")})
    order = np.lexsort((-np.abs(columns["interaction"]), columns["example"]))
    return table.iloc[order].reset_index(drop=True)


def _centers(now: Running, rows: np.ndarray) -> np.ndarray:
    """The middle of each row's unit in the first input that it has places in, in pixels, ``(P, d)``."""
    found = []
    for example, unit in zip(now.plan.example[rows].tolist(), now.plan.unit[rows].tolist()):
        pieces = now.problem.units.pieces(example, unit)
        # A component has no place in the image.
        box = pieces[0].box if pieces[0].slot < len(now.problem.site.inputs) else ()
        found.append([(side.start + side.stop - 1) / 2 for side in box])
    most = max((tensor.ndim - 2 for tensor in now.problem.site.inputs), default=0)
    return np.array([[*one, *[np.nan] * (most - len(one))] for one in found]).reshape(len(rows), most)


def _inferred(moments: UnitMoments, which: np.ndarray, k: int) -> tuple[np.ndarray, ...]:
    """Of some pairs of one example and one output: effects, standard errors, half-widths of 95 % intervals, and p-values."""
    one = [values[which][:, [k]] for values in (moments.sample_variance, moments.variance_factor, moments.variance_freedom)]
    error, freedom = (values[:, 0] for values in moderated_errors(*one))
    effect = moments.effect[which][:, k]
    return effect, error, half_width(error, freedom, 0.95), p_value(effect, error, freedom)
