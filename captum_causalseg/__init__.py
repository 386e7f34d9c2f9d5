"""Causal explanations of medical image segmentation models, as a plugin for Captum.

Replace a region by natural donors, see how the score of a region of interest moves, and report the average treatment
effect with its uncertainty. The method is PdCR (arXiv 2602.20511).
"""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING

from captum_causalseg._version import __version__

if TYPE_CHECKING:
    from captum_causalseg import baselines, donors, evaluation, metrics, regions
    from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
    from captum_causalseg.attr.causal_support import causal_support
    from captum_causalseg.attr.components import component_effects
    from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
    from captum_causalseg.attr.interactions import interaction_effects
    from captum_causalseg.attr.joint_treatment_effect import JointTreatmentEffect
    from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect
    from captum_causalseg.attr.layer_gradient_treatment_effect import LayerGradientTreatmentEffect
    from captum_causalseg.attr.layer_joint_treatment_effect import LayerJointTreatmentEffect
    from captum_causalseg.attr.mediated_treatment_effect import MediatedTreatmentEffect
    from captum_causalseg.attr.mediator_names import FrozenStatistics
    from captum_causalseg.attr.pdcr import PdCR
    from captum_causalseg.attr.prompt_treatment_effect import PromptTreatmentEffect
    from captum_causalseg.attr.region import Region
    from captum_causalseg.attr.region_search import necessary_region, sufficient_region
    from captum_causalseg.bundle import Bundle, load_bundle
    from captum_causalseg.cohort import compare_cohort, summarize_comparison
    from captum_causalseg.donors import ActivationBank, Blur, Constant, DonorSource, NeighborBank, PatchBank, SameImage
    from captum_causalseg.evaluation.comparison import Comparison, compare
    from captum_causalseg.evaluation.donor_comparison import DonorComparison, compare_donors
    from captum_causalseg.evaluation.pathways import Pathway, pathway
    from captum_causalseg.evaluation.profile import PerceptionProfile, perception_profile
    from captum_causalseg.evaluation.refute import RefutationReport, refute
    from captum_causalseg.interventions.attention import reveal_heads
    from captum_causalseg.layout import Layout
    from captum_causalseg.nnunet import NnunetModel, load_nnunet
    from captum_causalseg.statistics import Status, TreatmentEffectStatistics
    from captum_causalseg.target import SegmentationTarget, WindowedModel, register_adapter

__all__ = [
    "ActivationBank",
    "AverageTreatmentEffect",
    "Blur",
    "Bundle",
    "Comparison",
    "Constant",
    "DonorComparison",
    "DonorSource",
    "FrozenStatistics",
    "GradientTreatmentEffect",
    "JointTreatmentEffect",
    "LayerAverageTreatmentEffect",
    "LayerGradientTreatmentEffect",
    "LayerJointTreatmentEffect",
    "Layout",
    "MediatedTreatmentEffect",
    "NeighborBank",
    "NnunetModel",
    "PatchBank",
    "Pathway",
    "PdCR",
    "PerceptionProfile",
    "PromptTreatmentEffect",
    "RefutationReport",
    "Region",
    "SameImage",
    "SegmentationTarget",
    "Status",
    "TreatmentEffectStatistics",
    "WindowedModel",
    "__version__",
    "baselines",
    "causal_support",
    "compare",
    "compare_cohort",
    "compare_donors",
    "component_effects",
    "donors",
    "evaluation",
    "interaction_effects",
    "load_bundle",
    "load_nnunet",
    "metrics",
    "necessary_region",
    "pathway",
    "perception_profile",
    "refute",
    "regions",
    "register_adapter",
    "reveal_heads",
    "sufficient_region",
    "summarize_comparison",
]

# Where each public name comes from. It is imported when it is first asked for: `causalseg --help` waits for no torch.
_PLACES = {
    "ActivationBank": "captum_causalseg.donors",
    "AverageTreatmentEffect": "captum_causalseg.attr.average_treatment_effect",
    "Blur": "captum_causalseg.donors",
    "Bundle": "captum_causalseg.bundle",
    "Comparison": "captum_causalseg.evaluation.comparison",
    "Constant": "captum_causalseg.donors",
    "DonorComparison": "captum_causalseg.evaluation.donor_comparison",
    "DonorSource": "captum_causalseg.donors",
    "FrozenStatistics": "captum_causalseg.attr.mediator_names",
    "GradientTreatmentEffect": "captum_causalseg.attr.gradient_treatment_effect",
    "JointTreatmentEffect": "captum_causalseg.attr.joint_treatment_effect",
    "LayerAverageTreatmentEffect": "captum_causalseg.attr.layer_average_treatment_effect",
    "LayerGradientTreatmentEffect": "captum_causalseg.attr.layer_gradient_treatment_effect",
    "LayerJointTreatmentEffect": "captum_causalseg.attr.layer_joint_treatment_effect",
    "Layout": "captum_causalseg.layout",
    "MediatedTreatmentEffect": "captum_causalseg.attr.mediated_treatment_effect",
    "NeighborBank": "captum_causalseg.donors",
    "NnunetModel": "captum_causalseg.nnunet",
    "PatchBank": "captum_causalseg.donors",
    "Pathway": "captum_causalseg.evaluation.pathways",
    "PdCR": "captum_causalseg.attr.pdcr",
    "PerceptionProfile": "captum_causalseg.evaluation.profile",
    "PromptTreatmentEffect": "captum_causalseg.attr.prompt_treatment_effect",
    "RefutationReport": "captum_causalseg.evaluation.refute",
    "Region": "captum_causalseg.attr.region",
    "SameImage": "captum_causalseg.donors",
    "SegmentationTarget": "captum_causalseg.target",
    "Status": "captum_causalseg.statistics",
    "TreatmentEffectStatistics": "captum_causalseg.statistics",
    "WindowedModel": "captum_causalseg.target",
    "causal_support": "captum_causalseg.attr.causal_support",
    "compare": "captum_causalseg.evaluation.comparison",
    "compare_cohort": "captum_causalseg.cohort",
    "compare_donors": "captum_causalseg.evaluation.donor_comparison",
    "component_effects": "captum_causalseg.attr.components",
    "interaction_effects": "captum_causalseg.attr.interactions",
    "load_bundle": "captum_causalseg.bundle",
    "load_nnunet": "captum_causalseg.nnunet",
    "necessary_region": "captum_causalseg.attr.region_search",
    "pathway": "captum_causalseg.evaluation.pathways",
    "perception_profile": "captum_causalseg.evaluation.profile",
    "refute": "captum_causalseg.evaluation.refute",
    "register_adapter": "captum_causalseg.target",
    "reveal_heads": "captum_causalseg.interventions.attention",
    "sufficient_region": "captum_causalseg.attr.region_search",
    "summarize_comparison": "captum_causalseg.cohort",
}


def _public(name: str) -> object:
    """A public name of the table, or a module of the package, imported at its first use."""
    if name in _PLACES:
        value = getattr(importlib.import_module(_PLACES[name]), name)
        globals()[name] = value
        return value
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:
    # Hidden from type checkers, which would take any name for one of ours.
    __getattr__ = _public
