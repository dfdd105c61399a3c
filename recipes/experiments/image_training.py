"""What the experiments on images share: options, rows, model and transform."""

import logging
import sys
from dataclasses import dataclass, field

import numpy as np
import torch
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    Trainer,
    TrainingArguments,
)

from vog_hf.data import as_classes, find_column, load_rows

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, for a model from scratch
WIDTHS = {"small-resnet": [32, 64, 128], "resnet18": [64, 128, 256, 512]}
DEPTHS = {"small-resnet": [1, 1, 1], "resnet18": [2, 2, 2, 2]}


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on, e.g. 'train[:90%%]'."})
    eval_split: str = field(default="test", metadata={"help": "Rows that the model does not see in training."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the only column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only ClassLabel column."})
    image_size: int = field(default=32, metadata={"help": "Side that images are resized to."})


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:small-resnet",
        metadata={"help": f"Hub id (timm/... for timm), local folder, or scratch:{{{','.join(WIDTHS)}}}."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give the model a new head if its own has another number of classes."}
    )


def make_parser(experiment_arguments, **defaults):
    """Make a parser of the options of data, experiment, model and `TrainingArguments`."""
    parser = HfArgumentParser((DataArguments, experiment_arguments, ModelArguments, TrainingArguments))
    parser.set_defaults(
        **defaults,
        learning_rate=2e-3,
        weight_decay=0.05,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),  # elsewhere it is a warning
        remove_unused_columns=False,  # the transform reads the image column
    )
    return parser


def log_on_main_process(args):
    """Let the library's log appear once."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if args.process_index == 0 else logging.WARNING)


def load_images(args):
    """Load training rows, evaluation rows, and the names of their image and label columns."""
    rows = load_rows(args.dataset, args.train_split, config=args.dataset_config)
    eval_rows = load_rows(args.dataset, args.eval_split, config=args.dataset_config)
    image_column, label_column = (
        find_column(rows, "image", args.image_column),
        find_column(rows, "class", args.label_column),
    )
    find_column(eval_rows, "image", image_column)
    rows = as_classes(rows, label_column)
    eval_rows = as_classes(eval_rows, label_column, rows.features[label_column].names)
    parts = first_rows(rows, args.max_train_samples), first_rows(eval_rows, args.max_eval_samples)
    return *parts, image_column, label_column


def first_rows(rows, n):
    """The first n rows, or all of them."""
    return rows if n is None else rows.select(range(min(n, len(rows))))


def prepare_model(args, classes, image_column, label_column, side):
    """Return a function that builds the model, and the transform from a batch of rows to model inputs."""
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    labels = {"num_labels": len(classes), **names}  # timm's models keep their outputs unless the number is given
    mean, std = MEAN, STD
    source, _, name = args.model.partition(":")
    if source == "scratch":
        if name not in WIDTHS:
            stop(f"--model {args.model!r} does not exist; from scratch there are {', '.join(WIDTHS)}")
        shape = {"hidden_sizes": WIDTHS[name], "depths": DEPTHS[name], "embedding_size": WIDTHS[name][0]}
        config = ResNetConfig(layer_type="basic", **shape, **labels)

        def build():
            return AutoModelForImageClassification.from_config(config)
    else:
        options = {"ignore_mismatched_sizes": args.ignore_mismatched_sizes, **labels}

        def build():
            return AutoModelForImageClassification.from_pretrained(args.model, trust_remote_code=False, **options)

        processor = AutoImageProcessor.from_pretrained(args.model, trust_remote_code=False)
        data_config = getattr(processor, "data_config", None)  # timm's
        mean, std = (
            (data_config["mean"], data_config["std"]) if data_config else (processor.image_mean, processor.image_std)
        )
    to_pixels = v2.Compose(
        [v2.ToImage(), v2.Resize((side, side)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )

    def transform(batch):
        pixels = {"pixel_values": [to_pixels(image.convert("RGB")) for image in batch[image_column]]}
        return pixels | ({"labels": batch[label_column]} if label_column in batch else {})

    return build, transform


def make_trainer(model, args, train_rows, eval_rows=None, callbacks=()):
    """Make a Trainer that measures accuracy."""
    return Trainer(
        model=model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=list(callbacks),
    )


def stop(reason):
    """End the program with one line."""
    sys.exit(" ".join(f"error: {reason}".split()))
