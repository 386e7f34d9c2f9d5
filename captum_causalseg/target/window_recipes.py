"""Window positions and weights as other people's predictors have them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["MonaiStarts", "MonaiWeight", "NnunetStarts", "nnunet_networks", "nnunet_weight", "why_no_monai"]


@dataclass(frozen=True)
class MonaiStarts:
    """The windows of MONAI's sliding window.

    Args:
        patch_size: of a window, as the inferer has it.
        overlap: of neighbors, a share of a window's length; one number or one per spatial axis.
    """

    patch_size: int | Sequence[int]
    overlap: float | Sequence[float]

    def __call__(self, spatial: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Corners for a padded image of this spatial shape."""
        from monai.data.utils import dense_patch_slices
        from monai.utils import ensure_tuple_rep, fall_back_tuple

        overlap, size = ensure_tuple_rep(self.overlap, len(spatial)), fall_back_tuple(self.patch_size, spatial)
        steps = [
            patch if patch == length else max(int(patch * (1 - share)), 1)
            for patch, length, share in zip(size, spatial, overlap)
        ]
        return [tuple(side.start for side in window) for window in dense_patch_slices(spatial, size, steps)]


@dataclass(frozen=True)
class MonaiWeight:
    """How much a window's elements count in MONAI's sliding window.

    Args:
        mode, sigma_scale: as the inferer has them.
    """

    mode: Any
    sigma_scale: float | Sequence[float]

    def __call__(self, patch_size: tuple[int, ...]) -> Tensor:
        """For a window of this size; no element counts less than a thousandth of the middle one."""
        from monai.data.utils import compute_importance_map

        weight: Tensor = compute_importance_map(patch_size, mode=self.mode, sigma_scale=self.sigma_scale)
        return weight


def why_no_monai(inferer: Any) -> str | None:
    """Why windows added up here would not be what this inferer does; ``None`` where they are.

    Raises:
        TypeError: it is no sliding window.
    """
    from monai.inferers import SlidingWindowInferer, SlidingWindowInfererAdapt

    if type(inferer) not in (SlidingWindowInferer, SlidingWindowInfererAdapt):
        return (
            f"inferer: expected a monai.inferers.SlidingWindowInferer, got {type(inferer).__name__}, which may do something else with "
            "its windows"
        )
    if inferer.buffer_steps is not None and inferer.buffer_steps > 0:
        return f"buffer_steps: expected an inferer without, got {inferer.buffer_steps}; buffers add windows up in another order"
    if inferer.with_coord:
        return "with_coord: expected an inferer that gives its network images alone, got one that gives it their place as well"
    if inferer.cpu_thresh is not None and inferer.device is None:
        return 'cpu_thresh: expected an inferer without; device="cpu" adds all windows up there'
    return None


@dataclass(frozen=True)
class NnunetStarts:
    """The windows of nnU-Net's predictor.

    Args:
        patch_size: of a window.
        step: from one to the next at most, a share of a window's length.
    """

    patch_size: tuple[int, ...]
    step: float

    def __call__(self, spatial: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Corners for a padded image of this spatial shape."""
        from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window

        return list(itertools.product(*compute_steps_for_sliding_window(spatial, self.patch_size, self.step)))


def nnunet_weight(predictor: Any, patch_size: tuple[int, ...]) -> Tensor:
    """How much a window's elements count: nnU-Net's own Gaussian, in the precision in which it multiplies by it."""
    if not predictor.use_gaussian:
        return torch.ones(patch_size, device="cpu")
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    weight: Tensor = compute_gaussian(patch_size, sigma_scale=1.0 / 8, value_scaling_factor=10, device=torch.device("cpu"))
    return weight.float()


def nnunet_networks(predictor: Any) -> "list[torch.nn.Module]":
    """The network with the weights of each fold, in evaluation mode on the predictor's device."""
    import copy

    network = getattr(predictor.network, "_orig_mod", predictor.network)
    networks = []
    for parameters in predictor.list_of_parameters or [network.state_dict()]:
        fold = copy.deepcopy(network)
        fold.load_state_dict(parameters)
        networks.append(fold.to(predictor.device).eval())
    return networks
