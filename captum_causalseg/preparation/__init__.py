"""From an image's files to what a network is shown, and back: models with their pre-processing, both grids of voxels, and the units."""
