"""The window: which image, which model, which region; explain, see how far it is, cancel."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from magicgui.widgets import ComboBox, Container, FileEdit, Label, LineEdit, ProgressBar, PushButton, SpinBox
from napari.layers import Image, Labels, Layer, Shapes
from napari.qt.threading import create_worker
from napari.utils.notifications import notification_manager, show_error
from qtpy.QtCore import QCoreApplication, QObject, Qt, Signal

from captum_causalseg.metrics import METRICS
from captum_causalseg.napari.drawn import mask_of_shapes
from captum_causalseg.napari.explaining import KINDS, NORMALIZE, Explained, LayerImage, Question, explain_layers, kind_of

if TYPE_CHECKING:
    import napari
    from napari.utils.events import Event

__all__ = ["Cancelled", "ExplainWidget"]

_PLACEMENT = ("scale", "translate", "rotate", "shear", "affine")
_MATCHES = ("mean", "mean_std", "histogram")
# What the user gave cannot be used; other errors are the program's own and keep their traceback.
_OF_THE_USER = (ValueError, TypeError, ImportError, OSError)


class Cancelled(Exception):
    """The work was ended by the user."""


class _Told(QObject):
    """Carries what is told in the thread that computes to the one that shows."""

    told = Signal(str, int, int)

    def __init__(self, show: Callable[[str, int, int], None]) -> None:
        super().__init__()
        self._pass_on = show
        self.told.connect(self.receive, Qt.ConnectionType.QueuedConnection)

    def receive(self, what: str, done: int, most: int) -> None:
        """In the thread that shows."""
        self._pass_on(what, done, most)


class ExplainWidget(Container):
    """Asks for an image, a model and a region, computes in a thread of its own, and adds layers with what was found.

    Args:
        viewer: whose layers are explained, and who gets the new ones.
    """

    def __init__(self, viewer: "napari.viewer.Viewer") -> None:
        super().__init__(labels=True)
        self._viewer = viewer
        self._cancelled, self._units = threading.Event(), None
        self._told = _Told(self._show_progress)
        self.image = ComboBox(label="image", choices=lambda _: self._layers(Image))
        self.model = FileEdit(label="model", mode="r", nullable=True)
        self.kind = ComboBox(
            label="kind of model", choices=[("found out", None), *((kind, kind) for kind in KINDS)], value=None
        )
        self.class_ = LineEdit(label="class", tooltip="number or name; empty: the only one, or the second of two")
        self.region = ComboBox(label="region", choices=lambda _: self._layers((Shapes, Labels)))
        self.draw = PushButton(text="draw a region")
        self.n_slices = SpinBox(label="slices around it", min=0, max=1000, value=2)
        self.n_slices.tooltip = "in a volume, a shape is drawn on one slice: so many on both sides belong to the region as well"
        self.reference = ComboBox(label="reference", choices=lambda _: [("the prediction", None), *self._layers(Labels)])
        self.metric = ComboBox(label="score", choices=[*METRICS], value="dice")
        self.units = LineEdit(
            label="units", tooltip="edges of blocks in pixels: 8, or 8x8x4; empty: 8 pixels of the prepared image"
        )
        self.n_draws = SpinBox(label="draws per unit", min=2, max=10_000, value=20)
        self.normalize = ComboBox(label="intensities", choices=[*NORMALIZE], value="none")
        self.normalize.tooltip = (
            "as in the image, divided by 255, from 0 to 1, or mean 0 and spread 1; bundles and nnU-Net do it themselves"
        )
        self.donors = FileEdit(label="donors", mode="d", nullable=True)
        self.donors.tooltip = "a folder of images that units are replaced from; empty: other places of the same image"
        self.match = ComboBox(
            label="donors get", choices=[("nothing", None), *((f"the part's {one}", one) for one in _MATCHES)], value=None
        )
        self.explain = PushButton(text="explain")
        self.cancel = PushButton(text="cancel", enabled=False)
        self.progress = ProgressBar(label="", max=1, value=0)
        self.said = Label(value="")
        self.under_pointer = Label(value="")
        self.extend([
            self.image, self.model, self.kind, self.class_, self.draw, self.region, self.n_slices, self.reference, self.metric, self.units,
            self.n_draws, self.normalize, self.donors, self.match, self.explain, self.cancel, self.progress, self.said, self.under_pointer,
        ])  # fmt: skip
        for label, height in ((self.said, 140), (self.under_pointer, 60)):
            # What is in them comes later; their rows should be high enough by then.
            label.native.setWordWrap(True)
            label.native.setMinimumHeight(height)
            label.native.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.model.changed.connect(self._find_kind)
        self.kind.changed.connect(self._choose_files_or_folders)
        self.image.changed.connect(self._ask_for_slices)
        self.draw.changed.connect(self.draw_region)
        self.explain.changed.connect(self.start)
        self.cancel.changed.connect(self.stop)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed, viewer.layers.events.changed):
            event.connect(self._follow_layers)
        viewer.mouse_move_callbacks.append(self._tell_of_unit)
        # A window that is closed waits for nobody.
        self.native.destroyed.connect(self._cancelled.set)
        application = QCoreApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(self.stop)
        self._follow_layers()

    @property
    def running(self) -> bool:
        """Whether something is being computed."""
        return bool(self.cancel.enabled)

    def draw_region(self) -> None:
        """Add a layer of shapes that lies on the image, ready to draw a rectangle."""
        try:
            image = self._image()
        except ValueError as error:
            show_error(str(error))
            return
        layer = Shapes(name="region to explain", ndim=len(image.shape), opacity=0.4, **image.placement)
        self._viewer.add_layer(layer)
        layer.mode = "add_rectangle"
        self.region.value = layer

    def start(self) -> None:
        """Compute; what cannot be used is said at once."""
        try:
            image, question = self._image(), self._question()
            roi, reference = self._roi(image), self._reference(image)
        except _OF_THE_USER as error:
            show_error(str(error))
            return
        self._cancelled.clear()
        self.explain.enabled, self.cancel.enabled = False, True
        self.said.value = ""

        def work() -> tuple[Explained | None, Exception | None]:
            # Errors are an answer: the thread's own way to hand them on leaves out RuntimeError, PyTorch's own.
            try:
                return explain_layers(image, roi, question, reference=reference, show_progress=self._tell), None
            except Exception as error:
                return None, error

        create_worker(work, _start_thread=True, _connect={"returned": self._finish})

    def stop(self) -> None:
        """Cancel: the next batch of interventions is the last, and nothing is kept."""
        self._cancelled.set()
        if self.running:
            self.said.value = "stopping after this batch"

    def _layers(self, kinds: Any) -> list[tuple[str, Layer]]:
        return [(layer.name, layer) for layer in self._viewer.layers if isinstance(layer, kinds)]

    def _follow_layers(self, event: "Event | None" = None) -> None:
        for box in (self.image, self.region, self.reference):
            box.reset_choices()
        self._ask_for_slices()

    def _ask_for_slices(self) -> None:
        layer = self.image.value
        self.n_slices.visible = layer is not None and layer.ndim == 3

    def _find_kind(self) -> None:
        """Of a file or folder that is none of them, nothing is said before the button is pressed."""
        path = self._path(self.model)
        try:
            self.kind.value = None if path is None else kind_of(path)
        except ValueError:
            self.kind.value = None

    def _choose_files_or_folders(self) -> None:
        self.model.mode = "d" if self.kind.value in ("bundle", "nnunet") else "r"

    def _path(self, edit: FileEdit) -> Path | None:
        return None if edit.value is None or str(edit.value) in ("", ".") else Path(edit.value)

    def _image(self) -> LayerImage:
        layer = self.image.value
        if layer is None:
            raise ValueError("image: there is no image layer; open an image")
        if layer.multiscale:
            raise ValueError(f"image: {layer.name} has several resolutions, expected one")
        path = layer.source.path
        return LayerImage(
            values=np.asarray(layer.data),
            rgb=bool(layer.rgb),
            placement={name: getattr(layer, name) for name in _PLACEMENT},
            file=None if path is None else Path(path),
            name=layer.name,
        )

    def _question(self) -> Question:
        model = self._path(self.model)
        if model is None:
            raise ValueError("model: choose a TorchScript file, a MONAI bundle or a folder of nnU-Net's results")
        return Question(
            model=model,
            kind=self.kind.value,
            class_=self.class_.value.strip() or None,
            units=self.units.value.strip() or None,
            n_draws=self.n_draws.value,
            metric=self.metric.value,
            normalize=self.normalize.value,
            donors=self._path(self.donors),
            match=self.match.value,
        )

    def _roi(self, image: LayerImage) -> np.ndarray[Any, Any]:
        layer = self.region.value
        if layer is None:
            raise ValueError("roi: there is no region; press 'draw a region' and draw one, or paint a label")
        if isinstance(layer, Labels):
            painted: np.ndarray[Any, Any] = self._painted(layer, "roi") == layer.selected_label
            return painted
        on_image = self.image.value
        drawn = []
        for kind, corners in zip(layer.shape_type, layer.data):
            if corners.shape[1] == on_image.ndim:
                corners = np.array([on_image.world_to_data(layer.data_to_world(corner)) for corner in corners])
            drawn.append((str(kind), corners))
        return mask_of_shapes(drawn, image.shape, n_slices=self.n_slices.value)

    def _reference(self, image: LayerImage) -> np.ndarray[Any, Any] | None:
        return None if self.reference.value is None else self._painted(self.reference.value, "reference")

    def _painted(self, layer: Labels, name: str) -> np.ndarray[Any, Any]:
        """Labels, if they lie voxel on voxel over the image."""
        image, labels = self.image.value, np.asarray(layer.data)
        shape = image.data.shape[: image.ndim]
        ends = [np.zeros(len(shape)), *np.diag(np.array(shape, dtype=float))]
        if labels.shape != shape or not all(
            np.allclose(layer.data_to_world(end), image.data_to_world(end), atol=1e-3) for end in ends
        ):
            raise ValueError(f"{name}: the voxels of {layer.name} {labels.shape} are not those of {image.name} {shape}")
        return labels

    def _tell(self, what: str, done: int, most: int) -> None:
        """In the thread that computes."""
        if self._cancelled.is_set():
            raise Cancelled
        self._told.told.emit(what, done, most)

    def _show_progress(self, what: str, done: int, most: int) -> None:
        if self.running and not self._cancelled.is_set():
            self.progress.max, self.progress.value = max(most, 1), done
            self.said.value = f"{done} of at most {most} {what}" if done else what

    def _finish(self, outcome: tuple[Explained | None, Exception | None]) -> None:
        explained, error = outcome
        self.explain.enabled, self.cancel.enabled = True, False
        self.progress.max, self.progress.value = 1, 0
        if explained is not None:
            self.progress.value = 1
            self.said.value = explained.said
            added = [self._viewer.add_layer(Layer.create(*layer)) for layer in explained.layers]
            # An outline, which is no argument of a layer: the image in the region stays to be seen.
            next(layer for layer in added if layer.name.startswith("region")).contour = 1
            self._units = next(layer for layer in added if layer.name.startswith("units"))
            self._viewer.layers.selection.active = next(layer for layer in added if layer.name.startswith("effect"))
            return
        self.said.value = "cancelled, nothing is kept" if isinstance(error, Cancelled) else f"{error}"
        if isinstance(error, _OF_THE_USER):
            show_error(str(error))
        elif error is not None and not isinstance(error, Cancelled):
            notification_manager.receive_error(type(error), error, error.__traceback__)

    def _tell_of_unit(self, viewer: Any, event: "Event") -> None:
        """The numbers of the unit under the pointer."""
        if self._units is None or self._units not in self._viewer.layers:
            return
        # Looked up here: napari has no value of a layer that is not visible.
        place = np.round(self._units.world_to_data(event.position)).astype(int)
        inside = bool(((place >= 0) & (place < self._units.data.shape)).all())
        label = int(self._units.data[tuple(place)]) if inside else 0
        self.under_pointer.value = _unit_in_words(self._units.features, label) if label else ""


def _unit_in_words(table: Any, label: int) -> str:
    row = table[table["index"] == label].iloc[0]
    sure = "significant" if row["significant"] else "not significant"
    return f"unit {label - 1}: {row['effect']:+.4g} [{row['lower']:+.4g}, {row['upper']:+.4g}], {sure}, {int(row['n_draws'])} draws"
