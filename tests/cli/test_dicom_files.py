"""DICOM objects of the series that was explained, read back."""

import nibabel
import numpy as np
import pytest
from command_line import status_of
from image_files import COLUMN, GAP, ORIGIN, ROW, SPACING, write_series

from captum_causalseg import TreatmentEffectStatistics, images
from captum_causalseg.cli.dicom_files import dicom_files_of, in_frames

pydicom = pytest.importorskip("pydicom")

# What a scanner writes of every picture.
STUDY = {
    "StudyInstanceUID": "1.2.8",
    "FrameOfReferenceUID": "1.2.9",
    "PatientID": "P7",
    "PatientName": "Doe^Jane",
    "PatientBirthDate": "",
    "PatientSex": "",
    "StudyDate": "",
    "StudyTime": "",
    "StudyID": "",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "Modality": "MR",
    "SliceThickness": 2.5,
}


def explained(folder, name, *more):
    volume = np.random.default_rng(0).integers(0, 255, (6, 16, 16))
    write_series(pydicom, folder / "series", volume, **STUDY)
    arguments = ["explain", "--model", f"{name}:three", "--image", "series", "--normalize", "range", "--class", "1"]
    arguments += ["--roi", "box:4,6,2+4,4,2", "--draws", "3", "--units", "4x4x2", "--metric", "soft_dice", "--out", "out"]
    return status_of([*arguments, *more])


def test_frames_are_those_of_the_series(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (6, 5, 4))
    write_series(pydicom, tmp_path / "series", volume)
    files = dicom_files_of([tmp_path / "series"])
    image = images.load_image(tmp_path / "series")
    series = sorted((pydicom.dcmread(file) for file in files), key=lambda one: one.InstanceNumber)
    np.testing.assert_array_equal(in_frames(image.as_tensor()[0, 0], image, series), volume)
    np.testing.assert_array_equal(in_frames(image.as_tensor()[0, 0], image, series[::-1]), volume[::-1])
    series[0].ImagePositionPatient = [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="the pixels of the series do not lie on the image's voxels"):
        in_frames(image.as_tensor()[0, 0], image, series)


def test_a_parametric_map_and_a_segmentation_over_the_series(quick, capsys):
    highdicom = pytest.importorskip("highdicom")
    folder, name = quick
    assert explained(folder, name) == 0
    assert "effects.dcm" in capsys.readouterr().out
    stats = TreatmentEffectStatistics.load("out/statistics.npz").of_output(1)
    # As numpy has it: columns, rows, slices.
    effect, error = (
        stats.to_map(field)[0, 0].nan_to_num(unknown).numpy().T
        for field, unknown in (("effect", 0.0), ("standard_error", -1.0))
    )
    found = pydicom.dcmread("out/effects.dcm")
    assert found.SOPClassUID == pydicom.uid.ParametricMapStorage
    assert (found.PatientID, found.StudyInstanceUID, found.FrameOfReferenceUID) == ("P7", "1.2.8", "1.2.9")
    frames = found.pixel_array
    places = [item.PlanePositionSequence[0].ImagePositionPatient for item in found.PerFrameFunctionalGroupsSequence]
    labels = [item.RealWorldValueMappingSequence[0].LUTLabel for item in found.PerFrameFunctionalGroupsSequence]
    assert sorted(labels) == ["effect"] * 6 + ["std_error"] * 6
    normal = np.cross(ROW, COLUMN)
    for frame, place, label in zip(frames, places, labels):
        k = round(float((np.array(place, dtype=float) - ORIGIN) @ normal / GAP))
        np.testing.assert_allclose(frame, (effect if label == "effect" else error)[k], atol=1e-6)
    segments = highdicom.seg.segread("out/segments.dcm")
    assert (segments.Rows, segments.Columns) == (16, 16)
    names = [one.segment_label for one in segments.SegmentSequence]
    assert names[0] == "region of interest"
    volume = segments.get_volume(segment_numbers=[1]).array[..., 0]
    assert int(volume.sum()) == 4 * 4 * 2
    measures = segments.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert [float(one) for one in measures.PixelSpacing] == list(SPACING)


def test_no_object_that_names_the_patient_where_results_are_private(quick):
    folder, name = quick
    assert explained(folder, name, "--private") == 0
    assert not list((folder / "out").glob("*.dcm"))
    assert nibabel.load("out/effects.nii.gz").shape == (16, 16, 6)


def test_without_the_package_the_way_to_it_is_said(quick, monkeypatch, capsys):
    from captum_causalseg.cli import job

    monkeypatch.setattr(job, "has_highdicom", lambda: False)
    folder, name = quick
    assert explained(folder, name) == 0
    assert 'effects as DICOM objects: pip install "captum-causalseg[dicom]"' in capsys.readouterr().out
