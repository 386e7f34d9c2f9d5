"""Small networks that return masks of queries or candidates, built from configurations, with the sizes that tests rely on."""

import torch
import transformers
from family_cases import decided
from torch import Tensor, nn

SIDE = 64
"""Of the images that the prompted networks take, ``(N, 3, 64, 64)``."""


def prompts(n: int = 1) -> tuple[Tensor, Tensor]:
    """Two prompts of one click each, for every image: points ``(N, 2, 1, 2)`` as (x, y), and their labels."""
    points = torch.tensor([[[20.0, 20.0]], [[44.0, 40.0]]])
    return points.expand(n, 2, 1, 2).contiguous(), torch.ones(n, 2, 1, dtype=torch.long)


def sam() -> nn.Module:
    """Three candidates for each prompt, at half the image's resolution."""
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 8,
        "mlp_dim": 32,
        "output_channels": 16,
        "window_size": 4,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
    }
    encoder = {
        "hidden_size": 16,
        "image_embedding_size": SIDE // 8,
        "image_size": SIDE,
        "patch_size": 8,
        "mask_input_channels": 4,
    }
    return decided(
        transformers.SamModel(
            transformers.SamConfig(vision_config=vision, prompt_encoder_config=encoder, mask_decoder_config=_decoder())
        )
    )


def _sam2_vision() -> "transformers.Sam2VisionConfig":
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[SIDE, SIDE],
        blocks_per_stage=[1, 2, 1, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1] * 4,
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[2],
        window_positional_embedding_background_size=[2, 2],
    )
    return transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        fpn_hidden_size=16,
    )


def sam2() -> nn.Module:
    """As :func:`sam`, with a hierarchical encoder; three candidates at a quarter of the resolution."""
    encoder = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    configuration = transformers.Sam2Config(
        vision_config=_sam2_vision(), prompt_encoder_config=encoder, mask_decoder_config=_decoder()
    )
    return decided(transformers.Sam2Model(configuration))


def _decoder() -> dict[str, int]:
    return {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def _sam3_vision() -> "transformers.Sam3VisionConfig":
    backbone = transformers.Sam3ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=SIDE,
    )
    return transformers.Sam3VisionConfig(
        backbone_config=backbone, fpn_hidden_size=16, backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]]
    )


def sam3_tracker() -> nn.Module:
    """SAM 3, prompted by clicks as SAM 2 is."""
    encoder = {"hidden_size": 16, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 4}
    configuration = transformers.Sam3TrackerConfig(
        vision_config=_sam3_vision(), prompt_encoder_config=encoder, mask_decoder_config=_decoder()
    )
    return decided(transformers.Sam3TrackerModel(configuration))


def sam3() -> nn.Module:
    """SAM 3, prompted by words."""
    tokens = {"vocab_size": 50, "max_position_embeddings": 8, "projection_dim": 16, "bos_token_id": 1, "eos_token_id": 2}
    sizes = {"hidden_size": 16, "num_attention_heads": 2}
    layers = {**sizes, "num_layers": 1, "intermediate_size": 32}
    configuration = transformers.Sam3Config(
        vision_config=_sam3_vision(),
        text_config=transformers.CLIPTextConfig(**sizes, **tokens, intermediate_size=32, num_hidden_layers=1),
        geometry_encoder_config=transformers.Sam3GeometryEncoderConfig(**layers),
        detr_encoder_config=transformers.Sam3DETREncoderConfig(**layers),
        detr_decoder_config=transformers.Sam3DETRDecoderConfig(num_queries=5, **layers),
        mask_decoder_config=transformers.Sam3MaskDecoderConfig(**sizes),
    )
    return decided(transformers.Sam3Model(configuration))
