"""Rows x snapshots -> scores. May import `scores` and the rooms below it.

`scorer` is `VoGScorer`; `dry_run` makes the `plan` on the first rows, with `batch_checks` for what is unusual about
them and `doubtful_rows` for rows that would only fail late; `replay` goes over blocks of rows (`stream_replay` over a
stream), `runner` runs the model on a batch and `fast_path` makes it faster where that is the same function; `session`
is what all of them share; `block_folder` keeps finished blocks, `assembly` makes scores of them and `run_manifest` says
how; `live` keeps the moments of all rows while a model trains (`live_checkpoint`), and `live_ranking` ranks them
meanwhile.
"""
