"""What donor sources are tested on."""

import itertools

import numpy as np
import torch

SPATIAL = {1: (9,), 2: (7, 9), 3: (5, 6, 7)}


def numbered(*shape):
    """Every element its own value."""
    return torch.arange(float(np.prod(shape)), device="cpu").reshape(shape)


def box(start, size):
    return tuple(slice(a, a + b) for a, b in zip(start, size))


def windows(image, size):
    """All places of a box in ``(C, *spatial)``, by a literal loop: ``{corner: values}``."""
    places = itertools.product(*(range(length - side + 1) for length, side in zip(image.shape[1:], size)))
    return {corner: image[(slice(None), *box(corner, size))] for corner in places}


class Lazy:
    """A data set that counts what is read."""

    def __init__(self, images):
        self.images, self.reads = images, 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index]


def three_examples(d):
    return numbered(3, 2, *SPATIAL.get(d, ())).sin()


def another(d, count=2):
    return numbered(count, 2, *SPATIAL.get(d, ())).cos()


def a_batch(bound, spatial, size, n_examples, count=60):
    """Random units of random examples, first donors and last ones among the drawn: ``examples, corners, size, numbers``."""
    rng = np.random.default_rng(0)
    examples = rng.integers(0, n_examples, count)
    grid = np.array([length - side + 1 for length, side in zip(spatial, size)], dtype=np.int64)
    corners = rng.integers(0, grid, (count, len(size)))
    populations = [bound.population(e, box(c, size)) for e, c in zip(examples.tolist(), corners.tolist())]
    numbers = rng.integers(0, populations)
    numbers[::5], numbers[1::5] = 0, np.array(populations)[1::5] - 1
    return examples, corners, size, numbers


def one_by_one(bound, examples, corners, size, numbers):
    rows = zip(examples.tolist(), corners.tolist(), numbers.tolist())
    return torch.stack([bound.read(e, box(c, size), k).expand(-1, *size) for e, c, k in rows])


def assert_many_are_each(bound, batch):
    expected = one_by_one(bound, *batch)
    with torch.device("meta"):  # whatever is made anywhere is of no use
        found = bound.read_many(*batch)
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    assert torch.equal(found, expected)
    assert torch.equal(found.add_(1), expected + 1)  # every element in a place of its own
    assert torch.equal(one_by_one(bound, *batch), expected)  # it was a copy
