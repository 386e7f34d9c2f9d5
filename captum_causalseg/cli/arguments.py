"""Arguments of the commands that explain a case of one's own, read without torch."""

import argparse
import re
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Parser", "add_cohort", "add_commands", "box_of", "positive"]

_CASE = """\
one model:   --bundle DIR, or --model package.module:factory --weights FILE,
             or --model FILE.ts (TorchScript)
one image:   --image FILE (NIfTI, NRRD, PNG, JPEG, DICOM file or folder),
             with --label FILE if there is a reference segmentation
one region:  --roi WHERE, in which the segmentation is scored

Places are given in the image file's own pixels or voxels, also where a bundle's pre-processing turns, resamples or crops the image; what \
is written lies on the file's grid, too.
"""
_COHORT = """\
cases.csv:   columns id and image, and label if there are references; columns
             class, roi, donors and units say it for one case; others are kept
study.yaml:  the options of causalseg explain without their dashes, such as
               model: nets:unet
               weights: unet.pt
               roi: boundary:3
               donors: training/
               draws: 20
Files are named as seen from the file that names them.
"""
_EXAMPLES = {
    "explain": (
        "causalseg explain --model nets:unet --weights unet.pt --image scan.nii.gz",
        "--label truth.nii.gz --class 1 --roi label:1 --donors training/",
    ),
    "components": (
        "causalseg components --bundle spleen/ --image scan.nii.gz --class 1",
        '--roi boundary:3 --layers "model.*" --out result',
    ),
    "compare": (
        "causalseg compare --model net.ts --image picture.png --label mask.png",
        "--roi box:72,88+32 --donors training/ --out result",
    ),
    "refute": (
        "causalseg refute --model net.ts --image picture.png --label mask.png",
        "--roi point:80,90 --donors training/ --out result",
    ),
}


def add_commands(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add ``explain``, ``components``, ``compare`` and ``refute``."""
    explain = _command(
        *(commands, "explain", "explain one segmentation of a model of your own"),
        "Estimate the effect of every unit of the image on the score of a region of interest. Writes report.html (one page with "
        "everything), effects.png, effects.csv, statistics.npz and, for scans, effects.nii.gz (opens over the scan in any viewer).",
    )
    explain.add_argument("--refute", action="store_true", help="also try to refute the effects (about seven times the work)")
    explain.add_argument(
        "--components", metavar="PATTERN", help='also the effects of the network\'s modules of these names, e.g. "decoder.*"'
    )
    components = _command(
        *(commands, "components", "which modules of the network matter"),
        "Estimate the effect of every module of the network on the score of a region of interest, its activations replaced by those "
        "on donor images (by 0 without --donors). Writes report.html, components.csv and components.png.",
    )
    components.add_argument("--layers", metavar="PATTERN", help="only modules of these names, with * and ? (default: all)")
    components.add_argument(
        "--level",
        choices=("module", "channel", "token", "head"),
        default="module",
        help="whole modules, or each of their channels, tokens or attention heads",
    )
    _command(
        *(commands, "compare", "this method beside others of Captum, scored for faithfulness"),
        "Explain the same segmentation with treatment effects, their first-order estimate, integrated gradients and feature "
        "ablation, and score how faithful each is to the model. Writes report.html, comparison.csv and comparison.png.",
    )
    refute = _command(
        *(commands, "refute", "try to refute the effects"),
        "Estimate the effects and try to refute them: placebo donors, other donors, other draws, another model. Writes report.html, "
        "refutation.csv and the files of explain.",
    )
    refute.add_argument("--refuters", metavar="NAME,...", help="which: placebo, split, subset, seed, weights (default: all)")


def add_cohort(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add ``cohort``."""
    parser = commands.add_parser(
        "cohort",
        help="explain every image of a table of cases",
        description="Explain every row of a table, on this machine or on a Ray cluster. The same line goes on where it was "
        "interrupted or killed, and tries again what failed. Writes cases.parquet (a row per case), units/ (a row per unit) and, per "
        f"case, statistics.npz and effects.nii.gz.\n\n{_COHORT}",
        epilog="examples:\n  causalseg cohort --cases cases.csv --config study.yaml --out study\n  causalseg cohort --out study --verify",
        formatter_class=_Formatter,
    )
    parser.add_argument("--cases", type=Path, metavar="FILE.csv", help="a row per case")
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="what holds for all of them")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="on a Ray cluster: its address, auto for the one that this machine belongs to; without an address one is started here",
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="with --ray, how many (default: as many as fit)")
    parser.add_argument(
        "--cpus", type=_amount, default=1.0, metavar="X", help="with --ray, what each worker reserves (default: 1)"
    )
    parser.add_argument(
        "--gpus", type=_amount, default=0.0, metavar="X", help="the same; a fraction lets several share one (default: 0)"
    )
    parser.add_argument(
        "--shards",
        type=positive,
        default=1,
        metavar="N",
        help="cut the units of each case into so many parts for different workers, for huge volumes (default: 1)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="explain nothing: compare the files in --out with their digests, and name those that are missing or damaged",
    )


def box_of(text: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Start and size in ``box:72,88+32`` or ``box:72,88,4+32,32,8``; ``None`` if it is something else."""
    found = re.fullmatch(r"box:(\d+(?:,\d+)*)\+(\d+(?:,\d+)*)", text)
    if found is None:
        return None
    start, size = (tuple(map(int, part.split(","))) for part in found.groups())
    return start, size * len(start) if len(size) == 1 else size


def positive(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def _amount(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def _command(commands: "argparse._SubParsersAction[Any]", name: str, summary: str, description: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{description}\n\n{_CASE}",
        epilog="example:\n  " + " \\\n      ".join(_EXAMPLES[name]),
        formatter_class=_Formatter,
    )
    model = parser.add_argument_group("the model")
    which = model.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--bundle", type=Path, metavar="DIR", help="a MONAI bundle; its configs are programs, so trust its source"
    )
    which.add_argument(
        "--model",
        metavar="MODULE:FACTORY",
        help="a function without arguments that returns the network (looked for in the current folder too), or a TorchScript file",
    )
    model.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="state dict for the factory's network; of a bundle, other weights than its usual",
    )
    model.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)")
    case = parser.add_argument_group("the case")
    case.add_argument("--image", type=Path, required=True, metavar="FILE", help="the image to explain")
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
        "--class", type=int, dest="class_", metavar="N", help="the class that is explained (default: the only one, or 1 of two)"
    )
    case.add_argument(
        "--roi",
        required=True,
        metavar="WHERE",
        help="box:72,88+32 (start and size; per axis: box:72,88,4+32,32,8); point:80,90 (the object there) or label:2 (both in --label, "
        "else in the prediction); boundary:3 (pixels of the prepared image on both sides of the predicted outline of the class); or a "
        "mask file on the image's grid",
    )
    case.add_argument(
        "--normalize",
        choices=("none", "255", "range", "zscore"),
        default="none",
        help="intensities of image and donors, as the network was trained: as in the file, divided by 255, minimum 0 and maximum 1, "
        "or mean 0 and standard deviation 1 (default: none; bundles do it themselves)",
    )
    case.add_argument(
        "--donors", type=Path, metavar="DIR", help="folder of image files that units are replaced from (default: this image)"
    )
    case.add_argument(
        "--units",
        default=None,
        metavar="SIZE",
        help="edge of the blocks in the image file's pixels: 8, or 8x8x4 per axis; or a file of labels on the image's grid (default: as "
        "many as make 8 pixels of the prepared image)",
    )
    case.add_argument(
        "--metric",
        default="dice",
        metavar="NAME",
        help="the score: dice, iou, surface_dice, hausdorff_95, volume, ...; a wrong name lists them all (default: dice)",
    )
    effort = parser.add_argument_group("effort and output")
    if name == "components":
        effort.add_argument("--draws", type=positive, metavar="N", help="interventions per part (default: 20)")
    else:
        effort.add_argument(
            "--draws",
            type=positive,
            metavar="N",
            help="interventions per unit; with --precision, at most so many on the average (default: 20; with --precision 500)",
        )
        effort.add_argument(
            "--precision",
            type=float,
            metavar="X",
            help="draw on until every 95 %% interval is at most X to either side, in the score's units",
        )
    effort.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: 0)")
    effort.add_argument(
        "--private",
        action="store_true",
        help="name neither the image nor other files of the case in the results, only those of the model (folders are never named)",
    )
    effort.add_argument(
        "--out",
        type=Path,
        default=Path(f"causalseg-{name}"),
        metavar="DIR",
        help=f"folder for the results (default: causalseg-{name})",
    )
    return parser


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and where more is said."""

    def __init__(self, *args: Any, **options: Any) -> None:
        # An option that is cut short may come to mean another one when options are added.
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}  ({self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are filled, lines of a table or an example kept."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [paragraph for paragraph in text.split("\n\n") if paragraph.strip()]
        filled = [
            paragraph.rstrip()
            if "\n" in paragraph.strip()
            else argparse.HelpFormatter._fill_text(self, paragraph, width, indent)
            for paragraph in paragraphs
        ]
        return "\n\n".join(filled)
