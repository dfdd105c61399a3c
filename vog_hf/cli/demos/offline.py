"""A tracked run that stays on this machine."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def offline_wandb(output: Path) -> Iterator[None]:
    """Keep the run in ``output`` without an account, unless set otherwise in the environment."""
    defaults = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(output),
        "WANDB_DATA_DIR": str(output),
        "WANDB_SILENT": "true",
    }
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        import wandb

        wandb.finish()
        for name in added:
            del os.environ[name]
