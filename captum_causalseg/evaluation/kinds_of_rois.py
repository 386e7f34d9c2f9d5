"""What kind of place a region of interest is, by what the model made of it."""

from typing import Literal

import numpy as np
from torch import Tensor

from captum_causalseg._checks import array_of, checked
from captum_causalseg.evaluation.unit_space import to_numpy

__all__ = ["RoiKind", "roi_kind"]

RoiKind = Literal["boundary", "inside", "false positive", "missed", "outside"]
_MASK = array_of("boolean")


@checked(prediction=_MASK, reference=_MASK, roi=_MASK)
def roi_kind(prediction: Tensor | np.ndarray, reference: Tensor | np.ndarray, roi: Tensor | np.ndarray) -> RoiKind:
    """What kind of place a region of interest (RoI) is: what a map explains there is another thing in each.

    Args:
        prediction: the object as the model sees it, boolean ``(*spatial)``.
        reference: the object as it is, alike.
        roi: alike, not empty.

    Returns:
        ``"false positive"``: the RoI holds nothing of the object, and the model sees some; ``"missed"``: it holds some, and the model sees nothing;
        ``"outside"``: neither; ``"inside"``: all of it is object, and the model sees all of it; else ``"boundary"``.

    Raises:
        TypeError, ValueError: the masks are not boolean or of different shapes; the RoI is empty.

    Example:
        >>> import torch
        >>> from captum_causalseg import regions
        >>> from captum_causalseg.evaluation import roi_kind
        >>> lesion, seen = regions.box((16, 16), start=4, size=8), regions.box((16, 16), start=8, size=8)
        >>> roi_kind(seen, lesion, regions.box((16, 16), start=4, size=8))
        'boundary'
        >>> [roi_kind(seen, lesion, regions.box((16, 16), start=at, size=3)) for at in (9, 5, 13, 0)]
        ['inside', 'missed', 'false positive', 'outside']
    """
    seen, there, where = (to_numpy(one) for one in (prediction, reference, roi))
    for name, mask in (("reference", there), ("roi", where)):
        if mask.shape != seen.shape:
            raise ValueError(f"{name}: expected the prediction's shape {seen.shape}, got {mask.shape}")
    if not where.any():
        raise ValueError("roi: it is empty, no pixel is True")
    seen, there = seen[where], there[where]
    if not there.any():
        return "false positive" if seen.any() else "outside"
    if not seen.any():
        return "missed"
    return "inside" if seen.all() and there.all() else "boundary"
