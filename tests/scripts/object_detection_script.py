"""Fine-tune an object detector with Trainer: of the shape of transformers' published example, with VoG added.

See examples/pytorch/object-detection/run_object_detection.py in github.com/huggingface/transformers, which augments
with albumentations. What was added for VoG is the import and the line with `VoGCallback`;
`tests/trainer/test_detection_training.py` takes both out, too.
"""

import logging
import random
import sys
from dataclasses import dataclass, field
from functools import partial

import torch
import transformers
from datasets import load_dataset
from PIL import ImageOps
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vog_hf import VoGCallback

logger = logging.getLogger(__name__)


@dataclass
class DataTrainingArguments:
    train_file: str = field(metadata={"help": "Parquet file with image_id, image and objects (bbox, category, area)."})
    validation_file: str = field(metadata={"help": "The same, to evaluate on."})


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "A local folder, or an id on the Hub."})
    cache_dir: str | None = field(default=None)
    ignore_mismatched_sizes: bool = field(default=False)


def format_image_annotations_as_coco(image_id, categories, areas, bboxes):
    annotations = [
        {"image_id": image_id, "category_id": category, "iscrowd": 0, "area": area, "bbox": list(bbox)}
        for category, area, bbox in zip(categories, areas, bboxes, strict=True)
    ]
    return {"image_id": image_id, "annotations": annotations}


def random_flip(image, bboxes):
    if random.random() < 0.5:
        return image, bboxes
    return ImageOps.mirror(image), [[image.width - x - w, y, w, h] for x, y, w, h in bboxes]


def no_change(image, bboxes):
    return image, bboxes


def augment_and_transform_batch(examples, transform, image_processor, return_pixel_mask=False):
    images, annotations = [], []
    for image_id, image, objects in zip(examples["image_id"], examples["image"], examples["objects"], strict=True):
        changed, bboxes = transform(image.convert("RGB"), objects["bbox"])
        images.append(changed)
        annotations.append(format_image_annotations_as_coco(image_id, objects["category"], objects["area"], bboxes))
    result = image_processor(images=images, annotations=annotations, return_tensors="pt")
    if not return_pixel_mask:
        result.pop("pixel_mask", None)
    return result


def collate_fn(batch):
    data = {}
    data["pixel_values"] = torch.stack([x["pixel_values"] for x in batch])
    data["labels"] = [x["labels"] for x in batch]
    if "pixel_mask" in batch[0]:
        data["pixel_mask"] = torch.stack([x["pixel_mask"] for x in batch])
    return data


def main():
    parser = HfArgumentParser((ModelArguments, DataTrainingArguments, TrainingArguments))
    model_args, data_args, training_args = parser.parse_args_into_dataclasses()

    logging.basicConfig(format="%(asctime)s - %(message)s", handlers=[logging.StreamHandler(sys.stdout)])
    transformers.utils.logging.set_verbosity(training_args.get_process_log_level())
    set_seed(training_args.seed)

    data_files = {"train": data_args.train_file, "validation": data_args.validation_file}
    dataset = load_dataset("parquet", data_files=data_files, cache_dir=model_args.cache_dir)
    categories = dataset["train"].features["objects"]["category"].feature.names
    id2label = dict(enumerate(categories))
    label2id = {v: k for k, v in id2label.items()}

    common_pretrained_args = {"cache_dir": model_args.cache_dir}
    config = AutoConfig.from_pretrained(
        model_args.model_name_or_path, label2id=label2id, id2label=id2label, **common_pretrained_args
    )
    model = AutoModelForObjectDetection.from_pretrained(
        model_args.model_name_or_path,
        config=config,
        ignore_mismatched_sizes=model_args.ignore_mismatched_sizes,
        **common_pretrained_args,
    )
    image_processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path, **common_pretrained_args)

    # What is done to an image: while training at random, else always the same.
    train_transform_batch = partial(augment_and_transform_batch, transform=random_flip, image_processor=image_processor)
    validation_transform_batch = partial(
        augment_and_transform_batch, transform=no_change, image_processor=image_processor
    )
    train_dataset = dataset["train"].with_transform(train_transform_batch)
    validation_dataset = dataset["validation"].with_transform(validation_transform_batch)

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset if training_args.do_train else None,
        eval_dataset=validation_dataset if training_args.do_eval else None,
        processing_class=image_processor,
        data_collator=collate_fn,
        callbacks=[VoGCallback(dataset["train"].with_transform(validation_transform_batch))],
    )

    if training_args.do_train:
        train_result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
        trainer.save_model()
        trainer.log_metrics("train", train_result.metrics)
        trainer.save_metrics("train", train_result.metrics)
        trainer.save_state()
    if training_args.do_eval:
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
    return trainer


if __name__ == "__main__":
    main()
