"""Many interventions on layers in one run: what lies upstream of the layers is computed once per batch, not once per intervention."""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.sites import LayersSite

__all__ = ["Vmapped"]

logger = logging.getLogger(__name__)

_Run = Callable[[Sequence[Tensor], np.ndarray, Sequence[Tensor] | None], Any]


class Vmapped:
    """Runs a function under :func:`torch.func.vmap` over the replaced tensors of a site, as long as that gives what the model gives.

    Args:
        site: the layers.
        function: what is run; it must not look at values, which vmap does not allow.
        hooked: the same, once per intervention: ``(tensors, examples, where)`` to what the function returns.
        ledger: where forwards are counted, and giving up is noted.
        works: whether to try.

    Attributes:
        works: whether it is still in use.
    """

    def __init__(
        self, site: LayersSite, function: Callable[..., Any], hooked: _Run, ledger: Ledger, *, works: bool = True
    ) -> None:
        self._site, self._function, self._hooked, self._ledger = site, function, hooked, ledger
        self.works = works
        # How many rows of a batch it has been compared on.
        self._compared = 0

    def run(self, tensors: Sequence[Tensor], examples: np.ndarray, where: Sequence[Tensor] | None = None) -> Tensor | None:
        """What the function returns for the rows of the tensors, ``(B, ...)``; ``None`` (from now on) if vmap does not go with it."""
        if not self.works:
            return None
        parts, order = [], []
        for example in np.unique(examples).tolist():
            rows = np.flatnonzero(examples == example)
            mine, here = (None if values is None else _rows(values, rows) for values in (tensors, where))
            assert mine is not None
            try:
                found = self._of_example(example, mine, here)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                # What vmap cannot take shows as any of these; a fault of the model's own comes back from the hooked run.
                self._give_up("vmap does not go with this model", error)
                return None
            if not self._agrees(found, examples[rows], mine, where=here):
                return None
            parts.append(found)
            order.append(rows)
        back = torch.as_tensor(np.argsort(np.concatenate(order)), device=parts[0].device)
        return torch.cat(parts)[back]

    def _of_example(self, example: int, tensors: list[Tensor], where: list[Tensor] | None) -> Tensor:
        call, n = self._site.call(np.array([example])), len(tensors)

        def run(*row: Tensor) -> Any:
            new, places = row[:n], row[n:]

            def put(slots: slice, live: Sequence[Tensor]) -> Sequence[Tensor]:
                given = [tensor.unsqueeze(0) for tensor in new[slots]]
                if not places:
                    return given
                return [torch.where(at.unsqueeze(0), one, old) for at, one, old in zip(places[slots], given, live)]

            return self._site.edited(self._function, put, call)

        with warnings.catch_warnings():
            # Some attention kernels are run row by row, and say so; all that lies upstream is still computed once.
            warnings.filterwarnings(
                "ignore", message="There is a performance drop because we have not yet implemented the batching"
            )
            found: Tensor = torch.func.vmap(run)(*tensors, *(where or ()))
        return found.flatten(0, 1)

    def _agrees(self, found: Tensor, examples: np.ndarray, tensors: list[Tensor], where: list[Tensor] | None) -> bool:
        """Whether the first batch agrees with the hooked run on a few of its rows; if not, vmap is not used."""
        few = np.unique(np.linspace(0, len(examples) - 1, 2).astype(int))
        # A single row says nothing of several.
        if len(few) <= self._compared:
            return True
        self._ledger.count("vmap compared", len(few))
        plain = self._hooked(_rows(tensors, few), examples[few], None if where is None else _rows(where, few))
        chosen = found.index_select(0, torch.as_tensor(few, device=found.device))
        if plain.shape != chosen.shape:
            self._give_up(f"vmap gives shape {tuple(chosen.shape)}, the model itself {tuple(plain.shape)}")
            return False
        largest = float((plain.double() - chosen.double()).abs().max())
        # The two ways differ by the order of floating-point operations; more than half the digits is another result.
        digits = torch.finfo(plain.dtype).eps ** 0.5 if plain.is_floating_point() else 0.0
        if not largest <= digits * float(plain.double().abs().max()):
            self._give_up(f"vmap gives other values than the model itself, by {largest:.3g}")
            return False
        self._compared = len(few)
        return True

    def _give_up(self, reason: str, error: Exception | None = None) -> None:
        lines = str(error).strip().splitlines() if error is not None else []
        detail = f" ({lines[0]})" if lines else ""
        logger.info("%s%s: the whole model is run once per intervention instead", reason, detail)
        self._ledger.disable("vmap", f"{reason}{detail}")
        self.works = False


def _rows(tensors: Sequence[Tensor], rows: np.ndarray) -> list[Tensor]:
    return [tensor.index_select(0, torch.as_tensor(rows, device=tensor.device)) for tensor in tensors]
