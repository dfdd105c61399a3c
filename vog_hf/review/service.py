"""What the page asks for, answered: a queue to walk through, decisions into the journal, and where the review stands.

The desk keeps nothing of a visitor: each question carries who asks, the filter and the row that is on the screen. So a
page that is reloaded, or whose server was started again, goes on where it was.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.errors import ConfigError, VoGError
from vog_hf.evaluation import hard_tail
from vog_hf.review.agreement import reviewer_agreement
from vog_hf.review.decision import DECISIONS, Decision
from vog_hf.review.html import PageMaker
from vog_hf.review.journal import Journal
from vog_hf.review.queue import Filter, Queue
from vog_hf.scores.descriptions import verdict
from vog_hf.scores.formatting import escaped, printable, signed
from vog_hf.scores.pictures import row_texts
from vog_hf.scores.ranking import class_names, has_classes, ranking_column
from vog_hf.scores.row_view import TITLES, RowMaker
from vog_hf.scores.vog_scores import VoGScores, class_count

NEIGHBOURS = 6
MAX_NAME = 80  # characters of a reviewer's name
MAX_NOTE = 2_000
MAX_SEARCH = 200
PAIRS = 3  # of reviewers whose agreement is told
PACE = 20  # decisions that the pace is taken from
SKIPPED = ("", "me", "anyone")  # rows to walk past: none, those decided by the one who asks, those decided by anyone
Asked = Mapping[str, Any]
Answer = dict[str, Any]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Order:
    """A queue: its rows in order, and each row's place in it (-1: not in it)."""

    rows: Rows
    place: Rows


@dataclass(frozen=True)
class _Standing:
    """The decisions that stand, as one reviewer sees them."""

    mine: Mapping[int, Decision]
    others: Mapping[int, list[Decision]]
    last: str  # id of the reviewer's last decision that is not undone; empty: there is none

    def skipped(self, skip: str, n_rows: int) -> npt.NDArray[np.bool_]:
        """``[rows]``, whether a row is to be walked past."""
        found = np.zeros(n_rows, dtype=bool)
        decided = {"": set(), "me": set(self.mine), "anyone": set(self.mine) | set(self.others)}[skip]
        found[list(decided)] = True
        return found


class Desk:
    """A data set under review.

    Args:
        scores: Of the data set.
        dataset: Its rows, verified; None = only numbers are shown.
        journal: Where the decisions go.
        title: Name of the data set.
        reviewer: Name that the page proposes to whoever opens it.
        is_from_hub: Whether the rows are somebody's on the Hub, and may not show any file of this machine.
    """

    def __init__(
        self,
        scores: VoGScores,
        dataset: Any,
        journal: Journal,
        *,
        title: str = "",
        reviewer: str = "",
        is_from_hub: bool = False,
    ) -> None:
        self.title = printable(title)
        self._scores, self._journal, self._reviewer = scores, journal, reviewer
        texts = None if dataset is None else row_texts(dataset)
        self._has_texts = texts is not None
        self._queue = Queue(scores, texts)
        self._rows = RowMaker(scores, dataset, is_from_hub=is_from_hub)
        self._pages = PageMaker(scores)
        self._writing = threading.Lock()
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="vog-review-ahead")
        self._order = lru_cache(maxsize=16)(self._order_of)
        self._shown = lru_cache(maxsize=32)(self._shown_row)

    # What the page may ask

    def about(self, _: Asked) -> Answer:
        """What does not change: columns to order by, classes, the keys' targets."""
        return {
            "title": self.title,
            "rows": len(self._scores),
            "reviewer": printable(self._reviewer),
            "column": self._column,
            "columns": [[name, TITLES.get(name, name)] for name in self._queue.columns],
            "classes": self._classes,
            "heat": self._scores.has_heat_maps,
            "texts": self._has_texts,
            "predictions": "prediction" in self._scores.column_names,
            "key": f"{len(self._scores)}-{self._scores.manifest.get('rows_digest', '')}-{self.title}",
        }

    def show(self, asked: Asked) -> Answer:
        """The row that is named, or the one ``step`` places on in the queue; of rows outside it just ``any``."""
        reviewer, chosen, skip = self._who_and_what(asked)
        order, standing = self._order(chosen), self._standing(reviewer)
        if asked.get("any"):
            row: int | None = _whole(asked, "row", len(self._scores))
        else:
            skipped = standing.skipped(skip, len(self._scores))
            row = self._row_from(order, skipped, asked.get("row"), asked.get("step", 0))
        return self._answer(row, order, standing, chosen, skip)

    def decide(self, asked: Asked) -> Answer:
        """Write a decision about the row on the screen, then show the next one."""
        reviewer, chosen, _ = self._who_and_what(asked, named=True)
        self._order(chosen)  # a queue that cannot be shown is found before anything is written
        row, decision = _whole(asked, "row", len(self._scores)), asked.get("decision")
        if decision not in DECISIONS:
            raise ConfigError(f"a decision is one of {', '.join(DECISIONS)}, got {decision!r}")
        label = _whole(asked, "label", len(self._classes)) if decision == "relabel" else None
        note = _text(asked, "note", MAX_NOTE)
        with self._writing:
            before = self._journal.standing().get((row, reviewer))
            # The page asks again where it got no answer: what was written then is not written twice.
            if before is None or (before.decision, before.label, before.note) != (decision, label, note):
                self._journal.decide(row, decision, reviewer=reviewer, label=label, note=note)
        return self.show({**asked, "step": 1})

    def undo(self, asked: Asked) -> Answer:
        """Take back the reviewer's ``last`` decision that the page knows of, and show its row.

        Where another one is the last, because of another tab or because the answer to an undo was lost, nothing is
        taken back: the page learns of it first.
        """
        reviewer, chosen, skip = self._who_and_what(asked, named=True)
        row, last = asked.get("row"), _text(asked, "last", MAX_NAME)
        if row is not None:
            _whole(asked, "row", len(self._scores))
        order = self._order(chosen)  # what cannot be shown is found before anything is written
        with self._writing:
            undone = self._journal.undo(reviewer, only=last)
        standing, said = self._standing(reviewer), "There is nothing to undo."
        if undone is not None:
            row, said = undone.row, f"Undone: {undone.decision} of row {undone.row}."
        elif standing.last:
            said = "Nothing was undone: your last decision is not the one that this page knew. Undo again to do it."
        return {**self._answer(row, order, standing, chosen, skip), "message": said}

    def facts(self, _: Asked) -> Answer:
        """What takes longer: which tail is the hard one in this run, and how far reviewers agree."""
        return {"verdict": f"{verdict(self._tail)} (by {self._column}).", "agreement": self._agreement()}

    def decisions(self, _: Asked) -> Answer:
        """The whole journal, everybody's decisions, to be saved by the browser."""
        return {"name": escaped(self._journal.path.name), "text": self._journal.text()}

    def sound(self, asked: Asked) -> Answer:
        """The sound of a row beside the one that is shown."""
        return {"sound": self._rows.sound(_whole(asked, "row", len(self._scores)))}

    # How

    @cached_property
    def _column(self) -> str:
        return ranking_column(self._scores)

    @cached_property
    def _tail(self) -> str:
        return hard_tail(self._scores, column=self._column).tail

    @cached_property
    def _classes(self) -> list[str]:
        """Names of the classes, by number; none where rows have no single class."""
        if not has_classes(self._scores):
            return []
        return [printable(str(name)) for name in class_names(self._scores, range(class_count(self._scores)))]

    def _who_and_what(self, asked: Asked, *, named: bool = False) -> tuple[str, Filter, str]:
        """The reviewer, the queue without what is decided, and which decided rows are walked past."""
        reviewer = _text(asked, "reviewer", MAX_NAME).strip()
        if named and not reviewer:
            raise ConfigError("a decision needs the name of its reviewer; give yours at the top of the page")
        skip = asked.get("skip", "")
        if skip not in SKIPPED:
            raise ConfigError(f"skip must be one of {SKIPPED}, got {skip!r}")
        return reviewer, self._filter(asked.get("filter") or {}), skip

    def _filter(self, given: Asked) -> Filter:
        low, high = (_share(given, name, default) for name, default in (("low", 0.0), ("high", 100.0)))
        order, tail = given.get("order", self._column), given.get("tail", "highest")
        if order not in self._queue.columns or tail not in ("highest", "lowest") or low > high:
            raise ConfigError(f"no queue can be ordered by {order!r}, {tail!r} first, from percentile {low} to {high}")
        classes = given.get("classes") or []
        return Filter(
            order=order,
            tail=tail,
            classes=tuple(_whole({"class": c}, "class", len(self._classes)) for c in classes),
            mismatched=bool(given.get("mismatched")),
            percentile=(low, high),
            search=_text(given, "search", MAX_SEARCH).strip(),
        )

    def _order_of(self, chosen: Filter) -> _Order:
        rows = np.asarray(self._queue.rows(chosen, set()), dtype=np.int64)
        place = np.full(len(self._scores), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return _Order(rows, place)

    def _standing(self, reviewer: str) -> _Standing:
        mine: dict[int, Decision] = {}
        others: dict[int, list[Decision]] = {}
        with self._writing:
            standing, last = self._journal.standing(), self._journal.last_of(reviewer)
        for (row, who), decision in standing.items():
            if who == reviewer:
                mine[row] = decision
            else:
                others.setdefault(row, []).append(decision)
        return _Standing(mine, others, "" if last is None else last.id)

    def _row_from(self, order: _Order, skipped: npt.NDArray[np.bool_], row: Any, step: Any) -> int | None:
        """The row itself, the next one before or after it that is not walked past, else one from the other end."""
        if step not in (-1, 0, 1):
            raise ConfigError(f"step must be -1, 0 or 1, got {step!r}")
        place = -1 if row is None else int(order.place[_whole({"row": row}, "row", len(self._scores))])
        if place >= 0 and step == 0:
            return int(order.rows[place])
        left = np.flatnonzero(~skipped[order.rows])
        if not len(left):
            return None
        if place < 0 or step >= 0:
            after = int(np.searchsorted(left, place, side="right"))
            return int(order.rows[left[after if after < len(left) else 0]])
        return int(order.rows[left[int(np.searchsorted(left, place)) - 1]])

    def _answer(self, row: int | None, order: _Order, standing: _Standing, chosen: Filter, skip: str) -> Answer:
        skipped = standing.skipped(skip, len(self._scores))
        decided = sum(order.place[row] >= 0 for row in standing.mine)
        answer: Answer = {
            "row": row,
            "place": None if row is None or order.place[row] < 0 else int(order.place[row]) + 1,
            "length": len(order.rows),
            "left": int((~skipped[order.rows]).sum()),
            "decided": int(decided),
            "pace": pace([decision.time for decision in standing.mine.values()]),
            "last": standing.last,
            "message": "",
            "mine": None,
        }
        if row is None:
            return {**answer, "html": {}, "label": None, "prediction": None}
        answer |= {"html": self._shown(row, chosen), "said": self._pages.said(row, standing.mine, standing.others)}
        mine = standing.mine.get(row)
        if mine is not None:
            answer["mine"] = {"decision": mine.decision, "label": mine.label, "note": printable(mine.note)}
        answer |= {name: self._class_of(name, row) for name in ("label", "prediction")}
        following = self._row_from(order, skipped, row, 1)
        if following is not None and following != row:
            self._ahead.submit(self._shown, following, chosen)
        return answer

    def _shown_row(self, row: int, chosen: Filter) -> dict[str, str]:
        near = [int(other) for other in self._queue.neighbours(row, chosen, NEIGHBOURS)]
        return self._pages.row(self._rows.view(row), self._rows.small_views(near))

    def _class_of(self, column: str, row: int) -> int | None:
        if not self._classes or column not in self._scores.column_names:
            return None
        value = int(self._scores.column(column)[row])
        return value if value >= 0 else None

    def _agreement(self) -> str:
        with self._writing:
            found = reviewer_agreement(self._journal.standing().values())
        if not found.rows:
            return ""
        table = found.pairs.sort_values("rows", ascending=False, kind="stable").head(PAIRS)
        pairs = [
            f"{a} and {b}: Cohen's kappa {'not defined' if np.isnan(kappa) else signed(kappa)}"
            for a, b, kappa in zip(table["a"], table["b"], table["kappa"], strict=True)
        ]
        same = round(found.share * found.rows)
        return printable(f"Same decision on {same:,} of {found.rows:,} rows that several decided. {'; '.join(pairs)}.")


def answering(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """The function with a mistake of whoever asks as an answer, ``{"error": ...}``."""

    @functools.wraps(function)
    def answer(*given: Any) -> Answer:
        try:
            return function(*given)
        except VoGError as error:
            return {"error": escaped(str(error))}

    return answer


def pace(times: list[str]) -> float | None:
    """Decisions a minute, from the middle one of the last gaps between decisions, so that a break does not count.

    Args:
        times: Of decisions, ISO 8601.

    Example:
        >>> pace(["2026-01-01T00:00:00+00:00", "2026-01-01T00:00:10+00:00", "2026-01-01T00:00:20+00:00"])
        6.0
    """
    last = sorted(datetime.fromisoformat(time) for time in times)[-PACE - 1 :]
    if len(last) < 3:
        return None
    gap = float(np.median([(after - before).total_seconds() for before, after in pairwise(last)]))
    return 60 / max(gap, 0.1)


def _whole(asked: Asked, name: str, count: int) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ConfigError(f"{name} must be a whole number from 0 to {count - 1}, got {value!r:.40}")
    return value


def _share(asked: Asked, name: str, default: float) -> float:
    value = asked.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:
        raise ConfigError(f"a percentile lies in 0..100, got {value!r:.40}")
    return float(value)


def _text(asked: Asked, name: str, length: int) -> str:
    value = asked.get(name, "")
    if not isinstance(value, str) or len(value) > length:
        raise ConfigError(f"{name} must be a text of at most {length} characters, got {str(value)[:40]!r}")
    return escaped(value)
