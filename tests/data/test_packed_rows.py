"""Packed rows become documents, and collated batches of several rows in one sequence become one example per row."""

import logging

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, List, Value
from packed_texts import LONGEST, PaddingFree, documents, packed
from torch.testing import assert_close
from transformers import DataCollatorWithFlattening

from vog_hf.data import unpack_documents
from vog_hf.data.flattened_batches import one_example_per_row
from vog_hf.errors import DataError

NAMES = ["labels"]


def test_unpacked_documents_are_those_that_were_packed(caplog):
    """Each with its tokens, its labels and its place; documents as long as the longest sequence are said to be."""
    rows, order = packed(documents())
    with caplog.at_level(logging.WARNING):
        found = unpack_documents(rows)
    assert [{key: row[key] for key in ("input_ids", "labels")} for row in found] == [documents()[i] for i in order]
    places = [(i, k) for i, lengths in enumerate(rows["seq_lengths"]) for k in range(len(lengths))]
    assert list(zip(found["sequence"], found["document"], strict=True)) == places
    assert found["may_be_cut"][:] == [len(documents()[i]["input_ids"]) == LONGEST for i in order]
    assert f"VoG: {sum(found['may_be_cut'])} of 53 documents are as long as the longest sequence (16 to" in caplog.text
    part = unpack_documents(rows.shuffle(seed=0).select(range(3)))
    assert set(part.to_pandas()["sequence"]) == {0, 1, 2}
    assert [len(ids) for ids in part["input_ids"]] == [n for s in rows.shuffle(seed=0)["seq_lengths"][:3] for n in s]


def test_documents_are_also_found_by_positions_that_begin_again():
    """With the values that a row has once, and those of every split of a DatasetDict."""
    features = Features(
        {"input_ids": List(Value("int32")), "position_ids": List(Value("int32")), "source": Value("string")}
    )
    columns = {
        "input_ids": [[5, 6, 7], [], [8, 9, 10, 11]],
        "position_ids": [[0, 1, 0], [], [2, 3, 2, 2]],
        "source": ["a", "b", "c"],
    }
    rows = Dataset.from_dict(columns, features=features)
    found = unpack_documents(DatasetDict({"train": rows, "other": rows.select([2])}))
    assert found["train"]["input_ids"][:] == [[5, 6], [7], [8, 9], [10], [11]]
    assert found["train"]["position_ids"][:] == [[0, 1], [0], [2, 3], [2], [2]]
    assert found["train"]["source"][:] == ["a", "a", "c", "c", "c"]
    assert found["train"]["sequence"][:] == [0, 0, 2, 2, 2]
    assert found["other"]["input_ids"][:] == [[8, 9], [10], [11]]
    assert {name: found["train"].features[name] for name in columns} == features
    assert len(unpack_documents(rows.select([]))) == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"input_ids": [[1, 2]]}, r"nothing says where a document begins.*'bfd', or score each sequence"),
        ({"input_ids": ["a"], "seq_lengths": [[1]]}, "nothing says where a document begins"),
        (
            {"input_ids": [[1], [1, 2]], "seq_lengths": [[1], [1, 2]]},
            r"row 1 has 2 tokens, and its seq_lengths add up to 3",
        ),
        ({"input_ids": [[1]], "seq_lengths": [[1]], "document": [0]}, r"\['document'\] are added by unpack_documents"),
    ],
)
def test_rows_that_do_not_say_where_documents_begin_are_refused(rows, message):
    """With what works instead; and so is a list of rows."""
    with pytest.raises(DataError, match=message):
        unpack_documents(Dataset.from_dict(rows))
    with pytest.raises(DataError, match=r"needs a datasets.Dataset, got list; pass the packed dataset"):
        unpack_documents([{"input_ids": [1], "seq_lengths": [1]}])


COLLATORS = {
    "positions": DataCollatorWithFlattening(),
    "no positions": DataCollatorWithFlattening(return_position_ids=False),
    "bounds": DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True),
    "trl": PaddingFree(),
    "trl, filled up": PaddingFree(pad_to_multiple_of=8),
}


@pytest.mark.parametrize("n_rows", [1, 2, 53])
@pytest.mark.parametrize("name", COLLATORS)
def test_a_flattened_batch_is_taken_apart_into_its_rows(name, n_rows):
    """Tokens, labels and positions of each row, padded, under a mask; where it was in the sequence is left out."""
    rows = documents()[-n_rows:]
    batch = COLLATORS[name](rows)
    apart = one_example_per_row(rows, batch, NAMES)
    if name == "no positions" and n_rows == 1:  # nothing tells it from any other batch
        assert apart is batch
        return
    lengths = [len(row["input_ids"]) for row in rows]
    assert set(apart) == {"input_ids", "labels", "attention_mask", *batch.keys() & {"position_ids"}}
    assert apart["attention_mask"].sum(1).tolist() == lengths
    starts = [sum(lengths[:i]) for i in range(n_rows)]
    for i, (row, n, start) in enumerate(zip(rows, lengths, starts, strict=True)):
        assert apart["input_ids"][i, :n].tolist() == row["input_ids"]
        assert apart["labels"][i].tolist() == [-100, *row["labels"][1:], *[-100] * (max(lengths) - n)]
        for key in apart.keys() & {"position_ids"}:
            assert_close(apart[key][i, :n], batch[key][0, start : start + n])


def test_rows_without_tokens_keep_their_place():
    """A collator that drops them does not move the others."""
    rows = [{"input_ids": ids} for ids in ([], [5, 6], [], [7])]
    apart = one_example_per_row(rows, DataCollatorWithFlattening()(rows), NAMES)
    assert apart["attention_mask"].tolist() == [[0, 0], [1, 1], [0, 0], [1, 0]]
    assert apart["input_ids"].tolist() == [[0, 0], [5, 6], [0, 0], [7, 0]]


def test_rows_that_only_their_collator_tokenizes_are_found_by_positions():
    """As many documents as rows, or the batch stays as it is."""
    rows = ["a b", "c", "d e f"]
    batch = PaddingFree()([{"input_ids": [5, 6]}, {"input_ids": [7]}, {"input_ids": [8, 9, 10]}])
    apart = one_example_per_row(rows, batch, NAMES)
    assert apart["input_ids"].tolist() == [[5, 6, 0], [7, 0, 0], [8, 9, 10]]
    assert one_example_per_row(rows[:2], batch, NAMES) is batch


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(1, 3),
        {"pixel_values": torch.ones(1, 3)},
        {"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[5, 6, 7]])},
        {"input_ids": torch.tensor([[6, 5]])},
        {"input_ids": torch.tensor([[5]])},
        {"input_ids": torch.tensor([[5, 6], [7, 8]])},
    ],
)
def test_other_batches_stay_as_they_are(batch):
    """Tokens in another order, tokens of other rows, rows that are cut off, one example per row."""
    assert one_example_per_row([{"input_ids": [5]}, {"input_ids": [6]}], batch, NAMES) is batch


def test_positions_that_begin_again_inside_of_a_row_are_refused():
    """They are documents, which `unpack_documents` makes rows of; the same positions of two rows are taken apart."""
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "position_ids": torch.tensor([[2, 3, 2]])}
    one_example_per_row([{"input_ids": [5, 6]}, {"input_ids": [7]}], batch, NAMES)
    for rows in ([[5, 6, 7]], [[5], [6, 7]]):
        with pytest.raises(DataError, match=r"a row holds 2 documents \(position_ids\), .*pass unpack_documents\(data"):
            one_example_per_row([{"input_ids": ids} for ids in rows], batch, NAMES)
