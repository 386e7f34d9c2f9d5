"""The ways through the network that a case's effects take: of ``causalseg pathway``, and of ``causalseg explain`` where they are asked for."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from captum_causalseg.attr.mediator_names import FrozenStatistics, find_mediators
from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.errors import InputError, naming_arguments
from captum_causalseg.cli.job import Job
from captum_causalseg.cli.modules import check_modules
from captum_causalseg.cli.page import Drawing
from captum_causalseg.cli.results import score_in_words, sign_words
from captum_causalseg.evaluation.pathways import Pathway, pathway
from captum_causalseg.target import WindowedModel
from captum_causalseg.visualization import plot_pathway
from captum_causalseg.writing.names import write_csv

__all__ = ["check_ways", "count_ways", "mediators_named", "ways_of", "write_ways"]


def mediators_named(names: Sequence[str]) -> list[str | FrozenStatistics]:
    """Layers as the command line names them; no module of a network that is known is called ``statistics``."""
    return [FrozenStatistics() if name == "statistics" else name for name in names]


def check_ways(case: CommandCase, names: Sequence[str], option: str) -> None:
    """Refuse layers that there are not, before anything is computed.

    Raises:
        InputError: the message begins with the option.
    """
    check_modules(case, None, option)
    if isinstance(case.target.model, WindowedModel):
        raise InputError(
            f"{option}: in a sliding window, layers run once per window; effects are split in a network that is given the whole image"
        )
    with naming_arguments(layers=option):
        find_mediators(case.target.model, mediators_named(names), n_spatial=case.image.ndim - 2)


def count_ways(case: CommandCase, names: Sequence[str]) -> int:
    """At how many layers effects are split."""
    return len(find_mediators(case.target.model, mediators_named(names), n_spatial=case.image.ndim - 2))


def ways_of(job: Job, names: Sequence[str], option: str, *, region: Tensor | None = None) -> Pathway:
    """The effect of a region, or of every part of the image, split at layers.

    Args:
        job: the case and the options.
        names: of the layers.
        option: that names them.
        region: boolean ``(*spatial)``; ``None``: every part.
    """
    case, options = job.case, job.options
    # Of one region, units are of no matter.
    units = case.units.arguments if region is None else {}
    with naming_arguments(region_units="--region", layers=option, exclude="--units"):
        return pathway(
            case.target,
            case.image,
            case.donors,
            region_units=region,
            layers=mediators_named(names),
            output=case.output,
            n_draws=options.draws,
            n_screening_draws=None if region is not None else min(3, options.draws),
            precision=options.precision,
            seed=options.seed,
            show_progress=True,
            **units,
        )


def write_ways(job: Job, found: Pathway, folder: Path) -> Drawing:
    """Write the tables and the picture, and return the picture."""
    case, metric = job.case, job.options.metric
    table = found.to_dataframe()
    places = [name for name in table if name.startswith(("start_", "stop_"))]
    write_csv(
        table.drop(columns=["unit", *places]) if found.is_region else case.units.in_own_voxels(table), folder / "pathway.csv"
    )
    if not found.is_region:
        write_csv(found.by_distance(spacing=case.grids.prepared_spacing), folder / "by_distance.csv")
    picture = Drawing(plot_pathway, found, title=case.name, score_name=score_in_words(metric), words=sign_words(metric))
    picture.save(folder / "pathway.png")
    return picture
