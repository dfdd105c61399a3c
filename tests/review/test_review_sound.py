"""Sounds of rows: as they are stored, and nothing that is not a sound."""

import base64
import io
import os
import wave

import numpy as np
import pytest
from datasets import Audio, Dataset, Features, Value

from vog_hf.scores.audio import MAX_BYTES
from vog_hf.scores.pictures import ShownRows


def tone(rate=8000):
    """A file of sound."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.arange(100, dtype="<i2").tobytes())
    return target.getvalue()


def stored(values):
    """A dataset with a column of audio files, as `save_to_disk` and the Hub hold them; no codec is needed."""
    features = Features({"clip": {"bytes": Value("binary"), "path": Value("string")}})
    return Dataset.from_dict({"clip": values}, features=features).cast_column("clip", Audio())


def sounds_of(rows, **options):
    """The sounds of rows, found as every output finds them."""
    return ShownRows(rows, **options).sounds


def uri(sound):
    """A sound as a page holds it."""
    return None if sound is None else sound.uri


def source(rows, *, row):
    """The sound of one row as a page holds it."""
    return uri(sounds_of(rows).sound(row))


def content(source):
    """Type and bytes of a data URI."""
    head, _, data = source.partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data)


def test_a_stored_sound_is_passed_on_as_it_is():
    """The player gets the bytes of the file, under the type that they begin with, whatever the file is called."""
    sounds = sounds_of(stored([{"bytes": tone(), "path": "x.mp3"}, {"bytes": b"OggS123", "path": None}]))
    assert sounds.any
    assert content(uri(sounds.sound(0))) == ("audio/wav", tone())
    assert content(uri(sounds.sound(1))) == ("audio/ogg", b"OggS123")


def test_files_that_are_no_sound_are_not_read_out(tmp_path):
    """A dataset that names a file of the machine as a row's sound shows it only where it is one, and not too large."""
    secret, real, large = (tmp_path / name for name in ("secret.wav", "real", "large.wav"))
    secret.write_text("password")
    real.write_bytes(tone())
    large.write_bytes(tone() + bytes(MAX_BYTES))
    os.mkfifo(tmp_path / "pipe")
    paths = [real, "/etc/passwd", secret, large, tmp_path, tmp_path / "none.wav", tmp_path / "pipe", "a\0b"]
    sounds = sounds_of(stored([{"bytes": None, "path": str(path)} for path in paths]))
    found = [uri(sounds.sound(row)) for row in range(len(paths))]
    assert [source is not None for source in found] == [True, *[False] * 7]
    assert source(stored([{"bytes": b"password", "path": "x.wav"}]), row=0) is None


def test_sounds_of_the_hub_are_read_from_caches_alone(tmp_path, monkeypatch):
    """A sound that only its path names is played where it was fetched to, and one of the machine's own is not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    paths = [tmp_path / "own.wav", tmp_path / "hub" / "fetched.wav"]
    for path in paths:
        path.write_bytes(tone())
    rows = [*({"bytes": None, "path": str(path)} for path in paths), {"bytes": tone(), "path": str(paths[0])}]
    for dataset in (stored(rows), [{"audio": row} for row in rows]):
        sounds = sounds_of(dataset, is_from_hub=True)
        assert [uri(sounds.sound(row)) is None for row in range(3)] == [True, False, False]
        assert source(dataset, row=0) is not None


@pytest.mark.parametrize("as_dataset", [True, False])
def test_samples_become_a_file(as_dataset):
    """Arrays with a sampling rate are played at that rate; of several channels their mean; NaN is silence."""
    values = [{"array": [0.0, 1.0, -2.0, float("nan")], "sampling_rate": 16_000}]
    rows = Dataset.from_dict({"audio": values}) if as_dataset else [{"audio": value} for value in values]
    kind, data = content(source(rows, row=0))
    with wave.open(io.BytesIO(data)) as file:
        assert (kind, file.getframerate(), file.getnchannels()) == ("audio/wav", 16_000, 1)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [0, 32767, -32767, 0]
    stereo = source([{"audio": {"array": np.array([[1.0, 1.0], [0.0, 1.0]]), "sampling_rate": 10}}], row=0)
    assert content(stereo)[1][-4:] == np.array([16384, 32767], "<i2").tobytes()


def test_rows_without_sound():
    """Texts and pictures have none."""
    assert source(Dataset.from_dict({"audio": ["a.wav"], "text": ["b"]}), row=0) is None
    assert source([("x", 1)], row=0) is None
    assert source(None, row=0) is None
