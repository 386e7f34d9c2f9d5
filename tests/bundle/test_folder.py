"""MONAI bundles, made here: what is loaded is what stands in the folder, and what is wrong with it is said in one line."""

import itertools
import random
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from bundle_cases import CONV, LOADING, WINDOW, inference, network, small, write
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import UNet
from monai.transforms import Compose
from torch import nn

from captum_causalseg import AverageTreatmentEffect, Bundle, PatchBank, SegmentationTarget, WindowedModel, regions
from captum_causalseg.bundle import load_bundle


def scan(folder, shape, name="scan.nii.gz"):
    values = np.random.default_rng(3).uniform(0, 100, shape).astype("float32")
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), folder / name)
    return folder / name, torch.from_numpy(values)


class ByHand(nn.Module):
    """The mean over windows that overlap by half, written out."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()
        self.training = False

    def forward(self, images):
        spatial = images.shape[2:]
        total = torch.zeros(len(images), 2, *spatial)
        counts = torch.zeros(spatial)
        for corner in itertools.product(*(range(0, n - WINDOW + 1, WINDOW // 2) for n in spatial)):
            box = tuple(slice(c, c + WINDOW) for c in corner)
            total[(slice(None), slice(None), *box)] += self.model(images[(slice(None), slice(None), *box)])
            counts[box] += 1
        return total / counts


@pytest.mark.parametrize(("spatial_dims", "name"), [(2, "inference"), (3, "inference_yaml"), (2, "inference_yml")])
def test_end_to_end_equals_the_same_by_hand(tmp_path, spatial_dims, name):
    model = network(spatial_dims)
    folder = write(tmp_path / "bundle", model.state_dict(), **{name: inference(spatial_dims)})
    shape = (24,) * spatial_dims
    file, values = scan(tmp_path, shape)
    bundle = load_bundle(folder)
    image = bundle.prepare(file)
    assert isinstance(image, MetaTensor)
    assert image.shape == (1, 1, *shape)
    plain = image.as_tensor()
    torch.testing.assert_close(plain[0, 0], values / 100 * 4 - 2)

    roi, reference = regions.box(shape, start=8, size=8), (values > 50).long()
    options = {"baselines": PatchBank(-plain), "block_size": 8, "target": 1, "n_draws": 2, "seed": 1, "n_screening_draws": 0}
    found = AverageTreatmentEffect(bundle.target(roi, reference, metric="soft_dice")).attribute(plain, **options)
    target = SegmentationTarget(ByHand(model), roi, reference, metric="soft_dice", activation="softmax")
    expected = AverageTreatmentEffect(target).attribute(plain, **options)
    assert found.isfinite().all()
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_prepared_image_is_explained_as_it_is(tmp_path):
    folder = write(tmp_path / "bundle", network(2).state_dict(), inference=inference(2))
    bundle = load_bundle(folder)
    image = bundle.prepare(scan(tmp_path, (24, 24))[0])
    target = bundle.target(regions.box((24, 24), start=8, size=8), torch.ones(24, 24), metric="soft_dice")
    options = {"block_size": 8, "target": 1, "n_draws": 2, "n_screening_draws": 0}
    found = AverageTreatmentEffect(target).attribute(image, baselines=0.5, **options)
    expected = AverageTreatmentEffect(target).attribute(image.as_tensor(), baselines=0.5, **options)
    assert torch.equal(torch.as_tensor(found).as_subclass(torch.Tensor), expected)


def test_a_prepared_scan_keeps_its_place_and_goes_back_to_it(tmp_path):
    config = inference(3)
    config["preprocessing"]["transforms"].insert(
        2, {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "LPS", "labels": None}
    )
    config["preprocessing"]["transforms"].insert(
        2, {"_target_": "SpatialPadd", "keys": "@image_key", "spatial_size": [12, 12, 12]}
    )
    bundle = load_bundle(write(tmp_path / "bundle", network(3).state_dict(), inference=config))
    file, values = scan(tmp_path, (8, 10, 12))
    image = bundle.prepare(file)
    assert image.shape == (1, 1, 12, 12, 12)
    assert image.affine.diagonal().tolist() == [-2, -3, 4, 1]
    # The bundle's own inversion, on a "prediction" that is the image itself.
    invert = bundle.postprocessing.transforms[1]
    back = invert({"scan": image[0], "pred": image[0].clone()})["pred"]
    assert back.shape == (1, 8, 10, 12)
    torch.testing.assert_close(back.as_tensor()[0], values / 100 * 4 - 2, atol=1e-4, rtol=0)


def test_the_parts_are_the_configs(tmp_path):
    metadata = {"version": "0.1.0", "network_data_format": {"inputs": {"image": {"num_channels": 1}}}}
    folder = write(tmp_path, network(2).state_dict(), metadata, inference=inference(2))
    bundle = load_bundle(str(folder))
    assert isinstance(bundle.model, UNet)
    assert not any(module.training for module in bundle.predictor.modules())
    assert all(parameter.requires_grad for parameter in bundle.model.parameters())
    assert isinstance(bundle.inferer, SlidingWindowInferer)
    assert bundle.inferer.roi_size == [WINDOW] * 2
    assert isinstance(bundle.preprocessing, Compose)
    assert [type(step).__name__ for step in bundle.postprocessing.transforms] == ["Activationsd", "Invertd"]
    assert bundle.metadata == metadata
    assert bundle.network_data_format == metadata["network_data_format"]
    assert (bundle.image_key, bundle.path, bundle.device) == ("scan", folder.resolve(), torch.device("cpu"))
    assert next(bundle.predictor.children()) is bundle.model
    assert len(repr(bundle)) < 300 + len(str(folder))
    for name, value in network(2).state_dict().items():
        assert torch.equal(bundle.model.state_dict()[name], value)


@pytest.mark.parametrize("inferer", [{}, {"inferer": {"_target_": "SimpleInferer"}}, {"inferer": None}])
def test_a_bundle_of_a_network_alone(tmp_path, inferer):
    bundle = load_bundle(small(tmp_path, **inferer))
    assert bundle.predictor is bundle.model
    assert bundle.preprocessing is None
    assert bundle.postprocessing is None
    assert bundle.metadata == bundle.network_data_format == {}
    with pytest.raises(ValueError, match="has no preprocessing"):
        bundle.prepare(tmp_path / "x.nii")


def test_an_inferer_passes_further_arguments_on():
    class Scaled(nn.Module):
        def forward(self, image, factor):
            return torch.cat([image * factor, image], 1)

    from captum_causalseg.bundle.folder import _Inferred

    images = torch.rand(2, 1, 20, 20)
    found = _Inferred(Scaled(), SlidingWindowInferer((8, 8), overlap=0.5))(images, 3.0)
    torch.testing.assert_close(found, torch.cat([images * 3, images], 1))


def bundle_of(model, inferer):
    return Bundle(Path("made"), torch.device("cpu"), model, None, inferer, None, {})


def test_a_sliding_window_is_a_model_that_knows_its_windows():
    model, image = nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 20, 20)
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, mode="gaussian")
    predictor = bundle_of(model, inferer).predictor
    assert isinstance(predictor, WindowedModel)
    assert torch.equal(predictor(image), inferer(image, model))


def test_what_a_windowed_model_cannot_do_is_left_to_the_inferer(caplog):
    caplog.set_level("INFO", "captum_causalseg")
    model, image = nn.Conv2d(1, 2, 3, padding=1), torch.rand(1, 1, 20, 20)
    inferer = SlidingWindowInferer((8, 8), overlap=0.5, buffer_steps=1)
    predictor = bundle_of(model, inferer).predictor
    assert not isinstance(predictor, WindowedModel)
    assert torch.equal(predictor(image), inferer(image, model))
    assert "every intervention runs all windows of the inferer (buffer_steps: " in caplog.text


def test_where_the_logits_are_in_what_the_network_returns_of_a_window():
    class Deep(nn.Module):
        def forward(self, image):
            return {"one": image, "other": 2 * image}

    image, inferer = torch.rand(1, 1, 20, 20), SlidingWindowInferer((8, 8))
    for output, factor in (("other", 2), (lambda returned: returned["one"], 1)):
        target = bundle_of(Deep(), inferer).target(output=output, metric="volume")
        torch.testing.assert_close(target.logits(image), factor * image)
        assert isinstance(target.model, WindowedModel) == isinstance(output, str)


def test_gradients_reach_the_image_through_the_windows(tmp_path):
    bundle = load_bundle(write(tmp_path, network(2).state_dict(), inference=inference(2)))
    by_hand = SegmentationTarget(ByHand(network(2)), reference=torch.ones(24, 24), metric="soft_dice", activation="softmax")
    surrogate = bundle.target(reference=torch.ones(24, 24)).surrogate()
    found, expected = (torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    surrogate(found)[:, 1].sum().backward()
    by_hand(expected)[:, 1].sum().backward()
    assert expected.grad.abs().max() > 0
    torch.testing.assert_close(found.grad, expected.grad)


def test_training_configs_read_a_single_image_without_chance(tmp_path):
    keys = ["label", "image"]
    # One type per key: leaving a key out must not shift them.
    cast = {"_target_": "CastToTyped", "keys": keys, "dtype": ["$torch.int16", "$torch.float64"]}
    steps = [
        {"_target_": "LoadImaged", "keys": keys},
        {"_target_": "EnsureChannelFirstd", "keys": keys},
        {"_target_": "Compose", "transforms": [{"_target_": "RandFlipd", "keys": keys, "prob": 1.0}, cast]},
    ]
    crop = {"_target_": "RandSpatialCropd", "keys": keys, "roi_size": [4, 4], "random_size": False}
    config = {
        "network_def": CONV,
        "train": {
            "preprocessing": {"_target_": "Compose", "transforms": [*steps, crop]},
            "inferer": {"_target_": "SimpleInferer"},
        },
    }
    metadata = {"network_data_format": {"inputs": {"image": {}}}}
    bundle = load_bundle(write(tmp_path, nn.Conv2d(1, 2, 1).state_dict(), metadata, train=config))
    file, values = scan(tmp_path, (8, 8))
    image = bundle.prepare(file)
    assert bundle.image_key == "image"
    assert image.dtype == torch.float64
    assert torch.equal(image.as_tensor()[0, 0], values.double())
    # With a label beside it, both are read.
    assert torch.equal(bundle.prepare({"image": file, "label": file}).as_tensor(), image.as_tensor())

    config["validate"] = {"preprocessing": [*steps[:2], {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: -x"}]}
    config["validate"]["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [4, 4]}
    bundle = load_bundle(write(tmp_path, metadata=metadata, train=config))
    assert torch.equal(bundle.prepare(file).as_tensor()[0, 0], -values)
    assert isinstance(bundle.inferer, SlidingWindowInferer)


def test_channels_in_files_of_their_own(tmp_path):
    config = {"network_def": CONV, "image_key": "image", "device": "cpu", "top": 2, "preprocessing": LOADING}
    bundle = load_bundle(write(tmp_path, nn.Conv2d(1, 2, 1).state_dict(), inference=config))
    files = [scan(tmp_path, (8, 9), f"{name}.nii.gz") for name in ("t1", "t2")]
    image = bundle.prepare([file for file, _ in files])
    torch.testing.assert_close(image.as_tensor()[0], torch.stack([values / 100 * 4 - 2 for _, values in files]))

    config["preprocessing"] = [
        {"_target_": "LoadImaged", "keys": ["t1", "t2"], "ensure_channel_first": True},
        {"_target_": "ConcatItemsd", "keys": ["t1", "t2"], "name": "image"},
    ]
    bundle = load_bundle(write(tmp_path, inference=config))
    image = bundle.prepare({"t1": files[0][0], "t2": files[1][0]})
    assert torch.equal(image.as_tensor()[0], torch.stack([values for _, values in files]))
    with pytest.raises(ValueError, match=r"yield an image .* at 'image', got str; its loaders read \['t1', 't2'\]"):
        bundle.prepare(files[0][0])


def test_which_config(tmp_path):
    def named(n):
        return {"network_def": {**CONV, "out_channels": n}}

    folder = write(tmp_path, nn.Conv2d(1, 4, 1).state_dict(), {"version": "1"}, other=named(4))
    assert load_bundle(folder).model.out_channels == 4  # the only one
    write(folder, another=named(3))
    with pytest.raises(ValueError, match=r"^config: several to choose from in .*configs: another.json, other.json; name one"):
        load_bundle(folder)
    for chosen in ("other", "other.json", "configs/other.json", folder / "configs" / "other.json", ["another", "other"]):
        assert load_bundle(folder, config=chosen).model.out_channels == 4
    write(folder, train=named(4))
    assert load_bundle(folder).model.out_channels == 4
    write(folder, train=named(9), inference=named(4))
    assert load_bundle(folder).model.out_channels == 4
    # What later ones do not say, earlier ones do.
    write(folder, train={"network_def": "@net_of_old", "net_of_old": CONV}, patch={"net_of_old::out_channels": 4})
    write(folder, patch={"net_of_old": {**CONV, "out_channels": 4}})
    assert load_bundle(folder, config=["train", "patch"]).model.out_channels == 4
    write(folder, inference_yaml=named(4))
    with pytest.raises(ValueError, match=r"several to choose from in .*: inference.json, inference.yaml"):
        load_bundle(folder)
    with pytest.raises(
        FileNotFoundError, match=r"^config: there is no file third in .*; in configs/ there are: .*inference.json"
    ):
        load_bundle(folder, config="third")
    with pytest.raises(ValueError, match="config: expected a sequence of them"):
        load_bundle(folder, config=[])


def test_no_bundle_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^path: there is no folder .*missing$"):
        load_bundle(tmp_path / "missing")
    (tmp_path / "bundle.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*bundle.zip, it is a file"):
        load_bundle(tmp_path / "bundle.zip")
    with pytest.raises(FileNotFoundError, match=r"^path: no config .* in .*configs"):
        load_bundle(tmp_path)
    write(tmp_path, metadata={"version": "1"})
    with pytest.raises(FileNotFoundError, match="no config"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preprocessing": LOADING}, r"config: no network in .*inference.json; looked for network_def, network"),
        ({"network_def": {"_target_": "UNett"}}, r"'network_def' of .*inference.json cannot be built: .*UNett"),
        (
            {"network_def": {"_target_": "UNet", "spatial_dims": 2}},
            r"'network_def' of .* cannot be built: TypeError: .*in_channels",
        ),
        ({"network_def": "$undefined_name"}, r"'network_def' of .*: NameError: .*undefined_name"),
        ({"network_def": "@missing"}, r"'network_def' of .*: ValueError: the referring item `@missing` is not defined"),
        ({"network_def": {"_target_": "Flipd", "keys": "x"}}, r"expected a torch.nn.Module as network of .*, got Flipd"),
        (
            {"network_def": CONV, "inferer": {"_target_": "Flipd", "keys": "x"}},
            r"expected a monai.inferers.Inferer .*got Flipd",
        ),
        ({"network_def": CONV, "preprocessing": 3}, r"expected transforms as preprocessing of .*inference.json, got int"),
        ({"network_def": CONV, "postprocessing": {"_target_": "Nod"}}, r"'postprocessing' of .* cannot be built: .*Nod"),
    ],
)
def test_bad_configs(tmp_path, config, message):
    folder = write(tmp_path, nn.Conv2d(1, 2, 1).state_dict(), inference=config)
    with pytest.raises(ValueError, match=message) as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("inference.json", '{"network_def": ', "inference.json cannot be read: JSONDecodeError"),
        ("inference.yaml", "a: [1", "inference.yaml cannot be read: ParserError: .*line 1"),
        ("inference.json", "[1]", "inference.json to hold a mapping, got list"),
        ("metadata.json", "{", "metadata.json cannot be read"),
    ],
)
def test_unreadable_configs(tmp_path, name, text, message):
    folder = small(tmp_path)
    if name.startswith("inference"):
        (folder / "configs" / "inference.json").unlink()
    (folder / "configs" / name).write_text(text)
    with pytest.raises(ValueError, match=f"^config: .*{message}") as caught:
        load_bundle(folder)
    assert "\n" not in str(caught.value)


def test_a_bundle_brings_code_of_its_own(tmp_path):
    config = {"network_def": {"_target_": "scripts.own.Own"}, "bundle_root": ".", "where": "@bundle_root"}
    bundles = []
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}
    path = list(sys.path)
    try:
        for factor in (2.0, 3.0):
            folder = write(tmp_path / str(factor), {}, inference=config)
            (folder / "scripts").mkdir()
            (folder / "scripts" / "__init__.py").touch()
            (folder / "scripts" / "own.py").write_text(
                f"from torch import nn\nclass Own(nn.Module):\n    def forward(self, x):\n        return x * {factor}\n"
            )
            bundles.append(load_bundle(folder))
            assert sys.path == path
        images = torch.rand(1, 1, 4, 4)
        assert torch.equal(bundles[0].model(images), images * 2)
        assert torch.equal(bundles[1].model(images), images * 3)  # not the first one's
        assert sys.modules["scripts.own"].Own is type(bundles[0].model)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.modules.update(before)


@pytest.mark.parametrize("works", [True, False])
def test_loading_leaves_no_trace(tmp_path, works):
    folder = write(tmp_path, network(2).state_dict(), inference=inference(2))
    if not works:
        write(folder, {"a": torch.zeros(1)})
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate(), list(sys.path)
    if works:
        load_bundle(folder)
    else:
        with pytest.raises(ValueError):
            load_bundle(folder)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2:] == (random.getstate(), sys.path)


def test_configs_know_their_folder(tmp_path):
    (tmp_path / "width.txt").write_text("6")
    made = {**CONV, "out_channels": "$int(pathlib.Path(@bundle_root, 'width.txt').read_text())"}
    config = {"imports": ["$import pathlib"], "bundle_root": ".", "network_def": made}
    folder = write(tmp_path, nn.Conv2d(1, 6, 1).state_dict(), inference=config)
    assert load_bundle(folder).model.out_channels == 6


def test_images_that_cannot_be_prepared(tmp_path):
    bundle = load_bundle(write(tmp_path / "bundle", network(2).state_dict(), inference=inference(2)))
    with pytest.raises(FileNotFoundError, match=r"^image_file: there is no file .*missing.nii.gz"):
        bundle.prepare(tmp_path / "missing.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"missing.nii.gz"):
        bundle.prepare([scan(tmp_path, (8, 8))[0], tmp_path / "missing.nii.gz"])
    (tmp_path / "broken.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^image_file: the preprocessing of .*bundle failed on .*broken.nii.gz: ") as caught:
        bundle.prepare(tmp_path / "broken.nii.gz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([{"_target_": "Activationsd", "keys": "pred", "softmax": True}], ("softmax", 0.5)),
        ([{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}], ("sigmoid", 0.5)),
        (
            [
                {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
                {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.3},
            ],
            ("sigmoid", 0.3),
        ),
        ([{"_target_": "AsDiscreted", "keys": "pred", "argmax": True}], ("auto", 0.5)),
    ],
)
def test_targets_score_as_the_bundle_does(tmp_path, steps, expected):
    bundle = load_bundle(small(tmp_path, postprocessing=steps))
    target = bundle.target(metric="volume")
    assert (target.activation, target.threshold) == expected
    assert bundle.target(metric="volume", activation="none", threshold=0.9).activation == "none"
    with pytest.raises(TypeError, match="no_such_option"):
        bundle.target(no_such_option=1)


def test_overlapping_labels_are_not_made_exclusive(tmp_path):
    folder = small(tmp_path, postprocessing=[{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}])
    state = {"weight": torch.tensor([1.0, 2.0]).view(2, 1, 1, 1), "bias": torch.zeros(2)}
    torch.save(state, folder / "models" / "model.pt")
    images = torch.tensor([[[[-1.0, 1.0, 1.0]]]])
    assert load_bundle(folder).target(metric="volume").predict(images)[0, :, 0].tolist() == [[False, True, True]] * 2
