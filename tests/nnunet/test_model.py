"""Folders of results as nnU-Net's own trainer writes them, explained. Run where nnunetv2 is installed: `make test-nnunet`."""

import importlib.util
import itertools
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from captum_causalseg import ActivationBank, AverageTreatmentEffect, LayerAverageTreatmentEffect, images, load_nnunet, regions

pytestmark = [
    pytest.mark.nnunet,
    pytest.mark.skipif(importlib.util.find_spec("nnunetv2") is None, reason="nnunetv2 is not installed"),
]

REGIONS = {"background": 0, "whole": [1, 2], "core": 2}


def oblique(spacing=(1.0, 1.2, 1.6)):
    turned = np.linalg.qr(np.array([[-0.9, 0.2, 0.1], [0.2, 0.9, 0.1], [0.1, -0.1, 1.4]]))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turned @ np.diag(spacing), (10, -5, 3)
    return affine


def write_case(folder, name, *, affine, channels=2, shape=(30, 26, 22), seed=0):
    """Tissue in air, a file per channel, and its labels."""
    generator = np.random.default_rng(seed)
    inside = tuple(slice(3, length - 2) for length in shape)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[10:18, 9:17, 8:14], labels[12:16, 11:15, 9:13] = 1, 2
    for channel in range(channels):
        volume = np.zeros(shape, dtype=np.float32)
        volume[inside] = generator.normal(100 * (channel + 1), 20, volume[inside].shape) + 50 * labels[inside]
        nibabel.save(nibabel.Nifti1Image(volume, affine), folder / f"{name}_{channel:04d}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), folder / f"{name}.nii.gz")
    return labels


@pytest.fixture
def made(tmp_path, monkeypatch):
    from nnunet_cases import made_results

    def make(**options):
        return made_results(tmp_path / "results", monkeypatch, **options)

    return make


def test_the_logits_that_nnunet_computes_from_the_same_folder(made, tmp_path, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = made(folds=2)
    write_case(tmp_path, "a", affine=oblique())
    for mirroring in (False, True):
        net = load_nnunet(folder, folds=(0, 1), mirroring=mirroring)
        image = net.prepare(tmp_path / "a_0000.nii.gz")
        predictor = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(folder), (0, 1))
        monkeypatch.setattr(torch, "half", torch.float32)
        expected = predictor.predict_logits_from_preprocessed_data(image.as_tensor()[0])
        with torch.no_grad():
            found = net.model(image)[0]
        assert float((found - expected).abs().max()) < 1e-4
        assert torch.equal(found.argmax(0), expected.argmax(0))


@pytest.mark.parametrize(
    ("reader", "labels", "channels"), [("SimpleITKIO", None, ("T1", "T2")), ("NibabelIOWithReorient", REGIONS, ("CT",))]
)
def test_the_segmentation_that_nnunet_writes(made, tmp_path, monkeypatch, reader, labels, channels):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = made(reader=reader, labels=labels, channels=channels)
    write_case(tmp_path, "a", affine=oblique(), channels=len(channels))
    net = load_nnunet(folder)
    image = net.prepare(tmp_path / "a_0000.nii.gz")
    assert not np.allclose(image.pixdim[0], 1.6, atol=0.05)  # it is resampled on the way, and back
    found = net.predict(image)
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    # nnU-Net adds windows up in half precision.
    monkeypatch.setattr(torch, "half", torch.float32)
    files = [str(file) for file in net.files_of(image)]
    predictor.predict_from_files_sequential([files], [str(tmp_path / "written")], save_probabilities=False)
    written = nibabel.load(tmp_path / "written.nii.gz")
    assert np.array_equal(found[0, 0].numpy(), np.asarray(written.dataobj))
    assert np.allclose(found.affine, written.affine, atol=1e-4)
    assert len(found.unique()) > 1


@pytest.mark.parametrize("reader", ["SimpleITKIO", "NibabelIO", "NibabelIOWithReorient"])
def test_units_and_regions_survive_the_way_to_the_scan_and_back(made, tmp_path, reader):
    net = load_nnunet(made(reader=reader))
    labels = write_case(tmp_path, "a", affine=oblique())
    image = net.prepare([tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz"])
    scan = images.load_image(tmp_path / "a_0000.nii.gz")
    # The region, drawn on the scan, as a file and as values.
    region = net.region(tmp_path / "a.nii.gz", image)
    assert torch.equal(region, net.region(labels, image))
    back = net.to_scan(region, image)
    assert back.shape == scan.shape
    assert torch.allclose(back.affine, scan.affine, atol=1e-4)
    assert np.array_equal(back[0, 0].numpy(), labels > 0)
    # It lies at the same place of the world.
    for mask, affine in ((region.numpy(), image.affine), (labels > 0, scan.affine)):
        middle = affine.numpy() @ [*np.argwhere(mask).mean(0), 1]
        assert np.allclose(middle, scan.affine.numpy() @ [*np.argwhere(labels > 0).mean(0), 1], atol=0.3)
    assert set(net.reference(labels, image).unique().tolist()) == {0, 1, 2}
    # Every unit is somewhere on the scan, and nowhere else than it was.
    units = regions.grid(tuple(image.shape[2:]), 6)
    carried = net.to_scan(units + 1, image)
    assert set(carried.unique().tolist()) - {0} == set((units + 1).unique().tolist())
    outside = np.ones(labels.shape, dtype=bool)
    outside[3:-2, 3:-2, 3:-2] = False
    assert (carried[0, 0].numpy()[outside] == 0).all()
    assert (carried[0, 0].numpy()[~outside] > 0).all()
    net.save_map(tmp_path / "map.nii.gz", units + 1, image)
    written = images.load_image(tmp_path / "map.nii.gz")
    assert torch.equal(written.as_tensor(), carried.as_tensor().float())
    assert torch.allclose(written.affine, scan.affine, atol=1e-4)


def test_the_effects_of_a_two_channel_network(made, tmp_path):
    net = load_nnunet(made())
    write_case(tmp_path, "a", affine=oblique())
    write_case(tmp_path, "b", affine=oblique(), seed=1, shape=(28, 30, 24))
    write_case(tmp_path, "c", affine=oblique((1, 1, 1)), seed=2)
    image = net.prepare(tmp_path / "a_0000.nii.gz")
    bank = net.donors(tmp_path, leave_out=image)
    assert len(bank) == 2
    target = net.target(
        net.region(tmp_path / "a.nii.gz", image), net.reference(tmp_path / "a.nii.gz", image), metric="soft_dice"
    )
    attr, stats = AverageTreatmentEffect(target).attribute(
        image, baselines=bank, target=net.labels["gray"], block_size=8, n_draws=3, return_statistics=True
    )
    assert attr.shape == image.shape
    assert bool((attr != 0).any())
    one = int(stats.effect[0, :, 1].abs().nan_to_num(0).argmax())
    assert net.to_scan(attr, image).shape[2:] == (30, 26, 22)
    assert stats.standard_error[0, one, 1] > 0


@pytest.mark.parametrize("mirroring", [False, True])
def test_a_layer_is_replaced_in_every_window_of_every_fold(made, tmp_path, mirroring):
    net = load_nnunet(made(folds=2), folds=(0, 1), mirroring=mirroring)
    write_case(tmp_path, "a", affine=oblique())
    # Another size, and another spacing.
    write_case(tmp_path, "b", affine=oblique((1.2, 1.0, 1.1)), shape=(34, 28, 24), seed=1)
    image = net.prepare(tmp_path / "a_0000.nii.gz")
    bank = ActivationBank(net.donors(tmp_path, leave_out=image).images, placement="anywhere")
    target = net.target(
        net.region(tmp_path / "a.nii.gz", image), net.reference(tmp_path / "a.nii.gz", image), metric="soft_dice"
    )
    layer = net.model.networks[1].decoder.stages[0]
    attr, stats = LayerAverageTreatmentEffect(target, layer).attribute(image, bank, target=1, return_statistics=True)
    assert attr.shape[2:] == layer(torch.zeros(1, 16, 8, 8, 8)).shape[2:]
    assert stats.settings["forwards"]["donors"] == net.model.runs_per_window
    found = net.model.networks[0].decoder.stages[0], layer
    with torch.no_grad():
        observed = target(image)[0, 1]
    donor = net.donors(tmp_path, leave_out=image).images[0][None]
    layout = net.model.layout(donor.shape[2:])
    window = np.random.default_rng(0).integers(len(layout), size=1)
    seen = net.model.seen(layout.cut(donor, np.zeros(1, dtype=int), window), layout)
    for channel in range(attr.shape[1]):
        handles = []
        for network, module in zip(net.model.networks, found):
            given = []
            handle = module.register_forward_hook(lambda m, a, out, given=given: given.append(out.clone()))
            with torch.no_grad():
                for flip in net.model.flips:
                    network(seen.flip(flip) if flip else seen)
            handle.remove()
            calls = itertools.count()

            def put(m, args, out, given=given, calls=calls, channel=channel):
                out[:, channel] = given[next(calls) % len(given)][:, channel]

            handles.append(module.register_forward_hook(put))
        with torch.no_grad():
            change = float(observed - target(image)[0, 1])
        for handle in handles:
            handle.remove()
        assert float(attr[0, channel].flatten()[0]) == pytest.approx(change, abs=1e-5)
    assert float(attr.abs().max()) > 1e-5


def test_the_recipe(made, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"## nnU-Net\n.*?\n## ", page, re.DOTALL)
    code = "\n".join(re.findall(r"```python\n(.*?)```", section, re.DOTALL))
    names = {"model_folder": made(), "donor_folder": tmp_path, "scan_file": tmp_path / "a_0000.nii.gz", "label": "gray"}
    write_case(tmp_path, "a", affine=oblique())
    write_case(tmp_path, "b", affine=oblique(), seed=1)
    monkeypatch.chdir(tmp_path)
    exec(code, names | {"roi_file": tmp_path / "a.nii.gz", "label_file": str(tmp_path / "a.nii.gz")})
    for name in ("effects", "effects_T1", "effects_T2"):
        assert images.load_image(f"{name}.nii.gz").shape == images.load_image("a_0000.nii.gz").shape


def test_regions_are_masks_with_a_sigmoid_each(made, tmp_path):
    net = load_nnunet(made(labels=REGIONS, channels=("CT",)))
    labels = write_case(tmp_path, "a", affine=oblique(), channels=1)
    image = net.prepare(tmp_path / "a_0000.nii.gz")
    assert net.has_regions
    assert net.labels == {"whole": 0, "core": 1}
    reference = net.reference(labels, image)
    assert reference.shape == (1, 2, *image.shape[2:])
    assert bool((reference[0, 1] <= reference[0, 0]).all())
    assert bool(reference[0, 1].any())
    target = net.target(net.region(labels, image), reference)
    assert target.activation == "sigmoid"
    assert target(image).shape == (1, 2)


def test_a_2d_configuration_segments_the_slices_of_a_volume(made, tmp_path, monkeypatch):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = made(spacing=(1.0, 1.0), transpose=(0, 1, 2), channels=("CT",))
    net = load_nnunet(folder, mirroring=True)
    write_case(tmp_path, "a", affine=oblique(), channels=1)
    image = net.prepare(tmp_path / "a_0000.nii.gz")
    predictor = nnUNetPredictor(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,))
    monkeypatch.setattr(torch, "half", torch.float32)
    expected = predictor.predict_logits_from_preprocessed_data(image.as_tensor()[0])
    with torch.no_grad():
        assert float((net.model(image)[0] - expected).abs().max()) < 1e-4


def test_pictures_have_two_axes(made, tmp_path):
    from PIL import Image

    folder = made(spacing=(1.0, 1.0), transpose=(0, 1, 2), channels=("R", "G", "B"), ending=".png", reader="NaturalImage2DIO")
    net = load_nnunet(folder)
    pixels = np.random.default_rng(0).integers(1, 255, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p_0000.png")
    image = net.prepare(tmp_path / "p_0000.png")
    assert image.shape == (1, 3, 24, 30)
    drawn = np.zeros((24, 30), dtype=np.uint8)
    drawn[5:12, 6:20] = 1
    assert np.array_equal(net.region(drawn, image).numpy(), drawn > 0)
    assert np.array_equal(net.to_scan(net.region(drawn, image), image)[0, 0].numpy(), drawn > 0)
    assert net.model(image).shape == (1, 3, 24, 30)


def test_what_is_refused(made, tmp_path):
    folder = made()
    net = load_nnunet(folder)
    write_case(tmp_path, "a", affine=oblique())
    image = net.prepare(tmp_path / "a_0000.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"z_0000\.nii\.gz \(T1\), .*z_0001\.nii\.gz \(T2\)"):
        net.prepare(tmp_path / "z_0000.nii.gz")
    with pytest.raises(ValueError, match=r"image_file: expected 2 channels \(T1, T2\), got 1 in"):
        net.prepare(tmp_path / "a.nii.gz")
    with pytest.raises(TypeError, match="image: expected the image as prepare returned it"):
        net.region(tmp_path / "a.nii.gz", image.as_tensor())
    with pytest.raises(ValueError, match=r"mask: expected one map of the scan's shape \(30, 26, 22\), got \(3, 3, 3\)"):
        net.region(np.ones((3, 3, 3)), image)
    with pytest.raises(ValueError, match="mask: nothing of it is left"):
        net.region(np.zeros((30, 26, 22)), image)
    with pytest.raises(ValueError, match="values: expected a map on the grid of the image"):
        net.to_scan(torch.zeros(3, 3, 3), image)
    with pytest.raises(ValueError, match="cases: no case but the explained one"):
        net.donors([tmp_path / "a_0000.nii.gz"], leave_out=image)
    plans = json.loads((folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (folder / "plans.json").write_text(json.dumps(plans))
    with pytest.raises(ValueError, match="the second stage of a cascade"):
        load_nnunet(folder)


def test_trainers_may_build_networks_as_before_version_2_8(made, tmp_path, monkeypatch):
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    folder = made(channels=("CT",))
    expected = load_nnunet(folder).model.networks[0].state_dict()

    def build(
        architecture_class_name,
        arch_init_kwargs,
        arch_init_kwargs_req_import,
        num_input_channels,
        num_output_channels,
        enable_deep_supervision=True,
    ):
        assert not enable_deep_supervision
        given = architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import
        return get_network_from_plans(*given, num_input_channels, num_output_channels, deep_supervision=False)

    monkeypatch.setattr(nnUNetTrainer, "build_network_architecture", staticmethod(build))
    found = load_nnunet(folder).model.networks[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_unknown_trainer_is_named(made):
    folder = made()
    file = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False) | {"trainer_name": "aTrainerOfMyOwn"}
    torch.save(checkpoint, file)
    # Beside a CPU build of torch, the look-up may die of torchvision, which is said as well.
    with pytest.raises((ValueError, ImportError), match=r"aTrainerOfMyOwn|torchvision"):
        load_nnunet(folder)


def test_the_command_line(made, tmp_path, monkeypatch, capsys):
    import pandas as pd

    from captum_causalseg.cli import main

    folder = made(folds=2)
    (tmp_path / "imagesTr").mkdir()
    labels = write_case(tmp_path, "a", affine=oblique())
    for seed, name in enumerate(("b", "c"), start=1):
        write_case(tmp_path / "imagesTr", name, affine=oblique(), seed=seed)
        (tmp_path / "imagesTr" / f"{name}.nii.gz").unlink()
    monkeypatch.chdir(tmp_path)
    words = ["explain", "--nnunet", str(folder), "--fold", "0", "1", "--label", "a.nii.gz", "--roi", "label:gray"]
    words += ["--class", "gray", "--donors", "imagesTr", "--units", "12", "--draws", "2", "--metric", "soft_dice"]
    maps = []
    for files in (["a_0000.nii.gz"], ["a_0000.nii.gz", "a_0001.nii.gz"]):
        assert main([*words, "--image", *files, "--out", f"out{len(files)}"]) == 0
        maps.append(nibabel.load(f"out{len(files)}/effects.nii.gz"))
    values = [one.get_fdata() for one in maps]
    assert np.array_equal(values[0], values[1], equal_nan=True)
    scan = nibabel.load("a_0000.nii.gz")
    assert values[0].shape == scan.shape
    assert np.allclose(maps[0].affine, scan.affine, atol=1e-4)
    # Nothing is said of what was cut away, and something of the rest.
    known = np.isfinite(values[0])
    assert not known[:3].any()
    assert known[24:27, 12:23, 12:19].all()  # the strongest unit
    table = pd.read_csv("out1/effects.csv")
    assert table["stop_0"].max() <= labels.shape[0]
    assert "forward passes of one window" in capsys.readouterr().out
    # Donor images of any size: their windows are all alike.
    write_case(tmp_path / "imagesTr", "d", affine=oblique(), seed=3, shape=(28, 30, 24))
    parts = ["components", *words[1:], "--layers", "folds.0.decoder.stages.1", "--image", "a_0000.nii.gz", "--out", "parts"]
    parts = [word for word, before in zip(parts, ["", *parts]) if "--units" not in (word, before)]
    assert main(parts) == 0
    assert pd.read_csv("parts/components.csv")["module"].tolist() == ["folds.0.decoder.stages.1"]
    page = Path("out1/report.html").read_text(encoding="utf-8")
    assert "folds 0, 1" in page
    assert "--fold 0 1" in page
    assert "gray, 1 of 3 (counted from 0)" in page
    assert "Forward passes of one window" in page
    assert main([*words, "--image", "a_0000.nii.gz", "--class", "black", "--out", "no"]) != 0
    assert "--class: expected 0..2 (background, gray, white), got 'black'" in capsys.readouterr().err


def test_a_study_of_cases_of_several_files(made, tmp_path, monkeypatch, capsys):
    from captum_causalseg.cli import main
    from captum_causalseg.cohort import Cohort

    folder = made(folds=2)
    for seed, name in enumerate("ab"):
        write_case(tmp_path, name, affine=oblique(), seed=seed)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cases.csv").write_text("id,image,image_2\na,a_0000.nii.gz,a_0001.nii.gz\nb,b_0000.nii.gz,\n")
    options = {"nnunet": folder, "fold": "[0, 1]", "roi": "box:4,4,4+2", "class": "gray", "units": 8, "draws": 2, "donors": "."}
    (tmp_path / "study.yaml").write_text("".join(f"{name}: {value}\n" for name, value in options.items()))
    assert main(["cohort", "--cases", "cases.csv", "--config", "study.yaml", "--out", "study"]) == 0, capsys.readouterr().out
    assert Cohort("study").cases()["state"].tolist() == ["finished", "finished"]
    assert Cohort("study").statistics("a").settings["baselines"].startswith("PatchBank(1 image")  # b, without a itself
    assert nibabel.load("study/cases/b/effects.nii.gz").shape == nibabel.load("b_0000.nii.gz").shape
