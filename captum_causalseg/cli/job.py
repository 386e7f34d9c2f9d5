"""A case that is being explained: what it is computed with, and what every command writes of it."""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captum_causalseg._version import __version__
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.dicom_files import dicom_files_of, has_highdicom, write_dicom_objects
from captum_causalseg.cli.errors import InputError, naming
from captum_causalseg.cli.page import Drawing
from captum_causalseg.cli.results import score_in_words, sign_words
from captum_causalseg.cli.viewer_files import write_volumes
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.target import SegmentationTarget
from captum_causalseg.visualization import plot_effects
from captum_causalseg.writing.files import moved_up, staged
from captum_causalseg.writing.names import printable, write_csv

__all__ = [
    "EffectPictures",
    "Job",
    "about_the_picture",
    "effect_pictures",
    "explainer_in",
    "explainer_of",
    "further_files",
    "results",
    "write_effects",
]


@dataclass(frozen=True)
class Job:
    """A case, and what is asked of it.

    Args:
        case: what is explained.
        options: of the command.
        began: when, of ``time.perf_counter``.
        kept: names of the files that are complete, and where they are to be.
        found: what ``--json`` prints besides: numbers, words, lists and mappings of them.
    """

    case: CommandCase
    options: argparse.Namespace
    began: float = field(default_factory=time.perf_counter)
    kept: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)

    def seconds(self) -> float:
        """How long it has taken until now."""
        return time.perf_counter() - self.began

    def keep(self, folder: Path) -> None:
        """A part of the work is done: its files stay, whatever becomes of the next."""
        self.kept.extend(name for name in moved_up(folder) if name not in self.kept)

    def finished(self, folder: Path, said: str) -> None:
        """Likewise, and say what was found."""
        self.keep(folder)
        if not self.options.json:
            print(f"{said}\n", flush=True)

    def as_json(self) -> str:
        """One object with all that was found."""
        options, described = self.options, self.case.described
        about = {name.lower().replace(" ", "_"): said for name, said in described.items()}
        return json.dumps(
            {
                "causalseg": __version__,
                "command": options.command,
                "case": about,
                "metric": options.metric,
                "chosen": list(self.case.chosen),
                **self.found,
                "seconds": round(self.seconds(), 1),
                "folder": printable(options.out),
                "files": sorted(self.kept),
            },
            indent=2,
            allow_nan=False,
        )

    def effort(self) -> dict[str, Any]:
        """Arguments of ``attribute``: the units, and how much is computed."""
        options = self.options
        return {
            "n_draws": options.draws,
            "n_screening_draws": min(3, options.draws),
            "precision": options.precision,
            "seed": options.seed,
            "show_progress": True,
            **({} if options.allocation is None else {"allocation": options.allocation}),
            **self.case.units.arguments,
        }


def explainer_of(job: Job) -> tuple[AverageTreatmentEffect | JointTreatmentEffect, dict[str, Any]]:
    """Whose effects are asked for, single or joint ones, and the arguments of ``attribute`` besides the image, its donors and the output."""
    target, effort = job.case.target, job.effort()
    if job.options.context is None:
        return AverageTreatmentEffect(target), effort
    return explainer_in(job.options.context, target, effort)


def explainer_in(
    context: str | float, target: SegmentationTarget, effort: dict[str, Any]
) -> tuple[JointTreatmentEffect, dict[str, Any]]:
    """Who explains in a context, and what the effort of single effects is there."""
    kept = {name: value for name, value in effort.items() if context == 0 or name != "n_screening_draws"}
    return JointTreatmentEffect(target), {**kept, "context": context}


@dataclass(frozen=True)
class EffectPictures:
    """Effects on the prepared image, of a channel where channels are replaced by themselves.

    Args:
        file: where the effects are drawn.
        modality: the channel's name; empty for all of the image.
        effects: with their standard errors.
        intervals: the ends of their intervals.
    """

    file: str
    modality: str
    effects: Drawing
    intervals: Drawing


def about_the_picture(case: CommandCase) -> dict[str, Any]:
    """What every picture of the case shows besides: the segmentation that is explained, and which way the patient lies."""
    grids = case.grids
    return {
        "segmentation": case.prediction,
        "reference": case.reference,
        "affine": grids.prepared_affine,
        "spacing": grids.prepared_spacing,
    }


def effect_pictures(job: Job, statistics: TreatmentEffectStatistics) -> list[EffectPictures]:
    """One, or one for each channel that is replaced by itself."""
    case, metric = job.case, job.options.metric
    drawn: dict[str, Any] = {
        "image": case.image.cpu(),
        "statistics": statistics,
        "roi": case.roi,
        "target": case.output,
        "score_name": score_in_words(metric),
        "words": sign_words(metric),
        **about_the_picture(case),
        "narrow": {"columns": 1},
    }
    modalities, found = case.units.modalities, []
    for channel, modality in modalities.shown:
        title = ", ".join(part for part in (case.name, modality) if part)
        found.append(
            EffectPictures(
                file=modalities.file_name("effects", channel, ".png"),
                modality=modality,
                effects=Drawing(plot_effects, **drawn, title=title, channel=channel),
                intervals=Drawing(plot_effects, **drawn, title=modality, channel=channel, panels=("lower", "upper")),
            )
        )
    return found


def write_effects(job: Job, statistics: TreatmentEffectStatistics, folder: Path) -> None:
    """``effects.csv``, ``statistics.npz`` and, for scans, what viewers open over the scan."""
    case = job.case
    table = case.units.in_own_voxels(statistics.to_dataframe())
    if not job.options.all_units:
        table = table[table["status"] != Status.OUTSIDE_SUPPORT.name]
    write_csv(table, folder / "effects.csv")
    statistics.save(folder / "statistics.npz")
    if case.grids.has_geometry:
        write_volumes(case, statistics, folder)
        if (series := _series_of(job)) and has_highdicom():
            write_dicom_objects(case, statistics, series, words=sign_words(job.options.metric), folder=folder)


def further_files(job: Job) -> list[str]:
    """What could have been written of the effects, in a line, if anything."""
    if not _series_of(job) or has_highdicom():
        return []
    return ['effects as DICOM objects: pip install "captum-causalseg[dicom]"']


def _series_of(job: Job) -> list[Path]:
    """The files of the DICOM series that is explained; none where objects of it, which name the patient, are not to be written."""
    own = job.case.grids.own
    return [] if job.options.private or own.ndim != 5 else dicom_files_of(job.options.image)


@contextmanager
def results(out: Path) -> Iterator[Path]:
    """Where the results are written until all are complete; what cannot be written is about the option."""
    with ExitStack() as left:
        with naming("--out"):
            folder = left.enter_context(staged(out))
        try:
            yield folder
            left.close()
        except OSError as error:
            # Files that are read have been named already; this is about one that is written.
            raise InputError(f"--out: {error}") from error
