"""What the viewer of the report is handed."""

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from command_line import on_picture, on_scan
from report_cases import layer, payload, units_of

from captum_causalseg import TreatmentEffectStatistics, cli
from captum_causalseg.cli import viewer


def page(folder):
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_every_pixel_of_a_picture_has_its_units_numbers(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--label", "mask.png", "--weights", "two.pt")) == 0
    data = payload(page(folder))
    statistics = TreatmentEffectStatistics.load("out/statistics.npz")
    effects, lower = (statistics.to_map(field, 1)[0, 0].numpy().T for field in ("effect", "lower"))
    p = statistics.select(statistics.adjusted_p_values(), 1)[0]
    numbers = units_of(data)
    # Columns, rows: the last 8 columns cannot reach the region, of them there is a margin.
    assert numbers.shape == (27, 24)
    effects, lower = effects[:27], lower[:27]
    assert (numbers > 0).all()
    for field, expected in (("effect", effects), ("lower", lower)):
        found = np.array(data[field], dtype=float)[numbers.astype(int) - 1]
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(np.array(data["adjusted_p_value"], dtype=float), p[torch.tensor(data["ids"])], rtol=1e-3)
    first = numbers[17, 9] - 1
    assert data["places"][first] == "8-15 x 16-23"


def test_outlines_are_of_region_prediction_and_reference(quick):
    folder, name = quick
    assert cli.main(on_picture(name, "--label", "mask.png", "--weights", "two.pt")) == 0
    html = page(folder)
    bits = layer(payload(html), payload(html)["outlines"]).T
    roi, reference = np.zeros((24, 32), dtype=bool), np.zeros((24, 32), dtype=bool)
    roi[8:16, 8:16], reference[6:18, 8:20] = True, True
    np.testing.assert_array_equal(bits & 1 > 0, roi[:, :27])
    np.testing.assert_array_equal(bits & 4 > 0, reference[:, :27])
    assert (
        f"<td>{int((bits & 2 > 0)[roi[:, :27]].sum())}</td>"
        in html[html.index('id="segmentation"') :].partition("</section>")[0]
    )


def test_without_a_reference_there_is_no_outline_of_one(quick):
    folder, name = quick
    assert cli.main(on_picture(name)) == 0
    html = page(folder)
    assert not (layer(payload(html), payload(html)["outlines"]) & 4).any()
    assert 'class="line reference"' not in html
    assert 'class="line predicted"' in html


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_a_scan_is_shown_where_it_lies(quick, signs):
    """Right, anterior and superior are the axes of what is shown, whichever way the file's axes run."""
    folder, name = quick
    affine = np.zeros((4, 4))
    # The file's axes: posterior to anterior or back, inferior to superior, left to right.
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 1.0 * signs[0], 1.5 * signs[1], 3.0 * signs[2], 1
    affine[:3, 3] = (5, -7, 11)
    for file in ("scan.nii.gz", "truth.nii.gz"):
        values = np.asanyarray(nibabel.load(file).dataobj)
        nibabel.save(nibabel.Nifti1Image(values, affine), file)
    assert cli.main([*on_scan(name), "--all-units"]) == 0
    data = payload(page(folder))
    shown = np.array(data["affine"]).reshape(4, 4)
    np.testing.assert_allclose(shown[:3, :3], np.diag(data["edges"]))
    np.testing.assert_allclose(data["edges"], (3, 1, 1.5))
    numbers, bits = units_of(data), layer(data, data["outlines"])
    table = pd.read_csv("out/effects.csv")
    table = table[table["class"] == 2].set_index("unit")
    truth = np.asanyarray(nibabel.load("truth.nii.gz").dataobj) == 2
    back = np.linalg.inv(affine)
    for index in np.ndindex(*numbers.shape):
        place = np.round((back @ shown @ np.array([*index, 1]))[:3]).astype(int)
        assert bool(bits[index] & 1) == truth[tuple(place)]
        row = table.loc[data["ids"][numbers[index] - 1]]
        assert all(row[f"start_{axis}"] <= place[axis] < row[f"stop_{axis}"] for axis in range(3))


def test_too_much_is_thinned_out_and_said(quick, monkeypatch):
    folder, name = quick
    monkeypatch.setattr(viewer, "MOST_BYTES", 6000)
    assert cli.main(on_scan(name)) == 0
    html = page(folder)
    data = payload(html)
    assert max(data["shape"]) < 12
    assert "of every" in html
    shown = np.array(data["affine"]).reshape(4, 4)
    assert shown[0, 0] >= 2
    # The middle of the region is where it was.
    truth = np.asanyarray(nibabel.load("truth.nii.gz").dataobj) == 2
    inside = np.argwhere(layer(data, data["outlines"]) & 1) @ shown[:3, :3].T + shown[:3, 3]
    affine = nibabel.load("truth.nii.gz").affine
    assert all(truth[tuple(np.round(np.linalg.inv(affine) @ [*place, 1])[:3].astype(int))] for place in inside)


def test_no_text_of_a_file_ends_the_data(quick):
    folder, name = quick
    (folder / "image.png").rename(folder / "a<script>.png")
    arguments = ["a<script>.png" if one == "image.png" else one for one in on_picture(name)]
    assert cli.main(arguments) == 0
    assert "<script>.png" not in page(folder)


def test_each_channel_has_its_own_units(quick):
    folder, name = quick
    from PIL import Image

    values = np.random.default_rng(3).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(values).save("color.png")
    arguments = ["color.png" if one == "image.png" else one for one in on_picture(name, "--channels", "each", model="color")]
    assert cli.main(arguments) == 0
    data = payload(page(folder))
    assert len(data["units"]) == len(data["images"]) == 3
    ids = [{data["ids"][number - 1] % 3 for number in np.unique(units_of(data, channel)) if number} for channel in range(3)]
    assert ids == [{0}, {1}, {2}]
