"""The programs of recipes/experiments, run and read in the process of the tests, and small data for them."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

EXPERIMENTS = Path(__file__).resolve().parents[2] / "recipes" / "experiments"


def run_in_this_process(recipe, *arguments):
    """A recipe as its command line starts it, but for the imports, which take most of the time of a small run."""
    logger = logging.getLogger("vog_hf")
    level = logger.level
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        patch.setattr(sys, "argv", [f"{recipe}.py", *map(str, arguments)])
        try:
            runpy.run_path(str(EXPERIMENTS / f"{recipe}.py"), run_name="__main__")
        finally:
            logger.setLevel(level)


def read_results(folder):
    """results.json of a run."""
    return json.loads((folder / "results.json").read_text())


def functions_of(recipe):
    """What an experiment defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        return runpy.run_path(str(EXPERIMENTS / f"{recipe}.py"))


def save_texts(folder, sentences, labels):
    """Paths of a parquet file of sentences in two classes, and of a folder with a tiny BERT for their words."""
    features = Features({"sentence": Value("string"), "label": ClassLabel(names=["negative", "positive"])})
    Dataset.from_dict({"sentence": sentences, "label": labels}, features=features).to_parquet(folder / "texts.parquet")
    words = sorted({word for sentence in sentences for word in sentence.split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106 (a word)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder / "model")  # noqa: S106 (a word)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForSequenceClassification(BertConfig(vocab_size=len(vocabulary), **shape)).save_pretrained(folder / "model")
    return folder / "texts.parquet", folder / "model"
