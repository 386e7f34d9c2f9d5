"""Forward counts of a call, and what is disabled in it."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["Ledger"]


class Ledger:
    """One per call, handed to whoever runs the model.

    Attributes:
        forwards: images that went through the model besides the interventions and the observed ones, by purpose.
        disabled: what is not done with this model, and why.
        windows_observed: how many windows of a sliding-window model the observed images took.
    """

    def __init__(self) -> None:
        self.forwards: Counter[str] = Counter()
        self.disabled: dict[str, str] = {}
        self.windows_observed = 0

    def count(self, purpose: str, n_images: int) -> None:
        """So many images went through the model."""
        self.forwards[purpose] += n_images

    @contextmanager
    def observing(self, model: WindowedModel | None) -> Iterator[None]:
        """The windows that are run within are those of observed images."""
        before = 0 if model is None else model.windows_run
        yield
        self.windows_observed += 0 if model is None else model.windows_run - before

    def disable(self, what: str, why: str) -> None:
        """This is not done."""
        self.disabled[what] = why
