"""Which levels of a network carry the effect of a region, and how that changes with the distance from the region of interest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor, nn

from captum_causalseg._captum import TargetType
from captum_causalseg._checks import FRACTION, NONE, TEXT, checked, instance, integer, renamed
from captum_causalseg.attr.average_treatment_effect import Baselines
from captum_causalseg.attr.channels import CHANNELS, UNITS, Channels
from captum_causalseg.attr.effort import DRAWS, EFFORT, OPEN_DRAWS, Effort, draws_of
from captum_causalseg.attr.exclusion import Exclude
from captum_causalseg.attr.mediated_treatment_effect import Layers, split_effects
from captum_causalseg.attr.mediator_names import LAYERS
from captum_causalseg.attr.one_region import REGION, RegionUnits
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.engine.sampling import SamplingScheme
from captum_causalseg.evaluation.unit_space import (
    DISTANCES,
    Metric,
    Ruler,
    UnitSpace,
    check_example,
    unit_labels,
)
from captum_causalseg.interventions.execution import Execution
from captum_causalseg.interventions.mediators import Role
from captum_causalseg.layout import UnitKind
from captum_causalseg.statistics import Status
from captum_causalseg.statistics.mediation import MediationStatistics
from captum_causalseg.target import SegmentationTarget

__all__ = ["Pathway", "Place", "effect_in_words", "number_in_words", "pathway", "share_in_words"]

# Draws of one region, which has no others to lean on: and, with a precision to reach, the most.
_ALONE, _ALONE_WITH_PRECISION = 50, 500


@dataclass(frozen=True)
class Place:
    """Where in the network a mediator is.

    Args:
        role: a ``"level"`` or ``"skip"`` of a U-Net, ``"statistics"`` of norms, or a ``"layer"`` of no known place.
        depth: of a level or skip, how many halvings of the resolution lie above it.

    Example:
        >>> from captum_causalseg.evaluation.pathways import Place
        >>> Place("skip", 0)  # over the top of the U
        Place(role='skip', depth=0)
    """

    role: Role
    depth: int | None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Pathway:
    """What :func:`~captum_causalseg.pathway` returns: through which layers a region, or each unit, acts on the RoI's score.

    Attributes:
        statistics: the effects, split at each layer, of the output that was asked for, ``(N, U)``.
        places: of the layers, by name and in their order, what each is in the network.
        is_region: whether one region was asked for; else each unit by itself.
        rois: boolean ``(N, *spatial)``, the RoI of each example; ``None`` where the target has none.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> from captum_causalseg import SegmentationTarget, pathway, regions
        >>> _ = torch.manual_seed(0)
        >>> network = UNet(2, 1, 2, (4, 8, 8), (2, 2), norm="BATCH").eval()
        >>> image, donors = torch.rand(1, 1, 32, 32), torch.rand(20, 1, 32, 32)
        >>> roi = regions.box((32, 32), start=16, size=8)
        >>> target = SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice")
        >>> found = pathway(target, image, donors, region_units=[4, 5], block_size=8, output=1)
        >>> found.to_dataframe()[["layer", "role", "depth"]].values.tolist()
        [['level 1', 'level', 1], ['bottleneck', 'level', 2]]
    """

    statistics: MediationStatistics
    places: dict[str, Place]
    is_region: bool
    rois: Tensor | None

    @property
    def n_forwards(self) -> int:
        """Images that went through the model, for whatever purpose."""
        return self.statistics.n_forwards

    @property
    def settings(self) -> dict[str, Any]:
        """How it was computed."""
        return self.statistics.settings

    @checked(level=FRACTION)
    def to_dataframe(self, level: float = 0.95) -> pd.DataFrame:
        """One row per layer, example and unit (of one region: per layer and example): the table of :class:`MediationStatistics`, with where the layer is.

        Columns ``role`` (``"level"``, ``"skip"``, ``"statistics"`` or ``"layer"``) and ``depth`` (halvings of the resolution above it) follow ``layer``.

        Example:
            >>> import torch
            >>> from captum_causalseg import pathway
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 1))
            >>> found = pathway(model, torch.ones(1, 1, 4, 4), 0.0, region_units=0, layers="0", block_size=2, exclude=None)
            >>> found.to_dataframe()[["layer", "role", "share", "direct"]].round(3).values.tolist()
            [['0', 'layer', 1.0, 0.0]]
        """
        frame = self.statistics.to_dataframe(level)
        frame.insert(1, "role", [self.places[name].role for name in frame["layer"]])
        frame.insert(2, "depth", pd.array([self.places[name].depth for name in frame["layer"]], dtype="Int64"))
        if self.is_region:
            frame = frame[frame["status"] != Status.EXCLUDED.name].reset_index(drop=True)
        return frame

    @checked(example=integer(0), level=FRACTION, alpha=FRACTION)
    def shares(self, *, example: int = 0, level: float = 0.95, alpha: float = 0.05) -> pd.DataFrame:
        """One row per layer: what share of all effects together travels through it.

        Of one region that is its share mediated. Of many units, indirect and total effects of the units are added up, each with the sign of the unit's
        total effect, so that units of both signs do not undo each other; only units take part whose total effect is told from 0, because the
        sign of the others is not known.

        Args:
            example: which example of the batch.
            level: coverage of the intervals.
            alpha: the false discovery rate at which a unit's total effect is told from 0 (Benjamini and Hochberg).

        Returns:
            Columns ``layer``, ``role``, ``depth``, ``n_units``, ``n_clear`` (units that take part), ``mass`` (the sum of their ``|total|``), ``share``,
            ``share_lower`` and ``share_upper``.

        Example:
            >>> import torch
            >>> from captum_causalseg import pathway
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 1))
            >>> found = pathway(model, torch.ones(1, 1, 4, 4), 0.0, layers=["0", "1"], block_size=2, exclude=None)
            >>> found.shares()[["layer", "n_clear", "share"]].round(3).values.tolist()
            [['0', 4, 1.0], ['1', 4, 1.0]]
        """
        row = check_example(self.statistics.total, example)
        asked = self.statistics.total.hypotheses[row].numpy()
        return pd.DataFrame([self._share(name, row, asked, level=level, alpha=alpha) for name in self.statistics.layers])

    @checked(DISTANCES, example=integer(0), level=FRACTION, alpha=FRACTION)
    def by_distance(
        self,
        *,
        example: int = 0,
        level: float = 0.95,
        alpha: float = 0.05,
        spacing: float | Sequence[float] | None = None,
        bin_width: float | Sequence[float] | None = None,
        metric: Metric = "chebyshev",
    ) -> pd.DataFrame:
        """How deep effects travel, by the distance of their units from the RoI: one row per layer and bin of distance that holds units.

        Where the shares of the levels rise with the distance, far places act through the depth of the network; where those of the norms'
        statistics do, through normalization.

        Args:
            example: which example of the batch.
            level, alpha: as in :meth:`shares`.
            spacing, bin_width, metric: how distances are measured, as in :func:`~captum_causalseg.perception_profile`.

        Returns:
            The columns of :meth:`shares`, with ``bin``, ``lower`` and ``upper`` (distances in ``(lower, upper]``) after ``depth``.

        Raises:
            ValueError: one region was asked for, or the target has no RoI.

        Example:
            >>> import torch
            >>> from captum_causalseg import SegmentationTarget, pathway, regions
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 5, padding=2), torch.nn.Conv2d(2, 1, 5, padding=2))
            >>> roi = regions.box((24, 24), start=8, size=8)
            >>> target = SegmentationTarget(model, roi=roi, metric="logit_mean")
            >>> found = pathway(target, torch.rand(1, 1, 24, 24), torch.rand(9, 1, 24, 24), layers="0", block_size=4)
            >>> found.by_distance()[["bin", "lower", "upper", "n_units"]].values.tolist()  # it reaches 4 pixels far
            [[1.0, 0.0, 4.0, 12.0]]
        """
        if self.is_region:
            raise ValueError("region_units: one region has one distance; leave them out to split the effect of every unit")
        if self.rois is None:
            raise ValueError("target: it has no region of interest to measure distances from; give a SegmentationTarget a roi")
        row = check_example(self.statistics.total, example)
        total = self.statistics.total
        outside = total.unit_ids.numpy()[total.status[row].numpy() == Status.OUTSIDE_SUPPORT]
        ruler = Ruler(spacing=spacing, bin_width=bin_width, metric=metric)
        space = UnitSpace(unit_labels(total, row), self.rois[row], ruler, beside=outside)
        place = np.searchsorted(total.unit_ids.numpy(), space.ids)
        bins = np.full(len(total.unit_ids), -1)
        bins[place] = space.bins
        asked = total.hypotheses[row].numpy() & (bins >= 0)
        rows = []
        for name in self.statistics.layers:
            for number in np.unique(bins[asked]).tolist():
                found = self._share(name, row, asked & (bins == number), level=level, alpha=alpha)
                ends = {"bin": number, "lower": max(number - 1, 0) * space.bin_width, "upper": number * space.bin_width}
                rows.append({**{key: found[key] for key in ("layer", "role", "depth")}, **ends, **found})
        return pd.DataFrame(rows)

    @checked(title=TEXT, score_name=TEXT)
    def plot(self, *, example: int = 0, title: str = "", score_name: str = "score") -> Figure:
        """The ways through the network: :func:`captum_causalseg.visualization.plot_pathway`.

        Example:
            >>> import torch
            >>> from captum_causalseg import pathway
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Flatten(), torch.nn.Linear(32, 1))
            >>> found = pathway(model, torch.ones(1, 1, 4, 4), 0.0, region_units=0, layers="0", block_size=2, exclude=None)
            >>> len(found.plot().axes)
            1
        """
        from captum_causalseg.visualization import plot_pathway  # which draws what this room makes

        return plot_pathway(self, example=example, title=title, score_name=score_name)

    def __repr__(self) -> str:
        """Without its numbers."""
        asked = "one region" if self.is_region else f"{self.statistics.total.effect.shape[1]} units"
        return f"Pathway({asked}; {', '.join(self.statistics.layers)})"

    def __str__(self) -> str:
        """In words: the total effect, and of each layer what travels through it; of the first example."""
        table = self.to_dataframe()
        if not self.is_region:
            shares = self.shares()
            clear, n = (shares[name].iloc[0] for name in ("n_clear", "n_units"))
            said = [f"{clear} of {n} units have an effect that is told from 0; of these effects travel"]
            return "\n".join(said + [f"  through {one['layer']}: {share_in_words(one)}" for one in shares.to_dict("records")])
        rows = table[table["example"] == 0].to_dict("records")
        first = rows[0]
        if first["status"] == Status.OUTSIDE_SUPPORT.name:
            return "the region cannot reach the region of interest through the network: its effect is 0"
        said = [f"the region's effect is {effect_in_words(first, 'total', '+.4f')}"]
        for one in rows:
            said.append(
                f"  through {one['layer']}: {effect_in_words(one, 'indirect', '+.4f')}, "
                f"share {share_in_words(one)}; around it {number_in_words(one['direct'], '+.4f')}, both at once {number_in_words(one['interaction'], '+.4f')}"
            )
        return "\n".join(said)

    def _share(self, name: str, row: int, asked: np.ndarray, *, level: float, alpha: float) -> dict[str, Any]:
        layer, total = self.statistics[name], self.statistics.total
        # Over all hypotheses of the example, so that a bin's units are the same in every picture.
        clear = asked & (total.significant(alpha)[row].numpy() if not self.is_region else True)
        share, lower, upper = layer.share_of_units(clear, row, level)
        place = self.places[name]
        found: dict[str, Any] = {"layer": name, "role": place.role, "depth": place.depth}
        found |= {"n_units": int(asked.sum()), "n_clear": int(clear.sum())}
        found["mass"] = float(np.abs(total.effect[row].numpy()[clear]).sum())
        return found | {"share": share, "share_lower": lower, "share_upper": upper}


def effect_in_words(row: Any, quantity: str, form: str) -> str:
    """A quantity with its interval, of a row of a table; draws that are all 0, or a single one, bound nothing."""
    value, lower, upper = (row[f"{quantity}{end}"] for end in ("", "_lower", "_upper"))
    if np.isinf(lower) and np.isinf(upper):
        return "0 in every draw" if value == 0 else f"{number_in_words(value, form)} (interval not known)"
    return f"{number_in_words(value, form)} [{number_in_words(lower, form)}, {number_in_words(upper, form)}]"


def number_in_words(value: float, form: str) -> str:
    """A number in a format; what is rounded to 0 has no sign."""
    said = f"{value:{form}}"
    return said if any(digit in said for digit in "123456789") or "n" in said else said.lstrip("+-")


def share_in_words(row: Any) -> str:
    """A share with its interval, or that and why it is not known, of a row of a table."""
    if np.isnan(row["share"]):
        if row.get("n_clear") == 0:
            return "not known (no effect is told from 0)"
        if row.get("indirect") == 0 and not row["total_lower"] <= 0 <= row["total_upper"]:
            return "not known (nothing in any draw, which bounds nothing)"
        return "not known (the total effect is not told from 0)"
    share, lower, upper = (row[f"share{end}"] for end in ("", "_lower", "_upper"))
    if np.isnan(lower):
        return f"{number_in_words(share, '.2f')} (interval not known)"
    said = f"{number_in_words(share, '.2f')} [{number_in_words(lower, '.2f')}, {number_in_words(upper, '.2f')}]"
    if lower > 1 or upper < 0:
        said += ", beyond 0 to 1: ways undo each other"
    elif upper - lower > 1:
        said += ", which says little"
    return said


@checked(
    EFFORT,
    target=instance(SegmentationTarget, nn.Module, expected="a SegmentationTarget or another module"),
    region_units=REGION,
    layers=LAYERS,
    n_draws=OPEN_DRAWS,
    n_screening_draws=NONE | integer(0),
    channels=CHANNELS,
    units=UNITS,
)
def pathway(
    target: SegmentationTarget | nn.Module,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Baselines = None,
    *,
    region_units: RegionUnits = None,
    layers: Layers = "levels",
    output: TargetType = None,
    additional_forward_args: Any = None,
    feature_mask: Tensor | tuple[Tensor, ...] | None = None,
    block_size: int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None,
    channels: Channels = None,
    units: UnitKind = "block",
    n_draws: int | None = None,
    n_screening_draws: int | None = None,
    screening_threshold: float = 0.0002,
    sampling: Literal["stratified", "uniform"] | SamplingScheme = "stratified",
    precision: float | None = None,
    support: Literal["auto", "always"] | None = "auto",
    exclude: Exclude = "roi",
    perturbations_per_eval: int = 16,
    seed: int | Sequence[int] = 0,
    show_progress: bool = False,
) -> Pathway:
    """Which levels of the network carry the effect of a region on the RoI's score?

    The units of the region are replaced together by a donor, and the effect is split at each layer as :class:`~captum_causalseg.MediatedTreatmentEffect` splits
    it: what travels through the layer alone, what goes around it, and what takes both ways at once. Level *k* of a U-Net is all that passes *k* halvings of the
    resolution or more, so that what travels through level *k* and not through level *k + 1* turns around there. ``result.plot()`` draws the network as
    a U, with arrows as thick as what travels there.

    Without ``region_units`` the effect of every unit is split, and ``result.by_distance()`` says how deep effects travel, by the distance from the RoI.

    Args:
        target: what is scored, a :class:`~captum_causalseg.SegmentationTarget` or another module that returns scores.
        inputs, baselines, additional_forward_args, feature_mask, block_size, channels, units: as in :meth:`AverageTreatmentEffect.attribute`.
        screening_threshold, sampling, precision, support, exclude, perturbations_per_eval, seed, show_progress: likewise.
        region_units: the region: the id of a unit, ids of several, or a boolean mask ``(*spatial)``. ``None``: every unit by itself.
        layers: as :class:`~captum_causalseg.MediatedTreatmentEffect` takes them: by default the ``"levels"`` of a U-Net.
        output: which output, as Captum's ``target``; of a class and a RoI, the pair.
        n_draws: of donors: of one region by default 50, with ``precision`` as many as it takes, up to 500; of every unit as in
            :meth:`MediatedTreatmentEffect.attribute`.
        n_screening_draws: after so many draws without any change, a unit is given up; by default 0 for one region, else 3.

    Returns:
        A :class:`~captum_causalseg.evaluation.pathways.Pathway`.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it, what came and what was expected.

    Example:
        >>> import torch
        >>> from monai.networks.nets import UNet
        >>> from captum_causalseg import FrozenStatistics, SegmentationTarget, pathway, regions
        >>> _ = torch.manual_seed(0)
        >>> network = UNet(2, 1, 2, (4, 8), (2,), norm="INSTANCE").eval()
        >>> image, donors = torch.rand(1, 1, 32, 32), torch.rand(20, 1, 32, 32)
        >>> roi = regions.box((32, 32), start=0, size=8)
        >>> target = SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice")
        >>> corner = regions.box((32, 32), start=24, size=8)
        >>> found = pathway(target, image, donors, region_units=corner, layers=["levels", FrozenStatistics()], output=1)
        >>> table = found.to_dataframe().set_index("layer")
        >>> round(float(table["share"]["statistics"]), 2)  # a corner that no convolution sees from the RoI
        1.0
    """
    alone = region_units is not None
    usual = _ALONE_WITH_PRECISION if precision is not None else _ALONE
    drawn = (usual if n_draws is None else n_draws) if alone else draws_of(n_draws, DRAWS, precision)
    screened = n_screening_draws if n_screening_draws is not None else 0 if alone else 3
    options = Options(
        name="Pathway",
        forward_func=target,
        inputs=inputs,
        baselines=baselines,
        target=output,
        additional_forward_args=additional_forward_args,
        units=InputUnits(
            feature_mask=feature_mask,
            block_size=block_size,
            exclude=exclude,
            channels=channels,
            kind=units,
            region=region_units,
        ),
        effort=Effort(
            n_draws=drawn,
            n_screening_draws=screened,
            screening_threshold=screening_threshold,
            seed=seed,
            sampling=sampling,
            allocation="equal",
            support=support,
            precision=precision,
        ),
        execution=Execution(perturbations_per_eval=perturbations_per_eval),
        show_progress=show_progress,
        return_statistics=True,
    )
    with renamed(target="output", forward_func="target"):
        problem, statistics, mediators = split_effects(options, layers)
        outputs = problem.call.outputs(statistics.total.output_shape, output)
    rois = problem.call.rois
    return Pathway(
        statistics=statistics.of_output(output),
        places={mediator.name: Place(mediator.role, mediator.depth) for mediator in mediators},
        is_region=alone,
        rois=None if rois is None else outputs.region(rois).cpu(),
    )
