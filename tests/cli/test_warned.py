"""What the command line warns of: in one line, once."""

import contextlib
import warnings

import numpy as np
import pytest
from command_line import on_picture, status_of
from PIL import Image

from captum_causalseg.cli.warned import warnings_once


@pytest.mark.filterwarnings("default")
def test_a_warning_is_said_once_though_filters_change(capsys):
    shown = warnings.showwarning
    with warnings_once("explain"):
        for _ in range(3):
            with contextlib.suppress(ValueError), warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.warn("slow\n  here", UserWarning, stacklevel=1)
        warnings.warn("another", UserWarning, stacklevel=1)
    assert capsys.readouterr().err.splitlines() == [
        "causalseg explain: warning: slow here",
        "causalseg explain: warning: another",
    ]
    assert warnings.showwarning is shown


DARK = """
class Dark(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x - 0.5, 0 * x], 1)

def dark():
    return Dark()
"""


@pytest.mark.filterwarnings("default")
def test_intensities_that_the_network_does_not_know_are_warned_of(quick, capsys):
    folder, name = quick
    with (folder / f"{name}.py").open("a") as file:
        file.write(DARK)
    Image.fromarray(np.random.default_rng(0).integers(9, 200, (24, 32), dtype=np.uint8)).save("image.png")
    arguments = on_picture(name, "--label", "mask.png", model="dark")
    del arguments[arguments.index("--normalize") : arguments.index("--normalize") + 2]
    assert status_of(arguments) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert line == (
        "causalseg explain: warning: the model says the same of every pixel of the image, whose values go from 9 to 199; if it was trained on "
        "others, --normalize 255, range or zscore gives them"
    )
    assert status_of([*arguments, "--normalize", "255"]) == 0
    assert "warning" not in capsys.readouterr().err
