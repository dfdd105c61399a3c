"""Tiny detectors of transformers, of several families."""

from typing import Any

import models
import torch
import transformers as T

SIDE = 16
CLASSES = 3
SIZE = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
QUERIES = {"num_queries": 5, "num_labels": CLASSES}


def backbone(*names: str) -> T.ResNetConfig:
    """A small ResNet; its stages of these names are used."""
    return T.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", out_features=[*names]
    )


def detr(**options: Any) -> Any:
    """DETR on a small ResNet."""
    own = {"backbone_config": backbone("stage2"), "backbone": None}
    own |= {"use_timm_backbone": False, "use_pretrained_backbone": False}  # the defaults of transformers 5.0 exclude it
    config = T.DetrConfig(**own, **SIZE, **HEADS, **QUERIES, **options)
    return models._made(lambda: T.DetrForObjectDetection(config), 0)


def yolos() -> Any:
    """YOLOS."""
    config = T.YolosConfig(
        image_size=[SIDE, SIDE], patch_size=8, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16, num_detection_tokens=5, num_labels=CLASSES,
    )  # fmt: skip
    return models._made(lambda: T.YolosForObjectDetection(config), 0)


def conditional_detr() -> Any:
    """Conditional DETR, whose classes are a sigmoid each."""
    config = T.ConditionalDetrConfig(backbone_config=backbone("stage2"), **SIZE, **HEADS, **QUERIES)
    return models._made(lambda: T.ConditionalDetrForObjectDetection(config), 0)


def deformable_detr() -> Any:
    """Deformable DETR with two levels."""
    size = {**SIZE, "d_model": 32, "decoder_layers": 2}  # 32 groups of channels; the heads of all layers are one
    config = T.DeformableDetrConfig(
        backbone_config=backbone("stage1", "stage2"), num_feature_levels=2, **size, **HEADS, **QUERIES
    )
    return models._made(lambda: T.DeformableDetrForObjectDetection(config), 0)


LAYERS = {
    "encoder_hidden_dim": 8, "encoder_in_channels": [4, 8], "feat_strides": [4, 8], "encode_proj_layers": [1],
    "encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "d_model": 8, "decoder_layers": 2,
    "decoder_ffn_dim": 16, "decoder_attention_heads": 2, "decoder_in_channels": [8, 8], "num_feature_levels": 2,
    "num_denoising": 0,
}  # fmt: skip
LEVELS = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "out_features": ["stage1", "stage2"]}
CORNERS = {"decoder_n_points": [2, 2], "max_num_bins": 8, "lqe_hidden_dim": 8, "top_prob_values": 3}
ONE_LEVEL = {
    "projector_scale_factors": [1.0], "c2f_num_blocks": 1, "d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 16,
    "decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "decoder_n_points": 2, "group_detr": 2,
}  # fmt: skip
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "patch_size": 4}


def rt_detr() -> Any:
    """RT-DETR with two levels."""
    own = T.RTDetrResNetConfig(layer_type="basic", **LEVELS)
    config = T.RTDetrConfig(backbone_config=own, **LAYERS, **QUERIES)
    return without_batch_norm(models._made(lambda: T.RTDetrForObjectDetection(config), 0))


def rt_detr_v2() -> Any:
    """RT-DETR v2 with two levels."""
    own = T.RTDetrResNetConfig(layer_type="basic", **LEVELS)
    config = T.RTDetrV2Config(backbone_config=own, decoder_n_levels=2, **LAYERS, **QUERIES)
    return without_batch_norm(models._made(lambda: T.RTDetrV2ForObjectDetection(config), 0))


def d_fine() -> Any:
    """D-FINE with two levels."""
    config = T.DFineConfig(backbone_config=hgnet(), **CORNERS, **LAYERS, **QUERIES)
    return without_batch_norm(models._made(lambda: T.DFineForObjectDetection(config), 0))


def deim_v2() -> Any:
    """DEIMv2 with two levels."""
    config = T.Deimv2Config(backbone_config=hgnet(), **CORNERS, **LAYERS, **QUERIES)
    return without_batch_norm(models._made(lambda: T.Deimv2ForObjectDetection(config), 0))


def hgnet() -> T.HGNetV2Config:
    """A small HGNet with two levels."""
    of_stages = {
        "stage_in_channels": [4, 4], "stage_mid_channels": [4, 4], "stage_out_channels": [4, 8],
        "stage_num_blocks": [1, 1], "stage_numb_of_layers": [1, 1], "stage_downsample": [False, True],
        "stage_light_block": [False, False], "stage_kernel_size": [3, 3], "stem_channels": [3, 4, 4],
    }  # fmt: skip
    return T.HGNetV2Config(**of_stages, **LEVELS)


def lw_detr() -> Any:
    """LW-DETR with one level, trained with two groups of queries."""
    own = T.LwDetrViTConfig(
        image_size=SIDE, pretrain_image_size=SIDE, num_windows=4, window_block_indices=[0], out_indices=[2], **VIT
    )
    config = T.LwDetrConfig(backbone_config=own, **ONE_LEVEL, **QUERIES)
    return without_batch_norm(models._made(lambda: T.LwDetrForObjectDetection(config), 0))


def rf_detr() -> Any:
    """RF-DETR with one level, trained with two groups of queries."""
    own = T.RfDetrDinov2Config(image_size=SIDE, num_windows=2, out_indices=[2], **VIT)
    config = T.RfDetrConfig(backbone_config=own, **ONE_LEVEL, **QUERIES)
    return without_batch_norm(models._made(lambda: T.RfDetrForObjectDetection(config), 0))


def without_batch_norm(model: Any) -> Any:
    """The model without it: behind it, torch has wrong gradients of one row, as the oracle takes them."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, torch.nn.Identity())
    return model


# --- detectors whose classes are words -------------------------------------------------------------------------------


def owl_vit() -> Any:
    """OWL-ViT."""
    text = {"vocab_size": 20, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = T.OwlViTConfig(
        text_config={**text, **size}, vision_config={"image_size": SIDE, "patch_size": 8, **size}, projection_dim=8
    )
    return models._made(lambda: T.OwlViTForObjectDetection(config), 0)


def grounding_dino() -> Any:
    """Grounding DINO on a small Swin and a small BERT."""
    swin = T.SwinConfig(
        image_size=SIDE, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2,
        out_features=["stage1", "stage2"],
    )  # fmt: skip
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    layers = {
        **SIZE,
        **HEADS,
        "d_model": 32,
        "decoder_layers": 2,
        "num_feature_levels": 2,
        "encoder_n_points": 2,
        "decoder_n_points": 2,
    }
    config = T.GroundingDinoConfig(
        backbone_config=swin, text_config=T.BertConfig(vocab_size=120, max_position_embeddings=16, **size),
        num_queries=5, max_text_len=8, **layers,
    )  # fmt: skip
    return models._made(lambda: T.GroundingDinoForObjectDetection(config), 0)
