"""The commands that explain a case of one's own: compute, write a folder, return what to print."""

import argparse
import fnmatch
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from captum.attr import FeatureAblation, IntegratedGradients
from matplotlib.figure import Figure
from torch import nn

from captum_causalseg import regions
from captum_causalseg._checks import no_module
from captum_causalseg.attr.average_treatment_effect import AverageTreatmentEffect
from captum_causalseg.attr.components import component_effects
from captum_causalseg.attr.gradient_treatment_effect import GradientTreatmentEffect
from captum_causalseg.cli.case import CommandCase, read_case
from captum_causalseg.cli.errors import InputError, naming, naming_arguments
from captum_causalseg.cli.report import comparison_page, components_page, effects_page, refutation_page
from captum_causalseg.cli.results import components_text, effects_text, score_in_words, sign_words
from captum_causalseg.evaluation.comparison import compare
from captum_causalseg.evaluation.refute import REFUTERS, RefutationReport, refute
from captum_causalseg.images import save_map
from captum_causalseg.statistics import TreatmentEffectStatistics
from captum_causalseg.visualization import plot_comparison, plot_components, plot_effects
from captum_causalseg.writing.files import staged
from captum_causalseg.writing.names import printable, write_csv

__all__ = ["check_effort", "run"]

# Per unit; with a precision to reach, the most on the average.
_DRAWS, _BUDGET = 20, 500
# Modules of so many donor images are replaced; their activations are computed and kept.
_MOST_COMPONENT_DONORS = 32


def run(options: argparse.Namespace) -> str:
    """Run one command; the text to print.

    Raises:
        InputError: something that the options name cannot be used; nothing was written then.
    """
    if options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out: {options.out} is a file, expected a folder")
    check_effort(options)
    refuters = _refuters(options)
    case = read_case(options)
    _check_layers(case, options)
    began = time.perf_counter()
    with _folder(options.out) as folder:
        if options.command == "explain":
            said = _explain(case, options, folder, began)
        elif options.command == "components":
            said = _components(case, options, folder, began)
        elif options.command == "compare":
            said = _compare(case, options, folder, began)
        else:
            said = _refute(case, options, folder, refuters, began)
        written = ", ".join(sorted(file.name for file in folder.iterdir()))
    return f"{said}\n\nwritten to {printable(options.out)}/: {written}"


def check_effort(options: argparse.Namespace) -> None:
    """Refuse what cannot be computed, and settle how many draws there are where that was not said.

    Raises:
        InputError: the message begins with the option.
    """
    if options.seed < 0:
        raise InputError(f"--seed: expected a number of at least 0, got {options.seed}")
    precision = getattr(options, "precision", None)
    if precision is not None and not 0 < precision < math.inf:
        raise InputError(f"--precision: expected a positive number, got {precision:g}")
    if options.draws is None:
        options.draws = _DRAWS if precision is None else _BUDGET


def _explain(case: CommandCase, options: argparse.Namespace, folder: Path, began: float) -> str:
    explainer = AverageTreatmentEffect(case.target)
    report: RefutationReport | None = None
    with naming_arguments():
        if options.refute:
            report = refute(*(explainer, case.image, case.donors, case.output), **_effort(case, options))
            statistics = report.statistics
        else:
            _, statistics = explainer.attribute(
                *(case.image, case.donors, case.output), **_effort(case, options), return_statistics=True
            )
    components = None if options.components is None else _component_table(case, options, options.components, "module")
    seconds = time.perf_counter() - began
    pictures = _effect_pictures(case, options, statistics)
    pictures["effects"].savefig(folder / "effects.png", dpi=110)
    _write_effects(case, statistics, folder)
    if components is not None:
        write_csv(components, folder / "components.csv")
        pictures["components"] = plot_components(
            components, score_name=score_in_words(options.metric), words=sign_words(options.metric)
        )
    if report is not None:
        write_csv(report.to_dataframe(), folder / "refutation.csv")
    _write_page(folder, effects_page(case, options, statistics, pictures, report, components, seconds))
    said = effects_text(case, options, statistics, seconds)
    if report is not None:
        said += f"\n\n{report}"
    return said if components is None else f"{said}\n\n{components_text(components)}"


def _components(case: CommandCase, options: argparse.Namespace, folder: Path, began: float) -> str:
    table = _component_table(case, options, options.layers, options.level)
    seconds = time.perf_counter() - began
    write_csv(table, folder / "components.csv")
    picture = plot_components(
        table, title=case.name, score_name=score_in_words(options.metric), words=sign_words(options.metric)
    )
    picture.savefig(folder / "components.png", dpi=110)
    _write_page(folder, components_page(case, options, table, {"components": picture}, seconds))
    return components_text(table)


def _compare(case: CommandCase, options: argparse.Namespace, folder: Path, began: float) -> str:
    target = case.target
    effort = {name: value for name, value in _effort(case, options).items() if name in ("n_draws", "precision")}
    mask = case.units.arguments.get("feature_mask")
    if mask is None:
        mask = regions.grid(case.image.shape[2:], case.units.arguments["block_size"])[None, None]
    with naming_arguments():
        surrogate = target.surrogate()
        comparison = compare(
            {
                "treatment effects": (AverageTreatmentEffect(target), {**effort, "seed": options.seed}),
                "gradient treatment effects": GradientTreatmentEffect(target),
                "integrated gradients": (IntegratedGradients(surrogate), {"internal_batch_size": 4}),
                "feature ablation": (FeatureAblation(target), {"feature_mask": mask.to(case.image.device)}),
            },
            *(target, case.image, case.donors),
            output=case.output,
            seed=options.seed,
            show_progress=True,
            **case.units.arguments,
        )
    seconds = time.perf_counter() - began
    write_csv(comparison.table, folder / "comparison.csv")
    picture = plot_comparison(comparison, title=case.name, columns=5, words=sign_words(options.metric))
    picture.savefig(folder / "comparison.png", dpi=110)
    _write_page(folder, comparison_page(case, options, comparison, {"comparison": picture}, seconds))
    said: str = comparison.wide().T.to_string(float_format=lambda value: f"{value:.4g}")
    return said


def _refute(case: CommandCase, options: argparse.Namespace, folder: Path, refuters: list[str] | None, began: float) -> str:
    with naming_arguments():
        report = refute(
            *(AverageTreatmentEffect(case.target), case.image, case.donors, case.output),
            refuters=refuters,
            **_effort(case, options),
        )
    seconds = time.perf_counter() - began
    write_csv(report.to_dataframe(), folder / "refutation.csv")
    pictures = _effect_pictures(case, options, report.statistics)
    pictures["effects"].savefig(folder / "effects.png", dpi=110)
    _write_effects(case, report.statistics, folder)
    _write_page(folder, refutation_page(case, options, report, pictures, seconds))
    return str(report)


def _effect_pictures(
    case: CommandCase, options: argparse.Namespace, statistics: TreatmentEffectStatistics
) -> dict[str, Figure]:
    """The effects with their standard errors, and the ends of their intervals, on the prepared image."""
    raises, lowers = sign_words(options.metric)
    arguments: tuple[Any, ...] = (case.image.cpu(), statistics, case.roi, case.output)
    shared: dict[str, Any] = {"score_name": score_in_words(options.metric), "words": (raises, lowers)}
    shared["spacing"] = case.grids.prepared_spacing
    return {
        "effects": plot_effects(*arguments, title=case.name, **shared),
        "intervals": plot_effects(*arguments, panels=("lower", "upper"), **shared),
    }


def _write_effects(case: CommandCase, statistics: TreatmentEffectStatistics, folder: Path) -> None:
    write_csv(case.units.in_own_voxels(statistics.to_dataframe()), folder / "effects.csv")
    statistics.save(folder / "statistics.npz")
    if case.grids.has_geometry:
        found = case.units.own_map(statistics, case.output, case.grids)
        save_map(folder / "effects.nii.gz", found, like=case.grids.own)


def _write_page(folder: Path, page: str) -> None:
    (folder / "report.html").write_text(page, encoding="utf-8")


def _refuters(options: argparse.Namespace) -> list[str] | None:
    if getattr(options, "refuters", None) is None:
        return None
    names: list[str] = options.refuters.split(",")
    unknown = [name for name in names if name not in REFUTERS]
    if unknown:
        raise InputError(f"--refuters: there is no {unknown[0]!r}; expected some of {', '.join(REFUTERS)}")
    return names


def _effort(case: CommandCase, options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of ``attribute``."""
    return {
        "n_draws": options.draws,
        "n_screening_draws": min(3, options.draws),
        "precision": options.precision,
        "seed": options.seed,
        "show_progress": True,
        **case.units.arguments,
    }


def _layers(options: argparse.Namespace) -> tuple[str, str | None]:
    """The option that names modules, and the names."""
    if options.command == "explain":
        return "--components", options.components
    return "--layers", getattr(options, "layers", None)


def _check_layers(case: CommandCase, options: argparse.Namespace) -> None:
    """Said before anything is computed, where the effects of the image's parts come first."""
    option, pattern = _layers(options)
    if pattern is None and options.command != "components":
        return
    model = case.target.model
    modules = {name: module for name, module in model.named_modules() if name} if isinstance(model, nn.Module) else {}
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules.values()):
        raise InputError(
            f"{option}: TorchScript lets nobody into its parts; give the network with --model package.module:factory"
        )
    if not modules:
        raise InputError(f"{option}: the network is a single module, it has no parts")
    if pattern is not None and not fnmatch.filter(modules, pattern):
        raise InputError(f"{option}: {no_module(pattern, modules)}")


def _component_table(case: CommandCase, options: argparse.Namespace, layers: str | None, level: Any) -> pd.DataFrame:
    donors = None
    if case.donor_images is not None:
        found = [case.donor_images[i] for i in range(min(len(case.donor_images), _MOST_COMPONENT_DONORS))]
        other = next((one.shape for one in found if one.shape != case.image.shape[1:]), None)
        if other is not None:
            raise InputError(
                f"--donors: the network's parts need donor images as large as the image, {tuple(case.image.shape[1:])}, got "
                f"{tuple(other)}"
            )
        donors = torch.stack(found).to(case.image)
    with naming_arguments(layers=_layers(options)[0]):
        return component_effects(
            *(case.target, case.image, layers, donors, level),
            output=case.output,
            n_draws=options.draws,
            n_screening_draws=min(3, options.draws),
            seed=options.seed,
            show_progress=True,
        )


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Where the results are written until all are complete; what cannot be written is about the option."""
    with ExitStack() as left:
        with naming("--out"):
            folder = left.enter_context(staged(out))
        try:
            yield folder
            left.close()
        except OSError as error:
            # Files that are read have been named already; this is about one that is written.
            raise InputError(f"--out: {error}") from error
