"""Answers about many rows of a queue at a time: a page of tiles, and decisions about those that were selected."""

from collections.abc import Sequence

from vog_hf.errors import ConfigError
from vog_hf.review.requests import Request
from vog_hf.review.service import OTHER_LAST, Answer, ReviewService

TILES = 24  # rows of a page of the grid
EACH_PREDICTION = "prediction"  # instead of a label: relabel each row to its own prediction


class GridService(ReviewService):
    """Answers of `ReviewService`, and to what the grid asks."""

    def about(self, request: Request) -> Answer:
        """The facts of `ReviewService.about`, and the number of tiles of a page."""
        return {**super().about(request), "tiles": TILES}

    def grid(self, request: Request) -> Answer:
        """The rows from place ``at`` on among those of the queue that are not hidden, as tiles."""
        chosen, skip = self._reader.filter(request), self._reader.skip(request)
        order, decided = self._order(chosen), self._decided(self._reader.reviewer(request))
        hidden = decided.hidden(skip, len(self._scores))
        left = order.rows[~hidden[order.rows]]
        at = self._reader.offset(request)
        at = at if at < len(left) else max(0, len(left) - 1) // TILES * TILES
        rows = left[at : at + TILES].tolist()
        if following := left[at + TILES : at + 2 * TILES].tolist():
            self._prefetcher.submit(self._records.small_records, following)
        tiles = self._pages.tiles(self._records.small_records(rows), decided.own)
        return {"rows": rows, "at": at, "html": {"tiles": tiles}, **self._progress(order, decided, hidden)}

    def decide_all(self, request: Request) -> Answer:
        """Write one decision about each of several rows, then show the grid; all are checked before one is written.

        With the label "prediction", each row is relabeled to its own last prediction.
        """
        reviewer = self._reader.reviewer(request, required=True)
        chosen = self._reader.filter(request)
        order = self._order(chosen)
        self._reader.skip(request)
        rows = self._reader.rows(request)
        given = self._given(request, rows)
        ids = []
        with self._journal_lock:
            for row, (decision, label) in zip(rows, given, strict=True):
                self._journal.check(row, decision, reviewer=reviewer, label=label)
            standing = self._journal.standing()
            for row, (decision, label) in zip(rows, given, strict=True):
                before = standing.get((row, reviewer))
                if before is None or (before.decision, before.label) != (decision, label):  # not already written
                    shown = self._shown_by(order, chosen, row)
                    ids.append(self._journal.decide(row, decision, reviewer=reviewer, label=label, **shown).id)
        return {**self.grid(request), "ids": ids}

    def undo_all(self, request: Request) -> Answer:
        """Take back the decisions with these ``ids``, the last ones of the reviewer, and show the grid."""
        reviewer, ids = self._reader.reviewer(request, required=True), self._reader.ids(request)
        answer, n_undone = self.grid(request), 0  # what cannot be shown is found before anything is written
        with self._journal_lock:
            while (last := self._journal.last_of(reviewer)) is not None and last.id in ids:
                if self._journal.undo(reviewer, only=last.id) is None:
                    break
                n_undone += 1
        if n_undone:
            message = f"Undone: {n_undone} decision{'s' if n_undone > 1 else ''}."
        else:
            message = OTHER_LAST if answer["last"] else "There is nothing to undo."
        return {**self.grid(request), "message": message}

    def _given(self, request: Request, rows: Sequence[int]) -> list[tuple[str, int | None]]:
        """Decision and new label for each of these rows.

        Raises:
            ConfigError: Invalid values, or a row without a prediction that differs from its label.
        """
        if request.get("label") != EACH_PREDICTION or request.get("decision") != "relabel":
            decision, label, _ = self._reader.decision(request)
            return [(decision, label)] * len(rows)
        predicted = [self._class_of("prediction", row) for row in rows]
        same = [row for row, one in zip(rows, predicted, strict=True) if one in (None, self._class_of("label", row))]
        if same:
            raise ConfigError(
                f"rows {', '.join(map(str, same[:5]))}{' and others' if same[5:] else ''} have no prediction that "
                "differs from their label; clear their selection"
            )
        return [("relabel", label) for label in predicted]
