"""Rows x snapshots -> scores. May import `scores` and the rooms below it.

`scorer` is `VoGScorer`; its `planner` makes the `plan` by a `dry_run` on the first rows, in batches of a `batch_size`
that works, with `batch_checks` for what is unusual about them and `doubtful_rows` for rows that would only fail late
(`skipped_rows` leaves them out); `runner` is `ModelRunner`, all state of a model while it is scored: it makes `passes`
over batches, by the `fast_path` where that is the same function. `replay` loops over blocks of rows within a
`memory_budget` and, in each, over the snapshots (`stream_replay` for a stream); `block_folder` keeps finished blocks,
with which a killed run resumes, in a `shared_folder` of all processes (`unit_blocks` are the units of rows in them),
`assembly` makes scores of them, `run_manifest` says how and `finished_scores` loads them again. `live` keeps the
moments of all rows while a model trains (`live_checkpoint`), and `live_ranking` ranks them meanwhile. `pass_time` times
a pass, and `forward_only` computes the companions without a gradient. `visits` logs what the passes of a training
observed of its rows, `observed_gradients` keeps the moments of their gradients, and `training_scores` makes scores of
both.
"""
