"""Tiny models of transformers and timm that draw random numbers while they train, and modules that branch on values.

`RANDOM` and `BRANCHING` map a name to a function that builds a `models.Case`, the same in every call.
"""

from collections.abc import Callable
from functools import partial

import torch
import transformers
from models import CLASSES, VOCABULARY, Case, token_rows
from torch import nn

WIDTH = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = [0, 1, 2, 0, 2, 1]
N_ROWS = len(LABELS)


def _case(make: Callable[[], nn.Module], rows: list[dict[str, torch.Tensor]]) -> Case:
    """The model with weights of its own seed, away from their defaults."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1 if parameter.dim() else 0.0)
    return Case(model, rows, LABELS)


def _floats(name: str, *shape: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{name: torch.randn(shape, generator=generator)} for _ in range(N_ROWS)]


def _tokens() -> list[dict[str, torch.Tensor]]:
    return token_rows(1, lengths=(6,) * N_ROWS)


# --- drop path ------------------------------------------------------------------------------------------------------


def swin() -> Case:
    """Swin with drop path."""
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, mlp_ratio=2,
        drop_path_rate=0.5, num_labels=CLASSES,
    )  # fmt: skip
    return _case(partial(transformers.SwinForImageClassification, config), _floats("pixel_values", 3, 16, 16))


def convnext() -> Case:
    """ConvNeXt with drop path and layer scale."""
    config = transformers.ConvNextConfig(
        hidden_sizes=[4, 8], depths=[1, 2], num_stages=2, drop_path_rate=0.5, layer_scale_init_value=0.5,
        num_labels=CLASSES,
    )  # fmt: skip
    return _case(partial(transformers.ConvNextForImageClassification, config), _floats("pixel_values", 3, 16, 16))


def timm_drop_path(name: str) -> Case:
    """A test model of timm with drop path and dropout."""
    import timm

    options = {"img_size": 32} if "vit" in name else {}
    make = partial(timm.create_model, name, num_classes=CLASSES, drop_path_rate=0.5, drop_rate=0.2, **options)
    return _case(make, _floats("x", 3, 32, 32))


# --- masks over time and layers that are left out -------------------------------------------------------------------

WAVES = {
    **WIDTH,
    "conv_dim": (4, 4), "conv_kernel": (4, 3), "conv_stride": (2, 2),
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8,
    "feat_extract_norm": "layer", "num_labels": CLASSES, "vocab_size": VOCABULARY,
    "apply_spec_augment": True, "mask_time_prob": 0.6, "mask_time_length": 2, "mask_time_min_masks": 1,
    "mask_feature_prob": 0.5, "mask_feature_length": 2, "layerdrop": 0.5,
}  # fmt: skip


def waves(name: str, **options: object) -> Case:
    """A classifier of waveforms with SpecAugment, layer drop and dropout."""
    config = getattr(transformers, f"{name}Config")(**{**WAVES, **options})
    make = partial(getattr(transformers, f"{name}ForSequenceClassification"), config)
    return _case(make, _floats("input_values", 60))


def whisper() -> Case:
    """Whisper's encoder with SpecAugment and layer drop."""
    config = transformers.WhisperConfig(
        d_model=8, encoder_layers=3, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=16, decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=10, max_target_positions=10,
        classifier_proj_size=8, vocab_size=VOCABULARY, num_labels=CLASSES, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        encoder_layerdrop=0.5, apply_spec_augment=True, mask_time_prob=0.5, mask_time_length=2,
    )  # fmt: skip
    return _case(partial(transformers.WhisperForAudioClassification, config), _floats("input_features", 8, 20))


def opt() -> Case:
    """OPT with layer drop."""
    config = transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=8, word_embed_proj_dim=8, ffn_dim=16, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=16, layerdrop=0.5, num_labels=CLASSES, pad_token_id=0,
    )  # fmt: skip
    return _case(partial(transformers.OPTForSequenceClassification, config), _tokens())


# --- mixtures of experts --------------------------------------------------------------------------------------------


def experts(name: str, **options: object) -> Case:
    """A mixture of experts whose router multiplies its input with random numbers in training."""
    config = getattr(transformers, f"{name}Config")(
        **WIDTH, vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=16, num_labels=CLASSES,
        pad_token_id=0, num_experts_per_tok=2, num_local_experts=3, **options,
    )  # fmt: skip
    return _case(partial(getattr(transformers, f"{name}ForSequenceClassification"), config), _tokens())


RANDOM: dict[str, Callable[[], Case]] = {
    "Swin, drop path": swin,
    "ConvNeXt, drop path": convnext,
    "timm ConvNeXt, drop path": partial(timm_drop_path, "test_convnext"),
    "timm ViT, drop path": partial(timm_drop_path, "test_vit"),
    "timm EfficientNet, drop path": partial(timm_drop_path, "test_efficientnet"),
    "Wav2Vec2, SpecAugment": partial(waves, "Wav2Vec2", do_stable_layer_norm=True),
    "HuBERT, SpecAugment": partial(waves, "Hubert"),
    "SEW, SpecAugment": partial(waves, "SEW", squeeze_factor=2),
    "UniSpeech, SpecAugment": partial(waves, "UniSpeech"),
    "Data2Vec, SpecAugment": partial(waves, "Data2VecAudio", conv_pos_kernel_size=3),
    "Whisper, SpecAugment": whisper,
    "OPT, layer drop": opt,
    "Mixtral, router jitter": partial(experts, "Mixtral", router_jitter_noise=0.5),
    "PhiMoE, router jitter": partial(experts, "Phimoe", router_jitter_noise=0.5, input_jitter_noise=0.5),
}


# --- control flow that depends on values ----------------------------------------------------------------------------


class BranchOnInput(nn.Module):
    """One of two networks per row, chosen by the sign of its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, CLASSES), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([(self.high if row.mean() > 0 else self.low)(row.sin()) for row in x])


class BranchOnWeights(nn.Module):
    """Another activation, and another shape inside, once training has moved a gate below 0.04."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.04))
        self.conv, self.norm, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.conv(x))
        hidden = hidden.tanh() if self.gate > 0.04 else hidden[..., ::2, ::2].sigmoid()
        return self.head(hidden.mean((2, 3))) + self.gate * torch.tensor([60.0, 0.0, 0.0]).to(x)


class EarlyExit(nn.Module):
    """In evaluation mode, rows that the first head is sure of leave there; in training both heads count."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.early, self.late = nn.Linear(6, CLASSES), nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        early = self.early(hidden)
        if self.training:
            return early + self.late(self.second(hidden).tanh())
        going_on = early.softmax(1).amax(1) < 0.5
        late = self.late(self.second(hidden[going_on]).tanh())
        return early.index_put((going_on.nonzero().flatten(),), late)


BRANCHING: dict[str, Callable[[], Case]] = {
    "branch on the input": lambda: _case(BranchOnInput, _floats("x", 6)),
    "branch on the weights": lambda: _case(BranchOnWeights, _floats("x", 2, 8, 8)),
    "early exit": lambda: _case(EarlyExit, _floats("x", 6)),
}
