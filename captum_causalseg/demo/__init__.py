"""A real brain and a small trained U-Net to try the explanations on, without any download.

``load_brain_slices`` needs nilearn (``pip install "captum-causalseg[demo]"``); the network does not.
"""

from captum_causalseg.demo.brain import CLASS_NAMES, BrainSlices, load_brain_slices
from captum_causalseg.demo.network import Augmentation, build_network, fit, load_demo_network, mean_dice

__all__ = [
    "CLASS_NAMES",
    "Augmentation",
    "BrainSlices",
    "build_network",
    "fit",
    "load_brain_slices",
    "load_demo_network",
    "mean_dice",
]
