"""What a unit is replaced by: natural donors cut from images, constants, blur.

A :class:`DonorSource` is bound to the images that are explained and then answers two questions about a unit, given by
the spatial box around it: how many different donors are there (``population``), and what is donor number ``k``
(``locate``, ``read``). Donors are read when they are drawn, never all at once.
"""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import (
    FOLDER,
    FUNCTION,
    NONE,
    SEED,
    Check,
    array_of,
    checked,
    integer,
    number,
    one_of,
    renamed,
    sequence,
    shown,
    tensor_of,
)
from captum_causalseg._donor_images import (
    BankImages,
    DatasetImages,
    FolderImages,
    SizedImages,
    check_images,
    fingerprint,
    random_parts,
    same_image,
)
from captum_causalseg._donor_means import BankSums
from captum_causalseg._donor_places import BoundBank, BoundDonors, BoundSameImage, BoundWhole

__all__ = ["Blur", "BoundDonors", "Constant", "DonorSource", "PatchBank", "SameImage", "SelfDonor", "as_donor_source"]


_IMAGES = tensor_of("real", "(N, C, *spatial)", (2, math.inf), may_be_empty=False)
_BIND = {"images": _IMAGES, "forbidden": NONE | tensor_of("boolean", "(N or 1, *spatial)", (1, math.inf))}
_BANK = {
    "placement": one_of("anywhere", "aligned"),
    "n_images": NONE | integer(1),
    "seed": SEED,
    "cache_images": integer(1),
}
_PATTERN = Check(
    "a pattern of file names",
    lambda value: isinstance(value, str),
    ("a pattern of names inside the folder", lambda value: value != "" and not Path(value).is_absolute()),
)


class DonorSource(ABC):
    """Where donors come from. Subclass it, with a :class:`BoundDonors`, to add a source of one's own.

    Attributes:
        of_the_image: whether donors are made from the explained image itself (or activation), not brought from elsewhere.
    """

    of_the_image: bool = False

    @abstractmethod
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """Check the source against the images to be explained and tie it to them.

        Args:
            images: ``(N, C, *spatial)``.
            forbidden: boolean ``(N or 1, *spatial)``: pixels of the explained image (its RoI) that no donor may contain.

        Raises:
            ValueError: donors with other channels than the images, smaller than a unit, or not finite.
        """


class Constant(DonorSource):
    """The same value everywhere: a number, or one per channel.

    Args:
        value: a finite number or a sequence of ``C`` numbers.

    Example:
        >>> from captum_causalseg.donors import Constant
        >>> Constant(0.0)
        Constant(0.0)
    """

    @checked(
        value=number()
        | sequence(number(), 1, expected="one per channel")
        | array_of("real", "(C,)", (0, 1), finite=True, may_be_empty=False)
    )
    def __init__(self, value: float | Sequence[float]) -> None:
        self.value = value
        self._values = torch.as_tensor(value, dtype=torch.float64, device="cpu")

    def __repr__(self) -> str:
        return f"Constant({self.value})"

    @checked(_BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if self._values.ndim == 1 and len(self._values) != images.shape[1]:
            raise ValueError(f"baselines: {len(self._values)} values given for images of {images.shape[1]} channels")
        return BoundWhole(self._values.reshape(1, -1, *(1,) * (images.ndim - 2)))


class Blur(DonorSource):
    """The image itself, blurred: removes detail, keeps brightness.

    Args:
        sigma: standard deviation of the Gaussian, in pixels.
    """

    of_the_image = True

    @checked(sigma=number(above=0))
    def __init__(self, sigma: float = 4.0) -> None:
        self.sigma = sigma

    def __repr__(self) -> str:
        return f"Blur(sigma={self.sigma})"

    @checked(_BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        from monai.networks.layers import GaussianFilter

        n_spatial = images.ndim - 2
        if n_spatial < 1:
            raise ValueError("baselines: Blur needs images with spatial axes")
        with torch.device(images.device), torch.no_grad():
            smooth = GaussianFilter(n_spatial, self.sigma).to(images)
            # A blurred field of ones makes up for the zeros that the filter sees beyond the image's edge.
            blurred = smooth(images.detach()) / smooth(torch.ones_like(images[:1, :1]))
        return BoundWhole(blurred)


class PatchBank(DonorSource):
    """Donors cut from images of the data set: the natural choice, and the paper's.

    Args:
        images: ``(D, C, *spatial)``, or a sequence of ``D`` images ``(C, *spatial)``, which may differ in size and may be
            read lazily (anything with ``len`` and indexing). Normalized as the model expects its input. Images as large as the
            units are the paper's patches.
        placement: ``"anywhere"``: a unit's donor is cut at a random place of a random image, every place of every image being
            equally likely. ``"aligned"``: at the unit's own place, for registered images of the input's size.
        cache_images: how many lazily read images are held in memory.

    Irregular units copy the pixels under their mask. If one of the images is the explained image itself, no donor is cut
    that touches its RoI. On first use the images are read through once, to learn their sizes and to check them.

    Raises:
        ValueError: images of unlike channels, or with NaN or infinite values.

    Example:
        >>> import torch
        >>> from captum_causalseg import PatchBank
        >>> len(PatchBank(torch.rand(1000, 3, 8, 8)))
        1000
    """

    @checked(_BANK)
    def __init__(
        self,
        images: Tensor | np.ndarray | Sequence[Any] | SizedImages,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        cache_images: int = 64,
    ) -> None:
        check_images("images", images)
        self.placement = placement
        self._images = images if isinstance(images, BankImages) else BankImages(images, cache_images)
        self._sums = BankSums(self._images)
        self.fingerprints: list[tuple[float, ...]] | None = None

    @classmethod
    @checked(_BANK)
    def from_dataset(
        cls,
        dataset: Any,
        key: Any = None,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        n_images: int | None = None,
        seed: int = 0,
        cache_images: int = 64,
    ) -> "PatchBank":
        """A bank over a torch or MONAI dataset, read lazily. The dataset must return the same image each time.

        Args:
            dataset: anything with ``len`` and indexing.
            key: where an item holds its image: a dictionary key or an index; ``None`` where the item is the image (or a tuple
                that begins with it).
            placement: as in the constructor.
            n_images: take a random subset of this many images.
            seed: seed of that subset.
            cache_images: how many images are held in memory.
        """
        check_images("dataset", dataset, are_items=True)
        indices = np.arange(len(dataset))
        if n_images is not None:
            if n_images > len(dataset):
                raise ValueError(f"n_images: expected 1..{len(dataset)}, got {n_images}")
            indices = np.sort(np.random.default_rng(seed).choice(indices, n_images, replace=False))
        return cls(DatasetImages(dataset, key, indices), placement, cache_images=cache_images)

    @classmethod
    @checked(_BANK, folder=FOLDER, pattern=_PATTERN, transform=NONE | FUNCTION)
    def from_folder(
        cls,
        folder: str | Path,
        pattern: str = "*",
        transform: Callable[[Tensor], Tensor] | None = None,
        placement: Literal["anywhere", "aligned"] = "anywhere",
        *,
        n_images: int | None = None,
        seed: int = 0,
        cache_images: int = 64,
    ) -> "PatchBank":
        """A bank over the image files of a folder (whatever :func:`captum_causalseg.images.load_image` reads), read lazily, in order of name.

        Args:
            folder: where the files are.
            pattern: which of them, e.g. ``"*.nii.gz"``.
            transform: from the file's image ``(C, *spatial)``, float32, to what the model expects (normalization, spacing).
            placement, n_images, seed, cache_images: as in :meth:`from_dataset`.
        """
        files = sorted(path for path in Path(folder).glob(pattern) if path.is_file())
        if not files:
            raise ValueError(f"folder: no file matches {pattern!r} in {str(folder)!r}")
        dataset = FolderImages(files, transform)
        return cls.from_dataset(dataset, None, placement, n_images=n_images, seed=seed, cache_images=cache_images)

    @checked(fractions=sequence(number()), parts=NONE | integer(1), seed=SEED)
    def split(self, *fractions: float, parts: int | None = None, seed: int = 0) -> "tuple[PatchBank, ...]":
        """Banks over disjoint random subsets of the images, to hold donors out or to compare two halves.

        Images are never divided: places of one image lie in one part. Nothing is copied; placement and ``cache_images`` are this
        bank's.

        Args:
            fractions: what share of the images each part gets, positive and at most 1 in sum; what is left over is in no part.
            parts: instead of fractions, into how many equal parts (to one image) to split; 2 if neither is given.
            seed: of the random choice.

        Returns:
            As many banks as fractions or parts.

        Raises:
            ValueError: fractions that are not positive or are more than 1 in sum, both ``fractions`` and ``parts``, or too few
                images for every part to have one.

        Example:
            >>> import torch
            >>> from captum_causalseg import PatchBank
            >>> estimation, held_out = PatchBank(torch.rand(10, 1, 8, 8)).split(0.8, 0.2)
            >>> len(estimation), len(held_out)
            (8, 2)
        """
        if fractions and parts is not None:
            raise ValueError(f"parts: expected either fractions or parts, got fractions {fractions} and parts={parts!r}")
        if fractions:
            shares = np.array(fractions, dtype=np.float64)
            if not (shares > 0).all() or shares.sum() > 1 + 1e-9:
                raise ValueError(f"fractions: expected positive numbers of sum 1 at most, got {fractions}")
        else:
            parts = 2 if parts is None else min(parts, len(self) + 1)  # of more, some are empty just so
            shares = np.full(parts, 1 / parts)
        chosen = random_parts(len(self), shares.tolist(), seed)
        if not all(chosen):
            name, given = ("fractions", fractions) if fractions else ("parts", parts)
            raise ValueError(
                f"{name}: expected at least one image in every part, got {given} for a bank of {len(self)} image(s)"
            )
        return tuple(self._chosen(indices) for indices in chosen)

    def _chosen(self, indices: list[int]) -> "PatchBank":
        part = PatchBank(self._images.chosen(indices), self.placement)
        if self.fingerprints is not None:
            part.fingerprints = [self.fingerprints[index] for index in indices]
        return part

    def __len__(self) -> int:
        return len(self._images)

    def __repr__(self) -> str:
        return f"PatchBank({len(self)} images, placement={self.placement!r})"

    @checked(_BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        self._index()
        channels, n_spatial = images.shape[1], images.ndim - 2
        for index, shape in enumerate(self._images.shapes):
            if len(shape) != n_spatial + 1 or shape[0] != channels:
                raise ValueError(
                    f"baselines: donor image {index} has shape {shape}; expected (C, *spatial) with C={channels} and {n_spatial} "
                    f"spatial axes, as the input {tuple(images.shape)} has"
                )
            if self.placement == "aligned" and shape[1:] != tuple(images.shape[2:]):
                raise ValueError(
                    f"baselines: with aligned placement every donor image must have the input's spatial shape "
                    f"{tuple(images.shape[2:])}; image {index} has {shape[1:]}"
                )
        if not self._images[0].is_floating_point():
            raise ValueError(
                f"baselines: donors are {self._images[0].dtype}, the input {images.dtype}: normalize them as the model's input"
            )
        return BoundBank(self._images, self.placement == "aligned", self._own_images(images), forbidden, self._sums)

    def _index(self) -> None:
        """Read through the images once: shapes, finiteness, and what it takes to recognize the explained image."""
        if self.fingerprints is not None:
            return
        fingerprints = []
        for index in range(len(self._images)):
            image = self._images[index]
            if image.is_floating_point() and not bool(image.isfinite().all()):
                raise ValueError(f"baselines: donor image {index} holds NaN or infinite values")
            fingerprints.append(fingerprint(image))
        self.fingerprints = fingerprints

    def _own_images(self, images: Tensor) -> list[list[int]]:
        """Per example, which of the bank's images are that very image."""
        assert self.fingerprints is not None
        own = []
        for example in images:
            mark = fingerprint(example)
            candidates = [i for i, other in enumerate(self.fingerprints) if other == mark]
            own.append([i for i in candidates if same_image(self._images[i], example)])
        return own


class SameImage(DonorSource):
    """Donors cut from the other positions of the explained image itself, never from its RoI: needs no data.

    This is what ``baselines=None`` means.
    """

    of_the_image = True

    def __repr__(self) -> str:
        return "SameImage()"

    @checked(_BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        if images.ndim < 3:
            raise ValueError(
                f"baselines: inputs of shape {tuple(images.shape)} have no spatial axes, so no other positions to take donors "
                "from; give baselines (0 is Captum's default)"
            )
        return BoundSameImage(images.detach(), forbidden)


class SelfDonor(DonorSource):
    """Every unit's own values: replacing a unit by itself changes nothing, so its effect is 0. A placebo treatment.

    Example:
        >>> import torch
        >>> from captum_causalseg import AverageTreatmentEffect
        >>> from captum_causalseg.donors import SelfDonor
        >>> ate = AverageTreatmentEffect(lambda image: image.amax((1, 2, 3)))
        >>> float(ate.attribute(torch.rand(1, 1, 8, 8), baselines=SelfDonor(), block_size=4).abs().max())
        0.0
    """

    of_the_image = True

    def __repr__(self) -> str:
        return "SelfDonor()"

    @checked(_BIND)
    def bind(self, images: Tensor, forbidden: Tensor | None = None) -> BoundDonors:
        """See :meth:`DonorSource.bind`."""
        return BoundWhole(images.detach())


@checked(images=_IMAGES)
def as_donor_source(baselines: Any, images: Tensor) -> DonorSource:
    """The donor source that a ``baselines`` argument means for one input.

    Args:
        baselines: a :class:`DonorSource`; a number; a tensor ``(D, C, *spatial)``, a distribution of ``D`` donor images taken
            at the unit's own place (as in Captum's ``GradientShap``); or ``None``, the image's other positions.
        images: the input, ``(N, C, *spatial)``.
    """
    if baselines is None:
        return SameImage()
    if isinstance(baselines, DonorSource):
        return baselines
    if isinstance(baselines, Tensor):
        if baselines.is_complex() or baselines.dtype == torch.bool:
            raise TypeError(f"baselines: expected real numbers, got a tensor of {baselines.dtype}")
        if baselines.ndim == 0:
            return _constant(baselines)
        shape = tuple(baselines.shape)
        if len(shape) != images.ndim or any(d not in (1, s) for d, s in zip(shape[1:], images.shape[1:])):
            raise ValueError(
                f"baselines: expected a tensor (D, {', '.join(map(str, images.shape[1:]))}), a distribution along its first "
                f"axis, got {shape}; patches to be pasted anywhere are a PatchBank"
            )
        return PatchBank(baselines.expand(shape[0], *images.shape[1:]), placement="aligned")
    if isinstance(baselines, numbers.Real) and not isinstance(baselines, bool):
        return _constant(baselines)
    came = type(baselines).__name__
    if isinstance(baselines, (list, np.ndarray)):
        came = f"{shown(baselines)}; images are a PatchBank(images)"
    raise TypeError(f"baselines: expected a donor source (PatchBank, ...), a number, a tensor or None, got {came}")


def _constant(value: Any) -> Constant:
    with renamed(value="baselines"):
        return Constant(float(value))
