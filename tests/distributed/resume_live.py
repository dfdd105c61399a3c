"""Program: live moments of some snapshots, saved or taken up again on any number of processes."""

import sys
from pathlib import Path

import models
from accelerate import PartialState
from leaving import leave_together
from scorings import Scoring

from vog_hf.config import VoGConfig
from vog_hf.scoring.scorer import VoGScorer


def main(folder: Path, n_processes: int, first: int, last: int) -> None:
    """See snapshots ``first`` to ``last`` (exclusive); those before come from the folder, where the rest is kept."""
    assert PartialState(cpu=True).num_processes == n_processes
    for kind in ("images", "texts"):
        scoring = Scoring(kind, 53, 7, VoGConfig(target=("logit", "loss")))
        rows = [{**row, "labels": max(int(row["labels"]), 0)} for row in scoring.rows()]
        model, states = scoring.model(), scoring.states()
        scorer = VoGScorer(model, config=scoring.config, batch_size=scoring.batch_size, progress=False)
        reader = scorer.reader(rows, collate_fn=models.collate)
        live = scorer.live(reader, scorer.plan(reader), len(states))
        if first:
            live.restore(folder / f"{kind}-{first}")
        for step, (name, state) in enumerate(states[first:last], start=first):
            model.load_state_dict(state)
            live.update(name, step)
        if last < len(states):
            live.save(folder / f"{kind}-{last}")
        else:
            live.finish(output_dir=folder / f"{kind}-scores")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    leave_together()
