"""The image itself, blurred."""

import torch
from torch import Tensor

from captum_causalseg._checks import checked, number
from captum_causalseg.donors.source import BIND, BoundDonors, DonorSource
from captum_causalseg.donors.whole_image import BoundWhole

__all__ = ["Blur"]


class Blur(DonorSource):
    """The image itself, blurred: removes detail, keeps brightness.

    Args:
        sigma: standard deviation of the Gaussian, in pixels.
    """

    of_the_image = True

    @checked(sigma=number(above=0))
    def __init__(self, sigma: float = 4.0) -> None:
        self.sigma = sigma

    def __repr__(self) -> str:
        return f"Blur(sigma={self.sigma})"

    @checked(BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        from monai.networks.layers import GaussianFilter

        n_spatial = images.ndim - 2
        if n_spatial < 1:
            raise ValueError("baselines: Blur needs images with spatial axes")
        with torch.device(images.device), torch.no_grad():
            smooth = GaussianFilter(n_spatial, self.sigma).to(images)
            # A blurred field of ones makes up for the zeros that the filter sees beyond the image's edge.
            blurred = smooth(images.detach()) / smooth(torch.ones_like(images[:1, :1]))
        return BoundWhole(blurred)
