"""From one image to a cohort: many cases, in one process or on a Ray cluster, with nothing lost and nothing done twice."""

from captum_causalseg.cohort.comparison import CohortComparison, compare_cohort
from captum_causalseg.cohort.comparison_figures import plot_cohort_comparison
from captum_causalseg.cohort.comparison_summary import ComparisonSummary, summarize_comparison
from captum_causalseg.cohort.driver import CohortError
from captum_causalseg.cohort.explain import explain_cohort
from captum_causalseg.cohort.figures import plot_cohort_components, plot_cohort_profile
from captum_causalseg.cohort.folder import Cohort
from captum_causalseg.cohort.summary import CohortSummary, summarize

__all__ = [
    "Cohort",
    "CohortComparison",
    "CohortError",
    "CohortSummary",
    "ComparisonSummary",
    "compare_cohort",
    "explain_cohort",
    "plot_cohort_comparison",
    "plot_cohort_components",
    "plot_cohort_profile",
    "summarize",
    "summarize_comparison",
]
