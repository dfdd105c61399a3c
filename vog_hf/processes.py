"""Processes that act as one: a failure on one of them ends the work on all, with that one's message."""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from vog_hf.errors import ProcessError, VoGError

Processes: TypeAlias = Accelerator | PartialState
T = TypeVar("T")


def current_processes() -> PartialState:
    """The processes of this run, as an `Accelerator` of the user's or the Trainer's has set them up or would."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator() does; PartialState() does not


def run_together(processes: Processes, what: str, work: Callable[[], T]) -> T:
    """Run ``work`` on every process; all must call this, and none waits for one that has failed.

    Raises:
        ProcessError: ``work`` raised on another process; says which and what.
        Exception: What ``work`` raised here.
    """
    if processes.num_processes == 1:
        return work()
    result: T | None = None
    failure: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001 (raised again below, once every process knows)
        failure = error
    told = None if failure is None else (processes.process_index, _description(failure))
    failures = [entry for entry in gather_object([told]) if entry is not None]
    if failure is not None:
        raise failure
    if failures:
        rank, description = failures[0]
        msg = f"{what} failed on process {rank} of {processes.num_processes}: {description}"
        raise ProcessError(msg)
    return result  # type: ignore[return-value]


def from_main(processes: Processes, what: str, work: Callable[[], T]) -> T:
    """Run ``work`` on the main process only; every process gets its result (which must pickle)."""
    mine = run_together(processes, what, work if processes.is_main_process else lambda: None)
    if processes.num_processes == 1:
        return mine  # type: ignore[return-value]
    shared: list[Any] = [mine]
    broadcast_object_list(shared)
    return shared[0]


def same_everywhere(processes: Processes, what: str, value: Any) -> None:
    """Raise ProcessError, listing what each process holds, where a value is not the same on all of them."""
    if processes.num_processes == 1:
        return
    held = gather_object([value])
    if any(other != held[0] for other in held):
        listed = "; ".join(f"process {rank}: {other!s:.200}" for rank, other in enumerate(held))
        msg = f"every process must hold the same {what}, but {listed}; load the same data and files on each"
        raise ProcessError(msg)


def _description(error: Exception) -> str:
    return str(error) if isinstance(error, VoGError) else f"{type(error).__name__}: {error}"
