"""What axes mean, told from what is done with them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captum_causalseg.interventions.axes import channel_axes, composition, is_of_batch
from captum_causalseg.interventions.axis_trace import AxisTrace
from captum_causalseg.interventions.layouts import follow, read_layout
from captum_causalseg.layout import Layout, unit_mask


def trace_of(run, *images):
    """What ``run`` returned, and its axes once all has been seen."""
    trace = AxisTrace()
    with trace:
        for image in images:
            trace.note_image(image)
        returned = run(*images)
        found = [trace.axes(x) for x in (returned if isinstance(returned, tuple) else (returned,))]
    return found


def test_what_is_said_later_holds_for_what_came_before():
    def run(x):
        hidden = torch.cumsum(x, 2) + 1  # what cumsum returns is not known
        F.linear(hidden.relu(), torch.ones(3, 5))
        return hidden

    (axes,) = trace_of(run, torch.rand(1, 2, 4, 5))
    assert channel_axes(axes) == [3]


@pytest.mark.parametrize(
    ("run", "first", "lengths"),
    [
        (lambda x: x.flatten(2).transpose(1, 2), 0, (4, 6)),
        (lambda x: x.permute(0, 2, 3, 1).reshape(1, 24, 3), 0, (4, 6)),
        (lambda x: torch.cat([torch.zeros(1, 2, 3), x.flatten(2).mT.contiguous()], 1), None, None),  # .mT is not followed
        (lambda x: torch.cat([torch.zeros(1, 2, 3), x.flatten(2).transpose(1, 2)], 1), 2, (4, 6)),
        (lambda x: F.pad(x.flatten(2).transpose(1, 2), (0, 0, 1, 3)), 1, (4, 6)),
        (lambda x: torch.cat([x.flatten(2).transpose(1, 2), torch.zeros(1, 5, 3)], 1).unbind(0)[0][None], 0, (4, 6)),
        # In the order of the columns, which is not that of the image.
        (lambda x: x.transpose(2, 3).flatten(2).transpose(1, 2), None, None),
        (lambda x: torch.einsum("nchw->nhwc", x).flatten(1, 2), 0, (4, 6)),
        (lambda x: x.flatten(2).transpose(1, 2).roll(1, 1), None, None),
    ],
)
def test_the_grid_of_tokens_is_followed(run, first, lengths):
    (axes,) = trace_of(run, torch.rand(1, 3, 4, 6))
    assert composition(axes[1], 2) == ([] if first is None else [(first, lengths)])


def test_a_grid_that_is_made_later_holds_for_what_came_before():
    def run(x):
        tokens = torch.cumsum(x, 1)
        tokens[:, 1:].transpose(1, 2).reshape(1, 4, 2, 3)
        return tokens

    (axes,) = trace_of(run, torch.rand(1, 7, 4))
    assert composition(axes[1], 2) == [(1, (2, 3))]


def test_layers_that_mix_positions_like_channels_are_not_guessed():
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm = nn.Conv2d(1, 6, 4, stride=4), nn.LayerNorm(6)
            self.positions, self.channels = nn.Linear(16, 16), nn.Linear(6, 6)

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            tokens = tokens + self.positions(self.norm(tokens).transpose(1, 2)).transpose(1, 2)
            return self.channels(tokens)

    model, image = Mixer(), torch.rand(1, 1, 16, 16)
    seen = follow(lambda: model(image), [image], dict(model.named_modules()))
    assert read_layout(seen["norm"].returned[0], 2) is None
    assert read_layout(seen["patches"].returned[0], 2) == Layout("NC*")


def test_examples_that_are_not_first_are_found():
    def run(x):
        return x.permute(1, 0, 2, 3) * 2

    (axes,) = trace_of(run, torch.rand(1, 3, 4, 6))
    assert is_of_batch(axes[1])
    with pytest.raises(ValueError, match="layer: the examples are axis 1 of its activation"):
        read_layout(axes, 2)


@pytest.mark.parametrize(
    ("units", "block_size", "expected"),
    [
        ("channel", None, [[[0], [1], [2], [3]]]),
        ("token", None, [[[0, 1, 2, 3, 4]]]),
        ("head", None, [[[0], [0], [1], [1]]]),
        ("block", (1, 2), [[[2, 0, 0, 1, 1]]]),
        ("channel_block", (1, 2), [[[2, 0, 0, 1, 1], [5, 3, 3, 4, 4], [8, 6, 6, 7, 7], [11, 9, 9, 10, 10]]]),
        ("layer", None, [[[0]]]),
    ],
)
def test_units_of_tokens(units, block_size, expected):
    layout = Layout("NLC", grid=(2, 2), first=1, heads=2)
    assert unit_mask(layout, units, (1, 4, 5), block_size).tolist() == expected
    assert layout.n_units(units, (1, 5, 4), block_size) == max(max(max(row) for row in rows) for rows in expected) + 1
