"""What a cohort says: profiles and components over cases, paired comparisons, false discoveries over all units.

The case is the unit of analysis throughout. Units of one image share its model, its donors and its region of interest: they are not
independent observations, and a mean over all units of all cases would seem far better known than it is.
"""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from captum_causalseg._checks import FRACTION, NONE, PATH, TEXT, checked, instance, integer, mapping, number, one_of, sequence
from captum_causalseg.cohort.between_cases import Discoveries
from captum_causalseg.cohort.case_values import READ
from captum_causalseg.cohort.folder import Cohort, arrow
from captum_causalseg.cohort.groups import (
    Member,
    columns_of,
    is_of_components,
    members_of,
    pairs_of,
    sources_of,
    table_of_cases,
    there_are,
    word,
)
from captum_causalseg.cohort.pathways import read_pathways, table_of_distances, table_of_pathways
from captum_causalseg.cohort.tables import (
    labeled,
    read,
    table_of_comparison,
    table_of_components,
    table_of_groups,
    table_of_profile,
    width_of,
)
from captum_causalseg.statistics import is_hypothesis

__all__ = ["CohortSummary", "summarize"]

logger = logging.getLogger(__name__)

Folder = str | os.PathLike[str] | Cohort


@dataclass(frozen=True, eq=False, repr=False)
class CohortSummary:
    """What :func:`summarize` found; see there for how cases make groups.

    Each table begins with the columns ``by``, one row or several per group. ``<name>_lower`` and ``<name>_upper`` are ends of the interval
    between cases at ``level``: Student's t over one number per case, NaN for a single case. Effects, masses and scores are in the
    score's own units (Dice in [0, 1]); effects above 0 support the segmentation.

    Attributes:
        values: one row per finished case, the numbers that the other tables are means of: ``case``, ``observed_score``,
            ``share_significant`` (of its ``n_units``, at a false discovery rate of ``alpha`` within the case), ``mass`` (sum of ``|effect|``),
            ``supporting_mass``, ``harming_mass``, ``energy`` (sum of ``effect^2 - standard_error^2``, free of the bias that noise
            gives to a mass), ``radius_50`` (the distance within which half of the mass lies), ``n_units`` (that can reach the region of interest and were
            intervened on).
            Masses, energy and radius are NaN in a study of components, which hold each other.
        cases: one row per group: ``n_cases``, ``n_finished``, ``n_failed``, and the mean of each column of ``values`` with its interval.
        profile: one row per group and bin of distance to the region of interest: ``bin``, ``lower``, ``upper`` (distances in
            ``(lower, upper]``), ``n_cases`` (that have units there), ``n_units`` (of all of them), and means over cases with their
            intervals: ``mean_absolute_effect`` and ``mean_effect`` (of a case's units in the bin), ``energy`` (their sum; over
            ``n_energy`` cases where it is known), ``share`` and ``cumulative_share`` of the case's mass (over all cases with a
            mass, 0 in bins that they do not reach). Units that screening dropped count as 0; those that cannot reach the region of
            interest or touch it are left out, as in :func:`~captum_causalseg.evaluation.profile.perception_profile`. Empty for
            studies of components, and where units have no distance.
        components: one row per group and module (and channel, token or head) of studies of
            :func:`~captum_causalseg.component_effects`: ``module``, [``channel``, ``token`` or ``head``], ``type``, ``part``,
            ``order``; ``n_cases`` that have the module; the random-effects mean ``effect`` with ``standard_error``, ``lower``,
            ``upper``, ``p_value``, and ``q_value`` (Benjamini and Hochberg, over the modules of the
            group); the heterogeneity between cases, ``tau`` and ``tau2``, ``q`` with ``q_p_value``, ``i2``; ``prediction_lower``,
            ``prediction_upper``, where another case's effect would lie; ``weights``. How: see *Notes* of :func:`summarize`.
        pathways: one row per group, layer and ``quantity`` of studies whose effects were split at layers
            (:class:`~captum_causalseg.MediatedTreatmentEffect`, :func:`~captum_causalseg.pathway`): ``layer``, ``quantity``, ``n_cases`` in which it is
            known, ``n_unknown``, ``n_units`` and ``n_clear`` (of all cases); the random-effects ``mean`` with ``standard_error``, ``lower``, ``upper``,
            ``p_value``, and the heterogeneity as in ``components``. The quantity ``"share"`` is what share of a case's effects travels through the layer, as of
            :meth:`Pathway.shares`; where every case has one region, there are also its effects, ``"total"``, ``"indirect"``, ``"direct"`` and
            ``"interaction"``. Of cases none of whose effects is told from 0 no share is known: means of shares are of the others.
        pathway_profile: the shares by the distance from the region of interest: one row per group, layer and ``bin`` (distances in
            ``(lower_distance, upper_distance]``); the rest as in ``pathways``.
        comparison: one row per measure and two groups that were paired: ``first``, ``second`` (their names), ``family`` (``"case"``,
            ``"profile"`` or ``"components"``), ``measure``, ``bin`` or ``module`` [``channel``, ``token`` or ``head``], ``n_pairs``,
            ``n_unpaired_first``, ``n_unpaired_second`` (finished cases without a partner), ``mean_first``, ``mean_second`` (over the pairs),
            ``difference`` (**second minus first**), ``standard_error``, ``lower``, ``upper``, ``p_value`` (paired t-test),
            ``p_wilcoxon`` (signed ranks), and ``p_adjusted``, the ``p_value`` adjusted over the rows of the family by ``correction``:
            Holm's for the few measures and bins, Benjamini and Hochberg's for the many components. Empty if nothing was paired.
        by: names of the columns that make groups.
        groups: their names, in the order of the tables.
        bin_width: of the profile, in the unit of the distances; NaN without distances.
        level: coverage of the intervals.
        alpha: error rate at which units count as significant.
        distance_unit: ``"mm"`` for images with geometry, else ``"pixel"``; empty without distances, ``"mm, pixel"`` where cases differ.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.cohort import explain_cohort, summarize
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> planted = planted_case((32, 32), roi_size=8, n_examples=3)  # three images with the same causes
        >>> cases = [{"id": k, "image": image} for k, image in enumerate(planted.images)]
        >>> study = explain_cohort(
        ...     cases, lambda case: planted.target(), method=AverageTreatmentEffect, out=tempfile.mkdtemp(),
        ...     baselines=planted.donors, n_draws=16, n_screening_draws=0, show_progress=False,
        ... )
        >>> summary = summarize(study)
        >>> summary.cases[["n_cases", "n_finished"]].values.tolist()
        [[3, 3]]
        >>> sorted(set(summary.significant_units()["unit"])) == sorted(planted.cause_units)
        True
    """

    values: pd.DataFrame
    cases: pd.DataFrame
    profile: pd.DataFrame
    components: pd.DataFrame
    pathways: pd.DataFrame
    pathway_profile: pd.DataFrame
    comparison: pd.DataFrame
    by: tuple[str, ...]
    groups: tuple[str, ...]
    bin_width: float
    level: float
    alpha: float
    distance_unit: str = ""
    _members: tuple["Member", ...] = field(default=())

    def __repr__(self) -> str:
        failed = [f" ({n} failed)" if n else "" for n in self.cases["n_failed"]]
        counts = [f"{n} {'case' if n == 1 else 'cases'}{said}" for n, said in zip(self.cases["n_finished"], failed)]
        if self.by:
            counts = [f"{name} {count}" for name, count in zip(self.groups, counts)]
        said = [f"by {', '.join(self.by)}: {'; '.join(counts)}" if self.by else counts[0]]
        if len(self.profile):
            said.append(
                f"{self.profile['bin'].nunique()} bins of {self.bin_width:g}{' mm' if self.distance_unit == 'mm' else ''}"
            )
        if len(self.components):
            said.append(f"{self.components['module'].nunique()} modules")
        if len(self.pathways):
            said.append(f"{self.pathways['layer'].nunique()} layers")
        for (first, second), rows in self.comparison.groupby(["first", "second"], sort=False):
            said.append(f"{rows['n_pairs'].max()} pairs of {first} and {second}")
        return f"CohortSummary({', '.join(said)})"

    @checked(alpha=NONE | FRACTION, correction=one_of("fdr_bh", "fdr_by"))
    def significant_units(self, alpha: float | None = None, correction: Literal["fdr_bh", "fdr_by"] = "fdr_bh") -> pd.DataFrame:
        """The units whose effects differ from 0, among all units of all cases of all groups.

        The tables of the study are read case by case, first the p-values alone, then the rows that pass. Units that cannot reach the
        region of interest are no tests, as in :meth:`TreatmentEffectStatistics.significant`.

        Args:
            alpha: expected share of false ones among them; by default that of the summary.
            correction: ``"fdr_bh"`` (Benjamini and Hochberg) or ``"fdr_by"`` (Benjamini and Yekutieli, under any dependence).

        Returns:
            Columns ``by``, ``case``, ``unit`` (or ``module``, ``channel``, ...), ``status``, ``effect``, ``standard_error``,
            ``distance`` and ``distance_unit`` (of units), ``p_value``, ``q_value``; in the order of the cases. ``table.attrs["n_tests"]`` is the number of p-values.

        Raises:
            ValueError: ``alpha`` is not between 0 and 1, or the correction is unknown.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect
            >>> from captum_causalseg.cohort import explain_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> study = explain_cohort(
            ...     [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(), method=AverageTreatmentEffect,
            ...     out=tempfile.mkdtemp(), show_progress=False, baselines=planted.donors, n_draws=8,
            ... )
            >>> from captum_causalseg.cohort import summarize
            >>> found = summarize(study).significant_units()
            >>> sorted(found["unit"]) == sorted(planted.cause_units), found.attrs["n_tests"]
            (True, 11)
        """
        alpha = self.alpha if alpha is None else alpha
        discoveries = Discoveries(alpha, correction)
        for member in self._members:
            units = member.source.units(member.case, ("status", "p_value"))
            discoveries.add(units.loc[is_hypothesis(units["status"]), "p_value"].to_numpy())
        threshold = discoveries.threshold()
        wanted = tuple(name for name in READ if name not in ("observed_score", "type", "part", "order"))
        tables: list[pd.DataFrame] = []
        for member in self._members:
            table = member.source.units(member.case, wanted)
            table = table[is_hypothesis(table["status"]) & (table["p_value"] <= threshold)]
            if len(table) or not tables:  # one for the columns
                q_value = discoveries.q_values(table["p_value"].to_numpy())
                keys = dict(zip((*self.by, "case"), (*member.group, member.case)))
                tables.append(pd.DataFrame(keys, index=table.index).join(table.assign(q_value=q_value)))
        filled = [table for table in tables if len(table)] or tables[:1]
        found = pd.concat(filled, ignore_index=True)
        found["p_value"] = found.pop("p_value")
        found["q_value"] = found.pop("q_value")
        found.attrs["n_tests"] = discoveries.n_tests
        return found


@checked(
    cohort=PATH | instance(Cohort) | mapping(TEXT, PATH | instance(Cohort), expected="studies by name"),
    by=NONE | TEXT | sequence(TEXT, expected="a sequence of them"),
    pair=NONE | TEXT,
    output=NONE | mapping(TEXT, integer(), expected='a dict of output axes such as {"class": 1}', least=1),
    bin_width=NONE | number(above=0),
    level=FRACTION,
    alpha=FRACTION,
)
def summarize(
    cohort: Folder | Mapping[str, Folder],
    by: str | Sequence[str] | None = None,
    *,
    pair: str | None = None,
    output: Mapping[str, int] | None = None,
    bin_width: float | None = None,
    level: float = 0.95,
    alpha: float = 0.05,
) -> CohortSummary:
    """Summarize what the cases of a cohort have in common, and how groups of them differ.

    Args:
        cohort: the folder of a study of :func:`explain_cohort`, or what that returned; or several of them by name, such as one per
            model: the names are then the column ``study``.
        by: names of columns of ``cases.parquet`` (see ``columns`` of :func:`explain_cohort`), or ``"study"``; cases that agree in them are
            one group. By default the studies, if there are several, else all cases are one.
        pair: the column that says which case of one group belongs to which of another (a patient's number). By default the case's id
            where the groups are studies; else nothing is paired. With more than two groups, each two of them.
        output: which output, by its axes: ``{"class": 1, "roi": 0}``. By default the one that each case was asked for.
        bin_width: of the profile, in the unit of the distances (millimeters for images with geometry, else pixels); one for all cases.
            By default the edge of the units, the median over the cases.
        level: coverage of the intervals.
        alpha: the false discovery rate at which units count as significant, within each case.

    Returns:
        A :class:`CohortSummary`.

    Raises:
        TypeError, ValueError: an argument is not as described; no case is finished; a case is in a group twice; cases cannot be paired;
            ``output`` does not pick one.

    Notes:
        **Components.** A module's effects are known to their standard errors and differ between cases beyond that:
        ``effect_i ~ N(theta_i, se_i^2)``, ``theta_i ~ N(mean, tau^2)``. ``tau^2`` is Paule and Mandel's, the interval Hartung and Knapp's,
        never narrower than with the weights' own error (Roever, Knapp and Friede 2015). Where a case's error is 0 (all donors were
        drawn) or infinite (no draw did anything), weights by error are meaningless and all cases weigh the same: ``weights`` says
        which. The prediction interval is made by the parametric bootstrap of Nagashima, Noma and Furukawa (2019), with the same numbers
        in every process; it holds what is not known of ``tau``. Modules of a chain (a convolution and what follows it) have the same effect in every case.

        **Ways through the network.** Units, and the size of their effects, are not the same in different cases; shares are. A case's share is that of the sum of its
        effects that are told from 0, and its error that of an interval as wide as Fieller's. Over cases they are pooled as effects of components are.

        **What intervals cover**: other cases of the same kind, with this model and these donors. Not other models, other donors or
        other regions of interest.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, regions
        >>> from captum_causalseg.cohort import explain_cohort, summarize
        >>> model, roi = torch.nn.AvgPool2d(9, 1, 4), regions.box((24, 24), start=8, size=8)
        >>> def make_target(case):
        ...     return SegmentationTarget(model, roi=roi, reference=roi, metric="probability_mean", activation="none")
        >>> cases = [{"id": k, "image": torch.rand(1, 24, 24)} for k in range(4)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = explain_cohort(
        ...         cases, make_target, method=AverageTreatmentEffect, out=folder, show_progress=False,
        ...         baselines=torch.rand(9, 1, 24, 24), block_size=4, n_draws=9,
        ...     )
        ...     summary = summarize(study)
        >>> summary
        CohortSummary(4 cases, 1 bins of 4)
        >>> summary.profile[["bin", "n_cases", "n_units", "share"]].values.tolist()  # it reaches 4 pixels far
        [[1.0, 4.0, 48.0, 1.0]]
    """
    arrow()
    sources = sources_of(cohort, output)
    table = table_of_cases(sources, isinstance(cohort, Mapping))
    columns = columns_of(by, isinstance(cohort, Mapping), table)
    if pair is not None and pair not in table:
        raise ValueError(f"pair: there is no column {pair!r}; {there_are(table)}")
    if pair is None and "study" in columns and isinstance(cohort, Mapping):
        pair_by: str | None = "id"
    else:
        pair_by = pair
    members, counts = members_of(table, sources, columns, pair=pair_by)
    modules = is_of_components(members)
    if bin_width is None:
        bin_width = math.nan if modules else width_of(members)
    values, bins, parts, lengths = read(members, bin_width, alpha)
    if len(lengths) > 1:
        logger.warning(
            "summarize: distances of some cases are in mm, those of others in pixels; the profile and the radii mix both"
        )

    groups = list(counts.index)
    names = tuple(", ".join(word(part) for part in group) if columns else "all" for group in groups)
    pairs = pairs_of(members, groups, names, pair=pair) if pair_by is not None else []
    ways = read_pathways(members, bin_width, alpha=alpha, level=level)
    comparison = table_of_comparison(values, bins, parts=parts, members=members, pairs=pairs, level=level)
    return CohortSummary(
        values=labeled(values.drop(columns=["row", "group"]), [groups[g] for g in values["group"]], columns),
        cases=labeled(*table_of_groups(values, counts, level), columns),
        profile=labeled(*table_of_profile(values, bins, groups=groups, width=bin_width, level=level), columns),
        components=labeled(*table_of_components(parts, groups, level), columns),
        pathways=labeled(*table_of_pathways(ways, groups, level), columns),
        pathway_profile=labeled(*table_of_distances(ways, groups, bin_width, level=level), columns),
        comparison=comparison,
        by=columns,
        groups=names,
        bin_width=float(bin_width),
        level=level,
        alpha=alpha,
        distance_unit=", ".join(lengths),
        _members=tuple(members),
    )
