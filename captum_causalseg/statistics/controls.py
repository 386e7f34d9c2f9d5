"""Controls: effects of donors that change nothing but the joint, and what they say of the effects that they are controls for."""

import numpy as np
from numpy.typing import ArrayLike

from captum_causalseg.statistics.intervals import p_value_above, satterthwaite

__all__ = ["EDGE_MATCHED", "EDGE_SHIFTED", "larger_than_control"]

EDGE_SHIFTED, EDGE_MATCHED = "edge_shifted", "edge_matched"
"""Names of the controls of ``controls="edge"``: the unit's own tissue, shifted by a pixel or two; the donors at the unit's own mean."""


def larger_than_control(
    effect: tuple[ArrayLike, ArrayLike, ArrayLike], control: tuple[ArrayLike, ArrayLike, ArrayLike], alpha: float
) -> np.ndarray:
    """Which effects are significantly larger in size than their controls, ``|effect| > |control|``, unit by unit.

    The hypothesis to refute is ``|control| >= |effect|``, in whichever direction. For an effect of one sign that is "effect - control or
    effect + control does not have that sign", and an intersection-union test takes the larger of the two one-sided p-values: that of
    ``t = (|effect| - |control|) / sqrt(error_e^2 + error_c^2)``, with Satterthwaite's degrees of freedom.

    Args:
        effect: estimates, standard errors and degrees of freedom, of one shape.
        control: likewise. Of a control that is exactly 0 and whose error is not known, no draw of any unit moved the score: it counts
            as 0.
        alpha: error rate.

    Returns:
        Booleans of the same shape; False where an effect or a control is not known.

    Example:
        >>> from captum_causalseg.statistics.controls import larger_than_control
        >>> control = [0.1, -0.1, 0.25], [0.04, 0.04, 0.04], [10, 10, 10]
        >>> larger_than_control(([0.3, 0.3, 0.3], [0.03, 0.03, 0.03], [20, 20, 20]), control, alpha=0.05).tolist()  # t = 4, 4, 1
        [True, True, False]
    """
    (size, error, freedom), (joint, own_error, own_freedom) = (
        [np.asarray(part, dtype=np.float64) for part in one] for one in (effect, control)
    )
    own_error = np.where(np.isinf(own_error) & (joint == 0), 0.0, own_error)
    variances = np.stack([error**2, own_error**2])
    together = satterthwaite(variances, np.stack([freedom, own_freedom]))
    p = p_value_above(np.abs(size) - np.abs(joint), np.sqrt(variances.sum(0)), together)
    surely: np.ndarray = p <= alpha
    return surely
