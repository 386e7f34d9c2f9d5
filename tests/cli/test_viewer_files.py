"""Files that viewers open over the scan."""

import re

import nibabel
import numpy as np
import pandas as pd
import pytest
from command_line import on_picture, on_scan, status_of

from captum_causalseg import TreatmentEffectStatistics
from captum_causalseg.cli.viewer_files import color_of


def test_maps_hold_numbers_everywhere_and_units_are_labels(quick):
    folder, name = quick
    assert status_of(on_scan(name)) == 0
    stats = TreatmentEffectStatistics.load("out/statistics.npz").of_output(2)
    affine = nibabel.load("scan.nii.gz").affine
    for file, field in (("effects", "effect"), ("standard_error", "standard_error"), ("significant", "significant")):
        found = nibabel.load(f"out/{file}.nii.gz")
        np.testing.assert_array_equal(found.affine, affine)
        expected = stats.to_map(field)[0, 0].nan_to_num(-1.0 if field == "standard_error" else 0.0)
        np.testing.assert_allclose(found.get_fdata(), expected, rtol=1e-6)
    assert nibabel.load("out/significant.nii.gz").get_data_dtype() == np.uint8
    units = nibabel.load("out/units.nii.gz")
    assert units.get_data_dtype().kind in "ui"
    labels = np.asarray(units.dataobj)
    assert (labels[4:8, 4:8, 2:4] == 0).all()  # the region of interest
    table = pd.read_csv("out/effects.csv").query("`class` == 2 and status in ('ESTIMATED', 'SCREENED')")
    assert sorted(np.unique(labels[labels > 0])) == sorted(table["unit"] + 1)
    row = table.iloc[table["effect"].abs().argmax()]
    inside = labels[row.start_0 : row.stop_0, row.start_1 : row.stop_1, row.start_2 : row.stop_2]
    assert (inside == row.unit + 1).all()
    assert (labels == row.unit + 1).sum() == inside.size
    for file in ("effects", "standard_error", "significant", "units"):
        header = nibabel.load(f"out/{file}.nii.gz").header
        # Programs that read either of the two transforms find the scan's.
        for found, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
            assert code > 0
            np.testing.assert_allclose(found, affine, atol=1e-5)
    # Every line is one of the program's own grammar, and all three name the same labels.
    byte, part = r"(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])", r"(0\.\d{4}|1\.0000)"
    grammars = {
        "units.label.txt": rf'(\d+) {byte} {byte} {byte} [01] [01] [01] "[^"]+"',
        "units.ctbl": rf"(\d+) \S+ {byte} {byte} {byte} {byte}",
        "units.lut": rf"(\d+) {part} {part} {part} .+",
    }
    for file, grammar in grammars.items():
        lines = [line for line in (folder / "out" / file).read_text().splitlines() if not line.startswith("#")]
        read = [re.fullmatch(grammar, line) for line in lines]
        assert all(read), file
        assert [int(one[1]) for one in read if int(one[1])] == sorted(table["unit"] + 1)
    # The same names and colors for three programs.
    (snap,) = re.findall(
        rf'^{row.unit + 1} (\d+ \d+ \d+) 1 1 1 "(.+)"$', (folder / "out" / "units.label.txt").read_text(), re.MULTILINE
    )
    (slicer,) = re.findall(
        rf"^{row.unit + 1} (\S+) (\d+ \d+ \d+) 255$", (folder / "out" / "units.ctbl").read_text(), re.MULTILINE
    )
    (lut,) = re.findall(rf"^{row.unit + 1} (\S+ \S+ \S+) (.+)$", (folder / "out" / "units.lut").read_text(), re.MULTILINE)
    assert (
        snap[1]
        == slicer[0].replace("_", " ")
        == lut[1]
        == f"unit {row.unit}: {row.effect:+.4g} [{row.lower:+.4g}, {row.upper:+.4g}]"
    )
    assert snap[0] == slicer[1] == " ".join(map(str, color_of(row.effect, abs(row.effect))))
    assert [round(255 * float(part)) for part in lut[0].split()] == [*map(int, snap[0].split())]


@pytest.mark.parametrize(
    ("effect", "color"), [(0.2, (178, 24, 43)), (-0.2, (33, 102, 172)), (0.0, (247, 247, 247)), (0.1, (212, 136, 145))]
)
def test_colors_are_those_of_the_pictures(effect, color):
    assert color_of(effect, 0.2) == color


def test_units_that_cannot_reach_the_region_are_left_out_of_the_table_unless_asked_for(quick, capsys):
    _, name = quick
    given = on_picture(name, "--weights", "two.pt", "--label", "mask.png", "--units", "4")
    assert status_of([*given, "--all-units"]) == 0
    everything = pd.read_csv("out/effects.csv")
    assert "effects.csv: without" not in capsys.readouterr().out
    assert status_of(given) == 0
    table = pd.read_csv("out/effects.csv")
    outside = everything["status"] == "OUTSIDE_SUPPORT"
    pd.testing.assert_frame_equal(table, everything[~outside].reset_index(drop=True))
    n = int((outside & (everything["class"] == 1)).sum())
    assert n > 0
    assert f"effects.csv: without the {n} that cannot reach the region of interest" in capsys.readouterr().out
