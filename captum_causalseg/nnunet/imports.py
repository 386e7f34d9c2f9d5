"""nnU-Net's own code, imported when it is needed, and what is said where it cannot be."""

import contextlib
import io
from typing import Any

__all__ = ["find_trainer", "nnunetv2"]

_TORCHVISION = (
    "folder: nnU-Net looks for its trainer in files that import torchvision, which does not work here ({}): it was built for another "
    "PyTorch. Install the one that goes with yours, from the same index (https://pytorch.org/get-started)"
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
        return nnunetv2().recursive_find_trainer_class_by_name(name)
    except RuntimeError as error:
        if "torchvision" in str(error):
            raise ImportError(_TORCHVISION.format(error)) from error
        raise ValueError(
            f"folder: there is no trainer {name!r} in nnunetv2 nor in the folders of the environment variable nnUNet_extTrainer; put its file "
            "there as for nnUNetv2_predict"
        ) from error
    except ImportError as error:
        if "torchvision" in str(error):
            raise ImportError(_TORCHVISION.format(error)) from error
        raise
