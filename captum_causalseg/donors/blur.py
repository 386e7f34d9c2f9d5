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

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect, Blur
        >>> image = torch.zeros(1, 1, 16, 16)
        >>> image[..., 4:8, 4:8] = 1  # only here is a detail to take away
        >>> attr = AverageTreatmentEffect(lambda x: x.amax((1, 2, 3))).attribute(image, baselines=Blur(2.0), block_size=4)
        >>> attr[0, 0, ::4, ::4].nonzero().tolist()
        [[1, 1]]
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
