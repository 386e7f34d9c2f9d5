"""A donor source of a user's own, which does what the protocol says and is known to nobody, in everything that takes donors."""

import logging
import threading

import pytest
import torch
from torch import nn

from captum_causalseg import (
    AverageTreatmentEffect,
    LayerAverageTreatmentEffect,
    SegmentationTarget,
    compare,
    component_effects,
    refute,
    regions,
)
from captum_causalseg.cohort import explain_cohort
from captum_causalseg.donors import ActivationBank, BoundDonors, CannotSplit, Constant, DonorSource, PatchBank
from captum_causalseg.evaluation import Faithfulness
from captum_causalseg.evaluation.refute import REFUTERS

SIZE = 16
SHIFTS = (3, 4, 5, 6, 7, 8, 9, 10)


class Moved(DonorSource):
    """The explained image (or activation) itself, moved along its last axis: as many donors as there are shifts."""

    of_the_image = True

    def __init__(self, shifts):
        self.shifts, self.lock, self.n_bound = tuple(shifts), threading.Lock(), 0

    @property
    def n_images(self):
        return len(self.shifts)

    def chosen(self, indices):
        return Moved([self.shifts[index] for index in indices])

    def describe(self):
        return {"shifts": self.shifts}

    def bind(self, images, forbidden=None):
        self.n_bound += 1
        return BoundMoved([images.detach().roll(shift, -1) for shift in self.shifts])


class BoundMoved(BoundDonors):
    def __init__(self, images):
        self.images = images

    def population(self, example, box):
        return len(self.images)

    def locate(self, example, box, number):
        return number, tuple(side.start for side in box)

    def read(self, example, box, number):
        return self.images[number][example][(slice(None), *box)]


class Brightest(DonorSource):
    """One donor, with no more than `bind`."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def bind(self, images, forbidden=None):
        return Constant(self.factor * float(images.max())).bind(images)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 9, padding=4), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).eval()


@pytest.fixture
def image():
    return torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def target(network, image):
    roi = regions.box((SIZE, SIZE), start=6, size=4)
    return SegmentationTarget.from_prediction(network, image, roi=roi, metric="soft_dice")


def test_effects_are_those_of_its_donors_and_the_settings_say_what_it_is(target, image):
    source = Moved(SHIFTS)
    _, stats = AverageTreatmentEffect(target).attribute(
        image, source, target=1, block_size=4, n_draws=8, n_screening_draws=0, return_statistics=True
    )
    assert source.n_bound == 1
    assert stats.settings["baselines"] == f"Moved(shifts={SHIFTS})"
    with torch.no_grad():
        observed = target(image)[0, 1]
        for unit in (0, 1, 4):
            where = stats.feature_mask[0].expand_as(image) == unit
            scores = [target(torch.where(where, image.roll(shift, -1), image))[0, 1] for shift in SHIFTS]
            assert float(stats.effect[0, unit, 1]) == pytest.approx(float(observed - torch.stack(scores).mean()), abs=1e-6)


def test_every_refuter_takes_it(target, image):
    given = {"block_size": 4, "n_draws": 4, "n_screening_draws": 0}
    report = refute(AverageTreatmentEffect(target), image, Moved(SHIFTS), 1, refuters=[*REFUTERS], **given)
    assert {one.name for one in report.refutations} == set(REFUTERS)
    assert report["split"].n_units > 0
    assert "split" not in report["subset"].message
    layer = LayerAverageTreatmentEffect(target, target.model[0])
    of_a_layer = refute(layer, image, Moved(SHIFTS), 1, refuters=["placebo", "split"], n_draws=4, n_screening_draws=0)
    assert of_a_layer["split"].n_units == 3


def test_methods_are_judged_with_the_donors_that_they_have_not_seen(target, image, monkeypatch):
    met = []
    bind = Moved.bind
    monkeypatch.setattr(Moved, "bind", lambda self, *args, **more: met.append(set(self.shifts)) or bind(self, *args, **more))
    methods = {"effects": (AverageTreatmentEffect(target), {"n_draws": 4})}
    found = compare(methods, target, image, Moved(SHIFTS), output=1, block_size=4, faithfulness={"n_draws": 2})
    assert found.wide().notna().loc["effects"].any()
    judging, estimating = met
    assert judging | estimating == set(SHIFTS)
    assert not judging & estimating
    assert len(judging) == len(estimating) == 4


def test_faithfulness_and_components_take_it(target, image):
    faithfulness = Faithfulness(target, image, Moved(SHIFTS), target=1, block_size=4, n_draws=2)
    assert faithfulness.insertion(torch.rand(1, 1, SIZE, SIZE)).area.shape == (1,)
    table = component_effects(target, image, baselines=Moved(SHIFTS), output=1, n_draws=4)
    assert sorted(table["module"]) == ["0", "1", "2"]
    assert table["effect"].abs().max() > 0


def run(folder, network, source):
    images = torch.rand(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))

    def make_target(case):
        return SegmentationTarget.from_prediction(network, case["image"][None], roi=regions.box((SIZE, SIZE), 6, 4))

    cases = [{"id": str(number), "image": one} for number, one in enumerate(images)]
    return explain_cohort(
        cases,
        make_target,
        method=AverageTreatmentEffect,
        out=folder,
        show_progress=False,
        baselines=source,
        block_size=4,
        target=1,
        n_draws=2,
    )


def test_a_cohort_goes_on_with_the_same_donors_and_refuses_others(tmp_path, network):
    """Held by what the source describes: its lock could not be compared, and how often it was bound does not matter."""
    source = Moved(SHIFTS)
    assert run(tmp_path, network, source).cases()["state"].tolist() == ["finished"] * 3
    assert source.n_bound > 0
    written = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("statistics.npz")}
    run(tmp_path, network, source)
    run(tmp_path, network, Moved(SHIFTS))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("statistics.npz")} == written
    with pytest.raises(ValueError, match=r"baselines\.shifts: was \[3, 4, 5, 6, 7, 8, 9, 10\], now \[3, 4\]"):
        run(tmp_path, network, Moved((3, 4)))


def test_a_source_that_only_binds_cannot_be_split_and_says_so(tmp_path, target, image, network, caplog):
    source = Brightest()
    said = r"^split: expected a source made of donor images, got Brightest\(factor=1\.0\); give images, such as a PatchBank$"
    with pytest.raises(CannotSplit, match=said):
        source.split(0.5)
    report = refute(AverageTreatmentEffect(target), image, source, 1, refuters=["split", "subset"], block_size=4, n_draws=4)
    assert [one.verdict for one in report.refutations] == ["inconclusive"] * 2
    assert report["split"].message == "there are no donor images to split (baselines=Brightest(factor=1.0))"
    methods = {"effects": AverageTreatmentEffect(target)}
    with caplog.at_level(logging.WARNING):
        compare(methods, target, image, source, output=1, block_size=4, metrics=["irof"], faithfulness={"n_draws": 1})
    assert "methods are judged with donors that they may have seen" in caplog.text
    run(tmp_path, network, source)
    with pytest.raises(ValueError, match=r"baselines\.factor: was 1\.0, now 2\.0"):
        run(tmp_path, network, Brightest(2.0))


def test_of_several_inputs_those_that_can_be_split_are(target, image):
    class Both(nn.Module):
        def forward(self, first, second):
            return target(first + 0 * second)

    report = refute(
        AverageTreatmentEffect(Both()),
        (image, image),
        (Moved(SHIFTS), Brightest()),
        1,
        refuters=["split"],
        block_size=4,
        n_draws=4,
        exclude=None,
    )
    assert report["split"].n_units > 0


def test_a_source_of_images_that_does_not_say_what_some_of_them_are_is_told_so():
    class Half(Brightest):
        n_images = 4

    with pytest.raises(NotImplementedError, match=r"^Half\.chosen: a source of n_images images says what some of them are$"):
        Half().split(0.5)


def test_layers_banks_are_split_like_those_of_images():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    halves = ActivationBank(images, batch_size=2).split(parts=2, seed=3)
    banks = PatchBank(images).split(parts=2, seed=3)
    held = [[float(image.flatten()[0]) for image in half.describe()["images"][0]] for half in halves]
    assert held == [[float(image.flatten()[0]) for image in bank.describe()["images"]] for bank in banks]
    assert sorted(held[0] + held[1]) == list(range(6))
    assert halves[0].batch_size == 2
    with pytest.raises(CannotSplit, match=r"got ActivationBank\(6 images, reduction='mean'\)"):
        ActivationBank(images, reduction="mean").split()
