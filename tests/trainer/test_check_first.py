"""A refused training leaves no run behind: the checks of the callback come before the trackers start."""

import pytest
import wandb
from trainers import arguments, augmented, digits, network, plain
from transformers import Trainer, TrainerCallback
from wandb_runs import all_parts, offline_client

from vog_hf import VoGCallback
from vog_hf.errors import DataError, VoGError


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Where the runs of W&B are."""
    with offline_client(tmp_path_factory.mktemp("wandb")) as folder:
        yield folder


def refused():
    """A callback whose rows differ each time they are read."""
    return VoGCallback(digits().with_transform(augmented), snapshots="epoch")


def trainer_with(folder, *callbacks, **options):
    """A Trainer that reports to W&B."""
    args = arguments(folder, report_to="wandb", num_train_epochs=2, **options)
    return Trainer(network(), args, train_dataset=digits().with_transform(plain), callbacks=list(callbacks))


def runs(offline):
    """Folders of the runs on disk."""
    return sorted(path.name for path in offline.rglob("*run-*") if path.is_dir())


def test_an_error_before_the_first_step_opens_no_run(offline, tmp_path):
    """Neither a folder nor an active run is left; the corrected training then opens one and logs into it."""
    callback = refused()
    trainer = trainer_with(tmp_path, callback)
    with pytest.raises(DataError, match="transform"):
        trainer.train()
    assert wandb.run is None
    assert runs(offline) == []
    trainer.remove_callback(callback)
    corrected = VoGCallback(digits().with_transform(plain), snapshots="epoch", top_k=3)
    trainer_with(tmp_path / "corrected", corrected).train()
    run_id = wandb.run.id
    wandb.run.finish()
    (run,) = all_parts(offline, run_id)
    assert run.logged["train/global_step"] == 8
    assert len(runs(offline)) == 1


def test_a_removed_callback_checks_nothing(offline, tmp_path):
    """The training continues without it, into a run."""
    callback = refused()
    trainer = trainer_with(tmp_path, callback, max_steps=1)
    trainer.remove_callback(callback)
    trainer.train()
    assert wandb.run is not None
    wandb.run.finish()


class Preparing(TrainerCallback):
    """Acts when training begins."""

    def on_train_begin(self, args, state, control, **kwargs):
        raise VoGError("prepared first")


def test_a_callback_that_prepares_the_training_keeps_its_turn(offline, tmp_path):
    """What stands before the callback and acts when training begins does so before the checks."""
    callback = refused()
    with pytest.raises(VoGError, match="prepared first"):
        trainer_with(tmp_path, Preparing(), callback).train()
    wandb.run.finish()


def test_one_check_per_training(offline, tmp_path, monkeypatch):
    """Checked once, before the trackers, in each training of a trainer."""
    callback = VoGCallback(digits().with_transform(plain), snapshots=[1, 2], log=False)
    begun, begin = [], callback._begin
    trainer = trainer_with(tmp_path, callback, max_steps=2)
    gate = next(other for other in trainer.callback_handler.callbacks if type(other).__name__ == "CheckFirst")

    def counted(*args, **kwargs):
        begun.append(wandb.run is None)
        begin(*args, **kwargs)

    monkeypatch.setattr(gate, "_begin", counted)
    monkeypatch.setattr(callback, "_begin", counted)
    trainer.train()
    assert begun == [True]
    trainer.train()
    assert begun == [True, False], "the run of the first training is still open"
    wandb.run.finish()
