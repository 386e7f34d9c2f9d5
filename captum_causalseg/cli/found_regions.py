"""Regions that were found: their files, and what is said of them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg import regions
from captum_causalseg.attr.region import Region
from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.job import Job
from captum_causalseg.cli.results import axes_in_words, forwarded, place, score, score_in_words
from captum_causalseg.images import save_map
from captum_causalseg.writing.names import write_csv

__all__ = ["place_rows", "region_rows", "regions_text", "said_of", "unit_places", "write_regions"]

# In what is printed and on the page; files hold them all.
_MOST_UNITS = 12


def write_regions(case: CommandCase, region: Region, folder: Path) -> None:
    """``regions.csv``, one row per region; ``units.csv``, one per unit of each; ``region.json``; and the masks on the file's own grid."""
    table = region.to_dataframe()
    write_csv(table, folder / "regions.csv")
    write_csv(unit_places(case, region), folder / "units.csv")
    rows = [{name: _plain(value) for name, value in row.items()} for row in table.to_dict("records")]
    found = [row | {"units": list(one.units)} for row, one in zip(rows, region)]
    written = {"regions": found, "n_forwards": region.n_forwards, "settings": region.settings}
    (folder / "region.json").write_text(json.dumps(written, indent=1, default=str) + "\n", encoding="utf-8")
    masks = [_own_mask(case, one) for one in region]
    if case.grids.has_geometry:
        # Of disjoint regions: 1 where the region is, 2 and so on where its alternatives are.
        labels = torch.stack([(number + 1) * mask.long() for number, mask in enumerate(masks)]).amax(0)
        save_map(folder / "region.nii.gz", labels, like=case.grids.own)
    elif masks[0].ndim == 2:
        from PIL import Image

        for number, mask in enumerate(masks):
            name = "mask.png" if number == 0 else f"mask_{number}.png"
            Image.fromarray(mask.numpy().astype(np.uint8) * 255).save(folder / name)
    else:
        arrays: dict[str, Any] = {f"region_{number}": mask.numpy() for number, mask in enumerate(masks)}
        np.savez_compressed(folder / "region.npz", **arrays)


def unit_places(case: CommandCase, region: Region) -> pd.DataFrame:
    """One row per unit of each region: ``region``, ``unit``, and where its bounding box starts and stops, in the file's own voxels."""
    given = case.units.arguments.get("feature_mask")
    mask = regions.grid(case.image.shape[2:], case.units.arguments["block_size"]) if given is None else given[0, 0]
    boxes = ndimage.find_objects(mask.cpu().numpy() + 1)
    rows = []
    for number, one in enumerate(region):
        for unit in one.units:
            row = {"region": number, "unit": unit}
            row |= {f"start_{axis}": side.start for axis, side in enumerate(boxes[unit])}
            rows.append(row | {f"stop_{axis}": side.stop for axis, side in enumerate(boxes[unit])})
    names = [f"{end}_{axis}" for end in ("start", "stop") for axis in range(mask.ndim)]
    return case.units.in_own_voxels(pd.DataFrame(rows, columns=["region", "unit", *names]))


def share_is_known(region: Region) -> bool:
    """Whether there is something to take shares of, and it is told from 0: otherwise every share is in the interval."""
    return not all(math.isinf(end) for end in region.share_interval)


def region_rows(region: Region) -> list[tuple[str, ...]]:
    """Of each region: which, how many units, the share and its interval, the score and its interval, and whether the share is reached."""
    found: list[tuple[str, ...]] = []
    for number, one in enumerate(region):
        shares, scores = (", ".join(f"{end:.3f}" for end in ends) for ends in (one.share_interval, one.score_interval))
        found.append(
            (
                one.kind if number == 0 else f"alternative {number}",
                f"{len(one.units)} of {one.n_candidates}",
                f"{one.share_reached:.3f} [{shares}]" if share_is_known(one) else "not known",
                f"{one.score:.3f} [{scores}]",
                "yes" if one.reached else f"no: {one.reason}",
            )
        )
    return found


def regions_text(job: Job, region: Region, *, seconds: float) -> str:
    """What ``region`` prints."""
    case, options = job.case, job.options
    does = "kept" if region.kind == "sufficient" else "taken away"
    rows = [("region", "units", f"share {does} [95 %]", "score [95 %]", f"{region.share:g} reached"), *region_rows(region)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    places = unit_places(case, region)
    found = _places(case, places[places["region"] == 0])
    lines = [
        f"{case.name}: {options.metric} in {case.place} is {score(region.observed_score)}".removeprefix(": ")
        + f", {score(region.replaced_score)} with all {region.n_candidates} units replaced",
        "",
    ]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows] + [""]
    if found:
        lines += [f"units of the first region, {axes_in_words(case)}", *(f"  {one}" for one in found), ""]
    lines.append(f"places: {case.grids.in_words()}")
    if not region.complete:
        lines.append("the search ended at --max-forwards: there may be a smaller region")
    lines.append(f"{region.n_forwards} forward passes of one {forwarded(region.settings)}, {seconds:.1f} s")
    return "\n".join(lines)


def said_of(region: Region, metric: str) -> list[str]:
    """What a region is, in sentences."""
    name = score_in_words(metric)
    if region.kind == "sufficient":
        first = (
            f"The region is kept as it is, and so is what touches the region of interest; all other parts of the image are replaced by donors. The {name} is "
            f"then {region.score:.3f} on average"
        )
    else:
        first = f"The region is replaced by donors, and all other parts of the image are kept. The {name} is then {region.score:.3f} on average"
    whole = "the way from everything replaced to the image as it is," if region.share_of == "span" else f"this {name},"
    does = "kept" if region.kind == "sufficient" else "lost"
    said = [
        f"{first}; it is {region.observed_score:.3f} for the image as it is, and {region.replaced_score:.3f} with all of these parts replaced.",
    ]
    if share_is_known(region):
        said.append(f"Of {whole} {region.share_reached:.3f} is {does}; {region.share:g} was asked for.")
    if not region.reached:
        said.append(f"That is not reached: {region.reason}.")
    if region.smallest:
        said.append("All smaller sets of parts were tried in the search, and none is enough.")
    elif region.complete:
        said.append("None of its parts can be left out; a smaller region of other parts cannot be ruled out.")
    else:
        said.append("The search was ended by its budget: a smaller region cannot be ruled out.")
    return said


def place_rows(case: CommandCase, region: Region) -> list[tuple[str, str]]:
    """Of each region its first units: which region, and where."""
    table = unit_places(case, region)
    names = ("region", *(f"alternative {number}" for number in range(1, 1 + len(region.alternatives))))
    return [
        (name if row == 0 else "", said)
        for number, name in enumerate(names)
        for row, said in enumerate(_places(case, table[table["region"] == number]))
    ]


def _places(case: CommandCase, table: pd.DataFrame) -> list[str]:
    rows = [place(row, len(case.grids.shape)) for row in table.head(_MOST_UNITS).to_dict("records")]
    return rows + ([f"and {len(table) - _MOST_UNITS} more, in units.csv"] if len(table) > _MOST_UNITS else [])


def _own_mask(case: CommandCase, region: Region) -> Tensor:
    """Where the region is on the file's grid, boolean ``(*spatial)``."""
    assert isinstance(region.mask, Tensor)  # one input, one mask
    found = case.grids.to_own(region.mask[0].any(0).cpu())
    own = case.units.own
    if own is None:
        return found
    # Units have their own outlines there, not those of the prepared voxels that lie nearest.
    return torch.where(own >= 0, torch.isin(own, torch.tensor(region.units, dtype=own.dtype)), found & case.grids.kept())


def _plain(value: Any) -> Any:
    """As JSON has it, which knows no infinity."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
