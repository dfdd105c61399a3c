import errno
import os
import socket
import subprocess
import sys
from collections import namedtuple

import pytest

from vog_hf.errors import OutputFolderError
from vog_hf.runtime.files import (
    foreign_names,
    format_bytes,
    free_bytes,
    locked,
    read_json,
    remove_half_written,
    require_free,
    write_atomically,
    write_json,
)


def names(folder):
    """The contents of a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_whole_or_what_it_was_before(tmp_path):
    """A write that fails half way leaves the old content and no temporary file behind."""
    path = tmp_path / "values.bin"
    write_atomically(path, lambda temporary: temporary.write_bytes(b"old"))

    def fail(temporary):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["values.bin"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """ENOSPC, from the system or from safetensors, becomes an OutputFolderError that says what to do."""
    from safetensors import SafetensorError

    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")):

        def fail(temporary, error=error):
            raise error

        with pytest.raises(OutputFolderError, match=r"values\.bin .*No space left on device.*free some space"):
            write_atomically(tmp_path / "values.bin", fail)
    assert names(tmp_path) == []


def test_json_comes_back_and_what_is_not_json_is_named(tmp_path):
    """Values are read as they were written; a damaged file is refused by name, and NaN is never written."""
    write_json(tmp_path / "values.json", {"b": [1, 2.5, None], "a": "é"})
    assert read_json(tmp_path / "values.json") == {"b": [1, 2.5, None], "a": "é"}
    (tmp_path / "values.json").write_text('{"b": [1,')
    with pytest.raises(OutputFolderError, match=r"values\.json is not the JSON that vog_hf writes"):
        read_json(tmp_path / "values.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "nan.json", {"x": float("nan")})
    assert names(tmp_path) == ["values.json"]


def test_free_space_is_asked_of_the_nearest_folder_there_is(tmp_path, monkeypatch):
    """Free space of a missing folder is that of its parent; too little is refused with both numbers."""
    asked = []
    usage = namedtuple("usage", "total used free")  # noqa: PYI024 (shutil's own is one)

    def disk_usage(path):
        asked.append(path)
        return usage(4096, 2048, 2048)

    monkeypatch.setattr("shutil.disk_usage", disk_usage)
    assert free_bytes(tmp_path / "not" / "yet") == 2048
    assert asked == [tmp_path]
    require_free(tmp_path / "not", 2048, "storing the scores")
    with pytest.raises(OutputFolderError, match=r"storing the scores needs about 2\.0 KiB in .*, 2\.0 KiB are free"):
        require_free(tmp_path / "not", 2049, "storing the scores")


def test_a_locked_folder_is_refused_until_its_holder_is_done(tmp_path):
    """Two runs never write into one folder; the lock goes with its holder."""
    with locked(tmp_path / "scores"):
        with pytest.raises(OutputFolderError, match="is in use by another run"), locked(tmp_path / "scores"):
            pass
        with locked(tmp_path / "others"):
            pass
    with locked(tmp_path / "scores"):
        pass


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    """A run that was killed does not lock its successor out."""
    code = f"""
import os, pathlib
from vog_hf.runtime.files import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("held\n", -9)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    """If no folder can be created (here: under a file), the message says to choose another output_dir."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputFolderError, match=r"cannot write to .*; choose another output_dir"),
        locked(tmp_path / "file" / "scores"),
    ):
        pass


def test_a_read_only_folder_is_refused(tmp_path):
    """The refusal comes before anything is computed, as soon as the lock is taken."""
    tmp_path.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user (root) may write into read-only folders")
    with pytest.raises(OutputFolderError, match="cannot write to"), locked(tmp_path / "scores"):
        pass


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536 * 2**20, "1.5 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (2**52, "4096.0 TiB"),
    ],
)
def test_bytes_are_written_for_people(count, text):
    """One decimal and the unit that fits."""
    assert format_bytes(count) == text


# --- machines -------------------------------------------------------------------------------------------------------


def test_what_kills_left_half_written_is_removed_and_nothing_else(tmp_path):
    """Incomplete files of `write_atomically` and safetensors are removed, and no similar ones."""
    left = [".step-000000010.safetensors.41.tmp", ".plan.json.7.tmp", ".tmpA1b2C3"]
    other = [
        ".tmp",
        ".tmp-notes",
        ".tmpA1b2C34",
        ".notes.tmp",
        "notes.12.tmp",
        ".gitignore",
        "step-000000010.safetensors",
    ]
    for name in left + other:
        (tmp_path / name).write_text("x")
    (tmp_path / ".folder.1.tmp").mkdir()
    remove_half_written(tmp_path)
    assert names(tmp_path) == sorted([*other, ".folder.1.tmp"])
    remove_half_written(tmp_path / "missing")


def test_a_write_removes_what_dead_writers_of_the_same_file_left(tmp_path):
    """Incomplete files are also removed from a user's folder, but not those of a living process or with other names."""
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = tmp_path / f".report[1].html.{ended.pid}.tmp"
    kept = [tmp_path / f".report[1].html.{os.getppid()}.tmp", tmp_path / f".other.html.{ended.pid}.tmp"]
    for path in (left, *kept):
        path.write_text("half")
    write_json(tmp_path / "report[1].html", {"page": 1})
    assert names(tmp_path) == sorted(["report[1].html", *(path.name for path in kept)])


def without_flock(*_):
    """Respond like the kernel on NFS without lockd."""
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_disk_without_flock_is_locked_by_a_file(tmp_path, monkeypatch):
    """Without flock, a second run is refused while the first holds the lock; the lock of a dead process is replaced."""
    monkeypatch.setattr("fcntl.flock", without_flock)
    monkeypatch.setattr("vog_hf.runtime.files.LOCK_PATIENCE", 0.1)
    marker = tmp_path / ".lock.held"
    with locked(tmp_path):
        assert marker.read_text() == f"{os.getpid()} on {socket.gethostname()}"
        assert foreign_names(tmp_path) == []
        with (
            pytest.raises(OutputFolderError, match=r"in use by another run.*\.lock\.held says so; delete"),
            locked(tmp_path),
        ):
            pass
    assert not marker.exists()
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    for stale in (f"{ended.pid} on {socket.gethostname()}", f"{os.getpid()} on {socket.gethostname()}"):
        marker.write_text(stale)
        with locked(tmp_path):
            assert marker.exists()
    marker.write_text(f"{ended.pid} on another-host")
    with pytest.raises(OutputFolderError, match="in use by another run"), locked(tmp_path):
        pass


@pytest.mark.parametrize("name", [".lock", ".lock.held"])
def test_a_lock_is_no_way_out_of_its_folder(tmp_path, monkeypatch, name):
    """A link as a lock neither empties nor creates its target."""
    if name == ".lock.held":
        monkeypatch.setattr("fcntl.flock", without_flock)
    monkeypatch.setattr("vog_hf.runtime.files.LOCK_PATIENCE", 0.1)
    (tmp_path / "scores").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for target in ("notes.txt", "absent.txt"):
        link = tmp_path / "scores" / name
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        with pytest.raises(OutputFolderError), locked(tmp_path / "scores"):
            pass
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "absent.txt").exists()


def test_a_temporary_file_is_no_way_out_of_its_folder(tmp_path):
    """A link under the name of the file or of its temporary one is replaced, not followed."""
    (tmp_path / "scores").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for name in ("plan.json", f".plan.json.{os.getpid()}.tmp"):
        (tmp_path / "scores" / name).symlink_to(tmp_path / "notes.txt")
    write_json(tmp_path / "scores" / "plan.json", {"rows": 1})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert read_json(tmp_path / "scores" / "plan.json") == {"rows": 1}
