"""Does Variance of Gradients tell images of another kind from those that the model was made for?

Needs: pip install "vog-hf[timm]"  (torchvision for the transforms).

The command, which trains a small ResNet on 3,000 rows and compares 1,000 test rows with as many other images:

    python recipes/experiments/ood_detection.py --dataset uoft-cs/cifar10 \
        --max_train_samples 3000 --max_eval_samples 1000

What the other images are is said by --others: the test rows themselves, changed (noise added, blurred, inverted, cut
into 16 squares that are shuffled), pure noise, scikit-learn's handwritten digits, or any dataset: a Hub id, a file, a
folder.

    ... --others blurred digits ufldl-stanford/svhn

Each column is judged in the direction that was said beforehand for it: high VoG, low maximum softmax probability
(Hendrycks & Gimpel, arXiv 1610.02136), high energy -log sum exp(logits) (Liu et al., arXiv 2010.03759), high mean
|gradient| of the logit with respect to the input. An AUROC below 0.5 says that the other direction would have done.
No label is used: VoG is that of the class which the last snapshot predicts.

Several processes: `accelerate launch` or `torchrun --nproc_per_node 2` instead of `python`.

In --output_dir: results.json, detection.csv, ood-detection.png, and the snapshots and scores in _vog/.

Time and figures to expect: recipes/experiments/FINDINGS.md, with hardware and seeds.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
from datasets import (
    Dataset,
    Features,
    Image,
    Value,
    concatenate_datasets,
)
from image_training import first_rows, load_images, log_on_main_process, make_parser, make_trainer, prepare_model, stop
from matplotlib.figure import Figure
from PIL import ImageFilter, ImageOps
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_curve
from transformers import set_seed

from vog_hf import VoGCallback, VoGConfig, VoGError
from vog_hf.data import find_column, load_rows
from vog_hf.demo import load_digits_dataset
from vog_hf.evaluation import auroc

SQUARES = 4  # a side, of the shuffled images


@dataclass
class OtherArguments:
    others: list[str] = field(
        default_factory=lambda: ["noisy", "blurred", "inverted", "shuffled", "noise", "digits"],
        metadata={"help": "Any of those, Hub ids, parquet files and folders of images."},
    )
    others_split: str = field(default="test", metadata={"help": "Split of those that are datasets; of a file: train."})


def main():
    parser = make_parser(OtherArguments, output_dir="ood-detection", num_train_epochs=12)
    data_args, other_args, model_args, args = parser.parse_args_into_dataclasses()
    log_on_main_process(args)

    rows, eval_rows, image_column, label_column = load_images(data_args)
    classes = rows.features[label_column].names
    build, transform = prepare_model(model_args, classes, image_column, label_column, data_args.image_size)

    # One dataset without labels: the test rows, then each kind of other images.
    known = [row[image_column].convert("RGB") for row in eval_rows.select_columns(image_column)]
    kinds = {"test rows": known}
    rng = np.random.default_rng(args.seed)
    for kind in other_args.others:
        kinds[kind] = make_others(kind, known, rng) or load_others(kind, other_args.others_split, len(known))
    parts = [as_rows(images, kind, image_column) for kind, images in kinds.items()]
    together = concatenate_datasets(parts)

    set_seed(args.seed)
    # The paper's target, and the softmax probability; no heat maps, since nobody looks at single rows here.
    config = VoGConfig(target=("logit", "probability"), label="predicted", heat_maps=False)
    vog = VoGCallback(together.with_transform(transform), config=config, max_snapshots=10, log=bool(args.report_to))
    train_rows, test = rows.with_transform(transform), eval_rows.with_transform(transform)
    trainer = make_trainer(build(), args, train_rows, test, [vog])
    trainer.train(args.resume_from_checkpoint)
    accuracy = trainer.evaluate()["eval_accuracy"]
    logits = trainer.predict(together.with_transform(transform)).predictions.astype(float)
    scores = vog.scores.to_pandas()
    if args.process_index != 0:
        return

    # High = another kind of image, for every column.
    columns = {
        **{name: scores[name] for name in ("vog", "vog_early", "vog_late", "vog_probability")},
        "gradient_magnitude": scores["gradient_magnitude"],
        "1 - max softmax": 1 - softmax(logits, axis=1).max(1),
        "energy": -logsumexp(logits, axis=1),
    }
    source = np.array(together["source"][:])
    table = pd.DataFrame(
        [
            {"others": kind, "column": name, **separation(np.asarray(values), source, kind)}
            for kind in list(kinds)[1:]
            for name, values in columns.items()
        ]
    )
    mean = table.groupby("column", sort=False)[["auroc", "aupr", "fpr_at_95"]].mean()
    headline = {f"AUROC {name}": mean.loc[name, "auroc"] for name in columns}
    headline |= {
        f"{m}, {name}": mean.loc[name, c]
        for m, c in (("AUPR", "aupr"), ("FPR at 95 %", "fpr_at_95"))
        for name in ("vog", "1 - max softmax")
    }
    results = {
        "headline": {**headline, "test accuracy": accuracy},
        "rows": {"training": len(rows), **{kind: len(images) for kind, images in kinds.items()}},
        "detection": table.to_dict("records"),
    }
    output = Path(args.output_dir)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    table.to_csv(output / "detection.csv", index=False)
    draw(kinds, columns, source, output / "ood-detection.png")
    print_results(results, table, mean)
    print(f"\nEverything is in {output}: results.json, detection.csv, ood-detection.png, _vog/")


def separation(values, source, kind):
    """How well high values tell one kind of other images from the test rows.

    auroc: chance that one of the others lies above a test row. aupr: area under precision and recall, the others being
    what is looked for; its floor is their share, here a half where there are as many. fpr_at_95: share of the test rows
    that are taken for others when 95 % of the others are found; lower is better.
    """
    taken = (source == "test rows") | (source == kind)
    is_other, values = source[taken] == kind, values[taken]
    wrongly_taken, found, _ = roc_curve(is_other, values)
    return {
        "auroc": auroc(values, is_other),
        "aupr": float(average_precision_score(is_other, values)),
        "fpr_at_95": float(wrongly_taken[np.argmax(found >= 0.95)]),
    }


def make_others(kind, images, rng):
    """As many images of a kind that is made here; None for the name of a dataset."""
    makers = {
        "noisy": lambda image: add_noise(image, rng),
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 16)),
        "inverted": ImageOps.invert,
        "shuffled": lambda image: shuffle_squares(image, rng),
        "noise": lambda image: PIL.Image.fromarray(
            rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8)
        ),
    }
    if kind == "digits":
        digits = load_digits_dataset().shuffle(seed=0).select(range(min(len(images), 1797)))
        return [row["image"].convert("RGB") for row in digits]
    return [makers[kind](image) for image in images] if kind in makers else None


def add_noise(image, rng):
    pixels = np.asarray(image, dtype=float)
    return PIL.Image.fromarray(np.clip(pixels + rng.normal(0, 50, pixels.shape), 0, 255).astype(np.uint8))


def shuffle_squares(image, rng):
    """The image cut into squares, which are put together in another order."""
    side = min(image.size) // SQUARES
    pixels = np.asarray(image.resize((side * SQUARES, side * SQUARES)))
    squares = pixels.reshape(SQUARES, side, SQUARES, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    shuffled = squares[rng.permutation(len(squares))].reshape(SQUARES, SQUARES, side, side, 3).swapaxes(1, 2)
    return PIL.Image.fromarray(shuffled.reshape(pixels.shape))


def load_others(name, split, n):
    """The first n images of a dataset."""
    rows = load_rows(name, "train" if Path(name).is_file() else split)
    column = find_column(rows, "image")
    return [row[column].convert("RGB") for row in first_rows(rows.select_columns(column), n)]


def as_rows(images, kind, image_column):
    features = Features({image_column: Image(), "source": Value("string")})
    return Dataset.from_dict({image_column: images, "source": [kind] * len(images)}, features=features)


def draw(kinds, columns, source, path):
    """How the columns are distributed over the test rows and each kind of others, in ranks over all rows."""
    figure = Figure(figsize=(3.2 * len(columns), 4), layout="constrained")
    for plot, (name, values) in zip(figure.subplots(1, len(columns), sharey=True), columns.items(), strict=True):
        ranks = pd.Series(np.asarray(values)).rank(pct=True)
        plot.boxplot([ranks[source == kind] for kind in kinds], showfliers=False)
        plot.set(title=name, ylabel="rank, 1 = highest of all")
        plot.set_xticks(range(1, len(kinds) + 1), list(kinds), rotation=60)
    figure.savefig(path, dpi=80)


def print_results(results, table, mean):
    print(f"\nAccuracy on the test rows: {results['headline']['test accuracy']:.3f}. High values are taken for other")
    print("images in every column; FPR is the share of the test rows taken for others when 95 % of these are found.\n")
    for measure in ("auroc", "aupr", "fpr_at_95"):
        wide = table.pivot_table(index="others", columns="column", values=measure, sort=False)[list(mean.index)]
        wide.loc["mean"] = mean[measure]
        print(f"{measure}\n{wide.to_string(float_format='{:.3f}'.format)}\n")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
