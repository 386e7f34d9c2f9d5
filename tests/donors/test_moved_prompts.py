"""Places around prompts: all of the disk that lie in the image, all jittered boxes, each once."""

import itertools

import pytest

from captum_causalseg.donors import MovedPrompts
from captum_causalseg.donors.moved_prompts import PromptPlace
from tests.common.prompt_cases import steps_of


@pytest.mark.parametrize("radius", [1, 2.5, 3])
@pytest.mark.parametrize("at", [(5.0, 6.0), (0.0, 9.0), (0.4, 3.7), (4.0, 5.0, 6.0)])
def test_a_click_goes_everywhere_in_the_disk_that_is_in_the_image(radius, at):
    spatial = (12, 10, 9)[: len(at)]
    bound = MovedPrompts(radius).bind_places([[None, PromptPlace(at, at, spatial)]])
    box = (slice(1, 2),)
    steps = [bound.offset(0, 1, k) for k in range(bound.population(0, box))]
    assert sorted(steps) == [step for step in sorted(steps_of(3, at, at, spatial)) if sum(s**2 for s in step) <= radius**2]
    assert bound.read(0, box, 3).tolist() == [[4.0]]
    assert bound.population(0, (slice(0, 1),)) == 0


def test_sides_of_a_box_move_by_themselves_and_stay_in_the_image():
    place = PromptPlace((0.0, 10.0), (20.0, 18.0), (21, 40), is_box=True)
    bound = MovedPrompts(1, share=0.13).bind_places([[place]])
    steps = [bound.offset(0, 0, k) for k in range(bound.population(0, (slice(0, 1),)))]
    # 0.13 of 20 is 2 pixels, of 8 one; the first side cannot go below 0, the third not beyond 20.
    allowed = set(itertools.product((0, 1, 2), (-1, 0, 1), (-2, -1, 0), (-1, 0, 1))) - {(0, 0, 0, 0)}
    assert len(steps) == len(allowed)
    assert set(steps) == allowed


@pytest.mark.parametrize("given", [{"radius": 0}, {"radius": 3, "share": 0.5}])
def test_what_moves_nothing_or_too_far_is_refused(given):
    name = "share" if "share" in given else "radius"
    with pytest.raises(ValueError, match=f"^{name}: expected a finite number of"):
        MovedPrompts(**given)
