"""How a model perceives: where the effects on a region of interest lie, of which sign, how spread out, how directed.

The paper (PdCR, arXiv 2602.20511) argues from such summaries that architectures follow different strategies: some read the
near surroundings of the region of interest (RoI), others the whole image.
"""

from captum_causalseg.evaluation.influence import InfluenceMatrix, influence_matrix
from captum_causalseg.evaluation.profile.background import BackgroundEffect, background_effect
from captum_causalseg.evaluation.profile.measures import perception_profile, profile_of_map
from captum_causalseg.evaluation.profile.perception import PerceptionProfile

__all__ = [
    "BackgroundEffect",
    "InfluenceMatrix",
    "PerceptionProfile",
    "background_effect",
    "influence_matrix",
    "perception_profile",
    "profile_of_map",
]
