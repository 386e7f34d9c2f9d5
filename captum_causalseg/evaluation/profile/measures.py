"""How effects lie around a region of interest: by distance, direction, sign and size."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import linalg

from captum_causalseg import regions
from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, NONE, array_of, checked, for_each_axis, instance, integer
from captum_causalseg.evaluation.profile.background import of_units
from captum_causalseg.evaluation.profile.perception import ROLES, PerceptionProfile, energies, known_errors
from captum_causalseg.evaluation.unit_space import (
    DISTANCES,
    Array,
    Metric,
    Ruler,
    UnitSpace,
    check_example,
    integer_map,
    to_numpy,
    unit_labels,
)
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["perception_profile", "profile_of_map"]


@checked(
    DISTANCES,
    statistics=instance(TreatmentEffectStatistics, expected="TreatmentEffectStatistics"),
    roi=array_of("real"),
    example=integer(),
    alpha=NONE | FRACTION,
)
def perception_profile(
    statistics: TreatmentEffectStatistics,
    roi: Array,
    target: TargetType = None,
    *,
    example: int = 0,
    alpha: float | None = 0.05,
    spacing: float | Sequence[float] | None = None,
    bin_width: float | Sequence[float] | None = None,
    metric: Metric = "chebyshev",
    length_unit: str | None = None,
) -> PerceptionProfile:
    """Summarize one example's effects on one RoI by distance, direction, sign and size.

    The distance of a unit is the smallest one between the center of a pixel of the unit and the center of a pixel of the RoI.
    Bin ``k`` holds the distances in ``((k - 1) w, k w]`` with ``w = bin_width``. For blocks on the same grid as the RoI, bin ``k`` of
    the Chebyshev distance holds the ``k``-th ring of blocks around it: the paper's block distance.

    Only units that can reach the RoI through the model count (:attr:`TreatmentEffectStatistics.hypotheses`), so that the profile does
    not depend on how much other image there is around them.

    Args:
        statistics: what ``attribute(..., return_statistics=True)`` returned. Of several inputs the first counts: units that lie
            in others only are left out.
        roi: boolean mask ``(*spatial)``, the RoI whose score ``target`` picks.
        target: which output, as in ``attribute``; needed if there are several.
        example: which example of the batch.
        alpha: units have a role if their effect differs from 0 at this false discovery rate (Benjamini and Hochberg, over the units
            of this example and output that can reach the RoI), else they are ``"null"``, as are those whose standard error is
            infinite. ``None``: by the sign alone, ``"null"`` is exactly 0.
        spacing: edge of a pixel, one number or one per axis; distances and displacements are in its unit. 1 by default;
            :func:`captum_causalseg.images.spacing_of` has that of a scan.
        bin_width: in the unit of ``spacing``; by default the edge of the blocks (of the bounding boxes of the units that can reach
            the RoI or touch it, the median, along the axis where it is longest). One per axis for blocks that are not cubes: distances are then measured in bins,
            axis by axis, and the width is 1.
        metric: ``"chebyshev"`` (largest difference along an axis), ``"euclidean"`` or ``"cityblock"``.
        length_unit: what ``spacing`` is measured in, such as ``"mm"``; pictures say so.

    Returns:
        A :class:`PerceptionProfile`.

    Raises:
        TypeError, ValueError: an argument is not as described, or no unit was intervened on.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.evaluation.profile import perception_profile
        >>> model = torch.nn.AvgPool2d(9, 1, 4)
        >>> roi = regions.box((32, 32), start=12, size=8)
        >>> target = SegmentationTarget(model, roi=roi, reference=roi, metric="probability_mean", activation="none")
        >>> _, statistics = AverageTreatmentEffect(target).attribute(
        ...     torch.ones(1, 1, 32, 32), baselines=PatchBank(torch.rand(9, 1, 32, 32)), block_size=4, n_draws=9, return_statistics=True
        ... )
        >>> profile = perception_profile(statistics, roi)
        >>> profile.by_distance[["n_units", "share"]].round(2).values.tolist()  # it reaches 4 pixels far
        [[12.0, 1.0]]
        >>> profile.radius(0.9)
        1.0
    """
    row = check_example(statistics, example)
    chosen = statistics.of_output(target)
    effect, error, status, p_value, tested = (
        values[row].numpy().copy()
        for values in (chosen.effect, chosen.standard_error, chosen.status, chosen.adjusted_p_values(), chosen.hypotheses)
    )
    measured = pd.Series(effect.copy(), index=statistics.unit_ids.numpy())
    dropped = status == Status.SCREENED
    effect[dropped], error[dropped] = 0.0, 0.0
    units = pd.DataFrame(
        {
            "unit": statistics.unit_ids.numpy(),
            "status": np.array([s.name for s in Status])[status],
            "effect": effect,
            "standard_error": error,
            "p_value": p_value,
        }
    )
    units = units[tested]
    outside = statistics.unit_ids.numpy()[status == Status.OUTSIDE_SUPPORT]
    if units.empty:
        if (status == Status.FIRST_ORDER).any():
            why = "its effects are those of a gradient, whose errors are not known"
        else:
            why = "none can reach the RoI through the model" if len(outside) else "all are excluded"
        raise ValueError(f"statistics: no unit of example {example} was intervened on, {why}")
    if alpha is None:
        role = np.select([units["effect"] > 0, units["effect"] < 0], ROLES[:2], ROLES[2])
    else:
        # Infinite standard errors have a p-value of 1.
        sure = units["p_value"] <= alpha
        role = np.select([sure & (units["effect"] > 0), sure & (units["effect"] < 0)], ROLES[:2], ROLES[2])
    space = UnitSpace(
        unit_labels(statistics, row),
        roi,
        Ruler(spacing=spacing, bin_width=bin_width, metric=metric, length_unit=length_unit),
        beside=outside,
    )
    return _profile(
        units.assign(role=role), space, alpha=alpha, n_outside=int(np.isin(outside, space.ids).sum()), measured=measured
    )


@checked(
    DISTANCES,
    effects=array_of("real", "(*spatial)", (1, math.inf), may_be_empty=False),
    roi=array_of("real", "(*spatial)", (1, math.inf)),
    feature_mask=NONE | array_of("integer", "(*spatial)", (1, math.inf)),
    block_size=NONE | for_each_axis(integer(1)),
)
def profile_of_map(
    effects: Array,
    roi: Array,
    *,
    feature_mask: Array | None = None,
    block_size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    bin_width: float | Sequence[float] | None = None,
    metric: Metric = "chebyshev",
    length_unit: str | None = None,
) -> PerceptionProfile:
    """The profile of any map of effects, without error bars: another method's, or one that was only saved as a picture.

    Roles are given by the sign alone; ``standard_error``, ``p_value`` and ``noise_mass`` are NaN, and ``energy`` is the plain sum of
    squares. Units that touch the RoI are left out. The other arguments are those of :func:`perception_profile`.

    Args:
        effects: ``(*spatial)``, one number on each unit, > 0 supports (the paper's heat map is -100 times that); NaN on units
            that were not intervened on. A map does not say which units cannot reach the RoI: they count with their 0, unless they
            are NaN as well.
        roi: boolean mask ``(*spatial)``.
        feature_mask: the units as integers ``(*spatial)``. Give this or ``block_size``.
        block_size: edge of the block units in pixels, one number or one per axis.
        spacing: edge of a pixel, one number or one per axis.
        bin_width: width of a bin, one number or one per axis; the edge of the blocks by default.
        metric: ``"chebyshev"``, ``"euclidean"`` or ``"cityblock"``.
        length_unit: what ``spacing`` is measured in.

    Returns:
        A :class:`PerceptionProfile`; its units' status is ESTIMATED.

    Raises:
        TypeError, ValueError: an argument is not as described, a unit holds different effects, or no unit is left.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg import regions
        >>> from captum_causalseg.evaluation.profile import profile_of_map
        >>> effects = np.array([[0.1, 0.1, np.nan, np.nan, -0.3, -0.3, 0.0, 0.0]])
        >>> profile = profile_of_map(effects, np.isnan(effects), block_size=(1, 2))
        >>> profile.counts, profile.units["distance"].tolist()
        ({'supporting': 1, 'harming': 1, 'null': 1}, [1.0, 1.0, 3.0])
    """
    values = to_numpy(effects)
    values = values.astype(np.float64)
    if np.isinf(values).any():
        raise ValueError("effects: it holds infinite values")
    if (feature_mask is None) == (block_size is None):
        raise ValueError("feature_mask, block_size: give one of them")
    if block_size is not None:
        labels = regions.grid(values.shape, block_size).numpy()
    else:
        labels = integer_map("feature_mask", feature_mask, values.shape)
    ruler = Ruler(spacing=spacing, bin_width=bin_width, metric=metric, length_unit=length_unit)
    space = UnitSpace(labels[None], roi, ruler)

    ids, first, unit = np.unique(labels, return_index=True, return_inverse=True)
    of_unit = values.ravel()[first]
    same = (values == of_unit[unit].reshape(values.shape)) | (np.isnan(values) & np.isnan(of_unit[unit]).reshape(values.shape))
    if not same.all():
        raise ValueError(
            f"effects: expected one number on each unit, unit {labels[~same][0]} holds several; are these the units of the map?"
        )
    touches = np.isin(ids, labels[space.roi])
    kept = ~touches & ~np.isnan(of_unit)
    if not kept.any():
        raise ValueError("effects: every unit touches the RoI or is NaN, nothing is left to profile")
    effect = of_unit[kept]
    units = pd.DataFrame(
        {
            "unit": ids[kept],
            "status": Status.ESTIMATED.name,
            "effect": effect,
            "standard_error": math.nan,
            "p_value": math.nan,
            "role": np.select([effect > 0, effect < 0], ROLES[:2], ROLES[2]),
        }
    )
    return _profile(units, space, alpha=None, n_outside=0, measured=units.set_index("unit")["effect"])


def _profile(
    units: pd.DataFrame, space: UnitSpace, alpha: float | None, n_outside: int, measured: pd.Series
) -> PerceptionProfile:
    """From units with effects and roles, and where they lie; ``measured`` are effects by unit, those of screened ones too."""
    units = units[units["unit"].isin(space.ids)]
    if units.empty:
        raise ValueError("statistics: no unit of the first input was intervened on")
    place = np.searchsorted(space.ids, units["unit"])
    displacement = space.displacement[place]
    role = units["role"]
    units = units.drop(columns="role").assign(
        distance=space.distance[place],
        bin=space.bins[place],
        **{f"displacement_{axis}": displacement[:, axis] for axis in range(displacement.shape[1])},
        role=role,
    )
    units = units.reset_index(drop=True)
    effect = units["effect"].to_numpy()
    counts = {name: int((role == name).sum()) for name in ROLES}
    return PerceptionProfile(
        units=units,
        by_distance=_by_distance(units, space.bin_width),
        by_direction=_by_direction(effect, displacement),
        counts=counts,
        shares={name: count / len(units) for name, count in counts.items()},
        n_outside=n_outside,
        background=of_units(measured[units["unit"]].to_numpy(), units["distance"].to_numpy(), n_outside),
        supporting_mass=float(effect[effect > 0].sum()),
        harming_mass=float(np.abs(effect[effect < 0]).sum()),
        anisotropy=_anisotropy(units["effect"].abs(), displacement, units["bin"]),
        concentration=_gini(np.abs(effect)),
        bin_width=space.bin_width,
        distance_unit=space.distance_unit,
        alpha=alpha,
    )


def _by_distance(units: pd.DataFrame, width: float) -> pd.DataFrame:
    effect, error = units["effect"], known_errors(units)
    energy = energies(units)
    columns = pd.DataFrame(
        {
            "n_units": 1,
            "n_nonzero": (effect != 0).astype(int),
            "mass": effect.abs(),
            "supporting_mass": effect.clip(lower=0),
            "harming_mass": (-effect).clip(lower=0),
            "noise_mass": error * math.sqrt(2 / math.pi),
            "energy": energy,
            # Var(effect^2) = 4 truth^2 se^2 + 2 se^4, with effect^2 - se^2 for truth^2.
            "energy_standard_error": 4 * effect**2 * error**2 - 2 * error**4,
        }
    )
    bins = pd.RangeIndex(min(1, int(units["bin"].min())), int(units["bin"].max()) + 1, name="bin")
    # Not groupby.sum, which passes over NaN.
    sums = columns.groupby(units["bin"]).agg(lambda values: values.sum(skipna=False)).reindex(bins, fill_value=0)
    table = pd.DataFrame({"lower": (bins - 1).to_numpy().clip(min=0) * width, "upper": bins.to_numpy() * width}, index=bins)
    table = table.join(sums.astype({"n_units": int, "n_nonzero": int}))
    total = float(table["mass"].sum())
    table["energy_standard_error"] = np.sqrt(table["energy_standard_error"].clip(lower=0))
    table["share"] = table["mass"] / total if total > 0 else math.nan
    table["cumulative_share"] = table["share"].cumsum()
    means = {
        "mean_absolute_effect": table["mass"] / table["n_units"].where(table["n_units"] > 0),
        "mean_absolute_effect_nonzero": table["mass"] / table["n_nonzero"].where(table["n_nonzero"] > 0),
    }
    table = table.assign(**means).reset_index()
    order = ["bin", "lower", "upper", "n_units", "n_nonzero", "mass", "supporting_mass", "harming_mass", *means]
    return table[[*order, "noise_mass", "energy", "energy_standard_error", "share", "cumulative_share"]]


def _by_direction(effect: np.ndarray, displacement: np.ndarray) -> pd.DataFrame:
    far = np.abs(displacement)
    largest = far.max(1, keepdims=True)
    dominant = (far >= largest * (1 - 1e-9)) & (largest > 1e-9)
    weight = dominant / np.maximum(dominant.sum(1, keepdims=True), 1)
    total, rows = float(np.abs(effect).sum()), []
    for axis in range(displacement.shape[1]):
        for side in (-1, 1):
            counted = weight[:, axis] * (np.sign(displacement[:, axis]) == side)
            count, mass = float(counted.sum()), float((counted * np.abs(effect)).sum())
            share = mass / total if total > 0 else math.nan
            mean = mass / count if count > 0 else math.nan
            rows.append((axis, side, count, mass, share, mean))
    return pd.DataFrame(rows, columns=["axis", "side", "n_units", "mass", "share", "mean_absolute_effect"])


def _anisotropy(size: pd.Series, displacement: np.ndarray, bins: pd.Series) -> float:
    axes = displacement.shape[1]
    grouped = size.groupby(bins)
    comparable = (grouped.transform("size") > 1) & (grouped.transform("sum") > 0)
    if axes < 2 or not comparable.any():
        return math.nan
    even = grouped.transform("mean").to_numpy()
    found, expected = (displacement.T @ (weight[:, None] * displacement) for weight in (size.to_numpy(), even))
    spread = np.linalg.eigvalsh(expected)
    if spread[0] <= 1e-9 * spread[-1]:
        return math.nan
    moments = np.clip(linalg.eigh(found, expected, eigvals_only=True), 0, None)
    uneven = float(np.linalg.norm(moments - moments.mean()) / np.linalg.norm(moments))
    return math.sqrt(axes / (axes - 1)) * uneven


def _gini(size: np.ndarray) -> float:
    n, total = len(size), float(size.sum())
    if not total > 0:
        return math.nan
    rank = np.arange(1, n + 1)
    return float(((2 * rank - n - 1) * np.sort(size)).sum() / (n * total))
