"""This library against the paper's protocol: time, and error against exhaustive truth.

    python benchmarks/against_paper.py [--quick] [--threads 2] [--repeats 2] [--write FILE] [--cache DIR]

The same network, image, region of interest, blocks, donors and score for both (see ``cases.py``). The paper's loop is that of
``paper_loop.py``: block by block, 3 donors, then 50; it scores nothing but the region of interest. Ours is ``attribute`` with its defaults
apart from ``n_draws`` and ``n_screening_draws``. Of the settings tried, the one with the fewest forwards is timed whose error, simulated
over many seeds from the scores of all interventions, is at most 0.9 of the paper's; then both are run for real, in turn, and the errors
reported are those of the timed runs. Everything that ``attribute`` does is timed: finding the support, ranking, answering the observed
image again. An error is the root mean square over all blocks and seeds, in Dice points of 100.

A network with global operations is reached from everywhere; its blocks are a random sample, the same for both.
"""

import statistics
import time
from dataclasses import dataclass, field

import numpy as np
from cases import LABEL, Case, Exhaustive, cases, exhaustive, machine, parser, publish, say, start
from error_by_forwards import Simulator
from paper_loop import N_FINE, paper_loop

from captum_causalseg import AverageTreatmentEffect

SETTINGS = [(n_draws, n_screening) for n_draws in (4, 6, 8, 10, 12, 16, 20, 32, 50) for n_screening in (3, 0)]
WANTED = {"batch norm": 30.0, "instance norm": 3.0, "SwinUNETR": 3.0}
OURS_PER_PAPER = 3
# Below the paper's error by so much in simulation, so that not chance decides.
MARGIN = 0.9


@dataclass
class Runs:
    """Timed runs of one method."""

    seconds: list[float] = field(default_factory=list)
    forwards: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add(self, began: float, forwards: int, effects: np.ndarray, truth: np.ndarray) -> None:
        self.seconds.append(time.perf_counter() - began)
        self.forwards.append(forwards)
        self.squares.append(float(np.mean((effects - truth) ** 2)))

    @property
    def error(self) -> float:
        return 100 * float(np.sqrt(np.mean(self.squares)))


def choose(simulator: Simulator, n_units: int, seeds: int) -> tuple[tuple[int, int], float, float]:
    """The setting with the fewest forwards whose simulated error is clearly below the paper's; its error, and the paper's.

    Errors are of all ``n_units`` blocks: those outside the support have none, for both.
    """
    share = np.sqrt(len(simulator.ids) / n_units)
    paper, _ = simulator.error(simulator.paper(N_FINE), 10 * seeds)
    tried = []
    for setting in SETTINGS:
        if setting[0] < simulator.differences.shape[1]:
            error, forwards = simulator.error(simulator.ours(*setting, "stratified"), seeds)
            tried.append((forwards, setting, error))
            say(
                f"  n_draws {setting[0]}, screening {setting[1]}: error {share * error:.4f}, {forwards:.0f} forwards; paper {share * paper:.4f}"
            )
    enough = [one for one in tried if one[2] <= MARGIN * paper]
    _, setting, error = min(enough) if enough else min(tried, key=lambda one: one[2])
    return setting, share * error, share * paper


def race(case: Case, known: Exhaustive, setting: tuple[int, int], repeats: int) -> tuple[Runs, Runs, Runs, float]:
    """The paper's runs, ours, one of ours with all defaults, and the largest difference of ours from what was simulated for the same seed."""
    paper, ours, default = Runs(), Runs(), Runs()
    blocks = [(row, column) for _, row, column in case.units]
    simulate, off = Simulator(case, known), 0.0
    for repeat in range(repeats):
        say(f"{case.name}: round {repeat + 1} of {repeats}, the paper's loop ...")
        began = time.perf_counter()
        effects, forwards = paper_loop(case.score, case.image, blocks, case.bank, seed=repeat)
        paper.add(began, forwards, effects, known.effects)
        say(f"  {paper.seconds[-1]:.1f} s; ours ...")
        for seed in range(repeat * OURS_PER_PAPER, (repeat + 1) * OURS_PER_PAPER):
            effects = attributed(case, known, ours, seed, n_draws=setting[0], n_screening_draws=setting[1])
            expected = simulate.ours(*setting, "stratified")(seed)[0]
            off = max(off, float(np.abs(effects[known.reachable] - expected).max()))
        if repeat == 0:
            attributed(case, known, default, repeat)
    return paper, ours, default, off


def attributed(case: Case, known: Exhaustive, runs: Runs, seed: int, **setting: int) -> np.ndarray:
    """One run of ours, added to ``runs``; its effects ``(U,)``."""
    # A target and a bank of its own for every run: nothing is left over from the last one but what is kept per network.
    began = time.perf_counter()
    _, found = AverageTreatmentEffect(case.target).attribute(
        *(case.image, case.donors, LABEL),
        feature_mask=case.mask[None, None],
        seed=seed,
        return_statistics=True,
        **setting,
    )
    places = np.searchsorted(found.unit_ids.numpy(), [unit for unit, _, _ in case.units])
    effects = found.effect[0, places, LABEL].numpy()
    runs.add(began, found.n_forwards, effects, known.effects)
    say(f"  {runs.seconds[-1]:.2f} s, forwards {found.settings['forwards']}, window {found.settings['window']}")
    return effects


def main() -> None:
    options = start(parser(__doc__))
    repeats = options.repeats or (1 if options.quick else 2)
    lines = ["## Against the paper's protocol", "", machine(options), ""]
    lines += [
        f"Medians of {repeats} runs of the paper's loop and {OURS_PER_PAPER * repeats} of `attribute`, in turn; errors: root mean square over all units and runs,",
        "in Dice points of 100, against the truth by all donors of all units. Ours has the cheapest setting whose error over many simulated seeds is at",
        f"most {MARGIN} of the paper's. It is met where the ratio is reached and these expected errors (below the table) are in order: a few runs'",
        "errors scatter. The last columns are one run with all defaults, which nobody has to choose.",
        "",
        "| network | units (reach the RoI) | donors | truth: interventions | paper: s | forwards | error | ours: n_draws, screening | s (first call) | forwards | error | paper / ours, s | wanted | met | defaults: s | error | paper / defaults, s |",
        "|" + "---|" * 17,
    ]
    notes = []
    for case in cases(options):
        known = exhaustive(case, options)
        n_units = len(case.units)
        setting, expected_ours, expected_paper = choose(Simulator(case, known), n_units, 3 if options.quick else 30)
        paper, ours, default, off = race(case, known, setting, repeats)
        slow, fast = statistics.median(paper.seconds), statistics.median(ours.seconds)
        wanted = WANTED[case.name]
        met = slow / fast >= wanted and expected_ours <= expected_paper
        reachable = int(known.reachable.sum())
        lines.append(
            f"| {case.name} | {n_units} ({reachable}) | {len(case.bank)} | {reachable * len(case.bank)} | "
            f"{slow:.1f} | {statistics.median(paper.forwards):.0f} | {paper.error:.4f} | "
            f"{setting[0]}, {setting[1]} | {fast:.2f} ({ours.seconds[0]:.2f}) | {statistics.median(ours.forwards):.0f} | {ours.error:.4f} | "
            f"{slow / fast:.1f} | {wanted:.0f} | {'yes' if met else '**no**'} | "
            f"{default.seconds[0]:.2f} | {default.error:.4f} | {slow / default.seconds[0]:.1f} |"
        )
        largest = 100 * float(np.abs(known.effects).max())
        notes.append(
            f"- {case.name}: errors expected from many simulated runs: paper {expected_paper:.4f}, ours {expected_ours:.4f}; the largest effect is "
            f"{largest:.2f}; returned effects differ from the simulated ones by at most {100 * off:.1e}."
        )
    lines += ["", *notes]
    publish(lines, options)


if __name__ == "__main__":
    main()
