"""The segmentation in numbers."""

import re

import numpy as np
from command_line import on_picture, on_scan

from captum_causalseg import cli
from captum_causalseg.cli import job
from captum_causalseg.visualization import plot_effects


def rows(folder):
    html = (folder / "out" / "report.html").read_text(encoding="utf-8")
    table = html[html.index('<section id="segmentation">') :].partition("</table>")[0]
    return [re.findall("<t[dh][^>]*>([^<]*)", row) for row in table.split("<tr")[1:]]


def test_right_missed_and_too_much_are_counted(quick, monkeypatch):
    folder, name = quick
    (folder / f"{name}.py").write_text(
        "import torch\n"
        "class Bright(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return 40 * (x - 0.5)\n"
        "def bright():\n"
        "    return Bright()\n"
    )
    from PIL import Image

    image = np.zeros((24, 32), dtype=np.uint8)
    image[8:16, 10:22] = 255
    Image.fromarray(image).save("image.png")
    # The reference is 6:18 by 8:20, the region 8:16 by 8:16.
    assert cli.main(on_picture(name, "--label", "mask.png", model="bright")) == 0
    header, region, whole = rows(folder)
    assert header == ["where", "predicted", "reference", "right", "missed", "too much", "Dice"]
    assert region == ["region of interest", "48", "64", "48", "16", "0", f"{96 / 112:.4f}"]
    assert whole == ["whole image", "96", "144", "80", "64", "16", f"{160 / 240:.4f}"]


def test_scans_have_volumes(quick):
    folder, name = quick
    assert cli.main(on_scan(name)) == 0
    _, region, _ = rows(folder)
    assert region[2] == "32 (0.096 mL)"


def test_every_picture_of_a_scan_shows_it_and_lies_as_the_patient_does(quick, monkeypatch):
    _, name = quick
    drawn = []

    def seen(*arguments, **given):
        drawn.append(given)
        return plot_effects(*arguments, **given)

    monkeypatch.setattr(job, "plot_effects", seen)
    assert cli.main(on_scan(name)) == 0
    assert drawn
    for given in drawn:
        assert given["segmentation"].shape == given["image"].shape[2:]
        assert given["affine"].shape == (4, 4)
        assert given["reference"].shape == given["segmentation"].shape
    drawn.clear()
    # Without a reference the model's own prediction is scored, and outlined once; pictures have no geometry.
    assert cli.main(on_picture(name, "--out", "second")) == 0
    assert all(given["affine"] is given["reference"] is None for given in drawn)
