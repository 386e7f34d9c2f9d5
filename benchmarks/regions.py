"""Is the planted cause in the region, and how small is a region that keeps the score, beside MiSuRe at the same share?

    python benchmarks/regions.py [--cases 12] [--data FOLDER] [--pictures 6] [--block 16] [--write docs/benchmarks/regions.md]

*Shortcut*: held-out slices of ``evaluation.planted``, where a letter in the corner decides whether the network segments the lesion. Sufficient and necessary
regions of 8 x 8 blocks, 16 draws; does the letter's block lie in them, and what else?

*Skin*, with ``--data``: pictures of ``skin.py`` and its trained networks, cut to 128 x 128 around one region of interest each, 32 x 32 at the left end of the lesion's outline; the score is the Dice
with the network's own prediction, which MiSuRe is about, too. A set of blocks is *kept*, with the blocks that touch the region of interest; all others are replaced by *natural donors* (places of other
pictures) or by *zeros*. It has to keep 95 % of the span, by one standard error over the donors that are searched with. Of each method, blocks are taken in
its order until they do:

- ``sufficient_region``: joint effects, and what is not needed is left out again;
- joint effects: the same order (8 permutations), nothing left out;
- MiSuRe: by the mean of its mask over a block (zeros and the gradient find it, whatever it is judged by);
- MiSuRe, pruned: what is not needed is left out again, as ``sufficient_region`` does;
- nearest: by the distance from the region of interest.

*MiSuRe as it is*: the blocks whose mean mask is above 0.5 are kept, however much of the score that keeps. What is reached is measured with the other half of the
donor pictures, 32 draws, and 8 are searched with. Pictures of which everything replaced takes less than 0.1 of the score away are left out. Sizes are shares of the blocks that may be replaced. Forwards are those of the method and the search.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import skin
import torch
from cases import machine, parser, publish, say, start
from scipy import ndimage
from scipy import stats as scipy_stats
from torch import Tensor, nn

from captum_causalseg import JointTreatmentEffect, PatchBank, SegmentationTarget, necessary_region, regions, sufficient_region
from captum_causalseg.attr.options import InputUnits, Options
from captum_causalseg.baselines import MiSuRe
from captum_causalseg.engine.smallest_set import smallest_set
from captum_causalseg.evaluation.planted import load_shortcut_case
from captum_causalseg.evaluation.replacements import Replacements
from captum_causalseg.interventions.execution import Execution

SHARE, ROI, N_SEARCH, N_JUDGE = 0.95, 32, 8, 32
LEAST_SPAN, EDGE = 0.1, 128


@dataclass(frozen=True)
class Picture:
    """One picture, where to look, and donors in two halves."""

    name: str
    image: Tensor
    target: SegmentationTarget
    roi: Tensor
    block: int


class Kept:
    """Shares of the span that sets of blocks keep, with one half of the donors; what says to a search which sets reach the share."""

    def __init__(self, case: Picture, donors: Any, n_draws: int) -> None:
        options = Options(
            forward_func=case.target,
            inputs=case.image,
            baselines=donors,
            units=InputUnits(block_size=case.block),
            execution=Execution(perturbations_per_eval=16),
        )
        self.made = Replacements(options, n_draws=n_draws, seed=1, support=None)
        self.n_draws, self.n = n_draws, int(self.made.replaceable.sum())
        self.units = np.flatnonzero(self.made.replaceable[0])
        self._known: dict[bytes, np.ndarray] = {}
        self.none = self._scores(np.zeros((1, self.n), dtype=bool))[0]
        self.whole = float(self.made.observed[0]) - self.none

    def share(self, sets: np.ndarray) -> np.ndarray:
        """``(s,)``: of the span, on the mean over the draws."""
        kept: np.ndarray = (self._scores(sets) - self.none).mean(1) / self.whole.mean()
        return kept

    def surplus(self, sets: np.ndarray, n_draws: int | None = None) -> np.ndarray:
        """See :class:`~captum_causalseg.engine.smallest_set.Judged`."""
        found: np.ndarray = (self._scores(sets) - self.none - SHARE * self.whole)[:, :n_draws] * np.sign(self.whole.mean())
        return found

    def with_more_draws(self) -> None:
        """There are no more."""

    def reach(self, sets: np.ndarray) -> np.ndarray:
        """By one standard error."""
        surplus = self.surplus(sets)
        error = surplus.std(1, ddof=1) / np.sqrt(self.n_draws) if self.n_draws > 1 else 0.0
        reached: np.ndarray = surplus.mean(1) - error >= -1e-6
        return reached

    def _scores(self, sets: np.ndarray) -> np.ndarray:
        new = list({one.tobytes(): one for one in sets if one.tobytes() not in self._known}.values())
        if new:
            replaced = np.zeros((len(new), len(self.made.unit_ids)), dtype=bool)
            replaced[:, self.units] = ~np.stack(new)
            draws = np.tile(np.arange(self.n_draws), len(new))
            scores = self.made.scores(np.zeros(len(draws), dtype=np.int64), draws, replaced.repeat(self.n_draws, 0))
            for one, row in zip(new, scores.reshape(len(new), self.n_draws)):
                self._known[one.tobytes()] = row
        return np.stack([self._known[one.tobytes()] for one in sets])


def first(kept: Kept, values: np.ndarray) -> np.ndarray:
    """The fewest blocks from the top of an order that reach the share, found by doubling."""
    order = np.argsort(-values, kind="stable")

    def top(count: int) -> np.ndarray:
        chosen = np.zeros(kept.n, dtype=bool)
        chosen[order[:count]] = True
        return chosen

    below, at = 0, 1
    while at < kept.n and not kept.reach(top(at)[None])[0]:
        below, at = at, 2 * at
    at = min(at, kept.n)
    while at - below > 1:
        middle = (below + at) // 2
        below, at = (below, middle) if kept.reach(top(middle)[None])[0] else (middle, at)
    return top(at)


def pruned(kept: Kept, values: np.ndarray) -> np.ndarray:
    """The same, and what is not needed is left out again."""
    found = smallest_set(kept, values, np.ones(kept.n, dtype=bool)).chosen
    assert found is not None  # all blocks together are the picture as it is
    return found


def compared(case: Picture, bank: Any, kind: str) -> list[dict[str, Any]]:
    """One row per method."""
    single = kind == "zeros"
    to_search, to_judge = (0.0, 0.0) if single else bank.split(0.5, 0.5, seed=0)
    search, judge = Kept(case, to_search, 1 if single else N_SEARCH), Kept(case, to_judge, 1 if single else N_JUDGE)
    rows: list[dict[str, Any]] = []

    def add(method: str, chosen: np.ndarray, forwards: float) -> None:
        share = float(judge.share(chosen[None])[0])
        row = {"donors": kind, "method": method, "picture": case.name, "size": chosen.sum() / judge.n, "share": share}
        rows.append(row | {"reached": share >= SHARE - 1e-6, "forwards": forwards})
        say(f"{case.name}, {kind}, {method}: {chosen.sum()} of {judge.n} blocks, {share:.3f}")

    def searched(how: Callable[[Kept, np.ndarray], np.ndarray], values: np.ndarray) -> tuple[np.ndarray, int]:
        fresh = Kept(case, to_search, search.n_draws)
        return how(fresh, values), fresh.made.n_forwards

    region = sufficient_region(
        case.target, case.image, 0.0 if single else bank, share=SHARE, block_size=case.block, n_draws=N_SEARCH, support=None
    )
    ids = search.made.unit_ids[search.units]
    judging = region.settings["interventions"]["judging"]
    add("`sufficient_region`", np.isin(ids, region.units), region.n_forwards - judging)
    _, stats = JointTreatmentEffect(case.target).attribute(
        case.image, to_search, block_size=case.block, n_draws=8, support=None, return_statistics=True
    )
    joint = stats.effect[0].flatten().numpy()[search.units] * np.sign(search.whole.mean())
    chosen, forwards = searched(first, joint)
    add("joint effects", chosen, forwards + stats.n_forwards)
    steps = 100
    mask = MiSuRe(case.target).attribute(case.image, n_steps=steps)
    by_block = search.made.unit_attributions(mask)[0, search.units]
    # Each step is a forward and a backward pass, which takes about two more.
    for name, how in (("MiSuRe", first), ("MiSuRe, pruned", pruned)):
        chosen, forwards = searched(how, by_block)
        add(name, chosen, forwards + 3 * steps)
    add("MiSuRe as it is", by_block > 0.5, 3 * steps)
    far = ndimage.distance_transform_edt(~case.roi.numpy())
    near = -search.made.unit_attributions(torch.from_numpy(far)[None, None].float())[0, search.units]
    add("nearest", *searched(first, near))
    return rows


def pictures(options: argparse.Namespace, bank: PatchBank) -> list[Picture]:
    """Test pictures of lesions that the network outlines well and of which something is to be kept, in the order of their names."""
    train = skin.load_pictures(options.data, "train")
    network = skin.trained(options.network, train, options.cache, steps=options.steps)
    test = skin.load_pictures(options.data, "test")
    dices, found = skin.dice(network, test), []
    for index in np.flatnonzero((dices > 0.85).numpy()).tolist():
        if len(found) == options.pictures:
            break
        case = _picture(network, test, index, options.block)
        span = Kept(case, bank, N_SEARCH).whole.mean()
        if span >= LEAST_SPAN:
            found.append(case)
        else:
            say(f"{case.name}: left out, everything replaced takes {span:.3f} of the score away")
    return found


def _picture(network: nn.Module, test: skin.Pictures, index: int, block: int) -> Picture:
    rows, columns = np.nonzero(test.lesions[index].numpy())
    at = int(columns.argmin())
    place, shape = (rows[at], columns[at]), tuple(test.images.shape[2:])
    corner = [int(np.clip(c - EDGE // 2, 0, n - EDGE)) for c, n in zip(place, shape)]
    image = test.images[index : index + 1, :, corner[0] : corner[0] + EDGE, corner[1] : corner[1] + EDGE].contiguous()
    roi = regions.box((EDGE, EDGE), [int(np.clip(c - k - ROI // 2, 0, EDGE - ROI)) for c, k in zip(place, corner)], ROI)
    target = SegmentationTarget.from_prediction(network, image, roi=roi, metric="dice")
    return Picture(test.names[index], image, target, roi, block)


def shortcuts(n_cases: int) -> pd.DataFrame:
    """Regions of the planted shortcut, one row per case and kind."""
    rows = []
    for index in range(n_cases):
        case = load_shortcut_case(index)
        for face in (sufficient_region, necessary_region):
            region = face(case.target(), case.images, case.donors, block_size=8, n_draws=16)
            row = {"kind": region.kind, "found": case.marker_unit in region.units, "alone": region.units == (case.marker_unit,)}
            row |= {"size": len(region.units), "share": region.share_reached, "reached": region.reached}
            rows.append(row | {"n_candidates": region.n_candidates, "forwards": region.n_forwards})
            say(f"shortcut {index}: {region}")
    return pd.DataFrame(rows)


def shortcut_table(rows: pd.DataFrame) -> list[str]:
    lines = [
        "| region | holds the letter | the letter alone | blocks, median (most) of | share, mean | reached | forwards |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, group in rows.groupby("kind", sort=False):
        n, size = len(group), group["size"]
        counts = [f"{int(group[name].sum())} of {n}" for name in ("found", "alone", "reached")]
        lines.append(
            f"| {kind} | {counts[0]} | {counts[1]} | {size.median():g} ({size.max()}) of {group['n_candidates'].median():g} | "
            f"{group['share'].mean():.3f} | {counts[2]} | {group['forwards'].mean():.0f} |"
        )
    return lines


def interval(values: np.ndarray) -> str:
    """Mean and 95 % interval over the pictures."""
    half = scipy_stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.3f} [{values.mean() - half:.3f}, {values.mean() + half:.3f}]"


def table(rows: pd.DataFrame) -> list[str]:
    lines = [
        "| donors | method | size, of the blocks | less than MiSuRe's | share kept, on other donors | reached | forwards |",
        "|---|---|---|---|---|---|---|",
    ]
    for (donors, method), group in rows.groupby(["donors", "method"], sort=False):
        misure = rows[(rows["donors"] == donors) & (rows["method"] == "MiSuRe")].set_index("picture")["size"]
        less = misure.loc[group["picture"]].to_numpy() - group["size"].to_numpy()
        lines.append(
            f"| {donors} | {method} | {interval(group['size'].to_numpy())} | {'' if method == 'MiSuRe' else interval(less)} | "
            f"{interval(group['share'].to_numpy())} | {int(group['reached'].sum())} of {len(group)} | {group['forwards'].mean():.0f} |"
        )
    return lines


def main() -> None:
    made = skin.arguments(parser(__doc__))
    made.add_argument("--cases", type=int, default=12, help="of the shortcut; 0 for none")
    made.add_argument("--network", default="instance norm", choices=skin.NETWORKS)
    made.add_argument("--pictures", type=int, default=6)
    made.add_argument("--block", type=int, default=16)
    options = start(made)
    if options.data is not None and not skin.has_data(options.data):
        made.error(f"--data: expected a folder that holds {skin.ARCHIVE}, got {options.data}")
    if options.quick:
        options.cases, options.pictures, options.block = 1, 2, 32
    lines = ["## Regions", "", machine(options), ""]
    if options.cases:
        lines += [f"The planted shortcut, {options.cases} held-out slices:", "", *shortcut_table(shortcuts(options.cases)), ""]
    if options.data is not None:
        bank = PatchBank(skin.load_pictures(options.data, "train").images[:40])
        cases = pictures(options, bank)
        rows = pd.DataFrame([row for case in cases for kind in ("natural", "zeros") for row in compared(case, bank, kind)])
        lines += [
            f"{len(cases)} test pictures of skin lesions, {EDGE} x {EDGE}, a U-Net ({options.network}), blocks of {options.block} x {options.block}, at least {SHARE:g} of the span; "
            "means with 95 % intervals over the pictures. A backward pass counts as two forwards.",
            "",
            *table(rows),
        ]
    publish(lines, options)


if __name__ == "__main__":
    main()
