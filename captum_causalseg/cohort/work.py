"""What a study does of each case: the one thing in which studies differ."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from captum_causalseg.interventions.execution import Part

__all__ = ["CaseWork", "Subject"]


@dataclass(frozen=True)
class Subject:
    """A case that is ready to be worked on.

    Args:
        name: its id.
        case: as it was given, or as ``prepare`` made it.
        target: what is explained.
        inputs: its images, as batches of one on the model's device.
        is_tuple: whether there may be several of them.
        arguments: of the study and of the case.
    """

    name: str
    case: Mapping[str, Any]
    target: Any
    inputs: tuple[Tensor, ...]
    is_tuple: bool
    arguments: Mapping[str, Any]

    @property
    def given(self) -> Any:
        """The images as methods take them: a tensor, or a tuple."""
        return self.inputs if self.is_tuple else self.inputs[0]


class CaseWork(ABC):
    """What is done of each case; all the rest is the same for every study: order, resuming, workers, errors, files."""

    @abstractmethod
    def write(self, subject: Subject, place: Path, parts: Sequence[Path]) -> dict[str, Any]:
        """Write a case's files into an empty folder.

        Args:
            subject: the case.
            place: the folder.
            parts: of a case that was done in parts, their files.

        Returns:
            What the table of cases says of it: ``n_units``, ``forwards``, ``observed_score``, and whatever else is to be noted. What JSON
            can hold.
        """

    def write_part(self, subject: Subject, part: Part, path: Path) -> None:
        """Do one part of a case, and write what came of it."""
        raise NotImplementedError(f"{type(self).__name__} does a case as a whole")

    def seed(self, subject: Subject) -> Any:
        """The seed of what is random in it; ``None`` if nothing is."""
        return None

    def is_outdated(self, record: Mapping[str, Any]) -> bool:
        """Whether a finished case is to be done again because what it was made of is no longer what it was."""
        return False
