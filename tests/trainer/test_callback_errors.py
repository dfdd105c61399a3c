"""What is wrong is said before the first step; what goes wrong later never costs the training."""

import errno
import fcntl
import logging
import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.testing import assert_close
from trainers import AtStep, augmented, digits, network, plain, trained
from transformers import TrainerCallback, default_data_collator

from vog_hf import snapshots
from vog_hf.config import VoGConfig
from vog_hf.errors import (
    ConfigError,
    DataError,
    LabelError,
    MemoryBudgetError,
    ModelError,
    NonFiniteError,
    NotScoredError,
    OutputFolderError,
    SnapshotError,
)
from vog_hf.runtime import files
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring import live
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.trainer import publishing
from vog_hf.trainer.callback import VoGCallback

BOTH = pytest.mark.parametrize("collect", ["replay", "live"])


def pixel_rows(n=64):
    """Rows with the evaluation transform."""
    return digits(n).with_transform(plain)


# --- before training ------------------------------------------------------------------------------------------------


class Events(TrainerCallback):
    """Notes every event after ``on_train_begin``."""

    def __init__(self):
        self.seen = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.seen.append("epoch")

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append("step")


def assert_refused(folder, error, message, vog, **options):
    """Raised by `train`, with this message, before a step is made; there are no scores."""
    events, model = Events(), options.pop("model", None) or network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        trained(folder, [vog, events], model=model, **options)
    assert events.seen == []
    assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    with pytest.raises(NotScoredError, match="no scores yet"):
        _ = vog.scores


def assert_accepted(folder, vog, **options):
    """Trained and scored."""
    trained(folder, [vog], **options)
    assert np.isfinite(vog.scores.column("vog")).all()
    return vog.scores


def _noise(pixels, draw):
    return [picture + 0.1 * draw() for picture in pixels]


def with_noise(draw):
    """A transform whose pixels depend on a random number."""
    return lambda rows: {**plain(rows), "pixel_values": _noise(plain(rows)["pixel_values"], draw)}


RANDOM = {
    "flip, shift and noise": augmented,
    "torch": with_noise(lambda: torch.randn(())),
    "numpy": with_noise(lambda: float(np.random.random())),
    "python": with_noise(random.random),
}


@BOTH
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("transform", RANDOM.values(), ids=RANDOM)
def test_a_random_transform_is_refused(transform, given, collect, tmp_path):
    """The published recipe: one object with ``set_transform(random crop and flip)`` for Trainer and callback."""
    rows = digits()
    rows.set_transform(transform)
    message = (
        r"'pixel_values' of rows 0-19 differs between two readings: the dataset's transform is random .*"
        r"VoGCallback\(dataset\.with_transform\(eval_transform\)\)"
    )
    assert_refused(tmp_path, DataError, message, VoGCallback(rows if given else None, collect=collect), rows=rows)


def test_the_same_rows_with_the_evaluation_transform_are_accepted(tmp_path):
    """The neighbor: ``rows.with_transform`` leaves the trainer's own object random."""
    rows = digits()
    rows.set_transform(augmented)
    assert_accepted(tmp_path, VoGCallback(rows.with_transform(plain)), rows=rows)


class Stream(torch.utils.data.IterableDataset):
    """Rows that have neither number nor count."""

    def __iter__(self):
        yield from pixel_rows()


@BOTH
def test_an_epoch_schedule_needs_epochs(collect, tmp_path):
    """A stream with ``max_steps`` has none: refused, and a schedule of steps is accepted."""
    options = {"rows": Stream(), "max_steps": 6}
    vog = VoGCallback(pixel_rows(), snapshots="epoch", collect=collect)
    message = r"snapshots='epoch' needs training data with a length.*pass a number of steps, e\.g\. snapshots=500"
    assert_refused(tmp_path, ConfigError, message, vog, **options)
    scores = assert_accepted(tmp_path, VoGCallback(pixel_rows(), snapshots=3, collect=collect), **options)
    assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [3, 6]


def relabeled(change, *, n_good=0):
    """Rows whose labels beyond the first ``n_good`` are changed, in the column and in what the transform makes."""
    labels = [y if i < n_good else change(y) for i, y in enumerate(digits()["label"])]
    rows = digits().remove_columns("label").add_column("label", labels)
    return rows.with_transform(plain)


def test_a_label_column_must_be_there(tmp_path):
    """A name that neither rows nor batch have is refused with what they have."""
    message = r"label_column 'digit' is neither a column of the rows \(\['labels', 'pixel_values'\]\) nor of the batch"
    assert_refused(tmp_path, DataError, message, VoGCallback(pixel_rows(), label_column="digit"))
    assert_accepted(tmp_path, VoGCallback(pixel_rows(), label_column="labels"))


@BOTH
@pytest.mark.parametrize(("n_good", "row"), [(0, 1), (50, 50)])
def test_labels_must_be_classes_of_the_model(n_good, row, collect, tmp_path):
    """Also where the first wrong one is far beyond the first batch: the column is read without decoding a row."""
    wrong = relabeled(lambda y: y + 9, n_good=n_good)
    message = rf"row {row}: label 1\d is outside the model's classes 0\.\.9"
    assert_refused(tmp_path, LabelError, message, VoGCallback(wrong, collect=collect), rows=pixel_rows())
    assert_accepted(tmp_path, VoGCallback(wrong, collect=collect), rows=pixel_rows(), model=network(n_labels=19))


def test_labels_must_not_be_text(tmp_path):
    """Names of classes are refused with the call that encodes them; the encoded column is accepted."""
    named = relabeled(lambda y: f"digit {y}")
    message = (
        r"label column 'labels' holds text \('digit 0'\), expected class numbers; encode it with dataset\.class_enc"
    )
    assert_refused(tmp_path, DataError, message, VoGCallback(named), rows=pixel_rows())
    encoded = named.with_format(None).class_encode_column("label").with_transform(plain)
    assert_accepted(tmp_path, VoGCallback(encoded), rows=pixel_rows())


def test_an_empty_data_set_has_nothing_to_score(tmp_path):
    """Refused when it is passed; one row is enough."""
    with pytest.raises(DataError, match="the dataset is empty: there is no row to score"):
        VoGCallback(pixel_rows(0))
    with pytest.raises(DataError, match="the DatasetDict is empty"):
        VoGCallback({})
    assert len(assert_accepted(tmp_path, VoGCallback(pixel_rows(1)))) == 1


@BOTH
@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (
            "epoch",
            {"num_train_epochs": 1},
            r"at least 2 snapshots, snapshots='epoch' over 4 steps gives 1; train longer",
        ),
        ("auto", {"max_steps": 1}, "at least 2 snapshots, snapshots='auto' over 1 steps gives 1"),
        (7, {}, "at least 2 snapshots, snapshots=7 over 12 steps gives 1"),
        ([5], {}, r"at least 2 snapshots, snapshots=\[5\] gives 1"),
        ([5, 13], {}, r"different steps in 1\.\.12 \(this training's length\), got \[5, 13\]"),
        ("never", {}, "'auto', 'epoch', a number of steps or a list of steps, got 'never'"),
    ],
)
def test_schedules_that_this_training_cannot_keep_are_refused(schedule, options, message, collect, tmp_path):
    """Fewer than two snapshots, steps beyond the end and schedules that do not exist."""
    vog = VoGCallback(pixel_rows(), snapshots=schedule, collect=collect)
    assert_refused(tmp_path, ConfigError, message, vog, **options)


@pytest.mark.parametrize(
    ("schedule", "options"), [("epoch", {"num_train_epochs": 2}), ("auto", {"max_steps": 2}), (6, {}), ([5, 12], {})]
)
def test_two_snapshots_are_enough(schedule, options, tmp_path):
    """The neighbors of the schedules above."""
    scores = assert_accepted(tmp_path, VoGCallback(pixel_rows(), snapshots=schedule), **options)
    assert len(scores.manifest["snapshots"]) == 2


def changed_pixels(change, at=3):
    """Digits of which one row's pixels are changed."""
    rows = [dict(row) for row in pixel_rows()]
    rows[at]["pixel_values"] = change(rows[at]["pixel_values"])
    return rows


def test_inputs_must_be_finite(tmp_path):
    """A NaN pixel is refused with the number of its row; the largest pixel that is a number is accepted."""
    holes = changed_pixels(lambda pixels: pixels.masked_fill(pixels > 0.9, torch.nan))
    message = "input 'pixel_values' of row 3 holds NaN or infinity; fix or drop the row"
    assert_refused(tmp_path, NonFiniteError, message, VoGCallback(holes), rows=pixel_rows())
    bright = changed_pixels(lambda pixels: pixels.masked_fill(pixels > 0.9, 100.0))
    assert_accepted(tmp_path, VoGCallback(bright), rows=pixel_rows())


@BOTH
def test_a_late_image_that_is_missing_is_named(collect, tmp_path):
    """Row 60 is far behind the rows of the dry run, and its table says that it has no image."""
    stored = digits()
    images = [None if row == 60 else image for row, image in enumerate(stored["image"])]
    rows = Dataset.from_dict({"image": images, "label": stored["label"]}, stored.features).with_transform(plain)
    message = r"1 row cannot be scored because of column 'image': row 60\."
    assert_refused(tmp_path, DataError, message, VoGCallback(collect=collect), rows=rows)


def test_images_must_have_one_size(tmp_path):
    """What cannot be stacked is refused with the advice to resize; other sizes than in training are not a problem."""
    one_larger = changed_pixels(lambda pixels: pixels.repeat_interleave(2, dim=-1))
    message = "collating .* failed: .*resize images to one size"
    assert_refused(tmp_path, DataError, message, VoGCallback(one_larger), rows=pixel_rows())
    all_larger = [{**row, "pixel_values": row["pixel_values"].repeat_interleave(2, -1)} for row in pixel_rows()]
    assert_accepted(tmp_path, VoGCallback(all_larger), rows=pixel_rows())


def test_the_collator_must_give_the_models_inputs(tmp_path):
    """A collator that drops or renames them, or makes other rows of them, is refused."""

    def renamed(rows):
        batch = default_data_collator(rows)
        return {"images": batch["pixel_values"], "labels": batch["labels"]}

    def halved(rows):
        return {name: value[: len(rows) // 2] for name, value in default_data_collator(rows).items()}

    message = r"none of forward's parameters \['pixel_values', .*which has \[\]"
    assert_refused(tmp_path, ModelError, message, VoGCallback(pixel_rows(), collate_fn=renamed))
    message = "the collator made 32 examples of 64 rows; VoG needs one example per row"
    assert_refused(tmp_path, DataError, message, VoGCallback(pixel_rows(), collate_fn=halved, batch_size=64))
    assert_accepted(tmp_path, VoGCallback(pixel_rows(), collate_fn=default_data_collator))


def thawed(*names):
    """A network of which only these parameters are trained."""
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    return model


@BOTH
def test_something_must_be_trained(collect, tmp_path):
    """A frozen model does not change between snapshots; one trainable bias is enough."""
    vog = VoGCallback(pixel_rows(), collect=collect)
    message = "no parameter of the model is trainable, so nothing changes between snapshots"
    assert_refused(tmp_path, ConfigError, message, vog, model=thawed())
    assert_accepted(tmp_path, vog, model=thawed("resnet.embedder.embedder.convolution.weight"))


@BOTH
def test_the_folder_must_be_one_that_can_be_used(collect, tmp_path):
    """A file, a folder below a file and a folder with anybody else's files are refused and left as they are."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("mine")
    for folder, message in (
        ("file", "is a file; pass a folder"),
        ("file/below", r"cannot write to .*choose another output_dir"),
        ("foreign", r"holds files that vog_hf did not write; pass another output_dir"),
    ):
        vog = VoGCallback(pixel_rows(), collect=collect, output_dir=tmp_path / folder)
        assert_refused(tmp_path / "run", OutputFolderError, message, vog)
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/below", "empty"):  # the third time it holds what the first left
        assert_accepted(tmp_path / "run", VoGCallback(pixel_rows(), collect=collect, output_dir=tmp_path / folder))


def test_a_folder_that_another_run_is_using_is_refused(tmp_path):
    """Two runs never write into one folder: the second is refused until the first lets go."""
    (tmp_path / "_vog").mkdir()
    (tmp_path / "_vog" / "vog.json").write_text("{}")
    with (tmp_path / "_vog" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        vog = VoGCallback(pixel_rows())
        assert_refused(tmp_path, OutputFolderError, "is in use by another run; wait for it or choose another", vog)
    assert_accepted(tmp_path, vog)


@BOTH
def test_two_callbacks_of_one_training_need_a_folder_each(collect, tmp_path):
    """The second callback is refused before the first step where it would write into the folder of the first."""
    first, second = VoGCallback(pixel_rows()), VoGCallback(pixel_rows(), collect=collect)
    with pytest.raises(OutputFolderError, match=r"_vog is in use by another VoGCallback of this training; pass"):
        trained(tmp_path, [first, second])
    apart = VoGCallback(pixel_rows(), collect=collect, output_dir=tmp_path / "apart")
    trained(tmp_path, [first, apart])  # the training that was refused does not hold the folder any more
    assert first.scores.column("vog") == pytest.approx(apart.scores.column("vog"), rel=1e-4)


def test_a_training_that_was_killed_while_it_made_its_folder_can_be_started_again(tmp_path, monkeypatch):
    """A lock and half-written files are ours; a file that is not, next to them, is refused as ever."""

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vog_hf.trainer.run_folder.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, [VoGCallback(pixel_rows())])
    assert [path.name for path in (tmp_path / "_vog").iterdir()] == [".lock"]
    (tmp_path / "_vog" / ".vog.json.17.tmp").write_text('{"format"')
    (tmp_path / "_vog" / "thesis.tex").write_text("draft")
    vog = VoGCallback(pixel_rows())
    assert_refused(tmp_path, OutputFolderError, "holds files that vog_hf did not write", vog)
    (tmp_path / "_vog" / "thesis.tex").unlink()
    assert_accepted(tmp_path, vog)


@BOTH
def test_the_disk_must_have_room(collect, tmp_path, monkeypatch):
    """What snapshots and scores will take is asked for before training, with both numbers; exactly that is enough."""
    vog = VoGCallback(pixel_rows(), collect=collect)
    free = 10
    monkeypatch.setattr(files, "free_bytes", lambda folder: free)
    message = r"storing snapshots and scores needs about [\d.]+ KiB in .*_vog, 10 B are free; free some space"
    assert_refused(tmp_path, OutputFolderError, message, vog)
    free = 200_000
    assert_accepted(tmp_path, vog)
    used = sum(path.stat().st_size for path in (tmp_path / "_vog").rglob("*"))
    assert used < free


def test_live_needs_memory_for_all_rows(tmp_path, monkeypatch):
    """Refused with both numbers and the advice to use replay, which is accepted."""
    monkeypatch.setattr(live, "free_memory", lambda device: 10_000)
    message = r"collect='live' keeps the moments of 64 rows, [\d.]+ KiB, and 9\.8 KiB are free; use collect='replay'"
    assert_refused(tmp_path, MemoryBudgetError, message, VoGCallback(pixel_rows(), collect="live"))
    assert_accepted(tmp_path, VoGCallback(pixel_rows()))


@pytest.mark.parametrize("n_good", [0, 10, 50])
def test_live_needs_a_label_for_every_row(n_good, tmp_path):
    """The last prediction is not known yet: one row without a label, wherever it is, is refused, naming replay."""
    rows = relabeled(lambda y: -1, n_good=n_good)
    message = f"row {n_good} has no label, and collect='live' cannot know its last prediction"
    assert_refused(tmp_path, ConfigError, message, VoGCallback(rows, collect="live"), rows=pixel_rows())
    assert_accepted(tmp_path, VoGCallback(rows), rows=pixel_rows())


def test_rows_without_any_label(tmp_path):
    """That the data has none is not guessed: the prediction must be asked for, and then it is used for every row."""
    rows = digits().with_transform(lambda rows: {"pixel_values": plain(rows)["pixel_values"]})
    message = (
        r"no label was found: the collated batch has none of \['labels', 'label', 'label_ids'\]; pass label_column= "
        r".*or VoGConfig\(label='predicted'\)"
    )
    for collect in ("replay", "live"):
        assert_refused(tmp_path, DataError, message, VoGCallback(rows, collect=collect), rows=pixel_rows())
    predicted = VoGCallback(rows, config=VoGConfig(label="predicted"))
    scores = assert_accepted(tmp_path, predicted, rows=pixel_rows())
    assert (scores.column("label") == -1).all()
    assert scores.column("prediction").tolist() == scores.trajectory("prediction")[:, -1].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"collect": "both"}, "collect must be 'replay', 'live' or 'training', got 'both'"),
        ({"collect": "live", "config": VoGConfig(label="predicted")}, "cannot use label='predicted'.*collect='replay'"),
        ({"top_k": 0}, r"top_k must lie in 1\.\.10,000.*got 0"),
    ],
)
def test_options_that_do_not_exist_are_refused_at_construction(options, message):
    """What no training could make right is said at once."""
    with pytest.raises(ConfigError, match=message):
        VoGCallback(pixel_rows(), **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'targets'"):
        VoGCallback(pixel_rows(), targets="logit")


def test_options_out_of_range_are_refused_before_training(tmp_path):
    """Nothing that is accepted is ignored."""
    message = "max_snapshots must be at least 2"
    assert_refused(tmp_path, ConfigError, message, VoGCallback(pixel_rows(), max_snapshots=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"memory_budget": 0}, "memory_budget must be at least 1, got 0"),
        ({"store": "some"}, "store must be 'trainable' or 'all', got 'some'"),
    ],
)
def test_values_out_of_range_are_refused_when_the_callback_is_made(options, message):
    """A value that can be judged alone is judged at once."""
    with pytest.raises(ConfigError, match=message):
        VoGCallback(pixel_rows(), **options)


def test_options_at_the_edge_of_their_range_are_accepted(tmp_path):
    """The neighbors of the values above."""
    edge = {"store": "all", "batch_size": 1, "num_workers": 0, "memory_budget": 1, "max_snapshots": 2, "top_k": 1}
    assert_accepted(tmp_path, VoGCallback(pixel_rows(9), **edge))


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "", "bücher"])
def test_split_names_that_cannot_be_folders_are_refused(name, tmp_path):
    """A split's scores lie in a folder of its name; nothing is written elsewhere."""
    with pytest.raises(DataError, match="split names become file names"):
        VoGCallback({name: pixel_rows()})
    vog = VoGCallback({"a-b_c.d": pixel_rows(4), "2024": pixel_rows(3)})
    trained(tmp_path, [vog])
    assert {split: len(scores) for split, scores in vog.scores.items()} == {"a-b_c.d": 4, "2024": 3}


def test_a_refused_training_takes_the_scores_of_the_last_one_back(tmp_path):
    """After an error in a second training no scores of the first are passed off as its own."""
    vog = VoGCallback(pixel_rows(), snapshots="epoch")
    assert_accepted(tmp_path, vog)
    assert_refused(tmp_path, ConfigError, "gives 1", vog, num_train_epochs=1)


# --- after the first step -------------------------------------------------------------------------------------------


class Fragile(torch.utils.data.Dataset):
    """Rows that can be read until ``broken`` is set."""

    broken = False

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if self.broken and i == 40:
            raise OSError(errno.EIO, "Input/output error")
        return pixel_rows()[i]


def fails_to_write(monkeypatch, name, after):
    """Let the ``after``-th snapshot, and every later one, meet a full disk."""
    written = []

    def save(tensors, path, **options):
        written.append(path)
        if len(written) >= after:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(tensors, path, **options)

    original = getattr(snapshots.writer, name)
    monkeypatch.setattr(snapshots.writer, name, save)


def errors_of(caplog):
    """What vog_hf logged as an error."""
    return [r for r in caplog.records if r.name.startswith("vog_hf") and r.levelno >= logging.ERROR]


def assert_training_went_on(trainer, folder, without):
    """All steps were made, with the same weights and random state as without the callback; the model can be saved."""
    assert trainer.state.global_step == 12
    assert_close(dict(trainer.model.state_dict()), without[0], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(torch.get_rng_state(), without[1])
    trainer.save_model(folder / "saved")
    saved = type(trainer.model).from_pretrained(folder / "saved")
    assert_close(next(saved.parameters()), next(trainer.model.parameters()), rtol=0, atol=0, equal_nan=True)


def assert_failed(vog, caplog, what, cause, message):
    """One error was logged, and whoever asks for scores is told the cause."""
    (record,) = errors_of(caplog)
    assert record.getMessage() == f"VoG: {what} failed; training continues, and callback.scores raises the cause"
    assert record.exc_info
    for get in (lambda: vog.scores, vog.scored_dataset):
        with pytest.raises(NotScoredError, match=f"scoring failed: .*{message}") as raised:
            get()
        assert isinstance(raised.value.__cause__, cause)


@pytest.fixture(scope="module")
def without_callback(tmp_path_factory):
    """Weights and random state after the training without the callback."""
    trainer = trained(tmp_path_factory.mktemp("without"), [])
    return dict(trainer.model.state_dict()), torch.get_rng_state()


@BOTH
@pytest.mark.parametrize("at", [5, 12])
def test_rows_that_fail_after_training_began(at, collect, tmp_path, caplog, without_callback):
    """A disk that goes away in mid-training: the training ends well, in live no further pass is tried."""
    rows = Fragile()
    vog = VoGCallback(rows, collect=collect, snapshots=[4, 8, 12])
    trainer = trained(tmp_path, [AtStep(at, lambda *_: setattr(rows, "broken", True)), vog])
    assert_training_went_on(trainer, tmp_path, without_callback)
    what = "taking a snapshot" if collect == "live" else "scoring"
    assert_failed(
        vog, caplog, what, DataError, r"row 40 cannot be read: OSError: .*Input/output error; restore its file"
    )
    rows.broken = False
    if collect == "replay":  # the snapshots are there
        scores = VoGScorer(trainer.model).score(rows, tmp_path / "_vog")
        assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [4, 8, 12]
    assert_accepted(tmp_path, vog)  # and a failure does not outlive its training


@BOTH
def test_a_disk_that_is_full_when_scores_are_written(collect, tmp_path, caplog, monkeypatch, without_callback):
    """Room is looked for, and found missing, after the training: nothing but the scores is lost."""
    from vog_hf.scoring import block_folder as blocks

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    vog = VoGCallback(pixel_rows(), collect=collect)
    trainer = trained(tmp_path, [AtStep(12, lambda *_: monkeypatch.setattr(blocks, "save_file", full)), vog])
    assert_training_went_on(trainer, tmp_path, without_callback)
    assert_failed(vog, caplog, "scoring", OSError, "No space left on device")
    assert not (tmp_path / "_vog" / "scores" / "manifest.json").exists()


def test_a_disk_that_was_filled_by_the_training(tmp_path, caplog, monkeypatch, without_callback):
    """The room that was promised before the training is asked for again before scoring."""
    vog = VoGCallback(pixel_rows())
    fill = AtStep(12, lambda *_: monkeypatch.setattr(files, "free_bytes", lambda folder: 1))
    trainer = trained(tmp_path, [fill, vog])
    assert_training_went_on(trainer, tmp_path, without_callback)
    assert_failed(vog, caplog, "scoring", OutputFolderError, "storing the scores needs about .*1 B are free")


@BOTH
def test_weights_that_are_not_numbers(collect, tmp_path, caplog):
    """A training that diverges in its last steps is not scored, and the row and the snapshot are named."""

    def diverge(model, control):
        next(model.parameters()).data.fill_(torch.nan)

    vog = VoGCallback(pixel_rows(), collect=collect, snapshots="epoch")
    trainer = trained(tmp_path, [AtStep(10, diverge), vog])
    without = trained(tmp_path / "without", [AtStep(10, diverge)])
    assert_training_went_on(trainer, tmp_path, (dict(without.model.state_dict()), torch.get_rng_state()))
    what = "scoring" if collect == "replay" else "taking a snapshot"
    assert_failed(vog, caplog, what, NonFiniteError, "not finite at row 0, snapshot 'step-000000012'")


def test_a_snapshot_that_cannot_be_written(tmp_path, caplog, monkeypatch, without_callback):
    """The third of four meets a full disk: one error, no fourth attempt, and the first two stay whole."""
    fails_to_write(monkeypatch, "save_file", after=3)
    vog = VoGCallback(pixel_rows(), snapshots=3)
    trainer = trained(tmp_path, [vog])
    assert_training_went_on(trainer, tmp_path, without_callback)
    assert_failed(vog, caplog, "taking a snapshot", OSError, "No space left on device")
    kept = {path.name for path in (tmp_path / "_vog" / "snapshots").iterdir()}
    assert kept == {"snapshots.json", "step-000000003.safetensors", "step-000000006.safetensors"}
    scores = VoGScorer(trainer.model).score(pixel_rows(), tmp_path / "_vog")
    assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [3, 6]


@pytest.mark.parametrize("store", ["trainable", "all"])
def test_a_weight_that_thaws_in_mid_training(store, tmp_path, caplog):
    """Earlier snapshots lack it: said with the option that stores everything, which is the accepted neighbor."""

    def thaw(model, control):
        model.requires_grad_()

    vog = VoGCallback(pixel_rows(), store=store, snapshots="epoch")
    trainer = trained(tmp_path, [AtStep(6, thaw), vog], model=thawed("classifier.2.weight"))
    assert trainer.state.global_step == 12
    if store == "all":
        assert errors_of(caplog) == []
        assert len(vog.scores) == 64
    else:
        message = "was frozen when training began and is trainable now .*step 4.*create the callback with store='all'"
        assert_failed(vog, caplog, "taking a snapshot", SnapshotError, message)


@BOTH
def test_a_training_that_stops_after_one_snapshot(collect, tmp_path, caplog):
    """Nothing varies over one snapshot: no scores, and two would have been enough."""

    def stop(model, control):
        control.should_training_stop = True

    for at, taken in ((3, 1), (5, 2)):
        vog = VoGCallback(pixel_rows(), collect=collect, snapshots="epoch")
        trained(tmp_path, [AtStep(at, stop), vog])
        if taken == 1:
            error = SnapshotError if collect == "replay" else ConfigError
            assert_failed(vog, caplog, "scoring", error, "at least 2 snapshots")
        else:
            assert len(vog.scores.manifest["snapshots"]) == 2


class Reporting(TrainerCallback):
    """Makes a training report to W&B, where no run was started."""

    def on_train_begin(self, args, state, control, **kwargs):
        args.report_to = ["wandb"]


@BOTH
def test_a_logger_that_fails_costs_no_scores(collect, tmp_path, caplog, monkeypatch, without_callback):
    """Scores are on disk before anything is logged, and `scores` gives them whatever the logger does."""
    found = []

    def log_scores(scores, dataset, *, step, top_k, **options):
        found.append(VoGScores.load(tmp_path / "_vog" / "scores"))
        torch.rand(1)
        raise ConnectionError("the server is away")

    monkeypatch.setattr(publishing, "log_scores", log_scores)
    vog = VoGCallback(pixel_rows(), collect=collect)
    trainer = trained(tmp_path, [vog, Reporting()])
    assert_training_went_on(trainer, tmp_path, without_callback)
    (record,) = errors_of(caplog)
    assert "logging failed; the scores are complete" in record.getMessage()
    assert str(tmp_path / "_vog") in record.getMessage()
    assert "the server is away" in caplog.text
    assert np.array_equal(found[0].column("vog"), vog.scores.column("vog"))
    assert vog.scored_dataset().num_rows == 64


def test_what_is_logged_and_when(tmp_path, monkeypatch):
    """Once, at the end, with the step and the scored rows; never with ``log=False`` or where nothing is reported to."""
    calls = []
    monkeypatch.setattr(publishing, "log_scores", lambda *args, **options: calls.append((args, options)))
    rows = pixel_rows()
    vog = VoGCallback(rows, top_k=7)
    trained(tmp_path / "a", [vog, Reporting()])
    options = {"step": 12, "to": "wandb", "run": None, "report": None}  # none is written without an active run
    assert calls == [((vog.scores, rows), {"top_k": 7, **options})]
    splits = {"one": rows, "two": pixel_rows(5)}
    vog = VoGCallback(splits)
    trained(tmp_path / "b", [vog, Reporting()])
    assert calls[1:] == [((vog.scores, splits), {"top_k": 50, **options})]
    trained(tmp_path / "c", [VoGCallback(rows, log=False), Reporting()])
    trained(tmp_path / "d", [VoGCallback(rows)])  # reports to nothing
    assert len(calls) == 2
