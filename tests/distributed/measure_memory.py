"""Program: scores a given number of rows (or a stream) and snapshots, made on the fly, and prints its peak memory."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import models
import torch

from vog_hf.scoring.scorer import VoGScorer

BUDGET = 32 * 2**20
BATCH = 64


class Rows:
    """Images of 32 x 32 that are made when they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict:
        generator = torch.Generator().manual_seed(i)
        return {"image": torch.randn(3, 32, 32, generator=generator), "labels": i % models.CLASSES}


class Stream(torch.utils.data.IterableDataset):
    """The same rows, one after another, each next to 40 kB that the model is not fed."""

    def __init__(self, n: int) -> None:
        self.rows = Rows(n)

    def __iter__(self) -> Iterator[dict]:
        return ({**self.rows[i], "name": "x" * 40_000} for i in range(len(self.rows)))


def peak_kib() -> int:
    """Of this process; what `resource` says of it may be its parent's."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main(n_rows: int, n_snapshots: int, folder: Path, kind: str) -> None:
    """Print KiB."""
    torch.set_num_threads(1)
    model = models.conv_net().model
    states = ((f"epoch-{k}", state) for k in range(n_snapshots) for state in models.perturbed_states(model, 1, seed=k))
    scorer = VoGScorer(model, batch_size=BATCH, memory_budget=BUDGET, progress=False)
    plan = scorer.plan(scorer.reader(Rows(n_rows)))
    assert 2_000 * plan.bytes_per_row > BUDGET, "all rows fit into one block"
    before = peak_kib()
    rows = {"rows": Rows, "stream": Stream}[kind](n_rows)
    scores = scorer.score(rows, states, output_dir=folder)
    assert len(scores) == n_rows
    assert len(scores.manifest["snapshots"]) == n_snapshots
    print(before, peak_kib())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
