"""The arguments of an attribution call, checked before any forward is spent and tied together."""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import captum
import numpy as np
import torch
from torch import Tensor

from captum_causalseg import regions
from captum_causalseg._captum import TargetType, format_additional_forward_args
from captum_causalseg._checks import integer, misfit
from captum_causalseg._version import __version__
from captum_causalseg.attr.channels import of_channels
from captum_causalseg.attr.controls import Control, edge_controls
from captum_causalseg.attr.exclusion import find_exclusion
from captum_causalseg.attr.one_region import one_region, region_excluded
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.donors import BoundDonors, DonorSource, as_donor_source
from captum_causalseg.interventions.evaluator import ModelEvaluator
from captum_causalseg.interventions.execution import FEWEST_ON_CPU
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.outputs import Outputs
from captum_causalseg.interventions.sites import InputSite, Site
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.units import Units
from captum_causalseg.layout import UNIT_KINDS, Layout, unit_mask
from captum_causalseg.target.scorer import Scorer, as_scorer

__all__ = ["Call", "Problem", "check_masks", "common_settings", "donor_sources", "prepare_call", "prepare_inputs"]

DEFAULT_BLOCK_SIZE = 8
# More pixels at once leave a CPU's caches, and memory is asked of the system anew for each operation: through a small U-Net, images of 512 x 512 take 85 ms
# each two at a time and 162 ms in batches of 16, of 64 x 64 x 64 51 and 73 ms; windows of 80 x 80 take 1.47 ms in batches of so many pixels, 1.87 ms in four
# times as many.
_MOST_PIXELS_ON_CPU = 2**18


@dataclass(frozen=True)
class Problem:
    """A call whose arguments have been checked: what is intervened on, and how scores are computed.

    Args:
        evaluator: computes scores under interventions; it holds the site, the scorer, and units and donors.
        call: how the function is called.
        excluded: ``(N, U, R)``: units that are left as they are for the sake of RoI ``r``; ``R`` is 1 where RoIs do not matter.
        settings: what is intervened on and how, to be kept with the statistics.
        controls: further donors of the same units, by name, of which only the joint can matter.
    """

    evaluator: ModelEvaluator
    call: "Call"
    excluded: np.ndarray
    settings: dict[str, Any]
    controls: dict[str, Control] = field(default_factory=dict)

    @property
    def scorer(self) -> Scorer:
        """What is explained."""
        return self.evaluator.scorer

    @property
    def site(self) -> Site:
        """What units are parts of and attributions look like: the inputs, or a layer's activation."""
        return self.evaluator.site

    @property
    def units(self) -> Units:
        """The parts."""
        return self.evaluator.unit_donors.units

    @property
    def donors(self) -> tuple[BoundDonors, ...]:
        """Per tensor, what they are replaced by."""
        return self.evaluator.unit_donors.donors

    @property
    def n_examples(self) -> int:
        """How many images there are."""
        return self.units.n_examples

    def treated(self) -> np.ndarray:
        """Boolean ``(N, U)``: units that are intervened on, for the sake of some RoI."""
        treated: np.ndarray = self.units.present & ~self.excluded.all(2)
        return treated

    def treated_for(self, outputs: Outputs) -> np.ndarray:
        """Boolean ``(N, U, K)``: a unit that touches an RoI is intervened on for the other RoIs' sake, not for that one's."""
        treated: np.ndarray = self.units.present[..., None] & outputs.of_rois(~self.excluded)
        return treated

    @property
    def batch_size(self) -> int:
        """How many images may go through the model at once."""
        return self.evaluator.execution.perturbations_per_eval * self.n_examples

    def in_caches(self, n: int, spatial: Sequence[int]) -> int:
        """Of so many images (or windows) of this shape, how many are best run at once: on a CPU, fewer of large ones."""
        if self.call.inputs[0].device.type != "cpu":
            return n
        return min(n, max(_MOST_PIXELS_ON_CPU // math.prod(spatial), FEWEST_ON_CPU))


@dataclass(frozen=True)
class Call:
    """How a forward function is called: checked inputs and arguments, masks per example among them.

    Args:
        scorer: what is explained; one that holds masks per example takes them as arguments instead.
        inputs: checked.
        arguments: the additional forward arguments.
        rois: RoIs ``(N or 1, R, *spatial)``, or None.
        spatial: spatial shape of the first image among the inputs.
    """

    scorer: Scorer
    inputs: tuple[Tensor, ...]
    arguments: tuple[Any, ...]
    rois: Tensor | None
    spatial: torch.Size

    def outputs(self, shape: Sequence[int], target: TargetType) -> Outputs:
        """Which scores of this shape there are for every example, and which is asked for."""
        return Outputs.of(self.scorer, self.spatial, shape=shape, n=len(self.inputs[0]), target=target)


def prepare_call(forward_func: Callable[..., Any], inputs: Any, additional_forward_args: Any) -> Call:
    """Check inputs and arguments, before any forward is spent."""
    tensors = _check_inputs(inputs)
    n_examples = tensors[0].shape[0]
    arguments = _check_arguments(additional_forward_args, n_examples)
    scorer = as_scorer(forward_func)
    _check_call(scorer, tensors, arguments)
    image = next((t for t in tensors if t.ndim > 2), None)
    rois = None
    if image is not None:
        scorer.rois(*tensors, *arguments)  # refuses what does not fit, before the masks are turned into arguments
        scorer, arguments = scorer.with_masks_as_arguments(n_examples, image.ndim - 2, arguments)
        rois = scorer.rois(*tensors, *arguments)
    spatial = torch.Size() if image is None else image.shape[2:]
    return Call(scorer=scorer, inputs=tensors, arguments=arguments, rois=rois, spatial=spatial)


def common_settings(**asked: Any) -> dict[str, Any]:
    """What is kept with the statistics of every method; tensors by their shapes."""

    def described(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return [described(item) for item in value]
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
            return f"{type(value).__name__} {tuple(value.shape)}"
        return value if value is None or isinstance(value, (str, int, float)) else repr(value)

    return {name: described(value) for name, value in asked.items()} | {
        "versions": {"captum_causalseg": __version__, "captum": captum.__version__, "torch": str(torch.__version__)}
    }


def prepare_inputs(options: Options, asked: InputUnits) -> Problem:
    """Check every argument before any forward is spent, and tie donors to inputs."""
    call = prepare_call(options.executed, options.inputs, options.additional_forward_args)
    tensors, rois = call.inputs, call.rois
    is_tuple = isinstance(options.inputs, tuple)
    block_sizes = _block_sizes(tensors, is_tuple, asked.block_size)
    masks, left_out = _unit_masks(tensors, asked, block_sizes)
    units = Units(masks, [tensor.shape for tensor in tensors])
    exclusion = find_exclusion(asked.exclude, tensors, rois=rois, units=units)
    excluded = exclusion.units | (units.ids == left_out)[None, :, None]
    if asked.whole_blocks_only:
        excluded = excluded | _remainders(units, block_sizes)[None, :, None]
    lost = np.flatnonzero((excluded.all(2) | ~units.present).all(1))
    if len(lost):
        if asked.region is not None:
            raise region_excluded(int(lost[0]))
        if asked.whole_blocks_only:
            raise ValueError(
                f"block_size: no whole block of example {lost[0]} lies outside the RoI; choose smaller blocks or a smaller RoI"
            )
        raise ValueError(
            f"exclude: every unit of example {lost[0]} is excluded; choose smaller units, a smaller RoI, or pass exclude=None"
        )
    given = _baselines(options.baselines, tensors)
    sources = donor_sources(options.baselines, tensors)
    donors = tuple(source.bind(tensor, forbidden) for source, tensor, forbidden in zip(sources, tensors, exclusion.forbidden))
    # As they were given, or what was taken where nothing was.
    named = [source if one is None else one for source, one in zip(sources, given)]
    described = common_settings(
        units=asked.asked,
        block_size=None if not _in_blocks(asked) else block_sizes if is_tuple else block_sizes[0],
        baselines=tuple(named) if isinstance(options.baselines, tuple) else named[0],
        exclude=exclusion.in_words,
        channels=asked.channels,
    )
    site = InputSite(tensors, call.arguments, is_tuple)
    unit_donors, ledger = UnitDonors(units, donors), Ledger()
    controls: dict[str, Control] = {}
    if options.controls is not None:
        treated = units.present & ~excluded.all(2)
        controls = edge_controls(unit_donors, tensors, treated=treated, forbidden=exclusion.forbidden, ledger=ledger)
    if controls:
        described["controls"] = {name: one.in_words for name, one in controls.items()}
    return Problem(
        evaluator=InputEvaluator(
            site=site, scorer=call.scorer, execution=options.execution, unit_donors=unit_donors, ledger=ledger
        ),
        call=call,
        excluded=excluded,
        settings=described | options.execution.settings(),
        controls=controls,
    )


def _check_inputs(inputs: Any) -> tuple[Tensor, ...]:
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors:
        raise ValueError("inputs: the tuple is empty")
    checked = []
    for index, tensor in enumerate(tensors):
        name = f"inputs[{index}]" if isinstance(inputs, tuple) else "inputs"
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor or a tuple of tensors, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating-point image as the model takes it, got {tensor.dtype}")
        if tensor.ndim < 2 or tensor.numel() == 0:
            raise ValueError(f"{name}: expected shape (N, C, *spatial) without empty axes, got {tuple(tensor.shape)}")
        if tensor.shape[0] != tensors[0].shape[0]:
            raise ValueError(f"{name}: it holds {tensor.shape[0]} examples, the first input {tensors[0].shape[0]}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: it holds NaN or infinite values")
        tensor = tensor.detach()
        # Subclasses (MetaTensor) would carry their metadata through every operation of the loop.
        checked.append(tensor.as_subclass(Tensor) if type(tensor) is not Tensor else tensor)
    return tuple(checked)


def _check_arguments(additional_forward_args: Any, n_examples: int) -> tuple[Any, ...]:
    arguments: tuple[Any, ...] = format_additional_forward_args(additional_forward_args) or ()
    for index, argument in enumerate(arguments):
        if isinstance(argument, Tensor) and argument.ndim > 0 and argument.shape[0] != n_examples:
            raise ValueError(
                f"additional_forward_args[{index}]: a tensor needs one entry per example ({n_examples}), got shape "
                f"{tuple(argument.shape)}"
            )
    return arguments


def _check_call(scorer: Scorer, tensors: tuple[Tensor, ...], arguments: tuple[Any, ...]) -> None:
    """Raise if a function cannot take so many arguments; modules say so only when they are called."""
    n_inputs, function = len(tensors), scorer.model
    n_more = len(scorer.model_inputs(*tensors, *arguments)) - n_inputs
    reason = misfit(function, n_inputs + n_more)
    if reason is None:
        return
    if n_more and misfit(function, n_inputs) is None:
        raise TypeError(f"additional_forward_args: forward_func cannot be called with {n_more} of them: {reason}")
    if n_inputs > 1 and misfit(function, 1 + n_more) is None:
        raise TypeError(f"inputs: forward_func cannot be called with {n_inputs} of them: {reason}")
    raise TypeError(
        f"forward_func: it cannot be called with {n_inputs} input(s) and {n_more} additional_forward_args: {reason}"
    )


def _block_sizes(tensors: tuple[Tensor, ...], is_tuple: bool, block_size: Any) -> list[tuple[int, ...]]:
    """Per input, the edges of its blocks along its spatial axes."""
    per_input = [block_size] * len(tensors)
    if is_tuple and isinstance(block_size, tuple) and any(isinstance(size, tuple) for size in block_size):
        if len(block_size) != len(tensors):
            raise ValueError(f"block_size: expected one per input ({len(tensors)}), got {len(block_size)}")
        per_input = list(block_size)
    sizes = []
    for tensor, size in zip(tensors, per_input):
        spatial = tensor.shape[2:]
        if size is None:
            size = tuple(min(DEFAULT_BLOCK_SIZE, length) for length in spatial)
        elif not isinstance(size, (tuple, list)):
            integer(1)("block_size", size)
            size = (int(size),) * len(spatial)
        sizes.append(tuple(size))
    return sizes


def _in_blocks(asked: InputUnits) -> bool:
    return asked.feature_mask is None and UNIT_KINDS[asked.kind].in_blocks


def _unit_masks(tensors: tuple[Tensor, ...], asked: InputUnits, block_sizes: list[tuple[int, ...]]) -> tuple[list[Tensor], int]:
    """Units as :func:`of_channels` returns them."""
    if asked.feature_mask is not None:
        for name, is_given in (("block_size", asked.block_size is not None), ("units", asked.kind != "block")):
            if is_given:
                raise ValueError(f"feature_mask, {name}: give one of them")
        masks = check_masks("feature_mask", asked.feature_mask, tensors, whose="input")
    elif asked.kind in ("block", "channel_block"):
        masks = _default_masks(tensors, block_sizes)
    else:
        if asked.block_size is not None and not _in_blocks(asked):
            raise ValueError(f"block_size: units={asked.kind!r} are no blocks, leave it out")
        masks = _masks_of_kind(tensors, asked.kind, block_sizes)
    channels = asked.channels
    if asked.kind == "channel_block":
        masks, _ = of_channels(masks, tensors, "each")
        channels = None if channels == "each" else channels
    masks, left_out = of_channels(masks, tensors, channels)
    return (masks, left_out) if asked.region is None else one_region(masks, tensors, region=asked.region, left_out=left_out)


def _masks_of_kind(tensors: tuple[Tensor, ...], kind: str, block_sizes: list[tuple[int, ...]]) -> list[Tensor]:
    """Units of a kind in the table where there are spatial axes, single features elsewhere; no unit spans two inputs."""
    masks: list[Tensor] = []
    first = 0
    for tensor, sizes in zip(tensors, block_sizes):
        if tensor.ndim > 2:
            size = sizes if UNIT_KINDS[kind].in_blocks else None
            mask = unit_mask(Layout("NC*"), kind, tuple(tensor.shape), block_size=size)
        else:
            mask = torch.arange(tensor.shape[1], device="cpu")[None]
        masks.append(mask + first)
        first = int(masks[-1].max()) + 1
    return masks


def check_masks(name: str, given: Any, tensors: Sequence[Tensor], *, whose: str) -> list[Tensor]:
    """Integer masks with Captum's meaning, one per tensor and with as many axes; axes of length 1 stay as they are."""
    given = given if isinstance(given, tuple) else (given,)
    if len(given) != len(tensors):
        raise ValueError(f"{name}: expected one mask per {whose} ({len(tensors)}), got {len(given)}")
    masks = []
    for mask, tensor in zip(given, tensors):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}: expected a tensor of integers, got {kind}")
        shape = (1,) * (tensor.ndim - mask.ndim) + tuple(mask.shape)
        if mask.ndim > tensor.ndim or any(m not in (1, t) for m, t in zip(shape, tensor.shape)):
            raise ValueError(f"{name}: shape {tuple(mask.shape)} cannot be broadcast to the {whose}'s {tuple(tensor.shape)}")
        mask = mask.detach().cpu().long()  # unsigned ones can neither be compared nor broadcast
        if bool((mask < 0).any()):
            raise ValueError(f"{name}: expected ids of at least 0, got {int(mask.min())}")
        masks.append(mask.reshape(shape).as_subclass(Tensor).contiguous())
    return masks


def _default_masks(tensors: tuple[Tensor, ...], block_sizes: list[tuple[int, ...]]) -> list[Tensor]:
    """Blocks across all channels where there are spatial axes, single features elsewhere; no unit spans two inputs."""
    masks: list[Tensor] = []
    first = 0
    for tensor, sizes in zip(tensors, block_sizes):
        spatial = tensor.shape[2:]
        mask = regions.grid(spatial, sizes)[None, None] if len(spatial) else torch.arange(tensor.shape[1], device="cpu")[None]
        masks.append(mask + first)
        first = int(masks[-1].max()) + 1
    return masks


def _remainders(units: Units, block_sizes: list[tuple[int, ...]]) -> np.ndarray:
    """Units at the edges that are smaller than a block."""
    pieces = [piece for u in range(len(units)) for piece in units.pieces(0, u)]
    return np.array([tuple(side.stop - side.start for side in p.box) != block_sizes[p.slot] for p in pieces])


def donor_sources(baselines: Any, tensors: tuple[Tensor, ...]) -> list[DonorSource]:
    """Per input, what ``baselines`` means for it."""
    return [as_donor_source(source, tensor) for source, tensor in zip(_baselines(baselines, tensors), tensors)]


def _baselines(baselines: Any, tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    if isinstance(baselines, tuple):
        if len(baselines) != len(tensors):
            raise ValueError(f"baselines: expected one per input ({len(tensors)}), got {len(baselines)}")
        given = baselines
    elif isinstance(baselines, Tensor) and len(tensors) > 1 and baselines.ndim > 0:
        raise ValueError(f"baselines: with {len(tensors)} inputs, give a tuple of as many baselines")
    else:
        given = (baselines,) * len(tensors)
    for source in given:
        if isinstance(source, Tensor) and source.ndim > 0 and len(source) == 0:
            raise ValueError(f"baselines: expected at least one donor, got a tensor of shape {tuple(source.shape)}")
        is_number = isinstance(source, numbers.Real) or (isinstance(source, Tensor) and source.ndim == 0)
        if is_number and not math.isfinite(source):
            raise ValueError(f"baselines: expected a finite number, got {float(source)}")
    return given
