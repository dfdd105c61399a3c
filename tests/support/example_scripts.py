"""Scripts of the shape of the published Trainer examples, run on small models and data that are made here."""

import importlib.util
import sys
from itertools import count
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    set_seed,
)

from vog_hf import VoGCallback
from vog_hf.demo import load_digits_dataset

SCRIPTS = Path(__file__).parents[1] / "scripts"
N_TRAIN, N_EVAL = 48, 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SUBJECTS, GOOD, BAD = (
    ["film", "story", "cast", "music", "ending", "plot"],
    ["great", "warm", "clever"],
    ["dull", "weak", "slow"],
)

_numbers = count()


def make_images(folder):
    """Digits 0 to 3 as folders of PNG files, and a small ViT with its image processor."""
    digits = load_digits_dataset()
    wanted = [row for row, label in enumerate(digits["label"][:]) if label < 4][: N_TRAIN + N_EVAL]
    for place, row in enumerate(wanted):
        split = "train" if place < N_TRAIN else "validation"
        path = folder / split / f"digit {digits[row]['label']}" / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        digits[row]["image"].save(path)
    set_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ViTModel(config).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "model")


def make_texts(folder):
    """Sentences that praise or blame as CSV files, a tokenizer trained on them, and a small BERT."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    lines = []
    for _ in range(N_TRAIN + N_EVAL):
        is_good = bool(generator.random() < 0.5)
        parts = [f"the {generator.choice(SUBJECTS)} is {generator.choice(GOOD if is_good else BAD)}" for _ in range(3)]
        lines.append((" and ".join(parts[: generator.integers(1, 4)]), int(is_good)))
    for split, part in (("train", lines[:N_TRAIN]), ("validation", lines[N_TRAIN:])):
        rows = "".join(f"{text},{label}\n" for text, label in part)
        (folder / f"{split}.csv").write_text("sentence,label\n" + rows)
    tokenizer = Tokenizer(WordPiece(unk_token=SPECIAL[1]))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.train_from_iterator([text for text, _ in lines], WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32, **names)
    fast.save_pretrained(folder / "model")
    set_seed(0)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder / "model")


def source(name, line=None):
    """A script's text; ``line`` stands for the argument of Trainer that was added for VoG, "" for nothing added."""
    lines = (SCRIPTS / f"{name}_classification_script.py").read_text().splitlines(keepends=True)
    added = [place for place, text in enumerate(lines) if "VoGCallback(" in text]
    imported = [place for place, text in enumerate(lines) if text == "from vog_hf import VoGCallback\n"]
    assert (len(added), len(imported)) == (1, 1), "one line, and its import"
    if line is not None:
        lines[added[0]] = f"        {line}\n" if line else ""
        lines[imported[0]] = lines[imported[0]] if line else ""
    return "".join(lines)


def command(folder, name, *options, data):
    """The words of a script's command line, without the script: files, model and a short training on the CPU."""
    files = {
        "image": ["--train_dir", data / "train", "--validation_dir", data / "validation"],
        "text": ["--train_file", data / "train.csv", "--validation_file", data / "validation.csv"],
    }[name]
    fixed = [*("--model_name_or_path", data / "model", "--cache_dir", data / "cache"), "--output_dir", folder / "out"]
    usual = ["--do_train", "--do_eval", "--use_cpu", "--num_train_epochs", "3", "--learning_rate", "1e-3"]
    usual += ["--per_device_train_batch_size", "16", "--dataloader_pin_memory", "False"]
    usual += ["--logging_steps", "1", "--report_to", "none"]
    return [*map(str, [*files, *fixed, *usual, *options])]


def run(monkeypatch, folder, name, *options, data, line=None):
    """Run a script's ``main`` with its command line; returns its Trainer and the callback, None where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    module_name = f"example_script_{next(_numbers)}"
    path = folder / f"{module_name}.py"
    path.write_text(source(name, line))
    quiet = ("--disable_tqdm", "True", "--log_level", "error")
    monkeypatch.setattr(sys, "argv", [str(path), *command(folder, name, *quiet, *options, data=data)])
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    spec.loader.exec_module(module)
    trainer = module.main()
    callbacks = [found for found in trainer.callback_handler.callbacks if isinstance(found, VoGCallback)]
    return trainer, next(iter(callbacks), None)
