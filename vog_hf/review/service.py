"""Answers to what the page of the review asks: rows of a queue, decisions into the journal, and progress.

The service keeps nothing of a visitor: each request carries the reviewer, the filter and the row on the screen. So a
page that is reloaded, or whose server was restarted, continues where it was.
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.errors import VoGError, real_number
from vog_hf.evaluation import PATTERNS, RecommendedRanking, recommended_ranking
from vog_hf.metric.vocabulary import title_of
from vog_hf.review.agreement import known_wrong, reviewer_agreement
from vog_hf.review.html import PageMaker
from vog_hf.review.journal import Journal
from vog_hf.review.positions import Decided, Order, pace, row_from
from vog_hf.review.queue import Filter, Queue
from vog_hf.review.queue_yield import yield_of_queue
from vog_hf.review.requests import Request, RequestReader
from vog_hf.review.row_records import RowRecords
from vog_hf.scores.consistency import class_count
from vog_hf.scores.findings import Findings, headline
from vog_hf.scores.formatting import escaped, printable, signed
from vog_hf.scores.pictures import row_texts
from vog_hf.scores.ranking import class_names, has_classes, ranking_column
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.unit_columns import coloring_column

OTHER_LAST = "Nothing was undone: your last decision is not the one that this page shows. Undo again to do it."
NEIGHBORS = 6
PAIRS = 3  # of reviewers whose agreement is told
Answer = dict[str, Any]


class ReviewService:
    """Answers to what the page of a review asks about a dataset.

    Args:
        split: Scores with their rows; without rows, only numbers are shown.
        journal: Journal for the decisions.
        title: Name of the dataset.
        reviewer: Name that the page proposes to whoever opens it.
        is_from_hub: Whether the rows belong to someone else on the Hub, and may not show any file of this machine.
        random_share: Share of random rows that the page opens with, 0..1.
        worth_at: Share of wrong rows in the next 100 at which continuing is worth it, 0..1.
    """

    def __init__(
        self,
        split: ScoredSplit,
        journal: Journal,
        *,
        title: str = "",
        reviewer: str = "",
        is_from_hub: bool = False,
        random_share: float = 0.0,
        worth_at: float = 0.05,
    ) -> None:
        self._worth_at = real_number("worth_at", worth_at, 0, 1)
        self.title = printable(title)
        self._scores, self._journal, self._reviewer = split.scores, journal, reviewer
        texts = None if split.rows is None else row_texts(split.rows, split.scores.facts)
        self._has_texts = texts is not None
        self._queue = Queue(self._scores, texts)
        self._records = RowRecords(split, is_from_hub=is_from_hub)
        self._pages = PageMaker(self._scores)
        self._findings = Findings(split)
        self._reader = RequestReader(
            n_rows=len(self._scores),
            n_classes=len(self._classes),
            columns=self._queue.columns,
            start=(self._start.column, self._start.end),
            random_share=real_number("random_share", random_share, 0, 1),
        )
        self._journal_lock = threading.Lock()
        self._prefetcher = ThreadPoolExecutor(1, thread_name_prefix="vog-review-prefetch")
        self._order = lru_cache(maxsize=16)(self._order_of)
        self._page_of = lru_cache(maxsize=32)(self._make_page)

    # What the page may ask

    def about(self, _: Request) -> Answer:
        """Facts that do not change: columns to order by, classes, the keys' targets."""
        return {
            "title": self.title,
            "rows": len(self._scores),
            "reviewer": printable(self._reviewer),
            "column": self._column,
            "start": {"order": self._start.column, "tail": self._start.end},
            "random": round(100 * self._reader.random_share, 6),
            "columns": [[name, title_of(name)] for name in self._queue.columns],
            "classes": self._classes,
            "patterns": [[name, name.replace("_", " ")] for name in PATTERNS if self._scores.text_column_names],
            "heat": self._scores.has_heat_maps or coloring_column(self._scores) is not None,
            "texts": self._has_texts,
            "predictions": "prediction" in self._scores.column_names,
            "key": f"{len(self._scores)}-{self._scores.facts.rows_digest}-{self.title}",
        }

    def show(self, request: Request) -> Answer:
        """The row that is named, or the one ``step`` rows on in the queue; with ``any``, a row outside the queue."""
        chosen, skip = self._reader.filter(request), self._reader.skip(request)
        order, decided = self._order(chosen), self._decided(self._reader.reviewer(request))
        if request.get("any"):
            row: int | None = self._reader.row(request)
        else:
            hidden = decided.hidden(skip, len(self._scores))
            row = row_from(order, hidden, self._reader.optional_row(request), self._reader.step(request))
        return {**self._answer(row, order, decided, chosen, skip), "opened": bool(request.get("any"))}

    def decide(self, request: Request) -> Answer:
        """Write a decision about the row on the screen, then show the next one.

        A row that the reviewer ``opened`` among the neighbors was not shown by the queue, and is not one of its sample.
        """
        reviewer = self._reader.reviewer(request, required=True)
        chosen = self._reader.filter(request)
        order = self._order(chosen)  # a queue that cannot be shown is found before anything is written
        self._reader.skip(request)
        row, (decision, label, note) = self._reader.row(request), self._reader.decision(request)
        with self._journal_lock:
            before = self._journal.standing().get((row, reviewer))
            # The page asks again where it got no answer: what was written then is not written twice.
            if before is None or (before.decision, before.label, before.note) != (decision, label, note):
                shown = self._shown_by(order, chosen, row, opened=bool(request.get("opened")))
                self._journal.decide(row, decision, reviewer=reviewer, label=label, note=note, **shown)
        return self.show({**request, "step": 1})

    def undo(self, request: Request) -> Answer:
        """Take back the reviewer's ``last`` decision that the page knows of, and show its row.

        Where another one is the last, because of another tab or because the answer to an undo was lost, nothing is
        taken back: the page learns of it first.
        """
        reviewer = self._reader.reviewer(request, required=True)
        chosen, skip = self._reader.filter(request), self._reader.skip(request)
        row, last = self._reader.optional_row(request), self._reader.last(request)
        order = self._order(chosen)  # what cannot be shown is found before anything is written
        with self._journal_lock:
            undone = self._journal.undo(reviewer, only=last)
        decided, message = self._decided(reviewer), "There is nothing to undo."
        if undone is not None:
            row, message = undone.row, f"Undone: {undone.decision} of row {undone.row}."
        elif decided.last:
            message = OTHER_LAST
        return {**self._answer(row, order, decided, chosen, skip), "message": message}

    def facts(self, request: Request) -> Answer:
        """Facts that take longer: the headline, the ranking to start with, the yield of the queue and the agreement."""
        sentences = [
            headline(self._scores, self._findings.tail),
            str(self._start),
            "Next: decide here, then vog-hf apply.",
        ]
        return {
            "verdict": " ".join(sentences),
            "yield": self._yield(self._reader.filter(request)),
            "agreement": self._agreement(),
        }

    def decisions(self, _: Request) -> Answer:
        """The whole journal, everybody's decisions, to be saved by the browser."""
        return {"name": escaped(self._journal.path.name), "text": self._journal.text()}

    def sound(self, request: Request) -> Answer:
        """The sound of a row next to the one that is shown."""
        return {"sound": self._records.sound(self._reader.row(request))}

    # How

    @cached_property
    def _column(self) -> str:
        return ranking_column(self._scores)

    @cached_property
    def _start(self) -> RecommendedRanking:
        """The queue that the page opens with; wrong rows are those of the dataset, else those of the decisions."""
        known: Any = self._findings.known_wrong
        if known is None:
            known = known_wrong(self._journal.standing().values(), len(self._scores))
        return recommended_ranking(self._scores, known_wrong=known)

    @cached_property
    def _classes(self) -> list[str]:
        """Names of the classes, by number; none where rows have no single class."""
        if not has_classes(self._scores):
            return []
        return [printable(str(name)) for name in class_names(self._scores, range(class_count(self._scores)))]

    def _order_of(self, chosen: Filter) -> Order:
        rows, is_random = self._queue.mixed_rows(chosen)
        place = np.full(len(self._scores), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        return Order(rows, place, is_random)

    def _shown_by(self, order: Order, chosen: Filter, row: int, *, opened: bool = False) -> dict[str, Any]:
        """Entry of the journal about the queue that showed a row; nothing for a row that was opened from elsewhere."""
        place = -1 if opened else int(order.place[row])
        return {"queue": chosen, "random": bool(order.is_random[place])} if place >= 0 else {}

    def _decided(self, reviewer: str) -> Decided:
        with self._journal_lock:
            return Decided.by(reviewer, self._journal.standing(), self._journal.last_of(reviewer))

    def _answer(self, row: int | None, order: Order, decided: Decided, chosen: Filter, skip: str) -> Answer:
        hidden = decided.hidden(skip, len(self._scores))
        answer: Answer = {
            "row": row,
            "place": None if row is None or order.place[row] < 0 else int(order.place[row]) + 1,
            "random": bool(row is not None and order.place[row] >= 0 and order.is_random[order.place[row]]),
            "mine": None,
            **self._progress(order, decided, hidden),
        }
        if row is None:
            return {**answer, "html": {}, "label": None, "prediction": None}
        decisions = self._pages.decisions(row, decided.own, decided.others)
        answer |= {"html": self._page_of(row, chosen), "decisions": decisions}
        own = decided.own.get(row)
        if own is not None:
            answer["mine"] = {"decision": own.decision, "label": own.label, "note": printable(own.note)}
        answer |= {name: self._class_of(name, row) for name in ("label", "prediction")}
        following = row_from(order, hidden, row, 1)
        if following is not None and following != row:
            self._prefetcher.submit(self._page_of, following, chosen)
        return answer

    def _progress(self, order: Order, decided: Decided, hidden: npt.NDArray[np.bool_]) -> Answer:
        return {
            "length": len(order.rows),
            "left": int((~hidden[order.rows]).sum()),
            "decided": sum(int(order.place[reviewed] >= 0) for reviewed in decided.own),
            "pace": pace([decision.time for decision in decided.own.values()]),
            "last": decided.last,
            "message": "",
        }

    def _make_page(self, row: int, chosen: Filter) -> dict[str, str]:
        near = self._queue.neighbors(row, chosen, NEIGHBORS)
        return self._pages.row(self._records.record(row), self._records.small_records(near))

    def _class_of(self, column: str, row: int) -> int | None:
        if not self._classes or column not in self._scores.column_names:
            return None
        value = int(self._scores.column(column)[row])
        return value if value >= 0 else None

    def _yield(self, chosen: Filter) -> list[str]:
        """Sentences about the faults that the queue held so far and may still hold; none before the first decision."""
        with self._journal_lock:
            decisions = list(self._journal.standing().values())
        if not decisions:
            return []
        left = yield_of_queue(self._queue, decisions, chosen, worth_at=self._worth_at)
        return [printable(sentence) for sentence in left.sentences()]

    def _agreement(self) -> str:
        with self._journal_lock:
            agreement = reviewer_agreement(self._journal.standing().values())
        if not agreement.rows:
            return ""
        table = agreement.pairs.sort_values("rows", ascending=False, kind="stable").head(PAIRS)
        pairs = [
            f"{a} and {b}: Cohen's kappa {'not defined' if np.isnan(kappa) else signed(kappa)}"
            for a, b, kappa in zip(table["a"], table["b"], table["kappa"], strict=True)
        ]
        same, rows = round(agreement.share * agreement.rows), agreement.rows
        return printable(f"Same decision on {same:,} of {rows:,} rows with several reviewers. {'; '.join(pairs)}.")


def answering(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """The function with a mistake of whoever asks as an answer, ``{"error": ...}``."""

    @functools.wraps(function)
    def answer(*given: Any) -> Answer:
        try:
            return function(*given)
        except VoGError as error:
            return {"error": escaped(str(error))}

    return answer
