"""The segmentation in numbers."""

import re

import numpy as np
from command_line import on_picture, on_scan

from captum_causalseg import cli


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
