"""Settings that all tests share."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Tiny models, several workers: more threads only get in each other's way.
torch.set_num_threads(1)

TESTS = Path(__file__).parent

settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("suite")


# Files of more than four seconds of one core: they train networks, run studies, start processes, or count how often intervals cover.
# `make check` leaves them out.
SLOW = {
    "attr/test_components",
    "attr/test_controls",
    "attr/test_joint_treatment_effect",
    "attr/test_layer_joint_treatment_effect",
    "attr/test_mediated_treatment_effect",
    "attr/test_region_search",
    "cli/commands/test_cohort",
    "cli/commands/test_compare",
    "cli/commands/test_demo",
    "cli/commands/test_explain",
    "cli/test_digests",
    "cli/test_errors",
    "cli/test_findings",
    "cli/test_grid",
    "cli/test_report",
    "cli/test_segmentation",
    "cli/test_streams",
    "cli/test_study_page",
    "cli/test_viewer",
    "cohort/test_between_cases",
    "cohort/test_comparison",
    "cohort/test_driver",
    "cohort/test_engines",
    "cohort/test_explain",
    "cohort/test_figures",
    "cohort/test_fingerprint",
    "cohort/test_folder",
    "cohort/test_groups",
    "cohort/test_models",
    "cohort/test_prediction",
    "cohort/test_summary",
    "cohort/test_tables",
    "cohort/test_worker",
    "demo/test_network",
    "donors/test_activation_bank",
    "donors/test_fitted",
    "donors/test_gather",
    "engine/test_estimator",
    "engine/test_goal",
    "evaluation/planted/test_shortcut",
    "evaluation/planted/test_synthetic",
    "evaluation/profile/test_perception",
    "evaluation/refute/test_context",
    "evaluation/refute/test_crossed",
    "evaluation/refute/test_differences",
    "evaluation/refute/test_faults",
    "evaluation/refute/test_recompute",
    "evaluation/refute/test_refuters",
    "evaluation/refute/test_weights",
    "evaluation/test_comparison",
    "evaluation/test_donor_comparison",
    "evaluation/test_faithfulness",
    "interventions/test_grouped",
    "interventions/test_layer",
    "interventions/test_layouts",
    "interventions/test_reach",
    "interventions/test_repeatability",
    "interventions/test_support",
    "interventions/test_support_on_models",
    "interventions/test_transformer_layers",
    "interventions/test_unets",
    "interventions/test_window",
    "interventions/test_window_layers",
    "interventions/test_window_of_layer",
    "interventions/test_windows",
    "metrics/test_outcomes",
    "metrics/test_per_region",
    "metrics/test_table",
    "target/test_local_scores",
    "target/test_stochastic",
    "target/test_windows_of_regions",
    "test_state",
    "visualization/test_effect_panels",
    "visualization/test_effects",
    "visualization/test_picture_images",
    "visualization/test_planes",
    "visualization/test_profile",
    "whole/test_captum_dropin",
    "whole/test_captum_suite",
    "whole/test_coverage",
    "whole/test_devices",
    "whole/test_docs",
    "whole/test_families",
    "whole/test_hypotheses",
    "whole/test_joint_effects",
    "whole/test_joint_nulls",
    "whole/test_memory",
    "whole/test_model_study",
    "whole/test_more_families",
    "whole/test_null",
    "whole/test_oracle",
    "whole/test_paper_picture",
    "whole/test_refusals",
    "whole/test_several_inputs",
    "whole/test_tensor_kinds",
    "whole/test_undisturbed",
    "writing/test_files",
}


def pytest_configure(config: pytest.Config) -> None:
    """Notebooks run as for a person who has just begun: with no profile of IPython, and without Transformers.

    That is there for the tests of a few networks; MONAI imports it wherever it finds it, and each notebook would take two seconds more.
    """
    home = tempfile.TemporaryDirectory()
    startup = Path(home.name) / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "without_transformers.py").write_text("import sys\nsys.modules['transformers'] = None\n")
    os.environ["IPYTHONDIR"] = home.name
    config.add_cleanup(home.cleanup)


def is_slow(item: pytest.Item) -> bool:
    if item.path.suffix == ".ipynb":
        return True
    return item.path.is_relative_to(TESTS) and item.path.relative_to(TESTS).with_suffix("").as_posix() in SLOW


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_slow(item):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    # The longest first: what comes last should be short, or one worker runs it while the others wait. Files stay together.
    items.sort(key=lambda item: (item.path.suffix != ".ipynb", not is_slow(item)))


@pytest.fixture(autouse=True)
def _fixed_global_seed() -> None:
    # Before each of thousands of tests: `torch.manual_seed` walks the stack for every kind of device that is not there.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)
