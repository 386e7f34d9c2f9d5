"""nnU-Net's own code, imported when it is needed, and what is said where it cannot be."""

import contextlib
import inspect
import io
from pathlib import Path
from typing import Any

__all__ = ["build_network", "find_trainer", "nnunetv2"]

_TORCHVISION = (
    "folder: nnU-Net looks for its trainer in files that import torchvision, which does not work here ({}): it was built for another "
    "PyTorch. Install the one that goes with yours, from the same index (https://pytorch.org/get-started)"
)
_NO_TRAINER = (
    "folder: there is no trainer {!r} in nnunetv2 nor in the folders of the environment variable nnUNet_extTrainer; put its file there as for "
    "nnUNetv2_predict"
)


def nnunetv2() -> Any:
    """The module that holds nnU-Net's predictor.

    Raises:
        ImportError: nnunetv2 is not installed, or something that it needs does not work.
    """
    try:
        # Without the folders of its environment variables, which are not needed here, it prints three paragraphs.
        with contextlib.redirect_stdout(io.StringIO()):
            from nnunetv2.inference import predict_from_raw_data
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "nnunetv2":
            raise
        raise ImportError("nnU-Net's folders need its own code: pip install 'captum-causalseg[nnunet]'") from error
    return predict_from_raw_data


def find_trainer(name: str) -> Any:
    """The trainer's class, which builds the network.

    Raises:
        ImportError: the look-up fails for want of another package.
        ValueError: there is no trainer of that name.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    if name == nnUNetTrainer.__name__:
        # nnU-Net's look-up would import whatever lies before it in the alphabet.
        return nnUNetTrainer
    try:
        found = _look_up(name)
    except (RuntimeError, ImportError) as error:
        if "torchvision" in str(error):
            raise ImportError(_TORCHVISION.format(error)) from error
        if isinstance(error, ImportError):
            raise
        raise ValueError(_NO_TRAINER.format(name)) from error
    if found is None:
        raise ValueError(_NO_TRAINER.format(name))
    return found


def build_network(trainer: Any, plans: Any, settings: Any, channels: tuple[int, int]) -> Any:
    """The network that a trainer builds, without deep supervision.

    Args:
        trainer: its class.
        plans, settings: nnU-Net's managers of the plans and of one configuration.
        channels: of the input and of the output.
    """
    build = trainer.build_network_architecture
    if "plans_manager" in inspect.signature(build).parameters:
        return build(plans, settings, *channels, enable_deep_supervision=False)
    # Before nnU-Net 2.8, and of trainers that were written for it.
    architecture = settings.network_arch_class_name, settings.network_arch_init_kwargs
    return build(*architecture, settings.network_arch_init_kwargs_req_import, *channels, enable_deep_supervision=False)


def _look_up(name: str) -> Any:
    """nnU-Net's own search; ``None`` or a RuntimeError where there is none of that name."""
    predict = nnunetv2()
    if hasattr(predict, "recursive_find_trainer_class_by_name"):
        return predict.recursive_find_trainer_class_by_name(name)
    # Before nnU-Net 2.8.
    root = Path(predict.nnunetv2.__path__[0])
    folder = str(root / "training" / "nnUNetTrainer")
    return predict.recursive_find_python_class(folder, name, "nnunetv2.training.nnUNetTrainer")
