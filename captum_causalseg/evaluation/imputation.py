"""Removal by noisy linear imputation (ROAD): units are replaced by what their surroundings say, and not by donors."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from scipy import integrate, sparse
from scipy.sparse import csgraph, linalg
from torch import Tensor

from captum_causalseg._checks import checked, instance
from captum_causalseg.evaluation.faithfulness import Faithfulness, register
from captum_causalseg.evaluation.judging_cost import SHARES
from captum_causalseg.evaluation.replacements import Attributions

__all__ = ["impute", "road"]

# Of an image's range, as in the paper for images in [0, 1].
_NOISE = 0.01
_PURPOSE = 9
# As curves order equal units.
_TIES = 2
# Elements of the band of a matrix up to which it is factorized.
_LARGEST = 2**26


def impute(image: np.ndarray, removed: np.ndarray) -> np.ndarray:
    """Linear imputation of Rong et al. (2022, arXiv 2202.00449) in any number of dimensions.

    Every removed element is the weighted mean of its neighbors, removed ones among them: one sparse system. Neighbors differ by at most one in each of their ``m`` differing axes, with
    weights in the ratio ``2^(1 - m)`` (in two dimensions the paper's 1/6 and 1/12); those beyond the border do not count. What no path joins to an element that is kept has the image's mean.

    Args:
        image: ``(C, *spatial)``.
        removed: boolean ``(*spatial)``.

    Returns:
        ``(C, *spatial)`` in double precision.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.evaluation.imputation import impute
        >>> impute(np.array([[0.0, 9.0, 9.0, 3.0]]), np.array([False, True, True, False]))
        array([[0., 1., 2., 3.]])
    """
    filled = image.astype(np.float64)
    if not removed.any():
        return filled
    number_of = np.full(removed.shape, -1)
    number_of[removed] = np.arange(removed.sum())
    n = int(removed.sum())
    rows, columns, weights = [], [], []
    diagonal, right = np.zeros(n), np.zeros((len(image), n))
    for here, there, weight in _neighbors(removed.shape):
        mine = number_of[here]
        inner = mine >= 0
        mine, other = mine[inner], number_of[there][inner]
        diagonal += weight * np.bincount(mine, minlength=n)
        known = other < 0
        for channel, values in enumerate(filled):
            right[channel] += weight * np.bincount(mine[known], values[there][inner][known], minlength=n)
        rows.append(mine[~known])
        columns.append(other[~known])
        weights.append(np.full(int((~known).sum()), -weight))
    off = sparse.coo_matrix((np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n))
    system = (off + sparse.diags(diagonal)).tocsc()
    # A part that nothing kept borders on has no solution of its own.
    parts, part = csgraph.connected_components(off, directed=False)
    held = np.bincount(part, -np.asarray(off.sum(1)).ravel() - diagonal, minlength=parts) < -1e-9
    joined = held[part]
    means = filled.mean(tuple(range(1, filled.ndim)))
    solved = np.repeat(means[:, None], n, axis=1)
    if joined.any():
        solved[:, joined] = _solved(system[joined][:, joined], right[:, joined])
    filled[:, removed] = solved
    return filled


@checked(judge=instance(Faithfulness))
def road(judge: Faithfulness, attributions: Attributions) -> np.ndarray:
    """ROAD of Rong et al. (2022, arXiv 2202.00449), most relevant first ``(N,)``: the area under the score while the highest units are imputed; smaller is better.

    Units are removed by :func:`impute` and noise of 1 % of the image's range, so that what was removed cannot be read from the shape of the hole. At 0, 20, 40, 60, 80 and 100 % of the
    replaceable units. Needs no donors.

    Returns:
        NaN where the map has no positive value, and for inputs without spatial axes.

    Example:
        >>> from captum_causalseg.evaluation import Faithfulness, road
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # whose true effects are known
        >>> judge = Faithfulness(case.target(), case.images, case.donors, block_size=8)
        >>> right, wrong = (road(judge, sign * case.effects_of_map()) for sign in (1, -1))
        >>> bool(right[0] < wrong[0])
        True
    """
    world, units = judge.replacements, judge.unit_attributions(attributions)
    if any(tensor.ndim < 3 for tensor in world.tensors):
        return np.full(judge.n_examples, np.nan)
    found = np.full(judge.n_examples, np.nan)
    for example, ranked in enumerate(world.ranked(units, -1, world.random_numbers(_TIES, 1)[0])):
        if not (units[example, ranked] > 0).any():
            continue
        counts = [round(share * len(ranked)) for share in (*SHARES, 1.0)]
        chosen = np.zeros((len(counts), units.shape[1]), dtype=bool)
        for step, count in enumerate(counts):
            chosen[step, ranked[:count]] = True
        whose = np.full(len(counts), example)
        images = [
            _imputed(judge, slot, where=world.where(slot, chosen, whose), example=example) for slot in range(len(world.tensors))
        ]
        scores = np.concatenate([judge.observed[[example]], world.scores_of(images, whose)])
        found[example] = integrate.trapezoid(scores, [0.0, *SHARES, 1.0])
    return found


def _imputed(judge: Faithfulness, slot: int, where: Tensor, example: int) -> Tensor:
    """``(B, C, *spatial)``: an input with these elements ``(B, C or 1, *spatial or ones)`` imputed."""
    tensor = judge.replacements.tensors[slot]
    image = tensor[example].detach().cpu().double().numpy()
    masks = where.cpu().expand(len(where), *where.shape[1:2], *image.shape[1:]).numpy()
    noise = np.random.default_rng((judge.seed, _PURPOSE, slot)).normal(size=image.shape)
    noise *= _NOISE * np.ptp(image, axis=tuple(range(1, image.ndim)), keepdims=True)
    found = []
    for mask in masks:
        if len(mask) == 1 or (mask == mask[:1]).all():
            filled = impute(image, mask[0])
        else:
            filled = np.concatenate([impute(image[[c]], mask[c]) for c in range(len(image))])
        found.append(np.where(mask, filled + noise, image))
    return torch.from_numpy(np.stack(found)).to(tensor)


def _neighbors(shape: tuple[int, ...]) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], float]]:
    """Every direction to a neighbor: the elements that have one there, these neighbors, and their weight."""
    for step in itertools.product((-1, 0, 1), repeat=len(shape)):
        differing = sum(map(abs, step))
        if differing:
            here = tuple(slice(max(0, -one), size - max(0, one)) for one, size in zip(step, shape))
            there = tuple(slice(max(0, one), size - max(0, -one)) for one, size in zip(step, shape))
            yield here, there, 2.0 ** (1 - differing)


def _solved(system: sparse.spmatrix, right: np.ndarray) -> np.ndarray:
    """``(C, n)`` solutions of a symmetric, positive definite system."""
    bands = np.abs(system.indices - np.repeat(np.arange(system.shape[0]), np.diff(system.indptr))).max(initial=0)
    if system.shape[0] * bands <= _LARGEST:
        found: np.ndarray = linalg.splu(system.tocsc()).solve(right.T).T
        return found
    # Of a volume, a factorization would take many times its memory. To a relative error of 1e-5, SciPy's default.
    scale = sparse.diags(1 / system.diagonal())
    solutions = []
    for one in right:
        solution, failed = linalg.cg(system, one, maxiter=10_000, M=scale)
        if failed:
            raise ArithmeticError("road: the system of linear imputation did not converge")
        solutions.append(solution)
    return np.stack(solutions)


register(
    "road",
    road,
    "lower",
    source="Rong et al. 2022 (arXiv 2202.00449), most relevant first",
    measurements=("imputation",),
    on_request=True,
)
