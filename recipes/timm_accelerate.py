"""A training loop of one's own, with timm's model, transforms, optimizer and schedule, scored by Variance of Gradients.

What it takes beside an ordinary loop: a `SnapshotWriter` that stores the weights now and then, a `VoGScorer` that goes
over the rows with them at the end, and `log_scores` for the tracker.

Needs: pip install "vog-hf[timm]"

A pretrained model and a data set of the Hub:

    python recipes/timm_accelerate.py --dataset uoft-cs/cifar10 --eval_split test --model resnet18.a1_in1k \
        --pretrained --lr 1e-4 --epochs 5

From scratch, without a network, on parquet files:

    python recipes/timm_accelerate.py --dataset cifar10-train.parquet --eval_dataset cifar10-test.parquet \
        --max_train_samples 5000 --model test_resnet --image_size 64

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` in the place of `python`. Weights & Biases: add
`--with_tracking` (without an account: WANDB_MODE=offline).

In --output_dir: results.json, contact-sheet.png, scored.parquet, the model, snapshots/ and scores/.

Time and the figures to expect, each with its command: recipes/README.md.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import ClassLabel, Image
from safetensors.torch import save_model
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from vog_hf import VoGConfig, VoGError, VoGScorer, add_vog_columns, log_scores
from vog_hf.data import as_classes, load_rows
from vog_hf.evaluation import error_by_decile, hard_tail, rank_correlations
from vog_hf.scores.pictures import contact_sheet
from vog_hf.snapshots import SnapshotWriter, plan_snapshots

COMPARED = ("vog", "vog_class_normalized", "vog_early", "vog_late", "gradient_magnitude", "loss", "confidence")


@dataclass
class Arguments:
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
    model: str = field(
        default="resnet18", metadata={"help": "Name of a timm model, hf_hub:user/model, or local-dir:folder."}
    )
    pretrained: bool = field(default=False, metadata={"help": "Begin with timm's weights (with a new head)."})
    image_size: int | None = field(default=None, metadata={"help": "Side of the images; default: the model's own."})
    epochs: int = field(default=10, metadata={"help": "Epochs to train."})
    batch_size: int = field(default=64, metadata={"help": "Rows per step and process."})
    opt: str = field(default="adamw", metadata={"help": "One of timm's optimizers."})
    lr: float = field(default=2e-3, metadata={"help": "Highest learning rate; for pretrained models smaller."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay."})
    sched: str = field(default="cosine", metadata={"help": "One of timm's schedules."})
    warmup_epochs: int = field(default=1, metadata={"help": "Epochs in which the learning rate rises."})
    workers: int = field(default=0, metadata={"help": "Processes that read rows ahead."})
    mixed_precision: str | None = field(default=None, metadata={"help": "no, fp16 or bf16; default: the launcher's."})
    vog_target: list[str] = field(
        default_factory=lambda: ["logit"],
        metadata={"help": "What is differentiated: logit, probability, loss; the first fills the column vog."},
    )
    max_snapshots: int = field(default=10, metadata={"help": "At the ends of epochs (or at steps), evenly thinned."})
    with_tracking: bool = field(default=False, metadata={"help": "Log to Weights & Biases."})
    seed: int = field(default=42, metadata={"help": "Of weights, order and crops."})
    output_dir: str = field(default="timm_output", metadata={"help": "Folder for everything."})


def make_parser():
    return HfArgumentParser(Arguments)


def main():
    (args,) = make_parser().parse_args_into_dataclasses()
    config = VoGConfig(target=tuple(args.vog_target))
    output = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, log_with="wandb" if args.with_tracking else None, project_dir=output
    )
    logging.basicConfig(format="%(message)s")
    logging.getLogger("vog_hf").setLevel(logging.INFO if accelerator.is_main_process else logging.WARNING)
    if (output / "snapshots").exists() or (output / "scores").exists():
        stop(f"--output_dir {output} holds an earlier run; name another folder, or remove it")
    accelerator.wait_for_everyone()  # nobody writes before everybody has looked
    set_seed(args.seed)

    # timm's model, and the transforms it was made for: varied at random for training, the same each time for scoring.
    rows, image_column, label_column = rows_to_train_on(args)
    eval_rows = rows_to_evaluate_on(args, image_column, label_column, rows.features[label_column].names)
    model, data_config = load_model(args, rows.features[label_column].num_classes)
    columns = {"image_column": image_column, "label_column": label_column}
    for_training = partial(to_inputs, transform=create_transform(**data_config, is_training=True), **columns)
    for_scoring = partial(to_inputs, transform=create_transform(**data_config, is_training=False), **columns)
    train_rows, score_rows = rows.with_transform(for_training), rows.with_transform(for_scoring)

    # timm's optimizer and schedule, which is stepped by updates here.
    train_loader = DataLoader(train_rows, args.batch_size, shuffle=True, drop_last=True, num_workers=args.workers)
    if len(train_loader) < accelerator.num_processes:
        stop(f"{len(rows)} rows are fewer than a batch of {args.batch_size} per process; set a smaller --batch_size")
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay)
    model, optimizer, train_loader = accelerator.prepare(model, optimizer, train_loader)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=args.sched,
        num_epochs=args.epochs,
        warmup_epochs=min(args.warmup_epochs, args.epochs - 1),
        step_on_epochs=False,
        updates_per_epoch=len(train_loader),
    )
    if args.with_tracking:
        accelerator.init_trackers("vog-timm", config={k: str(v) for k, v in asdict(args).items()})

    # What is to be scored is tried on a few rows before the training, so that what is wrong is found now.
    scorer = VoGScorer(accelerator.unwrap_model(model), config=config, accelerator=accelerator, batch_size=256)
    scorer.check(score_rows)
    steps = plan_snapshots(
        "auto",
        max_snapshots=args.max_snapshots,
        max_steps=args.epochs * len(train_loader),
        steps_per_epoch=len(train_loader),
    )
    writer = SnapshotWriter(output / "snapshots", accelerator.unwrap_model(model))

    started = time.perf_counter()
    train(accelerator, model, train_loader, optimizer=optimizer, scheduler=scheduler, writer=writer, steps=steps)
    training_seconds = time.perf_counter() - started
    if accelerator.is_main_process:
        save_model(accelerator.unwrap_model(model), output / "model.safetensors")

    started = time.perf_counter()
    scores = scorer.score(score_rows, output / "snapshots", output_dir=output / "scores")
    scoring_seconds = time.perf_counter() - started
    eval_accuracy = None
    if eval_rows is not None:
        eval_accuracy = evaluate(accelerator, model, eval_rows.with_transform(for_scoring), args)

    if accelerator.is_main_process:
        results = {
            "model": args.model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "rows": len(rows),
            "epochs": args.epochs,
            "snapshots": steps,
            "training_seconds": round(training_seconds, 1),
            "scoring_seconds": round(scoring_seconds, 1),
            "train_accuracy": float((scores.column("prediction") == scores.column("label")).mean()),
            "eval_accuracy": eval_accuracy,
        }
        report(results, scores, rows, config, output)
        if args.with_tracking:
            log_scores(scores, rows, run=accelerator.get_tracker("wandb"), step=steps[-1])
    accelerator.end_training()


def train(accelerator, model, loader, *, optimizer, scheduler, writer, steps):
    """The loop; a snapshot is taken after each of the steps, the last of which ends the training."""
    step = 0
    for epoch in range(1, -(-steps[-1] // len(loader)) + 1):
        model.train()
        losses = []
        for batch in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch["x"]), batch["labels"])
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            scheduler.step_update(step)
            losses.append(loss.detach())
            if step in steps:
                writer.take(accelerator.unwrap_model(model), step)  # every process calls it, the main one writes
        mean_loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        accelerator.log({"train/loss": mean_loss, "train/epoch": epoch}, step=step)
        accelerator.print(f"epoch {epoch}: loss {mean_loss:.4f}")
    accelerator.wait_for_everyone()


def load_model(args, n_classes):
    """The model with an output per class, and what its images are to be like."""
    try:
        model = timm.create_model(args.model, pretrained=args.pretrained, num_classes=n_classes)
    except (RuntimeError, OSError, ValueError) as error:  # no such model, no such weights
        stop(f"--model {args.model} cannot be made: {error}")
    args_for_data = {} if args.image_size is None else {"input_size": (3, args.image_size, args.image_size)}
    return model, resolve_model_data_config(model, args=args_for_data)


def to_inputs(rows, *, transform, image_column, label_column):
    """From a batch of rows to what the model is fed; `x` is what timm's models call their input."""
    pixels = [transform(image.convert("RGB")) for image in rows[image_column]]
    return {"x": pixels, "labels": rows[label_column]}


@torch.no_grad()
def evaluate(accelerator, model, rows, args):
    """Share of the rows that the model gets right."""
    model.eval()
    correct = []
    for batch in accelerator.prepare(DataLoader(rows, 256, num_workers=args.workers)):
        right = model(batch["x"]).argmax(-1) == batch["labels"]
        correct.append(accelerator.gather_for_metrics(right))
    return torch.cat(correct).float().mean().item()


def report(results, scores, rows, config, output):
    """Print what the ranking is worth in this run, and write everything into the output folder."""
    columns = scores.to_pandas()
    mistakes = 1 - columns["correctness"]  # share of the snapshots whose prediction is not the given label
    ranked = [name + ending for name in config.column_names for ending in ("", "_class_normalized")]
    errors = {name: list(error_by_decile(columns[name], mistakes)["error"]) for name in [*ranked, "loss"]}
    deciles = pd.DataFrame(errors)
    deciles.index += 1
    others = [name for name in config.column_names if name != "vog"]
    spearman = rank_correlations(columns[[*COMPARED, *others]])
    tail = hard_tail(scores)
    results |= {
        "error_by_decile": deciles.to_dict("list"),
        "spearman": spearman.astype(object).where(spearman.notna(), None).to_dict(),
        "hard_tail": tail.to_dict(),
        "headline": headline(results, deciles, spearman),
    }
    add_vog_columns(rows, scores, "all").to_parquet(str(output / "scored.parquet"))
    contact_sheet(scores, rows).save(output / "contact-sheet.png")
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\n{results['model']}, {results['parameters']:,} parameters, {results['rows']:,} rows, ", end="")
    print(f"{results['epochs']} epochs, snapshots after steps {', '.join(map(str, results['snapshots']))}")
    print(f"training {results['training_seconds']} s, scoring {results['scoring_seconds']} s")
    print(f"accuracy on the scored rows, without augmentation, at the last snapshot: {results['train_accuracy']:.3f}")
    if results["eval_accuracy"] is not None:
        print(f"accuracy on the evaluation rows: {results['eval_accuracy']:.3f}")
    print("\nTraining error (mean over the snapshots) by decile of each column, 1 = lowest scores:\n")
    print(deciles.T.to_string(float_format="{:.3f}".format))
    print("\nSpearman rank correlation of the columns:\n")
    print(spearman.to_string(float_format="{:.2f}".format))
    print(f"\n{tail.column}, {tail}")
    print(f"\nEverything is in {output}: results.json, contact-sheet.png, scored.parquet, the model, snapshots, scores")


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


def stop(reason):
    sys.exit(" ".join(f"error: {reason}".split()))


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
