"""The small U-Net of the demo: building it, loading its trained weights, and a short training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TypeVar

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg._checks import (
    FUNCTION,
    NONE,
    SEED,
    check_all,
    checked,
    instance,
    integer,
    number,
    one_of,
    sequence,
    tensor_of,
)

WEIGHTS_FILE = "brain_unet.pt"
"""File name of the shipped weights of the tissues' network within this package."""
_LESION_WEIGHTS_FILE = "lesion_unet.pt"
LESION_CHANNELS = (8, 16, 32, 32)
"""Channels of the lesions' network."""

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random changes that ``fit`` makes to every training picture; zeros and ``()`` turn them off.

    Attributes:
        flip: axes of the picture, each flipped with probability 1/2: -1 for left-right, -2 for up-down.
        rotation_deg: largest rotation in degrees, either way.
        scale: largest relative change of size, up or down.
        shift: largest translation, as a fraction of the height and of the width.
        gain: largest relative change of contrast, drawn per channel.
        offset: largest change of brightness, in units of intensity, drawn per channel.
        gamma: largest ``|log gamma|`` of the exponent applied to the intensities (negative ones count as 0).
        noise: largest standard deviation of Gaussian noise, in units of intensity.

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import Augmentation
        >>> image, label = torch.rand(1, 1, 16, 16), torch.randint(0, 3, (1, 16, 16))
        >>> moved, moved_label = Augmentation(rotation_deg=30)(image, label, torch.Generator().manual_seed(0))
        >>> moved.shape, bool((moved == image).all())
        (torch.Size([1, 1, 16, 16]), False)
    """

    flip: tuple[int, ...] = (-1,)
    rotation_deg: float = 15.0
    scale: float = 0.1
    shift: float = 0.03
    gain: float = 0.15
    offset: float = 0.08
    gamma: float = 0.2
    noise: float = 0.03

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(("rotation_deg", "scale", "shift", "gain", "offset", "gamma", "noise"), number(0))
        check_all(vars(self), flip=sequence(one_of(-1, -2), expected="a tuple of axes"), **ranges)

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change each picture of a batch in its own way.

        Args:
            images: ``(N, C, H, W)`` float, intensities about [0, 1].
            labels: ``(N, H, W)`` integer, moved along with the images.
            generator: source of randomness, on the CPU so that the draws do not depend on the device.

        Returns:
            New images and labels, of the same shapes and types.
        """
        n, channels, height, width = images.shape

        def symmetric(bound: float, *shape: int) -> Tensor:
            return bound * (2 * torch.rand(shape, generator=generator) - 1)

        # A flip is a negative scale, so that one resampling does all of the geometry.
        zoom = 1 + symmetric(self.scale, n)
        sign = torch.ones(n, 2)
        for axis in self.flip:
            sign[:, -1 - axis] = torch.where(torch.rand(n, generator=generator) < 0.5, -1.0, 1.0)
        angle = symmetric(math.radians(self.rotation_deg), n)
        cos, sin = zoom * angle.cos(), zoom * angle.sin()
        # The sampling grid is [-1, 1] along both axes, hence the aspect ratio in the off-diagonal entries.
        rows = [cos * sign[:, 0], -sin * sign[:, 1] * height / width, sin * sign[:, 0] * width / height]
        theta = torch.stack([*rows, cos * sign[:, 1]], dim=1).view(n, 2, 2)
        theta = torch.cat([theta, symmetric(2 * self.shift, n, 2, 1)], dim=2).to(images)
        grid = F.affine_grid(theta, [n, channels, height, width], align_corners=False)
        moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
        moved_labels = F.grid_sample(
            labels[:, None].to(images), grid, mode="nearest", padding_mode="reflection", align_corners=False
        )

        gamma = symmetric(self.gamma, n, 1, 1, 1).exp().to(images)
        gain = 1 + symmetric(self.gain, n, channels, 1, 1).to(images)
        offset = symmetric(self.offset, n, channels, 1, 1).to(images)
        deviation = self.noise * torch.rand(n, 1, 1, 1, generator=generator)
        noise = (deviation * torch.randn(images.shape, generator=generator)).to(images)
        return moved.clamp(min=0) ** gamma * gain + offset + noise, moved_labels[:, 0].to(labels)


_TRAINING = {
    "network": instance(nn.Module),
    "images": tensor_of("float", "(N, C, H, W) or (N, C, D, H, W)", (4, 5), finite=True, may_be_empty=False),
    "labels": tensor_of("labels", "(N, H, W) or (N, D, H, W)", (3, 4)),
    "batch_size": integer(1),
}


@checked(in_channels=integer(1), out_channels=integer(1), channels=sequence(integer(1), 2), seed=SEED)
def build_network(
    in_channels: int = 1, out_channels: int = 3, *, channels: Sequence[int] = (8, 16, 32, 64, 64), seed: int = 0
) -> UNet:
    """Build the demo's 2D U-Net, untrained, with about 0.2 million parameters.

    It takes ``(N, in_channels, H, W)`` pictures with H and W divisible by 16 and returns logits
    ``(N, out_channels, H, W)``. A logit depends on the picture up to about 100 pixels away. The normalization is that
    of the batch, whose statistics are fixed in eval mode: with instance normalization a change anywhere would reach
    every pixel through the mean and variance of the picture, and no effect would be local.

    Args:
        in_channels: 1 for a T1 slice, 3 for RGB.
        out_channels: number of classes, softmax; 1 for a binary mask, sigmoid.
        channels: of each level; the resolution is halved between one and the next, so with four levels H and W must be divisible by 8.
        seed: of the initial weights. The global random state is left as it was.

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import build_network
        >>> build_network(in_channels=3, out_channels=1).eval()(torch.rand(1, 3, 32, 32)).shape
        torch.Size([1, 1, 32, 32])
    """
    with _seeded(seed):
        network = UNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            channels=tuple(channels),
            strides=(2,) * (len(channels) - 1),
            num_res_units=2,
            # Backward hooks, which many attribution methods set, do not go with activations computed in place.
            act=("RELU", {"inplace": False}),
            norm="BATCH",
        )
    # Few channels on large pictures: this memory layout is about a third faster on the CPU.
    return network.to(memory_format=torch.channels_last)


@checked(task=one_of("tissue", "lesion"))
def load_demo_network(task: str = "tissue") -> UNet:
    """Return a trained U-Net that ships with the package, on the CPU, in eval mode.

    Args:
        task: what it segments. ``"tissue"``: the slices of :func:`load_brain_slices`, 3 channels out (background, grey matter, white
            matter). ``"lesion"``: those of :func:`load_lesion_slices`, 1 channel out, the logit of a lesion.

    ``brain_unet.json`` and ``lesion_unet.json`` next to the weights say how they were trained and what they reach on
    held-out slices.

    Raises:
        ValueError: no such task.

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import load_demo_network
        >>> network = load_demo_network()
        >>> network.training, network(torch.rand(1, 1, 32, 32)).shape
        (False, torch.Size([1, 3, 32, 32]))
        >>> load_demo_network("lesion")(torch.rand(1, 1, 96, 96)).shape
        torch.Size([1, 1, 96, 96])
    """
    of_lesions = task == "lesion"
    network = build_network(out_channels=1, channels=LESION_CHANNELS) if of_lesions else build_network()
    with resources.files(__package__).joinpath(_LESION_WEIGHTS_FILE if of_lesions else WEIGHTS_FILE).open("rb") as file:
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network.eval()


@checked(
    _TRAINING,
    steps=integer(1),
    seed=SEED,
    learning_rate=number(above=0),
    augmentation=NONE | instance(Augmentation),
    progress=NONE | FUNCTION,
)
def fit(
    network: Network,
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    learning_rate: float = 5e-3,
    augmentation: Augmentation | None = Augmentation(),
    progress: Callable[[int, float], None] | None = None,
) -> Network:
    """Train a segmentation network in place on augmented copies of a few pictures.

    The loss is the sum of soft Dice and cross-entropy, the optimizer AdamW with a one-cycle learning rate. A seed
    gives the same weights again on the same machine with the same number of threads; the global random state is left
    as it was.

    Args:
        network: maps ``(N, C, H, W)`` pictures to logits ``(N, K, H, W)``; with K = 1 they are trained as the logits
            of a binary mask (sigmoid), else as those of exclusive classes (softmax).
        images: ``(N, C, H, W)`` float, intensities about [0, 1]; N may be 1.
        labels: ``(N, H, W)`` integer classes below K, or 0 and 1 for K = 1.
        steps: optimizer steps.
        seed: of the batches, the augmentation and any dropout.
        batch_size: pictures per step, drawn with replacement.
        learning_rate: largest learning rate of the cycle.
        augmentation: random changes of the pictures, None for none.
        progress: called after each step with the number of steps made and the loss of the last one.

    Returns:
        The network itself, in eval mode.

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import fit
        >>> _ = torch.manual_seed(0)
        >>> images = torch.rand(4, 1, 16, 16)
        >>> labels = (images[:, 0] > 0.5).long()
        >>> losses = []
        >>> network = fit(torch.nn.Conv2d(1, 2, 1), images, labels, steps=20, progress=lambda step, loss: losses.append(loss))
        >>> network.training, losses[-1] < losses[0]
        (False, True)
    """
    _check_pairs(images, labels)
    device = next(network.parameters()).device
    images, labels = images.to(device), labels.to(device)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=learning_rate, total_steps=steps)
    network.train()
    with _seeded(seed), torch.enable_grad():
        for step in range(1, steps + 1):
            index = torch.randint(len(images), (batch_size,), generator=generator).to(device)
            picture, target = images[index], labels[index]
            if augmentation is not None:
                picture, target = augmentation(picture, target, generator)
            loss = _loss(network(picture), target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(step, loss.item())
    return network.eval()


@checked(_TRAINING)
@torch.no_grad()
def mean_dice(network: nn.Module, images: Tensor, labels: Tensor, *, batch_size: int = 16) -> Tensor:
    """Dice of the predicted classes, averaged over the pictures in which the class is present.

    Args:
        network: as for ``fit``, in eval mode.
        images: ``(N, C, H, W)`` float.
        labels: ``(N, H, W)`` integer.
        batch_size: pictures per forward pass.

    Returns:
        ``(K - 1,)`` float, one Dice per class but the first, the background; ``(1,)`` for a binary mask (K = 1).

    Example:
        >>> import torch
        >>> from captum_causalseg.demo import mean_dice
        >>> labels = torch.arange(4 * 8 * 8).reshape(4, 8, 8) % 2
        >>> logits = torch.nn.functional.one_hot(labels).movedim(-1, 1).float()
        >>> mean_dice(torch.nn.Identity(), logits, labels)  # a network that is never wrong
        tensor([1.])
    """
    _check_pairs(images, labels)
    dice = []
    for picture, target in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        logits = network(picture)
        if logits.shape[1] == 1:
            dice.append(compute_dice(logits > 0, target[:, None]))
            continue
        predicted = logits.argmax(dim=1, keepdim=True)
        dice.append(compute_dice(predicted, target[:, None], include_background=False, num_classes=logits.shape[1]))
    return torch.cat(dice).nanmean(dim=0)


def _check_pairs(images: Tensor, labels: Tensor) -> None:
    if labels.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"images, labels: expected shapes (N, C, H, W) and (N, H, W), got {tuple(images.shape)} and {tuple(labels.shape)}"
        )


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Dice plus cross-entropy of ``(N, K, H, W)`` logits; Dice over the batch, as a class may be absent in a slice."""
    binary = logits.shape[1] == 1
    loss = DiceCELoss(sigmoid=binary, softmax=not binary, to_onehot_y=not binary, batch=True)
    target = labels[:, None]
    value: Tensor = loss(logits, target.to(logits) if binary else target)
    return value


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch within the block and restore the random state of the CPU and of every CUDA device after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
