"""What a unit is replaced by: natural donors cut from images, constants, blur.

A :class:`DonorSource` is bound to the images that are explained and then answers two questions about a unit, given by
the spatial box around it: how many different donors are there (``population``), and what is donor number ``k``
(``locate``, ``read``). Donors are read when they are drawn, never all at once.
"""

from captum_causalseg.donors.activation_bank import ActivationBank
from captum_causalseg.donors.any_source import CannotSplit
from captum_causalseg.donors.baselines import as_donor_source
from captum_causalseg.donors.blur import Blur
from captum_causalseg.donors.constant import Constant
from captum_causalseg.donors.moved_prompts import MovedPrompts
from captum_causalseg.donors.neighbor_bank import NeighborBank
from captum_causalseg.donors.patch_bank import PatchBank
from captum_causalseg.donors.same_image import SameImage
from captum_causalseg.donors.shifted import Shifted
from captum_causalseg.donors.source import BoundDonors, DonorSource
from captum_causalseg.donors.whole_image import SelfDonor

__all__ = [
    "ActivationBank",
    "Blur",
    "BoundDonors",
    "CannotSplit",
    "Constant",
    "DonorSource",
    "MovedPrompts",
    "NeighborBank",
    "PatchBank",
    "SameImage",
    "SelfDonor",
    "Shifted",
    "as_donor_source",
]
