"""Peers to compare with that have no class in Captum itself; each is written from its paper's formulas.

Seg-Grad-CAM (Vinogradova, Dibrov, Myers 2020, arXiv 2002.11434) is not among them, for it is Captum's own ``LayerGradCam`` on the
sum of a class's logits over the RoI: the weight of channel ``k`` is the mean over space of the gradient of that sum, and the map is
``ReLU(sum over k of weight_k * A_k)``.

Example:
    >>> import torch
    >>> from captum.attr import LayerGradCam
    >>> from captum_causalseg import SegmentationTarget, regions
    >>> layer = torch.nn.Conv2d(1, 4, 3, padding=1)
    >>> model = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.Conv2d(4, 3, 1))
    >>> image = torch.rand(1, 1, 16, 16)
    >>> target = SegmentationTarget.from_prediction(model, image, roi=regions.box((16, 16), start=4, size=8))
    >>> seg_grad_cam = LayerGradCam(target.surrogate("logit_sum"), layer)
    >>> seg_grad_cam.attribute(image, target=1, relu_attributions=True).shape
    torch.Size([1, 1, 16, 16])
"""

from captum_causalseg.baselines.misure import MiSuRe
from captum_causalseg.baselines.rise_segmentation import RiseSegmentation
from captum_causalseg.baselines.seg_hires_grad_cam import SegHiResGradCam

__all__ = ["MiSuRe", "RiseSegmentation", "SegHiResGradCam"]
