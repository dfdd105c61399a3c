"""Units of heads with a task of their own: ends of answers, choices, classes of masks, sides of pairs, patches."""

import functools
import itertools
from dataclasses import dataclass
from functools import partial

import models
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from reference import _gradient, _snapshots
from task_cases import N_ROWS, TASK_CASES, _at_pixels, _ends
from unlabeled_cases import PATCH, SIDE, UNLABELED_CASES, _place

from vog_hf import VoGConfig, VoGScorer, VoGScores

CASES = TASK_CASES | UNLABELED_CASES
SNAPSHOTS = 3


def class_values(z, label):
    """Values of one choice among ``z``, and what is predicted."""
    z = [float(value) for value in z]
    total = sum(np.exp(value - max(z)) for value in z)
    p = [float(np.exp(value - max(z)) / total) for value in z]
    return {
        "loss": -float(np.log(p[label])),
        "confidence": p[label],
        "correctness": z.index(max(z)) == label,
        "margin": z[label] - max(value for at, value in enumerate(z) if at != label),
        "el2n": float(np.sqrt(sum((value - (at == label)) ** 2 for at, value in enumerate(p)))),
        "prediction": z.index(max(z)),
        "prediction_probability": max(p),
    }


def ends_of(outputs, row):
    """Start and end of the answer, of those that are among the tokens of the row."""
    known = _ends(outputs, row)
    places = [i for i, name in enumerate(("start_positions", "end_positions")) if row[name] < len(known[0][0])]
    return [{"position": i, "label": p, **class_values(z, p)} for i, (z, p) in zip(places, known, strict=True)]


def choices_of(outputs, row):
    """The probability of each choice."""
    z = outputs.logits[0]
    return [{"position": i, "confidence": float(z[i].exp() / z.exp().sum())} for i in range(len(z))]


def classes_of(outputs, row):
    """Means over the pixels of each class, ascending."""
    z, classes = _at_pixels(outputs, row)
    units = []
    for k in sorted(set(classes.tolist())):
        pixels = [class_values(of_pixel, k) for of_pixel in z[classes == k].tolist()]
        names = ("loss", "confidence", "correctness")
        units.append({"label": k, **{name: np.mean([pixel[name] for pixel in pixels]) for name in names}})
    return units


def patches_of(outputs, row):
    """The loss of each masked patch."""
    n = (SIDE // PATCH) ** 2
    if "noise" in row:
        hidden = sorted(sorted(range(n), key=row["noise"].tolist().__getitem__)[n // 2 :])
    else:
        hidden = row["bool_masked_pos"].nonzero().flatten().tolist()
    units = []
    for patch in hidden:
        pixels = row["pixel_values"][_place(patch)]
        if "noise" in row:
            errors = (outputs.logits[0, patch] - pixels.permute(1, 2, 0).flatten()) ** 2
        else:
            errors = (outputs.reconstruction[0][_place(patch)] - pixels).abs()
        units.append({"position": patch, "loss": float(errors.mean())})
    return units


@dataclass(frozen=True)
class UnitCase:
    """A kind of units, the values of a row's units at one snapshot, and the columns of them."""

    name: str
    plural: str
    of_row: object
    has_vog: bool = False


KINDS = {
    "question_answering": UnitCase("end", "ends", ends_of),
    "multiple_choice": UnitCase("choice", "choices", choices_of, has_vog=True),
    "semantic_segmentation": UnitCase("class", "classes", classes_of),
    "pixel_reconstruction/autoencoder": UnitCase("patch", "patches", patches_of),
    "pixel_reconstruction/masked images": UnitCase("patch", "patches", patches_of),
    "reward_modeling": UnitCase("side", "sides", None, has_vog=True),
    "preference_optimization": UnitCase("side", "sides", None, has_vog=True),
}


def sides_of(case, snapshot, row):
    """Both texts of a row, each alone."""
    units = []
    for place, name in enumerate(("chosen_ids", "rejected_ids")):
        prompt, answer = row.get("prompt_ids", []), row[name]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            z = snapshot(input_ids=ids).logits[0]
        if not prompt:
            units.append({"position": place, "reward": float(z[0])})
            continue
        logps = [float(z[i - 1].log_softmax(-1)[ids[0, i]]) for i in range(len(prompt), ids.shape[1])]
        units.append({"position": place, "logp": sum(logps), "loss": -np.mean(logps)})
    return units


def units_of(task, snapshot, row):
    """The units of a row at a snapshot, one after the other."""
    case = CASES[task]
    return (
        sides_of(case, snapshot, row)
        if KINDS[task].name == "side"
        else KINDS[task].of_row(case._outputs(snapshot, row), row)
    )


def parts_of_gradient(task, snapshot, row):
    """The gradient of a row's logit at the tokens of each unit, without padding."""
    case = CASES[task]
    if KINDS[task].name == "side":
        return [gradient[0].numpy() for gradient in torch.autograd.grad(*case._values(snapshot, row, "logit"))]
    scalar = partial(case._scalar_of_batch, row=row, target="logit")
    gradient = _gradient(snapshot, case._alone(row), None, scalar, "callable")
    masks = row["attention_mask"].bool().numpy()
    return [of_choice[mask] for of_choice, mask in zip(gradient.reshape(*masks.shape, -1), masks, strict=True)]


def over_snapshots(values):
    """A unit's columns, of its values at each snapshot."""
    columns = {name: np.mean([at[name] for at in values]) for name in values[0]}
    for name in ("prediction", "prediction_probability"):
        if name in columns:
            columns[name] = values[-1][name]
    if "confidence" in columns:
        columns["variability"] = np.std([at["confidence"] for at in values])
    if "prediction" in columns:
        right = [at["correctness"] for at in values]
        forgotten = sum(before and not after for before, after in itertools.pairwise(right))
        columns["forgetting"] = forgotten if any(right) else len(right)
    return columns


@functools.cache
def states(task):
    """Weights of each snapshot."""
    return models.perturbed_states(CASES[task].model().double(), SNAPSHOTS)


@functools.cache
def expected_units(task):
    """Number of units of each row, and every column, by loops over rows, snapshots and units."""
    kind, sizes, units = KINDS[task], [], []
    at_snapshots = list(_snapshots(CASES[task].model().double(), states(task)))
    for row in CASES[task].rows():
        values = [units_of(task, snapshot, row) for snapshot in at_snapshots]
        of_row = [over_snapshots(of_unit) for of_unit in zip(*values, strict=True)]
        if kind.has_vog:
            gradients = [parts_of_gradient(task, snapshot, row) for snapshot in at_snapshots]
            for unit, of_unit in zip(of_row, zip(*gradients, strict=True), strict=True):
                unit["vog"] = np.std(of_unit, axis=0).mean()
        sizes.append(len(of_row))
        units += of_row
    return sizes, {f"{name}_{kind.name}": np.array([unit[name] for unit in units]) for name in units[0]}


def scored(task, batch_size):
    """Scores in float64."""
    case = CASES[task]
    scorer = VoGScorer(case.model().double(), config=VoGConfig(), batch_size=batch_size, progress=False)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states(task))]
    return scorer.score(case.rows(), named, collate_fn=case.collate_fn)


@pytest.mark.parametrize("batch_size", [1, 7, N_ROWS])
@pytest.mark.parametrize("task", KINDS)
def test_units_are_those_of_a_loop_over_rows_snapshots_and_units(task, batch_size):
    """Every column and no other, in float64, for batches of 1, 7 and all rows, with ignored labels and padding."""
    scores = scored(task, batch_size)
    sizes, columns = expected_units(task)
    assert_array_equal(scores.units.sizes, sizes)
    assert set(scores.units.columns) == set(columns)
    assert scores.manifest["units"]["of"] == KINDS[task].plural
    assert scores.units.unit == KINDS[task].name
    for name, values in columns.items():
        assert_allclose(scores.units.column(name), values, rtol=1e-6, atol=1e-6 * np.abs(values).mean(), err_msg=name)


def test_answers_that_are_cut_off_have_one_end():
    """Its place says which; other rows have both."""
    sizes, columns = expected_units("question_answering")
    assert sorted(set(sizes)) == [1, 2]
    assert set(columns["position_end"].tolist()) == {0, 1}


@pytest.mark.parametrize("task", ["question_answering", "semantic_segmentation", "preference_optimization"])
def test_units_are_saved_and_loaded(task, tmp_path):
    """The same bits."""
    scores = scored(task, 7)
    scores.save(tmp_path / "scores")
    units = VoGScores.load(tmp_path / "scores").units
    assert_array_equal(units.sizes, scores.units.sizes)
    for name, values in scores.units.columns.items():
        assert_array_equal(units.column(name), values, err_msg=name)
