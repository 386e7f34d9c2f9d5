"""Effects as layers over an image: where they lie, and that they are those of the library."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

from captum_causalseg import AverageTreatmentEffect, PatchBank, SegmentationTarget
from captum_causalseg.napari.explaining import LayerImage, Question, explain_layers, kind_of

nibabel = pytest.importorskip("nibabel")

PLACEMENT = {"scale": (2.0, 3.0), "translate": (5.0, 7.0)}


def network(channels=1, axes=2):
    torch.manual_seed(0)
    convolution = (torch.nn.Conv2d, torch.nn.Conv3d)[axes - 2]
    return torch.nn.Sequential(convolution(channels, 4, 9, padding=4), torch.nn.ReLU(), convolution(4, 2, 1)).eval()


@pytest.fixture
def script(tmp_path):
    def write(net, name="net.ts"):
        torch.jit.script(net).save(str(tmp_path / name))
        return tmp_path / name

    return write


def box(shape, *sides):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(*side) for side in sides)] = True
    return mask


def by_name(explained):
    return {arguments["name"]: (values, arguments, kind) for values, arguments, kind in explained.layers}


def test_effects_are_those_of_the_library_and_lie_where_the_image_does(script):
    values = np.random.default_rng(0).random((32, 40), dtype=np.float32)
    roi = box((32, 40), (8, 16), (16, 24))
    net = network()
    asked = Question(script(net), metric="logit_mean", n_draws=6)
    found = explain_layers(LayerImage(values, placement=PLACEMENT), roi, asked)
    target = SegmentationTarget(net, roi=torch.from_numpy(roi), metric="logit_mean")
    inputs = torch.from_numpy(values)[None, None]
    _, expected = AverageTreatmentEffect(target).attribute(inputs, target=1, n_draws=6, block_size=8, return_statistics=True)
    assert torch.equal(found.statistics.effect.nan_to_num(7), expected.effect[..., 1].nan_to_num(7))
    layers = by_name(found)
    assert [*layers] == ["prediction", "units", "standard error", "significant", "effect", "region"]
    for map_, arguments, _ in layers.values():
        assert map_.shape == (32, 40)
        assert {name: arguments[name] for name in PLACEMENT} == PLACEMENT
    effect, arguments, kind = layers["effect"]
    assert kind == "image"
    assert np.allclose(effect, expected.to_map(target=1)[0, 0].nan_to_num(0))
    assert effect[roi].tolist() == [0.0] * 64
    low, high = arguments["contrast_limits"]
    assert -low == high == pytest.approx(np.abs(effect).max())
    assert np.abs(effect).max() > 0
    colors = arguments["colormap"]["colors"]
    assert colors[128, 3] == 0
    assert colors[-1, 0] > colors[-1, 2], "what supports is red"
    assert np.array_equal(layers["region"][0] > 0, roi)
    assert np.array_equal(layers["prediction"][0] > 0, target.predict(inputs)[0, 1].numpy())


def test_a_pixel_tells_its_units_numbers(script):
    values = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    roi = box((32, 32), (8, 16), (8, 16))
    found = explain_layers(LayerImage(values), roi, Question(script(network()), metric="logit_mean", n_draws=6))
    layers, statistics = by_name(found), found.statistics
    units, arguments, _ = layers["units"]
    table = arguments["features"].set_index("index")
    lower, upper = statistics.confidence_interval()
    significant = statistics.significant(0.05)
    for number, unit in enumerate(statistics.unit_ids.tolist()):
        row, column = divmod(unit, 4)
        pixel = (8 * row + 1, 8 * column + 1)
        if np.isnan(float(statistics.effect[0, number])) or float(statistics.effect[0, number]) == 0:
            continue
        told = table.loc[units[pixel]]
        assert told["effect"] == pytest.approx(float(statistics.effect[0, number]))
        assert (told["lower"], told["upper"]) == pytest.approx((float(lower[0, number]), float(upper[0, number])))
        sign = 0 if not significant[0, number] else 1 if told["effect"] > 0 else 2
        assert layers["significant"][0][pixel] == sign
        assert layers["standard error"][0][pixel] == pytest.approx(float(statistics.standard_error[0, number]))
    assert units[roi].max() == 0
    assert layers["standard error"][0][roi].max() == -1
    assert "logit_mean in the region is" in found.said


def test_pictures_in_colors_volumes_and_donors_of_a_folder(script, tmp_path):
    generator = np.random.default_rng(0)
    donors = tmp_path / "donors"
    donors.mkdir()
    pictures = generator.integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(donors / f"{number}.png")
    roi, net = box((24, 24), (8, 16), (8, 16)), network(channels=3)
    asked = Question(script(net), metric="logit_mean", n_draws=4, normalize="255", donors=donors, units="12x6", match="mean")
    # The fourth channel is opacity.
    values = np.concatenate([pictures[0], np.full((24, 24, 1), 255, dtype=np.uint8)], axis=2)
    found = explain_layers(LayerImage(values, rgb=True, file=donors / "0.png"), roi, asked)
    channels_first = torch.from_numpy(pictures).movedim(-1, 1).float() / 255
    target = SegmentationTarget(net, roi=torch.from_numpy(roi), metric="logit_mean")
    _, expected = AverageTreatmentEffect(target).attribute(
        channels_first[:1],
        PatchBank(channels_first[1:], match="mean"),
        target=1,
        n_draws=4,
        block_size=(12, 6),
        return_statistics=True,
    )
    assert torch.equal(found.statistics.effect.nan_to_num(7), expected.effect[..., 1].nan_to_num(7))

    volume = generator.random((12, 12, 12), dtype=np.float32)
    asked = Question(script(network(axes=3), "volume.ts"), metric="logit_mean", n_draws=3, units="4")
    found = explain_layers(LayerImage(volume), box(volume.shape, (4, 8), (4, 8), (4, 8)), asked)
    assert by_name(found)["effect"][0].shape == volume.shape
    with pytest.raises(ValueError, match=r"^donors: the axes of image may be others than those of files"):
        explain_layers(LayerImage(volume), box(volume.shape, *[(4, 8)] * 3), Question(asked.model, donors=donors, units="4"))


@pytest.fixture
def turning_bundle(tmp_path):
    """It turns the first axis round and cuts 4 voxels away; its network looks 3 voxels further along that axis of what is left."""
    for part in ("configs", "models"):
        (tmp_path / "bundle" / part).mkdir(parents=True)
    net = torch.nn.Conv3d(1, 1, 7, padding=3)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.fill_(-5)
        net.weight[0, 0, 6, 3, 3] = 10
    preprocessing = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "SpatialCropd", "keys": "image", "roi_start": [4, 0, 0], "roi_end": [16, 8, 8]},
    ]
    named = {"in_channels": 1, "out_channels": 1, "kernel_size": 7, "padding": 3}
    config = {"network_def": {"_target_": "torch.nn.Conv3d", **named}, "preprocessing": preprocessing}
    (tmp_path / "bundle" / "configs" / "inference.json").write_text(json.dumps(config))
    torch.save(net.state_dict(), tmp_path / "bundle" / "models" / "model.pt")
    values = np.random.default_rng(0).random((16, 8, 8), dtype=np.float32)
    # The first axis runs to the left.
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "bundle", LayerImage(values, file=tmp_path / "scan.nii.gz", name="scan")


def test_a_bundle_turns_and_crops_and_effects_lie_on_the_layer(turning_bundle):
    folder, scan = turning_bundle
    assert kind_of(folder) == "bundle"
    roi = box(scan.shape, (8, 10), (2, 4), (2, 4))
    found = explain_layers(scan, roi, Question(folder, metric="logit_mean", n_draws=4, units="2"))
    layers = by_name(found)
    assert np.array_equal(layers["region"][0] > 0, roi)
    effect = layers["effect"][0]
    # 3 further in the turned image is 3 back in the layer.
    assert {(i, j, k) for i, j, k in np.argwhere(effect).tolist()} <= {
        (i, j, k) for i in range(4, 8) for j in (2, 3) for k in (2, 3)
    }
    assert np.abs(effect[5:7, 2:4, 2:4]).min() > 0
    # 4 voxels of the turned axis, the last of the layer's, are cut away.
    assert not layers["units"][0][12:].any()
    with pytest.raises(ValueError, match=r"^roi: it lies outside of what the pre-processing leaves"):
        explain_layers(scan, box(scan.shape, (13, 15), (2, 4), (2, 4)), Question(folder))
    with pytest.raises(ValueError, match=r"^normalize: the bundle prepares its images itself, choose none"):
        explain_layers(scan, roi, Question(folder, normalize="range"))


def test_a_layer_that_is_not_its_file_is_not_explained_in_the_wrong_place(turning_bundle):
    folder, scan = turning_bundle
    turned = LayerImage(scan.values.T, file=scan.file, name="scan")
    with pytest.raises(ValueError, match=r"^image: the layer scan \(8, 8, 16\) does not hold what its file scan.nii.gz does"):
        explain_layers(turned, scan.values.T > 0.9, Question(folder))
    alone = LayerImage(scan.values, name="scan")
    with pytest.raises(
        ValueError, match=r"^image: the bundle prepares its images from their files, and the layer scan was not"
    ):
        explain_layers(alone, scan.values > 0.9, Question(folder))


def test_a_reference_is_compared_with(script):
    values = np.random.default_rng(0).random((24, 24), dtype=np.float32)
    roi, net = box((24, 24), (8, 16), (8, 16)), network()
    labels = np.zeros((24, 24), dtype=np.uint8)
    labels[8:12] = 1
    found = explain_layers(LayerImage(values), roi, Question(script(net), n_draws=3), reference=labels)
    target = SegmentationTarget(net, roi=torch.from_numpy(roi), reference=torch.from_numpy(labels).long())
    expected = target(torch.from_numpy(values)[None, None])[0, 1]
    assert float(found.statistics.observed_score[0]) == pytest.approx(float(expected))
    assert "own prediction" not in found.said


def test_what_a_function_that_is_told_raises_ends_the_work(script):
    told = []

    class Cancelled(Exception):
        pass

    def tell(what, done, most):
        told.append((what, done, most))
        if done:
            raise Cancelled

    values = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    asked = Question(script(network()), metric="logit_mean", n_draws=6)
    with pytest.raises(Cancelled):
        explain_layers(LayerImage(values), box((32, 32), (8, 16), (8, 16)), asked, show_progress=tell)
    assert [what for what, _, _ in told[:3]] == ["reading the model", "preparing the image", "segmenting the image"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"metric": "luck"}, "metric: there is no 'luck'; expected one of .*dice"),
        ({"match": "mean"}, "match: it goes with a folder of donors"),
        ({"class_": "2"}, r"class: expected 0..1, got 2"),
        ({"units": "32"}, "units: every unit touches the region of interest"),
        ({"device": "gpu"}, "device: expected cpu, cuda"),
        ({"kind": "onnx"}, "kind: expected one of bundle, nnunet, torchscript, got 'onnx'"),
        ({"kind": "bundle"}, "path: .*net.ts"),
    ],
)
def test_what_cannot_be_asked_is_said(script, asked, said):
    values = np.random.default_rng(0).random((32, 32), dtype=np.float32)
    with pytest.raises((ValueError, OSError), match=f"^{said}"):
        explain_layers(LayerImage(values), box((32, 32), (8, 16), (8, 16)), Question(script(network()), **asked))


def test_images_and_regions_that_cannot_be(script):
    asked, values = Question(script(network())), np.zeros((8, 8), dtype=np.float32)
    with pytest.raises(ValueError, match=r"^roi: it is empty; draw a shape"):
        explain_layers(LayerImage(values), values > 0, asked)
    with pytest.raises(ValueError, match=r"^roi: expected the image's shape \(8, 8\), got \(4, 8\)"):
        explain_layers(LayerImage(values), values[:4] == 0, asked)
    with pytest.raises(ValueError, match=r"^image: expected 2 or 3 spatial axes, got 1"):
        explain_layers(LayerImage(values[0]), values[0] == 0, asked)
    broken = values.copy()
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"^image: it holds 1 NaN or infinite values"):
        explain_layers(LayerImage(broken), values == 0, asked)
    with pytest.raises(ValueError, match=r"^inputs: the model failed on the image \(1, 3, 8, 8\)"):
        explain_layers(LayerImage(np.zeros((8, 8, 3)), rgb=True), values == 0, asked)


def test_the_kind_of_a_model_is_found(tmp_path, script):
    assert kind_of(script(network())) == "torchscript"
    folder = tmp_path / "results"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"^model: .* is neither a MONAI bundle"):
        kind_of(folder)
    (folder / "plans.json").touch()
    assert kind_of(folder) == "nnunet"
    torch.save(network().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"^model: .*weights.pt is no TorchScript file"):
        kind_of(tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"^model: there is no"):
        kind_of(tmp_path / "nothing.ts")


@pytest.mark.nnunet
@pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed")
def test_an_nnunet_prepares_the_file_and_effects_lie_on_the_layer(tmp_path, monkeypatch):
    from nnunet_cases import made_results

    results = made_results(tmp_path, monkeypatch, channels=("T1",))
    values = np.random.default_rng(0).random((20, 18, 16), dtype=np.float32) + 1
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1, 1, 1])), tmp_path / "case_0000.nii.gz")
    roi = box(values.shape, (8, 12), (8, 12), (8, 12))
    asked = Question(results, class_="1", units="6", n_draws=3, metric="logit_mean")
    assert kind_of(results) == "nnunet"
    found = by_name(explain_layers(LayerImage(values, file=tmp_path / "case_0000.nii.gz"), roi, asked))
    effect, units = found["effect"][0], found["units"][0]
    assert effect.shape == values.shape
    # nnU-Net's grid has other voxels; blocks keep the layer's edges.
    assert len(np.unique(units[0:6, 0:6, 0:6])) == 1
    assert np.abs(effect).max() > 0
    assert effect[roi].tolist() == [0.0] * 64
