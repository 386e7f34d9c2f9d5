"""Paths by which programs import public names: they hold, or warn for a release and name the new one."""

import importlib
import re
import sys

import pytest

# The `__all__` of every public module, and what the reference names by a longer path, before rooms became packages.
PATHS = {
    "captum_causalseg": "ActivationBank AverageTreatmentEffect Blur Bundle Comparison Constant DonorSource GradientTreatmentEffect LayerAverageTreatmentEffect LayerGradientTreatmentEffect Layout PatchBank PdCR PerceptionProfile RefutationReport SameImage SegmentationTarget Status TreatmentEffectStatistics __version__ baselines causal_support compare component_effects donors evaluation load_bundle metrics perception_profile refute regions",
    "captum_causalseg.activations": "ActivationBank",
    "captum_causalseg.attr.average_treatment_effect": "AverageTreatmentEffect",
    "captum_causalseg.attr.causal_support": "causal_support",
    "captum_causalseg.attr.components": "component_effects",
    "captum_causalseg.attr.gradient_treatment_effect": "GradientTreatmentEffect",
    "captum_causalseg.attr.layer_average_treatment_effect": "LayerAverageTreatmentEffect LayerBaselines",
    "captum_causalseg.attr.layer_gradient_treatment_effect": "LayerGradientTreatmentEffect",
    "captum_causalseg.attr.pdcr": "PdCR",
    "captum_causalseg.baselines": "MiSuRe RiseSegmentation SegHiResGradCam",
    "captum_causalseg.baselines.misure": "MiSuRe",
    "captum_causalseg.baselines.rise_segmentation": "RiseSegmentation",
    "captum_causalseg.baselines.seg_hires_grad_cam": "SegHiResGradCam",
    "captum_causalseg.bundle": "Bundle load_bundle",
    "captum_causalseg.cli": "main",
    "captum_causalseg.cohort": "Cohort CohortError CohortSummary explain_cohort plot_cohort_components plot_cohort_profile summarize",
    "captum_causalseg.cohort.driver": "CohortError Driver",
    "captum_causalseg.cohort.engines": "WorkerError on_ray run_here run_on_ray",
    "captum_causalseg.cohort.explain": "explain_cohort",
    "captum_causalseg.cohort.figures": "plot_cohort_components plot_cohort_profile",
    "captum_causalseg.cohort.fingerprint": "described differences digest model_of modules_of of_call",
    "captum_causalseg.cohort.folder": "Cohort Writer arrow damages file_of file_of_part fresh_place locked study_error written_beside",
    "captum_causalseg.cohort.summary": "CohortSummary summarize",
    "captum_causalseg.cohort.worker": "Loaded Outcome Recipe Task Worker",
    "captum_causalseg.demo": "Augmentation BrainSlices CLASS_NAMES build_network fit load_brain_slices load_demo_network mean_dice",
    "captum_causalseg.demo.explain": "Case brain_case explain picture_case report",
    "captum_causalseg.donors": "Blur BoundDonors Constant DonorSource PatchBank SameImage SelfDonor as_donor_source",
    "captum_causalseg.engine.draws": "candidates with_replacement without_replacement",
    "captum_causalseg.engine.goal": "Goal half_widths",
    "captum_causalseg.engine.plan": "Plan Sampling",
    "captum_causalseg.engine.run": "Evaluator Outcome observe run",
    "captum_causalseg.evaluation": "BackgroundEffect Comparison Curve Faithfulness FaithfulnessMetric InfluenceMatrix PerceptionProfile Refutation RefutationReport background_effect compare influence_matrix perception_profile profile_of_map refute",
    "captum_causalseg.evaluation.comparison": "Comparison compare",
    "captum_causalseg.evaluation.faithfulness": "Curve Faithfulness FaithfulnessMetric METRICS register",
    "captum_causalseg.evaluation.influence": "InfluenceMatrix influence_matrix",
    "captum_causalseg.evaluation.planted": "PlantedCase PlantedCause PlantedNetwork ShortcutCase ShortcutExamples build_shortcut_network draw_shortcut_examples load_shortcut_case load_shortcut_network load_shortcut_slices marker_findings planted_case shortcut_record",
    "captum_causalseg.evaluation.profile": "BackgroundEffect InfluenceMatrix PerceptionProfile background_effect influence_matrix perception_profile profile_of_map",
    "captum_causalseg.evaluation.refutation": "Refutation RefutationReport inconclusive verdict",
    "captum_causalseg.evaluation.refute": "REFUTERS Refutation RefutationContext RefutationReport Refuter crossed dose joints other_seed placebo random_weights recompute refute split_donors subset_of_donors",
    "captum_causalseg.images": "check_same_grid invert load_image load_label save_map spacing_of with_metadata",
    "captum_causalseg.layout": "AXES Layout UNIT_KINDS UnitKind unit_mask",
    "captum_causalseg.metrics": "METRICS Metric average_surface_distance boundary_alignment brier detection dice hausdorff_95 inside_mean inside_sum iou negated_cross_entropy register relative_volume sum_inside surface_dice uniformity volumetric_similarity",
    "captum_causalseg.regions": "boundary box component from_file from_label from_mask grid predicted supervoxels",
    "captum_causalseg.statistics": "CORRECTIONS Status TreatmentEffectStatistics adjust_p_values is_hypothesis moderate target_index",
    "captum_causalseg.target": "SegmentationTarget",
    "captum_causalseg.visualization": "plot_comparison plot_components plot_convergence plot_effects plot_influence plot_profile plot_support plot_volume",
}
MOVED = {
    "captum_causalseg.activations": "captum_causalseg.donors",
    "captum_causalseg.demo.explain": "captum_causalseg.demo.cases",
    "captum_causalseg.evaluation.refutation": "captum_causalseg.evaluation.refute",
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("module", PATHS)
def test_public_names_are_where_they_were(module):
    found = importlib.import_module(module)
    assert [name for name in PATHS[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize(("module", "now"), MOVED.items())
def test_old_paths_say_what_the_new_one_is(module, now, monkeypatch):
    # As if it were imported for the first time; others keep the module, and the attribute of its package, that they have.
    package, _, name = module.rpartition(".")
    importlib.import_module(package)
    monkeypatch.setattr(sys.modules[package], name, None, raising=False)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.warns(DeprecationWarning, match=rf"^{re.escape(module)}: deprecated, gone in 0\.3; use {re.escape(now)}$"):
        importlib.import_module(module)


def test_a_moved_name_is_the_same_object():
    from captum_causalseg import ActivationBank, activations, donors

    assert activations.ActivationBank is donors.ActivationBank is ActivationBank
