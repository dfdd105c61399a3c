"""Train an image classifier, rank its training rows by Variance of Gradients, and see what the ranking is worth.

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms, timm for --model timm/...).

The shortest command, which trains a small ResNet from scratch:

    python recipes/image_classification.py --dataset uoft-cs/cifar10 --max_train_samples 10000

A pretrained model, on a folder of images with one subfolder per class:

    python recipes/image_classification.py --dataset my_images --model timm/resnet18.a1_in1k \
        --ignore_mismatched_sizes --learning_rate 1e-4 --num_train_epochs 5

Longer trainings, for GPUs (read, and tried with fewer steps; not run to their end for want of a GPU):

    # CIFAR-10 and CIFAR-100 with the paper's network and number of epochs, a snapshot every 35
    python recipes/image_classification.py --dataset uoft-cs/cifar10 --eval_split test \
        --model scratch:resnet18-cifar --num_train_epochs 350 --per_device_train_batch_size 128 \
        --optim sgd --momentum 0.9 --learning_rate 0.1 --weight_decay 5e-4 --lr_drops 0.43 0.71
    python recipes/image_classification.py --dataset uoft-cs/cifar100 --label_column fine_label --eval_split test \
        --model scratch:resnet18-cifar --num_train_epochs 350 --per_device_train_batch_size 128 \
        --optim sgd --momentum 0.9 --learning_rate 0.1 --weight_decay 5e-4 --lr_drops 0.43 0.71

    # the same network on one GPU within an hour's reach
    python recipes/image_classification.py --dataset uoft-cs/cifar10 --eval_split test \
        --model scratch:resnet18-cifar --num_train_epochs 30 --per_device_train_batch_size 512 --bf16 True \
        --optim sgd --momentum 0.9 --learning_rate 0.4 --weight_decay 5e-4 --lr_scheduler_type cosine \
        --warmup_steps 300 --dataloader_num_workers 8

    # ImageNet, ResNet-50, 1,024 images a step on 8 GPUs, with the published early, middle and late snapshots:
    # the columns vog_early and vog_late are those of the first and the last three
    accelerate launch --config_file recipes/accelerate_configs/multi_gpu.yaml recipes/image_classification.py \
        --dataset ILSVRC/imagenet-1k --eval_split validation --model scratch:resnet50 --crop resized --crop_pct 0.875 \
        --max_steps 32000 --per_device_train_batch_size 128 --optim sgd --momentum 0.9 --learning_rate 0.4 \
        --weight_decay 1e-4 --warmup_steps 1251 --lr_drops 0.33 0.67 0.89 --dataloader_num_workers 8 \
        --snapshots 3753,5004,6255,10008,11259,12510,30024,31275,32000 --no_save_scored

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`.

In --output_dir, beside the model: results.json, contact-sheet.png, scored.parquet and scored/ (for load_from_disk).

Time, on one core of a CPU (OMP_NUM_THREADS=1): the shortest command's 10,000 rows and 12 epochs took 2.3 minutes to
train, and 2.4 minutes to score with --vog_target logit loss. Expected there: accuracy 0.73 on the training rows and,
with --eval_split, 0.68 on others. What the ranking was worth in that run is in recipes/README.md, beside a smaller one.
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
from datasets import ClassLabel, Image
from torch import nn
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from vog_hf import VoGCallback, VoGConfig, VoGError
from vog_hf.data import as_classes, load_rows, plant_label_noise
from vog_hf.evaluation import detection_table, error_by_decile, hard_tail, rank_correlations
from vog_hf.scores.pictures import contact_sheet

# Models to train from scratch. Their first layers divide the sides of an image by 4 (ViT: into patches of 8 x 8), which
# leaves too little of a 32 x 32 image: it is enlarged to 64 x 64. "-cifar": see `CifarResNetForImageClassification`.
SIZE = 64
RESNET18 = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
SCRATCH = {
    "small-resnet": ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 1, 1], layer_type="basic"),
    "resnet18": ResNetConfig(**RESNET18),
    "resnet18-cifar": ResNetConfig(**RESNET18),
    "resnet50": ResNetConfig(),
    "vit-tiny": ViTConfig(
        image_size=SIZE,
        patch_size=8,
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
    ),
}
SIZES = {"resnet18-cifar": 32, "resnet50": 224}  # others: SIZE
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # for models from scratch


@dataclass
class DataArguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to score, e.g. 'train[:90%%]'."})
    eval_dataset: str | None = field(
        default=None, metadata={"help": "Where the rows to evaluate on are, if elsewhere; a parquet file is 'train'."}
    )
    eval_split: str | None = field(default=None, metadata={"help": "Rows to evaluate on at the end."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Only the first n rows of the split; in a folder of images the first classes."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Default: the first column of images."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})
    augment: bool = field(default=True, metadata={"help": "Random crops and flips while training."})
    save_scored: bool = field(
        default=True, metadata={"help": "Write the rows with their scores into the output folder: all images, twice."}
    )
    label_noise: float = field(
        default=0.0, metadata={"help": "Share of the training rows to give a wrong label: which column finds them?"}
    )
    label_noise_kind: str = field(default="uniform", metadata={"help": "Wrong classes: uniform, or pairs (the next)."})


@dataclass
class ModelArguments:
    model: str = field(
        default="scratch:small-resnet",
        metadata={"help": f"Hub id (timm/... for timm), local folder, or scratch:{{{','.join(SCRATCH)}}}."},
    )
    image_size: int | None = field(
        default=None,
        metadata={"help": f"Side of the model's images; default: what it was made for ({SIZE} from scratch)."},
    )
    crop: str = field(
        default="shifted",
        metadata={"help": "While training: shifted (by up to an eighth), or resized (any part, for large pictures)."},
    )
    crop_pct: float | None = field(
        default=None, metadata={"help": "Share of the shorter side that is scored; default: the model's own, else 1."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False, metadata={"help": "Give the model a new head where its own has another number of classes."}
    )


@dataclass
class OptimizerArguments:
    momentum: float = field(default=0.0, metadata={"help": "Of --optim sgd."})
    lr_drops: list[float] | None = field(
        default=None,
        metadata={
            "help": "Divide the learning rate by ten after these shares of the training, e.g. 0.43 0.71; "
            "in the place of --lr_scheduler_type."
        },
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
    collect: str = field(default="replay", metadata={"help": "replay (score at the end) or live (while training)."})


def make_parser():
    parser = HfArgumentParser((DataArguments, ModelArguments, OptimizerArguments, VoGArguments, TrainingArguments))
    parser.set_defaults(  # for training from scratch; a pretrained model wants a smaller learning rate
        num_train_epochs=12,
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
    data_args, model_args, optimizer_args, vog_args, args = make_parser().parse_args_into_dataclasses()
    config = VoGConfig(target=tuple(vog_args.vog_target), label=vog_args.vog_label)
    on_main_process = args.process_index == 0
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)
    set_seed(args.seed)

    # The same rows twice: randomly cropped and flipped for training, as they are for scoring.
    rows, image_column, label_column = rows_to_train_on(data_args, seed=args.seed)
    classes = rows.features[label_column].names
    model, processor = load_model(model_args, classes)
    for_training, for_scoring = make_transforms(
        input_format(processor, model_args),
        image_column,
        label_column,
        crop=model_args.crop if data_args.augment else None,
    )
    train_rows, score_rows = rows.with_transform(for_training), rows.with_transform(for_scoring)
    eval_rows = rows_to_evaluate_on(data_args, image_column, label_column, rows.features[label_column].names)

    vog = VoGCallback(
        score_rows,
        config=config,
        snapshots=parse_snapshots(vog_args.snapshots),
        max_snapshots=vog_args.max_snapshots,
        collect=vog_args.collect,
        log=bool(args.report_to),
    )
    trainer = DroppingTrainer(
        model=model,
        args=args,
        lr_drops=optimizer_args.lr_drops,
        optimizer_cls_and_kwargs=sgd(args, optimizer_args),
        train_dataset=train_rows,
        eval_dataset=None if eval_rows is None else eval_rows.with_transform(for_scoring),
        processing_class=processor,
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
        callbacks=[vog],
    )
    started = time.perf_counter()
    training_seconds = trainer.train(checkpoint_to_resume(args)).metrics["train_runtime"]
    scoring_seconds = time.perf_counter() - started - training_seconds  # and logging, with --report_to wandb
    trainer.save_model()
    eval_accuracy = trainer.evaluate()["eval_accuracy"] if eval_rows is not None else None
    scores = vog.scores
    if not on_main_process:
        return

    # What the ranking is worth in this run.
    columns = scores.to_pandas().drop(columns="row")
    mistakes = 1 - columns["correctness"]  # share of the snapshots whose prediction is not the given label
    ranked = [name + ending for name in config.column_names for ending in ("", "_class_normalized")]
    deciles = pd.DataFrame(
        {name: list(error_by_decile(columns[name], mistakes)["error"]) for name in [*ranked, "loss"]}
    )
    deciles.index += 1
    compared = [name for name in columns if name not in ("label", "prediction") and not name.endswith("_percentile")]
    spearman = rank_correlations(columns[compared])
    tails = {name: hard_tail(scores, column=f"{name}_class_normalized") for name in config.column_names}
    detection = None  # how well each column finds the rows whose labels are known to be wrong
    if "is_corrupted" in rows.column_names:
        detection = detection_table(columns[compared], rows["is_corrupted"][:], seed=args.seed)
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
        "hard_tail": {name: tail.to_dict() for name, tail in tails.items()},
        "detection": None if detection is None else detection.to_dict("list"),
    }
    results["headline"] = headline(results, deciles, spearman)

    # Everything into the output folder; where there are several targets, a contact sheet for each.
    output = Path(args.output_dir)
    if data_args.save_scored:
        scored = vog.scored_dataset("all")
        scored.save_to_disk(str(output / "scored"))
        scored.to_parquet(str(output / "scored.parquet"))
    for name in config.column_names:
        sheet = contact_sheet(scores, rows, column=f"{name}_class_normalized")
        sheet.save(output / ("contact-sheet.png" if name == "vog" else f"contact-sheet-{name}.png"))
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results, deciles, spearman)
    for tail in tails.values():
        print(f"\n{tail.column}, {tail}")
    if detection is not None:
        print("\nRows known to be mislabelled, found by each column in its better direction:\n")
        print(detection.to_string(index=False, float_format="{:.3f}".format))
    kept = ", scored.parquet, scored/" if data_args.save_scored else ""
    print(f"\nEverything is in {output}: results.json, contact-sheet.png{kept}, the model, _vog/")


class DroppingTrainer(Trainer):
    """A Trainer that divides the learning rate by ten after given shares of the training, after its warm-up if any."""

    def __init__(self, *args, lr_drops, **kwargs):
        super().__init__(*args, **kwargs)
        self.lr_drops = lr_drops

    def create_scheduler(self, num_training_steps, optimizer=None):
        if not self.lr_drops or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)

        def factor(step):
            drops = sum(step >= share * num_training_steps for share in self.lr_drops)
            return min(1.0, (step + 1) / max(warmup, 1)) * 0.1**drops

        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler


def sgd(args, optimizer_args):
    """What Trainer makes of --optim sgd, with momentum; None for other optimizers, which it makes by itself."""
    if args.optim != "sgd":
        if optimizer_args.momentum:
            stop(f"--momentum is of --optim sgd, got --optim {args.optim.value}")
        return None
    return torch.optim.SGD, {"lr": args.learning_rate, "momentum": optimizer_args.momentum}


class CifarResNetForImageClassification(ResNetForImageClassification):
    """A ResNet for 32 x 32 images: its first layer has 3 x 3 weights and keeps their size. Load it with this class."""

    def __init__(self, config):
        super().__init__(config)
        stem = self.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(config.num_channels, config.embedding_size, 3, padding=1, bias=False)
        stem.pooler = nn.Identity()
        self.post_init()


def rows_to_train_on(args, *, seed):
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
    if args.label_noise:
        kind = args.label_noise_kind
        rows = plant_label_noise(rows, args.label_noise, seed=seed, kind=kind, label_column=label_column)
    return rows, image_column, label_column


def rows_to_evaluate_on(args, image_column, label_column, classes):
    """The rows to evaluate on, or None, with the classes of the training rows."""
    if args.eval_split is None and args.eval_dataset is None:
        return None
    is_file = args.eval_dataset is not None and Path(args.eval_dataset).is_file()
    split = args.eval_split or ("train" if is_file else "test")
    config = args.dataset_config if args.eval_dataset is None else None
    rows = load_rows(args.eval_dataset or args.dataset, split, config=config)
    for name in (image_column, label_column):
        if name not in rows.column_names:
            stop(f"the rows to evaluate on have no column {name!r}; they have {rows.column_names}")
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
    source, _, name = args.model.partition(":")
    if source == "scratch":
        if name not in SCRATCH:
            stop(f"--model {args.model!r} does not exist; from scratch there are {', '.join(SCRATCH)}")
        config, side = SCRATCH[name], args.image_size or SIZES.get(name, SIZE)
        config.update({**labels, **({"image_size": side} if hasattr(config, "image_size") else {})})
        processor = ViTImageProcessor(
            size={"height": side, "width": side}, image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD
        )
        if name.endswith("-cifar"):
            return CifarResNetForImageClassification(config), processor
        return AutoModelForImageClassification.from_config(config), processor
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


def make_transforms(image_format, image_column, label_column, *, crop):
    """From a batch of rows to what the model is fed: varied at random for training, and as they are for scoring."""
    size, resized, mean, std = image_format
    to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    varied = {
        None: [v2.Resize(resized), v2.CenterCrop(size)],
        "shifted": [v2.Resize(size), v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip()],
        "resized": [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()],
    }
    if crop not in varied:
        stop(f"--crop {crop!r} does not exist; there are shifted and resized")
    for_training = v2.Compose([*varied[crop], *to_tensor])
    for_scoring = v2.Compose([*varied[None], *to_tensor])
    columns = {"image_column": image_column, "label_column": label_column}
    return partial(to_inputs, transform=for_training, **columns), partial(to_inputs, transform=for_scoring, **columns)


def to_inputs(rows, *, transform, image_column, label_column):
    pixels = [transform(image.convert("RGB")) for image in rows[image_column]]
    return {"pixel_values": pixels, "labels": rows[label_column]}


def input_format(processor, args):
    """Of the images that the model was made for: side, side before the centre is cut out, mean, standard deviation."""
    if hasattr(processor, "data_config"):  # timm's
        made_for = processor.data_config
        size, own, mean, std = made_for["input_size"][-1], made_for["crop_pct"], made_for["mean"], made_for["std"]
    else:
        whole = dict(processor.size)
        whole = whole.get("height") or whole["shortest_edge"]
        cut = dict(getattr(processor, "crop_size", None) or {}) if getattr(processor, "do_center_crop", False) else {}
        size = cut.get("height", whole)
        own, mean, std = size / whole, processor.image_mean, processor.image_std
    size = args.image_size or size
    return size, round(size / (args.crop_pct or own)), mean, std


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
    print(f"accuracy on the scored rows, without augmentation, at the last snapshot: {results['train_accuracy']:.3f}")
    if results["eval_accuracy"] is not None:
        print(f"accuracy on the evaluation rows: {results['eval_accuracy']:.3f}")
    print("\nTraining error (mean over the snapshots) by decile of each column, 1 = lowest scores:\n")
    print(deciles.T.to_string(float_format="{:.3f}".format))
    print("\nSpearman rank correlation of the columns (of percentiles: as their class-normalized score):\n")
    numbered = [f"{i} {name}" for i, name in enumerate(spearman, 1)]
    table = spearman.set_axis(numbered, axis=0).set_axis(range(1, len(numbered) + 1), axis=1)
    print(table.to_string(float_format="{:.2f}".format))


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
