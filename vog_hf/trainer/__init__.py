"""Integration with transformers' Trainer: snapshots and scores of a training. May import all but `cli` and `demo`.

`callback` is `VoGCallback`: it reacts to the Trainer's events. `training_run` is one training: its snapshots, live
moments and scores, and what is resumed after an interruption; `run_folder` is where it keeps them, `splits` has the
rows by split, and `announcements` the lines that it prints.
"""
