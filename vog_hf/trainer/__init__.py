"""Integration with transformers' Trainer: snapshots and scores of a training. May import all but `cli` and `demo`.

`callback` is `VoGCallback`: it reacts to the Trainer's events, with its `options`. `training_run` is one training: its
snapshots, live moments and scores, and what is resumed after an interruption; `collected_training` is one whose own
passes are observed (`collected_rows` checks its rows, and `moments_plan` tells whether it keeps moments of gradients).
`run_folder` is where they are kept, `splits` has the rows by split, `training_length` counts steps and rows, and
`scoring_cost` compares the time of scoring with the training's; `announcements` has the lines that are printed,
`publishing` prints them and logs to trackers, and `check_first` lets the checks come before the trackers.
"""
