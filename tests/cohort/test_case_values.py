"""The edge of units, read from their table."""

import math

import numpy as np
import pandas as pd
import pytest

from captum_causalseg import regions
from captum_causalseg.cohort.case_values import typical_width
from captum_causalseg.evaluation.unit_space import Ruler, UnitSpace


def table_of_units(labels, roi, spacing):
    """As a study writes it, of a grid of boxes."""
    space = UnitSpace(labels[None], roi, Ruler(spacing=spacing))
    rows = []
    for unit, distance in zip(space.ids, space.distance):
        where = np.argwhere(labels == unit)
        row = {"unit": unit, "status": "ESTIMATED", "distance": distance}
        row |= {f"start_{a}": v for a, v in enumerate(where.min(0))} | {f"stop_{a}": v + 1 for a, v in enumerate(where.max(0))}
        rows.append(row)
    return pd.DataFrame(rows), space.bin_width


@pytest.mark.parametrize(
    ("shape", "block", "start", "size", "spacing"),
    [
        ((32, 32), 4, 12, 8, None),
        ((30, 34), 4, 11, 7, None),  # neither on the grid nor whole blocks
        ((32, 64), (4, 8), 12, 8, (0.7, 0.5)),
        ((20,), 2, 8, 4, 0.3),
        ((24, 24, 12), (4, 4, 2), (8, 8, 4), (8, 8, 4), (1.0, 1.0, 3.0)),
    ],
)
def test_the_edge_of_blocks_is_read_from_their_table(shape, block, start, size, spacing):
    roi = regions.box(shape, start, size)
    table, width = table_of_units(regions.grid(shape, block).numpy(), roi, spacing)
    assert typical_width(table) == pytest.approx(width)
    # A unit in each channel: three at each place.
    assert typical_width(pd.concat([table] * 3, ignore_index=True)) == pytest.approx(width)


def test_the_edge_of_irregular_units_is_about_right():
    random = np.random.default_rng(0)
    seeds = random.uniform(0, 40, (60, 2))
    place = np.stack(np.meshgrid(np.arange(40), np.arange(40), indexing="ij"), -1)
    labels = ((place[:, :, None] - seeds) ** 2).sum(-1).argmin(-1)
    table, width = table_of_units(labels, regions.box((40, 40), 16, 8), 2.0)
    assert typical_width(table) == width
    assert math.isnan(typical_width(table.assign(distance=math.nan)))
    assert math.isnan(typical_width(table.assign(distance=0.0)))
