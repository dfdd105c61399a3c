"""People look at rows and decide. May import `scores` and the rooms below it.

`queue` orders rows, `random_rows` mixes random ones in, `journal` keeps decisions (`decision`, `journal_header`,
`journal_events`), `agreement` compares reviewers, `queue_yield` estimates what is left to find, `apply` makes a dataset
of the decisions once `decision_checks` has verified them. `app` serves the page: `service`, and `grid` for several rows
at a time, answer its `requests` with `positions` in the queue, `row_records` and decisions as `html`; `space` writes it
as a Space. `card_summary` sums a review up, `argilla` exchanges rows and answers with Argilla.
"""

from vog_hf.review.agreement import resolve, reviewer_agreement
from vog_hf.review.app import review_app
from vog_hf.review.apply import apply_review
from vog_hf.review.argilla import from_argilla, to_argilla
from vog_hf.review.decision import DECISIONS, Decision
from vog_hf.review.journal import Journal
from vog_hf.review.journal_events import read_decisions
from vog_hf.review.queue import Filter, Queue
from vog_hf.review.queue_yield import review_yield

__all__ = [
    "DECISIONS",
    "Decision",
    "Filter",
    "Journal",
    "Queue",
    "apply_review",
    "from_argilla",
    "read_decisions",
    "resolve",
    "review_app",
    "review_yield",
    "reviewer_agreement",
    "to_argilla",
]
