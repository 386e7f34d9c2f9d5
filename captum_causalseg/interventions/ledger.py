"""Forward counts of a call, and what is disabled in it."""

from collections import Counter

__all__ = ["Ledger"]


class Ledger:
    """One per call, handed to whoever runs the model.

    Attributes:
        forwards: images that went through the model besides the interventions and the observed ones, by purpose.
        disabled: what is not done with this model, and why.
    """

    def __init__(self) -> None:
        self.forwards: Counter[str] = Counter()
        self.disabled: dict[str, str] = {}

    def count(self, purpose: str, n_images: int) -> None:
        """So many images went through the model."""
        self.forwards[purpose] += n_images

    def disable(self, what: str, why: str) -> None:
        """This is not done."""
        self.disabled[what] = why
