"""Rows by name: where they are looked for, parts of splits, and labels as classes."""

import re

import pytest
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, IterableDataset, NamedSplit, Value
from transformers import BertConfig

from vog_hf.data.classes import as_classes, class_numbers, model_classes
from vog_hf.data.loading import load_rows, part_of
from vog_hf.errors import DataError, LabelError

ROWS = {"text": list("abcdef"), "label": [0, 1, 0, 1, 0, 1]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same rows in every form that is read."""
    folder = tmp_path_factory.mktemp("data")
    rows = Dataset.from_dict(ROWS)
    rows.to_parquet(folder / "rows.parquet")
    rows.to_csv(folder / "rows.csv")
    rows.to_json(folder / "rows.jsonl")
    rows.save_to_disk(folder / "alone")
    Dataset(rows.data, split=NamedSplit("test")).save_to_disk(folder / "alone-test")
    DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk(folder / "splits")
    (folder / "parquet-files").mkdir()
    rows.to_parquet(folder / "parquet-files" / "test.parquet")
    (folder / "rows.txt").write_text("a")
    (folder / "broken.parquet").write_text("no parquet")
    return folder


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("rows.parquet", None, "abcdef"),
        ("rows.csv", "train", "abcdef"),
        ("rows.jsonl", "train[:50%]", "abc"),
        ("alone", None, "abcdef"),
        ("alone", "train[4:]", "ef"),
        ("alone-test", None, "abcdef"),
        ("alone-test", "test[-1:]", "f"),
        ("splits", None, "abcdef"),
        ("splits", "test", "ab"),
        ("splits", "test[1:]+train[:1]", "ba"),
        ("parquet-files", "test", "abcdef"),
    ],
)
def test_load_rows(folder, name, split, expected):
    """Files, folders of save_to_disk and folders of files; the same notation of splits for all of them."""
    assert "".join(load_rows(str(folder / name), split)["text"]) == expected


def test_a_file_gives_its_name_to_the_dataset(folder):
    """A report of the rows of a file is titled by the file, not by what read it."""
    assert load_rows(str(folder / "rows.csv"), "train[:2]").info.dataset_name == "rows.csv"
    assert load_rows(str(folder / "alone")).info.dataset_name is None


def test_a_folder_of_sounds_needs_no_codec(tmp_path):
    """WAV files with a subfolder per class are rows in the order of classes and files, and stay undecoded."""
    for name in ("low/b", "high/a", "low/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.wav").write_bytes(b"RIFF")
    rows = load_rows(str(tmp_path))
    assert rows.features["label"].names == ["high", "low"]
    assert rows["label"][:] == [0, 1, 1]
    sounds = rows.cast_column("audio", Audio(decode=False))["audio"]
    assert [sound["path"][-9:] for sound in sounds] == ["igh/a.wav", "low/a.wav", "low/b.wav"]
    assert load_rows(str(tmp_path), "train[:1]")["label"][:] == [0]
    with pytest.raises(DataError, match="Unknown split"):
        load_rows(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("nowhere.parquet", None, "nowhere.parquet with split 'train' cannot be loaded: "),
        ("rows.parquet", "test", "rows.parquet with split 'test' cannot be loaded: Unknown split"),
        ("rows.txt", None, "a file must be one of *.parquet, *.csv, *.json, *.jsonl"),
        ("broken.parquet", None, "broken.parquet with split 'train' cannot be loaded: "),
        ("alone", "test", "Unknown split \"test\". Should be one of ['train']"),
        ("alone-test", "train", "Unknown split \"train\". Should be one of ['test']"),  # never the same rows as test
        ("splits", "validation", 'Unknown split "validation"'),
        ("splits", "train[", "cannot be loaded: "),
    ],
)
def test_what_cannot_be_loaded(folder, name, split, message):
    """One line that says which dataset, which split and why."""
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        load_rows(str(folder / name), split)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rows.parquet", {"config": "en"}, "rows.parquet is a file, which has no configurations (en)"),
        ("alone", {"config": "en"}, "is a folder of save_to_disk, which has no configurations (en)"),
        ("parquet-files", {"revision": "v1"}, "a revision (v1) is of a dataset on the Hub, and"),
    ],
)
def test_what_would_be_ignored_is_refused(folder, name, options, message):
    """A configuration or a revision of what has none."""
    with pytest.raises(DataError, match=re.escape(message)):
        load_rows(str(folder / name), **options)


def test_part_of_a_data_set_that_was_a_part():
    """A part of train that was saved alone is the split train."""
    rows = Dataset(Dataset.from_dict(ROWS).data, split=NamedSplit("train[:10%]"))
    assert part_of(rows, "train[:2]")["text"][:] == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ([10, 2, 2, 0], ["0", "2", "10"], [2, 1, 1, 0]),  # in the order of numbers
        (["b", "a", "a"], ["a", "b"], [1, 0, 0]),
        ([True, False], ["false", "true"], [1, 0]),
        ([-1, 1], ["-1", "1"], [0, 1]),
    ],
)
def test_as_classes(labels, names, numbers):
    """Texts, numbers and booleans become the numbers of their classes."""
    rows = as_classes(Dataset.from_dict({"x": labels, "label": labels, "y": labels}), "label")
    assert rows.features["label"] == ClassLabel(names=names)
    assert rows["label"][:] == numbers
    assert rows.column_names == ["x", "label", "y"]


def classes(numbers, names):
    """Rows with a label of this feature."""
    return Dataset.from_dict({"label": numbers}, features=Features({"label": ClassLabel(names=names)}))


def test_classes_are_matched_by_name():
    """Rows whose classes have other numbers than those of the model, or names that do not occur, are its classes."""
    ours = ["bad", "good"]
    assert as_classes(classes([0, 1], ["good", "bad"]), "label", ours)["label"][:] == [1, 0]
    assert as_classes(classes([0, 2], ["good", "fair", "bad"]), "label", ours)["label"][:] == [1, 0]
    assert as_classes(Dataset.from_dict({"label": [1, 0]}), "label", ["0", "1"])["label"][:] == [1, 0]
    same = classes([0, 1], ours)
    assert as_classes(same, "label", ours) is same


def test_large_texts_and_small_numbers():
    """The widths of the values do not matter."""
    for kind, labels in (("large_string", ["b", "a"]), ("int8", [7, 3]), ("uint16", [7, 3])):
        rows = Dataset.from_dict({"label": labels}, features=Features({"label": Value(kind)}))
        assert as_classes(rows, "label")["label"][:] == [1, 0]


def test_format_transform_and_selection_stay():
    """Nothing else of a dataset changes."""
    rows = Dataset.from_dict({**ROWS, "label": list("xyxyxy")}).select([5, 0])
    assert as_classes(rows.with_format("numpy"), "label").format["type"] == "numpy"
    seen = as_classes(rows.with_transform(lambda batch: {"n": [len(batch["text"])]}), "label")
    assert seen[:1] == {"n": [1]}
    assert as_classes(rows, "label")[:] == {"text": ["f", "a"], "label": [1, 0]}


@pytest.mark.parametrize(
    ("rows", "names", "error", "message"),
    [
        (Dataset.from_dict({"label": ["a", None]}), None, LabelError, "1 of 2 rows have no label in column 'label'"),
        (classes([0, -1], ["a", "b"]), None, LabelError, "1 of 2 rows have no label in column 'label'"),
        (Dataset.from_dict({"label": ["a", "c"]}), ["a", "b"], LabelError, "holds 'c', which is none of the classes"),
        (Dataset.from_dict({"label": [0, 9]}), ["0", "1"], LabelError, "holds '9', which is none of the classes 0, 1"),
        (Dataset.from_dict({"label": [[0], [1]]}), None, DataError, "expected classes: texts or whole numbers"),
        (Dataset.from_dict({"label": [0.5]}), None, DataError, "expected classes: texts or whole numbers"),
        (Dataset.from_dict({"klass": [0]}), None, DataError, "no label column 'label'; the dataset has klass"),
        (DatasetDict(), None, DataError, "pass one split of a dataset"),
        (IterableDataset.from_generator(lambda: iter([])), None, DataError, "pass one split of a dataset"),
    ],
)
def test_labels_that_are_no_classes(rows, names, error, message):
    """Rows without a label, of unknown classes and of other kinds are refused, and the row is named."""
    with pytest.raises(error, match=re.escape(message)) as raised:
        as_classes(rows, "label", names)
    assert error is DataError or raised.value.position == 1


# --- classes of a model -----------------------------------------------------------------------------------------------

STARS = {0: "1", 1: "2", 2: "3"}
FRUIT = {0: "apple", 1: "fig", 2: "pear"}


def labeled(values, feature):
    """Rows with these labels."""
    return Dataset.from_dict({"label": values}, features=Features({"label": feature}))


def named(classes):
    """A configuration as published scripts save it, with the numbers as texts."""
    return BertConfig(
        id2label={str(k): v for k, v in classes.items()}, label2id={v: str(k) for k, v in classes.items()}
    )


def test_numbers_of_classes_may_be_texts():
    """`label2id` with "0" for 0 names the same classes; placeholders are not names."""
    assert model_classes(named(FRUIT)) == ["apple", "fig", "pear"]
    assert model_classes(BertConfig(num_labels=4)) is None


@pytest.mark.parametrize(
    ("values", "feature", "classes", "numbers"),
    [
        ([1, 0, -1], ClassLabel(names=["fig", "pear"]), FRUIT, {0: 1, 1: 2}),
        ([0, 1, 2], ClassLabel(names=["pear", "apple", "fig"]), FRUIT, {0: 2, 1: 0, 2: 1}),
        ([0, 1, 2], ClassLabel(names=["apple", "fig", "pear"]), FRUIT, None),
        (["pear", None], Value("string"), FRUIT, {"apple": 0, "fig": 1, "pear": 2}),
        ([3, 1, None], Value("int64"), STARS, {3: 2, 1: 0}),
        ([2.0, None], Value("float64"), FRUIT, {2.0: 2}),
        ([2, 0], Value("int64"), FRUIT, None),
        ([True, False, None], Value("bool"), {0: "True", 1: "False"}, {False: 1, True: 0}),
        ([False], Value("bool"), {0: "unknown", 1: "false", 2: "true"}, {False: 1, True: 2}),
        ([True, False], Value("bool"), {0: "ham", 1: "spam"}, {False: 0, True: 1}),
    ],
    ids=[
        *("a class is missing", "another order", "same", "texts", "stars", "floats", "numbers"),
        *("booleans by name", "booleans of three classes", "booleans of two classes"),
    ],
)
def test_labels_are_matched_with_a_model_by_name(values, feature, classes, numbers):
    """Every stored label has the number of its name in the model; None where they agree already."""
    assert class_numbers(labeled(values, feature), "label", named(classes)) == numbers


@pytest.mark.parametrize(
    ("values", "feature", "config", "message"),
    [
        ([0, 1], ClassLabel(names=["fig", "kiwi"]), named(FRUIT), "row 1: .* holds 'kiwi', which is not a class"),
        (["fig", ""], Value("string"), named(FRUIT), "row 1: .* holds '', which is not a class"),
        ([1.0, 0.5], Value("float32"), named(FRUIT), "row 1: .* holds 0.5, which is not a class"),
        ([1, 0], Value("int64"), named(STARS), "row 1: .* holds 0, which is not a class of the model .1, 2, 3."),
        ([0, 1], ClassLabel(names=["fig", "pear"]), BertConfig(num_labels=3), "the model 3 classes without names"),
        (["1", "0"], Value("string"), BertConfig(num_labels=2), "row 0: .* holds '1', which is not a class"),
        ([None, True], Value("bool"), named(FRUIT), "row 1: .* holds True, which is not a class of the model .apple"),
        ([True, False], Value("bool"), named({0: "true", 1: "maybe"}), "row 1: .* holds False, which is not a class"),
    ],
)
def test_labels_that_no_class_can_be_told_from_are_refused(values, feature, config, message):
    """What has no name in the model is refused with its row, and never taken for a number."""
    with pytest.raises(DataError, match=message):
        class_numbers(labeled(values, feature), "label", config)


def test_an_existing_path_is_never_a_pattern(tmp_path):
    """`rows[1].csv` is that file, whatever else the brackets would match; a folder of such a name is refused."""
    Dataset.from_dict({"text": list("abc")}).to_csv(tmp_path / "rows[1].csv")
    Dataset.from_dict({"text": ["z"]}).to_csv(tmp_path / "rows1.csv")
    assert load_rows(str(tmp_path / "rows[1].csv"))["text"][:] == list("abc")
    (tmp_path / "set[1]").mkdir()
    with pytest.raises(DataError, match="rename the folder"):
        load_rows(str(tmp_path / "set[1]"))
