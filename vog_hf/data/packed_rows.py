"""Packed rows: sequences of several documents, and the documents as rows of their own."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value

from vog_hf.data.arrow_columns import has_table, list_lengths
from vog_hf.data.rows import AnyDataset
from vog_hf.errors import DataError

logger = logging.getLogger(__name__)

IDS, LENGTHS, POSITIONS = "input_ids", "seq_lengths", "position_ids"
SEQUENCE, DOCUMENT, MAY_BE_CUT = "sequence", "document", "may_be_cut"  # columns of unpacked documents

Packed = TypeVar("Packed", Dataset, DatasetDict)


def unpack_documents(packed: Packed) -> Packed:
    """Unpack a dataset of packed sequences into its documents: one per row, in the order of the sequences.

    For training data that is packed, as by TRL's ``SFTTrainer`` with ``packing=True``: each document is then a row of
    the scores. Columns with an entry per token are cut into documents, others are repeated. Three columns are added:

    - ``sequence``: row number in the packed dataset;
    - ``document``: place among the documents of this sequence;
    - ``may_be_cut``: true for a document as long as the longest sequence. Packing may have cut it off there (TRL's
      "bfd"), or have put its rest into another sequence ("bfd_split"), where it is a document of its own. A warning
      counts these.

    Args:
        packed: Dataset with a column ``input_ids``, and ``seq_lengths`` (tokens of each document) or ``position_ids``,
            which begin again at each document. Of a `datasets.DatasetDict`, each split is unpacked.

    Raises:
        DataError: Nothing says where documents begin, as after TRL's strategy "wrapped", or the lengths do not fit.

    Example:
        >>> from datasets import Dataset
        >>> packed = Dataset.from_dict({"input_ids": [[5, 6, 7, 8], [9, 9]], "seq_lengths": [[3, 1], [2]]})
        >>> unpack_documents(packed).to_pandas()
           input_ids  sequence  document  may_be_cut
        0  [5, 6, 7]         0         0       False
        1        [8]         0         1       False
        2     [9, 9]         1         0       False
    """
    if isinstance(packed, DatasetDict):
        return DatasetDict({name: unpack_documents(split) for name, split in packed.items()})
    longest, features = _longest_sequence(packed), _features(packed)
    if not len(packed):
        return Dataset.from_dict({name: [] for name in features}, features=features)
    documents = packed.with_format("arrow")
    documents = documents.map(
        partial(_documents, longest=longest),
        batched=True,
        with_indices=True,
        remove_columns=[LENGTHS] if LENGTHS in packed.column_names else None,
        features=features,
        desc="Unpacking documents",
    ).with_format(None)
    n_cut = int(pc.sum(documents.data.column(MAY_BE_CUT)).as_py() or 0)
    if n_cut:
        logger.warning(
            "VoG: %d of %d documents are as long as the longest sequence (%d tokens): packing may have cut them off, "
            "or put their rest into another sequence (column %r)",
            *(n_cut, len(documents), longest, MAY_BE_CUT),
        )
    return documents


def require_one_document_per_row(dataset: AnyDataset) -> None:
    """Raise DataError where a stored row holds several documents; without reading any."""
    counts = list_lengths(dataset, LENGTHS)
    if counts is not None and has_table(dataset) and IDS in dataset.column_names and (counts > 1).any():
        row = int((counts > 1).argmax())
        raise several_documents(f"row {row}", int(counts[row]), LENGTHS)


def require_one_document(rows: Sequence[object]) -> None:
    """Raise DataError where one of the rows as they were read holds several documents."""
    for row in rows:
        n_documents = np.size(row.get(LENGTHS, ())) if isinstance(row, Mapping) and IDS in row else 0
        if n_documents > 1:
            raise several_documents("a row", n_documents, LENGTHS)


def several_documents(row: str, n_documents: int, column: str) -> DataError:
    """The error for a row that holds several documents."""
    return DataError(
        f"{row} holds {n_documents} documents ({column}), and each document has a score of its own: pass "
        "unpack_documents(dataset), from vog_hf.data"
    )


def _longest_sequence(packed: Dataset) -> int:
    """Tokens of the longest sequence of a dataset that says where documents begin."""
    if not has_table(packed):
        raise DataError(
            f"unpack_documents needs a datasets.Dataset, got {type(packed).__name__}; pass the packed dataset, as "
            "trainer.train_dataset"
        )
    names, sizes = packed.column_names, list_lengths(packed, IDS)
    if sizes is None or not {LENGTHS, POSITIONS} & set(names):
        raise DataError(
            f"nothing says where a document begins: the columns are {names}, expected {IDS} and {LENGTHS} or "
            f"{POSITIONS}; pack with TRL's strategy 'bfd', or score each sequence (strategy 'wrapped') as a row"
        )
    taken = sorted({SEQUENCE, DOCUMENT, MAY_BE_CUT} & set(names))
    if taken:
        raise DataError(f"the columns {taken} are added by unpack_documents; rename or remove yours")
    return int(sizes.max(initial=0))


def _features(packed: Dataset) -> Features:
    added = {SEQUENCE: Value("int64"), DOCUMENT: Value("int64"), MAY_BE_CUT: Value("bool")}
    return Features({name: feature for name, feature in packed.features.items() if name != LENGTHS} | added)


def _documents(sequences: pa.Table, numbers: list[int], *, longest: int) -> pa.Table:
    """The documents of some sequences, given their row numbers."""
    sizes = _numpy(pc.list_value_length(sequences[IDS]))
    counts, lengths = _lengths(sequences, sizes, numbers)
    of_document = np.repeat(np.arange(len(sizes)), counts)
    columns = {
        name: _cut(column, sizes, lengths, of_document)
        for name, column in zip(sequences.column_names, sequences.columns, strict=True)
        if name != LENGTHS
    }
    places = np.arange(len(lengths)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns |= {SEQUENCE: pa.array(np.asarray(numbers)[of_document]), DOCUMENT: pa.array(places)}
    return pa.table({**columns, MAY_BE_CUT: pa.array((lengths == longest) & (longest > 0))})


def _lengths(
    sequences: pa.Table, sizes: npt.NDArray[np.int64], numbers: Sequence[int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Number of documents of each sequence, and tokens of each document."""
    starts = np.cumsum(sizes) - sizes
    if LENGTHS not in sequences.column_names:
        positions = _numpy(pc.list_flatten(sequences[POSITIONS]))
        begins = np.diff(positions, prepend=positions[:1]) != 1
        begins[starts[sizes > 0]] = True
        at = np.flatnonzero(begins)
        of_sequence = np.searchsorted(starts + sizes, at, side="right")
        return np.bincount(of_sequence, minlength=len(sizes)), np.diff(at, append=len(positions))
    counts = _numpy(pc.list_value_length(sequences[LENGTHS]))
    lengths = _numpy(pc.list_flatten(sequences[LENGTHS]))
    totals = np.bincount(np.repeat(np.arange(len(sizes)), counts), lengths, len(sizes)).astype(np.int64)
    if not np.array_equal(totals, sizes):
        wrong = int((totals != sizes).argmax())
        raise DataError(
            f"row {numbers[wrong]} has {sizes[wrong]} tokens, and its {LENGTHS} add up to {totals[wrong]}; pass it as "
            "it was packed"
        )
    return counts, lengths


def _cut(
    column: pa.ChunkedArray,
    sizes: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    of_document: npt.NDArray[np.int64],
) -> pa.Array:
    """A column with an entry per token, cut into documents; any other one with its value for each document."""
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not is_list or not np.array_equal(_numpy(pc.list_value_length(column)), sizes):
        return column.take(pa.array(of_document))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)])).cast(
        pa.int64() if pa.types.is_large_list(kind) else pa.int32()
    )
    lists = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    return lists.from_arrays(offsets, pc.list_flatten(column).combine_chunks(), type=kind)


def _numpy(values: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Whole numbers, 0 where one is null."""
    return np.asarray(pc.fill_null(values, 0).to_numpy(), dtype=np.int64)
