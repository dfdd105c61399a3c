"""Train a text classifier, rank its training rows by Variance of Gradients, and see what the ranking is worth.

The gradient is taken with respect to the token embeddings; padding does not count.

Needs: pip install vog-hf

A pretrained model, and (without --model) a two-layer BERT and a tokenizer trained from scratch on the texts:

    python recipes/text_classification.py --dataset stanfordnlp/sst2 --eval_split validation \
        --model distilbert/distilbert-base-uncased --learning_rate 5e-5 --num_train_epochs 3
    python recipes/text_classification.py --dataset sst2-train.parquet --eval_dataset sst2-test.parquet \
        --vog_target logit loss --snapshots epoch

In --output_dir: the model, report.html, scored.parquet and _vog/ (snapshots and scores).

Time on one core of a CPU for the second command (6,920 sentences, 5 epochs): 1.7 minutes. Expected: accuracy 0.79 on
the test rows; training error 0.00 in the lowest decile by vog_class_normalized and 0.19 in the highest.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
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

from vog_hf import VoGCallback, VoGConfig, add_vog_columns, write_report
from vog_hf.data import as_classes, find_column, load_rows
from vog_hf.evaluation import hard_tail

SMALL_BERT = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
VOCABULARY = 8000
MAX_LENGTH = 128  # in tokens
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, parquet, csv or json file, or folder from save_to_disk."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    eval_dataset: str | None = field(default=None, metadata={"help": "Dataset to evaluate on. Default: --dataset."})
    eval_split: str | None = field(default=None, metadata={"help": "Rows to evaluate on. Of --eval_dataset: train."})
    text_column: str | None = field(default=None, metadata={"help": "Default: the only column of texts."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only ClassLabel column."})
    model: str | None = field(default=None, metadata={"help": "Hub id or local folder. Default: a small BERT."})
    vog_target: list[str] = field(default_factory=lambda: ["logit"], metadata={"help": "logit, probability, loss."})
    snapshots: str = field(default="auto", metadata={"help": "auto or epoch."})
    max_snapshots: int = field(default=8, metadata={"help": "More are thinned evenly."})


def load_model(name, classes, texts):
    """Load the model with an output per class, and its tokenizer."""
    ids = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    if name is None:
        config = BertConfig(**SMALL_BERT, vocab_size=VOCABULARY, pad_token_id=0, **ids)
        return AutoModelForSequenceClassification.from_config(config), train_tokenizer(texts)
    model = AutoModelForSequenceClassification.from_pretrained(name, ignore_mismatched_sizes=True, **ids)
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:  # language models have none
        tokenizer.pad_token, model.config.pad_token_id = tokenizer.eos_token, tokenizer.eos_token_id
    return model, tokenizer


def train_tokenizer(texts):
    """Train a WordPiece tokenizer like BERT's on these texts; the same texts give the same tokenizer."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    # The trainer numbers continuations in an order that differs from run to run, except those that it is given.
    continuations = [f"##{letter}" for letter in sorted({letter for word in words for letter in word[1:]})]
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106 (no password)
    trained.normalizer, trained.pre_tokenizer = normalizer, splitter
    given = [*SPECIAL.values(), *continuations]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=given, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))  # noqa: S106 (no password)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(num_train_epochs=5, learning_rate=1e-3, weight_decay=0.05, warmup_steps=100)  # from scratch
    parser.set_defaults(per_device_train_batch_size=64, per_device_eval_batch_size=256, save_strategy="no")
    options, args = parser.parse_args_into_dataclasses()
    set_seed(args.seed)
    rows = load_rows(options.dataset, options.train_split)
    text_column = find_column(rows, "text", options.text_column)
    label_column = find_column(rows, "class", options.label_column)
    rows = as_classes(rows, label_column)
    rows = rows.select(range(min(options.max_train_samples or len(rows), len(rows))))
    classes = rows.features[label_column].names
    model, tokenizer = load_model(options.model, classes, rows[text_column])

    def to_tokens(batch):
        tokens = tokenizer(batch[text_column], truncation=True, max_length=MAX_LENGTH)
        return {**tokens, "labels": batch[label_column]}

    eval_rows = None
    if options.eval_dataset or options.eval_split:
        eval_rows = load_rows(options.eval_dataset or options.dataset, options.eval_split)
        eval_rows = as_classes(eval_rows, label_column, classes).map(to_tokens, batched=True)
    train_rows = rows.map(to_tokens, batched=True)  # Trainer removes the columns that the model does not take
    config = VoGConfig(target=tuple(options.vog_target))
    vog = VoGCallback(train_rows, config=config, snapshots=options.snapshots, max_snapshots=options.max_snapshots)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=[vog],
    )
    checkpoint = args.resume_from_checkpoint
    if checkpoint == "True":  # the last one, if there is one
        checkpoint = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if eval_rows is not None:
        trainer.save_metrics("eval", trainer.evaluate())

    if trainer.is_world_process_zero():
        output, scores = Path(args.output_dir), vog.scores
        add_vog_columns(rows, scores, "all").to_parquet(output / "scored.parquet")  # without the tokens
        write_report(scores, rows, output / "report.html")
        print(hard_tail(scores))
        print(f"Everything is in {output}: the model, report.html, scored.parquet, _vog/")


if __name__ == "__main__":
    main()
