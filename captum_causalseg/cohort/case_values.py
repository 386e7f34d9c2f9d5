"""What one case says: its units as a study's folder holds them, and numbers that stand for the case."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from captum_causalseg.cohort.folder import Cohort
from captum_causalseg.evaluation.profile.perception import energies
from captum_causalseg.statistics import Status, adjust_p_values, is_hypothesis

__all__ = ["MEASURES", "PARTS", "READ", "Source", "by_bin", "case_values", "components_of", "typical_width"]

MEASURES = (
    "observed_score",
    "share_significant",
    "mass",
    "supporting_mass",
    "harming_mass",
    "energy",
    "radius_50",
    "n_units",
)
PARTS = ("channel", "token", "head")
"""Of a module, by which a study of components may number them."""

_COMPONENTS = ("module", *PARTS, "type", "part", "order")
READ = (
    "unit",
    *_COMPONENTS,
    "status",
    "effect",
    "standard_error",
    "p_value",
    "observed_score",
    "distance",
    "distance_unit",
)


@dataclass(frozen=True)
class Source:
    """A study, and which output of it is looked at.

    Args:
        name: among several studies.
        cohort: what is in its folder.
        output: per output axis, which; ``None`` for the one that was asked for.
    """

    name: str | None
    cohort: Cohort
    output: Mapping[str, int] | None

    def columns(self, case: str, file: str = "units.parquet") -> list[str]:
        """Of the table of its units."""
        import pyarrow.parquet

        return list(pyarrow.parquet.read_schema(self.cohort.file(case, file)).names)

    def units(self, case: str, wanted: tuple[str, ...]) -> pd.DataFrame:
        """The rows of one case and output; see :meth:`rows`."""
        return self.rows(case, wanted, "units.parquet")

    def rows(self, case: str, wanted: tuple[str, ...], file: str) -> pd.DataFrame:
        """The rows of one case and output in a table of it; of the ``wanted`` columns those that there are.

        Raises:
            ValueError: ``output`` names an axis that the units do not have, picks no row, or leaves several outputs.
        """
        there = self.columns(case, file)
        output = dict(self.output or {})
        axes = _output_axes(there)
        unknown = sorted({*output} - {*axes})
        if unknown:
            known = f"its axes are {', '.join(map(repr, axes))}" if axes else "they have a single one"
            raise ValueError(f"output: the units of case {case!r} have no output axis {unknown[0]!r}; {known}")
        picking = [*output] if output else [name for name in ("asked",) if name in there]
        read = [name for name in dict.fromkeys((*wanted, *picking, *axes)) if name in there]
        table = pd.read_parquet(self.cohort.file(case, file), columns=read, partitioning=None)
        if output:
            every = table[axes].drop_duplicates()
            table = table[np.logical_and.reduce([table[name] == number for name, number in output.items()])]
            left = table[axes].drop_duplicates()
            if len(left) != 1:
                held = "; ".join(f"{name} {', '.join(map(str, every[name].unique()))}" for name in axes)
                raise ValueError(f"output: {output} picks {len(left)} outputs of case {case!r}, expected one of {held}")
        elif picking:
            table = table[table["asked"]]
        return table[[name for name in wanted if name in there]]


def _output_axes(columns: Sequence[str]) -> list[str]:
    """They stand between the unit and where it lies."""
    if "unit" not in columns:
        return []
    rest = columns[columns.index("unit") + 1 :]
    end = next(k for k, name in enumerate(rest) if name in ("input", "status") or name.startswith("start_"))
    return list(rest[:end])


def case_values(units: pd.DataFrame, alpha: float) -> dict[str, float]:
    """One case in numbers, of :data:`MEASURES`.

    Args:
        units: a row per unit or module, with ``status``, ``effect``, ``standard_error``, ``p_value``, ``observed_score`` and, of units,
            ``distance``.
        alpha: the false discovery rate among the units of the case that can reach the region of interest.
    """
    found = dict.fromkeys(MEASURES, math.nan)
    found["observed_score"] = float(units["observed_score"].iloc[0]) if len(units) else math.nan
    kept = _tested(units)
    found["n_units"] = float(len(kept))
    if kept.empty:
        return found
    # Before screened effects are set to 0: that they were few draws is in the p-value.
    found["share_significant"] = float(
        ((adjust_p_values(kept["p_value"]) <= alpha) & (_dropped_to_0(kept)["effect"] != 0)).mean()
    )
    if "module" in units:
        # Modules hold each other: their effects do not add up.
        return found
    kept = _dropped_to_0(kept)
    effect, energy = kept["effect"], energies(kept)
    found |= {
        "mass": float(effect.abs().sum()),
        "supporting_mass": float(effect.clip(lower=0).sum()),
        "harming_mass": float((-effect).clip(lower=0).sum()),
        "energy": float(energy.sum(skipna=False)),
        "radius_50": _radius(kept, 0.5),
    }
    return found


def by_bin(units: pd.DataFrame, width: float) -> pd.DataFrame:
    """Of one case's units: per bin of distance ``((k - 1) width, k width]``, ``n_units``, ``n_outside``, ``mass``, ``sum``, ``energy``.

    As :func:`captum_causalseg.evaluation.profile.perception_profile` has it: SCREENED count as 0, EXCLUDED not at all, and of those
    OUTSIDE_SUPPORT only the number is kept. Units without a distance are left out.
    """
    units = _dropped_to_0(units[units["distance"].notna()])
    tested = is_hypothesis(units["status"])
    outside = (units["status"] == Status.OUTSIDE_SUPPORT.name).to_numpy()
    kept, counted = units[tested | outside], tested[tested | outside]
    # 3 * 0.1 belongs to the third bin of width 0.1.
    bins = np.ceil(kept["distance"] / width - 1e-9).astype(np.int64).rename("bin")
    columns = pd.DataFrame(
        {
            **{"n_units": counted.astype(int), "n_outside": (~counted).astype(int)},
            **{"mass": kept["effect"].abs(), "sum": kept["effect"], "energy": energies(kept)},
        }
    )
    # Not groupby.sum, which passes over NaN.
    return columns.groupby(bins).agg(lambda values: values.sum(skipna=False)).reset_index()


def _tested(units: pd.DataFrame) -> pd.DataFrame:
    """The units that were intervened on: those that can reach the region of interest and do not touch it."""
    return units[is_hypothesis(units["status"])]


def _dropped_to_0(units: pd.DataFrame) -> pd.DataFrame:
    """With the effect 0, known for certain, where screening dropped the unit."""
    dropped = units["status"] == Status.SCREENED.name
    return units.assign(
        effect=units["effect"].where(~dropped, 0.0), standard_error=units["standard_error"].where(~dropped, 0.0)
    )


def typical_width(units: pd.DataFrame) -> float:
    """Of one case: the edge of its units, in the unit of the distances; the largest of the axes'. NaN without distances.

    Only units that can reach the region of interest or touch it have a say in the edge; where the others lie tells how distances
    grow from block to block.

    The table has edges in pixels, and distances in pixels or millimeters. From one block to the next along an axis, the distance
    changes by at most the edge of a block, and by just that where both are clear of the region of interest on that axis' side: the
    largest change is the edge. An axis along which no two blocks are clear of it may be underrated. Where units are no blocks
    (supervoxels), their edge in pixels counts, times the smallest distance that there is, mostly that of a pixel.
    """
    placed = units[units["distance"].notna()]
    axes = [name for name in placed.columns if name.startswith("start_")]
    axes = [name for name in axes if len(placed) and placed[name].min() >= 0]
    if not axes or not (placed["distance"] > 0).any():
        return math.nan
    stops = {start: start.replace("start", "stop") for start in axes}
    # Units of several channels lie in one place.
    placed = placed.drop_duplicates([*stops, *stops.values()])
    counted = placed["status"] != Status.OUTSIDE_SUPPORT.name
    if not counted.any():
        return math.nan
    edges, steps = [], []
    for start, stop in stops.items():
        edges.append(float((placed[stop] - placed[start])[counted].quantile(0.5, interpolation="higher")))
        others = [end for other in axes if other != start for end in (other, stops[other])]
        ordered = placed.sort_values([*others, start])
        touching = (ordered[others].diff() == 0).all(axis=1) & (ordered[start] == ordered[stop].shift())
        ratio = (ordered["distance"].diff().abs() / ordered[start].diff())[touching]
        # Of supervoxels, few touch like that, and by chance.
        steps.append(float(ratio.max()) if 2 * len(ratio) >= len(placed) else 0.0)
    width = max(edge * step for edge, step in zip(edges, steps))
    return width if width > 0 else max(edges) * float(placed.loc[placed["distance"] > 0, "distance"].min())


def components_of(units: pd.DataFrame) -> pd.DataFrame:
    """Of one case of ``component_effects``: what its modules are, and their effects."""
    columns: list[Any] = [name for name in (*_COMPONENTS, "status", "effect", "standard_error") if name in units]
    return units[columns]


def _radius(units: pd.DataFrame, share: float) -> float:
    """The smallest distance of a unit within which this share of the mass lies, as ``PerceptionProfile.radius``."""
    placed = units[units["distance"].notna()]
    within = placed["effect"].abs().groupby(placed["distance"]).sum().cumsum()
    if within.empty or not within.iloc[-1] > 0:
        return math.nan
    return float(within.index[np.argmax(within.to_numpy() >= share * within.iloc[-1] * (1 - 1e-12))])
