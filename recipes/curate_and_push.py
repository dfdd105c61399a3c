"""Score rows, train again without those at an end of the ranking (or with less weight on them), and push the data.

Three trainings of the same length from the same weights: on all rows, which scores them; with the chosen rows dropped
or reweighted; and, since fewer rows alone change a model, with as many rows treated so that were drawn at random. The
accuracy on test rows says what the choice was worth. Drop only what you have looked at: the report shows the rows.

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms)

A data set of the Hub, without the tenth of the highest loss-VoG; the scored data goes to a data set of your own there
(`hf auth login` first), with a column training_weight (0 = dropped):

    python recipes/curate_and_push.py --dataset uoft-cs/cifar10 --vog_target loss --column vog --end highest \
        --share 0.1 --action drop --push_to user/cifar10-vog --private

From scratch, without a network, on parquet files:

    python recipes/curate_and_push.py --dataset cifar10-train.parquet --eval_dataset cifar10-test.parquet \
        --max_train_samples 3000

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir: results.json, report.html, curated.parquet (all rows with scores and training_weight).

Time and the figures to expect, each with its command: recipes/README.md.
"""

import json
import logging
import math
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Image, Value
from huggingface_hub import whoami
from torch import nn
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    Trainer,
    TrainingArguments,
    ViTImageProcessor,
    set_seed,
)

from vog_hf import VoGCallback, VoGConfig, VoGError, add_vog_columns
from vog_hf.data import as_classes, load_rows
from vog_hf.hub import push_scored_dataset
from vog_hf.report import write_report

SIZE = 64  # of images for the model from scratch
SMALL_RESNET = {"embedding_size": 32, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"}
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # for the model from scratch
WEIGHT = "training_weight"
# The columns that scores have: these of every target, and what is computed beside them.
ENDINGS = ("", "_early", "_late", "_class_normalized", "_percentile")
COMPANIONS = ("gradient_magnitude", "loss", "confidence", "variability", "correctness", "forgetting", "margin", "el2n")


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Where the test rows are, if elsewhere; a parquet file is 'train'."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Test rows; default: the split test."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Only the first n rows of the split; in a folder of images the first classes."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: the first column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:small-resnet", metadata={"help": "Hub id (timm/... for timm), local folder, or the default."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give the model a new head where its own has another number of classes."}
    )


@dataclass
class CurationArguments:
    column: str = field(default="vog_class_normalized", metadata={"help": "Column of the scores to choose by."})
    end: str = field(default="highest", metadata={"help": "Which rows are chosen: highest or lowest."})
    share: float = field(default=0.1, metadata={"help": "Share of the rows that is chosen."})
    action: str = field(default="drop", metadata={"help": "drop, or reweight: the chosen rows get --weight."})
    weight: float = field(default=0.25, metadata={"help": "In the loss, with --action reweight; other rows have 1."})
    vog_target: list[str] = field(
        default_factory=lambda: ["logit"],
        metadata={"help": "What is differentiated: logit, probability, loss; the first fills the column vog."},
    )
    max_snapshots: int = field(default=10, metadata={"help": "More are thinned evenly."})
    push_to: str | None = field(default=None, metadata={"help": "Data set on the Hub that the rows are pushed to."})
    private: bool = field(default=False, metadata={"help": "Make that data set a private one, if it is new."})


def make_parser():
    parser = HfArgumentParser((DataArguments, ModelArguments, CurationArguments, TrainingArguments))
    parser.set_defaults(  # for training from scratch; a pretrained model wants a smaller learning rate
        num_train_epochs=8,
        learning_rate=2e-3,
        weight_decay=0.05,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
        save_strategy="no",
        logging_steps=50,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,  # the transforms below read the image column
    )
    return parser


def main():
    data_args, model_args, curation, args = make_parser().parse_args_into_dataclasses()
    if args.resume_from_checkpoint is not None:
        stop("--resume_from_checkpoint: several trainings follow one another here, and none is gone on with")
    config = VoGConfig(target=tuple(curation.vog_target))
    check(curation, config)
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)

    rows, image_column, label_column = rows_to_train_on(data_args)
    eval_rows = rows_to_evaluate_on(data_args, image_column, label_column, rows.features[label_column].names)
    classes = rows.features[label_column].names
    columns = {"image_column": image_column, "label_column": label_column}
    _, processor = load_model(model_args, classes)
    for_training, for_scoring = make_transforms(processor, **columns)
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if args.max_steps < 0:  # the same number of steps, also where there are fewer rows
        args.max_steps = math.ceil(math.ceil(len(rows) / per_step) * args.num_train_epochs)

    def train(weights, callbacks=()):
        """Accuracy on the test rows after a training in which each row has this weight; 0 = left out."""
        set_seed(args.seed)
        model, _ = load_model(model_args, classes)
        weighted = rows.add_column(WEIGHT, weights, feature=Value("float32")).select(np.flatnonzero(weights))
        trainer = WeightedTrainer(
            model=model,
            args=args,
            train_dataset=weighted.with_transform(for_training),
            eval_dataset=eval_rows.with_transform(for_scoring),
            processing_class=processor,
            compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
            callbacks=list(callbacks),
        )
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]

    # On all rows; this training scores them.
    vog = VoGCallback(
        rows.with_transform(for_scoring),
        config=config,
        max_snapshots=curation.max_snapshots,
        log=bool(args.report_to),
    )
    accuracies = {"all rows": train(np.ones(len(rows)), [vog])}
    scores = vog.scores

    # Without the rows at one end of the ranking, and without as many at random.
    weights = {
        f"the {curation.end} {curation.share:.0%} by {curation.column}": weigh(
            chosen_rows(scores, curation), curation, rows
        ),
        "as many rows at random": weigh(drawn_rows(len(rows), curation, args.seed), curation, rows),
    }
    done = "without" if curation.action == "drop" else f"with weight {curation.weight:g} on"
    for name, values in weights.items():
        accuracies[f"{done} {name}"] = train(values)
    if not on_main_process:
        return

    what, chosen_weights = next(iter(weights.items()))
    mistakes = 1 - scores.column("correctness")
    results = {
        "model": model_args.model,
        "rows": len(rows),
        "steps": args.max_steps,
        "test_accuracy": accuracies,
        "headline": {
            **{f"test accuracy, {name}": accuracy for name, accuracy in accuracies.items()},
            f"error of {what} (mean over the snapshots)": float(mistakes[chosen_weights < 1].mean()),
            "error of all rows (mean over the snapshots)": float(mistakes.mean()),
        },
    }
    output = Path(args.output_dir)
    curated = rows.add_column(WEIGHT, chosen_weights, feature=Value("float32"))
    add_vog_columns(curated, scores, "all").to_parquet(str(output / "curated.parquet"))
    write_report(scores, rows, output / "report.html")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{model_args.model}, {len(rows):,} rows, {args.max_steps:,} steps each")
    for name, value in results["headline"].items():
        print(f"{name}: {value:.3f}")
    print(f"\nEverything is in {output}: results.json, report.html, curated.parquet")
    if curation.push_to is not None:
        push(curated, scores, curation, {f"Trained {done} {what}": results["headline"]})


def chosen_rows(scores, curation):
    """Numbers of the rows at the chosen end of the ranking."""
    if curation.column not in scores.column_names:  # early and late need snapshots enough
        stop(f"--column {curation.column!r} is not a column of the scores; they have {', '.join(scores.column_names)}")
    ranking = np.argsort(scores.column(curation.column), kind="stable")
    n = round(curation.share * len(ranking))
    return ranking[-n:] if curation.end == "highest" else ranking[:n]


def drawn_rows(n_rows, curation, seed):
    """Numbers of as many rows, drawn at random."""
    return np.random.default_rng(seed).permutation(n_rows)[: round(curation.share * n_rows)]


def weigh(chosen, curation, rows):
    """The weight of every row in the loss: 1, and less for the chosen ones."""
    weights = np.ones(len(rows))
    weights[chosen] = 0 if curation.action == "drop" else curation.weight
    return weights


def push(curated, scores, curation, said):
    sections = {title: "\n".join(f"- {k}: {v:.3f}" for k, v in figures.items()) for title, figures in said.items()}
    private = True if curation.private else None
    split = str(curated.split or "train").partition("[")[0].partition("+")[0]  # of a part of a split, the split's name
    url = push_scored_dataset(
        curated, curation.push_to, scores=scores, split=split, private=private, card_sections=sections
    )
    print(f"The scored data set, with the column {WEIGHT}, is at {url}")


def check(curation, config):
    """Stop where an option cannot be carried out, before there is anything to lose."""
    columns = [*(name + ending for name in config.column_names for ending in ENDINGS), *COMPANIONS]
    if curation.column not in columns:
        stop(f"--column {curation.column!r} is not a column of the scores; they will have {', '.join(columns)}")
    for option, value, choices in (
        ("end", curation.end, ("highest", "lowest")),
        ("action", curation.action, ("drop", "reweight")),
    ):
        if value not in choices:
            stop(f"--{option} must be {' or '.join(choices)}, got {value!r}")
    if not 0 < curation.share < 1:
        stop(f"--share must lie between 0 and 1, got {curation.share:g}")
    if curation.weight <= 0:
        stop(f"--weight must be above 0, got {curation.weight:g}; rows are left out by --action drop")
    if curation.push_to is not None:
        try:
            whoami()
        except OSError as error:  # no token, a wrong one, or no network
            stop(f"--push_to {curation.push_to} cannot be pushed to: {str(error).strip().splitlines()[0]}")


class WeightedTrainer(Trainer):
    """A Trainer whose loss is the mean over the batch's rows, each with its weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False  # a mean of the batch, for Trainer to divide by the batches of a step

    def compute_loss(self, model, inputs, return_outputs=False, **_):  # noqa: FBT002 (Trainer's own signature)
        weights = inputs.get(WEIGHT, torch.ones_like(inputs["labels"], dtype=torch.float32))
        outputs = model(inputs["pixel_values"])
        smoothing = self.args.label_smoothing_factor
        losses = nn.functional.cross_entropy(
            outputs.logits, inputs["labels"], reduction="none", label_smoothing=smoothing
        )
        loss = (losses * weights).sum() / weights.sum()
        return (loss, outputs) if return_outputs else loss


def rows_to_train_on(args):
    """The rows to train on, the name of their image column and that of their label column."""
    rows = load_rows(args.dataset, args.train_split, config=args.dataset_config)
    image_column = find_column(rows, args.image_column, Image, "--image_column")
    if not isinstance(rows.features[image_column], Image):
        stop(f"--image_column {image_column!r} holds {rows.features[image_column]}, expected images")
    label_column = find_column(rows, args.label_column, ClassLabel, "--label_column")
    rows = as_classes(rows, label_column)
    if args.max_train_samples is not None:
        rows = rows.select(range(min(args.max_train_samples, len(rows))))
    if "vog" in rows.column_names:
        stop("the data set has a column 'vog' already, from an earlier run; pass the data set without its scores")
    return rows, image_column, label_column


def rows_to_evaluate_on(args, image_column, label_column, classes):
    """The test rows, with the classes of the training rows."""
    is_file = args.eval_dataset is not None and Path(args.eval_dataset).is_file()
    split = args.eval_split or ("train" if is_file else "test")
    config = args.dataset_config if args.eval_dataset is None else None
    rows = load_rows(args.eval_dataset or args.dataset, split, config=config)
    for name in (image_column, label_column):
        if name not in rows.column_names:
            stop(f"the test rows have no column {name!r}; they have {rows.column_names}")
    return as_classes(rows, label_column, classes)


def find_column(rows, name, feature, option):
    if name is None:
        name = next((name for name, found in rows.features.items() if isinstance(found, feature)), None)
        if name is None:
            stop(f"no column is of type {feature.__name__}; name one of {rows.column_names} with {option}")
    elif name not in rows.column_names:
        stop(f"{option} {name!r} is not a column of the data set; it has {rows.column_names}")
    return name


def load_model(args, classes):
    """The model with an output per class, and its image processor."""
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}
    labels = {"num_labels": len(classes), **names}  # timm's models keep their outputs unless the number is said
    if args.model == "scratch:small-resnet":
        model = AutoModelForImageClassification.from_config(ResNetConfig(**SMALL_RESNET, **labels))
        size = {"height": SIZE, "width": SIZE}
        return model, ViTImageProcessor(size=size, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    try:
        processor = AutoImageProcessor.from_pretrained(args.model, trust_remote_code=False)
        model = AutoModelForImageClassification.from_pretrained(
            args.model, trust_remote_code=False, ignore_mismatched_sizes=args.ignore_mismatched_sizes, **labels
        )
    except RuntimeError:
        stop(f"--model {args.model} has not {len(classes)} outputs; --ignore_mismatched_sizes gives it a new head")
    except (OSError, ValueError) as error:  # not there, or no image classifier
        stop(f"--model {args.model} cannot be loaded: {error}")
    return model, processor


def make_transforms(processor, *, image_column, label_column):
    """From a batch of rows to what the model is fed: with random crops and flips, and without."""
    if hasattr(processor, "data_config"):  # timm's
        made_for = processor.data_config
        size, mean, std = made_for["input_size"][-1], made_for["mean"], made_for["std"]
    else:
        sides = dict(getattr(processor, "crop_size", None) or processor.size)
        size, mean, std = sides.get("height") or sides["shortest_edge"], processor.image_mean, processor.image_std
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    centered = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *to_tensor])
    varied = v2.Compose(
        [v2.Resize(size), v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip(), *to_tensor]
    )
    columns = {"image_column": image_column, "label_column": label_column}
    return partial(to_inputs, transform=varied, **columns), partial(to_inputs, transform=centered, **columns)


def to_inputs(rows, *, transform, image_column, label_column):
    pixels = [transform(image.convert("RGB")) for image in rows[image_column]]
    weights = {WEIGHT: rows[WEIGHT]} if WEIGHT in rows else {}
    return {"pixel_values": pixels, "labels": rows[label_column], **weights}


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
