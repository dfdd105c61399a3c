"""The Hub: push a scored dataset with its card, pull scores back. May import `scores` and the rooms below it.

`push` is the way there: `scored_splits` puts rows and scores together, `card` says what the scores show,
`card_metadata` declares them next to what `repository` holds (`card_yaml` keeps the rest of a card as it is written),
`commit_check` tries what will load before the commit, `shards` writes parquet, `upload` sends and commits, and
`upload_check` reloads the commit and compares. `pull` is the way back. `retries` has the patience that both need,
`repo_paths` the names of files.
"""

from vog_hf.hub.pull import pull_scores
from vog_hf.hub.push import push_scored_dataset

__all__ = ["pull_scores", "push_scored_dataset"]
