"""Program: every scoring of `scorings` into a folder, on a given number of processes; and who wrote what there."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from leaving import leave_together
from scorings import SCORINGS, Scoring, everything


def watch_writes(folder: Path) -> list[str]:
    """Names of the files under a folder that this process opens for writing, makes, renames or removes from now on."""
    seen: list[str] = []

    def watch(event: str, arguments: tuple) -> None:
        if event == "open":
            path, mode, _ = arguments
            paths = [path] if mode and set(mode) & set("wax+") else []
        elif event in ("os.rename", "os.remove", "os.truncate", "shutil.rmtree"):
            paths = [value for value in arguments[:2] if isinstance(value, (str, Path))]
        else:
            return
        seen.extend(str(path) for path in paths if str(path).startswith(str(folder)))

    sys.addaudithook(watch)
    return seen


def same_on_every_process(scores) -> None:
    """Each process holds the same scores."""
    held = gather_object([{name: values.tobytes() for name, values in everything(scores).items()}])
    assert all(other == held[0] for other in held)


def main(folder: Path, n_processes: int) -> None:
    """Score; the main process leaves a folder per scoring, every process the list of what it wrote."""
    torch.set_num_threads(1)
    accelerator = Accelerator()
    assert accelerator.num_processes == n_processes
    written = watch_writes(folder)
    for scoring in SCORINGS:
        given = {"accelerator": accelerator} if scoring.kind == "texts" else {}
        scores = scoring.score(output_dir=folder / scoring.name, **given)
        assert len(scores) == scoring.n_rows
        assert scores.manifest["n_processes"] == n_processes
        same_on_every_process(scores)
    same_on_every_process(Scoring("texts", 53, 7).score())  # into a temporary folder
    rank = accelerator.process_index
    (folder / f"written-by-{rank}.json").write_text(json.dumps(sorted(set(written))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave_together()
