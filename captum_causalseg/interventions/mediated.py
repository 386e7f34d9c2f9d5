"""Interventions on the inputs, and what of each travels through a mediator and what goes around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.frames import gather
from captum_causalseg.interventions.inputs import InputEvaluator
from captum_causalseg.interventions.mediators import LayerPort, Mediator, answering, passing, recorded
from captum_causalseg.interventions.replay import Carried, Replay, disagreement

__all__ = ["QUANTITIES", "MediatedEvaluator"]

QUANTITIES = ("indirect", "direct", "interaction", "rest")
"""Of each mediator, in this order, after the total effect; the rest is the total effect less the indirect one."""

# What passes the mediators of so many interventions, and what their modules return for further runs, is held at once: a quarter of a gigabyte in
# single precision.
_MOST_ELEMENTS = 2**26

# Answers that are compared with those of a whole run, once.
_FEW = 2

_Values = TypeVar("_Values")


class MediatedEvaluator:
    """An evaluator (see :mod:`captum_causalseg.engine.run`) of total, indirect and direct effects from the same donors.

    Its scores are ``(B, (1 + 4 L) K)`` for ``L`` mediators: those under the intervention; and for each mediator, those of the image as it is with what
    passes the mediator under the intervention (indirect); those under the intervention with what passes the mediator in the image as it is (direct); and
    scores as far from the observed ones as the interaction and the rest are, which are differences of these.

    Args:
        base: runs the model on intervened inputs.
        mediators: tensors of the model.
        observed: the scores ``(N, K)`` that effects are counted from.
    """

    def __init__(self, base: InputEvaluator, mediators: Sequence[Mediator], observed: np.ndarray) -> None:
        self._plain, self._observed = base, torch.from_numpy(observed)
        self._ports = list({id(port): port for mediator in mediators for port in mediator.ports}.values())
        places = {id(port): place for place, port in enumerate(self._ports)}
        self._ways = [_Way(mediator, base, [places[id(port)] for port in mediator.ports]) for mediator in mediators]
        # What passes the ports in each of the images as it is, (1, ...).
        # What cannot be a mediator is refused now.
        images = range(len(observed)) if base.noise_population == 1 else ()
        self._natural = {example: self._of_image(example) for example in images}

    @property
    def n_columns(self) -> int:
        """How many scores there are for each of the model's."""
        return 1 + len(QUANTITIES) * len(self._ways)

    @property
    def runs_each(self) -> int:
        """How often the model runs for each intervention: under it, and through and around each mediator."""
        return 1 + 2 * len(self._ways)

    @property
    def most_checks(self) -> int:
        """Further images at most, by which it is found out what need not run again."""
        return sum(way.most_checks(len(self._observed)) for way in self._ways)

    def observe(self, examples: np.ndarray) -> Tensor:
        """The scores without intervention, for each column."""
        return self._plain.observe(examples).tile(1, self.n_columns)

    def baseline(self, examples: np.ndarray) -> Tensor:
        """The same, computed as those under interventions are."""
        return self._plain.baseline(examples).tile(1, self.n_columns)

    def __call__(self, interventions: Interventions) -> Tensor:
        """Scores ``(B, (1 + 4 L) K)``."""
        n = len(interventions)
        if self._plain.noise_population > 1:
            return torch.cat([self._with_noise(interventions.rows(np.array([row]))) for row in range(n)])
        most = self._most_rows(int(interventions.example[0]))
        parts = [self._scores(interventions.rows(np.arange(first, min(first + most, n)))) for first in range(0, n, most)]
        return torch.cat(parts)

    def _scores(self, interventions: Interventions) -> Tensor:
        examples = interventions.example
        carried = Carried([module for way in self._ways for module in way.spared()])
        # Every run has copies of its own: a model may write into what it is given, and a module may return that.
        inputs = self._plain.intervened(interventions)
        with recorded(self._ports) as calls, carried.kept():
            answers = self._plain.answered([x.clone() for x in inputs], examples)
        total, there = self._plain.scored(answers, examples), [own[0] for own in calls]
        observed = self._observed[torch.from_numpy(examples)].to(total)
        here = [
            [torch.cat(slot) for slot in zip(*(self._natural[example][place] for example in examples.tolist()))]
            for place in range(len(self._ports))
        ]
        columns = [total]
        for way in self._ways:
            indirect = self._plain.scored(way.indirect(there, here, examples), examples)
            direct = self._plain.scored(way.direct(there, here, intervened=_Rows(inputs, examples), carried=carried), examples)
            columns += _aspects(observed, total, indirect=indirect, direct=direct)
        return torch.cat(columns, 1)

    def _with_noise(self, one: Interventions) -> Tensor:
        """The same of a single row of a stochastic model: all runs meet the same random numbers, and what passes is put in answer by answer.

        Scores are as far from the observed one as those of the run from that of the image as it is, with the same random numbers.
        """
        plain, n = self._plain, self._plain.runs_each
        noise = np.zeros(1, dtype=np.int64) if one.noise is None else one.noise
        image = gather(plain.site.inputs, one.example)
        # Copies: the next interventions are made in the same memory.
        changed = [x.clone() for x in plain.intervened(one)]

        def run(inputs: Sequence[Tensor]) -> Tensor:
            return plain.sampled([x.clone() for x in inputs], one.example, noise)

        with recorded(self._ports, n) as here:
            without = run(image)
        with recorded(self._ports, n) as there:
            under = run(changed)
        plain.ledger.count("the same noise, no intervention", n)
        plain.ledger.count("further samples", n - 1)
        observed = self._observed[torch.from_numpy(one.example)].to(under)
        columns = [total := observed - (without - under)]
        for way in self._ways:
            ports = way.mediator.ports
            with answering(ports, way.mixed(there, here)):
                indirect = observed - (without - run(image))
            with answering(ports, way.mixed(here, there)):
                direct = observed - (without - run(changed))
            plain.ledger.count("indirect", n)
            plain.ledger.count("direct", n)
            columns += _aspects(observed, total, indirect=indirect, direct=direct)
        return torch.cat(columns, 1)

    def _of_image(self, example: int) -> list[list[Tensor]]:
        one = np.array([example])
        with recorded(self._ports) as found:
            self._plain.answered(gather(self._plain.site.inputs, one), one)
        self._plain.ledger.count("recording mediators", 1)
        return [calls[0] for calls in found]

    def _most_rows(self, example: int) -> int:
        if not self._plain.takes_batches:
            return 1
        held = sum(tensor.numel() for tensors in self._natural[example] for tensor in tensors)
        held += sum(way.n_spared for way in self._ways)
        return max(1, _MOST_ELEMENTS // max(held, 1))


@dataclass(frozen=True, eq=False)
class _Rows:
    """Intervened inputs ``(B, ...)`` of the examples ``(B,)``."""

    inputs: Sequence[Tensor]
    examples: np.ndarray

    def some(self, rows: np.ndarray) -> "_Rows":
        which = torch.from_numpy(rows)
        return _Rows([x[which.to(x.device)] for x in self.inputs], self.examples[rows])


@dataclass(frozen=True)
class _Layers:
    layers: tuple[LayerPort, ...]


class _Way:
    """One mediator.

    Args:
        mediator: which.
        base: runs the model.
        places: of its ports, among those of all mediators.
    """

    def __init__(self, mediator: Mediator, base: InputEvaluator, places: Sequence[int]) -> None:
        self.mediator, self._plain, self._places = mediator, base, list(places)
        self._n_through = len(mediator.through)
        self._carries = True
        self._compared = False
        ports = [port for port in mediator.ports if isinstance(port, LayerPort)]
        # Where the ports are others than layers, it is not known what follows from them.
        works = base.execution.replay and len(ports) == len(mediator.ports) and base.takes_batches
        self._replay = Replay(
            _Layers(tuple(ports)),
            base.scorer.logits,
            base.ledger,
            batch=self._on_image,
            whole=self._on_image,
            works=works,
        )
        self._sizes: list[int] = []

    def spared(self) -> Sequence[Any]:
        """Modules that need not run again under an intervention with other values at the mediator, once that is known."""
        return self._replay.spared() if self._carries else []

    @property
    def n_spared(self) -> int:
        """How many elements they return for one image."""
        return self._replay.n_held if self._carries else 0

    def most_checks(self, n_examples: int) -> int:
        """See :attr:`MediatedEvaluator.most_checks`."""
        return self._replay.most_checks(n_examples) + _FEW

    def indirect(self, there: Sequence[Sequence[Tensor]], here: Sequence[Sequence[Tensor]], examples: np.ndarray) -> Any:
        """Answers to the images as they are, with what passed the mediator under the interventions."""
        values = self.mixed(there, here)
        self._sizes = [len(tensors) for tensors in values]
        self._plain.ledger.count("indirect", len(examples))
        return self._replay.run([tensor for tensors in values for tensor in tensors], examples)

    def direct(
        self,
        there: Sequence[Sequence[Tensor]],
        here: Sequence[Sequence[Tensor]],
        *,
        intervened: "_Rows",
        carried: Carried,
    ) -> Any:
        """Answers to the interventions, with what passes the mediator in the images as they are."""
        values = self.mixed(here, there)
        self._plain.ledger.count("direct", len(intervened.examples))
        modules = self.spared()
        if modules:
            found = self._carried(values, intervened, carried=carried, modules=modules)
            if found is not None:
                return found
        return self._under(values, intervened)

    def _carried(
        self, values: Sequence[Sequence[Tensor]], intervened: "_Rows", *, carried: Carried, modules: Sequence[Any]
    ) -> Any:
        """The same without running again what does not follow from the mediator; ``None`` where that gives something else."""
        copies = [[tensor.clone() for tensor in tensors] for tensors in values]
        with carried.standing_in(modules):
            found = self._under(copies, intervened)
        reason = None if carried.intact else "the model changes in place what it computed before"
        if reason is None and not self._compared:
            few = np.unique([0, len(intervened.examples) - 1])  # _FEW of them
            self._plain.ledger.count("replay compared", len(few))
            rows = torch.from_numpy(few).to(found.device)
            plain = self._under([[tensor[rows] for tensor in tensors] for tensors in values], intervened.some(few))
            reason = disagreement(found[rows], plain)
            self._compared = reason is None
        if reason is None:
            return found
        self._carries = False
        self._plain.ledger.disable("carrying", reason)
        return None

    def _on_image(self, tensors: Sequence[Tensor], examples: np.ndarray, where: Sequence[Tensor] | None = None) -> Any:
        left, values = list(tensors), []
        for size in self._sizes:
            values.append(left[:size])
            left = left[size:]
        with passing(self.mediator.ports, values):
            return self._plain.answered(gather(self._plain.site.inputs, examples), examples)

    def _under(self, values: Sequence[Sequence[Tensor]], intervened: "_Rows") -> Any:
        with passing(self.mediator.ports, values):
            return self._plain.answered([x.clone() for x in intervened.inputs], intervened.examples)

    def mixed(self, first: Sequence[_Values], second: Sequence[_Values]) -> list[_Values]:
        """What passes at the mediator's ports: of the first run through it, of the second around it."""
        n = self._n_through
        return [*(first[place] for place in self._places[:n]), *(second[place] for place in self._places[n:])]


def _aspects(observed: Tensor, total: Tensor, *, indirect: Tensor, direct: Tensor) -> list[Tensor]:
    """The scores of the :data:`QUANTITIES`."""
    return [indirect, direct, 2 * observed + total - indirect - direct, observed + total - indirect]
