"""A case that is being explained: what it is computed with, and what every command writes of it."""

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.errors import InputError, naming
from captum_causalseg.cli.results import score_in_words, sign_words
from captum_causalseg.images import save_map
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.visualization import plot_effects
from captum_causalseg.writing.files import staged
from captum_causalseg.writing.names import write_csv

__all__ = ["Job", "effect_pictures", "results", "write_effects"]


@dataclass(frozen=True)
class Job:
    """A case, and what is asked of it.

    Args:
        case: what is explained.
        options: of the command.
        began: when, of ``time.perf_counter``.
    """

    case: CommandCase
    options: argparse.Namespace
    began: float = field(default_factory=time.perf_counter)

    def seconds(self) -> float:
        """How long it has taken until now."""
        return time.perf_counter() - self.began

    def effort(self) -> dict[str, Any]:
        """Arguments of ``attribute``: the units, and how much is computed."""
        options = self.options
        return {
            "n_draws": options.draws,
            "n_screening_draws": min(3, options.draws),
            "precision": options.precision,
            "seed": options.seed,
            "show_progress": True,
            **self.case.units.arguments,
        }


def effect_pictures(job: Job, statistics: TreatmentEffectStatistics) -> dict[str, Figure]:
    """``effects``, with their standard errors, and ``intervals``, the ends of theirs, on the prepared image."""
    case, metric = job.case, job.options.metric
    drawn: dict[str, Any] = {
        "image": case.image.cpu(),
        "statistics": statistics,
        "roi": case.roi,
        "target": case.output,
        "score_name": score_in_words(metric),
        "words": sign_words(metric),
        "spacing": case.grids.prepared_spacing,
    }
    return {
        "effects": plot_effects(**drawn, title=case.name),
        "intervals": plot_effects(**drawn, panels=("lower", "upper")),
    }


def write_effects(job: Job, statistics: TreatmentEffectStatistics, folder: Path) -> None:
    """``effects.csv``, ``statistics.npz`` and, for scans, ``effects.nii.gz``."""
    case = job.case
    write_csv(case.units.in_own_voxels(statistics.to_dataframe()), folder / "effects.csv")
    statistics.save(folder / "statistics.npz")
    if case.grids.has_geometry:
        save_map(folder / "effects.nii.gz", case.units.own_map(statistics, case.output, case.grids), like=case.grids.own)


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
