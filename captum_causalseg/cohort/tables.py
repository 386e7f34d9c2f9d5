"""From cases to the tables of a summary."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from captum_causalseg.cohort.between_cases import mean_of_cases, paired_difference, random_effects
from captum_causalseg.cohort.case_values import MEASURES, PARTS, READ, by_bin, case_values, components_of, typical_width
from captum_causalseg.cohort.groups import Member, Pairs
from captum_causalseg.statistics import adjust_p_values, is_hypothesis

__all__ = [
    "labeled",
    "read",
    "table_of_comparison",
    "table_of_components",
    "table_of_groups",
    "table_of_profile",
    "width_of",
]

_PROFILE = ("mean_absolute_effect", "mean_effect", "energy", "share", "cumulative_share")
_PAIRED = ("observed_score", "share_significant", "mass", "supporting_mass", "harming_mass", "energy", "radius_50")


def width_of(members: Sequence[Member]) -> float:
    """The edge of the units, of the case in the middle."""
    found = []
    for member in members:
        there = tuple(name for name in member.source.columns(member.case) if name.startswith(("start_", "stop_")))
        found.append(typical_width(member.source.units(member.case, ("status", "distance", *there))))
    known = np.array([width for width in found if width > 0])
    return float(np.quantile(known, 0.5, method="lower")) if len(known) else math.nan


def read(
    members: Sequence[Member], bin_width: float, alpha: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, list[str]]:
    """Per case: its numbers, its bins, its modules; and the units of distances. One case's units are in memory at a time."""
    rows, bins, parts, lengths = [], [], [], set()
    for row, member in enumerate(members):
        units = member.source.units(member.case, READ)
        keys = {"row": row, "group": member.group_number}
        rows.append(keys | {"case": member.case} | case_values(units, alpha))
        if "distance_unit" in units:
            lengths |= {*units["distance_unit"].dropna().unique()}
        if "module" in units:
            parts.append(components_of(units).assign(**keys))
        elif bin_width > 0:
            bins.append(by_bin(units, bin_width).assign(**keys))
    values = pd.DataFrame(rows).astype({"n_units": int})
    return values, _together(bins, ("bin", "row", "group")), _together(parts, ("module", "row", "group")), sorted(lengths)


def _together(tables: list[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    filled = [table for table in tables if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(columns))


def labeled(table: pd.DataFrame, groups: Sequence[tuple[Any, ...]], by: tuple[str, ...]) -> pd.DataFrame:
    """With what the groups have in common in front."""
    table = table.reset_index(drop=True)
    for place, name in enumerate(by):
        table.insert(place, name, pd.Series([group[place] for group in groups]).infer_objects())
    return table


def table_of_groups(values: pd.DataFrame, counts: pd.DataFrame, level: float) -> tuple[pd.DataFrame, list[Any]]:
    """A row per group, and the groups."""
    rows = []
    for group, count in enumerate(counts.to_dict("records")):
        rows.append(count | _means(values.loc[values["group"] == group, list(MEASURES)], level))
    return pd.DataFrame(rows), list(counts.index)


def _means(values: pd.DataFrame, level: float) -> dict[str, float]:
    """``name``, ``name_lower`` and ``name_upper`` of each column."""
    found = mean_of_cases(values.astype(float), level)
    ends = {"": "mean", "_lower": "lower", "_upper": "upper"}
    return {f"{name}{end}": float(found.at[name, column]) for name in values for end, column in ends.items()}


def table_of_profile(
    values: pd.DataFrame, bins: pd.DataFrame, groups: Sequence[Any], width: float, level: float
) -> tuple[pd.DataFrame, list[Any]]:
    """A row per group and bin of distance, and their groups."""
    ends = [f"{name}{end}" for name in _PROFILE for end in ("", "_lower", "_upper")]
    columns = ["bin", "lower", "upper", "n_cases", "n_units", *ends, "n_energy"]
    rows, keys = [], []
    for number, key in enumerate(groups):
        quantities = _by_case_and_bin(bins[bins["group"] == number])
        if not quantities:
            continue
        found = {name: mean_of_cases(quantities[name], level) for name in _PROFILE}
        for place in quantities["n_units"].columns:
            row: dict[str, Any] = {"bin": int(place), "lower": max(0, place - 1) * width, "upper": place * width}
            row |= {"n_cases": int(found["mean_effect"].at[place, "n"])}
            row |= {"n_units": int(quantities["n_units"][place].sum()), "n_energy": int(found["energy"].at[place, "n"])}
            for name in _PROFILE:
                mean, lower, upper = (float(found[name].at[place, column]) for column in ("mean", "lower", "upper"))
                row |= {name: mean, f"{name}_lower": lower, f"{name}_upper": upper}
            rows.append(row)
            keys.append(key)
    return pd.DataFrame(rows, columns=columns), keys


def _by_case_and_bin(bins: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Of one group, per quantity: a row per case, a column per bin."""
    if bins.empty:
        return {}
    names = ("n_units", "n_outside", "mass", "sum", "energy")
    wide = {name: bins.pivot(index="row", columns="bin", values=name) for name in names}
    # Bins out of everyone's reach are none.
    reached = wide["n_units"].columns[wide["n_units"].sum() > 0]
    wide = {name: table[reached] for name, table in wide.items()}
    mass, known = wide["mass"].fillna(0.0), wide["n_units"].fillna(0) > 0
    total = mass.sum(axis=1)
    share = mass.div(total.where(total > 0), axis=0)
    return {
        "n_units": wide["n_units"].fillna(0),
        "beyond_reach": ~known & (wide["n_outside"] > 0),
        "mean_absolute_effect": wide["mass"] / wide["n_units"].where(known),
        "mean_effect": wide["sum"] / wide["n_units"].where(known),
        "energy": wide["energy"].where(known),
        "share": share,
        "cumulative_share": share.cumsum(axis=1),
    }


def table_of_components(parts: pd.DataFrame, groups: Sequence[Any], level: float) -> tuple[pd.DataFrame, list[Any]]:
    """A row per group and module, in the order of the forward pass, and their groups."""
    if parts.empty:
        return pd.DataFrame(columns=["module", "type", "part", "order"]), []
    named = [name for name in ("module", *PARTS) if name in parts]
    about = ["type", "part", "order"]
    tables, keys = [], []
    for number, key in enumerate(groups):
        rows = []
        for name, cases in parts[parts["group"] == number].groupby(named, sort=False):
            pooled = random_effects(cases["effect"].to_numpy(), cases["standard_error"].to_numpy(), level)
            reaches = {"reaches": bool(is_hypothesis(cases["status"]).any())}
            rows.append(dict(zip(named, name)) | {column: cases[column].iloc[0] for column in about} | pooled | reaches)
        if rows:
            table = pd.DataFrame(rows).sort_values(["order", *named[1:]], kind="stable")
            q_value = adjust_p_values(table["p_value"], hypotheses=table.pop("reaches"))
            table.insert(table.columns.get_loc("p_value") + 1, "q_value", q_value)
            tables.append(table)
            keys += [key] * len(table)
    return pd.concat(tables, ignore_index=True), keys


def table_of_comparison(
    values: pd.DataFrame,
    bins: pd.DataFrame,
    parts: pd.DataFrame,
    members: Sequence[Member],
    pairs: Sequence[Pairs],
    level: float,
) -> pd.DataFrame:
    """A row per measure and two groups."""
    named = [name for name in ("module", *PARTS) if name in parts]
    columns = ["first", "second", "family", "measure", *(["bin"] if parts.empty else named), "n_pairs"]
    rows = []
    for pair in pairs:
        a, b = (np.array(side) for side in zip(*pair.rows))
        for measure, where, quantity, is_0 in _quantities(values, bins, parts=parts, named=named, n=len(members)):
            first_known, second_known = ~np.isnan(quantity[a]), ~np.isnan(quantity[b])
            found = paired_difference(
                np.where(is_0[a] & second_known, 0.0, quantity[a]), np.where(is_0[b] & first_known, 0.0, quantity[b]), level
            )
            if not found["n_pairs"]:
                continue
            first, second = pair.n_unpaired
            about = {"first": pair.first, "second": pair.second, "measure": measure, **where}
            rows.append(about | {"n_unpaired_first": first, "n_unpaired_second": second} | found)
    outcome = list(paired_difference(np.empty(0), np.empty(0)))[1:]
    columns += ["n_unpaired_first", "n_unpaired_second", *outcome, "p_adjusted", "correction"]
    if not rows:
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(rows)
    table["correction"] = table["family"].map({"case": "holm", "profile": "holm", "components": "fdr_bh"})
    table["p_adjusted"] = math.nan
    # Over all pairs of groups together: three models are compared three times.
    for _, family in table.groupby("family"):
        table.loc[family.index, "p_adjusted"] = adjust_p_values(family["p_value"], family["correction"].iloc[0])
    if "bin" in table:
        table["bin"] = table["bin"].astype("Int64")
    for name in PARTS:
        if name in table:
            table[name] = table[name].astype("Int64")
    return table.reindex(columns=columns)


def _quantities(
    values: pd.DataFrame, bins: pd.DataFrame, parts: pd.DataFrame, named: list[str], n: int
) -> Iterator[tuple[str, dict[str, Any], np.ndarray, np.ndarray]]:
    """What is compared: a measure, where, its value in each case, and in which cases it is 0 beside a partner that has one.

    Of two models on one image, the effects on what only one of them can reach are to be compared: the other's are exactly 0.
    """
    every, nowhere = range(n), np.zeros(n, dtype=bool)
    for measure in _PAIRED:
        yield measure, {"family": "case"}, values[measure].to_numpy(dtype=float), nowhere
    if len(bins):
        quantities = _by_case_and_bin(bins)
        table, beyond = (
            quantities["mean_absolute_effect"].reindex(every),
            quantities["beyond_reach"].reindex(every, fill_value=False),
        )
        for place in table:
            about = {"family": "profile", "bin": place}
            yield "mean_absolute_effect", about, table[place].to_numpy(dtype=float), beyond[place].to_numpy(dtype=bool)
    if len(parts):
        for name, cases in parts.sort_values(["order", *named[1:]], kind="stable").groupby(named, sort=False):
            effect = cases.set_index("row")["effect"].reindex(every).to_numpy(dtype=float)
            yield "effect", {"family": "components", **dict(zip(named, name))}, effect, nowhere
