"""A bundle's folder: its configs read, its network, transforms and inferer made."""

import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_causalseg._checks import NONE, PATH, TEXT, checked, instance, mapping, sequence, shown
from captum_causalseg._state import undisturbed
from captum_causalseg.bundle.weights import checkpoint, is_torchscript, mismatch, reason, state_of
from captum_causalseg.target import SegmentationTarget, WindowedModel
from captum_causalseg.target.window_recipes import why_no_monai

if TYPE_CHECKING:
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor
    from monai.inferers import Inferer
    from monai.transforms import Compose

__all__ = ["Bundle", "load_bundle"]

logger = logging.getLogger(__name__)

# MONAI takes seconds to import, so functions import it when they need it.

_CONFIG_ENDINGS = (".json", ".yaml", ".yml")
_WEIGHT_ENDINGS = (".pt", ".pth", ".ts")
# Where bundles keep their parts; those of inference come before those of training.
_NETWORK = ("network_def", "network", "net", "model")
_SECTIONS = ("", "inference::", "infer::", "validate::", "train::")

File = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A MONAI bundle that has been loaded; :func:`load_bundle` makes it.

    Attributes:
        path: the bundle's folder.
        device: where the model is and prepared images go.
        model: the network with its weights, in evaluation mode.
        preprocessing: dictionary transforms from an image file to the model's input, without what is random and without
            asking for other keys (a label) than are given. ``None`` if the bundle has none.
        inferer: how the bundle runs its network on a whole image, such as a ``SlidingWindowInferer``. ``None`` if it does not say.
        postprocessing: dictionary transforms from the model's output on, as the bundle has them. ``None`` if it has none.
        metadata: what ``metadata.json`` holds; empty if there is none.
        image_key: under which key the transforms keep the image.

    Example:
        >>> import json, pathlib, tempfile, torch
        >>> from captum_causalseg import load_bundle
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for part in ("configs", "models"):
        ...     (folder / part).mkdir()
        >>> network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
        >>> _ = (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": network}))
        >>> torch.save(torch.nn.Conv2d(1, 2, 1).state_dict(), folder / "models" / "model.pt")
        >>> bundle = load_bundle(folder)
        >>> bundle.model.training, bundle.preprocessing, bundle.inferer, bundle.metadata
        (False, None, None, {})
        >>> bundle.target(metric="volume")(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """

    path: Path
    device: torch.device
    model: nn.Module = field(repr=False)
    preprocessing: "Compose | None" = field(repr=False)
    inferer: "Inferer | None" = field(repr=False)
    postprocessing: "Compose | None" = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    image_key: str = "image"

    @property
    def network_data_format(self) -> dict[str, Any]:
        """What the metadata say of the network's inputs and outputs (channels, sizes, classes); empty if they do not.

        Example:
            >>> import pathlib, torch
            >>> from captum_causalseg import Bundle
            >>> about = {"network_data_format": {"inputs": {"image": {"num_channels": 1}}}}  # as load_bundle reads it
            >>> bundle = Bundle(pathlib.Path("spleen"), torch.device("cpu"), torch.nn.Conv2d(1, 2, 1), None, None, None, about)
            >>> bundle.network_data_format["inputs"]["image"]["num_channels"]
            1
        """
        return dict(self.metadata.get("network_data_format") or {})

    @property
    def predictor(self) -> nn.Module:
        """The model as the bundle runs it on whole images ``(N, C, *spatial)``: under its inferer, unless that only calls it.

        Under a ``SlidingWindowInferer`` it is a :class:`~captum_causalseg.WindowedModel`, of which only those windows are run that an
        intervention concerns. What an inferer does that this cannot (buffers, say) is left to the inferer itself, with a line in the
        log; every intervention then runs all windows.

        Example:
            >>> import pathlib, torch
            >>> from monai.inferers import SlidingWindowInferer
            >>> from captum_causalseg import Bundle
            >>> model, inferer = torch.nn.Conv2d(1, 2, 3, padding=1), SlidingWindowInferer((8, 8))
            >>> bundle = Bundle(pathlib.Path("spleen"), torch.device("cpu"), model, None, inferer, None, {})
            >>> bundle.predictor(torch.rand(1, 1, 20, 20)).shape  # window by window
            torch.Size([1, 2, 20, 20])
        """
        return self._predictor(None)

    def target(
        self,
        roi: "Tensor | np.ndarray | Any | None" = None,
        reference: "Tensor | np.ndarray | Any | None" = None,
        **options: Any,
    ) -> SegmentationTarget:
        """The bundle's :attr:`predictor` as a target for every method.

        Args:
            roi: where to score, as in :class:`~captum_causalseg.SegmentationTarget`, on the grid of the prepared image.
            reference: what to compare with, on the same grid.
            **options: the other arguments of ``SegmentationTarget``. ``activation`` and ``threshold`` are by default those of
                the bundle's post-processing (``Activationsd``, ``AsDiscreted``) where it says them.

        Raises:
            TypeError: an option that ``SegmentationTarget`` does not have.

        Example:
            >>> import pathlib, torch
            >>> from monai.transforms import Activationsd, Compose
            >>> from captum_causalseg import Bundle
            >>> post = Compose([Activationsd(keys="pred", sigmoid=True)])
            >>> bundle = Bundle(pathlib.Path("spleen"), torch.device("cpu"), torch.nn.Conv2d(1, 2, 1), None, None, post, {})
            >>> bundle.target(metric="volume").activation
            'sigmoid'
        """
        given = {**self._scoring(), **options}
        predictor = self._predictor(given.get("output"))
        if isinstance(predictor, WindowedModel):
            # It is looked for in what the network returns of a window.
            given.pop("output", None)
        return SegmentationTarget(predictor, roi=roi, reference=reference, **given)

    @checked(
        image_file=PATH
        | sequence(PATH, 1, expected="a sequence of them")
        | mapping(TEXT, PATH | sequence(PATH, 1), expected="a mapping of keys to them", least=1)
    )
    def prepare(self, image_file: File | Sequence[File] | Mapping[str, Any]) -> "MetaTensor":
        """The model's input from an image file, by the bundle's own pre-processing.

        Args:
            image_file: the file (or the folder of a DICOM series); several files for an image whose channels lie in files of their
                own; or a mapping from keys to such, for pre-processing that reads several keys.

        Returns:
            ``MetaTensor`` ``(1, C, *spatial)`` on the bundle's device. It keeps the affine and the operations that were applied,
            for ``Invertd``. A plain tensor if the pre-processing drops them.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the bundle has no pre-processing, or it fails on this file, or yields no image.

        Example:
            >>> import pathlib, tempfile, torch
            >>> from PIL import Image
            >>> from monai.transforms import Compose, LoadImaged
            >>> from captum_causalseg import Bundle
            >>> read = Compose([LoadImaged(keys="image", ensure_channel_first=True)])
            >>> bundle = Bundle(pathlib.Path("spleen"), torch.device("cpu"), torch.nn.Conv2d(1, 2, 1), read, None, None, {})
            >>> picture = pathlib.Path(tempfile.mkdtemp()) / "picture.png"
            >>> Image.new("L", (8, 8), color=255).save(picture)
            >>> image = bundle.prepare(picture)
            >>> image.shape, float(image.max())
            (torch.Size([1, 1, 8, 8]), 255.0)
        """
        if self.preprocessing is None:
            raise ValueError(f"bundle: {self.path} has no preprocessing; prepare the image as its network was trained")
        files = dict(image_file) if isinstance(image_file, Mapping) else {self.image_key: image_file}
        given: dict[str, Any] = {key: _existing(value) for key, value in files.items()}
        try:
            prepared: Any = self.preprocessing(dict(given))
        except Exception as error:
            raise ValueError(
                f"image_file: the preprocessing of {self.path} failed on {_shown(given)}: {reason(error)}"
            ) from error
        image = prepared.get(self.image_key) if isinstance(prepared, Mapping) else prepared
        if not isinstance(image, Tensor) or image.ndim < 3:
            got = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(
                f"image_file: expected the preprocessing of {self.path} to yield an image (C, *spatial) at {self.image_key!r}, got "
                f"{got}; its loaders read {_loaded_keys(self.preprocessing)}"
            )
        return image.to(self.device)[None]

    def _predictor(self, output: Any) -> nn.Module:
        """The model under its inferer, where the logits are at ``output`` in what the network returns."""
        from monai.inferers import SimpleInferer

        if isinstance(self.inferer, (SimpleInferer, type(None))):
            return self.model
        # A function of one's own need not give the same of windows as of what they add up to.
        reason = "output: a callable is given all windows at once" if callable(output) else why_no_monai(self.inferer)
        if reason is None:
            return WindowedModel.from_monai(self.inferer, self.model, output=output)
        logger.info("bundle: every intervention runs all windows of the inferer (%s)", reason)
        return _Inferred(self.model, self.inferer)

    def _scoring(self) -> dict[str, Any]:
        """How the post-processing makes labels of the output, as arguments of a target."""
        from monai.transforms import Activationsd, AsDiscreted

        steps = [] if self.postprocessing is None else list(self.postprocessing.flatten().transforms)
        activations = [step for step in steps if isinstance(step, Activationsd)]
        if any(any(step.softmax) for step in activations):
            return {"activation": "softmax"}
        if not any(any(step.sigmoid) for step in activations):
            return {}
        thresholds = [t for step in steps if isinstance(step, AsDiscreted) for t in step.threshold if t is not None]
        return {"activation": "sigmoid", **({"threshold": float(thresholds[0])} if thresholds else {})}


@checked(
    path=PATH,
    config=NONE | PATH | sequence(PATH, 1, expected="a sequence of them"),
    weights=NONE | PATH,
    device=TEXT | instance(torch.device),
)
def load_bundle(
    path: File,
    *,
    config: File | Sequence[File] | None = None,
    weights: File | None = None,
    device: str | torch.device = "cpu",
) -> Bundle:
    """Load a MONAI bundle: its network with weights, pre-processing, inferer and post-processing.

    MONAI's ``ConfigParser`` reads the configs. **Configs are programs**: their ``$`` expressions and ``_target_`` run whatever
    they say, here as under ``python -m monai.bundle run``. Load bundles from sources that you trust. Only the parts that are
    needed are built (no dataset, no handler). Weights are read with ``weights_only=True`` and run nothing.

    While the configs are built, the folder is on ``sys.path``, so that they find code of the bundle's own (``scripts``), and their
    ``bundle_root`` and ``device`` are this folder and this device. Relative file names in configs are those of the process.

    Args:
        path: the bundle's folder, with ``configs/`` and ``models/``.
        config: which configs: a name in ``configs/`` (``"train"``, ``"inference.yaml"``) or a file, or several, where later ones
            override. By default ``inference``, else ``train``, else the only one that there is.
        weights: which weights: a name in ``models/`` or a file. By default ``models/model.pt``, else ``models/model.ts``
            (TorchScript, which brings its own network), else the only ones that there are. A file holds a state dict, alone or in a
            checkpoint under ``"model"`` or ``"state_dict"``.
        device: where to put the model.

    Returns:
        :class:`Bundle`.

    Raises:
        FileNotFoundError: no such folder, configs or weights; the message says where they were looked for.
        ValueError: there are several to choose from; a file cannot be read; a part cannot be built; there is no network;
            the weights are not this network's.

    Example:
        >>> import json, pathlib, tempfile, torch
        >>> from captum_causalseg.bundle import load_bundle
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for part in ("configs", "models"):
        ...     (folder / part).mkdir()
        >>> network = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
        >>> _ = (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": network}))
        >>> torch.save(torch.nn.Conv2d(1, 2, 1).state_dict(), folder / "models" / "model.pt")
        >>> bundle = load_bundle(folder)
        >>> bundle.model
        Conv2d(1, 2, kernel_size=(1, 1), stride=(1, 1))
        >>> bundle.target(metric="volume")(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"path: there is no folder {root}" + (", it is a file" if root.is_file() else ""))
    try:
        root, place = root.resolve(), torch.device(device)
    except RuntimeError as error:
        raise ValueError(f'device: expected a device such as "cpu" or "cuda:0", got {shown(device)}') from error
    files, weight_file = _config_files(root, config), _weight_file(root, weights)
    where = " + ".join(str(file) for file in files)
    # Networks are initialized at random before their weights are loaded.
    with undisturbed(load_bundle), _importable(root):
        parser, metadata = _read(root, files, place)
        model = _network(parser, weight_file, place, where=where)
        preprocessing = _composed(_part(parser, where, ("preprocessing",)), f"preprocessing of {where}")
        postprocessing = _composed(_part(parser, where, ("postprocessing",)), f"postprocessing of {where}")
        inferer = _inferer(_part(parser, where, ("inferer",)), where)
        named_key = _part(parser, where, ("image_key",))
    if preprocessing is not None:
        _for_one_image(preprocessing)
    else:
        logger.info("bundle: %s has no preprocessing", where)
    key = _image_key(named_key, metadata, preprocessing)
    return Bundle(
        path=root,
        device=place,
        model=model.to(place).eval(),
        preprocessing=preprocessing,
        inferer=inferer,
        postprocessing=postprocessing,
        metadata=metadata,
        image_key=key,
    )


class _Inferred(nn.Module):
    """A model under an inferer, as one module."""

    def __init__(self, model: nn.Module, inferer: Any) -> None:
        super().__init__()
        self.model = model
        self.inferer = inferer
        self.train(getattr(model, "training", False))  # frozen TorchScript has no such attribute

    def forward(self, inputs: Tensor, *args: Any) -> Any:
        # Windows are cut and pasted many times, which a MetaTensor would keep books of.
        return self.inferer(inputs.as_subclass(Tensor), self.model, *args)


def _config_files(root: Path, config: File | Sequence[File] | None) -> list[Path]:
    folder = root / "configs"
    if config is not None:
        names = [config] if isinstance(config, (str, os.PathLike)) else list(config)
        if not names:
            raise ValueError("config: expected one name or more, got an empty sequence")
        return [_named_file("config", name, root=root, folder=folder, endings=_CONFIG_ENDINGS) for name in names]
    found = [file for file in _listed(folder, _CONFIG_ENDINGS) if file.stem != "metadata"]
    if not found:
        raise FileNotFoundError(f"path: no config (.json, .yaml) in {folder}")
    for stem in ("inference", "train"):
        if chosen := [file for file in found if file.stem == stem]:
            return [_only("config", chosen, folder)]
    return [_only("config", found, folder)]


def _weight_file(root: Path, weights: File | None) -> Path:
    folder = root / "models"
    if weights is not None:
        return _named_file("weights", weights, root=root, folder=folder, endings=_WEIGHT_ENDINGS)
    for name in ("model.pt", "model.ts"):
        if (folder / name).is_file():
            return folder / name
    found = _listed(folder, _WEIGHT_ENDINGS)
    if not found:
        raise FileNotFoundError(
            f"weights: none in {folder}, expected model.pt or model.ts; they may have to be downloaded first"
        )
    return _only("weights", found, folder)


def _listed(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.is_file() and file.suffix.lower() in endings)


def _named_file(argument: str, name: File, root: Path, folder: Path, endings: tuple[str, ...]) -> Path:
    for base in (folder, root, Path()):
        for ending in ("", *endings):
            candidate = base / (str(Path(name).expanduser()) + ending)
            if candidate.is_file():
                return candidate.resolve()
    held = ", ".join(file.name for file in _listed(folder, endings)) or "none"
    raise FileNotFoundError(f"{argument}: there is no file {os.fspath(name)} in {root}; in {folder.name}/ there are: {held}")


def _only(argument: str, files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise ValueError(
            f"{argument}: several to choose from in {folder}: {', '.join(file.name for file in files)}; name one with `{argument}`"
        )
    return files[0]


@contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Let configs import from the bundle's folder; another bundle's package ``scripts`` does not stand in for this one's."""
    own = root / "scripts"
    loaded = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "scripts"}
    places = [Path(place).resolve() for place in getattr(loaded.get("scripts"), "__path__", ())]
    is_foreign = own.is_dir() and bool(loaded) and own not in places
    sys.path.insert(0, str(root))
    try:
        if is_foreign:
            for name in loaded:
                del sys.modules[name]
        yield
    finally:
        if str(root) in sys.path:
            sys.path.remove(str(root))
        if is_foreign:
            for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
                del sys.modules[name]
            sys.modules.update(loaded)


def _read(root: Path, files: list[Path], device: torch.device) -> "tuple[ConfigParser, dict[str, Any]]":
    from monai.bundle import ConfigParser

    metadata: dict[str, Any] = {}
    if found := [file for file in _listed(root / "configs", _CONFIG_ENDINGS) if file.stem == "metadata"]:
        metadata = _read_config(found[0])
    parser = ConfigParser({})
    for file in files:
        _read_config(file)  # what is wrong with it is said of it alone
    parser.read_meta(metadata)
    parser.read_config([str(file) for file in files])
    for name, value in (("bundle_root", str(root)), ("device", device)):
        if name in parser:
            parser[name] = value
    return parser, metadata


def _read_config(file: Path) -> dict[str, Any]:
    from monai.bundle import ConfigParser

    try:
        content = ConfigParser.load_config_file(str(file))
    except Exception as error:
        raise ValueError(f"config: {file} cannot be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config: expected {file} to hold a mapping, got {type(content).__name__}")
    return content


def _part(parser: "ConfigParser", where: str, names: tuple[str, ...]) -> Any:
    """The first of these parts that the configs define, built; ``None`` if they define none."""
    for identifier in (section + name for section in _SECTIONS for name in names):
        if parser.get(identifier) is None:
            continue
        try:
            return parser.get_parsed_content(identifier)
        except Exception as error:
            raise ValueError(f"config: {identifier!r} of {where} cannot be built: {reason(error)}") from error
    return None


def _composed(part: Any, what: str) -> "Compose | None":
    from monai.transforms import Compose

    if part is None or isinstance(part, Compose):
        return part
    steps = part if isinstance(part, (list, tuple)) else [part]
    if not all(callable(step) for step in steps):
        raise ValueError(f"config: expected transforms as {what}, got {type(part).__name__}")
    return Compose(list(steps))


def _inferer(part: Any, where: str) -> "Inferer | None":
    from monai.inferers import Inferer

    if part is not None and not isinstance(part, Inferer):
        raise ValueError(f"config: expected a monai.inferers.Inferer as inferer of {where}, got {type(part).__name__}")
    return part


def _network(parser: "ConfigParser", weight_file: Path, device: torch.device, where: str) -> nn.Module:
    if is_torchscript(weight_file):
        try:
            # Opened here: torch's own code takes only names that are UTF-8.
            with open(weight_file, "rb") as opened:
                scripted: nn.Module = torch.jit.load(opened, map_location=device)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise ValueError(f"weights: {weight_file} cannot be read as TorchScript: {reason(error)}") from error
        return scripted
    network = _part(parser, where, _NETWORK)
    if network is None:
        raise ValueError(f"config: no network in {where}; looked for {', '.join(_NETWORK)}")
    if not isinstance(network, nn.Module):
        raise ValueError(f"config: expected a torch.nn.Module as network of {where}, got {type(network).__name__}")
    state = state_of(checkpoint(weight_file), network, weight_file)
    try:
        network.load_state_dict(state)
    except Exception as error:
        raise ValueError(
            f"weights: {weight_file} does not fit the network of {where}: {mismatch(network, state) or reason(error)}"
        ) from error
    return network


def _for_one_image(transforms: "Compose") -> None:
    """Leave out what is random, and let keys be missing (in place: an inversion in the post-processing holds this object)."""
    from monai.transforms import Compose, MapTransform
    from monai.transforms.traits import RandomizableTrait

    kept = []
    for step in transforms.transforms:
        if type(step) is Compose:
            _for_one_image(step)
        elif isinstance(step, RandomizableTrait):
            logger.info("bundle: random transforms left out of the preprocessing: %s", type(step).__name__)
            continue
        elif isinstance(step, MapTransform):
            # Dropping keys instead would shift arguments that are given per key.
            step.allow_missing_keys = True
        kept.append(step)
    transforms.transforms = tuple(kept)


def _image_key(named: Any, metadata: dict[str, Any], preprocessing: "Compose | None") -> str:
    if isinstance(named, str):
        return named
    loaded = [] if preprocessing is None else _loaded_keys(preprocessing)
    inputs = (metadata.get("network_data_format") or {}).get("inputs")
    names = [str(name) for name in inputs] if isinstance(inputs, Mapping) else []
    return next(iter([name for name in names if name in loaded] or loaded or names), "image")


def _loaded_keys(preprocessing: "Compose") -> list[str]:
    from monai.transforms import LoadImaged

    loaders = [step for step in preprocessing.flatten().transforms if isinstance(step, LoadImaged)]
    return [str(key) for loader in loaders for key in loader.keys]


def _existing(value: Any) -> Any:
    """A file or several, checked; what is no file name (an array for a further key) as it is."""
    if isinstance(value, (str, os.PathLike)):
        file = Path(value).expanduser()
        if not file.exists():
            raise FileNotFoundError(f"image_file: there is no file {file}")
        return str(file)
    return [_existing(item) for item in value] if isinstance(value, (list, tuple)) else value


def _shown(given: dict[str, Any]) -> str:
    values = [value for held in given.values() for value in (held if isinstance(held, list) else [held])]
    return ", ".join(value if isinstance(value, str) else type(value).__name__ for value in values)
