"""Many interventions on layers, where what does not follow from the layers is not computed again.

The first time that an example is run, one intervention at a time, the calls of the model's modules are written down. What a module has returned by
the time that a layer's activation is replaced cannot depend on it, and neither can what a module makes of such things alone later on. Where the
example is run again, these modules are not: they return what they returned, once per intervention.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._state import in_this_thread, modules_of
from captum_causalseg.interventions.ledger import Ledger

__all__ = ["COMPARED", "Carried", "HasLayers", "IsReplaced", "Journal", "Memory", "Replay", "disagreement"]

logger = logging.getLogger(__name__)

_Run = Callable[[Sequence[Tensor], np.ndarray, Sequence[Tensor] | None], Any]

# So many rows are compared with the model itself. Where a batch does not save as many, the model is run as it is until twice as many would have been
# saved.
COMPARED = 2
# What is remembered of all images (or windows) takes at most half a gigabyte in single precision; those that come later are run whole.
_MOST_ELEMENTS = 2**27
# What a module may be given besides tensors: it holds none.
_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size)


class IsReplaced(Protocol):
    """A module, and whether what it takes is replaced, not what it returns."""

    @property
    def module(self) -> nn.Module:
        """The module."""

    @property
    def at_input(self) -> bool:
        """Whether what it takes is replaced."""


class HasLayers(Protocol):
    """The modules whose tensors are replaced, such as a :class:`~captum_causalseg.interventions.sites.LayersSite`."""

    @property
    def layers(self) -> Sequence[IsReplaced]:
        """The modules."""


class Replay:
    """Runs a function with other tensors in the place of a site's, as long as that gives what the model gives.

    Args:
        site: the layers.
        function: what is run; the modules that it can be seen to run are those that are replayed.
        ledger: where forwards are counted, and giving up is noted.
        batch: it with hooks, all rows in one batch: ``(tensors, examples, where)`` to what the function returns.
        whole: the same, whether the model takes batches or not.
        works: whether to try.
        sharers: how many of these there are, which share what may be remembered.
        singly: whether a single row is replayed, too. By default it is not, so that a look at the image as it is sees the model itself.

    Attributes:
        works: whether it is still in use.
        at_stake: so many rows of an example are to be run, where that is known.
        n_spared: so many rows were not run, for what the model returns was known.
    """

    at_stake = n_spared = 0

    def __init__(
        self,
        site: HasLayers,
        function: Callable[..., Any],
        ledger: Ledger,
        *,
        batch: _Run,
        whole: _Run,
        works: bool = True,
        sharers: int = 1,
        singly: bool = False,
    ) -> None:
        self._site, self._function, self._batch, self._whole, self._ledger = site, function, batch, whole, ledger
        self.works, self._singly, self._most_elements = works, singly, _MOST_ELEMENTS // sharers
        self._memories: dict[int, Memory] = {}

    def remember(self, example: int, memory: "Memory") -> None:
        """What need not be computed again of the example, from a run of it as it is."""
        if self.works:
            self._memories[example] = self._fitting(memory)

    def run(
        self,
        tensors: Sequence[Tensor],
        examples: np.ndarray,
        where: Sequence[Tensor] | None = None,
        known: Mapping[int, Tensor] | None = None,
    ) -> Any:
        """What the function returns for the rows of the tensors, ``(B, ...)``, by whatever way saves most.

        Args:
            tensors, examples, where: as of :meth:`LayersSite.run`.
            known: of some rows what the model itself has returned, which they are compared with where they are replayed.
        """
        known = known or {}
        if not self.works:
            return self._rest(tensors, examples, where, known=known)
        parts, order = [], []
        which = np.unique(examples).tolist()
        if len(which) == 1:
            return self._of_example(which[0], list(tensors), None if where is None else list(where), known=known)
        for example in which:
            rows = np.flatnonzero(examples == example)
            mine, here = (None if values is None else _rows(values, rows) for values in (tensors, where))
            assert mine is not None
            of_example = {place: known[row] for place, row in enumerate(rows.tolist()) if row in known}
            parts.append(self._of_example(example, mine, here, known=of_example))
            order.append(rows)
        back = torch.as_tensor(np.argsort(np.concatenate(order)), device=parts[0].device)
        return torch.cat(parts)[back]

    @property
    def compared(self) -> bool:
        """Whether it was seen to give what the model gives."""
        return any(memory.compared for memory in self._memories.values())

    def most_checks(self, n_examples: int) -> int:
        """How many rows may still be run to record so many examples, and to compare them with the model itself."""
        if not self.works:
            return 0
        known = [0 if memory.compared else COMPARED for memory in self._memories.values()]
        return int(sum(known) + (1 + COMPARED) * (n_examples - len(known)))

    def spared(self) -> list[nn.Module]:
        """The modules that are not run again, in none of the examples so far."""
        memories = list(self._memories.values()) if self.works else []
        held = [{id(module) for module, _ in memory.returned} for memory in memories]
        return [module for module, _ in memories[0].returned if all(id(module) in ids for ids in held)] if memories else []

    @property
    def n_held(self) -> int:
        """How many elements these returned for one example."""
        return max((memory.size for memory in self._memories.values()), default=0)

    def _rest(
        self, tensors: Sequence[Tensor], examples: np.ndarray, where: Sequence[Tensor] | None, *, known: Mapping[int, Tensor]
    ) -> Any:
        """What the model itself returns, run where that is not known."""
        if not known:
            return self._whole(tensors, examples, where)
        rows = np.setdiff1d(np.arange(len(examples)), list(known))
        parts = [torch.stack(list(known.values()))]
        if len(rows):
            parts.append(self._whole(_rows(tensors, rows), examples[rows], None if where is None else _rows(where, rows)))
        self.n_spared += len(known)
        back = np.argsort(np.concatenate([list(known), rows]))
        return torch.cat(parts)[torch.as_tensor(back, device=parts[0].device)]

    def _of_example(
        self, example: int, tensors: list[Tensor], where: list[Tensor] | None, *, known: Mapping[int, Tensor]
    ) -> Any:
        n = len(tensors[0])
        memory = self._memories.get(example)
        if self.works and memory is None and n == 1:
            # Whoever asks for one row (a look at the image as it is comes first) asks for the whole model.
            found, memory = self._remembered(example, tensors, where)
            self._memories[example] = memory
            return found
        if not self.works or (n == 1 and not self._singly):
            return self._rest(tensors, np.full(n, example), where, known=known)
        if memory is None:
            one = np.zeros(1, dtype=np.int64)
            self._ledger.count("replay recorded", 1)
            _, memory = self._remembered(example, _rows(tensors, one), None if where is None else _rows(where, one))
            self._memories[example] = memory
        memory.owed += memory.share * n
        pays = memory.share * max(n, self.at_stake) >= COMPARED or memory.owed >= 2 * COMPARED
        if not memory.compared and not pays:
            return self._rest(tensors, np.full(n, example), where, known=known)
        return self._replayed(example, memory, tensors, where=where, known=known)

    def _remembered(self, example: int, tensors: list[Tensor], where: list[Tensor] | None) -> tuple[Any, "Memory"]:
        """What the whole model gives for one row, and what of it needs no second time."""
        with torch.inference_mode(False), torch.no_grad():
            journal = Journal([(layer.module, layer.at_input) for layer in self._site.layers])
            with journal.kept(modules_of(self._function)):
                found = self._whole(tensors, np.array([example]), where)
            memory = journal.memory(stub=where is None)
        return found, self._fitting(memory)

    def _fitting(self, memory: "Memory") -> "Memory":
        if memory.size + sum(one.size for one in self._memories.values()) > self._most_elements:
            return Memory([], [], share=0.0)
        return memory

    def _replayed(
        self,
        example: int,
        memory: "Memory",
        tensors: list[Tensor],
        *,
        where: list[Tensor] | None,
        known: Mapping[int, Tensor],
    ) -> Any:
        n, found, reason = len(tensors[0]), None, "the model cannot be run without what it computed before"
        error: Exception | None = None
        # First without copies of what was returned, which some operations do not take.
        for copies in (False, True) if not memory.copies else (True,):
            memory.copies = copies
            try:
                with torch.inference_mode(False), torch.no_grad(), _standing_in(memory.expanded(n)):
                    # The model may work in place on what it is given, and it may have to be given again.
                    found = self._batch([tensor.clone() for tensor in tensors], np.full(n, example), where)
            except torch.OutOfMemoryError:
                raise
            except Exception as raised:  # a fault of the model's own comes back from the whole run
                found, error = None, raised
                continue
            if memory.intact:
                break
            found, reason = None, "the model changes in place what it computed before"
            break
        if found is None:
            self._give_up(reason, error)
            return self._rest(tensors, np.full(n, example), where, known=known)
        if not memory.compared:
            reason = self._differs(found, example, tensors, where=where, known=known) or ""
            if reason:
                self._give_up(reason)
                return self._rest(tensors, np.full(n, example), where, known=known)
            memory.compared = True
        return found

    def _differs(
        self,
        found: Any,
        example: int,
        tensors: list[Tensor],
        *,
        where: list[Tensor] | None,
        known: Mapping[int, Tensor],
    ) -> str | None:
        """Why the first batch does not agree with the whole model on a few of its rows."""
        if not isinstance(found, Tensor) or found.shape[:1] != tensors[0].shape[:1]:
            return "what replay gives has not one entry per intervention"
        few, parts = np.unique([0, len(tensors[0]) - 1]), []
        few = np.concatenate([list(known), np.setdiff1d(few, list(known))[: max(0, len(few) - len(known))]]).astype(np.int64)
        if known:
            parts.append(torch.stack(list(known.values())))
        rest = few[len(known) :]
        if len(rest):
            self._ledger.count("replay compared", len(rest))
            there = None if where is None else _rows(where, rest)
            parts.append(self._whole(_rows(tensors, rest), np.full(len(rest), example), there))
        plain = torch.cat(parts)
        chosen = found.index_select(0, torch.as_tensor(few, device=found.device))
        return disagreement(chosen, plain)

    def _give_up(self, reason: str, error: Exception | None = None) -> None:
        lines = str(error).strip().splitlines() if error is not None else []
        detail = f" ({lines[0]})" if lines else ""
        logger.info("%s%s: the whole model is run once per intervention instead", reason, detail)
        self._ledger.disable("replay", f"{reason}{detail}")
        self.works = False
        self._memories.clear()


def disagreement(found: Tensor, plain: Tensor) -> str | None:
    """Why what replay gives is not what the model itself gives; ``None`` where it is."""
    if plain.shape != found.shape:
        return f"replay gives shape {tuple(found.shape)}, the model itself {tuple(plain.shape)}"
    largest = float((plain.double() - found.double()).abs().max())
    # Batches of other sizes differ by the order of floating-point operations; more than half the digits is another result.
    digits = torch.finfo(plain.dtype).eps ** 0.5 if plain.is_floating_point() else 0.0
    if not largest <= digits * float(plain.double().abs().max()):
        return f"replay gives other values than the model itself, by {largest:.3g}"
    return None


class Carried:
    """What modules return in one run of some rows, for other runs of the same rows.

    Args:
        modules: each runs at most once.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._carriers = list({id(module): module for module in modules}.values())
        self._returned: dict[int, tuple[nn.Module, Any, list[tuple[Tensor, int]]]] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, the rows are run for the first time."""

        def after(module: nn.Module, args: Any, returned: Any) -> None:
            tensors = _tensors(returned)
            if tensors:
                self._returned[id(module)] = module, returned, tensors

        with ExitStack() as hooks:
            for module in self._carriers:
                hooks.callback(module.register_forward_hook(in_this_thread(after), prepend=True).remove)
            yield
        # What was written into is not what was returned.
        for key in [key for key, (_, _, tensors) in self._returned.items() if any(t._version != v for t, v in tensors)]:
            del self._returned[key]

    @contextmanager
    def standing_in(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Within, these of them return what they returned, and compute nothing."""
        with _standing_in([self._returned[id(module)][:2] for module in modules if id(module) in self._returned]):
            yield

    @property
    def intact(self) -> bool:
        """Whether nothing has written into what was returned."""
        return all(tensor._version == version for _, _, tensors in self._returned.values() for tensor, version in tensors)


@dataclass(eq=False)
class Memory:
    """What modules returned in a run of one row.

    Args:
        returned: the modules that need not run again, and what they returned.
        versions: of all tensors in that.
        share: of the model's work, so much is theirs.
        largest: so many elements has the largest tensor that the other modules return.
    """

    returned: list[tuple[nn.Module, Any]]
    versions: list[tuple[Tensor, int]]
    share: float
    largest: int = 0
    owed: float = 0.0
    copies: bool = False
    compared: bool = False

    def expanded(self, n: int) -> list[tuple[nn.Module, Any]]:
        """The same for so many rows."""

        def of_rows(tensor: Tensor) -> Tensor:
            wide = tensor.expand(n, *tensor.shape[1:])
            return wide.clone(memory_format=torch.preserve_format) if self.copies else wide

        return [(module, _mapped(value, of_rows)) for module, value in self.returned]

    @property
    def size(self) -> int:
        """How many elements are held."""
        return sum(tensor.numel() for tensor, _ in self.versions)

    @property
    def intact(self) -> bool:
        """Whether nothing has written into it."""
        return all(tensor._version == version for tensor, version in self.versions)


@dataclass(eq=False)
class _Call:
    """A module's call: when it began and ended, counted in events; what it was given (``None``: something unknown) and what it returned."""

    module: nn.Module
    began: int
    given: list[tuple[Tensor, int]] | None
    ended: int = -1
    returned: Any = None
    tensors: list[tuple[Tensor, int]] | None = None

    def within(self, other: "_Call") -> bool:
        return other.began < self.began and self.ended < other.ended


class Journal:
    """The calls of modules in one run of one row.

    Args:
        layers: modules, and whether what they take is replaced instead of what they return.
    """

    def __init__(self, layers: Sequence[tuple[nn.Module, bool]]) -> None:
        self._layers = {id(module): at_input for module, at_input in layers}
        self._calls: list[_Call] = []
        self._open: defaultdict[int, list[_Call]] = defaultdict(list)
        self._events = 0

    @contextmanager
    def kept(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Write down what these modules do."""

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._open[id(module)].append(_Call(module, self._next(), _tensors((args, kwargs))))

        def after(module: nn.Module, args: Any, kwargs: Any, returned: Any) -> None:
            call = self._open[id(module)].pop()
            call.ended, call.returned, call.tensors = self._next(), returned, _tensors(returned)
            self._calls.append(call)

        with ExitStack() as hooks:
            for module in modules:
                if not isinstance(module, torch.jit.ScriptModule):
                    for handle in (
                        module.register_forward_pre_hook(in_this_thread(before), with_kwargs=True),
                        module.register_forward_hook(in_this_thread(after), with_kwargs=True, prepend=True),
                    ):
                        hooks.callback(handle.remove)
            yield

    def memory(self, *, stub: bool) -> Memory:
        """What need not be computed again.

        Args:
            stub: whether all that a layer returns is replaced, whatever it was.
        """
        times: defaultdict[int, int] = defaultdict(int)
        for call in self._calls:
            times[id(call.module)] += 1
        layers = self._layers
        replaced = [call.began if layers[id(call.module)] else call.ended for call in self._calls if id(call.module) in layers]
        first = min(replaced, default=-1)
        free: dict[int, int] = {}
        chosen: list[_Call] = []
        for call in self._calls:  # in the order in which they ended
            is_layer = id(call.module) in layers
            if is_layer and not (stub and call.ended == first):
                continue
            if not is_layer:
                upstream = call.ended < first
                beside = bool(call.given) and all(free.get(id(tensor)) == version for tensor, version in call.given or ())
                if not upstream and (not beside or any(call.began < event < call.ended for event in replaced)):
                    continue
                free.update((id(tensor), version) for tensor, version in call.tensors or ())
            kept = call.tensors and all(t.ndim and len(t) == 1 and t._version == version for t, version in call.tensors)
            if times[id(call.module)] == 1 and kept:
                chosen = [other for other in chosen if not other.within(call)] + [call]
        work = [(call, _work(call)) for call in self._calls if not any(True for _ in call.module.children())]

        def replayed(call: _Call) -> bool:
            return any(call is one or call.within(one) for one in chosen)

        spared = sum(cost for call, cost in work if replayed(call))
        return Memory(
            returned=[(call.module, call.returned) for call in chosen],
            versions=[pair for call in chosen for pair in call.tensors or ()],
            share=spared / max(sum(cost for _, cost in work), 1.0),
            largest=max((t.numel() for call, _ in work if not replayed(call) for t, _ in call.tensors or ()), default=0),
        )

    def _next(self) -> int:
        self._events += 1
        return self._events


def _work(call: _Call) -> float:
    """About how many operations a call took: one per element returned, or one per weight that each element meets."""
    weight = getattr(call.module, "weight", None)
    given = call.given if getattr(call.module, "transposed", False) else call.tensors
    n = float(sum(tensor.numel() for tensor, _ in given or ()))
    return n * weight.numel() / len(weight) if isinstance(weight, Tensor) and weight.ndim > 1 else n


def _tensors(value: Any) -> list[tuple[Tensor, int]] | None:
    """The tensors in a value and their versions; ``None`` if it may hold others that are not seen."""
    if isinstance(value, Tensor):
        # One that was made in inference mode does not tell whether it was written into.
        return None if value.is_inference() else [(value, value._version)]
    if isinstance(value, _PLAIN):
        return []
    if type(value) in (tuple, list, dict):
        found = [_tensors(item) for item in (value.values() if isinstance(value, dict) else value)]
        return None if any(one is None for one in found) else [pair for one in found for pair in one or ()]
    return None


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value as of :func:`_tensors` with other tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        return {key: _mapped(item, function) for key, item in value.items()}
    return type(value)(_mapped(item, function) for item in value) if type(value) in (tuple, list) else value


class _StandIn:
    """What is called instead of a module's own ``forward``, by threads that replay it; all others call the module's own."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.returned = module, dict[int, Any]()
        self._before = module.__dict__.get("forward")
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            mine = threading.get_ident()
            return self.returned[mine] if mine in self.returned else own(*args, **kwargs)

        module.__dict__["forward"] = forward

    def leave(self) -> None:
        if self._before is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self._before


_STAND_INS: dict[int, _StandIn] = {}
_STAND_INS_LOCK = threading.Lock()


@contextmanager
def _standing_in(returned: Sequence[tuple[nn.Module, Any]]) -> Iterator[None]:
    """In this thread, modules return these values and compute nothing. Threads may share a model."""
    mine = threading.get_ident()
    entered: list[_StandIn] = []
    try:
        with _STAND_INS_LOCK:
            for module, value in returned:
                one = _STAND_INS.get(id(module))
                if one is None:
                    one = _STAND_INS[id(module)] = _StandIn(module)
                one.returned[mine] = value
                entered.append(one)
        yield
    finally:
        with _STAND_INS_LOCK:
            for one in entered:
                del one.returned[mine]
                if not one.returned:
                    del _STAND_INS[id(one.module)]
                    one.leave()


def _rows(tensors: Sequence[Tensor], rows: np.ndarray) -> list[Tensor]:
    return [tensor.index_select(0, torch.as_tensor(rows, device=tensor.device)) for tensor in tensors]
