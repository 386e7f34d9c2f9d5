"""Effects as DICOM objects of the series that was explained: a parametric map, and a segmentation of what supports and what harms."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from captum_causalseg._version import __version__
from captum_causalseg.cli.case import CommandCase
from captum_causalseg.cli.viewer_files import MAPS, finite
from captum_causalseg.images.dicom import is_dicom
from captum_causalseg.statistics import TreatmentEffectStatistics

__all__ = ["dicom_files_of", "has_highdicom", "in_frames", "write_dicom_objects"]

# Codes of our own: no vocabulary has words for what an effect does.
_SCHEME = "99CAUSALSEG"
# How far from the middle of a voxel, in voxels, that of its pixel may lie.
_APART = 0.01


def has_highdicom() -> bool:
    """Whether the package that writes them is installed."""
    return importlib.util.find_spec("highdicom") is not None


def dicom_files_of(image: Sequence[Path]) -> list[Path]:
    """The files of a DICOM series; none of another image."""
    if len(image) != 1:
        return []
    files = sorted(entry for entry in image[0].iterdir() if entry.is_file()) if image[0].is_dir() else [image[0]]
    return [file for file in files if is_dicom(file)]


def write_dicom_objects(
    case: CommandCase, statistics: TreatmentEffectStatistics, files: Sequence[Path], *, words: tuple[str, str], folder: Path
) -> None:
    """``effects.dcm``, a parametric map of effects and standard errors, and ``segments.dcm``, the region of interest and what significantly supports
    and harms it.

    They name the patient and the study of the series, as DICOM objects must.

    Args:
        case: of the series.
        statistics: of the case.
        files: of the series.
        words: what positive and negative effects do.
        folder: to write into.

    Raises:
        ValueError: the series lies on another grid than the image.
    """
    import highdicom
    import pydicom
    from pydicom.sr.codedict import codes

    series = sorted((pydicom.dcmread(file) for file in files), key=lambda one: int(one.InstanceNumber))
    one = statistics.of_output(case.output)
    maps = {
        field: in_frames(finite(case.units.own_map(one, None, case.grids, field=field), field), case.grids.own, series)
        for field in MAPS
    }
    made: dict[str, Any] = {
        "source_images": series,
        "instance_number": 1,
        "manufacturer": "captum_causalseg",
        "manufacturer_model_name": "captum_causalseg",
        "software_versions": __version__,
        "device_serial_number": "none",
    }
    values = np.stack([maps["effect"], maps["standard_error"]], axis=-1).astype(np.float32)
    meanings = {"effect": "Treatment effect on the score", "std_error": "Its standard error"}
    mappings = [
        [
            highdicom.pm.RealWorldValueMapping(
                lut_label=name,
                lut_explanation=meaning,
                unit=codes.UCUM.NoUnits,
                value_range=(float(values[..., number].min()), float(values[..., number].max())),
                slope=1.0,
                intercept=0.0,
            )
        ]
        for number, (name, meaning) in enumerate(meanings.items())
    ]
    largest = float(np.abs(values[..., 0]).max()) or 1.0
    highdicom.pm.ParametricMap(
        pixel_array=values,
        series_instance_uid=highdicom.UID(),
        series_number=9001,
        sop_instance_uid=highdicom.UID(),
        contains_recognizable_visual_features=False,
        real_world_value_mappings=mappings,
        voi_lut_transformations=[highdicom.VOILUTTransformation(window_center=0.0, window_width=2 * largest)],
        content_label="EFFECTS",
        **made,
    ).save_as(folder / "effects.dcm")
    significant = maps["significant"] > 0
    parts = {
        "region of interest": in_frames(case.grids.to_own(case.roi), case.grids.own, series) > 0,
        words[0]: significant & (maps["effect"] > 0),
        words[1]: significant & (maps["effect"] < 0),
    }
    present = {name: mask for name, mask in parts.items() if mask.any()}
    by = highdicom.AlgorithmIdentificationSequence(
        name="captum_causalseg", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    described = [
        highdicom.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label=name,
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=highdicom.sr.CodedConcept(name.replace(" ", "_")[:16], _SCHEME, name),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=by,
        )
        for number, name in enumerate(present)
    ]
    highdicom.seg.Segmentation(
        pixel_array=np.stack([*present.values()], axis=-1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=9002,
        sop_instance_uid=highdicom.UID(),
        content_label="EFFECTS",
        **made,
    ).save_as(folder / "segments.dcm")


def in_frames(values: Tensor, own: Any, series: Sequence[Any]) -> np.ndarray:
    """A map on an image's grid ``(*spatial)`` as frames ``(slices, rows, columns)`` of the series, each pixel taking the voxel that lies where it does.

    Raises:
        ValueError: pixels do not lie on the image's voxels.
    """
    world = np.linalg.inv(np.asarray(own.affine, dtype=float))
    frames = []
    for one in series:
        row, column = np.split(np.array(one.ImageOrientationPatient, dtype=float), 2)
        down, along = (float(length) for length in one.PixelSpacing)
        rows, columns = np.indices((one.Rows, one.Columns))
        lps = (
            np.array(one.ImagePositionPatient, dtype=float)[:, None, None]
            + row[:, None, None] * along * columns
            + column[:, None, None] * down * rows
        )
        ras = lps * np.array([-1.0, -1.0, 1.0])[:, None, None]
        found = np.tensordot(world[:3, :3], ras, axes=1) + world[:3, 3:, None]
        index = np.round(found).astype(int)
        shape = np.array(values.shape)[:, None, None]
        if np.abs(found - index).max() > _APART or (index < 0).any() or (index >= shape).any():
            raise ValueError("the pixels of the series do not lie on the image's voxels")
        frames.append(values.numpy()[tuple(index)])
    return np.stack(frames)
