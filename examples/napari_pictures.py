"""The pictures of docs/napari.md: the plugin on the demo's brain and on a small volume. Needs the extra napari and a screen (``xvfb-run``).

xvfb-run -s "-screen 0 1400x900x24" python examples/napari_pictures.py --write docs
"""

import argparse
import tempfile
from pathlib import Path

import napari
import numpy as np
import torch
from PIL import Image
from qtpy.QtTest import QTest

from captum_causalseg.demo import load_brain_slices, load_demo_network


def opened(image, ndim=2):
    """A viewer with the plugin."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1300, 860)
    viewer.add_image(image, name="brain")
    _, widget = viewer.window.add_plugin_dock_widget("captum-causalseg", "Explain a segmentation")
    return viewer, widget


def explained(viewer, widget, file):
    """Press the button, wait, and take a picture."""
    widget.n_draws.value = 4
    widget.explain.changed.emit(True)
    while widget.running:
        QTest.qWait(500)
    viewer.layers["region to explain"].visible = False
    QTest.qWait(500)
    print(widget.said.value)
    picture = viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(picture[..., :3]).save(file, optimize=True)
    viewer.close()


def slice_picture(folder, network, train, image):
    """A box on the cortex of the demo's held-out slice; donors from other slices."""
    torch.jit.trace(network, image[None]).save(str(folder / "brain.ts"))
    donors = folder / "donors"
    donors.mkdir()
    for number, other in enumerate(train.images[::4]):
        Image.fromarray(other[0].numpy()).save(donors / f"{number}.tiff")
    viewer, widget = opened(image[0].numpy())
    widget.model.value, widget.class_.value, widget.donors.value, widget.units.value = folder / "brain.ts", "1", donors, "16"
    widget.draw_region()
    viewer.layers["region to explain"].add_rectangles(np.array([(183.5, 87.5), (215.5, 119.5)]))
    return viewer, widget


def volume_picture(folder, images):
    """Slices as a small volume, with a network that looks for bright tissue around each voxel."""
    volume = torch.nn.functional.avg_pool2d(images[:, 0], 4)[:24]
    network = torch.nn.Sequential(torch.nn.AvgPool3d(5, stride=1, padding=2), torch.nn.Conv3d(1, 1, 1))
    with torch.no_grad():
        network[1].weight.fill_(12.0)
        network[1].bias.fill_(-12 * float(volume[volume > 0.1].median()))
    torch.jit.script(network.eval()).save(str(folder / "bright.ts"))
    viewer, widget = opened(volume.numpy())
    viewer.dims.set_point(0, 12)
    widget.model.value, widget.units.value, widget.metric.value = folder / "bright.ts", "4", "soft_dice"
    widget.draw_region()
    rows = np.array([(30.5, 20.5), (30.5, 28.5), (38.5, 28.5), (38.5, 20.5)])
    viewer.layers["region to explain"].add_rectangles(np.insert(rows, 0, 12, axis=1))
    return viewer, widget


def main():
    """Make both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, required=True, metavar="DIR", help="where to")
    options = parser.parse_args()
    train, held_out = load_brain_slices().split()
    with tempfile.TemporaryDirectory() as folder:
        explained(*slice_picture(Path(folder), load_demo_network(), train, held_out.images[12]), options.write / "napari.png")
        explained(*volume_picture(Path(folder), train.images), options.write / "napari_volume.png")


if __name__ == "__main__":
    main()
