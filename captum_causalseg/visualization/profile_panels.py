"""The panels of a perception profile: the paper's pie, ratio bar and histogram, and the mass by distance."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from captum_causalseg.evaluation.profile import PerceptionProfile
from captum_causalseg.visualization.ink import ink, role_color
from captum_causalseg.visualization.pictures import BACKGROUND, ROLES

__all__ = ["histogram", "mass_by_distance", "named_roles", "pie", "ratio"]


def named_roles(words: tuple[str, str]) -> dict[str, str]:
    """What units of each role are called, from what positive and negative effects do."""
    above, below = words
    usual = (above, below) == ("supports", "harms")
    return {
        "supporting": "supporting" if usual else above,
        "harming": "harming" if usual else below,
        "null": "null",
    }


def pie(axes: Axes, profile: PerceptionProfile, names: dict[str, str]) -> None:
    """Supporting, harming and null units by their number."""
    shown = [role for role in ROLES if profile.counts[role]]
    wedges = axes.pie(
        [profile.counts[role] for role in shown],
        colors=[role_color(role) for role in shown],
        startangle=90,
        counterclock=False,
        wedgeprops={"edgecolor": ink(1)},
    )[0]
    labels = [f"{names[role]}: {profile.counts[role]} ({100 * profile.shares[role]:.1f} %)" for role in shown]
    axes.legend(wedges, labels, loc="upper center", bbox_to_anchor=(0.5, 0.04), frameon=False, fontsize=9)
    beside = f"\n({profile.n_outside} more cannot reach the region)" if profile.n_outside else ""
    axes.set_title(f"{len(profile.units)} units{beside}", fontsize=11)


def ratio(axes: Axes, profile: PerceptionProfile, names: dict[str, str]) -> None:
    """The balance of supporting and harming mass."""
    left = 0.0
    for role, mass in (("supporting", profile.supporting_mass), ("harming", profile.harming_mass)):
        share = mass / profile.mass if profile.mass > 0 else 0.0
        axes.barh(0, share, left=left, color=role_color(role), height=0.8)
        if share > 0.12:
            axes.text(left + share / 2, 0, f"{100 * share:.1f} %", ha="center", va="center", color=ink(1), fontsize=9)
        left += share
    axes.set_xlim(0, 1)
    axes.set_axis_off()
    said = f"{names['supporting']} against {names['harming']} mass".capitalize()
    axes.set_title(said if profile.mass > 0 else "No effects", fontsize=10)


def histogram(axes: Axes, profile: PerceptionProfile, score_name: str, names: dict[str, str]) -> None:
    """Effects by their size."""
    units = profile.units[profile.units["effect"] != 0]
    largest = float(units["effect"].abs().max()) if len(units) else 1.0
    groups = {role: units.loc[units["role"] == role, "effect"].to_numpy() for role in ("null", "supporting", "harming")}
    shown = [role for role, effects in groups.items() if len(effects)]
    # 0 is an edge, so that no bar holds both signs.
    edges = np.linspace(-largest, largest, 31)
    if shown:
        called = ["not significant" if role == "null" else names[role] for role in shown]
        axes.hist(
            [groups[role] for role in shown],
            edges.tolist(),
            stacked=True,
            color=[role_color(role) for role in shown],
            label=called,
        )
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.legend(frameon=False, fontsize=9)
    axes.axvline(0, color=ink(0.3), linewidth=0.8)
    if profile.background is not None and profile.background.effect != 0:
        axes.axvline(profile.background.effect, color=BACKGROUND, linestyle=":", linewidth=2, label="background")
        axes.legend(frameon=False, fontsize=9)
    # Numbers of small effects are long.
    axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
    axes.set_xlabel(f"effect on the {score_name}")
    axes.set_ylabel("units")
    axes.set_title(f"{len(units)} effects other than 0", fontsize=11)


def mass_by_distance(axes: Axes, profile: PerceptionProfile, score_name: str, names: dict[str, str]) -> None:
    """Where the mass lies, by distance from the region of interest."""
    table, width = profile.by_distance, profile.bin_width
    middle = table["upper"] - width / 2
    axes.bar(middle, table["supporting_mass"], 0.9 * width, color=role_color("supporting"), label=names["supporting"])
    axes.bar(
        middle,
        table["harming_mass"],
        0.9 * width,
        bottom=table["supporting_mass"],
        color=role_color("harming"),
        label=names["harming"],
    )
    if table["noise_mass"].notna().all():
        edges = np.append(table["upper"] - width, table["upper"].iloc[-1])
        axes.stairs(table["noise_mass"], edges, color=ink(), linestyle="--", linewidth=1.2, label="noise alone", baseline=None)
    units = {"pixel": "pixels", "spacing": "in the unit of the spacing", "bin": "bins"}
    axes.set_xlabel(f"distance from the region of interest ({units.get(profile.distance_unit, profile.distance_unit)})")
    axes.set_ylabel(f"sum of |effect| on the {score_name}")
    if profile.background is not None and profile.background.effect != 0:
        level = table["n_units"] * abs(profile.background.effect)
        edges = np.append(table["upper"] - width, table["upper"].iloc[-1])
        axes.stairs(level, edges, color=BACKGROUND, linestyle=":", linewidth=2, label="background in every unit", baseline=None)
    cumulative = axes.twinx()
    if profile.mass > 0:
        axes.set_ylim(top=1.08 * max(table["mass"].max(), np.nan_to_num(table["noise_mass"]).max()))
        halo = [withStroke(linewidth=3, foreground=ink(1))]
        cumulative.plot(
            table["upper"], 100 * table["cumulative_share"], color=ink(0.15), marker=".", linewidth=1.2, path_effects=halo
        )
        radii = [profile.radius(share) for share in (0.5, 0.9)]
        # What lies beyond the last mass is empty paper.
        last = table.loc[table["mass"] > 0, "upper"].iloc[-1]
        axes.set_xlim(right=last + width)
        unit = "" if profile.distance_unit in units else f" {profile.distance_unit}"
        axes.set_title(f"Half of the mass lies within {radii[0]:.4g}{unit}, 90 % within {radii[1]:.4g}{unit}", fontsize=11)
        for radius in radii:
            cumulative.axvline(radius, color=ink(0.25), linewidth=0.8, linestyle=":")
    cumulative.set_ylim(0, 105)
    cumulative.set_ylabel("share of the mass up to there (%)")
    # Above the bars and the line, on white: bars of the legend's own colors may lie behind it.
    cumulative.legend(*axes.get_legend_handles_labels(), fontsize=9, loc="center right", framealpha=0.9, edgecolor="none")
