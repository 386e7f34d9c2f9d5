"""How a unit's effect came about, and of which units "no effect" is a question."""

from enum import IntEnum
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from captum_causalseg._checks import array_of, checked, instance

__all__ = ["Status", "is_hypothesis"]

_COLUMN = instance(pd.Series, expected="a column of a table")


class Status(IntEnum):
    """How a unit's effect on one output came about.

    Example:
        >>> from captum_causalseg import Status
        >>> Status(2), Status.SCREENED.name
        (<Status.OUTSIDE_SUPPORT: 2>, 'SCREENED')
    """

    ESTIMATED = 0
    """All its draws were made."""
    SCREENED = 1
    """No screening draw moved the score by the threshold: the effect is the mean of those few draws."""
    OUTSIDE_SUPPORT = 2
    """The unit cannot reach the RoI through the model: the effect is exactly 0."""
    EXCLUDED = 3
    """The unit was not intervened on (it touches the RoI): nothing is known."""
    ABSENT = 4
    """This example has no such unit (feature masks that differ between examples)."""
    FIRST_ORDER = 5
    """The effect is that of a gradient: no intervention was made, and its error is not known."""


_HYPOTHESES = (Status.ESTIMATED, Status.SCREENED)


@checked(status=array_of() | _COLUMN)
def is_hypothesis(status: "Tensor | np.ndarray | pd.Series[Any]") -> np.ndarray:
    """Whether "no effect" is a question of units with this status: of those that were intervened on.

    Args:
        status: :class:`Status` as numbers or as names, of any shape; a tensor, an array, or the column ``status`` of a table.

    Returns:
        Booleans of the same shape: True where ESTIMATED or SCREENED, False where OUTSIDE_SUPPORT, EXCLUDED, ABSENT or FIRST_ORDER.

    Example:
        >>> import numpy as np
        >>> from captum_causalseg.statistics import Status, is_hypothesis
        >>> is_hypothesis(np.array([Status.SCREENED, Status.OUTSIDE_SUPPORT])), is_hypothesis(np.array(["ESTIMATED", "EXCLUDED"]))
        (array([ True, False]), array([ True, False]))
    """
    values = np.asarray(status)
    if values.dtype.kind in "iubf":
        return np.isin(values, [int(one) for one in _HYPOTHESES])
    return np.isin(values.astype(str), [one.name for one in _HYPOTHESES])
