"""Fine-tune an image classifier with Trainer: of the shape of transformers' published example, with VoG added.

See examples/pytorch/image-classification/run_image_classification.py in github.com/huggingface/transformers. What was
added for VoG is the import and the line with `VoGCallback`; `tests/trainer/test_scripts.py` takes both out, too.
"""

import logging
import os
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from datasets import load_dataset
from torchvision.transforms import (
    CenterCrop,
    Compose,
    Lambda,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback

logger = logging.getLogger(__name__)


@dataclass
class DataTrainingArguments:
    train_dir: str = field(metadata={"help": "Folder with one subfolder of training images per class."})
    validation_dir: str | None = field(default=None, metadata={"help": "The same, to evaluate on."})
    train_val_split: float = field(default=0.15, metadata={"help": "Without such a folder, this share is taken."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on fewer, chosen at random."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on fewer, chosen at random."})
    image_column_name: str = field(default="image")
    label_column_name: str = field(default="label")


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

    data_files = {"train": os.path.join(data_args.train_dir, "**")}
    if data_args.validation_dir is not None:
        data_files["validation"] = os.path.join(data_args.validation_dir, "**")
    dataset = load_dataset("imagefolder", data_files=data_files, cache_dir=model_args.cache_dir)
    if "validation" not in dataset and data_args.train_val_split > 0:
        split = dataset["train"].train_test_split(data_args.train_val_split)
        dataset["train"], dataset["validation"] = split["train"], split["test"]

    def collate_fn(examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        labels = torch.tensor([example[data_args.label_column_name] for example in examples])
        return {"pixel_values": pixel_values, "labels": labels}

    labels = dataset["train"].features[data_args.label_column_name].names
    label2id = {label: str(i) for i, label in enumerate(labels)}
    id2label = {str(i): label for i, label in enumerate(labels)}

    def compute_metrics(p):
        return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}

    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path,
        num_labels=len(labels),
        label2id=label2id,
        id2label=id2label,
        cache_dir=model_args.cache_dir,
    )
    model = AutoModelForImageClassification.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        cache_dir=model_args.cache_dir,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
    )
    image_processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, cache_dir=model_args.cache_dir)

    # What is done to an image: while training at random, else always the same.
    if "shortest_edge" in image_processor.size:
        size = image_processor.size["shortest_edge"]
    else:
        size = (image_processor.size["height"], image_processor.size["width"])
    has_statistics = hasattr(image_processor, "image_mean") and hasattr(image_processor, "image_std")
    normalize = (
        Normalize(mean=image_processor.image_mean, std=image_processor.image_std)
        if has_statistics
        else Lambda(lambda x: x)
    )
    _train_transforms = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), normalize])
    _val_transforms = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])

    def train_transforms(example_batch):
        images = example_batch[data_args.image_column_name]
        example_batch["pixel_values"] = [_train_transforms(image.convert("RGB")) for image in images]
        return example_batch

    def val_transforms(example_batch):
        images = example_batch[data_args.image_column_name]
        example_batch["pixel_values"] = [_val_transforms(image.convert("RGB")) for image in images]
        return example_batch

    if training_args.do_train:
        if data_args.max_train_samples is not None:
            shuffled = dataset["train"].shuffle(seed=training_args.seed)
            dataset["train"] = shuffled.select(range(data_args.max_train_samples))
        dataset["train"].set_transform(train_transforms)
    if training_args.do_eval:
        if data_args.max_eval_samples is not None:
            shuffled = dataset["validation"].shuffle(seed=training_args.seed)
            dataset["validation"] = shuffled.select(range(data_args.max_eval_samples))
        dataset["validation"].set_transform(val_transforms)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=dataset["train"] if training_args.do_train else None,
        eval_dataset=dataset["validation"] if training_args.do_eval else None,
        compute_metrics=compute_metrics,
        processing_class=image_processor,
        data_collator=collate_fn,
        callbacks=[VoGCallback(dataset["train"].with_transform(val_transforms))],
    )

    if training_args.do_train:
        checkpoint = training_args.resume_from_checkpoint or last_checkpoint
        train_result = trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", train_result.metrics)
        trainer.save_metrics("train", train_result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

    card = {"finetuned_from": model_args.model_name_or_path, "tasks": "image-classification", "tags": ["vision"]}
    if training_args.push_to_hub:
        trainer.push_to_hub(**card)
    else:
        trainer.create_model_card(**card)
    return trainer


if __name__ == "__main__":
    main()
