"""``causalseg cohort``: many cases, from a table."""

import argparse
from pathlib import Path

from captum_causalseg.cli.arguments import amount, positive
from captum_causalseg.cli.command import Command

__all__ = ["CohortCommand"]

_FILES = """\
cases.csv:   columns id and image, and label if there are references; columns
             image_2, image_3, ... if each channel of an image is a file (with
             bundle and nnunet); columns class, roi, donors and units say it for
             one case; others are kept
study.yaml:  the options of causalseg explain without their dashes, such as
               model: nets:unet
               weights: unet.pt
               roi: boundary:3
               donors: training/
               draws: 20
Files are named as seen from the file that names them.
"""


class CohortCommand(Command):
    """Explains every row of a table, on this machine or on a Ray cluster."""

    name = "cohort"
    help = "explain every image of a table of cases"
    description = (
        "Explain every row of a table, on this machine or on a Ray cluster. The same line goes on where it was "
        "interrupted or killed, and tries again what failed. Writes report.html (one page with everything), cases.parquet (a row per case), "
        "units/ (a row per unit), means over the finished cases with their intervals (summary.csv; by distance profile.csv, profile.png) and, per "
        f"case, statistics.npz and effects.nii.gz.\n\n{_FILES}"
    )
    epilog = "examples:\n  causalseg cohort --cases cases.csv --config study.yaml --out study\n  causalseg cohort --out study --verify"
    when_interrupted = "the same line goes on"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """See :meth:`Command.add_arguments`."""
        parser.add_argument("--cases", type=Path, metavar="FILE.csv", help="a row per case")
        parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="options for all cases, a YAML file")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the study")
        parser.add_argument(
            "--ray",
            nargs="?",
            const="local",
            metavar="ADDRESS",
            help="run on a Ray cluster: its address, or auto for the cluster that this machine belongs to; without an address, a cluster is started on this machine",
        )
        parser.add_argument("--workers", type=positive, metavar="N", help="with --ray, how many (default: as many as fit)")
        parser.add_argument(
            "--cpus", type=amount, default=1.0, metavar="X", help="with --ray, what each worker reserves (default: 1)"
        )
        parser.add_argument(
            "--gpus",
            type=amount,
            default=0.0,
            metavar="X",
            help="GPUs that each worker reserves; with a fraction, several workers share one (default: 0)",
        )
        parser.add_argument(
            "--shards",
            type=positive,
            default=1,
            metavar="N",
            help="divide the units of each case into this many parts for different workers, for very large volumes (default: 1)",
        )
        parser.add_argument(
            "--private",
            action="store_true",
            help="in report.html, name no case and no file of one, nor what the table's other columns say (all other files of the study still do)",
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="explain nothing; compare the files in --out with their digests, and list those that are missing or damaged",
        )

    def run(self, options: argparse.Namespace) -> tuple[str, int]:
        """See :meth:`Command.run`; the status is 1 where a case failed, or a file is not what it was."""
        from captum_causalseg.cli.study import run_study

        return run_study(options)
