"""Columns by what they hold."""

import pytest
from datasets import Audio, ClassLabel, Dataset, Features, Image, Value

from vog_hf.data import columns_of_kind, find_column, plant_label_noise
from vog_hf.errors import ConfigError, DataError

FEATURES = Features(
    {
        "id": Value("int64"),
        "picture": Image(),
        "sound": Audio(),
        "words": Value("large_string"),
        "fine": ClassLabel(names=["a", "b"]),
        "coarse": ClassLabel(names=["a"]),
    }
)
ROWS = Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)


@pytest.mark.parametrize(
    ("kind", "columns"),
    [("image", ["picture"]), ("audio", ["sound"]), ("text", ["words"]), ("class", ["fine", "coarse"])],
)
def test_columns_of_each_kind_are_found_in_order(kind, columns):
    """A column's feature says what it holds; nothing is decoded."""
    assert columns_of_kind(ROWS, kind) == columns


@pytest.mark.parametrize(
    ("kind", "name", "column"),
    [("image", None, "picture"), ("text", "words", "words"), ("class", "coarse", "coarse"), ("class", "id", "id")],
)
def test_the_only_column_or_the_named_one_is_found(kind, name, column):
    """Without a name the only column of a kind is taken; labels that are named can be numbers, too."""
    assert find_column(ROWS, kind, name) == column


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("class", None, r"has several class columns \(fine, coarse\); name one of its columns: id, picture"),
        ("text", "title", "has no column 'title'; name one of its columns: id, picture"),
        ("image", "words", "column 'words' holds .*; name a column of kind image"),
    ],
)
def test_a_column_that_cannot_be_told_is_refused(kind, name, message):
    """Which columns there are is in the message."""
    with pytest.raises(DataError, match=message):
        find_column(ROWS, kind, name)


def test_wrong_calls_are_refused():
    """An unknown kind, splits by name, and a dataset without such a column each say what to pass."""
    with pytest.raises(ConfigError, match="kind must be one of image, audio, text, class, got 'video'"):
        find_column(ROWS, "video")
    with pytest.raises(DataError, match=r"got a list; pass rows\['train'\]"):
        find_column([{"text": "a"}], "text")
    with pytest.raises(DataError, match="the dataset has no image column; name one of its columns: id"):
        find_column(ROWS.select_columns(["id"]), "image")


def test_original_labels_of_planted_noise_are_no_candidate():
    """Rows with planted noise are read like the rows without; a user's own column of that name stays a candidate."""
    rows = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["a", "b"])}))
    noisy = plant_label_noise(rows, 0.5, seed=0)
    assert noisy.column_names == ["label", "original_label", "is_corrupted"]
    assert find_column(noisy, "class") == "label"
    with pytest.raises(DataError, match=r"several class columns \(label, original_label\)"):
        find_column(noisy.remove_columns("is_corrupted"), "class")
