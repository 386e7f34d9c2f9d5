"""Attempts to refute an estimate: what should change nothing, and what should change everything.

An estimate that survives them is not proven right; one that does not is known to be wrong, or less certain than it says. The idea
and the first checks are those of DoWhy (Sharma and Kiciman 2020, arXiv 2011.04216); the check of the weights is the model
randomization test of Adebayo et al. 2018 (arXiv 1810.03292).
"""

from captum_causalseg.evaluation.refute.context import RefutationContext, Refuter
from captum_causalseg.evaluation.refute.crossed import crossed
from captum_causalseg.evaluation.refute.dose import dose
from captum_causalseg.evaluation.refute.joints import joints
from captum_causalseg.evaluation.refute.recompute import recompute
from captum_causalseg.evaluation.refute.refuters import REFUTERS, other_seed, placebo, refute, split_donors, subset_of_donors
from captum_causalseg.evaluation.refute.report import Refutation, RefutationReport
from captum_causalseg.evaluation.refute.weights import random_weights

__all__ = [
    "REFUTERS",
    "Refutation",
    "RefutationContext",
    "RefutationReport",
    "Refuter",
    "crossed",
    "dose",
    "joints",
    "other_seed",
    "placebo",
    "random_weights",
    "recompute",
    "refute",
    "split_donors",
    "subset_of_donors",
]
