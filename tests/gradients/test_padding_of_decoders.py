"""Scores of language models do not depend on how rows are padded: neither on the side nor on the batch."""

import logging

import numpy as np
import pytest
import torch
import transformers

from vog_hf import VoGConfig, VoGScorer

LENGTHS = (11, 9, 4, 11, 3, 6)
WIDTHS = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 0,
}
FAMILIES = {
    "GPTNeoX": WIDTHS,
    "Llama": WIDTHS,
    "Mistral": WIDTHS | {"num_key_value_heads": 1},
    "Qwen2": WIDTHS | {"num_key_value_heads": 1},
    "Qwen3": WIDTHS | {"num_key_value_heads": 1, "head_dim": 8},
    "Gemma": WIDTHS | {"num_key_value_heads": 1, "head_dim": 8},
    "Phi": WIDTHS,
    "OPT": {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24}
    | {"word_embed_proj_dim": 16, "pad_token_id": 0, "max_position_embeddings": 32},
    "Falcon": {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "alibi": True},
    "Mamba": {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "pad_token_id": 0},
}
QUICK = ("Llama", "Gemma")


def decoder(family, **options):
    """A small causal language model in float64."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{family}Config")(**options)
    model = getattr(transformers, f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}")(config)
    return model.double()


def texts():
    """Rows of several lengths, token 0 being padding."""
    draw = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(3, 31, (length,), generator=draw), "row": 1} for length in LENGTHS]


def padded(side, *, positions=False):
    """A collator as those of language models: labels are the tokens, -100 at padding."""

    def collate(rows):
        texts = [row["input_ids"] for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_side=side)
        mask = (ids != 0).long()
        batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
        return batch | ({"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if positions else {})

    return collate


def states(model):
    """Three snapshots, in which tied weights are still the same."""
    return [
        (f"step-{step}", {name: value + 0.05 * step * (50 * value).cos() for name, value in model.state_dict().items()})
        for step in range(3)
    ]


def reported(caplog):
    """What the library logged."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("vog_hf")]


def scored(model, side, size, **options):
    """Scores of all rows."""
    config = VoGConfig(target=("logit", "loss"))
    scorer = VoGScorer(model, config=config, batch_size=size, progress=False)
    return scorer.score(texts(), states(model), collate_fn=padded(side, **options))


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_no_score_of_a_decoder_depends_on_padding(family, caplog):
    """Every column and map is the same one row at a time and four at a time, padded on the left and on the right."""
    model = decoder(family, **FAMILIES[family])
    takes_positions = family not in ("Mamba", "OPT")
    alone = scored(model, "right", 1)
    for side in ("left", "right"):
        together = scored(model, side, 4, positions=takes_positions)
        for column in alone.column_names:
            expected = alone.column(column)
            np.testing.assert_allclose(together.column(column), expected, rtol=1e-6, atol=1e-12, err_msg=column)
        for row in range(len(LENGTHS)):
            np.testing.assert_allclose(together.heat_map(row), alone.heat_map(row), rtol=1e-3, atol=1e-6)
    assert not [record for record in caplog.records if "padded" in record.getMessage()]


def test_a_decoder_with_absolute_positions_says_what_to_do_about_padding_on_the_left(caplog):
    """GPT-2 without position_ids counts its positions from the padding: that is reported, and the advice works."""
    options = {"vocab_size": 31, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = decoder("GPT2", **options)
    alone = scored(model, "left", 1).column("vog")
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        assert np.abs(scored(model, "left", 3).column("vog") / alone - 1).max() > 1e-3
    (line,) = reported(caplog)
    assert "padding_side='right'" in line
    assert "position_ids" in line
    np.testing.assert_allclose(scored(model, "left", 3, positions=True).column("vog"), alone, rtol=1e-6)
    np.testing.assert_allclose(scored(model, "right", 3).column("vog"), alone, rtol=1e-6)
    assert len(reported(caplog)) == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_a_sequence_model_padded_on_the_left_are_reported(side, caplog):
    """A T5 decoder fed padding before a short target depends on the batch; padding behind it changes nothing."""
    torch.manual_seed(1)
    config = transformers.T5Config(vocab_size=31, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    config.decoder_start_token_id = config.pad_token_id = 0
    model = transformers.T5ForConditionalGeneration(config).double()
    draw = torch.Generator().manual_seed(2)
    rows = [{"input_ids": torch.randint(3, 31, (6,), generator=draw), "target": n} for n in (5, 5, 2, 5)]

    def collate(rows):
        ids = torch.stack([row["input_ids"] for row in rows])
        targets = [row["input_ids"][: row["target"]] for row in rows]
        labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100, padding_side=side)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    found = [
        VoGScorer(model, batch_size=size, progress=False).score(rows, states(model), collate_fn=collate).column("vog")
        for size in (1, 4)
    ]
    lines = reported(caplog)
    if side == "right":
        np.testing.assert_allclose(found[1], found[0], rtol=1e-6)
        assert not lines
    else:
        (line,) = lines
        assert "row 2" in line
        assert "when it is padded to the length of its batch" in line
