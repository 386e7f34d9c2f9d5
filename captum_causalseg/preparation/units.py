"""What is replaced: blocks or parts of an image, on its file's grid and on the prepared one."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg import regions
from captum_causalseg.preparation.channels import Modalities
from captum_causalseg.preparation.grid import Grids
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.statistics.unit_places import UnitPlaces

__all__ = ["Units", "find_units"]

# Edge of the default blocks, in pixels of the prepared image.
_EDGE = 8


@dataclass(frozen=True, eq=False)
class Units:
    """What is replaced.

    Args:
        arguments: ``block_size`` or ``feature_mask``, as arguments of ``attribute``.
        described: what they are, in words; of a file, how many.
        own: per voxel of the file, the id of its part, -1 where the network is not shown it; ``None`` where the grids are the same.
        modalities: in which channels of the image parts are replaced; a part in each of ``C`` channels is ``C`` units.
    """

    arguments: dict[str, Any]
    described: str
    own: Tensor | None = None
    modalities: Modalities = field(default_factory=lambda: Modalities(None, ()))

    def of(self, modalities: Modalities) -> "Units":
        """The same parts in these channels."""
        if modalities.asked is None:
            return replace(self, modalities=modalities)
        arguments = self.arguments | {"channels": modalities.asked}
        described = f"{self.described}, {modalities.described}"
        return replace(self, arguments=arguments, described=described, modalities=modalities)

    @property
    def per_part(self) -> int:
        """How many units a part of the image is."""
        return len(self.modalities.names) if self.modalities.asked == "each" else 1

    def in_own_voxels(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of effects, its places in the file's own voxels: those that the network is shown; -1 for units in padding.

        Where channels are replaced by themselves, it says which.
        """
        table = self.modalities.named(table)
        if self.own is None:
            return table
        axes = range(self.own.ndim)
        names = [f"start_{axis}" for axis in axes] + [f"stop_{axis}" for axis in axes]
        rows = {
            number: [*(side.start for side in box), *(side.stop for side in box)]
            for number, box in enumerate(ndimage.find_objects(self.own.numpy() + 1))
            if box is not None
        }
        places = (
            pd.DataFrame.from_dict(rows, orient="index", columns=names)
            .reindex(table["unit"] // self.per_part)
            .fillna(-1)
            .astype(int)
        )
        return table.assign(**{name: places[name].to_numpy() for name in names})

    def own_map(
        self, statistics: TreatmentEffectStatistics, output: int | None, grids: Grids, *, field: str = "effect"
    ) -> Tensor:
        """Effects on the file's grid, ``(C, *spatial)`` where each channel is replaced by itself, else ``(*spatial)``; NaN where they are not known.

        Args:
            statistics: of the case.
            output: whose.
            grids: of the image.
            field: ``"effect"``, ``"standard_error"``, ``"significant"``, or ``"unit"``, the unit's number.
        """
        values = _per_unit(statistics, field)
        chosen = statistics.select(values, output)
        found = UnitPlaces(statistics.unit_ids, statistics.feature_mask).painted(0, chosen).expand(statistics.input_shapes[0])
        maps = []
        for channel, _ in self.modalities.shown:
            # Every channel that is replaced carries its unit's effect: one is enough.
            carried = grids.to_own(found[0, min(channel or 0, found.shape[1] - 1)], torch.nan)
            maps.append(
                carried
                if self.own is None
                else self._with_outlines(carried, statistics.unit_ids, values=chosen[0], grids=grids, channel=channel)
            )
        return maps[0] if len(maps) == 1 else torch.stack(maps)

    def own_labels(self, statistics: TreatmentEffectStatistics, grids: Grids) -> Tensor:
        """Per voxel of the file the number of its unit and 1, 0 where it has none or one that was not intervened on; int64, shaped as the maps are.

        Args:
            statistics: of one output.
            grids: of the image.
        """
        units = self.own_map(statistics, None, grids, field="unit").nan_to_num(-1).long()
        treated = (statistics.status == Status.ESTIMATED) | (statistics.status == Status.SCREENED)
        return torch.where(torch.isin(units, statistics.unit_ids[treated[0]]), units + 1, 0)

    def _with_outlines(self, carried: Tensor, unit_ids: Tensor, *, values: Tensor, grids: Grids, channel: int | None) -> Tensor:
        """A map on the file's grid, where units have their own outlines, not those of the prepared voxels that lie nearest."""
        assert self.own is not None
        carried[~grids.kept()] = torch.nan
        ids = self.own if self.per_part == 1 else torch.where(self.own < 0, -1, self.own * self.per_part + (channel or 0))
        index = torch.searchsorted(unit_ids, ids).clamp_max(len(unit_ids) - 1)
        return torch.where(unit_ids[index] == ids, values[index], carried)


def _per_unit(statistics: TreatmentEffectStatistics, field: str) -> Tensor:
    """``(N, U, *output_shape)``."""
    if field == "unit":
        numbers = statistics.unit_ids.double().view(1, -1, *(1,) * (statistics.effect.ndim - 2))
        return numbers.expand(statistics.effect.shape)
    values = {"effect": statistics.effect, "standard_error": statistics.standard_error}
    return values[field] if field in values else statistics.significant(0.05).double()


def find_units(text: str | None, grids: Grids, roi: Tensor) -> Units:
    """Blocks, or the units of a file.

    Args:
        text: edges of blocks in the file's pixels, ``8`` or ``8x8x4``, or a file of labels; ``None``: blocks of 8 pixels of the prepared image.
        grids: of the image.
        roi: region of interest, boolean ``(*spatial)``, on the prepared grid.

    Raises:
        ValueError: they are no units, or leave none to replace.
    """
    units = _units(text, grids)
    mask = units.arguments.get("feature_mask")
    mask = regions.grid(roi.shape, units.arguments["block_size"]) if mask is None else mask[0, 0]
    if len(mask[roi].unique()) == len(mask.unique()):
        raise ValueError(
            "every unit touches the region of interest, none is left to replace; choose smaller ones, or a smaller region"
        )
    return units


def _units(text: str | None, grids: Grids) -> Units:
    axes = len(grids.shape)
    if text is None:
        # About as many pixels of the prepared image, whatever size of voxels it was made from.
        sizes = tuple(max(1, min(round(_EDGE * n), length)) for n, length in zip(grids.own_per_prepared, grids.shape))
    elif re.fullmatch(r"\d+(x\d+)*", text):
        sizes = tuple(map(int, text.split("x")))
        sizes = sizes * axes if len(sizes) == 1 else sizes
    else:
        return _units_of_file(text, grids)
    own = regions.grid(grids.shape, sizes)  # refused with the option's name
    described = f"blocks of {' x '.join(map(str, sizes))} {grids.noun}"
    if not grids.differ:
        return Units({"block_size": sizes}, described)
    described += " of the image file"
    # Blocks go on into the padding: a part of the image that is replaced should be of the usual size there, too.
    indices = grids.own_indices().reshape(axes, -1) // np.array(sizes)[:, None]
    counts = -(-np.array(grids.shape) // np.array(sizes))
    inside = ((indices >= 0) & (indices < counts[:, None])).all(0)
    ids = np.full(indices.shape[1], -1)
    ids[inside] = np.ravel_multi_index(tuple(indices[:, inside]), tuple(counts))
    _, beyond = np.unique(indices[:, ~inside], axis=1, return_inverse=True)
    ids[~inside] = int(counts.prod()) + beyond.ravel()
    mask = torch.from_numpy(ids.reshape(grids.prepared_shape))
    return Units({"feature_mask": mask[None, None]}, described, _shown(own, grids))


def _units_of_file(file: str, grids: Grids) -> Units:
    values, is_own = grids.read_labels(file)
    carried = grids.to_prepared(values) if is_own else values
    mask = regions.from_mask(carried)
    described = f"{int(mask.max()) + 1} of them"
    own = None
    if grids.differ:
        # Labels that the network is not shown are no units.
        ids, found = torch.unique(carried), values if is_own else grids.to_own(values)
        index = torch.searchsorted(ids, found).clamp_max(len(ids) - 1)
        own = _shown(torch.where(ids[index] == found, index, -1), grids)
    return Units({"feature_mask": mask[None, None]}, described, own)


def _shown(units: Tensor, grids: Grids) -> Tensor:
    return torch.where(grids.kept(), units, -1)
