"""Scored data sets on the Hugging Face Hub: pushed with a card that says what the scores are, pulled back as scores.

`push` is the way there: `parts` puts rows and scores together, `vog_hf.data.referenced_files` lets out no file but the user's
own, `card` says what the scores show, `metadata` declares them beside what `repository` holds, `rehearsal` tries what
will load, `shards` writes parquet, `upload` sends and commits, `check` loads it all again. `head` keeps the rest of a
card's metadata as it is written.
`pull` is the way back. `client` has the patience that both need, `places` the names of files.
"""

from vog_hf.hub.pull import pull_scores
from vog_hf.hub.push import push_scored_dataset

__all__ = ["pull_scores", "push_scored_dataset"]
