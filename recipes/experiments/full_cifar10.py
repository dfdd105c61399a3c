"""The paper's central claim near its own conditions: all of CIFAR-10 from scratch, test error by decile of VoG.

Needs: pip install vog-hf

The command, which trains a small fast network on the 50,000 rows, keeps snapshots from the first steps to the last, and
scores the test rows and as many training rows:

    python recipes/experiments/full_cifar10.py --dataset uoft-cs/cifar10 --eval_dataset uoft-cs/cifar10 \
        --eval_split test

Started again with the same --output_dir it scores the finished training. --c_scores FILE compares each column with the
published consistency scores of the training rows (c_scores.py says which file), by rank.

In --output_dir: training.json, snapshots/, scores/, and results.json.

Time and figures to expect: recipes/experiments/results/README.md.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from c_scores import c_score_correlations
from fast_training import WHITENING_ROWS, FastNetwork, Normalizer, decode_images, predict, train
from image_training import first_rows, stop
from transformers import HfArgumentParser, set_seed

from vog_hf import VoGConfig, VoGError, VoGScorer, class_normalize
from vog_hf.data import as_classes, find_column, load_rows
from vog_hf.evaluation import auroc, error_by_decile
from vog_hf.snapshots import SnapshotWriter

TAKEN_AT = (0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # shares of the training
WINDOWS = {"early": "vog_early", "late": "vog_late", "all": "vog"}
SCORING_BATCH = 500


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, or folder from save_to_disk; 32 x 32 pixels."})
    eval_dataset: str = field(metadata={"help": "The same, of the test rows."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on."})
    eval_split: str = field(default="train", metadata={"help": "Test rows; a parquet file is the split 'train'."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    epochs: int = field(default=16, metadata={"help": "Passes over the training rows."})
    batch_size: int = field(default=500, metadata={"help": "Rows per step."})
    widths: list[int] = field(default_factory=lambda: [48, 160, 256], metadata={"help": "Channels of the three pairs."})
    label_smoothing: float = field(default=0.2, metadata={"help": "0..1, as the network's authors have it."})
    last_rate: float = field(default=0.0, metadata={"help": "Learning rate at the end, as a share of its peak."})
    bfloat16: bool = field(default=False, metadata={"help": "Train under autocast; 3 times as fast with AMX."})
    scored_train_rows: int = field(default=10000, metadata={"help": "Training rows to score, at random; 0 for none."})
    c_scores: str | None = field(default=None, metadata={"help": "npz of published C-scores of the training rows."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, shifts and drawn rows."})
    output_dir: str = field(default="full-cifar10", metadata={"help": "Folder for everything."})


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    output = Path(args.output_dir)
    images, labels, classes = load_images(args.dataset, args.train_split, args.max_train_samples)
    test_images, test_labels, _ = load_images(args.eval_dataset, args.eval_split, args.max_eval_samples, classes)
    normalize = Normalizer(images)
    set_seed(args.seed)
    model = FastNetwork(args.widths, len(classes), normalize(images[:WHITENING_ROWS]))
    model = model.to(memory_format=torch.channels_last)
    if not (output / "training.json").is_file():
        fit(model, args, (images, labels), (test_images, test_labels), normalize)
    training = json.loads((output / "training.json").read_text(encoding="utf-8"))

    drawn = np.sort(np.random.default_rng(args.seed).permutation(len(images))[: args.scored_train_rows])
    parts = {"test": (test_images, test_labels), "training": (images[drawn], labels[drawn])}
    tables = {
        name: score(model, list(zip(normalize(x), y, strict=True)), output / "snapshots", output / "scores" / name)
        for name, (x, y) in parts.items()
        if len(y)
    }
    results = {
        "headline": make_headline(tables["test"], training),
        "details": {"record": training, **{rows: compare(table) for rows, table in tables.items()}},
    }
    if args.c_scores and len(drawn):
        columns = tables["training"].drop(columns=["label", "prediction"])
        results["details"]["c_scores"] = c_score_correlations(columns, args.c_scores, drawn, labels[drawn].numpy())
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results)


def score(model, rows, snapshots, output):
    """Columns of rows by the given label, and VoG of the logit of the predicted one."""
    options = {"batch_size": SCORING_BATCH, "progress": False}
    given = VoGScorer(model, config=VoGConfig(target=("logit", "loss"), heat_maps=False), **options)
    predicted = VoGScorer(model, config=VoGConfig(label="predicted", heat_maps=False), **options)
    table = given.score(rows, snapshots, output_dir=output / "given").to_pandas()
    other = predicted.score(rows, snapshots, output_dir=output / "predicted")
    columns = {"label": table["label"], "prediction": table["prediction"]}
    for window, column in WINDOWS.items():
        columns[f"VoG of the given label, {window}"] = within_class(table[column], table["label"])
        columns[f"VoG of the predicted label, {window}"] = within_class(other.column(column), table["prediction"])
        columns[f"VoG of the loss, {window}"] = within_class(table[column.replace("vog", "vog_loss")], table["label"])
    return pd.DataFrame({**columns, "mean loss": table["loss"], "CSG": table["csg"]})


def within_class(values, classes):
    """Values as z-scores within their class."""
    return class_normalize(torch.tensor(np.asarray(values)), torch.tensor(np.asarray(classes))).numpy()


def compare(table):
    """Error by decile of each column, lowest first, and the AUROC of high = error; errors of the last snapshot."""
    wrong = (table["prediction"] != table["label"]).to_numpy()
    columns = table.drop(columns=["label", "prediction"])
    return {
        "rows": len(table),
        "error": float(wrong.mean()),
        "deciles": {name: error_by_decile(values, wrong)["error"].tolist() for name, values in columns.items()},
        "auroc": {
            name: auroc(values, wrong) if 0 < wrong.sum() < len(wrong) else None for name, values in columns.items()
        },
    }


def make_headline(table, training):
    """The paper's choice of the test rows, early and late: error of the extreme tenths and of all rows."""
    found = compare(table)
    headline = {"test accuracy": training["test_accuracy"], "test error, all": found["error"]}
    for window in ("early", "late"):
        errors = found["deciles"][f"VoG of the given label, {window}"]
        headline |= {f"test error, lowest {window}": errors[0], f"test error, highest {window}": errors[-1]}
    return headline | {"test error, highest mean loss": found["deciles"]["mean loss"][-1]}


def print_results(results):
    for rows in ("test", "training"):
        if rows in results["details"]:
            found = results["details"][rows]
            print(f"\n{found['rows']:,} {rows} rows, error {found['error']:.3f}; error by decile, 1 = lowest:\n")
            table = pd.DataFrame(found["deciles"], index=range(1, 11)).T.assign(AUROC=found["auroc"])
            print(table.to_string(float_format="{:.3f}".format))


def load_images(dataset, split, limit, classes=None):
    """Images as bytes, labels as a tensor, and the names of the classes."""
    rows = load_rows(dataset, split)
    image_column, label_column = find_column(rows, "image"), find_column(rows, "class")
    rows = first_rows(as_classes(rows, label_column, classes), limit)
    labels = torch.tensor(rows[label_column][:])
    return decode_images(rows, image_column), labels, rows.features[label_column].names


def fit(model, args, training_rows, test_rows, normalize):
    """Train, store the snapshots, and write training.json with time and accuracy."""
    output = Path(args.output_dir)
    steps = args.epochs * (len(training_rows[0]) // args.batch_size)
    taken_at = sorted({max(1, round(share * steps)) for share in TAKEN_AT})
    writer = SnapshotWriter(output / "snapshots", model)

    def after_step(step):
        if step in taken_at:
            writer.take(model, step)

    names = ("epochs", "batch_size", "label_smoothing", "last_rate", "seed", "bfloat16")
    options = {name: getattr(args, name) for name in names}
    seconds = train(model, *training_rows, normalize=normalize, after_step=after_step, **options)
    accuracy = (predict(model, test_rows[0], normalize) == test_rows[1]).float().mean().item()
    record = {
        "test_accuracy": accuracy,
        "cpu_seconds": seconds,
        "snapshots_after": taken_at,
        **options,
        "widths": args.widths,
    }
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"test accuracy {accuracy:.4f} after {seconds:.0f} s of computing")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
