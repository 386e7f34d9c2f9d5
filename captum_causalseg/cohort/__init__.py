"""From one image to a cohort: many cases, in one process or on a Ray cluster, with nothing lost and nothing done twice."""

from captum_causalseg.cohort.explain import CohortError, explain_cohort
from captum_causalseg.cohort.folder import Cohort

__all__ = ["Cohort", "CohortError", "explain_cohort"]
