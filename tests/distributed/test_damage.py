"""Damaged files, missing snapshots, disks that fill up, folders in use: an error or a block redone, no wrong score."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from kill_scoring import LONG, SHORT, contents, score, store_snapshots
from launch import launched, run

from vog_hf.errors import OutputFolderError, SnapshotError
from vog_hf.runtime.files import read_json
from vog_hf.scoring.block_folder import BlockFolder, BlockPlan

BLOCKS, BLOCKS_DONE = 4, 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with snapshots and the scores of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    store_snapshots(SHORT, folder / "snapshots")
    score(SHORT, folder / "scores", folder / "snapshots")
    return folder


@pytest.fixture
def interrupted(whole, tmp_path, monkeypatch):
    """The same, of a run that stopped when two of its four blocks were finished."""
    write = BlockFolder.write

    def stop(self, rank, block, *args, **options):
        if block == BLOCKS_DONE:
            raise KeyboardInterrupt
        write(self, rank, block, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(BlockFolder, "write", stop)
        return stopped(tmp_path, whole, BLOCKS_DONE)


@pytest.fixture
def unassembled(whole, tmp_path, monkeypatch):
    """The same, of a run that stopped when all blocks were finished and nothing was made of them yet."""

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("vog_hf.scoring.assembly.Assembler", stop)
        return stopped(tmp_path, whole, BLOCKS)


def stopped(folder, whole, n_blocks):
    """A folder in which a scoring was interrupted."""
    shutil.copytree(whole / "snapshots", folder / "snapshots")
    with pytest.raises(KeyboardInterrupt):
        score(SHORT, folder / "scores", folder / "snapshots")
    assert len(block_files(folder)) == n_blocks
    return folder


def block_files(folder):
    """The finished blocks."""
    return sorted((folder / "scores" / "blocks").glob("process-*"))


def go_on(folder, whole):
    """Start an interrupted run again; the scores are exactly those of the whole one."""
    score(SHORT, folder / "scores", folder / "snapshots")
    assert contents(folder / "scores") == contents(whole / "scores")


def opened(folder):
    """The blocks of a folder."""
    begun = read_json(folder / "scores" / "plan.json")
    return BlockFolder.prepare(folder / "scores", begun["fingerprint"], BlockPlan(**begun["plan"]))


def flipped(data, at, bit):
    """Bytes with one bit turned over."""
    return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]


# --- blocks ---------------------------------------------------------------------------------------------------------


def test_no_bit_of_a_block_can_turn_over_unnoticed(interrupted):
    """In names, sizes and values: the block counts as not there, or nothing changed (a bit per byte, then per 7)."""
    path, blocks = block_files(interrupted)[0], opened(interrupted)
    good, data, rng = blocks.read(0, 0), path.read_bytes(), random.Random(0)
    unnoticed = []
    header = 8 + int.from_bytes(data[:8], "little")
    for at in [*range(header), *range(header, len(data), 7)]:
        path.write_bytes(flipped(data, at, rng.randrange(8)))
        stored = blocks.read(0, 0)
        if stored is not None and not same_arrays(stored, good):
            unnoticed.append(at)
    assert 500 < header < len(data) - 3_000
    assert unnoticed == []


def test_no_block_can_be_cut_short_unnoticed(interrupted):
    """Whatever its length, a file that is not whole counts as not there."""
    path, blocks = block_files(interrupted)[0], opened(interrupted)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        assert blocks.read(0, 0) is None
    path.write_bytes(data)
    assert blocks.read(0, 0) is not None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: flipped(data, len(data) - 1, 0),
        lambda data: flipped(data, len(data) // 2, 6),
        lambda data: flipped(data, 100, 1),
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: b"",
    ],
    ids=["last byte", "payload", "header", "half", "zeros", "empty"],
)
def test_a_damaged_block_is_scored_again(interrupted, whole, damage):
    """The run continues as if the block had not been finished."""
    path = block_files(interrupted)[0]
    path.write_bytes(damage(path.read_bytes()))
    go_on(interrupted, whole)


def test_blocks_of_another_plan_are_never_taken_up(interrupted, whole):
    """A folder that was meanwhile taken up by two processes, which stopped: its blocks go, none is mixed in."""
    begun = read_json(interrupted / "scores" / "plan.json")
    BlockFolder.prepare(interrupted / "scores", begun["fingerprint"], BlockPlan(SHORT.n_rows, 2, 16, 16))
    assert block_files(interrupted) == []
    SHORT.score(
        snapshots=interrupted / "snapshots", output_dir=interrupted / "scores", memory_budget=1, batch_size=SHORT.n_rows
    )
    scores = read_json(interrupted / "scores" / "manifest.json")
    assert scores["batch_size"] == SHORT.n_rows
    assert not (interrupted / "scores" / "blocks").exists()


def same_arrays(stored, expected):
    """Names, types, shapes and values."""
    return stored.keys() == expected.keys() and all(
        stored[name].dtype == values.dtype and np.array_equal(stored[name], values) for name, values in expected.items()
    )


# --- snapshots ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["step-000000000", "step-000000003"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing its file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: its bytes are not those"),
        (lambda path: path.write_bytes(flipped(path.read_bytes(), -2 + path.stat().st_size, 3)), "is damaged: its"),
    ],
    ids=["missing", "cut short", "one bit"],
)
def test_a_snapshot_that_is_not_what_was_written_is_refused(interrupted, whole, name, damage, message):
    """By its name, before anything is scored; restored, the interrupted run continues."""
    path = interrupted / "snapshots" / f"{name}.safetensors"
    before = [file.stat().st_mtime_ns for file in block_files(interrupted)]
    good = path.read_bytes()
    damage(path)
    with pytest.raises(SnapshotError, match=f"'{name}'.*{message}"):
        score(SHORT, interrupted / "scores", interrupted / "snapshots")
    assert [file.stat().st_mtime_ns for file in block_files(interrupted)] == before
    path.write_bytes(good)
    go_on(interrupted, whole)


def test_an_index_without_one_of_its_snapshots_is_another_run(interrupted, whole):
    """Blocks of four snapshots are never completed with three."""
    index = interrupted / "snapshots" / "snapshots.json"
    kept = index.read_text()
    entries = read_json(index)
    entries["snapshots"].pop()
    index.write_text(json.dumps(entries))
    with pytest.raises(OutputFolderError, match=r"holds scores from a different run \(it differs in snapshots\)"):
        score(SHORT, interrupted / "scores", interrupted / "snapshots")
    index.write_text(kept)
    go_on(interrupted, whole)


# --- the disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [None, 2])
def test_a_disk_that_others_fill_up_ends_the_run_and_room_continues_it(disk, processes):
    """Each process ends with a message that names the file and the cause; what was finished is kept."""
    store_snapshots(LONG, disk / "snapshots")
    again = partial(score, LONG, disk / "scores", disk / "snapshots")
    if processes is not None:
        again = partial(run, "score_long.py", disk, processes=processes)
    with launched("score_long.py", disk, processes=processes) as launch:
        while len(block_files(disk)) < 5:
            assert launch.process.poll() is None, launch.output
            time.sleep(0.001)
        fill(disk / "ballast")
        assert launch.wait(limit=60) != 0
        assert "OutputFolderError: cannot write" in launch.output
        assert "No space left on device" in launch.output
    done = block_files(disk)
    assert 5 <= len(done) < 50
    assert not (disk / "scores" / "manifest.json").exists()
    (disk / "ballast").unlink()
    again()
    finished = contents(disk / "scores")
    shutil.rmtree(disk / "scores")
    again()
    assert contents(disk / "scores") == finished


@pytest.mark.parametrize(
    ("when", "limit", "stops"),
    [
        ("interrupted", 2_000, r"block-000002\.safetensors"),
        ("unassembled", 1_500, "scores"),  # a trajectory
        ("unassembled", 4_000, "scores"),  # the heat maps
        ("unassembled", 8_000, r"scores\.parquet"),
    ],
)
def test_files_that_may_not_grow_are_an_error_in_every_phase(when, limit, stops, whole, request):
    """A quota stops a block, a trajectory, the maps or the table: no scores, and a run that continues later."""
    folder = request.getfixturevalue(when)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OutputFolderError, match=rf"cannot write \S+{stops} \(.*File too large"):
            score(SHORT, folder / "scores", folder / "snapshots")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (folder / "scores" / "manifest.json").exists()
    go_on(folder, whole)


def test_a_read_only_file_system_is_refused_before_the_work(disk, whole):
    """With a message that says so; writable again, the same call goes through."""
    shutil.copytree(whole / "snapshots", disk / "snapshots")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(
        OutputFolderError, match=r"cannot write to \S+scores/\.lock \(Read-only file system\); choose another"
    ):
        score(SHORT, disk / "scores", disk / "snapshots")
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    go_on(disk, whole)


def test_everything_is_on_the_disk_before_the_manifest_says_so(unassembled, monkeypatch):
    """Blocks may go then: whatever was made of them was synchronized, and not only handed to the kernel."""
    fsync, synchronized = os.fsync, []

    def note(handle):
        synchronized.append(Path(f"/proc/self/fd/{handle}").readlink().name.lstrip(".").split(".")[0])
        fsync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("what a handle belongs to is known under Linux only")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", note)
        score(SHORT, unassembled / "scores", unassembled / "snapshots")
    before = synchronized[: synchronized.index("manifest")]
    made = {path.name.split(".")[0] for path in (unassembled / "scores").iterdir()} - {"", "plan", "manifest"}
    assert {name for name in made if not name.startswith("trajectory-")} <= set(before)  # maps: msync


def fill(path):
    """Write until nothing more fits."""
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


# --- two at a time --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_run_on_a_folder_is_refused_while_the_first_is_at_work(tmp_path):
    """And the first is not disturbed, however long it takes."""
    store_snapshots(LONG, tmp_path / "snapshots")
    with launched("score_long.py", tmp_path) as first:
        while len(block_files(tmp_path)) < 5:
            assert first.process.poll() is None, first.output
            time.sleep(0.001)
        first.process.send_signal(signal.SIGSTOP)
        with pytest.raises(OutputFolderError, match="is in use by another run; wait for it or choose another"):
            score(LONG, tmp_path / "scores", tmp_path / "snapshots")
        first.process.send_signal(signal.SIGCONT)
        first.succeed()
    finished = contents(tmp_path / "scores")
    score(LONG, tmp_path / "others", tmp_path / "snapshots")
    assert contents(tmp_path / "others") == finished
