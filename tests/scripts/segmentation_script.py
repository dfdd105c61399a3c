"""Fine-tune a segmenter of images with Trainer, as the example of transformers does, with VoG added.

See examples/pytorch/semantic-segmentation/run_semantic_segmentation.py in github.com/huggingface/transformers.
What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_task_scripts.py` runs it.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import load_dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from vog_hf import VoGCallback


@dataclass
class Arguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    train_file: str = field(metadata={"help": "Parquet file with images in `pixel_values` and masks in `label`."})


def main():
    parser = HfArgumentParser((Arguments, TrainingArguments))
    args, training_args = parser.parse_args_into_dataclasses()
    set_seed(training_args.seed)
    raw_datasets = load_dataset("parquet", data_files={"train": args.train_file})

    image_processor = AutoImageProcessor.from_pretrained(args.model_name_or_path, do_reduce_labels=False)
    model = AutoModelForSemanticSegmentation.from_pretrained(args.model_name_or_path)

    def to_tensors(image, target):
        made = image_processor(image.convert("RGB"), segmentation_maps=np.array(target), return_tensors="pt")
        return made["pixel_values"][0], made["labels"][0]

    def preprocess_batch(example_batch, *, flips):
        pixel_values, labels = [], []
        for image, target in zip(example_batch["pixel_values"], example_batch["label"], strict=True):
            pixels, mask = to_tensors(image, target)
            if flips and random.random() < 0.5:
                pixels, mask = pixels.flip(-1), mask.flip(-1)
            pixel_values.append(pixels)
            labels.append(mask)
        return {"pixel_values": torch.stack(pixel_values), "labels": torch.stack(labels)}

    def preprocess_train_batch(example_batch):
        return preprocess_batch(example_batch, flips=True)

    def preprocess_val_batch(example_batch):
        return preprocess_batch(example_batch, flips=False)

    raw_datasets["train"].set_transform(preprocess_train_batch)
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=raw_datasets["train"],
        processing_class=image_processor,
        data_collator=default_data_collator,
        callbacks=[VoGCallback(raw_datasets["train"].with_transform(preprocess_val_batch))],
    )
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer


if __name__ == "__main__":
    main()
