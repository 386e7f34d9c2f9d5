"""Studies that the tests of summaries share."""

import pytest
import torch
from cohort_summaries import ROI, SHAPE, box_filter, cases_of, images, study_of

from captum_causalseg import SegmentationTarget, component_effects
from captum_causalseg.cohort import explain_cohort


@pytest.fixture(scope="session")
def near(tmp_path_factory):
    """Six cases, of which one failed."""
    cases = cases_of(6)
    cases[5]["broken"] = True
    return study_of(tmp_path_factory.mktemp("near") / "study", cases, box_filter(5))


@pytest.fixture(scope="session")
def far(tmp_path_factory):
    """The first four of the same cases, another model, screened."""
    out = tmp_path_factory.mktemp("far") / "study"
    return study_of(out, cases_of(4), box_filter(13), n_screening_draws=2, screening_threshold=0.002)


@pytest.fixture(scope="session")
def components(tmp_path_factory):
    """Of five cases; the last two have a model with one more module."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(1, 3, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1)]
    smaller, larger = torch.nn.Sequential(*layers), torch.nn.Sequential(*layers, torch.nn.Softmax(1))

    def make_target(case):
        model = smaller if case["age"] < 53 else larger
        return SegmentationTarget(
            model, roi=ROI, reference=torch.ones(1, *SHAPE, dtype=torch.int64), metric="probability_mean", activation="none"
        )

    return explain_cohort(
        cases_of(5),
        make_target,
        method=component_effects,
        out=tmp_path_factory.mktemp("components") / "study",
        columns=["site"],
        baselines=images(8, 99),
        target=1,
        n_draws=4,
        n_screening_draws=0,
        show_progress=False,
    )
