"""A reviewer's decision about a row, and which decisions are valid."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

from vog_hf.errors import require_type
from vog_hf.scores.formatting import escaped

DECISIONS = ("keep", "relabel", "drop", "unsure")
LATER_FIELDS = ("queue", "random")  # journals of earlier versions do not have them


@dataclass(frozen=True)
class Decision:
    """A reviewer's decision about a row.

    Attributes:
        row: Number of the row in the dataset.
        decision: One of `DECISIONS`.
        label: New label, for ``"relabel"`` only.
        note: Note of the reviewer.
        reviewer: Name of the reviewer.
        time: UTC time, ISO 8601.
        id: Unique id of this decision.
        old_label: Given label of the row; None for a row without one.
        row_hash: Hash of the row's content in hexadecimal; None for scores without hashes.
        queue: Queue that showed the row, as `Filter.to_record` gives it; None if unknown, or for a row that was opened
            from elsewhere.
        random: Whether the queue showed it because it was drawn at random.
    """

    row: int
    decision: str
    label: int | None
    note: str
    reviewer: str
    time: str
    id: str
    old_label: int | None
    row_hash: str | None
    queue: Mapping[str, Any] | None = field(default=None, hash=False)
    random: bool = False

    def __post_init__(self) -> None:
        for name in ("reviewer", "note"):  # JSON can hold halves of surrogate pairs, tables cannot
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, escaped(value))

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> "Decision":
        """The decision in a line of a journal; KeyError for a missing field that every version has written."""
        later = {name: event[name] for name in LATER_FIELDS if name in event}
        return cls(**{name: event[name] for name in cls.__dataclass_fields__ if name not in LATER_FIELDS}, **later)

    def to_event(self) -> dict[str, Any]:
        """The fields for a line of a journal, without those that say nothing."""
        return {name: value for name, value in asdict(self).items() if value or name not in LATER_FIELDS}


def require_valid(decision: Decision, n_rows: int, n_classes: int | None) -> None:
    """Raise ValueError (TypeError for a note) for an invalid decision about these rows and classes."""
    if not is_whole(decision.row) or not 0 <= decision.row < n_rows:
        raise ValueError(f"row must be a whole number in 0..{n_rows - 1}, got {decision.row!r}")
    require_type("decision", decision.decision, str, f"pass one of {', '.join(DECISIONS)}")
    if decision.decision not in DECISIONS:
        raise ValueError(f"decision must be one of {', '.join(DECISIONS)}, got {decision.decision!r}")
    reviewer: Any = decision.reviewer
    if not isinstance(reviewer, str) or not reviewer.strip():
        raise ValueError(f"reviewer must be a name, got {reviewer!r}")
    if not isinstance(decision.note, str):
        raise TypeError(f"note must be text, got {decision.note!r}")
    require_type("queue", decision.queue, (Mapping, type(None)), "leave it out")
    require_type("random", decision.random, bool, "pass true or false")
    require_valid_label(decision, n_classes)


def require_valid_label(decision: Decision, n_classes: int | None) -> None:
    """Raise ValueError where a decision has a label that it cannot have, or lacks the one it needs."""
    label: Any = decision.label
    if decision.decision != "relabel":
        if label is not None:
            raise ValueError(
                f"a label goes with the decision 'relabel' alone, got label={label!r} with {decision.decision!r}"
            )
        return
    if n_classes is None:
        raise ValueError("rows that have no single class cannot be relabeled; decide keep, drop or unsure, with a note")
    if not is_whole(label) or not 0 <= label < n_classes:
        raise ValueError(f"the label of a 'relabel' must be a class in 0..{n_classes - 1}, got {label!r}")
    if label == decision.old_label:
        raise ValueError(f"row {decision.row} has the label {label} already; decide 'keep', or relabel it to another")


def hex_of(row_hash: Any) -> str:
    """A row's 64-bit hash as a journal writes it: JSON readers lose digits of large numbers."""
    return f"{int(row_hash):016x}"


def is_whole(value: object) -> bool:
    """True if this is a whole number, of Python or numpy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
