"""A trained nnU-Net: images prepared as it was trained, its sliding window as a model, and maps carried back to the scan."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from captum_causalseg._checks import FOLDER, PATH, array_of, checked, sequence, shown_path, tensor_of
from captum_causalseg.bundle.weights import reason
from captum_causalseg.donors import PatchBank
from captum_causalseg.images import save_map
from captum_causalseg.nnunet.files import Case, cases_in, files_of
from captum_causalseg.nnunet.geometry import CaseGeometry, spacing_on
from captum_causalseg.target import SegmentationTarget, WindowedModel

if TYPE_CHECKING:
    from monai.data import MetaTensor

__all__ = ["NnunetModel"]

File = str | os.PathLike[str]
# Where a prepared image keeps nnU-Net's record of it.
_RECORD = "nnunet_case"


@dataclass(frozen=True, eq=False)
class NnunetModel:
    """An nnU-Net that has been loaded; :func:`load_nnunet` makes it.

    Images are explained on the *prepared* grid, on which the network runs: axes turned, air cut away, resampled. :meth:`prepare` brings
    an image there, :meth:`region` and :meth:`reference` what is drawn on its scan, :meth:`to_scan` and :meth:`save_map` maps back;
    :meth:`predict` segments the scan.

    Attributes:
        path: the model's folder.
        device: where the model is and prepared images go.
        model: the network in nnU-Net's sliding window, the mean over its folds.
        labels: by name, which channel of the output segments it; of region-based training, the regions.
        has_regions: whether regions may overlap, and are segmented by a sigmoid each.
        channels: names of the input's channels.
        plans, configuration, dataset: nnU-Net's own.

    Example:
        >>> from captum_causalseg import load_nnunet
        >>> def explain(folder, scan, label):  # where nnunetv2 is installed
        ...     from captum_causalseg import AverageTreatmentEffect
        ...
        ...     net = load_nnunet(folder)
        ...     image = net.prepare(scan)
        ...     target = net.target(net.region(label, image), net.reference(label, image))
        ...     attr = AverageTreatmentEffect(target).attribute(image, target=net.labels["tumor"], block_size=16)
        ...     net.save_map("effects.nii.gz", attr, image)
        >>> callable(explain)
        True
    """

    path: Path
    device: torch.device
    model: WindowedModel = field(repr=False)
    labels: dict[str, int]
    has_regions: bool
    channels: tuple[str, ...]
    plans: Any = field(repr=False)
    configuration: Any = field(repr=False)
    dataset: dict[str, Any] = field(repr=False)

    @checked(image_file=PATH | sequence(PATH, 1, expected="a sequence of them"))
    def prepare(self, image_file: File | Sequence[File]) -> "MetaTensor":
        """The model's input from the files of one case, by nnU-Net's own pre-processing.

        Args:
            image_file: one file per channel, in the order of :attr:`channels`; or the first one (``case_0000.nii.gz``), beside which
                the others are looked for (``case_0001.nii.gz``); or one file that holds all channels.

        Returns:
            ``MetaTensor`` ``(1, C, *spatial)`` on the model's device, with the affine of the prepared grid and nnU-Net's record of
            the case. Pictures have two spatial axes, scans three.

        Raises:
            FileNotFoundError: a file is missing; which one is said before anything is read.
            ValueError: there are more or fewer channels than the network takes, or nnU-Net cannot read or prepare them.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def prepared(folder, scan):  # where nnunetv2 is installed
            ...     return load_nnunet(folder).prepare(scan)
            >>> callable(prepared)
            True
        """
        return self._prepared(files_of(image_file, self.channels, self._ending))

    def target(
        self,
        roi: "Tensor | np.ndarray | Any | None" = None,
        reference: "Tensor | np.ndarray | Any | None" = None,
        **options: Any,
    ) -> SegmentationTarget:
        """The model as a target for every method, with softmax, or sigmoids of regions.

        Args:
            roi: where to score, on the grid of the prepared image (see :meth:`region`).
            reference: what to compare with, on the same grid (see :meth:`reference`).
            **options: the other arguments of :class:`~captum_causalseg.SegmentationTarget`.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def score(folder, scan, label):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     image = net.prepare(scan)
            ...     return net.target(net.region(label, image), net.reference(label, image), metric="soft_dice")(image)
            >>> callable(score)
            True
        """
        activation = "sigmoid" if self.has_regions else "softmax"
        return SegmentationTarget(self.model, roi=roi, reference=reference, **{"activation": activation, **options})

    def donors(self, cases: File | Iterable[Any], leave_out: "MetaTensor | None" = None, **options: Any) -> PatchBank:
        """A bank of other cases, prepared alike when they are needed; their sizes may differ.

        Args:
            cases: a folder such as ``imagesTr``; or cases, each as :meth:`prepare` takes it.
            leave_out: the explained image, as :meth:`prepare` returned it; its case is no donor.
            **options: of :meth:`PatchBank.from_dataset`, such as ``placement``, ``n_images``, ``cache_images``, ``match``.

        Raises:
            ValueError: there is no other case.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def bank(folder, scan, others):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     return net.donors(others, leave_out=net.prepare(scan), match="mean")
            >>> callable(bank)
            True
        """
        if isinstance(cases, (str, os.PathLike)):
            FOLDER("cases", cases)
            found = cases_in(Path(cases).expanduser(), self.channels, self._ending)
        else:
            found = [files_of(case, self.channels, self._ending) for case in cases]
        own = None if leave_out is None else self._record(leave_out, "leave_out")[0]
        kept = [case for case in found if own is None or not case.same(own)]
        if not kept:
            raise ValueError(
                f"cases: no case but the explained one in {shown_path(cases) if isinstance(cases, (str, os.PathLike)) else found}"
            )
        return PatchBank.from_dataset(_Prepared(self, kept), None, **options)

    @checked(mask=PATH | array_of("real", "(*spatial) of the scan", (2, 5)))
    def region(self, mask: "File | Tensor | np.ndarray", image: "MetaTensor") -> Tensor:
        """A region of interest that is drawn on the scan, on the prepared grid: boolean ``(*spatial)``.

        Args:
            mask: a label file, where all that is not 0 is the region; or its values, with the axes of the scan.
            image: as :meth:`prepare` returned it.

        Raises:
            ValueError: it has another shape than the scan, or nothing of it is left.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def region(folder, scan, drawn):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     return net.region(drawn, net.prepare(scan))
            >>> callable(region)
            True
        """
        found = self._to_prepared(mask, image, "mask") > 0
        if not bool(found.any()):
            raise ValueError(
                "mask: nothing of it is left on the prepared grid: it is empty, or lies where nnU-Net cuts air away"
            )
        return found

    @checked(label_map=PATH | array_of("labels", "(*spatial) of the scan", (2, 5)))
    def reference(self, label_map: "File | Tensor | np.ndarray", image: "MetaTensor") -> Tensor:
        """Labels of the scan on the prepared grid: ``(1, *spatial)``, int64; with regions a mask of each, ``(1, R, *spatial)``.

        Args:
            label_map: a label file, or its values, with the axes of the scan.
            image: as :meth:`prepare` returned it.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def reference(folder, scan, label):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     return net.reference(label, net.prepare(scan))
            >>> callable(reference)
            True
        """
        found = self._to_prepared(label_map, image, "label_map")
        return self.masks(found)[None] if self.has_regions else found[None]

    @checked(label_map=tensor_of("integer"))
    def masks(self, label_map: Tensor) -> Tensor:
        """The regions in a label map ``(*spatial)``: boolean ``(R, *spatial)``, in the order of :attr:`labels`.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def masks(folder, label_map):  # where nnunetv2 is installed
            ...     return load_nnunet(folder).masks(label_map)
            >>> callable(masks)
            True
        """
        regions = self.plans.get_label_manager(self.dataset).foreground_regions
        return torch.stack([torch.isin(label_map, torch.as_tensor(region)) for region in regions])

    def files_of(self, image: "MetaTensor") -> tuple[Path, ...]:
        """The files of which :meth:`prepare` made an image.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def files(folder, scan):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     return net.files_of(net.prepare(scan))
            >>> callable(files)
            True
        """
        return self._record(image, "image")[0].files

    @checked(folder=FOLDER)
    def cases_in(self, folder: File) -> list[tuple[Path, ...]]:
        """The cases of a folder such as ``imagesTr``, each by its files, as :meth:`prepare` takes them.

        Raises:
            FileNotFoundError: a channel of a case is missing.
            ValueError: there is no case.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def cases(folder):  # where nnunetv2 is installed
            ...     return load_nnunet(folder).cases_in("imagesTr")
            >>> callable(cases)
            True
        """
        return [case.files for case in cases_in(Path(folder).expanduser(), self.channels, self._ending)]

    def predict(self, image: "MetaTensor") -> "MetaTensor":
        """The segmentation on the scan's own voxels, as ``nnUNetv2_predict`` writes it: logits resampled by nnU-Net, then the largest.

        Windows are added up in single precision, as everywhere in this library. ``nnUNetv2_predict`` adds them up in half precision, in which the weights
        of a window's corners are rounded: its labels may differ in the outermost voxels of the image, which only corners of windows hold.

        Args:
            image: as :meth:`prepare` returned it.

        Returns:
            ``MetaTensor`` ``(1, 1, *scan spatial)`` of the labels in ``dataset.json``, int64, with the scan's affine; background where nnU-Net cut
            air away.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def labels(folder, scan):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     return net.predict(net.prepare(scan))
            >>> callable(labels)
            True
        """
        from monai.data import MetaTensor
        from nnunetv2.inference import export_prediction

        _, geometry = self._record(image, "image")
        with torch.no_grad():
            logits = self.model(image.as_subclass(Tensor).to(self.device))[0].cpu()
        found = export_prediction.convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.reshape(len(logits), *geometry.shape),
            self.plans,
            self.configuration,
            self.plans.get_label_manager(self.dataset),
            geometry.properties,
            num_threads_torch=torch.get_num_threads(),
        )
        back = np.ascontiguousarray(geometry.scan_of(np.asarray(found))).astype(np.int64)
        return MetaTensor(torch.from_numpy(back)[None, None], affine=torch.from_numpy(geometry.scan_affine))

    @checked(values=tensor_of("real", "(N, C, *spatial) or (*spatial) on the prepared grid", (2, 5)))
    def to_scan(self, values: Tensor, image: "MetaTensor") -> "MetaTensor":
        """A map on the scan's own voxels, each that of the nearest prepared one; 0 where nnU-Net cut air away, which is never shown to the network.

        Nothing is interpolated, so that units keep their effects; a segmentation is carried there by :meth:`predict`.

        Args:
            values: on the grid of the prepared image, ``(*spatial)``, ``(C, *spatial)`` or ``(1, C, *spatial)``.
            image: as :meth:`prepare` returned it.

        Returns:
            ``MetaTensor`` ``(1, C, *scan spatial)`` with the scan's affine.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def effects(folder, scan, attr):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     return net.to_scan(attr, net.prepare(scan))
            >>> callable(effects)
            True
        """
        from monai.data import MetaTensor
        from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

        _, geometry = self._record(image, "image")
        spatial = tuple(image.shape[2:])
        given = values.detach().as_subclass(Tensor).cpu()
        if given.shape[max(given.ndim - len(spatial), 0) :] != spatial or given.ndim - len(spatial) > 2:
            raise ValueError(f"values: expected a map on the grid of the image, {spatial}, got {tuple(values.shape)}")
        maps = given.reshape(-1, *geometry.shape).numpy()
        own, current = geometry.spacing, spacing_on(3, self.configuration.spacing, geometry.spacing)
        # Nearest voxels: effects of units must not be mixed. Doubles hold every float and every unit's id.
        resampled = resample_data_or_seg_to_shape(
            maps.astype(np.float64), geometry.cropped_shape, current, own, is_seg=False, order=0, order_z=0
        )
        back = np.stack([geometry.scan_of(geometry.to_array(one)) for one in resampled]).astype(maps.dtype)
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(back))[None], affine=torch.from_numpy(geometry.scan_affine))

    def save_map(self, path: File, values: Tensor, image: "MetaTensor") -> None:
        """Write a map as NIfTI on the scan's own voxels, so that viewers open it over the scan.

        Args:
            path: the file to write, ``.nii`` or ``.nii.gz``.
            values, image: as in :meth:`to_scan`.

        Example:
            >>> from captum_causalseg import load_nnunet
            >>> def saved(folder, scan, attr):  # where nnunetv2 is installed
            ...     net = load_nnunet(folder)
            ...     net.save_map("effects.nii.gz", attr, net.prepare(scan))
            >>> callable(saved)
            True
        """
        carried = self.to_scan(values, image)
        save_map(Path(path), carried.as_tensor(), like=carried)

    @property
    def _ending(self) -> str:
        return str(self.dataset["file_ending"])

    def _prepared(self, case: Case) -> "MetaTensor":
        from monai.data import MetaTensor

        preprocessor = self.configuration.preprocessor_class(verbose=False)
        files = [str(file) for file in case.files]
        try:
            data, _, properties = preprocessor.run_case(files, None, self.plans, self.configuration, self.dataset)
        except Exception as error:
            raise ValueError(f"image_file: nnU-Net cannot prepare {', '.join(files)}: {reason(error)}") from error
        if len(data) != len(self.channels):
            raise ValueError(
                f"image_file: expected {len(self.channels)} channels ({', '.join(self.channels)}), got {len(data)} in "
                f"{', '.join(files)}"
            )
        picture = "sitk_stuff" not in properties and "nibabel_stuff" not in properties and properties["spacing"][0] == 999
        geometry = CaseGeometry(
            properties, order=tuple(self.plans.transpose_forward), shape=tuple(data.shape[1:]), picture=picture
        )
        values = torch.as_tensor(np.ascontiguousarray(data[:, 0] if picture else data), dtype=torch.float32)
        image = MetaTensor(values[None].to(self.device), affine=torch.from_numpy(geometry.affine))
        image.meta[_RECORD] = (case, geometry)
        return image

    def _record(self, image: Any, name: str) -> tuple[Case, CaseGeometry]:
        record: tuple[Case, CaseGeometry] | None = getattr(image, "meta", {}).get(_RECORD)
        if record is None:
            raise TypeError(
                f"{name}: expected the image as prepare returned it, with nnU-Net's record, got {type(image).__name__}"
            )
        return record

    def _to_prepared(self, given: Any, image: Any, name: str) -> Tensor:
        """Whole numbers on the scan, on the prepared grid, as nnU-Net carries its labels there; int64 ``(*spatial)``."""
        _, geometry = self._record(image, name="image")
        if isinstance(given, (str, os.PathLike)):
            file = Path(given).expanduser()
            if not file.is_file():
                raise FileNotFoundError(f"{name}: there is no file {file}")
            array = self.plans.image_reader_writer_class().read_seg(str(file))[0][0]
            expected = tuple(np.array(geometry.properties["shape_before_cropping"])[np.argsort(geometry.order)])
            if array.shape != expected:
                raise ValueError(
                    f"{name}: expected the scan's shape {expected} (as nnU-Net reads it), got {array.shape} in {file}"
                )
        else:
            values = given.detach().as_subclass(Tensor).cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
            shape = geometry.scan_shape
            if values.shape[values.ndim - len(shape) :] != shape or values.size != np.prod(shape):
                raise ValueError(f"{name}: expected one map of the scan's shape {shape}, got {tuple(values.shape)}")
            array = geometry.array_of(values.reshape(shape))
        # Bytes overflow on the way, where nnU-Net marks what lies outside with -1.
        turned = geometry.from_array(array.astype(np.int16))
        own, target = geometry.spacing, spacing_on(3, self.configuration.spacing, geometry.spacing)
        found = self.configuration.resampling_fn_seg(turned[None], geometry.shape, own, target)[0]
        return torch.as_tensor(np.asarray(found).astype(np.int64)).reshape(image.shape[2:]).clamp_min(0)


class _Prepared:
    """Cases as donors, prepared when they are asked for."""

    def __init__(self, model: NnunetModel, cases: list[Case]) -> None:
        self.model, self.cases = model, cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.model._prepared(self.cases[index])[0].as_subclass(Tensor)
        return image
