"""Made sentences with names in them, of which some words have a wrong tag, and a small BERT that tags words."""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from torch.nn.utils.rnn import pad_sequence
from transformers import BertForTokenClassification

from vog_hf.cli.demos.planted import PlantedTask, Row, Rows, small_bert

N_ROWS, SHARE_OF_FAULTS = 300, 0.08
TAGS = ("O", "PER", "LOC", "ORG")
FIRST = ("an", "bo", "ca", "el", "mi", "ro", "ta", "vi")
LAST = {"PER": ("na", "ra", "lo", "no", "ris"), "LOC": ("burg", "ville", "ford", "ton"), "ORG": ("corp", "soft", "tec")}
SENTENCES = (
    "PER lives in LOC",
    "PER met PER near LOC",
    "ORG opened an office in LOC",
    "yesterday PER left ORG",
    "ORG and ORG moved from LOC to LOC",
    "the train to LOC was late and PER missed it",
)


def tagged_names(seed: int) -> PlantedTask:
    """Tagging of names; the faults are flipped tags."""
    draw = np.random.default_rng(seed)
    names = {tag: [first + last for first in FIRST for last in LAST[tag]] for tag in TAGS[1:]}
    shared = [first + "el" for first in FIRST]  # names that only the words around tell apart
    texts, true_tags = [], []
    for _ in range(N_ROWS):
        pattern = [
            word for _ in range(draw.integers(1, 3)) for word in SENTENCES[draw.integers(len(SENTENCES))].split()
        ]
        words = [str(draw.choice([*names[word], *shared])) if word in names else word for word in pattern]
        texts.append(words)
        true_tags.append([TAGS.index(word) if word in names else 0 for word in pattern])
    sizes = [len(tags) for tags in true_tags]
    flat = np.concatenate(true_tags)
    is_faulty = draw.random(len(flat)) < SHARE_OF_FAULTS
    given = np.where(is_faulty, (flat + draw.integers(1, len(TAGS), len(flat))) % len(TAGS), flat)
    tags = [part.tolist() for part in np.split(given, np.cumsum(sizes)[:-1])]
    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=list(TAGS)))})
    words = sorted({word for text in texts for word in text})
    return PlantedTask(
        title=f"Named entity recognition: a small BERT, {N_ROWS} made texts",
        faults="words with a wrong tag",
        rows=Dataset.from_dict({"tokens": texts, "ner_tags": tags}, features=features),
        is_faulty=is_faulty,
        transform=partial(to_ids, number_of={word: number for number, word in enumerate(words, 1)}),
        collate_fn=collate,
        make_model=partial(small_tagger, len(words)),
        n_epochs=8,
        learning_rate=2e-3,
        of_units=True,
    )


def to_ids(rows: Rows, number_of: Mapping[str, int]) -> Row:
    """Numbers of the words, from 1, with their tags."""
    ids = [torch.tensor([number_of[word] for word in text]) for text in rows["tokens"]]
    return {"input_ids": ids, "labels": [torch.tensor(tags) for tags in rows["ner_tags"]]}


def collate(rows: list[Row]) -> Row:
    """Rows padded to the longest."""
    ids = pad_sequence([row["input_ids"] for row in rows], batch_first=True)
    labels = pad_sequence([row["labels"] for row in rows], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


def small_tagger(n_words: int) -> BertForTokenClassification:
    """A small BERT with a logit per tag."""
    return BertForTokenClassification(small_bert(n_words, dict(enumerate(TAGS))))
