"""The columns of a dataset that hold inputs and labels, as a command finds them by name and type."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vog_hf.cli.token_limits import ROWS_AT_ONCE
from vog_hf.errors import ConfigError, DataError
from vog_hf.gradients.model_inputs import LABEL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset

    from vog_hf.data.column_kinds import Kind


def find_input(dataset: "Dataset", kind: "Kind", label: str | None) -> str:
    """The only column of a kind of input; raises ConfigError where there is none, or several."""
    from vog_hf.data.column_kinds import columns_of_kind

    others = [name for name in dataset.column_names if name != label]
    candidates = [name for name in columns_of_kind(dataset, kind) if name != label]
    if len(candidates) != 1:
        which = f"several columns of {kind} ({', '.join(candidates)})" if candidates else f"no column of {kind}"
        pairs = ", twice for pairs of texts" if kind == "text" and len(candidates) > 1 else ""
        raise ConfigError(f"the dataset has {which}; name one of {', '.join(others)} with --input-column{pairs}")
    return candidates[0]


def find_label(dataset: "Dataset") -> str | None:
    """The label column by its usual names, else the only one of classes; raises ConfigError where there are several."""
    from vog_hf.data.column_kinds import columns_of_kind

    usual = [name for name in LABEL_NAMES if name in dataset.column_names]
    if usual:
        return usual[0]
    classes = columns_of_kind(dataset, "class")
    if len(classes) > 1:
        raise ConfigError(
            f"the dataset has several columns of classes ({', '.join(classes)}); name one with --label-column"
        )
    return classes[0] if classes else None


def find_text(dataset: "Dataset") -> str:
    """The column that language models read: ``text``, else the only one of texts."""
    return "text" if "text" in dataset.column_names else find_input(dataset, "text", None)


def refuse_label(label: str | None, model: str, advice: str) -> None:
    """Raise ConfigError where a label column is named for a model that takes its labels from its input."""
    if label is not None:
        raise ConfigError(f"{model} has no label column, and --label-column names {label!r}; leave it out, or {advice}")


def require_inputs(dataset: "Dataset", inputs: Sequence[str]) -> None:
    """Raise DataError if a row has no image, text or audio; nothing is decoded."""
    stored = dataset.with_format("arrow")
    for name in inputs:
        first = 0
        for part in stored.select_columns([name]).iter(ROWS_AT_ONCE):
            column = part.column(name)
            if column.null_count:
                row = first + column.is_null().index(True).as_py()
                raise DataError(
                    f"row {row:,} has no value in column {name!r}; remove rows without a value, fill them, or pass "
                    "on_error='skip'",
                    argument="on_error='skip'",
                )
            first += len(column)
