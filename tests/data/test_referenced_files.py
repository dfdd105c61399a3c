"""Which files that rows name may be shown: one rule for every output, decided by where the rows came from."""

import base64
import io
import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, Value, concatenate_datasets, load_dataset
from PIL import Image as Pillow

from vog_hf import VoGScores, add_vog_columns
from vog_hf.data.referenced_files import NamedFiles, Origin, origin, require_own_files
from vog_hf.errors import DataError
from vog_hf.report import write_report
from vog_hf.scores.pictures import row_texts, show_rows
from vog_hf.scores.pictures.decoding import MAX_TEXT, decoded

STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})
COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def empty_caches(tmp_path, monkeypatch):
    """Caches of `datasets` and `huggingface_hub` that hold nothing, whatever this machine has downloaded."""
    monkeypatch.setattr("datasets.config.DOWNLOADED_DATASETS_PATH", tmp_path / "no-downloads")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-hub"))


@pytest.fixture
def private(tmp_path):
    """A picture that is nobody else's business."""
    (tmp_path / "home").mkdir()
    Pillow.new("RGB", (8, 8), (200, 0, 0)).save(tmp_path / "home" / "passport.png")
    return str(tmp_path / "home" / "passport.png")


def foreign(tmp_path, path, **options):
    """Two rows of a table that somebody else has written; the second names a file."""
    held = io.BytesIO()
    Pillow.new("RGB", (8, 8), (0, 0, 200)).save(held, "PNG")
    rows = [{"bytes": held.getvalue(), "path": "a.png"}, {"bytes": None, "path": path}]
    features = Features({"image": Image()})
    table = pa.table({"image": pa.array(rows, STORED)}, schema=features.arrow_schema)
    pa.parquet.write_table(table, tmp_path / "theirs.parquet")
    files = str(tmp_path / "theirs.parquet")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"), **options)


def own(path):
    """One row that this program has made."""
    return Dataset.from_dict({"image": [path]}, features=Features({"image": Image()}))


@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_of_somebody_else_show_and_publish_no_file(tmp_path, private, in_memory, caplog):
    """Whatever was made of them: a selection, a filter, more columns, your own rows behind them."""
    theirs = foreign(tmp_path, private, keep_in_memory=in_memory)
    undecoded = theirs.cast_column("image", Image(decode=False))
    made = {
        "read": theirs,
        "selected": theirs.select([0, 1]),
        "filtered": undecoded.filter(lambda row: True).cast_column("image", Image()),
        "with columns": add_vog_columns(theirs, VoGScores({"vog": np.array([0.1, 0.2])}, {}), ["vog"]),
        "with a column": theirs.add_column("more", [1, 2]),
        "joined": concatenate_datasets([theirs, own(private)]),
    }
    for name, rows in made.items():
        caplog.clear()
        shown = show_rows(rows, [0, 1])
        assert [picture is None for picture in shown] == [False, True], name
        assert "embed_table_storage" in caplog.text, "says how to allow it"
        with pytest.raises(DataError, match="does not hold it"):
            require_own_files(rows)


def test_ones_own_files_are_shown(tmp_path, private):
    """Paths that were put into the rows here, a folder of pictures, and what was added to both."""
    folder = load_dataset("imagefolder", data_dir=f"{tmp_path}/home", split="train", cache_dir=f"{tmp_path}/cache")
    scores = VoGScores({"vog": np.array([0.1])}, {})
    for rows in (own(private), folder, add_vog_columns(own(private), scores, ["vog"])):
        assert show_rows(rows, [0])[0].getpixel((0, 0)) == (200, 0, 0)
        require_own_files(rows)


def test_text_from_the_hub_that_was_cast_to_pictures_is_somebody_elses(tmp_path, private):
    """The folder in which `datasets` keeps a commit of the Hub tells it from your own table."""
    Dataset.from_dict({"image": [private]}).to_parquet(tmp_path / "paths.parquet")
    read = load_dataset("parquet", data_files=f"{tmp_path}/paths.parquet", split="train", cache_dir=f"{tmp_path}/cache")
    mine = read.cast_column("image", Image())
    assert (origin(mine, "image"), show_rows(mine, [0])[0].size) == (Origin.OWN, (8, 8))
    place = tmp_path / "someone___data" / COMMIT
    place.mkdir(parents=True)
    (place / "dataset_info.json").write_text(json.dumps({"builder_name": "parquet"}))
    table = pa.table({"image": pa.array([private])})
    with pa.OSFile(str(place / "data-train.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    theirs = Dataset.from_file(str(place / "data-train.arrow")).cast_column("image", Image())
    assert (origin(theirs, "image"), show_rows(theirs, [0])) == (Origin.FOREIGN, [None])


def table_of_paths(tmp_path, path):
    """A CSV file that names a picture, and a function that loads it and casts the column to pictures."""
    file = tmp_path / "paths.csv"
    file.write_text(f"image,label\n{path},0\n")

    def load(**options):
        cache = str(tmp_path / "cache")
        read = load_dataset("csv", data_files=str(file), split="train", cache_dir=cache, **options)
        noted = Path(read.cache_files[0]["filename"]).with_name("dataset_info.json")
        info = json.loads(noted.read_text())
        noted.write_text(json.dumps({**info, "download_checksums": None}))  # datasets 4 names the source there
        return read.cast_column("image", Image())

    return file, load


@pytest.mark.parametrize("place", ["custom cache", "default cache", "hub"])
def test_a_table_that_may_have_been_downloaded_shows_and_publishes_no_file(tmp_path, private, place):
    """`datasets` does not note the URL of a CSV file, only what it has downloaded."""
    file, load = table_of_paths(tmp_path, private)
    downloaded = {
        "custom cache": tmp_path / "cache" / "downloads" / "4bcb12",
        "default cache": tmp_path / "no-downloads" / "4bcb12",
        "hub": tmp_path / "no-hub" / "datasets--a--b" / "snapshots" / COMMIT / "data" / "paths.csv",
    }[place]
    downloaded.parent.mkdir(parents=True)
    downloaded.write_text(file.read_text())
    downloaded.with_suffix(".json").write_text('{"url": "https://example.com/paths.csv", "etag": null}')
    rows = load()
    for theirs in (rows, rows.select([0]), concatenate_datasets([own(private), rows.remove_columns("label")])):
        assert (origin(theirs, "image"), show_rows(theirs, [0])) == (Origin.FOREIGN, [None])
        with pytest.raises(DataError, match="does not hold it"):
            require_own_files(theirs)


def test_a_table_of_several_downloaded_files_shows_no_file(tmp_path, private):
    """Files of one cache that add up to what was read may be the source, among others that are not."""
    file, load = table_of_paths(tmp_path, private)
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    size = len(file.read_bytes())
    for name, length in (("0a", 20), ("1b", size - 20), ("2c", 7)):
        (downloads / name).write_text("x" * length)
        (downloads / f"{name}.json").write_text("{}")
    assert origin(load(), "image") is Origin.FOREIGN


def test_your_own_table_is_not_taken_for_other_downloads(tmp_path, private):
    """Files in the caches that cannot have been the source, by their size, hide no file of a local table."""
    _, load = table_of_paths(tmp_path, private)
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    (tmp_path / "cache" / "downloads" / "4bcb12").write_text("x" * 10_000)
    (tmp_path / "cache" / "downloads" / "4bcb12.json").write_text("{}")
    commit = tmp_path / "no-hub" / "datasets--a--b" / "snapshots" / COMMIT
    commit.mkdir(parents=True)
    (commit / "README.md").write_text("# A")
    (commit / "small.parquet").write_text("x" * 11)
    mine = load()
    assert (origin(mine, "image"), show_rows(mine, [0])[0].size) == (Origin.OWN, (8, 8))
    require_own_files(mine)


def test_noted_sources_of_a_table_decide_who_wrote_it(tmp_path, private):
    """Where the sources are noted with their checksums, local paths are your own and a URL is somebody else's."""
    file, load = table_of_paths(tmp_path, private)
    rows = load()
    info = Path(rows.cache_files[0]["filename"]).parent / "dataset_info.json"
    stored = json.loads(info.read_text())
    for source, expected in ((str(file), Origin.OWN), ("https://example.com/paths.csv", Origin.FOREIGN)):
        info.write_text(json.dumps({**stored, "download_checksums": {source: {"num_bytes": 1, "checksum": None}}}))
        assert origin(rows, "image") is expected


def test_a_report_of_somebody_elses_rows_holds_no_private_picture(tmp_path, private):
    """The file that is made to be sent has the picture that a row holds, and not the one that a row names."""
    scores = VoGScores({"vog": np.array([0.1, 0.2])}, {})
    write_report(scores, foreign(tmp_path, private), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    sources = [part.split('"')[0] for part in page.split("data:image/webp;base64,")[1:]]
    pixels = {Pillow.open(io.BytesIO(base64.b64decode(source))).convert("RGB").getpixel((0, 0)) for source in sources}
    assert pixels == {(0, 0, 200)}


def test_what_has_no_end_is_not_read(tmp_path):
    """A device that your own row names is not a picture either."""
    rows = own("/dev/zero")
    assert show_rows(rows, [0]) == [None]
    with pytest.raises(OSError, match="not a regular file"):
        NamedFiles(rows).open("/dev/zero", "image")


@pytest.mark.parametrize("mode", ["I;16", "P", "1", "RGB", "RGBA"])
def test_a_large_picture_is_reduced_before_it_is_converted(mode):
    """Pixels of a large picture are never spread out; those of a small one stay as they are."""
    file = io.BytesIO()
    Pillow.new(mode, (4000, 1000)).save(file, "PNG")
    assert decoded(file, 100).size == (308, 77)
    assert decoded(file, 4000).size == (4000, 1000)


def test_a_picture_that_would_fill_the_memory_is_not_decoded(monkeypatch, caplog):
    """It is shown as if there were none, the log says how large it is; the next smaller one is shown."""
    monkeypatch.setattr("vog_hf.scores.pictures.decoding.MAX_DECODED", 100 * 100 * 4)
    rows = [Pillow.new("RGB", (side, 100)) for side in (100, 101)]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))
    with caplog.at_level(logging.WARNING):
        assert [picture is None for picture in show_rows(dataset, [0, 1])] == [False, True]
    assert "101 x 100 pixels" in caplog.text


def test_a_photograph_stays_upright_when_it_is_reduced():
    """The orientation that a camera has noted counts for the small picture, too."""
    file, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Pillow.new("RGB", (3000, 1000)).save(file, "JPEG", exif=exif)
    width, height = decoded(file, 100).size
    assert (round(height / width, 1), height <= 600) == (3.0, True)


def test_of_a_long_text_the_beginning_is_read():
    """Cut before it is copied; bytes that are not text are replaced."""
    rows = Dataset.from_dict({"text": ["ä" * (MAX_TEXT + 9), "short"]})
    assert [len(text) for text in (*show_rows(rows, [0, 1]), *row_texts(rows))] == [MAX_TEXT, 5] * 2
    buffers = [None, pa.py_buffer(np.array([0, 3], "<i4")), pa.py_buffer(b"a\xffb")]
    rows = Dataset(pa.table({"text": pa.Array.from_buffers(pa.string(), 1, buffers)}))
    assert rows.features["text"] == Value("string")
    assert (show_rows(rows, [0]), row_texts(rows)) == (["a�b"], ["a�b"])
