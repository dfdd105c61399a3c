"""Which column finds wrong labels, and is the model better when the rows it points to are left out?

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms).

The command, which gives a fifth of 3,000 rows a wrong label, trains a small ResNet, looks for those rows by every
column, and trains again without a fifth of the rows, chosen in several ways:

    python recipes/label_noise.py --dataset uoft-cs/cifar10 --max_train_samples 3000 --max_eval_samples 2000

Noise of one's own: a data set with a column `is_corrupted` (true where the label is known to be wrong) stays as it is.
Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir: results.json, detection.csv, dropped.csv, and the snapshots and scores in _vog/.

Time and figures to expect: recipes/README.md, with hardware and seeds.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Image
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from vog_hf import VoGCallback, VoGConfig, VoGError
from vog_hf.data import as_classes, load_rows, plant_label_noise
from vog_hf.evaluation import auroc, detection_table

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, for a model from scratch
WIDTHS = {"small-resnet": [32, 64, 128], "resnet18": [64, 128, 256, 512]}
DEPTHS = {"small-resnet": [1, 1, 1], "resnet18": [2, 2, 2, 2]}
TARGETS = ("logit", "loss")  # columns vog, vog_loss
NOT_COMPARED = ("row", "label", "prediction")


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    eval_split: str = field(default="test", metadata={"help": "Rows with right labels, for the accuracy."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the first column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})
    image_size: int = field(default=32, metadata={"help": "Side that images are brought to."})


@dataclass
class NoiseArguments:
    label_noise: float = field(
        default=0.2, metadata={"help": "Share of the rows to give a wrong label, if there is no column is_corrupted."}
    )
    label_noise_kind: str = field(default="uniform", metadata={"help": "Wrong classes: uniform, or pairs (the next)."})
    drop: float | None = field(default=None, metadata={"help": "Share of the rows to leave out; default: the noise."})


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:small-resnet",
        metadata={"help": f"Hub id (timm/... for timm), local folder, or scratch:{{{','.join(WIDTHS)}}}."},
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give the model a new head where its own has another number of classes."}
    )


def main():
    parser = HfArgumentParser((DataArguments, NoiseArguments, ModelArguments, TrainingArguments))
    parser.set_defaults(
        output_dir="label-noise",
        num_train_epochs=12,
        learning_rate=2e-3,
        weight_decay=0.05,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),  # elsewhere it is a warning
        remove_unused_columns=False,  # the transform below reads the image column
    )
    data_args, noise_args, model_args, args = parser.parse_args_into_dataclasses()
    if args.resume_from_checkpoint is not None:
        stop("--resume_from_checkpoint: several trainings follow one another here, and none is gone on with")
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)

    rows, eval_rows, image_column, label_column = rows_to_use(data_args)
    if "is_corrupted" not in rows.column_names:
        kind = noise_args.label_noise_kind
        rows = plant_label_noise(rows, noise_args.label_noise, seed=args.seed, kind=kind, label_column=label_column)
    is_corrupted = np.asarray(rows["is_corrupted"][:], dtype=bool)
    if not 0 < is_corrupted.sum() < len(rows):
        stop(f"{is_corrupted.sum()} of {len(rows)} rows are corrupted, expected some and not all; see --label_noise")
    classes = rows.features[label_column].names
    build, transform = prepare_model(model_args, classes, image_column, label_column, data_args.image_size)

    def train(kept, callbacks=()):
        """Accuracy on the evaluation rows of a model that was trained on these rows from the same start."""
        set_seed(args.seed)
        trainer = Trainer(
            model=build(),
            args=args,
            train_dataset=rows.select(kept).with_transform(transform),
            eval_dataset=eval_rows.with_transform(transform),
            compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
            callbacks=list(callbacks),
        )
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]

    everything = np.arange(len(rows))
    config = VoGConfig(target=TARGETS, heat_maps=False)
    vog = VoGCallback(rows.with_transform(transform), config=config, log=bool(args.report_to))
    accuracy = {"all rows": train(everything, [vog])}
    columns = vog.scores.to_pandas()
    compared = [name for name in columns if name not in NOT_COMPARED and not name.endswith("_percentile")]
    detection = detection_table(columns[compared], is_corrupted, seed=args.seed)

    # The rows to leave out: those at the head of each order.
    share = is_corrupted.mean() if noise_args.drop is None else noise_args.drop
    n_dropped = round(share * len(rows))
    if not 0 < n_dropped < len(rows):
        stop(f"--drop {share} leaves out {n_dropped} of {len(rows)} rows, expected some and not all")
    orders = {
        "highest VoG": -columns["vog_class_normalized"],
        "lowest VoG": columns["vog_class_normalized"],
        "highest VoG of the loss": -columns["vog_loss_class_normalized"],
        "highest mean loss": -columns["loss"],
        "at random": np.random.default_rng(args.seed).random(len(rows)),
        "wrong labels (known)": np.where(is_corrupted, -1, 0),
    }
    dropped = {name: np.argsort(order, kind="stable")[:n_dropped] for name, order in orders.items()}
    for name, out in dropped.items():
        accuracy[name] = train(np.setdiff1d(everything, out))
    if not on_main_process:
        return

    table = pd.DataFrame(
        {
            "left out": ["nothing", *dropped],
            "rows": [0, *(len(out) for out in dropped.values())],
            "wrong labels among them": [None, *(float(is_corrupted[out].mean()) for out in dropped.values())],
            "test accuracy": list(accuracy.values()),
        }
    )
    # One direction for all runs, unlike the table of detection, which takes the better one: high = wrong label.
    found = {name: auroc(columns[name], is_corrupted) for name in compared}
    headline = {
        **{f"AUROC {name}": found[name] for name in ("vog_class_normalized", "vog_late", "vog_loss", "loss")},
        **{f"accuracy without {name}": accuracy[name] for name in dropped},
        "accuracy with all rows": accuracy["all rows"],
    }
    results = {
        "headline": headline,
        "rows": len(rows),
        "wrong_labels": int(is_corrupted.sum()),
        "training_accuracy": float((columns["prediction"] == columns["label"]).mean()),
        "auroc_high_means_wrong": found,
        "detection": detection.to_dict("list"),
        "dropped": table.astype(object).where(table.notna(), None).to_dict("list"),
    }
    output = Path(args.output_dir)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    detection.to_csv(output / "detection.csv", index=False)
    table.to_csv(output / "dropped.csv", index=False)
    print_results(results, detection, table)
    print(f"\nEverything is in {output}: results.json, detection.csv, dropped.csv, _vog/")


def rows_to_use(args):
    """Training rows, evaluation rows, and the names of their image column and their label column."""
    rows = load_rows(args.dataset, args.train_split, config=args.dataset_config)
    eval_rows = load_rows(args.dataset, args.eval_split, config=args.dataset_config)
    image_column = find_column(rows, args.image_column, Image, "--image_column")
    label_column = find_column(rows, args.label_column, ClassLabel, "--label_column")
    if not isinstance(rows.features[image_column], Image):
        stop(f"--image_column {image_column!r} holds {rows.features[image_column]}, expected images")
    missing = sorted({image_column, label_column} - set(eval_rows.column_names))
    if missing:
        stop(f"the rows of --eval_split have no column {missing}, as the training rows have: {eval_rows.column_names}")
    rows = as_classes(rows, label_column)
    eval_rows = as_classes(eval_rows, label_column, rows.features[label_column].names)
    return (
        first_rows(rows, args.max_train_samples),
        first_rows(eval_rows, args.max_eval_samples),
        image_column,
        label_column,
    )


def first_rows(rows, n):
    return rows if n is None else rows.select(range(min(n, len(rows))))


def find_column(rows, name, feature, option):
    if name is None:
        name = next((name for name, found in rows.features.items() if isinstance(found, feature)), None)
        if name is None:
            stop(f"no column is of type {feature.__name__}; name one of {rows.column_names} with {option}")
    elif name not in rows.column_names:
        stop(f"{option} {name!r} is not a column of the data set; it has {rows.column_names}")
    return name


def prepare_model(args, classes, image_column, label_column, side):
    """A function that builds the model anew, and the transform from a batch of rows to what it is fed."""
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    labels = {"num_labels": len(classes), **names}  # timm's models keep their outputs unless the number is said
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

        try:
            processor = AutoImageProcessor.from_pretrained(args.model, trust_remote_code=False)
            build()
        except RuntimeError:
            stop(f"--model {args.model} has not {len(classes)} outputs; --ignore_mismatched_sizes gives it a new head")
        except (OSError, ValueError) as error:  # not there, or no image classifier
            stop(f"--model {args.model} cannot be loaded: {error}")
        data_config = getattr(processor, "data_config", None)  # timm's
        mean, std = (
            (data_config["mean"], data_config["std"]) if data_config else (processor.image_mean, processor.image_std)
        )
    to_pixels = v2.Compose(
        [v2.ToImage(), v2.Resize((side, side)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    )

    def transform(batch):
        pixels = [to_pixels(image.convert("RGB")) for image in batch[image_column]]
        return {"pixel_values": pixels, "labels": batch[label_column]}

    return build, transform


def print_results(results, detection, table):
    print(
        f"\n{results['wrong_labels']:,} of {results['rows']:,} training rows have a wrong label; at the end the model"
    )
    print(f"agrees with {results['training_accuracy']:.3f} of the labels.")
    print("\nHow each column finds the wrong ones, in its better direction, which is chosen by knowing them:\n")
    print(detection.to_string(index=False, float_format="{:.3f}".format))
    print("\nTrained again, from the same start and for as many epochs, without a part of the rows:\n")
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    better = "highest" if results["auroc_high_means_wrong"]["vog_class_normalized"] > 0.5 else "lowest"
    print(f"\nIn this run the {better} VoG is the better sign of a wrong label; the paper says the highest.")


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
