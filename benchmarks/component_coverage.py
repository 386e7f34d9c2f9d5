"""How often do the 95 % intervals of `component_effects` hold the truth?

    python benchmarks/component_coverage.py --threads 1 [--repeats 60] [--write docs/benchmarks/component_coverage.md]

Every donor of every module is run once, through two networks: a held-out brain slice (112 x 112, RoI 32 x 32) and the demo's U-Net; a square of
that slice (64 x 64, RoI 16 x 16) and a small U-Net with instance norm, trained here in some seconds. 400 donor images, grey and white matter, hard
and soft Dice. Then calls are simulated: the library's own plan, its loop with screening, its estimator and its statistics, one call per module and
seed, on banks of the first 25, 40, 100 and all donors. The library uses up banks of up to 64 donors, for exact effects, and draws at least 20 of
larger ones, stratified; ``--drawn`` shows what intervals would be without these rules. ``--repeats`` is the number of seeds; modules that hold the truth least are looked at again with
1000, so that the worst of many is not the unluckiest. Tables and lines are kept in ``--cache``: a run that was cut off goes on where it was.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cases import machine, parser, publish, say, start
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "common"))

from exhaustive import CLASSES, METRICS, trained

from captum_causalseg import SegmentationTarget, TreatmentEffectStatistics, regions
from captum_causalseg.attr.effort import Effort
from captum_causalseg.demo import load_brain_slices, load_demo_network
from captum_causalseg.engine.draws import candidates
from captum_causalseg.engine.interventions import Interventions
from captum_causalseg.engine.plan import Plan
from captum_causalseg.engine.run import run
from captum_causalseg.statistics import Status

BANKS = (25, 40, 100, 400)
DRAWS = (6, 12, 20, 32)
SAMPLINGS = ("stratified", "uniform")
FEWEST_DRAWS = 20
"""As in ``component_effects``."""
NAMES = {"dice": "hard Dice", "soft_dice": "soft Dice"}
SCREENING, THRESHOLD = 3, 0.0002
LOOKED_AT_AGAIN, AGAIN = 0.87, 1000
BARS = (0.92, 0.80)
# By name: the edge of the square, where its RoI begins and how large it is, and the norm of a network that is trained here (None: the demo's).
CASES = {"2D": (112, (64, 40), 32, None), "2D, instance norm": (64, (24, 16), 16, "INSTANCE")}
CORNER = (120, 48)
"""Of both squares in the slice, as in ``coverage.py``."""


@dataclass(frozen=True)
class Modules:
    """Every intervention on the modules of a network, for one image.

    Args:
        names: of the modules, ``M``; those that return the same tensor are there once.
        differences: ``observed - intervened``, ``(classes, M, D, metrics)``.
        first_order: what one backward pass says of them, ``(classes, M, D)``.
    """

    names: list[str]
    differences: np.ndarray
    first_order: np.ndarray

    def bank(self, k: int, module: int, donors: int) -> tuple[np.ndarray, np.ndarray]:
        """Differences ``(D, metrics)`` and predictions ``(D,)`` of the first donors."""
        return self.differences[k, module, :donors], self.first_order[k, module, :donors]


@dataclass(frozen=True)
class Line:
    """One line of the table: a network, a metric, a sampling, a bank and a number of draws."""

    case: str
    metric: str
    sampling: str
    donors: int
    n_draws: int
    modules: int
    drained: bool
    held: float
    least: float
    worst: str
    rms_error: float
    ratio: float
    infinite: float

    @property
    def reported(self) -> bool:
        """Whether the library reports such intervals."""
        return self.sampling == "stratified" and self.n_draws >= FEWEST_DRAWS and not self.drained


def modules_of(network: nn.Module, image: Tensor, label: Tensor, roi: Tensor, donors: Tensor) -> Modules:
    """Run every donor image once, and every module's activation on it in the place of the image's own."""
    seen = tuple(slice(int(places.min()), int(places.max()) + 1) for places in roi.nonzero(as_tuple=True))
    scores = [SegmentationTarget(nn.Identity(), reference=label[seen], metric=m, activation="softmax") for m in METRICS]
    seen = (slice(None), slice(None), *seen)
    network.eval()
    own = activations(network, image)
    chosen: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        if name in own and not any(own[name].shape == own[other].shape and own[name].equal(own[other]) for other in chosen):
            chosen[name] = module
    predicted = np.empty((len(CLASSES), len(chosen), len(donors)))
    differences = np.empty((len(CLASSES), len(chosen), len(donors), len(METRICS)))
    gradients = gradients_of(network, image, chosen, score=lambda logits: scores[0].surrogate()(logits[seen])[0])
    with torch.no_grad():
        logits = network(image)[seen]
        observed = torch.stack([score(logits)[0, CLASSES] for score in scores], -1)
        for begin in range(0, len(donors), 50):
            part = slice(begin, begin + 50)
            given = activations(network, donors[part])
            for m, (name, module) in enumerate(chosen.items()):
                with returning(module, given[name]):
                    logits = network(image.expand(len(given[name]), *image.shape[1:]))[seen]
                intervened = torch.stack([score(logits)[:, CLASSES] for score in scores], -1)
                differences[:, m, part] = (observed - intervened).transpose(0, 1).numpy()
                for k, gradient in enumerate(gradients):
                    predicted[k, m, part] = (gradient[name].double() * (own[name] - given[name]).double()).flatten(1).sum(1)
            say(f"  {begin + len(given[name])} of {len(donors)} donors")
    differences[np.abs(differences) < 1e-6] = 0.0  # rounding of float32
    return Modules(list(chosen), differences, predicted)


def activations(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What every module returns, of those that are called once."""
    found: dict[str, list[Tensor]] = {}

    def keep(name: str):
        return lambda module, args, output: found.setdefault(name, []).append(output.detach().clone())

    handles = [module.register_forward_hook(keep(name)) for name, module in network.named_modules() if name]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def gradients_of(network: nn.Module, image: Tensor, chosen: dict[str, nn.Module], *, score) -> list[dict[str, Tensor]]:
    """Of every class, by module."""
    found: list[dict[str, Tensor]] = [{} for _ in CLASSES]
    for name, module in chosen.items():
        leaf = activations(network, image)[name].requires_grad_()
        # A copy: what runs next may work in place.
        with returning(module, leaf.clone()):
            values = score(network(image))
        for k, by_name in zip(CLASSES, found):
            by_name[name] = torch.autograd.grad(values[k], leaf, retain_graph=True)[0]
    return found


@contextmanager
def returning(module: nn.Module, value: Tensor) -> Iterator[None]:
    """The module returns this instead of what it computes."""
    handle = module.register_forward_hook(lambda module, args, output: value)
    try:
        yield
    finally:
        handle.remove()


class Recorded:
    """An evaluator whose scores are in a table ``(D, K)``; without intervention they are 0."""

    def __init__(self, differences: np.ndarray) -> None:
        self._scores = torch.from_numpy(-differences).float()

    def observe(self, examples: np.ndarray) -> Tensor:
        return torch.zeros(len(examples), self._scores.shape[1])

    baseline = observe

    def __call__(self, interventions: Interventions) -> Tensor:
        return self._scores[interventions.donor[:, 0]]


def called(
    differences: np.ndarray, first_order: np.ndarray, sampling: str, *, n_draws: int, seeds: range
) -> TreatmentEffectStatistics:
    """What as many calls report of one module as there are seeds: the library's plan, loop, estimator and statistics, ``(S, 1, K)``."""
    donors, outputs = differences.shape
    rows, everything = np.arange(len(seeds)), np.ones(outputs, dtype=bool)
    plan = Plan(
        example=rows,
        unit=np.zeros(len(seeds), dtype=np.int64),
        key=np.zeros(len(seeds), dtype=np.int64),
        population=np.full((len(seeds), 1), donors),
        active=np.ones((len(seeds), outputs), dtype=bool),
        n_draws=n_draws,
        n_screening_draws=SCREENING,
        seed=tuple(seeds),
        sampling=sampling,
        drains=0,
    )
    if plan.scheme.design.needs_ranking and plan.total(0) > plan.first_draws(0):
        numbers = candidates(plan.generator(0), [donors], donors)[:, 0]
        ranked = [plan.ranked(row, first_order[numbers], outputs=everything, most_draws=n_draws) for row in rows.tolist()]
        plan = replace(plan, rankings=ranked)
    outcome = run(plan, Recorded(differences), np.zeros((len(seeds), outputs)), batch_size=4096, screening_threshold=THRESHOLD)
    return TreatmentEffectStatistics.from_moments(
        outcome.moments.spread(rows, plan.unit, len(seeds), 1),
        observed_score=torch.zeros(len(seeds), outputs, dtype=torch.float64),
        unit_ids=torch.arange(1),
        feature_mask=[torch.zeros(1, 1, 1, dtype=torch.int64)],
        input_shapes=[(len(seeds), 1, 1)],
        n_forwards=0,
    )


def held_in(stats: TreatmentEffectStatistics, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which intervals hold the truth ``(K,)``, the errors, and the standard errors: ``(S, K)`` each."""
    lower, upper = (end[:, 0].numpy() for end in stats.confidence_interval(0.95))
    # Sums of the same numbers in another order.
    error, slack = stats.effect[:, 0].numpy() - truth, 1e-7
    # No interval at all (of a single donor, or where no draw moved anything) excludes nothing.
    inside = ~((truth < lower - slack) | (truth > upper + slack))
    # What was given up says that the effect is not worth more draws, not that it is 0: it has an interval like all others.
    assert (stats.status[:, 0] != Status.ABSENT).all()
    return inside, error, stats.standard_error[:, 0].numpy()


def study(case: str, modules: Modules, sampling: str, donors: int, n_draws: int, seeds: int) -> list[Line]:
    """One line per metric; modules are those of all classes that some donor moves."""
    found: dict[str, list[tuple[str, float, np.ndarray, np.ndarray]]] = {metric: [] for metric in METRICS}
    for k, label in enumerate(CLASSES):
        for m, name in enumerate(modules.names):
            differences, first_order = modules.bank(k, m, donors)
            truth, alive = differences.mean(0), (differences != 0).any(0)
            # As component_effects does it: every module has seeds of its own.
            first = int.from_bytes(hashlib.sha256(f"{name} {label}".encode()).digest()[:4], "big")
            stats = called(differences, first_order, sampling, n_draws=n_draws, seeds=range(first, first + seeds))
            inside, error, standard = held_in(stats, truth)
            if seeds > 10 and (inside.mean(0)[alive] < LOOKED_AT_AGAIN).any():
                again = called(
                    differences, first_order, sampling, n_draws=n_draws, seeds=range(first + seeds, first + seeds + AGAIN)
                )
                more, _, _ = held_in(again, truth)
                rates = more.mean(0)
            else:
                rates = inside.mean(0)
            for i, metric in enumerate(METRICS):
                if alive[i]:
                    found[metric].append((f"{name} (class {label})", float(rates[i]), error[:, i], standard[:, i]))
    lines = []
    for metric, those in found.items():
        errors, standards = (np.stack([one[place] for one in those]) for place in (2, 3))
        finite = np.isfinite(standards)
        worst = min(those, key=lambda one: one[1])
        rms = float(np.sqrt((errors**2).mean()))
        lines.append(
            Line(
                case=case,
                metric=metric,
                sampling=sampling,
                donors=donors,
                n_draws=n_draws,
                modules=len(those),
                drained=donors <= Effort(n_draws=n_draws).drains(1),
                held=float(np.mean([one[1] for one in those])),
                least=worst[1],
                worst=worst[0],
                rms_error=rms,
                ratio=float(np.sqrt((standards[finite] ** 2).mean() / (errors[finite] ** 2).mean())) if rms else float("nan"),
                infinite=float((~finite).mean()),
            )
        )
    return lines


def tables(options, name: str) -> Modules:
    """Of a network, from the cache if they are there."""
    edge, roi_start, roi_size, norm = CASES[name]
    donors = 50 if options.quick else max(BANKS)
    file = options.cache / f"components_{name.replace(' ', '_').replace(',', '')}_{donors}.npz"
    if file.exists():
        with np.load(file) as held:
            return Modules(held["names"].tolist(), held["differences"], held["first_order"])
    say(f"{name}: every donor of every module")
    train, held_out = load_brain_slices().split()
    rows, columns = (slice(corner, corner + edge) for corner in CORNER)
    image, label = held_out.images[12:13, :, rows, columns], held_out.labels[12, rows, columns]
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(len(train), (donors,), generator=generator).tolist()
    # Other places of other slices: what a bank of images of the same kind holds.
    corners = torch.stack(
        [torch.randint(low, low + 16, (donors,), generator=generator) for low in (CORNER[0] - 8, CORNER[1] - 8)], 1
    ).tolist()
    bank = torch.stack([train.images[i, :, r : r + edge, c : c + edge] for i, (r, c) in zip(which, corners)])
    network = load_demo_network() if norm is None else trained(train, edge, norm)
    roi = regions.box((edge, edge), start=roi_start, size=roi_size)
    found = modules_of(network, image, label, roi, bank)
    options.cache.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, names=np.array(found.names), differences=found.differences, first_order=found.first_order)
    return found


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--drawn", action="store_true", help="also simulate draws from banks that are used up")
    options = start(made)
    seeds = options.repeats or (3 if options.quick else 60)
    banks = tuple(bank for bank in BANKS if bank <= 50 or not options.quick)
    file = options.cache / f"component_coverage_{seeds}{'_quick' if options.quick else ''}.jsonl"
    known = [Line(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    lines: list[Line] = []
    sizes = {}
    for case in CASES:
        modules = tables(options, case)
        sizes[case] = len(modules.names)
        for donors in banks:
            for n_draws in DRAWS:
                drained = donors <= Effort(n_draws=n_draws).drains(1)
                if donors <= n_draws or (not options.drawn and (drained or n_draws < FEWEST_DRAWS)):
                    continue
                for sampling in SAMPLINGS if options.drawn else SAMPLINGS[:1]:
                    those = [x for x in known if (x.case, x.sampling, x.donors, x.n_draws) == (case, sampling, donors, n_draws)]
                    if not those:
                        say(f"{case}: {n_draws} of {donors} donors, {sampling}")
                        those = study(case, modules, sampling, donors, n_draws, seeds)
                        with file.open("a") as held:
                            held.writelines(json.dumps(asdict(x)) + "\n" for x in those)
                    lines += those
    publish([machine(options), "", *page(lines, sizes, seeds)], options)


def page(lines: list[Line], sizes: dict[str, int], seeds: int) -> list[str]:
    """The section."""
    about = [f"- {case}: {n} modules that return different tensors, grey and white matter each." for case, n in sizes.items()]
    for what, those in (
        ("as the library draws", [x for x in lines if x.reported]),
        ("fewer draws", [x for x in lines if x.sampling == "stratified" and x.n_draws < FEWEST_DRAWS and not x.drained]),
        ("uniform draws", [x for x in lines if x.sampling == "uniform" and not x.drained]),
    ):
        if those:
            about.append(
                f"- {what}: intervals hold {min(x.held for x in those):.3f} to {max(x.held for x in those):.3f} of the truths, a "
                f"setting's worst module {min(x.least for x in those):.3f} to {max(x.least for x in those):.3f}."
            )
    about += [
        "",
        f"{seeds} calls per module, class and line; of modules that any donor moves. *held*: the share of 95 % intervals that hold the truth, mean over",
        "modules; *least*: of the module where it is smallest (modules below 0.87 were looked at again, 1000 calls); *se / error*: both root mean square; the rms error",
        "is in Dice points of 100. Bold lines are what the library reports: of up to 64 donors all are used, and effects are exact (*used up*: what draws",
        "would have given); of more, at least 20 are drawn, stratified.",
        "",
        "| case | donors | n | draws | modules | held | least | rms error | se / error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for x in lines:
        strong = "**" if x.reported else ""
        about.append(
            f"| {strong}{x.case}, {NAMES[x.metric]}{strong} | {x.donors}{' (used up)' if x.drained else ''} | {x.n_draws} | {x.sampling} | {x.modules} "
            f"| {x.held:.3f} | {x.least:.3f} | {100 * x.rms_error:.3f} | {x.ratio:.2f} |"
        )
    return about


if __name__ == "__main__":
    main()
