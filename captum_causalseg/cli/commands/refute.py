"""``causalseg refute``: attempts to refute the effects."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import add_all_units, add_context
from captum_causalseg.cli.case_command import CaseCommand
from captum_causalseg.cli.errors import InputError

if TYPE_CHECKING:
    from captum_causalseg.cli.job import Job

__all__ = ["Refute"]


class Refute(CaseCommand):
    """Effects, and what is left of them with placebo donors, other donors, other draws and another model."""

    name = "refute"
    help = "try to refute the effects"
    intent = (
        "Estimate the effects and try to refute them: placebo donors, other donors, other draws, another model. Writes report.html, "
        "refutation.csv and the files of explain."
    )
    example = (
        "causalseg refute --model net.ts --image picture.png --label mask.png",
        "--roi point:80,90 --donors training/ --out result",
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        add_context(parser)
        add_all_units(parser)
        parser.add_argument(
            "--refuters",
            metavar="NAME,...",
            help="which: placebo, recompute, split, subset, seed, crossed, joints, dose, weights (default: all but joints, and with --context those that are about effects in a context)",
        )

    def check(self, options: argparse.Namespace) -> None:
        """See :meth:`CaseCommand.check`."""
        from captum_causalseg.evaluation.refute import REFUTERS

        unknown = [name for name in _names(options) or [] if name not in REFUTERS]
        if unknown:
            raise InputError(f"--refuters: there is no {unknown[0]!r}; expected some of {', '.join(REFUTERS)}")

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum_causalseg.cli.errors import naming_arguments
        from captum_causalseg.cli.job import effect_pictures, explainer_of, write_effects
        from captum_causalseg.cli.report import refutation_page
        from captum_causalseg.cli.results import effects_found, records
        from captum_causalseg.evaluation.refute import refute
        from captum_causalseg.writing.names import write_csv

        case = job.case
        explainer, effort = explainer_of(job)
        with naming_arguments():
            report = refute(
                explainer,
                case.image,
                baselines=case.donors,
                target=case.output,
                refuters=_names(job.options),
                **effort,
            )
        seconds = job.seconds()
        write_csv(report.to_dataframe(), folder / "refutation.csv")
        job.found.update(effects_found(case, report.statistics), refutation=records(report.to_dataframe()))
        pictures = effect_pictures(job, report.statistics)
        for one in pictures:
            one.effects.save(folder / one.file)
        write_effects(job, report.statistics, folder)
        (folder / "report.html").write_text(refutation_page(job, report, pictures, seconds=seconds), encoding="utf-8")
        return str(report)


def _names(options: argparse.Namespace) -> list[str] | None:
    names: list[str] | None = None if options.refuters is None else options.refuters.split(",")
    return names
