"""Collective steps of several processes: a failure on one ends the work on all, with its message."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, ParamSpec, TypeAlias, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from vog_hf.errors import ProcessError, VoGError
from vog_hf.runtime.memory import DEVICE_ERRORS, is_out_of_memory

Processes: TypeAlias = Accelerator | PartialState
SHORT_LIST = 80  # characters of a list that a message shows whole

T = TypeVar("T")
P = ParamSpec("P")


def current_processes() -> PartialState:
    """The processes of this run, set up as by an `Accelerator`."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # as Accelerator() does; PartialState() does not


def meet(processes: Processes, what: str, patience: float) -> None:
    """Wait until every process is here; no collective, since one that stays away would leave the others in it for ever.

    Args:
        processes: Expected processes.
        what: Name of the missing object, for the message.
        patience: Seconds to wait.

    Raises:
        ProcessError: Some processes did not arrive.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    store = torch.distributed.distributed_c10d._get_default_store()  # noqa: SLF001 (monitored_barrier is gloo's alone)
    own = processes.process_index
    names = [f"vog_hf/meeting-{len(_meetings)}/{what}/{rank}" for rank in range(processes.num_processes)]
    store.set(names[own], "here")
    deadline = time.monotonic() + patience
    while absent := _absent(store, names):
        if time.monotonic() >= deadline:
            store.delete_key(names[own])  # whoever comes from now on does not find this process here
            absent = _absent(store, [name for name in names if name != names[own]])
            if absent:
                raise ProcessError(_not_everywhere(what, own, absent, names, patience))
            store.set(names[own], "here")
        time.sleep(0.05)
    _meetings.append(what)


_meetings: list[str] = []  # as many on every process, because only meetings count that all attended


def _absent(store: Any, names: Sequence[str]) -> list[str]:
    return [name for name in names if not store.check([name])]


def _not_everywhere(what: str, own: int, absent: Sequence[str], names: Sequence[str], patience: float) -> str:
    ranks = ", ".join(name.rpartition("/")[2] for name in absent[:8])
    return (
        f"{what} belongs on every process: it is on process {own}, and {patience:g} s later not on {ranks}"
        f"{' and others' if len(absent) > 8 else ''} of {len(names)}; use it on each of them (only the main one "
        "writes), or give slow ones longer with process_timeout"
    )


@contextmanager
def together(processes: Processes, what: str) -> Iterator[None]:
    """Do the work of a ``with`` block on every process; all must enter it, and none waits for one that has failed.

    Raises:
        ProcessError: The block raised on another process; says which and what.
        Exception: What the block raised here.
    """
    if processes.num_processes == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 (raised again below, once every process knows)
        failure = error
    report = None if failure is None else (processes.process_index, _description(failure))
    try:
        failures = [entry for entry in _gather([report], what) if entry is not None]
    except (ProcessError, RuntimeError):
        if failure is None:
            raise
        raise failure  # noqa: B904 (its own cause says more than that the others are gone, or the device is)
    if failure is not None:
        raise failure
    if failures:
        rank, description = failures[0]
        raise ProcessError(f"{what} failed on process {rank} of {processes.num_processes}: {description}")


def run_together(processes: Processes, what: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `together`, for one call: run ``work(*args, **kwargs)`` on every process and return its result."""
    with together(processes, what):
        return work(*args, **kwargs)


def from_main(processes: Processes, what: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``work(*args, **kwargs)`` on the main process only; every process gets its result (which must pickle)."""
    shared: list[Any] = [None]
    with together(processes, what):
        if processes.is_main_process:
            shared = [work(*args, **kwargs)]
    if processes.num_processes > 1:
        broadcast_object_list(shared)
    return shared[0]


def gathered(processes: Processes, value: T) -> list[T]:
    """The values of all processes, by rank, on every process."""
    return [value] if processes.num_processes == 1 else _gather([value], "exchanging results")


def gathered_on_main(processes: Processes, value: T) -> list[T]:
    """The values of all processes, by rank, on the main process; empty on the others."""
    if processes.num_processes == 1:
        return [value]
    values: list[Any] | None = [None] * processes.num_processes if processes.is_main_process else None
    torch.distributed.gather_object(value, values)
    return values or []


def same_everywhere(processes: Processes, what: str, value: object) -> None:
    """Raise ProcessError with each process's value if a value is not the same on all of them."""
    if processes.num_processes == 1:
        return
    held = _gather([value], f"comparing {what}")
    if any(other != held[0] for other in held):
        listed = "; ".join(f"process {rank}: {other!s:.200}" for rank, other in enumerate(_differing(held)))
        raise ProcessError(
            f"every process must hold the same {what}, but {listed}; load the same data and files on each"
        )


def _gather(values: list[T], what: str) -> list[T]:
    """The values of all processes.

    Raises:
        ProcessError: Another process has ended, or did not come within the time of the process group.
    """
    try:
        return list(gather_object(values))
    except RuntimeError as error:
        if _is_of_own_device(error):
            raise
        raise ProcessError(
            f"{what}: another process has ended, or was too slow ({error}); see what it printed, or give slow ones "
            "longer (ddp_timeout of TrainingArguments, InitProcessGroupKwargs(timeout=...) of Accelerator)"
        ) from error


def _is_of_own_device(error: RuntimeError) -> bool:
    """Tell whether this process's device failed, and not a collective: in a kernel before, or for want of memory."""
    if isinstance(error, getattr(torch.distributed, "DistError", ())):
        return False
    is_of_device = isinstance(error, getattr(torch, "AcceleratorError", ()))  # torch 2.8 raises a RuntimeError
    return is_of_device or is_out_of_memory(error) or any(text in str(error) for text in DEVICE_ERRORS)


def _differing(held: list[Any]) -> list[Any]:
    """The differing entries of mappings or of lists, or the lengths of long lists; other values unchanged."""
    if all(isinstance(value, list) for value in held):
        if any(len(value) != len(held[0]) for value in held):
            is_short = all(len(str(value)) <= SHORT_LIST for value in held)
            return held if is_short else [f"{len(value)} of them" for value in held]
        held = [dict(enumerate(value)) for value in held]
    if not all(isinstance(value, Mapping) for value in held):
        return held
    keys = [key for key in dict.fromkeys(chain(*held)) if any(value.get(key) != held[0].get(key) for value in held)]
    parts = {key: _differing([value.get(key) for value in held]) for key in keys}
    return [{key: part[rank] for key, part in parts.items()} for rank in range(len(held))]


def _description(error: Exception) -> str:
    return str(error) if isinstance(error, VoGError) else f"{type(error).__name__}: {error}"
