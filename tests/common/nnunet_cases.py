"""An nnU-Net predictor of small plans and untrained weights."""

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

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


def made_predictor(mirroring: bool = True, folds: int = 1) -> nnUNetPredictor:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

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
