"""Flattened batches: rows that a padding-free collator puts end to end, taken apart into one example per row."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vog_hf.data.packed_rows import several_documents
from vog_hf.gradients.task import IGNORED_TOKEN

BOUNDARIES = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx")  # of rows in a sequence
IDS, POSITIONS = "input_ids", "position_ids"


def one_example_per_row(rows: Sequence[object], batch: object, label_names: Collection[str]) -> Any:
    """A flattened batch as a padded one with an attention mask; any other batch as it is.

    The tokens of a flattened batch ``[1, tokens]`` are those of its rows, one after the other, as transformers'
    ``DataCollatorWithFlattening`` and TRL's collator with ``padding_free=True`` put them. Its labels stay as they are:
    that of a row's first token is -100, and nothing predicts that token.

    Args:
        rows: Rows that were collated.
        batch: Batch that the collator made of them.
        label_names: Keys of labels, which are padded with -100; other keys are padded with 0.

    Raises:
        DataError: The positions begin again inside of a row.
    """
    ids = batch.get(IDS) if isinstance(batch, Mapping) else None
    if not isinstance(batch, Mapping) or not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != 1:
        return batch
    others = {name: value for name, value in batch.items() if name not in BOUNDARIES}
    flat = {n: value[0] for n, value in others.items() if isinstance(value, Tensor) and value.shape[:2] == ids.shape}
    lengths = _lengths(rows, flat) if _may_be_flat(rows, batch) else None
    if lengths is None:
        return batch
    if POSITIONS in flat:
        _require_one_document(flat[POSITIONS][: sum(lengths)].split(lengths))
    padded = {
        name: pad_sequence(
            values[: sum(lengths)].split(lengths),
            batch_first=True,
            padding_value=IGNORED_TOKEN if name in label_names else 0,
        )
        for name, values in flat.items()
    }
    places = torch.arange(max(lengths))
    return {**others, **padded, "attention_mask": (places < torch.tensor(lengths).unsqueeze(1)).long()}


def _may_be_flat(rows: Sequence[object], batch: Mapping[str, object]) -> bool:
    """Tell whether a batch of one example may be flattened: of one row it is if the collator says where it begins."""
    if len(rows) != 1:
        return len(rows) > 1
    names = set(rows[0]) if isinstance(rows[0], Mapping) else set()
    return "attention_mask" not in batch and bool({POSITIONS, *BOUNDARIES} & batch.keys() - names)


def _lengths(rows: Sequence[object], flat: Mapping[str, Tensor]) -> list[int] | None:
    """Number of tokens of each row; None where the tokens of the batch are not those of its rows."""
    ids = flat[IDS]
    of_rows = [torch.as_tensor(r[IDS], dtype=ids.dtype) for r in rows if isinstance(r, Mapping) and IDS in r]
    if len(of_rows) == len(rows):
        whole = torch.cat(of_rows)
        is_same = len(whole) <= len(ids) and torch.equal(whole, ids[: len(whole)])
        return [len(row) for row in of_rows] if is_same and _is_padding(flat, len(whole)) else None
    if POSITIONS not in flat:
        return None
    starts = _starts(flat[POSITIONS])
    return torch.diff(starts, append=torch.tensor([len(ids)])).tolist() if len(starts) == len(rows) else None


def _is_padding(flat: Mapping[str, Tensor], start: int) -> bool:
    """Tell whether everything from a place on is padding (``pad_to_multiple_of``)."""
    return start == len(flat[IDS]) or ("labels" in flat and bool((flat["labels"][start:] == IGNORED_TOKEN).all()))


def _starts(positions: Tensor) -> Tensor:
    """Places at which positions ``[tokens]`` do not continue those before: where documents begin."""
    begins = torch.ones(len(positions), dtype=torch.bool)
    begins[1:] = torch.diff(positions) != 1
    return begins.nonzero().flatten()


def _require_one_document(positions_of_rows: Sequence[Tensor]) -> None:
    for positions in positions_of_rows:
        n_documents = len(_starts(positions))
        if n_documents > 1:
            raise several_documents("a row", n_documents, POSITIONS)
