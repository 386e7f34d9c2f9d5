"""Units of the inputs and of layers in one problem: tied together from those of each."""

from dataclasses import replace

import numpy as np

from captum_causalseg.attr.layer import prepare_layer
from captum_causalseg.attr.options import InputAndLayerUnits, Options
from captum_causalseg.attr.problem import Problem, prepare_inputs
from captum_causalseg.interventions.inputs_and_layers import InputsAndLayersEvaluator
from captum_causalseg.interventions.layer import LayersEvaluator, StochasticLayersEvaluator
from captum_causalseg.interventions.sites import InputsAndLayersSite, Layer, LayersSite
from captum_causalseg.interventions.unit_donors import UnitDonors
from captum_causalseg.interventions.units import Units

__all__ = ["prepare_inputs_and_layers"]


def prepare_inputs_and_layers(options: Options, asked: InputAndLayerUnits) -> Problem:
    """The problem of units of the inputs, whose ids stay, and of those of the layers, numbered on layer by layer.

    Raises:
        ValueError: the model is stochastic, or the layer is inside a sliding window.
    """
    image = prepare_inputs(options, asked.inputs)
    parts: list[tuple[Problem, LayersEvaluator]] = []
    for one in asked.layers:
        problem = prepare_layer(replace(options, baselines=asked.layer_baselines, units=one), one)
        evaluator = problem.evaluator
        if isinstance(evaluator, StochasticLayersEvaluator):
            raise ValueError(
                "layer: the model is stochastic, and has an activation of its own in each answer; ask for pairs of units"
            )
        if not isinstance(evaluator, LayersEvaluator):
            raise ValueError(
                "layer: it is inside a sliding window, which runs it once per window; ask for pairs of units, or explain one window"
            )
        parts.append((problem, evaluator))
    units, donors = image.units, list(image.donors)
    masks, shapes, columns = list(units.masks), list(units.shapes), list(range(len(donors)))
    ledger = image.evaluator.ledger
    layers: list[Layer] = []
    for problem, evaluator in parts:
        first = max(int(mask.max()) for mask in masks) + 1
        masks += [mask + first for mask in problem.units.masks]
        shapes += problem.units.shapes
        donors += problem.donors
        own = evaluator.unit_donors.columns or range(len(problem.donors))
        columns += [max(columns) + 1 + column for column in own]
        ledger.forwards.update(problem.evaluator.ledger.forwards)
        layers += evaluator.site.layers
    together = Units(masks, shapes)
    call = image.call
    site = InputsAndLayersSite(
        LayersSite(layers=tuple(layers), inputs=call.inputs, arguments=call.arguments), arguments=call.arguments
    )
    evaluator_of_both = InputsAndLayersEvaluator(
        site=site,
        scorer=call.scorer,
        execution=options.execution,
        unit_donors=UnitDonors(together, tuple(donors), columns=tuple(columns)),
        ledger=ledger,
    )
    more = len(together) - len(units)
    never = np.zeros((together.n_examples, more, image.excluded.shape[2]), dtype=bool)
    excluded = np.broadcast_to(image.excluded, (together.n_examples, *image.excluded.shape[1:]))
    return Problem(
        evaluator=evaluator_of_both,
        call=call,
        excluded=np.concatenate([excluded, never], axis=1),
        settings=image.settings,
    )
