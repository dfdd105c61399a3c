import errno
import fcntl
import json
import multiprocessing
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from report_cases import make_regression

from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import ConfigError, JournalError, OutputFolderError, RowMismatchError
from vog_hf.review import Journal, read_decisions
from vog_hf.review.agreement import reviewer_agreement
from vog_hf.review.journal_events import read_journal
from vog_hf.runtime.files import without_checksum
from vog_hf.scores.vog_scores import VoGScores

N = 23
NAMES = ["cat", "dog", "frog"]


def rows(n_rows=N):
    """Texts with labels; the last row has none."""
    return Dataset.from_dict(
        {"text": [f"row {i}" for i in range(n_rows)], "label": [*(i % 3 for i in range(n_rows - 1)), -1]}
    )


def scores_of(dataset, **manifest):
    """Scores of such rows."""
    identity = identify_rows(dataset)
    columns = {
        "label": np.array(dataset["label"][:], np.int32),
        "prediction": np.zeros(len(dataset), np.int32),
        "vog": np.linspace(0, 1, len(dataset)).astype(np.float32),
    }
    return VoGScores(
        columns, {"class_names": NAMES, "data": {"columns": identity.columns}, **manifest}, row_hash=identity.row_hash
    )


@pytest.fixture(scope="module")
def scores():
    """Scores of the rows."""
    return scores_of(rows())


@pytest.fixture
def path(tmp_path):
    """A journal in a folder that is not there yet."""
    return tmp_path / "new folder" / "review.jsonl"


def lines(path):
    """The lines of a journal, each whole."""
    return path.read_bytes().split(b"\n")[:-1]


def test_a_decision_is_one_line_with_everything_in_it(scores, path):
    """Row, hash, old and new label, reviewer, note, time and id are in the file when decide returns."""
    journal = Journal.open(path, scores)
    made = journal.decide(4, "relabel", reviewer="Ada", label=2, note="a frog \u2028\ud800\x85")
    header, line = (without_checksum(json.loads(line)) for line in lines(path))
    assert header["n_rows"] == N
    assert header["columns"] == scores.identity.columns
    assert header["class_names"] == NAMES
    assert line == {
        "event": "decide",
        "row": 4,
        "decision": "relabel",
        "label": 2,
        "note": "a frog \u2028\\ud800\x85",
        "reviewer": "Ada",
        "time": made.time,
        "id": made.id,
        "old_label": 1,
        "row_hash": f"{int(scores.row_hash[4]):016x}",
    }
    assert made.time.endswith("+00:00")
    assert journal.standing() == {(4, "Ada"): made}
    assert read_decisions(path) == [made]


def test_reopening_continues(scores, path):
    """What was decided before stands when the journal is opened again, also by scores of another run on the rows."""
    first = Journal.open(path, scores).decide(0, "keep", reviewer="Ada")
    again = Journal.open(path, scores_of(rows(), created="later"))
    second = again.decide(1, "drop", reviewer="Bob")
    assert again.standing() == {(0, "Ada"): first, (1, "Bob"): second}
    assert again.count == 2
    assert len(lines(path)) == 3


def test_the_last_decision_about_a_row_counts_until_it_is_undone(scores, path):
    """A second decision of a reviewer takes the place of the first, which comes back by undo; others' stay."""
    journal = Journal.open(path, scores)
    keep = journal.decide(3, "keep", reviewer="Ada")
    other = journal.decide(3, "unsure", reviewer="Bob")
    drop = journal.decide(3, "drop", reviewer="Ada")
    assert journal.standing() == {(3, "Ada"): drop, (3, "Bob"): other}
    assert journal.undo("Ada") == drop
    assert journal.standing() == {(3, "Ada"): keep, (3, "Bob"): other}
    assert journal.undo("Ada") == keep
    assert journal.undo("Ada") is None
    assert journal.standing() == {(3, "Bob"): other}
    assert journal.count == 1
    assert Journal.open(path, scores).standing() == journal.standing()
    assert len(lines(path)) == 6  # nothing is ever taken out of the file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"row": N}, f"row must be a whole number in 0..{N - 1}, got {N}"),
        ({"row": -1}, "got -1"),
        ({"row": True}, "got True"),
        ({"row": 1.0}, "got 1.0"),
        ({"decision": "delete"}, "keep, relabel, drop, unsure, got 'delete'"),
        ({"label": 1}, "goes with the decision 'relabel' alone"),
        ({"decision": "relabel"}, "a class in 0..2, got None"),
        ({"decision": "relabel", "label": 3}, "a class in 0..2, got 3"),
        ({"decision": "relabel", "label": -1}, "a class in 0..2, got -1"),
        ({"decision": "relabel", "label": "dog"}, "a class in 0..2, got 'dog'"),
        ({"decision": "relabel", "label": 1}, "has the label 1 already"),
        ({"reviewer": "  "}, "reviewer must be a name"),
        ({"note": None}, "note must be text, got None"),
    ],
)
def test_what_cannot_be_decided_is_refused_and_leaves_no_line(scores, path, arguments, message):
    """Row, decision, label, reviewer and note are checked before anything is written."""
    journal = Journal.open(path, scores)
    with pytest.raises(ConfigError, match=message):
        journal.decide(**{"row": 1, "decision": "keep", "reviewer": "Ada", **arguments})
    assert len(lines(path)) == 1


def test_the_nearest_decisions_are_taken(scores, path):
    """Numbers of numpy, the last row and class, a label for a row that had none."""
    journal = Journal.open(path, scores)
    made = journal.decide(np.int64(N - 1), "relabel", reviewer="Ada", label=np.int32(2))
    assert (made.row, made.label, made.old_label) == (N - 1, 2, None)
    assert type(json.loads(lines(path)[1])["label"]) is int


def test_rows_without_a_class_are_not_relabeled(path):
    """A regression can be kept and dropped; a class means nothing there."""
    journal = Journal.open(path, make_regression())
    assert journal.decide(0, "drop", reviewer="Ada").old_label is None
    with pytest.raises(ConfigError, match="no single class cannot be relabeled"):
        journal.decide(0, "relabel", reviewer="Ada", label=1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (rows(N - 1), "cover 23 rows and the dataset has 22"),
        (rows().select(range(N - 1, -1, -1)), "column 'text' of the dataset is not the one"),
        (rows().map(lambda row, i: {"label": 0 if i == 4 else row["label"]}, with_indices=True), "column 'label'"),
    ],
)
def test_a_journal_of_other_data_is_refused(scores, path, other, message):
    """Another number of rows, another order or one changed label: the journal is not opened and not changed."""
    Journal.open(path, scores).decide(0, "keep", reviewer="Ada")
    before = path.read_bytes()
    with pytest.raises(RowMismatchError, match=f"belongs to a different dataset: .*{message}"):
        Journal.open(path, scores_of(other))
    assert path.read_bytes() == before


def test_labels_tell_where_no_column_does(path):
    """Scores of data without a table are told apart by their labels."""
    columns = {"label": np.array([0, 1, 2]), "vog": np.ones(3)}
    Journal.open(path, VoGScores(columns, {"class_names": NAMES}))
    assert Journal.open(path, VoGScores({**columns, "vog": np.zeros(3)}, {"class_names": NAMES})).count == 0
    with pytest.raises(RowMismatchError, match="the labels differ"):
        Journal.open(path, VoGScores({**columns, "label": np.array([0, 1, 1])}, {"class_names": NAMES}))


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_line_is_dropped_with_a_warning(scores, path, caplog, kept):
    """Of a process killed in mid-write the unconfirmed line goes, everything before it stays, and writing continues."""
    journal = Journal.open(path, scores)
    first = journal.decide(0, "keep", reviewer="Ada")
    whole = path.read_bytes()
    journal.decide(1, "drop", reviewer="Ada")
    torn = path.read_bytes()[len(whole) :][: kept - 1 if kept < 0 else kept]
    path.write_bytes(whole + torn)
    assert read_decisions(path) == [first]
    assert path.read_bytes() == whole + torn  # reading changes nothing
    again = Journal.open(path, scores)
    assert sum("was cut off" in text for text in caplog.messages) == 2
    assert path.read_bytes() == whole
    second = again.decide(2, "drop", reviewer="Ada")
    assert read_decisions(path) == [first, second]


def test_a_whole_line_without_its_end_is_kept(scores, path, caplog):
    """An editor that left out the last newline loses nothing."""
    made = Journal.open(path, scores).decide(0, "keep", reviewer="Ada")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_decisions(path) == [made]
    journal = Journal.open(path, scores)
    second = journal.decide(1, "keep", reviewer="Ada")
    assert read_decisions(path) == [made, second]
    assert not caplog.messages


def test_a_header_that_was_cut_off_is_written_again(scores, path):
    """A process killed while it began the journal leaves one that can be begun."""
    Journal.open(path, scores)
    whole = path.read_bytes()
    for kept in (5, 60):
        path.write_bytes(whole[:kept])
        Journal.open(path, scores).decide(0, "keep", reviewer="Ada")
        assert len(read_decisions(path)) == 1


@pytest.mark.parametrize(
    "content", [b"my notes", b"{}\n", b"a,b\n1,2\n", b'{"journal": "other", "format": 1}\n', b"[]\n"]
)
def test_a_file_of_somebody_else_is_left_alone(scores, path, content):
    """A file that is not a journal is refused and not touched, with or without an end of its line."""
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(JournalError, match=r"is not a review journal|line 1 of .* is not a valid journal line"):
        Journal.open(path, scores)
    with pytest.raises(JournalError):
        read_decisions(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda line: line[:20], "line 3"),
        (lambda line: line.replace(b'"drop"', b'"delete"'), "line 3 .*got 'delete'"),
        (lambda line: line.replace(b'"row": 1', b'"row": 99'), "line 3 .*got 99"),
        (lambda line: line.replace(b'"decide"', b'"decided"'), "line 3 .*unknown event"),
        (lambda line: line.replace(b'"reviewer"', b'"viewer"'), "line 3 .*no 'reviewer'"),
        (lambda line: b"", "line 3"),
        (lambda line: b"[1]", "line 3"),
        (lambda line: line + b"\n" + line, "line 4 .*twice"),
        (lambda line: b'{"event": "undo", "id": "unheard of"}', "line 3 .*no 'unheard of'"),
    ],
)
def test_damage_elsewhere_is_an_error_that_names_the_line(scores, path, damage, message):
    """A line in the middle that is not an event stops everything, and nothing is fixed silently."""
    journal = Journal.open(path, scores)
    for row, decision in enumerate(["keep", "drop", "keep"]):
        journal.decide(row, decision, reviewer="Ada")
    parts = [re.sub(rb', "checksum": "\w+"', b"", line) for line in lines(path)]  # as an earlier version wrote them
    parts[2] = damage(parts[2])
    path.write_bytes(b"\n".join([*parts, b""]))
    for read in (read_decisions, lambda path: Journal.open(path, scores)):
        with pytest.raises(JournalError, match=message):
            read(path)
    assert path.read_bytes() == b"\n".join([*parts, b""])


def test_an_undo_of_what_is_undone_is_damage(scores, path):
    """No event counts twice."""
    journal = Journal.open(path, scores)
    journal.decide(0, "keep", reviewer="Ada")
    journal.undo("Ada")
    path.write_bytes(path.read_bytes() + lines(path)[-1] + b"\n")
    with pytest.raises(JournalError, match="line 4"):
        read_decisions(path)


def test_a_journal_that_was_replaced_or_removed_is_noticed(scores, path, tmp_path):
    """What is decided goes into the file that is there by its name; without one it is an error, and none is made."""
    journal = Journal.open(path, scores)
    journal.decide(0, "keep", reviewer="Ada")
    other = tmp_path / "other.jsonl"
    replaced = Journal.open(other, scores).decide(5, "drop", reviewer="Bob")
    other.replace(path)
    made = journal.decide(1, "keep", reviewer="Ada")
    assert journal.standing() == {(5, "Bob"): replaced, (1, "Ada"): made}
    path.unlink()
    with pytest.raises(JournalError, match="is gone; put it back"):
        journal.decide(2, "keep", reviewer="Ada")
    assert not path.exists()


def test_a_journal_of_other_data_put_in_its_place_is_refused_each_time(scores, path, tmp_path):
    """Nothing of the other is taken in or written to, however often it is tried; the own one back, all continues."""
    journal = Journal.open(path, scores)
    made = journal.decide(0, "keep", reviewer="Ada")
    kept, other = path.read_bytes(), tmp_path / "other.jsonl"
    Journal.open(other, scores_of(rows(N + 1))).decide(N, "drop", reviewer="Bob")
    content = other.read_bytes()
    other.replace(path)
    for ask in (journal.standing, lambda: journal.decide(1, "keep", reviewer="Ada")) * 2:
        with pytest.raises(RowMismatchError, match="belongs to a different dataset"):
            ask()
    assert path.read_bytes() == content
    path.write_bytes(kept)
    assert journal.standing() == {(0, "Ada"): made}


def test_a_journal_replaced_while_it_is_written_to_confirms_nothing(scores, path, tmp_path, monkeypatch):
    """A decision that went into a file which has lost its name is an error, not lost; decided again, it is there."""
    journal, other = Journal.open(path, scores), tmp_path / "other.jsonl"
    Journal.open(other, scores)

    def late(file, operation):
        real(file, operation)
        if other.exists():
            other.replace(path)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(JournalError, match="replaced or removed while"):
        journal.decide(0, "keep", reviewer="Ada")
    assert read_decisions(path) == []
    made = journal.decide(0, "keep", reviewer="Ada")
    assert journal.standing() == {(0, "Ada"): made}


def test_a_longer_journal_written_over_it_is_read_anew(scores, path, tmp_path):
    """As `cp` does, under the same inode: what stands is what is in the file, and not half of each."""
    journal = Journal.open(path, scores)
    journal.decide(0, "keep", reviewer="Ada")
    other = Journal.open(tmp_path / "other.jsonl", scores)
    for row in range(3):
        other.decide(row, "drop", reviewer="Bob")
    path.write_bytes(other.path.read_bytes())
    assert journal.standing() == other.standing()


def test_damage_by_others_is_named_alike_each_time(scores, path):
    """While the review is open: the line that is damaged, until it is fixed; then all continues."""
    journal = Journal.open(path, scores)
    journal.decide(0, "keep", reviewer="Ada")
    Journal.open(path, scores).decide(1, "keep", reviewer="Bob")
    whole = path.read_bytes()
    path.write_bytes(whole + b"damage\n")
    for ask in (journal.standing, lambda: journal.decide(1, "keep", reviewer="Ada")) * 2:
        with pytest.raises(JournalError, match="line 4"):
            ask()
    path.write_bytes(whole)
    assert len(journal.standing()) == 2


def test_a_full_disk_leaves_the_journal_as_it_was(scores, path):
    """Half of a line is taken back, the error says why, and the next decision is written."""
    journal = Journal.open(path, scores)
    made = journal.decide(0, "keep", reviewer="Ada")
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, before[1]))
        with pytest.raises(OutputFolderError, match="cannot write"):
            journal.decide(1, "drop", reviewer="Ada")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == size
    second = journal.decide(2, "keep", reviewer="Ada")
    assert read_decisions(path) == [made, second]


def decide_many(path, reviewer, count):
    """A reviewer in a process of its own."""
    journal = Journal.open(path, scores_of(rows()))
    for i in range(count):
        journal.decide(i % N, "keep", reviewer=reviewer, note="x" * (i * 7 % 300))
        if i % 5 == 0:
            journal.undo(reviewer)


def test_several_processes_and_threads_write_one_journal(scores, path):
    """Three processes and two threads decide at once: every line is whole, and each sees what the others wrote."""
    count = 40
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=decide_many, args=(path, f"process {i}", count)) for i in range(3)]
    for process in processes:
        process.start()
    journal = Journal.open(path, scores)

    def decide(reviewer):
        for i in range(count):
            journal.decide(i % N, "drop", reviewer=reviewer)

    threads = [threading.Thread(target=decide, args=(f"thread {i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for one in (*threads, *processes):
        one.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(lines(path)) == 1 + 3 * (count + count // 5) + 2 * count
    standing = journal.standing()
    assert list(standing) == list(Journal.open(path, scores).standing())
    assert {reviewer for _, reviewer in standing} == {f"process {i}" for i in range(3)} | {"thread 0", "thread 1"}
    assert journal.count == len(standing) == len(read_decisions(path))


def test_a_writer_waits_for_the_lock_and_reads_what_came_before(scores, path):
    """While another process holds the lock nothing is written; then the line follows what that process wrote."""
    journal, other = Journal.open(path, scores), Journal.open(path, scores)
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        thread = threading.Thread(target=journal.decide, args=(1, "drop"), kwargs={"reviewer": "Ada"})
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert len(lines(path)) == 1
    thread.join()
    assert other.undo("Ada").row == 1  # which only somebody who reads the others' lines knows
    assert journal.count == 0


KILLED = """
import sys
sys.path[:0] = {tests!r}
from test_review_journal import Journal, N, rows, scores_of
journal = Journal.open({path!r}, scores_of(rows()))
for i in range(100_000):
    print(journal.decide(i % N, "keep", reviewer="Ada", note="long " * 2000).id, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_a_killed_process_loses_nothing_it_confirmed(scores, path, delay):
    """SIGKILL at whatever moment: every decision that returned is in the file once, and the journal opens."""
    code = KILLED.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")], path=str(path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        confirmed = [process.stdout.readline()]
        time.sleep(delay)
        process.kill()
        confirmed += process.stdout.read().split(b"\n")
    told = [line.strip().decode() for line in confirmed if len(line.strip()) == 32]
    journal = Journal.open(path, scores)
    written = [json.loads(line)["id"] for line in lines(path)[1:]]
    assert told
    assert written[: len(told)] == told
    assert len(written) <= len(told) + 1
    assert len(set(written)) == len(written)
    journal.decide(0, "drop", reviewer="Bob")
    assert read_journal(path)[0].n_rows == N


def test_a_journal_on_a_disk_without_flock_takes_decisions_in_turn(scores, path, monkeypatch):
    """A file next to it says who writes; a writer that does not let go is named, and the journal can be read."""

    def without_flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", without_flock)
    monkeypatch.setattr("vog_hf.runtime.files.LOCK_PATIENCE", 0.1)
    first, second = Journal.open(path, scores), Journal.open(path, scores)
    first.decide(1, "keep", reviewer="Ada")
    second.decide(2, "drop", reviewer="Bob")
    assert [(d.row, d.decision) for d in read_decisions(path)] == [(1, "keep"), (2, "drop")]
    held = path.with_name(f".{path.name}.held")
    assert not held.exists()
    held.write_text("1 on another-host")
    with pytest.raises(OutputFolderError, match=r"being written to by another process.*\.held says so"):
        first.decide(3, "keep", reviewer="Ada")


def test_a_journal_that_leads_out_of_its_folder_is_refused(scores, path, tmp_path):
    """A link that a folder of scores brings along is not written through; one within the folder is."""
    (tmp_path / "private").mkdir()
    target = tmp_path / "private" / "empty.txt"
    target.touch()
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    with pytest.raises(OutputFolderError, match=r"symbolic link to .*outside its folder"):
        Journal.open(path, scores)
    assert target.read_text() == ""
    path.unlink()
    path.symlink_to(path.with_name("real.jsonl"))
    Journal.open(path, scores).decide(1, "keep", reviewer="Ada")
    assert len(read_decisions(path.with_name("real.jsonl"))) == 1


def test_half_of_a_surrogate_pair_spoils_nothing(tmp_path):
    """In a name or a note it is kept as its escape, also where an older journal holds it; undo finds it by either."""
    columns = {"label": np.array([0, 1]), "vog": np.array([0.1, 0.2])}
    scores = VoGScores(columns, {"class_names": ["a", "b"]})
    journal = Journal.open(tmp_path / "review.jsonl", scores)
    journal.decide(0, "keep", reviewer="ada")
    made = journal.decide(0, "keep", reviewer="eve\ud800", note="\udfff?")
    assert (made.reviewer, made.note) == ("eve\\ud800", "\\udfff?")
    text = re.sub(r', "checksum": "\w+"', "", journal.path.read_text(encoding="utf-8"))
    journal.path.write_text(text.replace("eve" + 2 * chr(92) + "ud800", "eve" + chr(92) + "ud800"), encoding="utf-8")
    older = Journal.open(journal.path, scores)
    found = reviewer_agreement(older.standing().values())
    assert (found.rows, found.pairs[["a", "b"]].to_numpy().tolist()) == (1, [["ada", "eve\\ud800"]])
    assert older.undo("eve\ud800").id == made.id
