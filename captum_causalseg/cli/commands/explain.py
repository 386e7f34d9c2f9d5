"""``causalseg explain``: the effects of all units of one image."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import add_context
from captum_causalseg.cli.case_command import CaseCommand

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.job import Job

__all__ = ["Explain"]


class Explain(CaseCommand):
    """Effects of the image's parts; on request also of the network's, and attempts to refute them."""

    name = "explain"
    help = "explain one segmentation of a model of your own"
    intent = (
        "Estimate the effect of every unit of the image on the score of a region of interest. Writes report.html (one page with "
        "everything), effects.png, effects.csv, statistics.npz and, for scans, effects.nii.gz (opens over the scan in any viewer)."
    )
    example = (
        "causalseg explain --model nets:unet --weights unet.pt --image scan.nii.gz",
        "--label truth.nii.gz --class 1 --roi label:1 --donors training/",
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        add_context(parser)
        parser.add_argument("--refute", action="store_true", help="also try to refute the effects (about ten times the work)")
        parser.add_argument(
            "--components",
            metavar="PATTERN",
            help='also measure the effects of the network\'s modules with these names, e.g. "decoder.*"',
        )

        parser.add_argument(
            "--controls",
            choices=("edge",),
            help="also measure, for every part that has an effect, what the edge of a patch does by itself: the part's own tissue shifted by a "
            "pixel or two, and donors of its own brightness (16 further forward passes per part, 24 in a volume)",
        )
        parser.add_argument(
            "--compare-donors",
            action="store_true",
            help="also measure the effects with other kinds of donors (raw, matched, blended, neighbors, blur, zeros), and say what holds "
            "with all of them (about six times the work); needs --donors",
        )

    def check(self, options: argparse.Namespace) -> None:
        """See :meth:`CaseCommand.check`."""
        if options.context is None:
            return
        from captum_causalseg.cli.errors import InputError

        for name, given in (
            ("--controls", options.controls),
            ("--compare-donors", options.compare_donors),
        ):
            if given:
                raise InputError(f"{name}: it is about effects of single parts; give --context or {name}, not both")

    def check_case(self, case: "CommandCase", options: argparse.Namespace) -> None:
        """See :meth:`CaseCommand.check_case`."""
        if options.compare_donors and case.donor_images is None:
            from captum_causalseg.cli.errors import InputError

            raise InputError("--compare-donors: it needs --donors, a folder of images to make the kinds of")
        if options.components is not None:
            from captum_causalseg.cli.modules import check_modules

            check_modules(case, options.components, "--components")

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum_causalseg.cli.donors import compared_donors, donors_picture
        from captum_causalseg.cli.errors import naming_arguments
        from captum_causalseg.cli.job import effect_pictures, explainer_of, write_effects
        from captum_causalseg.cli.modules import component_picture, component_table
        from captum_causalseg.cli.report import Further, effects_page
        from captum_causalseg.cli.results import components_text, edge_text, effects_text
        from captum_causalseg.evaluation.refute import refute
        from captum_causalseg.writing.names import write_csv

        case, options = job.case, job.options
        explainer, effort = explainer_of(job)
        arguments = {"inputs": case.image, "baselines": case.donors, "target": case.output, **effort}
        if options.controls is not None:
            arguments["controls"] = options.controls
        report = components = donors = None
        with naming_arguments():
            if options.refute:
                report = refute(explainer, **arguments)
                statistics = report.statistics
            else:
                _, statistics = explainer.attribute(**arguments, return_statistics=True)
            if options.compare_donors:
                donors = compared_donors(job)
        if options.components is not None:
            components = component_table(job, options.components, "module", option="--components")
        seconds = job.seconds()
        effects, pictures = effect_pictures(job, statistics), {}
        for one in effects:
            one.effects.savefig(folder / one.file, dpi=110)
        write_effects(job, statistics, folder)
        said = [effects_text(case, options, statistics, seconds=seconds)]
        if statistics.controls:
            said.append(edge_text(case, statistics))
        if report is not None:
            write_csv(report.to_dataframe(), folder / "refutation.csv")
            said.append(str(report))
        if donors is not None:
            write_csv(donors.table.drop(columns="example"), folder / "donors.csv")
            pictures["donors"] = donors_picture(job, donors)
            pictures["donors"].savefig(folder / "donors.png", dpi=110)
            said.append(str(donors))
        if components is not None:
            write_csv(components, folder / "components.csv")
            pictures["components"] = component_picture(job, components)
            said.append(components_text(components))
        further = Further(refutation=report, components=components, donors=donors)
        page = effects_page(job, statistics, effects=effects, pictures=pictures, further=further, seconds=seconds)
        (folder / "report.html").write_text(page, encoding="utf-8")
        return "\n\n".join(said)
