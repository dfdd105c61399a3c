import sys
from types import SimpleNamespace

import pytest
from tqdm import std

from vog_hf.runtime import progress


@pytest.mark.parametrize(
    ("total", "lines"),
    [
        (
            120,
            ["25 % of 120 row passes in 00:30, about 01:30 left", "75 % of 120 row passes in 01:30, about 00:30 left"],
        ),
        (None, ["30 row passes in 00:30", "90 row passes in 01:30"]),
    ],
)
def test_a_log_file_gets_lines_at_intervals_that_double(monkeypatch, capsys, total, lines):
    """Without a terminal a line comes after 30 seconds and then after a minute more."""
    now = [0.0]
    monkeypatch.setattr(progress.std, "time", lambda: now[0])
    with progress.progress_bar(total, is_shown=True) as bar:
        for second in range(1, 121):
            now[0] = second
            bar.set_description("VoG, block 1")
            bar.update(1)
        printed = capsys.readouterr().err.splitlines()
    assert printed == [f"VoG, block 1: {line}" for line in lines]


def test_a_line_does_not_stand_behind_the_bar_of_the_training(monkeypatch, capsys):
    """Each line of ours begins a line of the log file, though a bar of Trainer's is open in it."""
    now = [0.0]
    monkeypatch.setattr(progress.std, "time", lambda: now[0])
    with std.tqdm(total=5, desc="steps", file=sys.stderr), progress.progress_bar(120, is_shown=True) as bar:
        for second in range(1, 121):
            now[0] = second
            bar.update(1)
        printed = capsys.readouterr().err
    lines = printed.replace("\r", "\n").splitlines()
    assert sum(line.startswith("VoG: ") for line in lines) == 2
    assert not [line for line in lines if "VoG" in line and not line.startswith("VoG: ")]


def test_nothing_is_printed_where_progress_is_off(capsys):
    """A bar that is not shown prints neither bar nor lines."""
    with progress.progress_bar(10, is_shown=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    """On a terminal the bar is drawn at once."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress_bar(10, is_shown=True) as bar:
        bar.update(10)
    assert "10/10" in capsys.readouterr().err


@pytest.mark.parametrize("stderr", [None, SimpleNamespace(write=len, flush=int)])
def test_a_replaced_stderr_does_not_end_the_work(monkeypatch, stderr):
    """A stderr that only writes, or none at all, is taken for a log file."""
    monkeypatch.setattr(sys, "stderr", stderr)
    assert not progress.is_terminal()
    with progress.progress_bar(3, is_shown=True) as bar:
        bar.update(3)
