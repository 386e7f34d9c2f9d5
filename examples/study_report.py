"""The tables and the picture of `model_study.py`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from study_networks import CONTROL

FAR = 4
"""Rings of blocks around the RoI; what lies beyond is called far."""
MEASURES = {
    "radius_50": "radius of 50 % of the mass (rings)",
    "share_within_2": "share of the mass in the first two rings",
    "share_null": "share of null units",
    "concentration": "concentration (Gini)",
    "anisotropy": "anisotropy",
}
# Okabe and Ito's colors, which the color-blind can tell apart, and one more.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#6a3d9a", "#8c564b")
MARKERS = "osD^vP*Xd"
SLICE_COLORS = ("#440154", "#31688e", "#35b779", "#d8c51e")


@dataclass(frozen=True)
class Study:
    """All results.

    Args:
        about: one row per network.
        rows: one row per network, slice and RoI.
        rings: one row per network, slice, RoI and ring of blocks.
    """

    about: pd.DataFrame
    rows: pd.DataFrame
    rings: pd.DataFrame

    @property
    def order(self) -> list[str]:
        """The networks, those with the most mass near the RoI first."""
        near = self.rows.groupby("model")["share_within_2"].mean()
        return [str(name) for name in near.sort_values(ascending=False, kind="stable").index]

    @property
    def reached_by_all(self) -> pd.DataFrame:
        """The rows in which every unit of the image reaches the RoI."""
        return self.rows[self.rows["share_reached"] == 1]

    def cumulative(self, model: str, of: str) -> pd.Series:
        """Per ring, the share of ``n_units``, ``mass`` or ``energy`` that lies within it.

        Shares of each case are averaged. Energies are added up over the cases first: those of one case scatter about 0.
        """
        table = self.rings[self.rings["model"] == model].pivot_table(
            index=["slice", "roi"], columns="bin", values=of, aggfunc="sum", fill_value=0.0
        )
        if of == "energy":
            total = table.sum()
            return (total / total.sum()).cumsum()
        return table.div(table.sum(axis=1), axis=0).mean().cumsum()

    def spread(self) -> pd.DataFrame:
        """How much each measure varies, as standard deviations, and whether the networks keep their order."""
        found = {}
        for name in MEASURES:
            by_slice = self.rows.pivot_table(index="model", columns="slice", values=name)
            within = self.rows.groupby(["model", "slice"])[name].var()
            ranks = by_slice.corr(method="spearman").to_numpy()[np.triu_indices(by_slice.shape[1], 1)]
            found[name] = {
                "models": by_slice.mean(axis=1).std(),
                "slices": math.sqrt(by_slice.var(axis=1).mean()),
                "common": by_slice.mean(axis=0).std(),
                "rois": math.sqrt(within.mean()),
                "rank_correlation": float(pd.Series(ranks).mean()),
            }
        return pd.DataFrame(found).T

    def page(self, training: dict[str, Any], explanation: dict[str, Any], quick: bool) -> str:
        """What was done, by these settings, and the tables, in Markdown."""
        slices, edge = list(self.rows["slice"].unique()), explanation["roi_edge"]
        setup = (
            f"`examples/model_study.py`: {training['steps']} steps of {training['batch_size']} slices each; "
            f"{len(slices)} held-out slices ({', '.join(slices)}) with {self.rows['roi'].nunique()} RoIs of {edge} x {edge} "
            f"pixels each; blocks of {explanation['block_size']} pixels, {explanation['n_draws']} draws. Times are CPU seconds, all slices together."
        )
        parts = [
            setup + (" **Quick settings: the numbers mean nothing.**" if quick else ""),
            self._networks(),
            "How far the effects reach: mean over slices and RoIs ± standard deviation between them; distances in rings of blocks "
            "around the RoI. Energies of two rings are added up over the cases.",
            self._distances(),
            "What the units do, and how evenly (likewise).",
            self._roles(),
            "What varies more, the network or the input? Standard deviations of the same numbers, over the networks as MONAI makes them "
            f'("{CONTROL}" left out).',
            self._variation(),
        ]
        return "\n\n".join(parts) + "\n"

    def _networks(self) -> str:
        header = ("network", "normalization; also mixes by", "parameters", "Dice, held-out slices", "Dice in the RoIs")
        rows = []
        for name, one in self.about.set_index("model").loc[self.order].iterrows():
            mixing = one["norm"] + (f"; {one['mixing']}" if one["mixing"] else "")
            scores = f"{one['parameters'] / 1e6:.2f} M", f"{one['dice']:.3f}", f"{one['roi_dice']:.3f}"
            rows.append((name, mixing, *scores, f"{one['training_seconds']:.0f}", one["forwards"], f"{one['seconds']:.0f}"))
        return markdown((*header, "training, s", "forwards", "effects, s"), rows)

    def _distances(self) -> str:
        header = (
            "network",
            "units that reach the RoI, %",
            "radius of 50 % of the mass",
            "of 90 %",
            "of 50 % of the energy",
            "of 90 %",
        )
        rows = []
        for name in self.order:
            radii = [self._cell(name, f"{of}radius_{share}", 1) for of in ("", "energy_") for share in (50, 90)]
            near = self._cell(name, "share_within_2", 0, 100), f"{100 * self.cumulative(name, 'energy').get(2, math.nan):.0f}"
            rows.append((name, self._cell(name, "share_reached", 0, 100), *radii, *near, self._cell(name, "noise_share", 2)))
        every = self.reached_by_all
        if len(every):
            even = every[["even_radius_50", "even_radius_90"]].mean()
            near_even = f"{100 * every['even_share_within_2'].mean():.0f}"
            rows.append(("*every unit the same*", "", *[f"{radius:.1f}" for radius in even] * 2, near_even, near_even, ""))
        return markdown((*header, "mass in two rings, %", "energy in two rings, %", "noise / mass"), rows)

    def _roles(self) -> str:
        header = (
            "network",
            "supporting, %",
            "harming, %",
            "null, %",
            f"not null beyond ring {FAR}, %",
            "concentration",
            "anisotropy",
        )
        rows = []
        for name in self.order:
            shares = [self._cell(name, f"share_{role}", 0, 100) for role in ("supporting", "harming", "null", "far_active")]
            rows.append((name, *shares, self._cell(name, "concentration", 2), self._cell(name, "anisotropy", 2)))
        return markdown(header, rows)

    def _variation(self) -> str:
        header = ("measure", "between networks", "between slices, within a network", "of it, common to all networks")
        plain = replace(self, rows=self.rows[self.rows["model"] != CONTROL])
        rows = [
            (MEASURES[str(name)], *("" if math.isnan(value) else f"{value:.2f}" for value in one))
            for name, one in plain.spread().iterrows()
        ]
        return markdown((*header, "between RoIs, within a slice", "rank correlation of the networks between slices"), rows)

    def _cell(self, model: str, column: str, digits: int, scale: float = 1.0) -> str:
        values = scale * self.rows.loc[self.rows["model"] == model, column]
        # A single case has no spread.
        return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")

    def plot(self) -> Figure:
        """How far the mass and the energy reach, what the units do, and how it shifts between slices."""
        figure = Figure(figsize=(12.5, 9), layout="constrained")
        (left, right), (bars, dots) = figure.subplots(2, 2)
        places = np.arange(len(self.order))
        colors = dict(zip(self.order, COLORS))
        for axes, of in ((left, "mass"), (right, "energy")):
            even = self.cumulative(self.order[0], "n_units")
            axes.plot([0, *even.index], [0, *even], color="0.55", linestyle="--", linewidth=2, label="every unit the same")
            for i, name in enumerate(self.order):
                curve = self.cumulative(name, of)
                axes.plot([0, *curve.index], [0, *curve], color=colors[name], marker=MARKERS[i], markersize=4, label=name)
            axes.set_xlabel("distance from the RoI (rings of blocks)")
            axes.set_ylabel(f"share of the {of} within")
            axes.set_xlim(0, None)
            axes.grid(alpha=0.3)
        left.set_title("Sum of |effect|, noise included")
        right.set_title("Sum of effect², less its noise")
        left.legend(fontsize=8, frameon=False, loc="lower right")

        shares = self.rows.groupby("model")[["share_supporting", "share_null", "share_harming"]].mean().loc[self.order]
        start = np.zeros(len(places))
        # The colors of plot_effects: red supports, blue harms.
        for role, color in (("supporting", "#b2182b"), ("null", "0.85"), ("harming", "#2166ac")):
            width = 100 * shares[f"share_{role}"].to_numpy()
            bars.barh(places, width, left=start, color=color, label=role)
            for y, x, w in zip(places, start, width):
                if w >= 3:
                    bars.text(
                        x + w / 2,
                        y,
                        f"{w:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="black" if role == "null" else "white",
                    )
            start += width
        bars.set_title("What the units do (false discovery rate 5 %)")
        bars.set_xlabel("share of the units (%)")
        bars.set_xlim(0, 100)
        bars.legend(fontsize=8, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))

        radii = self.rows.groupby(["model", "slice"])["radius_50"].mean().unstack()
        slices = list(self.rows["slice"].unique())
        for i, name in enumerate(slices):
            # Next to one another, so that equal ones can be told apart.
            offset = (i - (len(slices) - 1) / 2) * 0.16
            dots.plot(radii.loc[self.order, name], places + offset, "o", color=SLICE_COLORS[i % len(SLICE_COLORS)], label=name)
        dots.plot(radii.loc[self.order].mean(axis=1), places, "|", color="black", markersize=16, label="mean")
        if len(self.reached_by_all):
            even = self.reached_by_all["even_radius_50"].mean()
            dots.axvline(even, color="0.55", linestyle="--", label="every unit the same")
        dots.set_title("Radius of half of the mass, by slice (mean over the RoIs)")
        dots.set_xlabel("distance from the RoI (rings of blocks)")
        dots.set_xlim(0, None)
        dots.grid(axis="x", alpha=0.3)
        dots.legend(fontsize=8, ncols=3, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12))
        for axes in (bars, dots):
            axes.set_yticks(places, self.order)
            axes.invert_yaxis()
        for axes in (left, right, bars, dots):
            axes.spines[["top", "right"]].set_visible(False)
        return figure


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
