"""Rows to review as records of Argilla, for teams that have it, and their answers back into a journal.

``argilla`` is not a dependency: ``pip install argilla``. Nothing here connects to a server; see docs/review.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image

from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, RowMismatchError
from vog_hf.review.decision import DECISIONS, Decision, hex_of
from vog_hf.review.journal import Journal
from vog_hf.review.journal_header import JournalHeader, given_labels
from vog_hf.scores.formatting import printable
from vog_hf.scores.pictures import RowView, RowViews
from vog_hf.scores.ranking import class_names, ranking_column
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores

DECISION, LABEL, NOTE = "decision", "label", "note"  # the questions
ROW, ROW_HASH = "row", "row_hash"  # metadata of a record
SUBMITTED = "submitted"
SIDE = 640  # pixels of a picture's longer side; larger pictures are reduced to a few times that


def to_argilla(scores: VoGScores, dataset: AnyDataset, rows: Sequence[int]) -> list[Any]:
    """Convert rows to records, with the prediction as a suggestion if it differs from the given label.

    Args:
        scores: Scores of the dataset.
        dataset: Its rows; None = records show only their numbers.
        rows: Row numbers, in the order of the records: ``Queue(scores).rows(Filter())[:100]``.

    Returns:
        One ``argilla.Record`` per row: a field ``image`` or ``text``; row number and hash, given class and scores as
        metadata; the row number as id. They fit the questions of `argilla_questions`.

    Raises:
        RowMismatchError: The rows are not the ones that were scored.
        ConfigError: There is no such row, or argilla is not installed.
    """
    split, argilla = ScoredSplit("", scores, dataset), import_argilla()
    numbers = [int(row) for row in rows]
    outside = next((row for row in numbers if not 0 <= row < len(scores)), None)
    if outside is not None:
        raise ConfigError(f"rows must lie in 0..{len(scores) - 1}, got {outside}")
    return [_record(argilla, view) for view in RowViews(split, SIDE, fit=_as_decoded, cache_size=0).views(numbers)]


def argilla_questions(scores: VoGScores) -> list[dict[str, Any]]:
    """Questions for the records of `to_argilla`, as keyword arguments of Argilla's questions.

    Returns:
        Arguments of two ``LabelQuestion``: the decision, and the new label by number and name (left out for rows
        without a single class); and of one ``TextQuestion``: the note.
    """
    questions: list[dict[str, Any]] = [
        {"name": DECISION, "labels": list(DECISIONS), "required": True},
        {"name": NOTE, "required": False},
    ]
    if given_labels(scores) is not None:
        classes = range(JournalHeader.of(scores).n_classes or 0)
        names = {str(c): printable(str(name)) for c, name in enumerate(class_names(scores, classes))}
        questions.insert(1, {"name": LABEL, "labels": names, "required": False})
    return questions


def from_argilla(records: Iterable[object], journal: Journal, *, reviewers: Mapping[str, str] | None = None) -> int:
    """Write the submitted answers of Argilla's users into a journal; answers that it already has are skipped.

    A label counts only with the decision ``relabel``, because Argilla fills it in with the suggestion. All answers are
    verified before the first is written.

    Args:
        records: Records from ``dataset.records(with_responses=True)``.
        journal: Journal of the same data.
        reviewers: Names by user id; default: the id.

    Returns:
        Number of decisions written.

    Raises:
        RowMismatchError: A record is not about a row of the journal's data.
        ConfigError: An invalid answer; the message names the record and the user.
    """
    standing, new = journal.standing(), []
    for record in records:
        row = _row_of(record, journal)
        for user, answers in _answers(record).items():
            decision = _decision(journal, row, (reviewers or {}).get(user, user), answers)
            before = standing.get((row, decision.reviewer))
            if before is None or _content(before) != _content(decision):
                new.append(decision)
    for decision in new:
        given, label, note = _content(decision)
        journal.decide(decision.row, given, reviewer=decision.reviewer, label=label, note=note)
    return len(new)


def _content(decision: Decision) -> tuple[str, int | None, str]:
    return decision.decision, decision.label, decision.note


def import_argilla() -> Any:
    """Import Argilla; raise ConfigError with the install command if it is missing."""
    try:
        import argilla
    except ImportError as error:
        raise ConfigError(f"records for Argilla need its library ({error}); pip install argilla") from error
    return argilla


def _as_decoded(image: Image.Image, _: int) -> Image.Image:
    return image


def _record(argilla: Any, view: RowView) -> Any:
    suggestions = [argilla.Suggestion(LABEL, value=value, agent="last snapshot") for value in _suggested(view)]
    return argilla.Record(id=str(view.row), fields=_field(view), metadata=_metadata(view), suggestions=suggestions)


def _field(view: RowView) -> dict[str, Any]:
    if view.picture is not None:
        return {"image": view.picture}
    return {"text": printable(view.text) if view.text else f"row {view.row}"}


def _metadata(view: RowView) -> dict[str, Any]:
    scores, row = view.scores, view.row
    metadata: dict[str, Any] = {ROW: row}
    if scores.row_hash is not None:
        metadata[ROW_HASH] = hex_of(scores.row_hash[row])
    if given_labels(scores) is not None and view.label is not None:
        metadata["given"] = printable(str(view.label))
    for name in dict.fromkeys((ranking_column(scores), "vog", "vog_percentile")):
        value = view.value(name)
        if value is not None:
            metadata[name] = float(value)
    return metadata


def _suggested(view: RowView) -> list[str]:
    """The predicted class, as the question's value, if it is not the given decision."""
    labels = given_labels(view.scores)
    if labels is None or "prediction" not in view.scores.column_names:
        return []
    prediction = int(view.scores.column("prediction")[view.row])
    return [] if prediction == labels[view.row] else [str(prediction)]


def _row_of(record: Any, journal: Journal) -> int:
    """The number of a record's row, verified."""
    metadata = dict(record.metadata)
    row = metadata.get(ROW)
    if row is None:
        raise RowMismatchError(f"record {record.id} has no metadata {ROW!r}; it was not created by to_argilla")
    row = int(row)
    if not 0 <= row < journal.header.n_rows or metadata.get(ROW_HASH) != journal.row_hash(row):
        raise RowMismatchError(
            f"record {record.id} is about another row {row} than that of {journal.path}; pass the journal of its data"
        )
    return row


def _decision(journal: Journal, row: int, reviewer: str, answers: Mapping[str, Any]) -> Decision:
    """A user's answers to a record as a decision."""
    decision, label = answers.get(DECISION), answers.get(LABEL)
    try:
        new = int(label) if decision == "relabel" and label is not None else None
        return journal.check(row, str(decision), reviewer=reviewer, label=new, note=str(answers.get(NOTE) or ""))
    except ValueError as error:
        raise ConfigError(
            f"the answer of {reviewer!r} to record {row} is not a valid decision: {error}; fix it in Argilla"
        ) from error


def _answers(record: Any) -> dict[str, dict[str, Any]]:
    """The submitted answers by user and question."""
    answers: dict[str, dict[str, Any]] = {}
    for response in record.responses:
        status = getattr(response.status, "value", response.status)
        if status in (None, SUBMITTED):  # not drafts, nor what was discarded
            answers.setdefault(str(response.user_id), {})[response.question_name] = response.value
    return answers
