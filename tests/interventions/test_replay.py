"""What does not follow from a layer is not computed again, and nothing changes by that."""

import threading

import pytest
import torch
from layer_cases import PLAIN, Net, case
from monai.networks.nets import UNet
from torch import Tensor, nn

from captum_causalseg import ActivationBank, LayerAverageTreatmentEffect, SegmentationTarget, regions
from captum_causalseg.interventions import replay


@pytest.fixture
def no_replay(monkeypatch):
    """Switch it off for the rest of a test: it never pays. Until then, it always does."""
    monkeypatch.setattr(replay, "COMPARED", 0)
    return lambda: monkeypatch.setattr(replay, "COMPARED", float("inf"))


def both_ways(model: nn.Module, layer: nn.Module, no_replay, *, n: int = 1, **options) -> dict:
    """Effects with and without replay are the same, to rounding in double precision; the settings of the first."""
    _, images, labels, donors, roi = case(2, n)
    target = SegmentationTarget(model.double().eval(), roi=roi, reference=labels, metric="soft_dice")
    method = LayerAverageTreatmentEffect(target, layer)
    options = {"layer_baselines": donors.double(), "target": 1, "n_draws": 6, "n_screening_draws": 0, **PLAIN, **options}
    fast, statistics = method.attribute(images.double(), **options, return_statistics=True)
    no_replay()
    slow = method.attribute(images.double(), **options)
    assert float(slow.abs().max()) > 1e-4
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)
    return statistics.settings


def counting(model: nn.Module, *names: str) -> dict[str, int]:
    """Images that go through these modules, from now on; those that are not run do not count."""
    seen = dict.fromkeys(names, 0)
    for name in names:
        module = getattr(model, name)
        own = module.forward

        def forward(x: Tensor, name: str = name, own=own) -> Tensor:
            seen[name] += len(x)
            return own(x)

        module.forward = forward
    return seen


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("place", ["first", "inner", "last"])
@pytest.mark.parametrize("at_input", [False, True])
def test_with_and_without_replay_the_results_are_the_same(d, norm, place, at_input, no_replay):
    model = UNet(d, 1, 2, channels=(4, 8), strides=(2,), norm=norm).eval().double()
    images, donors = torch.rand(2, 1, *(16,) * d).double(), torch.rand(5, 1, *(16,) * d).double()
    target = SegmentationTarget.from_prediction(model, images, roi=regions.box((16,) * d, 4, 8), metric="soft_dice")
    layer = {"first": model.model[0], "inner": model.model[1].submodule, "last": model.model[2]}[place]
    method = LayerAverageTreatmentEffect(target, layer)
    arguments = {"layer_baselines": donors, "target": 1, "n_draws": 4, "attribute_to_layer_input": at_input, **PLAIN}
    fast, statistics = method.attribute(images, **arguments, return_statistics=True)
    assert "replay" not in statistics.settings["disabled"]
    assert statistics.settings["forwards"]["replay compared"] > 0
    no_replay()
    slow = method.attribute(images, **arguments)
    assert float(fast.abs().max()) > 1e-4
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-12)


def test_upstream_of_the_layer_is_computed_once_per_image():
    model, images, labels, donors, roi = case(2, n=1)
    seen = counting(model, "early", "late")
    target = SegmentationTarget(model, roi=roi, reference=labels)
    method = LayerAverageTreatmentEffect(target, model.middle)
    options = {"layer_baselines": ActivationBank(donors), "n_screening_draws": 0, "perturbations_per_eval": 30, **PLAIN}
    _, statistics = method.attribute(images, target=1, n_draws=6, return_statistics=True, **options)
    forwards = statistics.settings["forwards"]
    whole = statistics.n_forwards - forwards["interventions"]
    assert forwards["interventions"] == 30
    assert seen["late"] == statistics.n_forwards
    # The batch with the observed image was replayed as well.
    assert seen["early"] <= whole
    # It is compared with two interventions that the model had answered beside the observed image.
    assert "replay compared" not in forwards
    assert forwards["answered again"] == 3 + 1


def test_what_the_model_answered_before_is_not_run_again(no_replay):
    model, images, labels, donors, roi = case(2, n=1)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    method = LayerAverageTreatmentEffect(target, model.early)
    options = {"layer_baselines": donors, "target": 1, "n_draws": 6, "n_screening_draws": 0, "return_statistics": True, **PLAIN}
    replayed, _ = method.attribute(images, **options)
    no_replay()
    seen = counting(model, "late")
    found, statistics = method.attribute(images, **options)
    forwards = statistics.settings["forwards"]
    # Of 4 channels x 6 donors, two had been answered beside the observed image. Observed: in the run that recorded the layer.
    assert forwards == {"observed": 1, "donors": 6, "answered again": 3 + 1, "interventions": 24 - 2}
    assert seen["late"] == statistics.n_forwards == sum(forwards.values())
    torch.testing.assert_close(found, replayed, rtol=1e-5, atol=1e-6)


def test_a_layer_that_hands_on_what_it_takes_is_none_that_nothing_follows_from(no_replay):
    class HandsOn(Net):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            early = self.layer(self.early(x))
            return self.late(torch.cat([self.middle(early), early], 1))

    _, images, labels, donors, roi = case(2, n=1)
    model = HandsOn().eval()
    seen = counting(model, "early", "middle")
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    options = {"layer_baselines": donors, "target": 1, "n_draws": 6, "n_screening_draws": 0, "units": "layer", **PLAIN}
    found, statistics = LayerAverageTreatmentEffect(target, model.layer).attribute(images, return_statistics=True, **options)
    assert "replay" not in statistics.settings["disabled"]
    assert seen["middle"] == statistics.n_forwards > seen["early"]
    expected = (
        target(images)[0, 1]
        - torch.stack(
            [target.score(model.late(torch.cat([model.middle(x), x], 1)), images)[0, 1] for x in model.early(donors).split(1)]
        ).mean()
    )
    torch.testing.assert_close(found[0, 0, 0, 0], expected, rtol=1e-5, atol=1e-6)


class Beside(nn.Module):
    """A layer, and a branch that is run behind it but does not hear of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.beside, self.last = (nn.Conv2d(a, b, 1) for a, b in ((1, 4), (4, 4), (4, 4), (8, 3)))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        changed = torch.sin(6 * self.layer(hidden))
        return self.last(torch.cat([changed, self.beside(self.between(hidden, changed))], 1))

    def between(self, hidden: Tensor, changed: Tensor) -> Tensor:
        return hidden


class WritesIntoIt(Beside):
    """The branch is given the same tensor, but with other values in it."""

    def between(self, hidden: Tensor, changed: Tensor) -> Tensor:
        return hidden.add_(changed)


class IsGivenTheSame(Beside):
    """The layer returns what it is given; what is behind it is given that too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def between(self, hidden: Tensor, changed: Tensor) -> Tensor:
        return changed


def test_what_lies_beside_the_layer_is_not_run_either(no_replay):
    model = Beside()
    settings = both_ways(model, model.layer, lambda: None)
    assert "replay" not in settings["disabled"]
    seen = counting(model, "beside", "last")
    once = both_ways(model, model.layer, no_replay)
    replayed = dict(seen)
    both_ways(model, model.layer, no_replay)
    whole = seen["last"] - replayed["last"]
    assert seen["beside"] - replayed["beside"] == whole, "switched off in both calls"
    assert replayed["last"] - replayed["beside"] >= once["forwards"]["interventions"] - 1


@pytest.mark.parametrize("kind", [WritesIntoIt, IsGivenTheSame])
def test_what_only_seems_to_lie_beside_the_layer_is_run(kind, no_replay):
    model = kind()
    both_ways(model, model.layer, no_replay)


def test_a_layer_behind_another_one_is_run_as_it_becomes(no_replay):
    class InPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            early = self.early(x)
            late = torch.sin(6 * self.middle(early.sin()))
            return self.late(torch.cat([early.mul_(2).sin_(), late], 1))

    model = InPlace()
    settings = both_ways(model, model.middle, no_replay)
    assert "replay" not in settings["disabled"], "copies are made where they are needed"


def test_a_model_that_works_in_place_on_what_a_layer_returns(no_replay):
    class InPlace(Net):
        def forward(self, x: Tensor) -> Tensor:
            early = torch.sin(6 * self.early(x))
            return self.late(torch.cat([early, self.middle(early).mul_(6).sin_()], 1))

    model = InPlace()
    settings = both_ways(model, model.middle, no_replay)
    assert "replay" not in settings["disabled"]


class Remembers(Net):
    """Hands something on past its modules' outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper = Keeper()

    def forward(self, x: Tensor) -> Tensor:
        early = torch.sin(6 * self.keeper(x, self.early))
        return self.late(torch.cat([early + self.keeper.kept, torch.sin(6 * self.middle(early))], 1))


class Keeper(nn.Module):
    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        self.kept = 3 * x
        return module(x)


@pytest.mark.parametrize("n", [1, 2])
def test_models_that_cannot_be_replayed_are_run_whole_with_one_line_of_log(n, no_replay, caplog):
    caplog.set_level("INFO")
    model = Remembers()
    settings = both_ways(model, model.middle, no_replay, n=n)
    lines = [r.getMessage() for r in caplog.records if "once per intervention" in r.getMessage()]
    if "replay" in settings["disabled"]:
        assert lines[0].startswith(settings["disabled"]["replay"])
    assert len(lines) <= 1


def test_other_values_than_the_models_own_are_noticed(monkeypatch, caplog, no_replay):
    caplog.set_level("INFO")
    expanded = replay.Memory.expanded
    monkeypatch.setattr(
        replay.Memory, "expanded", lambda self, n: [(module, value * 1.001) for module, value in expanded(self, n)]
    )
    model = Net()
    settings = both_ways(model, model.middle, no_replay)
    assert settings["disabled"]["replay"].startswith("replay gives other values than the model itself, by")
    assert caplog.text.count("the whole model is run once per intervention instead") == 1


def test_a_fault_of_the_models_own_comes_back_and_nothing_stays_behind():
    class Breaks(Net):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise RuntimeError("broken")
            return super().forward(x)

    _, images, labels, donors, roi = case(2, 1)
    model = Breaks().eval()
    target = SegmentationTarget(model, roi=roi, reference=labels)
    with pytest.raises(RuntimeError, match="broken"):
        LayerAverageTreatmentEffect(target, model.middle).attribute(images, layer_baselines=donors[:1], target=1, **PLAIN)
    assert not any("forward" in vars(module) for module in model.modules())


def test_threads_share_a_model():
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    layers, found = [model.middle, model.late], {}

    def explain(place: int, layer: nn.Module) -> None:
        options = {"layer_baselines": donors, "target": 1, "n_draws": 6, "perturbations_per_eval": 3, **PLAIN}
        found[place] = LayerAverageTreatmentEffect(target, layer).attribute(images, **options)

    for place, layer in enumerate(layers):
        explain(place, layer)
    alone = dict(found)
    threads = [threading.Thread(target=explain, args=(place, layer)) for place, layer in enumerate(layers * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(4):
        assert torch.equal(found[place], alone[place % 2])
    assert not any("forward" in vars(module) for module in model.modules())
    assert not replay._STAND_INS


def test_under_inference_mode(no_replay):
    model, images, labels, donors, roi = case(2, 1)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    method = LayerAverageTreatmentEffect(target, model.middle)
    plain = method.attribute(images, layer_baselines=donors, target=1)
    with torch.inference_mode():
        found, statistics = method.attribute(images, layer_baselines=donors, target=1, return_statistics=True)
    assert torch.equal(found, plain)
    assert "replay" not in statistics.settings["disabled"]
