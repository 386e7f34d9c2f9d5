"""What share of a region's effect passes through each component of a network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from torch import nn

from captum_causalseg.attr.mediated_treatment_effect import split_effects
from captum_causalseg.attr.one_region import RegionUnits
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.statistics import Status

__all__ = ["SHARES", "with_shares"]

SHARES = ("share_mediated", "share_mediated_lower", "share_mediated_upper")
"""The columns: of the region's total effect, and the ends of the 95 % interval."""


def with_shares(
    table: pd.DataFrame, options: Options, modules: Mapping[str, nn.Module], *, region: RegionUnits
) -> pd.DataFrame:
    """The table of components with :data:`SHARES`, and what is known of the region in ``table.attrs["region"]``.

    Args:
        table: of :func:`~captum_causalseg.component_effects`, a row per example and module.
        options: of a call on the inputs; its units are the region's.
        modules: by name, those of the table.
        region: see :data:`~captum_causalseg.attr.one_region.REGION`.

    Raises:
        ValueError: the region touches the RoI.
    """
    assert isinstance(options.units, InputUnits)
    options = replace(options, units=replace(options.units, region=region))
    _, statistics, _ = split_effects(options, dict(modules))
    split = statistics.of_output(options.target).to_dataframe()
    # What is not in the region is excluded.
    split = split[split["status"] != Status.EXCLUDED.name].rename(columns={"layer": "module"})
    shares = split.rename(columns={name.replace("_mediated", ""): name for name in SHARES})
    found = table.merge(shares[["example", "module", *SHARES]], on=["example", "module"], how="left", validate="one_to_one")
    first = split.drop_duplicates("example")[
        ["example", "total", "total_standard_error", "total_lower", "total_upper", "status"]
    ]
    found.attrs = table.attrs | {"region": [_said(row) for row in first.to_dict("records")]}
    return found


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """The region's total effect in an example, and why shares of it are not known, if so."""
    reason = ""
    if row["status"] == Status.OUTSIDE_SUPPORT.name:
        reason = "the region cannot reach the region of interest through the network"
    elif row["total_lower"] <= 0 <= row["total_upper"]:
        reason = "the region's total effect is not told from 0"
    numbers = {
        name.removeprefix("total_"): row[name]
        for name in ("example", "total", "total_standard_error", "total_lower", "total_upper")
    }
    return numbers | {"shares_unknown": reason}
