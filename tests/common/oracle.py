"""The paper's loop, written literally: one image, one unit, one donor at a time, no batching, numpy for the statistics."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.attr.estimate import Intervention

Score = Callable[[int, tuple[Tensor, ...]], np.ndarray]
"""``(example, inputs of that example (1, C, *spatial)) -> scores (K,)``."""


def paste(image: Tensor, mask: Tensor, unit: int, donor: Tensor, corner: Sequence[int]) -> Tensor:
    """do(x[unit] := donor): element by element. ``image``, ``donor``: (C, *spatial); ``mask``: (C, *spatial)."""
    changed = image.clone()
    places = np.argwhere(mask.numpy() == unit)
    start = places[:, 1:].min(0)
    for channel, *place in places.tolist():
        source = [c + p - s for c, p, s in zip(corner, place, start.tolist())]
        changed[(channel, *place)] = donor[(channel, *source)]
    return changed


def differences(
    score: Score,
    inputs: Sequence[Tensor],
    masks: Sequence[Tensor],
    banks: Sequence[Sequence[Tensor]],
    planned: Sequence[Intervention],
) -> dict[tuple[int, int], list[np.ndarray]]:
    """``M0 - M_b`` (K,) of every planned intervention, by example and unit in the order of draws."""
    found: dict[tuple[int, int], list[np.ndarray]] = {}
    for step in planned:
        example = [tensor[step.example] for tensor in inputs]
        observed = score(step.example, tuple(x[None] for x in example))
        changed = list(example)
        for slot, donor, corner in step.donors:
            mask = masks[slot].expand(inputs[slot].shape)[step.example]
            changed[slot] = paste(changed[slot], mask, step.unit, banks[slot][donor], corner)
        moved = score(step.example, tuple(x[None] for x in changed))
        found.setdefault((step.example, step.unit), []).append(observed - moved)
    return found


def screen(values: list[float], n_screening: int, threshold: float) -> tuple[list[float], bool]:
    """The draws that count, and whether the unit was screened out."""
    if 0 < n_screening < len(values) and all(abs(v) < threshold for v in values[:n_screening]):
        return values[:n_screening], True
    return values, False


def effect_and_error(
    draws_of_units: list[list[float]], populations: list[float], prior: float = 3.0
) -> tuple[list[float], list[float]]:
    """Means and moderated standard errors (DESIGN, section 6) of one example's and output's units."""
    variances = [sum((v - np.mean(draws)) ** 2 for v in draws) / (len(draws) - 1) for draws in draws_of_units]
    logs = [math.log(variance) for variance in variances if variance > 1e-24]
    s0_squared = math.exp(sum(logs) / len(logs)) if logs else math.inf
    errors = []
    for draws, variance, population in zip(draws_of_units, variances, populations):
        d = len(draws) - 1
        others = len(logs) - (variance > 1e-24)
        d0 = prior * others / (others + 1)
        moderated = (d0 * s0_squared + d * variance) / (d0 + d) if logs else math.inf
        left = 1 - len(draws) / population
        errors.append(0.0 if left <= 0 else math.sqrt(moderated / len(draws) * left))
    return [float(np.mean(draws)) for draws in draws_of_units], errors


def paper_effect(values: list[float], n_screening: int, threshold: float) -> float:
    """PdCR: screening draws are forgotten, and a small fine effect is set to 0."""
    if all(abs(v) < threshold for v in values[:n_screening]):
        return 0.0
    fine = float(np.mean(values[n_screening:]))
    return 0.0 if abs(fine) < threshold else fine


def hard_dice(prediction: Tensor, reference: Tensor, roi: Tensor, empty: float) -> float:
    """Pixel by pixel; all three boolean ``(*spatial)``."""
    both = one = 0
    for p, r in zip(prediction[roi].tolist(), reference[roi].tolist()):
        both += p and r
        one += p + r
    return empty if one == 0 else 2 * both / one


@torch.no_grad()
def dice_scores(
    model: torch.nn.Module, inputs: tuple[Tensor, ...], labels: Tensor, rois: Sequence[Tensor], empty: float = 1.0
) -> np.ndarray:
    """Hard Dice per class and RoI of one example, flat ``(C * R,)``; ``labels`` is the label map ``(*spatial)``."""
    logits = model(*inputs)[0]
    classes = logits.shape[0]
    winner = logits.argmax(0)
    return np.array([hard_dice(winner == c, labels == c, roi, empty) for c in range(classes) for roi in rois])


def weighted_effects(
    moved: dict[tuple[int, int], list[np.ndarray]], planned: Sequence[Intervention]
) -> dict[tuple[int, int], np.ndarray]:
    """``sum(weight * (observed - intervened))`` ``(K,)``, by example and unit."""
    effects: dict[tuple[int, int], np.ndarray] = {}
    weights: dict[tuple[int, int], list[float]] = {}
    for step in planned:
        weights.setdefault((step.example, step.unit), []).append(step.weight)
    for key, values in moved.items():
        assert len(values) == len(weights[key])
        effects[key] = sum(weight * value for weight, value in zip(weights[key], values))
    return effects


def strata(size: int, n_strata: int, stage: int) -> list[list[int]]:
    """Ranks ``0 .. size - 1`` cut into strata of equal size (to one); every further stage halves those that hold several."""
    cuts = [i * size // n_strata for i in range(n_strata + 1)]
    cells = [list(range(a, b)) for a, b in itertools.pairwise(cuts)]
    for _ in range(stage - 1):
        halves = [(cell[: len(cell) // 2], cell[len(cell) // 2 :]) for cell in cells]
        cells = [half for pair in halves for half in pair if half]
    return cells


def stratified_estimate(
    values: Sequence[float], ranks: Sequence[int], cells: Sequence[Sequence[int]], donors: float
) -> tuple[float, float]:
    """Effect and squared standard error of one output, from the words of ``StratifiedEstimator``.

    ``values`` and ``ranks`` in the order of use; ``cells`` the strata, with one of the ranks in each.
    """
    value_at, m = dict(zip(ranks, values)), sum(map(len, cells))
    effect, drawn = 0.0, []
    for cell in cells:
        (rank,) = [rank for rank in ranks if rank in cell]
        effect += len(cell) / m * value_at[rank]
        drawn.append(value_at[rank])
    n = len(drawn)
    squares = [(b - a) ** 2 for a, b in itertools.pairwise(drawn)]
    successive = (sum(squares) + squares[0] + squares[-1]) / (2 * n)  # those at the ends once more
    spread = sum((v - sum(drawn) / n) ** 2 for v in drawn) / (n - 1)
    within = sum((len(cell) / m) ** 2 * (1 - 1 / len(cell)) for cell in cells)
    return effect, within * successive + max(0.0, 1 / m - 1 / donors) * spread


@dataclass(frozen=True)
class RankedDraws:
    """One unit's draws for one output: a value and a rank per stratum, and what was predicted of every candidate."""

    predicted: Sequence[float]
    """Along the ranking."""
    cells: Sequence[Sequence[int]]
    """The ranks of each stratum."""
    values: dict[int, float]
    """Of the drawn ranks."""


def controlled_estimate(unit: RankedDraws, others: Sequence[RankedDraws]) -> dict[str, float]:
    """Effect, what the control took from the mean, and variances of one draw, from the words of ``slopes.leaning``; all donors are candidates."""
    m, n = len(unit.predicted), len(unit.cells)
    ranks = [next(rank for rank in cell if rank in unit.values) for cell in unit.cells]
    v, x = [unit.values[rank] for rank in ranks], [unit.predicted[rank] for rank in ranks]
    weights = [len(cell) / m for cell in unit.cells]
    centers = [sum(unit.predicted[rank] for rank in cell) / len(cell) for cell in unit.cells]
    spreads = [
        sum((unit.predicted[rank] - center) ** 2 for rank in cell) / len(cell) for cell, center in zip(unit.cells, centers)
    ]
    shared_vx = shared_xx = 0.0
    for other in others:
        drawn = [next(rank for rank in cell if rank in other.values) for cell in other.cells]
        vx, xx = _successive([other.values[r] for r in drawn], [other.predicted[r] for r in drawn])
        shared_vx, shared_xx = shared_vx + vx, shared_xx + xx
    shared = shared_vx / shared_xx if shared_xx else 0.0
    scale = 0.0
    for i in range(n - 1):
        times = 2 if i in (0, n - 2) else 1
        scale += times * (spreads[i] + spreads[i + 1] + (centers[i + 1] - centers[i]) ** 2) / (2 * n)
    mean, effect = sum(w * value for w, value in zip(weights, v)), 0.0
    for h in range(n):
        vx, xx = _successive(v[:h] + v[h + 1 :], x[:h] + x[h + 1 :])
        slope = ((n - 2) * vx + 4 * shared * scale) / ((n - 2) * xx + 4 * scale)
        effect += weights[h] * (v[h] - slope * (x[h] - centers[h]))
    if all(value == v[0] for value in v):
        return {"effect": mean, "adjustment": 0.0, "variance": 0.0, "test_variance": 0.0}
    vx, xx = _successive(v, x)
    slope = ((n - 1) * vx + 4 * shared * scale) / ((n - 1) * xx + 4 * scale)
    e = [value - slope * predicted for value, predicted in zip(v, x)]
    noise = total = 0.0
    for i in range(1, n - 1):
        share = (ranks[i + 1] - ranks[i]) / (ranks[i + 1] - ranks[i - 1])
        off = e[i] - share * e[i - 1] - (1 - share) * e[i + 1]
        times = 3 if i in (1, n - 2) else 1
        noise += times * off**2 / (1 + share**2 + (1 - share) ** 2)
        total += times
    noise /= total
    importance = [w**2 * (1 - 1 / len(cell)) for w, cell in zip(weights, unit.cells)]
    steps = climbs = 0.0
    for h in range(n):
        near = [(i, j) for i, j in ((h - 1, h), (h, h + 1)) if i >= 0 and j < n]
        even = sum((e[j] - e[i]) ** 2 for i, j in near) / len(near)
        steep = sum(((e[j] - e[i]) / (centers[j] - centers[i])) ** 2 for i, j in near) / len(near)
        steps += importance[h] / sum(importance) * even / 12
        climbs += importance[h] / sum(importance) * steep * spreads[h]
    plain, residual = _successive(v, v)[0], _successive(e, e)[0]
    variance = min(plain, noise + max(steps, climbs))
    larger = max(variance, residual)
    return {
        "effect": effect,
        "adjustment": mean - effect,
        "variance": (n + 4) / (n + 3) * (variance if n >= 12 else larger),
        "test_variance": (n + 4) / (n + 3) * larger,
    }


def _successive(v: Sequence[float], x: Sequence[float]) -> tuple[float, float]:
    """``sum(c dv dx) / (2n)`` and ``sum(c dx dx) / (2n)``, the differences at both ends counted twice."""
    n, vx, xx = len(v), 0.0, 0.0
    for i in range(n - 1):
        times = 2 if i in (0, n - 2) else 1
        vx += times * (v[i + 1] - v[i]) * (x[i + 1] - x[i]) / (2 * n)
        xx += times * (x[i + 1] - x[i]) ** 2 / (2 * n)
    return vx, xx
