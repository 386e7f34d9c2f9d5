"""A real brain, lesions drawn into it, and two small trained U-Nets to try the explanations on, without any download.

``load_brain_slices`` and ``load_lesion_slices`` need nilearn (``pip install "captum-causalseg[demo]"``); the networks do not.
"""

from captum_causalseg.demo.brain import CLASS_NAMES, BrainSlices, load_brain_slices
from captum_causalseg.demo.lesions import Lesions, draw_lesions, load_lesion_slices
from captum_causalseg.demo.network import Augmentation, build_network, fit, load_demo_network, mean_dice

__all__ = [
    "CLASS_NAMES",
    "Augmentation",
    "BrainSlices",
    "Lesions",
    "build_network",
    "draw_lesions",
    "fit",
    "load_brain_slices",
    "load_demo_network",
    "load_lesion_slices",
    "mean_dice",
]
