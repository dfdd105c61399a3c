"""Rows: loaded, identified, batched. May import `gradients` and the rooms below it.

`batch_reader` reads rows as batches, which `batch_collator` makes (`labels` reads the labels of rows, `collating` fixes
what a collator draws at random, `flattened_batches` takes batches of padding-free ones apart); `packed_rows` makes rows
of packed documents; `random_transforms` refuses rows that differ when they are read again, `map_style`
what has no rows by number; `numbered_rows` sends the number of each row along with it through a training; `bad_rows`
finds rows that fail, and `row_errors` says which. `batch_digests` tells batches from others, as `row_identity` does
rows by their Arrow table (`arrow_columns`, `row_hashes`); `streams` numbers the rows of a stream; `tokenizer_json`
finds the tokenizer of a trainer, and `spelled_tokens` spells a slow one out; `referenced_files` decides which files
that rows name may be read and shown, and `saving` writes rows with these files; `loading` loads a split by name,
`column_kinds` finds its columns, `classes` makes classes of labels and `label_noise` plants wrong ones; `rows` has the
types of what holds rows.
"""

from vog_hf.data.classes import as_classes, class_numbers, model_classes
from vog_hf.data.collating import SeededPerRow
from vog_hf.data.column_kinds import columns_of_kind, find_column
from vog_hf.data.label_noise import plant_label_noise
from vog_hf.data.loading import load_rows, part_of
from vog_hf.data.packed_rows import unpack_documents

__all__ = [
    "SeededPerRow",
    "as_classes",
    "class_numbers",
    "columns_of_kind",
    "find_column",
    "load_rows",
    "model_classes",
    "part_of",
    "plant_label_noise",
    "unpack_documents",
]
