"""Does the test error rise with Variance of Gradients: early and late, for which target, after which training?

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms).

The command, which trains a small ResNet on 3,000 rows three times (for a few epochs, until it fits them, and until it
fits them with a fifth of the labels wrong) and scores 2,000 test rows after each:

    python recipes/experiments/error_by_decile.py --dataset uoft-cs/cifar10 \
        --max_train_samples 3000 --max_eval_samples 2000

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` instead of `python`.

In --output_dir: results.json, deciles.csv, classes.csv, error-by-decile.png, and of each training a folder with its
snapshots and scores.

Time and figures to expect: recipes/experiments/FINDINGS.md, with hardware and seeds.
"""

import json
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch
from image_training import load_images, log_on_main_process, make_parser, make_trainer, prepare_model, stop
from matplotlib.figure import Figure
from transformers import set_seed

from vog_hf import VoGCallback, VoGConfig, VoGError, VoGScorer, class_normalize
from vog_hf.data import plant_label_noise
from vog_hf.evaluation import class_table, error_by_decile, rank_correlations

TARGETS = ("logit", "probability", "loss")
COLUMNS = dict(zip(TARGETS, VoGConfig(target=TARGETS).column_names, strict=True))
WINDOWS = {"early": "_early", "late": "_late", "all": ""}
BINS = 10


@dataclass
class RunArguments:
    short_epochs: int = field(default=4, metadata={"help": "Of the short training; --num_train_epochs of the others."})
    label_noise: float = field(
        default=0.2, metadata={"help": "Share of wrong labels in the training that is to memorize them."}
    )


def main():
    parser = make_parser(RunArguments, output_dir="error-by-decile", num_train_epochs=20)
    data_args, run_args, model_args, args = parser.parse_args_into_dataclasses()
    if args.resume_from_checkpoint is not None:
        stop("--resume_from_checkpoint: several trainings follow one another here, and none is continued")
    log_on_main_process(args)

    rows, eval_rows, image_column, label_column = load_images(data_args)
    noisy = plant_label_noise(rows, run_args.label_noise, seed=args.seed, label_column=label_column)
    classes = rows.features[label_column].names
    build, transform = prepare_model(model_args, classes, image_column, label_column, data_args.image_size)
    test = eval_rows.with_transform(transform)
    if len(test) < 10 * BINS:
        stop(f"--eval_split has {len(test)} rows, expected at least {10 * BINS}, ten for each tenth")

    # After each training the test rows are scored, by their label and by the prediction.
    trainings = {
        "short": (rows, run_args.short_epochs),
        "converged": (rows, args.num_train_epochs),
        "memorizing": (noisy, args.num_train_epochs),
    }
    output = Path(args.output_dir)
    deciles, by_class, accuracy = [], [], {}
    for name, (train_rows, epochs) in trainings.items():
        set_seed(args.seed)
        train_args = copy(args)
        train_args.num_train_epochs, train_args.output_dir = epochs, str(output / name)
        config = VoGConfig(target=TARGETS, heat_maps=False)
        vog = VoGCallback(test, config=config, max_snapshots=10, log=bool(args.report_to))
        trainer = make_trainer(build(), train_args, train_rows.with_transform(transform), callbacks=[vog])
        trainer.train()
        fitted = trainer.evaluate(train_rows.with_transform(transform))["eval_accuracy"]
        scorer = VoGScorer(trainer.model, config=replace(config, label="predicted"), batch_size=args.eval_batch_size)
        predicted = scorer.score(test, output / name / "_vog")

        given = vog.scores.to_pandas()
        wrong = given["prediction"] != given["label"]
        accuracy[name] = {"training labels": fitted, "test": float(1 - wrong.mean())}
        for label, scores in (("given", given), ("predicted", predicted.to_pandas())):
            of_class = scores["label" if label == "given" else "prediction"]
            deciles += decile_lines(scores, wrong, of_class, training=name, label=label)
        table = class_table(given["label"], given["vog_late"], prediction=given["prediction"])
        by_class.append(table.assign(training=name, name=[classes[i] for i in table["class"]]))
    if args.process_index != 0:
        return

    table, by_class = pd.DataFrame(deciles), pd.concat(by_class)
    results = {
        "headline": make_headline(table, accuracy),
        "rows": {"training": len(rows), "test": len(test)},
        "accuracy": accuracy,
        "class_error_with_class_vog": {
            name: float(rank_correlations(part[["error", "vog_mean"]]).loc["error", "vog_mean"])
            for name, part in by_class.groupby("training", sort=False)
        },
        "deciles": table.to_dict("records"),
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table.to_csv(output / "deciles.csv", index=False)
    by_class.to_csv(output / "classes.csv", index=False)
    draw(table, accuracy, output / "error-by-decile.png")
    print_results(results, table, by_class)
    print(f"\nEverything is in {output}: results.json, deciles.csv, classes.csv, error-by-decile.png")


def decile_lines(scores, wrong, of_class, **run):
    """Error by decile of each target's score in each window, as it is and normalized within the class."""
    lines = []
    for target, column in COLUMNS.items():
        for window, end in WINDOWS.items():
            raw = scores[column + end].to_numpy()
            normalized = class_normalize(torch.tensor(raw), torch.tensor(of_class.to_numpy())).numpy()
            for kind, values in (("raw", raw), ("class-normalized", normalized)):
                errors = error_by_decile(values, wrong, bins=BINS)["error"]
                lines.append({**run, "target": target, "window": window, "score": kind, **dict(enumerate(errors, 1))})
    return lines


def make_headline(table, accuracy):
    """The paper's choice (logit of the given label, class-normalized): error of the extreme tenths, and of all rows."""
    headline = {}
    chosen = table[(table.label == "given") & (table.target == "logit") & (table.score == "class-normalized")]
    for name, found in accuracy.items():
        headline[f"{name}: training labels fitted"] = found["training labels"]
        headline[f"{name}: all"] = 1 - found["test"]
        for window in ("early", "late"):
            line = chosen[(chosen.training == name) & (chosen.window == window)].iloc[0]
            headline |= {f"{name}: lowest {window}": line[1], f"{name}: highest {window}": line[BINS]}
    return headline


def draw(table, accuracy, path):
    """Error by decile of the class-normalized score: a column for each training, a row for each label."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, len(accuracy), sharex=True, sharey=True)
    for column, (name, found) in zip(axes.T, accuracy.items(), strict=True):
        for plot, label in zip(column, ("given", "predicted"), strict=True):
            plot.axhline(1 - found["test"], color="gray", lw=1, label="all test rows")
            part = table[(table.training == name) & (table.label == label) & (table.score == "class-normalized")]
            for color, target in enumerate(TARGETS):
                for window, style in (("early", "--"), ("late", "-")):
                    errors = part[(part.target == target) & (part.window == window)][list(range(1, BINS + 1))]
                    plot.plot(range(1, BINS + 1), errors.iloc[0], style, color=f"C{color}", label=f"{target}, {window}")
            plot.set(title=f"{name}; {label} label", xlabel="tenth of the score, 10 = highest", ylabel="test error")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=80)


def print_results(results, table, by_class):
    for name, found in results["accuracy"].items():
        print(f"\n{name}: agrees with {found['training labels']:.3f} of its training labels; test error ", end="")
        print(
            f"{1 - found['test']:.3f}. Test error by decile of each score, 1 = lowest, normalized within the class:\n"
        )
        part = table[(table.training == name) & (table.score == "class-normalized")]
        print(part.drop(columns=["training", "score"]).to_string(index=False, float_format="{:.2f}".format))
        print("\nClasses, with the late VoG of the logit of the given label:\n")
        classes = by_class[by_class.training == name].drop(columns="training")
        print(classes.to_string(index=False, float_format="{:.3g}".format))
        correlation = results["class_error_with_class_vog"][name]
        print(f"\nRank correlation of a class's error with its mean VoG: {correlation:.2f}")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
