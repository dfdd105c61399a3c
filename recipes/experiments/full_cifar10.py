"""The paper's central claim near its own conditions: all of CIFAR-10 from scratch, test error by decile of VoG.

Needs: pip install vog-hf

The command, which trains a small fast network on the 50,000 rows, keeps snapshots from the first steps to the last, and
scores the test rows and as many training rows:

    python recipes/experiments/full_cifar10.py --dataset uoft-cs/cifar10 --eval_dataset uoft-cs/cifar10 --eval_split test

Started again with the same --output_dir it scores the finished training, e.g. with other rows.

In --output_dir: training.json, snapshots/, scores/, and results.json.

Time and figures to expect: recipes/experiments/results/README.md.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from fast_training import FastNetwork, Normalizer, decode_images, predict, train
from image_training import first_rows, stop
from transformers import HfArgumentParser, set_seed

from vog_hf import VoGError
from vog_hf.data import as_classes, find_column, load_rows
from vog_hf.snapshots import SnapshotWriter

TAKEN_AT = (0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # shares of the training
WHITENED = 5000


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, or folder from save_to_disk; 32 x 32 pixels."})
    eval_dataset: str = field(metadata={"help": "The same, of the test rows."})
    train_split: str = field(default="train", metadata={"help": "Rows to train on."})
    eval_split: str = field(default="train", metadata={"help": "Test rows; a parquet file is the split 'train'."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    epochs: int = field(default=10, metadata={"help": "Passes over the training rows."})
    batch_size: int = field(default=500, metadata={"help": "Rows per step."})
    widths: list[int] = field(default_factory=lambda: [48, 160, 256], metadata={"help": "Channels of the three pairs."})
    label_smoothing: float = field(default=0.2, metadata={"help": "0..1, as the network's authors have it."})
    scored_train_rows: int = field(default=10000, metadata={"help": "Training rows to score, drawn at random."})
    seed: int = field(default=0, metadata={"help": "Of weights, order, shifts and drawn rows."})
    output_dir: str = field(default="full-cifar10", metadata={"help": "Folder for everything."})


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    output = Path(args.output_dir)
    images, labels, classes = load_images(args.dataset, args.train_split, args.max_train_samples)
    test_images, test_labels, _ = load_images(args.eval_dataset, args.eval_split, args.max_eval_samples, classes)
    normalize = Normalizer(images)
    set_seed(args.seed)
    model = FastNetwork(args.widths, len(classes), normalize(images[:WHITENED]))
    model = model.to(memory_format=torch.channels_last)
    if not (output / "training.json").is_file():
        fit(model, args, (images, labels), (test_images, test_labels), normalize)


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

    options = {name: getattr(args, name) for name in ("epochs", "batch_size", "label_smoothing", "seed")}
    seconds = train(model, *training_rows, normalize=normalize, after_step=after_step, **options)
    accuracy = (predict(model, test_rows[0], normalize) == test_rows[1]).float().mean().item()
    record = {"test_accuracy": accuracy, "cpu_seconds": seconds, "snapshots_after": taken_at, **asdict(args)}
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"test accuracy {accuracy:.4f} after {seconds:.0f} s of computing")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
