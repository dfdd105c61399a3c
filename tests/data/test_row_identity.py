import datetime as dt
import decimal
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, List, Value, concatenate_datasets, load_dataset
from datasets.features.features import Array2DExtensionType
from datasets.table import embed_table_storage
from PIL import Image as Picture

from vog_hf.data.arrow_columns import has_table, integer_column
from vog_hf.data.row_hashes import ValueHashes
from vog_hf.data.row_identity import RowIdentity, _hash_column, identify_rows
from vog_hf.errors import RowMismatchError

N = 53


def png(seed):
    """A small picture as a file's bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    file = io.BytesIO()
    Picture.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PICTURES = [png(i) for i in range(N)]
FEATURES = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=["a", "b", "c"]),
        "image": Image(),
        "map": Array2D((2, 3), "float32"),
        "tokens": List(Value("int32")),
        "boxes": List(List(Value("float32"))),
        "pair": List(Value("int64"), length=2),
        "answer": {"start": Value("int64"), "text": List(Value("string"))},
        "score": Value("float64"),
        "when": Value("timestamp[s]"),
        "flag": Value("bool"),
        "nothing": Value("null"),
        "raw": Value("binary"),
    }
)


def columns(order=range(N)):
    """Values of every kind, some of them null or empty."""
    return {
        "text": [None if i % 11 == 3 else f"row {i} äöü" for i in order],
        "label": [i % 3 for i in order],
        "image": [{"bytes": PICTURES[i], "path": f"/somewhere/{i}.png"} for i in order],
        "map": [np.full((2, 3), i, dtype=np.float32) for i in order],
        "tokens": [None if i % 13 == 5 else list(range(i, i + i % 4)) for i in order],
        "boxes": [[[i, 1.0], [], [2.0]] if i % 2 else [] for i in order],
        "pair": [[i, -i] for i in order],
        "answer": [{"start": None if i % 7 == 0 else i, "text": ["x"] * (i % 3)} for i in order],
        "score": [float("nan") if i % 17 == 4 else i / 7 for i in order],
        "when": [dt.datetime(2020, 1, 1) + dt.timedelta(days=i) for i in order],  # noqa: DTZ001 (no zone)
        "flag": [None if i % 9 == 2 else bool(i % 2) for i in order],
        "nothing": [None for _ in order],
        "raw": [bytes([i]) * (i % 5) for i in order],
    }


@pytest.fixture(scope="module")
def rows():
    """A dataset with a column of every kind."""
    return Dataset.from_dict(columns(), features=FEATURES)


@pytest.fixture(scope="module")
def identity(rows):
    """Its identity."""
    return identify_rows(rows)


def same(identity, other):
    """Whether columns and rows have the same digests and hashes."""
    return other.columns == identity.columns and np.array_equal(other.row_hash, identity.row_hash)


# --- the same rows --------------------------------------------------------------------------------------------------

SAME = {
    "read again": lambda rows: Dataset.from_dict(columns(), features=FEATURES),
    "with_transform": lambda rows: rows.with_transform(lambda batch: {"x": [0] * len(batch["label"])}),
    "set_format": lambda rows: rows.with_format("numpy", columns=["label"]),
    "with_format torch": lambda rows: rows.with_format("torch"),
    "selected all": lambda rows: rows.select(range(N)),
    "selected all by list": lambda rows: rows.select(list(range(N))),
    "flattened indices": lambda rows: rows.select(list(range(N))).flatten_indices(),
    "concatenated": lambda rows: concatenate_datasets([rows.select(range(10)), rows.select(range(10, N))]),
    "concatenated tables": lambda rows: concatenate_datasets(
        [Dataset.from_dict(columns(part), features=FEATURES) for part in (range(7), range(7, 8), range(8, N))]
    ),
    "shuffled and put back": lambda rows: rows.select(list(range(N))[::-1]).select(list(range(N))[::-1]),
    "undecoded images": lambda rows: rows.cast_column("image", Image(decode=False)),
    "columns in another order": lambda rows: rows.select_columns(sorted(rows.column_names)[::-1]),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_rows_have_the_same_identity(rows, identity, name):
    """Views, formats, chunks and indices change nothing about which rows these are."""
    other = identify_rows(SAME[name](rows))
    assert other.columns == identity.columns
    assert identity.verify(other) == list(identity.columns)
    if name != "columns in another order":  # the hash of a whole row is over its columns in their order
        assert same(identity, other)


def test_rows_written_to_disk_and_read_back_are_the_same(rows, identity, tmp_path):
    """save_to_disk and parquet, in whatever batches they store, keep the identity."""
    rows.save_to_disk(tmp_path / "saved", num_shards=3)
    assert same(identity, identify_rows(Dataset.load_from_disk(tmp_path / "saved")))
    rows.remove_columns("nothing").to_parquet(tmp_path / "rows.parquet", batch_size=10)
    read = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    assert len(identity.verify(identify_rows(read))) == len(identity.columns) - 1


def test_rows_with_columns_added_or_removed_share_the_others(rows, identity):
    """Tokenized rows are the rows: what both have must agree, and is named."""
    tokenized = rows.map(lambda row: {"input_ids": [len(row["text"] or "")] * 3})
    assert identity.verify(identify_rows(tokenized)) == list(identity.columns)
    some = rows.select_columns(["label", "text"])
    assert identity.verify(identify_rows(some)) == ["text", "label"]
    assert identity.verify(identify_rows(rows.map(lambda row: {"x": 1}, remove_columns=rows.column_names))) == []


def test_the_path_of_an_image_does_not_matter_but_its_file_name_without_bytes_does(tmp_path):
    """The same files in another folder are the same rows."""
    features = Features({"image": Image()})
    here, there, renamed = (
        Dataset.from_dict({"image": [{"bytes": b, "path": path} for b, path in values]}, features=features)
        for values in (
            [(b"1", "/here/a.png"), (None, "/here/b.png")],
            [(b"1", "c.png"), (None, "/there/b.png")],
            [(b"1", "/here/a.png"), (None, "/here/c.png")],
        )
    )
    assert same(identify_rows(here), identify_rows(there))
    assert not same(identify_rows(here), identify_rows(renamed))


def test_the_width_of_a_number_does_not_matter():
    """A column cast from int64 to int32, or to class names, holds the same numbers."""
    rows = Dataset.from_dict({"label": [0, 1, 2, None]})
    narrow = rows.cast_column("label", Value("int32"))
    named = rows.cast_column("label", ClassLabel(names=["a", "b", "c"]))
    assert same(identify_rows(rows), identify_rows(narrow))
    assert same(identify_rows(rows), identify_rows(named))


# --- other rows -----------------------------------------------------------------------------------------------------


def edited(column, row, value):
    """Every column as it was but for one value."""
    values = columns()
    values[column][row] = value
    return Dataset.from_dict(values, features=FEATURES)


def other_picture(i):
    """Other bytes of the same length."""
    return {"bytes": PICTURES[i][:-1] + b"?", "path": f"/somewhere/{i}.png"}


EDITS = {
    "text": "another",
    "text to null": None,
    "text to empty": "",
    "label": 2,
    "label to null": None,
    "image": other_picture(4),
    "map": np.full((2, 3), 0.5),
    "tokens": [4, 5, 7],
    "tokens to null": None,
    "boxes": [[], [4.0, 1.0], [2.0]],
    "pair": [4, 4],
    "answer": {"start": 5, "text": ["x"]},
    "answer's list": {"start": 4, "text": ["x", "x"]},
    "answer to null": None,
    "score": 0.0,
    "score to null": None,
    "when": dt.datetime(2021, 1, 1),  # noqa: DTZ001 (no zone)
    "flag": True,
    "flag to null": None,
    "raw": b"\x05" * 4,
    "raw to another length": b"",
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_value_is_refused_by_column(rows, identity, edit):
    """One value of one row of any kind of column, and the dataset is not the one that was scored."""
    column = edit.split(" to ", maxsplit=1)[0].removesuffix("'s list")
    other = identify_rows(edited(column, 4, EDITS[edit]))
    with pytest.raises(RowMismatchError, match=f"column '{column}' of the dataset is not the one that was scored"):
        identity.verify(other)
    unchanged = [name for name in identity.columns if name != column]
    assert {name: other.columns[name] for name in unchanged} == {name: identity.columns[name] for name in unchanged}


def test_a_relabeled_row_is_refused(rows, identity):
    """Correcting one label makes other rows of it: scores are of the labels they were made with."""
    relabeled = rows.map(lambda row, i: {"label": 0 if i == 50 else row["label"]}, with_indices=True)
    with pytest.raises(RowMismatchError, match="column 'label'"):
        identity.verify(identify_rows(relabeled))


@pytest.mark.parametrize("column", [name for name in FEATURES if name != "nothing"])
def test_shuffled_rows_are_refused_by_every_column_alone(rows, identity, column):
    """Each kind of column notices another order by itself; a column of nulls cannot."""
    shuffled = rows.shuffle(seed=0)
    with pytest.raises(RowMismatchError, match=f"column '{column}' .* shuffled, filtered, edited"):
        identity.verify(identify_rows(shuffled.select_columns([column])))
    assert identity.verify(identify_rows(shuffled.select_columns(["nothing"]))) == ["nothing"]


def test_filtered_rows_are_refused_by_their_number(rows, identity):
    """One row less, or another one in its place, is noticed."""
    with pytest.raises(RowMismatchError, match="the scores cover 53 rows and the dataset has 52"):
        identity.verify(identify_rows(rows.select(range(N - 1))))
    replaced = rows.select([*range(N - 1), 0])
    with pytest.raises(RowMismatchError, match="column 'text'"):
        identity.verify(identify_rows(replaced))


def test_every_byte_of_equally_long_payloads_counts():
    """Two rows that changed places, or one byte of any row, are noticed where all values have one length."""
    values = [bytes([i % 250]) * 4 for i in range(1000)]
    plain = identify_rows(Dataset.from_dict({"raw": values}, features=Features({"raw": Value("binary")})))
    for i, j in ((0, 1), (500, 501), (997, 998)):
        others = [*values]
        others[i], others[j] = others[j], others[i]
        other = identify_rows(Dataset.from_dict({"raw": others}, features=Features({"raw": Value("binary")})))
        assert np.flatnonzero(other.row_hash != plain.row_hash).tolist() == [i, j]
        with pytest.raises(RowMismatchError, match="column 'raw'"):
            plain.verify(other)


# --- one value, many forms ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Pictures of one length in bytes, as files."""
    for i in range(5):
        Picture.fromarray(np.full((4, 5, 3), i, dtype=np.uint8)).save(tmp_path / f"{i}.bmp")
    return tmp_path


def in_folder(folder):
    """The rows that name these files."""
    paths = [str(folder / f"{i}.bmp") for i in range(5)]
    return Dataset.from_dict({"image": paths, "label": range(5)}).cast_column("image", Image())


FORMS = {
    "saved": lambda rows, folder: rows.save_to_disk(folder / "saved") or Dataset.load_from_disk(folder / "saved"),
    "embedded": lambda rows, folder: rows.with_format("arrow").map(embed_table_storage, batched=True),
    "undecoded": lambda rows, folder: rows.cast_column("image", Image(decode=False)),
    "elsewhere": lambda rows, folder: in_folder(Path(shutil.copytree(folder, folder / "copy"))),
    "bytes alone": lambda rows, folder: Dataset.from_dict(
        {"image": [(folder / f"{i}.bmp").read_bytes() for i in range(5)], "label": range(5)}
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_file_and_its_bytes_are_one_image(folder, form):
    """Rows that name files are the rows that hold their content, wherever the files are and however they are read."""
    rows = in_folder(folder)
    assert same(identify_rows(rows), identify_rows(FORMS[form](rows, folder)))


def test_an_edited_file_of_the_same_name_and_length_is_another_image(folder):
    """The content of a file counts, not its name, size or date."""
    before = identify_rows(in_folder(folder))
    file = folder / "3.bmp"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    after = identify_rows(in_folder(folder))
    assert np.flatnonzero(before.row_hash != after.row_hash).tolist() == [3]
    assert before.differing(after) == ["image"]


def test_files_that_are_not_there_are_told_by_name_and_this_is_said(folder, caplog):
    """A missing file, a pipe and an address have a name and no content; one warning counts them."""
    os.mkfifo(folder / "pipe.png")
    paths = [str(folder / "0.bmp"), str(folder / "gone.png"), str(folder / "pipe.png"), "https://host/x.png"]
    rows = Dataset.from_dict({"image": paths}).cast_column("image", Image())
    assert len(set(identify_rows(rows).row_hash.tolist())) == 4
    assert f"3 files that rows name are not on this machine ({folder / 'gone.png'})" in caplog.text


def named_by(rows, tmp_path, whose):
    """Rows that name files, as this program or somebody else has made them."""
    if whose == "ours":
        return rows
    rows.to_parquet(tmp_path / "theirs.parquet")  # `datasets` writes the paths
    files, cache = str(tmp_path / "theirs.parquet"), str(tmp_path / "cache")
    return load_dataset("parquet", data_files=files, split="train", cache_dir=cache)


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_no_file_of_this_machine_is_read_that_somebody_else_named(whose, folder, tmp_path, caplog):
    """Its content changes the identity of your own rows and not of theirs, nor does whether it is there at all."""
    paths = [str(folder / "0.bmp"), str(folder / "3.bmp")]
    rows = named_by(Dataset.from_dict({"image": paths}).cast_column("image", Image()), tmp_path, whose)
    before = identify_rows(rows)
    (folder / "3.bmp").write_bytes(b"secret")
    after = identify_rows(rows)
    (folder / "3.bmp").unlink()
    gone = identify_rows(rows)
    assert before.differing(after) == before.differing(gone) == ([] if whose == "theirs" else ["image"])
    said = f"2 files that rows name were named by somebody else and are not read ({paths[0]})"
    assert (said in caplog.text) == (whose == "theirs")


def test_a_file_in_a_cache_that_somebody_else_named_is_read(folder, tmp_path, monkeypatch):
    """What was downloaded with the rows counts by its content."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    rows = Dataset.from_dict({"image": [str(folder / "3.bmp")]}).cast_column("image", Image())
    assert same(identify_rows(rows), identify_rows(named_by(rows, tmp_path, "theirs")))


def test_scores_of_files_that_were_read_are_not_refused(folder, tmp_path, caplog):
    """Earlier versions read the files that anybody named: their digests are not compared with names; others are."""
    rows = Dataset.from_dict({"image": [str(folder / "3.bmp")], "label": [1]}).cast_column("image", Image())
    scored, theirs = identify_rows(rows), identify_rows(named_by(rows, tmp_path, "theirs"))
    assert scored.verify(theirs) == theirs.verify(scored) == ["label"]
    assert theirs.verify(theirs) == ["image", "label"]
    relabeled = rows.remove_columns("label").add_column("label", [2])
    with pytest.raises(RowMismatchError, match="column 'label'"):
        scored.verify(identify_rows(named_by(relabeled, tmp_path, "theirs")))


FILES = {"bytes": pa.array([b"one", b"two", None]), "path": pa.array([None, "a/2.png", None], pa.string())}
SAME_VALUES = {
    "texts": [
        pa.array(["a", "", None, "b"]),
        pa.array(["a", "", None, "b"], pa.large_string()),
        pa.array(["a", "", None, "b"], pa.string_view()),
        pa.array(["a", "", None, "b"]).dictionary_encode(),
    ],
    "bytes": [
        pa.array([b"ab", None, b"cd"], pa.binary()),
        pa.array([b"ab", None, b"cd"], pa.large_binary()),
        pa.array([b"ab", None, b"cd"], pa.binary(2)),
        pa.array([b"ab", None, b"cd"], pa.binary_view()),
        pa.array([b"ab", None, b"cd"]).dictionary_encode(),
    ],
    "lists": [
        pa.array([[1, 2], [3, None]], pa.list_(pa.int64())),
        pa.array([[1, 2], [3, None]], pa.large_list(pa.int16())),
        pa.array([[1, 2], [3, None]], pa.list_(pa.int32(), 2)),
    ],
    "files": [
        pa.StructArray.from_arrays([*FILES.values()], [*FILES]),
        pa.StructArray.from_arrays([*FILES.values()][::-1], [*FILES][::-1]),
        pa.StructArray.from_arrays([FILES["bytes"].cast(pa.large_binary()), FILES["path"]], [*FILES]),
    ],
    "moments": [
        pa.array([0, 86400, None], pa.timestamp("s")),
        pa.array([0, 86400 * 10**6, None], pa.timestamp("us", tz="Europe/Paris")),
        pa.array([0, 86400 * 10**9, None], pa.timestamp("ns", tz="UTC")),
        pa.array([0, 1, None], pa.date32()),
        pa.array([0, 86400 * 10**3, None], pa.date64()),
    ],
    "durations": [pa.array([-1, 5, None], pa.duration("s")), pa.array([-(10**9), 5 * 10**9, None], pa.duration("ns"))],
}


@pytest.mark.parametrize("kind", SAME_VALUES)
def test_the_form_in_which_values_are_stored_does_not_matter(kind):
    """Widths of offsets, dictionaries, units and zones are storage: the same values have the same hashes."""
    first, *others = [ValueHashes().of(array).tolist() for array in SAME_VALUES[kind]]
    assert len(set(first)) == len(first)
    assert all(hashes == first for hashes in others)


# --- columns larger than an Arrow array -----------------------------------------------------------------------------


def test_a_column_of_more_than_2_gib_is_told_chunk_by_chunk():
    """The offsets of a column may pass what one array can hold, in order, selected, and as version 1 did it."""
    chunk = pa.array([bytes([i]) * 2**23 for i in range(4)], pa.binary())  # its memory is shared by all chunks
    raw = pa.chunked_array([chunk] * 65)
    rows = Dataset(pa.table({"raw": raw, "row": pa.chunked_array([pa.array(range(260))])}), fingerprint="large")
    assert rows.data.nbytes > 2**31
    whole = identify_rows(rows)
    last_first = identify_rows(rows.select([259, 128, 0]))
    assert np.array_equal(last_first.row_hash, whole.row_hash[[259, 128, 0]])
    known = identify_rows(rows, like=RowIdentity(260, {"raw": "of version 1"}, None))
    assert known.differing(whole) == []
    assert known.columns["row"] == whole.columns["row"]


def test_a_few_long_texts_many_times_over_are_not_put_end_to_end():
    """A dictionary of classes may stand for more bytes than one array can hold."""
    texts = pa.array(["x" * 2**20, "y"])
    hashes = ValueHashes().of(pa.DictionaryArray.from_arrays(pa.array([0, 1, None] * 2**12, pa.int32()), texts))
    assert np.array_equal(hashes, np.tile(ValueHashes().of(pa.array(["x" * 2**20, "y", None])), 2**12))


def test_only_the_rows_of_a_selection_are_read(folder):
    """A few rows of a large dataset cost their own bytes, whatever else is stored next to them."""
    rows = in_folder(folder)
    expected = identify_rows(rows).row_hash
    for i in (1, 2, 4):
        (folder / f"{i}.bmp").unlink()
    assert np.array_equal(identify_rows(rows.select([3, 0, 3])).row_hash, expected[[3, 0, 3]])


# --- rows that an earlier version has identified --------------------------------------------------------------------

FIRST_VERSION = RowIdentity(
    3,
    {
        "image": "239002e1ff9ccefbcc856e11360735061bf8d9d683162de9fa42ea7ab3f61d3a",
        "when": "93aa4ec2d3634256e077ffcb7712fb65d9d2e04149c5d1848c3fd99061f0690d",
        "text": "be089adeab5637217dc8e715d93ad2069b6e4398badac9fd42d71f1f9240a602",
    },
    np.array([10049297077798256355, 11390001320758211800, 15885068929690494262], dtype=np.uint64),
)


def first_rows(image=b"two", text="b"):
    """What version 1 has identified, or an edited copy."""
    values = {
        "image": [{"bytes": b, "path": path} for b, path in ((b"one", "/a/1.png"), (image, None), (None, "/a/3.png"))],
        "when": [dt.datetime(2020, 1, 1 + i) for i in range(3)],  # noqa: DTZ001 (no zone)
        "text": ["a", text, None],
    }
    return Dataset.from_dict(values, features=Features({name: FEATURES[name] for name in values}))


def test_digests_and_hashes_of_version_1_are_made_again_where_they_are_known():
    """Scores written before bytes counted are still those of their rows, and not of edited ones."""
    again = identify_rows(first_rows(), like=FIRST_VERSION)
    assert again.columns == FIRST_VERSION.columns
    assert np.array_equal(again.row_hash, FIRST_VERSION.row_hash)
    assert FIRST_VERSION.verify(again) == ["image", "when", "text"]
    for edit, column in (({"image": b"TWO"}, "image"), ({"text": "B"}, "text")):
        with pytest.raises(RowMismatchError, match=f"column '{column}'"):
            FIRST_VERSION.verify(identify_rows(first_rows(**edit), like=FIRST_VERSION))


def test_digests_of_two_versions_are_compared_where_they_mean_the_same():
    """A journal of version 1 and scores of version 2 share what both digest alike: the texts."""
    current = identify_rows(first_rows())
    assert FIRST_VERSION.verify(current) == ["text"]
    with pytest.raises(RowMismatchError, match="column 'text'"):
        FIRST_VERSION.verify(identify_rows(first_rows(text="c")))


# --- hashes of rows -------------------------------------------------------------------------------------------------


def test_row_hashes_follow_their_rows(rows, identity):
    """A selected row keeps its hash, wherever it stands."""
    order = np.random.default_rng(0).permutation(N)[:31]
    assert np.array_equal(identify_rows(rows.select(order)).row_hash, identity.row_hash[order])
    assert np.array_equal(identify_rows(rows.select(range(5, 20))).row_hash, identity.row_hash[5:20])


def test_different_rows_have_different_hashes_and_equal_rows_equal_ones(identity):
    """The hash of a row tells it from all others, and not from its duplicate."""
    assert len(set(identity.row_hash.tolist())) == N
    doubled = identify_rows(Dataset.from_dict(columns([3, 5, 3]), features=FEATURES)).row_hash
    assert doubled[0] == doubled[2]
    assert doubled[0] != doubled[1]


def test_a_value_in_another_column_is_another_row():
    """Rows are not sets of values: which column, or which field of a structure, holds what counts."""
    first = identify_rows(Dataset.from_dict({"a": [1], "b": [2]})).row_hash
    second = identify_rows(Dataset.from_dict({"a": [2], "b": [1]})).row_hash
    renamed = identify_rows(Dataset.from_dict({"a": [1], "c": [2]})).row_hash
    assert len({first[0], second[0], renamed[0]}) == 3
    fields = [{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 1, "c": 2}]
    assert len({ValueHashes().of(pa.array([values]))[0] for values in fields}) == 3


ARRAYS = {
    "int8": pa.array([0, 1, -1, 100, None], pa.int8()),
    "uint64": pa.array([0, 1, 2**64 - 1, 2**63, None], pa.uint64()),
    "bool": pa.array([True, False, None], pa.bool_()),
    "float16": pa.array(np.array([0, 1, -2.5, np.inf], dtype=np.float16)),
    "float32": pa.array([0.0, 0.1, -2.5, float("inf"), float("nan"), None], pa.float32()),
    "float64": pa.array([0.0, 0.1, -2.5, float("inf"), float("nan"), None], pa.float64()),
    "string": pa.array(["", "a", "ab", "ä", None], pa.string()),
    "large string": pa.array(["", "a", "ab", "ä", None], pa.large_string()),
    "string view": pa.array(["", "a", "ab", "a string longer than twelve", None], pa.string_view()),
    "binary": pa.array([b"", b"a", b"ab", None], pa.binary()),
    "large binary": pa.array([b"", b"a", b"ab", None], pa.large_binary()),
    "binary view": pa.array([b"", b"\xff", b"ab", None], pa.binary_view()),
    "fixed binary": pa.array([b"ab", None], pa.binary(2)),
    "date": pa.array([dt.date(2020, 1, 1), dt.date(1960, 1, 1), None], pa.date32()),
    "time": pa.array([dt.time(1, 2), dt.time(3, 4), None], pa.time64("us")),
    "timestamp": pa.array([0, 1, 10**9, None], pa.timestamp("ms", tz="UTC")),
    "duration": pa.array([0, 1, 10**9, None], pa.duration("s")),
    "decimal": pa.array([decimal.Decimal("1.10"), decimal.Decimal("-2.00"), None], pa.decimal128(10, 2)),
    "dictionary": pa.array(["a", "b", None, "c"]).dictionary_encode(),
    "list": pa.array([[], [1], [1, 2], [2, 1], [None], None, [0], [0, 0]], pa.list_(pa.int32())),
    "large list": pa.array([[], [1], [1, 2], [2, 1], [None], None], pa.large_list(pa.int32())),
    "fixed list": pa.array([[1, 2], [2, 1], [0, None], None, [0, 0]], pa.list_(pa.int32(), 2)),
    "lists of lists": pa.array([[[1], [2, 3]], [[1, 2], [3]], [[1, 2, 3]], [[], [1, 2, 3]], [[]], []]),
    "lists of strings": pa.array([["a", "b"], ["ab"], ["a", None, "b"], None]),
    "struct": pa.array([{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": None, "b": "x"}, None]),
    "struct of lists": pa.array([{"a": [1, 2], "b": [3]}, {"a": [1], "b": [2, 3]}, {"a": [], "b": None}]),
    "lists of structs": pa.array([[{"a": 1}, {"a": 2}], [{"a": 2}, {"a": 1}], [], [None]]),
    "extension": pa.ExtensionArray.from_storage(
        Array2DExtensionType((2, 1), "int32"), pa.array([[[1], [2]], [[2], [1]], None], pa.list_(pa.list_(pa.int32())))
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_values_of_every_arrow_type_are_told_apart_whatever_the_slice_and_chunks(name):
    """Different values, null among them, have different hashes; slices and chunks of a column have its values'."""
    array = ARRAYS[name]
    hashes = ValueHashes().of(array)
    assert hashes.dtype == np.uint64
    assert len(set(hashes.tolist())) == len(array)
    for start in range(len(array) + 1):
        assert np.array_equal(ValueHashes().of(array.slice(start)), hashes[start:])
        assert np.array_equal(ValueHashes().of(array.slice(0, start)), hashes[:start])
        assert np.array_equal(ValueHashes().of(array.slice(1, start)), hashes[1:][:start])
        assert np.array_equal(
            _hash_column(pa.chunked_array([array.slice(0, start), array.slice(start)]), None, ValueHashes()), hashes
        )
    assert _hash_column(pa.chunked_array([], type=array.type), None, ValueHashes()).shape == (0,)


@pytest.mark.parametrize("kind", [pa.timestamp, lambda unit: pa.timestamp(unit, tz="UTC"), pa.time64])
def test_the_unit_of_a_time_does_not_matter(kind):
    """Parquet keeps no seconds: the same moments in milliseconds are the same values, and others are not."""
    if kind is pa.time64:
        coarse, fine = pa.array([0, 1_500_000, 10_000_000, None], kind("us")), kind("ns")
    else:
        coarse, fine = pa.array([0, 10, 100, None], kind("s")), kind("ns")
    hashes = ValueHashes().of(coarse)
    assert len(set(hashes.tolist())) == 4
    assert np.array_equal(ValueHashes().of(coarse.cast(fine)), hashes)
    later = pa.array([1, 10], fine)
    assert len({*hashes.tolist(), *ValueHashes().of(later).tolist()}) == 6


def test_nulls_that_hide_values_are_nulls():
    """What lies under a null in memory does not reach its hash."""
    hidden = pa.StructArray.from_arrays([pa.array([1, 2])], ["a"], mask=pa.array([False, True]))
    shown = pa.array([{"a": 1}, None], hidden.type)
    assert np.array_equal(ValueHashes().of(hidden), ValueHashes().of(shown))
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), pa.array([1, 2, 3]), mask=pa.array([False, True]))
    assert np.array_equal(ValueHashes().of(lists), ValueHashes().of(pa.array([[1], None])))


# --- datasets without a table, and labels ---------------------------------------------------------------------------


def test_a_torch_data_set_has_only_a_number_of_rows():
    """Without a table there is nothing to compare but the length."""
    data = torch.utils.data.TensorDataset(torch.zeros(N, 2))
    identity = identify_rows(data)
    assert not has_table(data)
    assert identity == RowIdentity(N, {}, None)
    assert identity.verify(identify_rows(data)) == []
    with pytest.raises(RowMismatchError, match="cover 53 rows and the dataset has 52"):
        identity.verify(RowIdentity(N - 1, {}, None))


def test_an_empty_data_set_has_an_identity():
    """No rows are not an error here: whether they can be scored is another's question."""
    empty = identify_rows(Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES))
    assert empty.n_rows == 0
    assert empty.row_hash.shape == (0,)


def test_labels_are_read_from_the_first_column_of_whole_numbers(rows):
    """In row order, without decoding anything, -1 for null; text and floats are passed over."""
    assert integer_column(rows, ["text", "score", "label"]).tolist() == [i % 3 for i in range(N)]
    order = [5, 3, 4]
    assert integer_column(rows.select(order), ["label"]).tolist() == [2, 0, 1]
    assert integer_column(Dataset.from_dict({"label": [2, None, 0]}), ["label"]).tolist() == [2, -1, 0]
    assert integer_column(rows, ["text", "missing"]) is None
    assert integer_column([1, 2, 3], ["label"]) is None
