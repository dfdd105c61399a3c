"""`collect="training"` and VoG of the loss: where there is none, the manifest and a line before training say why.

Its values are compared with those of a loop in `test_collected_training`.
"""

import logging
import shutil

import numpy as np
import pytest
import torch
from collected import case_of, expected, labeled, noted_training
from trainers import AtStep, augmented, digits, trained
from trainings import PowerCutError, cut

from vog_hf import VoGCallback, VoGConfig
from vog_hf.errors import MemoryBudgetError
from vog_hf.scores.descriptions import column_meanings
from vog_hf.trainer import moments_plan

N, BATCH = 12, 6
ROW_BYTES = 2 * 8 * 8 * 8  # of the moments of 8 x 8 pixels after the mean over channels, in float64


def observed(folder, vog, *, callbacks=(), rows=None, **options):
    """The trainer after two epochs of two steps."""
    case = case_of("vit", N)
    return noted_training(folder, case, [vog, *callbacks], rows=rows, per_device_train_batch_size=BATCH, **options)


@pytest.fixture
def few_bytes(monkeypatch):
    """Less free memory than the moments may take a part of."""
    monkeypatch.setattr(moments_plan, "free_memory", lambda _: 4 * N * ROW_BYTES - 4)


def test_memory_is_stated_and_the_column_described(tmp_path, caplog):
    """The line before training has the bytes of the moments; the column is VoG of the loss, and no ranking is by it."""
    vog = VoGCallback(collect="training", log=False)
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        observed(tmp_path, vog)
    assert "(12.0 KiB more for vog_loss) and " in caplog.text
    assert vog.scores.manifest["vog_loss"]["gradient_of"] == "loss"
    (meaning,) = [meaning for meaning in column_meanings(vog.scores) if meaning.column == "vog_loss"]
    assert meaning.what.startswith("Variance of Gradients of the loss over the visits")
    assert "vog" not in vog.scores.column_names


def test_channels_are_averaged_or_kept(tmp_path):
    """reduce_channels=False takes the deviation of every channel."""
    vog = VoGCallback(collect="training", log=False, config=VoGConfig(target="loss", reduce_channels=False))
    case = case_of("vit", N)
    trainer = noted_training(tmp_path, case, [vog], per_device_train_batch_size=BATCH)
    gradients = expected(trainer, case)["gradients"]
    found = [np.std([gradients[row, epoch] for epoch in (0, 1)], axis=0).mean() for row in range(N)]
    np.testing.assert_allclose(vog.scores.column("vog_loss"), found, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_train_epochs": 1}, "each row needs at least 2 visits, and the training has one epoch"),
        ({"max_steps": 3}, None),
    ],
)
def test_a_row_needs_two_visits(options, reason, tmp_path):
    """One epoch has none, and the manifest says so; a row that one of two epochs left out has NaN."""
    vog = VoGCallback(collect="training", log=False)
    observed(tmp_path, vog, **options)
    if reason is not None:
        assert vog.scores.manifest["vog_loss"] == reason
        assert "vog_loss" not in vog.scores.column_names
    else:
        once = vog.scores.column("observations") == 1
        assert once.sum() == BATCH
        np.testing.assert_array_equal(np.isnan(vog.scores.column("vog_loss")), once)


def test_random_rows_have_none(tmp_path, caplog):
    """With an augmentation, variance would measure it: the other columns alone, as the line before training says."""
    vog = VoGCallback(collect="training", log=False)
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        trained(tmp_path, [vog], rows=digits(32).with_transform(augmented))
    assert "no vog_loss, since the training rows are not the same in each epoch" in caplog.text
    assert "transform" in vog.scores.manifest["vog_loss"]
    assert "vog_loss" not in vog.scores.column_names
    assert {"loss", "csg"} <= set(vog.scores.column_names)


def test_moments_that_do_not_fit_are_left_out(tmp_path, caplog, few_bytes):
    """Both numbers are said, before training and in the manifest; the other columns are there."""
    vog = VoGCallback(collect="training", log=False)
    with caplog.at_level(logging.INFO, logger="vog_hf"):
        observed(tmp_path, vog)
    reason = vog.scores.manifest["vog_loss"]
    assert reason == "the moments of 12 rows take 12.0 KiB, and 12.0 KiB may be used (25 % of the free memory)"
    assert f"no vog_loss, since {reason}" in caplog.text
    assert "vog_loss" not in vog.scores.column_names
    assert "csg" in vog.scores.column_names


def test_moments_that_were_asked_for_and_do_not_fit_are_an_error(tmp_path, few_bytes):
    """memory_budget= asks for them, whatever is free: an error before the first step, or the column."""
    with pytest.raises(
        MemoryBudgetError, match=r"keeps the moments of 12 rows, 12.0 KiB, and memory_budget= is 1.0 Ki"
    ):
        observed(tmp_path, VoGCallback(collect="training", memory_budget=1024))
    vog = VoGCallback(collect="training", memory_budget=N * ROW_BYTES, log=False)
    observed(tmp_path, vog)
    assert np.isfinite(vog.scores.column("vog_loss")).all()


def test_a_resumed_training_without_moments_has_the_other_columns(tmp_path):
    """As if an earlier version had written the checkpoint; moments of checkpoints that are gone are deleted."""
    options = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 3, "save_total_limit": 2}
    with pytest.raises(PowerCutError):
        observed(tmp_path, VoGCallback(collect="training"), callbacks=[AtStep(5, cut)], **options)
    steps = {path.name for path in (tmp_path / "_vog" / "live").iterdir()}
    assert "step-000000004" in steps
    assert "step-000000001" not in steps
    shutil.rmtree(tmp_path / "_vog" / "live")
    vog = VoGCallback(collect="training", log=False)
    observed(tmp_path, vog, resume=str(tmp_path / "checkpoint-4"), **options)
    assert vog.scores.manifest["vog_loss"] == "the training was resumed at a step without moments of its rows"
    assert (vog.scores.column("observations") == 3).all()


class Growing(torch.utils.data.Dataset):
    """Texts, the last of which has one more token each time it is read after the checks."""

    def __init__(self):
        self.rows = labeled(case_of("bert"))[:10] * 4
        self.read = 0

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        row = dict(self.rows[number])
        if number == len(self.rows) - 1:
            self.read += 1
            row |= {name: row[name][: 2 + self.read] for name in ("input_ids", "attention_mask")}
        return row


def test_a_row_of_another_length_has_the_reason_in_the_manifest(tmp_path):
    """What the check of the first rows could not see ends vog_loss, and nothing else."""
    vog = VoGCallback(collect="training", log=False)
    noted_training(tmp_path, case_of("bert"), [vog], rows=Growing(), per_device_train_batch_size=20)
    assert vog.scores.manifest["vog_loss"] == "row 39 does not have the same shape in every epoch"
    assert "vog_loss" not in vog.scores.column_names
    assert (vog.scores.column("observations") == 2).all()
