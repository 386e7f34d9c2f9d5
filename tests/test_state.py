"""A model's mode, hooks and random state in several threads, and put back."""

import functools
import threading

import pytest
import torch
from restless_models import SIZE, Noisy, Plain, of_layer, random, statistics, target_of
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect
from captum_causalseg._state import in_this_thread


class Normed(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def between(self, hidden: Tensor) -> Tensor:
        return self.drop(self.norm(hidden))


GLOBAL = Normed()


def run_global(x: Tensor) -> Tensor:
    return through_another_function(x)


def through_another_function(x: Tensor) -> Tensor:
    return GLOBAL(x)


class Predictor:
    def __init__(self, model: nn.Module) -> None:
        self.networks = {"first": [model]}

    def __call__(self, x: Tensor) -> Tensor:
        return self.networks["first"][0](x)

    def predict(self, x: Tensor) -> Tensor:
        return self(x)


def in_closure(model):
    return lambda x: model(x)


def in_default(model):
    return lambda x, model=model: model(x)


def in_keyword_default(model):
    return lambda x, *, model=model: model(x)


HIDDEN = {
    "closure": in_closure,
    "closure in a closure": lambda model: in_closure(in_closure(model)),
    "default": in_default,
    "keyword default": in_keyword_default,
    "partial": lambda model: functools.partial(lambda net, x: net(x), model),
    "keyword of a partial": lambda model: functools.partial(lambda x, net: net(x), net=model),
    "partial of a bound method": lambda model: functools.partial(model.forward),
    "object": Predictor,
    "method of an object": lambda model: Predictor(model).predict,
    "global": lambda model: run_global,
}


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("how", HIDDEN)
def test_models_in_functions_are_looked_at_for_training_mode(how, scored):
    model = GLOBAL if how == "global" else Normed()
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    function = HIDDEN[how](model)
    forward = target_of(function) if scored else lambda x: function(x).mean((2, 3))
    with pytest.warns(UserWarning, match="training mode"):
        found = statistics(forward)
    twin = Normed().eval()
    expected = statistics(target_of(twin) if scored else lambda x: twin(x).mean((2, 3)))
    assert torch.equal(found.effect.nan_to_num(), expected.effect.nan_to_num())
    assert model.training
    assert model.norm.training
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


class Meeting(Normed):
    """Two threads are inside at once: the first to come waits for the second, which stays longer."""

    def __init__(self) -> None:
        super().__init__()
        self.first_is_in, self.second_is_in, self.first_is_done = (threading.Event() for _ in range(3))
        self.modes: set[bool] = set()

    def between(self, hidden: Tensor) -> Tensor:
        if threading.current_thread().name == "first":
            self.first_is_in.set()
            assert self.second_is_in.wait(30)
        elif threading.current_thread().name == "second":
            self.second_is_in.set()
            assert self.first_is_done.wait(30)
        self.modes |= {module.training for module in self.modules()}
        return super().between(hidden)


def in_two_threads(first, second, model: Meeting) -> list:
    results: list = [None, None]

    def run_first() -> None:
        try:
            results[0] = first()
        except Exception as error:
            results[0] = error
        finally:
            model.first_is_done.set()

    def run_second() -> None:
        assert model.first_is_in.wait(30)
        try:
            results[1] = second()
        except Exception as error:
            results[1] = error
        finally:
            model.second_is_in.set()

    threads = [threading.Thread(target=run_first, name="first"), threading.Thread(target=run_second, name="second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.mark.filterwarnings("ignore:The model is in training mode:UserWarning")
@pytest.mark.parametrize("training", [True, False])
def test_threads_may_share_a_model(training):
    model = Meeting().train(training)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    # Without windows: in two threads at once, a model that waits is called for whole images only.
    found = in_two_threads(*(functools.partial(statistics, target_of(model), support=None) for _ in range(2)), model)
    expected = statistics(target_of(Normed().eval()), support=None)
    for one in found:
        assert torch.equal(one.effect.nan_to_num(), expected.effect.nan_to_num())
    assert model.modes == {False}
    assert all(module.training == training for module in model.modules())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_threads_may_intervene_on_different_layers_of_one_model():
    model = Meeting().eval()
    found = in_two_threads(
        lambda: of_layer(target_of(model), model.first, support=None),
        lambda: of_layer(target_of(model), model.norm, support=None),
        model,
    )
    plain = Normed().eval()
    for one, layer in zip(found, (plain.first, plain.norm)):
        torch.testing.assert_close(one.effect, of_layer(target_of(plain), layer, support=None).effect, rtol=0, atol=1e-6)


def test_hooks_act_in_their_own_thread():
    seen = []
    layer = nn.Identity()
    layer.register_forward_hook(in_this_thread(lambda module, args, output: seen.append(threading.current_thread().name)))
    other = threading.Thread(target=layer, args=(torch.zeros(1),), name="other")
    other.start()
    other.join(60)
    layer(torch.zeros(1))
    assert seen == [threading.current_thread().name]


@pytest.mark.filterwarnings("ignore:The model is in training mode:UserWarning")
def test_dropout_cannot_be_on_and_off_at_once():
    model = Meeting().train()
    first, second = in_two_threads(
        lambda: statistics(target_of(model, n_samples=2), support=None),
        lambda: statistics(target_of(model), support=None),
        model,
    )
    assert isinstance(second, RuntimeError)
    assert "one after the other" in str(second)
    assert not isinstance(first, Exception)
    assert model.drop.training


@pytest.mark.filterwarnings("ignore:The model is in training mode:UserWarning")
@pytest.mark.parametrize("ask", ["attribute", "plan"])
def test_common_random_numbers_leave_no_trace(ask):
    model = Normed().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    face = AverageTreatmentEffect(target_of(model, n_samples=2))
    getattr(face, ask)(random(1, 1, SIZE, SIZE), 0.0, target=1, block_size=4, sampling="uniform", support=None)
    assert all(module.training for module in model.modules())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name


def test_common_random_numbers_are_each_threads_own():
    model, expected = Noisy(), None
    found = []

    def run() -> None:
        found.append(statistics(target_of(model, n_samples=2)).effect)

    expected = statistics(target_of(model, n_samples=2)).effect
    threads = [threading.Thread(target=run) for _ in range(4)]
    state = torch.get_rng_state()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert all(torch.equal(one.nan_to_num(), expected.nan_to_num()) for one in found)
    assert torch.equal(torch.get_rng_state(), state)
