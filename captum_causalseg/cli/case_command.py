"""What the commands have in common that explain a case of one's own: their arguments, read without torch, and their course."""

import argparse
import math
import sys
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from captum_causalseg.cli.arguments import positive
from captum_causalseg.cli.command import Command
from captum_causalseg.cli.errors import InputError
from captum_causalseg.writing.names import printable

if TYPE_CHECKING:
    from captum_causalseg.cli.case import CommandCase
    from captum_causalseg.cli.job import Job

__all__ = ["CaseCommand", "check_options"]

# Per unit; with a precision to reach, the most on the average.
_DRAWS, _JOINT_DRAWS, _BUDGET = 20, 50, 500
_CASE = """\
one model:   --bundle DIR (MONAI), --nnunet DIR, --model FILE.ts (TorchScript),
             or --model package.module:factory --weights FILE
one image:   --image FILE (NIfTI, NRRD, PNG, JPEG, DICOM file or folder),
             with --label FILE if there is a reference segmentation
one region:  --roi WHERE, in which the segmentation is scored

Places are given in the image file's own pixels or voxels, also where the model's own pre-processing turns, resamples or crops the image; what \
is written lies on the file's grid, too.
"""


class CaseCommand(Command):
    """Explains a case: reads everything, computes, writes a folder that is complete or not there, and says what was found.

    Attributes:
        intent: what the command does and writes; the description begins with it.
        example: of a call, its lines.
    """

    intent: ClassVar[str]
    example: ClassVar[tuple[str, ...]]
    when_interrupted = "nothing was written"
    # Why `--channels` does not go with the command, where it does not.
    without_channels: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.description = f"{cls.intent}\n\n{_CASE}"
        cls.epilog = "example:\n  " + " \\\n      ".join(cls.example)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`; the command's own come after these."""
        _add_model(parser)
        _add_case(parser)
        effort = parser.add_argument_group("effort and output")
        self.add_effort(effort)
        _add_output(effort, self.name)

    def add_effort(self, group: argparse._ArgumentGroup) -> None:
        """Add what says how much is computed."""
        group.add_argument(
            "--draws",
            type=positive,
            metavar="N",
            help="interventions per unit; with --precision, the most per unit on average (default: 20, of joint effects 50; with --precision 500)",
        )
        group.add_argument(
            "--precision",
            type=float,
            metavar="X",
            help="continue until the half-width of every 95 %% interval is at most X, in the score's units",
        )
        group.add_argument(
            "--allocation",
            choices=("needed", "equal"),
            help="needed: from 12 draws on, half of them go to the units that are known the least, and --draws is their mean; equal: every unit has as many "
            "(default: needed)",
        )

    def run(self, options: argparse.Namespace) -> tuple[str, int]:
        """See :meth:`Command.run`."""
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"--out: {options.out} is a file, expected a folder")
        check_options(options)
        if self.without_channels is not None and (options.channels is not None or options.units == "channel_block"):
            raise InputError(f"--channels: {self.without_channels}")
        self.check(options)
        # Imported late: `--help`, and what is wrong with an option, should not wait for torch and MONAI.
        from captum_causalseg.cli.case import read_case
        from captum_causalseg.cli.job import Job, results

        case = read_case(options)
        self.check_case(case, options)
        job = Job(case, options)
        if case.chosen and not options.json:
            print("\n".join([*case.chosen, ""]), flush=True)
        try:
            with results(options.out) as folder:
                said = self.explain(job, folder)
                job.keep(folder)
        except BaseException:
            if job.kept:
                self.when_interrupted = "what was finished is kept"
                print(f"kept in {printable(options.out)}/: {', '.join(sorted(job.kept))}", file=sys.stderr)
            raise
        if options.json:
            return job.as_json(), 0
        written = f"written to {printable(options.out)}/: {', '.join(sorted(job.kept))}"
        return "\n\n".join([*([said] if said else []), written]), 0

    def check(self, options: argparse.Namespace) -> None:
        """Refuse options that cannot be used, before any file is read."""

    def check_case(self, case: "CommandCase", options: argparse.Namespace) -> None:
        """Refuse what does not go with the case, before anything is computed."""

    @abstractmethod
    def explain(self, job: "Job", folder: Path) -> str:
        """Compute, write the results into the folder, and return what to print at the end; parts that stand alone are for ``job.finished``."""


def check_options(options: argparse.Namespace) -> None:
    """Refuse what cannot be, before any file is read, and settle how many draws there are where that was not said.

    Raises:
        InputError: the message begins with the option.
    """
    if options.class_ is not None and options.nnunet is None and not options.class_.removeprefix("-").isdecimal():
        raise InputError(f"--class: expected a number, got {options.class_!r}; names go with --nnunet")
    wrong = [fold for fold in options.fold if not (fold.isdecimal() or fold == "all")]
    if wrong:
        raise InputError(f"--fold: expected numbers or all, got {wrong[0]!r}")
    if options.seed < 0:
        raise InputError(f"--seed: expected a number of at least 0, got {options.seed}")
    precision = getattr(options, "precision", None)
    if precision is not None and not 0 < precision < math.inf:
        raise InputError(f"--precision: expected a positive number, got {precision:g}")
    if options.draws is None:
        usual = _JOINT_DRAWS if vars(options).get("context") else _DRAWS
        options.draws = usual if precision is None else _BUDGET


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model")
    which = model.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--bundle",
        type=Path,
        metavar="DIR",
        help="a MONAI bundle; its configuration files are programs, so use only bundles that you trust",
    )
    which.add_argument(
        "--nnunet",
        type=Path,
        metavar="DIR",
        help="the folder of a trained nnU-Net (with plans.json, dataset.json and fold_0); it needs nnunetv2",
    )
    which.add_argument(
        "--model",
        metavar="NETWORK",
        help="MODULE:FACTORY, a function without arguments that returns the network (looked for in the current folder too), or a TorchScript file",
    )
    model.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict for the factory's network; with --bundle, weights to use instead of the bundle's own; with "
        "--nnunet, the name of the checkpoint in each fold (default: checkpoint_final.pth)",
    )
    model.add_argument(
        "--fold", nargs="+", default=["0"], metavar="N", help="with --nnunet, which folds; several are averaged (default: 0)"
    )
    model.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, else cpu)")


def _add_case(parser: argparse.ArgumentParser) -> None:
    case = parser.add_argument_group("the case")
    case.add_argument(
        "--image",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="the image to explain; with --bundle and --nnunet also several files, one per channel",
    )
    case.add_argument(
        "--label",
        type=Path,
        metavar="FILE",
        help="the reference segmentation on the image's grid (or on the prepared one), 0, 1, ... per class; a mask of 0 and 255 counts "
        "as 0 and 1 (default: the model's own prediction)",
    )
    case.add_argument(
        "--dims",
        type=int,
        choices=(2, 3),
        help="how many spatial axes the image must have; with 2, a volume of one slice is that slice (default: those of the file)",
    )
    case.add_argument(
        "--class",
        dest="class_",
        metavar="N",
        help="the class to explain, counted from 0, or its name in an nnU-Net's data set (default: the only one, or 1 of two)",
    )
    case.add_argument(
        "--roi",
        required=True,
        metavar="WHERE",
        help="box:72,88+32 (start and size; per axis: box:72,88,4+32,32,8); point:80,90 (the object there) or label:2, with --nnunet also "
        "a name such as label:tumor (both in --label, else in the prediction); boundary:3 (pixels of the prepared image on both sides of the predicted outline of the class); "
        "error:1 (the largest connected part that the model got wrong about the class, compared with --label), error:false_positive:2, error:missed:1; "
        "or a mask file on the image's grid",
    )
    case.add_argument(
        "--normalize",
        choices=("none", "255", "range", "zscore"),
        default="none",
        help="intensities of image and donors, as the network was trained: as in the file, divided by 255, minimum 0 and maximum 1, "
        "or mean 0 and standard deviation 1 (default: none; bundles and nnU-Net do it themselves)",
    )
    case.add_argument(
        "--donors",
        type=Path,
        metavar="DIR",
        help="folder of images to cut donors from, of which the explained image is none; where an image has several files, a folder for each image, or names that end "
        "in numbers (case_0000, case_0001) (default: the image itself)",
    )
    case.add_argument(
        "--match",
        choices=("mean", "mean_std", "histogram"),
        help="give every donor the mean, the mean and spread, or all the values of the part that it replaces, per channel, so that it does "
        "not bring a step of brightness with it (default: donors as they are)",
    )
    case.add_argument(
        "--blend",
        type=int,
        default=0,
        metavar="N",
        help="fade every donor in over N pixels of the prepared image from the border of the part that it replaces (default: 0)",
    )
    case.add_argument(
        "--units",
        default=None,
        metavar="SIZE",
        help="edge of the blocks in the image file's pixels: 8, or 8x8x4 per axis; or a file of labels on the image's grid (default: as "
        "many as make 8 pixels of the prepared image); channel_block: these in each channel by itself, as with --channels each",
    )
    case.add_argument(
        "--channels",
        nargs="+",
        metavar="NAME",
        help="for images of several channels (modalities): each, to replace every part in each channel by itself, so that effects say what T1 "
        "contributes there and what T2; or names (of the nnU-Net's data set or the bundle's metadata) or numbers, counted from 0, of those that "
        "are replaced (default: all together)",
    )
    case.add_argument(
        "--metric",
        metavar="NAME",
        help="the score: dice, iou, surface_dice, hausdorff_95, volume, ...; an unknown name lists them all (default: dice; with --roi error:1 "
        "volume of a false positive, detection of a missed part, soft_dice of what is both)",
    )


def _add_output(group: argparse._ArgumentGroup, name: str) -> None:
    group.add_argument("--seed", type=int, default=0, metavar="N", help="random seed of the draws (default: 0)")
    group.add_argument(
        "--json", action="store_true", help="print one JSON object and nothing else on standard output, for other programs"
    )
    group.add_argument(
        "--private",
        action="store_true",
        help="in the results, do not name the image or other files of the case, only those of the model (folders are never named)",
    )
    group.add_argument(
        "--out",
        type=Path,
        default=Path(f"causalseg-{name}"),
        metavar="DIR",
        help=f"folder for the results (default: causalseg-{name})",
    )
