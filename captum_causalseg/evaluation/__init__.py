"""Whether an attribution can be trusted: ground truth, refutation, faithfulness, comparison, profiles of perception."""

from captum_causalseg.evaluation.comparison import Comparison, compare
from captum_causalseg.evaluation.faithfulness import Curve, Faithfulness, FaithfulnessMetric

__all__ = ["Comparison", "Curve", "Faithfulness", "FaithfulnessMetric", "compare"]
