"""The mediators that a user names: modules, names with wildcards, levels of a U-Net, statistics of norms."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from captum_causalseg._checks import Check, no_module, shown
from captum_causalseg.interventions.mediators import LayerPort, Mediator, StatisticsPort, has_statistics
from captum_causalseg.interventions.unets import levels_and_skips

__all__ = ["LAYERS", "FrozenStatistics", "find_mediators"]


@dataclass(frozen=True)
class FrozenStatistics:
    """The statistics of norms over space (instance, group and layer norm) as a mediator of :class:`~captum_causalseg.MediatedTreatmentEffect`.

    A norm over space takes mean and variance of the whole image: replace one corner, and every pixel changes a little. The indirect effect is what travels
    through these statistics alone; the direct effect is what is left where they are frozen at the image as it is, which is what travels locally.

    Args:
        layers: names of norms, with ``*`` and ``?`` as wildcards; all of the matching ones are one mediator.
        name: what the mediator is called in results.

    Example:
        >>> from captum_causalseg import FrozenStatistics
        >>> FrozenStatistics(layers="encoder*").name
        'statistics'
    """

    layers: str = "*"
    name: str = "statistics"


LAYERS = Check(
    'a module, a name (with wildcards), "levels", "skips", FrozenStatistics(), a sequence of these (a tuple in it is one mediator), or a mapping of '
    "names to them",
    lambda value: _fits(value),
)


def find_mediators(model: Any, layers: Any, *, n_spatial: int) -> list[Mediator]:
    """The mediators that are meant, in the order in which they are named.

    Args:
        model: of the target.
        layers: as :data:`LAYERS` has it.
        n_spatial: spatial axes of the image.

    Raises:
        ValueError: a name is none of a module's, there are no levels, two mediators have the same name, or one is inside TorchScript.
    """
    found: list[Mediator] = []
    if isinstance(layers, Mapping):
        for name, one in layers.items():
            found.append(_together(name, _each(model, one, n_spatial) if not _is_several(one) else _all(model, one, n_spatial)))
    else:
        for one in layers if _is_several(layers) else (layers,):
            several = _all(model, one, n_spatial) if _is_several(one) else []
            found += [_together("+".join(m.name for m in several), several)] if several else _each(model, one, n_spatial)
    names = [mediator.name for mediator in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"layers: {twice} named more than once")
    for mediator in found:
        if any(isinstance(port.module, torch.jit.ScriptModule) for port in mediator.ports):
            raise ValueError(
                f"layers: {shown(mediator.name)} is inside TorchScript, where nothing can be put in place of what it returns; give the eager module"
            )
    return found


def _is_several(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _fits(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(name, str) and (_is_one(one) or _is_list(one)) for name, one in value.items())
    if _is_several(value):
        return bool(len(value)) and all(_is_one(one) or _is_list(one) for one in value)
    return _is_one(value)


def _is_list(value: Any) -> bool:
    return _is_several(value) and bool(len(value)) and all(_is_one(one) for one in value)


def _is_one(value: Any) -> bool:
    return isinstance(value, (nn.Module, str, FrozenStatistics))


def _all(model: Any, several: Any, n_spatial: int) -> list[Mediator]:
    return [mediator for one in several for mediator in _each(model, one, n_spatial)]


def _together(name: str, mediators: Sequence[Mediator]) -> Mediator:
    if len(mediators) > 1 and any(mediator.around for mediator in mediators):
        raise ValueError(f"layers: {name!r} holds skip connections, which can be mediators one by one only")
    ports = {id(port.module): port for mediator in mediators for port in mediator.through}
    if len(ports) < sum(len(mediator.through) for mediator in mediators):
        ports = {id(port): port for mediator in mediators for port in mediator.through}
    if len(mediators) == 1:
        return replace(mediators[0], name=name)
    return Mediator(name, tuple(ports.values()))


def _each(model: Any, one: Any, n_spatial: int) -> list[Mediator]:
    """What one entry means; a pattern is as many as it fits."""
    # Of a function, modules are known that are given themselves.
    every = {name: module for name, module in model.named_modules() if name} if isinstance(model, nn.Module) else {}
    if not every and not isinstance(one, nn.Module):
        scripted = isinstance(model, torch.jit.ScriptModule)
        remedy = "give the eager model: frozen TorchScript has none" if scripted else "give the modules themselves"
        raise ValueError(f"layers: the model ({type(model).__name__}) has no modules with names; {remedy}")
    if isinstance(one, FrozenStatistics):
        return [_statistics(one, every, n_spatial)]
    if isinstance(one, nn.Module):
        named = [name for name, module in every.items() if module is one]
        if not named and not every:
            return [Mediator(type(one).__name__, (LayerPort(one),))]
        if not named:
            raise ValueError(f"layers: this {type(one).__name__} is no module of the model ({type(model).__name__})")
        return [Mediator(named[0], (LayerPort(one),))]
    if one in every:
        return [Mediator(one, (LayerPort(every[one]),))]
    if one in ("levels", "skips"):
        levels, skips = levels_and_skips(model)
        if not levels:
            raise ValueError(
                f"layers: {one!r} are known of the U-Nets of MONAI, nnU-Net and segmentation_models_pytorch, and {type(model).__name__} is none "
                "of them; name its modules"
            )
        return levels if one == "levels" else skips
    names = fnmatch.filter(every, one)
    if not names:
        raise ValueError(f"layers: {no_module(one, every)}")
    return [Mediator(name, (LayerPort(every[name]),)) for name in names]


def _statistics(asked: FrozenStatistics, every: Mapping[str, nn.Module], n_spatial: int) -> Mediator:
    norms = {name: module for name, module in every.items() if has_statistics(module, n_spatial=n_spatial)}
    if not norms:
        raise ValueError(
            "layers: the model has no norm over space (instance, group or layer norm), so nothing travels through statistics"
        )
    chosen = [module for name, module in norms.items() if fnmatch.fnmatchcase(name, asked.layers)]
    if not chosen:
        raise ValueError(f"layers: no norm over space is named {shown(asked.layers)}; there are {', '.join(list(norms)[:5])}")
    return Mediator(asked.name, tuple(StatisticsPort(module) for module in chosen), role="statistics")
