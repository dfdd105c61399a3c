"""Train a text classifier, rank its training rows by Variance of Gradients, and see what the ranking is worth.

The gradient is taken with respect to the token embeddings; padding does not count.

Needs: pip install vog-hf

A pretrained model and a data set of the Hub:

    python recipes/text_classification.py --dataset stanfordnlp/sst2 --eval_split validation \
        --model distilbert/distilbert-base-uncased --learning_rate 5e-5 --num_train_epochs 3

From scratch, without a network: a two-layer BERT and a tokenizer that is trained on the texts of a parquet file:

    python recipes/text_classification.py --dataset sst2-train.parquet --eval_dataset sst2-test.parquet

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir, beside the model: results.json, report.html (the texts at both ends of the ranking, with what the
gradient changed at), scored.parquet and scored/ (for load_from_disk).

Time and the figures to expect, each with its command: recipes/README.md.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback, VoGConfig, VoGError, add_vog_columns
from vog_hf.data import as_classes, load_rows
from vog_hf.evaluation import error_by_decile, hard_tail, rank_correlations
from vog_hf.report import write_report
from vog_hf.scores import most_extreme

VOCABULARY = 8000
SCRATCH = {
    "small-bert": BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256, vocab_size=VOCABULARY
    ),
}
COMPARED = ("vog", "vog_class_normalized", "vog_early", "vog_late", "gradient_magnitude", "loss", "confidence")


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Where the rows to evaluate on are, if elsewhere; a parquet file is 'train'."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Rows to evaluate on at the end."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    text_column: str | None = field(default=None, metadata={"help": "Default: the first column of texts."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut after so many tokens."})


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:small-bert",
        metadata={"help": f"Hub id, local folder, or scratch:{{{','.join(SCRATCH)}}}."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give the model a new head where its own has another number of classes."}
    )


@dataclass
class VoGArguments:
    vog_target: list[str] = field(
        default_factory=lambda: ["logit"],
        metadata={"help": "What is differentiated: logit, probability, loss; the first fills the column vog."},
    )
    vog_label: str = field(default="given", metadata={"help": "Class whose logit it is: given or predicted."})
    snapshots: str = field(default="auto", metadata={"help": "auto, epoch, every n steps, or steps: 100,200,400."})
    max_snapshots: int = field(default=10, metadata={"help": "More are thinned evenly."})


def make_parser():
    parser = HfArgumentParser((DataArguments, ModelArguments, VoGArguments, TrainingArguments))
    parser.set_defaults(  # for training from scratch; a pretrained model wants a smaller learning rate
        num_train_epochs=5,
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup_steps=100,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        save_strategy="no",
        logging_steps=50,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    return parser


def main():
    data_args, model_args, vog_args, args = make_parser().parse_args_into_dataclasses()
    config = VoGConfig(target=tuple(vog_args.vog_target), label=vog_args.vog_label)
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)
    set_seed(args.seed)

    # The rows as texts, and the same rows with their tokens; Trainer strips the columns that the model does not take.
    rows, text_column, label_column = rows_to_train_on(data_args)
    eval_rows = rows_to_evaluate_on(data_args, text_column, label_column, rows.features[label_column].names)
    model, tokenizer = load_model(model_args, args, rows, text_column, rows.features[label_column].names)
    to_tokens = partial(tokenize, tokenizer=tokenizer, text_column=text_column, max_length=data_args.max_length)
    names = {} if label_column == "labels" else {label_column: "labels"}
    prepared = rows.map(to_tokens, batched=True, desc="tokenizing").rename_columns(names)
    if eval_rows is not None:
        eval_rows = eval_rows.map(to_tokens, batched=True).rename_columns(names)

    vog = VoGCallback(
        prepared,
        config=config,
        snapshots=parse_snapshots(vog_args.snapshots),
        max_snapshots=vog_args.max_snapshots,
        log=bool(args.report_to),
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=prepared,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=[vog],
    )
    started = time.perf_counter()
    training_seconds = trainer.train(checkpoint_to_resume(args)).metrics["train_runtime"]
    scoring_seconds = time.perf_counter() - started - training_seconds
    trainer.save_model()
    eval_accuracy = trainer.evaluate()["eval_accuracy"] if eval_rows is not None else None
    scores = vog.scores
    if not on_main_process:
        return

    # What the ranking is worth in this run.
    columns = scores.to_pandas()
    mistakes = 1 - columns["correctness"]  # share of the snapshots whose prediction is not the given label
    ranked = [name + ending for name in config.column_names for ending in ("", "_class_normalized")]
    errors = {name: list(error_by_decile(columns[name], mistakes)["error"]) for name in [*ranked, "loss"]}
    deciles = pd.DataFrame(errors)
    deciles.index += 1
    others = [name for name in config.column_names if name != "vog"]
    spearman = rank_correlations(columns[[*COMPARED, *others]].assign(tokens=list(map(len, prepared["input_ids"]))))
    tail = hard_tail(scores)
    results = {
        "model": model_args.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": len(rows),
        "epochs": trainer.state.epoch,
        "snapshots": [snapshot["step"] for snapshot in scores.manifest["snapshots"]],
        "training_seconds": round(training_seconds, 1),
        "scoring_seconds": round(scoring_seconds, 1),
        "train_accuracy": float((columns["prediction"] == columns["label"]).mean()),
        "eval_accuracy": eval_accuracy,
        "error_by_decile": deciles.to_dict("list"),
        "spearman": spearman.astype(object).where(spearman.notna(), None).to_dict(),
        "hard_tail": tail.to_dict(),
    }
    results["headline"] = headline(results, deciles, spearman)

    output = Path(args.output_dir)
    scored = add_vog_columns(rows, scores, "all")  # the rows as they were, without the tokens
    scored.save_to_disk(str(output / "scored"))
    scored.to_parquet(str(output / "scored.parquet"))
    write_report(scores, rows, output / "report.html")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results, deciles, spearman)
    print(f"\n{tail.column}, {tail}")
    highest, lowest = most_extreme(scores, "vog_class_normalized", 5)
    for name, part in (("Highest", highest), ("Lowest", lowest)):
        print(f"\n{name} vog_class_normalized:")
        for row in rows.select(part):
            print(f"  {rows.features[label_column].int2str(row[label_column])}: {row[text_column]:.100}")
    print(f"\nEverything is in {output}: results.json, report.html, scored.parquet, scored/, the model")


def rows_to_train_on(args):
    """The rows to train on, the name of their text column and that of their label column."""
    rows = load_rows(args.dataset, args.train_split, config=args.dataset_config)
    text_column = args.text_column or next((n for n, f in rows.features.items() if holds_texts(f)), None)
    label_column = args.label_column or next((n for n, f in rows.features.items() if isinstance(f, ClassLabel)), None)
    for option, kind, name in (("text", "texts", text_column), ("label", "classes", label_column)):
        if name is None:
            stop(f"no column holds {kind}; name one of {rows.column_names} with --{option}_column")
        if name not in rows.column_names:
            stop(f"--{option}_column {name!r} is not a column of the data set; it has {rows.column_names}")
    if not holds_texts(rows.features[text_column]):
        stop(f"--text_column {text_column!r} holds {rows.features[text_column]}, expected texts")
    if label_column != "labels" and "labels" in rows.column_names:
        stop("the data set has a column 'labels', as the model's own input is called; name it, or leave it out")
    rows = as_classes(require_texts(rows, text_column), label_column)
    if args.max_train_samples is not None:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    if "vog" in rows.column_names:
        stop("the data set has a column 'vog' already, from an earlier run; pass the data set without its scores")
    return rows, text_column, label_column


def holds_texts(feature):
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def rows_to_evaluate_on(args, text_column, label_column, classes):
    """The rows to evaluate on, or None, with the classes of the training rows."""
    if args.eval_split is None and args.eval_dataset is None:
        return None
    is_file = args.eval_dataset is not None and Path(args.eval_dataset).is_file()
    split = args.eval_split or ("train" if is_file else "test")
    config = args.dataset_config if args.eval_dataset is None else None
    rows = load_rows(args.eval_dataset or args.dataset, split, config=config)
    for name in (text_column, label_column):
        if name not in rows.column_names:
            stop(f"the rows to evaluate on have no column {name!r}; they have {rows.column_names}")
    return as_classes(require_texts(rows, text_column), label_column, classes)


def require_texts(rows, text_column):
    missing = sum(text is None for text in rows[text_column])
    if missing:
        stop(f"{missing:,} of {len(rows):,} rows have no text in column {text_column!r}; leave them out")
    return rows


def load_model(model_args, args, rows, text_column, classes):
    """The model with an output per class, and its tokenizer."""
    labels = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    source, _, name = model_args.model.partition(":")
    if source == "scratch":
        if name not in SCRATCH:
            stop(f"--model {model_args.model!r} does not exist; from scratch there is {', '.join(SCRATCH)}")
        folder = Path(args.output_dir) / "tokenizer"
        with args.main_process_first(local=False, desc="the tokenizer"):
            if args.process_index == 0:
                train_tokenizer(rows[text_column]).save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = SCRATCH[name]
        config.update({**labels, "pad_token_id": tokenizer.pad_token_id})
        return AutoModelForSequenceClassification.from_config(config), tokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_args.model, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(
            model_args.model,
            trust_remote_code=False,
            ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
            **labels,
        )
    except RuntimeError:
        stop(
            f"--model {model_args.model} has not {len(classes)} outputs; --ignore_mismatched_sizes gives it a new head"
        )
    except (OSError, ValueError) as error:  # not there, or no text classifier
        stop(f"--model {model_args.model} cannot be loaded: {error}")
    if tokenizer.pad_token is None:  # language models have none
        tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    return model, tokenizer


def train_tokenizer(texts):
    """A WordPiece tokenizer in the manner of BERT's, of these texts; of the same texts, the same one."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    # The trainer numbers continuations in an order that differs from run to run; those it is given keep their order.
    continuations = [f"##{letter}" for letter in sorted({letter for word in words for letter in word[1:]})]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 (no password)
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=[*special, *continuations], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def tokenize(rows, *, tokenizer, text_column, max_length):
    tokens = tokenizer(rows[text_column], truncation=True, max_length=max_length)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def checkpoint_to_resume(args):
    """The one that --resume_from_checkpoint names; of "True" the last one in the output folder, if there is one."""
    if args.resume_from_checkpoint not in ("True", "true"):
        return args.resume_from_checkpoint
    return get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None


def parse_snapshots(text):
    if "," in text:
        return [int(step) for step in text.split(",")]
    return int(text) if text.isdigit() else text


def headline(results, deciles, spearman):
    """The few figures of a run that are compared between runs."""
    found = {"accuracy on the training rows": results["train_accuracy"]}
    if results["eval_accuracy"] is not None:
        found["accuracy on the evaluation rows"] = results["eval_accuracy"]
    for column in ("vog_class_normalized", "loss"):
        found[f"training error, lowest tenth by {column}"] = deciles[column].iloc[0]
        found[f"training error, highest tenth by {column}"] = deciles[column].iloc[-1]
    correlation = spearman.loc["vog", ["gradient_magnitude", "loss"]].dropna()
    return found | {f"rank correlation of vog with {name}": float(value) for name, value in correlation.items()}


def print_results(results, deciles, spearman):
    print(f"\n{results['model']}, {results['parameters']:,} parameters, {results['rows']:,} rows, ", end="")
    print(f"{results['epochs']:g} epochs, snapshots after steps {', '.join(map(str, results['snapshots']))}")
    print(f"training {results['training_seconds']} s, scoring {results['scoring_seconds']} s")
    print(f"accuracy on the scored rows at the last snapshot: {results['train_accuracy']:.3f}")
    if results["eval_accuracy"] is not None:
        print(f"accuracy on the evaluation rows: {results['eval_accuracy']:.3f}")
    print("\nTraining error (mean over the snapshots) by decile of each column, 1 = lowest scores:\n")
    print(deciles.T.to_string(float_format="{:.3f}".format))
    print("\nSpearman rank correlation of the columns:\n")
    print(spearman.to_string(float_format="{:.2f}".format))


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
