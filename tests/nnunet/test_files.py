import pytest

from captum_causalseg.nnunet.files import Case, cases_in, files_of

ENDING = ".nii.gz"


@pytest.fixture
def folder(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000", "b_0001", "note"):
        (tmp_path / f"{name}{ENDING}").touch()
    return tmp_path


def names(case):
    return [file.name for file in case.files]


def test_the_other_channels_are_found_beside_the_first(folder):
    assert names(files_of(folder / "a_0000.nii.gz", ("T1", "T2"), ENDING)) == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_files_are_taken_in_the_order_in_which_they_are_given(folder):
    given = [str(folder / "b_0001.nii.gz"), folder / "a_0000.nii.gz"]
    assert names(files_of(given, ("T1", "T2"), ENDING)) == ["b_0001.nii.gz", "a_0000.nii.gz"]


def test_one_file_may_hold_all_channels(folder):
    assert names(files_of(folder / "note.nii.gz", ("T1", "T2"), ENDING)) == ["note.nii.gz"]
    (folder / "p_0000.png").touch()
    assert names(files_of(folder / "p_0000.png", ("R", "G", "B"), ".png")) == ["p_0000.png"]


def test_a_missing_channel_is_named(folder):
    (folder / "b_0001.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"image_file: there is no file .*b_0001\.nii\.gz \(T2\)"):
        files_of(folder / "b_0000.nii.gz", ("T1", "T2"), ENDING)
    with pytest.raises(FileNotFoundError, match=r"b_0001\.nii\.gz \(T2\)"):
        cases_in(folder, ("T1", "T2"), ENDING)


def test_more_files_than_channels_are_refused(folder):
    with pytest.raises(ValueError, match=r"image_file: expected 3 files, one per channel \(a, b, c\), got 2"):
        files_of([folder / "a_0000.nii.gz", folder / "a_0001.nii.gz"], ("a", "b", "c"), ENDING)


def test_cases_of_a_folder_by_name(folder):
    assert [names(case) for case in cases_in(folder, ("T1", "T2"), ENDING)] == [
        ["a_0000.nii.gz", "a_0001.nii.gz"],
        ["b_0000.nii.gz", "b_0001.nii.gz"],
    ]
    with pytest.raises(ValueError, match=r"cases: no file in .* is named as nnU-Net names images \(case_0000\.mha\)"):
        cases_in(folder, ("T1",), ".mha")


def test_cases_that_share_a_file_are_the_same(folder, tmp_path):
    first, link = Case((folder / "a_0000.nii.gz",)), tmp_path / "link.nii.gz"
    link.symlink_to(first.files[0])
    assert first.same(Case((link,)))
    assert not first.same(Case((folder / "b_0000.nii.gz",)))
