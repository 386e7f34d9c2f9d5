"""How often do 95 % intervals hold the truth, how large is the error, how small are p-values where there is nothing?

    python benchmarks/coverage.py --threads 1 [--repeats 60] [--write docs/benchmarks/coverage.md]

Every donor of every unit is run once, through three networks: a held-out brain slice (112 x 112, RoI 32 x 32, blocks of 8 x 8, 300
donors) and the demo's U-Net; a square of that slice (64 x 64, RoI 16 x 16, 200 donors) and a small U-Net with instance norm; three cubes of
20 voxels (RoI 8, blocks of 4, 200 donors) and a 3D U-Net. The last two are trained here in some seconds on other parts of the brain. Grey and white
matter, hard and soft Dice. Then draws are simulated with the library's own designs, and judged by its own statistics; ``--repeats`` is
the number of seeds. Tables and draws are those of the tests (``tests/common/exhaustive.py``), in larger.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import machine, parser, picture_folder, publish, say, start
from matplotlib.figure import Figure
from scipy import stats as scipy_stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "common"))

from exhaustive import METRICS, SAMPLINGS, Table, design_of, draw, of_slice, of_volumes, orders_of

from captum_causalseg import TreatmentEffectStatistics

DRAWS = (6, 12, 20, 50)
CORRECTIONS = ("fdr_bh", "fdr_by")
NAMES = {"dice": "hard Dice", "soft_dice": "soft Dice"}
GROUPS = {"alive": "all that do something", "rare": "rare flips", "skewed": "skewed"}
COLORS = {"alive": "#222222", "rare": "#d55e00", "skewed": "#0072b2"}


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    case: str
    metric: str
    sampling: str
    n_draws: int
    trials: int
    rms_error: float
    plain: float
    held: dict[str, float]
    ratio: float
    ratio_by_picture: float
    small: dict[float, float]
    half_null: dict[str, float]
    all_null: dict[str, float]


def study(case: str, tables: tuple[Table, ...], sampling: str, n_draws: int, seeds: int) -> list[Line]:
    """One line per metric."""
    drawn = []
    for t, table in enumerate(tables):
        first_order = table.first_order if sampling == "stratified" else None
        drawn.append(draw(table.differences, first_order, n_draws, range(1000 * t, 1000 * t + seeds)))

    def joined(values: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(values, -2)

    errors = [stats.effect.numpy() - table.truth for stats, table in zip(drawn, tables)]
    standards = [stats.standard_error.numpy() for stats in drawn]
    error, standard = joined(errors), joined(standards)
    halves = [(upper - lower).numpy() / 2 for lower, upper in (stats.confidence_interval(0.95) for stats in drawn)]
    held = np.abs(error) <= joined(halves)
    # With the truth taken away the effects are errors, and their p-values those of the null.
    p = joined([shifted(stats, table.truth).p_values().numpy() for stats, table in zip(drawn, tables)])
    plain = joined([plain_p_values(stats, table.truth) for stats, table in zip(drawn, tables)])
    half = {c: np.stack([false_discoveries(*pair, c, every=2) for pair in zip(drawn, tables)]) for c in CORRECTIONS}
    everything = {c: np.stack([false_discoveries(*pair, c, every=1) for pair in zip(drawn, tables)]) for c in CORRECTIONS}
    lines = []
    for k, metric in enumerate(METRICS):
        groups = {name: joined([getattr(table, name) for table in tables])[:, k] for name in GROUPS}
        alive = groups["alive"]
        squares = [((one[..., k] ** 2).mean(), (other[..., k] ** 2).mean()) for one, other in zip(standards, errors)]
        lines.append(
            Line(
                case=case,
                metric=metric,
                sampling=sampling,
                n_draws=n_draws,
                trials=int(alive.sum()) * seeds,
                rms_error=float(np.sqrt((error[..., k] ** 2).mean())),
                plain=float((plain[:, alive, k] > 0.05).mean()),
                held={name: float(held[:, of, k].mean()) if of.any() else np.nan for name, of in groups.items()},
                ratio=float(np.sqrt((standard[..., k] ** 2).mean() / (error[..., k] ** 2).mean())),
                ratio_by_picture=float(np.exp(np.mean([np.log(one / other) for one, other in squares if other > 0]) / 2)),
                small={level: float((p[:, alive, k] <= level).mean()) for level in (0.01, 0.05)},
                half_null={c: float(rates[..., k].mean()) for c, rates in half.items()},
                all_null={c: float(rates[..., k].mean()) for c, rates in everything.items()},
            )
        )
    return lines


def shifted(stats: TreatmentEffectStatistics, by: np.ndarray) -> TreatmentEffectStatistics:
    """The same draws if the effects ``(U, K)`` were less by that much."""
    return stats.replaced(dataclasses.replace(stats.moments, effect=stats.effect.numpy() - by))


def plain_p_values(stats: TreatmentEffectStatistics, truth: np.ndarray) -> np.ndarray:
    """Of the errors, by Student's t with every unit's own variance."""
    off = np.abs(stats.effect.numpy() - truth)
    error = np.sqrt(stats.sample_variance.numpy() * stats.variance_factor.numpy())
    ratio = np.divide(off, error, out=np.where(off > 1e-12, np.inf, 0.0), where=error > 0)
    return np.asarray(2 * scipy_stats.t.sf(ratio, stats.variance_freedom.numpy()))


def false_discoveries(stats: TreatmentEffectStatistics, table: Table, correction: str, *, every: int) -> np.ndarray:
    """The share of false ones among the discoveries at 0.05, ``(S, K)``; every second unit's effect is taken away, or each one's."""
    null = (np.arange(len(table.truth)) % every == 0)[:, None]
    found = shifted(stats, np.where(null, table.truth, 0.0)).significant(0.05, correction).numpy()
    false = found & (null | ~table.alive)
    return false.sum(1) / np.maximum(found.sum(1), 1)


def missed(table: Table, k: int, sampling: str, n: int, seeds: int, threshold: float) -> float:
    """Share of units with an effect of at least the threshold that three screening draws give up."""
    orders, donors = orders_of(table.first_order), table.differences.shape[1]
    lost = []
    for u in np.flatnonzero(np.abs(table.truth[:, k]) >= threshold):
        for seed in range(seeds):
            design = design_of((seed, u), donors, None if sampling == "uniform" else orders[u], n, 3)
            lost.append(np.abs(table.differences[u, design.donors(3)[:, 0], k]).max() < threshold)
    return float(np.mean(lost)) if lost else np.nan


def plot(lines: list[Line], file: Path) -> None:
    """Coverage against the number of draws, and the size of the standard errors."""
    figure = Figure(figsize=(12, 6.2), layout="constrained")
    axes = figure.subplots(2, 4, sharex=True, sharey="row", height_ratios=(3, 2))
    styles = {"uniform": ("--", "o"), "stratified": ("-", "s")}
    panels = [(case, metric) for case in ("2D", "3D") for metric in METRICS]
    for (top, bottom), (case, metric) in zip(axes.T, panels):
        top.set_title(f"{case}, {NAMES[metric]}")
        for sampling in SAMPLINGS:
            those = [x for x in lines if (x.case, x.metric, x.sampling) == (case, metric, sampling)]
            style, marker = styles[sampling]
            given = {"linestyle": style, "marker": marker, "markersize": 4, "linewidth": 1.4}
            for group, name in GROUPS.items():
                held = [x.held[group] for x in those]
                top.plot([x.n_draws for x in those], held, color=COLORS[group], label=f"{name}, {sampling}", **given)
            bottom.plot(
                [x.n_draws for x in those], [x.ratio_by_picture for x in those], color=COLORS["alive"], label=sampling, **given
            )
        for level, style in ((0.95, "-"), (0.92, ":")):
            top.axhline(level, color="0.6", linewidth=0.9, linestyle=style, zorder=0)
        for level, style in ((1.0, "-"), (1.5, ":")):
            bottom.axhline(level, color="0.6", linewidth=0.9, linestyle=style, zorder=0)
        bottom.set_xscale("log")
        bottom.set_xticks(DRAWS, labels=[str(n) for n in DRAWS])
        bottom.minorticks_off()
        bottom.set_xlabel("draws per unit")
        for axis in (top, bottom):
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("95 % intervals\nthat hold the truth")
    axes[1, 0].set_ylabel("rms standard error /\nrms error, by picture")
    shown = [share for x in lines if x.case in ("2D", "3D") for share in x.held.values()]
    axes[0, 0].set_ylim(min(0.9, np.nanmin(shown)) - 0.01, 1.005)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    paired = [place for pair in zip(range(3), range(3, 6)) for place in pair]  # a column per group
    figure.legend([handles[i] for i in paired], [labels[i] for i in paired], loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=130)


def main() -> None:
    options = start(parser(__doc__))
    seeds = options.repeats or (3 if options.quick else 60)
    n_donors = (60, 60) if options.quick else (300, 200)
    tables: dict[str, tuple[Table, ...]] = {}
    say("2D: every intervention")
    tables["2D"] = of_slice((120, 48), 112, (64, 40), 32, n_donors=n_donors[0])
    say("2D, instance norm: every intervention")
    tables["2D, instance norm"] = of_slice((120, 48), 64, (24, 16), 16, n_donors=n_donors[1], norm="INSTANCE")
    say("3D: every intervention")
    tables["3D"] = of_volumes([(90, 50), (150, 70), (140, 120)], n_donors[1])
    found: list[Line] = []
    for case, those in tables.items():
        for n_draws in DRAWS:
            for sampling in SAMPLINGS:
                say(f"{case}: {n_draws} draws, {sampling}")
                found += study(case, those, sampling, n_draws, seeds)
    lines = [machine(options), ""]
    for case, those in tables.items():
        units = sum(len(table.truth) for table in those)
        counts = ", ".join(
            f"{NAMES[metric]}: {alive} do something, {rare} flip rarely, {skewed} are skewed"
            for metric, alive, rare, skewed in zip(
                METRICS, *(sum(getattr(t, name).sum(0) for t in those) for name in ("alive", "rare", "skewed"))
            )
        )
        donors = those[0].differences.shape[1]
        lines += [f"- {case}: {units} units (two classes) with {donors} donors each, {seeds} seeds. {counts}."]
    file = picture_folder(options) / "coverage.png"
    plot(found, file)
    lines += [
        "",
        "Shares of 95 % intervals that hold the truth, among the units that any donor moves; *rare*: fewer than 20 % of the donors move the score;",
        "*skewed*: the skewness of the donors' differences is beyond 1.5. *plain* is Student's t with the unit's own variance, the others are the",
        "library's. *p*: the share of p-values at most that small when the effect is taken away. *se / error*: both root mean square, over all",
        "pictures and classes together, then the (geometric) mean over each of them; errors are in Dice points of 100. Of the cubes, one has hardly any white matter",
        "in its RoI: its hard score is all or nothing, effects are up to 70 points, and all cubes together are that one.",
        "",
        f"![Coverage of the intervals](../_static/{file.name})",
        "",
        "| case | n | draws | trials | rms error | plain | library | rare | skewed | se / error | by picture | p <= 0.01 | p <= 0.05 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    ordered = [x for case in tables for metric in METRICS for x in found if (x.case, x.metric) == (case, metric)]
    for x in ordered:
        held = [f"{x.held[group]:.3f}".replace("nan", "none") for group in GROUPS]
        lines.append(
            f"| {x.case}, {NAMES[x.metric]} | {x.n_draws} | {x.sampling} | {x.trials} | {100 * x.rms_error:.4f} "
            f"| {x.plain:.3f} | {held[0]} | {held[1]} | {held[2]} | {x.ratio:.2f} | {x.ratio_by_picture:.2f} "
            f"| {x.small[0.01]:.3f} | {x.small[0.05]:.3f} |"
        )
    lines += [
        "",
        "## Many units at once",
        "",
        "The share of false ones among the units called significant at 0.05 (the false discovery rate), when the effect of every second unit is taken",
        "away, and when that of every unit is: then it is the chance that any unit is called significant. Benjamini and Hochberg (`fdr_bh`, the",
        "default) and Benjamini and Yekutieli (`fdr_by`).",
        "",
        "| case | n | draws | half null, `fdr_bh` | half null, `fdr_by` | all null, `fdr_bh` | all null, `fdr_by` |",
        "|---|---|---|---|---|---|---|",
    ]
    for x in ordered:
        rates = [f"{one[c]:.3f}" for one in (x.half_null, x.all_null) for c in CORRECTIONS]
        lines.append(f"| {x.case}, {NAMES[x.metric]} | {x.n_draws} | {x.sampling} | " + " | ".join(rates) + " |")
    lines += [
        "",
        "Units that three screening draws miss, of those whose effect is at least the threshold (2D, grey matter):",
        "",
    ]
    lines += [
        "| metric | threshold, Dice | units | random (the paper's) | ranked, of 20 strata | ranked, of 50 strata |",
        "|---|---|---|---|---|---|",
    ]
    for k, metric in enumerate(METRICS):
        for threshold in (0.0002, 0.001, 0.002):
            designs = (("uniform", 50), ("stratified", 20), ("stratified", 50))
            shares = [missed(tables["2D"][0], k, sampling, n, 2 * seeds, threshold) for sampling, n in designs]
            units = int((np.abs(tables["2D"][0].truth[:, k]) >= threshold).sum())
            lines.append(
                f"| {NAMES[metric]} | {threshold} | {units} | " + " | ".join(f"{100 * share:.2f} %" for share in shares) + " |"
            )
    publish(lines, options)


if __name__ == "__main__":
    main()
