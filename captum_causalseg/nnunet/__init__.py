"""nnU-Net: a folder of its results, and how it prepares and segments images, made ready to be explained."""

from captum_causalseg.nnunet.folder import load_nnunet
from captum_causalseg.nnunet.model import NnunetModel

__all__ = ["NnunetModel", "load_nnunet"]
