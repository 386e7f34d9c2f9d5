"""What the report says of units: where, how far, in which direction, and what was not done."""

import re
from html import unescape

import nibabel
import numpy as np
import pytest
from command_line import on_picture, on_scan

from captum_causalseg import cli
from captum_causalseg.cli.findings import Directions, p_in_words


def section(folder, name):
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    return html[html.index(f'<section id="{name}">') :].partition("</section>")[0]


def test_directions_are_told_from_the_largest_part_on_and_small_ones_left_out():
    directions = Directions(np.array([[0.0, -1.0], [1.0, 0.0]]), [("left", "right"), ("down", "up")], "")
    assert directions.named(np.array([3.0, 10.0])) == [(10.0, "left"), (3.0, "up")]
    assert directions.named(np.array([2.0, -10.0])) == [(10.0, "right")]
    assert directions.named(np.zeros(2)) == []
    assert directions.of_side(0, 1) == "up"
    assert directions.of_side(1, 1) == "left"


def test_units_of_a_scan_lie_in_the_patients_directions(quick):
    """The first axis runs to the left: a unit at higher indices than the region of interest lies to the patient's left of it."""
    folder, name = quick
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    for file in ("scan.nii.gz", "truth.nii.gz"):
        values = np.asanyarray(nibabel.load(file).dataobj)
        nibabel.save(nibabel.Nifti1Image(values, affine), file)
    assert cli.main(on_scan(name)) == 0
    rows = re.findall(
        r"<td>(\d+)-\d+ x 4-7 x 2-3</td><td>([^<]*)</td><td class=\"text\">([^<]*)</td>", section(folder, "strongest")
    )
    assert rows
    for start, distance, direction in rows:
        # From the middle of 4-7 to that of the unit, four voxels of 2 mm further.
        assert unescape(direction) == ("8 to the patient's left" if int(start) == 8 else "8 to the patient's right")
        assert distance == "2 mm"
    assert "posterior" in section(folder, "distance")


def test_pictures_have_ups_and_downs(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--label", "mask.png", "--weights", "two.pt")) == 0
    said = section(folder, "strongest")
    assert re.search(r"<td>0-7 x 8-15</td><td>1 pixel</td><td class=\"text\">8 up</td>", said)


def test_what_does_not_differ_from_0_stands_apart(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--label", "mask.png", "--weights", "two.pt")) == 0
    said = section(folder, "strongest")
    known, _, apart = said.partition("Not told apart from no effect</h3>")
    for text, is_known in ((known, True), (apart, False)):
        for p in re.findall(r"</td><td>(&lt; 0.001|\d\.\d{3})</td><td class=\"screen\">", text):
            assert (p == "&lt; 0.001" or float(p) <= 0.05) == is_known


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "not known"), (0.0004, "< 0.001"), (0.0425, "0.043")])
def test_p_values_are_printed(value, said):
    assert p_in_words(value) == said


def test_what_was_not_done_is_said_and_what_was_is_not(quick):
    folder, name = quick
    assert cli.main(on_picture(name)) == 0
    said = section(folder, "not-done")
    for missing in ("--label", "--donors", "--refute", "--components", "--controls edge", "--context shapley"):
        assert missing in said
    assert "1 part touches" in said or "touch the region of interest were not replaced" in said
    assert cli.main(on_picture(name, "--label", "mask.png", "--donors", "donors", "--refute", "--components", "*")) == 0
    said = section(folder, "not-done")
    for missing in ("--label", "--donors)", "--refute", "--components"):
        assert missing not in said
