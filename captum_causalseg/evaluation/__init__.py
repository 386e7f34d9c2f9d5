"""Whether an attribution can be trusted: refutation, faithfulness, comparison, profiles of perception.

Models and images with known causes are in :mod:`captum_causalseg.evaluation.planted`.
"""

from captum_causalseg.evaluation.comparison import Comparison, compare
from captum_causalseg.evaluation.faithfulness import Curve, Faithfulness, FaithfulnessMetric
from captum_causalseg.evaluation.imputation import road
from captum_causalseg.evaluation.influence import InfluenceMatrix, influence_matrix
from captum_causalseg.evaluation.kinds_of_rois import roi_kind
from captum_causalseg.evaluation.pathways import Pathway, pathway
from captum_causalseg.evaluation.profile import (
    BackgroundEffect,
    PerceptionProfile,
    background_effect,
    perception_profile,
    profile_of_map,
)
from captum_causalseg.evaluation.refute import Refutation, RefutationReport, refute
from captum_causalseg.evaluation.retained import attribution_score
from captum_causalseg.evaluation.robustness import map_agreement, max_sensitivity
from captum_causalseg.evaluation.subset_sizes import sensitivity_n

__all__ = [
    "BackgroundEffect",
    "Comparison",
    "Curve",
    "Faithfulness",
    "FaithfulnessMetric",
    "InfluenceMatrix",
    "Pathway",
    "PerceptionProfile",
    "Refutation",
    "RefutationReport",
    "attribution_score",
    "background_effect",
    "compare",
    "influence_matrix",
    "map_agreement",
    "max_sensitivity",
    "pathway",
    "perception_profile",
    "profile_of_map",
    "refute",
    "road",
    "roi_kind",
    "sensitivity_n",
]
