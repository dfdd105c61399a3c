"""Tokenizers of a trainer: fast ones as they are, slow ones spelled out where that gives exactly their text."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import (
    ByT5Tokenizer,
    CanineTokenizer,
    CTRLTokenizer,
    EsmTokenizer,
    PhobertTokenizer,
    PreTrainedTokenizer,
)

from vog_hf.data.tokenizer_json import tokenizer_json
from vog_hf.scores.pictures.words import word_finder

PROTEIN = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"]
PIECES = ["cat", "dog", "be@@", "low@@", "er", "est", "a"]


class Marked(PreTrainedTokenizer):
    """Words begin with a mark, as those of SentencePiece do; the first word of a text loses it."""

    def __init__(self):
        unknown, first, *_ = self.names = ["<unk>", "<s>", "\u2581cat", "\u2581dog", "s", "\u2581un", "happy", ","]
        super().__init__(unk_token=unknown, bos_token=first)

    @property
    def vocab_size(self):
        """Number of tokens."""
        return len(self.names)

    def get_vocab(self):
        """Numbers by name."""
        return {name: number for number, name in enumerate(self.names)}

    def _tokenize(self, text, **options):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)

    def _convert_id_to_token(self, index):
        return self.names[index]

    def convert_tokens_to_string(self, tokens):
        """Put tokens together."""
        return "".join(tokens).replace("\u2581", " ").strip()


class Upper(Marked):
    """The letters of a token depend on the one before it."""

    def convert_tokens_to_string(self, tokens):
        """A word behind a comma begins in upper case."""
        text = super().convert_tokens_to_string(tokens)
        return text.replace(", c", ", C").replace(", d", ", D")


class Broken(Marked):
    """Its code fails."""

    def convert_tokens_to_string(self, tokens):
        """Fail."""
        raise RuntimeError("not today")


def esm(folder):
    """Amino acids, with a space between them."""
    (folder / "vocab.txt").write_text("\n".join(PROTEIN))
    return EsmTokenizer(str(folder / "vocab.txt"))


def phobert(folder):
    """Pieces that end in @@ inside of a word; the file of merges is not read back here."""
    (folder / "vocab.txt").write_text("".join(f"{piece} 1\n" for piece in PIECES))
    (folder / "bpe.codes").write_text("l o 1\n")
    return PhobertTokenizer(str(folder / "vocab.txt"), str(folder / "bpe.codes"))


def ctrl(folder):
    """The same, in other files, and with an unknown token that is an ordinary one."""
    vocabulary = {piece: number for number, piece in enumerate(["<unk>", *PIECES])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nl o 1\n\n")
    return CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


@pytest.mark.parametrize("make", [esm, phobert, ctrl, lambda folder: Marked()])
def test_a_slow_tokenizer_is_spelled_out(make, tmp_path):
    """Sequences of its tokens have its text, each token its own heat, and special tokens none."""
    slow = make(tmp_path)
    spelled = tokenizer_json(slow)
    finder = word_finder(spelled)
    special = set(slow.all_special_ids) - {slow.unk_token_id}
    plain = [number for number in slow.get_vocab().values() if number not in special]
    word = slow.get_vocab().get("cat", plain[-3])
    for seed in range(20):
        drawn = np.random.default_rng(seed).choice(plain, 9).tolist()
        ids = [*list(special)[:1], word, *drawn, word]
        heat = np.arange(1, 1 + len(ids), dtype=np.float32)
        text = slow.convert_tokens_to_string([slow.convert_ids_to_tokens(number) for number in ids[len(special) > 0 :]])
        words = finder.words_of_ids(ids, heat)
        assert "".join(word.text for word in words) == finder.text(ids[len(special) > 0 :]) == text.strip()
        shares = [word.heat for word in words if word.heat is not None]
        assert shares == pytest.approx((heat[len(special) > 0 :] / len(ids)).tolist())
    assert finder.words(["cat dog"], np.ones(2, dtype=np.float32)) is None, "it finds no token in a text"


@pytest.mark.parametrize("slow", [ByT5Tokenizer, CanineTokenizer, Upper, Broken])
def test_no_tokenizer_rather_than_a_wrong_one(slow):
    """Bytes and characters are not words, letters that depend on their neighbors are not known, errors stay inside."""
    assert tokenizer_json(slow()) is None


def test_the_tokenizer_of_a_processor(tmp_path):
    """A processor's tokenizer is found, fast or slow; anything else has none."""

    class Processor:
        """Has a tokenizer."""

        tokenizer = esm(tmp_path)

    assert tokenizer_json(Processor()) == tokenizer_json(Processor.tokenizer)
    assert Tokenizer.from_str(tokenizer_json(Processor())).get_vocab_size() == len(PROTEIN)
    assert tokenizer_json(object()) is None
