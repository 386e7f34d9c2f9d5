"""The profile of one region of interest: a model's effects on it by distance, direction, sign and size."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from captum_causalseg._checks import checked, number, one_of
from captum_causalseg.evaluation.profile.background import BackgroundEffect

__all__ = ["ROLES", "PerceptionProfile", "energies", "known_errors"]

ROLES = ("supporting", "harming", "null")


@dataclass(frozen=True, eq=False)
class PerceptionProfile:
    """The effects of one example's units on one RoI, by distance, direction, sign and size.

    **Mass** is the sum of ``|effect|`` over units (not pixels), in the score's own units. Estimates scatter, and ``|effect|`` of
    a unit without effect is never below 0: the mass is too large by what the noise adds. Two columns say by how much.
    ``noise_mass`` is the mass that units would have on average if none of them had an effect: ``E|N(0, se)| = se sqrt(2 / pi)``
    each. ``energy``, the sum of ``effect^2 - se^2``, is an unbiased estimate of the sum of the squared true effects, because
    ``E[effect^2] = truth^2 + se^2``; it can be negative where there is nothing. Both are NaN where a standard error is infinite
    or unknown, except that a profile without any (:func:`profile_of_map`) takes them as 0 in the energy.

    **Units that were not estimated.** Units that screening dropped (SCREENED, the paper's irrelevant blocks) count as 0 without
    noise, as in the paper; what they truly do is mostly below the screening threshold, but a rare large effect can hide among
    them. Use ``n_screening_draws=0`` to profile without that gap. Units that cannot reach the RoI through the model
    (OUTSIDE_SUPPORT) are no part of the profile: they are not in its tables, shares and means, and only counted, in ``n_outside``.
    The paper tries every block of its images of 256 x 256 pixels, so its shares are of all blocks of the image, those out of reach
    being irrelevant ones: ``counts[role] / (len(units) + n_outside)``, which depends on the size of the image.

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
        shares: the same as fractions of the units that can reach the RoI, the rows of ``units``.
        n_outside: how many further units there are that cannot reach it.
        background: what replacing any far place does (:func:`background_effect`): the level that effects stand out from where a
            network normalizes over the whole image. ``None`` where there are too few units, or some that cannot reach the RoI.
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
        distance_unit: ``"pixel"``; the ``length_unit`` that was given with a spacing, such as ``"mm"``, without one ``"spacing"``; ``"bin"`` (bin
            widths per axis were given, distances count bins).
        alpha: the false discovery rate at which roles were given; ``None`` for the sign alone.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, perception_profile
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> _, stats = ate.attribute(case.images, case.donors, n_draws=16, return_statistics=True)
        >>> profile = perception_profile(stats, case.roi)
        >>> profile.counts
        {'supporting': 2, 'harming': 1, 'null': 8}
        >>> profile.radius(0.5) <= profile.radius(0.9), round(profile.mass, 6) == round(profile.summary()["mass"], 6)
        (True, True)
    """

    units: pd.DataFrame
    by_distance: pd.DataFrame
    by_direction: pd.DataFrame
    counts: dict[str, int]
    shares: dict[str, float]
    n_outside: int
    background: BackgroundEffect | None
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

    @checked(share=number(above=0, most=1), of=one_of("mass", "energy"))
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
        amount = self.units["effect"].abs() if of == "mass" else energies(self.units)
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
            **{f"share_{role}": self.shares[role] for role in ROLES},
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


def energies(units: pd.DataFrame) -> pd.Series:
    """``effect^2 - se^2``; NaN where the error is infinite, and without ``se^2`` where no unit has one."""
    known = units["standard_error"].notna().any()
    return units["effect"] ** 2 - (known_errors(units) ** 2 if known else 0.0)


def known_errors(units: pd.DataFrame) -> pd.Series:
    """Standard errors, NaN for infinite ones: what they add is not known, and infinite sums would hide the rest."""
    return units["standard_error"].where(np.isfinite(units["standard_error"]))
