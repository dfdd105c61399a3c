"""Datasets on disk: with the bytes of the files that their rows name, and with no file that somebody else has named."""

import io
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, Features, Image, List, Value, load_dataset, load_from_disk
from PIL import Image as Pillow

from vog_hf.data import load_rows
from vog_hf.data.row_identity import identify_rows
from vog_hf.data.saving import save_dataset
from vog_hf.errors import DataError

FORMS = ("rows.parquet", "rows")
STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def picture(number):
    """A picture of one color."""
    return Pillow.new("RGB", (6, 5), (number, 100, 200))


@pytest.fixture
def folder(tmp_path):
    """A folder of pictures, one folder per class."""
    for number in range(7):
        file = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(file)
    return tmp_path / "photos"


def saved(rows, tmp_path, form):
    """The rows, written and read back with no other file of this machine left to read."""
    path = tmp_path / "new" / form
    path.parent.mkdir(exist_ok=True)
    save_dataset(rows, path)
    for files in ("photos", "sounds"):
        if (tmp_path / files).exists():
            (tmp_path / files).rename(tmp_path / f"{files}-moved")
    if form == "rows":
        return load_from_disk(str(path))
    return Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows_of", ["all", "some"])
def test_a_folder_of_pictures_is_written_with_its_pixels(form, rows_of, folder, tmp_path):
    """Pictures, classes and identity are those of the folder, which is gone when they are read; only names are left."""
    given = load_rows(str(folder))
    given = given.select([5, 0, 3]) if rows_of == "some" else given
    pixels, identity = [np.asarray(row["image"]) for row in given], identify_rows(given)
    read = saved(given, tmp_path, form)
    for got, wanted in zip(read, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(got["image"]), wanted)
    assert read.features == given.features
    assert identity.differing(identify_rows(read)) == []
    stored = read.with_format("arrow")[:].column("image").combine_chunks()
    assert not any("/" in path for path in stored.field("path").to_pylist())


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_of_sounds_is_written_with_its_samples(form, tmp_path):
    """Undecoded sounds of a folder hold their bytes."""
    for number, name in enumerate(("high/a", "low/b")):
        file = tmp_path / "sounds" / f"{name}.wav"
        file.parent.mkdir(parents=True)
        with wave.open(str(file), "wb") as sound:
            sound.setparams((1, 2, 8_000, 0, "NONE", ""))
            sound.writeframes(np.arange(number, number + 50, dtype="<i2").tobytes())
    contents = [file.read_bytes() for file in sorted((tmp_path / "sounds").rglob("*.wav"))]
    given = load_rows(str(tmp_path / "sounds")).cast_column("audio", Audio(decode=False))
    read = saved(given, tmp_path, form).cast_column("audio", Audio(decode=False))
    assert [row["audio"] for row in read] == [
        {"bytes": content, "path": name} for content, name in zip(contents, ("a.wav", "b.wav"), strict=True)
    ]


@pytest.mark.parametrize("form", FORMS)
def test_pictures_in_lists_and_missing_ones(form, folder, tmp_path):
    """Columns of several pictures a row are written with all of them; a row without one stays without."""
    paths = sorted(map(str, folder.rglob("*.png")))
    features = Features({"text": Value("string"), "views": List(Image()), "main": Image()})
    given = Dataset.from_dict(
        {"text": ["a", "b"], "views": [paths[:2], []], "main": [None, paths[3]]}, features=features
    )
    read = saved(given, tmp_path, form)
    assert [view.getpixel((0, 0))[0] for view in read[0]["views"]] == [0, 2]
    assert (read[1]["views"], read[0]["main"], read[1]["main"].getpixel((0, 0))[0]) == ([], None, 6)
    assert read.features == features


def foreign(tmp_path, path):
    """Rows of a table that somebody else has written; the last one names a file."""
    held = io.BytesIO()
    picture(9).save(held, "PNG")
    rows = [{"bytes": held.getvalue(), "path": "a.png"}, {"bytes": None, "path": path}]
    table = pa.table({"image": pa.array(rows, STORED)}, schema=Features({"image": Image()}).arrow_schema)
    pq.write_table(table, tmp_path / "theirs.parquet")
    files, cache = str(tmp_path / "theirs.parquet"), str(tmp_path / "cache")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=cache)


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_somebody_else_named_is_not_copied(form, folder, tmp_path):
    """Such rows are refused and nothing is written; the rows that hold their pictures are."""
    rows = foreign(tmp_path, str(folder / "cat" / "0.png"))
    with pytest.raises(DataError, match=rf"which would be copied into {form}; drop such rows or the column, or"):
        save_dataset(rows, tmp_path / form)
    assert not (tmp_path / form).exists()
    assert saved(rows.select([0]), tmp_path, form)[0]["image"].getpixel((0, 0)) == (9, 100, 200)


def test_an_address_that_somebody_else_wrote_stays_one(tmp_path):
    """No request is made, and what was read is what was there."""
    rows = foreign(tmp_path, "https://host.invalid/x.png")
    read = saved(rows, tmp_path, "rows.parquet").cast_column("image", Image(decode=False))
    assert read[1]["image"] == {"bytes": None, "path": "https://host.invalid/x.png"}
    for path in ("https://host.invalid::/etc/hostname", "zip://a.png::/etc/x.zip", "file:///etc/hostname"):
        with pytest.raises(DataError, match="does not hold it"):
            save_dataset(foreign(tmp_path, path), tmp_path / "more.parquet")
