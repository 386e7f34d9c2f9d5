"""Explain every case of a cohort, once, whatever happens in between."""

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from captum_causalseg._checks import BOOLEAN, FUNCTION, checked, integer, unexpected
from captum_causalseg.attr.components import component_effects
from captum_causalseg.attr.mediated_treatment_effect import MediatedTreatmentEffect
from captum_causalseg.cohort.driver import Course
from captum_causalseg.cohort.engines import Pool
from captum_causalseg.cohort.explaining import FUNCTIONS, ExplainCase, of_constructor
from captum_causalseg.cohort.fingerprint import described
from captum_causalseg.cohort.folder import Cohort, arrow
from captum_causalseg.cohort.study import CASES, RESERVED, Engine, asked_of_cases, is_dataset, run_study
from captum_causalseg.cohort.worker import Recipe
from captum_causalseg.evaluation.pathways import pathway
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["explain_cohort"]

# Arguments of `attribute` that a study gives by other means, or that make no sense in it.
_OURS = ("inputs", "return_statistics", "show_progress")


@checked(
    CASES,
    method=FUNCTION,
    nifti=BOOLEAN | FUNCTION,
    shards=integer(1),
)
def explain_cohort(
    cases: Iterable[Mapping[str, Any]] | Sequence[Mapping[str, Any]] | Any,
    make_target: Callable[..., Any],
    *,
    method: Callable[..., Any],
    out: str | os.PathLike[str],
    engine: Literal["local", "ray"] = "local",
    resume: bool = True,
    load_model: Callable[[], Any] | None = None,
    prepare: Callable[..., Mapping[str, Any]] | None = None,
    id_key: str = "id",
    image_key: str | tuple[str, ...] = "image",
    case_arguments: Sequence[str] = (),
    columns: Sequence[str] = (),
    nifti: bool | Callable[[Path, Mapping[str, Any], TreatmentEffectStatistics], None] = False,
    shards: int = 1,
    errors: Literal["record", "raise"] = "record",
    num_workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    show_progress: bool = True,
    **arguments: Any,
) -> Cohort:
    """Explain the cases of a cohort, one by one, and save the results in a folder.

    The same call continues where an earlier one stopped, whatever stopped it: finished cases are not run again, failed cases are
    tried again, and the tables are those of an uninterrupted call, bit for bit except for the column ``seconds``. Cases are read when
    it is their turn and forgotten when they are written.

    A call with other arguments or another model is refused: arguments are compared by their contents, functions by their code and by
    what they read and hold. A finished case whose files are missing or damaged is run again.

    Args:
        cases: dicts with an id and an image, in any iterable; or a data set with ``len`` and indexing (torch, MONAI), whose items the
            workers read themselves. A MONAI ``Dataset`` of dicts with the id in ``dataset.data`` is not read to learn what is
            finished.
        make_target: a case to what is explained, a :class:`~captum_causalseg.SegmentationTarget` or any other function of images;
            with ``load_model``, a case and the model. It is sent to each worker once, with all that it refers to. Without ``load_model``
            the models of all cases are those that the function holds, or one that it makes by itself.
        method: a target to what has ``attribute(..., return_statistics=True)``: a class such as
            :class:`~captum_causalseg.AverageTreatmentEffect`, or a function such as
            ``lambda target: LayerAverageTreatmentEffect(target, target.model.decoder)``; or :func:`~captum_causalseg.component_effects` or
            :func:`~captum_causalseg.pathway` itself. What a class is made with besides the target (``layers`` of
            :class:`~captum_causalseg.MediatedTreatmentEffect`) is among ``arguments``.
        out: the folder; :class:`Cohort` says what is in it. With several machines, a folder that all of them can reach.
        engine: ``"local"``, this process; ``"ray"``, actors on a Ray cluster.
        resume: continue a study that is already there. With ``False``, an existing study is an error.
        load_model: makes the model, called once per worker: always the same one, which is compared before any case is explained. Where
            cases have models of their own (the folds of a cross-validation) it returns all of them, as a dict.
        prepare: turns a given case into the one to explain, in the worker; it may read the files that the case names, for example.
            It gets the case (and the model, with ``load_model``); ``make_target`` gets what it returns.
        id_key: the entry of a case that is its stable, unique name, of any length and characters.
        image_key: the entry that is explained, ``(C, *spatial)`` as data sets give it or a batch of one; a tuple for a model of several
            inputs. A ``MetaTensor`` keeps its geometry: distances are then in millimeters.
        case_arguments: entries of each case that are arguments of ``attribute`` by the same name (``feature_mask``, ...).
        columns: entries of each case, numbers or words, that are kept in ``cases.parquet`` (site, scanner, model, ...).
        nifti: write ``effects.nii.gz`` for each case, on its image's grid; or a function of a path, the case and its statistics that
            writes it.
        shards: into how many parts the units of each case are cut, to be explained by different workers: for volumes so large that
            one worker would take too long. The effects are those of the undivided case with ``allocation="equal"``; each part determines anew
            what can reach the region of interest. Not with ``precision`` or ``decide``, whose budget is shared among units.
        errors: ``"record"``: a case that fails is recorded with its error, and the others continue; ``"raise"``: stop at the first.
        num_workers: how many actors; by default as many as fit on the cluster.
        num_cpus, num_gpus: what each actor reserves; ``num_gpus`` may be a fraction, several actors then share one. Each actor runs
            torch on ``num_cpus`` threads.
        address: of a running Ray cluster (``"auto"``, ``"ray://host:10001"``); by default one is started for the call.
        show_progress: bars over cases and units.
        **arguments: of ``attribute``, the same for each case: ``baselines``, ``target``, ``block_size``, ``n_draws``, ``seed``, ...

    Returns:
        The :class:`Cohort` in ``out``.

    Raises:
        TypeError, ValueError: an argument is not as described; the folder belongs to a study with other arguments (the
            message says what changed), or another process is working in it; two cases have the same id; an argument or a function holds
            what cannot be compared with another call, such as a lock or an open file.
        CohortError: a case failed, with ``errors="raise"``.

    Example:
        >>> import tempfile, torch
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions
        >>> from captum_causalseg.cohort import explain_cohort
        >>> model = torch.nn.Conv2d(1, 2, 3, padding=1)
        >>> cases = ({"id": k, "image": torch.rand(1, 16, 16), "site": "A"} for k in range(3))
        >>> def make_target(case):
        ...     return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box((16, 16), 4, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cohort = explain_cohort(
        ...         cases, make_target, method=AverageTreatmentEffect, out=folder, columns=["site"], show_progress=False,
        ...         baselines=PatchBank(torch.rand(5, 1, 16, 16)), block_size=4, target=1,
        ...     )
        ...     cohort.cases()[["id", "site", "state", "n_units"]].values.tolist()
        [['0', 'A', 'finished', 16], ['1', 'A', 'finished', 16], ['2', 'A', 'finished', 16]]
    """
    arrow()
    _check(method, shards, arguments, columns=columns)
    pool = Pool(address=address, n_workers=num_workers, num_cpus=num_cpus, num_gpus=num_gpus)
    where = Engine(name=engine, pool=pool)
    work = ExplainCase(
        method=method,
        nifti=nifti if callable(nifti) else bool(nifti),
        show_units=show_progress and engine == "local",
    )
    recipe = Recipe(
        dataset=cases if is_dataset(cases) else None,
        make_target=make_target,
        load_model=load_model,
        prepare=prepare,
        work=work,
        arguments=arguments,
        case_arguments=tuple(case_arguments),
        id_key=id_key,
        image_key=tuple(image_key) if isinstance(image_key, (tuple, list)) else image_key,
        columns=tuple(columns),
        folder=Path(out).absolute(),
        threads=where.threads,
    )
    asked = asked_of_cases(recipe) | {
        "method": described(method, "method"),
        "nifti": described(work.nifti, "nifti"),
        "shards": shards,
    }
    course = Course(shards=shards, errors=errors, show_progress=show_progress)
    return run_study(cases, recipe, asked, engine=where, course=course, resume=resume)


def _check(method: Any, shards: int, arguments: dict[str, Any], columns: Sequence[str]) -> None:
    """What depends on several arguments at once, and on those of the method."""
    for column in columns:
        if column in RESERVED:
            raise ValueError(f"columns: {column!r} is a column of the table already")
    if shards > 1 and method is component_effects:
        raise ValueError("shards: component_effects has no units to divide; one worker explains all modules")
    if shards > 1 and (method is pathway or (isinstance(method, type) and issubclass(method, MediatedTreatmentEffect))):
        raise ValueError("shards: effects that are split at layers are not divided among workers; give shards=1")
    if shards > 1 and any(arguments.get(name) is not None for name in ("precision", "decide")):
        raise ValueError("shards: not with precision or decide, whose budget is shared among all units of a case")
    for name in _OURS:
        if name in arguments:
            raise TypeError(f"{name}: {name!r} is not an argument of a study")
    attribute = method if method in FUNCTIONS else getattr(method, "attribute", None)
    if attribute is None:
        return  # a function that makes the explainer: it is seen when the first case is explained
    known = [*inspect.signature(attribute).parameters, *sorted(of_constructor(method))]
    if shards > 1 and "context" in known and arguments.get("context", "shapley") != 0:
        raise ValueError(
            "shards: contexts are made of all units of a case, which cannot be divided among workers; give shards=1"
        )
    if method in FUNCTIONS:
        known.append("target")
    elif "return_statistics" not in known:
        raise TypeError(
            f"method: {method.__name__} returns no statistics; expected a class whose attribute takes return_statistics"
        )
    unknown = sorted({*arguments} - {*known})
    if unknown:
        raise TypeError(unexpected(unknown[0], f"explain_cohort (with {method.__name__})", known[2:]))
