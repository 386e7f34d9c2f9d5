"""A folder with everything that the command line is tested on."""

import re

import nibabel
import numpy as np
import torch
from PIL import Image

from captum_causalseg import cli

# The installed program. Transformers is there for the tests of a few networks; MONAI imports it wherever it finds it, and every program would
# take two seconds more to start.
PROGRAM = "import sys; sys.modules['transformers'] = None; from captum_causalseg.cli import main; sys.exit(main())"

NETS = """
import torch

def two():
    torch.manual_seed(36)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1))

class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("=1+2", torch.nn.Conv2d(1, 2, 3, padding=1))
    def forward(self, x):
        return dict(self.named_children())["=1+2"](x)

class Attention(torch.nn.Module):
    num_heads = 2
    def __init__(self):
        super().__init__()
        self.values, self.project = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    def forward(self, x):
        values = self.values(x).unflatten(2, (2, 2))
        return self.project((values + values.mean(1, keepdim=True)).flatten(2))

class Tokens(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(36)
        self.patches, self.attention = torch.nn.Conv2d(1, 4, 8, stride=8), Attention()
        self.expand = torch.nn.ConvTranspose2d(4, 2, 8, stride=8)
    def forward(self, x):
        tokens = self.attention(self.patches(x).flatten(2).transpose(1, 2))
        return self.expand(tokens.transpose(1, 2).unflatten(2, (3, 4)))

def three():
    torch.manual_seed(0)
    return torch.nn.Conv3d(1, 3, 3, padding=1)

def single():
    return torch.nn.Conv2d(1, 2, 1)

def color():
    return torch.nn.Conv2d(3, 2, 1)

class Halves(torch.nn.Module):
    def forward(self, x):
        if x.shape[-1] % 64:
            raise ValueError("sizes should be divisible by 64\\nand more that nobody reads")
        return x

def divisible():
    return Halves()

def number():
    return 3

def fails():
    raise RuntimeError("no luck")
"""


def make_place(folder):
    """Networks, weights, a picture, a scan, labels and donors; the name of the networks' module."""
    name = "nets_" + re.sub(r"\W", "_", folder.name + folder.parent.name)
    (folder / f"{name}.py").write_text(NETS)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 256, (24, 32), dtype=np.uint8)).save(folder / "image.png")
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[6:18, 8:20] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    (folder / "donors").mkdir()
    for number in range(4):
        Image.fromarray(generator.integers(0, 256, (24, 32), dtype=np.uint8)).save(folder / "donors" / f"{number}.png")
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(generator.random((16, 16, 8), dtype=np.float32), affine), folder / "scan.nii.gz")
    truth = np.zeros((16, 16, 8), dtype=np.uint8)
    truth[4:8, 4:8, 2:4] = 2
    nibabel.save(nibabel.Nifti1Image(truth, affine), folder / "truth.nii.gz")
    torch.manual_seed(7)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(3, 2, 1))
    torch.save(network.state_dict(), folder / "two.pt")
    torch.jit.script(network).save(str(folder / "two.ts"))
    return name


def on_picture(name, *more, command="explain", model="two"):
    """Arguments that explain the picture."""
    arguments = [command, "--model", f"{name}:{model}", "--image", "image.png", "--normalize", "255", "--roi", "box:8,8+8"]
    return [*arguments, "--draws", "4", "--out", "out", *more]


def on_scan(name, *more, command="explain"):
    """Arguments that explain the scan."""
    arguments = [command, "--model", f"{name}:three", "--image", "scan.nii.gz", "--label", "truth.nii.gz", "--class", "2"]
    return [*arguments, "--roi", "label:2", "--units", "4x4x2", "--draws", "3", "--out", "out", *more]


def status_of(arguments):
    """As the shell sees it."""
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        return ended.code
