"""Banks of activations: recorded once, of every kind of images, refused with the reason."""

import gc

import pytest
import torch
from layer_cases import PLAIN, case

from captum_causalseg import ActivationBank, LayerAverageTreatmentEffect, SegmentationTarget


def test_baselines_of_every_kind():
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels, metric="soft_dice")
    face = LayerAverageTreatmentEffect(target, model.middle)
    with torch.no_grad():
        activations = model.middle(torch.sin(6 * model.early(donors)))
    everything = {"target": 1, "n_draws": 6, "n_screening_draws": 0}
    by_images = face.attribute(images, layer_baselines=donors, **everything)
    for same in (activations, ActivationBank(donors), ActivationBank(list(donors), batch_size=4), (activations,)):
        torch.testing.assert_close(face.attribute(images, layer_baselines=same, **everything), by_images, atol=1e-6, rtol=0)
    mean = face.attribute(images, layer_baselines=activations.mean(0, keepdim=True), **everything)
    torch.testing.assert_close(
        face.attribute(images, layer_baselines=ActivationBank(donors, reduction="mean"), **everything), mean, atol=1e-6, rtol=0
    )
    zero = face.attribute(images, layer_baselines=0, **everything)
    torch.testing.assert_close(face.attribute(images, **everything), zero)
    assert not torch.allclose(zero, mean, atol=1e-3)
    constructor = LayerAverageTreatmentEffect(target, model.middle, layer_baselines=donors)
    torch.testing.assert_close(constructor.attribute(images, **everything), by_images)


def test_a_bank_is_recorded_once_per_layer_until_the_weights_change():
    model, images, labels, donors, roi = case(2)
    calls = []
    model.register_forward_pre_hook(lambda m, args: calls.append(len(args[0])))
    bank = ActivationBank(donors, batch_size=4)
    forwards = []
    for i in range(3):
        # A target per image, as in a loop over a data set.
        target = SegmentationTarget(model, roi=roi, reference=labels[i % 2], activation="softmax")
        _, stats = LayerAverageTreatmentEffect(target, model.middle).attribute(
            images[:1], layer_baselines=bank, target=1, n_draws=1, n_screening_draws=0, return_statistics=True, **PLAIN
        )
        forwards.append(stats.n_forwards)
        if i == 1:
            with torch.no_grad():
                model.early.weight.mul_(1.5)
    # The observed image answered again, what vmap says compared on one row and on two.
    always = 1 + 5 + 15 + 3
    # That the model takes several images is known from the donors, where they are recorded, and tried on two where they are not.
    assert forwards == [always + 6, always + 2, always + 6]
    assert calls.count(4) == 2


def test_large_recordings_go_to_a_file_that_is_gone_with_the_bank(tmp_path, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, images, labels, donors, roi = case(2)
    target = SegmentationTarget(model, roi=roi, reference=labels)
    arguments = {"target": 1, "n_draws": 6, "n_screening_draws": 0}
    bank = ActivationBank(donors, memory_budget=1000)
    mapped = LayerAverageTreatmentEffect(target, model.middle).attribute(images, layer_baselines=bank, **arguments)
    assert [p.name for p in tmp_path.rglob("*.npy")] == ["activations.npy"]
    torch.testing.assert_close(
        mapped, LayerAverageTreatmentEffect(target, model.middle).attribute(images, layer_baselines=donors, **arguments)
    )
    del bank
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [{"reduction": "median"}, {"batch_size": 0}, {"memory_budget": -1}])
def test_bad_banks_are_explained(arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: expected"):
        ActivationBank(torch.rand(2, 1, 8, 8), **arguments)
    with pytest.raises(ValueError, match="images: expected as many donors for every input"):
        ActivationBank((torch.rand(2, 1, 8, 8), torch.rand(3, 1, 8, 8)))
