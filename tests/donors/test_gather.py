"""Many donors at once, and inner products with them: against one by one, of every source."""

import itertools

import numpy as np
import pytest
import torch
from donor_cases import SPATIAL, Lazy, a_batch, another, assert_many_are_each, box, numbered, three_examples, windows
from hypothesis import given
from hypothesis import strategies as st

from captum_causalseg import Blur, Constant, PatchBank, SameImage, regions
from captum_causalseg.donors import BoundDonors, SelfDonor, as_donor_source, gather
from captum_causalseg.donors.gather import Request


class Steps(BoundDonors):
    """A source of a user's own, with no more than it must have; every other donor is one number."""

    def population(self, example, box):
        return 5

    def locate(self, example, box, number):
        return -1, tuple(side.start for side in box)

    def read(self, example, box, number):
        shape = tuple(side.stop - side.start for side in box)
        shape = shape if number % 2 else (1,) * len(shape)
        return numbered(2, *shape) + 100 * number + 1000 * example + sum(side.start for side in box)


def with_the_explained(d):
    """A bank in which example 0 is not found, example 1 once and example 2 twice."""
    return torch.cat([another(d), three_examples(d)[[2, 1, 2]]])


def rois(d, count):
    spatial = SPATIAL.get(d, ())
    found = [regions.box(spatial, start=(1 + k, 2, 3 - k)[:d], size=2) for k in range(count)] if d else [torch.tensor(True)]
    return torch.stack(found)


ANYWHERE = {
    "bank": lambda d: PatchBank(another(d)),
    "bank, own RoI": lambda d: PatchBank(with_the_explained(d)),
    "bank, own RoI, of a list": lambda d: PatchBank(list(with_the_explained(d))),
    "bank, own RoI, read lazily": lambda d: PatchBank(Lazy(with_the_explained(d)), cache_images=2),
    "bank, of any memory order": lambda d: PatchBank(another(d).flip(1).transpose(0, 1).contiguous().transpose(0, 1)),
    "bank, of different sizes": lambda d: PatchBank([numbered(2, *(n + k,) * d) for k, n in enumerate((9, 5, 20))]),
    "same image": lambda d: SameImage(),
    "blur": lambda d: Blur(1.5),
}

ANY_AXES = {
    "constant": lambda d: Constant(0.3),
    "a unit's own values": lambda d: SelfDonor(),
    "constant per channel": lambda d: Constant([0.3, -2.0]),
    "aligned": lambda d: PatchBank(another(d, 4), placement="aligned"),
    "aligned, own RoI": lambda d: PatchBank(with_the_explained(d), placement="aligned"),
    "aligned, own RoI, of a list": lambda d: PatchBank(list(with_the_explained(d)), placement="aligned"),
    "aligned, own RoI, read lazily": lambda d: PatchBank(Lazy(with_the_explained(d)), placement="aligned", cache_images=2),
    "aligned, one value for all pixels": lambda d: as_donor_source(another(d).mean(tuple(range(2, d + 2)), True), another(d)),
}

SOURCES = [
    *[(name, source, d) for name, source in ANYWHERE.items() for d in (1, 2, 3)],
    *[(name, source, d) for name, source in ANY_AXES.items() for d in (0, 1, 2, 3)],
]

every_source = pytest.mark.parametrize(("source", "d"), [pytest.param(s, d, id=f"{n}, {d}D") for n, s, d in SOURCES])


@every_source
@pytest.mark.parametrize("n_rois", [0, 1, 3])
def test_many_donors_at_once_are_the_donors_one_by_one(source, d, n_rois):
    size = (2, 3, 2)[:d]
    bound = source(d).bind(three_examples(d), rois(d, n_rois) if n_rois else None)
    assert_many_are_each(bound, a_batch(bound, SPATIAL.get(d, ()), size, 3))


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_a_source_of_ones_own_can_be_read_many_at_once(d):
    assert_many_are_each(Steps(), a_batch(Steps(), (9,) * d, (3, 1, 2)[:d], 4))


@pytest.mark.parametrize("listed", [False, True])
def test_many_donors_at_once_of_every_unit_leave_no_place_out(listed):
    """Against the literal list of places, not against ``read``: they have code in common."""
    images = with_the_explained(2)
    bound = PatchBank(list(images) if listed else images).bind(three_examples(2), rois(2, 3))
    for example, own in enumerate([(), (3,), (2, 4)]):
        roi = rois(2, 3)[example]
        truth = [
            values
            for index, image in enumerate(images)
            for corner, values in windows(image, (2, 3)).items()
            if index not in own or not roi[box(corner, (2, 3))].any()
        ]
        count = bound.population(example, box((1, 1), (2, 3)))
        assert count == len(truth)
        rows = np.full(count, example), np.ones((count, 2), dtype=int), (2, 3), np.arange(count)
        assert torch.equal(bound.read_many(*rows), torch.stack(truth))


@given(st.data(), st.integers(1, 3), st.sampled_from(["stacked", "listed", "lazy", "same image"]), st.booleans())
def test_many_donors_of_any_shape(data, d, kind, aligned):
    size = tuple(data.draw(st.lists(st.integers(1, 3), min_size=d, max_size=d)))
    spatial = tuple(3 * side + data.draw(st.integers(0, 2)) for side in size)
    images = torch.rand(4, data.draw(st.integers(1, 2)), *spatial)
    roi = torch.zeros(spatial, dtype=torch.bool)
    roi[box([data.draw(st.integers(0, side - 1)) for side in size], (1,) * d)] = True
    held = {"stacked": images, "listed": list(images), "lazy": Lazy(images), "same image": None}[kind]
    source = SameImage() if held is None else PatchBank(held, "aligned" if aligned else "anywhere", cache_images=1)
    bound = source.bind(images[1:3], roi[None] if data.draw(st.booleans()) else None)
    far = tuple(length - side for length, side in zip(spatial, size))  # leaves room for a donor beside the RoI
    corners = np.array([far, far, [0] * d] if held is not None else [far, far, far])
    examples = np.array([0, 1, 0])
    populations = [bound.population(e, box(c, size)) for e, c in zip(examples.tolist(), corners.tolist())]
    numbers = np.array([data.draw(st.integers(0, count - 1)) for count in populations])
    assert_many_are_each(bound, (examples, corners, size, numbers))


def some_requests(bound, d, sizes):
    """Two requests of each size, of different examples, weights with and without channels; and one for nothing."""
    requests = []
    for size, channels in itertools.product(sizes, (1, 2)):
        for example, corner in ((0, (1,) * d), (2, (0,) * d)):
            unit = box(corner, size)
            numbers = np.random.default_rng(len(requests)).integers(0, bound.population(example, unit), 7 + len(requests))
            requests.append(Request(example, unit, numbers, torch.rand(channels, *size) - 0.5))
    return [*requests, Request(0, unit, np.empty(0, dtype=np.int64), torch.rand(1, *size))]


def literal_products(bound, request):
    products = []
    for number in request.numbers.tolist():
        donor = bound.read(request.example, request.box, number)
        donor, weights = torch.broadcast_tensors(donor.double(), request.weights.double())
        products.append(sum(a * b for a, b in zip(donor.flatten().tolist(), weights.flatten().tolist())))
    return products


def assert_products_are_literal(bound, requests):
    with torch.device("meta"):
        found = bound.inner_products(requests)
    assert len(found) == len(requests)
    for products, request in zip(found, requests):
        assert products.dtype == np.float64
        np.testing.assert_allclose(products, literal_products(bound, request), rtol=1e-11, atol=1e-11)


@every_source
@pytest.mark.parametrize("most", [1, 40, 2**22])
def test_inner_products_are_the_sums_over_the_elements(monkeypatch, source, d, most):
    monkeypatch.setattr(gather, "_MOST_VALUES", most)
    bound = source(d).bind(three_examples(d), rois(d, 3) if d else None)
    assert_products_are_literal(bound, some_requests(bound, d, {(2, 3, 2)[:d], (1, 2, 3)[:d]}))


@pytest.mark.parametrize("d", [0, 1, 2, 3])
def test_inner_products_with_donors_of_a_source_of_ones_own(d):
    assert_products_are_literal(Steps(), some_requests(Steps(), d, {(3, 1, 2)[:d]}))


def test_inner_products_are_summed_in_double_precision():
    donors = torch.tensor([1e8, 1.0, -1e8]).reshape(1, 1, 3)
    bound = PatchBank(donors).bind(torch.zeros(1, 1, 3))
    request = Request(0, box((0,), (3,)), np.array([0]), torch.ones(1, 3))
    assert bound.inner_products([request])[0].tolist() == [1.0]


def test_no_requests_no_products():
    for source in (Constant(0.0), PatchBank(another(2)), PatchBank(list(another(2)))):
        assert source.bind(three_examples(2)).inner_products([]) == []


def test_inner_products_read_every_lazy_image_once():
    images = Lazy(with_the_explained(2))
    bound = PatchBank(images, cache_images=1).bind(three_examples(2), rois(2, 1))
    requests = some_requests(bound, 2, {(2, 3), (3, 3), (1, 1)})
    bound.read(1, box((0, 0), (1, 1)), 0)  # image 0 is in the cache now
    before = images.reads
    bound.inner_products(requests)
    assert images.reads - before == len(images) - 1
    before = images.reads
    last = bound.population(1, box((0, 0), (1, 1))) - 1
    bound.inner_products([Request(1, box((0, 0), (1, 1)), np.array([last, 0, last, 0]), torch.ones(1, 1, 1))] * 3)
    assert images.reads - before == 2  # no other image


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("channels", [1, 2])
def test_inner_products_hold_few_donors_at_once(monkeypatch, lazy, channels):
    bound = PatchBank(Lazy(another(2)) if lazy else another(2)).bind(three_examples(2))
    held = []

    def noting(values, weights, *, summed=gather.weighted_sums):
        held.append(values.numel())
        return summed(values, weights)

    monkeypatch.setattr(gather, "_MOST_VALUES", 50)
    monkeypatch.setattr("captum_causalseg.donors.source.weighted_sums", noting)
    monkeypatch.setattr("captum_causalseg.donors.gather.weighted_sums", noting)
    bound.inner_products([Request(0, box((0, 0), (2, 3)), np.arange(60), torch.ones(channels, 2, 3))])
    assert sum(held) == 60 * 12
    assert max(held) == 48


@pytest.mark.gpu
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("placement", ["anywhere", "aligned"])
def test_donors_are_gathered_where_they_are(placement, listed):
    images = with_the_explained(2)
    there = images.cuda()
    bound = PatchBank(images, placement).bind(three_examples(2), rois(2, 3))
    on_gpu = PatchBank(list(there) if listed else there, placement).bind(three_examples(2), rois(2, 3))
    batch = a_batch(bound, SPATIAL[2], (2, 3), 3)
    assert_many_are_each(on_gpu, batch)
    assert torch.equal(on_gpu.read_many(*batch).cpu(), bound.read_many(*batch))
    assert_products_are_literal(on_gpu, some_requests(bound, 2, {(2, 3), (3, 3)}))


def test_many_lazily_read_donors_read_every_image_once():
    images = Lazy(another(2, 6))
    bound = PatchBank(images, cache_images=1).bind(three_examples(2))
    batch = a_batch(bound, SPATIAL[2], (2, 3), 3)
    before = images.reads
    bound.read_many(*batch)
    assert images.reads - before == 5  # the first was still there
