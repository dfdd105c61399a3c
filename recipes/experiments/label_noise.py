"""Which column finds wrong labels, and is the model better when the rows it points to are left out?

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms).

The command, which gives a fifth of 3,000 rows a wrong label, trains a small ResNet, looks for those rows by every
column, and trains again without a fifth of the rows, chosen in several ways:

    python recipes/experiments/label_noise.py --dataset uoft-cs/cifar10 \
        --max_train_samples 3000 --max_eval_samples 2000

Your own noise: a dataset with a column `is_corrupted` (true where the label is known to be wrong) stays as it is.
Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` instead of `python`.

In --output_dir: results.json, detection.csv, dropped.csv, and the snapshots and scores in _vog/.

Time and figures to expect: recipes/experiments/FINDINGS.md, with hardware and seeds.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from image_training import load_images, log_on_main_process, make_parser, make_trainer, prepare_model, stop
from transformers import set_seed

from vog_hf import VoGCallback, VoGConfig, VoGError
from vog_hf.data import plant_label_noise
from vog_hf.evaluation import auroc, detection_table

TARGETS = ("logit", "loss")  # columns vog, vog_loss
IN_HEADLINE = ("vog_class_normalized", "vog_late", "vog_loss", "csg", "margin", "loss")
NOT_COMPARED = ("row", "label", "prediction", "learning_pattern")


@dataclass
class NoiseArguments:
    label_noise: float = field(
        default=0.2, metadata={"help": "Share of the rows to give a wrong label, if there is no column is_corrupted."}
    )
    label_noise_kind: str = field(default="uniform", metadata={"help": "Wrong classes: uniform, or pairs (the next)."})
    drop: float | None = field(default=None, metadata={"help": "Share of the rows to leave out; default: the noise."})


def main():
    parser = make_parser(NoiseArguments, output_dir="label-noise", num_train_epochs=12)
    data_args, noise_args, model_args, args = parser.parse_args_into_dataclasses()
    if args.resume_from_checkpoint is not None:
        stop("--resume_from_checkpoint: several trainings follow one another here, and none is continued")
    log_on_main_process(args)

    rows, eval_rows, image_column, label_column = load_images(data_args)
    if "is_corrupted" not in rows.column_names:
        kind = noise_args.label_noise_kind
        rows = plant_label_noise(rows, noise_args.label_noise, seed=args.seed, kind=kind, label_column=label_column)
    is_corrupted = np.asarray(rows["is_corrupted"][:], dtype=bool)
    if not 0 < is_corrupted.sum() < len(rows):
        stop(f"{is_corrupted.sum()} of {len(rows)} rows are corrupted, expected some and not all; see --label_noise")
    classes = rows.features[label_column].names
    build, transform = prepare_model(model_args, classes, image_column, label_column, data_args.image_size)

    def train(kept, callbacks=()):
        """Accuracy on the evaluation rows of a model that was trained on these rows from the same start."""
        set_seed(args.seed)
        train_rows, test = rows.select(kept).with_transform(transform), eval_rows.with_transform(transform)
        trainer = make_trainer(build(), args, train_rows, test, callbacks)
        trainer.train()
        return trainer.evaluate()["eval_accuracy"]

    everything = np.arange(len(rows))
    config = VoGConfig(target=TARGETS, heat_maps=False)
    vog = VoGCallback(rows.with_transform(transform), config=config, max_snapshots=10, log=bool(args.report_to))
    accuracy = {"all rows": train(everything, [vog])}
    columns = vog.scores.to_pandas()
    compared = [name for name in columns if name not in NOT_COMPARED and not name.endswith("_percentile")]
    detection = detection_table(columns[compared], is_corrupted, seed=args.seed)

    # The rows to leave out: those at the head of each order.
    share = is_corrupted.mean() if noise_args.drop is None else noise_args.drop
    n_dropped = round(share * len(rows))
    if not 0 < n_dropped < len(rows):
        stop(f"--drop {share} leaves out {n_dropped} of {len(rows)} rows, expected some and not all")
    orders = {
        "highest VoG": -columns["vog_class_normalized"],
        "lowest VoG": columns["vog_class_normalized"],
        "highest VoG of the loss": -columns["vog_loss_class_normalized"],
        "highest mean loss": -columns["loss"],
        "lowest mean margin": columns["margin"],
        "at random": np.random.default_rng(args.seed).random(len(rows)),
        "wrong labels (known)": np.where(is_corrupted, -1, 0),
    }
    dropped = {name: np.argsort(order, kind="stable")[:n_dropped] for name, order in orders.items()}
    for name, out in dropped.items():
        accuracy[name] = train(np.setdiff1d(everything, out))
    if args.process_index != 0:
        return

    table = pd.DataFrame(
        {
            "left out": ["nothing", *dropped],
            "rows": [0, *(len(out) for out in dropped.values())],
            "wrong labels among them": [None, *(float(is_corrupted[out].mean()) for out in dropped.values())],
            "test accuracy": list(accuracy.values()),
        }
    )
    # One direction for all runs, unlike the table of detection, which takes the better one: high = wrong label.
    found = {name: auroc(columns[name], is_corrupted) for name in compared}
    headline = {
        **{f"AUROC {name}": found[name] for name in IN_HEADLINE},
        **{f"accuracy without {name}": accuracy[name] for name in dropped},
        "accuracy with all rows": accuracy["all rows"],
    }
    results = {
        "headline": headline,
        "rows": len(rows),
        "wrong_labels": int(is_corrupted.sum()),
        "training_accuracy": float((columns["prediction"] == columns["label"]).mean()),
        "auroc_high_means_wrong": found,
        "detection": detection.to_dict("list"),
        "dropped": table.astype(object).where(table.notna(), None).to_dict("list"),
    }
    output = Path(args.output_dir)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    detection.to_csv(output / "detection.csv", index=False)
    table.to_csv(output / "dropped.csv", index=False)
    print_results(results, detection, table)
    print(f"\nEverything is in {output}: results.json, detection.csv, dropped.csv, _vog/")


def print_results(results, detection, table):
    print(
        f"\n{results['wrong_labels']:,} of {results['rows']:,} training rows have a wrong label; at the end the model"
    )
    print(f"agrees with {results['training_accuracy']:.3f} of the labels.")
    print("\nHow each column finds the wrong ones, in its better direction, which is chosen by knowing them:\n")
    print(detection.to_string(index=False, float_format="{:.3f}".format))
    print("\nTrained again, from the same start and for as many epochs, without a part of the rows:\n")
    print(table.to_string(index=False, float_format="{:.3f}".format, na_rep="-"))
    better = "highest" if results["auroc_high_means_wrong"]["vog_class_normalized"] > 0.5 else "lowest"
    print(f"\nIn this run the {better} VoG is the better sign of a wrong label; the paper says the highest.")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
