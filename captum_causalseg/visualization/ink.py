"""What is drawn on the paper of a figure, beside the pictures: in grays and colors that are seen on it, be it light or dark.

The paper is what matplotlib says it is, ``rcParams["figure.facecolor"]``, and its letters ``rcParams["text.color"]``: a style such as
``"dark_background"`` holds for all pictures. What lies on an image is the same on both, as the image is.
"""

import numpy as np
from matplotlib import rcParams
from matplotlib.colors import to_hex, to_rgb, to_rgba

from captum_causalseg.visualization.pictures import ROLES

__all__ = ["ink", "on_dark", "role_color", "series_colors"]

# The same hues as on white, from the same scale, as light as is seen on black.
_LIGHT_ROLES = {"supporting": "#d6604d", "harming": "#4393c3"}
# Okabe and Ito's colors, told apart with any kind of color blindness; the last one is that of the letters.
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_LIGHT_BLUE = "#2C8FDB"


def ink(gray: float = 0.0) -> str:
    """A gray between the letters, 0, and the paper, 1: on white paper matplotlib's gray of that number."""
    letters = np.array(to_rgb(rcParams["text.color"]))
    return to_hex(letters + gray * (_paper() - letters))


def on_dark() -> bool:
    """Whether the paper is darker than its letters."""
    return float(_paper().mean()) < 0.5


def role_color(role: str) -> str:
    """The color of what is ``"supporting"``, ``"harming"`` or ``"null"``."""
    if role == "null":
        return ink(float(ROLES[role]))
    return _LIGHT_ROLES[role] if on_dark() else ROLES[role]


def series_colors() -> tuple[str, ...]:
    """Of curves that are told apart by their colors."""
    return (_LIGHT_BLUE if on_dark() else _SERIES[0], *_SERIES[1:], ink())


def _paper() -> np.ndarray:
    red, green, blue, opacity = to_rgba(rcParams["figure.facecolor"])
    # Of paper that is not there, it is known only that the letters are to be read on it.
    return np.array((red, green, blue)) if opacity > 0 else 1 - np.array(to_rgb(rcParams["text.color"]))
