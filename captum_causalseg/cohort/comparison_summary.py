"""What a comparison of methods on many cases shows: means, paired differences, win rates and ranks, with cases as the unit of analysis."""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

from captum_causalseg._checks import FRACTION, NONE, PATH, TEXT, Check, checked, instance, listed, number, sequence, shown
from captum_causalseg.cohort.between_cases import mean_of_cases, paired_difference
from captum_causalseg.cohort.comparison import CohortComparison
from captum_causalseg.statistics import adjust_p_values

__all__ = ["ComparisonSummary", "summarize_comparison"]

_NEEDED = ("case", "method", "metric", "value", "score_direction")
SEGMENTED = "segmented"
_UNIT = "_unit"


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonSummary:
    """What :func:`captum_causalseg.summarize_comparison` found; see there for how cases make groups.

    Each table begins with the columns ``by``. Intervals and p-values are between cases: Student's t over one number per case. Values are in the metrics' own units.

    Attributes:
        means: one row per group, metric and method: ``score_direction`` (``"higher"`` or ``"lower"`` is better), ``n_cases`` that have a
            value, ``n_missing`` that have none (the metric says nothing there), ``mean``, ``lower``, ``upper``.
        differences: one row per group, metric and method but ``against``: ``n_pairs`` (cases with both values), ``mean_method``, ``mean_against``,
            ``difference`` (**method minus against**), ``standard_error``, ``lower``, ``upper``, ``p_value`` (paired t-test), ``p_wilcoxon`` (signed ranks), ``p_adjusted`` and ``p_wilcoxon_adjusted`` (Holm's
            correction over the methods of the group and metric), ``p_adjusted_all`` (of the t-test, over all methods **and metrics** of the group), ``win_rate``: the share of the pairs in which the method is better, ties half.
            Empty without ``against``.
        wins: one row per group, metric and ordered pair of methods: ``method``, ``other``, ``n_pairs``, ``win_rate``.
        ranks: one row per group, metric and method: ``mean_rank`` (1 is best; ties share), ``n_cases`` (in which every ranked method has a value), ``n_methods``,
            ``p_friedman`` (that all methods are alike), ``critical_difference`` (Nemenyi's at ``alpha``: mean ranks that differ by less are not told apart). Methods without any value are not ranked: NaN.
        by: names of the columns that make groups.
        against: the method that the others are compared with; ``None`` without.
        level: coverage of the intervals.
        alpha: error rate of the critical difference.

    Example:
        >>> import pandas as pd
        >>> from captum_causalseg import summarize_comparison
        >>> rows = [(case, method, "irof", value, "higher") for method, values in {"ours": (3, 4, 6), "other": (1, 3, 2)}.items()
        ...         for case, value in enumerate(values)]
        >>> table = pd.DataFrame(rows, columns=["case", "method", "metric", "value", "score_direction"])
        >>> summary = summarize_comparison(table, against="ours")
        >>> summary
        ComparisonSummary(3 cases, 2 methods, 1 metric, against ours)
        >>> summary.differences[["method", "difference", "win_rate"]].round(3).values.tolist()
        [['other', -2.333, 0.0]]
        >>> summary.plot("irof").axes[0].get_title()
        'irof (higher is better)'
    """

    means: pd.DataFrame
    differences: pd.DataFrame
    wins: pd.DataFrame
    ranks: pd.DataFrame
    by: tuple[str, ...]
    against: str | None
    level: float
    alpha: float
    n_cases: int

    def __repr__(self) -> str:
        counts = {"method": self.means["method"].nunique(), "metric": self.means["metric"].nunique()}
        said = [_counted(self.n_cases, "case"), *(_counted(n, name) for name, n in counts.items())]
        said += [f"by {', '.join(self.by)}"] if self.by else []
        said += [] if self.against is None else [f"against {self.against}"]
        return f"ComparisonSummary({', '.join(said)})"

    @checked(metric=TEXT, title=TEXT)
    def plot(self, metric: str, *, title: str = "") -> Figure:
        """Means, differences and ranks by one metric: :func:`captum_causalseg.cohort.plot_cohort_comparison`."""
        from captum_causalseg.cohort.comparison_figures import plot_cohort_comparison  # which draws what this module makes

        return plot_cohort_comparison(self, metric, title=title)


def _is_table(value: Any) -> bool:
    return isinstance(value, pd.DataFrame)


@checked(
    comparison=PATH | instance(CohortComparison) | Check("a table of comparisons", _is_table, by_type=True),
    against=NONE | TEXT,
    by=NONE | TEXT | sequence(TEXT, expected="a sequence of them"),
    cluster=NONE | TEXT,
    metrics=NONE | sequence(TEXT, 1),
    right_from=number(0, 1),
    level=FRACTION,
    alpha=FRACTION,
)
def summarize_comparison(
    comparison: str | os.PathLike[str] | CohortComparison | pd.DataFrame,
    against: str | None = None,
    *,
    by: str | Sequence[str] | None = None,
    cluster: str | None = None,
    metrics: Sequence[str] | None = None,
    right_from: float = 0.95,
    level: float = 0.95,
    alpha: float = 0.05,
) -> ComparisonSummary:
    """Which methods are more faithful, over the cases of a comparison.

    Args:
        comparison: what :func:`captum_causalseg.compare_cohort` returned, its folder, or its table (or one like it: ``case``, ``method``, ``metric``,
            ``value``, ``score_direction``).
        against: the method that each other is compared with.
        by: columns that make groups of cases: ``"kind"`` (of the region of interest: ``"boundary"``, ``"false positive"``, ...), ``"segmented"`` (``"right"`` where ``roi_dice`` is at least
            ``right_from``, else ``"wrong"``), or columns that were kept of the cases. Cases that lack it are left out.
        cluster: a column that says which cases belong together and are not independent, such as several regions of one picture: their values are averaged first,
            and each such cluster counts as one case. Pairs are made before, of the cases in which both methods have a value.
        metrics: only these.
        right_from: see ``by``.
        level: coverage of the intervals.
        alpha: error rate of the critical difference between ranks.

    Returns:
        A :class:`~captum_causalseg.cohort.ComparisonSummary`.

    Raises:
        TypeError, ValueError: an argument is not as described; the table lacks a column, ``against`` or a metric; a case has two values.

    Notes:
        **Ranks.** Methods are ranked in each case in which all of them have a value; Friedman's test asks whether they are alike, and mean ranks that
        differ by at least ``q sqrt(k (k + 1) / (6 n))`` differ (Nemenyi; Demsar 2006), ``q`` from the studentized range. Mean ranks depend on which
        methods take part; the paired differences do not (Benavoli, Corani and Mangili 2016).

        **What intervals cover**: other cases of the same kind, with these networks and donors. In ``p_adjusted``, each metric is a family of its own: who looks at ten metrics finds
        one that differs by chance more often, and takes ``p_adjusted_all``.

    Example:
        >>> import tempfile
        >>> from captum_causalseg import AverageTreatmentEffect, compare_cohort, summarize_comparison
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> planted = planted_case((32, 32), roi_size=8, n_examples=3)
        >>> cases = [{"id": k, "image": image} for k, image in enumerate(planted.images)]
        >>> found = compare_cohort(
        ...     {"effects": (AverageTreatmentEffect, {"n_draws": 8})}, cases, lambda case: planted.target(),
        ...     out=tempfile.mkdtemp(), metrics=["irof"], baselines=planted.donors, block_size=8, show_progress=False,
        ... )
        >>> summary = summarize_comparison(found, against="effects")
        >>> summary.differences[["method", "n_pairs", "win_rate"]].values.tolist()
        [['random (control)', 3, 0.0]]
    """
    table = comparison if isinstance(comparison, pd.DataFrame) else _read(comparison)
    missing = [name for name in _NEEDED if name not in table]
    if missing:
        raise ValueError(f"comparison: expected the columns {', '.join(_NEEDED)}, got a table without {', '.join(missing)}")
    groups = () if by is None else (by,) if isinstance(by, str) else tuple(by)
    table = _prepared(table, groups, cluster=cluster, metrics=metrics, right_from=right_from)
    methods = list(dict.fromkeys(table["method"]))
    if against is not None and against not in methods:
        raise ValueError(f"against: expected one of the methods {listed(methods)}, got {shown(against)}")
    found: dict[str, list[dict[str, Any]]] = {"means": [], "differences": [], "wins": [], "ranks": []}
    for keys, metric, direction, values, pairs_of in _families(table, groups):
        whose = dict(zip(groups, keys)) | {"metric": metric}
        found["means"] += [whose | row for row in _means(values, direction, level)]
        if against is not None:
            found["differences"] += [
                whose | row for row in _differences(pairs_of, values, direction, against=against, level=level)
            ]
        found["wins"] += [whose | row for row in _wins(values, direction)]
        found["ranks"] += [whose | row for row in _ranks(values, direction, alpha)]
    _correct_over_metrics(found["differences"], groups)
    columns = {name: [*groups, "metric", *_COLUMNS[name]] for name in found}
    tables = {name: pd.DataFrame(rows, columns=columns[name]) for name, rows in found.items()}
    n_cases = int(table[_UNIT].nunique())
    return ComparisonSummary(**tables, by=groups, against=against, level=level, alpha=alpha, n_cases=n_cases)


_COLUMNS = {
    "means": ["method", "score_direction", "n_cases", "n_missing", "mean", "lower", "upper"],
    "differences": [
        "method",
        "against",
        "score_direction",
        "n_pairs",
        "mean_method",
        "mean_against",
        "difference",
        "standard_error",
        "lower",
        "upper",
        "p_value",
        "p_adjusted",
        "p_wilcoxon",
        "p_wilcoxon_adjusted",
        "p_adjusted_all",
        "win_rate",
    ],
    "wins": ["method", "other", "n_pairs", "win_rate"],
    "ranks": ["method", "mean_rank", "n_cases", "n_methods", "p_friedman", "critical_difference"],
}


def _read(comparison: Any) -> pd.DataFrame:
    found = comparison if isinstance(comparison, CohortComparison) else CohortComparison(comparison)
    return found.table()


def _prepared(
    table: pd.DataFrame, groups: tuple[str, ...], *, cluster: str | None, metrics: Sequence[str] | None, right_from: float
) -> pd.DataFrame:
    """The rows that take part, one per group, case (or cluster), method and metric."""
    if SEGMENTED in groups and SEGMENTED not in table and "roi_dice" in table:
        right = np.where(table["roi_dice"] >= right_from, "right", "wrong")
        table = table.assign(**{SEGMENTED: pd.Series(right, table.index).where(table["roi_dice"].notna())})
    for argument, names in (("by", groups), ("cluster", () if cluster is None else (cluster,))):
        unknown = [name for name in names if name not in table]
        if unknown:
            raise ValueError(f"{argument}: there is no column {unknown[0]!r}, only {listed(table.columns, most=20)}")
    if metrics is not None:
        known = set(table["metric"])
        unknown = [name for name in metrics if name not in known]
        if unknown:
            raise ValueError(f"metrics: expected some of {listed(sorted(known), most=20)}, got {shown(unknown)}")
        table = table[table["metric"].isin(list(metrics))]
    if table.empty:
        raise ValueError("comparison: it has no row")
    twice = table.duplicated([*groups, "case", "method", "metric"])
    if twice.any():
        row = table[twice].iloc[0]
        raise ValueError(f"comparison: case {row['case']!r} has two values of {row['metric']!r} for {row['method']!r}")
    table = table.dropna(subset=[*groups, *([] if cluster is None else [cluster])])
    return table.assign(**{_UNIT: table["case" if cluster is None else cluster]})


def _families(
    table: pd.DataFrame, groups: tuple[str, ...]
) -> Iterator[tuple[tuple[Any, ...], str, str, pd.DataFrame, Callable[[str, str], pd.DataFrame]]]:
    """Per group and metric: the names of the group, the metric, its direction, values, a row per cluster and a column per method, and pairs.

    Pairs are made of the cases in which both methods have a value, before clusters are averaged: else the means of a cluster would be of different cases.
    """
    methods = list(dict.fromkeys(table["method"]))
    parts = table.groupby(list(groups), sort=True) if groups else [((), table)]
    for keys, part in parts:
        for metric, rows in part.groupby("metric", sort=False):
            cases = rows.pivot(index="case", columns="method", values="value").astype(float).reindex(columns=methods)
            units = rows.drop_duplicates("case").set_index("case")[_UNIT].reindex(cases.index)

            def pairs_of(one: str, other: str, cases: pd.DataFrame = cases, units: Any = units) -> pd.DataFrame:
                both = cases[[one, other]].dropna()
                return both.groupby(units[both.index], sort=False).mean()

            values = cases.groupby(units, sort=False).mean()
            yield keys, str(metric), str(rows["score_direction"].iloc[0]), values, pairs_of


def _means(values: pd.DataFrame, direction: str, level: float) -> list[dict[str, Any]]:
    found = mean_of_cases(values, level)
    return [
        {
            "method": method,
            "score_direction": direction,
            "n_cases": int(row["n"]),
            "n_missing": len(values) - int(row["n"]),
            **{name: float(row[name]) for name in ("mean", "lower", "upper")},
        }
        for method, row in found.iterrows()
    ]


def _differences(
    pairs_of: Callable[[str, str], pd.DataFrame], values: pd.DataFrame, direction: str, *, against: str, level: float
) -> list[dict[str, Any]]:
    rows = []
    for method in values:
        if method == against:
            continue
        pairs = pairs_of(against, method)
        found = paired_difference(pairs[against].to_numpy(), pairs[method].to_numpy(), level)
        named = {"mean_against": found.pop("mean_first"), "mean_method": found.pop("mean_second")}
        won = _win_rate(pairs[method], pairs[against], direction)[1]
        rows.append({"method": method, "against": against, "score_direction": direction, **found, **named, "win_rate": won})
    for name in ("p_value", "p_wilcoxon"):
        adjusted = adjust_p_values(np.array([row[name] for row in rows], dtype=float), "holm")
        for row, p_value in zip(rows, adjusted):
            row["p_adjusted" if name == "p_value" else "p_wilcoxon_adjusted"] = float(p_value)
    return rows


def _correct_over_metrics(rows: list[dict[str, Any]], groups: tuple[str, ...]) -> None:
    """Add Holm's correction over all rows of each group."""
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(tuple(row[name] for name in groups), []).append(row)
    for family in families.values():
        adjusted = adjust_p_values(np.array([row["p_value"] for row in family], dtype=float), "holm")
        for row, p_value in zip(family, adjusted):
            row["p_adjusted_all"] = float(p_value)


def _wins(values: pd.DataFrame, direction: str) -> list[dict[str, Any]]:
    rows = []
    for method, other in itertools.permutations(values, 2):
        n, won = _win_rate(values[method], values[other], direction)
        rows.append({"method": method, "other": other, "n_pairs": n, "win_rate": won})
    return rows


def _win_rate(ours: "pd.Series[float]", theirs: "pd.Series[float]", direction: str) -> tuple[int, float]:
    """Of how many pairs, and the share in which ours is better."""
    margin = (ours - theirs).dropna() * (1 if direction == "higher" else -1)
    return len(margin), float(((margin > 0) + 0.5 * (margin == 0)).mean()) if len(margin) else math.nan


def _ranks(values: pd.DataFrame, direction: str, alpha: float) -> list[dict[str, Any]]:
    ranked = values.dropna(axis=1, how="all").dropna()
    n, k = ranked.shape
    place = ranked.rank(axis=1, ascending=direction == "lower").mean() if n else pd.Series(dtype=float)
    p_value = math.nan
    # With two methods, the paired tests say it.
    if n > 1 and k > 2 and (ranked.nunique(axis=1) > 1).any():
        p_value = float(scipy_stats.friedmanchisquare(*(ranked[name] for name in ranked)).pvalue)
    critical = math.nan
    if n > 1 and k > 1:
        critical = (
            float(scipy_stats.studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2) * math.sqrt(k * (k + 1) / (6 * n))
        )
    common = {"n_cases": n, "n_methods": k, "p_friedman": p_value, "critical_difference": critical}
    return [{"method": method, "mean_rank": float(place.get(method, math.nan))} | common for method in values]


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
