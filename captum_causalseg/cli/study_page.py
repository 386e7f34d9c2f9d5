"""The report of a study: what many cases have in common, on one page."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup, escape

from captum_causalseg.cli.computed import how_computed
from captum_causalseg.cli.digests import CaseFile, digest_rows, files_of
from captum_causalseg.cli.files import is_file_of, name_of, name_of_case, place_name
from captum_causalseg.cli.limits import MARK, beyond, beyond_in_words
from captum_causalseg.cli.page import Drawing, rendered
from captum_causalseg.cli.results import score, score_in_words, sign_words
from captum_causalseg.cohort import Cohort, CohortSummary
from captum_causalseg.metrics import METRICS
from captum_causalseg.writing.names import encodable, printable

__all__ = ["Asked", "mean_note", "mean_rows", "study_page"]


@dataclass(frozen=True)
class Asked:
    """What a study was asked.

    Args:
        options: of ``causalseg cohort``.
        given: the study's own options, by name, the words that follow them.
        of_all: the same as ``causalseg explain`` would be told, with what is usual where nothing is given.
        rois: what each row says of its region of interest, or the study of all.
        metric: the score.
    """

    options: argparse.Namespace
    given: Mapping[str, Sequence[str]]
    of_all: argparse.Namespace
    rois: Sequence[str]
    metric: str


def study_page(asked: Asked, cohort: Cohort, summary: CohortSummary | None, figure: Drawing | None) -> str:
    """Of ``cohort``.

    Args:
        asked: what the study was asked.
        cohort: its folder, in which the page is to lie: it links to the folders of the cases.
        summary: of the finished cases; None where there is none.
        figure: their effects by distance; None where there is none.
    """
    table, means = cohort.cases(), [] if summary is None else mean_rows(summary, asked.metric)
    failed, private = table[table["state"] == "failed"], asked.options.private
    names = [f"case {n}" for n in range(1, len(table) + 1)] if private else [printable(str(one)) for one in table["id"]]
    facts = {
        "Cases": f"{len(table)}, of which {len(failed) or 'none'} failed",
        "Forward passes": f"{int(table['forwards'].sum())}",
    }
    computed = how_computed(asked.options, float(table["seconds"].sum()), facts, settings=_settings(asked))
    return rendered(
        "cohort.html",
        title=f"Why were they segmented this way? {len(table)} case{'s' * (len(table) != 1)}",
        about=_about(asked),
        question=_question(asked, len(table)),
        answer=_answer(asked, summary, n=len(table), n_failed=len(failed)),
        level="" if summary is None else f"{100 * summary.level:g}",
        means=means,
        means_note="" if summary is None else mean_note(means, summary, asked.metric),
        picture=figure,
        noun=score_in_words(asked.metric),
        words=sign_words(asked.metric),
        header=_header(asked, summary, cohort),
        text=range(1, 2 + (0 if private else len(cohort.study.get("columns", [])))),
        rows=[] if summary is None else _rows(asked, cohort, summary, names=names),
        failed=[(names[place], _error(str(row["error"]), private)) for place, row in failed.iterrows()],
        command=computed.pop("Command"),
        files=digest_rows(_files(asked)),
        computed=computed,
    )


def mean_rows(summary: CohortSummary, metric: str) -> list[tuple[str, str, str]]:
    """Of each number of the cases: what it is, its mean over them, and the interval of that."""
    row = summary.cases.iloc[0]
    above, below = sign_words(metric)
    unit = "" if not summary.distance_unit else f" ({summary.distance_unit.replace('pixel', 'pixels')})"
    said = {
        "observed_score": f"{score_in_words(metric)} of the region of interest",
        "share_significant": f"share of the parts whose effect differs from 0 (false discovery rate {100 * summary.alpha:g} %)",
        "mass": "sum of the effects' sizes",
        "supporting_mass": f"that of effects above 0 ({above})",
        "harming_mass": f"that of effects below 0 ({below})",
        "energy": "sum of effect² - error², which noise does not raise",
        "radius_50": f"distance within which half of the effects' sizes lies{unit}",
        "n_units": "parts that can reach the region of interest",
    }
    # Signs of energies are free, shares are parts of 1; no other number is below 0.
    free = (-math.inf, math.inf)
    possible = {"observed_score": METRICS[metric].limits, "share_significant": (0.0, 1.0), "energy": free}
    rows = []
    for name, in_words in said.items():
        if f"{name}_lower" not in row.index or pd.isna(row[name]):
            continue
        lower, upper = row[f"{name}_lower"], row[f"{name}_upper"]
        mark = MARK if beyond((lower, upper), possible.get(name, (0.0, math.inf))) else ""
        rows.append((in_words, f"{row[name]:.4g}", "" if pd.isna(lower) else f"[{lower:.4g}, {upper:.4g}]{mark}"))
    return rows


def mean_note(rows: Sequence[tuple[str, str, str]], summary: CohortSummary, metric: str) -> str:
    """What is to be said of these rows; empty if nothing is."""
    marked = any(interval.endswith(MARK) for _, _, interval in rows)
    return beyond_in_words(metric, score_in_words(metric), int(summary.cases["n_finished"].iloc[0])) if marked else ""


def _about(asked: Asked) -> dict[str, str]:
    """What was given for all cases."""
    found = {}
    for name, words in asked.given.items():
        label = name.replace("_", " ").capitalize().replace("Roi", "Region of interest")
        found[label] = " ".join(_named(asked, name, word) for word in words)
    if len(set(asked.rois)) > 1:
        found["Region of interest"] = "each row's own"
    return {"Score": score_in_words(asked.metric), **found}


def _named(asked: Asked, name: str, word: str) -> str:
    """A word of an option; of a file its name only, and with ``--private`` not even that of a file of patients."""
    if name not in ("bundle", "nnunet", "weights", "donors") and not is_file_of(name, word):
        return word
    of_model = name in ("bundle", "nnunet", "weights", "model")
    return name_of(word) if of_model else name_of_case(asked.options, word, "a folder" if name == "donors" else "a file")


def _question(asked: Asked, n: int) -> str:
    same = {*asked.rois}
    options = argparse.Namespace(**(vars(asked.of_all) | {"private": asked.options.private, "roi": asked.rois[0]}))
    place = place_name(options) if len(same) == 1 else "the region of interest of each"
    return f"Which parts of {n} image{'s' * (n != 1)} made the model segment {place} as it did, and how far away are they?"


def _answer(asked: Asked, summary: CohortSummary | None, n: int, n_failed: int) -> str:
    if summary is None:
        return f"None of {n} case{'s' * (n != 1)} could be explained: see below why."
    row = summary.cases.iloc[0]
    many = n - n_failed > 1
    said = [f"{n - n_failed} of {n} cases were explained." if many or n > 1 else "One case was explained."]
    mean = "on average " if many else ""
    said.append(
        f"{mean.capitalize()}{'their' if many else 'Its'} {score_in_words(asked.metric)} there is {score(row['observed_score'])},"
    )
    said.append(
        f"and {100 * row['share_significant']:.0f} % of the parts that can reach the region have an effect that differs from 0."
    )
    if not pd.isna(row.get("radius_50")):
        unit = summary.distance_unit.replace("pixel", "pixels")
        said.append(f"Half of the effects' mass lies within {row['radius_50']:.3g} {unit} of it.")
    return " ".join(said)


def _header(asked: Asked, summary: CohortSummary | None, cohort: Cohort) -> list[str]:
    unit = "" if summary is None or not summary.distance_unit else f" ({summary.distance_unit.replace('pixel', 'pixels')})"
    kept = [] if asked.options.private else [encodable(str(name)) for name in cohort.study.get("columns", [])]
    score_name = score_in_words(asked.metric)
    return ["case", *kept, "state", score_name, "parts", "that differ from 0", "sum of |effect|", f"half within{unit}"]


def _rows(asked: Asked, cohort: Cohort, summary: CohortSummary, names: Sequence[str]) -> list[list[Any]]:
    """A row per case, in the order in which they were given; its name leads to its folder."""
    values, private = summary.values.set_index("case"), asked.options.private
    columns = [] if private else list(cohort.study.get("columns", []))
    rows = []
    for name, row in zip(names, cohort.cases().to_dict("records")):
        kept = ["" if pd.isna(row[column]) else str(row[column]) for column in columns]
        if row["state"] != "finished":
            rows.append([name, *kept, row["state"], "", "", "", "", ""])
            continue
        folder = cohort.file(row["id"], "statistics.npz").parent.relative_to(cohort.folder).as_posix()
        link = name if private else Markup('<a href="{}/">{}</a>').format(quote(folder), escape(encodable(name)))
        one = values.loc[row["id"]]
        numbers = [
            score(one["observed_score"]),
            f"{one['n_units']:.0f}",
            f"{100 * one['share_significant']:.0f} %",
            f"{one['mass']:.4g}",
            "" if pd.isna(one["radius_50"]) else f"{one['radius_50']:.4g}",
        ]
        rows.append([link, *kept, row["state"], *numbers])
    return rows


def _error(error: str, private: bool) -> str:
    """What went wrong; what is said of it names files."""
    return error.partition(":")[0] if private else " ".join(error.split())


def _settings(asked: Asked) -> dict[str, Any]:
    """How much was computed, also where that was not said."""
    found = vars(asked.of_all)
    return {name: found[name] for name in ("draws", "precision", "allocation", "context", "seed")} | {
        "engine": "this process" if asked.options.ray is None else "Ray"
    }


def _files(asked: Asked) -> list[CaseFile]:
    """The table, the study's options, the model and the donors; those of each case stand in ``cases.parquet``."""
    options = asked.options
    table = CaseFile("table of cases", name_of_case(options, options.cases, "a table"), options.cases)
    rest = [file for file in files_of(_private(asked)) if file.what in ("model", "donors")]
    return [table, CaseFile("options", name_of(options.config), options.config), *rest]


def _private(asked: Asked) -> argparse.Namespace:
    return argparse.Namespace(**(vars(asked.of_all) | {"private": asked.options.private}))
