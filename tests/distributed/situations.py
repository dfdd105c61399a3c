"""Program: situations that several processes meet, each noted with what it raised on every process, or its scores."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import models
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset
from leaving import leave_together
from scorings import Scoring

from vog_hf.config import VoGConfig

SCORING = Scoring("images", 53, 7)
BAD = 41  # a row of process 1, behind those of the dry run
Cases = dict[str, Callable[[], object]]


def breaking(bad: set[int], n: int = 53) -> Dataset:
    """Rows of which some cannot be read."""

    def transform(rows: dict) -> dict:
        if broken := bad & set(rows["number"]):
            raise OSError(f"row {min(broken)} cannot be decoded")
        return {name: [SCORING.rows()[i][name] for i in rows["number"]] for name in ("image", "labels")}

    return Dataset.from_dict({"number": list(range(n))}).with_transform(transform)


def stream(n: int, bad: int | None = None) -> IterableDataset:
    """The first rows one after another; one has no label that the model knows."""

    def generate() -> Iterator[dict]:
        for i, row in enumerate(SCORING.rows()[:n]):
            yield {"image": row["image"].numpy(), "labels": 99 if i == bad else row["labels"]}

    return IterableDataset.from_generator(generate).with_format("torch")


def cases(folder: Path, rank: int) -> Cases:
    """What happens, by name."""
    score, every, mine = SCORING.score, set(range(1, 53, 2)), folder / f"of-{rank}"
    mine.mkdir()
    states = SCORING.states()
    skip, on_rank = {"on_error": "skip"}, [{"on_error": "raise"}, {"on_error": "skip"}][rank]

    def resumed(**options: object) -> object:
        rows = breaking({BAD})
        try:
            score(rows=rows, output_dir=folder / "resumed")
        except Exception:  # noqa: BLE001 (what was finished is taken up)
            assert not (folder / "resumed" / "manifest.json").exists()
        return score(rows=breaking({BAD}), output_dir=folder / "resumed", **options)

    rows = SCORING.rows()
    return {
        "one row": partial(score, rows=rows[:1], **skip),
        "one bad row is skipped": partial(score, rows=breaking({BAD}), **skip),
        "one bad row": partial(score, rows=breaking({BAD})),
        "all rows of process 1 are bad": partial(score, rows=breaking(every), **skip),
        "more than half are bad": partial(score, rows=breaking(every | {2, 4}), **skip),
        "skipped on process 1 only": partial(score, rows=breaking({BAD}), **on_rank),
        "predicted labels, one skipped": partial(
            score, rows=breaking({BAD}), config=VoGConfig(label="predicted"), **skip
        ),
        "a folder of its own for each process": partial(score, output_dir=mine / "scores"),
        "a snapshot less on process 1": partial(score, snapshots=states[: 4 - rank]),
        "rows in another order on process 1": partial(score, rows=rows[:: 1 - 2 * rank]),
        "a table in another order on process 1": Scoring("vectors", 53, 7).score
        if rank == 0
        else partial(Scoring("vectors", 53, 7).score, rows=Scoring("vectors", 53, 7).rows().select(range(52, -1, -1))),
        "other batch sizes": partial(score, batch_size=(7, 3)[rank]),
        "other memory budgets": partial(score, memory_budget=(2**22, 2**24)[rank]),
        "a dict of splits": partial(score, rows=DatasetDict({"train": breaking(set())})),
        "an empty split": partial(score, rows=breaking(set(), 0)),
        "a stream of one row": partial(score, rows=stream(1)),
        "an empty stream": partial(score, rows=stream(0)),
        "a stream with a bad row": partial(score, rows=stream(53, BAD), **skip),
        "a stream that is shorter on process 1": partial(score, rows=stream(53 - 8 * rank)),
        "continued after an error, skipping": partial(resumed, **skip),
        "another model on process 1": partial(other_model, rank),
    }


def other_model(rank: int) -> object:
    """Another model on process 1."""
    from vog_hf import VoGScorer

    model = SCORING.model() if rank == 0 else models.CASES["mlp"]().model
    return VoGScorer(model, progress=False).score(SCORING.rows(), SCORING.states(), collate_fn=models.collate)


def caught(case: Callable[[], object]) -> object:
    """The scores of a case in short, or type and message of what it raises."""
    try:
        scores = case()
    except Exception as error:  # noqa: BLE001 (what was raised is the result)
        return [type(error).__name__, str(error)]
    skipped = [entry["row"] for entry in scores.facts.skipped_rows]
    return {"vog": [None if np.isnan(value) else float(value) for value in scores.column("vog")], "skipped": skipped}


def main(folder: Path) -> None:
    """All cases, one after another, on as many processes as there are."""
    torch.set_num_threads(1)
    processes = PartialState(cpu=True)
    made = cases(folder, processes.process_index)
    processes.wait_for_everyone()
    noted = {}
    for name, work in made.items():
        noted[name] = gather_object([caught(work)])
        if processes.is_main_process:
            (folder / "noted.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_together()
