"""The network's modules as the command line names them, and their effects."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from captum_causalseg._checks import no_module
from captum_causalseg.attr.components import component_effects
from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.errors import InputError, naming_arguments
from captum_causalseg.cli.job import Job
from captum_causalseg.cli.page import Drawing
from captum_causalseg.cli.results import score_in_words, sign_words
from captum_causalseg.donors import ActivationBank
from captum_causalseg.target import WindowedModel
from captum_causalseg.visualization import plot_components

__all__ = ["check_modules", "component_picture", "component_table"]

# Modules of so many donor images are replaced; their activations are computed and kept.
_MOST_DONORS = 32


def check_modules(case: CommandCase, pattern: str | None, option: str) -> None:
    """Refuse a network without modules, or a pattern that none has; said before anything is computed.

    Raises:
        InputError: the message begins with the option.
    """
    model = case.target.model
    modules = {name: module for name, module in model.named_modules() if name} if isinstance(model, nn.Module) else {}
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules.values()):
        raise InputError(
            f"{option}: the parts of a TorchScript model cannot be reached; give the network with --model package.module:factory"
        )
    if not modules:
        raise InputError(f"{option}: the network is a single module and has no parts")
    if pattern is not None and not fnmatch.filter(modules, pattern):
        raise InputError(f"{option}: {no_module(pattern, modules)}")


def component_table(job: Job, layers: str | None, level: Any, *, option: str) -> pd.DataFrame:
    """The effects of modules, or of their parts.

    Raises:
        InputError: donor images of another size than the image, and a network that takes it whole.
    """
    case, options = job.case, job.options
    donors = None if case.donor_images is None else _donors(case, case.donor_images)
    with naming_arguments(layers=option):
        return component_effects(
            case.target,
            case.image,
            layers,
            baselines=donors,
            level=level,
            output=case.output,
            n_draws=options.draws,
            n_screening_draws=min(3, options.draws),
            seed=options.seed,
            show_progress=True,
        )


def _donors(case: CommandCase, images: Sequence[Tensor]) -> ActivationBank:
    found = [images[i] for i in range(min(len(images), _MOST_DONORS))]
    other = next((one.shape for one in found if one.shape != case.image.shape[1:]), None)
    if other is None:
        return ActivationBank(torch.stack(found).to(case.image))
    if not isinstance(case.target.model, WindowedModel):
        raise InputError(
            f"--donors: the network's parts need donor images as large as the image, {tuple(case.image.shape[1:])}, got "
            f"{tuple(other)}"
        )
    # Windows are all of one size.
    return ActivationBank([one.to(case.image) for one in found], placement="anywhere")


def component_picture(job: Job, table: pd.DataFrame, title: str = "") -> Drawing:
    """Bars."""
    metric = job.options.metric
    return Drawing(plot_components, table, title=title, score_name=score_in_words(metric), words=sign_words(metric))
