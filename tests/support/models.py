"""Small models with random weights, one `Case` per kind: the model, rows of varying length, labels, a collator.

`CASES` maps a name to a function that builds its case again, the same one for the same seed. Every model is float32, in
evaluation mode; tests that need float64 call ``case.model.double()``. Rows are as `reference` wants them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

CLASSES = 3
VOCABULARY = 29
PADDING = {"labels": -100}  # of every other key: 0


@dataclass
class Case:
    """A model and rows it can be fed: ``rows`` without padding and labels, ``task`` as the oracle names it."""

    model: nn.Module
    rows: list[dict[str, Tensor]]
    labels: list[Any]
    task: str = "single_label_classification"

    def batch(self, *, labels: bool = True) -> dict[str, Tensor]:
        """All rows as one padded batch, with or without the labels."""
        if not labels:
            return collate(self.rows)
        return collate([{**row, "labels": label} for row, label in zip(self.rows, self.labels, strict=True)])


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows as a batch; where a tensor's first axis varies, padded on the right (masks with 0, labels with -100)."""
    batch = {}
    for name in rows[0]:
        values = [torch.as_tensor(row[name]) for row in rows]
        if values[0].dim() == 0:
            batch[name] = torch.stack(values)
        else:
            batch[name] = pad_sequence(values, batch_first=True, padding_value=PADDING.get(name, 0))
    return batch


def perturbed_states(model: nn.Module, n: int, *, scale: float = 0.1, seed: int = 0) -> list[dict[str, Tensor]]:
    """As if training had left ``n`` snapshots: the model's weights and statistics, each with noise of its own.

    Names of one shared tensor get the same noise.
    """
    generator = torch.Generator().manual_seed(seed)
    states = []
    for _ in range(n):
        noisy: dict[int, Tensor] = {}
        state = {}
        for name, value in model.state_dict().items():
            if value.data_ptr() not in noisy:
                noisy[value.data_ptr()] = value.clone()
                if value.is_floating_point() and not name.endswith("running_var"):
                    noisy[value.data_ptr()].add_(torch.randn(value.shape, generator=generator).to(value), alpha=scale)
            state[name] = noisy[value.data_ptr()].clone()
        states.append(state)
    return states


# --- plain modules --------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """``[batch, 5] -> [batch, classes]``."""

    def __init__(self, n_outputs=CLASSES):
        super().__init__()
        self.hidden = nn.Linear(5, 7)
        self.out = nn.Linear(7, n_outputs)

    def forward(self, features):
        return self.out(self.hidden(features).tanh())


class Shifting(MLP):
    """Shifts its input, in place or not."""

    def __init__(self, *, in_place):
        super().__init__()
        self.in_place = in_place

    def forward(self, features):
        features = features.sub_(0.5) if self.in_place else features - 0.5
        return super().forward(features)


class ConvNet(nn.Module):
    """Images with BatchNorm and dropout; ``checkpointing`` is None or the value of ``use_reentrant``."""

    def __init__(self, channels=3, checkpointing=None):
        super().__init__()
        self.checkpointing = checkpointing
        self.first = nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), nn.Tanh())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, image):
        hidden = self.first(image)
        if self.checkpointing is None:
            hidden = self.second(hidden)
        else:
            hidden = checkpoint(self.second, hidden, use_reentrant=self.checkpointing)
        return self.head(self.dropout(hidden.mean((2, 3))))


class CachedBias(nn.Module):
    """Adds a bias to vectors, which evaluation mode computes once and keeps until ``train(True)``, as in LeViT.

    ``train(True)`` also thaws its weight.
    """

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.cache = {}

    def train(self, mode=True):
        super().train(mode)
        if mode:
            self.cache = {}
            self.weight.requires_grad_()
        return self

    def forward(self, features):
        key = str(features.device)
        if self.training or key not in self.cache:
            bias = self.weight.tanh().repeat(3)[: features.shape[-1]]
            if self.training:
                return features + bias
            self.cache[key] = bias
        return features + self.cache[key]


class Caching(MLP):
    """An MLP whose hidden values get such a bias."""

    def __init__(self):
        super().__init__()
        self.bias = CachedBias()

    def forward(self, features):
        return self.out(self.bias(self.hidden(features)).tanh())


def caching(seed: int = 0) -> Case:
    """A module that keeps what it computed of its weights in evaluation mode."""
    return Case(_made(Caching, seed), _float_rows("features", (5,), seed), [0, 1, 2, 0, 2])


def mlp(seed: int = 0) -> Case:
    """A plain module on vectors."""
    return Case(_made(MLP, seed), _float_rows("features", (5,), seed), [0, 1, 2, 0, 2])


def conv_net(seed: int = 0, **options: Any) -> Case:
    """A plain module with BatchNorm and dropout on images."""
    return Case(_made(partial(ConvNet, **options), seed), _float_rows("image", (3, 8, 8), seed), [0, 1, 2, 0, 2])


def timm_net(seed: int = 0, name: str = "test_resnet") -> Case:
    """A timm model: ``forward(x)``."""
    import timm

    make = partial(timm.create_model, name, num_classes=CLASSES, **({"img_size": 32} if "vit" in name else {}))
    return Case(_made(make, seed, noise=0.02), _float_rows("x", (3, 32, 32), seed, n=3), [0, 1, 2])


# --- transformers: floating inputs ----------------------------------------------------------------------------------


def resnet(seed: int = 0, n_labels: int = CLASSES) -> Case:
    """A residual network on ``pixel_values``."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=n_labels)
    make = partial(ResNetForImageClassification, config)
    return Case(_made(make, seed, noise=0.02), _float_rows("pixel_values", (3, 16, 16), seed), [0, 1, 2, 0, 2])


def vit(seed: int = 0) -> Case:
    """A vision transformer on ``pixel_values`` (SDPA attention)."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(image_size=8, patch_size=4, num_labels=CLASSES, **_width())
    make = partial(ViTForImageClassification, config)
    return Case(_made(make, seed), _float_rows("pixel_values", (3, 8, 8), seed), [0, 1, 2, 0, 2])


def wav2vec2(seed: int = 0) -> Case:
    """A speech classifier on waveforms of varying length, with layer norm: padding changes nothing."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(
        **_width(),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_dim=(4, 4),
        conv_kernel=(4, 3),
        conv_stride=(2, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=8,
        num_labels=CLASSES,
        vocab_size=VOCABULARY,
    )
    generator = torch.Generator().manual_seed(seed)
    rows = [
        {"input_values": torch.randn(n, generator=generator), "attention_mask": torch.ones(n, dtype=torch.int64)}
        for n in (40, 53, 47)
    ]
    return Case(_made(partial(Wav2Vec2ForSequenceClassification, config), seed), rows, [0, 1, 2])


def spectrogram(seed: int = 0) -> Case:
    """An audio spectrogram transformer on ``input_values [frames, mel bins]``."""
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(
        **_width(), patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8, num_labels=CLASSES
    )
    make = partial(ASTForAudioClassification, config)
    return Case(_made(make, seed), _float_rows("input_values", (16, 8), seed, n=3), [0, 1, 2])


def whisper(seed: int = 0) -> Case:
    """Whisper's encoder as a classifier on ``input_features [mel bins, frames]``."""
    from transformers import WhisperConfig, WhisperForAudioClassification

    config = WhisperConfig(
        d_model=8,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=10,
        classifier_proj_size=8,
        vocab_size=VOCABULARY,
        num_labels=CLASSES,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    make = partial(WhisperForAudioClassification, config)
    return Case(_made(make, seed), _float_rows("input_features", (8, 20), seed, n=3), [0, 1, 2])


# --- transformers: tokens -------------------------------------------------------------------------------------------


def bert(seed: int = 0, **options: Any) -> Case:
    """A text classifier on rows of varying length."""
    from transformers import BertForSequenceClassification

    make = partial(BertForSequenceClassification, bert_config(**options))
    return Case(_made(make, seed), token_rows(seed), [0, 1, 2, 0, 2])


def bert_config(**options: Any) -> Any:
    """Configuration of the smallest BERT."""
    from transformers import BertConfig

    return BertConfig(
        **{**_width(), "vocab_size": VOCABULARY, "max_position_embeddings": 16, "num_labels": 3, **options}
    )


def lora_bert(seed: int = 0) -> Case:
    """The text classifier under a LoRA adapter whose weights are not zero."""
    from peft import LoraConfig, get_peft_model

    case = bert(seed)
    options = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"], init_lora_weights=False)
    return Case(_made(partial(get_peft_model, case.model, options), seed), case.rows, case.labels)


def multi_label_bert(seed: int = 0) -> Case:
    """A text classifier whose rows have several labels; row 3 has none."""
    case = bert(seed, problem_type="multi_label_classification")
    labels = [torch.tensor(row) for row in ([1.0, 0, 1], [0.0, 1, 0], [1.0, 1, 1], [0.0, 0, 0], [1.0, 0, 0])]
    return Case(case.model, case.rows, labels, "multi_label_classification")


def regression_bert(seed: int = 0) -> Case:
    """A text regression with one output."""
    case = bert(seed, num_labels=1)
    return Case(case.model, case.rows, [torch.tensor(y) for y in (0.5, -1.0, 2.0, 0.0, 1.5)], "regression")


def token_bert(seed: int = 0) -> Case:
    """A token classifier; the first token of each row has no label."""
    from transformers import BertForTokenClassification

    rows = token_rows(seed)
    labels = [torch.tensor([-100, *(i % CLASSES for i in range(1, len(row["input_ids"])))]) for row in rows]
    return Case(_made(partial(BertForTokenClassification, bert_config()), seed), rows, labels, "token_classification")


def xlnet(seed: int = 0) -> Case:
    """A text classifier inside of which tokens come before rows: its embeddings are ``[tokens, batch, width]``."""
    from transformers import XLNetConfig, XLNetForSequenceClassification

    config = XLNetConfig(
        vocab_size=VOCABULARY, d_model=8, n_layer=2, n_head=2, d_inner=16, num_labels=CLASSES, summary_type="first"
    )
    return Case(_made(partial(XLNetForSequenceClassification, config), seed), token_rows(seed), [0, 1, 2, 0, 2])


def gpt2(seed: int = 0) -> Case:
    """A causal language model with tied embeddings; the first two tokens of each row have no label."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    rows = token_rows(seed)
    return Case(_made(partial(GPT2LMHeadModel, config), seed), rows, _prompted(rows), "causal_language_model")


def llama(seed: int = 0) -> Case:
    """A causal language model with rotary positions, grouped queries and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **_width(), vocab_size=VOCABULARY, num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True
    )
    rows = token_rows(seed)
    return Case(_made(partial(LlamaForCausalLM, config), seed), rows, _prompted(rows), "causal_language_model")


def llava(seed: int = 0) -> Case:
    """A decoder of text in which an image stands, four tokens long."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(**_width(), image_size=8, patch_size=4, projection_dim=8)
    text = LlamaConfig(**_width(), vocab_size=VOCABULARY + 1, num_key_value_heads=1, max_position_embeddings=32)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=VOCABULARY, image_seq_length=4)
    texts = [torch.cat([torch.full((4,), VOCABULARY), row["input_ids"]]) for row in token_rows(seed)]
    rows = [
        {"input_ids": text, "attention_mask": torch.ones_like(text), **image}
        for text, image in zip(texts, _float_rows("pixel_values", (3, 8, 8), seed), strict=True)
    ]
    labels = [torch.cat([torch.full((6,), -100), text[6:]]) for text in texts]
    return Case(_made(partial(LlavaForConditionalGeneration, config), seed), rows, labels, "causal_language_model")


def t5(seed: int = 0) -> Case:
    """An encoder-decoder whose embedding is shared by encoder, decoder and head."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return _translation(partial(T5ForConditionalGeneration, config), seed)


def bart(seed: int = 0) -> Case:
    """An encoder-decoder that scales its embeddings."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=8,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=16,
        scale_embedding=True,
        forced_eos_token_id=None,
    )
    return _translation(partial(BartForConditionalGeneration, config), seed)


def token_rows(seed: int = 0, lengths: tuple[int, ...] = (7, 4, 9, 3, 6)) -> list[dict[str, Tensor]]:
    """Rows of token ids (none of them a special one) with their attention masks."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(4, VOCABULARY, (n,), generator=generator),
            "attention_mask": torch.ones(n, dtype=torch.int64),
        }
        for n in lengths
    ]


CASES: dict[str, Callable[..., Case]] = {
    make.__name__: make
    for make in (
        mlp,
        caching,
        conv_net,
        timm_net,
        resnet,
        vit,
        wav2vec2,
        spectrogram,
        whisper,
        bert,
        lora_bert,
        multi_label_bert,
        regression_bert,
        token_bert,
        xlnet,
        gpt2,
        llama,
        llava,
        t5,
        bart,
    )
}


def _translation(make: Callable[[], nn.Module], seed: int) -> Case:
    targets = token_rows(seed + 1, lengths=(3, 5, 2, 4, 6))
    return Case(_made(make, seed), token_rows(seed), [row["input_ids"] for row in targets], "token_prediction")


def _prompted(rows: list[dict[str, Tensor]]) -> list[Tensor]:
    return [torch.cat([torch.full((2,), -100), row["input_ids"][2:]]) for row in rows]


def _width() -> dict[str, int]:
    return {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def _float_rows(name: str, shape: tuple[int, ...], seed: int, n: int = 5) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{name: torch.randn(shape, generator=generator)} for _ in range(n)]


def _made(make: Callable[[], nn.Module], seed: int, *, noise: float = 0.2) -> nn.Module:
    """The model on a seed of its own, every weight and statistic away from its default, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
                    module.running_mean.normal_(std=0.2)
                    module.running_var.uniform_(0.5, 1.5)
    return model.eval()
