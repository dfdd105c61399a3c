"""Texts with a tag for each word, tokenized as transformers' example `run_ner.py` does it, and a tagger of them."""

import random

import models
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import BertForTokenClassification, PreTrainedTokenizerFast

TAGS = ["O", "PER", "LOC"]
WORDS = {"O": ["it", "rained", "in", "and", "saw"], "PER": ["ann", "bob", "annabel"], "LOC": ["rome", "oslo", "romeo"]}
PIECES = ["##abel", "##o", "##ed", "rain"]
MAX_TOKENS = 9
UNKNOWN, PADDING = {"unk_token": "[UNK]"}, {"pad_token": "[PAD]"}


def tagged(n=53, seed=0):
    """Rows with ``tokens`` (words) and ``ner_tags``; row 5 has no word."""
    draw = random.Random(seed)
    tags = [[draw.choice(TAGS) for _ in range(0 if i == 5 else 2 + i % 9)] for i in range(n)]
    words = [[draw.choice(WORDS[tag]) for tag in of_row] for of_row in tags]
    return Dataset.from_dict(
        {"tokens": words, "ner_tags": [[TAGS.index(tag) for tag in of_row] for of_row in tags]},
        features=features(TAGS),
    )


def features(names):
    """Features of words and their tags, the classes in this order."""
    return Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))})


def tokenizer():
    """A WordPiece tokenizer that cuts some of the words in two."""
    whole = [word for words in WORDS.values() for word in words if word not in ("annabel", "romeo", "rained")]
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *whole, *PIECES])}
    fast = Tokenizer(WordPiece(vocabulary, **UNKNOWN))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=fast, **PADDING, **UNKNOWN)


def with_labels(rows, fast):
    """The example's `tokenize_and_align_labels`: the first part of a word has its tag, everything else -100."""
    encoded = fast(rows["tokens"], truncation=True, max_length=MAX_TOKENS, is_split_into_words=True)
    labels = []
    for i, tags in enumerate(rows["ner_tags"]):
        before, of_row = None, []
        for word in encoded.word_ids(batch_index=i):
            of_row.append(-100 if word is None or word == before else tags[word])
            before = word
        labels.append(of_row)
    return {**encoded, "labels": labels}


def tagger(fast):
    """The smallest tagger."""
    config = models.bert_config(num_labels=len(TAGS), vocab_size=len(fast))
    return models._made(lambda: BertForTokenClassification(config), 0)
