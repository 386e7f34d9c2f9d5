"""Families of segmentation models that take an adapter, an argument or a package: small, built from configurations, never downloaded."""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn


@dataclass(frozen=True)
class Family:
    """A model, how its output is read by hand, and a layer of it.

    Args:
        make: builds it.
        layer: name of a module, whose output is replaced.
        units: of the layer: ``"channel"``, or ``"token"`` of ``(N, L, C)``.
        axis: of the layer's output on which its units lie.
        layout: of the layer, where the library asks for it.
        spatial: of the image.
        channels: of the image.
        arguments: further arguments of the model, by name, for one image.
        output: what the target has to be told.
        logits: finds them in what is returned, by hand.
        activation: in the words of the target, what makes probabilities of them.
        spread: of the weights, so that the image matters.
    """

    make: Callable[[], nn.Module]
    layer: str
    units: str = "channel"
    axis: int = 1
    layout: str = "auto"
    spatial: tuple[int, ...] = (64, 64)
    channels: int = 3
    arguments: Callable[[], dict[str, Any]] = dict
    output: Any = None
    logits: Callable[[Any], Tensor] = lambda returned: returned
    activation: str = "softmax"
    spread: float = 1.5


def decided(model: nn.Module, spread: float = 1.5) -> nn.Module:
    """With weights so large that images differ in what is made of them."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding)):
            fan_in = module.weight[0].numel() if module.weight.ndim > 1 else 1
            nn.init.normal_(module.weight, std=spread / fan_in**0.5, generator=generator)
    return model.eval()


def hugging_face(*names: str) -> ModuleType:
    transformers = pytest.importorskip("transformers")
    if not all(hasattr(transformers, name) for name in names):
        pytest.skip(f"this version of transformers has no {' or '.join(names)}")
    return transformers


def package(name: str) -> ModuleType:
    """A package that the tests do not bring, because it brings torchvision: skipped where it is not installed."""
    return pytest.importorskip(name, reason=f"{name} is not installed")


def swin_backbone(transformers: ModuleType) -> Any:
    sizes = {"image_size": 64, "patch_size": 4, "embed_dim": 8, "window_size": 2}
    stages = [f"stage{stage}" for stage in range(1, 5)]
    return transformers.SwinConfig(depths=[1] * 4, num_heads=[1] * 4, out_features=stages, **sizes)


def mask2former() -> nn.Module:
    transformers = hugging_face("Mask2FormerConfig")
    configuration = transformers.Mask2FormerConfig(
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        num_queries=6,
        num_labels=3,
        backbone_config=swin_backbone(transformers),
    )
    return transformers.Mask2FormerForUniversalSegmentation(configuration)


def maskformer() -> nn.Module:
    transformers = hugging_face("MaskFormerConfig")
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{name}": n for side in sides for name, n in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 16))}
    configuration = transformers.MaskFormerConfig(
        fpn_feature_size=32,
        mask_feature_size=32,
        num_labels=3,
        backbone_config=swin_backbone(transformers),
        decoder_config=transformers.DetrConfig(d_model=16, num_queries=6, **sizes),
    )
    return transformers.MaskFormerForInstanceSegmentation(configuration)


def oneformer() -> nn.Module:
    transformers = hugging_face("OneFormerConfig")
    configuration = transformers.OneFormerConfig(
        backbone_config=swin_backbone(transformers),
        num_queries=5,
        num_classes=3,
        num_labels=3,
        hidden_dim=32,
        mask_dim=32,
        conv_dim=32,
        encoder_feedforward_dim=16,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=16,
        query_dec_layers=1,
        is_training=False,
        task_seq_len=7,
        text_encoder_vocab_size=50,
    )
    return transformers.OneFormerForUniversalSegmentation(configuration)


def detr() -> nn.Module:
    transformers = hugging_face("DetrForSegmentation", "EomtConfig")
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sides = ("encoder", "decoder")
    sizes = {f"{side}_{name}": n for side in sides for name, n in (("layers", 1), ("attention_heads", 8), ("ffn_dim", 16))}
    configuration = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=backbone,
        backbone=None,
        use_pretrained_backbone=False,
        d_model=64,
        num_queries=5,
        num_labels=3,
        **sizes,
    )
    return transformers.DetrForSegmentation(configuration)


def eomt() -> nn.Module:
    transformers = hugging_face("EomtConfig")
    configuration = transformers.EomtConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=64,
        patch_size=16,
        num_register_tokens=0,
        num_blocks=1,
        num_queries=5,
        num_upscale_blocks=1,
        num_labels=3,
    )
    return transformers.EomtForUniversalSegmentation(configuration)


def upernet() -> nn.Module:
    transformers = hugging_face("UperNetConfig")
    sizes = {"hidden_size": 8, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 2}
    configuration = transformers.UperNetConfig(backbone_config=swin_backbone(transformers), **sizes)
    return transformers.UperNetForSemanticSegmentation(configuration)


def dpt() -> nn.Module:
    transformers = hugging_face("DPTConfig")
    configuration = transformers.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=64,
        patch_size=16,
        num_labels=2,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        use_auxiliary_head=False,
        is_hybrid=False,
    )
    return transformers.DPTForSemanticSegmentation(configuration)


def transformer(name: str) -> nn.Module:
    pytest.importorskip("transformers")
    return importlib.import_module("transformer_cases").untrained(name)


def prompted(name: str) -> nn.Module:
    hugging_face("Sam2Model", "Sam3Model")
    return getattr(importlib.import_module("prompted_cases"), name)()


def clicks() -> dict[str, Tensor]:
    points = torch.tensor([[[[20.0, 20.0]], [[44.0, 40.0]]]])
    return {"input_points": points, "input_labels": torch.ones(1, 2, 1, dtype=torch.long)}


def words() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[1, 5, 2, 0]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


def best(out: Any) -> Tensor:
    return torch.stack([masks[int(quality.argmax())] for masks, quality in zip(out.pred_masks[0], out.iou_scores[0])])[None]


def votes(out: Any, side: int | None = None) -> Tensor:
    """Query by query; masks are enlarged first where a side is given."""
    masks, classes = (
        (out.pred_masks, out.logits) if hasattr(out, "pred_masks") else (out.masks_queries_logits, out.class_queries_logits)
    )
    total = 0
    if side is not None:
        masks = nn.functional.interpolate(masks, size=(side, side), mode="bilinear", align_corners=False)
    for query in range(masks.shape[1]):
        share = classes[:, query].softmax(-1)[:, :-1]
        total = total + share[..., None, None] * masks[:, query, None].sigmoid()
    return total


def vista3d() -> nn.Module:
    module = importlib.import_module("monai.networks.nets.vista3d")
    sizes = {"in_channels": 1, "blocks_down": (1, 1), "out_channels": 8, "init_filters": 8, "dsdepth": 1}
    return nets.VISTA3D(
        image_encoder=nets.SegResNetDS2(norm="instance", **sizes),
        class_head=module.ClassMappingClassify(n_classes=32, feature_size=8, use_mlp=True),
        point_head=module.PointMappingSAM(feature_size=8, n_classes=32, last_supported=20),
    )


def swin_v2(d: int) -> nn.Module:
    small = {"depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": {2: 4, 3: 2}[d], "feature_size": 12}
    small["norm_name"] = {2: "instance", 3: "batch"}[d]  # a single voxel is left of the smallest volume
    more = {"img_size": 64 // (d - 1)} if importlib.import_module("monai").__version__ < "1.5" else {}
    return nets.SwinUNETR(in_channels=1, out_channels=2, spatial_dims=d, use_v2=True, **small, **more)


def mednext(d: int) -> nn.Module:
    if not hasattr(nets, "MedNeXt"):
        pytest.skip("this version of MONAI has no MedNeXt")
    sizes = {"encoder_expansion_ratio": 2, "decoder_expansion_ratio": 2, "bottleneck_expansion_ratio": 2}
    blocks = {"blocks_down": (1, 1), "blocks_bottleneck": 1, "blocks_up": (1, 1)}
    return nets.MedNeXt(spatial_dims=d, init_filters=4, in_channels=1, out_channels=2, kernel_size=3, **sizes, **blocks)


def segresnet_ds(d: int) -> nn.Module:
    return nets.SegResNetDS(d, init_filters=4, in_channels=1, out_channels=2, norm="instance", blocks_down=(1, 1), dsdepth=2)


def residual_encoder(d: int) -> nn.Module:
    package("dynamic_network_architectures")
    unet = importlib.import_module("dynamic_network_architectures.architectures.unet")
    convolution, norm = {2: (nn.Conv2d, nn.InstanceNorm2d), 3: (nn.Conv3d, nn.InstanceNorm3d)}[d]
    return unet.ResidualEncoderUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[4, 4, 8],
        conv_op=convolution,
        kernel_sizes=3,
        strides=[1, 2, 2],
        n_blocks_per_stage=1,
        num_classes=2,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=norm,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=True,
    )


def primus() -> nn.Module:
    package("torchvision")
    package("dynamic_network_architectures")
    module = importlib.import_module("dynamic_network_architectures.architectures.primus")
    return module.Primus(1, 12, (8, 8, 8), 2, eva_depth=2, eva_numheads=2, input_shape=(16, 16, 16), drop_path_rate=0.0)


def smp(name: str) -> nn.Module:
    package("torchvision")
    return getattr(package("segmentation_models_pytorch"), name)("resnet18", encoder_weights=None, in_channels=1, classes=2)


class Interactive(nn.Module):
    """As nnInteractive's networks take them: the image and seven maps of prompts in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.UNet(3, 8, 2, (4, 8), (2,), num_res_units=0, norm="instance")

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 8:
            raise ValueError(f"expected an image and seven maps of prompts, got {x.shape[1]} channels")
        return self.net(x)


_classes = functools.partial(dict, class_vector=torch.tensor([[1], [7]]))
_flat, _cube = {"spatial": (32, 32), "channels": 1}, {"spatial": (16, 16, 16), "channels": 1}
FAMILIES = {
    "Mask2Former": Family(
        mask2former, "model.pixel_level_module.decoder.mask_projection", logits=lambda o: votes(o, 64), activation="shares"
    ),
    "MaskFormer": Family(maskformer, "model.pixel_level_module.decoder.mask_projection", logits=votes, activation="shares"),
    "OneFormer": Family(
        oneformer,
        "model.pixel_level_module.decoder.mask_projection",
        arguments=lambda: {"task_inputs": torch.zeros(1, 7, dtype=torch.double)},
        logits=votes,
        activation="shares",
    ),
    "DETR": Family(detr, "detr.model.input_projection", logits=votes, activation="shares"),
    "EoMT": Family(eomt, "layers.1", "token", layout="NLC", logits=lambda o: votes(o, 64), activation="shares"),
    "SAM": Family(
        lambda: prompted("sam"), "vision_encoder.neck", arguments=clicks, logits=best, activation="sigmoid", spread=2.0
    ),
    "SAM 2": Family(
        lambda: prompted("sam2"), "vision_encoder.neck.convs.3", arguments=clicks, logits=best, activation="sigmoid"
    ),
    "SAM 3, clicks": Family(
        lambda: prompted("sam3_tracker"),
        "vision_encoder.backbone.layers.1",
        axis=-1,
        arguments=clicks,
        logits=best,
        activation="sigmoid",
    ),
    "SAM 3, words": Family(
        lambda: prompted("sam3"),
        "mask_decoder.pixel_decoder",
        arguments=words,
        logits=lambda o: o.semantic_seg,
        activation="sigmoid",
    ),
    "UperNet": Family(upernet, "decode_head.fpn_bottleneck", logits=lambda o: o.logits),
    "DPT": Family(dpt, "dpt.encoder.layer.2", "token", logits=lambda o: o.logits, spread=0.7),
    "BEiT": Family(lambda: transformer("beit"), "beit.layers.2", "token", channels=1, logits=lambda o: o.logits),
    "VISTA3D": Family(
        vista3d,
        "image_encoder.up_layers_auto.0.upsample",
        **_cube,
        arguments=_classes,
        logits=lambda o: o.transpose(0, 1),
        activation="sigmoid",
    ),
    "SwinUNETR v2": Family(lambda: swin_v2(2), "decoder1", channels=1),
    "MedNeXt 2D": Family(lambda: mednext(2), "dec_stages.0", **_flat),
    "MedNeXt 3D": Family(lambda: mednext(3), "dec_stages.0", **_cube),
    "SegResNetDS 2D": Family(lambda: segresnet_ds(2), "up_layers.0.blocks", **_flat),
    "SegResNetDS 3D": Family(lambda: segresnet_ds(3), "up_layers.0.blocks", **_cube),
    "ResEnc U-Net 2D": Family(lambda: residual_encoder(2), "decoder.stages.1", **_flat, logits=lambda o: o[0]),
    "ResEnc U-Net 3D": Family(lambda: residual_encoder(3), "decoder.stages.1", **_cube, logits=lambda o: o[0]),
    "Primus": Family(primus, "eva.blocks.1", "token", **_cube),
    **{
        f"segmentation_models_pytorch {name}": Family(lambda name=name: smp(name), "decoder", channels=1, spread=1.1)
        for name in ("Unet", "UnetPlusPlus", "FPN", "DeepLabV3Plus")
    },
}
