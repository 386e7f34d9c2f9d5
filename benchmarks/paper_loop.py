"""The protocol of PdCR (arXiv 2602.20511) written as its authors describe it: block by block, 3 donors and then 50 at a time.

For every block in turn that does not touch the region of interest: 3 donors are drawn with replacement and pasted, and the
network is run on the 3 images; if no score differs from the observed one by the threshold, the block's effect is 0. Otherwise
50 new donors are drawn, the network is run on the 50 images, and the mean is the effect; if it is smaller than the
threshold, the effect is 0 too. Nothing is shared between blocks.

Signs are this library's, observed minus intervened. (The paper's own metric counts outputs above 0.5 without an
activation, and empty against empty as 0; here the score is an argument, so that both loops can be given the same one.)
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

N_SCREENING, N_FINE, THRESHOLD = 3, 50, 0.0002


@torch.no_grad()
def paper_loop(
    score: Callable[[Tensor], Tensor],
    image: Tensor,
    blocks: Sequence[tuple[int, int]],
    patches: Tensor,
    *,
    n_screening: int = N_SCREENING,
    n_fine: int = N_FINE,
    threshold: float = THRESHOLD,
    seed: int = 0,
) -> tuple[np.ndarray, int]:
    """Effects ``(U,)`` of the blocks, and how many images went through the network.

    Args:
        score: images ``(N, C, H, W)`` to scores ``(N,)``.
        image: ``(1, C, H, W)``.
        blocks: first row and first column of each; none of them touches the region of interest.
        patches: donors ``(D, C, h, w)``, as large as the blocks.
        n_screening: draws that decide whether more are made.
        n_fine: further draws.
        threshold: in the score's units.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = patches.shape[2:]
    observed = score(image)[0]
    effects, n_forwards = np.zeros(len(blocks)), 1

    def changes(row: int, column: int, n: int) -> Tensor:
        batch = image.repeat(n, 1, 1, 1)
        batch[:, :, row : row + height, column : column + width] = patches[
            torch.randint(len(patches), (n,), generator=generator)
        ]
        return score(batch) - observed

    for index, (row, column) in enumerate(blocks):
        coarse = changes(row, column, n_screening)
        n_forwards += n_screening
        if bool((coarse.abs() < threshold).all()):
            continue
        fine = float(changes(row, column, n_fine).mean())
        n_forwards += n_fine
        if abs(fine) >= threshold:
            effects[index] = -fine
    return effects, n_forwards


def simulated(
    differences: np.ndarray,
    generator: np.random.Generator,
    *,
    n_screening: int = N_SCREENING,
    n_fine: int = N_FINE,
    threshold: float = THRESHOLD,
) -> tuple[np.ndarray, np.ndarray]:
    """The same from known scores: effects ``(U,)`` and forwards per unit ``(U,)``.

    Args:
        differences: ``observed - intervened`` ``(U, D)``, of every donor.
        generator: of the draws.
        n_screening, n_fine, threshold: as above.
    """
    units, donors = differences.shape
    drawn = np.take_along_axis(differences, generator.integers(0, donors, (units, n_screening + n_fine)), axis=1)
    goes_on = (np.abs(drawn[:, :n_screening]) >= threshold).any(1)
    fine = drawn[:, n_screening:].mean(1)
    effects = np.where(goes_on & (np.abs(fine) >= threshold), fine, 0.0)
    return effects, n_screening + n_fine * goes_on
