"""Is a map a property of the model and the image, or of small noise and random numbers?"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats as scipy_stats
from torch import Tensor

from captum_causalseg._checks import ANY, FUNCTION, NONE, SEED, checked, integer, number, sequence, tensor_of
from captum_causalseg.evaluation.replacements import Attributions

__all__ = ["map_agreement", "max_sensitivity"]


@checked(explain=FUNCTION, radius=number(above=0), n_perturbations=integer(1), seed=SEED)
def max_sensitivity(
    explain: Callable[..., Attributions],
    inputs: Attributions,
    *,
    radius: float = 0.02,
    n_perturbations: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """How much a map changes at most under small input noise: max-sensitivity of Yeh et al. (2019, arXiv 1901.09392), smaller is more robust.

    ``max |explain(inputs + noise) - explain(inputs)| / |explain(inputs)|`` in the Euclidean norm over a whole example, noise uniform in ``[-radius, radius]`` in every element. As
    ``captum.metrics.sensitivity_max``, with batches as they are: regions and references that belong to examples stay with them.

    Args:
        explain: takes the inputs and returns a map like them; what is random in it should have the same seed in every call.
        inputs: ``(N, C, *spatial)``, or a tuple of inputs.
        radius: in the inputs' own units.
        n_perturbations: how often noise is drawn.
        seed: of the noise.

    Returns:
        ``(N,)``; NaN where the map is 0 everywhere.

    Example:
        >>> import torch
        >>> from captum_causalseg.evaluation import max_sensitivity
        >>> image = torch.ones(1, 1, 8, 8)
        >>> 0 < float(max_sensitivity(lambda x: x, image, radius=0.1)[0]) < 0.1  # the noise itself
        True
    """
    tensors = _tensors("inputs", inputs)
    plain = _flat(explain(inputs))
    size = np.linalg.norm(plain, axis=1)
    generator = torch.Generator().manual_seed(seed)
    largest = np.zeros(len(plain))
    for _ in range(n_perturbations):
        moved = []
        for tensor in tensors:
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 2 - 1
            moved.append(tensor + (radius * noise).to(tensor))
        found = _flat(explain(tuple(moved) if isinstance(inputs, tuple) else moved[0]))
        largest = np.maximum(largest, np.linalg.norm(found - plain, axis=1))
    relative: np.ndarray = np.where(size > 0, largest / np.where(size > 0, size, 1), np.nan)
    return relative


@checked(maps=sequence(ANY, 2), where=NONE | tensor_of("boolean"))
def map_agreement(maps: Sequence[Attributions], *, where: Tensor | None = None) -> np.ndarray:
    """How well repeats of a map agree, ``(N,)``, in [-1, 1]: the mean of Spearman's rank correlations of all pairs.

    Of the same method with other seeds, or with other donors. 1: the same order everywhere; 0: what one says, nothing in the other bears out.

    Args:
        maps: at least two, ``(N, C, *spatial)`` each, or tuples.
        where: boolean, like a map or ``(N or 1, 1, *spatial)``: only there; for one input. Units that touch the region of interest are 0 in every map, which is no agreement.

    Returns:
        NaN where a map is the same everywhere.

    Raises:
        TypeError, ValueError: the maps have different shapes.

    Example:
        >>> import torch
        >>> from captum_causalseg.evaluation import map_agreement
        >>> one = torch.arange(4.0).view(1, 1, 2, 2)
        >>> map_agreement([one, one**2, one + 5]).tolist(), map_agreement([one, -one]).tolist()
        ([1.0], [-1.0])
    """
    shapes = [tuple(tensor.shape for tensor in _tensors(f"maps[{place}]", one)) for place, one in enumerate(maps)]
    other = [place for place, shape in enumerate(shapes) if shape != shapes[0]]
    if other:
        raise ValueError(f"maps[{other[0]}]: expected the shape of the first, {shapes[0]}, got {shapes[other[0]]}")
    flat = [_flat(one) for one in maps]
    kept = np.ones(flat[0].shape, dtype=bool)
    if where is not None:
        if len(shapes[0]) > 1:
            raise ValueError("where: it is for maps of one input, got several")
        kept = where.cpu().expand(shapes[0][0]).flatten(1).numpy()
    found = np.full(len(flat[0]), np.nan)
    for example, inside in enumerate(kept):
        rows = [one[example, inside] for one in flat]
        if all(np.ptp(row) > 0 for row in rows if row.size) and inside.any():
            pairs = [scipy_stats.spearmanr(a, b).statistic for a, b in itertools.combinations(rows, 2)]
            found[example] = float(np.mean(pairs))
    return found


def _tensors(name: str, value: Attributions) -> tuple[Tensor, ...]:
    tensors = value if isinstance(value, tuple) else (value,)
    for one in tensors:
        if not isinstance(one, Tensor) or not one.ndim:
            raise TypeError(f"{name}: expected a tensor (N, ...) or a tuple of them, got {type(one).__name__}")
    return tensors


def _flat(value: Attributions) -> np.ndarray:
    """``(N, elements)`` of all inputs."""
    parts = [one.detach().cpu().double().flatten(1).numpy() for one in _tensors("explain", value)]
    found: np.ndarray = np.concatenate(parts, axis=1)
    return found
