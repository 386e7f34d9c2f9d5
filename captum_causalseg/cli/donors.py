"""The effects of a case with other kinds of donors."""

from captum_causalseg.cli.job import Job
from captum_causalseg.donors import PatchBank
from captum_causalseg.evaluation.donor_comparison import DonorComparison, compare_donors, kinds_of_donors

__all__ = ["compared_donors"]


def compared_donors(job: Job) -> DonorComparison:
    """The effects with all kinds of donors that are made of the case's donor images."""
    case, options = job.case, job.options
    assert case.donor_images is not None
    kinds = kinds_of_donors(
        PatchBank(case.donor_images), match="mean" if options.match is None else options.match, blend=max(options.blend, 1)
    )
    return compare_donors(case.target, case.image, kinds, output=case.output, **job.effort())
