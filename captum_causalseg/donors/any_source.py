"""What sources of donors have in common, those of inputs and those of layers: they can be parted, and say what they are made of."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from captum_causalseg._checks import NONE, SEED, checked, integer, number, sequence, shown
from captum_causalseg.donors.images import random_parts

__all__ = ["AnySource", "CannotSplit"]


class CannotSplit(ValueError):
    """A source whose donors are not made of images that could be split, such as a constant.

    Example:
        >>> from captum_causalseg.donors import CannotSplit, Constant
        >>> try:
        ...     Constant(0.0).split()
        ... except CannotSplit as error:
        ...     print(error)
        split: expected a source made of donor images, got Constant(0.0); give images, such as a PatchBank
    """


_S = TypeVar("_S", bound="AnySource")


class AnySource:
    """What every source of donors says of itself, for inputs (:class:`DonorSource`) and for layers (``ActivationBank``)."""

    @property
    def n_images(self) -> int | None:
        """Of how many images the donors are made; ``None`` for a source that is not made of images, and cannot be split."""
        return None

    def chosen(self: _S, indices: Sequence[int]) -> _S:
        """A source made of some of the images alone; to be given by every source that has ``n_images``."""
        raise NotImplementedError(f"{type(self).__name__}.chosen: a source of n_images images says what some of them are")

    @checked(fractions=sequence(number()), parts=NONE | integer(1), seed=SEED)
    def split(self: _S, *fractions: float, parts: int | None = None, seed: int = 0) -> tuple[_S, ...]:
        """Sources over disjoint random subsets of the images, to hold donors out or to compare two halves.

        Images are never divided: places of one image lie in one part. Sources with as many images are parted alike.

        Args:
            fractions: what share of the images each part gets, positive and at most 1 in sum; what is left over is in no part.
            parts: instead of fractions, into how many equal parts (to one image) to split; 2 if neither is given.
            seed: of the random choice.

        Returns:
            As many sources as fractions or parts.

        Raises:
            CannotSplit: the donors are not made of images.
            ValueError: fractions that are not positive or are more than 1 in sum, both ``fractions`` and ``parts``, or too few
                images for every part to have one.

        Example:
            >>> import torch
            >>> from captum_causalseg import PatchBank
            >>> estimation, held_out = PatchBank(torch.rand(10, 1, 8, 8)).split(0.8, 0.2)
            >>> len(estimation), len(held_out)
            (8, 2)
        """
        count = self.n_images
        if count is None:
            raise CannotSplit(f"split: expected a source made of donor images, got {self!r}; give images, such as a PatchBank")
        if fractions and parts is not None:
            raise ValueError(f"parts: expected either fractions or parts, got fractions {fractions} and parts={parts!r}")
        if fractions:
            shares = np.array(fractions, dtype=np.float64)
            if not (shares > 0).all() or shares.sum() > 1 + 1e-9:
                raise ValueError(f"fractions: expected positive numbers of sum 1 at most, got {fractions}")
        else:
            parts = 2 if parts is None else min(parts, count + 1)  # of more, some are empty just so
            shares = np.full(parts, 1 / parts)
        chosen = random_parts(count, shares.tolist(), seed)
        if not all(chosen):
            name, given = ("fractions", fractions) if fractions else ("parts", parts)
            raise ValueError(f"{name}: expected at least one image in every part, got {given} for a bank of {count} image(s)")
        return tuple(self.chosen(indices) for indices in chosen)

    def describe(self) -> dict[str, Any]:
        """What decides which donors there are, by name: what it was made with, without what is found out on the way.

        A cohort is only continued with donors of which this is the same: values are compared by their contents, tensors and images too.
        In ``statistics.settings`` they are named in short. By default the source's state, as ``pickle`` sees it (``__getstate__``).
        """
        state = self.__reduce_ex__(4)[2:3]
        parts = [part for one in state for part in (one if isinstance(one, tuple) and len(one) == 2 else (one,))]
        found: dict[str, Any] = {}
        for part in parts:
            found |= part if isinstance(part, dict) else {} if part is None else {"state": part}
        return found

    def fresh(self: _S) -> _S:
        """A source of the same donors with nothing kept from earlier calls."""
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={shown(value)}' for name, value in self.describe().items())})"
