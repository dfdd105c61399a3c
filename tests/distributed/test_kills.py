"""A scoring that is killed anywhere and started again gives the scores of one that was not, byte for byte."""

import json
import shutil
import signal
import time

import psutil
import pytest
from kill_scoring import LONG, contents, hit, score, store_snapshots
from launch import launched, run

WHOLE = "manifest written"  # a run that was killed behind its last write has nothing to do again


def killed(folder, n_processes, *, moments=0, in_blocks=False, every=0, limit=600):
    """What became of scorings killed at random moments, and of those killed before operations on files."""
    run("kill_scoring.py", folder, n_processes, moments, int(in_blocks), every, limit=limit)
    found = json.loads((folder / "kills.json").read_text())
    print(f"{n_processes} processes, {found['seconds']:.0f} s:", *map(json.dumps, found["moments"]), sep="\n")
    return found["moments"], found["operations"]


def assert_scores_are_exact(kills, n_processes):
    """Every file as if nothing had happened, none besides, and no process that continued after another was killed."""
    for kill in kills:
        assert kill["different"] == []
        assert kill["stage"] == WHOLE or kill["left over"] == []
        codes = kill["codes"]
        assert len(codes) == n_processes
        assert all(codes[rank] in (-signal.SIGKILL, 0) for rank in kill["ranks"])
        if any(codes) and kill["stage"] != WHOLE:
            assert 0 not in codes


def assert_kills_hit(kills, *, least):
    """So many of them came while blocks were scored."""
    assert sum("blocks" in kill["stage"] for kill in kills) >= least


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_killed_scoring_goes_on_exactly(tmp_path, n_processes):
    """While blocks are scored, and before some of the operations on files; of two processes all, or one of them."""
    moments, operations = killed(tmp_path, n_processes, moments=3, in_blocks=True, every=19 // n_processes)
    assert len(operations) >= 3
    assert_scores_are_exact(moments + operations, n_processes)
    assert_kills_hit(moments, least=3)
    assert all(map(hit, operations))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n_processes", [1, 2])
def test_thirty_kills_at_random_moments(tmp_path, n_processes):
    """Each is followed by one restart, and each time the scores are exactly those of the uninterrupted run."""
    moments, _ = killed(tmp_path, n_processes, moments=30, limit=1000)
    assert sum(map(hit, moments)) == 30
    assert_scores_are_exact(moments, n_processes)
    assert_kills_hit(moments, least=10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("n_processes", [1, 2])
def test_a_kill_before_any_operation_on_a_file(tmp_path, n_processes):
    """Between any two openings, renamings and removals of one process: no order of them is unsafe."""
    _, operations = killed(tmp_path, n_processes, every=1, limit=1000)
    assert len(operations) > 40
    assert all(map(hit, operations))
    assert {"before the first block", "2 blocks", "putting together", WHOLE} <= {k["stage"] for k in operations}
    assert_scores_are_exact(operations, n_processes)


# --- signals --------------------------------------------------------------------------------------------------------


def blocks_of(folder):
    """How many blocks are finished."""
    return len(list((folder / "scores" / "blocks").glob("process-*")))


def interrupt(folder, send, *, at_block, processes=None):
    """Start a scoring, or continue with one, and interrupt it at a given number of blocks; its exit code."""
    with launched("score_long.py", folder, processes=processes) as launch:
        while blocks_of(folder) < at_block:
            assert launch.process.poll() is None, launch.output
            time.sleep(0.001)
        send(launch)
        code = launch.wait(limit=60)
        assert launch.alive() == []
    assert at_block <= blocks_of(folder) < 50
    assert not (folder / "scores" / "manifest.json").exists()
    return code


def signaled(number):
    """A signal to the process that was started: what a terminal, `kill` or a scheduler sends."""
    return lambda launch: launch.process.send_signal(number)


def kill_one_worker(launch):
    """SIGKILL to one of torchrun's processes, as the kernel does when memory is short."""
    workers = [process for process in launch.alive() if process.ppid() == launch.process.pid]
    max(workers, key=psutil.Process.create_time).kill()


def test_terminated_and_interrupted_scorings_go_on(tmp_path):
    """SIGTERM (a scheduler's), then Ctrl-C: each leaves what was finished, and the scores are exact in the end."""
    store_snapshots(LONG, tmp_path / "snapshots")
    assert interrupt(tmp_path, signaled(signal.SIGTERM), at_block=10) == -signal.SIGTERM
    first = blocks_of(tmp_path)
    code = interrupt(tmp_path, signaled(signal.SIGINT), at_block=first + 5)
    assert code in (-signal.SIGINT, 1)  # 1: safetensors' `get_tensor` makes a ValueError of one in some 15 interrupts
    score(LONG, tmp_path / "scores", tmp_path / "snapshots")
    score(LONG, tmp_path / "whole", tmp_path / "snapshots")
    assert contents(tmp_path / "scores") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_launch_that_is_ended_in_any_way_goes_on(tmp_path):
    """Under torchrun on two processes: SIGTERM, Ctrl-C, one worker killed, all killed; then exact scores."""
    store_snapshots(LONG, tmp_path / "snapshots")
    ways = [signaled(signal.SIGTERM), signaled(signal.SIGINT), kill_one_worker, lambda launch: launch.kill()]
    for way in ways:
        assert interrupt(tmp_path, way, at_block=blocks_of(tmp_path) + 4, processes=2) != 0
    run("score_long.py", tmp_path, processes=2)
    finished = contents(tmp_path / "scores")
    shutil.rmtree(tmp_path / "scores")
    run("score_long.py", tmp_path, processes=2)
    assert contents(tmp_path / "scores") == finished
