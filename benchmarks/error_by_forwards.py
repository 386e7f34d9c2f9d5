"""Error against number of forwards: donors drawn uniformly, along the ranking, and as in the paper.

    python benchmarks/error_by_forwards.py [--quick] [--threads 2] [--repeats 40] [--write FILE] [--cache DIR]

The scores of all interventions are known (see ``cases.py``), so that a run is simulated by drawing from them, with the very
draws that the library makes, as many for every unit (``allocation="equal"``): the last line compares some effects with those that it returns. The error is the root
mean square over units (those that reach the region of interest) and seeds, in Dice points of 100; forwards are the interventions on
these units. "paper" is 3 screening draws and so many others; it also spends 3 draws on every other block, which only the dashed
line of the picture has. What the library spends besides, once per image (finding the support, ranking), is printed.

The second table: what screening gives up, of the units whose effect is at least the threshold. Donors drawn at random (as the
paper does) against those from both ends and the middle of the ranking.
"""

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from allocation import LookedUp
from cases import BLOCK, LABEL, Case, Exhaustive, cases, exhaustive, machine, parser, picture_folder, publish, start
from paper_loop import N_SCREENING, THRESHOLD, simulated

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg.attr.effort import Effort
from captum_causalseg.engine.design import Design, StratifiedDesign, UniformDesign
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import run

SCREENED_OF = (12, 50)
DRAWS = (4, 6, 8, 12, 20, 32, 50, 100, 200)
Simulation = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""A seed to effects ``(U,)`` and forwards per unit ``(U,)``."""


def predicted_effects(case: Case) -> np.ndarray:
    """The first-order effect of every donor of every unit, ``(U, D)``: ``<gradient of the soft Dice, x - b>``."""
    image = case.image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.target.surrogate()(image)[0, LABEL], image)
    effects = []
    for _, row, column in case.units:
        here = slice(None), slice(row, row + BLOCK), slice(column, column + BLOCK)
        weights = gradient[0][here].double()
        change = case.image[0][here].double() - case.bank.double()
        effects.append((weights * change).flatten(1).sum(1).numpy())
    return np.array(effects)


class Simulator:
    """Runs of the library on a case, from known scores.

    Args:
        case: what is explained.
        known: the scores.
    """

    def __init__(self, case: Case, known: Exhaustive) -> None:
        self.ids = np.array([unit for unit, _, _ in case.units])[known.reachable]
        self.differences = known.differences[known.reachable]
        self.predicted = predicted_effects(case)[known.reachable]
        self.effects = self.differences.mean(1)

    def ours(self, n_draws: int, n_screening: int, sampling: str, allocation: str = "equal") -> Simulation:
        """``AverageTreatmentEffect`` with these arguments: the library's own loop on known scores."""
        effort = Effort(n_draws=n_draws, n_screening_draws=n_screening, sampling=sampling, allocation=allocation)
        units, donors = self.predicted.shape
        observed, one = np.zeros((1, 1)), np.ones(1, dtype=bool)

        def simulated(seed: int) -> tuple[np.ndarray, np.ndarray]:
            plan = Plan(
                example=np.zeros(units, dtype=np.int64),
                unit=np.arange(units),
                key=self.ids,
                population=np.full((units, 1), donors),
                active=np.ones((units, 1), dtype=bool),
                n_draws=n_draws,
                n_first=effort.n_first if effort.shares_out else None,
                n_screening_draws=n_screening,
                seed=(seed,),
                sampling=sampling,
            )
            if sampling == "stratified":
                ranked = [plan.ranked(u, self.predicted[u], outputs=one, most_draws=plan.most_draws) for u in range(units)]
                plan = dataclasses.replace(plan, rankings=ranked)
            needed = np.ones((1, 1), dtype=bool) if plan.shares_out else None
            options = {"batch_size": 10**6, "screening_threshold": THRESHOLD, "needed": needed}
            found = run(plan, LookedUp(self.differences[..., None]), observed, **options).moments
            return found.effect[:, 0], found.n_draws[:, 0]

        return simulated

    def paper(self, n_fine: int) -> Simulation:
        """The paper's loop."""
        return lambda seed: simulated(self.differences, np.random.default_rng(seed), n_fine=n_fine)

    def error(self, run: Simulation, seeds: int) -> tuple[float, float]:
        """Root mean square error in Dice points of 100 over the units, and forwards, over seeds."""
        found = [run(seed) for seed in range(seeds)]
        squares = [np.mean((effects - self.effects) ** 2) for effects, _ in found]
        return 100 * float(np.sqrt(np.mean(squares))), float(np.mean([forwards.sum() for _, forwards in found]))

    def design(self, u: int, seed: int, n_draws: int, n_screening: int, sampling: str) -> Design:
        """That which the library makes for a unit: it seeds them with the seed and the unit's id."""
        predicted = self.predicted[u]
        generator = np.random.default_rng((seed, int(self.ids[u])))
        unranked = sampling == "uniform" or n_draws >= len(predicted) or (predicted == predicted[0]).all()
        return (UniformDesign if unranked else StratifiedDesign)(
            generator,
            [len(predicted)],
            n_first=n_draws,
            n_screening=n_screening if n_screening < n_draws else 0,
            ranking=None if unranked else np.argsort(predicted, kind="stable"),
        )


@dataclass
class Curve:
    label: str
    forwards: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)


def curves(simulator: Simulator, n_other_blocks: int, seeds: int) -> list[Curve]:
    """Error by forwards."""
    made = []
    for label, n_screening, sampling in (
        ("uniform", 0, "uniform"),
        ("stratified", 0, "stratified"),
        ("stratified, 3 screening", 3, "stratified"),
    ):
        curve = Curve(label)
        for n in DRAWS:
            if n < simulator.differences.shape[1]:
                error, forwards = simulator.error(simulator.ours(n, n_screening, sampling), seeds)
                curve.errors.append(error)
                curve.forwards.append(forwards)
        made.append(curve)
    paper = Curve("paper (3, then n)")
    for n in DRAWS:
        error, forwards = simulator.error(simulator.paper(n), 10 * seeds)
        paper.errors.append(error)
        paper.forwards.append(forwards)
    made.append(paper)
    if n_other_blocks:
        made.append(
            Curve(
                "paper, all blocks of the image",
                [forwards + N_SCREENING * n_other_blocks for forwards in paper.forwards],
                paper.errors,
            )
        )
    return made


def forwards_for(curve: Curve, error: float) -> float:
    """How many forwards bring the error down to this (log-log interpolation); NaN if none that was tried does."""
    logs = np.log(curve.errors), np.log(curve.forwards)
    for i in range(1, len(logs[0])):
        if curve.errors[i] <= error <= curve.errors[i - 1]:
            share = (np.log(error) - logs[0][i - 1]) / min(logs[0][i] - logs[0][i - 1], -1e-12)
            return float(np.exp(logs[1][i - 1] + share * (logs[1][i] - logs[1][i - 1])))
    return curve.forwards[0] if curve.errors[0] <= error else float("nan")


def screening(simulator: Simulator, seeds: int) -> str:
    """Shares of the units with an effect that screening gives up, and the mean size of the effects lost."""
    matters = np.flatnonzero(np.abs(simulator.effects) >= THRESHOLD)
    still = np.abs(simulator.differences) < THRESHOLD
    sizes = 100 * np.abs(simulator.effects[matters])
    shares = [still[matters].mean(1) ** N_SCREENING]
    for n_draws in SCREENED_OF:
        missed = np.zeros(len(matters))
        for seed in range(seeds):
            for i, u in enumerate(matters):
                first = simulator.design(u, seed, n_draws, N_SCREENING, "stratified").donors(N_SCREENING)[:, 0]
                missed[i] += still[u, first].all() / seeds
        shares.append(missed)
    cells = [f"{m.mean():.1%}, {(m * sizes).sum() / max(m.sum(), 1e-12):.3f}" for m in shares] if len(matters) else ["-"] * 3
    return f"{len(matters)} of {len(still)} | " + " | ".join(cells) + " |"


def agreement(case: Case, simulator: Simulator) -> str:
    """The simulation against the library: the same seed, the same effects."""
    found = []
    for n_draws, n_screening, sampling in ((6, 0, "uniform"), (8, 3, "stratified")):
        _, statistics = AverageTreatmentEffect(case.target).attribute(
            *(case.image, case.donors, LABEL),
            feature_mask=case.mask[None, None],
            n_draws=n_draws,
            n_screening_draws=n_screening,
            sampling=sampling,
            allocation="equal",
            seed=7,
            return_statistics=True,
        )
        places = np.searchsorted(statistics.unit_ids.numpy(), simulator.ids)
        effects = statistics.effect[0, places, LABEL].numpy()
        found.append(float(np.abs(effects - simulator.ours(n_draws, n_screening, sampling)(7)[0]).max()))
        besides = {name: n for name, n in statistics.settings["forwards"].items() if name != "interventions"}
    spent = ", ".join(f"{name} {n}" for name, n in besides.items())
    return f"{case.name}: simulated and returned effects differ by at most {100 * max(found):.1e} Dice points; once per image: {spent}"


def plot(panels: list[tuple[str, list[Curve]]], options: argparse.Namespace) -> str:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), sharey=True, layout="constrained", squeeze=False
    )
    styles = {
        "uniform": ("tab:gray", "o", "-"),
        "stratified": ("tab:blue", "s", "-"),
        "stratified, 3 screening": ("tab:green", "^", "-"),
        "paper (3, then n)": ("tab:red", "D", "-"),
        "paper, all blocks of the image": ("tab:red", "D", "--"),
    }
    for axis, (title, drawn) in zip(axes[0], panels):
        for curve in drawn:
            color, marker, line = styles[curve.label]
            axis.loglog(
                curve.forwards, curve.errors, color=color, marker=marker, linestyle=line, markersize=4, label=curve.label
            )
        axis.set_title(title)
        axis.set_xlabel("forwards (interventions on all units)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(True, which="both", alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("rms error of an effect (Dice points of 100)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    file = picture_folder(options) / "error_by_forwards.png"
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file.name


def main() -> None:
    options = start(parser(__doc__))
    seeds = options.repeats or (3 if options.quick else 40)
    lines = ["## Error against number of forwards", "", machine(options), ""]
    lines += [f"Root mean square error over units and {seeds} seeds, in Dice points of 100.", ""]
    lines += ["| network | draws | " + " | ".join(map(str, DRAWS)) + " | forwards for the paper's error (n = 50) |"]
    lines += ["|" + "---|" * (len(DRAWS) + 3)]
    screens, checks, panels = [], [], []
    for case in cases(options, "batch norm", "instance norm"):
        known = exhaustive(case, options)
        simulator = Simulator(case, known)
        drawn = curves(simulator, int((~known.reachable).sum()), seeds)
        paper = next(curve for curve in drawn if curve.label.startswith("paper (3"))
        goal = paper.errors[DRAWS.index(50)]
        for curve in drawn:
            cells = [f"{error:.3f}" for error in curve.errors] + ["-"] * (len(DRAWS) - len(curve.errors))
            needed = forwards_for(curve, goal)
            cells.append("more" if np.isnan(needed) else f"{needed:.0f}")
            if curve.label != "paper, all blocks of the image":
                lines.append(f"| {case.name} | {curve.label} | " + " | ".join(cells) + " |")
            else:
                lines.append(f"| {case.name} | {curve.label} | " + " | ".join(["as above"] * len(DRAWS)) + f" | {cells[-1]} |")
        screens.append(f"| {case.name} | {screening(simulator, seeds)}")
        checks.append("- " + agreement(case, simulator))
        panels.append((f"U-Net with {case.name}, {len(simulator.ids)} blocks", drawn))
    lines += [
        "",
        f"Of the units whose effect is at least the threshold ({THRESHOLD} in Dice), the share that {N_SCREENING} screening draws give up, and the",
    ]
    lines += ["mean size of the effects lost (Dice points of 100):", ""]
    lines += [
        "| network | units with an effect | random donors (paper) | stratified, n_draws=12 | stratified, n_draws=50 |",
        "|---|---|---|---|---|",
        *screens,
        "",
        *checks,
        "",
    ]
    lines += [f"![Error against number of forwards](../_static/{plot(panels, options)})"]
    publish(lines, options)


if __name__ == "__main__":
    main()
