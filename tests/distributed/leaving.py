"""How the programs of this folder end."""

import os
import sys

import torch


def leave_together() -> None:
    """End this process, once all have come so far, without torch's teardown.

    Destroying gloo's groups, or the interpreter with them, sometimes aborts ("terminate called without an active
    exception"; https://github.com/pytorch/pytorch/pull/179291 tells of the like), and everything is on disk by then.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
