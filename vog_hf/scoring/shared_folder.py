"""One folder of scores for several processes: the main one makes and locks it, and all of them see it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

from vog_hf.errors import OutputFolderError, as_path
from vog_hf.runtime.files import locked
from vog_hf.runtime.processes import Processes, from_main, run_together
from vog_hf.scoring.block_folder import PLAN_NAME, BlockFolder


def output_folder(processes: Processes, output_dir: str | Path | None) -> tuple[Path, "TemporaryDirectory[str] | None"]:
    """Folder for scores, the same on every process: as given, or a temporary one of the main process."""
    if output_dir is not None:
        return as_path("output_dir", output_dir), None
    temporary = TemporaryDirectory(prefix="vog-scores-") if processes.is_main_process else None
    return Path(from_main(processes, "making a folder", getattr, temporary, "name", "")), temporary


@contextmanager
def folder_in_use(processes: Processes, folder: Path) -> Iterator[None]:
    """Hold a folder on the main process, for all of them."""
    with ExitStack() as stack:
        lock = locked(folder) if processes.is_main_process else nullcontext()
        run_together(processes, f"locking {folder}", stack.enter_context, lock)
        yield


def open_everywhere(
    processes: Processes, folder: Path, fingerprint: Mapping[str, object], prepare: Callable[[], object]
) -> BlockFolder:
    """Prepare a folder on the main process, then open it on every process.

    Raises:
        OutputFolderError: The folder is not ours, or not on a disk that all processes see.
    """
    from_main(processes, f"preparing {folder}", prepare)
    run_together(processes, f"looking for {folder}", _require_shared, folder)
    return run_together(processes, f"opening {folder}", BlockFolder.open, folder, fingerprint)


def _require_shared(folder: Path) -> None:
    """Raise OutputFolderError where this process does not see the folder that the main process has prepared."""
    if not (folder / PLAN_NAME).is_file():
        raise OutputFolderError(
            f"this process does not see what the main process has written to {folder}: the machines do not share that "
            "disk; pass an output_dir on a disk that all of them see",
            argument="output_dir",
        )
