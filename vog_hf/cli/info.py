"""`vog-hf info`: how scores were computed, and installed versions."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.cli.app import command
from vog_hf.cli.output import Output
from vog_hf.cli.scored_sources import find_scores
from vog_hf.cli.sources import noted_source

if TYPE_CHECKING:
    from vog_hf.scores.vog_scores import VoGScores

NAMED_ROWS = 5  # of those without a score; --json lists more
PACKAGES = (
    "vog-hf",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "wandb",
    "trackio",
    "timm",
    "peft",
    "gradio",
)


@command("vog-hf info", "vog-hf info ./scores", "vog-hf info ./scores --json | jq .scores.config")
def info(
    out: Output,
    scores: Annotated[
        Path | None,
        typer.Argument(metavar="SCORES", help="Folder with scores. Without it, only installed versions are printed."),
    ] = None,
) -> None:
    """Print how scores were computed, and installed versions.

    With --json, prints the whole manifest.
    """
    all_scores = None if scores is None else find_scores(scores)
    environment = installed()
    if isinstance(all_scores, dict):
        out.json({"scores": {split: part.manifest for split, part in all_scores.items()}, "environment": environment})
    else:
        out.json({"scores": None if all_scores is None else all_scores.manifest, "environment": environment})
    if scores is not None and all_scores is not None:
        parts = all_scores if isinstance(all_scores, dict) else {"": all_scores}
        for place, (split, part) in enumerate(parts.items()):
            out.heading(f"Scores in {scores}{f', split {split}' if split else ''}", after=place > 0)
            out.values(summary(part, scores))
    out.heading("Installed", after=all_scores is not None)
    out.values(environment)


def summary(scores: "VoGScores", folder: Path) -> dict[str, Any]:
    """The findings of scores, then their options as in the manifest."""
    from vog_hf.scores.descriptions import skipped_in_words
    from vog_hf.scores.findings import Findings
    from vog_hf.scores.scored_rows import ScoredSplit

    known = scores.facts
    source = noted_source(folder)
    names = [entry["name"] for entry in known.snapshots]
    verdict, start, command = Findings(ScoredSplit("", scores)).opening(f"vog-hf review {folder}")
    return {
        "in this run": verdict,
        "start with": start.removeprefix("Start with "),
        "next": command.removeprefix("Next: "),
        "rows": len(scores),
        "rows without a score": skipped_in_words(known.n_skipped, known.skipped_rows[:NAMED_ROWS]),
        "columns": scores.column_names,
        "created": known.created,
        "dataset": None if source is None else str(source),
        "model": known.model.get("name") or known.model.get("class"),
        "snapshots": f"{len(names)} ({names[0]} to {names[-1]})" if names else None,
        "task": known.task,
        "target": known.config.get("target"),
        "label": known.config.get("label"),
        "dtype": known.config.get("dtype"),
        "normalized over": known.normalized_over,
        "collect": known.collect,
        "computed on": known.computed.get("device"),
        "processes": known.n_processes,
        "made with": [f"{name} {number}" for name, number in known.versions.items()] or None,
    }


def installed() -> dict[str, str | None]:
    """Versions of Python, the platform and related packages; None for a package that is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {**versions, "accelerator": _accelerator(), "executable": Path(sys.executable).name}


def _accelerator() -> str:
    """The accelerator that torch uses."""
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return "none (cpu)"
    return f"{torch.accelerator.device_count()} x {device.type}"
