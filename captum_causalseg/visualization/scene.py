"""What all pictures of an image have in common: the image, its segmentations, its region of interest, and what frames them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.image import AxesImage
from torch import Tensor

from captum_causalseg.target.masks import plain_tensor
from captum_causalseg.visualization.frame import free_corners, letters, locator, ruler, show_part
from captum_causalseg.visualization.geometry import geometry_of
from captum_causalseg.visualization.marks import draw_area, draw_line, handle, mistakes
from captum_causalseg.visualization.pictures import EFFECTS, PALETTES, background, grayscale
from captum_causalseg.visualization.planes import About, Plane, center, layout_of
from captum_causalseg.visualization.segmentations import class_mask

__all__ = ["OPACITY", "Scene", "lay_over", "panel_sizes", "scene_and_planes"]

# Of a value: the power of its size. Half the largest is drawn at 0.59 of the largest's opacity.
OPACITY = 0.75


@dataclass(frozen=True)
class Scene:
    """One example, on the CPU.

    Args:
        picture: gray or colored, ``(*spatial)`` or ``(*spatial, 3)``, in [0, 1].
        roi: boolean ``(*spatial)``; None without one.
        segmentations: boolean ``(*spatial)``, by their names in :data:`~captum_causalseg.visualization.marks.LINES`.
        color: of the region of interest.
    """

    picture: np.ndarray
    roi: np.ndarray | None
    segmentations: Mapping[str, np.ndarray]
    color: str = PALETTES["accessible"].outline

    @cached_property
    def mistakes(self) -> dict[str, np.ndarray]:
        """What is missed, and what is segmented too much."""
        return mistakes(self.segmentations.get("segmentation"), self.segmentations.get("reference"))

    @property
    def heading(self) -> str:
        """Of the picture itself."""
        return (
            "Image and segmentation" if self.segmentations else "Image" if self.roi is None else "Image and region of interest"
        )

    def begin(self, axes: Axes, plane: Plane, heading: str, *, faded: bool) -> None:
        """The picture, darkened where values come to lie on it."""
        background(axes, plane.cut(self.picture), heading, fade=faded, aspect=plane.aspect)
        show_part(axes, plane)

    def tell(self, axes: Axes, plane: Plane) -> None:
        """Hatch what the segmentation misses and what it has too much."""
        for kind, mask in self.mistakes.items():
            draw_area(axes, plane.cut(mask), kind)

    def finish(self, axes: Axes, plane: Plane, *, faint: bool = False) -> None:
        """Where the planes cross, and on top the segmentations, thin lines where they are to be ``faint``, and the region of interest."""
        if plane.cross is not None:
            row, column = plane.place(plane.cross)
            axes.axhline(row, color="white", linewidth=0.6, linestyle=":")
            axes.axvline(column, color="white", linewidth=0.6, linestyle=":")
        for kind, mask in self.segmentations.items():
            draw_line(axes, plane.cut(mask), kind, faint=faint)
        if self.roi is not None:
            draw_line(axes, plane.cut(self.roi), "roi", color=self.color)
        show_part(axes, plane)

    def frame(self, axes: Axes, plane: Plane) -> None:
        """Where the picture lies: in the image, and in the patient."""
        roi = None if self.roi is None else plane.cut(self.roi)
        kept = [mask for mask in (roi, *(plane.cut(mask) for mask in self.mistakes.values())) if mask is not None]
        corner, *others = free_corners(plane, kept)
        letters(axes, plane)
        locator(axes, plane, plane.cut(self.picture), roi=roi, corner=corner)
        ruler(axes, plane, next(other for other in others if other.startswith("lower")))

    def marks(self, *, told: bool) -> dict[str, bool]:
        """Which marks it has, by their names; ``told`` where its mistakes are hatched."""
        return {
            "roi": self.roi is not None,
            "segmentation": "segmentation" in self.segmentations,
            "reference": "reference" in self.segmentations,
            "missed": told and "missed" in self.mistakes,
            "too much": told and "too much" in self.mistakes,
        }

    def handles(self, drawn: Mapping[str, bool]) -> list[Artist]:
        """For a legend of these marks."""
        return [handle(name, self.color if name == "roi" else None) for name, there in drawn.items() if there]


def scene_and_planes(
    image: Tensor,
    roi: np.ndarray | None,
    about: About,
    *,
    example: int,
    channel: int | None = None,
    reached: np.ndarray | None = None,
    zoom: bool | str = False,
    position: Sequence[int] | None = None,
) -> tuple[Scene, list[Plane]]:
    """Of an image ``(N, C, *spatial)``: its only plane, or three planes of a volume through the middle of the region of interest.

    Args:
        image: of which one example is shown.
        roi: boolean ``(*spatial)``.
        about: what the caller says of it.
        example: which one.
        channel: which channel is drawn in gray.
        reached: what can reach the region of interest, ``(*spatial)``.
        zoom: whether to enlarge that.
        position: of the planes; by default in the region of interest.
    """
    shape = tuple(image.shape[2:])
    roi = roi if roi is not None and roi.any() else None
    geometry = geometry_of(image, about.spacing, about.affine, example=example)
    given = {"segmentation": about.segmentation, "reference": about.reference}
    found = {
        name: class_mask(name, one, spatial=shape, n_examples=len(image), example=example, output=None)
        for name, one in given.items()
    }
    segmentations = {name: mask for name, mask in found.items() if mask is not None}
    picture = grayscale(plain_tensor(image[example]).cpu().float(), channel)
    seen = reached if reached is None or roi is None else reached | roi
    layout = layout_of(shape, geometry, seen, zoom=zoom)
    if position is None:
        position = tuple(length // 2 for length in shape) if roi is None else center(roi)
    return Scene(picture, roi, segmentations), layout.through(position)


def panel_sizes(planes: Sequence[Plane], edge: float | None = None) -> list[tuple[float, float]]:
    """Height and width of each picture in inches, all to one scale; ``edge`` is about the longest."""
    height, width = (max(plane.size[i] for plane in planes) for i in (0, 1))
    edge = edge or (3.4 if len(planes) == 1 else 2.7)
    scale = min(edge / width, 1.35 * edge / height)
    return [(plane.size[0] * scale, plane.size[1] * scale) for plane in planes]


def lay_over(axes: Axes, values: np.ndarray, plane: Plane, *, largest: float) -> AxesImage:
    """Signed values ``(*spatial)`` over the picture, the more opaque the larger."""
    shown = plane.cut(values)
    opacity = 0.95 * np.clip(np.abs(shown) / largest, 0, 1) ** OPACITY
    norm = TwoSlopeNorm(0, -largest, largest)
    drawn = axes.imshow(shown, cmap=EFFECTS, norm=norm, alpha=opacity, interpolation="nearest", aspect=plane.aspect)
    show_part(axes, plane)
    return drawn
