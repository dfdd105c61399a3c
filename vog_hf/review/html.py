"""Records as HTML, through templates that escape all data."""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vog_hf.review.decision import Decision
from vog_hf.review.row_records import RowRecord, SmallRecord
from vog_hf.scores.descriptions import boxes_note, heat_note
from vog_hf.scores.formatting import printable
from vog_hf.scores.ranking import class_names
from vog_hf.scores.vog_scores import VoGScores

LABEL_NOTE = (
    "The labels here are from an earlier review; scores, confidence and heat maps were computed with earlier labels."
)
WORDS = {"keep": "Keep", "relabel": "Relabel", "drop": "Drop", "unsure": "Unsure"}


class PageMaker:
    """HTML of rows and of the decisions about them.

    Args:
        scores: Scores, for the names of classes and the explanation of heat maps.
    """

    def __init__(self, scores: VoGScores) -> None:
        self._scores = scores
        labels = scores.facts.review.get("labels")
        self._label_note = LABEL_NOTE if labels == "reviewed" else ""
        environment = Environment(
            loader=PackageLoader("vog_hf.review", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_printable,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._row = environment.get_template("row.html.j2")
        self._tiles = environment.get_template("tiles.html.j2")
        self._decisions = environment.get_template("decisions.html.j2")

    def row(self, record: RowRecord, near: Sequence[SmallRecord]) -> dict[str, str]:
        """The parts of the page that show a row: ``stage``, ``facts``, ``trace`` and ``near_rows``."""
        kind = "overlay" if record.picture is not None else "words" if record.words is not None else "strip"
        kind = "plane" if record.is_plane else kind
        has_heat = record.heat is not None or record.words is not None
        note = heat_note(self._scores, {kind}) if has_heat else ""
        values = {"view": record, "near": near, "kind": kind, "heat_note": note, "label_note": self._label_note}
        values["boxes_note"] = "" if has_heat or record.picture is None else boxes_note(self._scores).strip()
        module = self._row.make_module(values)
        return {part: str(getattr(module, part)()) for part in ("stage", "facts", "trace", "near_rows")}

    def tiles(self, records: Sequence[SmallRecord], own: Mapping[int, Decision]) -> str:
        """The tiles of a grid, with the reviewer's own decision on each row that has one."""
        decided = {record.row: self._in_words(own[record.row])["what"] for record in records if record.row in own}
        return self._tiles.render(tiles=records, decided=decided)

    def decisions(self, row: int, own: Mapping[int, Decision], others: Mapping[int, list[Decision]]) -> str:
        """The decisions about a row; those of others only to a reviewer who has decided, so that they do not lead."""
        own_decision, of_others = own.get(row), others.get(row, [])
        return self._decisions.render(
            own=None if own_decision is None else self._in_words(own_decision),
            others=[] if own_decision is None else [self._in_words(decision) for decision in of_others],
            hidden=len(of_others) if own_decision is None else 0,
        )

    def _in_words(self, decision: Decision) -> dict[str, Any]:
        name = None if decision.label is None else class_names(self._scores, [decision.label])[0]
        return {
            "reviewer": decision.reviewer,
            "what": WORDS[decision.decision] + ("" if name is None else f" to {name}"),
            "note": decision.note,
        }


def shell(name: str) -> str:
    """A file of the page without data: its frame, style sheet or script."""
    return files("vog_hf.review").joinpath("templates", name).read_text(encoding="utf-8")


def _printable(value: object) -> Any:
    """Remove characters that no page can hold from values of the template."""
    return printable(value) if type(value) is str else value
