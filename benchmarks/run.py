"""Run the benchmarks, and report a table of ratios with their targets and all times as JSON.

    python benchmarks/run.py --only epoch loop --pairs 5

A missed target is not a failure, because times depend on the machine.
"""

import argparse
import importlib
import sys
import time
from pathlib import Path

import torch
from measuring import Figure, Options, device_named, table, write_json
from transformers.utils import logging as transformers_logging

BENCHMARKS = {  # name: module
    "epoch": "against_epoch",
    "loop": "against_loop",
    "others": "against_others",
    "live": "replay_and_live",
    "callback": "with_callback",
    "processes": "two_processes",
    "growth": "growth",
    "companions": "companions",
    "targets": "targets",
    "memory": "peak_memory",
    "observed": "observed_training",  # behind the others, because it changes how the process uses memory
    "gpu": "on_gpu",
}
ON_CPU_ONLY = ("processes", "memory")


def main() -> None:
    """Run the selected benchmarks, and print and write the results."""
    given = parse()
    options = Options(given.pairs, given.scale, given.threads, device_named(given.device))
    torch.set_num_threads(options.threads)
    transformers_logging.set_verbosity_error()
    skipped = ("gpu",) if options.device == "cpu" else ON_CPU_ONLY
    figures: list[Figure] = []
    for name in given.only or [name for name in BENCHMARKS if name not in skipped]:
        began = time.perf_counter()
        print(f"{name}:", file=sys.stderr, flush=True)
        figures += importlib.import_module(BENCHMARKS[name]).measure(options)
        print(f"{name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        write_json(given.output, figures, options)  # after each, so that an interruption loses none
    print(table(figures))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--pairs", type=positive, default=5, help="number of rounds; each runs every side once")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a quick test")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the accelerator of torch, whatever its name"
    )
    parser.add_argument("--output", type=Path, default=Path("bench-results.json"))
    return parser.parse_args()


def positive(text: str) -> int:
    """A whole number of at least one."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    main()
