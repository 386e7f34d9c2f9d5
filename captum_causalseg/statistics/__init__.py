"""Treatment effects with their uncertainty: standard errors, intervals, p-values, false discovery rates, tables."""

from captum_causalseg.statistics.controls import EDGE_MATCHED, EDGE_SHIFTED
from captum_causalseg.statistics.corrections import CORRECTIONS, adjust_p_values
from captum_causalseg.statistics.moderation import moderate
from captum_causalseg.statistics.outputs import target_index
from captum_causalseg.statistics.status import Status, is_hypothesis
from captum_causalseg.statistics.treatment_effect_statistics import TreatmentEffectStatistics

__all__ = [
    "CORRECTIONS",
    "EDGE_MATCHED",
    "EDGE_SHIFTED",
    "Status",
    "TreatmentEffectStatistics",
    "adjust_p_values",
    "is_hypothesis",
    "moderate",
    "target_index",
]
