"""Integration with transformers' Trainer: snapshots and scores of a training. May import all but `cli` and `demo`.

`callback` is `VoGCallback`: it reacts to the Trainer's events. `training_run` is one training: its folder, snapshots
and live moments, and what is resumed after an interruption.
"""
