"""What the model got wrong as a region of interest, and the score that moves there."""

import re
from dataclasses import dataclass

from torch import Tensor

from captum_causalseg import regions
from captum_causalseg.boxes import hull
from captum_causalseg.preparation.grid import Grids

__all__ = ["Mistake", "find_mistake", "is_mistake", "score_of_mistake"]

_PATTERN = re.compile(r"error:(?:(any|false_positive|missed):)?([1-9]\d*)")
# Where everything is wrong, Dice is 0 until something is right. These move; where a mistake is of both kinds, only what weighs all pixels does.
_SCORES = {"false_positive": "volume", "missed": "detection", "both": "soft_dice"}
_NAMES = {"any": "part that the model got wrong", "false_positive": "false positive", "missed": "missed part"}
_IN_WORDS = {
    "false_positive": "which is predicted and not in the reference",
    "missed": "which is in the reference and not predicted",
    "both": "of which some is predicted wrongly and some is missed",
}


@dataclass(frozen=True, eq=False)
class Mistake:
    """A connected part of what the model got wrong about a class.

    Args:
        mask: boolean ``(*spatial)``, on the prepared grid.
        kind: ``"false_positive"``, ``"missed"`` or ``"both"``.
        described: what it is, how large and where, in words.
    """

    mask: Tensor
    kind: str
    described: str

    @property
    def score(self) -> str:
        """The metric that fits it."""
        return _SCORES[self.kind]


def is_mistake(text: str) -> bool:
    """Whether this value of ``--roi`` asks for a mistake."""
    return text.partition(":")[0] == "error"


def score_of_mistake(text: str) -> str | None:
    """The metric that fits what is asked for; ``None`` where that depends on the image.

    Raises:
        ValueError: it is not how mistakes are asked for.
    """
    kind, _ = _asked(text)
    return _SCORES.get(kind)


def find_mistake(text: str, grids: Grids, prediction: Tensor, truth: Tensor) -> Mistake:
    """The mistake that is asked for.

    Args:
        text: ``error:1``, ``error:missed:1``, ``error:false_positive:2``: of what kind, and which, by its size.
        grids: of the image.
        prediction: of the class, boolean ``(*spatial)``, on the prepared grid.
        truth: likewise.

    Raises:
        ValueError: it is not how mistakes are asked for, or there are fewer of them.
    """
    kind, rank = _asked(text)
    mask = regions.errors(prediction, truth, kind=kind, rank=rank)  # type: ignore[arg-type]  # one of the pattern's words
    is_both = bool(prediction[mask].any()) and bool(truth[mask].any())
    found = "both" if is_both else "false_positive" if bool(prediction[mask].any()) else "missed"
    named = _NAMES[kind]
    said = f"the largest {named}" if rank == 1 else f"{named}, number {rank} by size"
    said += f": {int(mask.sum())} {grids.noun}" + (" of the prepared image" if grids.differ else "")
    own = grids.to_own(mask)
    if bool(own.any()):
        said += " in " + " x ".join(f"{side.start}-{side.stop - 1}" for side in hull(own))
    return Mistake(mask, found, f"{said}, {_IN_WORDS[found]}")


def _asked(text: str) -> tuple[str, int]:
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise ValueError(f"expected error:1, error:missed:1 or error:false_positive:1 (1: the largest), got {text!r}")
    return found[1] or "any", int(found[2])
