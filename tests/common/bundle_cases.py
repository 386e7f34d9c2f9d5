"""MONAI bundles, made here."""

import copy
import json

import torch
import yaml
from monai.networks.nets import UNet
from torch import nn

WINDOW = 16
NETWORK = {"in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2], "norm": "batch"}
CONV = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
LOADING = [
    {"_target_": "LoadImaged", "keys": "@image_key"},
    {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
    {
        "_target_": "ScaleIntensityRanged",
        "keys": "@image_key",
        "a_min": 0,
        "a_max": 100,
        "b_min": "$-1 * @top",
        "b_max": "@top",
    },
    {"_target_": "EnsureTyped", "keys": "@image_key", "device": "@device"},
]


def network(spatial_dims):
    """With weights and running statistics that differ from fresh ones."""
    torch.manual_seed(7)
    made = UNet(spatial_dims, **NETWORK)
    for _ in range(3):
        made(torch.rand(2, 1, *(8,) * spatial_dims) * 3)
    return made.eval()


def inference(spatial_dims):
    """A config of the kind that bundles have: imports, references, expressions, a device of its own."""
    return {
        "imports": ["$import math"],
        "bundle_root": "/nowhere",
        "device": "$torch.device('cuda:7')",
        "image_key": "scan",
        "spatial_dims": spatial_dims,
        "top": "$math.sqrt(4.0)",
        "network_def": {"_target_": "UNet", "spatial_dims": "@spatial_dims", **NETWORK},
        "network": "$@network_def.to(@device)",
        "preprocessing": {"_target_": "Compose", "transforms": copy.deepcopy(LOADING)},
        "dataset": {"_target_": "Dataset", "data": "$[][0]", "transform": "@preprocessing"},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": f"$[{WINDOW}] * @spatial_dims",
            "sw_batch_size": 3,
            "overlap": 0.5,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key"},
            ],
        },
        "evaluator": {"_target_": "nothing.of.this.name", "network": "@network"},
    }


def write(folder, weights=None, metadata=None, **configs):
    """A bundle: configs by name (JSON, or YAML if the name ends in _yaml) and what torch.save is to write."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    for name, config in configs.items():
        stem, _, kind = name.partition("_")
        text = yaml.safe_dump(config) if kind else json.dumps(config)
        (folder / "configs" / f"{stem}.{kind or 'json'}").write_text(text)
    if metadata is not None:
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    if weights is not None:
        torch.save(weights, folder / "models" / "model.pt")
    return folder


def small(folder, **more):
    """The smallest bundle: a convolution."""
    return write(folder, nn.Conv2d(1, 2, 1).state_dict(), inference={"network_def": CONV, **more})
