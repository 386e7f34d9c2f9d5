"""Networks whose components are explained."""

import torch
from monai.networks.nets import UNet

from captum_causalseg import SegmentationTarget, regions


def unet(d=2, n=1):
    torch.manual_seed(d)
    model = UNet(d, 1, 2, channels=(4, 8, 8), strides=(2, 2), norm="batch", act=("relu", {"inplace": False})).eval()
    images, donors = torch.rand(n, 1, *(16,) * d), torch.rand(5, 1, *(16,) * d)
    target = SegmentationTarget.from_prediction(model, images, roi=regions.box((16,) * d, 4, 8), metric="soft_dice")
    return model, target, images, donors
