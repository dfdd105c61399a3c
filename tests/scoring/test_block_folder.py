import contextlib
import json
import os
import shutil
import subprocess
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from vog_hf.config import VoGConfig
from vog_hf.errors import CoverageError, OutputFolderError, SnapshotError
from vog_hf.metric.batch_accumulator import RowResults
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.runtime.files import locked
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.assembly import Assembler
from vog_hf.scoring.block_folder import BlockFolder, BlockPlan, batches
from vog_hf.scoring.scorer import VoGScorer

N = 53
LABELS = [(i * i + i // 3) % models.CLASSES for i in range(N)]


def dataset(n=N, seed=7):
    """Vectors with labels."""
    rows = models._float_rows("features", (5,), seed=seed, n=n)
    columns = {"features": [row["features"].tolist() for row in rows], "label": LABELS[:n]}
    return Dataset.from_dict(columns).with_format("torch")


def model_and_states(n=3, seed=0):
    """A plain module and its named snapshots."""
    model = models.mlp().model
    return model, [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, n, seed=seed))]


def score(folder, *, data=None, states=None, config=None, batch_size=7, after=None):
    """Scores in 8 blocks of one batch; returns them and the number of forward passes, failing at call ``after``."""
    model, own_states = model_and_states()
    calls = []

    def count(module, args, kwargs):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(kwargs["features"].shape[0])

    model.register_forward_pre_hook(count, with_kwargs=True)
    scorer = VoGScorer(model, config=config, batch_size=batch_size, memory_budget=1)
    return scorer.score(data or dataset(), states or own_states, output_dir=folder), len(calls)


DRY_RUN = 4  # forward passes before the first block: of its first batch, of a few rows twice, of a row alone
PER_BLOCK = 3


def block_files(folder):
    """The finished blocks of a folder."""
    return sorted((folder / "blocks").glob("*.safetensors"))


def assert_bit_equal(scores, expected):
    """Every column, trajectory and heat map, bit for bit."""
    assert scores.column_names == expected.column_names
    for column in expected.column_names:
        np.testing.assert_array_equal(scores.column(column), expected.column(column))
    assert scores.trajectory_names == expected.trajectory_names
    for trajectory in expected.trajectory_names:
        np.testing.assert_array_equal(scores.trajectory(trajectory), expected.trajectory(trajectory))
    for row in range(len(expected)):
        np.testing.assert_array_equal(scores.heat_map(row), expected.heat_map(row))


def interrupted(folder, *, blocks_done=2):
    """Leave a folder as a run does that stops inside a block."""
    with pytest.raises(KeyboardInterrupt):
        score(folder, after=DRY_RUN + blocks_done * PER_BLOCK + 1)  # inside the next block
    assert len(block_files(folder)) == blocks_done


# --- the plan -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 70), st.integers(1, 9))
def test_every_row_is_in_one_batch_of_one_process(n_rows, n_processes, batch_size, batches_per_block):
    """Sharded by row number, never padded: whatever the sizes, each row comes exactly once and in order."""
    plan = BlockPlan(n_rows, n_processes, batch_size, batch_size * batches_per_block)
    seen = []
    for rank in range(n_processes):
        blocks = plan.blocks(rank)
        assert len(blocks) <= plan.n_blocks
        mine = [row for block in blocks for batch in block for row in batch]
        assert mine == list(range(n_rows))[rank::n_processes]
        assert all(1 <= len(batch) <= batch_size for block in blocks for batch in block)
        assert all(1 <= len(block) <= batches_per_block for block in blocks)
        seen += mine
    assert sorted(seen) == list(range(n_rows))


def test_rows_are_cut_into_batches_with_a_short_last_one():
    """A batch is a range of row numbers; the last is as short as it comes."""
    assert batches(range(2, 12, 2), 2) == [range(2, 6, 2), range(6, 10, 2), range(10, 12, 2)]
    assert batches(range(3), 7) == [range(3)]


# --- interruption ---------------------------------------------------------------------------------------------------


def test_an_interrupted_run_continues_and_is_bit_equal(tmp_path):
    """A run that stops inside block 3 of 8 scores, when it is started again, just the six that are missing."""
    whole, calls = score(tmp_path / "whole")
    assert calls == DRY_RUN + 8 * PER_BLOCK
    interrupted(tmp_path / "scores")
    resumed, calls = score(tmp_path / "scores")
    assert calls == DRY_RUN + 6 * PER_BLOCK
    assert_bit_equal(resumed, whole)
    assert not (tmp_path / "scores" / "blocks").exists()


def test_an_interrupted_run_keeps_its_batches(tmp_path):
    """The second run may be started with another batch size; the plan on disk wins, so the bits are the same."""
    whole, _ = score(tmp_path / "whole")
    interrupted(tmp_path / "scores")
    resumed, calls = score(tmp_path / "scores", batch_size=20)
    assert calls == DRY_RUN + 6 * PER_BLOCK
    assert_bit_equal(resumed, whole)
    assert resumed.manifest["batch_size"] == 7
    assert json.loads((tmp_path / "scores" / "plan.json").read_text())["plan"]["batch_size"] == 7


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_block_is_scored_anew(tmp_path, size):
    """A block file that cannot be read counts as not there; the others are kept."""
    whole, _ = score(tmp_path / "whole")
    interrupted(tmp_path / "scores")
    path = block_files(tmp_path / "scores")[0]
    path.write_bytes(path.read_bytes()[:size])
    resumed, calls = score(tmp_path / "scores")
    assert calls == DRY_RUN + 7 * PER_BLOCK
    assert_bit_equal(resumed, whole)


def test_a_run_that_stopped_while_the_blocks_were_put_together_continues(tmp_path, monkeypatch):
    """Blocks stay until the manifest is written: nothing is computed twice."""
    whole, _ = score(tmp_path / "whole")
    with monkeypatch.context() as patched:

        def stop(*args):
            raise KeyboardInterrupt

        patched.setattr("vog_hf.scoring.assembly.save_table", stop)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path / "scores")
    assert len(block_files(tmp_path / "scores")) == 8
    resumed, calls = score(tmp_path / "scores")
    assert calls == DRY_RUN
    assert_bit_equal(resumed, whole)


def test_finished_scores_are_returned_without_calling_the_model(tmp_path):
    """The same configuration, rows and snapshots: the folder is read, nothing is computed and nothing is written."""
    whole, _ = score(tmp_path / "scores")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir() if path.name != ".lock"}
    again, calls = score(tmp_path / "scores", batch_size=20)
    assert calls == 0
    assert_bit_equal(again, whole)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "scores").iterdir() if path.name != ".lock"}
    assert after == before


@pytest.mark.parametrize("damage", ["flipped", "cut short", "gone"])
@pytest.mark.parametrize("name", ["scores.parquet", "trajectory-vog.npy", "heat-map-values.npy", "heat-map-scale.npy"])
def test_finished_scores_that_were_damaged_are_not_returned(name, damage, tmp_path, monkeypatch):
    """However large they are, the file is named, and what to do; as they were written, they are returned."""
    monkeypatch.setattr("vog_hf.scores.storage.CHECKED_AT_LOAD", 0)
    score(tmp_path / "scores")
    path = tmp_path / "scores" / name
    content = path.read_bytes()
    damaged = {"flipped": content[:-9] + bytes([content[-9] ^ 64]) + content[-8:], "cut short": content[:-40]}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(
        OutputFolderError, match=rf"{name} is (damaged|missing).*restore it, or delete the folder and score again"
    ):
        score(tmp_path / "scores", after=0)
    path.write_bytes(content)
    score(tmp_path / "scores", after=0)


class Stream(torch.utils.data.IterableDataset):
    """The rows with a name each, one after another."""

    def __iter__(self):
        for i, row in enumerate(dataset()):
            yield {**row, "name": f"row {i}"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: content[:60] + bytes([content[60] ^ 1]) + content[61:],
        lambda content: None,
    ],
    ids=["cut short", "flipped", "gone"],
)
def test_a_block_whose_ids_are_damaged_is_scored_anew(damage, tmp_path):
    """Its rows get the names that the stream gives them, and the others are kept."""
    model, states = model_and_states()
    scorer = VoGScorer(model, batch_size=7, memory_budget=1)
    options = {"output_dir": tmp_path / "scores", "id_column": "name"}

    def stop(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vog_hf.scoring.assembly.Assembler", stop)
        with pytest.raises(KeyboardInterrupt):
            scorer.score(Stream(), states, **options)
    first = {path: path.stat().st_mtime_ns for path in block_files(tmp_path / "scores")}
    ids = min((tmp_path / "scores" / "blocks").glob("*.ids.parquet"))
    content = damage(ids.read_bytes())
    ids.unlink()
    if content is not None:
        ids.write_bytes(content)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vog_hf.scoring.assembly.Assembler", stop)
        with pytest.raises(KeyboardInterrupt):
            scorer.score(Stream(), states, **options)
    again = {path: path.stat().st_mtime_ns for path in block_files(tmp_path / "scores")}
    assert [path.name[-18:] for path in first if again[path] != first[path]] == ["000000.safetensors"]
    scores = scorer.score(Stream(), states, **options)
    assert scores.ids.tolist() == [f"row {i}" for i in range(N)]


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "interrupted"])
@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (lambda: {"config": VoGConfig(target="loss")}, "config"),
        (lambda: {"data": dataset(seed=8)}, "data, first batch"),
        (lambda: {"data": dataset(n=52)}, "rows, data"),
        (lambda: {"states": model_and_states(seed=1)[1]}, "snapshots"),
        (
            lambda: {
                "data": dataset().with_transform(lambda rows: {**rows, "features": 2 * torch.tensor(rows["features"])})
            },
            "first batch",
        ),
    ],
    ids=["config", "data", "length", "snapshots", "transform"],
)
def test_scores_of_something_else_are_refused(tmp_path, change, differing, finished):
    """A folder begun with other choices, rows, snapshots or another transform is left alone; what differs is named."""
    score(tmp_path / "scores") if finished else interrupted(tmp_path / "scores")
    held = {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*") if path.is_file()}
    with pytest.raises(
        OutputFolderError, match=rf"a different run \(it differs in {differing}\); choose another output_dir"
    ):
        score(tmp_path / "scores", **change())
    assert {path: path.read_bytes() for path in (tmp_path / "scores").rglob("*") if path.is_file()} == held
    score(tmp_path / "others", **change())


@pytest.mark.parametrize("name", ["thesis.tex", "blocks/chapter-1.tex", ".hidden", "plan.json"])
def test_foreign_files_are_refused(name, tmp_path):
    """A folder with somebody else's files is not written into, whatever their names; an empty one is."""
    path = tmp_path / "notes" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"buy": "milk"}')
    with pytest.raises(OutputFolderError, match=rf"holds files that vog_hf did not write \({name.split('/')[0]}\)"):
        score(tmp_path / "notes")
    assert [p for p in (tmp_path / "notes").rglob("*") if p.is_file()] == [path]
    assert path.read_text() == '{"buy": "milk"}'
    (tmp_path / "empty").mkdir()
    score(tmp_path / "empty")


def test_a_folder_that_another_run_holds_is_refused(tmp_path):
    """Before anything is computed; when the other is done, the same call goes through."""
    with locked(tmp_path / "scores"), pytest.raises(OutputFolderError, match="is in use by another run"):
        score(tmp_path / "scores", after=0)
    score(tmp_path / "scores")


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model_is_called(tmp_path):
    """Read-only folders are found when the lock is taken."""
    (tmp_path / "scores").mkdir(mode=0o555)
    if os.access(tmp_path / "scores", os.W_OK):
        pytest.skip("this user (root) may write into read-only folders")
    with pytest.raises(OutputFolderError, match="cannot write to"):
        score(tmp_path / "scores", after=0)


# --- the disk -------------------------------------------------------------------------------------------------------


def disk_bytes():
    """What the scores of `dataset` need."""
    scorer = VoGScorer(model_and_states()[0])
    return scorer.plan(scorer.reader(dataset())).disk_bytes(N, 3)


def test_a_disk_without_room_is_refused_before_the_work(tmp_path, monkeypatch):
    """After the dry run and before the first block, with both numbers; with just enough room it goes through."""
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 (shutil's own is one)
    needed = disk_bytes()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed - 1))
    with pytest.raises(
        OutputFolderError, match=r"storing the scores needs about 17\.6 KiB in .*scores, 17\.6 KiB are free"
    ):
        score(tmp_path / "scores", after=DRY_RUN)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, needed))
    score(tmp_path / "scores")


def test_a_resumed_run_needs_room_only_for_what_is_missing(tmp_path, monkeypatch):
    """Blocks that are on the disk already are not asked for again."""
    interrupted(tmp_path / "scores", blocks_done=6)
    done = sum(path.stat().st_size for path in block_files(tmp_path / "scores"))
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 (shutil's own is one)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, disk_bytes() - done))
    score(tmp_path / "scores")


def test_a_disk_that_fills_up_in_mid_run_is_an_error_after_which_the_run_continues(tmp_path, monkeypatch):
    """The block that did not fit leaves nothing behind, finished ones stay, and the restart is bit-equal."""
    from safetensors.numpy import save_file

    whole, _ = score(tmp_path / "whole")

    def save_two(stored, path, metadata):
        if len(block_files(tmp_path / "scores")) == 2:
            path.write_bytes(b"half a block")
            raise OSError(28, "No space left on device")
        save_file(stored, path, metadata)

    with monkeypatch.context() as patched:
        patched.setattr("vog_hf.scoring.block_folder.save_file", save_two)
        with pytest.raises(OutputFolderError, match=r"block-000002.*No space left on device.*free some space"):
            score(tmp_path / "scores")
    assert sorted(path.name for path in (tmp_path / "scores" / "blocks").iterdir()) == [
        "process-00000-of-00001-block-000000.safetensors",
        "process-00000-of-00001-block-000001.safetensors",
    ]
    resumed, calls = score(tmp_path / "scores")
    assert calls == DRY_RUN + 6 * PER_BLOCK
    assert_bit_equal(resumed, whole)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 400 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_real_full_disk_is_an_error_in_every_phase_and_never_a_crash(tiny_disk, monkeypatch):
    """With the pre-check blinded, the disk fills in a block, then while they are put together; with room it resumes."""
    rows = [{"image": torch.randn(3, 32, 32), "labels": i % 3} for i in range(60)]
    model = models.conv_net().model
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 3))]
    scorer = VoGScorer(model, batch_size=4, memory_budget=1)
    needed = scorer.plan(scorer.reader(rows)).disk_bytes(60, 3)
    assert 2 * 60 * 2048 < needed < 300 * 1024
    with monkeypatch.context() as patched:
        patched.setattr("vog_hf.scoring.scorer.require_free", lambda *args: None)
        for ballast in (350, 150):  # KiB
            (tiny_disk / "ballast").write_bytes(bytes(ballast * 1024))
            with pytest.raises(OutputFolderError, match="No space left on device"):
                scorer.score(rows, states, output_dir=tiny_disk / "scores")
            assert not (tiny_disk / "scores" / "manifest.json").exists()
        assert len(block_files(tiny_disk / "scores")) == 15
    (tiny_disk / "ballast").unlink()
    resumed = scorer.score(rows, states, output_dir=tiny_disk / "scores")
    assert_bit_equal(resumed, scorer.score(rows, states))


def test_a_memory_map_that_does_not_fit_is_an_error_and_not_the_end_of_the_process(tiny_disk):
    """Trajectories are mapped into memory: their room is taken first; a full disk under a map kills."""
    values = np.ones((50_000, 3), dtype=np.float32)
    with pytest.raises(OutputFolderError, match="No space left on device"):
        Assembler(tiny_disk, 50_000, 3).add({"rows": np.arange(50_000), "trajectories/vog": values})
    assembler = Assembler(tiny_disk, 20_000, 3)
    assembler.add({"rows": np.arange(20_000), "trajectories/vog": values[:20_000]})
    assembler.finish()
    assert np.load(tiny_disk / "trajectory-vog.npy").sum() == 60_000


# --- coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            lambda rows: np.flatnonzero(rows != 20),
            r"row 20 was scored 0 times, expected once \(1 of 53 rows are wrong\)",
        ),
        (
            lambda rows: np.append(np.arange(len(rows)), np.flatnonzero(rows == 20)),
            r"row 20 was scored 2 times.*1 of 53",
        ),
        (lambda rows: np.where(rows == 20, 0, np.arange(len(rows))), r"row 14 was scored 2 times, .*\(2 of 53"),
    ],
    ids=["missing", "doubled", "both"],
)
def test_a_row_that_is_missing_or_doubled_stops_everything(tmp_path, monkeypatch, kept, message):
    """Every row exactly once, or a CoverageError, and no file that could be taken for scores."""
    write = BlockFolder.write

    def write_wrong(self, rank, block, rows, results, **note):
        (result,) = results
        at, maps = kept(rows), result.heat_maps
        wrong = RowResults(
            {name: values[at] for name, values in result.columns.items()},
            {name: values[at] for name, values in result.trajectories.items()},
            RaggedMaps(maps.values.reshape(len(rows), -1)[at].ravel(), maps.shapes[at], maps.scale[at]),
        )
        write(self, rank, block, rows[at], [wrong], **note)

    monkeypatch.setattr(BlockFolder, "write", write_wrong)
    with pytest.raises(CoverageError, match=message):
        score(tmp_path / "scores")
    names = {path.name for path in (tmp_path / "scores").iterdir()}
    assert names == {".lock", "plan.json", "blocks"}
    with pytest.raises(OutputFolderError, match="holds no finished scores"):
        VoGScores.load(tmp_path / "scores")


def test_a_block_of_another_number_of_snapshots_is_refused(tmp_path):
    """A trajectory must have a value per row and snapshot."""
    assembler = Assembler(tmp_path, 2, 3)
    with pytest.raises(CoverageError, match="a block holds 2 of 3 snapshots"):
        assembler.add({"rows": np.arange(2), "trajectories/vog": np.zeros((2, 2))})


@pytest.mark.parametrize("several", [[[[0, 2], [1, 3]], [[4]]], [[[0, 2, 4, 1, 3]]]], ids=["two", "one"])
def test_blocks_of_several_processes_are_placed_by_row(several, tmp_path):
    """Interleaved rows of two processes, and of one that took over both, come out in row order, ragged maps too."""
    from vog_hf.scoring.assembly import _in_row_order

    lengths = np.array([2, 1, 3, 2, 1], dtype=np.int32)

    def part(rows):
        values = np.concatenate([np.full(lengths[row], row / 8, dtype=np.float16) for row in rows])
        return {
            "rows": np.array(rows),
            "columns/vog": np.array(rows, dtype=np.float32),
            "trajectories/vog": np.array(rows, dtype=np.float32)[:, None].repeat(2, 1),
            "heat_maps/values": values,
            "heat_maps/shapes": lengths[rows][:, None],
            "heat_maps/scale": np.ones(len(rows), dtype=np.float32),
        }

    assembler = Assembler(tmp_path, 5, 2)
    for parts in several:
        assembler.add(_in_row_order([part(rows) for rows in parts]))
    assembler.finish()
    np.testing.assert_array_equal(assembler.columns["vog"], range(5))
    np.testing.assert_array_equal(np.load(tmp_path / "trajectory-vog.npy")[:, 1], range(5))
    np.testing.assert_array_equal(np.load(tmp_path / "heat-map-shapes.npy")[:, 0], lengths)
    maps = np.load(tmp_path / "heat-map-values.npy", mmap_mode="r")
    assert maps.dtype == np.float16
    np.testing.assert_array_equal(maps, np.repeat(np.arange(5) / 8, lengths))
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == [
        "heat-map-scale.npy",
        "heat-map-shapes.npy",
        "heat-map-values.npy",
        "trajectory-vog.npy",
    ]


# --- rows without a table -------------------------------------------------------------------------------------------


def rows_of(labels):
    """A list of rows: nothing but reading tells what is in it."""
    features = models._float_rows("features", (5,), seed=7, n=N)
    return [{"features": row["features"], "label": label} for row, label in zip(features, labels, strict=True)]


def test_corrected_labels_are_not_answered_with_the_old_scores(tmp_path):
    """A finished folder is given back for the same rows, whatever object holds them, and refused for edited ones."""
    first, _ = score(tmp_path / "scores", data=rows_of(LABELS))
    again, calls = score(tmp_path / "scores", data=tuple(rows_of(LABELS)))
    assert (again.column("vog") == first.column("vog")).all()
    assert calls == 0
    corrected = [*LABELS[:50], (LABELS[50] + 1) % models.CLASSES, *LABELS[51:]]
    with pytest.raises(OutputFolderError, match=r"the rows are not those that the scores in .*scores were computed on"):
        score(tmp_path / "scores", data=rows_of(corrected))


def test_blocks_of_edited_rows_are_not_mixed_in(tmp_path):
    """An interrupted run continues with the same rows, and with rows that differ only where none was scored."""
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "scores", data=rows_of(LABELS), after=DRY_RUN + 6 * PER_BLOCK)  # 6 blocks of 7 rows
    for place, refused in ((40, True), (45, False)):
        edited = [*LABELS[:place], (LABELS[place] + 1) % models.CLASSES, *LABELS[place + 1 :]]
        if refused:
            with pytest.raises(OutputFolderError, match="some were edited, or they come in another order each time"):
                score(tmp_path / "scores", data=rows_of(edited))
    whole, _ = score(tmp_path / "whole", data=rows_of(edited))
    found, calls = score(tmp_path / "scores", data=rows_of(edited))
    assert calls == DRY_RUN + 2 * PER_BLOCK
    assert (found.column("vog") == whole.column("vog")).all()


def test_a_table_need_not_be_read_to_be_known(tmp_path, monkeypatch):
    """Its columns are in the fingerprint: a finished folder is given back without decoding its rows."""
    score(tmp_path / "scores")
    read, n_read = Dataset.__getitems__, []
    monkeypatch.setattr(Dataset, "__getitems__", lambda self, rows: (n_read.append(len(rows)), read(self, rows))[1])
    score(tmp_path / "scores")
    assert sum(n_read) == 32  # one by one, for how they are collated


# --- what else ends a block -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "batches_of_block"), [(0.0, 8), (10.0, 4), (40.0, 1), (1e6, 1)])
def test_a_block_takes_no_longer_than_two_minutes(seconds, batches_of_block):
    """As the dry run estimates it: other processes wait for it, and a kill loses it."""
    model, _ = model_and_states()
    scorer = VoGScorer(model, batch_size=7, memory_budget=2**30)
    plan = replace(scorer.plan(scorer.reader(dataset())), batch_seconds=seconds)
    assert min(8, scorer._budget.block_plan(plan, N, 3, 1).block_rows // 7) == batches_of_block


def test_a_snapshot_that_is_written_to_while_it_is_scored_is_noticed(tmp_path, monkeypatch):
    """Blocks of two different states must not become scores; the next run says that the snapshots differ."""
    _, states = model_and_states()
    for name, state in states:
        save_file(state, tmp_path / f"{name}.safetensors")
    files = sorted(tmp_path.glob("*.safetensors"))
    write, written = BlockFolder.write, []

    def touch(self, *arguments, **note):
        write(self, *arguments, **note)
        written.append(True)
        if len(written) == 3:
            save_file(states[0][1], files[-1])

    monkeypatch.setattr(BlockFolder, "write", touch)
    with pytest.raises(SnapshotError, match="was changed while it was being scored"):
        score(tmp_path / "scores", states=files)
    assert not (tmp_path / "scores" / "manifest.json").exists()
    with pytest.raises(OutputFolderError, match="it differs in snapshots"):
        score(tmp_path / "scores", states=files)
    assert len(score(tmp_path / "others", states=files)[0]) == N


def test_no_flipped_bit_of_a_plan_goes_unnoticed(tmp_path):
    """Whatever byte of the file is damaged, the folder is refused, or begun again while it holds no scores."""
    fingerprint, plan = {"rows": 6, "config": {"target": ["logit"]}}, BlockPlan(6, 1, 2, 4)
    BlockFolder.prepare(tmp_path, fingerprint, plan)
    path = tmp_path / "plan.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        if json_or_none(damaged) == json_or_none(whole):
            continue  # space that means nothing
        with contextlib.suppress(OutputFolderError):
            assert BlockFolder.prepare(tmp_path, fingerprint, plan).plan == plan
            assert path.read_bytes() == whole


@pytest.mark.parametrize("change", [{"n_rows": 4}, {"batch_size": 0}, {"block_rows": 5}, {"n_processes": 0}])
def test_numbers_of_a_plan_must_agree(tmp_path, change):
    """A sound plan is continued; one that contradicts itself or the fingerprint is refused."""
    plan = {"n_rows": 6, "n_processes": 1, "batch_size": 2, "block_rows": 4}
    path, fingerprint = tmp_path / "plan.json", {"rows": 6}
    path.write_text(json.dumps({"fingerprint": fingerprint, "plan": plan}))
    assert BlockPlan.read(tmp_path) == BlockFolder.prepare(tmp_path, fingerprint, BlockPlan(6, 1, 3, 3)).plan
    path.write_text(json.dumps({"fingerprint": fingerprint, "plan": plan | change}))
    with pytest.raises(OutputFolderError, match=r"plan\.json is damaged"):
        BlockFolder.prepare(tmp_path, fingerprint, BlockPlan(6, 1, 2, 4))


def json_or_none(data):
    """What bytes say as JSON."""
    try:
        return json.loads(bytes(data))
    except ValueError:
        return None
