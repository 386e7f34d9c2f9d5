"""What a report says of single units and of all of them: where they lie, how far away and in which direction, what holds."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.files import option_name
from captum_causalseg.cli.job import Job
from captum_causalseg.cli.results import digits_for, number, place, sign_words
from captum_causalseg.evaluation.profile import PerceptionProfile, perception_profile
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = [
    "ALPHA",
    "Directions",
    "UnitRow",
    "direction_rows",
    "directions_of",
    "found_in_words",
    "length_unit",
    "not_done",
    "p_in_words",
    "profile_of",
    "unit_rows",
    "unit_table",
]

ALPHA = 0.05
"""The false discovery rate at which a report calls an effect different from 0."""
# Parts of a direction that are smaller than this share of its largest part are not told.
_TOLD = 0.25
_MOST = 5
_WORLD = (("to the patient's left", "to the patient's right"), ("posterior", "anterior"), ("inferior", "superior"))
_PICTURE = (("up", "down"), ("left", "right"))


@dataclass(frozen=True)
class Directions:
    """How directions on the prepared grid are called.

    Args:
        matrix: from displacements along the prepared axes to displacements along the named ones, ``(axes, axes)``.
        words: per named axis, toward smaller and toward larger numbers.
        said: whose directions these are.
    """

    matrix: np.ndarray
    words: Sequence[tuple[str, str]]
    said: str

    def named(self, displacement: np.ndarray) -> list[tuple[float, str]]:
        """The parts of a displacement that are worth telling, the largest first, each with the direction that it is in."""
        parts = self.matrix @ displacement
        least = _TOLD * np.abs(parts).max(initial=0)
        order = np.argsort(-np.abs(parts), kind="stable")
        return [(abs(float(parts[axis])), self.words[axis][int(parts[axis] > 0)]) for axis in order if abs(parts[axis]) > least]

    def of_side(self, axis: int, side: int) -> str:
        """What the way along a prepared axis is called, by the named axis that it runs along."""
        named = int(linear_sum_assignment(-np.abs(self.matrix))[1].tolist().index(axis))
        return self.words[named][int(side * self.matrix[named, axis] > 0)]


@dataclass(frozen=True)
class UnitRow:
    """A unit in a table of the report.

    Args:
        unit: its number.
        kind: what it does: supports or harms, raises or lowers.
        cells: where it is, how far away, in which direction, effect, interval, p-value.
    """

    unit: int
    kind: str
    cells: tuple[str, ...]


def directions_of(case: CommandCase) -> Directions:
    """In space where the image has millimeters and is a volume, of pictures up and down, else along axes."""
    grids, axes = case.grids, len(case.grids.prepared_shape)
    if axes == 2:
        return Directions(np.eye(2), _PICTURE, "as the picture is shown")
    affine = grids.prepared_affine
    if affine is None:
        words = [(f"toward 0 along axis {axis + 1}", f"along axis {axis + 1}") for axis in range(axes)]
        return Directions(
            np.eye(axes), words, "along the axes of the prepared volume" if grids.differ else "along the axes of the file"
        )
    columns = affine[:3, :3]
    return Directions(columns / np.linalg.norm(columns, axis=0), _WORLD, "the patient's, by the scan's own affine")


def profile_of(job: Job, statistics: TreatmentEffectStatistics) -> PerceptionProfile | None:
    """Effects by distance: straight and in millimeters where these are known; ``None`` where there is no unit whose distance says something."""
    case = job.case
    if not bool(statistics.select(statistics.hypotheses, case.output).any()):
        return None
    spacing = case.grids.prepared_spacing
    if spacing is None:
        return perception_profile(statistics, case.roi, case.output)
    return perception_profile(statistics, case.roi, case.output, spacing=spacing, length_unit="mm", metric="euclidean")


def length_unit(case: CommandCase) -> str:
    """What distances are measured in."""
    if case.grids.prepared_spacing is not None:
        return "mm"
    return f"{case.grids.noun} of the prepared image" if case.grids.differ else case.grids.noun


def unit_table(job: Job, statistics: TreatmentEffectStatistics) -> pd.DataFrame:
    """One row per unit of the case's output, in their order: the columns of ``to_dataframe()``, ``adjusted_p_value``, ``place``, ``distance`` and ``direction``, in words."""
    case = job.case
    found = statistics.of_output(case.output)
    there = (found.status[0] != Status.ABSENT).numpy()
    table = found.to_dataframe().assign(adjusted_p_value=found.adjusted_p_values()[0].numpy()[there])
    table = case.units.in_own_voxels(table)
    axes = len(case.grids.shape)
    table = table.assign(place=[place(row, axes) for row in table.to_dict("records")])
    profile, short = profile_of(job, statistics), length_unit(case).split(" of ")[0]
    distances, found_at = {}, {}
    if profile is not None:
        names, directions = [f"displacement_{axis}" for axis in range(len(case.grids.prepared_shape))], directions_of(case)
        for row in profile.units.to_dict("records"):
            parts = directions.named(np.array([row[name] for name in names]))
            distances[row["unit"]] = f"{row['distance']:.3g} {short.removesuffix('s') if row['distance'] == 1 else short}"
            found_at[row["unit"]] = ", ".join(f"{size:.3g} {word}" for size, word in parts)
    units = table["unit"].tolist()
    return table.assign(
        distance=[distances.get(unit, "") for unit in units], direction=[found_at.get(unit, "") for unit in units]
    )


def unit_rows(job: Job, table: pd.DataFrame) -> dict[str, list[UnitRow]]:
    """The strongest units: those above and below 0 that differ from 0, and apart the strongest of those that do not."""
    effects = table[table["effect"].notna() & (table["effect"] != 0)]
    effects = effects.iloc[effects["effect"].abs().argsort(kind="stable")[::-1]]
    differ = effects["adjusted_p_value"] <= ALPHA
    known = effects["adjusted_p_value"].notna()
    above, below = effects[differ & (effects["effect"] > 0)], effects[differ & (effects["effect"] < 0)]
    digits = digits_for(effects["effect"])
    first, second = sign_words(job.options.metric)

    def rows(chosen: pd.DataFrame) -> list[UnitRow]:
        return [
            UnitRow(
                unit=int(row["unit"]),
                kind=first if row["effect"] > 0 else second,
                cells=(
                    row["place"],
                    row["distance"],
                    row["direction"],
                    number(row["effect"], digits),
                    f"[{number(row['lower'], digits)}, {number(row['upper'], digits)}]",
                    p_in_words(row["adjusted_p_value"]),
                ),
            )
            for row in chosen.head(_MOST).to_dict("records")
        ]

    return {"above": rows(above), "below": rows(below), "apart": rows(effects[known & ~differ])}


def p_in_words(value: float) -> str:
    """As it is printed."""
    return "not known" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def found_in_words(job: Job, table: pd.DataFrame) -> str:
    """The answer in a sentence or two."""
    first, second = sign_words(job.options.metric)
    tested = table["adjusted_p_value"].notna()
    differ = table["adjusted_p_value"] <= ALPHA
    above, below = table[differ & (table["effect"] > 0)], table[differ & (table["effect"] < 0)]
    what = "it" if first == "supports" else "the score"
    if len(above) + len(below) == 0:
        return f"Of {int(tested.sum())} parts that were replaced, none is known to matter at a false discovery rate of {ALPHA:.0%}."
    said = (
        f"Of {int(tested.sum())} parts that were replaced, {len(above) or 'none'} {_verb(first, len(above))} {what} and "
        f"{len(below) or 'none'} {_verb(second, len(below))} it, at a false discovery rate of {ALPHA:.0%}."
    )
    strongest = table[differ].iloc[table[differ]["effect"].abs().argsort(kind="stable").iloc[-1]]
    kind = first if strongest["effect"] > 0 else second
    digits = digits_for(table["effect"])
    away = f"{strongest['distance']} from the region of interest" if strongest["distance"] else ""
    way = f" ({strongest['direction']} of its center)" if strongest["direction"] else ""
    return f"{said} The strongest, {away}{way}, {kind} it: its effect is {number(strongest['effect'], digits)}."


def _verb(word: str, count: int) -> str:
    return word if count == 1 else word.removesuffix("s")


def direction_rows(case: CommandCase, profile: PerceptionProfile) -> list[tuple[str, ...]]:
    """Per direction from the region of interest: how many parts lie there, their share of all effects, their mean."""
    directions = directions_of(case)
    rows: list[tuple[str, ...]] = []
    for row in profile.by_direction.to_dict("records"):
        if row["n_units"] == 0:
            continue
        share = "" if np.isnan(row["share"]) else f"{row['share']:.0%}"
        rows.append(
            (
                directions.of_side(int(row["axis"]), int(row["side"])),
                f"{row['n_units']:.4g}",
                share,
                f"{row['mean_absolute_effect']:.3g}",
            )
        )
    return rows


def not_done(job: Job, statistics: TreatmentEffectStatistics, done: Collection[str]) -> list[str]:
    """What a reader might take for done, and why it was not, in sentences.

    Args:
        job: what was asked.
        statistics: what came of it.
        done: which further sections there are: ``refutation``, ``components``, ``donors``, ``pathway``.
    """
    found = statistics.of_output(job.case.output)

    def option(name: str) -> str:
        return option_name(job.options, name)

    count = {status: int((found.status == status).sum()) for status in Status}
    said = []
    if count[Status.EXCLUDED]:
        said.append(
            f"{count[Status.EXCLUDED]} parts that touch the region of interest were not replaced: that would change what is scored, not what "
            "it rests on."
        )
    if count[Status.OUTSIDE_SUPPORT]:
        said.append(
            f"{count[Status.OUTSIDE_SUPPORT]} parts cannot reach the region of interest through the network: their effect is 0 without a trial."
        )
    if count[Status.SCREENED]:
        said.append(
            f"{count[Status.SCREENED]} parts were given up after their first draws, which showed no effect: a large effect that only few donors have can "
            "hide there."
        )
    if job.case.reference is None:
        said.append(
            f"The segmentation was not compared with a reference, as none was given ({option('label')}): whether it is right is not judged."
        )
    if job.case.donor_images is None:
        said.append(
            f"Parts were replaced by other places of the same image only, as no other images were given ({option('donors')})."
        )
    asked = (
        ("refutation", f"No attempt was made to refute the effects: that was not asked for ({option('refute')})."),
        (
            "donors",
            f"Other kinds of donors were not tried, so it is not known what holds whatever the donors: that was not asked for ({option('compare_donors')}).",
        ),
        (
            "components",
            f"Effects of the network's own parts were not measured: that was not asked for ({option('components')}).",
        ),
        (
            "pathway",
            f"By which ways through the network the effects travel was not measured: that was not asked for ({option('pathway')}).",
        ),
    )
    said += [sentence for name, sentence in asked if name not in done]
    if not statistics.controls:
        said.append(
            f"What the edge of a pasted patch does by itself was not measured: that was not asked for ({option('controls')} edge)."
        )
    if not statistics.settings.get("context", 0):
        said.append(
            f"Each part was replaced alone: parts that stand in for each other can all seem to have no effect ({option('context')} shapley measures them together)."
        )
    said += [f"{name.replace('_', ' ').capitalize()}: {why}." for name, why in statistics.settings.get("disabled", {}).items()]
    said.append("Other classes, regions of interest and images were not looked at: nothing here is about the model in general.")
    return said
