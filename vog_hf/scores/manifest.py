"""The shape of a manifest: what each key that is read holds, checked once when scores are loaded.

A folder of scores may come from elsewhere, or be damaged. Keys that are not listed are kept and never read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

TEXT, WHOLE, FLAG = (str,), (int,), (bool,)
MAYBE_TEXT, MAYBE_WHOLE = (str, type(None)), (int, type(None))
NAME = (str, int)  # of a class
CHECKPOINT = re.compile(r"checkpoint-(\d+)")  # the folder that Trainer writes at a step
WORDS = {str: "text", int: "a whole number", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Record:
    """A JSON object: the kinds of values by key, which of the keys must be there, and the kind of all others."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    others: Any = None  # None: of any kind, since nothing reads them


@dataclass(frozen=True)
class ListOf:
    """A JSON array of values of one kind; ``or_null``: or null."""

    item: Any
    or_null: bool = False


SOURCE = Record({"name": TEXT}, required=("name",), others=MAYBE_TEXT)  # the dataset, noted next to its scores
MANIFEST = Record(
    {
        "format": WHOLE,
        "created": MAYBE_TEXT,
        "versions": Record(others=MAYBE_TEXT),
        "n_rows": MAYBE_WHOLE,
        "config": Record(
            {"target": ListOf(TEXT), "label": MAYBE_TEXT, "label_column": MAYBE_TEXT, "dtype": MAYBE_TEXT},
        ),
        "task": MAYBE_TEXT,
        "class_names": ListOf(NAME, or_null=True),
        "units": Record({"of": TEXT, "columns": ListOf(TEXT), "class_names": ListOf(NAME, or_null=True)}),
        "normalized_over": MAYBE_TEXT,
        "model": Record({"class": MAYBE_TEXT, "name": MAYBE_TEXT, "revision": MAYBE_TEXT, "pretrained": FLAG}),
        "input": Record({"name": MAYBE_TEXT, "element_shape": ListOf(WHOLE)}),
        "computed": Record({"device": MAYBE_TEXT, "folding": MAYBE_TEXT}),
        "data": Record({"columns": Record(others=TEXT), "source": Record(others=MAYBE_TEXT)}),
        "transform": Record(
            {"processor": MAYBE_TEXT, "max_length": MAYBE_WHOLE, "input_columns": ListOf(TEXT)},
        ),
        "snapshots": ListOf(Record({"name": TEXT, "step": MAYBE_WHOLE, "digest": MAYBE_TEXT}, required=("name",))),
        "windows": Record(others=ListOf(TEXT)),
        "windows_missing": MAYBE_TEXT,
        "thinned": MAYBE_TEXT,
        "collect": MAYBE_TEXT,
        "rows_digest": MAYBE_TEXT,
        "skipped": Record(
            {"count": WHOLE, "rows": ListOf(Record({"row": WHOLE, "reason": TEXT}, required=("row", "reason")))},
            required=("count",),
        ),
        "review": Record({"mode": MAYBE_TEXT, "rows_scored": MAYBE_WHOLE, "labels": MAYBE_TEXT}),
        "files": Record(others=Record({"bytes": WHOLE, "crc32": TEXT}, required=("bytes", "crc32"))),
    },
    required=("format",),
)


@dataclass(frozen=True)
class Manifest:
    """The keys of a manifest that are read, each with an empty value where it is missing; see `MANIFEST`.

    Attributes:
        class_names: Names of the classes; None if rows have no single class.
    """

    class_names: list[Any] | None = None
    collect: str | None = None
    computed: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    created: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    input: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    n_processes: int | None = None
    normalized_over: str | None = None
    review: Mapping[str, Any] = field(default_factory=dict)
    rows_digest: str = ""
    skipped: Mapping[str, Any] = field(default_factory=dict)
    snapshots: Sequence[Mapping[str, Any]] = ()
    task: str | None = None
    thinned: str | None = None
    transform: Mapping[str, Any] = field(default_factory=dict)
    units: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    windows: Mapping[str, Sequence[str]] = field(default_factory=dict)
    windows_missing: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Manifest":
        """Read the values of a manifest; null means missing.

        Example:
            >>> facts = Manifest.of({"config": {"target": ["loss"]}, "windows": None, "unknown": 1})
            >>> facts.targets, facts.windows, facts.class_names
            (['loss'], {}, None)
        """
        names = [key.name for key in fields(cls)]
        return cls(**{name: values[name] for name in names if values.get(name) is not None})

    @property
    def targets(self) -> Sequence[str]:
        """Names of the targets; the first fills the column ``vog``."""
        return self.config.get("target") or []

    @property
    def unit_class_names(self) -> Sequence[Any]:
        """Names of the classes of units; none if they have no names."""
        return self.units.get("class_names") or []

    @property
    def n_skipped(self) -> int:
        """Number of rows that could not be scored and were skipped."""
        return int(self.skipped.get("count", 0))

    @property
    def skipped_rows(self) -> Sequence[Mapping[str, Any]]:
        """``row`` and ``reason`` of the first of these rows."""
        return self.skipped.get("rows") or []

    @property
    def label_column(self) -> str | None:
        """Column of the labels, if it was named."""
        return self.config.get("label_column")

    @property
    def column_digests(self) -> Mapping[str, str]:
        """Digest of each column of the dataset."""
        return self.data.get("columns") or {}

    @property
    def is_pretrained(self) -> bool:
        """True if the training began with pretrained weights, as far as it is known.

        Manifests of earlier versions hold just the name of the weights that the model was loaded from; those of a
        checkpoint say nothing.
        """
        name = self.model.get("name") or ""
        return bool(self.model.get("pretrained", name and not CHECKPOINT.fullmatch(name)))

    @property
    def reads_tokens(self) -> bool:
        """True if gradients are with respect to the embedding of tokens."""
        return bool(self.input.get("embedding"))


def fault_in(value: object, kind: Any = MANIFEST, place: str = "the manifest") -> str | None:
    """The first part of a value that is not of its kind, in words; None for a valid value.

    Example:
        >>> fault_in({"format": 1, "snapshots": [{"step": 3}]})
        "the manifest's 'snapshots'[0] has no 'name'"
        >>> fault_in({"format": 1, "data": []})
        "the manifest's 'data' must be an object, got []"
    """
    if isinstance(kind, Record):
        return _fault_in_record(value, kind, place)
    if isinstance(kind, ListOf):
        if value is None and kind.or_null:
            return None
        if not isinstance(value, list):
            return f"{place} must be a list, got {_shown(value)}"
        return next(filter(None, (fault_in(item, kind.item, f"{place}[{i}]") for i, item in enumerate(value))), None)
    if isinstance(value, kind) and (bool in kind or not isinstance(value, bool)):
        return None
    return f"{place} must be {' or '.join(WORDS[one] for one in kind)}, got {_shown(value)}"


def _fault_in_record(value: object, kind: Record, place: str) -> str | None:
    if not isinstance(value, Mapping):
        return f"{place} must be an object, got {_shown(value)}"
    missing = next((name for name in kind.required if name not in value), None)
    if missing is not None:
        return f"{place} has no {missing!r}"
    for name, item in value.items():
        of_item = kind.fields.get(name, kind.others)
        fault = None if of_item is None else fault_in(item, of_item, f"{place}'s {name!r}")
        if fault is not None:
            return fault
    return None


def _shown(value: object) -> str:
    return ascii(value)[:60]
