"""The reports of the commands: each one page of HTML."""

import argparse
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import captum
import pandas as pd
import torch

from captum_causalseg._version import __version__
from captum_causalseg.cli import page
from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.files import command_line
from captum_causalseg.cli.results import (
    axes_in_words,
    components_rows,
    counts,
    emptiness,
    observed,
    score,
    score_in_words,
    sign_words,
    strongest,
)
from captum_causalseg.evaluation.comparison import CONTROL, Comparison
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.evaluation.refute import RefutationReport
from captum_causalseg.metrics import METRICS
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.visualization import plot_profile

__all__ = ["comparison_page", "components_page", "effects_page", "refutation_page"]

_OVERLAP = ("dice", "soft_dice", "iou", "soft_iou", "surface_dice")
_SCORES = {
    "deletion": "score left (area under the curve) when the parts are replaced one after the other, the largest attributions of that "
    "sign first",
    "insertion": "the same, when they are put back",
    "irof": "how fast the score falls when whole parts are replaced, the most supporting first",
    "faithfulness correlation, mu fidelity": "how well the attributions of random sets of parts predict what replacing them does "
    "(correlation of the values, of their ranks)",
    "infidelity": "their mean squared error in that",
    "leakage": "when the tenth of the parts with the largest attributions is replaced, the score changes in the region of interest and, "
    "taken over the rest of the image (without the replaced parts), there: the share of the second in both; 0 where nothing changes "
    "but in the region",
}


def effects_page(
    case: CommandCase,
    options: argparse.Namespace,
    statistics: TreatmentEffectStatistics,
    pictures: Mapping[str, Any],
    report: RefutationReport | None,
    components: pd.DataFrame | None,
    seconds: float,
) -> str:
    """Of ``explain``; ``pictures`` are ``effects``, ``intervals`` and, where there are components, ``components``."""
    sections = [
        _asked(case, options, f"{_score(options.metric)} there is {observed(case, statistics)}"),
        _effects_section(case, options, pictures, statistics),
        _strongest_section(case, options, statistics),
        _profile_section(case, options, statistics),
    ]
    if components is not None:
        sections.append(_components_section(case, options, components, pictures["components"]))
    if report is not None:
        sections.append(_refutation_section(report))
    forwards = statistics.n_forwards if report is None else report.n_forwards
    sections.append(_computed(options, seconds, {"Forward passes of one image": forwards}, statistics.settings))
    return page.page(f"Why was it segmented this way? {case.name}".rstrip(), sections)


def components_page(
    case: CommandCase, options: argparse.Namespace, table: pd.DataFrame, pictures: Mapping[str, Any], seconds: float
) -> str:
    """Of ``components``; the picture is ``components``."""
    known = table[table["effect"].notna()]
    said = f"{_score(options.metric)} there is {score(float(known['observed_score'].iloc[0]))}" if len(known) else ""
    left_out = table.attrs.get("left_out", {})
    facts = {"Modules": f"{table['module'].nunique()}" + (f", {len(left_out)} left out" if left_out else "")}
    facts |= {"Draws per part": options.draws}
    sections = [
        _asked(case, options, said, parts_of_image=False),
        _components_section(case, options, table, pictures["components"]),
        page.section(
            "Strongest parts",
            page.table(
                ("module", "type", "part", f"effect on {_score_noun(options.metric)}", "95 % interval"),
                components_rows(table),
                [sign_words(options.metric)[row[3].startswith("-")] for row in components_rows(table)],
                text_columns=(1, 2),
            ),
            page.paragraph(
                "The interval holds the true effect with a confidence of 95 %. Modules that follow each other in a chain have the same "
                "effect, because replacing either replaces all that passes: they share a row, with their number behind the name of the "
                "first. components.csv holds them all."
            ),
        ),
        _computed(options, seconds, facts, {}),
    ]
    return page.page(f"Which parts of the network matter? {case.name}".rstrip(), sections)


def comparison_page(
    case: CommandCase, options: argparse.Namespace, comparison: Comparison, pictures: Mapping[str, Any], seconds: float
) -> str:
    """Of ``compare``; the picture is ``comparison``."""
    wide = comparison.wide()
    directions = comparison.table.groupby("metric", sort=False)["score_direction"].first()
    best = {
        metric: (wide.drop(index=CONTROL)[metric].idxmin() if better == "lower" else wide.drop(index=CONTROL)[metric].idxmax())
        for metric, better in directions.items()
        if wide.drop(index=CONTROL)[metric].notna().any()
    }
    rows = [
        (
            str(metric),
            str(better),
            *(_marked(wide[metric][method], best.get(metric) == method) for method in wide.index),
        )
        for metric, better in directions.items()
    ]
    rows.append(("images through the model", "", *("" if pd.isna(n) else f"{n:.0f}" for n in wide["forwards"])))
    rows.append(("seconds", "", *(f"{s:.1f}" for s in wide["seconds"])))
    raises, lowers = sign_words(options.metric)
    what = _what(options.metric)
    sections = [
        _asked(case, options, ""),
        page.section(
            "The maps",
            page.paragraph(
                f"What each method says of every part of the image: red {raises} {what}, blue {lowers} it. Each map is drawn relative to "
                "its own largest value, because methods have units of their own."
            ),
            page.picture(pictures["comparison"], "The image and the map of each method"),
        ),
        page.section(
            "How faithful they are",
            page.paragraph(
                "Parts of the image are replaced in the order, or by the sums, that a map gives, and the model's score is compared with "
                "what the map makes one expect. A faithful map has to beat the random one. The best is marked with *."
            ),
            page.table(("score", "better", *map(str, wide.index)), rows, text_columns=(1,)),
            page.facts(_SCORES),
        ),
        _computed(options, seconds, {}, {}),
    ]
    return page.page(f"Which explanation is faithful? {case.name}".rstrip(), sections)


def refutation_page(
    case: CommandCase, options: argparse.Namespace, report: RefutationReport, pictures: Mapping[str, Any], seconds: float
) -> str:
    """Of ``refute``; the pictures are ``effects`` and ``intervals``."""
    statistics = report.statistics
    sections = [
        _asked(case, options, f"{_score(options.metric)} there is {observed(case, statistics)}"),
        _refutation_section(report),
        _effects_section(case, options, pictures, statistics),
        _strongest_section(case, options, statistics),
        _computed(options, seconds, {"Forward passes of one image": report.n_forwards}, statistics.settings),
    ]
    return page.page(f"Can the explanation be refuted? {case.name}".rstrip(), sections)


def _asked(case: CommandCase, options: argparse.Namespace, said: str, parts_of_image: bool = True) -> str:
    question = (
        "Which parts of the image made the model segment the region of interest as it did?"
        if parts_of_image
        else "Which parts of the network made it segment the region of interest as it did?"
    )
    if not said:
        sentence = ""
    elif not METRICS[options.metric].needs_reference:
        sentence = f" {said}."
    else:
        scale = " (0: no overlap, 1: perfect)" if options.metric in _OVERLAP else ""
        against = "the reference segmentation"
        if options.label is None:
            against = "the model's own prediction, so the effects say what that prediction rests on, right or wrong"
        sentence = f" {said}{scale}, compared with {against}."
    facts = {name: value for name, value in case.described.items() if parts_of_image or name != "Parts of the image"}
    return page.section("What was asked", page.paragraph(question + sentence), page.facts(facts))


def _effects_section(
    case: CommandCase, options: argparse.Namespace, pictures: Mapping[str, Any], statistics: TreatmentEffectStatistics
) -> str:
    noun = _score_noun(options.metric)
    if sign_words(options.metric)[0] == "supports":
        reading = (
            f"How to read it: a positive effect of, say, +0.02 means that {noun} of the region of interest falls by 0.02 on average when "
            "this part of the image is replaced by natural image content from elsewhere, so what is really there supports the "
            f"segmentation (red); a negative effect means that {noun} rises, so what is there harms it (blue)."
        )
    else:
        reading = (
            f"How to read it: a positive effect means that {noun} of the region of interest falls by that much on average when this part "
            f"of the image is replaced by natural image content from elsewhere, so what is really there raises {noun} (red); a negative "
            f"effect means that what is there lowers it (blue). Neither is better or worse: {noun} has no right direction."
        )
    return page.section(
        "Effect of every part of the image",
        *([] if (empty := emptiness(case, options, statistics)) is None else [page.paragraph(empty)]),
        page.paragraph(reading),
        page.picture(
            pictures["effects"], "The image with its region of interest, the effect of every unit, and its standard error"
        ),
        page.paragraph(
            "How sure it is: the lower and the upper end of the 95 % interval of every effect, in the colors of the effects. Where "
            "both have the same color, the sign of the effect is settled."
        ),
        page.picture(pictures["intervals"], "Lower and upper end of the 95 % interval of every effect"),
    )


def _strongest_section(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics) -> str:
    rows = strongest(case, options, statistics)
    styles = dict(zip(sign_words(options.metric), ("supports", "harms")))
    parts = [page.paragraph("No part of the image was found to have an effect.")]
    if rows:
        parts = [
            page.paragraph(
                f"Places are given {case.grids.in_words()}. The interval holds the true effect with a confidence of 95 %; where it "
                "includes 0, the part may have no effect at all."
            ),
            page.table(
                ("", axes_in_words(case), f"effect on {_score_noun(options.metric)}", "95 % interval"),
                [(row.kind, row.place, row.effect, row.interval) for row in rows],
                [styles[row.kind] for row in rows],
            ),
        ]
    return page.section("Strongest parts", *parts, page.paragraph(f"All parts: {counts(case, options, statistics)}."))


def _profile_section(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics) -> str:
    heading = "Near or far"
    if not bool(statistics.select(statistics.hypotheses, case.output).any()):
        said = "Every part touches the region of interest or cannot reach it through the network: there is no distance to tell."
        return page.section(heading, page.paragraph(said))
    spacing = case.grids.prepared_spacing
    noun = f"{case.grids.noun} of the prepared image" if case.grids.differ else case.grids.noun
    straight: dict[str, Any] = {}
    if spacing is not None:
        noun, straight = "mm", {"spacing": spacing, "length_unit": "mm", "metric": "euclidean"}
    profile = perception_profile(statistics, case.roi, case.output, **straight)
    said = "No part of the image was found to have an effect."
    if profile.mass > 0:
        said = (
            f"Half of the summed effects lie within {profile.radius(0.5):.4g} {noun} of the region of interest, 90 % within "
            f"{profile.radius(0.9):.4g} {noun}" + (", in a straight line." if straight else ".")
        )
    background = profile.background
    beside = "" if background is None or background.effect == 0 else str(background).replace("b", "B", 1)
    return page.section(
        heading,
        page.paragraph(said),
        *([page.paragraph(f"{beside}. Effects of that size say nothing of a place in particular.")] if beside else []),
        page.picture(
            plot_profile(profile, score_name=score_in_words(options.metric), words=sign_words(options.metric)),
            "Shares of effects of either sign, and effects by distance",
        ),
    )


def _components_section(case: CommandCase, options: argparse.Namespace, table: pd.DataFrame, picture: Any) -> str:
    replaced = "by 0, as no donor images were given" if case.donor_images is None else "by those on donor images"
    raises, lowers = sign_words(options.metric)
    what = _what(options.metric)
    return page.section(
        "Parts of the network",
        page.paragraph(
            f"The activations of each part are replaced {replaced}: red {raises} {what}, blue {lowers} it. The bar is the effect on "
            f"{_score_noun(options.metric)} of the region of interest, the line its 95 % interval."
        ),
        page.picture(picture, "Effect of every part of the network"),
    )


def _refutation_section(report: RefutationReport) -> str:
    rows = [(one.name, one.verdict, one.message) for one in report.refutations]
    overall = (
        "The effects survived these attempts to refute them, which does not prove them."
        if report.passed
        else "Not all attempts to refute the effects were survived: read the findings before relying on them."
    )
    return page.section(
        "Attempts to refute it",
        page.paragraph(overall),
        page.table(("refuter", "verdict", "finding"), rows, text_columns=(1, 2)),
    )


def _computed(options: argparse.Namespace, seconds: float, facts: Mapping[str, object], settings: Mapping[str, Any]) -> str:
    versions = {"captum_causalseg": __version__, "torch": torch.__version__, "captum": captum.__version__}
    # Not asked of the module, which takes seconds to import.
    versions |= {"monai": version("monai")}
    shown = {"Command": command_line(options), **facts, "Seconds": f"{seconds:.1f}"}
    rest = {name: value for name, value in settings.items() if name != "versions"}
    shown |= _in_words({"seed": options.seed} | rest | {"versions": versions})
    return page.section("How it was computed", page.facts(shown))


def _in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a person reads them; what is empty is left out."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name}: {said(one)}" for name, one in value.items())
        return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    shown = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    return {re.sub(r"^n_", "number_of_", name).replace("_", " ").capitalize(): said(shown[name]) for name in shown}


def _marked(value: float, best: bool) -> str:
    return "" if pd.isna(value) else f"{value:.4g}{' *' if best else ''}"


def _score(metric: str) -> str:
    return f"Its {score_in_words(metric)}"


def _score_noun(metric: str) -> str:
    return f"the {score_in_words(metric)}"


def _what(metric: str) -> str:
    """What is supported or raised."""
    return "the segmentation" if METRICS[metric].larger_is_better else "the score"
