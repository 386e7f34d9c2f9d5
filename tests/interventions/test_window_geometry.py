"""Which windows touch the regions, and which of these hold a unit, against looking at every element."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_causalseg.interventions.units import Units
from captum_causalseg.interventions.window_geometry import UnitWindows, WindowGeometry
from captum_causalseg.target.window_layout import Padding, WindowLayout


@st.composite
def cases(draw):
    d = draw(st.integers(1, 3))
    spatial = tuple(draw(st.integers(3, 9)) for _ in range(d))
    size = tuple(draw(st.integers(2, 10)) for _ in range(d))
    step = [draw(st.integers(1, 3)) if n > m else 1 for n, m in zip(spatial, size)]
    grids = [sorted({*range(0, max(n - m, 0) + 1, min(s, m)), max(n - m, 0)}) for n, m, s in zip(spatial, size, step)]
    corners = np.stack(np.meshgrid(*grids, indexing="ij"), -1).reshape(-1, d)
    layout = WindowLayout(spatial, size, starts=corners, weight=torch.ones(size), padding=Padding())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    n, own, several = 2, draw(st.booleans()), draw(st.integers(1, 3))
    rois = torch.rand((n if own else 1, several, *spatial), generator=generator) < draw(st.sampled_from([0.05, 0.3]))
    rois.flatten(2)[..., 0] |= ~rois.flatten(2).any(2)
    mask = torch.randint(0, draw(st.integers(1, 6)), (draw(st.sampled_from([1, n])), 2, *spatial), generator=generator)
    return layout, rois, Units([mask], [(n, 2, *spatial)]), mask


@settings(deadline=None, max_examples=60)
@given(cases())
def test_what_every_element_says(case):
    layout, rois, units, mask = case
    geometry = WindowGeometry(layout, rois, 2)
    held_by = UnitWindows(geometry, units)
    for n in range(2):
        own, labels = rois[n if len(rois) > 1 else 0], mask[n if len(mask) > 1 else 0]
        for window in range(len(layout)):
            box = (slice(None), *layout.box(window))
            assert geometry.touching[n, window].tolist() == own[box].flatten(1).any(1).tolist()
            held = [bool((labels[box] == unit).any()) for unit in units.ids.tolist()]
            assert held_by.holding(n)[:, window].tolist() == held
        expected = (held_by.holding(n)[:, :, None] & geometry.touching[n][None]).any(1)
        assert (held_by.reaching[n] == expected).all()


@settings(deadline=None, max_examples=60)
@given(cases())
def test_every_region_lies_in_the_box_of_its_group(case):
    layout, rois, _, _ = case
    geometry = WindowGeometry(layout, rois, 2)
    assert sorted(r for group in geometry.groups for r in group.rois) == list(range(rois.shape[1]))
    for n in range(2):
        own = rois[n if len(rois) > 1 else 0]
        for group in geometry.groups:
            box = tuple(slice(a, a + size) for a, size in zip(group.frame.starts[n].tolist(), group.frame.size))
            assert group.frame.crop(rois[:1])[0].shape[1:] == group.frame.size
            for r in group.rois:
                assert own[r][box].sum() == own[r].sum()
                # One pixel more on every side, where there is room.
                wider = torch.nn.functional.max_pool1d if own[r].ndim == 1 else None
                if wider is not None:
                    assert (
                        wider(own[r][None, None].float(), 3, 1, 1)[0, 0][box].sum()
                        == wider(own[r][None, None].float(), 3, 1, 1).sum()
                    )
            covered = torch.zeros(group.frame.size)
            for window, inside, there in geometry.parts(group, n):
                assert [s.stop - s.start for s in inside] == [s.stop - s.start for s in there]
                corner = [a + s.start for a, s in zip(layout.starts[window].tolist(), inside)]
                assert corner == [a + s.start for a, s in zip(group.frame.starts[n].tolist(), there)]
                covered[there] += 1
            count = layout.count(torch.float32)[box]
            assert torch.equal(covered, count)
