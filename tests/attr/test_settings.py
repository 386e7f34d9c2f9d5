"""``statistics.settings`` say what was done, which is not always what was asked for."""

import pytest
import torch
from torch import Tensor, nn

from captum_causalseg import AverageTreatmentEffect, LayerAverageTreatmentEffect, PatchBank, PdCR, SegmentationTarget, regions

SIZE = 16
ROI = regions.box((SIZE, SIZE), 4, 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()


def target(**options) -> SegmentationTarget:
    return SegmentationTarget(
        model(), **{"roi": ROI, "reference": random(SIZE, SIZE, seed=3) > 0.5, "metric": "soft_dice"} | options
    )


def settings(forward, inputs=None, face=AverageTreatmentEffect, **options) -> dict:
    inputs = random(1, 1, SIZE, SIZE) if inputs is None else inputs
    given = {"baselines": PatchBank(random(9, 1, SIZE, SIZE, seed=9)), "n_draws": 4, "target": 1, "return_statistics": True}
    return face(forward).attribute(inputs, **given | options)[1].settings


def test_a_plain_function_has_neither_roi_nor_support():
    network = model()
    found = settings(lambda x: network(x).mean((2, 3)))
    assert found["exclude"] is None
    assert found["support"] is None
    assert found["disabled"].keys() == {"support"}
    assert "SegmentationTarget" in found["disabled"]["support"]
    assert settings(lambda x: network(x).mean((2, 3)), support=None)["disabled"] == {}


def test_a_target_has_both():
    found = settings(target())
    assert (found["exclude"], found["support"], found["disabled"]) == ("roi", "auto", {})
    assert settings(target(), exclude=None, support=None)["exclude"] is None
    assert settings(target(), exclude=ROI)["exclude"] == "mask (16, 16)"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"roi": None}, "without an RoI"),
        ({"metric": lambda prediction, reference, roi: prediction.flatten(2).mean(2)}, "may look beyond the RoI"),
    ],
    ids=["no RoI", "own metric"],
)
def test_why_there_is_no_support(options, reason):
    found = settings(target(**options))
    assert found["support"] is None
    assert reason in found["disabled"]["support"]


def test_units_and_donors_that_nobody_asked_for():
    found = settings(target(), baselines=None)
    assert found["units"] == "block"
    assert found["block_size"] == [8, 8]
    assert found["baselines"].startswith("SameImage(")
    found = settings(target(), block_size=4, baselines=0.5)
    assert (found["block_size"], found["baselines"]) == ([4, 4], 0.5)
    found = settings(target(), feature_mask=regions.grid((SIZE, SIZE), 4))
    assert (found["units"], found["block_size"]) == ("feature_mask", None)


def test_of_several_inputs_each():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.network(x + y.mean((2, 3), keepdim=True))

    both = SegmentationTarget(Two(), roi=ROI, reference=random(SIZE, SIZE, seed=3) > 0.5, metric="soft_dice")
    images = random(1, 1, SIZE, SIZE), random(1, 1, 8, 8, seed=1)
    found = settings(both, images, baselines=(0.0, random(3, 1, 8, 8)), block_size=((4, 4), (2, 2)), exclude=("roi", None))
    assert found["exclude"] == ["roi", None]
    assert found["block_size"] == [[4, 4], [2, 2]]
    assert found["baselines"] == [0.0, "Tensor (3, 1, 8, 8)"]


def test_screening_that_did_not_take_place():
    assert settings(target(), n_draws=4)["n_screening_draws"] == 3
    assert settings(target(), n_draws=3)["n_screening_draws"] == 0


def test_how_the_model_was_run():
    found = settings(target())
    assert (found["compile"], found["autocast"], found["memory_format"]) == (False, None, "contiguous")
    assert settings(target(), autocast=torch.bfloat16)["autocast"] == "bfloat16"
    network = model()

    def hungry(x: Tensor) -> Tensor:
        if len(x) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return network(x).mean((2, 3))

    assert settings(lambda x: network(x).mean((2, 3)), block_size=4, perturbations_per_eval=12)["batch_size"] == 12
    assert settings(hungry, block_size=4, perturbations_per_eval=12)["batch_size"] == 6


@pytest.mark.parametrize(("edge", "largest"), [(64, 16), (256, 4), (768, 2)])
def test_large_images_go_through_a_cpu_a_few_at_a_time(edge, largest):
    seen = []

    def bright(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.mean((1, 2, 3))

    found = settings(bright, random(1, 1, edge, edge), baselines=0.0, block_size=edge // 8, n_draws=1, target=None)
    assert found["batch_size"] == max(seen) == largest
    assert sum(seen) == sum(found["forwards"].values())


def test_draws_per_unit_where_nothing_is_said():
    assert settings(target(), n_draws=None)["n_draws"] == 12
    assert settings(target(), n_draws=7)["n_draws"] == 7
    # A budget has room to go on.
    assert settings(target(), n_draws=None, precision=0.5)["n_draws"] == 50
    assert settings(target(), n_draws=None, decide=0.5)["n_draws"] == 50
    own = target()
    _, found = LayerAverageTreatmentEffect(own, own.model[0]).attribute(
        random(1, 1, SIZE, SIZE), random(9, 1, SIZE, SIZE, seed=9), target=1, return_statistics=True
    )
    assert found.settings["n_draws"] == 32
    with pytest.raises(ValueError, match="n_draws: expected"):
        settings(target(), n_draws=0)


def test_layers_and_the_papers_protocol_say_it_too():
    own = target()
    bank = random(9, 1, SIZE, SIZE, seed=9)
    _, found = LayerAverageTreatmentEffect(own, own.model[0]).attribute(
        random(1, 1, SIZE, SIZE), bank, target=1, n_draws=3, support="always", return_statistics=True
    )
    assert (found.settings["support"], found.settings["n_screening_draws"]) == ("always", 0)
    paper = settings(target(), face=PdCR)
    assert (paper["sampling"], paper["support"], paper["exclude"], paper["block_size"]) == ("paper", None, "roi", [8, 8])
