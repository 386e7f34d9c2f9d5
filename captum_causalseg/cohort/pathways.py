"""What cases say of the ways through a network: effects of a region, and shares of effects, layer by layer, over cases."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from captum_causalseg.cohort.between_cases import random_effects
from captum_causalseg.cohort.groups import Member
from captum_causalseg.statistics import adjust_p_values, is_hypothesis
from captum_causalseg.statistics.mediation import Split

__all__ = ["pathways_of", "read_pathways", "table_of_distances", "table_of_pathways"]

_QUANTITIES = ("total", "indirect", "direct", "interaction")
_EFFECTS = tuple(f"{name}{end}" for name in _QUANTITIES for end in ("", "_standard_error"))
_READ = ("layer", "order", "unit", "status", "total_p_value", "covariance", "degrees_of_freedom", "distance", *_EFFECTS)
_ALL = -1
"""In place of a bin: all distances together."""


def read_pathways(members: Sequence[Member], bin_width: float, *, alpha: float, level: float) -> pd.DataFrame:
    """Of every case that was split at layers, what :func:`pathways_of` says, with ``row`` and ``group``; one case in memory at a time."""
    tables = [
        pathways_of(member.source.rows(member.case, _READ, "mediation.parquet"), bin_width, alpha=alpha, level=level).assign(
            row=row, group=member.group_number
        )
        for row, member in enumerate(members)
        if member.source.cohort.has(member.case, "mediation.parquet")
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["layer", "order", "bin", "quantity"])


def pathways_of(rows: pd.DataFrame, bin_width: float, *, alpha: float, level: float) -> pd.DataFrame:
    """Of one case: per layer and bin of distance (-1: of all units), the share that travels through it; of a single unit also its effects.

    Args:
        rows: one per layer and unit, of ``mediation.parquet``.
        bin_width: of the distances; NaN or 0 for none.
        alpha: the false discovery rate at which a unit's total effect is told from 0, and its sign known, within the case.
        level: coverage of the intervals from which errors of shares are taken.

    Returns:
        Columns ``layer``, ``order``, ``bin``, ``quantity`` (``"share"``; ``"total"``, ``"indirect"``, ``"direct"`` and ``"interaction"``), ``n_units``,
        ``n_clear``, ``mean`` and ``standard_error``.
    """
    found: list[dict[str, Any]] = []
    for (order, layer), own in rows.groupby(["order", "layer"], sort=True):
        own = own[is_hypothesis(own["status"])]
        keys = {"layer": layer, "order": order}
        if len(own) == 1:
            row = own.iloc[0]
            about = {"bin": _ALL, "n_units": 1, "n_clear": 1}
            found += [
                keys | about | {"quantity": name, "mean": row[name], "standard_error": row[f"{name}_standard_error"]}
                for name in _QUANTITIES
            ]
        # Of a region that was chosen, its own interval tells; of many units those that are told from 0 have a sign.
        clear = np.ones(len(own), dtype=bool)
        if len(own) > 1:
            clear = (adjust_p_values(own["total_p_value"]) <= alpha) & (own["total"].to_numpy() != 0)
        for place, inside in _bins(own["distance"].to_numpy(dtype=float), bin_width):
            counts = {"n_units": int(inside.sum()), "n_clear": int((inside & clear).sum())}
            found.append(keys | {"bin": place, "quantity": "share"} | counts | _share(own[inside & clear], level))
    columns = ["layer", "order", "bin", "n_units", "n_clear", "quantity", "mean", "standard_error"]
    return pd.DataFrame(found, columns=columns)


def _bins(distance: np.ndarray, bin_width: float) -> Iterator[tuple[int, np.ndarray]]:
    """All units, and those of each bin."""
    yield _ALL, np.ones(len(distance), dtype=bool)
    if len(distance) > 1 and bin_width > 0:
        # 3 * 0.1 belongs to the third bin of width 0.1.
        bins = np.ceil(distance / bin_width - 1e-9)
        for place in np.unique(bins[~np.isnan(bins)]):
            yield int(place), bins == place


def _share(units: pd.DataFrame, level: float) -> dict[str, float]:
    if units.empty:
        return {"mean": math.nan, "standard_error": math.nan}
    split = Split(
        total=units["total"].to_numpy(),
        indirect=units["indirect"].to_numpy(),
        total_variance=units["total_standard_error"].to_numpy() ** 2,
        indirect_variance=units["indirect_standard_error"].to_numpy() ** 2,
        covariance=units["covariance"].to_numpy(),
        freedom=units["degrees_of_freedom"].to_numpy(),
    ).together()
    return {"mean": float(split.share(level)[0]), "standard_error": float(split.share_error(level))}


def table_of_pathways(cases: pd.DataFrame, groups: Sequence[Any], level: float) -> tuple[pd.DataFrame, list[Any]]:
    """A row per group, layer and quantity, and their groups."""
    return _pooled(cases[cases["bin"] == _ALL], groups, ["order", "layer", "quantity"], level=level)


def table_of_distances(
    cases: pd.DataFrame, groups: Sequence[Any], width: float, level: float
) -> tuple[pd.DataFrame, list[Any]]:
    """A row per group, layer and bin of distance, and their groups."""
    table, keys = _pooled(cases[cases["bin"] != _ALL], groups, ["order", "layer", "bin"], level=level)
    ends = {"lower_distance": np.maximum(table["bin"] - 1, 0) * width, "upper_distance": table["bin"] * width}
    for place, (name, values) in enumerate(ends.items(), table.columns.get_loc("bin") + 1):
        table.insert(place, name, values)
    return table, keys


def _pooled(cases: pd.DataFrame, groups: Sequence[Any], named: list[str], *, level: float) -> tuple[pd.DataFrame, list[Any]]:
    rows, keys = [], []
    # Effects before shares, as a case's table has them.
    places = {name: place for place, name in enumerate((*_QUANTITIES, "share"))}
    for number, key in enumerate(groups):
        for name, own in cases[cases["group"] == number].groupby(named, sort=False) if len(cases) else ():
            pooled = random_effects(own["mean"].to_numpy(dtype=float), own["standard_error"].to_numpy(dtype=float), level)
            counts = {"n_cases": pooled.pop("n_cases"), "n_unknown": int(own["mean"].isna().sum())}
            units = {what: int(own[what].sum()) for what in ("n_units", "n_clear")}
            rows.append(dict(zip(named, name)) | counts | units | {"mean": pooled.pop("effect")} | pooled)
            keys.append(key)
    if not rows:
        return pd.DataFrame(columns=[*named[1:], "n_cases", "mean"]), []
    table = pd.DataFrame(rows)
    table["group"] = [list(groups).index(key) for key in keys]
    last = table[named[2]].map(places) if named[2] == "quantity" else table[named[2]]
    ordered = table.assign(last=last).sort_values(["group", "order", "last"], kind="stable").index
    return table.loc[ordered].drop(columns=["order", "group"]).reset_index(drop=True), [keys[place] for place in ordered]
