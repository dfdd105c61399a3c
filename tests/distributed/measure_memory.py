"""Program: scores so many rows of so many snapshots, made on the fly, and prints the most memory it ever had."""

import resource
import sys
from pathlib import Path

import models
import torch

from vog_hf.scorer import VoGScorer

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


def main(n_rows: int, n_snapshots: int, folder: Path) -> None:
    """Print KiB."""
    torch.set_num_threads(1)
    model = models.conv_net().model
    states = ((f"epoch-{k}", state) for k in range(n_snapshots) for state in models.perturbed_states(model, 1, seed=k))
    scorer = VoGScorer(model, batch_size=BATCH, memory_budget=BUDGET, progress=False)
    plan = scorer.plan(scorer.reader(Rows(n_rows)))
    assert 2_000 * plan.bytes_per_row > BUDGET, "all rows fit into one block"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores = scorer.score(Rows(n_rows), states, output_dir=folder)
    assert len(scores) == n_rows
    assert len(scores.manifest["snapshots"]) == n_snapshots
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
