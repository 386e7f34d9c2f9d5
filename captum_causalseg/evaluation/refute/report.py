"""What attempts to refute an estimate came to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["Refutation", "RefutationReport", "inconclusive", "verdict"]

Verdict = Literal["pass", "fail", "inconclusive", "reported"]


@dataclass(frozen=True)
class Refutation:
    """What one attempt to refute an estimate came to.

    Args:
        name: of the refuter.
        verdict: ``"pass"``: the estimate survived; ``"fail"``: it is refuted; ``"inconclusive"``: the refuter had nothing to test;
            ``"reported"``: it measured something that is for people to judge.
        statistic: what was compared with ``threshold``; which of them has to be larger depends on the refuter. NaN if nothing was.
        threshold: where the verdict turns.
        n_units: units, over all examples, that were tested.
        n_forwards: images that went through the model for it.
        message: what was found, in words.

    Example:
        >>> from captum_causalseg.evaluation import Refutation
        >>> found = Refutation("mine", "pass", 0.9, 0.7, n_units=12, n_forwards=300, message="ranks agree")
        >>> found.verdict, found.statistic >= found.threshold
        ('pass', True)
    """

    name: str
    verdict: Verdict
    statistic: float
    threshold: float
    n_units: int
    n_forwards: int
    message: str


class RefutationReport:
    """All refuters' findings about one estimate. ``print`` shows them as a table.

    Attributes:
        refutations: one per refuter, in the order in which they ran.
        statistics: the original estimate, of all outputs.

    Example:
        >>> from captum_causalseg import AverageTreatmentEffect, refute
        >>> from captum_causalseg.evaluation.planted import planted_case
        >>> case = planted_case((32, 32), roi_size=8)  # two far blocks support the segmentation, one harms it
        >>> ate = AverageTreatmentEffect(case.target())
        >>> report = refute(ate, case.images, case.donors, refuters=["placebo", "seed"], n_draws=8)
        >>> report.passed, report.to_dataframe()["verdict"].tolist()
        (True, ['pass', 'pass'])
        >>> report.n_forwards == report.statistics.n_forwards + report["placebo"].n_forwards + report["seed"].n_forwards
        True
    """

    def __init__(self, refutations: Sequence[Refutation], statistics: TreatmentEffectStatistics) -> None:
        self.refutations = tuple(refutations)
        self.statistics = statistics

    @property
    def passed(self) -> bool:
        """Whether the estimate survived: no refuter failed, and at least one passed."""
        verdicts = [one.verdict for one in self.refutations]
        return "fail" not in verdicts and "pass" in verdicts

    @property
    def n_forwards(self) -> int:
        """Images that went through the model, those of the original estimate included."""
        return self.statistics.n_forwards + sum(one.n_forwards for one in self.refutations)

    def __getitem__(self, name: str) -> Refutation:
        for one in self.refutations:
            if one.name == name:
                return one
        raise KeyError(f"{name!r} was not run; there are {[one.name for one in self.refutations]}")

    def to_dataframe(self) -> pd.DataFrame:
        """One row per refuter: ``name``, ``verdict``, ``statistic``, ``threshold``, ``n_units``, ``n_forwards``, ``message``."""
        names = list(Refutation.__dataclass_fields__)
        return pd.DataFrame([[getattr(one, name) for name in names] for one in self.refutations], columns=names)

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("refuter", "verdict", "statistic", "threshold", "units", "forwards", "finding")]
        for one in self.refutations:
            compared = ("-" if math.isnan(x) else f"{x:.3g}" for x in (one.statistic, one.threshold))
            rows.append((one.name, one.verdict, *compared, str(one.n_units), str(one.n_forwards), one.message))
        counts = {
            verdict: sum(one.verdict == verdict for one in self.refutations)
            for verdict in ("pass", "fail", "inconclusive", "reported")
        }
        if not counts["reported"]:
            del counts["reported"]
        overall = ("overall", "pass" if self.passed else "fail" if counts["fail"] else "inconclusive", "", "", "")
        rows.append((*overall, str(self.n_forwards), ", ".join(f"{count} {verdict}" for verdict, count in counts.items())))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        lines = []
        for row in rows:
            words = [row[column].ljust(widths[column]) for column in (0, 1)]
            numbers = [row[column].rjust(widths[column]) for column in (2, 3, 4, 5)]
            lines.append("  ".join([*words, *numbers, row[6]]).rstrip())
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])

    def __repr__(self) -> str:
        verdicts = ", ".join(f"{one.name}: {one.verdict}" for one in self.refutations)
        return f"RefutationReport({verdicts}; {self.n_forwards} forwards)"


def verdict(
    name: str, passed: bool, statistic: float, threshold: float, tested: np.ndarray, n_forwards: int, message: str
) -> Refutation:
    """A refuter that had something to test; ``tested`` is boolean ``(N, U)``."""
    found: Verdict = "pass" if passed else "fail"
    return Refutation(
        name=name,
        verdict=found,
        statistic=statistic,
        threshold=threshold,
        n_units=int(tested.sum()),
        n_forwards=n_forwards,
        message=message,
    )


def inconclusive(name: str, threshold: float, n_forwards: int, message: str) -> Refutation:
    """A refuter that had nothing to test."""
    return Refutation(
        name=name,
        verdict="inconclusive",
        statistic=math.nan,
        threshold=threshold,
        n_units=0,
        n_forwards=n_forwards,
        message=message,
    )
