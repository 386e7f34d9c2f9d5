"""The course of a study, whatever it does of its cases: opened once, gone on with, closed with its tables."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captum_causalseg._checks import BOOLEAN, FUNCTION, NONE, PATH, TEXT, Check, integer, number, one_of, sequence
from captum_causalseg.cohort import engines
from captum_causalseg.cohort.digests import digest_of_json
from captum_causalseg.cohort.driver import Course, Driver
from captum_causalseg.cohort.fingerprint import described, model_of, modules_of
from captum_causalseg.cohort.folder import Cohort, locked
from captum_causalseg.cohort.worker import Recipe

__all__ = ["CASES", "RESERVED", "Engine", "asked_of_cases", "is_dataset", "run_study"]


# Of the table of cases, besides the columns of one's own.
RESERVED = (
    "id",
    "state",
    "error",
    "observed_score",
    "n_units",
    "forwards",
    "seconds",
    "device",
    "seed",
    "versions",
    "model",
    "image",
    "partition",
)


def _holds_cases(cases: Any) -> bool:
    is_one = isinstance(cases, (str, bytes, Mapping))
    return not is_one and (hasattr(cases, "__iter__") or (hasattr(cases, "__getitem__") and hasattr(cases, "__len__")))


# What the arguments of every study have to be.
CASES = {
    "cases": Check("an iterable of dicts or a data set of them", _holds_cases, by_type=True),
    "make_target": FUNCTION,
    "out": PATH,
    "engine": one_of("local", "ray"),
    "resume": BOOLEAN,
    "load_model": NONE | FUNCTION,
    "prepare": NONE | FUNCTION,
    "id_key": TEXT,
    "image_key": TEXT | sequence(TEXT, 1, expected="a tuple of them"),
    "case_arguments": sequence(TEXT),
    "columns": sequence(TEXT),
    "errors": one_of("record", "raise"),
    "num_workers": NONE | integer(1),
    "num_cpus": number(above=0),
    "num_gpus": number(0),
    "address": NONE | TEXT,
    "show_progress": BOOLEAN,
}


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Where tasks are carried out.

    Args:
        name: ``"local"`` or ``"ray"``.
        pool: of the cluster.
    """

    name: str
    pool: engines.Pool

    def __post_init__(self) -> None:
        if self.pool.address is not None and self.name != "ray":
            raise ValueError('address: it works only with engine="ray"')

    @property
    def threads(self) -> int | None:
        """Of torch in each worker; ``None`` leaves them as they are."""
        return max(1, int(self.pool.num_cpus)) if self.name == "ray" else None


def asked_of_cases(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says of cases, in words and digests: which they are, and how they are made."""
    return {
        "make_target": described(recipe.make_target, "make_target"),
        "load_model": described(recipe.load_model, "load_model"),
        "prepare": described(recipe.prepare, "prepare"),
        "arguments": {name: described(value, name) for name, value in recipe.arguments.items()},
        "case_arguments": list(recipe.case_arguments),
        "id_key": recipe.id_key,
        "image_key": described(recipe.image_key, "image_key"),
        "columns": list(recipe.columns),
    }


def run_study(
    cases: Any, recipe: Recipe, asked: Mapping[str, Any], *, engine: Engine, course: Course, resume: bool = True
) -> Cohort:
    """Work on every case that is not finished.

    Args:
        cases: as of :func:`captum_causalseg.cohort.explain_cohort`.
        recipe: what workers are told.
        asked: all that is asked, in words and digests; a study that was asked something else is not gone on with.
        engine: where.
        course: how it is gone through.
        resume: go on with a study that is there.
    """
    study = {"arguments": dict(asked), "columns": list(recipe.columns)}
    with locked(recipe.folder, study, resume) as writer:
        records = [record for record in writer.cohort.records().values() if record["state"] == "finished"]
        held = frozenset() if recipe.load_model is not None else frozenset(map(model_of, modules_of(recipe.make_target)))
        known = frozenset(record["model"] for record in records) - held
        recipe = dataclasses.replace(recipe, asked=digest_of_json(asked), held=held, known=known)
        driver = Driver(cases, recipe, writer, course=course)
        try:
            if engine.name == "local":
                engines.run_here(recipe, driver)
            else:
                engines.run_on_ray(recipe, driver, engine.pool)
        finally:
            driver.close()
            writer.close(driver.positions)
    return writer.cohort


def is_dataset(cases: Any) -> bool:
    """Whether workers can read its items by themselves; what holds its items in memory is sent item by item."""
    return not isinstance(cases, (list, tuple)) and hasattr(cases, "__getitem__") and hasattr(cases, "__len__")
