import io

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pictures

from vog_hf.data.label_noise import plant_label_noise
from vog_hf.errors import ConfigError, LabelError

N = 53
NAMES = ["cat", "dog", "frog", "owl"]


def png(row):
    """A small picture as a file's bytes."""
    file = io.BytesIO()
    Pictures.fromarray(np.full((2, 2, 3), row, dtype=np.uint8)).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def pictures(labels=None):
    """Rows with pictures, ids, labels with names, nested and missing values."""
    columns = {
        "image": [png(row) for row in range(N)],
        "label": [row % 4 for row in range(N)] if labels is None else labels,
        "id": [f"row-{row}" for row in range(N)],
        "boxes": [[float(row)] * (row % 3) if row % 5 else None for row in range(N)],
    }
    features = {
        "image": Image(),
        "label": ClassLabel(names=NAMES),
        "id": Value("string"),
        "boxes": List(Value("float32")),
    }
    return Dataset.from_dict(columns, features=Features(features), split="train")


def numbers(labels, kind="int64", name="label"):
    """A dataset of plain numbers."""
    return Dataset.from_dict({name: labels}, features=Features({name: Value(kind)}))


@pytest.mark.parametrize("kind", ["uniform", "pairs"])
@given(
    labels=st.lists(st.sampled_from([0, 1, 2, 3, -1, -100, None]), max_size=30),
    named=st.booleans(),
    fraction=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_exactly_so_many_labeled_rows_change(kind, labels, named, fraction, seed):
    """round(fraction * labeled rows) rows have another class, they are marked, and the others are as before."""
    labels = [0, 1, 2, 3, *([label for label in labels if label != -100] if named else labels)]  # no name is -100
    feature = ClassLabel(names=NAMES) if named else Value("int64")
    dataset = Dataset.from_dict({"label": labels}, features=Features({"label": feature}))
    noisy = plant_label_noise(dataset, fraction, seed=seed, kind=kind)
    assert noisy["original_label"][:] == labels
    changed = [new != old for new, old in zip(noisy["label"], labels, strict=True)]
    assert noisy["is_corrupted"][:] == changed
    labeled = [label is not None and label >= 0 for label in labels]
    assert sum(changed) == round(fraction * sum(labeled))
    for new, old, differs, is_labeled in zip(noisy["label"], labels, changed, labeled, strict=True):
        assert not differs or (is_labeled and 0 <= new < 4 and (kind == "uniform" or new == (old + 1) % 4))


def test_uniform_noise_takes_every_other_class_equally_often():
    """Of 30,000 rows of one class among four, a third each goes to the other three; pairs all go to the next."""
    dataset = Dataset.from_dict({"label": [1] * 30_000}, features=Features({"label": ClassLabel(names=NAMES)}))
    counts = np.bincount(plant_label_noise(dataset, 1.0)["label"][:], minlength=4)
    assert counts[1] == 0
    assert counts[[0, 2, 3]] == pytest.approx(np.full(3, 10_000), abs=400)
    assert set(plant_label_noise(dataset, 1.0, kind="pairs")["label"]) == {2}


def test_which_rows_is_drawn_evenly():
    """Every row is as likely to be chosen as any other, and the seed says which."""
    dataset = numbers([0, 1] * 10)
    chosen = np.mean([plant_label_noise(dataset, 0.3, seed=seed)["is_corrupted"][:] for seed in range(300)], axis=0)
    assert chosen == pytest.approx(np.full(20, 0.3), abs=0.1)
    first, again, other = (plant_label_noise(dataset, 0.3, seed=seed) for seed in (0, 0, 1))
    assert first["label"][:] == again["label"][:] != other["label"][:]
    assert first._fingerprint == again._fingerprint != other._fingerprint


def test_everything_else_is_as_it_was():
    """Order of rows and columns, every feature, the split, the bytes of pictures, and the dataset that was given."""
    dataset = pictures()
    noisy = plant_label_noise(dataset, 0.5)
    assert noisy.column_names == ["image", "label", "id", "boxes", "original_label", "is_corrupted"]
    label = dataset.features["label"]
    assert noisy.features == Features({**dataset.features, "original_label": label, "is_corrupted": Value("bool")})
    assert noisy.split == "train"
    for name in ("image", "id", "boxes"):
        assert noisy.data.column(name).to_pylist() == dataset.data.column(name).to_pylist()
    assert noisy["original_label"][:] == dataset["label"][:] == [row % 4 for row in range(N)]
    assert noisy.features["label"].int2str(noisy["label"][0]) in NAMES


def test_selected_and_shuffled_rows_stay_in_their_order():
    """A view of a dataset is corrupted as it is seen."""
    dataset = pictures().shuffle(seed=0).select(range(20))
    noisy = plant_label_noise(dataset, 0.5)
    assert noisy["id"][:] == dataset["id"][:]
    assert noisy["original_label"][:] == dataset["label"][:]
    assert sum(noisy["is_corrupted"]) == 10


def test_format_and_transform_are_kept():
    """A transform sees the new labels; a format of all columns is one of the new columns, one of some is of these."""
    dataset = pictures()
    expected = plant_label_noise(dataset, 0.5)["label"][:]

    def transform(rows):
        return {"twice": [2 * label for label in rows["label"]], "wrong": rows["is_corrupted"]}

    transformed = plant_label_noise(dataset.with_transform(transform), 0.5)
    assert transformed[:]["twice"] == [2 * label for label in expected]
    as_numpy = plant_label_noise(dataset.with_format("numpy"), 0.5)
    assert as_numpy.format["type"] == "numpy"
    assert isinstance(as_numpy[0]["original_label"], np.int64)
    some = plant_label_noise(dataset.with_format("numpy", columns=["label"], output_all_columns=True), 0.5)
    assert (some.format["columns"], some.format["output_all_columns"]) == (["label"], True)
    assert plant_label_noise(dataset, 0.5).format["type"] is None


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "int64"])
def test_classes_of_plain_numbers_are_those_that_occur(kind):
    """Numbers need not follow one another: the next class after the last that occurs is the first."""
    noisy = plant_label_noise(numbers([7, 2, 5, 7], kind), 1.0, kind="pairs")
    assert noisy["label"][:] == [2, 5, 7, 2]
    assert noisy.features["label"] == noisy.features["original_label"] == Value(kind)
    uniform = plant_label_noise(numbers([7, 2, 5] * 20, kind), 1.0)
    assert set(uniform["label"]) == {2, 5, 7}


def test_the_label_column_is_found_as_elsewhere_in_the_library():
    """labels, label or label_ids, in this order, unless another one is named."""
    dataset = Dataset.from_dict({"label": [0, 1], "labels": [0, 1], "animal": [0, 1]})
    for asked, changed in ((None, "labels"), ("label", "label"), ("animal", "animal")):
        noisy = plant_label_noise(dataset, 1.0, label_column=asked)
        assert [name for name in dataset.column_names if noisy[name][:] == [1, 0]] == [changed]
    for asked, message in ((None, "'labels' or 'label' or 'label_ids' in"), ("kind", r"column 'kind' in \['animal'\]")):
        with pytest.raises(ConfigError, match=message):
            plant_label_noise(dataset.select_columns(["animal"]), 1.0, label_column=asked)


def test_no_noise_and_nothing_but_noise():
    """0 changes no label, 1 every one; a fraction beyond is refused."""
    dataset = pictures()
    assert sum(plant_label_noise(dataset, 0)["is_corrupted"]) == 0
    assert sum(plant_label_noise(dataset, 1)["is_corrupted"]) == N
    for bad in (-0.01, 1.01, np.nan):
        with pytest.raises(ConfigError, match=f"fraction must lie in 0..1, got {bad}"):
            plant_label_noise(dataset, bad)
    with pytest.raises(ConfigError, match="kind must be 'uniform' or 'pairs', got 'pair'"):
        plant_label_noise(dataset, 0.5, kind="pair")


def test_other_data_sets_are_refused():
    """Splits, streams and torch datasets are named, with what to pass instead."""
    dataset = pictures()
    for other in (DatasetDict({"train": dataset}), dataset.to_iterable_dataset(), [{"label": 0}, {"label": 1}]):
        with pytest.raises(ConfigError, match=f"datasets.Dataset, got a {type(other).__name__}; pass one split"):
            plant_label_noise(other, 0.5)


def test_labels_that_have_no_classes_are_refused():
    """Text, floats and lists are not class numbers; one class, or no labeled row, has no other class."""
    for values, kind in (
        (["cat", "dog"], Value("string")),
        ([0.5, 1.5], Value("float32")),
        ([[0], [1]], List(Value("int64"))),
    ):
        dataset = Dataset.from_dict({"label": values}, features=Features({"label": kind}))
        with pytest.raises(
            ConfigError, match=r"must hold one class number per row, got .*class_encode_column\('label'\)"
        ):
            plant_label_noise(dataset, 0.5)
    for labels, classes, rows in (([3, 3, -1], 1, 2), ([None, -100], 0, 0)):
        with pytest.raises(
            ConfigError, match=f"at least two classes, and 'label' has {classes} in {rows} labeled rows"
        ):
            plant_label_noise(numbers(labels), 0.5)
    with pytest.raises(ConfigError, match="'label' has 4 in 0 labeled rows"):
        plant_label_noise(pictures([-1] * N), 0.5)
    assert sum(plant_label_noise(numbers([3, 4, -1]), 0.5)["is_corrupted"]) == 1


def test_labels_outside_the_classes_are_refused_by_row():
    """A negative number that is neither -1 nor -100 is not a missing label."""
    with pytest.raises(LabelError, match="label -2 of row 1 is outside the classes") as caught:
        plant_label_noise(numbers([0, -2, 1]), 0.5)
    assert caught.value.position == 1
    assert sum(plant_label_noise(numbers([0, -1, -100, 1]), 0.5)["is_corrupted"]) == 1


def test_what_was_planted_is_not_planted_over():
    """A second noise would lose the first labels; without the old columns it is accepted."""
    noisy = plant_label_noise(pictures(), 0.5)
    with pytest.raises(ConfigError, match=r"has \['original_label', 'is_corrupted'\] already; drop what was planted"):
        plant_label_noise(noisy, 0.5)
    again = plant_label_noise(noisy.remove_columns(["original_label", "is_corrupted"]), 0.5)
    assert again["original_label"][:] == noisy["label"][:]
