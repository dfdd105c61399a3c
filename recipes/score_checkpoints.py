"""Rank rows by Variance of Gradients from checkpoints that were saved long ago: no training, no callback.

Images or texts: what the model of the checkpoints takes decides.

Needs: pip install vog-hf  (for images also torchvision: pip install "vog-hf[timm]")

The checkpoints of a Trainer's run, all of its checkpoint-* folders in order:

    python recipes/score_checkpoints.py --dataset sst2-train.parquet --checkpoints my_run

Some of them, or model folders or safetensors files from elsewhere, in the order of training:

    python recipes/score_checkpoints.py --dataset sst2-train.parquet \
        --checkpoints my_run/checkpoint-100 my_run/checkpoint-200 my_run/checkpoint-400

Revisions of a model on the Hub, in the order of training:

    python recipes/score_checkpoints.py --dataset stanfordnlp/sst2 --model user/model --revisions epoch-1 epoch-2 main

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`. An interrupted scoring
goes on where it was when the same command is given again.

In --output_dir: results.json, report.html, scored.parquet and scores/ (for VoGScores.load). With --compare_with, the
folder of scores of another run on the same rows, such as <run>/_vog/scores of a callback, the two are compared.

Time and the figures to expect, with their command: recipes/README.md.
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
from accelerate import Accelerator
from datasets import ClassLabel, Image, Value
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
)

from vog_hf import VoGConfig, VoGError, VoGScorer, VoGScores, add_vog_columns
from vog_hf.data import as_classes, load_rows
from vog_hf.evaluation import error_by_decile, hard_tail, rank_correlations
from vog_hf.report import write_report
from vog_hf.snapshots import from_hub

COMPARED = ("vog", "vog_class_normalized", "vog_early", "vog_late", "gradient_magnitude", "loss", "confidence")


@dataclass
class Arguments:
    dataset: str = field(metadata={"help": "Hub id, parquet file, folder of images, or folder from save_to_disk."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a data set on the Hub."})
    split: str = field(default="train", metadata={"help": "Rows to score, e.g. 'train[:10%%]'."})
    max_samples: int | None = field(default=None, metadata={"help": "Only the first n rows of the split."})
    input_column: str | None = field(default=None, metadata={"help": "Default: the first column of images, or texts."})
    label_column: str | None = field(default=None, metadata={"help": "Default: the first ClassLabel column."})
    max_length: int = field(default=128, metadata={"help": "Longer texts are cut after so many tokens."})
    checkpoints: list[str] | None = field(
        default=None, metadata={"help": "A run's folder, or model folders or safetensors files in order of training."}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of the model; default: the last checkpoint. Needed with --revisions."},
    )
    revisions: list[str] | None = field(
        default=None, metadata={"help": "Of --model on the Hub: branches, tags or commits in order of training."}
    )
    vog_target: list[str] = field(
        default_factory=lambda: ["logit"],
        metadata={"help": "What is differentiated: logit, probability, loss; the first fills the column vog."},
    )
    vog_label: str = field(default="given", metadata={"help": "Class whose logit it is: given or predicted."})
    batch_size: int = field(default=128, metadata={"help": "Rows per forward pass; does not change a score."})
    compare_with: str | None = field(default=None, metadata={"help": "Folder of other scores of the same rows."})
    seed: int = field(default=0, metadata={"help": "Nothing is drawn here; accepted so that runs.py can give one."})
    output_dir: str = field(default="checkpoint_scores", metadata={"help": "Folder for everything."})


def make_parser():
    return HfArgumentParser(Arguments)


def main():
    (args,) = make_parser().parse_args_into_dataclasses()
    config = VoGConfig(target=tuple(args.vog_target), label=args.vog_label)
    accelerator = Accelerator()  # finds the other processes, if there are any
    on_main_process = accelerator.is_main_process
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if on_main_process else logging.WARNING)

    # The snapshots, a model to put them into, and its processor or tokenizer.
    snapshots, source = find_snapshots(args)
    model, prepare = load_model(source, args)
    rows, input_column, label_column = rows_to_score(args, model)
    to_inputs, collate = prepare(input_column, label_column)

    started = time.perf_counter()
    scorer = VoGScorer(model.to(accelerator.device), config=config, accelerator=accelerator, batch_size=args.batch_size)
    output = Path(args.output_dir)
    scores = scorer.score(rows.with_transform(to_inputs), snapshots, collate_fn=collate, output_dir=output / "scores")
    seconds = time.perf_counter() - started
    if not on_main_process:
        return

    columns = scores.to_pandas()
    mistakes = 1 - columns["correctness"]  # share of the snapshots whose prediction is not the given label
    ranked = [name + ending for name in config.column_names for ending in ("", "_class_normalized")]
    errors = {name: list(error_by_decile(columns[name], mistakes)["error"]) for name in [*ranked, "loss"]}
    deciles = pd.DataFrame(errors)
    deciles.index += 1
    others = [name for name in config.column_names if name != "vog"]
    spearman = rank_correlations(columns[[*COMPARED, *others]])
    tail = hard_tail(scores)
    results = {
        "model": source,
        "rows": len(rows),
        "snapshots": [snapshot["name"] for snapshot in scores.manifest["snapshots"]],
        "scoring_seconds": round(seconds, 1),
        "accuracy": float((columns["prediction"] == columns["label"]).mean()),
        "error_by_decile": deciles.to_dict("list"),
        "spearman": spearman.astype(object).where(spearman.notna(), None).to_dict(),
        "hard_tail": tail.to_dict(),
        "headline": {
            "snapshots": len(scores.manifest["snapshots"]),
            "accuracy of the last": float((columns["prediction"] == columns["label"]).mean()),
            "error, lowest tenth by vog_class_normalized": deciles["vog_class_normalized"].iloc[0],
            "error, highest tenth by vog_class_normalized": deciles["vog_class_normalized"].iloc[-1],
        },
    }
    if args.compare_with is not None:
        results["headline"] |= compared(scores, VoGScores.load(args.compare_with))

    add_vog_columns(rows, scores, "all").to_parquet(str(output / "scored.parquet"))
    write_report(scores, rows, output / "report.html")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{len(rows):,} rows, snapshots {', '.join(results['snapshots'])}; scoring {seconds:.1f} s")
    print("\nError (mean over the snapshots) by decile of each column, 1 = lowest scores:\n")
    print(deciles.T.to_string(float_format="{:.3f}".format))
    print("\nSpearman rank correlation of the columns:\n")
    print(spearman.to_string(float_format="{:.2f}".format))
    print(f"\n{tail.column}, {tail}\n")
    for name, value in results["headline"].items():
        print(f"{name}: {value:.6g}")
    print(f"\nEverything is in {output}: results.json, report.html, scored.parquet, scores")


def find_snapshots(args):
    """What `VoGScorer.score` takes as snapshots, and where the model's configuration and processor are."""
    if (args.checkpoints is None) == (args.revisions is None):
        stop("say either --checkpoints or --revisions: where the snapshots are")
    if args.revisions is not None:
        if args.model is None:
            stop("--revisions are of a model on the Hub; name it with --model")
        folders = from_hub(args.model, args.revisions)
        return folders, (args.model, args.revisions[-1])
    for path in map(Path, args.checkpoints):
        if not path.exists():
            stop(f"--checkpoints {path} does not exist")
    if len(args.checkpoints) > 1:
        return args.checkpoints, (args.model or args.checkpoints[-1], None)
    run = Path(args.checkpoints[0])
    found = sorted(run.glob("checkpoint-*[0-9]"), key=lambda path: int(path.name.rpartition("-")[2]))
    return run, (args.model or str(found[-1] if found else run), None)


def load_model(source, args):
    """The model, and what makes a transform and a collator for the columns that it is to read."""
    name, revision = source
    options = {} if revision is None else {"revision": revision}
    try:
        try:
            model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False, **options)
            processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, **options)
        except ValueError:  # not a configuration of an image classifier
            model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=False, **options)
            processor = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError) as error:
        stop(f"the model {name} cannot be loaded with its processor or tokenizer: {error}; name it with --model")
    if takes_images(model):
        return model, partial(image_inputs, processor)
    return model, partial(text_inputs, processor, args.max_length)


def takes_images(model):
    return model.main_input_name == "pixel_values"


def image_inputs(processor, image_column, label_column):
    """A transform from rows to what an image classifier is fed, and no collator of its own."""

    def transform(rows):
        pixels = processor([image.convert("RGB") for image in rows[image_column]], return_tensors="pt")["pixel_values"]
        return {"pixel_values": list(pixels), "labels": rows[label_column]}

    return transform, None


def text_inputs(tokenizer, max_length, text_column, label_column):
    """A transform from rows to what a text classifier is fed, and a collator that pads."""

    def transform(rows):
        tokens = tokenizer(rows[text_column], truncation=True, max_length=max_length)
        return {**{n: tokens[n] for n in ("input_ids", "attention_mask")}, "labels": rows[label_column]}

    return transform, DataCollatorWithPadding(tokenizer)


def rows_to_score(args, model):
    """The rows to score, the name of the column that the model reads and that of the labels."""
    rows = load_rows(args.dataset, args.split, config=args.dataset_config)

    def is_input(feature):
        if takes_images(model):
            return isinstance(feature, Image)
        return isinstance(feature, Value) and feature.dtype in ("string", "large_string")

    kind = "images" if takes_images(model) else "texts"
    input_column = args.input_column or next((n for n, f in rows.features.items() if is_input(f)), None)
    label_column = args.label_column or next((n for n, f in rows.features.items() if isinstance(f, ClassLabel)), None)
    for option, what, name in (("input", kind, input_column), ("label", "classes", label_column)):
        if name is None:
            stop(f"no column holds {what}; name one of {rows.column_names} with --{option}_column")
        if name not in rows.column_names:
            stop(f"--{option}_column {name!r} is not a column of the data set; it has {rows.column_names}")
    if not is_input(rows.features[input_column]):
        stop(f"--input_column {input_column!r} holds {rows.features[input_column]}, and the model takes {kind}")
    rows = with_classes_of(model, rows, label_column)
    if args.max_samples is not None:
        rows = rows.select(range(min(args.max_samples, len(rows))))
    if "vog" in rows.column_names:
        stop("the data set has a column 'vog' already, from an earlier run; pass the data set without its scores")
    return rows, input_column, label_column


def with_classes_of(model, rows, label_column):
    """The rows with the model's numbers of their classes: found by name, or those of the data where names differ."""
    names, feature = [model.config.id2label[i] for i in range(model.config.num_labels)], rows.features[label_column]
    if isinstance(feature, Value) and "int" in feature.dtype:
        names = list(map(str, range(len(names))))
    elif isinstance(feature, ClassLabel) and set(feature.names) != set(names):
        if feature.num_classes != len(names):
            stop(f"the model has {len(names)} outputs and {label_column!r} has {feature.num_classes} classes")
        names = feature.names
    return as_classes(rows, label_column, names)


def compared(scores, others):
    """How far these scores are from others of the same rows."""
    if len(scores) != len(others):
        stop(f"--compare_with holds scores of {len(others):,} rows, these are {len(scores):,}")
    ours, theirs = scores.column("vog"), others.column("vog")
    ranks = rank_correlations(pd.DataFrame({"ours": ours, "theirs": theirs}))
    return {
        "rank correlation with the other scores": float(ranks.loc["ours", "theirs"]),
        "largest difference from them, relative": float(np.abs(ours - theirs).max() / theirs.max()),
    }


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
