"""Which refuter finds which fault, how often an honest estimate is accused, and what the attempts cost.

    python benchmarks/refuters.py --threads 1 [--repeats 10] [--write docs/benchmarks/refuters.md]

Faults are those of ``tests/common/planted_faults.py``, planted in a small network's estimates (20 x 18 pixels, RoI 5 x 5, blocks of 2 x 2, 40
donors, 10 draws, soft Dice); ``--repeats`` is the number of seeds per fault. Honest estimates, ten times as many: two fifths are of
that network, the others of every intervention there is on a brain slice and on two brain volumes, with hard and soft Dice, through trained
networks (the tables of ``tests/common/exhaustive.py``; 80 or 120 donors, 10 draws).
"""

import sys
from collections import Counter
from pathlib import Path

from cases import machine, parser, publish, say, start

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "common"))

from exhaustive import METRICS, look_up, tables
from planted_faults import FAULTS, tried

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg.evaluation.refute import REFUTERS, RefutationReport, refute

TRIED = [name for name in REFUTERS if name not in ("joints", "dose", "weights")]
JUDGING = [name for name in REFUTERS if name not in ("joints", "dose")]

# Levels were chosen after looking at seeds 0 to 99.
_FRESH = 1000


def honest(number: int) -> RefutationReport:
    """An honest estimate, and what became of it."""
    if number % 5 < 2:
        return tried(None, number, JUDGING)
    every = [(table, k) for n_spatial in (2, 3) for table in tables(n_spatial) for k in range(len(METRICS))]
    table, k = every[number % len(every)]
    forward, image, numbers = look_up(table.differences[..., k], table.first_order)
    options = {"block_size": 1, "n_draws": 10, "perturbations_per_eval": 4096, "refuters": TRIED}
    return refute(AverageTreatmentEffect(forward), image, numbers, seed=number, **options)


def main() -> None:
    options = start(parser(__doc__))
    repeats = options.repeats or (1 if options.quick else 10)
    lines = [machine(options), ""]
    found: dict[str, Counter[str]] = {}
    for fault in FAULTS:
        say(fault)
        found[fault] = Counter()
        for seed in range(repeats):
            report = tried(fault, seed, TRIED)
            found[fault].update(
                [one.name for one in report.refutations if one.verdict == "fail"] + ["any"] * (not report.passed)
            )
    lines += [
        f"Of {repeats} estimates with the fault, how many each refuter found wrong; in bold where it is said to find it.",
        "",
        "| fault | in | " + " | ".join(f"`{name}`" for name in TRIED) + " | any |",
        "|---|---|" + "---|" * (len(TRIED) + 1),
    ]
    for fault, counts in found.items():
        cells = [f"**{counts[name]}**" if name in FAULTS[fault].found_by else str(counts[name] or "") for name in TRIED]
        lines.append(f"| {fault} | {FAULTS[fault].where} | {' | '.join(cells)} | {counts['any']} |")
    n_honest = 10 * repeats
    accused, asked, spent = Counter[str](), Counter[str](), Counter[str]()
    for number in range(_FRESH, _FRESH + n_honest):
        say(f"honest {number}")
        report = honest(number)
        failed = [one.name for one in report.refutations if one.verdict == "fail"]
        say(f"  {failed}")
        accused.update(failed + ["any"] * bool(failed))
        asked.update([one.name for one in report.refutations if one.verdict != "inconclusive"])
        for one in report.refutations:
            spent[one.name] += one.n_forwards
            spent[f"estimate of {one.name}"] += report.statistics.n_forwards
    lines += [
        "",
        f"Of {n_honest} honest estimates, {accused['any']} were accused by any of them. What they cost is in forwards of the estimate itself.",
        "",
        "| refuter | accused | of | cost |",
        "|---|---|---|---|",
    ]
    for name in JUDGING:
        lines.append(f"| `{name}` | {accused[name]} | {asked[name]} | {spent[name] / spent[f'estimate of {name}']:.2f} |")
    publish(lines, options)


if __name__ == "__main__":
    main()
