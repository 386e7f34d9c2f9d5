"""Images with geometry: scans read from files, and effect maps written so that any viewer opens them over the scan.

Reading and writing need packages that come with ``pip install "captum-causalseg[io]"``.
"""

from captum_causalseg.images.grid import check_same_grid, spacing_of, with_metadata
from captum_causalseg.images.maps import invert, save_map
from captum_causalseg.images.reading import load_image, load_label

__all__ = ["check_same_grid", "invert", "load_image", "load_label", "save_map", "spacing_of", "with_metadata"]
