"""How a model perceives: where the effects on a region of interest lie, of which sign, how spread out, how directed.

The paper (PdCR, arXiv 2602.20511) argues from such summaries that architectures follow different strategies: some read the
near surroundings of the region of interest (RoI), others the whole image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import linalg
from scipy import stats as scipy_stats

from captum_causalseg import regions
from captum_causalseg._captum import TargetType
from captum_causalseg.evaluation._unit_space import Array, Metric, UnitSpace, check_example, integer_map, to_numpy, unit_labels
from captum_causalseg.evaluation.influence import InfluenceMatrix, influence_matrix
from captum_causalseg.statistics import Status, TreatmentEffectStatistics

__all__ = ["InfluenceMatrix", "PerceptionProfile", "influence_matrix", "perception_profile", "profile_of_map"]

_ROLES = ("supporting", "harming", "null")


@dataclass(frozen=True, eq=False)
class PerceptionProfile:
    """The effects of one example's units on one RoI, by distance, direction, sign and size.

    **Mass** is the sum of ``|effect|`` over units (not pixels), in the score's own units. Estimates scatter, and ``|effect|`` of
    a unit without effect is never below 0: the mass is too large by what the noise adds. Two columns say by how much.
    ``noise_mass`` is the mass that units would have on average if none of them had an effect: ``E|N(0, se)| = se sqrt(2 / pi)``
    each. ``energy``, the sum of ``effect^2 - se^2``, is an unbiased estimate of the sum of the squared true effects, because
    ``E[effect^2] = truth^2 + se^2``; it can be negative where there is nothing. Both are NaN where a standard error is infinite
    or unknown, except that a profile without any (:func:`profile_of_map`) takes them as 0 in the energy.

    **Units that were not estimated.** Units that cannot reach the RoI (OUTSIDE_SUPPORT) have effect 0. Units that screening
    dropped (SCREENED) count as 0 without noise too, as in the paper; what they truly do is mostly below the screening
    threshold, but a rare large effect can hide among them. Use ``n_screening_draws=0`` to profile without that gap.

    Attributes:
        units: one row per unit that was intervened on. Columns: ``unit`` (its id), ``status`` (name of the
            :class:`~captum_causalseg.Status`), ``effect``, ``standard_error``, ``p_value`` (adjusted after Benjamini and
            Hochberg over the units of this example and output; of screened units, that of their few draws), ``distance`` to the RoI, ``bin``, ``displacement_0``, ... (center
            of the unit minus center of mass of the RoI, per axis, in the unit of ``spacing``) and ``role``.
        by_distance: one row per bin of distance, the empty ones too: ``bin``, ``lower``, ``upper`` (distances in
            ``(lower, upper]``; bin 0 is distance 0), ``n_units``, ``n_nonzero`` (units with an effect other than 0), ``mass``,
            ``supporting_mass``, ``harming_mass`` (both >= 0, by the sign of the effect alone), ``mean_absolute_effect`` (over all
            units of the bin; the paper's mean absolute ATE by block distance), ``mean_absolute_effect_nonzero`` (over those with an
            effect other than 0), ``noise_mass``, ``energy``, ``energy_standard_error`` (for known standard errors),
            ``share`` and ``cumulative_share`` of the mass.
        by_direction: one row per side of each axis: ``axis``, ``side`` (-1 toward index 0, +1), ``n_units``, ``mass``,
            ``share``, ``mean_absolute_effect``. A unit belongs to the axis along which it is displaced most; on a
            diagonal it is divided equally, so ``n_units`` may be a fraction. Units at the very center of the RoI belong to none.
        counts: number of units per role: ``"supporting"``, ``"harming"``, ``"null"``.
        shares: the same as fractions of the units.
        supporting_mass: sum of the positive effects.
        harming_mass: minus the sum of the negative effects (>= 0).
        anisotropy: 0 where the mass depends on the distance alone, up to 1 where it lies along a single line. It is the
            fractional anisotropy of diffusion imaging (Basser and Pierpaoli 1996), in any number of dimensions, of the second
            moment of the displacements weighted by the mass, measured in units of the second moment that there would be
            if the mass of each bin of distance lay evenly on that bin's units. So the shape of the image and where the RoI lies do
            not count. NaN in 1D, without mass, and where no bin has two units to compare. Few units make it large by chance.
        concentration: Gini coefficient of ``|effect|`` over the units: 0 where all are alike, toward 1 where few have all. NaN
            without mass.
        bin_width: width of a bin, in the unit of the distances.
        distance_unit: ``"pixel"``; ``"spacing"`` (distances in the unit of ``spacing``); ``"bin"`` (bin widths per axis were
            given, distances count bins).
        alpha: the false discovery rate at which roles were given; ``None`` for the sign alone.
    """

    units: pd.DataFrame
    by_distance: pd.DataFrame
    by_direction: pd.DataFrame
    counts: dict[str, int]
    shares: dict[str, float]
    supporting_mass: float
    harming_mass: float
    anisotropy: float
    concentration: float
    bin_width: float
    distance_unit: str
    alpha: float | None

    @property
    def mass(self) -> float:
        """Sum of ``|effect|`` over all units."""
        return self.supporting_mass + self.harming_mass

    def radius(self, share: float = 0.5, of: Literal["mass", "energy"] = "mass") -> float:
        """The smallest distance of a unit within which ``share`` of the mass (or of the energy) lies.

        The mass of a noisy map counts its noise, of which there is most far away, where most units are: its radius is too
        large. The energy is free of that bias, though not of the scatter.

        Args:
            share: of the total, in (0, 1].
            of: ``"mass"`` or ``"energy"``.

        Returns:
            A distance in ``distance_unit``; NaN if the total is not positive.

        Raises:
            ValueError: ``share`` outside (0, 1], or ``of`` is neither.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a number above 0 and at most 1, got {share}")
        if of not in ("mass", "energy"):
            raise ValueError(f'of: expected "mass" or "energy", got {of!r}')
        amount = self.units["effect"].abs() if of == "mass" else _energies(self.units)
        # Units at the same distance come together: the energy of one may take back that of the other.
        distances, shell = np.unique(self.units["distance"].to_numpy(), return_inverse=True)
        within = np.cumsum(np.bincount(shell, weights=amount.to_numpy()))
        if not within[-1] > 0:
            return math.nan
        return float(distances[np.argmax(within >= share * within[-1] * (1 - 1e-12))])

    def summary(self) -> dict[str, float]:
        """The profile in numbers, one row of a table.

        Keys: ``n_units``; ``share_supporting``, ``share_harming``, ``share_null`` (of the units); ``mass``, ``supporting_mass``,
        ``harming_mass``, ``noise_mass``, ``energy``; ``radius_50``, ``radius_90`` (of the mass), ``energy_radius_50``;
        ``mean_distance`` (weighted by mass); ``share_within_1`` to ``share_within_4`` (of the mass, in the bins up to that one);
        ``anisotropy``, ``concentration``.
        """
        size, bins = self.units["effect"].abs(), self.units["bin"]
        mass = float(size.sum())
        # Not 0 / 0 with its warning.
        share = size / mass if mass > 0 else size * math.nan
        return {
            "n_units": float(len(self.units)),
            **{f"share_{role}": self.shares[role] for role in _ROLES},
            "mass": mass,
            "supporting_mass": self.supporting_mass,
            "harming_mass": self.harming_mass,
            "noise_mass": float(self.by_distance["noise_mass"].sum(skipna=False)),
            "energy": float(self.by_distance["energy"].sum(skipna=False)),
            "radius_50": self.radius(0.5),
            "radius_90": self.radius(0.9),
            "energy_radius_50": self.radius(0.5, of="energy"),
            "mean_distance": float((share * self.units["distance"]).sum(skipna=False)),
            **{f"share_within_{k}": float(share[bins <= k].sum()) if mass > 0 else math.nan for k in (1, 2, 3, 4)},
            "anisotropy": self.anisotropy,
            "concentration": self.concentration,
        }


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
) -> PerceptionProfile:
    """Summarize one example's effects on one RoI by distance, direction, sign and size.

    The distance of a unit is the smallest one between the center of a pixel of the unit and the center of a pixel of the RoI.
    Bin ``k`` holds the distances in ``((k - 1) w, k w]`` with ``w = bin_width``. For blocks on the same grid as the RoI, bin ``k`` of
    the Chebyshev distance holds the ``k``-th ring of blocks around it: the paper's block distance.

    Args:
        statistics: what ``attribute(..., return_statistics=True)`` returned. Of several inputs the first counts: units that lie
            in others only are left out.
        roi: boolean mask ``(*spatial)``, the RoI whose score ``target`` picks.
        target: which output, as in ``attribute``; needed if there are several.
        example: which example of the batch.
        alpha: units have a role if their effect differs from 0 at this false discovery rate (Benjamini and Hochberg, over the units
            of this example and output), else they are ``"null"``, as are those whose standard error is infinite. ``None``: by
            the sign alone, ``"null"`` is exactly 0.
        spacing: edge of a pixel, one number or one per axis; distances and displacements are in its unit. 1 by default.
        bin_width: in the unit of ``spacing``; by default the edge of the blocks (of the units' bounding boxes, the median, along
            the axis where it is longest). One per axis for blocks that are not cubes: distances are then measured in bins,
            axis by axis, and the width is 1.
        metric: ``"chebyshev"`` (largest difference along an axis), ``"euclidean"`` or ``"cityblock"``.

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
        [[12.0, 1.0], [20.0, 0.0], [28.0, 0.0]]
        >>> profile.radius(0.9)
        1.0
    """
    if not isinstance(statistics, TreatmentEffectStatistics):
        raise TypeError(f"statistics: expected TreatmentEffectStatistics, got {type(statistics).__name__}")
    if alpha is not None and not 0 < alpha < 1:
        raise ValueError(f"alpha: expected None or a number between 0 and 1, got {alpha}")
    row = check_example(statistics, example)
    chosen = statistics.of_output(target)
    effect, error, status, p_value = (
        values[row].numpy().copy() for values in (chosen.effect, chosen.standard_error, chosen.status, chosen.p_values())
    )
    known = ~np.isnan(p_value)
    p_value[known] = scipy_stats.false_discovery_control(p_value[known], method="bh") if known.any() else []
    dropped = (status == Status.SCREENED) | (status == Status.OUTSIDE_SUPPORT)
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
    units = units[~np.isnan(effect) & (status != Status.EXCLUDED) & (status != Status.ABSENT)]
    if units.empty:
        raise ValueError(f"statistics: no unit of example {example} was intervened on")
    if alpha is None:
        role = np.select([units["effect"] > 0, units["effect"] < 0], _ROLES[:2], _ROLES[2])
    else:
        # Infinite standard errors have a p-value of 1.
        sure = units["p_value"] <= alpha
        role = np.select([sure & (units["effect"] > 0), sure & (units["effect"] < 0)], _ROLES[:2], _ROLES[2])
    space = UnitSpace(unit_labels(statistics, row), roi, spacing, bin_width, metric)
    return _profile(units.assign(role=role), space, alpha)


def profile_of_map(
    effects: Array,
    roi: Array,
    *,
    feature_mask: Array | None = None,
    block_size: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    bin_width: float | Sequence[float] | None = None,
    metric: Metric = "chebyshev",
) -> PerceptionProfile:
    """The profile of any map of effects, without error bars: another method's, or one that was only saved as a picture.

    Roles are given by the sign alone; ``standard_error``, ``p_value`` and ``noise_mass`` are NaN, and ``energy`` is the plain sum of
    squares. Units that touch the RoI are left out. The other arguments are those of :func:`perception_profile`.

    Args:
        effects: ``(*spatial)``, one number on each unit, > 0 supports (the paper's heat map is -100 times that); NaN on units
            that were not intervened on.
        roi: boolean mask ``(*spatial)``.
        feature_mask: the units as integers ``(*spatial)``. Give this or ``block_size``.
        block_size: edge of the block units in pixels, one number or one per axis.
        spacing: edge of a pixel, one number or one per axis.
        bin_width: width of a bin, one number or one per axis; the edge of the blocks by default.
        metric: ``"chebyshev"``, ``"euclidean"`` or ``"cityblock"``.

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
    if values.dtype.kind not in "fiu":
        raise TypeError(f"effects: expected real numbers, got {values.dtype}")
    values = values.astype(np.float64)
    if np.isinf(values).any():
        raise ValueError("effects: it holds infinite values")
    if (feature_mask is None) == (block_size is None):
        raise ValueError("feature_mask, block_size: give one of them")
    if block_size is not None:
        labels = regions.grid(values.shape, block_size).numpy()
    else:
        labels = integer_map("feature_mask", feature_mask, values.shape)
    space = UnitSpace(labels[None], roi, spacing, bin_width, metric)

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
            "role": np.select([effect > 0, effect < 0], _ROLES[:2], _ROLES[2]),
        }
    )
    return _profile(units, space, None)


def _profile(units: pd.DataFrame, space: UnitSpace, alpha: float | None) -> PerceptionProfile:
    """From units with effects and roles, and where they lie."""
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
    counts = {name: int((role == name).sum()) for name in _ROLES}
    return PerceptionProfile(
        units=units,
        by_distance=_by_distance(units, space.bin_width),
        by_direction=_by_direction(effect, displacement),
        counts=counts,
        shares={name: count / len(units) for name, count in counts.items()},
        supporting_mass=float(effect[effect > 0].sum()),
        harming_mass=float(np.abs(effect[effect < 0]).sum()),
        anisotropy=_anisotropy(units["effect"].abs(), displacement, units["bin"]),
        concentration=_gini(np.abs(effect)),
        bin_width=space.bin_width,
        distance_unit=space.distance_unit,
        alpha=alpha,
    )


def _energies(units: pd.DataFrame) -> pd.Series:
    """``effect^2 - se^2``; NaN where the error is infinite, and without ``se^2`` where no unit has one."""
    known = units["standard_error"].notna().any()
    return units["effect"] ** 2 - (_errors(units) ** 2 if known else 0.0)


def _errors(units: pd.DataFrame) -> pd.Series:
    """Standard errors, NaN for infinite ones: what they add is not known, and infinite sums would hide the rest."""
    return units["standard_error"].where(np.isfinite(units["standard_error"]))


def _by_distance(units: pd.DataFrame, width: float) -> pd.DataFrame:
    effect, error = units["effect"], _errors(units)
    energy = _energies(units)
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
