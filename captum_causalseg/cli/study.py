"""Many cases from the command line: a table of them, and a study's options in a file of their own."""

import argparse
import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from captum.attr import IntegratedGradients

from captum_causalseg import regions
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.channels import of_channels
from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
from captum_causalseg.attr.mediated_treatment_effect import MediatedTreatmentEffect
from captum_causalseg.cli.arguments import Parser, add_command
from captum_causalseg.cli.case import CommandCase, read_case
from captum_causalseg.cli.case_command import check_options
from captum_causalseg.cli.commands.explain import Explain
from captum_causalseg.cli.errors import InputError, naming
from captum_causalseg.cli.mistakes import is_mistake, score_of_mistake
from captum_causalseg.cli.model import read_model
from captum_causalseg.cli.page import Drawing
from captum_causalseg.cli.results import score_in_words
from captum_causalseg.cli.study_page import Asked, mean_note, mean_rows, study_page
from captum_causalseg.cli.viewer_files import finite
from captum_causalseg.cli.ways import mediators_named
from captum_causalseg.cohort import (
    Cohort,
    CohortComparison,
    CohortSummary,
    compare_cohort,
    explain_cohort,
    plot_cohort_profile,
    summarize,
    summarize_comparison,
)
from captum_causalseg.cohort.engines import WorkerError
from captum_causalseg.evaluation.pathways import share_in_words
from captum_causalseg.images import save_map
from captum_causalseg.preparation.models import PreparedModel
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.writing.names import native, printable, write_csv

__all__ = ["run_comparison", "run_study"]

# What a study may say of its cases, and a row of its own case: the options of `causalseg explain`.
_OF_A_STUDY = (
    "bundle",
    "nnunet",
    "fold",
    "model",
    "weights",
    "device",
    "dims",
    "class",
    "roi",
    "normalize",
    "donors",
    "match",
    "blend",
    "units",
    "channels",
    "metric",
    "controls",
    "pathway",
)
_EFFORT = ("draws", "precision", "allocation", "seed", "context")
_OF_A_ROW = ("image", "label", "class", "roi", "donors", "units")
_FILES = ("bundle", "nnunet", "weights", "donors", "image", "label")
_PERHAPS_FILES = ("model", "roi", "units")
# Options that take several words.
_OF_SEVERAL = ("fold", "channels", "pathway")
# Columns of further files of an image, one per channel.
_FURTHER = re.compile(r"image_([2-9]|[1-9]\d+)")
# Entries of a prepared case that no column of a table can be called.
_CASE, _ARGUMENTS = "_command_case", ("baselines", "channels", "feature_mask", "target")
_OF_COMPARISONS = ("baselines", "feature_mask", "output")
_OURS = "treatment effects"


def run_study(options: argparse.Namespace) -> tuple[str, int]:
    """Explain every row; the text to print and the exit status: 1 where a case failed, or a file is not what it was.

    Raises:
        InputError: a file or an option cannot be used.
    """
    if options.verify:
        return _verified(options)
    for name in ("cases", "config"):
        if getattr(options, name) is None:
            raise InputError(f"--{name}: it has to be given; only --verify does without")
    study = _study(options.config)
    cases, columns = _cases(options.cases, study)
    rows = [study.of(row) for row in cases]
    asked = Asked(
        options=options,
        given=study.options,
        of_all=study.of({"image": "-", "roi": "-"}),
        rois=[row.roi for row in rows],
        metric=_one_score(rows),
    )
    with naming("--out"):
        cohort = _explain(cases, columns, study, options=options)
        return _said(cohort, asked)


def _one_score(cases: Iterable[argparse.Namespace]) -> str:
    """The score of all cases: effects on different ones have no common mean."""
    with naming("--config"):
        found: dict[str, str] = {
            case.metric or ((score_of_mistake(case.roi) or case.roi) if is_mistake(case.roi) else "dice"): case.roi
            for case in cases
        }
        for score, roi in found.items():
            if score == roi:
                raise InputError(
                    f"--config: roi: {roi} may be a false positive in one case and a missed part in another, which are scored differently; say "
                    "error:false_positive:1 or error:missed:1, or choose a metric for both"
                )
        if len(found) > 1:
            raise InputError(
                f"--config: metric: cases would be scored by {', '.join(sorted(found))}, as fits their roi; choose one for all"
            )
        return next(iter(found))


@dataclass(frozen=True)
class _Study:
    """Options of ``causalseg explain`` that hold for all cases.

    Args:
        options: by name, the words that follow it.
    """

    options: dict[str, list[str]] = field(default_factory=dict)

    def of(self, row: Mapping[str, str]) -> argparse.Namespace:
        """What ``causalseg explain`` would be told of a row."""
        given = self.options | {name: [row[name]] for name in _OF_A_ROW if row.get(name)}
        if "roi" not in given:
            raise InputError("roi: neither the study nor the row says where to look")
        given["image"] = [row["image"], *(row[name] for name in _further(row) if row[name])]
        words = [word for name, values in given.items() for word in (f"--{name}", *values)]
        options = _parser().parse_args(["explain", *words])
        check_options(options)
        return options


class _Load:
    """Reads the model, once per worker."""

    def __init__(self, study: _Study) -> None:
        self.study = study

    def __call__(self) -> PreparedModel:
        return read_model(self.study.of({"image": "-", "roi": "-"}))


class _Prepare:
    """Reads the files of a row."""

    def __init__(self, study: _Study) -> None:
        self.study = study

    def __call__(self, row: Mapping[str, Any], model: PreparedModel) -> dict[str, Any]:
        case = read_case(self.study.of(row), model)
        mask = case.units.arguments.get("feature_mask")
        if mask is None:
            mask = regions.grid(case.roi.shape, case.units.arguments["block_size"])[None, None]
        image = case.grids.prepared if case.grids.has_geometry else case.image
        return {
            **row,
            "image": image,
            "baselines": case.donors,
            "feature_mask": mask,
            "channels": case.units.modalities.asked,
            "target": case.output,
            _CASE: case,
        }


class _PrepareComparison(_Prepare):
    """The same for a comparison, whose arguments have other names."""

    def __call__(self, row: Mapping[str, Any], model: PreparedModel) -> dict[str, Any]:
        found = super().__call__(row, model)
        case: CommandCase = found[_CASE]
        mask = found["feature_mask"]
        if found.pop("channels") is not None:
            mask = of_channels([mask], [case.image], "each")[0][0]
        return found | {"image": case.image, "feature_mask": mask, "output": found.pop("target")}


def _make_target(case: Mapping[str, Any], model: PreparedModel) -> SegmentationTarget:
    found: CommandCase = case[_CASE]
    return found.target


def _write_map(path: Path, case: Mapping[str, Any], statistics: TreatmentEffectStatistics) -> None:
    """Effects on the grid of the scan's own file, or nothing where files have no geometry."""
    found: CommandCase = case[_CASE]
    if found.grids.has_geometry:
        save_map(path, finite(found.units.own_map(statistics, found.output, found.grids), "effect"), found.grids.own)


def _explain(cases: list[dict[str, str]], columns: list[str], study: _Study, options: argparse.Namespace) -> Cohort:
    effort = study.of({"image": "-", "roi": "-"})
    more = {name: getattr(effort, name) for name in ("controls", "allocation") if getattr(effort, name) is not None}
    if effort.context and options.shards > 1:
        raise InputError(
            "--shards: the contexts of joint effects are made of all units of a case, which cannot be divided among workers"
        )
    if effort.context is not None:
        more["context"] = effort.context
    method: Any = AverageTreatmentEffect if effort.context is None else JointTreatmentEffect
    if effort.pathway is not None:
        if effort.context is not None or effort.controls is not None:
            raise InputError("--config: pathway: effects are split at layers without context and controls; leave those out")
        # The map is that of the effects themselves.
        method = MediatedTreatmentEffect
        more |= {"layers": mediators_named(effort.pathway), "quantity": "total"}
    if options.ray is not None:
        more |= {
            "engine": "ray",
            "address": None if options.ray == "local" else options.ray,
            "num_workers": options.workers,
            "num_cpus": options.cpus,
            "num_gpus": options.gpus,
        }
    try:
        return explain_cohort(
            cases,
            _make_target,
            method=method,
            out=options.out,
            load_model=_Load(study),
            prepare=_Prepare(study),
            case_arguments=_ARGUMENTS,
            columns=columns,
            nifti=_write_map,
            shards=options.shards,
            n_draws=effort.draws,
            precision=effort.precision,
            seed=effort.seed,
            **more,
        )
    except InputError as error:
        raise InputError(f"--config: {error}") from error
    except WorkerError as error:
        raise InputError(f"--config: {str(error).splitlines()[0].removeprefix('load_model: ')}") from error


def run_comparison(options: argparse.Namespace) -> tuple[str, int]:
    """Compare methods on every row; the text to print and the exit status: 1 where a method failed at a case.

    Raises:
        InputError: a file or an option cannot be used.
    """
    if options.config is None:
        raise InputError("--config: it has to be given with --cases")
    study = _study(options.config)
    cases, columns = _cases(options.cases, study)
    _one_score(study.of(row) for row in cases)
    effort = study.of({"image": "-", "roi": "-"})
    if effort.pathway is not None:
        raise InputError("--config: pathway: causalseg cohort splits effects at layers; leave it out to compare methods")
    if effort.controls is not None or effort.channels not in (None, ["each"]):
        raise InputError("--config: maps are compared without controls, and on parts of the whole image or of each channel")
    folder: Path = options.out
    with naming("--out"):
        folder.mkdir(parents=True, exist_ok=True)
        found = _compare(cases, columns, study, out=folder / "comparison")
    return _written(found, folder)


def _compare(cases: list[dict[str, str]], columns: list[str], study: _Study, *, out: Path) -> CohortComparison:
    effort = study.of({"image": "-", "roi": "-"})
    draws: dict[str, Any] = {"n_draws": effort.draws, "precision": effort.precision, "seed": effort.seed}
    draws |= {} if effort.allocation is None else {"allocation": effort.allocation}
    joint = {"n_draws": effort.draws, "precision": effort.precision, "seed": effort.seed, "context": effort.context}
    methods: dict[str, Any] = {
        _OURS: (AverageTreatmentEffect, draws),
        **({} if effort.context is None else {f"joint effects, {effort.context}": (JointTreatmentEffect, joint)}),
        "gradient treatment effects": GradientTreatmentEffect,
        "integrated gradients": (_integrated_gradients, {"internal_batch_size": 4}),
        # One part after the other at 0 is what Captum's FeatureAblation does; the parts are each row's own.
        "feature ablation": (AverageTreatmentEffect, {"baselines": 0.0, "n_draws": 1, "n_screening_draws": 0}),
    }
    try:
        return compare_cohort(
            methods,
            cases,
            _make_target,
            out=out,
            load_model=_Load(study),
            prepare=_PrepareComparison(study),
            case_arguments=_OF_COMPARISONS,
            columns=columns,
            seed=effort.seed,
        )
    except InputError as error:
        raise InputError(f"--config: {error}") from error


def _integrated_gradients(target: SegmentationTarget) -> IntegratedGradients:
    return IntegratedGradients(target.surrogate())


def _written(found: CohortComparison, folder: Path) -> tuple[str, int]:
    """Tables beside the comparison, and what they say in short."""
    failed = found.failures()
    lines = [f"{row.method}, {row.case}: {' '.join(row.error.split())}" for row in failed.head(10).itertuples()]
    if len(failed) > 10:
        lines.append(f"... and {len(failed) - 10} more")
    lines += ["the same line tries them again", ""] if lines else []
    try:
        table = found.table()
    except FileNotFoundError:
        return "\n".join(["nothing was compared", *lines]).rstrip(), 1
    against = _OURS if _OURS in set(table["method"]) else None
    summary = summarize_comparison(table, against=against)
    for name, one in (
        ("scores", table),
        ("means", summary.means),
        ("differences", summary.differences),
        ("ranks", summary.ranks),
    ):
        write_csv(one, folder / f"{name}.csv")
    n_cases = table["case"].nunique()
    means = summary.means.pivot(index="metric", columns="method", values="mean")
    order = [list(dict.fromkeys(table[name])) for name in ("metric", "method")]
    said = means.reindex(index=order[0], columns=order[1]).to_string(float_format=lambda value: f"{value:.4g}")
    lines += [f"means of {n_cases} case{'' if n_cases == 1 else 's'}:", said, ""]
    lines.append(f"written to {printable(folder)}/: scores.csv, means.csv, differences.csv, ranks.csv, comparison/")
    return "\n".join(lines), int(len(failed) > 0)


def _study(file: Path) -> _Study:
    with naming("--config"):
        if not file.is_file():
            raise ValueError(f"there is no file {file}")
        yaml = _yaml()
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is no YAML file: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict):
            raise ValueError(f"expected options such as `model: nets:unet` in {file}, got {type(found).__name__}")
        for name, value in [*found.items()]:
            if name not in (*_OF_A_STUDY, *_EFFORT):
                raise ValueError(f"{file}: there is no option {name!r}; expected some of {', '.join((*_OF_A_STUDY, *_EFFORT))}")
            if name in _OF_SEVERAL and isinstance(value, list) and value:
                found[name] = value
            else:
                found[name] = [value]
            if any(isinstance(one, (dict, list, bool)) or one is None for one in found[name]):
                raise ValueError(f"{file}: expected a word or a number for {name!r}, got {value!r}")
        study = _Study({name: [_located(name, str(one), file.parent) for one in values] for name, values in found.items()})
        # Said once, and not of each case.
        try:
            study.of({"image": "-", "roi": "-"})
        except InputError as error:
            raise ValueError(f"{file}: {error}") from error
    return study


def _cases(file: Path, study: _Study) -> tuple[list[dict[str, str]], list[str]]:
    """The rows, and which of their columns are kept."""
    with naming("--cases"):
        if not file.is_file():
            raise ValueError(f"there is no file {file}")
        with open(file, newline="", encoding="utf-8-sig") as text:
            try:
                reader = csv.DictReader(text, strict=True)
                rows = list(reader)
                header = list(reader.fieldnames or [])
            except (csv.Error, UnicodeDecodeError) as error:
                raise ValueError(f"{file} is no table of comma-separated values: {error}") from error
        for name in ("id", "image"):
            if name not in header:
                raise ValueError(f"{file} has no column {name!r}, only {', '.join(header) or 'nothing'}")
        if len(set(header)) != len(header) or "" in header:
            raise ValueError(f"{file}: expected columns with different names, got {', '.join(map(repr, header))}")
        further = _further(header)
        if further != [f"image_{number}" for number in range(2, len(further) + 2)]:
            raise ValueError(
                f"{file}: expected the columns image, image_2, image_3, ... without gaps, got image, {', '.join(further)}"
            )
        if not rows:
            raise ValueError(f"there is no case in {file}")
        seen: dict[str, int] = {}
        for line, row in enumerate(rows, start=2):
            if None in row or None in row.values():
                raise ValueError(f"{file}, line {line}: expected {len(header)} values")
            if not row["id"] or not row["image"]:
                raise ValueError(f"{file}, line {line}: expected an id and an image")
            if seen.setdefault(row["id"], line) != line:
                raise ValueError(f"{file}, line {line}: the id {row['id']!r} is that of line {seen[row['id']]}")
            files = [row[name] for name in further]
            if "" in files and any(files[files.index("") :]):
                raise ValueError(
                    f"{file}, line {line}: {further[files.index('')]} is empty, and a later file of the image is not"
                )
            for name in _OF_A_ROW:
                if row.get(name):
                    row[name] = _located(name, row[name], file.parent)
            for name in further:
                if row[name]:
                    row[name] = _located("image", row[name], file.parent)
            try:
                study.of(row)
            except InputError as error:
                raise ValueError(f"{file}, line {line}: {error}") from error
        return rows, [name for name in header if name not in ("id", *_OF_A_ROW, *further)]


def _further(names: Iterable[str]) -> list[str]:
    """The columns of further files of an image, in the order of their numbers."""
    numbers = sorted(int(found.group(1)) for name in names if (found := _FURTHER.fullmatch(name)))
    return [f"image_{number}" for number in numbers]


def _located(name: str, value: str, folder: Path) -> str:
    """A file or folder as seen from the current folder: it is named as seen from the file that names it."""
    file = folder / native(value)
    return str(file) if name in _FILES or (name in _PERHAPS_FILES and file.is_file()) else value


def _verified(options: argparse.Namespace) -> tuple[str, int]:
    for name in ("cases", "config", "ray"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name}: --verify explains nothing and works only with --out")
    with naming("--out"):
        cohort = Cohort(options.out)
        found = cohort.verify()
        finished = sum(record["state"] == "finished" for record in cohort.records().values())
    if found.empty:
        return f"{options.out}/: all files of {finished} finished cases are as they were written", 0
    lines = [f"  {options.out}/{row.file}: {row.problem}" for row in found.itertuples()]
    lines = [f"{len(found)} files of {finished} finished cases are missing or damaged", *lines]
    return "\n".join([*lines, "the line that explained these cases does them again"]), 1


def _said(cohort: Cohort, asked: Asked) -> tuple[str, int]:
    """What to print of a study, whose summary, figures and report are written, and the exit status."""
    out = asked.options.out
    table = cohort.cases()
    failed = table[table["state"] == "failed"]
    lines = [f"{len(table) - len(failed)} of {len(table)} cases finished, {int(table['forwards'].sum())} forward passes"]
    lines += [f"  {row.id}: {' '.join(row.error.split())}" for row in failed.head(10).itertuples()]
    if len(failed) > 10:
        lines.append(f"  ... and {len(failed) - 10} more")
    if len(failed):
        lines.append(f"the same line tries them again; their errors are in {printable(out)}/errors/")
    summary = summarize(cohort) if len(failed) < len(table) else None
    said, written, figure = ([], [], None) if summary is None else _summary(summary, asked)
    (out / "report.html").write_text(study_page(asked, cohort, summary, figure=figure), encoding="utf-8")
    written = ["report.html", "cases.parquet", "units/", "cases/", *written]
    lines += [*said, "", f"written to {printable(out)}/: {', '.join(written)}"]
    return "\n".join(lines), int(len(failed) > 0)


def _summary(found: CohortSummary, asked: Asked) -> tuple[list[str], list[str], Drawing | None]:
    """What the finished cases have in common, in lines, the files that say it, and the picture among them."""
    out, figure = asked.options.out, None
    write_csv(found.cases, out / "summary.csv")
    written = ["summary.csv"]
    if not found.profile.empty:
        write_csv(found.profile, out / "profile.csv")
        figure = Drawing(plot_cohort_profile, found, narrow={"columns": 1}, score_name=score_in_words(asked.metric))
        figure.save(out / "profile.png")
        written += ["profile.csv", "profile.png"]
    for name, table in (("pathways", found.pathways), ("pathway_profile", found.pathway_profile)):
        if not table.empty:
            write_csv(table, out / f"{name}.csv")
            written.append(f"{name}.csv")
    n = int(found.cases["n_finished"].iloc[0])
    rows = mean_rows(found, asked.metric)
    width = max((len(row[0]) for row in rows), default=0)
    lines = ["", f"means of {n} case{'s' * (n != 1)} [{100 * found.level:g} % interval between cases]:"]
    lines += [f"  {said:<{width}}  {mean}{'  ' * bool(interval)}{interval}" for said, mean, interval in rows]
    for row in found.pathways[found.pathways["quantity"] == "share"].to_dict("records") if len(found.pathways) else ():
        known = f"of {row['n_cases']} cases" if row["n_unknown"] else ""
        said = share_in_words(
            {"share": row["mean"], "share_lower": row["lower"], "share_upper": row["upper"], "n_clear": row["n_clear"]}
        )
        lines.append(f"  share through {row['layer']}: {said} {known}".rstrip())
    note = mean_note(rows, found, asked.metric)
    return [*lines, *([f"  {note}"] if note else [])], written, figure


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError('studies are YAML files: pip install "captum-causalseg[io]"') from error
    return yaml


class _Raising(Parser):
    """Says what is wrong to the program, not to the terminal."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Raising(prog="causalseg")
    add_command(parser.add_subparsers(required=True, dest="command"), Explain())
    return parser
