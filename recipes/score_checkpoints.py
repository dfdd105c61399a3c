"""Rank rows by Variance of Gradients from checkpoints that were saved long ago: no training, no callback.

Images or texts: the model of the checkpoints decides.

Needs: pip install vog-hf  (for images also torchvision: pip install "vog-hf[timm]")

The checkpoint-* folders of a Trainer's run, some model folders or safetensors files in the order of training, and
revisions of a model on the Hub in the order of training:

    python recipes/score_checkpoints.py --dataset sst2-train.parquet --checkpoints my_run
    python recipes/score_checkpoints.py --dataset sst2-train.parquet \
        --checkpoints my_run/checkpoint-100 my_run/checkpoint-200 my_run/checkpoint-400
    python recipes/score_checkpoints.py --dataset stanfordnlp/sst2 --model user/model --revisions epoch-1 epoch-2 main

An interrupted scoring resumes when the same command is given again. `vog-hf score` does the same from the command line.

In --output_dir: report.html, scored.parquet and scores/ (for VoGScores.load). With --compare_with, the folder of other
scores of the same rows, such as <run>/_vog/scores of a callback, the two are compared.

Time on one core of a CPU (2,000 sentences, 5 checkpoints of a small BERT): 0.4 minutes. Expected: the scores of the
callback.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from datasets import ClassLabel
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
)

from vog_hf import VoGConfig, VoGScorer, VoGScores, add_vog_columns, write_report
from vog_hf.data import as_classes, class_numbers, find_column, load_rows, model_classes
from vog_hf.evaluation import hard_tail
from vog_hf.snapshots import from_hub

MAX_LENGTH = 128  # of texts, in tokens


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    split: str = field(default="train", metadata={"help": "Rows to score, e.g. 'train[:10%%]'."})
    max_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    input_column: str | None = field(default=None, metadata={"help": "Default: the only column of images or texts."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the only ClassLabel column."})
    checkpoints: list[str] | None = field(
        default=None, metadata={"help": "A run's folder, or model folders or safetensors files in order of training."}
    )
    model: str | None = field(default=None, metadata={"help": "Hub id or folder. Default: the last checkpoint."})
    revisions: list[str] | None = field(
        default=None, metadata={"help": "Branches, tags or commits of --model on the Hub, in order of training."}
    )
    vog_target: list[str] = field(default_factory=lambda: ["logit"], metadata={"help": "logit, probability, loss."})
    batch_size: int = field(default=128, metadata={"help": "Rows per forward pass; does not change a score."})
    compare_with: str | None = field(default=None, metadata={"help": "Folder of other scores of the same rows."})
    output_dir: str = field(default="checkpoint_scores", metadata={"help": "Folder for everything."})
    seed: int = field(default=0, metadata={"help": "Accepted like in other recipes; nothing is random here."})


def find_snapshots(args):
    """Find the snapshots, and the name and revision of the model that they belong to."""
    if args.revisions:
        return from_hub(args.model, args.revisions), args.model, {"revision": args.revisions[-1]}
    if len(args.checkpoints) > 1:
        return args.checkpoints, args.model or args.checkpoints[-1], {}
    run = Path(args.checkpoints[0])
    found = sorted(run.glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.rpartition("-")[2]))
    return run, args.model or str(found[-1] if found else run), {}


def load_model(name, options):
    """Load an image or a text classifier, with its image processor or tokenizer."""
    try:
        model = AutoModelForImageClassification.from_pretrained(name, **options)
        return model, AutoImageProcessor.from_pretrained(name, **options)
    except ValueError:  # not the configuration of an image classifier
        model = AutoModelForSequenceClassification.from_pretrained(name, **options)
        return model, AutoTokenizer.from_pretrained(name, **options)


def with_classes_of(model, rows, label_column):
    """The rows with the model's numbers of their classes: by name where both have names, as at the command line."""
    config, feature = model.config, rows.features[label_column]
    if class_numbers(rows, label_column, config) is not None:
        return as_classes(
            rows, label_column, model_classes(config) or [config.id2label[n] for n in range(config.num_labels)]
        )
    return as_classes(
        rows, label_column, None if isinstance(feature, ClassLabel) else [str(n) for n in range(config.num_labels)]
    )


def main():
    parser = HfArgumentParser(Arguments)
    (args,) = parser.parse_args_into_dataclasses()
    if bool(args.checkpoints) == bool(args.revisions) or (args.revisions and not args.model):
        parser.error("pass either --checkpoints, or --revisions with the --model that they belong to")
    accelerator = Accelerator()  # finds the other processes, if there are any

    snapshots, name, options = find_snapshots(args)
    model, processor = load_model(name, options)
    takes_images = model.main_input_name == "pixel_values"
    rows = load_rows(args.dataset, args.split)
    input_column = find_column(rows, "image" if takes_images else "text", args.input_column)
    label_column = find_column(rows, "class", args.label_column)
    rows = with_classes_of(model, rows, label_column)
    rows = rows.select(range(min(args.max_samples or len(rows), len(rows))))

    def to_inputs(batch):
        if takes_images:
            inputs = processor([image.convert("RGB") for image in batch[input_column]], return_tensors="pt")
        else:
            inputs = processor(batch[input_column], truncation=True, max_length=MAX_LENGTH)
        return {**inputs, "labels": batch[label_column]}

    output = Path(args.output_dir)
    config = VoGConfig(target=tuple(args.vog_target))
    model = model.to(accelerator.device)
    scorer = VoGScorer(model, config=config, accelerator=accelerator, batch_size=args.batch_size)
    collate = None if takes_images else DataCollatorWithPadding(processor)
    scores = scorer.score(rows.with_transform(to_inputs), snapshots, collate_fn=collate, output_dir=output / "scores")

    if accelerator.is_main_process:
        add_vog_columns(rows, scores, "all").to_parquet(output / "scored.parquet")
        write_report(scores, rows, output / "report.html")
        print(hard_tail(scores))
        if args.compare_with:
            others = VoGScores.load(args.compare_with).column("vog")
            difference = np.abs(scores.column("vog") - others).max() / others.max()
            print(f"largest difference from {args.compare_with}, relative: {difference:.1e}")
        print(f"Everything is in {output}: report.html, scored.parquet, scores/")


if __name__ == "__main__":
    main()
