"""Tests mirror the rooms: every module has its file of tests, every folder of tests is a room."""

from pathlib import Path

import captum_causalseg

PACKAGE = Path(captum_causalseg.__file__).parent
TESTS = Path(__file__).parents[1]

# What several rooms do together, and what several tests share.
NO_ROOM = {"common", "whole"}

# Modules without a file of tests of their own, and the tests that hold them.
ELSEWHERE = {
    "cli/donors": "cli/commands/test_explain",
    "__main__": "whole/test_package",
    "_captum": "whole/test_captum_suite",
    "_version": "whole/test_package",
    "activations": "whole/test_public_paths",
    "attr/average_treatment_effect": "whole/test_captum_dropin",
    "attr/effort": "whole/test_arguments",
    "attr/estimate": "whole/test_oracle",
    "attr/exclusion": "whole/test_excluded_places",
    "attr/gradient": "attr/test_gradient_treatment_effect",
    "attr/joint": "attr/test_joint_treatment_effect",
    "attr/layer": "interventions/test_layer",
    "attr/layer_average_treatment_effect": "interventions/test_layer",
    "attr/layer_places": "interventions/test_window_layers",
    "attr/one_region": "evaluation/test_pathways",
    "attr/pair_table": "attr/test_interactions",
    "attr/parts": "cohort/test_worker",
    "attr/pdcr": "whole/test_oracle",
    "attr/problem": "whole/test_bad_input",
    "attr/prompt_interactions": "attr/test_prompt_treatment_effect",
    "attr/region_course": "attr/test_region_search",
    "attr/reach": "interventions/test_reach",
    "cli/arguments": "cli/test_errors",
    "cli/case": "cli/commands/test_explain",
    "cli/case_command": "cli/commands/test_explain",
    "cli/command": "cli/test_listing",
    "cli/computed": "cli/test_report",
    "cli/commands/refute": "cli/test_report",
    "cli/found_regions": "cli/commands/test_region",
    "cli/files": "cli/test_errors",
    "cli/job": "cli/commands/test_explain",
    "cli/model": "cli/commands/test_explain",
    "cli/modules": "cli/test_streams",
    "cli/places": "cli/test_grid",
    "cli/results": "cli/commands/test_explain",
    "cli/study": "cli/commands/test_cohort",
    "cli/ways": "cli/commands/test_pathway",
    "attr/component_shares": "attr/test_components",
    "cohort/code": "cohort/test_fingerprint",
    "cohort/comparing": "cohort/test_comparison",
    "cohort/digests": "cohort/test_fingerprint",
    "cohort/explaining": "cohort/test_worker",
    "cohort/manifest": "cohort/test_folder",
    "cohort/study": "cohort/test_explain",
    "cohort/work": "cohort/test_worker",
    "demo/cases": "cli/commands/test_demo",
    "demo/explain": "whole/test_public_paths",
    "donors/blur": "donors/test_constant",
    "donors/source": "donors/test_any_source",
    "donors/split": "donors/test_any_source",
    "engine/sample": "engine/test_design",
    "evaluation/judging_cost": "evaluation/test_faithfulness",
    "evaluation/question": "evaluation/test_comparison",
    "evaluation/refutation": "whole/test_public_paths",
    "evaluation/refute/by_hand": "evaluation/refute/test_recompute",
    "evaluation/replacements": "evaluation/test_faithfulness",
    "interventions/activation": "interventions/test_layouts",
    "interventions/axis_rules": "interventions/test_axes",
    "interventions/axis_trace": "interventions/test_axes",
    "interventions/execution": "interventions/test_evaluator",
    "interventions/inputs": "interventions/test_evaluator",
    "interventions/inputs_and_layers": "attr/test_inputs_and_layers",
    "interventions/ledger": "interventions/test_evaluator",
    "interventions/mediated": "attr/test_mediated_treatment_effect",
    "interventions/mediators": "attr/test_mediated_treatment_effect",
    "interventions/prompt_site": "attr/test_prompt_treatment_effect",
    "interventions/prompts": "attr/test_prompt_treatment_effect",
    "interventions/recording": "donors/test_activation_bank",
    "interventions/sites": "interventions/test_evaluator",
    "interventions/support_probes": "interventions/test_support",
    "interventions/support_trials": "interventions/test_support_doubts",
    "interventions/unit_donors": "interventions/test_evaluator",
    "interventions/window_runs": "interventions/test_windows",
    "statistics/on_image": "statistics/test_treatment_effect_statistics",
    "target/batches": "target/test_label_maps",
    "target/function_scorer": "target/test_scorer",
    "napari/layers": "napari/test_explaining",
    "napari/samples": "napari/test_reader",
    "nnunet/imports": "nnunet/test_model",
    "preparation/channels": "cli/test_channels",
    "preparation/grid": "cli/test_grid",
    "preparation/models": "cli/commands/test_explain",
    "preparation/units": "cli/test_grid",
    "nnunet/slices": "nnunet/test_model",
    "target/rounding": "interventions/test_support_doubts",
    "target/scorer_base": "target/test_scorer",
    "target/scores": "target/test_scorer",
    "target/target_scorer": "target/test_scorer",
    "target/window_recipes": "target/test_windowed_model",
    "visualization/donors": "evaluation/test_donor_comparison",
    "visualization/profile_panels": "visualization/test_profile",
    "visualization/sheet": "visualization/test_effects",
}


def modules() -> list[str]:
    found = (path.relative_to(PACKAGE).with_suffix("").as_posix() for path in sorted(PACKAGE.rglob("*.py")))
    return [module for module in found if not module.endswith("__init__")]


def own_tests(module: str) -> Path:
    path = TESTS / module
    return path.with_name(f"test_{path.name.lstrip('_')}.py")


def test_every_module_has_its_tests():
    without = {module for module in modules() if not own_tests(module).exists()}
    assert without - set(ELSEWHERE) == set(), "name the tests after the module, or say in ELSEWHERE where they are"


def test_what_is_tested_elsewhere_is_there_and_has_no_tests_of_its_own():
    assert {module for module in ELSEWHERE if module not in modules() or own_tests(module).exists()} == set()
    assert {tests for tests in ELSEWHERE.values() if not (TESTS / f"{tests}.py").exists()} == set()


def test_every_folder_of_tests_is_a_room():
    folders = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("*.py")} - NO_ROOM
    assert {folder for folder in folders if not (PACKAGE / folder / "__init__.py").exists()} == set()


def test_what_lies_outside_the_rooms_is_named_after_a_module():
    files = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    assert files <= {module.lstrip("_") for module in modules() if "/" not in module}


def test_no_file_of_tests_outgrows_a_reader():
    lengths = {
        path.relative_to(TESTS).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py")
    }
    assert {file: length for file, length in lengths.items() if length > 600} == {}
