"""Files that viewers (3D Slicer, ITK-SNAP, FSLeyes, napari) open over the scan: maps without NaN, and units as labels with their names and colors."""

from pathlib import Path

import torch
from torch import Tensor

from captum_causalseg.cli.case import CommandCase
from captum_causalseg.images import save_map
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["MAPS", "color_of", "finite", "write_volumes"]

MAPS = ("effect", "standard_error", "significant")
# Of what supports and what harms, as in the pictures; and of no effect.
_RAISES, _LOWERS, _NONE = (178, 24, 43), (33, 102, 172), (247, 247, 247)


def write_volumes(case: CommandCase, statistics: TreatmentEffectStatistics, folder: Path) -> None:
    """``effects.nii.gz``, ``standard_error.nii.gz``, ``significant.nii.gz`` and ``units.nii.gz`` with its tables, on the grid of the scan's file;
    of each channel where they are replaced by themselves.

    Where an effect is not known, as in the region of interest, it is 0 and its standard error -1. Labels are a unit's number in ``effects.csv`` and 1; units that cannot reach
    the region of interest, or touch it, have none.
    """
    modalities, grids = case.units.modalities, case.grids
    one = statistics.of_output(case.output)
    names = _names(one)
    for name in (*MAPS, "units"):
        found = (
            case.units.own_labels(one, grids)
            if name == "units"
            else finite(case.units.own_map(one, None, grids, field=name), name)
        )
        if name == "significant":
            found = found.bool()
        beginning = "effects" if name == "effect" else name
        for number, (channel, _) in enumerate(modalities.shown):
            written = found if len(modalities.shown) == 1 else found[number]
            save_map(folder / modalities.file_name(beginning, channel, ".nii.gz"), written, like=grids.own)
            if name == "units":
                present = torch.unique(written[written > 0]).tolist()
                _write_tables(folder, modalities.file_name("units", channel, ""), {label: names[label] for label in present})


def finite(values: Tensor, field: str) -> Tensor:
    """What viewers can show: 0 where a map is not known; -1 where a standard error is not, which 0 would call exact."""
    return torch.where(values.isfinite(), values, -1.0 if field == "standard_error" else 0.0)


def color_of(effect: float, largest: float) -> tuple[int, int, int]:
    """Red of what is above 0, blue of what is below, the paler the smaller, on the scale of the largest."""
    share = min(1.0, abs(effect) / largest) if largest > 0 else 0.0
    red, green, blue = (
        round((1 - share) * none + share * full) for none, full in zip(_NONE, _RAISES if effect > 0 else _LOWERS)
    )
    return red, green, blue


def _names(statistics: TreatmentEffectStatistics) -> dict[int, tuple[str, tuple[int, int, int]]]:
    """By label, a unit's name and color."""
    effects = statistics.effect[0].nan_to_num(0.0)
    largest = float(effects.abs().max()) if len(effects) else 0.0
    lower, upper = (ends[0].tolist() for ends in statistics.confidence_interval())
    return {
        unit + 1: (f"unit {unit}: {effect:+.4g} [{low:+.4g}, {high:+.4g}]", color_of(effect, largest))
        for unit, effect, low, high in zip(statistics.unit_ids.tolist(), effects.tolist(), lower, upper)
    }


def _write_tables(folder: Path, name: str, labels: dict[int, tuple[str, tuple[int, int, int]]]) -> None:
    """Names and colors of labels: ``.label.txt`` for ITK-SNAP, ``.ctbl`` for 3D Slicer, ``.lut`` for FSLeyes."""
    snap = [
        "# ITK-SNAP label descriptions: number, red, green, blue, opacity, visible, mesh visible, name",
        '0 0 0 0 0 0 0 "Clear Label"',
    ]
    slicer, fsleyes = ["# 3D Slicer color table: number, name, red, green, blue, opacity", "0 background 0 0 0 0"], []
    for label, (said, color) in labels.items():
        numbers = " ".join(map(str, color))
        snap.append(f'{label} {numbers} 1 1 1 "{said}"')
        slicer.append(f"{label} {said.replace(' ', '_')} {numbers} 255")
        fsleyes.append(f"{label} {' '.join(f'{part / 255:.4f}' for part in color)} {said}")
    for ending, lines in ((".label.txt", snap), (".ctbl", slicer), (".lut", fsleyes)):
        (folder / f"{name}{ending}").write_text("\n".join([*lines, ""]), encoding="utf-8")
