"""An attribution leaves no trace, and the same arguments give the same bits."""

import copy
import os
import random as python_random
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, PatchBank, PdCR, SegmentationTarget, Status, regions

SIZE = 12
TRAINING = "ignore:The model is in training mode:UserWarning"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def bank() -> PatchBank:
    return PatchBank(random(8, 1, SIZE, SIZE, seed=9))


class Restless(nn.Module):
    """Does all that a model can do to its surroundings: random numbers, buffers replaced and changed, in-place work."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(1, 4, 5, padding=2)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.InstanceNorm2d(4, track_running_stats=True), nn.Conv2d(4, 1, 1))
        self.register_buffer("changed", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("unset", None)
        self.register_buffer("undefined", torch.full((2,), torch.nan))
        self.calls, self.fail_at, self.error = 0, fail_at, error

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        self.calls += 1
        self.changed += 1
        self.replaced = self.replaced + 1
        self.unset = torch.ones(2)
        self.undefined.zero_()
        self.register_buffer("cached", torch.ones(1))
        torch.rand(3)
        np.random.rand(3)
        python_random.random()
        torch.manual_seed(self.calls)
        y = self.head(self.dropout(self.norm(self.conv(x))))
        x.mul_(0)
        for other in others:
            other.add_(1)
        if self.calls == self.fail_at:
            raise self.error("midway")
        return y


def trace(model: nn.Module) -> dict:
    """All that must be as it was, by value."""
    modules = list(model.modules())
    states = [python_random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()]
    return {
        "modes": [module.training for module in modules],
        "parameters": [(name, p.detach().numpy().tobytes(), p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "buffers": [(name, b if b is None else b.numpy().tobytes()) for m in modules for name, b in m._buffers.items()],
        "state_dict": list(model.state_dict()),
        "hooks": [
            len(hooks)
            for m in modules
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
        ],
        "random": [repr(state) for state in states],
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
    }


def assert_same_trace(before: dict, after: dict) -> None:
    for what in before:
        assert before[what] == after[what], what


def target_of(model: nn.Module) -> SegmentationTarget:
    roi = regions.box((SIZE, SIZE), start=4, size=4)
    return SegmentationTarget(
        model, roi=roi, reference=random(SIZE, SIZE, seed=2) > 0.5, metric="soft_dice", activation="sigmoid"
    )


METHODS = [AverageTreatmentEffect, PdCR]
MODES = ["eval", "train", "mixed"]


def restless(mode: str, **failure) -> Restless:
    model = Restless(**failure).train(mode == "train")
    if mode == "mixed":
        model.norm.train()
        model.head[2].train()
    model.conv.weight.requires_grad_(False)
    return model


@pytest.mark.filterwarnings(TRAINING)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_left_as_it_was(method, mode):
    model = restless(mode)
    model.norm.register_forward_hook(lambda *_: None)
    model.head.register_full_backward_hook(lambda *_: None)
    target = target_of(model)
    images, kept = random(2, 1, SIZE, SIZE).requires_grad_(), random(2, 1, SIZE, SIZE)
    objects = dict(model.named_buffers())
    target.register_forward_hook(lambda *_: None)
    before = trace(target)
    method(target).attribute(images, baselines=bank(), block_size=4, n_draws=3)
    assert_same_trace(before, trace(target))
    assert all(buffer is objects[name] for name, buffer in model.named_buffers()), "buffers are the same objects"
    assert model.calls > 2
    assert torch.equal(images, kept)
    assert images.requires_grad
    assert images.grad is None


@pytest.mark.filterwarnings(TRAINING)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("fail_at", [1, 2, 4])
def test_a_model_is_left_as_it_was_when_it_fails_midway(fail_at, error, mode):
    model = restless(mode, fail_at=fail_at, error=error)
    images, others, donors = random(2, 1, SIZE, SIZE).requires_grad_(), random(2), random(3, 1, SIZE, SIZE, seed=1)
    kept = [tensor.detach().clone() for tensor in (images, others, donors)]
    before = trace(model)
    arguments = {"additional_forward_args": others, "perturbations_per_eval": 1, "sampling": "uniform", "support": None}
    with pytest.raises(error, match="midway"):
        AverageTreatmentEffect(target_of(model)).attribute(images, baselines=donors, block_size=4, **arguments)
    assert model.calls == fail_at
    assert_same_trace(before, trace(model))
    for tensor, value in zip((images, others, donors), kept):
        assert torch.equal(tensor, value)
    assert images.requires_grad


class Interrupted(Restless):
    """Is interrupted as soon as it is run as asked for; ``seen`` says whether it was."""

    def __init__(self, when: str, error: type[BaseException]) -> None:
        super().__init__()
        self.when, self.interruption, self.seen = when, error, 0

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        happens = {
            "support": bool(x.isnan().any()),
            "window": x.shape[-1] < SIZE,
            "gradient": torch.is_grad_enabled(),
            "backward": torch.is_grad_enabled(),
        }[self.when]
        y = super().forward(x, *others)
        if happens:
            self.seen += 1
            if self.when != "backward":
                raise self.interruption("midway")
            y.register_hook(self.interrupt)
        return y

    def interrupt(self, gradient: Tensor) -> None:
        raise self.interruption("midway")


@pytest.mark.filterwarnings(TRAINING)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", ["support", "window", "gradient", "backward"])
def test_a_model_is_left_as_it_was_when_what_comes_before_the_interventions_fails(when, error, mode):
    model = Interrupted(when, error).train(mode == "train")
    if mode == "mixed":
        model.norm.train()
        model.head[2].train()
    model.conv.weight.requires_grad_(False)
    images = random(2, 1, SIZE, SIZE).requires_grad_()
    kept, objects = images.detach().clone(), dict(model.named_buffers())
    arguments = {"baselines": bank(), "block_size": 4, "n_draws": 3, "perturbations_per_eval": 1}
    before = trace(model)
    face = AverageTreatmentEffect(target_of(model))
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt, match="midway"):
            face.attribute(images, **arguments)
        assert model.seen == 1
    else:
        # What is only tried, or does without, is no reason to fail.
        assert face.attribute(images, **arguments).isfinite().all()
        assert model.seen > 0
    assert_same_trace(before, trace(model))
    assert all(buffer is objects[name] for name, buffer in model.named_buffers()), "buffers are the same objects"
    assert torch.equal(images, kept)
    assert images.requires_grad
    assert images.grad is None


@pytest.mark.filterwarnings(TRAINING)
@pytest.mark.parametrize("mode", MODES)
def test_a_plain_module_without_target_is_left_as_it_was(mode):
    model = restless(mode)
    scores = nn.Sequential(model, nn.Flatten(), nn.Linear(SIZE**2, 2)).train(mode == "train")
    before = trace(scores)
    AverageTreatmentEffect(scores).attribute(random(2, 1, SIZE, SIZE), baselines=0, target=1, block_size=4)
    assert_same_trace(before, trace(scores))


@pytest.mark.filterwarnings(TRAINING)
def test_a_target_predicts_and_is_built_without_a_trace():
    model = restless("mixed")
    before = trace(model)
    target = SegmentationTarget.from_prediction(model, random(2, 1, SIZE, SIZE), activation="sigmoid")
    target.predict(random(2, 1, SIZE, SIZE))
    assert_same_trace(before, trace(model))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_grad_mode_is_put_back(enabled):
    seen = []

    def forward(x: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return x.sum((1, 2, 3))

    with torch.set_grad_enabled(enabled):
        AverageTreatmentEffect(forward).attribute(random(1, 1, 4, 4).requires_grad_(), baselines=0, block_size=2)
        assert torch.is_grad_enabled() is enabled
    assert set(seen) == {False}


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        images = random(1, 1, 4, 4)
        attributions = AverageTreatmentEffect(lambda x: x.mul_(2).sum((1, 2, 3))).attribute(images, baselines=0, block_size=1)
        torch.testing.assert_close(attributions, 2 * images)
        assert torch.equal(images, random(1, 1, 4, 4))


def test_a_function_that_works_in_place_changes_no_argument_of_the_call():
    image, table = random(2, 1, 4, 4).requires_grad_(), random(2, 3)
    rows, scalar, donors = random(2, 5), torch.tensor(2.0), random(3, 1, 4, 4, seed=1)
    mask, table_mask = regions.grid((4, 4), 2)[None, None], torch.tensor([[4, 4, 5]])
    given = image, table, rows, scalar, donors, mask, table_mask
    kept = [tensor.detach().clone() for tensor in given]

    def forward(x: Tensor, t: Tensor, r: Tensor, s: Tensor) -> Tensor:
        scores = x.sum((1, 2, 3)) * s + t.sum(1) + r.sum(1)
        for tensor in (x, t, r, s):
            tensor.fill_(-7)
        return scores

    attributions = AverageTreatmentEffect(forward).attribute(
        (image, table),
        baselines=(donors, 0),
        feature_mask=(mask, table_mask),
        additional_forward_args=(rows, scalar),
        n_screening_draws=0,
    )
    for tensor, value in zip(given, kept):
        assert torch.equal(tensor, value)
    assert image.requires_grad
    expected = torch.stack([table[:, :2].sum(1), table[:, :2].sum(1), table[:, 2]], 1)
    torch.testing.assert_close(attributions[1], expected)
    mean_donor = kept[4].mean(0, keepdim=True)
    blocks = nn.functional.avg_pool2d(2 * (kept[0] - mean_donor), 2, divisor_override=1)
    torch.testing.assert_close(attributions[0], nn.functional.interpolate(blocks, scale_factor=2.0))


def test_attributions_share_no_memory_with_the_input():
    images = random(1, 1, 4, 4)
    kept = images.clone()
    AverageTreatmentEffect(lambda x: x.sum((1, 2, 3))).attribute(images, baselines=0, block_size=1).zero_()
    assert torch.equal(images, kept)


# --- Training mode ---------------------------------------------------------------------------------------------------


def normed(training: bool) -> nn.Module:
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(), nn.Conv2d(4, 1, 3, padding=1)
    )
    model[1].running_mean.uniform_(-1, 1)
    with torch.no_grad():  # around 0.5 with and without activation, so that hard labels flip as well
        model[-1].weight.mul_(10)
        model[-1].bias.copy_(0.5 - model.eval()(random(1, 1, SIZE, SIZE)).mean())
    return model.train(training)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_training_mode_is_explained_as_its_twin_in_evaluation_mode(method):
    images = random(2, 1, SIZE, SIZE)
    arguments = {"baselines": bank(), "block_size": 2, "n_draws": 4, "screening_threshold": 0.0}
    expected = method(target_of(normed(False))).attribute(images, **arguments)
    training = normed(True)
    with pytest.warns(UserWarning, match=r"training mode.* evaluated in evaluation mode"):
        found = method(target_of(training)).attribute(images, **arguments)
    assert expected.abs().amax() > 0
    assert torch.equal(found, expected)
    assert training.training
    assert training[1].training


def test_training_mode_that_makes_no_difference_is_no_reason_to_warn():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.InstanceNorm2d(1), nn.Dropout(0.0)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AverageTreatmentEffect(target_of(model)).attribute(random(1, 1, SIZE, SIZE), baselines=0, block_size=4)


def test_the_warning_as_an_error_leaves_the_model_in_training_mode():
    model = normed(True)
    before = trace(model)
    target = target_of(model)
    with pytest.raises(UserWarning, match="training mode"):
        AverageTreatmentEffect(target).attribute(random(1, 1, SIZE, SIZE), baselines=0, block_size=4)
    assert_same_trace(before, trace(model))


# --- The same bits ---------------------------------------------------------------------------------------------------


class OneByOne(nn.Module):
    """Independent of the batch to the last bit: each example goes through alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([self.model(*(x[n : n + 1] for x in inputs)) for n in range(len(inputs[0]))])


class Masked(nn.Module):
    """Takes a second argument ``(N, 1, H, W)``."""

    def __init__(self) -> None:
        super().__init__()
        self.model = normed(False)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.model(x) * weight


def attribute(method, images, *, target=None, **arguments):
    target = target or target_of(OneByOne(normed(False)))
    arguments = {"baselines": bank(), "block_size": 4, "n_draws": 6} | arguments
    return method(target).attribute(images, return_statistics=True, **arguments)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_bits_whatever_the_global_seeds(method):
    images = random(2, 1, SIZE, SIZE)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        np.random.seed(seed)
        python_random.seed(seed)
        results.append(attribute(method, images, seed=11))
    (first, first_statistics), (second, second_statistics) = results
    assert torch.equal(first, second)
    assert torch.equal(first_statistics.effect.nan_to_num(), second_statistics.effect.nan_to_num())
    assert torch.equal(first_statistics.standard_error.nan_to_num(), second_statistics.standard_error.nan_to_num())
    other, _ = attribute(method, images, seed=12)
    assert not torch.equal(first, other)
    assert first.abs().amax() > 0


LONG_RUN = """
import hashlib
import torch
from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget, regions

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Conv2d(16, 2, 3, padding=1)
).eval()
images, donors = (torch.rand(n, 3, 48, 48, generator=generator) for n in (1, 60))
target = SegmentationTarget.from_prediction(model, images, roi=regions.box((48, 48), 16, 16), metric="soft_dice")
_, found = AverageTreatmentEffect(target).attribute(
    images, PatchBank(donors), target=1, block_size=4, support=None, n_draws=12, n_screening_draws=0, return_statistics=True
)
assert found.settings["forwards"]["interventions"] == 128 * 12
print(hashlib.sha256(b"".join(x.numpy().tobytes() for x in (found.effect, found.standard_error))).hexdigest())
"""


def test_processes_give_the_same_bits(capsys):
    """Nothing about how the model is run is left to a clock, or to the order of a set."""
    exec(LONG_RUN, {})
    # One that orders sets in another way than this one.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-c", LONG_RUN],
        env=os.environ | {"PYTHONHASHSEED": seed},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert len(there.stdout) == 65
    assert there.stdout == capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("screening_threshold", [0.0, 0.01, 0.05])
def test_the_batch_size_changes_no_bit(method, screening_threshold):
    images = random(2, 1, SIZE, SIZE)
    results = [
        attribute(method, images, perturbations_per_eval=size, screening_threshold=screening_threshold) for size in (1, 7, 64)
    ]
    for attributions, statistics in results[1:]:
        assert torch.equal(attributions, results[0][0])
        assert torch.equal(statistics.standard_error.nan_to_num(), results[0][1].standard_error.nan_to_num())
        assert torch.equal(statistics.status, results[0][1].status)
        forwards, expected = (dict(run[1].settings["forwards"]) for run in ((attributions, statistics), results[0]))
        # How many images go along in a batch of comparison depends on its size.
        assert forwards.pop("answered again") >= expected.pop("answered again")
        assert forwards == expected
    assert results[0][0].abs().amax() > 0
    screened = results[0][1].status == Status.SCREENED
    assert bool(screened.any()) is (screening_threshold > 0)
    assert not bool(screened.all())


MASKS = torch.stack([regions.grid((SIZE, SIZE), size) + 10 * size for size in (3, 4, 2)])[:, None]
ROIS = torch.stack([regions.box((SIZE, SIZE), start, size) for start, size in [(2, 3), (4, 5), ((0, 7), 4)]])[:, None]
REFERENCES = random(3, 1, SIZE, SIZE, seed=6) > 0.5
SHARED_ROI = regions.box((SIZE, SIZE), 4, 4)


def assert_batch_equals_singles(make_target, make_arguments, exact=True, method=AverageTreatmentEffect) -> None:
    """``make_target(rows)`` and ``make_arguments(rows)`` build the call for some of the three examples."""
    images = random(3, 1, SIZE, SIZE)

    def call(rows: slice) -> tuple:
        arguments = {"baselines": bank(), "n_draws": 5} | make_arguments(rows)
        return method(make_target(rows)).attribute(images[rows], return_statistics=True, **arguments)

    together, statistics = call(slice(0, 3))
    assert together.abs().amax() > 0
    for n in range(3):
        alone, single = call(slice(n, n + 1))
        torch.testing.assert_close(together[n : n + 1], alone, atol=0 if exact else 1e-6, rtol=0)
        for field in ("effect", "standard_error", "n_draws", "status"):
            torch.testing.assert_close(
                statistics.to_map(field)[n : n + 1],
                single.to_map(field),
                atol=0 if exact else 1e-6,
                rtol=0,
                equal_nan=True,
                msg=lambda text, field=field: f"{field}: {text}",
            )
    assert not torch.equal(together[0], together[1])


def target_for(roi, reference, exact=True, model=None, **options) -> SegmentationTarget:
    model = model or normed(False)
    return SegmentationTarget(
        OneByOne(model) if exact else model, roi=roi, reference=reference, metric="soft_dice", activation="sigmoid", **options
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("per_example_mask", [True, False])
@pytest.mark.parametrize("per_example_roi", [True, False])
@pytest.mark.parametrize("per_example_reference", [True, False])
def test_a_batch_equals_single_calls(per_example_reference, per_example_roi, per_example_mask, exact):
    assert_batch_equals_singles(
        lambda rows: target_for(
            ROIS[rows] if per_example_roi else SHARED_ROI,
            REFERENCES[rows] if per_example_reference else REFERENCES[0, 0],
            exact,
        ),
        lambda rows: {"feature_mask": MASKS[rows]} if per_example_mask else {"block_size": 3},
        exact,
    )


def test_a_batch_equals_single_calls_with_masks_as_arguments():
    assert_batch_equals_singles(
        lambda rows: target_for("argument", "argument"),
        lambda rows: {"block_size": 3, "additional_forward_args": (ROIS[rows], REFERENCES[rows])},
    )


def test_a_batch_equals_single_calls_with_additional_arguments_per_example():
    weights = random(3, 1, SIZE, SIZE, seed=8)
    assert_batch_equals_singles(
        lambda rows: target_for(ROIS[rows], REFERENCES[rows], model=Masked()),
        lambda rows: {"block_size": 3, "additional_forward_args": weights[rows]},
    )


def test_a_batch_equals_single_calls_with_donors_from_the_same_image():
    assert_batch_equals_singles(
        lambda rows: target_for(ROIS[rows], REFERENCES[rows]), lambda rows: {"block_size": 2, "baselines": None}
    )


def test_a_batch_equals_single_calls_when_the_bank_holds_the_explained_images():
    own = PatchBank(torch.cat([random(3, 1, SIZE, SIZE), random(2, 1, SIZE, SIZE, seed=4)]))
    assert_batch_equals_singles(
        lambda rows: target_for(ROIS[rows], REFERENCES[rows]), lambda rows: {"block_size": 3, "baselines": own}
    )


def test_a_batch_equals_single_calls_in_the_papers_protocol():
    assert_batch_equals_singles(
        lambda rows: target_for(ROIS[rows], REFERENCES[rows], model=nn.Sequential(normed(False), nn.Sigmoid())),
        lambda rows: {"block_size": 4},
        method=PdCR,
    )


@pytest.mark.parametrize("seeds", [[3, 4, 5], (3, 4, 5)])
def test_a_seed_per_example_is_the_seed_of_a_single_call(seeds):
    assert_batch_equals_singles(
        lambda rows: target_for(SHARED_ROI, REFERENCES[0, 0]), lambda rows: {"block_size": 3, "seed": seeds[rows]}
    )
    images = random(1, 1, SIZE, SIZE).repeat(3, 1, 1, 1)
    target = target_for(SHARED_ROI, REFERENCES[0, 0])
    differing, _ = attribute(AverageTreatmentEffect, images, target=target, seed=seeds)
    same, _ = attribute(AverageTreatmentEffect, images, target=target, seed=3)
    assert torch.equal(same[0], same[2])
    assert torch.equal(differing[0], same[0])
    assert not torch.equal(differing[1], differing[2])


@pytest.mark.parametrize("seed", [np.int64(3), np.uint32(3)])
def test_numpy_integers_are_integers(seed):
    image, arguments = random(1, 1, SIZE, SIZE), {"baselines": bank(), "n_draws": 4, "return_statistics": True}
    method = AverageTreatmentEffect(target_of(normed(False)))
    expected, _ = method.attribute(image, seed=3, block_size=4, **arguments)
    found, statistics = method.attribute(image, seed=seed, block_size=type(seed)(4), **arguments)
    assert torch.equal(found, expected)
    assert statistics.settings["seed"] == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_of_the_model_gives_the_same_bits(method):
    model, images = OneByOne(normed(False)), random(1, 1, SIZE, SIZE)
    first, _ = attribute(method, images, target=target_of(model))
    second, _ = attribute(method, images, target=target_of(copy.deepcopy(model)))
    assert torch.equal(first, second)
