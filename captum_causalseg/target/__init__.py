"""A model, where to look and what to score, as one module that every Captum method can explain."""

from captum_causalseg.target.adapters import register_adapter
from captum_causalseg.target.segmentation_target import SegmentationTarget
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["SegmentationTarget", "WindowedModel", "register_adapter"]
