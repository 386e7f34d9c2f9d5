"""``causalseg pathway``: through which layers of the network a region acts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import positive
from captum_causalseg.cli.case_command import CaseCommand

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.job import Job

__all__ = ["PathwayCommand"]


class PathwayCommand(CaseCommand):
    """The effect of a region, or of every part of the image, split at layers of the network."""

    name = "pathway"
    help = "through which layers of the network a region acts"
    intent = (
        "Replace a region of the image, or every part of it by itself, and measure what of its effect on the score of a region of interest travels through each level of the network (a "
        "U-Net), skip connection, layer, or through the statistics of its norms; what goes around it; and what takes both ways at once. Writes report.html, pathway.png, "
        "pathway.csv and, without --region, by_distance.csv."
    )
    example = (
        "causalseg pathway --bundle spleen/ --image scan.nii.gz --class 1",
        "--roi label:1 --donors training/ --region box:40,40,8+32 --layers levels skips",
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        parser.add_argument(
            "--region",
            metavar="WHERE",
            help="the region that is replaced: box:72,88+32 (start and size), or a mask file on the image's grid (default: every part of the image by itself)",
        )
        parser.add_argument(
            "--layers",
            nargs="+",
            default=["levels"],
            metavar="NAME",
            help="levels or skips (of a U-Net), statistics (of instance, group and layer norms), or modules by their names, which may contain * and ? "
            "(default: levels)",
        )

    def add_effort(self, group: argparse._ArgumentGroup) -> None:
        """See :meth:`CaseCommand.add_effort`."""
        group.add_argument("--draws", type=positive, metavar="N", help="of donors, for the region or each part (default: 20)")
        group.add_argument(
            "--precision",
            type=float,
            metavar="X",
            help="continue until the half-widths of the 95 %% intervals of total, indirect and direct effects are at most X, in the score's units",
        )

    def check_case(self, case: "CommandCase", options: argparse.Namespace) -> None:
        """See :meth:`CaseCommand.check_case`."""
        from captum_causalseg.cli.ways import check_ways

        check_ways(case, options.layers, "--layers")

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum_causalseg.cli.errors import naming
        from captum_causalseg.cli.places import find_region
        from captum_causalseg.cli.report import pathway_page
        from captum_causalseg.cli.ways import ways_of, write_ways

        case, options = job.case, job.options
        region = None
        if options.region is not None:
            with naming("--region"):
                region = find_region(options.region, case.grids)
        found = ways_of(job, options.layers, "--layers", region=region)
        seconds = job.seconds()
        picture = write_ways(job, found, folder)
        (folder / "report.html").write_text(pathway_page(job, found, picture, seconds=seconds), encoding="utf-8")
        return f"{found}\n{found.n_forwards} forward passes of one image, {seconds:.1f} s"
