"""Program: streams, scored on a given number of processes; interrupted once before, if asked."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from leaving import leave_together
from scorings import SCORINGS

from vog_hf.errors import DataError, ProcessError


class Stream(torch.utils.data.IterableDataset):
    """Rows in their order; breaks off before one of them."""

    def __init__(self, rows, breaks_at=None):
        self.rows, self.breaks_at = rows, breaks_at

    def __iter__(self):
        for i, row in enumerate(self.rows):
            if i == self.breaks_at:
                raise OSError("the stream broke off")
            yield row


def main(folder: Path, n_processes: int) -> None:
    """Every scoring of a list or table as a stream; longer ones are interrupted and taken up again."""
    assert PartialState(cpu=True).num_processes == n_processes
    for scoring in SCORINGS:
        rows = scoring.rows()
        if scoring.n_rows > 50:
            try:
                scoring.score(rows=Stream(rows, breaks_at=50), output_dir=folder / scoring.name)
            except (DataError, ProcessError):
                print("interrupted", flush=True)
        scoring.score(rows=Stream(rows), output_dir=folder / scoring.name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave_together()
