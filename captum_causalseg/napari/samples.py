"""What there is to try the plugin on."""

from captum_causalseg.demo import load_brain_slices
from captum_causalseg.demo.cases import BRAIN_SLICE
from captum_causalseg.napari.layers import LayerData

__all__ = ["brain"]


def brain() -> list[LayerData]:
    """A held-out slice of the ICBM152 brain and its tissue classes; needs nilearn."""
    _, held_out = load_brain_slices().split()
    image, labels = held_out.images[BRAIN_SLICE, 0].numpy(), held_out.labels[BRAIN_SLICE].numpy()
    return [(image, {"name": "brain"}, "image"), (labels, {"name": "tissue", "visible": False}, "labels")]
