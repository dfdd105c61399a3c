"""The first line of a journal, which identifies the data that its decisions are about."""

import hashlib
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.data.row_identity import RowIdentity
from vog_hf.errors import RowMismatchError
from vog_hf.review.decision import now
from vog_hf.scores.consistency import MAX_CLASSES, class_count
from vog_hf.scores.manifest import MAYBE_TEXT, MAYBE_WHOLE, TEXT, WHOLE, ListOf, Record, fault_in
from vog_hf.scores.ranking import has_classes, is_skipped
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)

KIND, FORMAT = "vog_hf.review", 1
HEADER_START = f'{{"journal": "{KIND}"'.encode()  # tells a header that was cut off from a file of somebody else's
HEADER = Record(
    {
        "n_rows": WHOLE,
        "columns": Record(others=TEXT),
        "label_digest": MAYBE_TEXT,
        "n_classes": MAYBE_WHOLE,
        "class_names": ListOf(TEXT, or_null=True),
        "created": TEXT,
        "unscored": ListOf(WHOLE),
    }
)

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class JournalHeader:
    """Identity of the data of a journal.

    Attributes:
        n_rows: Number of rows.
        columns: Digest of every column of the dataset, in its order; empty for a dataset without a table.
        label_digest: Digest of the given labels; None where rows have no single class.
        n_classes: Number of classes; None for rows without a single class.
        class_names: Their names, where they have any.
        created: When the journal was begun, UTC, ISO 8601.
        unscored: Rows without a score, whose labels are not in the digest; earlier versions did not note them.
    """

    n_rows: int
    columns: dict[str, str]
    label_digest: str | None
    n_classes: int | None
    class_names: list[str] | None
    created: str
    unscored: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, scores: VoGScores) -> "JournalHeader":
        """The header of a journal for these scores, begun now."""
        label, names = given_labels(scores), scores.facts.class_names
        return cls(
            n_rows=len(scores),
            columns=scores.identity.columns,
            label_digest=None if label is None else label_digest(label),
            n_classes=None if label is None else class_count(scores),
            class_names=None if label is None or not names else [str(name) for name in names],
            created=now(),
            unscored=unscored_rows(scores),
        )

    @classmethod
    def parse(cls, event: dict[str, Any]) -> "JournalHeader":
        """The header in a journal's first line; KeyError or ValueError where it is none."""
        if event["journal"] != KIND or event["format"] != FORMAT:
            raise ValueError(
                f"journal {event['journal']!r} of format {event['format']!r}, this version reads {KIND!r}, {FORMAT}"
            )
        names = (name for name in cls.__dataclass_fields__ if name != "unscored")
        header = cls(**{name: event[name] for name in names}, unscored=event.get("unscored", []))
        fault = fault_in(asdict(header), HEADER, "the header")
        if fault is not None or header.n_rows < 0 or not 0 <= (header.n_classes or 0) <= MAX_CLASSES:
            raise ValueError(fault or f"{header.n_rows} rows and {header.n_classes} classes")
        if not all(0 <= row < header.n_rows for row in header.unscored):
            raise ValueError(f"a row without a score that is not one of {header.n_rows}")
        return header

    def event(self) -> dict[str, Any]:
        """The first line of a journal."""
        return {"journal": KIND, "format": FORMAT, **asdict(self)}

    @property
    def identity(self) -> RowIdentity:
        """The rows that the journal is of, without a hash of each."""
        return RowIdentity(self.n_rows, self.columns, None)

    def verify(
        self, identity: RowIdentity, labels: Labels | None, path: Path | str, *, unscored: Collection[int] = ()
    ) -> None:
        """Raise RowMismatchError where rows are not those of the journal.

        All columns that both have are compared; without one, the labels; without these, two tables are refused, and
        other rows are accepted with a warning.

        Args:
            identity: Identity of the given rows.
            labels: Their labels, which are compared if no column can be.
            path: Path of the journal.
            unscored: Rows whose labels are not known, because they have no score.
        """
        try:
            shared = self.identity.verify(identity)
        except RowMismatchError as error:
            raise RowMismatchError(
                f"the journal {path} belongs to a different dataset: {error}; pass its own dataset, or another journal"
            ) from error
        if shared:
            return
        if labels is not None and self.label_digest is not None and set(unscored) <= set(self.unscored):
            self._verify_labels(labels, path)
            return
        if self.columns and identity.columns and not self.columns.keys() & identity.columns.keys():
            raise RowMismatchError(
                f"the journal {path} belongs to a different dataset: it has the columns {', '.join(self.columns)}, and "
                f"these rows {', '.join(identity.columns)}; pass its own dataset with its column names"
            )
        logger.warning("the rows could only be compared with %s by their number: no column is shared", path)

    def verify_scores(self, scores: VoGScores, path: Path | str) -> None:
        """Raise RowMismatchError where scores are not of the rows of the journal."""
        self.verify(scores.identity, given_labels(scores), path, unscored=unscored_rows(scores))

    def _verify_labels(self, labels: Labels, path: Path | str) -> None:
        """Raise RowMismatchError if labels differ in a row that had a score when the journal was begun."""
        scored = labels.copy()
        scored[self.unscored] = -1
        if label_digest(scored) != self.label_digest:
            raise RowMismatchError(
                f"the journal {path} belongs to a different dataset: the labels differ; pass its own dataset"
            )


def unscored_rows(scores: VoGScores) -> list[int]:
    """The rows without a score."""
    return [int(row) for row in np.flatnonzero(is_skipped(scores))]


def given_labels(scores: VoGScores) -> Labels | None:
    """``[rows]`` given labels, -1 for a row without one; None for rows without a single class."""
    if "label" not in scores.column_names or not has_classes(scores):
        return None
    return scores.column("label").astype(np.int64)


def label_digest(labels: Labels) -> str:
    """SHA-256 of labels; every negative number means no label."""
    clean = np.where(labels < 0, -1, labels).astype("<i8")
    return hashlib.sha256(clean.tobytes()).hexdigest()


def is_header_start(data: bytes) -> bool:
    """Return whether an incomplete first line is that of a journal."""
    return data.startswith(HEADER_START) or HEADER_START.startswith(data)
