"""transformers' Trainer: when a model is snapshotted and scored. May import everything but `cli` and `demo`.

`callback` is `VoGCallback`, `training_run` one training with its folder, snapshots and live moments.
"""
