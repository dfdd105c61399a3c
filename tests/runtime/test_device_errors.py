"""Errors of this process's device during an exchange with others."""

from types import SimpleNamespace

import pytest
import torch

from vog_hf.errors import ProcessError
from vog_hf.runtime import processes

TWO = SimpleNamespace(process_index=0, num_processes=2)
OWN = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: out of memory"),
]
OF_OTHERS = [
    RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:27142"),
    torch.distributed.DistBackendError("NCCL error: unhandled cuda error, Cuda failure 'out of memory'"),
]


@pytest.fixture
def exchange(monkeypatch):
    """Lets the next exchange with the other process raise an error."""

    def failing(error):
        def gather_object(_):
            raise error

        monkeypatch.setattr(processes, "gather_object", gather_object)

    return failing


@pytest.mark.parametrize("error", OWN, ids=lambda error: str(error)[:20])
def test_an_error_of_the_own_device_is_not_blamed_on_another_process(exchange, error):
    """A kernel that failed earlier is reported by the exchange, as it is."""
    exchange(error)
    with pytest.raises(type(error)) as raised:
        processes.gathered(TWO, 1)
    assert raised.value is error


@pytest.mark.parametrize("error", OF_OTHERS, ids=lambda error: type(error).__name__)
def test_a_broken_connection_is_blamed_on_another_process(exchange, error):
    """Gloo raises a RuntimeError, NCCL an error of its own, also where another process's device has failed."""
    exchange(error)
    with pytest.raises(ProcessError, match="another process has ended, or was too slow"):
        processes.gathered(TWO, 1)


@pytest.mark.parametrize("error", [*OWN, *OF_OTHERS], ids=lambda error: str(error)[:20])
def test_what_failed_in_the_block_is_raised_over_what_failed_after_it(exchange, error):
    """The exchange of reports fails for the same reason; the first error says more."""
    exchange(error)
    with pytest.raises(ValueError, match="the first error"), processes.together(TWO, "scoring"):
        raise ValueError("the first error")
