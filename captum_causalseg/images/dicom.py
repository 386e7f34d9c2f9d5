"""DICOM files as MONAI reads them, once it is certain that they make one picture or one volume."""

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["dicom_reader", "is_dicom"]

# Distances between neighboring slices may differ by this share of the usual one; where a slice is missing they differ by all of it.
_UNEVEN = 0.1


def is_dicom(path: Path) -> bool:
    """Whether the file carries DICOM's mark, whatever its name."""
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_reader(path: Path) -> Any:
    """MONAI's reader for a DICOM file, or for a folder that holds one series.

    Raises:
        ValueError: what is there is no single picture or volume: no DICOM files, several series, several frames in a file,
            slices that are not one even distance apart in the order of their numbers.
    """
    from monai.data import PydicomReader

    files = sorted(entry for entry in path.iterdir() if entry.is_file() and is_dicom(entry)) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"path: the folder {path} holds no DICOM files")
    slices = [_header(file) for file in files]
    for file, found in zip(files, slices):
        if int(found.get("NumberOfFrames") or 1) > 1 and "SegmentSequence" not in found:
            raise ValueError(f"path: {file} is a multi-frame DICOM file; convert it to NIfTI, or to one file per slice")
    series = Counter(str(found.get("SeriesInstanceUID", "none")) for found in slices)
    if len(series) > 1:
        counts = ", ".join(f"{uid}: {count} file(s)" for uid, count in sorted(series.items()))
        raise ValueError(
            f"path: the folder {path} holds {len(series)} DICOM series ({counts}); put one into a folder of its own"
        )
    if len(slices) > 1:
        _check_slices(path, slices)
    colors = int(slices[0].get("SamplesPerPixel") or 1) > 1
    # With a pattern, MONAI would take every file that matches for a slice; with None it asks pydicom.
    return PydicomReader(fname_regex=None, channel_dim=-1 if colors else None)


def _header(path: Path) -> Any:
    pydicom = importlib.import_module("pydicom")
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except Exception as error:
        raise ValueError(f"path: {path} cannot be read as DICOM: {error}") from error


def _check_slices(path: Path, slices: list[Any]) -> None:
    """Raise unless they are one even distance apart in the order of their numbers, which is the order they are read in."""
    needed = ("InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient")
    for name in needed:
        if any(found.get(name) is None for found in slices):
            raise ValueError(f"path: slices in the folder {path} say nothing of their {name}; they cannot be put in order")
    slices = sorted(slices, key=lambda found: int(found.InstanceNumber))
    rows = np.array([found.ImageOrientationPatient for found in slices], dtype=float)
    if not np.allclose(rows, rows[0], atol=1e-3):
        raise ValueError(f"path: slices in the folder {path} are not parallel")
    normal = np.cross(rows[0, :3], rows[0, 3:])
    steps = np.diff(np.array([found.ImagePositionPatient for found in slices], dtype=float) @ normal)
    usual = float(np.median(steps))
    if not bool((np.abs(steps - usual) <= _UNEVEN * abs(usual)).all()) or usual == 0:
        raise ValueError(
            f"path: slices in the folder {path} are {steps.min():g} to {steps.max():g} mm apart in the order of their numbers; "
            "expected one distance (is a slice missing, or there twice?)"
        )
