"""Measurements: run the sides of a comparison alternately, and report figures with their targets as table and JSON."""

import ctypes
import datetime as dt
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

Seconds = dict[str, list[float]]  # of each side, one per round
FEWEST_ROWS = 8
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's mallopt
LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "vog-hf")


@dataclass(frozen=True)
class Options:
    """Repetitions, size and device of the benchmarks."""

    pairs: int = 5
    scale: float = 1.0
    threads: int = 1
    device: str = "cpu"

    def rows(self, n: int) -> int:
        """``n`` rows, reduced by the scale."""
        return max(FEWEST_ROWS, round(n * self.scale))


@dataclass(frozen=True)
class Target:
    """The target range of the median."""

    at_least: float = -math.inf
    at_most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.at_least <= value <= self.at_most

    def __str__(self) -> str:
        if math.isinf(self.at_least):
            return f"<= {self.at_most:.2f}"
        if math.isinf(self.at_most):
            return f">= {self.at_least:.1f}"
        return f"{self.at_least:.2f} to {self.at_most:.2f}"


@dataclass(frozen=True)
class Figure:
    """One line of the table: a quantity per round, with the times behind it."""

    benchmark: str
    what: str
    values: Sequence[float]
    unit: str = "ratio"
    target: Target | None = None
    seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """``"met"`` or ``"missed"``; empty without a target."""
        if self.target is None:
            return ""
        return "met" if self.median in self.target else "missed"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "benchmark": self.benchmark,
            "what": self.what,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
            "target": None if self.target is None else str(self.target),
            "verdict": self.verdict,
            "seconds": {side: list(times) for side, times in self.seconds.items()},
            "note": self.note,
        }


def device_named(name: str) -> str:
    """The device to measure on: ``"cpu"``, or torch's accelerator for any other name; exits where there is none."""
    if name == "cpu":
        return name
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        sys.exit("--device cuda needs an accelerator, and torch finds none; leave it out to measure on the CPU")
    return str(accelerator)


def timed(work: Callable[[], object]) -> float:
    """Seconds of the work, including its work on an accelerator."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    """Wait until the accelerator, if one is in use, has finished."""
    if torch.accelerator.is_available():
        module = torch.get_device_module()
        if getattr(module, "is_initialized", lambda: True)():
            torch.accelerator.synchronize()


def keep_freed_memory() -> None:
    """Let glibc keep freed memory until the process ends, where it is the C library.

    Otherwise it returns memory to the system and asks for it again in each step, depending on where the blocks lie. The
    page faults are up to a quarter of a step's CPU time on a virtual machine, and differ from one training to the next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> Seconds:
    """Seconds of each side, run one after the other in each round, in reverse order in every other round."""
    seconds: Seconds = {side: [] for side in sides}
    for number in range(rounds):
        for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
            gc.collect()
            seconds[side].append(sides[side]())
        print(f"  round {number + 1}: {described(seconds, number)}", file=sys.stderr, flush=True)
    return seconds


def described(seconds: Seconds, number: int) -> str:
    """The sides of one round with their seconds."""
    return ", ".join(f"{side} {times[number]:.3f} s" for side, times in seconds.items())


def ratios(seconds: Seconds, side: str, other: str) -> list[float]:
    """Ratio of the times of two sides, per round."""
    return [a / b for a, b in zip(seconds[side], seconds[other], strict=True)]


def compared(
    benchmark: str,
    what: str,
    seconds: Seconds,
    sides: tuple[str, str],
    *,
    target: Target | None = None,
    note: str = "",
) -> Figure:
    """The ratio of the first side to the second as a figure."""
    heading = f"{what}: {sides[0]} / {sides[1]}"
    return Figure(benchmark, heading, ratios(seconds, *sides), target=target, seconds=seconds, note=note)


def table(figures: Sequence[Figure]) -> str:
    """The figures as a table in Markdown."""
    lines = ["| benchmark | what | median | min to max | target | |", "|---|---|---:|---:|---:|---|"]
    for figure in figures:
        unit = "" if figure.unit == "ratio" else f" {figure.unit}"
        spread = f"{shown(min(figure.values))} to {shown(max(figure.values))}" if len(figure.values) > 1 else ""
        cells = (figure.benchmark, figure.what, shown(figure.median) + unit, spread, figure.target or "")
        remarks = "; ".join(filter(None, (figure.verdict, figure.note)))
        lines.append("| " + " | ".join(map(str, (*cells, remarks))) + " |")
    return "\n".join(lines)


def shown(value: float) -> str:
    """A number rounded for the table."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def write_json(path: Path, figures: Sequence[Figure], options: Options) -> None:
    """Write all measurements, with machine and versions."""
    record = {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": machine(options),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "options": vars(options),
        "figures": [figure.to_dict() for figure in figures],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def machine(options: Options) -> dict[str, Any]:
    """Description of this machine."""
    description = {
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg(),
    }
    if options.device == "cpu":
        return description
    name = getattr(torch.get_device_module(options.device), "get_device_name", lambda: options.device)
    return description | {"gpu": name()}


def processor_name() -> str:
    """Name of the processor on Linux; elsewhere its architecture."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
