"""Trainings with a callback, cut where a test wants it, and what came of them."""

import torch
from torch.testing import assert_close
from trainers import (
    digits,
    plain,
    trained,
)


def pixel_rows():
    """Rows with the evaluation transform."""
    return digits().with_transform(plain)


def scores_of(folder, vog, **options):
    """The scores of a training with the callback."""
    trained(folder, [vog], **options)
    return vog.scores


def steps_of(scores):
    """After which steps the snapshots were taken."""
    return [snapshot["step"] for snapshot in scores.manifest["snapshots"]]


def assert_same_scores(scores, expected, *, tolerance=1e-6):
    """Equal columns, equal rows."""
    assert scores.column_names == expected.column_names
    for name in scores.column_names:
        if "normalized" not in name and "percentile" not in name:  # ranks may swap on a difference in the last place
            assert_close(
                torch.tensor(scores.column(name)),
                torch.tensor(expected.column(name)),
                rtol=tolerance,
                atol=tolerance,
                msg=lambda text, name=name: f"{name}: {text}",
            )


class PowerCutError(Exception):
    """What ends a training without asking."""


def cut(model, control):
    """End the training as a crash does."""
    raise PowerCutError
