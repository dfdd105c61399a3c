"""Fine-tune a text classifier with Trainer: of the shape of transformers' published examples, with VoG added.

See run_glue.py and run_classification.py in examples/pytorch/text-classification, github.com/huggingface/transformers.
What was added for VoG is the import and the line with `VoGCallback`; `tests/trainer/test_scripts.py` takes both
out, too.
"""

import logging
import os
import random
import sys
from dataclasses import dataclass, field

import numpy as np
import transformers
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback

logger = logging.getLogger(__name__)


@dataclass
class DataTrainingArguments:
    train_file: str = field(metadata={"help": "CSV file with texts and a column `label`."})
    validation_file: str = field(metadata={"help": "The same, to evaluate on."})
    max_seq_length: int = field(default=128, metadata={"help": "Tokens; longer texts are cut."})
    pad_to_max_length: bool = field(default=True, metadata={"help": "Else each batch to its own longest text."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train only on the first rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate only on the first rows."})
    overwrite_cache: bool = field(default=False)


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    cache_dir: str | None = field(default=None)
    ignore_mismatched_sizes: bool = field(default=False)


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()

    logging.basicConfig(format="%(asctime)s - %(message)s", handlers=[logging.StreamHandler(sys.stdout)])
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    logger.warning("device %s, 16 bits: %s", training_args.device, training_args.fp16 or training_args.bf16)

    # A training that was interrupted continues.
    last_checkpoint = None
    if os.path.isdir(training_args.output_dir) and training_args.do_train:
        last_checkpoint = get_last_checkpoint(training_args.output_dir)
    set_seed(training_args.seed)

    data_files = {"train": data_args.train_file, "validation": data_args.validation_file}
    raw_datasets = load_dataset("csv", data_files=data_files, cache_dir=model_args.cache_dir)

    # Numbers with a fraction are a regression, everything else is a class.
    is_regression = raw_datasets["train"].features["label"].dtype in ("float32", "float64")
    label_list = [] if is_regression else sorted(raw_datasets["train"].unique("label"))
    label_to_id = {label: i for i, label in enumerate(label_list)}
    names = [name for name in raw_datasets["train"].column_names if name != "label"]
    sentence1_key, sentence2_key = (names[0], names[1]) if len(names) > 1 else (names[0], None)

    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        num_labels=1 if is_regression else len(label_list),
        cache_dir=model_args.cache_dir,
    )
    config.problem_type = "regression" if is_regression else "single_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path, cache_dir=model_args.cache_dir)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        cache_dir=model_args.cache_dir,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
    )
    if not is_regression:
        model.config.label2id = {str(label): i for label, i in label_to_id.items()}
        model.config.id2label = {i: str(label) for label, i in label_to_id.items()}

    padding = "max_length" if data_args.pad_to_max_length else False
    max_seq_length = min(data_args.max_seq_length, tokenizer.model_max_length)

    def preprocess_function(examples):
        texts = [examples[key] for key in (sentence1_key, sentence2_key) if key is not None]
        result = tokenizer(*texts, padding=padding, max_length=max_seq_length, truncation=True)
        if not is_regression:
            result["label"] = [label_to_id[label] for label in examples["label"]]
        return result

    with training_args.main_process_first(desc="dataset map pre-processing"):
        raw_datasets = raw_datasets.map(
            preprocess_function, batched=True, load_from_cache_file=not data_args.overwrite_cache
        )
    if training_args.do_train:
        train_dataset = raw_datasets["train"]
        if data_args.max_train_samples is not None:
            train_dataset = train_dataset.select(range(min(len(train_dataset), data_args.max_train_samples)))
    eval_dataset = raw_datasets["validation"]
    if data_args.max_eval_samples is not None:
        eval_dataset = eval_dataset.select(range(min(len(eval_dataset), data_args.max_eval_samples)))
    if training_args.do_train:
        for index in random.sample(range(len(train_dataset)), 3):
            logger.info("Sample %d of the training set: %s.", index, train_dataset[index])

    def compute_metrics(p):
        predictions = p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions
        if is_regression:
            return {"mse": float(((np.squeeze(predictions) - p.label_ids) ** 2).mean())}
        return {"accuracy": float((np.argmax(predictions, axis=1) == p.label_ids).mean())}

    # Trainer pads each batch with DataCollatorWithPadding when it is given a tokenizer and no collator.
    data_collator = None
    if data_args.pad_to_max_length:
        data_collator = default_data_collator
    elif training_args.fp16:
        data_collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=eval_dataset if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=data_collator,
        callbacks=[VoGCallback(train_dataset)] if training_args.do_train else None,
    )

    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint or last_checkpoint
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        metrics = {**train_result.metrics, "train_samples": len(train_dataset)}
        trainer.save_model()
        trainer.log_metrics("train", metrics)
        trainer.save_metrics("train", metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = {**trainer.evaluate(eval_dataset=eval_dataset), "eval_samples": len(eval_dataset)}
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    card = {"finetuned_from": model_args.model_name_or_path, "tasks": "text-classification"}
    if training_args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    return trainer


if __name__ == "__main__":
    main()
