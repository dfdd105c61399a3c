"""Live scorings of small models, step by step."""

import copy
import functools

import models
import numpy as np

from vog_hf.scoring.scorer import VoGScorer

N = 53
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]


@functools.cache
def case_of(name, n_snapshots=7):
    """A model, 53 rows with labels, and what training makes of the weights."""
    rows = {
        "conv_net": lambda: models._float_rows("image", (3, 8, 8), seed=7, n=N),
        "bert": lambda: models.token_rows(7, lengths=tuple(3 + 7 * i % 11 for i in range(N))),
    }[name]()
    case = models.Case(models.CASES[name]().model, rows, LABELS)
    return case, models.perturbed_states(case.model, n_snapshots)


def labeled(case, labels=None):
    """Rows with their labels, or with others."""
    return [{**row, "labels": label} for row, label in zip(case.rows, labels or case.labels, strict=True)]


def start(case, *, rows=None, config=None, planned=7, batch_size=7):
    """A custom model that will train, and the live scoring of its rows."""
    model = copy.deepcopy(case.model)
    scorer = VoGScorer(model, config=config, batch_size=batch_size)
    reader = scorer.reader(labeled(case) if rows is None else rows, collate_fn=models.collate)
    return model, scorer.live(reader, scorer.plan(reader), planned)


def train(model, live, states):
    """Let the model hold one state after the other, with an update after each."""
    for k, state in enumerate(states):
        model.load_state_dict(state)
        live.update(f"epoch-{k}", step=10 * k)


def assert_identical(scores, expected):
    """Every column, trajectory and map, bit by bit."""
    assert scores.column_names == expected.column_names
    for name in scores.column_names:
        np.testing.assert_array_equal(scores.column(name), expected.column(name), err_msg=name)
    for name in expected.trajectory_names:
        np.testing.assert_array_equal(scores.trajectory(name), expected.trajectory(name), err_msg=name)
    for row in range(len(expected)):
        np.testing.assert_array_equal(scores.heat_map(row), expected.heat_map(row))
