"""MONAI bundles: a folder with a trained network, how its images are prepared and how it is run, made ready to be explained."""

from captum_causalseg.bundle.folder import Bundle, load_bundle

__all__ = ["Bundle", "load_bundle"]
