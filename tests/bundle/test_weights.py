"""Weights of MONAI bundles: every form that they come in, and none that runs code."""

import pytest
import torch
from bundle_cases import CONV, inference, network, small, write
from torch import nn

from captum_causalseg import AverageTreatmentEffect, regions
from captum_causalseg.bundle import load_bundle


@pytest.mark.parametrize("form", ["plain", "model", "state_dict", "parallel", "compiled in a checkpoint"])
def test_forms_of_weights(tmp_path, form):
    state = network(2).state_dict()
    saved = {
        "plain": state,
        "model": {"model": state, "epoch": 3},
        "state_dict": {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
        "parallel": {f"module.{key}": value for key, value in state.items()},
        "compiled in a checkpoint": {"model": {f"_orig_mod.{key}": value for key, value in state.items()}, "epoch": 1},
    }[form]
    bundle = load_bundle(write(tmp_path, saved, inference=inference(2)))
    images = torch.rand(1, 1, 16, 16)
    assert torch.equal(bundle.model(images), network(2)(images))


@pytest.mark.parametrize("name", ["model.ts", "model.pt"])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_torchscript_brings_its_network(tmp_path, name, is_frozen):
    folder = write(tmp_path, inference={"inferer": {"_target_": "SimpleInferer"}})
    scripted = torch.jit.script(network(2).eval())
    torch.jit.save(torch.jit.freeze(scripted) if is_frozen else scripted, folder / "models" / name)
    bundle = load_bundle(folder)
    assert not bundle.model.training
    images = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(bundle.model(images), network(2)(images))
    attr = AverageTreatmentEffect(bundle.target(regions.box((16, 16), 4, 8), metric="logit_mean")).attribute(
        images, baselines=0.0, block_size=8, target=1, n_draws=2, exclude=None
    )
    assert attr.isfinite().all()


def test_which_weights(tmp_path):
    folder = write(tmp_path, inference={"network_def": CONV})
    convolutions = {name: nn.Conv2d(1, 2, 1) for name in ("best.pt", "last.pth", "model.pt")}
    with pytest.raises(FileNotFoundError, match=r"^weights: none in .*models, expected model.pt"):
        load_bundle(folder)
    for name, module in convolutions.items():
        if name == "last.pth":
            assert torch.equal(load_bundle(folder).model.weight, convolutions["best.pt"].weight)  # the only ones
        if name == "model.pt":
            with pytest.raises(ValueError, match=r"^weights: several to choose from in .*: best.pt, last.pth; name one"):
                load_bundle(folder)
        torch.save(module.state_dict(), folder / "models" / name)
    assert torch.equal(load_bundle(folder).model.weight, convolutions["model.pt"].weight)
    for chosen in ("last", "last.pth", "models/last.pth", folder / "models" / "last.pth"):
        assert torch.equal(load_bundle(folder, weights=chosen).model.weight, convolutions["last.pth"].weight)
    with pytest.raises(FileNotFoundError, match=r"^weights: there is no file first.pt in .*best.pt, last.pth, model.pt"):
        load_bundle(folder, weights="first.pt")


class Harmful:
    """What a pickle can do."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def test_weights_run_nothing(tmp_path):
    folder = write(tmp_path, {"model": Harmful(tmp_path / "ran")}, inference={"network_def": CONV})
    with pytest.raises(ValueError, match=r"^weights: .*model.pt is no file of weights, or holds other objects"):
        load_bundle(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"model.pt is damaged or no file of weights: EOFError$"),
        (b"nothing of the kind", r"model.pt is no file of weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"model.pt is a Git LFS pointer"),
    ],
)
def test_unreadable_weights(tmp_path, content, message):
    folder = small(tmp_path)
    (folder / "models" / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_truncated_weights(tmp_path):
    folder = small(tmp_path)
    file = folder / "models" / "model.pt"
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"model.pt is damaged or no file of weights: RuntimeError"):
        load_bundle(folder)
    (folder / "models" / "model.ts").write_bytes(b"no script")
    with pytest.raises(ValueError, match=r"^weights: .*model.ts cannot be read as TorchScript"):
        load_bundle(folder, weights="model.ts")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(2, 1, 1, 1)}, r"does not fit the network of .*inference.json: 1 missing: bias$"),
        (
            {"weight": torch.zeros(2, 1, 3, 3), "bias": torch.zeros(2)},
            r"1 of another shape: weight \(2, 1, 3, 3\) for \(2, 1, 1, 1\)$",
        ),
        (
            {f"layer{i}": torch.zeros(1) for i in range(5)},
            r"2 missing: weight, bias; 5 unexpected: layer0, layer1, layer2, \.\.\.$",
        ),
        ([torch.zeros(1)], r"expected a state dict in .*model.pt, got list"),
    ],
)
def test_weights_of_another_network(tmp_path, state, message):
    folder = write(tmp_path, state, inference={"network_def": CONV})
    with pytest.raises(ValueError, match=message):
        load_bundle(folder)
