"""The reports of the commands, each one page of HTML: what their templates in ``pages/`` are filled with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from captum_causalseg.attr.region import Region
from captum_causalseg.cli.computed import how_computed
from captum_causalseg.cli.digests import digest_rows
from captum_causalseg.cli.files import place_name
from captum_causalseg.cli.findings import (
    direction_rows,
    directions_of,
    found_in_words,
    length_unit,
    not_done,
    profile_of,
    unit_rows,
    unit_table,
)
from captum_causalseg.cli.found_regions import place_rows, region_rows, said_of
from captum_causalseg.cli.job import EffectPictures, Job
from captum_causalseg.cli.limits import effects_beyond
from captum_causalseg.cli.page import Drawing, packed_asset, rendered, text_asset
from captum_causalseg.cli.results import (
    axes_in_words,
    components_rows,
    context_in_words,
    counts,
    edge_in_words,
    edge_names,
    edge_rows,
    emptiness,
    forwarded,
    modality_rows,
    observed,
    score,
    score_in_words,
    sign_words,
)
from captum_causalseg.cli.segmentation import segmentation_rows, segmentation_said
from captum_causalseg.cli.viewer import viewer_of
from captum_causalseg.evaluation.comparison import CONTROL, Comparison
from captum_causalseg.evaluation.donor_comparison import DonorComparison
from captum_causalseg.evaluation.pathways import Pathway, effect_in_words, share_in_words
from captum_causalseg.evaluation.refute import RefutationReport
from captum_causalseg.metrics import METRICS
from captum_causalseg.statistics import EDGE_MATCHED, TreatmentEffectStatistics
from captum_causalseg.target.scorer import as_scorer
from captum_causalseg.visualization import plot_effects, plot_profile

__all__ = [
    "Further",
    "Section",
    "comparison_page",
    "components_page",
    "effects_page",
    "pathway_page",
    "pathway_section",
    "refutation_page",
    "region_page",
]

_OVERLAP = ("dice", "soft_dice", "iou", "soft_iou", "surface_dice")


@dataclass(frozen=True)
class Section:
    """A section of a report that a command fills itself: sentences, a figure and a table, of which any may be left out.

    Args:
        title: its heading.
        sentences: paragraphs of plain text, before the figure.
        figure: a picture.
        alternative: what the picture shows, for those who cannot see it.
        header: of the table's columns; the first one's cells stand on the left.
        rows: of the table, as text.
        text: numbers of further columns that hold text rather than numbers.
        notes: paragraphs after the table.
    """

    title: str
    sentences: Sequence[str] = ()
    figure: Drawing | None = None
    alternative: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    text: Sequence[int] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Further:
    """What ``explain`` was asked for besides the effects; ``None`` for what it was not.

    Args:
        refutation: attempts to refute the effects.
        components: effects of the network's parts, as a table.
        donors: the effects with other kinds of donors.
        sections: of other commands, after the components.
    """

    refutation: RefutationReport | None = None
    components: pd.DataFrame | None = None
    donors: DonorComparison | None = None
    sections: Sequence[Section] = ()


def effects_page(
    job: Job,
    statistics: TreatmentEffectStatistics,
    *,
    effects: Sequence[EffectPictures],
    pictures: Mapping[str, Drawing],
    further: Further,
    seconds: float,
) -> str:
    """Of ``explain``; ``pictures`` are ``components`` and ``donors``, where these are there."""
    report, options = further.refutation, job.options
    forwards = statistics.n_forwards if report is None else report.n_forwards
    forwards += 0 if further.donors is None else further.donors.n_forwards
    table = unit_table(job, statistics)
    counted: dict[str, object] = {f"Forward passes of one {forwarded(statistics.settings)}": forwards}
    computed = how_computed(options, seconds, counted, settings=statistics.settings)
    filled: dict[str, Any] = {
        "segmentation": _segmentation(job, statistics),
        "effects": _effects(job, statistics, effects, table=table),
        "strongest": _strongest(job, statistics, table),
        "profile": _profile(job, statistics),
        "edge": _edge(job, statistics) if statistics.controls else None,
        "donors": None if further.donors is None else _donors(further.donors, pictures["donors"]),
        "components": None if further.components is None else _components(job, further.components, pictures["components"]),
        "sections": [_section(one) for one in further.sections],
        "refutation": None if report is None else _refutation(report),
    }
    return rendered(
        "explain.html",
        title=f"Why was it segmented this way? {job.case.name}".rstrip(),
        about=job.case.described,
        question=_question(job),
        answer=found_in_words(job, table),
        score=_score_of(job, observed(job.case, statistics)),
        contents=_contents(filled),
        not_done=not_done(
            job,
            statistics,
            {name for name in ("refutation", "components", "donors") if filled[name] is not None}
            | ({"pathway"} if further.sections else set()),
        ),
        command=computed.pop("Command"),
        files=digest_rows(job.case.files),
        computed=computed,
        **filled,
    )


def components_page(job: Job, table: pd.DataFrame, figure: Drawing, seconds: float) -> str:
    """Of ``components``."""
    known = table[table["effect"].notna()]
    left_out = table.attrs.get("left_out", {})
    facts = {
        "Modules": f"{table['module'].nunique()}" + (f", {len(left_out)} left out" if left_out else ""),
        "Draws per part": job.options.draws,
    }
    rows = components_rows(table)
    return rendered(
        "components.html",
        title=f"Which parts of the network matter? {job.case.name}".rstrip(),
        about={name: value for name, value in job.case.described.items() if name != "Parts of the image"},
        score=_score_of(job, score(float(known["observed_score"].iloc[0]))) if len(known) else "",
        components=_components(job, table, figure),
        rows=rows,
        styles=[sign_words(job.options.metric)[row[3].startswith("-")] for row in rows],
        computed=how_computed(job.options, seconds, facts, settings={}),
    )


def comparison_page(job: Job, comparison: Comparison, figures: Sequence[Drawing], seconds: float) -> str:
    """Of ``compare``."""
    wide = comparison.wide()
    directions = comparison.table.groupby("metric", sort=False)["score_direction"].first()
    best = {
        metric: (wide.drop(index=CONTROL)[metric].idxmin() if better == "lower" else wide.drop(index=CONTROL)[metric].idxmax())
        for metric, better in directions.items()
        if wide.drop(index=CONTROL)[metric].notna().any()
    }
    rows = [
        [metric, better, *(_marked(wide[metric][method], best.get(metric) == method) for method in wide.index)]
        for metric, better in directions.items()
    ]
    through = "images" if as_scorer(job.case.target).windowed_model is None else "windows"
    rows.append([f"{through} through the model", "", *("-" if pd.isna(n) else f"{n:.0f}" for n in wide["forwards"])])
    rows.append(["seconds", "", *(f"{s:.1f}" for s in wide["seconds"])])
    raises, lowers = sign_words(job.options.metric)
    return rendered(
        "compare.html",
        title=f"Which explanation is faithful? {job.case.name}".rstrip(),
        about=job.case.described,
        raises=raises,
        lowers=lowers,
        what=_what(job.options.metric),
        pictures=figures,
        header=["score", "better", *wide.index],
        rows=rows,
        unknown=comparison.unknown(),
        computed=how_computed(job.options, seconds, {}, settings={}),
    )


def refutation_page(job: Job, report: RefutationReport, pictures: Sequence[EffectPictures], seconds: float) -> str:
    """Of ``refute``."""
    statistics = report.statistics
    table = unit_table(job, statistics)
    return rendered(
        "refute.html",
        title=f"Can the explanation be refuted? {job.case.name}".rstrip(),
        about=job.case.described,
        score=_score_of(job, observed(job.case, statistics)),
        refutation=_refutation(report),
        effects=_effects(job, statistics, pictures, table=table),
        strongest=_strongest(job, statistics, table),
        computed=how_computed(
            job.options,
            seconds,
            {f"Forward passes of one {forwarded(statistics.settings)}": report.n_forwards},
            settings=statistics.settings,
        ),
    )


def region_page(job: Job, region: Region, figure: Drawing, *, seconds: float) -> str:
    """Of ``region``."""
    case, metric = job.case, job.options.metric
    question = "Which part is enough?" if region.kind == "sufficient" else "Which part is needed?"
    return rendered(
        "region.html",
        title=f"{question} {case.name}".rstrip(),
        about=case.described,
        score=_score_of(job, score(region.observed_score)),
        kind=region.kind,
        said=said_of(region, metric),
        picture=figure,
        noun=score_in_words(metric),
        rows=region_rows(region),
        grid=case.grids.in_words(),
        axes=axes_in_words(case),
        places=place_rows(case, region),
        computed=how_computed(
            job.options,
            seconds,
            {f"Forward passes of one {forwarded(region.settings)}": region.n_forwards},
            settings=region.settings,
        ),
    )


def pathway_page(job: Job, found: Pathway, figure: Drawing, *, seconds: float) -> str:
    """Of ``pathway``."""
    # Of one region, what would be parts of the image is of no matter.
    region = {"Parts of the image": f"one region, {place_name(job.options, 'region')}"} if found.is_region else {}
    observed_score = float(found.statistics.total.observed_score[0])
    return rendered(
        "pathway.html",
        title=f"Through which layers does it act? {job.case.name}".rstrip(),
        about={**job.case.described, **region},
        score=_score_of(job, score(observed_score)),
        found=_section(pathway_section(found, figure)),
        computed=how_computed(
            job.options,
            seconds,
            {f"Forward passes of one {forwarded(found.settings)}": found.n_forwards},
            settings=found.settings,
        ),
    )


def pathway_section(found: Pathway, figure: Drawing) -> Section:
    """The ways through the network, in words, as a picture and as a table."""
    said = str(found).splitlines()[0]
    if found.is_region:
        header: tuple[str, ...] = ("layer", "through it", "around it", "both at once", "share through it")
        parts = ("indirect", "direct", "interaction")
        rows: list[tuple[str, ...]] = [
            (row["layer"], *[effect_in_words(row, part, "+.3g") for part in parts], share_in_words(row))
            for row in found.to_dataframe().to_dict("records")
        ]
    else:
        header = ("layer", "share of all effects through it")
        rows = [(row["layer"], share_in_words(row)) for row in found.shares().to_dict("records")]
    return Section(
        title="Ways through the network",
        sentences=(f"{said[0].upper()}{said[1:]}{':' if not found.is_region else '.'}",),
        figure=figure,
        alternative="The network with arrows as thick as what travels there",
        header=header,
        rows=rows,
        text=(len(header) - 1,),
        notes=(
            "Through a layer travels what the score changes by where that layer alone gets the activations that it has with the region replaced; around it what is left where it alone keeps "
            "those of the image as it is. What takes both ways at once is the rest. Brackets are 95 % intervals. Levels are nested: what passes a deeper one has passed those above it.",
        ),
    )


def _score_of(job: Job, value: str) -> str:
    """The score in the region of interest, and what it was compared with."""
    metric = job.options.metric
    said = f"Its {score_in_words(metric)} there is {value}"
    if not METRICS[metric].needs_reference:
        return f"{said}."
    scale = " (0: no overlap, 1: perfect)" if metric in _OVERLAP else ""
    against = "the reference segmentation"
    if job.case.reference is None:
        against = "the model's own prediction, so the effects say what that prediction rests on, right or wrong"
    return f"{said}{scale}, compared with {against}."


def _question(job: Job) -> str:
    """In one sentence."""
    case, options = job.case, job.options
    name = case.described["Class"].partition(",")[0]
    which = "" if case.output is None else f" class {name.partition(' of ')[0]}" if name[:1].isdigit() else f" {name}"
    image = "this image" if options.private else case.name
    return f"Which parts of {image} made the model segment{which or ' it'} in {case.place} as it did?"


def _contents(filled: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The sections that there are: their names in links, and what they are called there."""
    first = [
        ("question", "Question"),
        ("segmentation", "Segmentation"),
        ("map", "Map"),
        ("strongest", "Strongest parts"),
        ("distance", "How far"),
    ]
    asked = [
        ("edge", "joint", "Joints"),
        ("donors", "donors", "Other donors"),
        ("components", "components", "Parts of the network"),
    ]
    chosen = [(link, title) for name, link, title in asked if filled[name] is not None]
    chosen += [(f"further-{number}", one["title"]) for number, one in enumerate(filled["sections"])]
    chosen += [("refutation", "Refutation")] if filled["refutation"] is not None else []
    return first + chosen + [("not-done", "Not done"), ("cite", "Cite"), ("reproduce", "Reproduce")]


def _segmentation(job: Job, statistics: TreatmentEffectStatistics) -> dict[str, Any]:
    case = job.case
    header, rows = segmentation_rows(case)
    drawn = Drawing(
        plot_effects,
        case.image.cpu(),
        statistics,
        roi=case.roi,
        target=case.output,
        panels=("image",),
        spacing=case.grids.prepared_spacing,
        segmentation=case.prediction,
        reference=case.reference,
        affine=case.grids.prepared_affine,
        channel=case.units.modalities.shown[0][0],
        times=1.8,
    )
    outlined = "the prediction" if case.reference is None else "the prediction and the reference"
    return {
        "said": segmentation_said(case),
        "picture": drawn,
        "alternative": f"The image with the outlines of {outlined} and the region of interest",
        "header": header,
        "rows": rows,
    }


def _effects(
    job: Job, statistics: TreatmentEffectStatistics, pictures: Sequence[EffectPictures], table: pd.DataFrame
) -> dict[str, Any]:
    view = viewer_of(job, statistics, table)
    return {
        "viewer": view,
        "script": text_asset("viewer.js"),
        "niivue": packed_asset("niivue.umd.js.gz") if view.volume else "",
        "empty": emptiness(job.case, job.options, statistics),
        "has_direction": METRICS[job.options.metric].larger_is_better,
        "noun": _score_noun(job.options.metric),
        "context": context_in_words(statistics),
        "modalities": modality_rows(job.case, statistics),
        "pictures": [{"modality": one.modality, "effects": one.effects, "intervals": one.intervals} for one in pictures],
    }


def _strongest(job: Job, statistics: TreatmentEffectStatistics, table: pd.DataFrame) -> dict[str, Any]:
    metric = job.options.metric
    return {
        "grid": job.case.grids.in_words(),
        "directions": directions_of(job.case).said,
        "what": _what(metric),
        "words": sign_words(metric),
        "colored": True,
        "header": [
            axes_in_words(job.case),
            "distance",
            f"direction, in {length_unit(job.case).split(' of ')[0]}",
            f"effect on {_score_noun(metric)}",
            "95 % interval",
            "adjusted p",
        ],
        "rows": unit_rows(job, table),
        "counts": counts(job.case, job.options, statistics),
    }


def _edge(job: Job, statistics: TreatmentEffectStatistics) -> dict[str, Any]:
    return {
        "said": edge_in_words(job.case, statistics),
        "header": [axes_in_words(job.case), f"effect on {_score_noun(job.options.metric)}", *edge_names(statistics), ""],
        "rows": edge_rows(job.case, statistics),
        "has_matched": EDGE_MATCHED in statistics.controls,
    }


def _profile(job: Job, statistics: TreatmentEffectStatistics) -> dict[str, Any] | None:
    """How far away effects are; ``None`` where there is no unit whose distance says something."""
    case, metric = job.case, job.options.metric
    profile = profile_of(job, statistics)
    if profile is None:
        return None
    background = profile.background
    beside = "" if background is None or background.effect == 0 else str(background).replace("b", "B", 1)
    return {
        "half": f"{profile.radius(0.5):.4g}" if profile.mass > 0 else None,
        "most": f"{profile.radius(0.9):.4g}" if profile.mass > 0 else None,
        "unit": length_unit(case),
        "straight": case.grids.prepared_spacing is not None,
        "background": beside,
        "directions": direction_rows(case, profile) if profile.mass > 0 else [],
        "directions_of": directions_of(case).said,
        "picture": Drawing(
            plot_profile, profile, score_name=score_in_words(metric), words=sign_words(metric), narrow={"columns": 1}
        ),
    }


def _components(job: Job, table: pd.DataFrame, figure: Drawing) -> dict[str, Any]:
    raises, lowers = sign_words(job.options.metric)
    return {
        "has_donors": job.case.donor_images is not None,
        "raises": raises,
        "lowers": lowers,
        "what": _what(job.options.metric),
        "noun": _score_noun(job.options.metric),
        "wider": effects_beyond(job.options.metric, score_in_words(job.options.metric), zip(table["lower"], table["upper"])),
        "picture": figure,
    }


def _donors(comparison: DonorComparison, figure: Drawing) -> dict[str, Any]:
    table = comparison.table
    rows = [
        (f"{row.first}, {row.second}", row.n_units, f"{row.rank_correlation:.2f}", f"{row.slope:.2f}", row.n_sign_differs)
        for row in table.itertuples()
        if row.first == table["first"].iloc[0]
    ]
    return {"conclusion": comparison.conclusion, "rows": rows, "picture": figure}


def _section(section: Section) -> dict[str, Any]:
    return vars(section) | {"picture": section.figure}


def _refutation(report: RefutationReport) -> dict[str, Any]:
    return {"passed": report.passed, "rows": [(one.name, one.verdict, one.message) for one in report.refutations]}


def _marked(value: float, best: bool) -> str:
    return "-" if pd.isna(value) else f"{value:.4g}{' *' if best else ''}"


def _score_noun(metric: str) -> str:
    return f"the {score_in_words(metric)}"


def _what(metric: str) -> str:
    """What is supported or raised."""
    return "the segmentation" if METRICS[metric].larger_is_better else "the score"
