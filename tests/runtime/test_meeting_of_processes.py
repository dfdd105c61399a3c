"""Processes that wait for one another before the first collective."""

import threading
from types import SimpleNamespace

import pytest
import torch

from vog_hf.errors import ProcessError
from vog_hf.runtime import processes


@pytest.fixture
def meeting(monkeypatch):
    """Lets a process of two, each with its own count of meetings, meet the other in a store that they share."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(processes, "_meetings", [])

    def meet(rank, patience, what="scoring"):
        processes.meet(SimpleNamespace(process_index=rank, num_processes=2), what, patience)

    return meet


def test_a_process_that_waited_in_vain_is_not_taken_for_present_later(meeting):
    """Whoever comes after it has given up waits in vain, too, and does not enter a collective alone."""
    for rank in (0, 1, 0):
        with pytest.raises(ProcessError, match=f"is on process {rank}, and 0.01 s later not on {1 - rank} of 2"):
            meeting(rank, 0.01)


def test_different_kinds_of_work_do_not_meet(meeting):
    """A process that trains with a callback and one that scores are not taken for one another."""
    for rank, what in enumerate(["VoGCallback", "VoGScorer.score"]):
        with pytest.raises(ProcessError, match=f"^{what} belongs on every process"):
            meeting(rank, 0.01, what)


def test_processes_that_come_at_different_times_meet(meeting):
    """The first one waits, and each continues once the other is there."""
    second = threading.Timer(0.1, meeting, (1, 5))
    second.start()
    meeting(0, 5)
    second.join()
