"""Program: what goes wrong on one of two processes is caught on each, and noted; the next case follows at once."""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from leaving import leave_together
from scorings import Scoring, assert_bit_equal

from vog_hf.config import VoGConfig
from vog_hf.runtime.files import locked
from vog_hf.runtime.processes import meet
from vog_hf.snapshots import SnapshotWriter

SCORING = Scoring("images", 53, 7)
ROW = 41  # of process 1, behind the rows of the dry run
Cases = dict[str, Callable[[], object]]


class Rows:
    """The rows, with a row at which something happens; the row it gives if it gives one."""

    def __init__(self, happens: Callable[[dict], dict | None]) -> None:
        self.rows, self.happens = SCORING.rows(), happens

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict:
        return (self.happens(self.rows[i]) or self.rows[i]) if i == ROW else self.rows[i]


def broken(row: dict) -> None:
    """A file that cannot be decoded."""
    raise OSError(f"row {ROW} cannot be decoded")


def store_snapshots(folder: Path) -> None:
    """The snapshots of the scoring, as a training leaves them; for all processes at once."""
    model = SCORING.model()
    writer = SnapshotWriter(folder, model)
    for step, (_, state) in enumerate(SCORING.states()):
        model.load_state_dict(state)
        writer.take(model, step)
    PartialState().wait_for_everyone()


def cases(folder: Path, rank: int) -> Cases:
    """What goes wrong, by name: on process 1 alone, on the main one (folders), or on each in turn (callbacks)."""
    snapshots = folder / "snapshots"
    store_snapshots(snapshots)
    damaged = shutil.copytree(snapshots, folder / f"damaged-{rank}")
    vanishing = shutil.copytree(snapshots, folder / f"vanishing-{rank}")
    if rank == 1:
        stored = sorted(damaged.glob("*.safetensors"))[2]
        stored.write_bytes(stored.read_bytes()[:-1])

    def vanish(row: dict) -> None:
        sorted(vanishing.glob("*.safetensors"))[2].unlink()

    def in_use() -> None:
        with locked(folder / "in-use") if rank == 0 else nullcontext():
            PartialState().wait_for_everyone()
            SCORING.score(output_dir=folder / "in-use")

    def foreign() -> None:
        (folder / "foreign").mkdir(exist_ok=True)
        (folder / "foreign" / "thesis.tex").write_text("draft")
        SCORING.score(output_dir=folder / "foreign")

    def on_one(**given: object) -> Callable[[], object]:
        return partial(SCORING.score, **given) if rank == 1 else SCORING.score

    def alone(on: int) -> None:
        if rank == on:
            meet(PartialState(), "VoGCallback", 0.5)

    other_states = [*SCORING.states()[:2], *SCORING.states()[1::-1]]
    other_states = [(name, state) for (name, _), (_, state) in zip(SCORING.states(), other_states, strict=True)]
    return {
        "a row that cannot be read": partial(SCORING.score, rows=Rows(broken), output_dir=folder / "scores"),
        "a label out of range": partial(SCORING.score, rows=Rows(lambda row: {**row, "labels": 7})),
        "a damaged snapshot": partial(SCORING.score, snapshots=damaged),
        "a snapshot that vanishes": partial(SCORING.score, rows=Rows(vanish), snapshots=vanishing),
        "no snapshots": partial(SCORING.score, snapshots=folder / "nowhere" if rank == 1 else snapshots),
        "no rows": on_one(rows=[]),
        "fewer rows": on_one(rows=SCORING.rows()[:-1]),
        "other columns": Scoring("vectors", 53 - rank, 7).score,
        "another configuration": on_one(config=VoGConfig(target="loss")),
        "other snapshots": on_one(snapshots=other_states),
        "a folder in use": in_use,
        "a foreign folder": foreign,
        "callback on process 0 alone": partial(alone, 0),
        "callback on process 1 alone": partial(alone, 1),
    }


def caught(case: Callable[[], object]) -> list[str] | None:
    """Type and message of what a case raises."""
    try:
        case()
    except Exception as error:  # noqa: BLE001 (what was raised is the result)
        return [type(error).__name__, str(error)]
    return None


def main(folder: Path, name: str) -> None:
    """All cases, or (by name) one that nobody catches."""
    torch.set_num_threads(1)
    processes = PartialState(cpu=True)
    assert processes.num_processes == 2
    made = cases(folder, processes.process_index)
    processes.wait_for_everyone()
    if name != "all":
        made[name]()
        raise AssertionError("nothing was raised")
    errors = {}
    for case, work in made.items():
        errors[case] = gather_object([caught(work)])
    if processes.is_main_process:
        (folder / "errors.json").write_text(json.dumps(errors))
    # The processes are still in step: what follows is scored as ever.
    scores = SCORING.score(output_dir=folder / "scores")
    assert_bit_equal(scores, SCORING.score())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    leave_together()
