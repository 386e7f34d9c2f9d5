"""Places as the command line names them: the region of interest and the units, in the file's own voxels."""

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch import Tensor

from captum_causalseg import regions
from captum_causalseg.cli.arguments import box_of
from captum_causalseg.cli.channels import Modalities
from captum_causalseg.cli.grid import Grids
from captum_causalseg.cli.preparation import Preparation
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.statistics.unit_places import UnitPlaces

__all__ = ["Units", "find_region", "find_roi", "find_units"]

_EXPECTED_ROI = "expected box:72,88+32, point:80,90, label:2, boundary:3, error:1 or a file"
_KINDS = ("box", "point", "label", "boundary")
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


def find_roi(
    text: str, grids: Grids, preparation: Preparation, *, label: tuple[Tensor, bool] | None, prediction: Tensor, channel: int
) -> tuple[Tensor, str]:
    """The region of interest on the prepared grid, boolean ``(*spatial)``, and how large it is, in words.

    Args:
        text: as it was given; places in it are on the file's grid.
        grids: of the image.
        preparation: which knows names of classes.
        label: the reference, if there is one, and whether it lies on the file's grid rather than on the prepared one.
        prediction: hard ``(C, *spatial)``, on the prepared grid.
        channel: the class that is explained.
    """
    source = _Predicted(prediction, channel, preparation) if label is None else _Labeled(*label, preparation)
    found, is_own = _roi(text, grids, source, predicted=prediction[channel])
    if not grids.differ:
        return found, f"{int(found.sum())} {grids.noun}" + ("" if grids.known else " of the prepared image")
    if not is_own:
        return found, f"{int(found.sum())} {grids.noun} of the prepared image"
    carried = _carried(found, grids, text)
    lost = int((found & ~grids.kept()).sum())
    said = f"{int(found.sum())} {grids.noun} of the image file, {int(carried.sum())} of the prepared image"
    return carried, said + (f"; pre-processing cut away {lost} of the file's" if lost else "")


def find_region(text: str, grids: Grids) -> Tensor:
    """A region to be replaced, on the prepared grid, boolean ``(*spatial)``: a box on the file's grid, or a mask file."""
    box = box_of(text)
    if box is None:
        if text.partition(":")[0] in _KINDS and ":" in text:
            raise ValueError(f"expected box:START+SIZE or a mask file, got {text!r}")
        is_own = grids.read_labels(text)[1]
        found = regions.from_file(text, like=grids.own if is_own else grids.prepared)
        return _carried(found, grids, text) if is_own and grids.differ else found
    if len(box[0]) != len(grids.shape) or len(box[1]) != len(grids.shape):
        raise ValueError(f"{text} has {len(box[0])} axes, the image {len(grids.shape)}")
    found = regions.box(grids.shape, *box)
    return _carried(found, grids, text) if grids.differ else found


def _carried(found: Tensor, grids: Grids, text: str) -> Tensor:
    """From the file's grid to the prepared one."""
    carried = grids.to_prepared(found & grids.kept())
    if not bool(carried.any()):
        sides = " x ".join(f"{first}-{last}" for first, last in grids.kept_box())
        raise ValueError(f"{text} lies outside of what the pre-processing leaves of the image, {sides} of its {grids.noun}")
    return carried


def find_units(text: str | None, grids: Grids, roi: Tensor) -> Units:
    """The units of ``--units``: blocks, or those of a file."""
    units = _units(text, grids)
    mask = units.arguments.get("feature_mask")
    mask = regions.grid(roi.shape, units.arguments["block_size"]) if mask is None else mask[0, 0]
    if len(mask[roi].unique()) == len(mask.unique()):
        raise ValueError(
            "every unit touches the region of interest, none is left to replace; choose smaller ones, or a smaller --roi"
        )
    return units


@dataclass(frozen=True, eq=False)
class _Labeled:
    """The reference.

    Args:
        labels: ``(*spatial)``.
        is_own: whether it lies on the file's grid rather than on the prepared one.
        preparation: which knows names of classes.
    """

    labels: Tensor
    is_own: bool
    preparation: Preparation

    def of(self, name: str) -> Tensor:
        """Where a class is, by its name or number."""
        if name.isdecimal():
            return regions.from_label(self.labels, int(name))
        return _not_empty(self.preparation.named(name, self.labels), f"{name} is nowhere in the reference")


@dataclass(frozen=True, eq=False)
class _Predicted:
    """The model's prediction, where there is no reference.

    Args:
        prediction: hard ``(C, *spatial)``, on the prepared grid.
        channel: the class that is explained.
        preparation: which knows names of classes.
    """

    prediction: Tensor
    channel: int
    preparation: Preparation
    is_own = False

    @property
    def labels(self) -> Tensor:
        """Label map ``(*spatial)``; of classes that may overlap, that of the one that is explained."""
        if len(self.prediction) > 1 and bool((self.prediction.sum(0) == 1).all()):
            return self.prediction.long().argmax(0)
        return self.prediction[self.channel].long()

    def of(self, name: str) -> Tensor:
        """Where a class is, by its name or number."""
        if len(self.prediction) == 1:  # 1 is the object
            return regions.from_label(self.labels, int(name) if name.isdecimal() else 1)
        number = int(name) if name.isdecimal() else self.preparation.labels[name]
        if number >= len(self.prediction):
            raise ValueError(f"expected one of the model's classes 0..{len(self.prediction) - 1}, got {name}")
        return _not_empty(self.prediction[number].bool(), f"the model predicts {name} nowhere")


def _not_empty(mask: Tensor, said: str) -> Tensor:
    if not bool(mask.any()):
        raise ValueError(said)
    return mask


def _roi(text: str, grids: Grids, source: _Labeled | _Predicted, predicted: Tensor) -> tuple[Tensor, bool]:
    """Boolean, and whether it lies on the file's grid rather than on the prepared one."""
    kind, colon, rest = text.partition(":")
    box = box_of(text)
    if box is not None:
        if len(box[0]) != len(grids.shape) or len(box[1]) != len(grids.shape):
            raise ValueError(f"{text} has {len(box[0])} axes, the image {len(grids.shape)}")
        return regions.box(grids.shape, *box), True
    if kind == "boundary" and re.fullmatch(r"\d+(\.\d+)?", rest):
        return regions.boundary(predicted, float(rest)), False
    names = source.preparation.labels
    if kind == "label" and (rest.isdecimal() or rest in names):
        return source.of(rest), source.is_own
    if kind == "label" and colon and names:
        raise ValueError(f"expected a number or one of {', '.join(names)}, got {text!r}")
    if kind == "point" and re.fullmatch(r"\d+(,\d+)*", rest):
        point = tuple(map(int, rest.split(",")))
        labels = source.labels
        where = point if source.is_own else _prepared_point(text, point, grids, labels=labels)
        return regions.component(labels, where), source.is_own
    if kind in _KINDS and colon:
        raise ValueError(f"{_EXPECTED_ROI}, got {text!r}")
    is_own = grids.read_labels(text)[1]
    return regions.from_file(text, like=grids.own if is_own else grids.prepared), is_own


def _prepared_point(text: str, point: tuple[int, ...], grids: Grids, labels: Tensor) -> tuple[int, ...]:
    """The same point on the prepared grid; what is wrong with it is said in the file's voxels."""
    if len(point) != len(grids.shape) or any(i >= n for i, n in zip(point, grids.shape)):
        raise ValueError(f"{point} is no position in an image of shape {grids.shape}")
    index = grids.prepared_index(point)
    if index is None:
        raise ValueError(f"{text} was cut away by the pre-processing")
    if not int(labels[index]):
        raise ValueError(f"the label map or prediction is 0 at {point}; choose a point inside the object")
    return index


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
