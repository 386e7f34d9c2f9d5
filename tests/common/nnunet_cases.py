"""nnU-Net predictors and folders of results, of small plans and untrained weights."""

from pathlib import Path

import numpy as np
import torch

ARCHITECTURE = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 3,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        "n_conv_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    },
    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
}
PLANS = {
    "dataset_name": "Dataset001_Made",
    "plans_name": "nnUNetPlans",
    "configurations": {
        "3d_fullres": {
            "data_identifier": "made",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [16, 16, 16],
            "spacing": [1.0, 1.0, 1.0],
            "architecture": ARCHITECTURE,
        }
    },
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "label_manager": "LabelManager",
}
DATASET = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "one": 1, "two": 2}, "file_ending": ".nii.gz"}


def made_predictor(mirroring: bool = True, folds: int = 1):
    """An ``nnUNetPredictor``."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(PLANS)
    configuration = plans.get_configuration("3d_fullres")
    networks = []
    for fold in range(folds):
        torch.manual_seed(fold)
        networks.append(
            get_network_from_plans(
                configuration.network_arch_class_name,
                configuration.network_arch_init_kwargs,
                configuration.network_arch_init_kwargs_req_import,
                1,
                3,
                allow_init=True,
                deep_supervision=False,
            )
        )
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_mirroring=mirroring,
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        networks[0],
        plans,
        configuration,
        [{name: value.clone() for name, value in network.state_dict().items()} for network in networks],
        DATASET,
        "nnUNetTrainer",
        (0, 1, 2),
    )
    return predictor


def made_results(
    root: Path,
    monkeypatch,
    *,
    channels: tuple[str, ...] = ("T1", "T2"),
    labels: dict | None = None,
    spacing: tuple[float, ...] = (1.5, 1.0, 1.0),
    transpose: tuple[int, ...] = (1, 0, 2),
    folds: int = 1,
    ending: str = ".nii.gz",
    reader: str = "SimpleITKIO",
) -> Path:
    """A folder of results as nnU-Net's own trainer writes it, untrained; with a spacing of two numbers a 2d configuration."""
    import contextlib
    import io
    import json

    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    monkeypatch.setenv("nnUNet_compile", "f")
    monkeypatch.setenv("nnUNet_results", str(root))
    monkeypatch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
    dims = len(spacing)
    kinds = {"torch.nn.modules.conv.Conv3d": f"torch.nn.modules.conv.Conv{dims}d"}
    kinds["torch.nn.modules.instancenorm.InstanceNorm3d"] = f"torch.nn.modules.instancenorm.InstanceNorm{dims}d"
    keywords = {name: kinds.get(str(value), value) for name, value in ARCHITECTURE["arch_kwargs"].items()}
    keywords |= {"kernel_sizes": [[3] * dims] * 3, "strides": [[1] * dims, [2] * dims, [2] * dims]}
    name = {2: "2d", 3: "3d_fullres"}[dims]
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    settings = PLANS["configurations"]["3d_fullres"] | {
        "patch_size": [16] * dims,
        "spacing": list(spacing),
        "architecture": ARCHITECTURE | {"arch_kwargs": keywords},
        "normalization_schemes": ["ZScoreNormalization"] * len(channels),
        "use_mask_for_norm": [False] * len(channels),
        "batch_dice": False,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
    }
    plans = PLANS | {
        "configurations": {name: settings},
        "transpose_forward": list(transpose),
        "transpose_backward": [transpose.index(axis) for axis in range(3)],
        "image_reader_writer": reader,
        "foreground_intensity_properties_per_channel": {str(k): {} for k in range(len(channels))},
    }
    dataset = {
        "channel_names": {str(k): channel for k, channel in enumerate(channels)},
        "labels": labels or {"background": 0, "gray": 1, "white": 2},
        "numTraining": 2,
        "file_ending": ending,
    }
    if any(isinstance(value, list) for value in dataset["labels"].values()):
        dataset["regions_class_order"] = [1, 2]
    # By the endings of preprocessed cases the trainer tells how they are stored.
    preprocessed = root / "preprocessed" / "Dataset001_Made" / "made"
    preprocessed.mkdir(parents=True, exist_ok=True)
    (preprocessed / "case.b2nd").touch()
    folder = root / "Dataset001_Made" / f"nnUNetTrainer__nnUNetPlans__{name}"
    for fold in range(folds):
        torch.manual_seed(fold)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = nnUNetTrainer(
                json.loads(json.dumps(plans)) | {"continue_training": False}, name, fold, dataset, torch.device("cpu")
            )
            trainer.initialize()
            for value in (0.5, 0.25):
                trainer.logger.log("train_losses", np.float32(value), trainer.current_epoch)
            trainer.save_checkpoint(str(folder / f"fold_{fold}" / "checkpoint_final.pth"))
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    return folder
