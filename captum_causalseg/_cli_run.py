"""The commands that explain a case of one's own: compute, write a folder, return what to print."""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from captum.attr import FeatureAblation, IntegratedGradients
from torch import Tensor

from captum_causalseg import _report, regions
from captum_causalseg._cli_case import CommandCase, read_case
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.components import component_effects
from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
from captum_causalseg.evaluation.comparison import compare
from captum_causalseg.evaluation.profile import perception_profile
from captum_causalseg.evaluation.refutation import RefutationReport
from captum_causalseg.evaluation.refute import REFUTERS, refute
from captum_causalseg.images import save_map
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.visualization import plot_components, plot_effects, plot_profile

__all__ = ["run"]

# Modules of so many donor images are replaced; their activations are computed and kept.
_MOST_COMPONENT_DONORS = 32
_STRONGEST = 5
_OVERLAP = ("dice", "soft_dice", "iou", "soft_iou", "surface_dice")


def run(options: argparse.Namespace) -> str:
    """Run one command; the text to print."""
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out: {options.out} is a file, expected a folder")
    if options.seed < 0:
        raise ValueError(f"--seed: expected a number of at least 0, got {options.seed}")
    if options.precision is not None and not options.precision > 0:
        raise ValueError(f"--precision: expected a positive number, got {options.precision:g}")
    refuters = _refuters(options)
    case = read_case(options)
    with _folder(options.out) as folder:
        if options.command == "explain":
            said = _explain(case, options, folder)
        elif options.command == "components":
            said = _components(case, options, folder)
        elif options.command == "compare":
            said = _compare(case, options, folder)
        else:
            said = _refute(case, options, folder, refuters)
        written = ", ".join(sorted(file.name for file in folder.iterdir()))
    return f"{said}\n\nwritten to {options.out}/: {written}"


def _explain(case: CommandCase, options: argparse.Namespace, folder: Path) -> str:
    began = time.perf_counter()
    explainer = AverageTreatmentEffect(case.target)
    report: RefutationReport | None = None
    if options.refute:
        report = refute(
            *(explainer, case.image, case.donors, case.output),
            **(_effort(case, options) | {"seed": options.seed, "show_progress": True}),
        )
        statistics = report.statistics
    else:
        _, statistics = explainer.attribute(
            *(case.image, case.donors, case.output),
            **(_effort(case, options) | {"seed": options.seed, "show_progress": True}),
            return_statistics=True,
        )
    components = None if options.components is None else _component_table(case, options, options.components, "module")
    seconds = time.perf_counter() - began
    effects = plot_effects(
        *(case.image.cpu(), statistics, case.roi, case.output), title=options.image.name, score_name=options.metric
    )
    effects.savefig(folder / "effects.png", dpi=110)
    statistics.to_dataframe().to_csv(folder / "effects.csv", index=False)
    statistics.save(folder / "statistics.npz")
    if case.has_geometry:
        found = statistics.to_map("effect", case.output)
        assert isinstance(found, Tensor)  # one input, one map
        # Every channel carries its unit's effect: one is enough.
        save_map(folder / "effects.nii.gz", found[:, :1], like=case.scan)
    if components is not None:
        components.to_csv(folder / "components.csv", index=False)
    if report is not None:
        report.to_dataframe().to_csv(folder / "refutation.csv", index=False)
    (folder / "report.html").write_text(
        _html(case, options, statistics, effects, report, components, seconds), encoding="utf-8"
    )
    said = _effects_text(case, options, statistics, seconds)
    if report is not None:
        said += f"\n\n{report}"
    return said if components is None else f"{said}\n\n{_components_text(components)}"


def _components(case: CommandCase, options: argparse.Namespace, folder: Path) -> str:
    table = _component_table(case, options, options.layers, options.level)
    table.to_csv(folder / "components.csv", index=False)
    plot_components(table, title=options.image.name, score_name=options.metric).savefig(folder / "components.png", dpi=110)
    return _components_text(table)


def _compare(case: CommandCase, options: argparse.Namespace, folder: Path) -> str:
    target = case.target
    surrogate = target.surrogate()
    effort = {name: value for name, value in _effort(case, options).items() if name in ("n_draws", "precision")}
    mask = case.units.get("feature_mask")
    if mask is None:
        mask = regions.grid(case.image.shape[2:], case.units["block_size"])[None, None]
    comparison = compare(
        {
            "treatment effects": (AverageTreatmentEffect(target), {**effort, "seed": options.seed}),
            "gradient treatment effects": GradientTreatmentEffect(target),
            "integrated gradients": (IntegratedGradients(surrogate), {"internal_batch_size": 4}),
            "feature ablation": (FeatureAblation(target), {"feature_mask": mask.to(case.image.device)}),
        },
        *(target, case.image, case.donors),
        output=case.output,
        seed=options.seed,
        show_progress=True,
        **case.units,
    )
    comparison.table.to_csv(folder / "comparison.csv", index=False)
    comparison.plot(title=options.image.name).savefig(folder / "comparison.png", dpi=110)
    said: str = comparison.wide().to_string(float_format=lambda value: f"{value:.4g}")
    return said


def _refute(case: CommandCase, options: argparse.Namespace, folder: Path, refuters: list[str] | None) -> str:
    report = refute(
        *(AverageTreatmentEffect(case.target), case.image, case.donors, case.output),
        refuters=refuters,
        **(_effort(case, options) | {"seed": options.seed, "show_progress": True}),
    )
    report.to_dataframe().to_csv(folder / "refutation.csv", index=False)
    figure = plot_effects(
        *(case.image.cpu(), report.statistics, case.roi, case.output), title=options.image.name, score_name=options.metric
    )
    figure.savefig(folder / "effects.png", dpi=110)
    return str(report)


def _refuters(options: argparse.Namespace) -> list[str] | None:
    if getattr(options, "refuters", None) is None:
        return None
    names: list[str] = options.refuters.split(",")
    unknown = [name for name in names if name not in REFUTERS]
    if unknown:
        raise ValueError(f"--refuters: there is no {unknown[0]!r}; expected some of {', '.join(REFUTERS)}")
    return names


def _effort(case: CommandCase, options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``attribute``."""
    return {"n_draws": options.draws, "n_screening_draws": min(3, options.draws), "precision": options.precision, **case.units}


def _component_table(case: CommandCase, options: argparse.Namespace, layers: str | None, level: Any) -> pd.DataFrame:
    option = "--components" if options.command == "explain" else "--layers"
    donors = None
    if case.donor_images is not None:
        found = [case.donor_images[i] for i in range(min(len(case.donor_images), _MOST_COMPONENT_DONORS))]
        other = next((one.shape for one in found if one.shape != case.image.shape[1:]), None)
        if other is not None:
            raise ValueError(
                f"--donors: the network's parts need donor images as large as the image, {tuple(case.image.shape[1:])}, got "
                f"{tuple(other)}"
            )
        donors = torch.stack(found).to(case.image)
    try:
        return component_effects(
            *(case.target, case.image, layers, donors, level),
            output=case.output,
            n_draws=options.draws,
            n_screening_draws=min(3, options.draws),
            seed=options.seed,
            show_progress=True,
        )
    except ValueError as error:
        raise ValueError(f"{option}: {str(error).removeprefix('layers: ')}") from error


def _components_text(table: pd.DataFrame) -> str:
    columns = ["module", *(["channel"] if "channel" in table else []), "type", "part", "effect", "lower", "upper"]
    said: str = table[columns].head(20).to_string(index=False, float_format=lambda value: f"{value:+.4f}")
    return said


def _strongest(case: CommandCase, statistics: TreatmentEffectStatistics) -> list[tuple[str, str, float, str]]:
    """What it does, where it is, its effect, the interval: the strongest units of either sign."""
    table = statistics.of_output(case.output).to_dataframe()
    table = table[table["effect"].notna()].sort_values("effect", kind="stable")
    axes = range(case.image.ndim - 2)
    rows = []
    for kind, found in (("supports", table[table["effect"] > 0][::-1]), ("harms", table[table["effect"] < 0])):
        for row in found.head(_STRONGEST).to_dict("records"):
            place = " x ".join(f"{row[f'start_{axis}']}-{row[f'stop_{axis}'] - 1}" for axis in axes)
            rows.append((kind, place, float(row["effect"]), f"[{row['lower']:+.4f}, {row['upper']:+.4f}]"))
    return rows


def _observed(case: CommandCase, statistics: TreatmentEffectStatistics) -> float:
    return float(statistics.of_output(case.output).observed_score)


def _counts(case: CommandCase, statistics: TreatmentEffectStatistics) -> str:
    status = statistics.select(statistics.status, case.output)
    counts = ", ".join(
        f"{int((status == s).sum())} {s.name.lower().replace('_', ' ')}" for s in Status if bool((status == s).any())
    )
    significant = int(statistics.select(statistics.significant(0.05), case.output).sum())
    return f"{counts}; {significant} differ from 0 at a false discovery rate of 5 %"


def _effects_text(case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics, seconds: float) -> str:
    lines = [
        f"{options.image.name}: {options.metric} in {options.roi} is {_observed(case, statistics):.4f}",
        "",
        f"{'strongest units':<16}{_axes_text(case):<30}effect [95 % interval]",
    ]
    lines += [
        f"  {kind:<14}{place:<30}{effect:+.4f}  {interval}" for kind, place, effect, interval in _strongest(case, statistics)
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"units: {_counts(case, statistics)}",
            f"{statistics.n_forwards} forward passes of one image, {seconds:.1f} s",
        ]
    )


def _axes_text(case: CommandCase) -> str:
    return "rows x columns" if case.image.ndim == 4 else "pixels along the three axes"


def _html(
    case: CommandCase,
    options: argparse.Namespace,
    statistics: TreatmentEffectStatistics,
    effects: Any,
    report: RefutationReport | None,
    components: pd.DataFrame | None,
    seconds: float,
) -> str:
    observed, metric = (
        _observed(case, statistics),
        options.metric.replace("_", " ").replace("dice", "Dice").replace("iou", "IoU"),
    )
    scale = " (0: no overlap, 1: perfect)" if options.metric in _OVERLAP else ""
    if options.label is None:
        against = "the model's own prediction, so the map says what that prediction rests on, right or wrong"
    else:
        against = "the reference segmentation"
    strongest = _strongest(case, statistics)
    sections = [
        _report.section(
            "What was asked",
            _report.paragraph(
                f"Which parts of the image made the model segment the region of interest as it did? Its {metric} there is "
                f"{observed:.4f}{scale}, compared with {against}."
            ),
            _report.facts(case.described),
        ),
        _report.section(
            "Effect of every part of the image",
            _report.paragraph(
                f"How to read it: an effect of +0.02 means that the {metric} of the region of interest falls by 0.02 on average when this "
                "part of the image is replaced by natural image content from elsewhere, so what is really there supports the "
                f"segmentation (red); a negative effect means that the {metric} rises, so what is there harms it (blue)."
            ),
            _report.picture(effects, "The image with its region of interest, the effect of every unit, and its standard error"),
        ),
        _report.section(
            "Strongest parts",
            _report.paragraph(
                "The interval holds the true effect with a confidence of 95 %. Where it includes 0, the part may have no effect at all."
            )
            if strongest
            else _report.paragraph("No part of the image was found to have an effect."),
            _report.table(
                ("", _axes_text(case), f"effect on the {metric}", "95 % interval"),
                [(kind, place, f"{effect:+.4f}", interval) for kind, place, effect, interval in strongest],
                [kind for kind, *_ in strongest],
            ),
            _report.paragraph(f"All parts: {_counts(case, statistics)}."),
        ),
        _profile_section(case, statistics, metric),
    ]
    if components is not None:
        replaced = "by 0, as no donor images were given" if case.donor_images is None else "by those on donor images"
        sections.append(
            _report.section(
                "Parts of the network",
                _report.paragraph(f"Activations of each module are replaced {replaced}; red supports, blue harms."),
                _report.picture(plot_components(components, score_name=metric), "Effect of every module of the network"),
            )
        )
    if report is not None:
        sections.append(_refutation_section(report))
    computed: dict[str, object] = {
        "Command": f"causalseg explain, {', '.join(_given(options))}",
        "Forward passes of one image": statistics.n_forwards if report is None else report.n_forwards,
        "Seconds": f"{seconds:.1f}",
    }
    sections.append(_report.section("How it was computed", _report.facts(computed | _in_words(statistics.settings))))
    return _report.page(f"Why was it segmented this way? {options.image.name}", sections)


def _in_words(settings: Mapping[str, Any]) -> dict[str, str]:
    """Settings as a person reads them; what is empty is left out."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{name}: {said(one)}" for name, one in value.items())
        return " x ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    return {str(name).replace("_", " "): said(value) for name, value in settings.items() if value not in (None, {}, [])}


def _profile_section(case: CommandCase, statistics: TreatmentEffectStatistics, metric: str) -> str:
    heading = "Near or far"
    status = statistics.select(statistics.status, case.output)
    if bool((status == Status.EXCLUDED).all()):
        return _report.section(
            heading, _report.paragraph("Every part touches the region of interest: there is no distance to tell.")
        )
    profile = perception_profile(statistics, case.roi, case.output)
    said = "No part of the image was found to have an effect."
    if profile.mass > 0:
        said = (
            f"Half of the summed effects lie within {profile.radius(0.5):g} pixels of the region of interest, 90 % within "
            f"{profile.radius(0.9):g}."
        )
    return _report.section(
        heading,
        _report.paragraph(said),
        _report.picture(
            plot_profile(profile, score_name=metric), "Shares of supporting and harming parts, and effects by distance"
        ),
    )


def _refutation_section(report: RefutationReport) -> str:
    rows = [(one.name, one.verdict, one.message) for one in report.refutations]
    overall = (
        "The effects survived these attempts to refute them, which does not prove them."
        if report.passed
        else "Not all attempts to refute the effects were survived: read the findings before relying on them."
    )
    return _report.section(
        "Attempts to refute it",
        _report.paragraph(overall),
        _report.table(("refuter", "verdict", "finding"), rows, text_columns=(1, 2)),
    )


def _given(options: argparse.Namespace) -> list[str]:
    names = ["bundle", "model", "weights", "image", "label", "dims", "class_", "roi", "normalize", "donors", "units", "metric"]
    names += ["draws", "precision", "seed", "refute", "components"]
    return [f"{name.rstrip('_')}={getattr(options, name)}" for name in names if getattr(options, name) is not None]


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` whose files are moved there when all are complete; nothing is left of it otherwise."""
    parent = out.absolute().parent
    new = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    done = False
    try:
        parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=parent))
        try:
            yield beside
            out.mkdir(exist_ok=True)
            for file in sorted(beside.iterdir()):
                os.replace(file, out / file.name)
            done = True
        finally:
            shutil.rmtree(beside)
    finally:
        if not done:
            for folder in new:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()
