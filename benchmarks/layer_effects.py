"""Interventions on layers: ours against Captum's LayerFeatureAblation, on the same interventions.

    python benchmarks/layer_effects.py [--dims 2 3] [--repeats 3] [--interventions 32] [--whole]

So many parts (stripes of channels) of an early, a middle and a late layer are set to 0, 16 interventions per batch: the same interventions
for both; at the bottleneck of the U-Net every one of its 128 channels. Untrained networks, one image; medians of repeats, taken in turn. Seconds are those of
the processor, so that what else a machine does matters less, and "one image" is a plain forward. With ``--whole``, ours is also run without replay.
SwinUNETR needs einops, and gets a quarter of the interventions in 3D.
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
    """Median seconds of each, taken in turn, and the results."""
    results: dict[str, Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            results[name] = run()
            seconds[name].append(time.process_time() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--interventions", type=int, default=32)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    whole_too = ["whole"] if options.whole else []
    heads = ["Captum, s", *(f"{name}, s" for name in whole_too), "ours, s", "one image, s", "Captum / ours"]
    print("| network | layer | interventions | " + " | ".join(heads) + " | largest difference of effects |")
    print("|---" * (len(heads) + 4) + "|")
    warm = False
    for d in options.dims:
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

                def once(network: nn.Module = network, image: Tensor = image) -> Tensor:
                    with torch.no_grad():
                        return network(image)

                runs = {"captum": captums, "whole": whole, "ours": ours, "one": once}
                runs = {key: run for key, run in runs.items() if key != "whole" or options.whole}
                if not warm:
                    timed(runs, 2)
                    warm = True
                seconds, results = timed(runs, options.repeats)
                off = max(float((results["captum"] - results[key]).abs().max()) for key in [*whole_too, "ours"])
                cells = [f"{seconds[key]:.3g}" for key in ("captum", *whole_too, "ours", "one")]
                cells = [f"{name} {d}D", place, str(len(mask.unique())), *cells]
                cells += [f"{seconds['captum'] / seconds['ours']:.2f}", f"{off:.1e}"]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
