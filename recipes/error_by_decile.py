"""Does the test error rise with Variance of Gradients: early and late, for which target, after which training?

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms).

The command, which trains a small ResNet on 3,000 rows three times (for a few epochs, until it fits them, and until it
fits them with a fifth of the labels wrong) and scores 2,000 test rows after each:

    python recipes/error_by_decile.py --dataset uoft-cs/cifar10 --max_train_samples 3000 --max_eval_samples 2000

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir: results.json, deciles.csv, classes.csv, error-by-decile.png, and of each training a folder with its
snapshots and scores.

Time and figures to expect: recipes/README.md, with hardware and seeds.
"""

import json
import logging
import sys
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Image
from matplotlib.figure import Figure
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

from vog_hf import VoGCallback, VoGConfig, VoGError, VoGScorer, class_normalize
from vog_hf.data import as_classes, load_rows, plant_label_noise
from vog_hf.evaluation import class_table, error_by_decile, rank_correlations

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, for a model from scratch
WIDTHS = {"small-resnet": [32, 64, 128], "resnet18": [64, 128, 256, 512]}
DEPTHS = {"small-resnet": [1, 1, 1], "resnet18": [2, 2, 2, 2]}
TARGETS = ("logit", "probability", "loss")
COLUMNS = dict(zip(TARGETS, VoGConfig(target=TARGETS).column_names, strict=True))
WINDOWS = {"early": "_early", "late": "_late", "all": ""}
BINS = 10


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    eval_split: str = field(default="test", metadata={"help": "Rows to score, which the model has not seen."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    image_column: str | None = field(default=None, metadata={"help": "Default: the first column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})
    image_size: int = field(default=32, metadata={"help": "Side that images are brought to."})


@dataclass
class RunArguments:
    short_epochs: int = field(default=4, metadata={"help": "Of the short training; --num_train_epochs of the others."})
    label_noise: float = field(
        default=0.2, metadata={"help": "Share of wrong labels in the training that is to memorise them."}
    )


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
    parser = HfArgumentParser((DataArguments, RunArguments, ModelArguments, TrainingArguments))
    parser.set_defaults(
        output_dir="error-by-decile",
        num_train_epochs=20,
        learning_rate=2e-3,
        weight_decay=0.05,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),  # elsewhere it is a warning
        remove_unused_columns=False,  # the transform below reads the image column
    )
    data_args, run_args, model_args, args = parser.parse_args_into_dataclasses()
    if args.resume_from_checkpoint is not None:
        stop("--resume_from_checkpoint: several trainings follow one another here, and none is gone on with")
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)

    rows, eval_rows, image_column, label_column = rows_to_use(data_args)
    noisy = plant_label_noise(rows, run_args.label_noise, seed=args.seed, label_column=label_column)
    classes = rows.features[label_column].names
    build, transform = prepare_model(model_args, classes, image_column, label_column, data_args.image_size)
    test = eval_rows.with_transform(transform)
    if len(test) < 10 * BINS:
        stop(f"--eval_split has {len(test)} rows, expected at least {10 * BINS}, ten for each tenth")

    # After each training the test rows are scored, by their label and by the prediction.
    trainings = {
        "short": (rows, run_args.short_epochs),
        "converged": (rows, args.num_train_epochs),
        "memorising": (noisy, args.num_train_epochs),
    }
    output = Path(args.output_dir)
    deciles, by_class, accuracy = [], [], {}
    for name, (train_rows, epochs) in trainings.items():
        set_seed(args.seed)
        train_args = copy(args)
        train_args.num_train_epochs, train_args.output_dir = epochs, str(output / name)
        config = VoGConfig(target=TARGETS, heat_maps=False)
        vog = VoGCallback(test, config=config, log=bool(args.report_to))
        trainer = Trainer(
            model=build(),
            args=train_args,
            train_dataset=train_rows.with_transform(transform),
            compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
            callbacks=[vog],
        )
        trainer.train()
        fitted = trainer.evaluate(train_rows.with_transform(transform))["eval_accuracy"]
        scorer = VoGScorer(trainer.model, config=replace(config, label="predicted"), batch_size=args.eval_batch_size)
        predicted = scorer.score(test, output / name / "_vog")

        given = vog.scores.to_pandas()
        wrong = given["prediction"] != given["label"]
        accuracy[name] = {"training labels": fitted, "test": float(1 - wrong.mean())}
        for label, scores in (("given", given), ("predicted", predicted.to_pandas())):
            of_class = scores["label" if label == "given" else "prediction"]
            deciles += decile_lines(scores, wrong, of_class, training=name, label=label)
        table = class_table(given["label"], given["vog_late"], prediction=given["prediction"])
        by_class.append(table.assign(training=name, name=[classes[i] for i in table["class"]]))
    if not on_main_process:
        return

    table, by_class = pd.DataFrame(deciles), pd.concat(by_class)
    results = {
        "headline": make_headline(table, accuracy),
        "rows": {"training": len(rows), "test": len(test)},
        "accuracy": accuracy,
        "class_error_with_class_vog": {
            name: float(rank_correlations(part[["error", "vog_mean"]]).loc["error", "vog_mean"])
            for name, part in by_class.groupby("training", sort=False)
        },
        "deciles": table.to_dict("records"),
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table.to_csv(output / "deciles.csv", index=False)
    by_class.to_csv(output / "classes.csv", index=False)
    draw(table, accuracy, output / "error-by-decile.png")
    print_results(results, table, by_class)
    print(f"\nEverything is in {output}: results.json, deciles.csv, classes.csv, error-by-decile.png")


def decile_lines(scores, wrong, of_class, **run):
    """Error by tenth of each target's score in each window, as it is and normalised within the class."""
    lines = []
    for target, column in COLUMNS.items():
        for window, end in WINDOWS.items():
            raw = scores[column + end].to_numpy()
            normalized = class_normalize(torch.tensor(raw), torch.tensor(of_class.to_numpy())).numpy()
            for kind, values in (("raw", raw), ("class-normalised", normalized)):
                errors = error_by_decile(values, wrong, bins=BINS)["error"]
                lines.append({**run, "target": target, "window": window, "score": kind, **dict(enumerate(errors, 1))})
    return lines


def make_headline(table, accuracy):
    """The paper's choice (logit of the given label, class-normalised): error of the extreme tenths, and of all rows."""
    headline = {}
    chosen = table[(table.label == "given") & (table.target == "logit") & (table.score == "class-normalised")]
    for name, found in accuracy.items():
        headline[f"{name}: training labels fitted"] = found["training labels"]
        headline[f"{name}: all"] = 1 - found["test"]
        for window in ("early", "late"):
            line = chosen[(chosen.training == name) & (chosen.window == window)].iloc[0]
            headline |= {f"{name}: lowest {window}": line[1], f"{name}: highest {window}": line[BINS]}
    return headline


def draw(table, accuracy, path):
    """Error by tenth of the class-normalised score: a column for each training, a row for each label."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, len(accuracy), sharex=True, sharey=True)
    for column, (name, found) in zip(axes.T, accuracy.items(), strict=True):
        for plot, label in zip(column, ("given", "predicted"), strict=True):
            plot.axhline(1 - found["test"], color="grey", lw=1, label="all test rows")
            part = table[(table.training == name) & (table.label == label) & (table.score == "class-normalised")]
            for colour, target in enumerate(TARGETS):
                for window, style in (("early", "--"), ("late", "-")):
                    errors = part[(part.target == target) & (part.window == window)][list(range(1, BINS + 1))]
                    plot.plot(
                        range(1, BINS + 1), errors.iloc[0], style, color=f"C{colour}", label=f"{target}, {window}"
                    )
            plot.set(title=f"{name}; {label} label", xlabel="tenth of the score, 10 = highest", ylabel="test error")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=80)


def print_results(results, table, by_class):
    for name, found in results["accuracy"].items():
        print(f"\n{name}: agrees with {found['training labels']:.3f} of its training labels; test error ", end="")
        print(f"{1 - found['test']:.3f}. Test error by tenth of each score, 1 = lowest, normalised within the class:\n")
        part = table[(table.training == name) & (table.score == "class-normalised")]
        print(part.drop(columns=["training", "score"]).to_string(index=False, float_format="{:.2f}".format))
        print("\nClasses, with the late VoG of the logit of the given label:\n")
        classes = by_class[by_class.training == name].drop(columns="training")
        print(classes.to_string(index=False, float_format="{:.3g}".format))
        correlation = results["class_error_with_class_vog"][name]
        print(f"\nRank correlation of a class's error with its mean VoG: {correlation:.2f}")


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


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
