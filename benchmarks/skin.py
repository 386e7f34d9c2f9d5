"""Networks that outline skin lesions, trained on a folder of pictures that does not come with the project.

    python benchmarks/skin.py --data FOLDER [--networks "batch norm" "instance norm"] [--steps 400] [--seed 0] [--cache DIR]

trains what is not in the cache yet and prints what each network reaches on the test pictures. FOLDER holds ``isic2018_256.zip``: pictures of
ISIC 2018 task 1 (Codella et al. 2019, Tschandl et al. 2018) of one size, ``train/NAME.jpg`` with ``train/NAME_segmentation.png``, and the same
under ``test/``. The data's terms (research use, CC BY-NC) do not allow this project to ship them, nor what was trained on them.
"""

import argparse
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cases import parser, say, start
from monai.networks.nets import SegResNet, UNet
from PIL import Image
from torch import Tensor, nn

from captum_causalseg.demo import Augmentation, fit

ARCHIVE = "isic2018_256.zip"
NETWORKS = ("batch norm", "instance norm", "SegResNet")
"""MONAI's U-Net with the norm of the batch or of the instance, and its SegResNet, with norms of groups of channels."""
STEPS, BATCH = 400, 8

# Lesions have no up and down; light and skin differ more than scanners do.
_AUGMENTATION = Augmentation(flip=(-1, -2), rotation_deg=45, scale=0.15, shift=0.05)


@dataclass(frozen=True)
class Pictures:
    """Pictures of lesions, with their outlines.

    Args:
        names: ``(N,)``, ascending.
        images: ``(N, 3, H, W)`` float32 in [0, 1].
        lesions: ``(N, H, W)`` bool.
    """

    names: tuple[str, ...]
    images: Tensor
    lesions: Tensor

    def __len__(self) -> int:
        return len(self.names)


def has_data(data: Path | None) -> bool:
    """Whether a folder holds the pictures."""
    return data is not None and (data / ARCHIVE).is_file()


def load_pictures(data: Path, part: str) -> Pictures:
    """All pictures of a part of the data, ``"train"`` or ``"test"``."""
    with zipfile.ZipFile(data / ARCHIVE) as archive:
        names = sorted(Path(name).stem for name in archive.namelist() if name.startswith(f"{part}/") and name.endswith(".jpg"))
        images = np.stack([_picture(archive, f"{part}/{name}.jpg", "RGB") for name in names])
        masks = np.stack([_picture(archive, f"{part}/{name}_segmentation.png", "L") for name in names])
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32) / 255
    return Pictures(tuple(names), torch.from_numpy(images), torch.from_numpy(masks > 127))


def build(name: str, seed: int = 0) -> nn.Module:
    """An untrained network by its name in :data:`NETWORKS`: ``(N, 3, H, W)`` to the logits of the lesion ``(N, 1, H, W)``."""
    if name not in NETWORKS:
        raise ValueError(f"name: expected one of {list(NETWORKS)}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "SegResNet":
            return SegResNet(in_channels=3, out_channels=1, spatial_dims=2, init_filters=8)
        return UNet(2, 3, 1, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2, norm=name.split()[0])


def train(name: str, pictures: Pictures, seed: int = 0, steps: int = STEPS) -> nn.Module:
    """A network trained on pictures, in evaluation mode; the seed is that of its first weights, and of the order of the pictures."""
    network = build(name, seed).to(memory_format=torch.channels_last)
    began = time.process_time()

    def tell(step: int, loss: float) -> None:
        if step in (1, 5) or step % 50 == 0:
            say(f"{name}: step {step} of {steps}, loss {loss:.3f}, {time.process_time() - began:.0f} s of CPU time")

    return fit(
        *(network, pictures.images, pictures.lesions.long()),
        **{"steps": steps, "seed": seed, "batch_size": BATCH, "augmentation": _AUGMENTATION, "progress": tell},
    )


def trained(name: str, pictures: Pictures, cache: Path, *, seed: int = 0, steps: int = STEPS) -> nn.Module:
    """The same from the cache, where it has been trained before."""
    file = cache / f"skin_{name.replace(' ', '_')}_{seed}_{steps}.pt"
    if file.exists():
        network = build(name, seed)
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    network = train(name, pictures, seed, steps)
    cache.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    torch.save(network.state_dict(), partial)
    partial.replace(file)
    return network


@torch.no_grad()
def dice(network: nn.Module, pictures: Pictures) -> Tensor:
    """Dice of the predicted lesion in each picture, ``(N,)``."""
    found = torch.cat([network(part)[:, 0] > 0 for part in pictures.images.split(8)])
    both = (found & pictures.lesions).flatten(1).sum(1)
    total = found.flatten(1).sum(1) + pictures.lesions.flatten(1).sum(1)
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


def arguments(made: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Adds what has to do with the data."""
    made.add_argument("--data", type=Path, default=None, metavar="FOLDER", help=f"holds {ARCHIVE}")
    made.add_argument("--steps", type=int, default=STEPS, help="of training")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    made = arguments(parser(__doc__))
    made.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    made.add_argument("--seed", type=int, default=0)
    options = start(made)
    if not has_data(options.data):
        made.error(f"--data: expected a folder that holds {ARCHIVE}, got {options.data}")
    pictures, test = (load_pictures(options.data, part) for part in ("train", "test"))
    print(f"{len(pictures)} training pictures, {len(test)} test pictures\n")
    print("| network | parameters | mean test Dice | lowest quarter below |\n|---|---|---|---|")
    for name in options.networks:
        network = trained(name, pictures, options.cache, seed=options.seed, steps=2 if options.quick else options.steps)
        reached = dice(network, test)
        size = sum(one.numel() for one in network.parameters())
        print(f"| {name} | {size} | {reached.mean():.3f} | {reached.quantile(0.25):.3f} |", flush=True)


def _picture(archive: zipfile.ZipFile, name: str, mode: str) -> np.ndarray:
    with archive.open(name) as stream, Image.open(stream) as picture:
        return np.asarray(picture.convert(mode))


if __name__ == "__main__":
    main()
