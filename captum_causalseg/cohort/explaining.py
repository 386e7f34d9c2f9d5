"""What :func:`~captum_causalseg.cohort.explain_cohort` does of each case: treatment effects, a table of units, a map."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from captum_causalseg.attr.components import component_effects
from captum_causalseg.attr.parts import InParts, merge_parts
from captum_causalseg.cohort.work import CaseWork, Subject
from captum_causalseg.evaluation.pathways import pathway
from captum_causalseg.evaluation.unit_space import Ruler, UnitSpace, unit_labels
from captum_causalseg.images import save_map, spacing_of
from captum_causalseg.interventions.execution import WHOLE, Part
from captum_causalseg.statistics import Status, TreatmentEffectStatistics, target_index
from captum_causalseg.statistics.mediation import MediationStatistics
from captum_causalseg.target.scorer import as_scorer

__all__ = ["FUNCTIONS", "ExplainCase", "of_constructor"]

FUNCTIONS = (component_effects, pathway)
"""What explains a case by itself, and makes no explainer."""


def of_constructor(method: Callable[..., Any]) -> frozenset[str]:
    """The arguments that a class takes when an explainer is made of a target, and its ``attribute`` does not: which layers, for example."""
    if not isinstance(method, type) or not hasattr(method, "attribute"):
        return frozenset()
    made = list(inspect.signature(method).parameters)[1:]
    return frozenset(made) - {*inspect.signature(method.attribute).parameters}


@dataclass(frozen=True)
class ExplainCase(CaseWork):
    """Explains a case.

    Args:
        method, nifti: as of :func:`captum_causalseg.cohort.explain_cohort`.
        show_units: show a bar over the interventions of each case.
    """

    method: Callable[..., Any]
    nifti: bool | Callable[[Path, Mapping[str, Any], TreatmentEffectStatistics], None] = False
    show_units: bool = False

    def write(self, subject: Subject, place: Path, parts: Sequence[Path]) -> dict[str, Any]:
        """See :meth:`CaseWork.write`."""
        if self.method is component_effects:
            table = self._components(subject)
            table.drop(columns=["example"]).to_parquet(place / "units.parquet", index=False)
            return {"n_units": len(table), "forwards": None, "observed_score": float(table["observed_score"].iloc[0])}
        if parts:
            return self._written(place, subject, merge_parts([TreatmentEffectStatistics.load(path) for path in parts]))
        found = self._pathway(subject) if self.method is pathway else self._statistics(subject, WHOLE)
        return self._written(place, subject, found)

    def write_part(self, subject: Subject, part: Part, path: Path) -> None:
        """See :meth:`CaseWork.write_part`."""
        found = self._statistics(subject, part)
        assert isinstance(found, TreatmentEffectStatistics), "what can be shared out gives no others"
        found.save(path)

    def seed(self, subject: Subject) -> Any:
        """See :meth:`CaseWork.seed`."""
        function = self.method if self.method in FUNCTIONS else type(self._explainer(subject)).attribute
        parameters = inspect.signature(function).parameters
        return subject.arguments.get("seed", parameters["seed"].default if "seed" in parameters else None)

    def _written(self, place: Path, subject: Subject, found: TreatmentEffectStatistics | MediationStatistics) -> dict[str, Any]:
        # Of a function, the output that was asked for is all that there is.
        asked = None if self.method is pathway else subject.arguments.get("target")
        statistics = mapped = found if isinstance(found, TreatmentEffectStatistics) else found.total
        table = _unit_table(statistics, subject, asked)
        table.to_parquet(place / "units.parquet", index=False)
        if isinstance(found, MediationStatistics):
            _mediation_table(found, table).to_parquet(place / "mediation.parquet", index=False)
            if self.method is not pathway:
                # As `attribute` returns it.
                layer = found.of_layer(0 if subject.arguments.get("layer") is None else subject.arguments["layer"])
                mapped = layer.of_quantity(subject.arguments.get("quantity", "indirect"))
        statistics.save(place / "statistics.npz")
        if callable(self.nifti):
            self.nifti(place / "effects.nii.gz", subject.case, mapped)
        elif self.nifti:
            effects = mapped.to_map("effect", asked)
            first = (effects[0] if isinstance(effects, tuple) else effects)[0]
            save_map(place / "effects.nii.gz", first, subject.inputs[0])
        return {
            "n_units": int((statistics.status[0] != Status.ABSENT).reshape(statistics.status.shape[1], -1).any(1).sum()),
            "forwards": statistics.n_forwards,
            "observed_score": float(statistics.of_output(asked).observed_score[0]),
        }

    def _explainer(self, subject: Subject) -> Any:
        own = of_constructor(self.method)
        return self.method(subject.target, **{name: value for name, value in subject.arguments.items() if name in own})

    def _statistics(self, subject: Subject, part: Part) -> TreatmentEffectStatistics | MediationStatistics:
        explainer = self._explainer(subject)
        if part != WHOLE:
            if not isinstance(explainer, InParts):
                raise TypeError(
                    f"shards: expected a method whose units can be shared out (AverageTreatmentEffect, LayerAverageTreatmentEffect, PdCR), "
                    f"got {type(explainer).__name__}; give shards=1"
                )
            explainer = explainer.only(part)
        bar = {"show_progress": True} if self.show_units else {}
        own = of_constructor(self.method)
        arguments = {name: value for name, value in subject.arguments.items() if name not in own}
        _, statistics = explainer.attribute(subject.given, **arguments, return_statistics=True, **bar)
        if not isinstance(statistics, (TreatmentEffectStatistics, MediationStatistics)):
            raise TypeError(
                f"method: expected its attribute to return TreatmentEffectStatistics, got {type(statistics).__name__}"
            )
        return statistics

    def _components(self, subject: Subject) -> pd.DataFrame:
        return component_effects(subject.target, subject.given, **_named(subject), show_progress=self.show_units)

    def _pathway(self, subject: Subject) -> MediationStatistics:
        return pathway(subject.target, subject.given, **_named(subject), show_progress=self.show_units).statistics


def _named(subject: Subject) -> dict[str, Any]:
    """The arguments as functions call them, whose ``target`` is what is explained."""
    named = dict(subject.arguments)
    if "target" in named:
        named["output"] = named.pop("target")
    return named


def _mediation_table(found: MediationStatistics, units: pd.DataFrame) -> pd.DataFrame:
    """A row per layer, unit and output, with what shares are made of, and what the table of units says of the unit."""
    tables = []
    for order, layer in enumerate(found.values()):
        table = layer.to_dataframe().drop(columns=["example"])
        split, there = layer.split(), (layer.total.status != Status.ABSENT).numpy()
        table.insert(1, "order", order)
        table["covariance"], table["degrees_of_freedom"] = split.covariance[there], split.freedom[there]
        for name in ("asked", "distance", "distance_unit"):
            table[name] = units[name].to_numpy()
        tables.append(table)
    return pd.concat(tables, ignore_index=True).astype({"distance_unit": "string"})


def _unit_table(statistics: TreatmentEffectStatistics, subject: Subject, asked: Any) -> pd.DataFrame:
    table = statistics.to_dataframe().drop(columns=["example"])
    outputs = int(np.prod(statistics.output_shape, dtype=int))
    chosen = int(target_index(asked, 1, statistics.output_shape, output_axes=statistics.output_axes)[0])
    present = (statistics.status[0] != Status.ABSENT).reshape(-1, outputs).numpy()
    number = np.broadcast_to(np.arange(outputs), present.shape)[present]
    table["asked"] = number == chosen
    more = subject.arguments.get("additional_forward_args")
    table["distance"] = _distances(statistics, subject.target, subject.inputs, more=more)[present]
    # Cases of one study may differ in it.
    unit = pd.Series("pixel" if spacing_of(subject.inputs[0]) is None else "mm", index=table.index, dtype="string")
    table["distance_unit"] = unit.where(table["distance"].notna())
    return table


def _distances(statistics: TreatmentEffectStatistics, target: Any, inputs: tuple[Tensor, ...], more: Any) -> np.ndarray:
    """``(U, K)``: of every unit to the region of interest of every output; NaN where units have no place or there is no region."""
    found = np.full((statistics.effect.shape[1], int(np.prod(statistics.output_shape, dtype=int))), np.nan)
    spatial = statistics.input_shapes[0][2:]
    if not spatial or "layer" in statistics.settings:
        return found
    extra = () if more is None else more if isinstance(more, tuple) else (more,)
    rois = as_scorer(target).rois(*inputs, *extra)
    if rois is None or tuple(rois.shape[2:]) != tuple(spatial):
        return found
    spacing = spacing_of(inputs[0])
    per_roi = []
    for roi in rois[0]:
        space = UnitSpace(unit_labels(statistics, 0), roi.as_subclass(Tensor), Ruler(spacing=spacing))
        place = pd.Series(space.distance, index=space.ids).reindex(statistics.unit_ids.numpy())
        per_roi.append(place.to_numpy())
    # The outputs are (C, R), (C,) or (R,): the last axis is the regions'.
    return np.tile(np.stack(per_roi, axis=1), (1, found.shape[1] // len(per_roi)))
