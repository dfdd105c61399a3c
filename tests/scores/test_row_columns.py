"""The columns that show a row: one rule, by what the dataset holds and what the model read."""

import io
import wave

import numpy as np
import pytest
from datasets import Audio, Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from vog_hf.scores.manifest import Manifest
from vog_hf.scores.pictures import RowViews, row_texts
from vog_hf.scores.pictures.row_columns import RowColumns, row_columns
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores

STRUCT = {"bytes": Value("binary"), "path": Value("string")}


def tone():
    """A file of sound."""
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.arange(100, dtype="<i2").tobytes())
    return target.getvalue()


def picture(kind="PNG"):
    """A file of an image."""
    target = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(target, kind)
    return target.getvalue()


def files(feature, contents, paths, **columns):
    """Rows with a column ``file`` of this feature, cast from structs of bytes and path."""
    cells = [{"bytes": content, "path": path} for content, path in zip(contents, paths, strict=True)]
    features = Features({"file": STRUCT, **{name: Value("string") for name in columns}})
    rows = Dataset.from_dict({"file": cells, **columns}, features=features)
    return rows if feature is STRUCT else rows.cast_column("file", feature)


def first_view(rows, **manifest):
    """The view of the first row."""
    scores = VoGScores({"vog": np.ones(len(rows))}, manifest)
    return RowViews(ScoredSplit("", scores, rows)).view(0)


@pytest.mark.parametrize("feature", [Audio(), Audio(decode=False), STRUCT])
def test_a_sound_is_shown_and_the_speaker_is_not_its_text(feature):
    """However its files are stored; a missing first file hides nothing, and a name does not count as a text."""
    rows = files(feature, [tone(), tone()], ["zero/a.wav", "b.wav"], speaker=["ann", "bob"])
    assert row_columns(rows) == RowColumns(sound="file")
    view = first_view(rows)
    assert (view.sound.kind, view.sound.content) == ("audio/wav", tone())
    assert (view.text, view.picture, view.file) == (None, None, "a.wav")
    assert row_texts(rows) is None, "the review does not offer to search the names either"


@pytest.mark.parametrize("feature", [ImageFeature(), ImageFeature(decode=False), STRUCT])
def test_an_image_is_shown_with_the_name_of_its_file(feature):
    """However its files are stored, of every form that is usual; without the folder, which is this machine's."""
    Image.init()
    for kind in {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"} & Image.SAVE.keys():  # older ones write no AVIF
        rows = files(feature, [picture(kind)], [r"C:\home\me\cat.png"])
        view = first_view(rows)
        assert (view.size, view.file, view.sound) == ((8, 6), "cat.png", None), kind
    assert first_view(files(feature, [picture()], [None])).file is None


def test_an_image_folder(tmp_path):
    """Rows of a folder of images carry the names of their files."""
    from datasets import load_dataset

    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name} 1.png").write_bytes(picture())
    rows = load_dataset("imagefolder", data_dir=str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    scores = VoGScores({"vog": np.ones(2)}, {})
    assert [view.file for view in RowViews(ScoredSplit("", scores, rows)).views([0, 1])] == ["cat 1.png", "dog 1.png"]


def test_structs_of_other_files_are_nothing_to_show():
    """A struct of bytes and path may hold anything; by its path alone it is a sound where it is called like one."""
    assert row_columns(files(STRUCT, [b"%PDF-1.7"], ["a.wav"])) == RowColumns()
    assert row_columns(files(STRUCT, [None, None], [None, "b.flac"])) == RowColumns(sound="file")
    assert row_columns(files(STRUCT, [None], ["b.jpg"])) == RowColumns(picture="file")
    assert row_columns(files(STRUCT, [None], ["b"])) == RowColumns()


def test_a_column_of_strings_is_a_text_only_where_the_model_may_have_read_it():
    """What the model read tells: numbers of another column leave a name no text; a usual name of texts stays one."""
    names = Dataset.from_dict({"name": ["Ann"], "x": [[0.5]]})
    assert first_view(names).text == "Ann", "nothing is known of the model"
    assert first_view(names, input={"name": "input_ids", "embedding": True}).text == "Ann"
    assert first_view(names, input={"name": "x", "embedding": False}).text is None
    assert first_view([{"name": "Ann", "x": 0.5}], input={"name": "x", "embedding": False}).text is None
    assert first_view([{"name": "Ann", "x": 0.5}]).text == "Ann"
    sentences = Dataset.from_dict({"name": ["Ann"], "sentence": ["It rains."], "x": [[0.5]]})
    assert first_view(sentences, input={"name": "x", "embedding": False}).text == "It rains."


def test_the_columns_that_the_manifest_names_come_first():
    """The input of the model is what it was made of, not what is called like a text."""
    rows = Dataset.from_dict({"text": ["a"], "title": ["b"], "body": ["c"]})
    assert first_view(rows, transform={"input_columns": ["title", "body"]}).text == "b\nc"
    assert row_texts(rows, Manifest(transform={"input_columns": ["body"]})) == ["c"]
    assert first_view(rows, transform={"input_columns": ["gone"]}).text == "a", "a renamed column names nothing"


def test_a_bound_on_all_sounds():
    """Views give out sounds up to a number of bytes, a row's as often as it is asked for, and count the others."""
    rows = files(Audio(), [tone(), tone(), b""], ["a", "b", None])
    scores = VoGScores({"vog": np.ones(3)}, {})
    views = RowViews(ScoredSplit("", scores, rows), sound_bytes=len(tone()))
    heard = [views.view(row).sound is not None for row in (1, 1, 0, 2, 1)]
    assert heard == [True, True, False, False, True]
    assert views.n_unplayed == 1
