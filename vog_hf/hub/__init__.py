"""Scored data sets on the Hugging Face Hub: pushed with a card that says what the scores are, pulled back as scores."""

from vog_hf.hub.pull import pull_scores
from vog_hf.hub.push import push_scored_dataset

__all__ = ["pull_scores", "push_scored_dataset"]
