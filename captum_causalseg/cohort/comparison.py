"""Several attribution methods on the cases of a cohort: every map is made once, every map is judged once by every metric."""

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pandas as pd
from captum.attr import Attribution

from captum_causalseg._checks import ANY, NONE, PATH, TEXT, checked, integer, mapping, sequence, unexpected
from captum_causalseg.cohort.comparing import JudgeCase, MapCase, read_map
from captum_causalseg.cohort.driver import Course
from captum_causalseg.cohort.engines import Pool, on_ray
from captum_causalseg.cohort.fingerprint import described
from captum_causalseg.cohort.folder import Cohort, arrow
from captum_causalseg.cohort.study import CASES, RESERVED, Engine, asked_of_cases, is_dataset, run_study
from captum_causalseg.cohort.worker import Recipe
from captum_causalseg.evaluation.faithfulness import metric_names, metric_of, without_known_cost
from captum_causalseg.evaluation.question import CONTROL, Question
from captum_causalseg.evaluation.replacements import Attributions
from captum_causalseg.writing.files import written_whole

__all__ = ["CohortComparison", "compare_cohort"]

logger = logging.getLogger(__name__)

_TABLE, _MAPS, _SCORES = "comparisons.parquet", "maps", "scores"
# Arguments of `compare` that a cohort's comparison passes on; the others it has itself.
_OF_COMPARE = tuple(field.name for field in dataclasses.fields(Question) if field.name not in ("target", "inputs"))
_OF_JUDGES = ("faithfulness",)
_COLUMNS = ("case", "method", "metric", "value", "score_direction", "source", "forwards", "seconds", "judge_forwards")
_PLACE = ("observed_score", "roi_dice", "kind")


class CohortComparison:
    """What :func:`captum_causalseg.compare_cohort` saved in a folder.

    The folder holds ``comparisons.parquet``, the table; ``maps/<method>``, the maps of each method, a study as
    :func:`~captum_causalseg.cohort.explain_cohort` leaves one; and ``scores/<method>/<metrics>``, what was judged together.

    Args:
        folder: where it is.

    Raises:
        ValueError: there is no comparison in that folder.

    Example:
        >>> import tempfile
        >>> from captum_causalseg import AverageTreatmentEffect, compare_cohort
        >>> from captum_causalseg.cohort import CohortComparison
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> planted = planted_case((32, 32), roi_size=8)
        >>> out = tempfile.mkdtemp()
        >>> compare_cohort(
        ...     {"effects": (AverageTreatmentEffect, {"n_draws": 8})}, [{"id": "a", "image": planted.images[0]}],
        ...     lambda case: planted.target(), out=out, metrics=["irof"], baselines=planted.donors, block_size=8, show_progress=False,
        ... )
        CohortComparison(1 case, 2 methods, 1 metric)
        >>> CohortComparison(out).attributions("a", "effects").shape
        torch.Size([1, 1, 32, 32])
    """

    @checked(folder=PATH)
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / _SCORES).is_dir():
            raise ValueError(f"folder: there is no comparison in {str(self.folder)!r}")

    def __repr__(self) -> str:
        table, failed = self.table(), len(self.failures())
        counts = [_counted(table[name].nunique(), name) for name in ("case", "method", "metric")]
        return f"CohortComparison({', '.join(counts)}{f'; {failed} failed' if failed else ''})"

    def table(self) -> pd.DataFrame:
        """A row per case, method and metric.

        Columns: ``case`` (the id), ``method``, ``metric``, ``value`` (NaN where the metric has nothing to say), ``score_direction``,
        ``source``; ``forwards`` and ``seconds`` of the method's map (missing where they cannot be counted), ``judge_forwards``, what the metric took of
        this map beyond what was measured for metrics before it; ``observed_score``; ``roi_dice``, the Dice of hard prediction and reference in the region of interest,
        and ``kind`` of that (:func:`captum_causalseg.evaluation.roi_kind`), both missing without a reference; and the ``columns`` that were kept of the cases.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect, compare_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> found = compare_cohort(
            ...     {"effects": AverageTreatmentEffect}, [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(),
            ...     out=tempfile.mkdtemp(), metrics=["irof"], baselines=planted.donors, block_size=8, show_progress=False,
            ... )
            >>> found.table()[["case", "method", "metric", "judge_forwards"]].values.tolist()
            [['a', 'effects', 'irof', 48], ['a', 'random (control)', 'irof', 192]]
        """
        return pd.read_parquet(self.folder / _TABLE)

    @checked(case=TEXT, method=TEXT)
    def attributions(self, case: str, method: str) -> Attributions:
        """The map of a method, ``(1, C, *spatial)``; a tuple for several inputs.

        Raises:
            KeyError: there is none.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect, compare_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> found = compare_cohort(
            ...     {"effects": AverageTreatmentEffect}, [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(),
            ...     out=tempfile.mkdtemp(), metrics=["irof"], baselines=planted.donors, block_size=8, show_progress=False,
            ... )
            >>> found.attributions("a", "effects").shape
            torch.Size([1, 1, 32, 32])
        """
        folder = self.folder / _MAPS / _name_of(method)
        if not folder.is_dir():
            raise KeyError(f"method: there are no maps of {method!r} in {str(self.folder)!r}")
        return read_map(folder, case)

    def failures(self) -> pd.DataFrame:
        """What could not be done: ``case``, ``method``, ``stage`` (``"map"`` or ``"scores"``) and ``error``; the same call tries it again.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import compare_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> def broken(target):
            ...     raise ValueError("no such layer")
            >>> found = compare_cohort(
            ...     {"broken": broken}, [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(),
            ...     out=tempfile.mkdtemp(), metrics=["irof"], baselines=planted.donors, block_size=8, show_progress=False,
            ... )
            >>> found.failures().values.tolist()
            [['a', 'broken', 'map', 'ValueError: no such layer']]
        """
        rows, lacking = [], set()
        for study in _studies(self.folder / _MAPS):
            for name, record in study.records().items():
                if record["state"] == "failed":
                    lacking.add((name, study.study["arguments"]["method"]))
                    rows.append((name, study.study["arguments"]["method"], "map", record["error"]))
        for study in _studies(self.folder / _SCORES):
            for name, record in study.records().items():
                method = study.study["arguments"]["method"]
                if record["state"] == "failed" and (name, method) not in lacking:
                    rows.append((name, method, "scores", record["error"]))
        return (
            pd.DataFrame(rows, columns=["case", "method", "stage", "error"]).astype("string").drop_duplicates(ignore_index=True)
        )

    def maps(self) -> dict[str, Cohort]:
        """Per method, the study of its maps.

        Example:
            >>> import tempfile
            >>> from captum_causalseg import AverageTreatmentEffect, compare_cohort
            >>> from captum_causalseg.evaluation.planted import planted_case
            >>> planted = planted_case((32, 32), roi_size=8)
            >>> found = compare_cohort(
            ...     {"effects": AverageTreatmentEffect}, [{"id": "a", "image": planted.images[0]}], lambda case: planted.target(),
            ...     out=tempfile.mkdtemp(), metrics=["irof"], baselines=planted.donors, block_size=8, show_progress=False,
            ... )
            >>> found.maps()
            {'effects': Cohort(1 finished)}
        """
        return {study.study["arguments"]["method"]: study for study in _studies(self.folder / _MAPS)}


@checked(
    CASES,
    methods=mapping(TEXT, ANY, expected="a mapping of names to methods", least=1),
    metrics=NONE | sequence(TEXT, 1),
    n_controls=integer(0),
    faithfulness=NONE | mapping(TEXT, ANY, expected="a mapping of further arguments"),
)
def compare_cohort(
    methods: Mapping[str, Callable[..., Any] | tuple[Callable[..., Any], Mapping[str, Any]]],
    cases: Iterable[Mapping[str, Any]] | Sequence[Mapping[str, Any]] | Any,
    make_target: Callable[..., Any],
    *,
    out: str | os.PathLike[str],
    metrics: Sequence[str] | None = None,
    n_controls: int = 5,
    faithfulness: Mapping[str, Any] | None = None,
    engine: Literal["local", "ray"] = "local",
    resume: bool = True,
    load_model: Callable[[], Any] | None = None,
    prepare: Callable[..., Mapping[str, Any]] | None = None,
    id_key: str = "id",
    image_key: str | tuple[str, ...] = "image",
    case_arguments: Sequence[str] = (),
    columns: Sequence[str] = (),
    errors: Literal["record", "raise"] = "record",
    num_workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    address: str | None = None,
    show_progress: bool = True,
    **arguments: Any,
) -> CohortComparison:
    """Compare methods on the cases of a cohort, as :func:`captum_causalseg.compare` does on one image.

    First the maps of every method are made and kept, then they are judged. The same call continues where an earlier one stopped. A call with further metrics,
    methods or cases does only what is new: maps are not made again. What judging will cost at most is known before it begins, and is said in the log
    (``captum_causalseg``, level INFO) and beside the progress bar.

    Args:
        methods: by name, a function of the target that makes the method: a class such as :class:`~captum_causalseg.AverageTreatmentEffect`, or
            ``lambda target: LayerGradCam(target.surrogate(), target.model.decoder)``; or a pair of one and the arguments of its ``attribute``. What it makes is whatever
            :func:`captum_causalseg.compare` takes, and is called as there.
        cases, make_target, load_model, prepare, id_key, image_key, columns: as of :func:`captum_causalseg.cohort.explain_cohort`. Cases are gone through several times:
            what can be gone through only once, such as a generator, is held in memory.
        out: the folder.
        metrics: names from :data:`captum_causalseg.evaluation.faithfulness.METRICS`, all by default, and
            :data:`~captum_causalseg.evaluation.faithfulness.ON_REQUEST`. ``"irof, soft"`` is judged by the
            differentiable twin of the target's metric, and so is every other.
        n_controls: number of random maps of each case that are judged as well, under the name ``"random (control)"``; the mean of their scores is kept. 0 for none.
        faithfulness: further arguments of :class:`~captum_causalseg.evaluation.Faithfulness`, such as ``n_draws``.
        engine, resume, errors, num_workers, num_cpus, num_gpus, address, show_progress: as of
            :func:`captum_causalseg.cohort.explain_cohort`. A method that fails at a case is recorded; the other methods are judged there.
        case_arguments: entries of each case that are arguments of ``compare`` by the same name (``baselines``, ``output``, ``feature_mask``, ...).
        **arguments: of :func:`captum_causalseg.compare`, the same for each case: ``baselines``, ``output``, ``held_out``, ``block_size``, ``exclude``, ``seed``, ...

    Returns:
        The :class:`~captum_causalseg.cohort.CohortComparison` in ``out``; :func:`captum_causalseg.summarize_comparison` says what it shows.

    Raises:
        TypeError, ValueError: an argument is not as described; a method, the cases' targets or the judges were asked something else in an earlier
            call (the message says what changed).
        CohortError: a case failed, with ``errors="raise"``.

    Example:
        >>> import tempfile, torch
        >>> from captum.attr import IntegratedGradients
        >>> from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, compare_cohort, regions
        >>> model = torch.nn.Conv2d(1, 2, 9, padding=4)
        >>> cases = [{"id": k, "image": torch.rand(1, 32, 32)} for k in range(3)]
        >>> def make_target(case):
        ...     return SegmentationTarget.from_prediction(model, case["image"][None], roi=regions.box((32, 32), start=12, size=8))
        >>> methods = {
        ...     "effects": (AverageTreatmentEffect, {"n_draws": 10}),
        ...     "integrated gradients": (lambda target: IntegratedGradients(target.surrogate()), {"n_steps": 8}),
        ... }
        >>> study = {"out": tempfile.mkdtemp(), "baselines": PatchBank(torch.rand(20, 1, 32, 32)), "output": 1, "block_size": 4}
        >>> compare_cohort(methods, cases, make_target, metrics=["irof"], show_progress=False, **study)
        CohortComparison(3 cases, 3 methods, 1 metric)
        >>> compare_cohort(methods, cases, make_target, metrics=["irof", "leakage"], show_progress=False, **study)  # judges only
        CohortComparison(3 cases, 3 methods, 2 metrics)
    """
    arrow()
    chosen = metric_names(metrics)
    for name, method in methods.items():
        _check_maker(name, method)
    if n_controls and CONTROL in methods:
        raise ValueError(f"methods: the name {CONTROL!r} is taken by the control")
    for name in (*arguments, *case_arguments):
        if name not in _OF_COMPARE or name in _OF_JUDGES:
            raise TypeError(unexpected(name, "compare_cohort", [one for one in _OF_COMPARE if one not in _OF_JUDGES]))
    for column in columns:
        if column in (*RESERVED, *_COLUMNS, *_PLACE):
            raise ValueError(f"columns: {column!r} is a column of the table already")
    pool = Pool(address=address, n_workers=num_workers, num_cpus=num_cpus, num_gpus=num_gpus)
    where = Engine(name=engine, pool=pool)
    folder = _checked_folder(Path(out).absolute(), resume)
    if isinstance(cases, Iterator):
        cases = list(cases)
    n_cases = len(cases) if isinstance(cases, Sized) else None
    recipe = functools.partial(
        Recipe,
        dataset=cases if is_dataset(cases) else None,
        make_target=make_target,
        load_model=load_model,
        prepare=prepare,
        case_arguments=tuple(case_arguments),
        id_key=id_key,
        image_key=tuple(image_key) if isinstance(image_key, (tuple, list)) else image_key,
        columns=tuple(columns),
        threads=where.threads,
    )
    making = [_making(recipe, folder, name=name, method=method, arguments=arguments) for name, method in methods.items()]
    judged = arguments | ({} if faithfulness is None else {"faithfulness": dict(faithfulness)})
    # One cluster for all that is to be done.
    cluster: AbstractContextManager[Any] = on_ray(pool) if engine == "ray" else nullcontext()
    with cluster:
        try:
            for one in making:
                course = Course(errors=errors, show_progress=show_progress, title=f"maps: {one.name}")
                run_study(cases, one.recipe, one.asked, engine=where, course=course)
            judging = [
                _judging(recipe, folder, name=name, metrics=group, arguments=judged, n_controls=n_controls)
                for name in (*methods, *([CONTROL] if n_controls else []))
                for group in _groups(folder / _SCORES / _name_of(name), chosen)
            ]
            _say_cost(judging, n_cases, chosen)
            for one in judging:
                course = Course(
                    errors=errors,
                    show_progress=show_progress,
                    title=f"scores: {one.name}, {one.cost_in_words}",
                )
                run_study(cases, one.recipe, one.asked, engine=where, course=course)
        finally:
            _gather(folder, [*methods, CONTROL], chosen)
    return CohortComparison(folder)


@dataclass(frozen=True)
class _Step:
    """A study within the comparison.

    Args:
        name: of the method.
        recipe: of the study.
        asked: all that it is asked, in words and digests.
        cost: images per case that judging takes at most.
        is_cost_known: whether that counts all metrics.
    """

    name: str
    recipe: Recipe
    asked: dict[str, Any]
    cost: int = 0
    is_cost_known: bool = True

    @property
    def cost_in_words(self) -> str:
        """For the title of a progress bar."""
        return f"at most {self.cost:,} forwards a case" if self.is_cost_known else f"{self.cost:,} forwards a case or more"


def _check_maker(name: str, method: Any) -> None:
    is_pair = isinstance(method, tuple) and len(method) == 2 and isinstance(method[1], Mapping)
    maker = method[0] if is_pair else method
    if isinstance(maker, Attribution):
        raise TypeError(
            f"methods[{name!r}]: expected a function of the target that makes the method, got {type(maker).__name__}, which was made for "
            f"one target; give {type(maker).__name__} itself, or lambda target: {type(maker).__name__}(target)"
        )
    if not callable(maker):
        raise TypeError(
            f"methods[{name!r}]: expected a function of the target, or a pair of one and its method's arguments, got {type(method).__name__}"
        )


def _making(recipe: Callable[..., Recipe], folder: Path, *, name: str, method: Any, arguments: Mapping[str, Any]) -> _Step:
    make, options = method if isinstance(method, tuple) else (method, None)
    own = recipe(work=MapCase(name, make, options), arguments=arguments, folder=folder / _MAPS / _name_of(name))
    words = f"methods[{name!r}]"
    asked = {"method": name, "made by": described(make, words), "method's arguments": described(options, words)}
    return _Step(name, own, asked_of_cases(own) | asked)


def _judging(
    recipe: Callable[..., Recipe],
    folder: Path,
    *,
    name: str,
    metrics: Sequence[str],
    arguments: Mapping[str, Any],
    n_controls: int,
) -> _Step:
    chosen = tuple(metric_of(metric) for metric in metrics)
    is_control = name == CONTROL
    maps = None if is_control else folder / _MAPS / _name_of(name)
    work = JudgeCase(name, chosen, maps=maps, n_controls=n_controls if is_control else 0)
    place = folder / _SCORES / _name_of(name) / hashlib.sha256("\n".join(metrics).encode()).hexdigest()[:16]
    own = recipe(work=work, arguments=arguments, folder=place)
    functions = {metric.name: described(metric.function, f"metrics[{metric.name!r}]") for metric in chosen}
    asked = {"method": name, "metrics": list(metrics), "computed by": functions, "n_controls": work.n_controls}
    is_known = not without_known_cost(metrics)
    return _Step(name, own, asked_of_cases(own) | asked, cost=work.forecast(arguments), is_cost_known=is_known)


def _groups(folder: Path, metrics: Sequence[str]) -> list[list[str]]:
    """Metrics that are judged together: as they were in earlier calls, and all that are new."""
    groups = [list(study.study["arguments"]["metrics"]) for study in _studies(folder)]
    groups = [group for group in groups if {*group} & {*metrics}]
    for group in groups:
        metric_names(group)  # metrics of one's own that an earlier call judged by have to be registered again
    known = {name for group in groups for name in group}
    new = [name for name in metrics if name not in known]
    return [*groups, *([new] if new else [])]


def _say_cost(judging: Sequence[_Step], n_cases: int | None, metrics: Sequence[str]) -> None:
    """Tell what judging will cost, before it begins; what an earlier call has judged costs nothing."""
    each = sum(one.cost for one in judging)
    total = "" if n_cases is None else f", {each * n_cases:,} for {_counted(n_cases, 'case')}"
    unknown = ", ".join(map(repr, without_known_cost(metrics)))
    besides = f"; besides that, what {unknown} takes, which is not known" if unknown else ""
    n_methods = _counted(len({one.name for one in judging}), "method")
    logger.info("judging: at most %s images a case for %s%s%s", f"{each:,}", n_methods, total, besides)


def _gather(folder: Path, methods: Sequence[str], metrics: Sequence[str]) -> None:
    """Write the table of all that has been judged: what was asked first, in its order."""
    made = {study.study["arguments"]["method"]: study.records() for study in _studies(folder / _MAPS)}
    rows: list[dict[str, Any]] = []
    kept: list[str] = []
    for study in _studies(folder / _SCORES):
        method = study.study["arguments"]["method"]
        kept += [name for name in study.study["columns"] if name not in kept]
        for name, record in study.records().items():
            if record["state"] != "finished":
                continue
            of_map = made.get(method, {}).get(name, {"forwards": 0, "explaining_seconds": 0.0})
            cost = {"forwards": of_map.get("forwards"), "seconds": of_map.get("explaining_seconds")}
            place = {key: record[key] for key in _PLACE}
            for metric, value, direction, source, forwards in record["scores"]:
                score = dict(zip(_COLUMNS[:6], (name, method, metric, value, direction, source)))
                own = {key: record["columns"].get(key) for key in kept}
                rows.append({"_at": record["position"]} | score | cost | {"judge_forwards": forwards} | place | own)
    if not rows:
        return
    table = pd.DataFrame(rows)
    for name, first in (("method", methods), ("metric", metrics)):
        others = sorted({*table[name]} - {*first})
        table[f"_{name}"] = table[name].map({one: number for number, one in enumerate([*first, *others])})
    table = table.sort_values(["_at", "case", "_method", "_metric"], kind="stable", ignore_index=True)
    table = table[[*_COLUMNS, *_PLACE, *kept]]
    for name in ("case", "method", "metric", "score_direction", "source", "kind"):
        table[name] = table[name].astype("string")
    numbers = {"value": "float64", "seconds": "float64", "observed_score": "float64", "roi_dice": "float64"}
    table = table.astype(numbers | {"forwards": "Int64", "judge_forwards": "Int64"})
    with written_whole(folder / _TABLE) as path:
        table.to_parquet(path, index=False)


def _studies(folder: Path) -> list[Cohort]:
    """Those that lie within a folder, at whatever depth."""
    return [Cohort(file.parent) for file in sorted(folder.rglob("study.json"))]


def _name_of(method: str) -> str:
    """The name of a method's folder; names may hold any characters."""
    return f"{quote(method, safe='')[:60]}-{hashlib.sha256(method.encode()).hexdigest()[:8]}"


def _checked_folder(folder: Path, resume: bool) -> Path:
    """A folder that holds nothing, or a comparison to go on with."""
    ours = (_TABLE, _MAPS, _SCORES)
    held = sorted(path.name for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []
    others = [name for name in held if name not in (*ours, "lost+found")]
    if others:
        raise ValueError(f"out: {str(folder)!r} holds other things ({', '.join(others[:3])}); choose an empty folder")
    if not resume and _studies(folder):
        raise ValueError(f"out: there is a comparison in {str(folder)!r} already; resume=True continues it")
    return folder


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
