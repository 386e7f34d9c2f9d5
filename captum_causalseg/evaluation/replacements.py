"""Images in which any set of units is replaced by natural donors at once, and the scores that they get."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import tensor_of
from captum_causalseg._state import undisturbed
from captum_causalseg.attr.estimate import prepare
from captum_causalseg.attr.options import Options
from captum_causalseg.attr.reach import find_reach
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.interventions.frames import gather
from captum_causalseg.interventions.paste import paste
from captum_causalseg.interventions.windows import by_windows
from captum_causalseg.statistics.unit_places import UnitPlaces
from captum_causalseg.target.scores import checked_scores

__all__ = ["Attributions", "Pace", "Replacements"]

Attributions = Tensor | tuple[Tensor, ...]
_MAP = tensor_of("real")


class Replacements:
    """One output of a forward function on one batch, with units replaced by donors.

    A set of donors holds one donor for every replaceable unit: so sets of units that contain each other meet the same donors.

    Args:
        options: what is asked, as of ``attribute``.
        n_draws: how many sets of donors there are.
        perturbations_per_eval: images per example in one forward pass.
        seed: of the donors.
        support: whether to find out which units can reach the region of interest.

    Attributes:
        observed: ``(N,)`` scores of the images as they are.
        unit_ids: ``(U,)``.
        replaceable: ``(N, U)``, boolean: units that may be replaced for this output's sake, and can reach its region.
        n_forwards: images that went through the model so far.
        on_forwards: called when more did.
    """

    def __init__(
        self,
        options: Options,
        *,
        n_draws: int,
        seed: int,
        support: Literal["auto"] | None,
    ) -> None:
        problem = prepare(options)
        self._units, self._donors = problem.units, problem.donors
        self._spatial = problem.call.spatial
        self.scorer, self.tensors, self.arguments = problem.scorer, problem.site.tensors, problem.site.arguments
        self.rois, self.n_examples = problem.call.rois, problem.n_examples
        self.batch_size = problem.batch_size
        self.seed, self.n_forwards = seed, 0
        self.on_forwards: Callable[[], None] = _nothing
        self._known: dict[tuple[int, int, bytes], float] = {}
        self.unit_ids: np.ndarray = problem.units.ids
        self._places = UnitPlaces(torch.from_numpy(problem.units.ids), problem.units.masks)
        everyone = np.arange(self.n_examples)
        with undisturbed(self.scorer.function):
            found = self.scorer(*gather(self.tensors, everyone), *gather(self.arguments, everyone))
        scores = checked_scores(found, self.n_examples, None)
        self.n_forwards += self.n_examples
        self._outputs = problem.call.outputs(scores.shape[1:], options.target)
        self.observed = self.pick(scores, everyone)
        self.replaceable: np.ndarray = self._outputs.of_chosen(problem.treated_for(self._outputs))
        if support is not None:
            with undisturbed(self.scorer.function):
                reach = find_reach(problem, by_windows(problem.evaluator.localized()))
            self.replaceable &= self._outputs.of_chosen(self._outputs.of_rois(reach.reaches))
            self.n_forwards += problem.evaluator.ledger.forwards.total()
        numbers = [problem.evaluator.populations(*np.nonzero(self.replaceable))] * n_draws
        self._replaced = [self._all_replaced(draw, population) for draw, population in enumerate(numbers)]

    def unit_attributions(self, attributions: Attributions) -> np.ndarray:
        """``(N, U)``: the mean of a map over the elements of each unit, in double precision; 0 for units an example lacks.

        Raises:
            TypeError, ValueError: the map is no tensor like the inputs, or not finite.
        """
        maps = attributions if isinstance(attributions, tuple) else (attributions,)
        if len(maps) != len(self.tensors):
            raise ValueError(f"attributions: expected one map per input ({len(self.tensors)}), got {len(maps)}")
        total = np.zeros(self.replaceable.shape)
        for slot, (values, tensor) in enumerate(zip(maps, self.tensors)):
            _MAP("attributions", values)
            if values.shape != tensor.shape and values.shape != (len(tensor), 1, *tensor.shape[2:]):
                raise ValueError(
                    f"attributions: expected the input's shape {tuple(tensor.shape)} (or one channel), got {tuple(values.shape)}; "
                    "captum.attr.LayerAttribution.interpolate resizes maps of a layer"
                )
            values = values.detach().cpu().double()
            if not bool(values.isfinite().all()):
                raise ValueError("attributions: they hold NaN or infinite values")
            total += self._places.sums(slot, values, tensor.shape)
        means: np.ndarray = total / self.unit_sizes()
        return means

    def unit_sizes(self) -> np.ndarray:
        """``(N, U)``: how many elements of the inputs each unit holds, at least 1."""
        one = torch.ones((), dtype=torch.float64, device="cpu")
        held = [self._places.sums(slot, one.view((1,) * t.ndim), t.shape) for slot, t in enumerate(self.tensors)]
        sizes: np.ndarray = np.maximum(sum(held), 1)
        return sizes

    def covered(self, chosen: np.ndarray) -> Tensor:
        """``(N, *spatial)``: pixels of the segmented image that lie in the units ``chosen`` ``(N, U)``."""
        covered = torch.zeros((self.n_examples, *self._spatial), dtype=torch.bool, device="cpu")
        for slot, tensor in enumerate(self.tensors):
            if tensor.shape[2:] == self._spatial:
                covered |= self._on(slot, chosen, np.arange(self.n_examples)).cpu().any(1).expand(covered.shape)
        return covered

    def images(self, examples: np.ndarray, draws: np.ndarray, replaced: np.ndarray) -> list[Tensor]:
        """Inputs ``(B, C, *spatial)`` of these examples in which the units ``replaced`` ``(B, U)`` hold donors of these sets."""
        images = []
        for slot, tensor in enumerate(self.tensors):
            donors = torch.stack([self._replaced[draw][slot][n] for draw, n in zip(draws.tolist(), examples.tolist())])
            images.append(torch.where(self._on(slot, replaced, examples), donors, gather([tensor], examples)[0]))
        return images

    def scores(self, examples: np.ndarray, draws: np.ndarray, replaced: np.ndarray) -> np.ndarray:
        """The scores ``(B,)`` of :meth:`images`; the same image is scored once, whoever asks for it."""
        keys = list(zip(examples.tolist(), draws.tolist(), (row.tobytes() for row in np.packbits(replaced, axis=1))))
        first = {key: row for row, key in reversed(list(enumerate(keys))) if key not in self._known}
        new = np.array(sorted(first.values()), dtype=np.int64)
        with undisturbed(self.scorer.function):
            for start in range(0, len(new), self.batch_size):
                rows = new[start : start + self.batch_size]
                images = self.images(examples[rows], draws[rows], replaced[rows])
                scores = self.scorer(*images, *gather(self.arguments, examples[rows]))
                self._known |= dict(zip((keys[row] for row in rows.tolist()), self.pick(scores, examples[rows]).tolist()))
                self.count(len(rows))
        return np.array([self._known[key] for key in keys])

    def count(self, n_images: int) -> None:
        """So many more went through the model."""
        self.n_forwards += n_images
        self.on_forwards()

    def time(self) -> "Pace":
        """Score the images as they are, once more, to see what one takes."""
        everyone, model = np.arange(self.n_examples), self.scorer.windowed_model
        before, began = 0 if model is None else model.windows_run, time.perf_counter()
        with undisturbed(self.scorer.function):
            found = self.scorer(*gather(self.tensors, everyone), *gather(self.arguments, everyone))
            self.pick(checked_scores(found, self.n_examples, None), everyone)  # on the CPU, so that a device has finished
        seconds = time.perf_counter() - began
        self.count(self.n_examples)
        if model is None:
            return Pace(seconds / self.n_examples)
        windows = max(model.windows_run - before, 1)
        of_all = len(model.layout(self._spatial)) * model.runs_per_window
        return Pace(seconds / windows, near=windows / self.n_examples, whole=float(of_all), noun="windows")

    def ranked(self, units: np.ndarray, sign: int, ties: np.ndarray) -> Iterator[np.ndarray]:
        """Per example, its replaceable units by ascending ``sign * units``; equal ones by ``ties`` ``(U,)``."""
        for n in range(self.n_examples):
            allowed = np.flatnonzero(self.replaceable[n])
            yield allowed[np.lexsort((ties[allowed], sign * units[n, allowed]))]

    def random_numbers(self, purpose: int, count: int) -> np.ndarray:
        """``(count, U)`` random numbers, for each unit by its id: whatever other units there are, they are the same."""
        numbers = np.ones((count, self.replaceable.shape[1]))
        for u in np.flatnonzero(self.replaceable.any(0)):
            numbers[:, u] = np.random.default_rng((self.seed, purpose, int(self.unit_ids[u]))).random(count)
        return numbers

    def where(self, slot: int, chosen: np.ndarray, examples: np.ndarray) -> Tensor:
        """``(B, C or 1, *spatial or ones)``, boolean: the elements of an input that lie in the units ``chosen`` ``(B, U)``."""
        return self._on(slot, chosen, examples)

    def scores_of(self, images: Sequence[Tensor], examples: np.ndarray) -> np.ndarray:
        """The scores ``(B,)`` of images made elsewhere, per input ``(B, C, *spatial)``."""
        found = np.empty(len(examples))
        with undisturbed(self.scorer.function):
            for start in range(0, len(examples), self.batch_size):
                part = slice(start, start + self.batch_size)
                given = [image[part] for image in images]
                scores = self.scorer(*given, *gather(self.arguments, examples[part]))
                found[part] = self.pick(scores, examples[part])
                self.count(len(examples[part]))
        return found

    def pick(self, scores: Tensor, examples: np.ndarray) -> np.ndarray:
        """The output that is looked at, ``(B,)``, of scores ``(B, *output_shape)``."""
        return _picked(scores, torch.from_numpy(self._outputs.chosen[examples]))

    def pick_class(self, scores: Tensor) -> np.ndarray:
        """The same of scores ``(N, C, 1)`` of all examples in one region that is not the target's."""
        number = np.zeros(self.n_examples, dtype=np.int64)
        for axis, length, place in zip(self._outputs.axes, self._outputs.shape, self._outputs.places()):
            if axis != "roi":
                number = number * length + place
        return _picked(scores, torch.from_numpy(number))

    def segmented(self) -> tuple[Tensor, Tensor | None] | None:
        """Prediction and reference ``(N, *spatial)``, boolean on the CPU, of the class that is looked at; ``None`` of what has none."""
        everyone = np.arange(self.n_examples)
        call = (*gather(self.tensors, everyone), *gather(self.arguments, everyone))
        found = None if self._outputs.has_own_metric else self.scorer.segmentations(*call)
        if found is None:
            return None
        self.n_forwards += self.n_examples
        number = dict(zip(self._outputs.axes, self._outputs.places())).get("class", np.zeros(self.n_examples, dtype=np.int64))
        prediction, reference = (None if one is None else one.cpu()[everyone, number] for one in found)
        assert prediction is not None
        return prediction, reference

    @property
    def roi(self) -> Tensor | None:
        """``(N, *spatial)``, on the CPU: the region of interest of the output that is looked at; ``None`` without one."""
        return None if self.rois is None else self._outputs.region(self.rois.cpu())

    def _all_replaced(self, draw: int, population: np.ndarray) -> list[Tensor]:
        tensors = [tensor.clone() for tensor in self.tensors]
        examples, units = np.nonzero(self.replaceable)
        numbers = np.empty_like(population)
        for row, unit in enumerate(self._units.ids[units].tolist()):
            generator = np.random.default_rng((self.seed, 0, draw, unit))
            numbers[row] = [generator.integers(count) for count in population[row]]
        everything = Interventions(example=np.arange(self.n_examples), row=examples, unit=units, donor=numbers)
        paste(tensors, self._units, self._donors, interventions=everything)
        return tensors

    def _on(self, slot: int, values: np.ndarray, examples: np.ndarray) -> Tensor:
        """``(B, C or 1, *spatial or ones)``, on the input's device: the units' values ``(B, U)`` where they lie."""
        painted = self._places.painted(slot, torch.from_numpy(values), torch.from_numpy(examples))
        return painted.to(self.tensors[slot].device)


@dataclass(frozen=True)
class Pace:
    """What an image takes.

    Args:
        seconds: of one forward.
        near: forwards of an image of which the score of the RoI is asked.
        whole: of one of which all logits are.
        noun: what a forward is.
    """

    seconds: float
    near: float = 1.0
    whole: float = 1.0
    noun: str = "forward passes"


def _nothing() -> None:
    return


def _picked(scores: Tensor, index: Tensor) -> np.ndarray:
    flat = scores.detach().reshape(len(index), -1)
    picked: np.ndarray = flat.gather(1, index[:, None].to(flat.device))[:, 0].double().cpu().numpy()
    return picked
