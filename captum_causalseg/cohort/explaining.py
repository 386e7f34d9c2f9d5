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
from captum_causalseg.attr.mediated_treatment_effect import MediatedTreatmentEffect
from captum_causalseg.attr.parts import InParts, merge_parts
from captum_causalseg.cohort.work import CaseWork, Subject
from captum_causalseg.evaluation.unit_space import Ruler, UnitSpace, unit_labels
from captum_causalseg.images import save_map, spacing_of
from captum_causalseg.interventions.execution import WHOLE, Part
from captum_causalseg.statistics import Status, TreatmentEffectStatistics, target_index
from captum_causalseg.target.scorer import as_scorer

__all__ = ["MEDIATED", "ExplainCase"]


MEDIATED = (
    "method: a study keeps one effect per unit, and MediatedTreatmentEffect splits each at every layer; "
    "call its attribute (or pathway) case by case, and give the study AverageTreatmentEffect"
)
"""Why a study of mediated effects is refused, before anything is computed."""


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
        return self._written(place, subject, self._statistics(subject, WHOLE))

    def write_part(self, subject: Subject, part: Part, path: Path) -> None:
        """See :meth:`CaseWork.write_part`."""
        self._statistics(subject, part).save(path)

    def seed(self, subject: Subject) -> Any:
        """See :meth:`CaseWork.seed`."""
        function = self.method if self.method is component_effects else type(self.method(subject.target)).attribute
        parameters = inspect.signature(function).parameters
        return subject.arguments.get("seed", parameters["seed"].default if "seed" in parameters else None)

    def _written(self, place: Path, subject: Subject, statistics: TreatmentEffectStatistics) -> dict[str, Any]:
        asked = subject.arguments.get("target")
        _unit_table(statistics, subject).to_parquet(place / "units.parquet", index=False)
        statistics.save(place / "statistics.npz")
        if callable(self.nifti):
            self.nifti(place / "effects.nii.gz", subject.case, statistics)
        elif self.nifti:
            effects = statistics.to_map("effect", asked)
            first = (effects[0] if isinstance(effects, tuple) else effects)[0]
            save_map(place / "effects.nii.gz", first, subject.inputs[0])
        return {
            "n_units": int((statistics.status[0] != Status.ABSENT).reshape(statistics.status.shape[1], -1).any(1).sum()),
            "forwards": statistics.n_forwards,
            "observed_score": float(statistics.of_output(asked).observed_score[0]),
        }

    def _statistics(self, subject: Subject, part: Part) -> TreatmentEffectStatistics:
        explainer: Any = self.method(subject.target)
        if isinstance(explainer, MediatedTreatmentEffect):
            raise TypeError(MEDIATED)
        if part != WHOLE:
            if not isinstance(explainer, InParts):
                raise TypeError(
                    f"shards: expected a method whose units can be shared out (AverageTreatmentEffect, LayerAverageTreatmentEffect, PdCR), "
                    f"got {type(explainer).__name__}; give shards=1"
                )
            explainer = explainer.only(part)
        bar = {"show_progress": True} if self.show_units else {}
        _, statistics = explainer.attribute(subject.given, **subject.arguments, return_statistics=True, **bar)
        if not isinstance(statistics, TreatmentEffectStatistics):
            raise TypeError(
                f"method: expected its attribute to return TreatmentEffectStatistics, got {type(statistics).__name__}"
            )
        return statistics

    def _components(self, subject: Subject) -> pd.DataFrame:
        named = dict(subject.arguments)
        if "target" in named:
            named["output"] = named.pop("target")
        return component_effects(subject.target, subject.given, **named, show_progress=self.show_units)


def _unit_table(statistics: TreatmentEffectStatistics, subject: Subject) -> pd.DataFrame:
    table = statistics.to_dataframe().drop(columns=["example"])
    outputs = int(np.prod(statistics.output_shape, dtype=int))
    asked = subject.arguments.get("target")
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
