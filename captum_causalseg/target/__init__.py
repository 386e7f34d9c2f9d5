"""A model, where to look and what to score, as one module that every Captum method can explain."""

from captum_causalseg.target.segmentation_target import SegmentationTarget

__all__ = ["SegmentationTarget"]
