"""Program: a scoring of two processes of which one ends in the middle; nobody catches what the other gets."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from leaving import leave_together
from scorings import Scoring

SCORING = Scoring("images", 53, 7)
ROW = 41  # of process 1, behind the rows of the dry run


class Rows:
    """The rows; at one of them process 1 is ended, as a person, a cluster or a lack of memory does, or is slow."""

    def __init__(self, how: str) -> None:
        self.rows, self.how = SCORING.rows(), how

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        if i == ROW and PartialState().process_index == 1:
            if self.how == "interrupted":
                raise KeyboardInterrupt
            if self.how == "exited":
                sys.exit(7)
            if self.how == "killed":
                os._exit(9)
            if self.how == "slow":
                time.sleep(25)
        return self.rows[i]


def main(folder: Path, how: str) -> None:
    """Score into a folder."""
    torch.set_num_threads(1)
    options = {"timeout": timedelta(seconds=10)} if how == "slow" else {}
    processes = PartialState(cpu=True, **options)
    scores = SCORING.score(rows=Rows(how), output_dir=folder / "scores", batch_size=3)
    if processes.is_main_process:
        print(f"scored {len(scores)} rows on {processes.num_processes} processes", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    leave_together()
