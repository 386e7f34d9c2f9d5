"""Image files as other libraries write them."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

nibabel = pytest.importorskip("nibabel")

# Turned by 20 degrees about the third axis, voxels of 1 x 1.5 x 3 mm, one axis flipped.
TURN = np.array([[np.cos(0.35), -np.sin(0.35), 0], [np.sin(0.35), np.cos(0.35), 0], [0, 0, 1]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN @ np.diag([1, -1.5, 3])
OBLIQUE[:3, 3] = [-7, 5, 9]
VOLUME = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)


def write_nifti(path, values, affine=OBLIQUE):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def scan(*shape, affine=OBLIQUE):
    return MetaTensor(torch.rand(*shape), affine=torch.tensor(affine))


ROW, COLUMN = np.array([0.8, 0.6, 0.0]), np.array([-0.6, 0.8, 0.0])


ORIGIN, SPACING, GAP = np.array([-12.0, 4.0, 30.0]), (1.5, 0.5), 2.5


def write_dicom(pydicom, path, pixels, number=1, position=ORIGIN, series="1.2.3", **more):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    found.SeriesInstanceUID, found.InstanceNumber = series, number
    found.ImagePositionPatient, found.ImageOrientationPatient = [*map(float, position)], [*ROW, *COLUMN]
    found.PixelSpacing = list(SPACING)
    found.Rows, found.Columns = pixels.shape[:2]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated = found.BitsStored = 16
    found.HighBit, found.PixelRepresentation = 15, 0
    found.PixelData = pixels.astype("<u2").tobytes()
    for name, value in more.items():
        setattr(found, name, value)
    found.save_as(path, enforce_file_format=True)
    return path


def write_series(pydicom, folder, volume, numbers=None, **more):
    """``volume`` (slices, rows, columns); names are in another order than the slices."""
    folder.mkdir(exist_ok=True)
    normal = np.cross(ROW, COLUMN)
    for k in range(len(volume)) if numbers is None else numbers:
        name = f"{more.get('series', '')}{(7 * k) % 11:02d}.dcm"
        write_dicom(pydicom, folder / name, volume[k], k + 1, ORIGIN + k * GAP * normal, **more)
    return folder
