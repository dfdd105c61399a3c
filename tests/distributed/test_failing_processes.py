"""A failure on one process ends the work on all of them, with that one's message and without waiting."""

import json
import re

import pytest
from launch import launched, run

SNAPSHOT = r"snapshot 'step-000000002' \(\S+/{folder}-1/step-000000002\.safetensors\)"
SAME = "every process must hold the same data, configuration and snapshots, but "
DIGEST = "'[0-9a-f]{64}'"
# What the process on which it happens raises, and as which part of the work the other hears of it.
ON_ONE = {
    "a row that cannot be read": (
        1,
        "DataError",
        r"row 41 cannot be read: OSError: row 41 cannot be decoded; ",
        "scoring block 3",
    ),
    "a label out of range": (1, "LabelError", r"row 41: label 7 is outside the model's classes 0\.\.2;", "scoring"),
    "a damaged snapshot": (1, "SnapshotError", SNAPSHOT.format(folder="damaged") + " is damaged", "reading rows and"),
    "a snapshot that vanishes": (1, "SnapshotError", SNAPSHOT.format(folder="vanishing") + " cannot be", "scoring"),
    "no snapshots": (1, "SnapshotError", r"nowhere holds no snapshots", "opening rows and snapshots failed"),
    "no rows": (1, "DataError", "the dataset is empty: there is no row", "opening rows and snapshots failed"),
    "a folder in use": (0, "OutputFolderError", "is in use by another run; wait for it", r"locking \S+/in-use failed"),
    "a foreign folder": (0, "OutputFolderError", r"did not write \(thesis\.tex\)", r"looking at \S+/foreign failed"),
}
# What both say where each holds something else.
HELD = {
    "fewer rows": r"process 0: \{'rows': 53\}; process 1: \{'rows': 52\};",
    "other columns": rf"0: \{{'rows': 53, 'data': \{{'features': {DIGEST}.*; process 1: \{{'rows': 52, 'data': ",
    "another configuration": r"0: \{'config': \{'target': \['logit', 'loss'\]\}\}; process 1: .*'target': \['loss'\]",
    "other snapshots": rf"0: \{{'snapshots': \{{2: {DIGEST}, 3: {DIGEST}\}}\}}; process 1: \{{'snapshots': \{{2: ",
}

ALONE = "callback on process {} alone"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """Type and message of what was raised on each process, by case; the program then scores as ever."""
    folder = tmp_path_factory.mktemp("failures")
    run("fail_on_one.py", folder, "all", processes=2)
    found = json.loads((folder / "errors.json").read_text())
    assert set(found) == {*ON_ONE, *HELD, *map(ALONE.format, range(2))}
    return found


@pytest.mark.parametrize("case", ON_ONE)
def test_what_fails_on_one_process_is_raised_on_each(errors, case):
    """The one raises its error, the other says which process failed, at what, with the same words."""
    rank, kind, message, work = ON_ONE[case]
    own, other = errors[case][rank], errors[case][1 - rank]
    assert own[0] == kind
    assert re.search(message, own[1])
    assert other[0] == "ProcessError"
    assert re.match(work, other[1])
    assert f" failed on process {rank} of 2: " in other[1]
    assert other[1].endswith(own[1])


@pytest.mark.parametrize("case", HELD)
def test_processes_that_hold_different_things_are_refused(errors, case):
    """Both say what each holds, of that only what differs."""
    (kind, message), other = errors[case]
    assert kind == "ProcessError"
    assert [kind, message] == other
    assert message.startswith(SAME)
    assert message.endswith("; load the same data and files on each")
    assert re.search(HELD[case], message)


@pytest.mark.parametrize("rank", [0, 1])
def test_who_comes_alone_is_told_that_the_callback_belongs_on_every_process(errors, rank):
    """It waits for the other, not in a collective: the next one, of both, is undisturbed."""
    own, other = errors[ALONE.format(rank)][rank], errors[ALONE.format(rank)][1 - rank]
    assert other is None
    assert own[0] == "ProcessError"
    message = f"VoGCallback belongs on every process: it is on process {rank}, and 0.5 s later not on {1 - rank} of 2;"
    assert own[1].startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("a row that cannot be read", "OSError: row 41 cannot be decoded"),
        ("fewer rows", "process 1: {'rows': 52}"),
    ],
)
def test_a_failure_that_nobody_catches_ends_the_program(case, message, tmp_path):
    """All processes end with a failing exit code and the message, long before any time-out of a collective."""
    with launched("fail_on_one.py", tmp_path, case, processes=2) as launch:
        assert launch.wait(limit=90) != 0
        assert message in launch.output
        assert "nothing was raised" not in launch.output
        assert launch.alive() == []
