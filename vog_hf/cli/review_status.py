"""`vog-hf review --status`: the yield of a review so far, without a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vog_hf.cli.output import Output
from vog_hf.cli.scored_sources import ScoredSource

if TYPE_CHECKING:
    from vog_hf.review import Filter

HEADINGS = ("places", "reviewed", "wrong", "share", "from", "to", "fitted")


def print_status(
    out: Output, opened: ScoredSource, journal: Path | None, chosen: "Filter | None", worth_at: float
) -> None:
    """Print what a review has found and may still find.

    Args:
        out: Output of the command.
        opened: Scores and rows.
        journal: Journal file; None: the one next to the scores, which does not need to exist yet.
        chosen: Queue to estimate; None: the one that most decisions were made in.
        worth_at: Share of wrong rows in the next rows at which continuing is worth it.
    """
    from vog_hf.review.decision_checks import verified_decisions
    from vog_hf.review.queue import Queue
    from vog_hf.review.queue_yield import queue_in_words, reviewed_queue, yield_of_queue
    from vog_hf.scores.pictures import row_texts

    file = journal or opened.journal
    is_new = journal is None and not file.exists()
    decisions = [] if is_new else verified_decisions(file, opened.scores)
    queue = Queue(opened.scores, None if opened.dataset is None else row_texts(opened.dataset, opened.scores.facts))
    chosen = chosen or reviewed_queue(queue, decisions)
    left = yield_of_queue(queue, decisions, chosen, worth_at=worth_at)
    first, *others = left.sentences()
    place: dict[str, Any] = {"queue": queue_in_words(chosen), "journal": str(file)}
    out.result(first, left.to_dict() | place, shown=place)
    for sentence in others:
        out.line(sentence)
    if left.shares:
        out.heading("Share of wrong rows by place in the queue, with its 95 % interval", after=True)
        cells = [
            (f"{one.first:,} to {one.last:,}", one.reviewed, one.wrong, one.share, one.low, one.high, one.fitted)
            for one in left.shares
        ]
        out.table(HEADINGS, cells, digits=2)
