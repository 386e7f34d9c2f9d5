"""Which cases make a group, and which of two groups belong together."""

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from captum_causalseg.cohort.case_values import Source
from captum_causalseg.cohort.folder import Cohort

__all__ = [
    "Member",
    "Pairs",
    "columns_of",
    "is_of_components",
    "members_of",
    "pairs_of",
    "sources_of",
    "table_of_cases",
    "there_are",
    "word",
]


@dataclass(frozen=True)
class Member:
    """A finished case of a group."""

    source: Source
    case: str
    group: tuple[Any, ...]
    group_number: int
    partner: Any


def sources_of(cohort: Any, output: Mapping[str, int] | None) -> list[Source]:
    """The studies of a user's argument, checked; without a name where there is one."""
    named = cohort if isinstance(cohort, Mapping) else {None: cohort}
    if not named:
        raise ValueError("cohort: expected at least one study")
    found = []
    for name, one in named.items():
        if not isinstance(one, (str, os.PathLike, Cohort)):
            raise TypeError(f"cohort: expected a folder, a Cohort or a dict of them, got {type(one).__name__}")
        found.append(Source(None if name is None else str(name), one if isinstance(one, Cohort) else Cohort(one), output))
    return found


def table_of_cases(sources: Sequence[Source], several: bool) -> pd.DataFrame:
    """The cases of all studies; the first level of the index is the number of the study."""
    tables: dict[int, pd.DataFrame] = {}
    for number, source in enumerate(sources):
        table = source.cohort.cases()
        if several:
            if "study" in table:
                raise ValueError("cohort: a column of the cases is named 'study' already, as the names of the studies would be")
            table.insert(0, "study", source.name)
        # A table without rows must not decide the types of the columns.
        if len(table) or not tables:
            tables[number] = table
    found = pd.concat({number: table for number, table in tables.items() if len(table)} or tables, names=["source"])
    if not (found["state"] == "finished").any():
        raise ValueError(f"cohort: none of its {len(found)} cases is finished")
    return found


def columns_of(by: Any, several: bool, table: pd.DataFrame) -> tuple[str, ...]:
    """The columns that make groups, checked."""
    if by is None:
        return ("study",) if several else ()
    columns = (by,) if isinstance(by, str) else tuple(by)
    for name in columns:
        if name not in table:
            raise ValueError(f"by: there is no column {name!r}; {there_are(table)}")
    if len({*columns}) != len(columns):
        raise ValueError(f"by: expected different columns, got {columns}")
    return columns


def there_are(table: pd.DataFrame) -> str:
    """Which columns one can choose from."""
    return f"the cases have {', '.join(table)}"


def word(value: Any) -> str:
    """The name of a group."""
    return "missing" if pd.isna(value) else str(value)


def members_of(
    table: pd.DataFrame, sources: Sequence[Source], by: tuple[str, ...], pair: str | None
) -> tuple[list[Member], pd.DataFrame]:
    """The finished cases, and per group how many cases there are of which state."""
    # Missing values are equal to each other here.
    rows = zip(*(table[name] for name in by)) if by else [()] * len(table)
    keys = [tuple(None if pd.isna(v) else v for v in row) for row in rows]
    number = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    members, seen = [], set()
    for key, source, row in zip(keys, table.index.get_level_values("source"), table.to_dict("records")):
        if row["state"] != "finished":
            continue
        if (key, row["id"]) in seen:
            group = ", ".join(map(word, key)) or "all cases"
            raise ValueError(
                f"by: case {row['id']!r} of two studies is in the group {group!r}, where it would count twice; add 'study' to by"
            )
        seen.add((key, row["id"]))
        partner = None if pair is None or pd.isna(row[pair]) else row[pair]
        members.append(Member(source=sources[source], case=row["id"], group=key, group_number=number[key], partner=partner))
    members.sort(key=lambda member: member.group_number)
    states = pd.Series(table["state"].to_numpy(), index=[number[key] for key in keys])
    counts = pd.DataFrame(
        {
            "n_cases": states.groupby(level=0).size(),
            "n_finished": (states == "finished").groupby(level=0).sum(),
            "n_failed": (states == "failed").groupby(level=0).sum(),
        }
    )
    # Tuples as they are, not as levels.
    counts.index = pd.Index(list(number), tupleize_cols=False)
    return members, counts


def is_of_components(members: Sequence[Member]) -> bool:
    """Whether modules were explained; each study is asked once, its cases are alike."""
    first = {id(member.source): member for member in members}.values()
    kinds = {"module" in member.source.columns(member.case) for member in first}
    if len(kinds) > 1:
        raise ValueError("cohort: some of the studies have effects of components, others of units; summarize them apart")
    return kinds.pop()


@dataclass(frozen=True)
class Pairs:
    """Which cases of two groups belong together."""

    first: str
    second: str
    rows: list[tuple[int, int]]
    n_unpaired: tuple[int, int]


def pairs_of(members: Sequence[Member], groups: Sequence[Any], names: Sequence[str], pair: str | None) -> list[Pairs]:
    """Of each two groups that have partners in common; if there are none and pairs were asked for, an error."""
    of_group: list[dict[Any, int]] = [{} for _ in groups]
    n_finished = [0] * len(groups)
    for row, member in enumerate(members):
        n_finished[member.group_number] += 1
        if member.partner is None:
            continue
        held = of_group[member.group_number]
        if member.partner in held:
            cases = f"{members[held[member.partner]].case!r} and {member.case!r}"
            group = names[member.group_number]
            raise ValueError(f"pair: cases {cases} of the group {group!r} both have {pair} {member.partner!r}; pairs need one")
        held[member.partner] = row
    found = []
    for a, b in itertools.combinations(range(len(groups)), 2):
        rows = [(row, of_group[b][partner]) for partner, row in of_group[a].items() if partner in of_group[b]]
        if rows:
            found.append(
                Pairs(
                    first=names[a],
                    second=names[b],
                    rows=rows,
                    n_unpaired=(n_finished[a] - len(rows), n_finished[b] - len(rows)),
                )
            )
    if pair is not None and not found:
        said = "there is only one group" if len(groups) < 2 else f"no two of the groups {', '.join(names)} share a value"
        raise ValueError(f"pair: nothing can be paired by {pair!r}: {said}")
    return found
