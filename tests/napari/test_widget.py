"""The plugin in napari: what is drawn is explained, what is pressed is done. `make test-napari` runs these."""

import os

import numpy as np
import pytest
import torch

pytest.importorskip("pytestqt", reason="needs pytest-qt")
pytest.importorskip("napari", reason="needs napari")

from napari.components import ViewerModel
from npe2 import PluginManager, PluginManifest

from captum_causalseg.napari import widget as module
from captum_causalseg.napari.explaining import LayerImage, Question, explain_layers
from captum_causalseg.napari.widget import ExplainWidget

pytestmark = [
    pytest.mark.napari,
    # Of napari and what it brings, which say much when they begin.
    pytest.mark.filterwarnings("ignore"),
]

PLACEMENT = {"scale": (2.0, 3.0), "translate": (5.0, 7.0), "rotate": 10.0}
VALUES = np.random.default_rng(0).random((32, 40), dtype=np.float32)


@pytest.fixture
def script(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 9, padding=4), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
    torch.jit.script(net).save(str(tmp_path / "net.ts"))
    return tmp_path / "net.ts"


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr(module, "show_error", found.append)
    monkeypatch.setattr(module.notification_manager, "receive_error", lambda kind, error, trace: found.append(error))
    return found


@pytest.fixture
def window(qtbot, script):
    """A viewer's layers, and the plugin with an image that lies askew, a model and a score."""
    viewer = ViewerModel()
    image = viewer.add_image(VALUES, name="scan", **PLACEMENT)
    one = ExplainWidget(viewer)
    qtbot.addWidget(one.native)
    one.image.value, one.model.value, one.metric.value, one.n_draws.value = image, script, "logit_mean", 6
    return viewer, one


def draw(viewer, one, *corners):
    one.draw_region()
    viewer.layers["region to explain"].add_rectangles(np.array(corners, dtype=float))


def finished(qtbot, one):
    qtbot.waitUntil(lambda: not one.running, timeout=30_000)


def test_the_manifest_leads_to_what_there_is():
    manifest = PluginManifest.from_distribution("captum-causalseg")
    assert manifest.display_name == "Causal effects"
    manifest.validate_imports()
    (window,) = manifest.contributions.widgets
    commands = {command.id: command.python_name for command in manifest.contributions.commands}
    assert commands[window.command] == "captum_causalseg.napari.widget:ExplainWidget"


def test_a_region_that_is_drawn_is_explained_and_layers_lie_on_the_image(window, qtbot, said):
    viewer, one = window
    draw(viewer, one, (7.5, 15.5), (15.5, 23.5))
    assert one.kind.value == "torchscript"
    shown = []
    one.progress.changed.connect(lambda done: shown.append((done, one.progress.max)))
    one.explain.changed.emit(True)
    assert one.running
    assert not one.explain.enabled
    finished(qtbot, one)
    assert said == []
    roi = np.zeros((32, 40), dtype=bool)
    roi[8:16, 16:24] = True
    expected = explain_layers(LayerImage(VALUES), roi, Question(one.model.value, metric="logit_mean", n_draws=6))
    for values, arguments, kind in expected.layers:
        layer = viewer.layers[arguments["name"]]
        assert np.array_equal(layer.data, values)
        assert layer._type_string == kind
        corner = (3.0, 4.0)
        assert np.allclose(layer.data_to_world(corner), viewer.layers["scan"].data_to_world(corner))
    low, high = viewer.layers["effect"].contrast_limits
    assert low == -high < 0
    assert viewer.layers["region"].contour == 1
    assert one.said.value == expected.said
    assert any(0 < done < most for done, most in shown), "progress is shown"
    counts = [done / most for done, most in shown if most > 1]
    assert counts == sorted(counts)
    assert one.explain.enabled

    # The numbers of the unit under the pointer.
    units = viewer.layers["units"]
    pixel = next(tuple(map(float, place)) for place in np.argwhere(units.data))
    event = type("Event", (), {"position": viewer.layers["scan"].data_to_world(pixel)})
    one._tell_of_unit(viewer, event)
    row = units.features[units.features["index"] == units.data[tuple(map(int, pixel))]].iloc[0]
    assert one.under_pointer.value.startswith(f"unit {int(row['index']) - 1}: {row['effect']:+.4g} [")
    event = type("Event", (), {"position": viewer.layers["scan"].data_to_world((10.0, 18.0))})
    one._tell_of_unit(viewer, event)
    assert one.under_pointer.value == "", "the region itself has no effect"


def test_cancel_stops_and_keeps_nothing(window, qtbot, said):
    viewer, one = window
    one.n_draws.value, one.units.value = 500, "2"
    draw(viewer, one, (7.5, 15.5), (15.5, 23.5))
    before = [layer.name for layer in viewer.layers]
    one.start()
    qtbot.waitUntil(lambda: one.progress.value > 0, timeout=30_000)
    one.cancel.changed.emit(True)
    assert one.said.value == "stopping after this batch"
    finished(qtbot, one)
    assert one.said.value == "cancelled, nothing is kept"
    assert [layer.name for layer in viewer.layers] == before
    assert said == []
    one.n_draws.value, one.units.value = 3, ""
    one.start()
    finished(qtbot, one)
    assert "effect" in viewer.layers, "and it can begin again"


def test_what_is_missing_or_wrong_is_said_in_the_librarys_words(window, qtbot, said, tmp_path):
    viewer, one = window
    one.start()
    assert said.pop() == "roi: there is no region; press 'draw a region' and draw one, or paint a label"
    draw(viewer, one, (0.2, 0.2), (0.4, 0.4))
    one.start()
    finished(qtbot, one)
    assert said.pop().startswith("roi: it is empty")
    assert one.explain.enabled
    one.region.value.add_lines(np.array([(1.0, 1.0), (4.0, 4.0)]))
    one.start()
    assert said.pop().startswith("roi: expected rectangles, ellipses and polygons, got a line")
    one.model.value = tmp_path / "nothing.ts"
    viewer.layers.remove("region to explain")
    draw(viewer, one, (7.5, 15.5), (15.5, 23.5))
    one.start()
    finished(qtbot, one)
    assert said.pop().startswith("model: there is no ")
    viewer.layers.remove("scan")
    one.start()
    assert said.pop() == "image: there is no image layer; open an image"


def test_errors_of_the_program_keep_their_traceback(window, qtbot, said, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "explain_layers", fails)
    viewer, one = window
    draw(viewer, one, (7.5, 15.5), (15.5, 23.5))
    one.start()
    finished(qtbot, one)
    (error,) = said
    assert str(error) == "out of memory"
    assert error.__traceback__ is not None


def test_painted_labels_and_a_reference_are_taken_where_they_lie_on_the_image(window, qtbot, said):
    viewer, one = window
    painted = np.zeros((32, 40), dtype=np.uint8)
    painted[8:12, 8:12], painted[20:24, 20:24] = 1, 2
    region = viewer.add_labels(painted, name="painted", **PLACEMENT)
    region.selected_label = 2
    truth = viewer.add_labels((painted > 0).astype(np.uint8), name="truth", **PLACEMENT)
    one.region.value, one.reference.value, one.metric.value, one.n_draws.value = region, truth, "dice", 3
    one.start()
    finished(qtbot, one)
    assert said == []
    assert np.array_equal(viewer.layers["region"].data > 0, painted == 2)
    assert "own prediction" not in one.said.value
    one.region.value = viewer.add_labels(painted, name="elsewhere")
    one.start()
    assert said.pop().startswith("roi: the voxels of elsewhere (32, 40) are not those of scan (32, 40)")


def test_a_shape_on_a_slice_of_a_volume_goes_through_slices_around_it(qtbot):
    viewer = ViewerModel()
    one = ExplainWidget(viewer)
    qtbot.addWidget(one.native)
    viewer.add_image(np.zeros((10, 12, 14), dtype=np.float32), scale=(3, 1, 1))
    one.image.value = viewer.layers[0]
    one.draw_region()
    one.region.value.add_rectangles(np.array([(5, 1.5, 2.5), (5, 1.5, 6.5), (5, 4.5, 6.5), (5, 4.5, 2.5)]))
    one.n_slices.value = 1
    mask = one._roi(one._image())
    expected = np.zeros((10, 12, 14), dtype=bool)
    expected[4:7, 2:5, 3:7] = True
    assert np.array_equal(mask, expected)


@pytest.mark.skipif(
    os.environ.get("QT_QPA_PLATFORM") == "offscreen", reason="napari's window needs OpenGL: xvfb-run make test-napari"
)
def test_the_window_opens_in_napari(make_napari_viewer, qtbot):
    viewer = make_napari_viewer()
    viewer.open_sample("captum-causalseg", "brain")
    _, one = viewer.window.add_plugin_dock_widget("captum-causalseg", "Explain a segmentation")
    assert isinstance(one, ExplainWidget)
    assert one.image.value is viewer.layers["brain"]
    one.draw_region()
    assert viewer.layers["region to explain"].mode == "add_rectangle"
    assert not one.n_slices.visible


def test_a_file_is_opened_with_its_own_axes(tmp_path, qtbot):
    nibabel = pytest.importorskip("nibabel")
    values = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), tmp_path / "scan.nii.gz")
    # Done by the window otherwise, which not every test opens.
    PluginManager.instance().discover()
    viewer = ViewerModel()
    viewer.open(tmp_path / "scan.nii.gz", plugin="captum-causalseg")
    one = ExplainWidget(viewer)
    qtbot.addWidget(one.native)
    image = one._image()
    assert image.file == tmp_path / "scan.nii.gz"
    assert np.array_equal(image.values, values)
