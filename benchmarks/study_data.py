"""The data of the study: pictures to train on, pictures to explain, and the networks trained on the former, kept on disk.

Skin: pictures of ISIC 2018 task 1 (``benchmarks/skin.py``), four by four pixels made one: 64 x 64. Brain: the slices that come with nilearn, alike: 64 x 48 of
4 mm; class grey matter. A quarter of the resolution costs a sixteenth of the time; the regions and units cover what 32 pixels do of the paper's 256.
"""

import argparse
import functools
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import skin
import torch
from cases import say
from study_kinds import KINDS
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg.demo import Augmentation, BrainSlices, fit, load_brain_slices

__all__ = ["DATA", "Data", "Training", "arguments_of", "load_data", "test_dice", "trained"]

DATA = ("skin", "brain")
GREY_MATTER = 1
_EDGE = 4
"""Of the pixels that become one."""
_SKIN_AUGMENTATION = Augmentation(flip=(-1, -2), rotation_deg=45, scale=0.15, shift=0.05)
# Slices a few millimeters apart are nearly the same picture: whole slabs are held out, with a gap.
_SLABS = {"slabs": 10, "slab": 2, "margin": 3}


@dataclass(frozen=True)
class Data:
    """One data set.

    Args:
        name: of it.
        train_images, test_images: ``(N, C, H, W)`` float32 in [0, 1].
        train_labels, test_labels: ``(N, H, W)`` integers.
        test_names: of the pictures.
        clusters: of each test picture, which others it is not independent of.
        n_outputs: channels of the logits.
        output: the class that is explained, as Captum's ``target``; ``None`` for a binary mask.
        augmentation: for training.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    test_names: tuple[str, ...]
    clusters: tuple[str, ...]
    n_outputs: int
    output: int | None
    augmentation: Augmentation

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.test_images.shape[2:]
        return height, width

    def objects(self, labels: Tensor) -> Tensor:
        """Where the explained class is."""
        return labels == (1 if self.output is None else self.output)

    def seen(self, logits: Tensor) -> Tensor:
        """Where a network sees it, ``(N, H, W)``."""
        return logits[:, 0] > 0 if self.output is None else logits.argmax(1) == self.output


@dataclass(frozen=True)
class Training:
    """How the networks are trained.

    Args:
        steps: of the optimizer, times a kind's effort.
        batch_size: pictures per step.
        seed: of the first weights and the order of the pictures.
    """

    steps: int = 400
    batch_size: int = 8
    seed: int = 0


def arguments_of(description: str | None) -> argparse.ArgumentParser:
    """What every script says of the study that looks at the networks of ``study.py`` again."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=None, metavar="FOLDER", help="holds the skin pictures")
    made.add_argument("--work", type=Path, required=True, metavar="DIR", help="where study.py keeps its networks")
    made.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    made.add_argument("--hours", type=float, default=1.0, help="nothing new is begun after these")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--write", type=Path, default=None, metavar="DOCS", help="the documentation's folder")
    return made


@functools.cache
def load_data(name: str, folder: Path | None) -> Data:
    """A data set by its name in :data:`DATA`; skin needs the folder with the pictures."""
    if name == "skin":
        if folder is None:
            raise SystemExit("--data: expected the folder of the skin pictures")
        parts = [skin.load_pictures(folder, part) for part in ("train", "test")]
        images = [functional.avg_pool2d(part.images, _EDGE) for part in parts]
        labels = [(functional.avg_pool2d(part.lesions[:, None].float(), _EDGE)[:, 0] >= 0.5).long() for part in parts]
        names = parts[1].names
        return Data(name, images[0], labels[0], images[1], labels[1], names, names, 1, None, _SKIN_AUGMENTATION)
    train, held_out = (_smaller(part) for part in load_brain_slices(size=(256, 192)).split(**_SLABS))
    names = tuple(f"z{height:+.0f}" for height in held_out.z_mm.tolist())
    # Slices of one slab are millimeters apart.
    clusters = tuple(f"slab {number // _SLABS['slab']}" for number in range(len(held_out)))
    pictures = (train.images, train.labels, held_out.images, held_out.labels)
    return Data(name, *pictures, names, clusters, 3, GREY_MATTER, Augmentation())


def _smaller(slices: BrainSlices) -> BrainSlices:
    """Four by four pixels become one: their mean, and the label that most of them have."""
    one_hot = functional.one_hot(slices.labels, 3).movedim(-1, 1).float()
    images, shares = (functional.avg_pool2d(one, _EDGE) for one in (slices.images, one_hot))
    return BrainSlices(images, shares.argmax(1), slices.z_mm)


def trained(kind: str, data: Data, work: Path, training: Training, *, only_kept: bool = False) -> nn.Module | None:
    """A network trained on a data set, in evaluation mode; what is kept in the folder is not trained again.

    Args:
        kind: of the network.
        data: what on.
        work: the folder.
        training: how.
        only_kept: ``None`` rather than a training.
    """
    key = hashlib.sha256(json.dumps(asdict(training), sort_keys=True).encode()).hexdigest()[:8]
    file = work / "networks" / f"{data.name}_{kind.replace(', ', '_').replace(' ', '_')}_{key}.pt"
    network = KINDS[kind].build(data.test_images.shape[1], data.n_outputs, data.size, training.seed)
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    if only_kept:
        return None
    began, steps = time.process_time(), training.steps * KINDS[kind].effort

    def tell(step: int, loss: float) -> None:
        if step in (1, 5, 20) or step % 100 == 0:
            say(
                f"{data.name}, {kind}: step {step} of {steps}, loss {loss:.3f}, {time.process_time() - began:.0f} s of CPU time"
            )

    fit(
        *(network, data.train_images, data.train_labels),
        **{"steps": steps, "seed": training.seed, "batch_size": training.batch_size},
        **{"learning_rate": KINDS[kind].learning_rate, "augmentation": data.augmentation, "progress": tell},
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file.with_suffix(".partial"))
    file.with_suffix(".partial").replace(file)
    say(f"{data.name}, {kind}: test Dice {float(test_dice(network, data).mean()):.3f}")
    return network


@torch.no_grad()
def test_dice(network: nn.Module, data: Data) -> Tensor:
    """Dice of the explained class in each test picture, ``(N,)``; 1 where it is neither there nor seen."""
    seen = torch.cat([data.seen(network(part)) for part in data.test_images.split(8)])
    there = data.objects(data.test_labels)
    both, total = (seen & there).flatten(1).sum(1), seen.flatten(1).sum(1) + there.flatten(1).sum(1)
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)
