"""``causalseg region``: the part of the image that is enough for the score, or without which it is lost."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import positive
from captum_causalseg.cli.case_command import CaseCommand

if TYPE_CHECKING:
    from captum_causalseg.cli.job import Job

__all__ = ["RegionCommand"]


class RegionCommand(CaseCommand):
    """A sufficient or necessary region, and further ones that are disjoint from it."""

    name = "region"
    help = "which part of the image is enough, or needed, for the segmentation"
    intent = (
        "Find the smallest part of the image that is enough for the score of a region of interest, with all else replaced by donors, or the smallest "
        "without which it is lost, and measure how much it keeps or takes away on donors that the search has not seen. Writes report.html, region.png, "
        "region.json, regions.csv, units.csv and the region itself: region.nii.gz for scans (1: the region, 2, 3, ...: its alternatives), mask.png for pictures."
    )
    example = (
        "causalseg region --bundle spleen/ --image scan.nii.gz --class 1",
        "--roi label:1 --donors training/ --kind necessary --share 0.9",
    )

    without_channels = "a region is found among parts of the image in all of its channels"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        parser.add_argument(
            "--kind",
            choices=("sufficient", "necessary"),
            default="sufficient",
            help="sufficient: kept while all else is replaced, it keeps the share; necessary: replaced while all else is kept, it takes the share away "
            "(default: sufficient)",
        )
        parser.add_argument(
            "--share",
            type=float,
            default=0.95,
            metavar="X",
            help="how much of the span, which is the observed score less the one with everything replaced (default: 0.95)",
        )
        parser.add_argument(
            "--of-score", action="store_true", help="take the share of the observed score itself, not of the span"
        )
        parser.add_argument(
            "--alternatives",
            type=int,
            default=0,
            metavar="N",
            help="look for so many further regions, each disjoint from the others (default: 0)",
        )
        parser.add_argument(
            "--beam", type=positive, default=1, metavar="N", help="also grow the best N sets of each size (default: 1, none)"
        )
        parser.add_argument(
            "--max-forwards",
            type=positive,
            metavar="N",
            help="images with donors that the network is shown at most (default: 100 per part of the image)",
        )

    def add_effort(self, group: argparse._ArgumentGroup) -> None:
        """See :meth:`CaseCommand.add_effort`."""
        group.add_argument(
            "--draws",
            type=positive,
            default=32,
            metavar="N",
            help="of donors, that each set of parts is tried with in the search, and as many to judge what was found (default: 32)",
        )

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum_causalseg.attr.region_search import necessary_region, sufficient_region
        from captum_causalseg.cli.errors import naming_arguments
        from captum_causalseg.cli.found_regions import regions_text, write_regions
        from captum_causalseg.cli.job import about_the_picture
        from captum_causalseg.cli.page import Drawing
        from captum_causalseg.cli.report import region_page
        from captum_causalseg.cli.results import records
        from captum_causalseg.visualization import plot_region

        case, options = job.case, job.options
        own = {name: f"--{name.replace('_', '-')}" for name in ("share", "alternatives", "max_forwards")}
        face = sufficient_region if options.kind == "sufficient" else necessary_region
        with naming_arguments(**own, share_of="--of-score"):
            region = face(
                case.target,
                case.image,
                case.donors,
                share=options.share,
                share_of="score" if options.of_score else "span",
                output=case.output,
                alternatives=options.alternatives,
                beam=options.beam,
                n_draws=options.draws,
                max_forwards=options.max_forwards,
                seed=options.seed,
                show_progress=True,
                **case.units.arguments,
            )
        seconds = job.seconds()
        write_regions(case, region, folder)
        job.found.update(forward_passes=region.n_forwards, regions=records(region.to_dataframe()))
        picture = Drawing(plot_region, case.image.cpu(), region, roi=case.roi, title=case.name, **about_the_picture(case))
        picture.save(folder / "region.png")
        (folder / "report.html").write_text(region_page(job, region, picture, seconds=seconds), encoding="utf-8")
        return regions_text(job, region, seconds=seconds)
