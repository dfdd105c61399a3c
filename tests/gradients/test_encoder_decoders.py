"""Encoder-decoders of transformers: the decoder is fed what the model's own forward makes of the labels."""

import copy

import models
import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version

from vog_hf import VoGScorer, input_gradients
from vog_hf.errors import ModelError
from vog_hf.gradients.decoder_inputs import decoder_inputs
from vog_hf.gradients.input_leaf import find_leaf

VOCABULARY = models.VOCABULARY
TOKENS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 3}
SMALL = {
    "vocab_size": VOCABULARY,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
    "max_position_embeddings": 32,
    "forced_eos_token_id": None,
    **TOKENS,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, **TOKENS}
SPEECH = {"max_source_positions": 24, "max_target_positions": 24, "suppress_tokens": None}
BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


def of_text(family, options):
    """A family by the name of its classes, on rows of token ids."""
    config = getattr(transformers, f"{family}Config")(**options)
    return getattr(transformers, f"{family}ForConditionalGeneration", None)(config), "input_ids"


def composed(kind):
    """An encoder and a text decoder behind one class."""
    decoder = transformers.BertConfig(
        **BERT, vocab_size=VOCABULARY, is_decoder=True, add_cross_attention=True, max_position_embeddings=32
    )
    image = {"image_size": 8, "patch_size": 4}
    encoder, name = {
        "EncoderDecoder": (transformers.BertConfig(**BERT, vocab_size=VOCABULARY), "input_ids"),
        "VisionEncoderDecoder": (transformers.ViTConfig(**BERT, **image), "pixel_values"),
        "SpeechEncoderDecoder": (models.wav2vec2().model.config, "input_values"),
    }[kind]
    config = getattr(transformers, f"{kind}Config").from_encoder_decoder_configs(encoder, decoder)
    config.pad_token_id, config.decoder_start_token_id = 1, 3
    return getattr(transformers, f"{kind}Model")(config=config), name


FAMILIES = {
    "T5": lambda: of_text("T5", T5),
    "MT5": lambda: of_text("MT5", T5),
    "UMT5": lambda: of_text("UMT5", T5),
    "LongT5": lambda: of_text("LongT5", T5),
    "SwitchTransformers": lambda: of_text(
        "SwitchTransformers", {**T5, "num_experts": 2, "num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0}
    ),
    "Bart": lambda: of_text("Bart", SMALL),
    "MBart": lambda: of_text("MBart", SMALL),
    "PLBart": lambda: of_text("PLBart", SMALL),
    "Mvp": lambda: of_text("Mvp", SMALL),
    "Pegasus": lambda: of_text("Pegasus", SMALL),
    "PegasusX": lambda: of_text("PegasusX", {**SMALL, "num_global_tokens": 2, "block_size": 4}),
    "BigBirdPegasus": lambda: of_text("BigBirdPegasus", {**SMALL, "attention_type": "original_full"}),
    "M2M100": lambda: of_text("M2M100", SMALL),
    "NllbMoe": lambda: of_text(
        "NllbMoe", {**SMALL, "num_experts": 2, "encoder_sparse_step": 0, "decoder_sparse_step": 0}
    ),
    "Blenderbot": lambda: of_text("Blenderbot", SMALL),
    "BlenderbotSmall": lambda: of_text("BlenderbotSmall", SMALL),
    "LED": lambda: of_text(
        "LED",
        {**SMALL, "attention_window": 4, "max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32},
    ),
    "Marian": lambda: (transformers.MarianMTModel(transformers.MarianConfig(**SMALL)), "input_ids"),
    "ProphetNet": lambda: of_text(
        "ProphetNet",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 8,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
            "num_encoder_attention_heads": 2,
            "num_decoder_attention_heads": 2,
            "encoder_ffn_dim": 8,
            "decoder_ffn_dim": 8,
            "max_position_embeddings": 32,
            "disable_ngram_loss": True,
            **TOKENS,
        },
    ),
    "Whisper": lambda: (
        transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                **{**SMALL, **SPEECH, "max_source_positions": 12}, num_mel_bins=8, begin_suppress_tokens=None
            )
        ),
        "input_features",
    ),
    "Speech2Text": lambda: (
        transformers.Speech2TextForConditionalGeneration(
            transformers.Speech2TextConfig(
                **SMALL, max_source_positions=24, max_target_positions=24, input_feat_per_channel=8, conv_channels=8
            )
        ),
        "input_features",
    ),
    "Moonshine": lambda: (
        transformers.MoonshineForConditionalGeneration(
            transformers.MoonshineConfig(
                vocab_size=VOCABULARY,
                hidden_size=8,
                intermediate_size=8,
                encoder_num_hidden_layers=1,
                decoder_num_hidden_layers=1,
                encoder_num_attention_heads=2,
                decoder_num_attention_heads=2,
                **TOKENS,
            )
        ),
        "input_values",
    ),
    **{
        kind: lambda kind=kind: composed(kind)
        for kind in ("EncoderDecoder", "VisionEncoderDecoder", "SpeechEncoderDecoder")
    },
}
SHAPES = {"pixel_values": (3, 8, 8), "input_features": (8, 24), "input_values": (64,)}  # of one row
SINGLE = {"ProphetNet"}  # families whose own forward gives NaN, or fails, in float64
if Version(transformers.__version__) < Version("5.24"):
    SINGLE |= {"LED", "Mvp", "SwitchTransformers"}


def family_case(name):
    """A model, in double precision where it can be, and rows whose inputs and labels have different lengths."""
    torch.manual_seed(0)
    model, main = FAMILIES[name]()
    dtype = torch.float32 if name in SINGLE else torch.float64
    generator = torch.Generator().manual_seed(1)
    rows = []
    for n in (5, 4, 6):
        if main == "input_ids":
            ids = torch.randint(4, VOCABULARY, (8,), generator=generator)
            row = {main: ids, "attention_mask": torch.ones_like(ids)}
        else:
            shape = {"Speech2Text": (24, 8), "Moonshine": (1600,)}.get(name, SHAPES[main])
            row = {main: torch.randn(shape, generator=generator).to(dtype)}
        rows.append({**row, "labels": torch.randint(4, VOCABULARY, (n,), generator=generator)})
    return model.to(dtype).eval(), main, rows


def oracle(model, main, row):
    """Logits of the model's own forward with labels, and the gradient of the mean label logit, of one row alone."""
    batch = {name: value.unsqueeze(0) for name, value in row.items()}
    caught = []
    if main == "input_ids":
        embedding = model.get_encoder().get_input_embeddings()
        handle = embedding.register_forward_hook(
            lambda _module, _args, output: caught.append(output.detach().requires_grad_()) or caught[-1]
        )
    else:
        batch[main] = batch[main].requires_grad_()
        caught.append(batch[main])
    logits = model(**batch, use_cache=False).logits
    if main == "input_ids":
        handle.remove()
    labels = row["labels"]
    scalar = sum(logits[0, i, label] for i, label in enumerate(labels)) / len(labels)
    return logits.detach(), torch.autograd.grad(scalar, caught[0])[0][0]


def changed(model, seed):
    """The weights after some training; tied ones stay tied."""
    generator = torch.Generator().manual_seed(seed)
    trained = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.1)
    return trained.state_dict()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_is_fed_what_its_own_forward_makes_of_the_labels(name):
    """Logits and gradients are those of the model's forward when it is given labels."""
    model, main, rows = family_case(name)
    for row in rows:
        with torch.no_grad():
            shifted = decoder_inputs(model, row["labels"].unsqueeze(0))
            fed = {key: value.unsqueeze(0) for key, value in row.items() if key != "labels"}
            logits = model(**fed, decoder_input_ids=shifted).logits
        expected, gradient = oracle(model, main, row)
        close = {"rtol": 1e-4, "atol": 1e-7} if name in SINGLE else {"rtol": 1e-8, "atol": 1e-12}
        torch.testing.assert_close(logits, expected, **close)
        found = input_gradients(model, {key: value.unsqueeze(0) for key, value in row.items()})[0]
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found, gradient, **close)


@pytest.mark.parametrize("name", ["M2M100", "Whisper", "BlenderbotSmall", "Speech2Text"])
def test_families_without_a_method_of_their_own_are_scored(name):
    """Scores of models that only shift labels inside their forward are those of a loop over rows and snapshots."""
    model, main, rows = family_case(name)
    states = [changed(model, k) for k in range(3)]
    found = VoGScorer(model, batch_size=2, progress=False).score(
        rows, [(f"s{k}", state) for k, state in enumerate(states)], collate_fn=models.collate
    )
    expected = []
    for row in rows:
        gradients = []
        for state in states:
            snapshot = copy.deepcopy(model)
            snapshot.load_state_dict(state)
            gradients.append(oracle(snapshot, main, row)[1].numpy())
        expected.append(np.std(gradients, axis=0).mean())
    np.testing.assert_allclose(found.column("vog"), expected, rtol=1e-6)


def test_a_start_token_that_is_not_known_is_named():
    """A configuration without the token that begins the decoder's input is refused by the name of the setting."""
    model, _, rows = family_case("M2M100")
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match=r"config\.decoder_start_token_id, which is None; set model\.config"):
        input_gradients(model, {key: value.unsqueeze(0) for key, value in rows[0].items()})


def test_left_out_labels_become_padding_of_the_decoder():
    """A label of -100 is fed to the decoder as its padding token."""
    model, _, _ = family_case("M2M100")
    assert decoder_inputs(model, torch.tensor([[5, 6, -100, -100]])).tolist() == [[3, 5, 6, 1]]


def test_an_encoder_that_names_no_embedding_is_asked_through_its_model():
    """FSMT's encoder has no ``get_input_embeddings``; its model names the encoder's embedding."""
    sizes = {name: size for name, size in SMALL.items() if name not in ("vocab_size", "forced_eos_token_id")}
    vocabularies = {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY}
    model = transformers.FSMTForConditionalGeneration(
        transformers.FSMTConfig(langs=["en", "de"], **vocabularies, **sizes)
    )
    ids = torch.randint(4, VOCABULARY, (2, 5))
    assert find_leaf(model, {"input_ids": ids}).embedding is model.get_encoder().embed_tokens
    assert input_gradients(model, {"input_ids": ids, "labels": ids}).shape == (2, 5, 8)
