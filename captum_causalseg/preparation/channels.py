"""Channels of the image (modalities, such as T1 and T2) as the command line names them: which are replaced, and what the results call them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

__all__ = ["Modalities", "find_modalities"]


@dataclass(frozen=True)
class Modalities:
    """Which channels of the image are replaced.

    Args:
        asked: ``"each"``: every one by itself; the numbers of those that are replaced, together; ``None``: all, together.
        names: of all channels.
    """

    asked: Literal["each"] | tuple[int, ...] | None
    names: tuple[str, ...]

    @property
    def described(self) -> str:
        """What is replaced, after the parts of the image; empty where that is all channels."""
        if self.asked is None:
            return ""
        return f"in each of {', '.join(self.names)} by itself" if self.asked == "each" else f"in {self.together} only"

    @property
    def together(self) -> str:
        """The names of those that are replaced together."""
        chosen = range(len(self.names)) if self.asked in (None, "each") else self.asked
        return " + ".join(self.names[channel] for channel in chosen if isinstance(channel, int))

    @property
    def shown(self) -> list[tuple[int | None, str]]:
        """What there is a map of: a channel's number, and what it is called; without a name where that is all of the image."""
        if self.asked == "each":
            return list(enumerate(self.names))
        return [(None, "")] if self.asked is None else [(self.asked[0], self.together)]

    def named(self, table: pd.DataFrame) -> pd.DataFrame:
        """A table of effects with a column ``modality``, where not all channels are replaced together."""
        if self.asked is None:
            return table
        if self.asked != "each" and len(self.asked) < len(self.names):
            # What lies in the other channels has a number after the parts' own.
            table = table[table["unit"] != table["unit"].max()]
        names = [self.names[channel] if self.asked == "each" else self.together for channel in table["channel"].tolist()]
        found = table.copy()
        found.insert(found.columns.get_loc("channel") + 1, "modality", names)
        return found

    def file_name(self, beginning: str, channel: int | None, ending: str) -> str:
        """Of what is written of a channel, or of those together."""
        if self.asked != "each" or channel is None:
            return f"{beginning}{ending}"
        plain = [re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") for name in self.names]
        unique = plain[channel] and plain.count(plain[channel]) == 1
        return f"{beginning}_{plain[channel] if unique else channel}{ending}"


def find_modalities(words: Sequence[str] | None, names: Sequence[str], count: int) -> Modalities:
    """The channels that the command line names.

    Args:
        words: ``each``, or names or numbers; ``None``: all channels.
        names: of the channels, as far as they are known.
        count: how many there are.

    Raises:
        ValueError: there is no such channel, or a single one.
    """
    known = tuple(names) if len(names) == count else tuple(f"channel {number}" for number in range(count))
    if words is None:
        return Modalities(None, known)
    expected = f"each, or some of 0..{count - 1}" + (f" ({', '.join(known)})" if len(names) == count else "")
    if list(words) == ["each"]:
        if count == 1:
            raise ValueError("expected an image of several channels, got one, which is replaced anyway")
        return Modalities("each", known)
    numbers = [known.index(word) if word in known else int(word) if word.isdecimal() else count for word in words]
    wrong = [word for word, number in zip(words, numbers) if number >= count]
    if wrong:
        raise ValueError(f"expected {expected}, got {wrong[0]!r}")
    return Modalities(tuple(sorted(set(numbers))), known)
