"""What prompts and units of the image do together that they do not do one by one."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from captum_causalseg.attr.estimate import Running, running
from captum_causalseg.attr.options import Options
from captum_causalseg.attr.pair_table import asked_pairs, pair_table
from captum_causalseg.engine.pairs import run_pairs

__all__ = ["prompt_interactions"]


def prompt_interactions(options: Options, pairs: Sequence[tuple[int, int]] | None, alpha: float) -> pd.DataFrame:
    """The table of pairs ``(prompt, unit)``; ``None``: each prompt with each unit that may be replaced."""
    with running(options) as now:
        first = int(now.problem.units.masks[-1].min())
        n_prompts = now.problem.site.tensors[-1].shape[2]
        asked = asked_pairs(now, _of_examples(now, pairs, first=first, n_prompts=n_prompts))
        how: dict[str, Any] = {"batch_size": now.batch_size, "on_progress": now.forecast(in_context=True).run}
        found = run_pairs(now.plan, asked, now.evaluator, observed=now.baseline, **how)
    everywhere = np.ones(len(asked), dtype=bool)
    table = pair_table(
        now,
        asked,
        everywhere,
        label=lambda key: key if key < first else f"prompt {key - first}",
        found=found,
        alpha=alpha,
    )
    table.attrs["forwards"] = now.forwards(found.n_forwards)
    return table


def _of_examples(
    now: Running, pairs: Sequence[tuple[int, int]] | None, *, first: int, n_prompts: int
) -> dict[int, list[tuple[int, int]]]:
    """Per example, pairs of ids: the unit's, the prompt's.

    Raises:
        ValueError: there is no such prompt or unit.
    """
    n_examples = now.problem.n_examples
    if pairs is not None:
        for prompt, unit in pairs:
            if prompt >= n_prompts:
                raise ValueError(f"pairs: there is no prompt {prompt}; they are 0 to {n_prompts - 1}")
            if unit >= first:
                raise ValueError(f"pairs: there is no unit {unit}; the ids are {now.problem.units.ids.min()} to {first - 1}")
        ordered = list(dict.fromkeys((int(unit), first + int(prompt)) for prompt, unit in pairs))
        return dict.fromkeys(range(n_examples), ordered)
    plan = now.plan
    may = now.treated[np.arange(len(plan)), now.outputs.chosen[plan.example]]
    found = {}
    for n in range(n_examples):
        ids = plan.key[(plan.example == n) & may].tolist()
        units, prompts = [key for key in ids if key < first], [key for key in ids if key >= first]
        found[n] = list(itertools.product(units, prompts))
    return found
