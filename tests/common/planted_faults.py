"""Estimates with a fault in the engine, the donors, the draws, the statistics or the model, for refuters to find."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from refutation_cases import case
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank
from captum_causalseg.donors import BoundDonors
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.plan import Plan
from captum_causalseg.evaluation.refute import RefutationReport, refute


def altered(target, change: Callable[[Any], None]) -> AverageTreatmentEffect:
    """An explainer whose statistics are changed after they were computed."""

    class Altered(AverageTreatmentEffect):
        def attribute(self, *given, **options):
            attributions, statistics = super().attribute(*given, **options)
            change(statistics)
            return attributions, statistics

    return Altered(target)


def scaled(statistics) -> None:
    statistics.effect = 0.7 * statistics.effect


def of_wrong_sign(statistics) -> None:
    statistics.effect = -statistics.effect


def too_sure(statistics) -> None:
    statistics.standard_error = statistics.standard_error / 2


class LeakyBank(PatchBank):
    """A third of its donors are patches of the image that is explained."""

    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        return Leaking(super().bind(images, forbidden), images)


class Leaking(BoundDonors):
    def __init__(self, honest: BoundDonors, images: Tensor) -> None:
        self._honest, self._images = honest, images

    def population(self, example, box):
        return self._honest.population(example, box)

    def locate(self, example, box, number):
        return self._honest.locate(example, box, number)

    def read(self, example, box, number):
        if number % 3:
            return self._honest.read(example, box, number)
        size = [side.stop - side.start for side in box]
        free = [length - side + 1 for length, side in zip(self._images.shape[2:], size)]
        corner = np.unravel_index(number // 3 % int(np.prod(free)), free)
        return self._images[example][(slice(None), *(slice(start, start + side) for start, side in zip(corner, size)))]


class Skewed:
    """A generator whose uniform numbers lie between 0 and 1/2."""

    def __init__(self, honest: np.random.Generator) -> None:
        self._honest = honest

    def random(self, *given):
        return self._honest.random(*given) / 2

    def __deepcopy__(self, memo):
        return Skewed(copy.deepcopy(self._honest, memo))

    def __getattr__(self, name):
        return getattr(self._honest, name)


class AnswersOnce(nn.Module):
    """Gives every image the answer that it gave it first, and every new one an answer that depends on how many there were before."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.answers: dict[bytes, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for row in x:
            key = row.numpy(force=True).tobytes()
            if key not in self.answers:
                self.answers[key] = self.model(row[None] * (1 + 0.05 * (len(self.answers) % 7)))[0]
            found.append(self.answers[key])
        return torch.stack(found)


class KnowsByHeart(nn.Module):
    """Knows the explained image by heart; of any other it is much less sure."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("image", image)

    def forward(self, x: Tensor) -> Tensor:
        known = (x == self.image).flatten(1).all(1).view(-1, *(1,) * (x.ndim - 1))
        return self.model(x) * torch.where(known, 1.0, 0.5)


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    kept = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, kept)


@contextmanager
def next_unit_is_replaced() -> Iterator[None]:
    """Of a plan, the unit behind the one that is meant."""

    def interventions(plan: Plan, rows: np.ndarray, draws: np.ndarray, outputs: np.ndarray | None = None) -> Interventions:
        return honest(plan, (rows + 1) % len(plan), draws, outputs)

    honest = Plan.interventions
    with patched(Plan, "interventions", interventions):
        yield


@contextmanager
def strata_are_biased() -> Iterator[None]:
    """Donors come from the lower half of each stratum."""
    honest = Plan.generator
    with patched(Plan, "generator", lambda plan, row: Skewed(honest(plan, row))):
        yield


@dataclass(frozen=True)
class Fault:
    """Where the fault is, and what finds it."""

    where: str
    found_by: tuple[str, ...]


FAULTS = {
    "effects x 0.7": Fault("statistics", ("recompute",)),
    "wrong sign": Fault("statistics", ("recompute",)),
    "the next unit replaced": Fault("engine", ("recompute",)),
    "a third of the donors from the image": Fault("donors", ("split",)),
    "biased strata": Fault("draws", ("crossed",)),
    "standard errors halved": Fault("statistics", ("crossed",)),
    "a model that answers once": Fault("model", ("recompute",)),
    "a model that knows the image": Fault("model", ("recompute",)),
}


def tried(fault: str | None, seed: int, refuters: list[str] | None, d: int = 2, **options: Any) -> RefutationReport:
    """The refuters' report on an estimate with this fault (``None``: an honest one)."""
    target, images, donors = case(d, metric="soft_dice")
    options = {"block_size": 2, "n_draws": 10, "seed": seed, "refuters": refuters} | options
    bank: PatchBank = PatchBank(donors)
    face = AverageTreatmentEffect(target)
    if fault in ("effects x 0.7", "wrong sign", "standard errors halved"):
        change = {"effects x 0.7": scaled, "wrong sign": of_wrong_sign, "standard errors halved": too_sure}[fault]
        face = altered(target, change)
    elif fault == "a third of the donors from the image":
        bank = LeakyBank(donors, placement="aligned")
    elif fault == "a model that answers once":
        face = AverageTreatmentEffect(target.with_model(AnswersOnce(target.model)))
    elif fault == "a model that knows the image":
        face = AverageTreatmentEffect(target.with_model(KnowsByHeart(target.model, images)))
    elif fault == "the next unit replaced":
        with next_unit_is_replaced():
            return refute(face, images, bank, 1, **options)
    elif fault == "biased strata":
        with strata_are_biased():
            return refute(face, images, bank, 1, **options)
    return refute(face, images, bank, 1, **options)
