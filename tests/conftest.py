"""Settings that all tests share."""

import pytest
import torch
from hypothesis import settings

# Tiny models, several workers: more threads only get in each other's way.
torch.set_num_threads(1)

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


# Files whose tests train networks, run studies, start processes or count how often intervals cover; `make check` leaves them out.
SLOW = {
    "test_captum_suite",
    "test_cli",
    "test_cli_bad_input",
    "test_cli_bundle",
    "test_cli_cohort",
    "test_cli_names",
    "test_cohort",
    "test_cohort_ray",
    "test_cohort_resume",
    "test_cohort_summary",
    "test_comparison",
    "test_coverage",
    "test_demo_and_pictures",
    "test_demo_data",
    "test_docs",
    "test_faithfulness",
    "test_families",
    "test_files",
    "test_memory",
    "test_model_study",
    "test_null",
    "test_paper_picture",
    "test_picture_images",
    "test_pictures",
    "test_planted",
    "test_profile",
    "test_refute",
    "test_refusals",
    "test_repeatability",
    "test_stochastic",
    "test_support_on_models",
    "test_transformer_layers",
    "test_undisturbed",
    "test_window",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.suffix == ".ipynb" or item.path.stem in SLOW:
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    # The longest first: what comes last should be short, or one worker runs it while the others wait. Files stay together.
    items.sort(key=lambda item: (item.path.suffix != ".ipynb", item.path.stem not in SLOW))


@pytest.fixture(autouse=True)
def _fixed_global_seed() -> None:
    torch.manual_seed(0)
