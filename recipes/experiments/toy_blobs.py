"""The paper's experiment in two dimensions: does Variance of Gradients tell how near a point is to the boundary?

Needs: pip install vog-hf

The command, which trains three networks of 10 hidden units on 450 points and scores the points:

    python recipes/experiments/toy_blobs.py

In --output_dir: results.json and toy-blobs.png. Several processes: `accelerate launch` instead of `python`; each
trains the same small networks, and the rows are shared among them for scoring.

The paper (arXiv 2008.11600, section 3) says that the points closest to the decision boundary get the highest scores.
The script published with it, github.com/chirag126/VOG toy_script.py, computes something else than the paper defines:

1. a network without a non-linearity, whose logits have the same gradient at every point of a class: it is the softmax
   probability that is differentiated;
2. gradients that are never set to zero: those of all earlier steps, and of the training loss, are added up;
3. as the mean that is subtracted, the sum over all 15 steps divided by the 5 of the window;
4. 15 steps with all points at once and a learning rate of 0.001: enough for the published points, not for others.

The recipe computes both, and goes from one to the other step by step, so that it can be seen what each step does. (The
step to another training changes optimizer, rate, batches, first weights and number of epochs at once.)

Time: 14 s of one CPU core. Expected: a rank correlation with the distance of about -0.9 (nearest points highest) for
probability and loss, and a weaker one, -0.15 to -0.64, for the logit: recipes/experiments/FINDINGS.md.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from contourpy import contour_generator
from matplotlib.figure import Figure
from scipy.spatial import KDTree
from sklearn.datasets import make_blobs
from torch import nn
from transformers import HfArgumentParser, set_seed

from vog_hf import VoGConfig, VoGError, VoGScorer, input_gradients, vog
from vog_hf.evaluation import rank_correlations

PUBLISHED_SEED, POINTS, TEST_POINTS = 212, 500, 50  # of the published script
PUBLISHED_STEPS, PUBLISHED_WINDOW, PUBLISHED_RATE = 15, 5, 0.001
TARGETS = ("logit", "probability", "loss")
COLUMNS = dict(zip(TARGETS, VoGConfig(target=TARGETS).column_names, strict=True))
WINDOWS = {"early": "_early", "late": "_late", "all": ""}
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "none": nn.Identity}
MAIN = "relu"  # the network of the headline and of the figure


@dataclass
class Arguments:
    output_dir: str = field(default="toy-blobs", metadata={"help": "Folder for results.json and toy-blobs.png."})
    seed: int = field(default=0, metadata={"help": "Of points and networks; 0: the published points."})
    num_train_epochs: int = field(default=15, metadata={"help": "A snapshot is taken after each."})
    learning_rate: float = field(default=0.02, metadata={"help": "Of Adam."})
    hidden: int = field(default=10, metadata={"help": "Hidden units."})


class Network(nn.Module):
    """Two coordinates, a hidden layer, two classes."""

    def __init__(self, hidden, activation):
        super().__init__()
        self.hidden, self.activation, self.out = nn.Linear(2, hidden), activation, nn.Linear(hidden, 2)

    def forward(self, x):
        return self.out(self.activation(self.hidden(x)))


def main():
    (args,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if args.num_train_epochs < 2 or args.hidden < 1:
        stop("--num_train_epochs must be at least 2, since a variance needs two snapshots, and --hidden at least 1")
    accelerator = Accelerator(cpu=True)
    x, y, x_test, y_test = make_points(args.seed)

    # Three networks, one of them without a non-linearity, scored by three targets in one pass over their snapshots.
    models, scores, distances, accuracy = {}, {}, {}, {}
    rows = [{"x": point, "labels": label} for point, label in zip(x, y, strict=True)]
    for name, activation in ACTIVATIONS.items():
        set_seed(args.seed)
        models[name] = Network(args.hidden, activation())
        snapshots = train(models[name], x, y, args)
        scorer = VoGScorer(models[name], config=VoGConfig(target=TARGETS), accelerator=accelerator, progress=False)
        scores[name] = scorer.score(rows, snapshots).to_pandas()
        distances[name] = distance_to_boundary(models[name], x)
        accuracy[name] = {"train": accuracy_of(models[name], x, y), "test": accuracy_of(models[name], x_test, y_test)}
    if not accelerator.is_main_process:
        return

    # Rank correlation of each score with the distance to the network's own boundary.
    correlations = {
        name: {
            **{
                f"{t}, {w}": spearman(scores[name][COLUMNS[t] + end], distances[name])
                for t in TARGETS
                for w, end in WINDOWS.items()
            },
            **{companion: spearman(scores[name][companion], distances[name]) for companion in ("loss", "confidence")},
        }
        for name in ACTIVATIONS
    }
    published = as_published(x, y)
    ladder = ladder_of_differences(published, scores, distances)
    late = ladder["late"]
    headline = {f"{t} VoG {w}": correlations[MAIN][f"{t}, {w}"] for t in TARGETS for w in WINDOWS}
    headline |= {
        "mean loss": correlations[MAIN]["loss"],
        "the published score, late": late["as published"]["with_distance"],
        "the same, with what each step's own gradients give": late["gradients of each step alone"]["with_line_above"],
        "training accuracy": accuracy[MAIN]["train"],
    }
    results = {
        "headline": headline,
        "accuracy": accuracy,
        "spearman_with_distance": correlations,
        "distinct_values": {n: {t: int(scores[n][c].nunique()) for t, c in COLUMNS.items()} for n in ACTIVATIONS},
        "published": {"accuracy_before": published["before"], "accuracy": published["after"], "steps": ladder},
    }
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    figures = {"model": models[MAIN], "scores": scores[MAIN], "distance": distances[MAIN]}
    draw(output / "toy-blobs.png", x, y, published=published, **figures)
    print_results(results)
    print(f"\nEverything is in {output}: results.json, toy-blobs.png")


def make_points(seed):
    """Training and test points of three blobs, the second and third one class; seed 0 gives the published points."""
    points, blob = make_blobs(n_samples=POINTS, n_features=2, cluster_std=2, random_state=PUBLISHED_SEED + seed)
    x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(blob > 0).long()
    return x[:-TEST_POINTS], y[:-TEST_POINTS], x[-TEST_POINTS:], y[-TEST_POINTS:]


def train(model, x, y, args):
    """Train in batches of 32; the weights after each epoch, as (name, state dict)."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    snapshots = []
    for epoch in range(args.num_train_epochs):
        for rows in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        snapshots.append((f"epoch-{epoch + 1}", {name: value.clone() for name, value in model.state_dict().items()}))
    return snapshots


def accuracy_of(model, x, y):
    with torch.no_grad():
        return float((model(x).argmax(-1) == y).double().mean())


def margin_on_grid(model, x, steps=600):
    """Logit of class 1 less that of class 0 over a grid around the points, behind its two axes."""
    low, high = x.min(0).values - 5, x.max(0).values + 5
    across, up = (torch.linspace(float(a), float(b), steps) for a, b in zip(low, high, strict=True))
    with torch.no_grad():
        logits = model(torch.stack(torch.meshgrid(across, up, indexing="xy"), -1))
    return across.numpy(), up.numpy(), (logits[..., 1] - logits[..., 0]).numpy()


def distance_to_boundary(model, x):
    """Distance of each point to the nearest place where both logits are equal."""
    lines = contour_generator(*margin_on_grid(model, x)).lines(0.0)
    if not lines:
        stop("a network gives all points the same class, so that there is no boundary; train longer, or change --seed")
    return KDTree(np.concatenate(lines)).query(x.numpy())[0]


def spearman(score, distance):
    """Rank correlation; None where the score is the same for all points."""
    found = rank_correlations({"score": score, "distance": distance}).loc["score", "distance"]
    return None if np.isnan(found) else float(found)


def as_published(x, y):
    """What the published script computes on these points: its network, its scores, the distances to its boundary."""
    model = Network(10, nn.Identity())
    for layer in (model.hidden, model.out):
        torch.manual_seed(0)
        nn.init.normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    before = accuracy_of(model, x, y)
    optimizer = torch.optim.SGD(model.parameters(), lr=PUBLISHED_RATE)
    points, rows = x.clone().requires_grad_(), torch.arange(len(y))
    summed, own = [], []
    for _ in range(PUBLISHED_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(points), y).backward()  # adds to points.grad, too
        optimizer.step()
        own.append(input_gradients(model, (x, y), target="probability"))
        model(points).softmax(-1)[rows, y].sum().backward()  # and so does this; nothing sets it to zero
        summed.append(points.grad.clone())
    windows = {"early": slice(PUBLISHED_WINDOW), "late": slice(-PUBLISHED_WINDOW, None)}
    return {
        "model": model,
        "before": before,
        "after": accuracy_of(model, x, y),
        "distance": distance_to_boundary(model, x),
        "as published": {name: published_spread(torch.stack(summed), part) for name, part in windows.items()},
        "gradients of each step alone": {
            name: published_spread(torch.stack(own), part) for name, part in windows.items()
        },
        "and the mean of the window": {name: vog(torch.stack(own)[part]) for name, part in windows.items()},
    }


def published_spread(gradients, part):
    """The script's score: spread of a window's gradients about the sum of all steps divided by the window's length."""
    window = gradients[part]
    center = gradients.sum(0) / len(window)
    return (window - center).square().mean(0).sqrt().mean(-1)


def ladder_of_differences(published, scores, distances):
    """From what the script computes to the paper's definition, step by step, for both windows."""
    return {window: ladder(published, scores, distances, window) for window in ("early", "late")}


def ladder(published, scores, distances, window):
    end = WINDOWS[window]
    names = ("as published", "gradients of each step alone", "and the mean of the window")
    steps = {
        **{name: (published[name][window], published["distance"]) for name in names},
        "and trained in batches, until it fits": (scores["none"][f"{COLUMNS['probability']}{end}"], distances["none"]),
        "and with a non-linearity": (scores[MAIN][f"{COLUMNS['probability']}{end}"], distances[MAIN]),
        "and the logit: the paper's definition": (scores[MAIN][f"{COLUMNS['logit']}{end}"], distances[MAIN]),
    }
    found, above = {}, None
    for name, (score, distance) in steps.items():
        between = None if above is None else spearman(score, above)
        found[name] = {"with_distance": spearman(score, distance), "with_line_above": between}
        above = score
    return found


def draw(path, x, y, *, published, model, scores, distance):
    """Points colored by rank of their late score, and scores against distance, for the script and three targets."""
    panels = {"as published": (published["model"], published["as published"], published["distance"])}
    for target, column in COLUMNS.items():
        windows = {window: scores[column + end] for window, end in WINDOWS.items()}
        panels[f"VoG of the {target}"] = (model, windows, distance)
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    axes = figure.subplots(2, len(panels))
    for (title, (network, windows, away)), (plane, against) in zip(panels.items(), axes.T, strict=True):
        ranks = pd.Series(np.asarray(windows["late"])).rank(pct=True)
        plane.contour(*margin_on_grid(network, x), levels=[0.0], colors="black")
        for label, marker in enumerate("os"):
            points = x[y == label]
            shown = plane.scatter(*points.T, c=ranks[(y == label).numpy()], vmin=0, vmax=1, marker=marker, s=18)
        plane.set(
            title=f"{title}, late",
            xlim=(x[:, 0].min() - 1, x[:, 0].max() + 1),
            ylim=(x[:, 1].min() - 1, x[:, 1].max() + 1),
        )
        for window, score in windows.items():
            against.scatter(away, score, s=8, label=f"{window}: Spearman {spearman(score, away):.2f}")
        top = 1.45 * max(float(score.max()) for score in windows.values())  # room for the legend
        against.set(xlabel="distance to the boundary", ylabel="score", ylim=(-0.03 * top, top))
        against.legend()
    figure.colorbar(shown, ax=axes[0], label="rank of the score, 1 = highest")
    figure.savefig(path, dpi=80)


def print_results(results):
    published = results["published"]
    print("Spearman rank correlation of each column with the distance to the boundary (-1: nearest points highest):\n")
    print(pd.DataFrame(results["spearman_with_distance"]).to_string(float_format="{:.2f}".format, na_rep="-"))
    print(f"\nDistinct values of the VoG over all snapshots: {results['distinct_values']}")
    print(f"Accuracy: {results['accuracy']}")
    print("\nFrom the published script to the paper's definition, step by step:")
    for window, steps in published["steps"].items():
        print(f"\n{window}\n{pd.DataFrame(steps).T.to_string(float_format='{:.2f}'.format, na_rep='-')}")
    print(
        f"\nThe script's network classifies {published['accuracy_before']:.3f} of the points rightly before its first "
    )
    print(f"step, and {published['accuracy']:.3f} after its last.")


def stop(reason):
    sys.exit(f"error: {reason}")


if __name__ == "__main__":
    try:
        main()
    except VoGError as error:
        stop(error)
