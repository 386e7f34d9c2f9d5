"""The lines of a manifest, one per case that came to its end, and the table that is made of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["partition_of", "problem_of_table", "read_manifest", "table_of_cases"]

# A case is withdrawn if it had to be called by its position, and now has an id.
_STATES = ("finished", "failed", "withdrawn")


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Per case, its latest line.

    Raises:
        ValueError: a line is damaged; a last one that was cut off counts as not written.
    """
    found: dict[str, dict[str, Any]] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # cut off by a kill: that case is done again
            try:
                record = json.loads(line.decode("utf-8"))
                name, state = record["id"], record["state"]
                if not isinstance(name, str) or state not in _STATES:
                    raise ValueError(f"the state {state!r} of {name!r} is none of {', '.join(_STATES)}")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"folder: {path}, line {number}, is damaged ({type(error).__name__}: {error}); delete the line, and the same call "
                    "will run its case again"
                ) from error
            if state == "withdrawn":
                found.pop(name, None)
            else:
                found[name] = record
    return found


def partition_of(record: Mapping[str, Any]) -> str:
    """A case's name in the folder: its id, unless that is too long for a file system, or not told from another on some."""
    found: str = record.get("partition", record["id"])
    return found


def problem_of_table(path: Path, records: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the table of cases; the same call writes it anew."""
    if not path.exists():
        return "missing"
    try:
        table = pd.read_parquet(path, columns=["id", "state"])
    except Exception:  # whatever a reader of Parquet makes of bytes that are none
        return "damaged"
    return None if dict(zip(table["id"], table["state"])) == {k: r["state"] for k, r in records.items()} else "damaged"


def table_of_cases(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """A row per case; see :meth:`captum_causalseg.cohort.Cohort.cases`."""
    kept = {name: _of_one_type([row.get("columns", row).get(name) for row in rows]) for name in columns}
    numbers = ["observed_score", "n_units", "forwards", "seconds"]
    words = ["device", "seed", "versions", "model", "image"]
    table = pd.DataFrame(
        {name: [row.get(name) for row in rows] for name in ("id", "state", "error")}
        | kept
        | {name: [row.get(name) for row in rows] for name in (*numbers, *words)}
        | {"partition": [partition_of(row) for row in rows]}
    )
    # Of one type also where all is missing, so that tables of several studies fit together.
    for name in ["id", "state", "error", *words, "partition"]:
        table[name] = table[name].astype("string")
    return table.astype({"observed_score": "float64", "n_units": "Int64", "forwards": "Int64", "seconds": "float64"})


def _of_one_type(values: list[Any]) -> list[Any]:
    """As words if some are: a column of a table has one type."""
    there = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in there) and not all(isinstance(value, str) for value in there):
        return [None if value is None else str(value) for value in values]
    return values
