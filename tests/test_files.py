import errno
import os
import subprocess
import sys
from collections import namedtuple

import pytest

from vog_hf.errors import OutputFolderError
from vog_hf.files import format_bytes, free_bytes, locked, read_json, require_free, write_atomically, write_json


def names(folder):
    """What lies in a folder."""
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
    """A folder still to be made is measured by the one it will be in; too little is refused with both numbers."""
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
from vog_hf.files import locked
with locked(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    os.kill(os.getpid(), 9)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("held\n", -9)
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    """Where no folder can be made (here: under a file) the message says to choose another output_dir."""
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
