"""``causalseg demo``: explain one segmentation, end to end on real input, and write what was found into a folder."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import positive
from captum_causalseg.cli.command import Command
from captum_causalseg.cli.errors import InputError
from captum_causalseg.writing.names import printable

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.demo.cases import Case
    from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["Demo", "explain", "report"]


class Demo(Command):
    """Explains a case that comes with the package, or a picture of the user's."""

    name = "demo"
    help = "explain a brain slice, or a picture of your own"
    description = (
        "Estimate the effect of every 8 x 8 block on the Dice of a region of interest, with natural donors, and write one page with "
        "everything (report.html), a picture (effects.png), a table (effects.csv) and the statistics (statistics.npz). Without --image: grey matter in an axial "
        "slice of the ICBM152 brain, segmented by a small U-Net that ships with the package."
    )
    when_interrupted = "nothing was written"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        parser.add_argument(
            "--image", type=Path, metavar="FILE", help="an RGB picture to explain instead; a small network is trained on it"
        )
        parser.add_argument("--label", type=Path, metavar="FILE", help="its mask, 0 for background")
        parser.add_argument(
            "--patches", type=Path, metavar="FILE.npz", help="donors: 8-bit patches (D, h, w, 3); default: the picture itself"
        )
        parser.add_argument(
            "--roi", type=_box, metavar="box:ROW,COL+SIZE", help="where to look, e.g. box:72,88+32 (in the 256 x 256 picture)"
        )
        parser.add_argument("--draws", type=positive, default=20, metavar="N", help="interventions per block (default: 20)")
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the draws (default: 0)")
        parser.add_argument(
            "--out",
            type=Path,
            default=Path("causalseg-demo"),
            metavar="DIR",
            help="folder for the results (default: causalseg-demo)",
        )

    def run(self, options: argparse.Namespace) -> tuple[str, int]:
        """See :meth:`Command.run`."""
        if options.image is None and (options.label or options.patches):
            raise InputError("--image: it needs --label and --patches")
        if options.image is not None and options.label is None:
            raise InputError("--label: --image needs it, the mask that the segmentation is compared with")
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"--out: {options.out} is a file, expected a folder")
        from captum_causalseg.demo.cases import brain_case, picture_case

        try:
            box = None if options.roi is None else _start_and_size(options.roi)
            if options.image is None:
                case = brain_case(box)
            else:
                case = picture_case(options.image, options.label, options.patches, box=box, seed=options.seed)
        except (ValueError, ImportError, OSError) as error:
            raise InputError(str(error)) from error
        said = _explained(case, _Asked(**vars(options)))
        return f"{said}\n\nwritten to {printable(options.out)}/: effects.csv, effects.png, report.html, statistics.npz", 0


class _Asked(argparse.Namespace):
    """What results are told by the options of other commands and the demo has none for; not among ``vars``, so no command line repeats it."""

    metric = "dice"
    precision = None
    private = False
    all_units = True


def explain(case: "Case", out: Path, *, n_draws: int = 20, seed: int = 0, show_progress: bool = True) -> str:
    """Estimate the effect of every block on the RoI's Dice, write the results into ``out``, and return a short report."""
    return _explained(case, _Asked(command="demo", draws=n_draws, seed=seed, out=out), show_progress=show_progress)


def report(statistics: "TreatmentEffectStatistics", case: "Case", seconds: float) -> str:
    """What the demo prints."""
    from captum_causalseg.cli.results import effects_text

    return effects_text(_command_case(case), _Asked(), statistics, seconds=seconds)


def _explained(case: "Case", asked: _Asked, *, show_progress: bool = True) -> str:
    # Imported late: `causalseg --help` should not wait for torch.
    from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
    from captum_causalseg.cli.job import Job, effect_pictures, results, write_effects
    from captum_causalseg.cli.report import Further, effects_page
    from captum_causalseg.cli.results import effects_text

    own = _command_case(case)
    job = Job(own, asked)
    with results(asked.out) as folder:
        _, statistics = AverageTreatmentEffect(own.target).attribute(
            own.image,
            baselines=own.donors,
            target=own.output,
            n_draws=asked.draws,
            seed=asked.seed,
            show_progress=show_progress,
            return_statistics=True,
            **own.units.arguments,
        )
        seconds = job.seconds()
        drawn = effect_pictures(job, statistics)
        for one in drawn:
            one.effects.save(folder / one.file)
        write_effects(job, statistics, folder)
        page = effects_page(job, statistics, effects=drawn, pictures={}, further=Further(), seconds=seconds)
        (folder / "report.html").write_text(page, encoding="utf-8")
    return effects_text(own, asked, statistics, seconds=seconds)


def _command_case(case: "Case") -> "CommandCase":
    """The case as the results of all commands take it."""
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.digests import CaseFile
    from captum_causalseg.cli.files import name_of
    from captum_causalseg.donors import PatchBank
    from captum_causalseg.preparation.grid import Grids
    from captum_causalseg.preparation.units import Units
    from captum_causalseg.target import SegmentationTarget

    target = SegmentationTarget(case.network, roi=case.roi, reference=case.reference)
    prediction, reference = target.segmentations(case.image)
    grids = Grids(case.image, case.image, picture=True, whose="the picture shown")
    units = Units({"block_size": 8}, "blocks of 8 x 8 pixels")
    channel = case.target or 0
    described = {
        "Image": f"{case.title} ({' x '.join(map(str, grids.shape))} pixels)",
        "Model": case.model_name,
        "Class": case.class_name,
        "Region of interest": f"{case.place}, {int(case.roi.sum())} pixels",
        "Places": grids.in_words(),
        "Compared with": "a reference segmentation",
        "Parts of the image": units.described,
        "Replaced by": case.donors_name,
        "Score": _Asked.metric,
    }
    return CommandCase(
        name=case.title,
        grids=grids,
        image=case.image,
        target=target,
        roi=case.roi,
        place=case.place,
        output=case.target,
        prediction=prediction[0, channel],
        reference=None if reference is None else reference[0, channel],
        donors=case.donors,
        donor_images=[*bank.images.given] if isinstance(bank := case.donors, PatchBank) else None,
        units=units,
        described=described,
        files=[CaseFile(what, name_of(path), path) for what, path in case.files],
    )


def _box(text: str) -> str:
    """Not more than checked: the command is repeated in the report as it was typed."""
    if re.fullmatch(r"box:\d+,\d+\+\d+", text) is None:
        raise argparse.ArgumentTypeError(f"expected box:ROW,COL+SIZE, e.g. box:72,88+32, got {text!r}")
    return text


def _start_and_size(text: str) -> tuple[tuple[int, ...], int]:
    row, column, size = map(int, re.findall(r"\d+", text))
    return (row, column), size
