"""Interventions on layers: our two ways against Captum's LayerFeatureAblation, on the same interventions.

    python benchmarks/layer_effects.py [--repeats 3] [--interventions 48]

So many parts (stripes of channels) of an early, a middle and a late layer are set to 0, 16 interventions per batch: the same interventions
for all three; at the bottleneck of the U-Net every one of its 128 channels. Untrained networks, one image; medians of repeats, taken in turn. Ours
is run as it is, and with the whole model run for each intervention ("whole"). SwinUNETR needs einops, and gets a quarter of the interventions in 3D.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import torch
from captum.attr import LayerFeatureAblation
from monai.networks.nets import SegResNet, SwinUNETR, UNet
from torch import Tensor, nn

from captum_causalseg import LayerAverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg.interventions import replay


def networks(d: int) -> dict[str, tuple[nn.Module, int, dict[str, nn.Module]]]:
    """By name: the network, the image's edge, and its layers."""
    edge = {2: 128, 3: 64}[d]
    unet = UNet(
        d, 1, 2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2, norm="batch", act=("relu", {"inplace": False})
    )
    inner = unet.model[1].submodule
    segresnet = SegResNet(d, init_filters=8, in_channels=1, out_channels=2, act=("relu", {"inplace": False}))
    swin = SwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=d)
    return {
        "UNet": (
            unet,
            edge,
            {
                "early": unet.model[0],
                "middle": inner[1].submodule[1],
                "bottleneck": inner[1].submodule[1].submodule,
                "late": unet.model[2],
            },
        ),
        "SegResNet": (
            segresnet,
            edge,
            {"early": segresnet.convInit, "middle": segresnet.down_layers[3], "late": segresnet.up_layers[2]},
        ),
        "SwinUNETR": (swin, 64, {"early": swin.encoder1, "middle": swin.encoder10, "late": swin.decoder1}),
    }


def stripes(shape: list[int], count: int) -> Tensor:
    """About ``count`` parts of an activation: its channels, cut along the first spatial axis where there are too few of them."""
    channels, rows = shape[1], shape[2]
    groups = min(count, channels)
    cuts = min(-(-count // groups), rows)
    by_channel = (torch.arange(channels) * groups // channels).view(1, -1, *(1,) * (len(shape) - 2))
    by_row = (torch.arange(rows) * cuts // rows).view(1, 1, -1, *(1,) * (len(shape) - 3))
    return (by_channel * cuts + by_row).expand(1, *shape[1:]).contiguous()


def timed(runs: dict[str, Callable[[], Tensor]], repeats: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Median seconds of each, taken in turn after a warm-up, and the results."""
    results = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--interventions", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        "| network | layer | interventions | Captum, s | whole, s | ours, s | Captum / ours | largest difference of effects |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for d in (2, 3):
        torch.manual_seed(0)
        for name, (network, edge, layers) in networks(d).items():
            network.eval()
            image = torch.rand(1, 1, *(edge,) * d)
            roi = regions.box((edge,) * d, edge // 4, edge // 2)
            target = SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice")
            for place, layer in layers.items():
                shape: list[int] = []
                handle = layer.register_forward_hook(lambda m, a, out, shape=shape: shape.extend(out.shape))
                with torch.no_grad():
                    network(image)
                handle.remove()
                count = options.interventions // (4 if (name, d) == ("SwinUNETR", 3) else 1)
                count = 128 if place == "bottleneck" else count
                mask = stripes(shape, count)
                arguments = {"layer_mask": mask, "target": 1, "perturbations_per_eval": 16}

                def ours(layer: nn.Module = layer, arguments: dict[str, object] = arguments) -> Tensor:
                    return LayerAverageTreatmentEffect(target, layer).attribute(image, **arguments)  # noqa: B023

                def whole(ours: Callable[[], Tensor] = ours) -> Tensor:
                    with mock.patch.object(replay, "COMPARED", float("inf")):  # it never pays
                        return ours()

                def captums(layer: nn.Module = layer, arguments: dict[str, object] = arguments) -> Tensor:
                    return LayerFeatureAblation(target, layer).attribute(image, **arguments)  # noqa: B023

                seconds, results = timed({"captum": captums, "whole": whole, "ours": ours}, options.repeats)
                off = max(float((results["captum"] - results[key]).abs().max()) for key in ("whole", "ours"))
                print(
                    f"| {name} {d}D | {place} | {len(mask.unique())} | {seconds['captum']:.2f} | {seconds['whole']:.2f} | {seconds['ours']:.2f} | "
                    f"{seconds['captum'] / seconds['ours']:.2f} | {off:.1e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
