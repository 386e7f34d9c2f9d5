"""Effects are differences between answers of a model: one that answers otherwise for another reason is refused, and is told why."""

import pytest
import torch
from restless_models import SIZE, Noisy, Plain, of_layer, random, statistics, target_of
from torch import Tensor, nn
from torch.nn import functional

from captum_causalseg import AverageTreatmentEffect, GradientTreatmentEffect, PdCR, component_effects

FACES = [AverageTreatmentEffect, PdCR]


class OfItsOwnGenerator(Plain):
    """Random numbers that no seed of torch, numpy or random reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(0)

    def between(self, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.randn(hidden.shape, generator=self.source)


class Counting(Plain):
    """A little brighter at each call."""

    def between(self, hidden: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return hidden + 0.01 * self.calls


class Drifting(Plain):
    """Its weights move as it runs, at first too little to be seen."""

    def between(self, hidden: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > 5:
            with torch.no_grad():
                self.last.weight.mul_(1.001)
        return hidden


class Mixing(Plain):
    """Normalizes with the statistics of the batch at hand, in evaluation mode as well."""

    def between(self, hidden: Tensor) -> Tensor:
        return functional.batch_norm(hidden, None, None, training=True)


class Attending(Plain):
    """Every image looks at all images of the batch."""

    def between(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(1)
        return (torch.softmax(flat @ flat.T / flat.shape[1] ** 0.5, 1) @ flat).view_as(hidden)


class NoisyByPlace(Plain):
    """The same noise in each call, another one at each place of the batch."""

    def between(self, hidden: Tensor) -> Tensor:
        return hidden + 0.1 * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))


RANDOM = [Noisy, OfItsOwnGenerator, Counting]
MIXING = [Mixing, Attending, NoisyByPlace]


@pytest.mark.parametrize("support", ["auto", None])
@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("model", RANDOM)
def test_a_random_model_is_refused(model, face, support):
    options = {"support": support} if face is AverageTreatmentEffect else {}
    with pytest.raises(ValueError, match=r"^forward_func: the same image was answered twice.*logits.*random.*n_samples=8"):
        statistics(target_of(model()), face=face, **options)


@pytest.mark.parametrize("model", RANDOM)
def test_a_random_function_is_refused(model):
    model = model()
    with pytest.raises(ValueError, match=r"^forward_func: the same image was answered twice.*scores.*SegmentationTarget"):
        statistics(lambda x: model(x).mean((2, 3)))


def test_noise_that_moves_no_hard_label_is_noise_all_the_same():
    class Certain(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([-50.0, 50.0]).view(2, 1, 1)

    target = target_of(Certain(), metric="dice")
    assert float(target(random(1, 1, SIZE, SIZE)).diff(dim=0).sum()) == 0
    with pytest.raises(ValueError, match="answered twice"):
        statistics(target)


def test_what_changes_later_is_refused_afterwards():
    with pytest.raises(ValueError, match=r"answered again when all interventions were made.*changes as it is run"):
        statistics(target_of(Drifting()), support=None, sampling="uniform", n_screening_draws=0)


@pytest.mark.parametrize("model", RANDOM)
def test_layers_of_random_models_are_refused(model):
    model = model()
    with pytest.raises(ValueError, match="answered twice"):
        of_layer(target_of(model), model.first, support=None)


@pytest.mark.parametrize("model", [*RANDOM])
def test_gradients_of_random_models_are_refused(model):
    with pytest.raises(ValueError, match="answered twice"):
        GradientTreatmentEffect(target_of(model())).attribute(random(1, 1, SIZE, SIZE), 0.0, target=1, block_size=4)


def test_what_n_samples_cannot_seed_is_refused():
    with pytest.raises(ValueError, match=r"answered twice.*n_samples= cannot help"):
        statistics(target_of(OfItsOwnGenerator(), n_samples=2))
    assert statistics(target_of(Noisy(), n_samples=2)).effect.nan_to_num().abs().max() > 0


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("model", MIXING)
def test_a_model_that_mixes_the_batch_is_refused(model, face):
    with pytest.raises(ValueError, match=r"alone and in a batch.*mixes the images.*perturbations_per_eval=1"):
        statistics(target_of(model()), face=face)


@pytest.mark.parametrize("model", MIXING)
def test_examples_that_mix_are_refused(model):
    images = random(3, 1, SIZE, SIZE)
    with pytest.raises(ValueError, match=r"alone and in a batch.*mixes the images"):
        statistics(target_of(model()), images)
    model = model()
    with pytest.raises(ValueError, match=r"alone and in a batch.*mixes the images"):
        of_layer(target_of(model), model.first, images)
    with pytest.raises(ValueError, match=r"alone and in a batch.*mixes the images"):
        GradientTreatmentEffect(target_of(model)).attribute(images, 0.0, target=1, block_size=4)


def test_a_function_that_mixes_the_batch_is_refused():
    model = Mixing()
    with pytest.raises(ValueError, match=r"alone and in a batch.*scores.*mixes the images"):
        statistics(lambda x: model(x).mean((2, 3)))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("model", MIXING)
def test_one_by_one_they_are_explained_as_they_answer_alone(model, wrapped):
    def made(model):
        return target_of(model) if wrapped else lambda x: model(x)[:, :, 4:12, 4:12].mean((2, 3))

    class Alone(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.model(one) for one in x.split(1)])

    images = random(2, 1, SIZE, SIZE)
    options = {"exclude": None} if wrapped else {}
    expected = statistics(made(Alone(model())), images, **options)
    found = statistics(made(model()), images, perturbations_per_eval=1, **options)
    torch.testing.assert_close(found.effect, expected.effect, rtol=0, atol=1e-6)
    assert float(found.effect.abs().max()) > 0
    # Of layers as well.
    model = model()
    alone = Alone(model)
    single = torch.cat(
        [of_layer(made(alone), model.first, image, perturbations_per_eval=1).effect for image in images.split(1)]
    )
    both = of_layer(made(model), model.first, images, perturbations_per_eval=1).effect
    torch.testing.assert_close(both, single, rtol=0, atol=1e-6)


@pytest.mark.parametrize("support", ["auto", None])
@pytest.mark.parametrize("n", [1, 3])
def test_forwards_are_counted(n, support):
    model = Plain()
    found = statistics(target_of(model), random(n, 1, SIZE, SIZE), support=support)
    assert found.n_forwards == model.seen == sum(found.settings["forwards"].values())
    # Once alone and in a batch of two before, once alone after; of several examples, one beside another, too.
    assert found.settings["forwards"]["answered again"] == 1 + 2 + 1 + (3 if n > 1 else 0)


def test_many_interventions_are_looked_at_more_thoroughly():
    model = Plain()
    found = statistics(target_of(model), n_draws=30, support=None)
    assert found.settings["forwards"]["interventions"] >= 240
    assert found.n_forwards == model.seen
    # Twice alone and in a batch of six before, once alone and in a batch after.
    assert found.settings["forwards"]["answered again"] == 2 + 6 + 1 + 6


def test_where_nothing_is_intervened_on_nothing_is_compared():
    model = Plain()
    far = torch.zeros(64, 64, dtype=torch.bool)
    far[:8, :8] = True
    only_far = torch.ones(64, 64, dtype=torch.int64)
    only_far[40:, 40:] = 0
    target = target_of(model, roi=far, reference=random(64, 64, seed=3) > 0.5)
    found = statistics(
        target, random(1, 1, 64, 64), feature_mask=only_far, block_size=None, baselines=0.0, exclude=only_far == 1
    )
    assert "answered again" not in found.settings["forwards"]


def test_memory_that_runs_out_is_no_difference():
    class Hungry(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(x)

    found, fed = (statistics(target_of(model()), support=None) for model in (Hungry, Plain))
    torch.testing.assert_close(found.effect, fed.effect, equal_nan=True)


class OneImage(Plain):
    """Written for a single image; says so, or just takes the first."""

    def __init__(self, says: str) -> None:
        super().__init__()
        self.says, self.refused = says, 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1:
            self.refused += 1
            if self.says == "raises":
                raise NotImplementedError("batch size > 1 is not supported")
            x = x[:1]
        return super().forward(x)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("says", ["raises", "takes the first"])
def test_models_for_a_single_image_are_run_image_by_image(says, n, caplog):
    images = random(n, 1, SIZE, SIZE)
    model = OneImage(says)
    caplog.set_level("INFO")
    found, expected = statistics(target_of(model), images), statistics(target_of(Plain()), images)
    torch.testing.assert_close(found.effect, expected.effect, rtol=0, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(found.standard_error, expected.standard_error, rtol=0, atol=1e-6, equal_nan=True)
    assert torch.equal(found.status, expected.status)
    assert found.settings["window"] == expected.settings["window"]
    assert model.refused == 1
    said = "batch size > 1 is not supported" if says == "raises" else "model: expected logits"
    assert said in found.settings["disabled"]["batches"]
    assert "batches" not in expected.settings["disabled"]
    assert sum("one image at a time" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("units", ["channel", "layer"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("says", ["raises", "takes the first"])
def test_layers_of_models_for_a_single_image(says, n, units):
    images = random(n, 1, SIZE, SIZE)
    model, plain = OneImage(says), Plain()
    found = of_layer(target_of(model), model.first, images, units=units)
    expected = of_layer(target_of(plain), plain.first, images, units=units)
    torch.testing.assert_close(found.effect, expected.effect, rtol=0, atol=1e-6)


def test_layers_of_models_for_a_single_image_that_look_at_values():
    class Looking(OneImage):
        def between(self, hidden: Tensor) -> Tensor:
            return hidden * 2 if float(hidden.detach().mean()) > 1e9 else hidden

    model, plain = Looking("takes the first"), Plain()
    found = of_layer(target_of(model), model.first)
    torch.testing.assert_close(found.effect, of_layer(target_of(plain), plain.first).effect, rtol=0, atol=1e-6)
    table = component_effects(
        target_of(Looking("raises")), random(1, 1, SIZE, SIZE), baselines=random(9, 1, SIZE, SIZE, seed=9), output=1
    )
    assert set(table["module"]) == {"first", "last"}


def test_captums_methods_run_them_image_by_image():
    from captum.attr import IntegratedGradients

    images = random(2, 1, SIZE, SIZE)
    found, expected = (
        IntegratedGradients(target_of(model)).attribute(images, target=1, n_steps=5) for model in (OneImage("raises"), Plain())
    )
    torch.testing.assert_close(found, expected)


def test_a_fault_is_no_matter_of_the_batch():
    class Broken(Plain):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(f"broken for {len(x)}")

    with pytest.raises(RuntimeError, match="broken for 2"):
        target_of(Broken())(random(2, 1, SIZE, SIZE))

    class BreaksLater(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 1 and self.seen > 4:
                raise RuntimeError("later")
            return super().forward(x)

    target = target_of(BreaksLater())
    assert target.takes_batches is None
    target(random(6, 1, SIZE, SIZE))
    assert target.takes_batches
    with pytest.raises(RuntimeError, match="later"):
        target(random(2, 1, SIZE, SIZE))
