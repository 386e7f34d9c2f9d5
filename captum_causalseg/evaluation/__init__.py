"""Whether an attribution can be trusted: refutation, faithfulness, comparison, profiles of perception.

Models and images with known causes are in :mod:`captum_causalseg.evaluation.planted`.
"""

from captum_causalseg.evaluation.comparison import Comparison, compare
from captum_causalseg.evaluation.faithfulness import Curve, Faithfulness, FaithfulnessMetric
from captum_causalseg.evaluation.influence import InfluenceMatrix, influence_matrix
from captum_causalseg.evaluation.kinds_of_rois import roi_kind
from captum_causalseg.evaluation.profile import (
    BackgroundEffect,
    PerceptionProfile,
    background_effect,
    perception_profile,
    profile_of_map,
)
from captum_causalseg.evaluation.refute import Refutation, RefutationReport, refute

__all__ = [
    "BackgroundEffect",
    "Comparison",
    "Curve",
    "Faithfulness",
    "FaithfulnessMetric",
    "InfluenceMatrix",
    "PerceptionProfile",
    "Refutation",
    "RefutationReport",
    "background_effect",
    "compare",
    "influence_matrix",
    "perception_profile",
    "profile_of_map",
    "refute",
    "roi_kind",
]
