"""Every intervention there is, on networks small enough for that, and the library's draws and statistics on these tables."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from monai.networks.nets import UNet
from scipy import stats as scipy_stats
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, SegmentationTarget, TreatmentEffectStatistics, regions
from captum_causalseg.demo import BrainSlices, fit, load_brain_slices, load_demo_network
from captum_causalseg.engine.design import Design, StratifiedDesign, UniformDesign
from captum_causalseg.engine.estimator import Estimator, StratifiedEstimator
from captum_causalseg.engine.notes import Notes
from captum_causalseg.engine.ranking import Ranking
from captum_causalseg.engine.sample import Sample
from captum_causalseg.statistics.moments import UnitMoments

METRICS = ("dice", "soft_dice")
CLASSES = (1, 2)
SAMPLINGS = ("uniform", "stratified")


@dataclass(frozen=True)
class Table:
    """Every intervention on one image, scored for one class.

    Attributes:
        differences: ``observed - intervened`` for every unit, donor and metric, ``(U, D, K)``; units inside the RoI left out.
        first_order: what one backward pass through the surrogate says of them, ``(U, D)``.
    """

    differences: np.ndarray
    first_order: np.ndarray

    @property
    def centered(self) -> "Table":
        """The same with an effect of 0 for every unit."""
        return Table(self.differences - self.truth[:, None], self.first_order)

    @property
    def truth(self) -> np.ndarray:
        """The effects ``(U, K)``."""
        return self.differences.mean(1)

    @property
    def alive(self) -> np.ndarray:
        """Whether any donor moves the score, ``(U, K)``."""
        return (self.differences != 0).any(1)

    @property
    def rare(self) -> np.ndarray:
        """Whether some donors do, but fewer than 20 % of them, ``(U, K)``."""
        return self.alive & ((self.differences != 0).mean(1) < 0.2)

    @property
    def skewed(self) -> np.ndarray:
        """Whether the skewness of the differences is beyond 1.5 either way, ``(U, K)``."""
        # Units that nothing moves have none.
        with np.errstate(invalid="ignore"):
            scaled = self.differences / np.abs(self.differences).max(1, keepdims=True)
        return self.alive & (np.abs(scipy_stats.skew(np.nan_to_num(scaled), axis=1)) > 1.5)


@functools.cache
def tables(n_spatial: int) -> tuple[Table, ...]:
    """One for every class of a brain slice (2D), or of two brain volumes (3D); ``K`` are the ``METRICS``."""
    if n_spatial == 2:
        return of_slice((152, 72), 64, (0, 48), 16, n_donors=120)
    return of_volumes([(90, 50), (150, 70)], n_donors=80)


def of_slice(
    corner: tuple[int, int], edge: int, roi_start: tuple[int, int], roi_size: int, *, n_donors: int, norm: str | None = None
) -> tuple[Table, ...]:
    """A square of a held-out brain slice, blocks of 8 x 8 pixels; the demo's network, or a small one with another norm, trained here."""
    train, held_out = load_brain_slices().split()
    rows, columns = (slice(start, start + edge) for start in corner)
    image, label = held_out.images[12:13, :, rows, columns], held_out.labels[12, rows, columns]
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(60, 140, (n_donors, 2), generator=generator).tolist()
    which = torch.randint(len(train), (n_donors,), generator=generator).tolist()
    bank = torch.stack([train.images[i, :, r : r + 8, c : c + 8] for i, (r, c) in zip(which, corners)])
    roi = regions.box((edge, edge), start=roi_start, size=roi_size)
    mask = regions.grid((edge, edge), 8)
    units = sorted(set(mask.unique().tolist()) - set(mask[roi].tolist()))
    network = load_demo_network() if norm is None else trained(train, edge, norm)
    return exhaust(network, image, label, roi, mask, units, bank)


def trained(train: BrainSlices, edge: int, norm: str) -> nn.Module:
    """A small U-Net that has seen squares of the training slices for some seconds."""
    generator = torch.Generator().manual_seed(0)
    images, labels = [], []
    for _ in range(200):
        i, row, column = (int(torch.randint(n, (1,), generator=generator)) for n in (len(train), 150, 120))
        square = (slice(row, row + edge), slice(column, column + edge))
        images.append(train.images[i][(slice(None), *square)])
        labels.append(train.labels[i][square])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(2, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm=norm, act=("RELU", {"inplace": False}))
    fit(network, torch.stack(images), torch.stack(labels), steps=150, batch_size=8, learning_rate=1e-2, augmentation=None)
    return network


def of_volumes(corners: list[tuple[int, int]], n_donors: int) -> tuple[Table, ...]:
    """Cubes of 20 voxels, RoIs and blocks of 8 and 4, a small network trained here.

    The cubes are cut from the 24 axial slices in the middle of the brain; the network has seen the others.
    """
    train, held_out = load_brain_slices().split(slabs=1, slab=24, margin=5)
    below = int((train.z_mm.diff() > 1.5).nonzero()[0, 0]) + 1
    generator = torch.Generator().manual_seed(0)

    def crops(n: int, size: int) -> tuple[Tensor, Tensor]:
        boxes = []
        for _ in range(n):
            # Not across the gap that the held-out slices leave.
            first, last = ((0, below), (below, len(train)))[int(torch.randint(2, (1,), generator=generator))]
            spans = ((first, last), (30, 200), (25, 180))
            starts = [int(torch.randint(low, high - size + 1, (1,), generator=generator)) for low, high in spans]
            boxes.append(tuple(slice(start, start + size) for start in starts))
        return torch.stack([train.images[:, 0][box] for box in boxes])[:, None], torch.stack(
            [train.labels[box] for box in boxes]
        )

    # The same weights whatever ran before.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(3, 1, 3, (8, 16, 32), (2, 2), num_res_units=1, norm="BATCH", act=("RELU", {"inplace": False}))
    fit(network, *crops(100, 24), steps=150, batch_size=4, learning_rate=1e-2, augmentation=None)
    bank, _ = crops(n_donors, 4)
    roi = regions.box((20,) * 3, start=(8,) * 3, size=8)
    mask = regions.grid((20,) * 3, 4)
    # Those next to the RoI: further away most do nothing.
    units = sorted(set(mask[4:, 4:, 4:].unique().tolist()) - set(mask[roi].tolist()))
    found: tuple[Table, ...] = ()
    for r, c in corners:
        box = (slice(0, 20), slice(r, r + 20), slice(c, c + 20))
        found += exhaust(network, held_out.images[:, 0][box][None, None], held_out.labels[box], roi, mask, units, bank)
    return found


def exhaust(
    network: nn.Module, image: Tensor, label: Tensor, roi: Tensor, mask: Tensor, units: list[int], bank: Tensor
) -> tuple[Table, ...]:
    """Every donor of the bank in every one of the units, for each of the ``CLASSES``."""
    # The network runs once for all metrics, which are taken from its logits inside the RoI.
    seen = tuple(slice(int(places.min()), int(places.max()) + 1) for places in roi.nonzero(as_tuple=True))
    scores = [SegmentationTarget(nn.Identity(), reference=label[seen], metric=m, activation="softmax") for m in METRICS]
    seen = (slice(None), slice(None), *seen)
    gradients = []
    # What fits the cache takes two thirds of the time.
    at_once = 100 if image.ndim == 4 else 20
    for k in CLASSES:
        leaf = image.clone().requires_grad_()
        gradients += torch.autograd.grad(scores[0].surrogate()(network(leaf)[seen])[0, k], leaf)
    differences = np.empty((len(CLASSES), len(units), len(bank), len(METRICS)))
    first_order = np.empty((len(CLASSES), len(units), len(bank)))
    with torch.no_grad():
        logits = network(image)[seen]
        observed = torch.stack([score(logits)[0, CLASSES] for score in scores], -1)
        for u, unit in enumerate(units):
            places = (mask == unit).nonzero()
            low, high = places.min(0).values.tolist(), (places.max(0).values + 1).tolist()
            inside = (slice(None), slice(None), *(slice(a, b) for a, b in zip(low, high)))
            parts = []
            for donors in bank.split(at_once):
                batch = image.repeat(len(donors), *(1,) * (image.ndim - 1))
                batch[inside] = donors
                parts.append(network(batch)[seen])
            logits = torch.cat(parts)
            intervened = torch.stack([score(logits)[:, CLASSES] for score in scores], -1)
            differences[:, u] = (observed - intervened).transpose(0, 1).numpy()
            for k, gradient in enumerate(gradients):
                first_order[k, u] = (gradient[inside] * (image[inside] - bank)).flatten(1).sum(1).numpy()
    differences[np.abs(differences) < 1e-6] = 0.0  # rounding of float32
    return tuple(map(Table, differences, first_order))


def design_of(seed: tuple[int, int], donors: int, order: np.ndarray | None, n_draws: int, n_screening_draws: int = 0) -> Design:
    """The donors that the library takes for a unit: along the ranking ``order`` ``(D,)``, or uniformly."""
    kind = UniformDesign if order is None else StratifiedDesign
    return kind(np.random.default_rng(seed), [donors], n_first=n_draws, n_screening=n_screening_draws, ranking=order)


def draw(
    differences: np.ndarray,
    first_order: np.ndarray | None,
    n_draws: int,
    seeds: range,
    n_screening_draws: int = 0,
    *,
    estimator: Estimator | None = None,
    controls: np.ndarray | None = None,
) -> TreatmentEffectStatistics:
    """What ``attribute`` would report, without the model: one example per seed, ``(S, U, K)``; no unit is screened out.

    Args:
        differences: ``(U, D, K)``, as of :class:`Table`.
        first_order: ``(U, D)`` the predicted effects that the donors are ranked by; ``None`` for uniform draws.
        n_draws: per unit.
        seeds: one per example.
        n_screening_draws: of the draws, for their order.
        estimator: the library's default, or another.
        controls: ``(U, D, K, C)``, known for every donor.
    """
    units, donors, outputs = differences.shape
    orders = None if first_order is None else orders_of(first_order)
    notes = Notes(np.repeat(np.arange(len(seeds)), units), np.full(len(seeds) * units, float(donors)), outputs)
    everything = np.ones(outputs, dtype=bool)
    for s, seed in enumerate(seeds):
        for u, row in enumerate(differences):
            order = None if orders is None else orders[u]
            design = design_of((seed, u), donors, order, n_draws, n_screening_draws)
            drawn, predicted = design.donors(n_draws)[:, 0], None
            if order is not None:
                predicted = Ranking.of(first_order[u], order, design=design, outputs=everything, most_draws=n_draws).first_order
            known = (None, None) if controls is None else (controls[u][drawn], controls[u].mean(0))
            sample = Sample(row[drawn], design.selection(1), *known, first_order=predicted)
            notes.write(s * units + u, (estimator or StratifiedEstimator()).estimate(sample), which=everything)
    found = notes.moments()
    return statistics_of(found.spread(*np.divmod(np.arange(len(seeds) * units), units), len(seeds), units))


def statistics_of(moments: UnitMoments) -> TreatmentEffectStatistics:
    """The library's statistics from moments ``(S, U, K)``."""
    examples, units, outputs = moments.effect.shape
    return TreatmentEffectStatistics.from_moments(
        moments,
        observed_score=torch.zeros(examples, outputs, dtype=torch.float64),
        unit_ids=torch.arange(units),
        feature_mask=[torch.arange(units)[None, None]],
        input_shapes=[(examples, 1, units)],
        n_forwards=0,
    )


def orders_of(first_order: np.ndarray) -> np.ndarray:
    """The donors ``(U, D)`` from the smallest predicted effect to the largest."""
    return np.argsort(first_order, axis=1, kind="stable")


def look_up(differences: np.ndarray, first_order: np.ndarray | None = None):
    """A forward function whose interventions have exactly these effects ``(U, D)``: pixel u holding donor d's number moves it.

    Its gradient says ``first_order`` of them: the donors' second channel holds that.
    """
    table = torch.from_numpy(differences)

    def forward(x: Tensor) -> Tensor:
        donor = x[:, 0].round().long()
        unit = (donor >= 0).int().argmax(1)
        moved = table[unit, donor.gather(1, unit[:, None])[:, 0].clamp_min(0)]
        linear = x[:, 1].sum(1)
        return torch.where((donor >= 0).any(1), -moved, 0.0) + (linear - linear.detach())

    units, donors = differences.shape
    numbers = torch.zeros(donors, 2, units, dtype=torch.float64)
    numbers[:, 0] = torch.arange(donors, dtype=torch.float64)[:, None]
    if first_order is not None:
        numbers[:, 1] = -torch.from_numpy(first_order).T
    image = torch.zeros(1, 2, units, dtype=torch.float64)
    image[:, 0] = -1.0
    return forward, image, numbers


def attributed(
    differences: np.ndarray, first_order: np.ndarray | None, seeds: range, **options
) -> list[TreatmentEffectStatistics]:
    """One run of ``attribute`` per seed on the table ``(U, D)``."""
    forward, image, numbers = look_up(differences, first_order)
    options = {"sampling": "uniform" if first_order is None else "stratified"} | options
    runs = [
        AverageTreatmentEffect(forward).attribute(
            image, baselines=numbers, block_size=1, seed=seed, perturbations_per_eval=4096, return_statistics=True, **options
        )[1]
        for seed in seeds
    ]
    assert all(run.settings["sampling"] == options["sampling"] for run in runs)
    return runs
