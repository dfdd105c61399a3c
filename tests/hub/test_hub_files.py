"""Files that rows name and do not hold."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk
from datasets.table import embed_table_storage
from PIL import Image as Pillow

from vog_hf import VoGScores, add_vog_columns, push_scored_dataset
from vog_hf.data.referenced_files import require_own_files
from vog_hf.errors import DataError, HubError

STORED = pa.struct({"bytes": pa.binary(), "path": pa.string()})
SCORES = VoGScores({"vog": np.array([0.5, 0.25], dtype=np.float32)}, {})


@pytest.fixture
def picture(tmp_path):
    """A custom picture."""
    (tmp_path / "mine").mkdir()
    Pillow.new("RGB", (8, 8)).save(tmp_path / "mine" / "a.png")
    return tmp_path / "mine" / "a.png"


def read_parquet(tmp_path, feature, values, name="image"):
    """A dataset read from a parquet file that says by itself that it has pictures or sounds."""
    features = Features({name: feature})
    table = pa.table({name: pa.array(values, features.arrow_schema.field(name).type)}, schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "theirs.parquet")
    return load_dataset("parquet", data_files=str(tmp_path / "theirs.parquet"), cache_dir=str(tmp_path), split="train")


@pytest.mark.parametrize(
    "path", ["/home/me/.cache/huggingface/token", "../../token", "token", "https://localhost/token"]
)
@pytest.mark.parametrize(
    ("feature", "nested"),
    [
        (Image(), lambda value: value),
        (Audio(), lambda value: value),
        (List(Image()), lambda value: [value]),
        ({"inner": List({"picture": Image()})}, lambda value: {"inner": [{"picture": value}]}),
    ],
    ids=["image", "audio", "list", "nested"],
)
def test_a_file_that_a_table_of_somebody_elses_names_is_refused(tmp_path, picture, feature, nested, path):
    """Pictures and sounds, also within others, whatever was made of the dataset since; with bytes all is well."""
    held = {"bytes": picture.read_bytes(), "path": path}
    rows = read_parquet(tmp_path, feature, [nested(held), nested({"bytes": None, "path": path})])
    made = [rows, rows.select([1, 0]), rows.rename_column("image", "x"), add_vog_columns(rows, SCORES, ["vog"])]
    made.append(rows.with_format("arrow").map(lambda table: table, batched=True))
    for one in (*made, DatasetDict({"train": rows})):
        with pytest.raises(DataError, match=f"names '{path}' and does not hold it, and the dataset was read so"):
            require_own_files(one)
    require_own_files(rows.select([0]))


def test_a_push_refuses_such_rows_before_the_hub_is_asked(tmp_path, picture, monkeypatch):
    """Of the scores alone, without rows in the card, nothing of theirs is published."""

    def asked(api):
        msg = "the Hub was asked"
        raise HubError(msg)

    monkeypatch.setattr("vog_hf.hub.push.require_writer", asked)
    rows = read_parquet(tmp_path, Image(), [{"bytes": None, "path": str(picture)}] * 2)
    scored = add_vog_columns(rows, SCORES, ["vog"])
    for options in ({}, {"show_rows": False}, {"scores_only": True}):
        with pytest.raises(DataError, match="does not hold it"):
            push_scored_dataset(scored, "me/data", **options)
    with pytest.raises(HubError, match="the Hub was asked"):
        push_scored_dataset(scored, "me/data", scores_only=True, show_rows=False)


def test_files_that_one_knows_can_be_put_in(tmp_path, picture):
    """As the error says; then they are the row's own."""
    rows = read_parquet(tmp_path, Image(), [{"bytes": None, "path": str(picture)}])
    with pytest.raises(DataError, match=r"where you know the files, put them in: dataset\.with_format\('arrow'\)\.map"):
        require_own_files(rows)
    held = rows.with_format("arrow").map(embed_table_storage, batched=True)
    require_own_files(held)
    assert held.with_format(None)[0]["image"].size == (8, 8)


def test_what_was_saved_holds_its_files(tmp_path, picture):
    """So that a row of a saved dataset with a path alone was written by hand."""
    rows = Dataset.from_dict({"image": [str(picture)]}, features=Features({"image": Image()}))
    rows.save_to_disk(tmp_path / "saved")
    saved = load_from_disk(tmp_path / "saved")
    require_own_files(saved)
    (file,) = (tmp_path / "saved").glob("*.arrow")
    table = pa.table({"image": pa.array([{"bytes": None, "path": "/etc/hostname"}], STORED)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="/etc/hostname"):
        require_own_files(load_from_disk(tmp_path / "saved"))


def test_files_of_ones_own_are_published(tmp_path, picture):
    """A folder of pictures, paths in a table that were made pictures here, and what a program has made."""
    folder = load_dataset("imagefolder", data_dir=str(picture.parent), cache_dir=str(tmp_path), split="train")
    assert folder.with_format("arrow")[0]["image"].to_pylist()[0]["bytes"] is None
    features = Features({"image": Image()})
    paths = {"path": [str(picture)]}
    Dataset.from_dict(paths).to_parquet(tmp_path / "paths.parquet")
    Dataset.from_dict(paths).to_csv(tmp_path / "paths.csv")
    made = [
        folder,
        Dataset.from_dict({"image": [str(picture)]}, features=features),
        Dataset.from_generator(lambda: iter([{"image": str(picture)}]), features=features, cache_dir=str(tmp_path)),
    ]
    for kind in ("parquet", "csv"):
        read = load_dataset(kind, data_files=str(tmp_path / f"paths.{kind}"), cache_dir=str(tmp_path), split="train")
        made.append(read.cast_column("path", Image()))
    for rows in made:
        require_own_files(rows)


def test_a_folder_whose_paths_lead_out_of_it_is_refused(tmp_path, picture):
    """As older versions of `datasets` make them of a table next to the pictures."""
    folder = load_dataset("imagefolder", data_dir=str(picture.parent), cache_dir=str(tmp_path), split="train")
    out = folder.map(lambda: {"image": {"bytes": None, "path": f"{picture.parent}/../token"}}, input_columns=[])
    with pytest.raises(DataError, match=r"mine/\.\./token"):
        require_own_files(out)


def test_a_row_without_a_picture_names_nothing(tmp_path):
    """Nor does a list that is not there."""
    require_own_files(read_parquet(tmp_path, Image(), [None, {"bytes": None, "path": None}]))
    require_own_files(read_parquet(tmp_path, List(Image()), [None, []], name="images"))
    rows = Dataset.from_dict({"text": ["a"]}, features=Features({"text": Value("string")}))
    require_own_files(rows)
