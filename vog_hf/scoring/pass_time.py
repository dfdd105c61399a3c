"""The time of a pass as rows are scored, measured on the first batch once the model has run."""

import time

import torch
from torch import nn

from vog_hf.data.batch_reader import Batch, BatchReader
from vog_hf.gradients.batchnorm_folding import FastPathError
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.runner import ModelRunner, needs_prediction


def row_seconds(model: nn.Module, plan: ScoringPlan, reader: BatchReader) -> float:
    """Time of forward and gradients of one row, in seconds: that of the second of two passes over the first batch.

    If rows that fail are skipped, that of the dry run, since the first ones may be among them.

    Args:
        model: Model to score, unwrapped, with the weights that it has.
        plan: Plan of the scoring.
        reader: Reader over all rows.
    """
    if reader.bad_rows.on_error == "skip":
        return plan.row_seconds
    batch = next(reader.read([range(min(len(reader.dataset), reader.batch_size))]))
    needs = needs_prediction(plan, [batch.labels])
    with ModelRunner(model, plan) as runner:
        batch = runner.to_device(batch)
        try:
            _pass(runner, batch, needs=needs)
        except FastPathError as error:
            runner.run_plainly(error)
            _pass(runner, batch, needs=needs)
        began = time.perf_counter()
        _pass(runner, batch, needs=needs)
        return (time.perf_counter() - began) / len(batch)


def _pass(runner: ModelRunner, batch: Batch, *, needs: bool) -> None:
    """Make one pass, and wait for the device."""
    gradients, _ = runner.observe(batch, runner.predict(batch) if needs else None)
    if gradients[0].device.type != "cpu":
        torch.accelerator.synchronize()
