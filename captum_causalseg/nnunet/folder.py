"""A folder of nnU-Net's results: plans, data set and folds read, the network and its sliding window made."""

import contextlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from captum_causalseg._checks import BOOLEAN, NONE, PATH, TEXT, checked, instance, integer, number, one_of, sequence, shown
from captum_causalseg._state import undisturbed
from captum_causalseg.bundle.weights import mismatch, reason
from captum_causalseg.nnunet.checkpoints import read_checkpoint
from captum_causalseg.nnunet.imports import build_network, find_trainer, nnunetv2
from captum_causalseg.nnunet.model import NnunetModel
from captum_causalseg.nnunet.slices import slice_by_slice
from captum_causalseg.target import WindowedModel

__all__ = ["load_nnunet"]

Fold = int | str
_FOLD = integer(0) | one_of("all")


@checked(
    folder=PATH,
    folds=_FOLD | sequence(_FOLD, 1, expected="a sequence of folds"),
    checkpoint=TEXT,
    mirroring=BOOLEAN,
    step=number(above=0, most=1),
    device=NONE | TEXT | instance(torch.device),
    trust=BOOLEAN,
    dataset=NONE | TEXT | integer(1),
    configuration=NONE | TEXT,
    trainer=NONE | TEXT,
    plans=NONE | TEXT,
)
def load_nnunet(
    folder: str | os.PathLike[str],
    folds: Fold | Sequence[Fold] = (0,),
    *,
    checkpoint: str = "checkpoint_final.pth",
    mirroring: bool = False,
    step: float = 0.5,
    device: str | torch.device | None = None,
    trust: bool = False,
    dataset: str | int | None = None,
    configuration: str | None = None,
    trainer: str | None = None,
    plans: str | None = None,
) -> NnunetModel:
    """Load a trained nnU-Net: its network with the weights of its folds, sliding window, pre-processing and labels.

    nnU-Net's own code does plans, architecture, pre-processing, window positions, resampling and the reading of images; it has to be
    installed (``pip install 'captum-causalseg[nnunet]'``). Weights are read without running pickled code.

    Args:
        folder: of the model (``.../nnUNetTrainer__nnUNetPlans__3d_fullres``, with ``plans.json``, ``dataset.json`` and ``fold_0``); or
            that of all results (``nnUNet_results``), with the names below.
        folds: which folds; of several, logits are averaged, as ``nnUNetv2_predict`` does.
        checkpoint: the file in each fold.
        mirroring: average over flipped windows, as ``nnUNetv2_predict`` does unless it is told not to: 8 times the work in three
            dimensions. Without it another model is explained, whose probabilities may differ by some tenths at single voxels.
        step: from one window to the next, a share of its length.
        device: where the model runs; ``None``: the first CUDA device, else the CPU.
        trust: let the checkpoint run code of its own. Only for files whose origin you know.
        dataset: name (``"Dataset004_Hippocampus"``) or number, in a folder of all results.
        configuration, trainer, plans: names there; ``None``: ``"3d_fullres"``, ``"nnUNetTrainer"``, ``"nnUNetPlans"``.

    Returns:
        :class:`NnunetModel`.

    Raises:
        FileNotFoundError: no such folder, fold or checkpoint.
        ImportError: nnunetv2 is missing, or a package that it needs does not work.
        ValueError: a cascade, an unknown trainer, files that do not fit together, a checkpoint that holds more than weights.

    Example:
        >>> from captum_causalseg import load_nnunet
        >>> def explained(results):  # where nnunetv2 is installed
        ...     return load_nnunet(results, folds=(0, 1), dataset=4, configuration="3d_fullres").model
        >>> callable(explained)
        True
    """
    root = _model_folder(Path(folder).expanduser(), dataset=dataset, names=(trainer, plans, configuration))
    chosen = [folds] if isinstance(folds, (int, str)) else list(folds)
    files = [_checkpoint(root, fold, checkpoint) for fold in chosen]
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    predict = nnunetv2()
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    about, manager = predict.load_json(str(root / "dataset.json")), PlansManager(predict.load_json(str(root / "plans.json")))
    found = [read_checkpoint(file, trust) for file in files]
    name = found[0]["init_args"]["configuration"]
    settings = manager.get_configuration(name)
    if settings.previous_stage_name is not None:
        raise ValueError(
            f"folder: {root.name} is the second stage of a cascade ({name}), whose input holds the first stage's segmentation; explain "
            f"{settings.previous_stage_name}, or another configuration"
        )
    labels = manager.get_label_manager(about)
    # Networks are initialized at random before their weights are loaded.
    with undisturbed(load_nnunet):
        channels = determine_num_input_channels(manager, settings, about), labels.num_segmentation_heads
        network = build_network(find_trainer(found[0]["trainer_name"]), manager, settings, channels=channels)
    weights = [_bare(one["network_weights"]) for one in found]
    for file, state in zip(files, weights):
        try:
            network.load_state_dict(state)
        except Exception as error:
            raise ValueError(
                f"checkpoint: {file} does not fit the network of {root}: {mismatch(network, state) or reason(error)}"
            ) from error
    # It prints what it makes of a CPU.
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = predict.nnUNetPredictor(tile_step_size=float(step), use_mirroring=mirroring, device=place, allow_tqdm=False)
    axes = found[0].get("inference_allowed_mirroring_axes")
    predictor.manual_initialization(network, manager, settings, weights, about, found[0]["trainer_name"], axes)
    return NnunetModel(
        path=root,
        device=place,
        model=slice_by_slice(predictor) if _on_volumes(settings, about) else WindowedModel.from_nnunet(predictor),
        labels=_labels(about, labels),
        has_regions=bool(labels.has_regions),
        channels=tuple(map(str, (about.get("channel_names") or about["modality"]).values())),
        plans=manager,
        configuration=settings,
        dataset=about,
    )


def _model_folder(given: Path, dataset: str | int | None, names: tuple[str | None, str | None, str | None]) -> Path:
    if not given.is_dir():
        raise FileNotFoundError(f"folder: there is no folder {given}" + (", it is a file" if given.is_file() else ""))
    if dataset is None:
        if (asked := next((name for name in names if name is not None), None)) is not None:
            raise ValueError(f"dataset: expected one beside {shown(asked)}, got None; or give the folder of the model alone")
        if given.name.startswith("fold_") and (given.parent / "plans.json").is_file():
            given = given.parent
        for needed in ("plans.json", "dataset.json"):
            if not (given / needed).is_file():
                inside = sorted(path.parent.relative_to(given) for path in given.glob("*/*/plans.json"))
                held = f"; there are models in it: {', '.join(map(str, inside))}" if inside else ""
                raise FileNotFoundError(f"folder: there is no {needed} in {given}, it is no model's folder{held}")
        return given
    listed = sorted(path.name for path in given.iterdir() if path.is_dir() and path.name.startswith("Dataset"))
    wanted = f"Dataset{dataset:03d}_" if isinstance(dataset, int) else str(dataset)
    found = [name for name in listed if name == wanted or (isinstance(dataset, int) and name.startswith(wanted))]
    if len(found) != 1:
        raise ValueError(f"dataset: expected one of {listed} in {given}, got {shown(dataset)}")
    defaults = ("nnUNetTrainer", "nnUNetPlans", "3d_fullres")
    name = "__".join(one or default for one, default in zip(names, defaults))
    root = given / found[0] / name
    if not (root / "plans.json").is_file():
        models = sorted(path.parent.name for path in (given / found[0]).glob("*/plans.json"))
        raise FileNotFoundError(f"folder: there is no model {name} in {given / found[0]}; there are: {models or 'none'}")
    return root


def _checkpoint(root: Path, fold: Fold, name: str) -> Path:
    file = root / f"fold_{fold}" / name
    if not file.is_file():
        held = sorted(str(path.relative_to(root)) for path in root.glob("fold_*/*.pth")) or "none"
        raise FileNotFoundError(f"folds: there is no checkpoint {file.relative_to(root)} in {root}; there are: {held}")
    return file


def _bare(state: dict[str, Any]) -> dict[str, Any]:
    """Without the names of wrappers (several devices, compiled)."""
    prefixes = ("module.", "_orig_mod.")
    while state and (prefix := next((p for p in prefixes if all(key.startswith(p) for key in state)), None)):
        state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


def _on_volumes(settings: Any, about: dict[str, Any]) -> bool:
    """Whether the network segments slices of volumes."""
    return len(settings.patch_size) == 2 and about["file_ending"].lower() not in (
        ".png",
        ".bmp",
        ".tif",
        ".tiff",
        ".jpg",
        ".jpeg",
    )


def _labels(about: dict[str, Any], labels: Any) -> dict[str, int]:
    names = {name: value for name, value in about["labels"].items() if name != "ignore"}
    if not labels.has_regions:
        return {str(name): int(value) for name, value in names.items()}
    regions = {str(name): value for name, value in names.items() if not _is_background(value)}
    return {name: channel for channel, name in enumerate(regions)}


def _is_background(value: Any) -> bool:
    return all(int(one) == 0 for one in (value if isinstance(value, (list, tuple)) else [value]))
