"""``causalseg demo``: explain one segmentation, end to end on real input, and write what was found into a folder."""

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from captum_causalseg.cli.arguments import positive
from captum_causalseg.cli.command import Command
from captum_causalseg.cli.errors import InputError
from captum_causalseg.writing.names import printable, write_csv

if TYPE_CHECKING:
    from captum_causalseg.demo.cases import Case
    from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["Demo", "explain", "report"]


class Demo(Command):
    """Explains a case that comes with the package, or a picture of the user's."""

    name = "demo"
    help = "explain a brain slice, or a picture of your own"
    description = (
        "Estimate the effect of every 8 x 8 block on the Dice of a region of interest, with natural donors, and write a "
        "picture (effects.png), a table (effects.csv) and the statistics (statistics.npz). Without --image: grey matter in an axial "
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
            if options.image is None:
                case = brain_case(options.roi)
            else:
                case = picture_case(options.image, options.label, options.patches, box=options.roi, seed=options.seed)
        except (ValueError, ImportError, OSError) as error:
            raise InputError(str(error)) from error
        said = explain(case, options.out, n_draws=options.draws, seed=options.seed)
        return f"{said}\n\nwritten to {printable(options.out)}/: effects.png, effects.csv, statistics.npz", 0


def explain(case: "Case", out: Path, *, n_draws: int = 20, seed: int = 0, show_progress: bool = True) -> str:
    """Estimate the effect of every block on the RoI's Dice, write the results into ``out``, and return a short report."""
    # Imported late: `causalseg --help` should not wait for torch.
    from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
    from captum_causalseg.target import SegmentationTarget
    from captum_causalseg.visualization import plot_effects

    target = SegmentationTarget(case.network, roi=case.roi, reference=case.reference)
    began = time.perf_counter()
    _, statistics = AverageTreatmentEffect(target).attribute(
        case.image,
        baselines=case.donors,
        target=case.target,
        block_size=8,
        n_draws=n_draws,
        seed=seed,
        show_progress=show_progress,
        return_statistics=True,
    )
    seconds = time.perf_counter() - began
    out.mkdir(parents=True, exist_ok=True)
    prediction, reference = target.segmentations(case.image)
    figure = plot_effects(
        case.image,
        statistics,
        roi=case.roi,
        target=case.target,
        title=f"{case.title}: {case.class_name}",
        score_name="RoI's Dice [0, 1]",
        segmentation=prediction,
        reference=reference,
    )
    figure.savefig(out / "effects.png", dpi=110)
    table = statistics.to_dataframe()
    write_csv(table, out / "effects.csv")
    statistics.save(out / "statistics.npz")
    return report(statistics, case, seconds)


def report(statistics: "TreatmentEffectStatistics", case: "Case", seconds: float) -> str:
    """The table that the demo prints."""
    from captum_causalseg.statistics import Status

    table = statistics.to_dataframe()
    observed = float(statistics.of_output(case.target).observed_score)
    if case.target is not None:
        table = table[table["class"] == case.target]
    table = table[table["status"] != Status.EXCLUDED.name].sort_values("effect")
    lines = [
        case.title,
        f"Dice of {case.class_name} in the region of interest: {observed:.4f}",
        "",
        "strongest blocks       rows      columns     effect on the Dice [95 % interval]",
    ]
    for kind, rows in (("supports", table[table["effect"] > 0][::-1]), ("harms", table[table["effect"] < 0])):
        for row in rows.head(4).itertuples():
            lines.append(
                f"  {kind:<12} {row.start_0:>8}-{row.stop_0 - 1:<4} {row.start_1:>6}-{row.stop_1 - 1:<4}"
                f"   {row.effect:+.4f}  [{row.lower:+.4f}, {row.upper:+.4f}]"
            )
    status = statistics.select(statistics.status, case.target)
    words = {one: one.name.lower().replace("_", " ") for one in Status}
    counts = ", ".join(f"{int((status == one).sum())} {word}" for one, word in words.items() if bool((status == one).any()))
    significant = int(statistics.select(statistics.significant(0.05), case.target).sum())
    why = statistics.why_empty(case.target)
    lines += [""] if why is None else ["", f"the map is empty: {why}"]
    lines += [
        f"blocks: {counts}; {significant} differ from 0 at a false discovery rate of 5 %",
        f"{statistics.n_forwards} forward passes of one image, {seconds:.1f} s",
    ]
    return "\n".join(lines)


def _box(text: str) -> tuple[tuple[int, ...], int]:
    found = re.fullmatch(r"box:(\d+),(\d+)\+(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected box:ROW,COL+SIZE, e.g. box:72,88+32, got {text!r}")
    row, column, size = map(int, found.groups())
    return (row, column), size
