"""The heat of a text on its words: found by the tokenizer that made the model's inputs, and never by guessing."""

import re

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import EsmTokenizer

from vog_hf.data.tokenizer_json import tokenizer_json
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.scores.pictures import RowViews
from vog_hf.scores.pictures.words import Word, beginning, word_finder, words_markup
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores

TEXTS = ["It  rained, café <b>", "Unhappiness isn't a thing", "日本語 and 🙂🙂 emoji", "zzz"]
READS_TOKENS = {"input": {"name": "input_ids", "embedding": True}}


def word_piece():
    """A WordPiece tokenizer like BERT's, of these texts but for the last one."""
    unknown, *_ = special = ["[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(TEXTS[:3], trainers.WordPieceTrainer(vocab_size=60, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level():
    """A byte-pair tokenizer like GPT-2's: a character may take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def heat_of(tokenizer, *texts):
    """A heat map for the tokens of a text: 1, 2, 3 ..."""
    return np.arange(1, 1 + len(tokenizer.encode(*texts).ids), dtype=np.float32)


def make_scores(heats, tokenizer, **manifest):
    """Scores with these heat maps of one axis."""
    maps = RaggedMaps(
        np.concatenate([heat / heat.max() for heat in heats]).astype(np.float16),
        np.array([[len(heat)] for heat in heats], dtype=np.int32),
        np.array([heat.max() for heat in heats], dtype=np.float32),
    )
    tokenizer = None if tokenizer is None else tokenizer.to_str()
    return VoGScores({"vog": np.ones(len(heats))}, {**READS_TOKENS, **manifest}, heat_maps=maps, tokenizer=tokenizer)


@pytest.mark.parametrize("make", [word_piece, byte_level])
def test_the_parts_are_the_text_itself(make):
    """Put together they give every character of the text, and each token with an own character has its own heat."""
    tokenizer = make()
    finder = word_finder(tokenizer.to_str())
    for text in TEXTS:
        heat = heat_of(tokenizer, text)
        words = finder.words([text], heat)
        assert "".join(word.text for word in words) == text
        known = [word.heat for word in words if word.heat is not None]
        assert known == sorted(known), "the heat of a later token is larger here"
        assert max(known) == 1, "special tokens, which are hotter here, do not count"
        assert all(word.heat is not None for word in words if word.text.strip())


def test_each_token_has_its_own_heat():
    """By hand: the second of two words, one of them in two pieces, without the special tokens around them."""
    tokenizer = word_piece()
    offsets = tokenizer.encode("rained thing").offsets
    heat = np.zeros(len(offsets), dtype=np.float32)
    heat[0], heat[-1] = 9, 9
    place = offsets.index(next(span for span in offsets if span[0] == 7))
    heat[place] = 2
    words = word_finder(tokenizer.to_str()).words(["rained thing"], heat)
    assert [word.text for word in words if word.heat] == ["rained thing"[slice(*offsets[place])]]
    assert word_finder(tokenizer.to_str()).words(["rained"], np.zeros(len(tokenizer.encode("rained").ids)))


def test_pairs_and_cut_inputs():
    """A pair stands on two lines; behind the cut the text is unseen; any other number of tokens is refused."""
    tokenizer = word_piece()
    finder = word_finder(tokenizer.to_str())
    words = finder.words(TEXTS[:2], heat_of(tokenizer, *TEXTS[:2]))
    assert "".join(word.text for word in words) == "\n".join(TEXTS[:2])
    cut = finder.words([TEXTS[1]], np.ones(5, dtype=np.float32), cut_at=5)
    assert cut[-1].is_unseen
    assert "".join(word.text for word in cut) == TEXTS[1]
    assert not any(word.is_unseen for word in words)
    assert finder.words([TEXTS[1]], np.ones(5, dtype=np.float32), cut_at=6) is None
    assert finder.words([TEXTS[1]], np.ones(99, dtype=np.float32), cut_at=99) is None


def test_token_ids_are_shown_as_their_text():
    """Rows of nothing but ids have a text with colored words; ids that no text gives are shown token by token."""
    tokenizer = word_piece()
    encoded = [
        tokenizer.encode("rained a thing"),
        tokenizer.encode("it rained", "a thing"),
        tokenizer.encode("zzz thing"),
    ]
    longest = max(len(one.ids) for one in encoded)
    padding = [longest - len(one.ids) for one in encoded]
    ids = [one.ids + [0] * extra for one, extra in zip(encoded, padding, strict=True)]
    masks = [[1] * len(one.ids) + [0] * extra for one, extra in zip(encoded, padding, strict=True)]
    rows = Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "idx": ["a", "b", "c"]})
    scores = make_scores([np.arange(1, 1 + len(one.ids), dtype=np.float32) for one in encoded], tokenizer)
    for dataset in (rows, [dict(row) for row in rows.remove_columns("idx")]):
        views = RowViews(ScoredSplit("", scores, dataset)).views(range(3))
        assert [view.text for view in views] == ["rained a thing", "it rained a thing", "thing"]
        for view, expected in zip(views, ["rained a thing", "it rained a thing", "[UNK] thing"], strict=True):
            assert "".join(word.text for word in view.words) == expected
            assert max(word.heat for word in view.words if word.heat is not None) == 1
    without = RowViews(ScoredSplit("", make_scores([np.ones(3)] * 3, None), rows)).view(0)
    assert (without.text, without.words) == (None, None), "ids alone are not shown, and the row's name is not its text"


def test_texts_keep_their_own_letters(tmp_path):
    """A dataset with texts shows them as they stand in it; the tokenizer comes along in the folder of scores."""
    tokenizer = word_piece()
    scores = make_scores([heat_of(tokenizer, text) for text in TEXTS], tokenizer)
    scores.save(tmp_path / "scores")
    loaded = VoGScores.load(tmp_path / "scores")
    assert (
        loaded.tokenizer == loaded.select([0]).tokenizer == loaded.with_heat_maps(None).tokenizer == tokenizer.to_str()
    )
    rows = Dataset.from_dict({"sentence": TEXTS, "input_ids": [tokenizer.encode(text).ids for text in TEXTS]})
    for of in (loaded, scores):
        views = RowViews(ScoredSplit("", of, rows)).views(range(4))
        assert ["".join(word.text for word in view.words) for view in views] == TEXTS
    other = make_scores([heat_of(tokenizer, text)[1:] for text in TEXTS], tokenizer)
    assert RowViews(ScoredSplit("", other, rows)).view(0).words is None, "not the tokens that the model saw"
    by_numbers = make_scores([heat_of(tokenizer, text) for text in TEXTS], tokenizer, input={"name": "x"})
    assert RowViews(ScoredSplit("", by_numbers, rows)).view(0).words is None, "the heat is not of tokens"


def test_a_slow_tokenizer_colors_the_tokens_that_rows_store(tmp_path):
    """It finds no token in a text, so that the stored ids are shown; rows without them have no words."""
    names = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVS", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    slow = EsmTokenizer(str(tmp_path / "vocab.txt"))
    proteins = ["LAGV", "SSV", "GA"]
    ids = [slow(text)["input_ids"] for text in proteins]
    scores = make_scores([np.arange(len(of_row), 0, -1, dtype=np.float32) for of_row in ids], None)
    scores.tokenizer = tokenizer_json(slow)
    rows = Dataset.from_dict({"text": proteins, "input_ids": ids})
    for view, protein in zip(RowViews(ScoredSplit("", scores, rows)).views(range(3)), proteins, strict=True):
        assert view.text == protein
        assert "".join(word.text for word in view.words) == " ".join(protein)
        hottest = len(protein) + 1  # the first letter, behind a special token
        shares = [word.heat for word in view.words if word.heat is not None]
        assert shares == pytest.approx([(hottest - place) / hottest for place in range(len(protein))], abs=1e-3)
    for other in (rows.remove_columns("input_ids"), rows.with_transform(lambda batch: batch)):
        assert RowViews(ScoredSplit("", scores, other)).view(0).words is None


def test_a_damaged_tokenizer_leaves_the_texts(caplog):
    """A folder of scores may come from elsewhere: texts are shown without heat, and one line says why."""
    scores = make_scores([np.ones(3, dtype=np.float32)], None)
    scores.tokenizer = '{"model": 3}'
    view = RowViews(ScoredSplit("", scores, Dataset.from_dict({"text": ["a b c"]}))).view(0)
    assert (view.text, view.words) == ("a b c", None)
    assert "without the heat of their words" in caplog.text


def test_markup_escapes_the_text():
    """What the data holds stays text, shades are numbers of ours, and a text ends where it is told to."""
    words = [Word("<script>", 0.5), Word(' "'), Word("&", 0.0), Word("</i>\0", is_unseen=True)]
    markup = str(words_markup(words))
    assert re.findall(r"<(?!span|/span|i>|/i>)", markup) == []
    assert markup == '<span style="--h:0.5">&lt;script&gt;</span> &#34;&amp;<i>&lt;/i&gt;\N{REPLACEMENT CHARACTER}</i>'
    assert [word.text for word in beginning(words, 9)] == ["<script>", "…"]
    assert beginning(words, 99) == words
