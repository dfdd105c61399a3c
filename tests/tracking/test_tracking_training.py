"""Runs of W&B and Trackio that a Trainer or a loop under Accelerate reports to, with the real clients."""

import logging

import accelerate
import numpy as np
import pytest
import wandb
from accelerate import Accelerator
from datasets import Dataset
from packaging.version import Version
from sweep_server import sweep_server
from trainers import AtStep, arguments, digits, network, plain, trained
from transformers import Trainer
from wandb_runs import all_parts, logged_run, offline_client, read_back

import vog_hf.trainer.publishing as publishing_module
from vog_hf import VoGCallback, write_report
from vog_hf.errors import ConfigError
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking import log_scores


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Where the runs of W&B are."""
    with offline_client(tmp_path_factory.mktemp("wandb")) as folder:
        yield folder


def scored_rows():
    """What is scored: pictures and labels."""
    return digits().with_transform(plain)


def reported(offline, folder, callback, **options):
    """A training that reports to W&B, read back."""
    trained(folder, [callback], report_to="wandb", **options)
    run = wandb.run
    run.finish()
    return all_parts(offline, run.id)[-1]


@pytest.fixture(scope="module")
def live_run(offline, tmp_path_factory):
    """Moments of all rows are kept while four epochs of four steps go by."""
    callback = VoGCallback(scored_rows(), collect="live", snapshots="epoch", top_k=5)
    return reported(offline, tmp_path_factory.mktemp("live"), callback, num_train_epochs=4), callback.scores


def test_a_live_ranking_is_logged_at_every_snapshot(live_run):
    """From the second on, on the Trainer's axis, between its own losses; each with tables, pictures and scalars."""
    run, scores = live_run
    assert [item["train/global_step"] for item in run.all_logged] == [8, 12, 16]
    assert [item["vog/n_snapshots"] for item in run.all_logged] == [2, 3, 4]
    steps = [item["train/global_step"] for item in run.history]
    assert steps == sorted(steps)
    assert [item["_step"] for item in run.history] == list(range(len(steps)))
    for item in run.all_logged:
        for key in ("highest", "lowest", "highest_by_class", "lowest_by_class", "classes"):
            assert item[f"vog/{key}.nrows"] > 0
        assert {"vog/contact_sheet.path", "vog/about.path", "vog/mean"} <= item.keys()
    assert run.all_logged[-1]["vog/mean"] == pytest.approx(scores.column("vog").mean())
    assert run.all_logged[0]["vog/mean"] != run.all_logged[1]["vog/mean"]


def test_the_report_is_logged_at_the_end(live_run, tmp_path):
    """The whole report of the finished scores, byte by byte as `write_report` writes it, once."""
    run, scores = live_run
    assert ["vog/report.path" in item for item in run.all_logged] == [False, False, True]
    logged = run.folder / "files" / run.all_logged[-1]["vog/report.path"]
    assert logged.read_text() == write_report(scores, scored_rows(), tmp_path / "report.html").read_text()


def test_a_report_that_fails_stops_nothing(offline, tmp_path, caplog, monkeypatch):
    """One error says how to write it; all else is logged."""

    def write_report(scores, dataset, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publishing_module, "write_report", write_report)
    run = reported(offline, tmp_path, VoGCallback(scored_rows(), snapshots="epoch", top_k=3))
    (record,) = [r for r in caplog.records if r.name.startswith("vog_hf") and r.levelno == logging.ERROR]
    assert "the report is not logged; write_report(callback.scores, dataset, path) writes it" in record.getMessage()
    assert "vog/about.path" in run.logged
    assert "vog/report.path" not in run.logged


def test_the_scores_themselves_are_logged_once(live_run):
    """An artifact per training, not per snapshot."""
    run, scores = live_run
    _, files = run.artifact("dataset")
    assert set(files) == {"scores.parquet", "manifest.json", "ranking_stability.csv"}
    assert run.summary["vog/hard_tail"] in {"high", "low", "both", "unclear"}
    assert run.summary["vog/n_snapshots"] == len(scores.manifest["snapshots"]) == 4


def test_gradient_accumulation_and_a_replay_have_the_trainers_axis(offline, tmp_path):
    """Steps are optimizer steps, as everything else that the Trainer logs; a replay logs once."""
    callback = VoGCallback(scored_rows(), snapshots="epoch", top_k=5)
    run = reported(offline, tmp_path, callback, gradient_accumulation_steps=2)
    assert run.logged["train/global_step"] == 6
    assert run.logged["vog/n_snapshots"] == 3


@pytest.mark.slow
def test_a_resumed_training_logs_a_new_version_into_its_run(offline, tmp_path):
    """The run that is continued gets the tables again, at its last step, and the artifact keeps its name."""

    def train(resume=None):
        wandb.init(project="vog", id="continued", resume="allow")
        callback = VoGCallback(scored_rows(), snapshots="epoch", top_k=3)
        return reported(offline, tmp_path, callback, save_strategy="epoch", resume=resume)

    train()
    train(resume=str(tmp_path / "checkpoint-8"))
    first, second = all_parts(offline, "continued")
    assert first.logged["train/global_step"] == second.logged["train/global_step"] == 12
    assert next(item["train/global_step"] for item in second.history) == 9
    assert first.artifact("dataset")[0]["name"] == second.artifact("dataset")[0]["name"] == "vog-scores-continued"


def test_a_logger_that_fails_stops_nothing(offline, tmp_path, caplog, monkeypatch):
    """At every snapshot and at the end: an error in the log each time, training ends and the scores are whole."""

    def log_scores(scores, dataset, **options):
        raise ConnectionError("the server is away")

    monkeypatch.setattr(publishing_module, "log_scores", log_scores)
    callback = VoGCallback(scored_rows(), collect="live", snapshots="epoch")
    run = reported(offline, tmp_path, callback, num_train_epochs=4)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("vog_hf")]
    beginnings = [line[:46] for line in lines if "failed" in line]
    ranking = "VoG: logging the ranking of step {} failed; training and scoring continue"
    assert beginnings == [ranking.format(8)[:46], ranking.format(12)[:46], lines[-1][:46]]
    assert "logging failed; the scores are complete" in lines[-1]
    assert run.all_logged == []
    assert len(callback.scores) == 64


def test_a_run_that_was_finished_too_early(offline, tmp_path, caplog):
    """The callback's run is gone at the end: one error says that the scores are whole."""
    wandb.init(project="vog")
    callback = VoGCallback(scored_rows(), snapshots="epoch")
    trained(tmp_path, [AtStep(7, lambda model, control: wandb.run.finish()), callback])
    (record,) = [r for r in caplog.records if r.name.startswith("vog_hf") and r.levelno == logging.ERROR]
    assert "logging failed; the scores are complete" in record.getMessage()
    assert len(callback.scores) == 64


def test_scores_of_a_stream_are_logged_without_pictures(offline, tmp_path):
    """A stream is read once: its rows cannot be shown, what is known of them can."""
    made = [plain({"image": [row["image"]], "label": [row["label"]]}) for row in digits()]
    rows = Dataset.from_list([{"pixel_values": r["pixel_values"][0], "labels": r["labels"][0]} for r in made])
    run = reported(offline, tmp_path, VoGCallback(rows.to_iterable_dataset(), snapshots="epoch", top_k=3))
    assert run.logged["vog/n_rows"] == 64
    assert "image" not in run.table("vog/highest")


def test_a_live_ranking_that_is_stopped_is_logged_once_at_its_last_step(offline, tmp_path):
    """A callback that ends the training in its third epoch: the last snapshot is logged at the end, with the rest."""

    def stop(model, control):
        control.should_training_stop = True

    callback = VoGCallback(scored_rows(), collect="live", snapshots="epoch", top_k=3)
    trained(tmp_path, [AtStep(11, stop), callback], report_to="wandb", num_train_epochs=5)
    run_id = wandb.run.id
    wandb.run.finish()
    assert [item["train/global_step"] for item in all_parts(offline, run_id)[-1].all_logged] == [8, 11]


def test_a_run_of_another_library_is_refused(offline):
    """Before anything is put into it."""
    with wandb.init(project="vog") as run, pytest.raises(ConfigError, match="belongs to wandb; pass to='wandb'"):
        log_scores(make_scores(), None, to="trackio", run=run)


def test_a_callback_that_does_not_log(offline, tmp_path):
    """With log=False a run of the Trainer holds nothing of ours."""
    callback = VoGCallback(scored_rows(), collect="live", snapshots="epoch", log=False)
    run = reported(offline, tmp_path, callback)
    assert not [key for item in run.history for key in item if key.startswith("vog/")]


def test_trials_of_a_search_have_runs_of_their_own(offline, tmp_path):
    """Trainer finishes the run of each trial; each holds its own scores, at its own last step."""
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    before = set(offline.rglob("run-*.wandb"))
    trainer = Trainer(
        model_init=lambda trial: network(),
        args=arguments(tmp_path, report_to="wandb", eval_strategy="epoch", num_train_epochs=2),
        train_dataset=scored_rows(),
        eval_dataset=scored_rows(),
        callbacks=[VoGCallback(scored_rows(), snapshots="epoch", top_k=3)],
    )
    trainer.hyperparameter_search(
        hp_space=lambda trial: {"num_train_epochs": trial.suggest_categorical("num_train_epochs", [2, 3])},
        sampler=optuna.samplers.GridSampler({"num_train_epochs": [2, 3]}, seed=0),
        n_trials=2,
    )
    wandb.run.finish()
    paths = set(offline.rglob("run-*.wandb")) - before
    runs = [read_back(offline, path.stem.removeprefix("run-")) for path in paths]
    assert sorted(run.logged["train/global_step"] for run in runs) == [8, 12]
    assert len({run.artifact("dataset")[0]["name"] for run in runs}) == 2


@pytest.mark.slow
def test_the_runs_of_a_sweep(offline, tmp_path, monkeypatch):
    """The client's own agent starts each training in a thread; each run holds its own scores and hyper-parameters."""
    if not hasattr(wandb.apis.public.sweeps, "_agent_heartbeat"):
        pytest.skip(f"the agent of wandb {wandb.__version__} asks its server in another way")

    def train():
        run = wandb.init()
        callback = VoGCallback(scored_rows(), collect="live", snapshots="epoch", top_k=3)
        rate = run.config["learning_rate"]
        trained(tmp_path, [callback], report_to="wandb", num_train_epochs=2, learning_rate=rate)

    monkeypatch.setattr("wandb.agents.pyagent.Agent.HEARTBEAT_SLEEP_SECONDS", 0.1)
    rates = [3e-2, 1e-3]
    with sweep_server([{"learning_rate": rate} for rate in rates]) as address:
        for name, value in {"BASE_URL": address, "API_KEY": 40 * "x", "ENTITY": "me", "PROJECT": "vog"}.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        wandb.agent("sweep", function=train, entity="me", project="vog", count=2)
    runs = [read_back(offline, f"trial{i}") for i in range(2)]
    for run, rate in zip(runs, rates, strict=True):
        (started,) = [record["run"] for record in run.records if record["type"] == "run"]
        assert (started["sweep_id"], started["config"]["update"]["learning_rate"]) == ("sweep", rate)
        assert run.logged["train/global_step"] == 8
        assert run.artifact("dataset")[0]["name"] == f"vog-scores-{run.run_id}"
    assert runs[0].logged["vog/mean"] != runs[1].logged["vog/mean"]


def make_scores(n=60):
    """Scores whose lowest rows are the errors."""
    generator = np.random.default_rng(0)
    vog = np.arange(n, dtype=np.float32)
    label = generator.integers(0, 3, n).astype(np.int32)
    wrong = generator.random(n) < np.linspace(0.95, 0.05, n)
    columns = {
        "label": label,
        "prediction": np.where(wrong, (label + 1) % 3, label).astype(np.int32),
        "vog": vog,
        "loss": np.linspace(3, 0, n).astype(np.float32) + generator.random(n).astype(np.float32),
    }
    return VoGScores(columns, {"class_names": ["a", "b", "c"], "snapshots": [{"name": "s"}] * 3})


def test_captions_name_the_hard_end(offline):
    """Where the run shows it: here errors are among the lowest rows."""
    run = logged_run(offline, make_scores(), None, top_k=3)
    assert run.summary["vog/hard_tail"] == "low"
    about = run.file("vog/about").read_text()
    assert "The 3 lowest of 60 rows by vog. In this run the hard rows are here." in about
    assert "The 3 highest of 60 rows by vog. In this run the hard rows are at the other end." in about


def test_in_a_loop_under_accelerate(offline):
    """The tracker that Accelerate started takes everything, at the step that is given, among the loop's own records."""
    accelerator = Accelerator(cpu=True, log_with="wandb")
    accelerator.init_trackers("vog")
    tracker = accelerator.get_tracker("wandb")
    for step in range(3):
        accelerator.log({"loss": 1.0 / (1 + step)}, step=step)
    assert log_scores(make_scores(), None, run=tracker, step=2) is True
    accelerator.log({"loss": 0.1}, step=3)
    run_id = tracker.run.id
    accelerator.end_training()
    run = read_back(offline, run_id)
    assert run.logged["_step"] == 2
    assert run.logged["loss"] == pytest.approx(1 / 3)
    assert [item["_step"] for item in run.history] == [0, 1, 2, 3]
    assert run.artifact("dataset")[0]["name"] == f"vog-scores-{run_id}"


@pytest.mark.skipif(Version(accelerate.__version__) < Version("1.13"), reason="this accelerate drops Trackio's step")
def test_in_a_loop_that_reports_to_trackio():
    """Through the tracker of Accelerate, which must be that of the library named by ``to``."""
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    accelerator = Accelerator(cpu=True, log_with="trackio")
    accelerator.init_trackers("vog-loop", init_kwargs={"trackio": {"auto_log_cpu": False}})
    tracker = accelerator.get_tracker("trackio")
    with pytest.raises(ConfigError, match=r"the given tracker is 'trackio'; pass accelerator.get_tracker"):
        log_scores(make_scores(), None, run=tracker)
    assert log_scores(make_scores(), None, run=tracker, to="trackio", step=2) is True
    accelerator.end_training()
    (run,) = storage.get_runs("vog-loop")
    (record,) = [record for record in storage.get_logs("vog-loop", run) if "vog/n_rows" in record]
    assert (record["step"], record["vog/n_rows"]) == (2, 60)
    trackio.delete_project("vog-loop", force=True)


def test_a_loop_without_a_tracker(caplog):
    """What Accelerate gives where no tracker was started is not a run: nothing is logged, and nobody is told off."""
    tracker = Accelerator(cpu=True).get_tracker("wandb")
    with caplog.at_level(logging.DEBUG, logger="vog_hf"):
        assert log_scores(make_scores(), None, run=tracker) is False
    assert caplog.records == []
