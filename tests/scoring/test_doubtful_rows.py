"""Rows that would only fail late in a scoring: they are found in the Arrow table and refused before the long work."""

import models
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pillow
from torch import nn

from vog_hf.data.arrow_columns import doubtful_rows
from vog_hf.errors import DataError, NonFiniteError
from vog_hf.scoring.scorer import VoGScorer

N = 70
FILE = {"bytes": Value("binary"), "path": Value("string")}  # how images and sounds are stored
IDS = [[3 + (i + k) % 20 for k in range(2 + i % 4)] for i in range(N)]


class Linear(nn.Module):
    """A classifier of six numbers."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        """Logits of two classes."""
        return {"logits": self.head(x)}


def texts(changed=(), **columns):
    """Rows of tokens, some of them changed."""
    ids = [dict(changed).get(row, tokens) for row, tokens in enumerate(IDS)]
    masks = [[1] * len(tokens or ()) for tokens in ids]
    labels = [row % models.CLASSES for row in range(N)]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels, **columns})


def numbers(**columns):
    """Rows of six numbers."""
    return Dataset.from_dict(
        {"x": np.ones((N, 6), "float32").tolist(), "labels": [row % 2 for row in range(N)], **columns}
    )


def pictures(values):
    """Rows of images, read by a transform as six numbers."""

    def transform(batch):
        x = [torch.from_numpy(np.asarray(image.convert("L"), "float32").ravel()[:6]) for image in batch["image"]]
        return {"x": x, "labels": batch["labels"]}

    features = Features({"image": Image(), "labels": Value("int64")})
    return Dataset.from_dict({"image": values, "labels": [row % 2 for row in range(N)]}, features).with_transform(
        transform
    )


def check(model, dataset, collate_fn=models.collate):
    """The dry run, in batches of eight rows."""
    VoGScorer(model, batch_size=8).check(dataset, collate_fn=collate_fn)


@pytest.fixture
def stored(tmp_path):
    """Paths of images, one for each row."""
    paths = [str(tmp_path / f"{row}.png") for row in range(N)]
    for path in paths:
        Pillow.new("RGB", (3, 2), (200, 0, 0)).save(path)
    return paths


def test_late_texts_without_tokens_are_named_before_the_work():
    """All of them are named by their numbers in the dataset that was passed, also after a shuffle."""
    model = models.bert().model
    check(model, texts())
    with pytest.raises(DataError, match=r"2 rows cannot be scored because of column 'input_ids': row 51, 66\."):
        check(model, texts({51: [], 66: []}))
    order = [*range(60), 66, *range(60, 66), *range(67, N)]
    with pytest.raises(DataError, match=r"1 row cannot .*: row 60.* no element that counts"):
        check(model, texts({66: []}).select(order))


def test_a_late_mask_that_is_false_everywhere_is_named():
    """The tokens are there, and none of them counts."""
    masks = [[int(row != 68)] * len(tokens) for row, tokens in enumerate(IDS)]
    with pytest.raises(DataError, match=r"column 'attention_mask': row 68.*attention_mask is false everywhere"):
        check(models.bert().model, texts().remove_columns("attention_mask").add_column("attention_mask", masks))


def test_a_late_value_that_is_not_finite_is_named():
    """A training continues with NaN, so that nothing else shows the row."""
    x = np.ones((N, 6), "float32")
    x[63, 2] = np.inf
    with pytest.raises(NonFiniteError, match=r"column 'x': row 63.*NaN or infinity"):
        check(Linear(), numbers().remove_columns("x").add_column("x", x.tolist()))


def test_a_late_text_of_one_token_has_no_target_for_a_language_model():
    """Its only token is predicted from nothing: labels are copies of the tokens, which the collator makes."""
    case = models.gpt2()

    def collate(rows):
        batch = models.collate([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows])
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    with pytest.raises(DataError, match=r"column 'input_ids': row 59.*no label token"):
        check(case.model, texts({59: [7]}), collate)


def test_late_images_that_are_missing_are_named(stored):
    """An image that is None, and a file that was deleted since the table was made."""
    check(Linear(), pictures(stored), None)
    with pytest.raises(DataError, match=r"column 'image': row 64\. .*AttributeError"):
        check(Linear(), pictures([None if row == 64 else path for row, path in enumerate(stored)]), None)
    with pytest.raises(DataError, match=r"column 'image': row 69\. .*no-such-file.*No such file"):
        check(Linear(), pictures([*stored[:-1], stored[-1] + "no-such-file"]), None)


def test_rows_that_a_collator_fixes_are_not_refused():
    """What the model is fed decides, and not what the table holds."""

    def collate(rows):
        return models.collate(
            [row if len(row["input_ids"]) else {**row, "input_ids": [1], "attention_mask": [1]} for row in rows]
        )

    check(models.bert().model, texts({51: []}), collate)


def test_poor_values_of_a_column_that_no_model_reads_are_no_reason(stored):
    """Notes may be missing, and labels too: such a row has the model's prediction."""
    notes = [None if row % 2 else "" for row in range(N)]
    check(Linear(), numbers(note=notes), None)
    labels = [None if row > 60 else row % 2 for row in range(N)]
    check(Linear(), numbers().remove_columns("labels").add_column("labels", labels), None)


def test_no_row_is_read_where_all_look_good(stored, monkeypatch):
    """The table alone answers for them."""
    monkeypatch.setattr("vog_hf.scoring.doubtful_rows._failure", lambda *_: pytest.fail("a row was read"))
    check(models.bert().model, texts())
    check(Linear(), pictures(stored), None)


@pytest.mark.parametrize(
    ("values", "kind", "rows"),
    [
        (["a long enough text", " \n", None, "a long enough text", ""], Value("string"), [2, 1, 4]),
        ([[1, 2], [], None, [3, 4], [5]], List(Value("int64")), [2, 1, 4]),
        ([[1.0, 2.0], [float("nan"), 0.0], [float("-inf"), 1.0]], List(Value("float32")), [1, 2]),
        ([[1.0, 2.0], [0.0, float("nan")], None], List(Value("float64"), length=2), [2, 1]),
        ([[[1, 2], [3, 4]], [], [[1], [2]]], List(List(Value("int64"))), [1]),
        ([0.5, float("nan"), None, 1.5], Value("float32"), [2, 1]),
        ([b"image", b"", None], Value("binary"), [2, 1]),
        ([{"bytes": b"x", "path": None}, {"bytes": None, "path": None}, None], FILE, [2, 1]),
        ([{"bytes": None, "path": "hf://a/b.png"}, {"bytes": b"", "path": None}], FILE, [1]),
        ([0, 1, -1], Value("int64"), []),
    ],
)
def test_the_table_shows_which_values_are_poor(values, kind, rows):
    """Null first, then what is empty or cannot be used, then what is short; also in several chunks or reversed."""
    dataset = Dataset.from_dict({"value": values}, Features({"value": kind}))
    assert dict(doubtful_rows(dataset, [], 9)) == ({"value": rows} if rows else {})
    twice = Dataset(pa.concat_tables([dataset.data.table] * 2), info=dataset.info)
    assert sorted(dict(doubtful_rows(twice, [], 9)).get("value", [])) == sorted(
        [*rows, *(len(values) + r for r in rows)]
    )
    backwards = dataset.select(range(len(values))[::-1])
    assert {len(values) - 1 - row for row in dict(doubtful_rows(backwards, [], 9)).get("value", [])} == set(rows)


def test_of_a_mask_the_elements_that_count_are_counted():
    """A mask of zeros is empty, however long it is."""
    dataset = Dataset.from_dict({"mask": [[1, 1, 0], [0, 0], [], [0, 1, 1]]})
    assert dict(doubtful_rows(dataset, ["mask"], 9)) == {"mask": [1, 2]}
    assert dict(doubtful_rows(dataset, [], 9)) == {"mask": [2]}
    truths = Dataset.from_dict({"mask": [[True, True, False], [False, False], [True, True]]})
    assert dict(doubtful_rows(truths, ["mask"], 9)) == {"mask": [1]}
