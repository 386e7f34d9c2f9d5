"""Causal explanations of medical image segmentation models, as a plugin for Captum.

Replace a region by natural donors, see how the score of a region of interest moves, and report the average treatment
effect with its uncertainty. The method is PdCR (arXiv 2602.20511).
"""

from captum_causalseg import baselines, donors, evaluation, metrics, regions
from captum_causalseg._version import __version__
from captum_causalseg.activations import ActivationBank
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.causal_support import causal_support
from captum_causalseg.attr.components import component_effects
from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
from captum_causalseg.attr.layer_average_treatment_effect import LayerAverageTreatmentEffect
from captum_causalseg.attr.layer_gradient_treatment_effect import LayerGradientTreatmentEffect
from captum_causalseg.attr.pdcr import PdCR
from captum_causalseg.bundle import Bundle, load_bundle
from captum_causalseg.donors import Blur, Constant, DonorSource, PatchBank, SameImage
from captum_causalseg.evaluation.comparison import Comparison, compare
from captum_causalseg.evaluation.profile import PerceptionProfile, perception_profile
from captum_causalseg.evaluation.refute import RefutationReport, refute
from captum_causalseg.layout import Layout
from captum_causalseg.statistics import Status, TreatmentEffectStatistics
from captum_causalseg.target import SegmentationTarget

__all__ = [
    "ActivationBank",
    "AverageTreatmentEffect",
    "Blur",
    "Bundle",
    "Comparison",
    "Constant",
    "DonorSource",
    "GradientTreatmentEffect",
    "LayerAverageTreatmentEffect",
    "LayerGradientTreatmentEffect",
    "Layout",
    "PatchBank",
    "PdCR",
    "PerceptionProfile",
    "RefutationReport",
    "SameImage",
    "SegmentationTarget",
    "Status",
    "TreatmentEffectStatistics",
    "__version__",
    "baselines",
    "causal_support",
    "compare",
    "component_effects",
    "donors",
    "evaluation",
    "load_bundle",
    "metrics",
    "perception_profile",
    "refute",
    "regions",
]
