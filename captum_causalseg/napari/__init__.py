"""The plugin for napari: explain a segmentation where a region is drawn. What computes is in ``explaining``, without Qt; the window is in ``widget``."""
