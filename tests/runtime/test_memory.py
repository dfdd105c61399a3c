import logging
from types import SimpleNamespace

import models
import numpy as np
import psutil
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vog_hf.config import VoGConfig
from vog_hf.errors import MemoryBudgetError
from vog_hf.runtime.memory import AdaptiveBatchSize, free_memory, is_out_of_memory
from vog_hf.scoring.scorer import VoGScorer

FULL = "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"


SIZES = []  # of the forward passes; what a model counts in itself is put back


class Small(nn.Module):
    """A model on a device with room for a limited number of rows."""

    def __init__(self, model, holds):
        super().__init__()
        self.model, self.holds = model, holds

    def forward(self, pixel_values):
        SIZES.append(len(pixel_values))
        if len(pixel_values) > self.holds:
            raise RuntimeError(FULL)
        return self.model(pixel_values)


def scored(holds, **options):
    """The scores of 53 images in batches of 20, and the sizes of the forward passes."""
    case = models.conv_net()
    rows = [
        {**row, "labels": i % models.CLASSES}
        for i, row in enumerate(models._float_rows("pixel_values", (3, 8, 8), seed=3, n=53))
    ]
    SIZES.clear()
    model = Small(case.model, holds)
    states = models.perturbed_states(model, 4)
    named = [(f"epoch-{k}", state) for k, state in enumerate(states)]
    scores = VoGScorer(model, batch_size=20, **options).score(rows, named, collate_fn=models.collate)
    return scores, SIZES


@pytest.mark.parametrize("label", ["given", "predicted"])
def test_out_of_memory_halves_the_batch_and_changes_no_score(label, caplog):
    """With room for 7 rows, batches are computed in parts of 5 with a warning; otherwise without one."""
    config = VoGConfig(target=("logit", "loss"), label=label)
    expected, sizes = scored(64, config=config)
    assert max(sizes) == 20
    assert "out of memory" not in caplog.text
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        scores, sizes = scored(7, config=config)
    assert scores.column_names == expected.column_names
    for name in expected.column_names:
        assert_close(
            torch.tensor(scores.column(name)), torch.tensor(expected.column(name)), rtol=1e-5, atol=1e-6, msg=name
        )
    np.testing.assert_array_equal(scores.trajectory("prediction"), expected.trajectory("prediction"))
    tried = [size for size in sizes if size > 7]
    assert tried == [20, 10]  # once, at the start, for the whole run
    assert "out of memory with 10 rows per pass; retrying with 5" in caplog.text


def test_a_row_that_does_not_fit_alone_is_an_error(caplog):
    """If a single row does not fit, the error says so; if it fits, it is scored."""
    with pytest.raises(MemoryBudgetError, match="a single row does not fit into memory"):
        scored(0)
    scores, _ = scored(2)
    assert len(scores) == 53


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    """Only out-of-memory errors halve the batch."""
    at_a_time = AdaptiveBatchSize()

    def fails(rows):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        at_a_time.run(8, fails)
    assert at_a_time.limit is None
    assert at_a_time.run(8, lambda rows: rows) == [slice(0, 8)]


@pytest.mark.parametrize(
    ("message", "lacks_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        (FULL, True),
        ("CUDA error: device-side assert triggered", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_lack_of_memory_is_known_by_what_torch_and_cuda_say_of_it(message, lacks_memory):
    """Also where a kernel or a library lacked it, which is reported at a later call."""
    assert is_out_of_memory(RuntimeError(message)) is lacks_memory
    assert not is_out_of_memory(ValueError(message))


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    """Processes on one machine share its free memory."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=4 * 10**9))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_memory(torch.device("cpu")) == 4 * 10**9
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(torch.device("cpu")) == 10**9
