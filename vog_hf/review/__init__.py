"""People look at rows and decide: a queue of rows, a journal of decisions, and the data set that comes of them."""

from vog_hf.review.app import review_app
from vog_hf.review.journal import DECISIONS, Decision, Journal, read_decisions
from vog_hf.review.queue import Filter, Queue

__all__ = ["DECISIONS", "Decision", "Filter", "Journal", "Queue", "read_decisions", "review_app"]
