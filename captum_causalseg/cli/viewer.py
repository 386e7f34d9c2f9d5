"""What the report's viewer is handed: the image in 8 bits around what was replaced, the parts with their numbers, and outlines."""

import base64
import gzip
import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.colors import to_hex
from scipy.optimize import linear_sum_assignment

from captum_causalseg.cli.job import Job
from captum_causalseg.cli.results import axes_in_words, score_in_words, sign_words
from captum_causalseg.images.grid import known_affine
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.visualization.pictures import grayscale, palette_of, robust_maximum

__all__ = ["COLORS", "MOST_BYTES", "Viewer", "viewer_of"]

MOST_BYTES = 7_000_000
"""Of the viewer's data in a report, in base 64: leaves room for the viewer's own code and the pictures, below 10 MB."""
# Of a picture: what a screen shows. Of a volume: what a graphics card of a notebook holds, in four layers.
_MOST_ELEMENTS = {2: 1_500_000, 3: 20_000_000}
# Around the parts that were replaced, of the extent of these.
_MARGIN = 0.12
_STATUS = {
    Status.ESTIMATED: "estimated",
    Status.SCREENED: "no effect in the first draws",
    Status.OUTSIDE_SUPPORT: "cannot reach the region of interest",
    Status.EXCLUDED: "touches the region of interest, not replaced",
}
_SIDES = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))


# Of the pictures' scale without its pale middle, which looks like bright tissue: small effects are transparent instead.
_SHADES = np.concatenate([np.linspace(0.0, 0.3, 127), [0.5], np.linspace(0.7, 1.0, 127)])
COLORS = palette_of("accessible").effects(_SHADES)[:, :3]
"""Of effects, from the lowest to the highest, ``(255, 3)`` in [0, 1]; the smaller an effect, the more transparent it is drawn."""


@dataclass(frozen=True)
class Viewer:
    """Filled into the page.

    Args:
        data: JSON, of which arrays are compressed and in base 64.
        volume: whether it is a volume, which needs the viewer of volumes.
        said: which part of the image is shown, at which size of pixels.
        names: of the maps to choose from; one, without a name, where there is only one.
        axes: of a volume, what its planes are moved along, and how many steps there are.
        has_reference: whether there is an outline of a reference.
        scale: the colors of effects, as CSS has them, and the ends of the scale.
    """

    data: str
    volume: bool
    said: str
    names: list[str]
    axes: list[tuple[str, int]]
    has_reference: bool
    scale: tuple[str, str, str]


def viewer_of(job: Job, statistics: TreatmentEffectStatistics, table: pd.DataFrame) -> Viewer:
    """The viewer of effects on the prepared image.

    Args:
        job: what was explained.
        statistics: the effects.
        table: their units, of :func:`captum_causalseg.cli.findings.unit_table`.
    """
    case = job.case
    found, spatial = statistics.of_output(case.output), case.grids.prepared_shape
    places = [_places(found, channel, spatial) for channel, _ in case.units.modalities.shown]
    reached = found.status[0].numpy() != Status.OUTSIDE_SUPPORT
    shown = case.roi.numpy() | np.logical_or.reduce([(one >= 0) & reached[one] for one in places])
    box = _box(shown)
    positions = np.unique(np.concatenate([np.unique(one[box]) for one in places]))
    positions = positions[positions >= 0]
    numbers = [np.where(one < 0, 0, np.searchsorted(positions, one) + 1).astype(np.uint32) for one in places]
    told = _told(job, found, table.iloc[_rows_of(found, positions)])
    step = _first_step(box, len(spatial))
    while True:
        layers = _layers(job, numbers, box=box, step=step)
        data = _data(job, layers, told)
        if len(data) <= MOST_BYTES or step > 16:
            break
        step += 1
    return Viewer(
        data=data,
        volume=len(spatial) == 3,
        said=_said(job, box, step),
        names=[name for _, name in case.units.modalities.shown],
        axes=_axes(job, layers),
        has_reference=case.reference is not None,
        scale=_scale(found),
    )


def _limit(found: TreatmentEffectStatistics) -> float:
    return robust_maximum(found.effect.abs().numpy())


def _scale(found: TreatmentEffectStatistics) -> tuple[str, str, str]:
    where = np.linspace(0, 254, 13).round().astype(int)
    stops = ", ".join(to_hex((*COLORS[one], np.sqrt(abs(one / 127 - 1))), keep_alpha=True) for one in where)
    limit = f"{_limit(found):.3g}"
    return f"linear-gradient(to right, {stops})", f"\u2212{limit}", f"+{limit}"


@dataclass(frozen=True)
class _Layers:
    """Arrays on one grid, ``(*spatial)``: of volumes with axes toward right, anterior and superior where that is known.

    Args:
        images: 8 bits, per map; of pictures in color ``(*spatial, 3)``.
        units: per map, the number of each pixel's unit in what is told of them, from 1; 0 where there is none.
        outlines: bits: 1 region of interest, 2 prediction, 4 reference.
        affine: indices to millimeters (to indices of the prepared image, where these are not known), ``(4, 4)``.
    """

    images: list[np.ndarray]
    units: list[np.ndarray]
    outlines: np.ndarray
    affine: np.ndarray


def _places(found: TreatmentEffectStatistics, channel: int | None, spatial: tuple[int, ...]) -> np.ndarray:
    """Per pixel the position of its unit in the statistics; -1 where it has none."""
    mask = found.feature_mask[0][0]
    ids = mask[min(channel or 0, len(mask) - 1)].expand(spatial).contiguous()
    index = torch.searchsorted(found.unit_ids, ids).clamp_max(len(found.unit_ids) - 1)
    there = (found.unit_ids[index] == ids) & (found.status[0] != Status.ABSENT)[index]
    return torch.where(there, index, -1).numpy()


def _box(shown: np.ndarray) -> tuple[slice, ...]:
    sides = []
    for axis, length in enumerate(shown.shape):
        where = np.flatnonzero(shown.any(tuple(other for other in range(shown.ndim) if other != axis)))
        margin = max(2, round(_MARGIN * (where[-1] - where[0] + 1)))
        sides.append(slice(max(0, int(where[0]) - margin), min(length, int(where[-1]) + 1 + margin)))
    return tuple(sides)


def _first_step(box: tuple[slice, ...], axes: int) -> int:
    """Of how many pixels along each axis one is shown, so that there are not too many."""
    step = 1
    while np.prod([-(-(side.stop - side.start) // step) for side in box]) > _MOST_ELEMENTS[axes]:
        step += 1
    return step


def _layers(job: Job, numbers: list[np.ndarray], *, box: tuple[slice, ...], step: int) -> _Layers:
    case = job.case
    thinned = tuple(slice(side.start + min(step // 2, (side.stop - side.start) // 2), side.stop, step) for side in box)
    bits = case.roi.numpy().astype(np.uint8) + 2 * case.prediction.numpy().astype(np.uint8)
    if case.reference is not None:
        bits = bits + 4 * case.reference.numpy().astype(np.uint8)
    image = case.image[0].cpu()
    images = [_eight_bits(grayscale(image, channel)[box], step, len(box)) for channel, _ in case.units.modalities.shown]
    affine, known = np.eye(4), known_affine(case.grids.prepared)
    axes = len(box)
    if known is not None:
        affine[:axes, :axes], affine[:axes, 3] = known[:-1, :-1], known[:-1, -1]
    shift = np.eye(4)
    for axis in range(axes):
        shift[axis, axis], shift[axis, 3] = step, thinned[axis].start
    layers = _Layers(images=images, units=[one[thinned] for one in numbers], outlines=bits[thinned], affine=affine @ shift)
    return _turned(layers) if axes == 3 else layers


def _eight_bits(values: np.ndarray, step: int, axes: int) -> np.ndarray:
    """From the 0.5th to the 99.5th percentile; of several pixels the mean."""
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = np.clip((values - low) / (high - low if high > low else 1), 0, 1)
    for axis in range(axes) if step > 1 else ():
        starts = np.arange(0, scaled.shape[axis], step)
        counts = np.diff(np.append(starts, scaled.shape[axis]))
        shape = [-1 if other == axis else 1 for other in range(scaled.ndim)]
        scaled = np.add.reduceat(scaled, starts, axis=axis) / counts.reshape(shape)
    found: np.ndarray = np.round(255 * scaled).astype(np.uint8)
    return found


def _turned(layers: _Layers) -> _Layers:
    """With axes that run to the right, anterior and superior, as viewers of volumes take them."""
    columns = layers.affine[:3, :3]
    # Per direction in space the axis that runs along it.
    order = linear_sum_assignment(-np.abs(columns))[1]
    flips = [axis for axis, source in enumerate(order) if columns[axis, source] < 0]
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    shape = layers.outlines.shape
    for axis, source in enumerate(order):
        turn[source, axis] = -1 if axis in flips else 1
        turn[source, 3] = shape[source] - 1 if axis in flips else 0

    def turned(values: np.ndarray) -> np.ndarray:
        found = np.transpose(values, (*order, *range(3, values.ndim)))
        return np.flip(found, tuple(flips))

    return _Layers(
        images=[turned(one) for one in layers.images],
        units=[turned(one) for one in layers.units],
        outlines=turned(layers.outlines),
        affine=layers.affine @ turn,
    )


def _told(job: Job, found: TreatmentEffectStatistics, table: pd.DataFrame) -> str:
    """What is said of units, packed."""
    statuses = list(_STATUS)
    names = [status.name for status in statuses]
    numbers = {name: _rounded(table[name].to_numpy(dtype=float)) for name in ("effect", "lower", "upper", "adjusted_p_value")}
    told = {
        **numbers,
        "ids": table["unit"].tolist(),
        "axes": axes_in_words(job.case),
        "places": table["place"].tolist(),
        "distances": table["distance"].tolist(),
        "directions": table["direction"].tolist(),
        "draws": table["n_draws"].astype(int).tolist(),
        "status": [names.index(one) for one in table["status"]],
        "statuses": [_STATUS[one] for one in statuses],
        "limit": _limit(found),
        "words": list(sign_words(job.options.metric)),
        "score": score_in_words(job.options.metric),
    }
    return _packed(json.dumps(told, separators=(",", ":")).encode())


def _data(job: Job, layers: _Layers, told: str) -> str:
    spacing, volume = job.case.grids.prepared_spacing, layers.outlines.ndim == 3
    wide = max(int(one.max()) for one in layers.units) > np.iinfo(np.uint16).max

    def packed(values: np.ndarray) -> str:
        # First axis fastest in volumes, columns fastest in pictures.
        return _packed(values.tobytes(order="F" if volume else "C"))

    data = {
        "shape": list(layers.outlines.shape if volume else layers.outlines.shape[::-1]),
        "affine": layers.affine.ravel().tolist(),
        "edges": [1.0] * layers.outlines.ndim if spacing is None else np.linalg.norm(layers.affine[:3, :3], axis=0).tolist(),
        "oriented": spacing is not None,
        "channels": 3 if layers.images[0].ndim > layers.outlines.ndim else 1,
        "images": [packed(one) for one in layers.images],
        "wide": wide,
        "units": [packed(one.astype("<u4" if wide else "<u2")) for one in layers.units],
        "outlines": packed(layers.outlines),
        "told": told,
        "colors": np.round(255 * COLORS).astype(int).ravel().tolist(),
    }
    return json.dumps(data, separators=(",", ":"))


def _rows_of(found: TreatmentEffectStatistics, positions: np.ndarray) -> np.ndarray:
    """Positions among units as rows of the table, which has none for units that are absent."""
    there = (found.status[0] != Status.ABSENT).numpy()
    rows: np.ndarray = np.cumsum(there)[positions] - 1
    return rows


def _rounded(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values]


def _packed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode("ascii")


def _said(job: Job, box: tuple[slice, ...], step: int) -> str:
    grids = job.case.grids
    noun = f"{grids.noun} of the prepared image" if grids.differ else grids.noun
    size = " x ".join(str(side.stop - side.start) for side in box)
    whole = " x ".join(map(str, grids.prepared_shape))
    said = (
        f"All {whole} {noun}"
        if size == whole
        else f"{size} of {whole} {noun}: what can reach the region of interest, and a margin"
    )
    if step > 1:
        said += f"; of every {step} along each axis one is shown, so that the page stays small"
    return f"{said}. Intensities are shown in 8 bits, from their 0.5th to their 99.5th percentile."


def _axes(job: Job, layers: _Layers) -> list[tuple[str, int]]:
    shape = layers.outlines.shape
    if len(shape) == 2:
        return []
    if job.case.grids.prepared_spacing is None:
        return [(f"Axis {axis + 1}", length) for axis, length in enumerate(shape)]
    return [(f"{first.capitalize()} to {last}", length) for (first, last), length in zip(_SIDES, shape)]
