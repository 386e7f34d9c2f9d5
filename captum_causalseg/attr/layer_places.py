"""Where a layer is: in the model, which runs it once; or in a network that a sliding window runs once per window."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._state import modules_within
from captum_causalseg.attr.options import LayerUnits, Options
from captum_causalseg.attr.problem import Call
from captum_causalseg.interventions.activation import Activation, as_they_lie
from captum_causalseg.interventions.evaluator import Local, ModelEvaluator
from captum_causalseg.interventions.layer import LayersEvaluator, Recording, StochasticLayersEvaluator
from captum_causalseg.interventions.layouts import Sighting, channels_first_by_type, following, read_layout
from captum_causalseg.interventions.ledger import Ledger
from captum_causalseg.interventions.recording import record, record_one_by_one, record_together
from captum_causalseg.interventions.replay import Journal
from captum_causalseg.interventions.sites import Layer, LayersSite, Site
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.window_layers import WindowLayersEvaluator, WindowLayersSite, answer_of, record_passes
from captum_causalseg.interventions.window_runs import WindowRuns
from captum_causalseg.layout import Layout
from captum_causalseg.target.windowed_model import WindowedModel

__all__ = ["LayerPlace", "Recorded", "enough_of", "find_place", "may_be_unclear", "named_modules"]


class Recorded(Protocol):
    """What was recorded of a layer."""

    def laid_out(self, layouts: Sequence[Layout | None]) -> "Recorded":
        """The same with what is known of the layouts."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """Channels first, where the layouts are known."""


class LayerPlace(ABC):
    """A layer that has been seen on the inputs.

    Args:
        options: how the model is run.
        call: checked.
        asked: which layer.

    Attributes:
        site: it; as it lies until :meth:`lay_out`.
        ledger: of the call.
        donors_at_once: donor images that are recorded at once; ``None`` for as many as their bank says.
        sightings: what was seen of modules when the layer was; ``None`` where nobody looked.
    """

    site: Site
    sightings: Mapping[str, Sighting] | None = None
    donors_at_once: int | None = None

    def __init__(self, options: Options, call: Call, asked: LayerUnits) -> None:
        self.call, self.asked, self.ledger = call, asked, Ledger()
        self._execution = options.execution

    @property
    def state(self) -> Any:
        """What a recording depends on besides the model and what it is given."""
        return self.asked.at_input

    @property
    def columns(self) -> tuple[int, ...]:
        """Of the site's tensors where each of a pass has donors of its own, as of :class:`UnitDonors`."""
        return ()

    @abstractmethod
    def lay_out(self, layouts: Sequence[Layout | None]) -> None:
        """From now on the tensors of the site have their channels first."""

    @abstractmethod
    def seen_by(self) -> tuple[Callable[..., Any], Any, nn.Module, list[Any]]:
        """What runs the layer once, the model that it is named in, the layer there, and a few inputs of it."""

    @abstractmethod
    def masks(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Of all tensors of the site, from the masks of those that are shown."""

    @abstractmethod
    def record(
        self, layers: Sequence[nn.Module], images: Sequence[Tensor], others: Sequence[Any], *, number: int | None
    ) -> Sequence[Recorded]:
        """What layers are on donor images, in one run of these.

        Args:
            layers: which.
            images, others: what the model is given.
            number: of the image in a bank that is placed anywhere; ``None`` in one that is aligned.
        """

    @abstractmethod
    def slots(self, *, anywhere: bool) -> list[int]:
        """For each of the site's tensors which of the recorded ones are its donors.

        Raises:
            ValueError: donors cannot be placed anywhere.
        """

    @abstractmethod
    def evaluator(self, unit_donors: UnitDonors) -> ModelEvaluator:
        """Who makes interventions there."""

    @property
    def shown(self) -> tuple[Tensor, ...]:
        """The tensors that attributions look like."""
        return self.site.tensors[self.site.shown]


def named_modules(model: Callable[..., Any], layer: nn.Module) -> tuple[str, dict[str, nn.Module]]:
    """The layer's name, and all modules of the model by theirs; of a function, whose model cannot be seen, the layer alone."""
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    name = next((name for name, module in modules.items() if module is layer), None)
    return ("", {"": layer}) if name is None else (name, modules)


def may_be_unclear(asked: LayerUnits) -> bool:
    """Whether what a layer's axes mean may have to be seen from what the model does with it."""
    given = asked.layout if isinstance(asked.layout, (tuple, list)) else (asked.layout,)
    clear = all(isinstance(one, Layout) and (one.axes != "NLC" or one.grid is not None) for one in given)
    return asked.by_heads or not (clear or channels_first_by_type(asked.layer))


def enough_of(layer: str, asked: LayerUnits, n_spatial: int) -> Callable[[str, Sighting], bool]:
    """When enough has been seen of a layer of this name."""

    def enough(at: str, sighting: Sighting) -> bool:
        # What comes after a layer need only tell where its own axes do not; of heads, it tells more.
        if at != layer or asked.by_heads or asked.at_input:
            return False
        return bool(sighting.returned) and all(read_layout(one, n_spatial) == Layout("NC*") for one in sighting.returned)

    return enough


def find_place(options: Options, call: Call, asked: LayerUnits) -> LayerPlace:
    """See where the layer is."""
    windowed = call.scorer.windowed_model
    modules = None if windowed is None else windowed.in_each_network(asked.layer)
    if windowed is None or modules is None:
        return _InModel(options, call, asked)
    return _InWindows(options, call, asked, modules=modules)


class _InModel(LayerPlace):
    """The model runs it once."""

    site: LayersSite

    def __init__(self, options: Options, call: Call, asked: LayerUnits) -> None:
        super().__init__(options, call, asked)
        scorer, given = call.scorer, options.executed.device_ids if asked.device_ids is None else asked.device_ids
        device_ids = tuple(given or ()) or None
        self._watch: dict[str, Any] = {"at_input": asked.at_input, "device_ids": device_ids}
        self._execution = replace(self._execution, device_ids=device_ids)
        everything = _fresh(call.inputs + call.arguments)
        compared, self._is_stochastic = scorer.forwards_to_compare, scorer.is_stochastic(*everything)
        if self._is_stochastic:
            self._recording = Recording(scorer(*everything))
            activation = record_one_by_one(scorer, asked.layer, scorer.model_inputs(*everything), **self._watch)
        elif len(call.inputs[0]) > 1 or device_ids is not None:
            activation, scores = record(scorer, asked.layer, everything, **self._watch)
            self._recording = Recording(scores)
        else:
            activation = self._record_one()
        activation.check(len(call.inputs[0]), "example", may_be_windows=True)
        if compared:
            self.ledger.count("answers compared", compared)
        layer = Layer(asked.layer, activation, asked.at_input)
        self.site = LayersSite(layers=(layer,), inputs=call.inputs, arguments=call.arguments, device_ids=device_ids)

    def _record_one(self) -> Activation:
        """The activation of a single example, and all else that its one run tells."""
        call, asked = self.call, self.asked
        scorer, journal = call.scorer, Journal([(asked.layer, asked.at_input)])
        with ExitStack() as watching, torch.inference_mode(False), torch.no_grad():
            # Normal tensors, which tell whether they are written into.
            everything = _fresh(call.inputs + call.arguments)
            if may_be_unclear(asked):
                name, modules = named_modules(scorer.model, asked.layer)
                watched = modules if asked.by_heads else {name: asked.layer}
                enough = enough_of(name, asked, n_spatial=len(call.spatial))
                self.sightings = watching.enter_context(following(scorer.model_inputs(*everything), watched, enough))
            watching.enter_context(journal.kept(modules_within(scorer.function)))
            activation, (answers, scores) = record(scorer.answered, asked.layer, everything, **self._watch, apart=True)
        memory = journal.memory(stub=True) if self._execution.replay else None
        self._recording = Recording(torch.as_tensor(scores), answers if isinstance(answers, Tensor) else None, memory)
        return activation

    def lay_out(self, layouts: Sequence[Layout | None]) -> None:
        """See :meth:`LayerPlace.lay_out`."""
        (layer,) = self.site.layers
        activation = layer.activation.laid_out(layouts)
        activation.check(len(self.call.inputs[0]), "example")
        if any(layout is not None and layout.windows > 1 for layout in layouts):
            self._refuse_mixed_windows(activation)
        self.site = replace(self.site, layers=(replace(layer, activation=activation),))

    def _refuse_mixed_windows(self, activation: Activation) -> None:
        """Raise unless the windows of an image lie side by side in a batch of several.

        Raises:
            ValueError: the first ones of a batch are not those of its first image.
        """
        first = [value[:1] if isinstance(value, Tensor) and value.ndim else value for value in self._model_inputs()]
        n_inputs = len(self.call.inputs)
        # Another image: of a batch of the same, the order could not be told.
        other = [0.5 * value.flip(-1) if place < n_inputs else value for place, value in enumerate(first)]
        pair = [torch.cat([a, b]) if isinstance(a, Tensor) and a.ndim else a for a, b in zip(first, other)]
        found = record_together(self._function, [self.asked.layer], pair, **self._watch)[0][0].laid_out(activation.layouts)
        self.ledger.count("answers compared", 2)
        for several, alone in zip(found.tensors, activation.tensors):
            if several.shape != (2, *alone.shape[1:]):
                raise ValueError(
                    f"layer: its activation is {tuple(self._lying(activation))} of one image and {tuple(self._lying(found))} of two: the images are "
                    "not its first axis (queries or tokens come first); choose a layer around it, or another one whose first axis they are"
                )
            tolerance = 1e-4 * float(alone[:1].abs().max())
            if not torch.allclose(several[:1], alone[:1], rtol=1e-3, atol=tolerance):
                raise ValueError(
                    "layer: it runs on several windows of each image, and those of one image do not lie side by side when several images are run; "
                    "choose a layer around it"
                )

    @staticmethod
    def _lying(activation: Activation) -> torch.Size:
        """The shape of the first tensor as it lies."""
        return as_they_lie(activation.tensors, activation.layouts)[0].shape

    def _model_inputs(self) -> list[Any]:
        return list(self.call.scorer.model_inputs(*_fresh(self.call.inputs + self.call.arguments)))

    def seen_by(self) -> tuple[Callable[..., Any], Any, nn.Module, list[Any]]:
        """See :meth:`LayerPlace.seen_by`."""
        few = [
            value[:1].clone() if isinstance(value, Tensor) and value.ndim else value
            for value in (*self.call.inputs, *self.call.arguments)
        ]
        scorer = self.call.scorer
        return self._function, scorer.model, self.asked.layer, list(scorer.model_inputs(*few))

    def masks(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`LayerPlace.masks`."""
        return list(masks)

    def slots(self, *, anywhere: bool) -> list[int]:
        """See :meth:`LayerPlace.slots`."""
        if anywhere:
            raise ValueError(
                'placement: "anywhere" is of layers inside a sliding window (WindowedModel), whose windows are alike; this layer runs on '
                'whole images, give "aligned"'
            )
        return list(range(len(self.site.tensors)))

    def record(
        self, layers: Sequence[nn.Module], images: Sequence[Tensor], others: Sequence[Any], *, number: int | None
    ) -> Sequence[Activation]:
        """See :meth:`LayerPlace.record`."""
        self.ledger.count("donors", len(images[0]))
        return record_together(self._function, layers, (*images, *others), **self._watch)[0]

    def evaluator(self, unit_donors: UnitDonors) -> ModelEvaluator:
        """See :meth:`LayerPlace.evaluator`."""
        kind = StochasticLayersEvaluator if self._is_stochastic else LayersEvaluator
        given = self.site, self.call.scorer, self._execution, unit_donors, self.ledger
        return kind(*given, recording=self._recording)

    @property
    def _function(self) -> Callable[..., Any]:
        # What is run on donor images needs no masks, and is one answer where they differ.
        return self.call.scorer.answer if self._is_stochastic else self.call.scorer.logits


class _InWindows(LayerPlace):
    """A network in a sliding window runs it once per window and flip."""

    site: WindowLayersSite
    # What one image gives in all its windows is held until it is stored.
    donors_at_once = 1

    def __init__(self, options: Options, call: Call, asked: LayerUnits, *, modules: tuple[nn.Module, ...]) -> None:
        super().__init__(options, call, asked)
        self._execution = replace(self._execution, by_windows=True)
        scorer, everything = call.scorer, (*call.inputs, *call.arguments)
        assert scorer.windowed_model is not None
        self._model: WindowedModel = scorer.windowed_model
        # A target that has scored nothing yet knows its outputs once all windows have been run.
        scores = scorer.local_scores(*everything)
        with self.ledger.observing(self._model):
            self._observed = None if scores is not None else torch.as_tensor(scorer(*_fresh(everything)))
        scores = scorer.local_scores(*everything) if scores is None else scores
        if scores is None or call.rois is None:
            raise ValueError(
                "layer: inside a sliding window, a layer is replaced in the windows that touch the RoI, and these are not enough here: "
                f"{scorer.why_not_local(*everything)}; give a target an RoI and a metric that looks there alone, or explain one window, with the "
                "network itself"
            )
        self._runs = WindowRuns(
            self._model,
            scorer.model_inputs(*everything),
            local=Local(scores, everything),
            scorer=scorer,
            execution=self._execution,
            ledger=self.ledger,
        )
        if self._runs.mix:
            raise ValueError(
                "layer: the network answers a window otherwise beside others than alone (it mixes the windows of a batch), and no window can be run by "
                "itself; put it into evaluation mode, or give the WindowedModel batch_size=1 (sw_batch_size of MONAI's inferer)"
            )
        self.site = WindowLayersSite.recorded(
            self._runs, modules, call.inputs, arguments=call.arguments, at_input=asked.at_input
        )

    @property
    def state(self) -> Any:
        """See :attr:`LayerPlace.state`; donor images have the same windows."""
        return self.asked.at_input, self._runs.layout.spatial, tuple(self.site.windows.tolist())

    @property
    def columns(self) -> tuple[int, ...]:
        """See :attr:`LayerPlace.columns`: a donor is the same one in every pass."""
        return tuple(slot % self.site.per_pass for slot in range(len(self.site.tensors)))

    def lay_out(self, layouts: Sequence[Layout | None]) -> None:
        """See :meth:`LayerPlace.lay_out`."""
        self.site = self.site.laid_out(layouts)

    def seen_by(self) -> tuple[Callable[..., Any], Any, nn.Module, list[Any]]:
        """See :meth:`LayerPlace.seen_by`: one network, on one window."""
        image, *others = self._runs.call
        run = functools.partial(answer_of, self._model, 0)
        return run, self._model.networks[0], self.site.modules[0], self._model.first_window(image, others)

    def masks(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`LayerPlace.masks`."""
        return self.site.masks(masks)

    def slots(self, *, anywhere: bool) -> list[int]:
        """See :meth:`LayerPlace.slots`: one window is that of all."""
        count = len(self.site.tensors)
        of_window = count // len(self.site.windows) if anywhere else count
        return [slot % of_window for slot in range(count)]

    def record(
        self, layers: Sequence[nn.Module], images: Sequence[Tensor], others: Sequence[Any], *, number: int | None
    ) -> Sequence[Recorded]:
        """See :meth:`LayerPlace.record`."""
        spatial, windows = tuple(images[0].shape[2:]), self.site.windows
        if number is not None:
            n_windows = len(self._model.layout(spatial))
            windows = np.random.default_rng(number).integers(n_windows, size=1)
        elif spatial != self._runs.layout.spatial:
            raise ValueError(
                "layer_baselines: donors come from the same windows of other images, which need the explained image's size "
                f'{self._runs.layout.spatial}, got {spatial}; ActivationBank(images, placement="anywhere") takes other windows'
            )
        self.ledger.count("donors", len(windows) * self._model.runs_per_window)
        return record_passes(
            self._model,
            [self._model.in_each_network(layer) or (layer,) for layer in layers],
            [*images, *others],
            where=(np.zeros(len(windows), dtype=np.int64), windows),
            at_input=self.asked.at_input,
            batch_size=self._runs.batch_size,
        )

    def evaluator(self, unit_donors: UnitDonors) -> ModelEvaluator:
        """See :meth:`LayerPlace.evaluator`."""
        return WindowLayersEvaluator(self.site, self._execution, unit_donors, observed=self._observed)


def _fresh(values: tuple[Any, ...]) -> list[Any]:
    """Copies, so that a model that works in place leaves the user's tensors alone."""
    return [value.detach().clone() if isinstance(value, Tensor) else value for value in values]
