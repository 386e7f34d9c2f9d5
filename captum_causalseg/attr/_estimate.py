"""What the faces share: checked arguments, the plan, the run, the statistics."""

import inspect
import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import captum
import numpy as np
import torch
from torch import Tensor

from captum_causalseg import regions
from captum_causalseg._captum import TargetType, format_additional_forward_args, progress
from captum_causalseg._state import undisturbed
from captum_causalseg.donors import BoundDonors, as_donor_source
from captum_causalseg.engine.plan import Plan, Sampler, without_replacement
from captum_causalseg.engine.run import observe, run
from captum_causalseg.interventions.units import Units
from captum_causalseg.interventions.whole import WholeInput
from captum_causalseg.statistics import Status, TreatmentEffectStatistics, target_index
from captum_causalseg.target import SegmentationTarget

__all__ = ["Draws", "Intervention", "Problem", "estimate", "interventions", "paint", "prepare"]

DEFAULT_BLOCK_SIZE = 8
# Moments of so many units times outputs take about a gigabyte: more is a segmentation map passed off as a score.
_MOST_OUTPUTS = 4_000_000


@dataclass(frozen=True)
class Draws:
    """How donors are drawn and when to stop; checked on construction."""

    n_draws: int
    n_screening_draws: int
    screening_threshold: float
    perturbations_per_eval: int
    seed: int | Sequence[int]
    sampler: Sampler = without_replacement
    fresh_draws: bool = False

    def __post_init__(self) -> None:
        check_integer("n_draws", self.n_draws, 1)
        check_integer("n_screening_draws", self.n_screening_draws, 0)
        check_integer("perturbations_per_eval", self.perturbations_per_eval, 1)
        threshold = self.screening_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, numbers.Real) or not 0 <= threshold < math.inf:
            raise ValueError(f"screening_threshold: expected a finite number of at least 0, got {threshold!r}")
        for seed in self.seeds:
            check_integer("seed", seed, 0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """One for all examples, or one per example."""
        one = isinstance(self.seed, str) or not isinstance(self.seed, Sequence)
        return (self.seed,) if one else tuple(self.seed)  # type: ignore[return-value, arg-type]


@dataclass(frozen=True)
class Problem:
    """The checked arguments of one call."""

    inputs: tuple[Tensor, ...]
    inputs_are_tuple: bool
    forward_func: Callable[..., Any]
    arguments: tuple[Any, ...]
    units: Units
    donors: tuple[BoundDonors, ...]
    excluded: np.ndarray
    """``(N, U, R)``: units that touch RoI r; R is 1 where RoIs do not matter."""
    n_roi_outputs: int
    """How many RoIs the scores' last axis runs over."""
    settings: dict[str, Any]

    @property
    def n_examples(self) -> int:
        return self.inputs[0].shape[0]


@dataclass(frozen=True)
class Intervention:
    """One planned intervention.

    Args:
        example: which example.
        unit: the unit's id in the feature mask.
        draw: 0 for the unit's first, and so on.
        donors: per input that the unit reaches into, ``(input, donor image, corner)``: where the donor's bounding box begins in
            the donor image (-1 for sources that have no images, such as a constant).
    """

    example: int
    unit: int
    draw: int
    donors: tuple[tuple[int, int, tuple[int, ...]], ...]


def prepare(
    forward_func: Callable[..., Any],
    inputs: Any,
    baselines: Any,
    additional_forward_args: Any,
    feature_mask: Any,
    block_size: Any,
    exclude: Any,
    *,
    whole_blocks_only: bool = False,
) -> Problem:
    """Check every argument before any forward is spent, and tie donors to inputs."""
    tensors = _check_inputs(inputs)
    n_examples = tensors[0].shape[0]
    arguments = _check_arguments(additional_forward_args, n_examples)
    _check_call(forward_func, len(tensors), arguments)
    block_sizes = _block_sizes(tensors, isinstance(inputs, tuple), block_size)
    masks = _feature_masks(tensors, feature_mask, block_size, block_sizes)
    units = Units(masks, n_examples)
    rois = None
    if isinstance(forward_func, SegmentationTarget):
        image = next((t for t in tensors if t.ndim > 2), None)
        if image is not None:
            forward_func, arguments = forward_func.with_masks_as_arguments(n_examples, image.ndim - 2, arguments)
            rois = forward_func.roi_masks((*tensors, *arguments))
    excluded, n_roi_outputs = _excluded(units, tensors, rois, exclude)
    if whole_blocks_only:
        excluded = excluded | _remainders(units, block_sizes)[None, :, None]
    if excluded.all():
        if whole_blocks_only:
            raise ValueError("block_size: no whole block lies outside the RoI; choose smaller blocks or a smaller RoI")
        raise ValueError("exclude: every unit is excluded; choose smaller units, a smaller RoI, or pass exclude=None")
    donors = tuple(
        as_donor_source(source, tensor).bind(tensor, _forbidden(tensor, rois))
        for source, tensor in zip(_baselines(baselines, tensors), tensors)
    )
    settings = {
        "block_size": list(map(str, block_size)) if isinstance(block_size, (tuple, list)) else block_size and int(block_size),
        "baselines": repr(baselines) if not isinstance(baselines, Tensor) else f"tensor {tuple(baselines.shape)}",
        "exclude": exclude if isinstance(exclude, str) or exclude is None else "mask",
        "versions": {name: version(name) for name in ("captum_causalseg", "torch")} | {"captum": captum.__version__},
    }
    return Problem(
        tensors, isinstance(inputs, tuple), forward_func, arguments, units, donors, excluded, n_roi_outputs, settings
    )


def estimate(
    problem: Problem, draws: Draws, target: TargetType, show_progress: bool, description: str
) -> TreatmentEffectStatistics:
    """Carry the interventions out and gather what they say. ``target`` is only checked, before the first of them."""
    plan = _plan(problem, draws)
    evaluator = WholeInput(problem.forward_func, problem.inputs, problem.arguments, problem.units, problem.donors)
    bar = progress(desc=description) if show_progress else None
    reported = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal reported
        if bar is not None:
            bar.total = total
            bar.update(done - reported)
            reported = done

    try:
        with undisturbed(problem.forward_func):
            observed = observe(evaluator, problem.n_examples)
            if len(problem.units) * observed.size > _MOST_OUTPUTS:
                raise ValueError(
                    f"forward_func: it returns {observed.shape[1]} values per example, too many to follow each; wrap the model in "
                    "a SegmentationTarget, which scores a region"
                )
            output_shape = evaluator.output_shape or ()
            axes = _output_axes(problem, len(output_shape))
            target_index(target, problem.n_examples, output_shape, axes)
            plan = replace(plan, active=_active(problem, plan, observed.shape[1]))
            outcome = run(
                plan,
                evaluator,
                observed,
                batch_size=draws.perturbations_per_eval * problem.n_examples,
                screening_threshold=draws.screening_threshold,
                on_progress=on_progress,
            )
    finally:
        if bar is not None:
            bar.close()

    n, u, k = problem.n_examples, len(problem.units), observed.shape[1]
    status = np.full((n, u, k), int(Status.ABSENT))
    present = _present(problem.units, n)
    status[present] = int(Status.EXCLUDED)
    where = plan.example, plan.unit
    status[where] = np.where(
        plan.active, np.where(outcome.screened, int(Status.SCREENED), int(Status.ESTIMATED)), int(Status.EXCLUDED)
    )
    population = np.full((n, u), np.nan)
    population[where] = [plan.total(row) for row in range(len(plan))]
    shape = (n, u, *output_shape)

    def spread(values: np.ndarray, missing: float) -> Tensor:
        full = np.full((n, u, k), missing, dtype=values.dtype)
        full[where] = values
        return torch.from_numpy(full.reshape(shape))

    return TreatmentEffectStatistics(
        effect=spread(outcome.moments.mean, np.nan),
        sample_variance=spread(outcome.moments.variance, np.nan),
        n_draws=spread(outcome.moments.n, 0),
        population=torch.from_numpy(population),
        status=torch.from_numpy(status.reshape(shape)),
        observed_score=torch.from_numpy(observed.reshape(n, *output_shape)),
        unit_ids=torch.from_numpy(problem.units.ids),
        feature_mask=problem.units.masks,
        input_shapes=[tensor.shape for tensor in problem.inputs],
        n_forwards=outcome.n_forwards + n,
        inputs_are_tuple=problem.inputs_are_tuple,
        output_axes=axes,
        settings=problem.settings
        | {
            "n_draws": int(draws.n_draws),
            "n_screening_draws": int(draws.n_screening_draws),
            "screening_threshold": float(draws.screening_threshold),
            "seed": list(map(int, draws.seeds)) if isinstance(draws.seed, Sequence) else int(draws.seed),
        },
    )


def interventions(problem: Problem, draws: Draws) -> list[Intervention]:
    """All interventions that would be made if no unit were screened out, in order."""
    plan = _plan(problem, draws)
    planned = []
    for row in range(len(plan)):
        example, unit = int(plan.example[row]), int(plan.unit[row])
        pieces = problem.units.pieces(example, unit)
        for draw, numbers_ in enumerate(plan.donors(row).tolist()):
            donors = tuple((p.slot, *problem.donors[p.slot].locate(example, p.box, numbers_[p.slot])) for p in pieces)
            planned.append(Intervention(example, int(problem.units.ids[unit]), draw, donors))
    return planned


def paint(statistics: TreatmentEffectStatistics, inputs: tuple[Tensor, ...], target: Any) -> Any:
    """The attribution: one output's effects over the inputs, 0 where nothing is known, in the inputs' dtype and device."""
    maps = statistics.to_map("effect", target)
    painted = tuple(
        one.nan_to_num(0.0).to(device=tensor.device, dtype=tensor.dtype)
        for one, tensor in zip(maps if isinstance(maps, tuple) else (maps,), inputs)
    )
    return painted if statistics.inputs_are_tuple else painted[0]


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise unless ``value`` is an integer (no bool) of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def _plan(problem: Problem, draws: Draws) -> Plan:
    seeds = draws.seeds
    if len(seeds) not in (1, problem.n_examples):
        raise ValueError(f"seed: expected one, or one per example ({problem.n_examples}), got {len(seeds)}")
    example, unit = np.nonzero(_present(problem.units, problem.n_examples) & ~problem.excluded.all(2))
    population = np.ones((len(example), len(problem.inputs)), dtype=np.int64)
    for row, (n, u) in enumerate(zip(example.tolist(), unit.tolist())):
        for piece in problem.units.pieces(n, u):
            population[row, piece.slot] = problem.donors[piece.slot].population(n, piece.box)
    empty = np.flatnonzero((population < 1).any(1))
    if len(empty):
        raise ValueError(
            f"baselines: no donor is left for unit {problem.units.ids[unit[empty[0]]]} once places that touch the image's own RoI "
            "are left out"
        )
    return Plan(
        example=example,
        unit=unit,
        key=problem.units.ids[unit],
        population=population,
        active=np.ones((len(example), 1), dtype=bool),
        n_draws=draws.n_draws,
        n_screening_draws=draws.n_screening_draws,
        seed=seeds,
        sampler=draws.sampler,
        fresh_draws=draws.fresh_draws,
    )


def _active(problem: Problem, plan: Plan, n_outputs: int) -> np.ndarray:
    """``(M, K)``: a unit that touches an RoI is intervened on for the other RoIs' sake, not for that one's."""
    allowed = ~problem.excluded[plan.example, plan.unit]
    if n_outputs % problem.n_roi_outputs:
        raise ValueError(f"metric: {n_outputs} scores per example do not go with {problem.n_roi_outputs} RoIs")
    return np.tile(allowed, (1, n_outputs // allowed.shape[1]))


def _output_axes(problem: Problem, n_axes: int) -> tuple[str, ...]:
    if isinstance(problem.forward_func, SegmentationTarget):
        spatial = next(tensor.shape[2:] for tensor in problem.inputs if tensor.ndim > 2)
        return problem.forward_func.output_axes(n_axes, spatial)
    return tuple(f"output_{axis}" for axis in range(n_axes))


def _present(units: Units, n_examples: int) -> np.ndarray:
    if units.shared:
        return np.ones((n_examples, len(units)), dtype=bool)
    return np.array([[bool(units.pieces(n, u)) for u in range(len(units))] for n in range(n_examples)])


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


def _check_call(forward_func: Callable[..., Any], n_inputs: int, arguments: tuple[Any, ...]) -> None:
    """Raise if a function cannot take so many arguments; modules say so only when they are called."""
    try:
        signature = inspect.signature(forward_func)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * (n_inputs + len(arguments)))
    except TypeError as error:
        raise TypeError(
            f"forward_func: it cannot be called with {n_inputs} input(s) and {len(arguments)} additional_forward_args: {error}"
        ) from error


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
            check_integer("block_size", size, 1)
            size = (int(size),) * len(spatial)
        sizes.append(tuple(size))
    return sizes


def _feature_masks(
    tensors: tuple[Tensor, ...], feature_mask: Any, block_size: Any, block_sizes: list[tuple[int, ...]]
) -> list[Tensor]:
    if feature_mask is not None and block_size is not None:
        raise ValueError("feature_mask, block_size: give one of them")
    if feature_mask is None:
        return _default_masks(tensors, block_sizes)
    given = feature_mask if isinstance(feature_mask, tuple) else (feature_mask,)
    if len(given) != len(tensors):
        raise ValueError(f"feature_mask: expected one mask per input ({len(tensors)}), got {len(given)}")
    masks = []
    for mask, tensor in zip(given, tensors):
        if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex() or mask.dtype == torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"feature_mask: expected a tensor of integers, got {kind}")
        shape = (1,) * (tensor.ndim - mask.ndim) + tuple(mask.shape)
        if mask.ndim > tensor.ndim or any(m not in (1, t) for m, t in zip(shape, tensor.shape)):
            raise ValueError(
                f"feature_mask: shape {tuple(mask.shape)} cannot be broadcast to the input's {tuple(tensor.shape)}"
            )
        mask = mask.detach().cpu().long()  # unsigned ones can neither be compared nor broadcast
        if bool((mask < 0).any()):
            raise ValueError(f"feature_mask: expected ids of at least 0, got {int(mask.min())}")
        full = mask.reshape(shape).expand(*shape[:2], *tensor.shape[2:])
        masks.append(full.as_subclass(Tensor).contiguous())
    return masks


def _default_masks(tensors: tuple[Tensor, ...], block_sizes: list[tuple[int, ...]]) -> list[Tensor]:
    """Blocks across all channels where there are spatial axes, single features elsewhere; no unit spans two inputs."""
    masks: list[Tensor] = []
    first = 0
    for tensor, sizes in zip(tensors, block_sizes):
        spatial = tensor.shape[2:]
        mask = regions.grid(spatial, sizes)[None, None] if len(spatial) else torch.arange(tensor.shape[1])[None]
        masks.append(mask + first)
        first = int(masks[-1].max()) + 1
    return masks


def _excluded(units: Units, tensors: tuple[Tensor, ...], rois: Tensor | None, exclude: Any) -> tuple[np.ndarray, int]:
    """Which units are not intervened on, ``(N, U, R or 1)``, and how many RoIs the scores tell apart."""
    n_examples = tensors[0].shape[0]
    n_rois = 1 if rois is None else rois.shape[1]
    nothing = np.zeros((n_examples, len(units), n_rois), dtype=bool)
    if exclude is None:
        return nothing, n_rois
    if isinstance(exclude, str):
        if exclude != "roi":
            raise ValueError(f'exclude: expected "roi", a boolean mask or None, got {exclude!r}')
        if rois is None:
            return nothing, n_rois
        masks = rois
    else:
        if not isinstance(exclude, (Tensor, np.ndarray)):
            raise TypeError(f'exclude: expected "roi", a boolean mask or None, got {type(exclude).__name__}')
        mask = torch.as_tensor(exclude)
        spatial = next((t.shape[2:] for t in tensors if t.ndim > 2), torch.Size())
        if mask.dtype != torch.bool or mask.shape != spatial:
            raise ValueError(
                f"exclude: expected a boolean mask of spatial shape {tuple(spatial)}, got {mask.dtype} {tuple(mask.shape)}"
            )
        masks = mask[None, None].expand(1, n_rois, *spatial)
    for n, r in np.ndindex(n_examples, n_rois):
        roi = masks[n if len(masks) > 1 else 0, r]
        for slot, tensor in enumerate(tensors):
            if tensor.shape[2:] == roi.shape:
                nothing[n, :, r] |= units.touching(slot, n, roi)
    return nothing, n_rois


def _remainders(units: Units, block_sizes: list[tuple[int, ...]]) -> np.ndarray:
    """Units at the edges that are smaller than a block."""
    pieces = [piece for u in range(len(units)) for piece in units.pieces(0, u)]
    return np.array([tuple(side.stop - side.start for side in p.box) != block_sizes[p.slot] for p in pieces])


def _forbidden(tensor: Tensor, rois: Tensor | None) -> Tensor | None:
    """The pixels of the explained image that no donor may hold: the union of its RoIs."""
    if rois is None or rois.shape[2:] != tensor.shape[2:]:
        return None
    return rois.any(1)


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
