"""How faithful are the maps of several methods? One table and one picture for each of three models.

    python benchmarks/comparison.py [--quick] [--write docs/benchmarks/comparison.md] [--picture FILE --label FILE --patches FILE]

The demo's brain, the planted shortcut, and, where its files are given, a picture with its mask, such as the paper's (a small network is
fitted to it). Units are 8 x 8 blocks outside the region of interest, the score is the hard Dice of the explained class; methods
draw donors from one half of the bank, the scores are computed with the other. Times are of this machine as it was. Joint effects: ``equal_forwards.py``.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from methods import methods
from monai.networks.nets import UNet
from torch import Tensor

from captum_causalseg import DonorSource, SegmentationTarget, compare
from captum_causalseg.demo.cases import Case, brain_case, picture_case
from captum_causalseg.evaluation import faithfulness
from captum_causalseg.evaluation.planted import load_shortcut_case


@dataclass(frozen=True)
class Job:
    """What is compared.

    Args:
        name: of its files.
        title: says what it is.
        network, target, image, donors: the case.
        output: which class.
    """

    name: str
    title: str
    network: UNet
    target: SegmentationTarget
    image: Tensor
    donors: DonorSource
    output: int | None


def jobs(picture: tuple[Path, Path, Path] | None) -> Iterator[Job]:
    yield _of_demo("demo", brain_case())
    shortcut = load_shortcut_case()
    title = "The planted shortcut: a lesion that is segmented because of the letter in the corner"
    yield Job("shortcut", title, shortcut.model, shortcut.target(), shortcut.images, shortcut.donors, None)
    if picture is not None:
        yield _of_demo("picture", picture_case(*picture, None))


def _of_demo(name: str, case: Case) -> Job:
    target = SegmentationTarget(case.network, roi=case.roi, reference=case.reference)
    return Job(name, f"{case.title}: {case.class_name}", case.network, target, case.image, case.donors, case.target)


def number(value: float) -> str:
    return "none" if np.isnan(value) else f"{value:.2e}" if 0 < abs(value) < 1e-3 else f"{value:.3f}"


def as_markdown(wide: pd.DataFrame) -> list[str]:
    """Metrics as columns, with an arrow for the better direction; the best method's number in bold, the control apart."""
    names = [name for name in faithfulness.METRICS if name in wide]
    arrows = {name: "↑" if faithfulness.METRICS[name].score_direction == "higher" else "↓" for name in names}
    lines = ["| method | " + " | ".join(f"{name} {arrows[name]}" for name in names) + " | forwards | seconds |"]
    lines.append("|---" * (len(names) + 3) + "|")
    real = wide[~wide.index.str.startswith("random")]
    best = {
        name: real[name].idxmax() if arrows[name] == "↑" else real[name].idxmin() for name in names if real[name].notna().any()
    }
    for method, row in wide.iterrows():
        cells = [f"**{number(row[name])}**" if best.get(name) == method else number(row[name]) for name in names]
        costs = ["", ""] if str(method).startswith("random") else [f"{row['forwards']:.0f}", f"{row['seconds']:.1f}"]
        lines.append(f"| {method} | " + " | ".join([*cells, *costs]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few draws; the numbers mean little")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--label", type=Path)
    parser.add_argument("--patches", type=Path)
    options = parser.parse_args()
    given = (options.picture, options.label, options.patches)
    if any(given) and not all(given):
        parser.error("--picture, --label and --patches go together")
    lines = ["## How faithful are the maps?", "", *(line.strip() for line in (__doc__ or "").strip().splitlines()[-4:]), ""]
    for job in jobs(given if all(given) else None):
        found = compare(
            methods(job.target, job.network, job.image.shape[1], 4 if options.quick else 50),
            *(job.target, job.image, job.donors),
            output=job.output,
            block_size=8,
            faithfulness={"n_draws": 1, "n_steps": 4, "n_subsets": 10} if options.quick else {"n_draws": 8, "n_subsets": 200},
            show_progress=True,
        )
        lines += [f"**{job.title}**", "", *as_markdown(found.wide()), ""]
        print("\n".join(lines[-len(found.attributions) - 5 :]), flush=True)
        if options.write:
            picture = Path("_static") / f"comparison_{job.name}.png"
            place = options.write.parent.parent / picture
            place.parent.mkdir(parents=True, exist_ok=True)
            found.plot(title=job.title).savefig(place, dpi=75)
            lines += [f"![Maps of all methods]({Path('..') / picture})", ""]
    if options.write:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
