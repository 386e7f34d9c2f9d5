"""The effects of a case with other kinds of donors."""

from captum_causalseg.cli.job import Job, about_the_picture
from captum_causalseg.cli.page import Drawing
from captum_causalseg.cli.results import score_in_words, sign_words
from captum_causalseg.donors import PatchBank
from captum_causalseg.evaluation.donor_comparison import DonorComparison, compare_donors, kinds_of_donors
from captum_causalseg.visualization import plot_donors

__all__ = ["compared_donors", "donors_picture"]


def compared_donors(job: Job) -> DonorComparison:
    """The effects with all kinds of donors that are made of the case's donor images."""
    case, options = job.case, job.options
    assert isinstance(case.donors, PatchBank)
    kinds = kinds_of_donors(case.donors, match=options.match or "mean", blend=max(options.blend, 1))
    return compare_donors(case.target, case.image, kinds, output=case.output, **job.effort())


def donors_picture(job: Job, comparison: DonorComparison) -> Drawing:
    """All maps side by side, in the words of the case's score."""
    metric = job.options.metric
    return Drawing(
        plot_donors,
        comparison,
        title=job.case.name,
        score_name=score_in_words(metric),
        words=sign_words(metric),
        **about_the_picture(job.case),
    )
