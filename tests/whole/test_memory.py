"""Peak memory is that of one batch and the moments, whatever the number of draws."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions


class PeakBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still alive, at their most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak(n_draws: int, perturbations_per_eval: int, n: int = 2, **options: Any) -> int:
    model = torch.nn.Conv2d(1, 4, 3, padding=1).eval()
    images, donors = torch.rand(n, 1, 48, 48), torch.rand(40, 1, 48, 48)
    target = SegmentationTarget(model, roi=regions.box((48, 48), 16, 16), reference=torch.ones(48, 48, dtype=torch.int64))
    with PeakBytes() as memory:
        AverageTreatmentEffect(target).attribute(
            images,
            baselines=PatchBank(donors),
            target=1,
            n_draws=n_draws,
            n_screening_draws=0,
            perturbations_per_eval=perturbations_per_eval,
            **{"sampling": "uniform", "support": None} | options,
        )
    return memory.peak


def test_more_draws_take_no_more_memory():
    assert peak(12, 4) == pytest.approx(peak(3, 4), rel=0.02)


@pytest.mark.parametrize("options", [{"sampling": "stratified"}, {"sampling": "stratified", "support": "auto"}], ids=str)
def test_more_draws_take_no_more_memory_with_ranked_donors_and_windows_either(options):
    assert peak(18, 4, **options) == pytest.approx(peak(6, 4, **options), rel=0.02)


def test_a_goal_takes_no_more_memory_than_its_scores():
    # 64 rows with at most 16 times 6 draws of 4 classes in double precision.
    assert peak(6, 4, precision=1e-6) <= peak(6, 4) + 64 * 96 * 4 * 8


def test_the_peak_grows_with_the_batch_and_with_nothing_else():
    four, eight, sixteen = peak(3, 4), peak(3, 8), peak(3, 16)
    per_perturbation = (eight - four) / 4
    assert (sixteen - eight) / 8 == pytest.approx(per_perturbation, rel=0.02)
    # What is left does not depend on the batch: the images, the reading of one donor, the masks.
    assert four - 4 * per_perturbation < 1_000_000


def test_a_batch_never_holds_more_than_perturbations_per_eval_times_the_examples():
    seen = []

    def forward(x):
        seen.append(len(x))
        return x.sum((1, 2, 3))

    AverageTreatmentEffect(forward).attribute(
        torch.rand(3, 1, 16, 16), baselines=PatchBank(torch.rand(9, 1, 16, 16)), n_draws=20, perturbations_per_eval=5
    )
    assert max(seen) == 15


def test_out_of_memory_inside_the_model_halves_the_batch_and_changes_nothing(caplog):
    model = torch.nn.Conv2d(1, 1, 3, padding=1).eval()

    def hungry(x):
        if len(x) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return model(x).sum((1, 2, 3))

    arguments = {"baselines": PatchBank(torch.rand(9, 1, 16, 16)), "n_draws": 20, "perturbations_per_eval": 16}
    image = torch.rand(1, 1, 16, 16)
    starved = AverageTreatmentEffect(hungry).attribute(image, **arguments)
    fed = AverageTreatmentEffect(lambda x: model(x).sum((1, 2, 3))).attribute(image, **arguments)
    torch.testing.assert_close(starved, fed, atol=1e-5, rtol=0)
    # Four blocks with three screening draws make a first batch of twelve.
    assert [r.getMessage() for r in caplog.records] == ["Out of memory: continuing with 6 interventions per batch"]
