"""As much at once as fits into memory, halved until it does."""

import pytest
import torch

from captum_causalseg.engine.memory import fitting


@pytest.mark.parametrize(("size", "room", "tried"), [(12, 3, [12, 6, 3]), (5, 5, [5]), (7, 1, [7, 3, 1])])
def test_halved_until_it_fits(size, room, tried, caplog):
    asked = []

    def evaluate(count):
        asked.append(count)
        if count > room:
            raise torch.OutOfMemoryError("full")
        return list(range(count))

    found, fits = fitting(evaluate, size, "images")
    assert asked == tried
    assert (found, fits) == (list(range(tried[-1])), tried[-1])
    said = [f"Out of memory: continuing with {count} images per batch" for count in tried[1:]]
    assert [record.getMessage() for record in caplog.records] == said


def test_what_does_not_fit_alone_and_other_errors_are_raised():
    def full(count):
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        fitting(full, 4)

    def broken(count):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fitting(broken, 4)
