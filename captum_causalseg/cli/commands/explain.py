"""``causalseg explain``: the effects of all units of one image."""

import argparse
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import add_all_units, add_context
from captum_causalseg.cli.case_command import CaseCommand

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.job import Job
    from captum_causalseg.cli.page import Drawing
    from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["Explain"]


# What is done after the effects: the option, what it is, and about how often the work of the effects it takes, where that is known.
_FURTHER = (
    ("refute", "attempts to refute them", 10),
    ("compare_donors", "the same with other donors", 6),
    ("components", "the network's parts", None),
    ("pathway", "ways through the network", None),
)


def _to_come(
    options: argparse.Namespace,
    *,
    mediators: int = 0,
    measured: tuple[int, float] | None = None,
    done: Collection[str] = (),
) -> str:
    """What is done after the effects, with about how much work each part takes; empty if nothing is left.

    Args:
        options: of the command.
        mediators: layers at which effects are split.
        measured: forward passes and seconds of the effects, once they are known.
        done: options whose parts are finished.
    """
    from captum_causalseg.attr.progress import duration

    said, known, unknown = [], [], []
    for option, what, times in _FURTHER:
        if not getattr(options, option) or option in done:
            continue
        if option == "pathway":
            # A draw of a total effect is one pass; each mediator adds an indirect and a direct one.
            times = 1 + 2 * mediators
        if times is None:
            said.append(f"{what}, which say what they take when they begin")
            unknown.append(what)
            continue
        known.append(times)
        work = f"{what}, about {times} times the work"
        if measured is not None:
            work += f", some {times * measured[0]} forward passes and {duration(times * measured[1])}"
        said.append(work)
    if measured is not None and len(said) > 1 and known:
        without = f", without {unknown[0]}" if unknown else ""
        said.append(
            f"together some {sum(known) * measured[0]} forward passes and {duration(sum(known) * measured[1])}{without}"
        )
    return "; ".join(said)


class Explain(CaseCommand):
    """Effects of the image's parts; on request also of the network's, and attempts to refute them."""

    name = "explain"
    help = "explain one segmentation of a model of your own"
    intent = (
        "Estimate the effect of every unit of the image on the score of a region of interest. Writes report.html (one page with "
        "everything), effects.png, effects.csv, statistics.npz and, for scans, files that viewers open over the scan: effects.nii.gz, standard_error.nii.gz, "
        "significant.nii.gz, and the units as labels, units.nii.gz, with their names and colors (units.label.txt for ITK-SNAP, units.ctbl for 3D Slicer, "
        "units.lut for FSLeyes); of a DICOM series also effects.dcm and segments.dcm, where highdicom is installed."
    )
    example = (
        "causalseg explain --model nets:unet --weights unet.pt --image scan.nii.gz",
        "--label truth.nii.gz --class 1 --roi label:1 --donors training/",
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        super().add_arguments(parser)
        add_context(parser)
        add_all_units(parser)
        parser.add_argument("--refute", action="store_true", help="also try to refute the effects (about ten times the work)")
        parser.add_argument(
            "--components",
            metavar="PATTERN",
            help='also measure the effects of the network\'s modules with these names, e.g. "decoder.*"',
        )
        parser.add_argument(
            "--pathway",
            nargs="*",
            metavar="NAME",
            help="also measure what of every part's effect travels through each of these: levels or skips (of a U-Net; levels, if nothing is named), statistics "
            "(of instance, group and layer norms), or modules by their names (for each up to twice the work)",
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
        if options.pathway == []:
            options.pathway = ["levels"]
        if options.context is None:
            return
        from captum_causalseg.cli.errors import InputError

        for name, given in (
            ("--controls", options.controls),
            ("--compare-donors", options.compare_donors),
            ("--pathway", options.pathway),
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
        if options.pathway is not None:
            from captum_causalseg.cli.ways import check_ways

            check_ways(case, options.pathway, "--pathway")

    def explain(self, job: "Job", folder: Path) -> str:
        """See :meth:`CaseCommand.explain`."""
        from captum_causalseg.cli.donors import compared_donors, donors_picture
        from captum_causalseg.cli.errors import naming_arguments
        from captum_causalseg.cli.job import EffectPictures, effect_pictures, explainer_of, further_files, write_effects
        from captum_causalseg.cli.modules import component_picture, component_table
        from captum_causalseg.cli.report import Further, effects_page, pathway_section
        from captum_causalseg.cli.results import components_text, edge_text, effects_found, effects_text, records
        from captum_causalseg.cli.ways import count_ways, ways_of, write_ways
        from captum_causalseg.evaluation.refute import refute
        from captum_causalseg.writing.names import write_csv

        case, options = job.case, job.options
        explainer, effort = explainer_of(job)
        arguments = {"inputs": case.image, "baselines": case.donors, "target": case.output, **effort}
        if options.controls is not None:
            arguments["controls"] = options.controls
        pictures: dict[str, Drawing] = {}
        drawn: list[EffectPictures] = []
        found = nothing_further = Further()
        mediators = 0 if options.pathway is None else count_ways(case, options.pathway)
        measured: list[tuple[int, float]] = []
        done: list[str] = []
        if to_come := _to_come(options, mediators=mediators):
            print(f"the effects first, then {to_come}; what is finished is kept", file=sys.stderr, flush=True)

        def page(statistics: "TreatmentEffectStatistics", seconds: float) -> None:
            text = effects_page(job, statistics, effects=drawn, pictures=pictures, further=found, seconds=seconds)
            (folder / "report.html").write_text(text, encoding="utf-8")

        def estimated(statistics: "TreatmentEffectStatistics") -> None:
            seconds = job.seconds()
            drawn.extend(effect_pictures(job, statistics))
            for one in drawn:
                one.effects.save(folder / one.file)
            write_effects(job, statistics, folder)
            page(statistics, seconds)
            job.found.update(effects_found(case, statistics))
            said = ["\n".join([effects_text(case, options, statistics, seconds=seconds), *further_files(job)])]
            job.finished(folder, "\n\n".join([*said, *([edge_text(case, statistics)] if statistics.controls else [])]))
            measured.append((statistics.n_forwards, seconds))
            say_what_is_left()

        def say_what_is_left(*finished: str) -> None:
            done.extend(finished)
            if to_come := _to_come(options, mediators=mediators, measured=measured[0], done=done):
                print(f"to come: {to_come}", file=sys.stderr, flush=True)

        if options.refute:
            with naming_arguments():
                report = refute(explainer, **arguments, on_estimate=estimated)
            statistics = report.statistics
            write_csv(report.to_dataframe(), folder / "refutation.csv")
            found = replace(found, refutation=report)
            job.found["refutation"] = records(report.to_dataframe())
            page(statistics, job.seconds())
            job.finished(folder, str(report))
            say_what_is_left("refute")
        else:
            with naming_arguments():
                _, statistics = explainer.attribute(**arguments, return_statistics=True)
            estimated(statistics)
        if options.compare_donors:
            with naming_arguments():
                donors = compared_donors(job)
            write_csv(donors.table.drop(columns="example"), folder / "donors.csv")
            pictures["donors"] = donors_picture(job, donors)
            pictures["donors"].save(folder / "donors.png")
            found = replace(found, donors=donors)
            job.found["donors"] = records(donors.table.drop(columns="example"))
            page(statistics, job.seconds())
            job.finished(folder, str(donors))
            say_what_is_left("compare_donors")
        if options.components is not None:
            components = component_table(job, options.components, "module", option="--components")
            write_csv(components, folder / "components.csv")
            pictures["components"] = component_picture(job, components)
            found = replace(found, components=components)
            job.found["components"] = records(components)
            page(statistics, job.seconds())
            job.finished(folder, components_text(components, options.metric))
            say_what_is_left("components")
        if options.pathway is not None:
            ways = ways_of(job, options.pathway, "--pathway")
            drawing = write_ways(job, ways, folder)
            found = replace(found, sections=[*found.sections, pathway_section(ways, drawing)])
            job.found["pathway"] = records(ways.shares())
            page(statistics, job.seconds())
            job.finished(folder, str(ways))
        return "" if found is nothing_further else f"{job.seconds():.1f} s in all"
