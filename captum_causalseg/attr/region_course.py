"""The course of a search for regions: donors in two halves, ranking, search, judging, and what is reported of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import renamed
from captum_causalseg.attr.effort import Effort
from captum_causalseg.attr.estimate import Running, prepare, running
from captum_causalseg.attr.forecast import Forecast
from captum_causalseg.attr.options import Options
from captum_causalseg.attr.problem import Problem, donor_sources
from captum_causalseg.attr.region import Region
from captum_causalseg.donors import DonorSource
from captum_causalseg.donors.split import LEAST_TO_HALVE, halves
from captum_causalseg.engine.contexts import Shapley, donors_in_rounds
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.joint import run_in_context
from captum_causalseg.engine.set_scores import Budget, SetScores, SetsOfExample
from captum_causalseg.engine.set_worth import SetWorth, ShareAsked
from captum_causalseg.engine.smallest_set import Found, settled_set
from captum_causalseg.metrics import METRICS
from captum_causalseg.statistics.intervals import half_width
from captum_causalseg.statistics.ratios import ratio_interval

__all__ = ["RegionSearch", "effort_of", "found_regions"]

# Permutations, forth and back, whose joint effects say in which order units are taken: rough ones are enough.
_RANKING = 8
_PER_PAIR = 2
# Interventions for each unit at most, where nothing is said.
_PER_UNIT = 100
# What random numbers are for, besides those of joint effects: a third number of their seeds.
_SEARCH, _JUDGE, _NOISE = 5, 6, 7
_LEVEL = 0.95
# A set that does not hold with more draws is searched for with them: with so many times the draws, at most.
_MORE_DRAWS = 4
_NO_WHOLE = "replacing all units does not clearly change the score"


@dataclass(frozen=True, kw_only=True)
class RegionSearch:
    """How regions are searched for. See :func:`sufficient_region`."""

    n_draws: int
    alternatives: int
    beam: int
    max_forwards: int | None

    def reserve(self, n_units: int) -> int:
        """Interventions that judging takes at most: everything replaced, the region, and its alternatives."""
        return self.n_draws * (2 + min(self.alternatives, n_units))

    def least(self, n_units: int) -> int:
        """Interventions of the shortest search: a pair of permutations, everything replaced, one set."""
        return _PER_PAIR * n_units + 2 * self.n_draws + self.reserve(n_units)

    def most(self, n_units: int) -> int:
        """Interventions that there may be for an image of so many units."""
        if self.max_forwards is None:
            return max(_PER_UNIT * n_units, self.least(n_units))
        return self.max_forwards

    def ranking_draws(self, n_units: int) -> int:
        """Permutations, of so many units, that take at most half of what need not be kept for the rest."""
        spare = self.most(n_units) - self.least(n_units) + _PER_PAIR * n_units
        return int(np.clip(spare // 2 // n_units, _PER_PAIR, _RANKING) // _PER_PAIR * _PER_PAIR)


@dataclass(frozen=True, eq=False)
class _Judged:
    """A region of one example, judged by donors that the search has not seen.

    Args:
        chosen: ``(n,)`` which of the example's rows are in it.
        replaced: ``(n,)`` which of them are replaced for its sake.
        figures: the fields of :class:`Region` that say what it comes to.
    """

    chosen: np.ndarray
    replaced: np.ndarray
    figures: dict[str, Any]


def effort_of(n_draws: int, *, seed: int, support: str | None) -> Effort:
    """As many draws of each unit as a search takes about, by which it is known whether it pays to find out what can reach the RoI."""
    return Effort(n_draws=_RANKING + n_draws, n_screening_draws=0, seed=seed, sampling="uniform", support=support)


def found_regions(asked: ShareAsked, search: RegionSearch, options: Options) -> Any:
    """The region of every example."""
    with renamed(target="output", forward_func="target"):
        whole = prepare(options)
        sources = _disjoint(whole, donor_sources(options.baselines, whole.call.inputs), seed=options.effort.seeds[0])
        to_search, to_judge = (tuple(part) for part in zip(*sources))
        with running(replace(options, baselines=to_search, context=Shapley())) as now:
            judges = prepare(replace(options, baselines=to_judge))
            course = _Course(now, judges, asked=asked, search=search)
            found = [course.of_example(n) for n in range(now.problem.n_examples)]
    settings = whole.settings | now.problem.scorer.metric_settings() | course.settings()
    regions = []
    for n, judged in enumerate(found):
        first, *others = (course.region(n, one, settings=settings, options=options) for one in judged)
        regions.append(replace(first, alternatives=tuple(others)))
    return regions[0] if len(regions) == 1 else tuple(regions)


def _disjoint(whole: Problem, sources: Sequence[DonorSource], *, seed: int) -> list[tuple[DonorSource, DonorSource]]:
    """Per input, donors to search with and others to judge by; the same where each unit has one."""
    example, unit = np.nonzero(whole.treated())
    population = whole.evaluator.unit_donors.populations(example, unit)
    found = []
    for slot, source in enumerate(sources):
        count = population[:, slot]
        if (count == 1).all():
            found.append((source, source))
            continue
        few = np.flatnonzero((count > 1) & (count < LEAST_TO_HALVE))
        if len(few):
            raise ValueError(
                f"baselines: expected at least {LEAST_TO_HALVE} donors of every unit, half of them to search with and half to judge what was found, or a "
                f"single one; unit {whole.units.ids[unit[few[0]]]} of example {example[few[0]]} has {count[few[0]]}"
            )
        found.append(halves(source, seed))
    return found


class _Course:
    """Ranking, search and judging, example by example.

    Args:
        now: interventions with the donors that are searched with.
        judges: the same problem with the donors to judge by.
        asked: what a region has to come to.
        search: how it is searched for.
    """

    def __init__(self, now: Running, judges: Problem, *, asked: ShareAsked, search: RegionSearch) -> None:
        self.now, self.judges, self.asked, self.search = now, judges, asked, search
        plan, outputs = now.plan, now.outputs
        self._judge = now.evaluator.with_donors(judges.evaluator.unit_donors)
        chosen = np.zeros_like(plan.active)
        chosen[np.arange(len(plan)), outputs.chosen[plan.example]] = True
        self._active = plan.active & chosen
        self._rows = [np.flatnonzero(self._active.any(1) & (plan.example == n)) for n in range(now.problem.n_examples)]
        self._refuse()
        sizes = [len(rows) for rows in self._rows]
        self._total = sum(search.most(size) for size in sizes)
        self._forecast: Forecast = now.forecast(in_context=True)
        self._n_ranking = min((search.ranking_draws(size) for size in sizes if size), default=_PER_PAIR)
        self._searched = self._judged = 0
        self.batch_size = now.batch_size
        self.values = self._ranked()
        self._n_ranked = self._searched

    def _refuse(self) -> None:
        now = self.now
        for n, rows in enumerate(self._rows):
            least = self.search.least(len(rows))
            if len(rows) and self.search.most(len(rows)) < least:
                raise ValueError(
                    f"max_forwards: expected at least {least} for the {len(rows)} units of example {n} with n_draws={self.search.n_draws}, got "
                    f"{self.search.max_forwards}"
                )
            if self.asked.of == "span":
                continue
            observed = float(now.baseline[n, now.outputs.chosen[n]])
            metric = METRICS.get(str(now.problem.scorer.metric_settings().get("metric")))
            if observed <= 0 or (metric is not None and not metric.larger_is_better):
                what = f"example {n} has {observed:.4g}" if observed <= 0 else "this one is to be small"
                raise ValueError(
                    f'share_of: a share of the score is one of a positive score that is to be large, and {what}; "span" goes with every score'
                )

    def _ranked(self) -> np.ndarray:
        """Joint effects of all rows on their example's output, ``(M,)``."""
        now = self.now
        plan = replace(now.plan, active=self._active, n_draws=self._n_ranking, n_first=None)

        def report(done: int, total: int) -> None:
            self._searched = done
            self._report()

        outcome = run_in_context(
            plan,
            Shapley(),
            now.evaluator,
            observed=now.baseline,
            treated=now.treated,
            batch_size=self.batch_size,
            on_progress=report,
        )
        self.batch_size = outcome.batch_size
        values: np.ndarray = outcome.moments.effect[np.arange(len(plan)), now.outputs.chosen[plan.example]]
        return values

    def of_example(self, n: int) -> list[_Judged]:
        """The regions of an example; the first one is there in any case."""
        rows, search = self._rows[n], self.search
        none = np.zeros(len(rows), dtype=bool)
        if not len(rows):
            return [self._unreachable(n)]
        to_search, to_judge = (self._worth(n, rows, judging=judging) for judging in (False, True))
        if not to_search.has_whole:
            nothing = Found(none, complete=True, smallest=False)
            return [_judged(to_judge, nothing, none, reason=_NO_WHOLE)]
        regions: list[_Judged] = []
        free = ~none
        while len(regions) <= search.alternatives and free.any():
            found = settled_set(to_search, to_search.sign * self.values[rows], free, beam=search.beam)
            chosen = free if found.chosen is None else found.chosen
            reason = None if found.chosen is not None else "not even all units together reach it"
            region = _judged(to_judge, found, chosen, reason=reason)
            if regions and not region.figures["reached"]:
                break
            regions.append(region)
            if not region.figures["reached"] or not chosen.any():
                break
            free = free & ~chosen
        return regions

    def _unreachable(self, n: int) -> _Judged:
        """Of an example none of whose units can change the score."""
        observed = float(self.now.baseline[n, self.now.outputs.chosen[n]])
        none = np.zeros(0, dtype=bool)
        figures = {
            "share_reached": np.nan,
            "share_interval": (-np.inf, np.inf),
            "score": observed,
            "score_interval": (observed, observed),
            "observed_score": observed,
            "replaced_score": observed,
            "reached": False,
            "reason": "no unit that may be replaced can change the score",
            "complete": True,
            "smallest": True,
            "n_candidates": 0,
            "n_draws": 0,
        }
        return _Judged(none, none, figures)

    def _worth(self, n: int, rows: np.ndarray, *, judging: bool) -> SetWorth:
        """Of sets of these rows, with the donors to search with or to judge by."""
        now, search = self.now, self.search
        donors, noise = self._donors(rows, judging=judging)
        game = SetsOfExample(
            example=n,
            units=now.plan.unit[rows],
            donors=donors,
            noise=noise,
            output=int(now.outputs.chosen[n]),
            observed=now.baseline[n],
        )
        reserve = search.reserve(len(rows))
        most = reserve if judging else search.most(len(rows)) - self._n_ranking * len(rows) - reserve
        scores = SetScores(
            self._judge if judging else now.evaluator,
            game,
            batch_size=self.batch_size,
            budget=Budget(most),
            on_batch=self._count_judged if judging else self._count_searched,
        )
        return SetWorth(scores, self.asked, self.search.n_draws)

    def _donors(self, rows: np.ndarray, *, judging: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Of these rows ``(d, n, slots)``, and random states ``(d,)``: those to search with or those to judge by."""
        plan, n_judging = self.now.plan, self.search.n_draws
        n_draws = n_judging if judging else _MORE_DRAWS * n_judging
        population = self._judge.populations(plan.example[rows], plan.unit[rows]) if judging else plan.population[rows]
        slots = population.shape[1] - plan.with_noise
        if not (population > 1).any():
            n_draws = 1
        seed, purpose = plan.seed[0], _JUDGE if judging else _SEARCH
        donors = [
            donors_in_rounds(np.random.default_rng((seed, int(key), purpose)), one[:slots].tolist(), n_draws)
            for key, one in zip(plan.key[rows], population)
        ]
        noise = None
        if plan.with_noise:
            total = (_MORE_DRAWS + 1) * n_judging
            states = donors_in_rounds(np.random.default_rng((seed, 1, _NOISE)), [int(population[0, -1])], total)[:, 0]
            noise = states[-n_judging:] if judging else states[:-n_judging]
        return np.stack(donors, axis=1), noise

    def _count_searched(self, count: int) -> None:
        self._searched += count
        self._report()

    def _count_judged(self, count: int) -> None:
        self._judged += count
        self._report()

    def _report(self) -> None:
        self._forecast.run(self._searched + self._judged, self._total)

    def region(self, n: int, judged: _Judged, *, settings: dict[str, Any], options: Options) -> Region:
        """What is reported."""
        problem, rows = self.now.problem, self._rows[n]
        ids = self.now.plan.key[rows[judged.chosen]]
        chosen = torch.from_numpy(ids)
        tensors = problem.site.tensors
        masks = [
            torch.isin(mask[n if len(mask) > 1 else 0], chosen).expand(tensor.shape[1:])[None].contiguous().to(tensor.device)
            for mask, tensor in zip(problem.units.masks, tensors)
        ]
        shown = [tensor[n : n + 1].clone() for tensor in tensors]
        replaced = rows[judged.replaced]
        if len(replaced):
            donors = self._donors(rows, judging=True)[0][0, judged.replaced]
            units = self.now.plan.unit[replaced]
            where = np.full(len(replaced), 0)
            one = Interventions(example=np.array([n]), row=where, unit=units, donor=donors)
            self.judges.evaluator.unit_donors.paste(shown, one)
        return Region(
            kind=self.asked.kind,
            units=tuple(sorted(ids.tolist())),
            mask=_as_given(masks, options.inputs),
            image=_as_given(shown, options.inputs),
            share=self.asked.share,
            share_of=self.asked.of,
            n_forwards=sum(settings["forwards"].values()),
            settings=settings,
            **judged.figures,
        )

    def settings(self) -> dict[str, Any]:
        """What was done."""
        now, search = self.now, self.search
        forwards = now.forwards(self._searched)
        judging = sum(self._judge.forwards(0, self._judged).values())
        return now.evaluator.settings() | {
            "n_draws": search.n_draws,
            "n_ranking_draws": self._n_ranking,
            "share_of": self.asked.of,
            "beam": search.beam,
            "max_forwards": search.max_forwards,
            "seed": now.plan.seed[0],
            "batch_size": self.batch_size,
            "window": None if now.reach.window is None else list(now.reach.window),
            "interventions": {"ranking": self._n_ranked, "search": self._searched - self._n_ranked, "judging": self._judged},
            "forwards": {**forwards, "judging": judging},
            "disabled": now.problem.evaluator.disabled(),
        }


def _as_given(tensors: list[Tensor], inputs: Any) -> Any:
    """A tensor or a tuple, as the inputs were."""
    if isinstance(inputs, tuple):
        return tuple(tensors)
    return tensors[0]


def _judged(worth: SetWorth, found: Found, chosen: np.ndarray, *, reason: str | None) -> _Judged:
    """What a region comes to in draws that the search has not seen."""
    replaced = worth.replaced(chosen[None])
    scores, amounts, whole = worth.scores(replaced)[0], worth.amounts(chosen[None])[0], worth.whole
    score, observed, rounding = float(scores.mean()), worth.scores.observed, worth.scores.rounding
    all_replaced, n = float(worth.all_replaced.mean()), len(scores)
    exact = n == 1 or not replaced.any()
    unseen = not exact and bool(np.ptp(scores) <= rounding)
    half = 0.0
    if unseen:
        # No draw differs. So few draws leave a binomial bound for how many of all do, each by as much as replacing everything does.
        half = (1 - ((1 - _LEVEL) / 2) ** (1 / n)) * abs(observed - all_replaced)
    elif not exact:
        half = float(half_width(scores.std(ddof=1) / np.sqrt(n), n - 1, _LEVEL))
    share, interval = np.nan, (-np.inf, np.inf)
    if abs(whole.mean()) > rounding:
        share = float(amounts.mean() / whole.mean())
        interval = (share, share) if n == 1 else ratio_interval(amounts, whole, _LEVEL)
        if unseen:
            interval = (interval[0] - half / abs(whole.mean()), interval[1] + half / abs(whole.mean()))
    if reason is None and not worth.has_whole:
        reason = _NO_WHOLE
    if reason is None and not worth.surplus(chosen[None]).mean() >= -rounding:
        reason = "it was with the donors that were searched with, and is not with others"
    figures = {
        "share_reached": share,
        "share_interval": interval,
        "score": score,
        "score_interval": (score - half, score + half),
        "observed_score": observed,
        "replaced_score": all_replaced,
        "reached": reason is None,
        "reason": reason,
        "complete": found.complete,
        "smallest": found.smallest,
        "n_candidates": len(chosen),
        "n_draws": n,
    }
    return _Judged(chosen, replaced[0], figures)
