"""``causalseg components``: the effects of the network's parts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import positive
from captum_causalseg.cli.case_command import CaseCommand

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.job import Job

__all__ = ["Components"]


class Components(CaseCommand):
    """Effects of modules, or of their channels, tokens or attention heads."""

    name = "components"
    help = "which modules of the network matter"
    intent = (
        "Estimate the effect of every module of the network on the score of a region of interest, its activations replaced by those "
        "on donor images (by 0 without --donors). Writes report.html, components.csv and components.png."
    )
    example = (
        "causalseg components --bundle spleen/ --image scan.nii.gz --class 1",
        '--roi boundary:3 --layers "model.*" --out result',
    )

    without_channels = "it is about parts of the image, and this command about parts of the network"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        parser.add_argument(
            "--layers", metavar="PATTERN", help="only modules with these names, which may contain * and ? (default: all)"
        )
        parser.add_argument(
            "--level",
            choices=("module", "channel", "token", "head"),
            default="module",
            help="whole modules, or each of their channels, tokens or attention heads",
        )

    def add_effort(self, group: argparse._ArgumentGroup) -> None:
        """See :meth:`CaseCommand.add_effort`."""
        group.add_argument("--draws", type=positive, metavar="N", help="interventions per part (default: 20)")

    def check_case(self, case: "CommandCase", options: argparse.Namespace) -> None:
        """See :meth:`CaseCommand.check_case`."""
        from captum_causalseg.cli.modules import check_modules

        check_modules(case, options.layers, "--layers")

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum_causalseg.cli.modules import component_picture, component_table
        from captum_causalseg.cli.report import components_page
        from captum_causalseg.cli.results import components_text, records
        from captum_causalseg.writing.names import write_csv

        table = component_table(job, job.options.layers, job.options.level, option="--layers")
        seconds = job.seconds()
        job.found["components"] = records(table)
        write_csv(table, folder / "components.csv")
        picture = component_picture(job, table, title=job.case.name)
        picture.save(folder / "components.png")
        (folder / "report.html").write_text(components_page(job, table, picture, seconds=seconds), encoding="utf-8")
        return components_text(table, job.options.metric)
