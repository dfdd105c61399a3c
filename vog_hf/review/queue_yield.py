"""The yield of a review: from the decisions in a journal to the estimate over the queue that was reviewed."""

import json
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from vog_hf.errors import ConfigError, require_type
from vog_hf.evaluation import ReviewYield, recommended_ranking
from vog_hf.evaluation import review_yield as estimated_yield
from vog_hf.metric.vocabulary import title_of
from vog_hf.review.agreement import resolve
from vog_hf.review.decision import Decision
from vog_hf.review.decision_checks import Decisions, verified_decisions
from vog_hf.review.queue import Filter, Queue
from vog_hf.scores.vog_scores import VoGScores


def review_yield(
    scores: VoGScores,
    decisions: Decisions,
    chosen: Filter | None = None,
    *,
    texts: Sequence[str] | None = None,
    next_rows: int = 100,
    worth_at: float = 0.05,
) -> ReviewYield:
    """Estimate how many wrong rows a review has yet to find, from the decisions so far.

    A row is wrong if it was relabeled or dropped, by the majority where several reviewers decided (`resolve`); unsure
    rows are counted apart and left out. Every decision counts at the place of its row in the queue, whatever queue it
    was made in; only decisions about random rows are known to be a sample of the queue.

    Args:
        scores: Scores of the dataset.
        decisions: The journal, or its path; or decisions, at most one of a reviewer about a row.
        chosen: Queue to estimate. Default: the queue of most decisions, as `reviewed_queue` gives it.
        texts: ``[rows]``, a text per row, for a queue with a search.
        next_rows: Number of rows to forecast.
        worth_at: Share of wrong rows in the next rows at which continuing is worth it, 0..1.

    Raises:
        RowMismatchError: The journal belongs to a different dataset.
        JournalError: The journal is missing or damaged.
        ConfigError: A queue that these scores do not have.
    """
    require_type("scores", scores, VoGScores, "pass the scores of the data that is reviewed")
    standing = verified_decisions(decisions, scores)
    queue = Queue(scores, texts)
    chosen = reviewed_queue(queue, standing) if chosen is None else chosen
    return yield_of_queue(queue, standing, chosen, next_rows=next_rows, worth_at=worth_at)


def yield_of_queue(
    queue: Queue, decisions: Collection[Decision], chosen: Filter, *, next_rows: int = 100, worth_at: float = 0.05
) -> ReviewYield:
    """The estimate over a queue without its random rows, which are at their places in the ranking."""
    rows = queue.rows(Filter(**{name: getattr(chosen, name) for name in ("order", "tail", *Filter.narrowing())}))
    known = np.full(len(queue.scores), np.nan)
    unsure, random = (np.zeros(len(queue.scores), dtype=bool) for _ in range(2))
    for row, consensus in resolve(decisions).items():
        unsure[row] = consensus.decision == "unsure"
        if not unsure[row]:
            known[row] = float(consensus.decision != "keep")
    random[[decision.row for decision in decisions if decision.random and _is_sample_of(chosen, decision)]] = True
    return estimated_yield(
        known[rows], unsure=unsure[rows], random=random[rows], next_rows=next_rows, worth_at=worth_at
    )


def reviewed_queue(queue: Queue, decisions: Collection[Decision]) -> Filter:
    """The queue that showed most of the decided rows; without a record of it, the recommended ranking.

    Journals of earlier versions do not record it, and neither do decisions from elsewhere (Argilla).
    """
    records = Counter(json.dumps(decision.queue, sort_keys=True) for decision in decisions if decision.queue)
    for record, _ in records.most_common():
        chosen = Filter.from_record(json.loads(record))
        if chosen is not None and _has(queue, chosen):
            return chosen
    start = recommended_ranking(queue.scores)
    return Filter(order=start.column, tail=start.end)


def queue_in_words(chosen: Filter) -> str:
    """Order and filters of a queue in a few words."""
    filters = {
        "with other predictions than labels": chosen.mismatched,
        f"of {len(chosen.classes)} classes": chosen.classes,
        "from percentile {:g} to {:g}".format(*chosen.percentile): tuple(chosen.percentile) != (0, 100),
        f"with the text {chosen.search!r}": chosen.search,
        f"with the pattern {' or '.join(chosen.patterns)}": chosen.patterns,
    }
    narrowed = [words for words, applies in filters.items() if applies]
    order = "ranking column" if chosen.order is None else title_of(chosen.order)
    return f"{order}, {chosen.tail} first{''.join(f', rows {words}' for words in narrowed)}"


def _has(queue: Queue, chosen: Filter) -> bool:
    """True if these scores have the columns and texts of a recorded queue."""
    try:
        queue.rows(chosen)
    except ConfigError:
        return False
    return True


def _is_sample_of(chosen: Filter, decision: Decision) -> bool:
    """True if a random row was drawn from all rows of this queue: from all of the dataset, or from the same ones."""
    drawn_from = None if decision.queue is None else Filter.from_record(decision.queue)
    if drawn_from is None:
        return False
    same_percentiles = tuple(drawn_from.percentile) == (0, 100) or drawn_from.order == chosen.order
    return same_percentiles and all(
        getattr(drawn_from, name) in (getattr(Filter, name), getattr(chosen, name)) for name in Filter.narrowing()
    )
