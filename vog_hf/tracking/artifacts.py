"""The scores of a split as an artifact: its name, its files, and what a tracker shows of it."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from vog_hf.runtime.files import write_json
from vog_hf.scores.formatting import escaped
from vog_hf.scores.storage import MANIFEST_NAME, save_table
from vog_hf.scores.vog_scores import VoGScores

MAX_NAME = 128  # characters of an artifact's name
MAX_METADATA = 4_000  # characters of JSON per entry


@contextmanager
def artifact_files(scores: VoGScores, tables: Mapping[str, pd.DataFrame]) -> Iterator[list[Path]]:
    """Write the table of scores, its manifest and other tables to a temporary folder; yield the files.

    Args:
        scores: Scores of a split.
        tables: Tables that are not shown, by name.
    """
    with TemporaryDirectory(prefix="vog-artifact-") as name:
        folder = Path(name)
        names = scores.column_names + scores.text_column_names
        save_table(folder, {name: scores.column(name) for name in names}, scores.row_hash, scores.ids)
        write_json(folder / MANIFEST_NAME, scores.manifest)
        for table_name, table in tables.items():
            table.to_csv(folder / f"{table_name}.csv", index=False)
        yield sorted(folder.iterdir())


def artifact_metadata(scores: VoGScores) -> dict[str, Any]:
    """Every entry of the manifest that is short and that a client can encode."""
    return {name: value for name, value in scores.manifest.items() if _is_metadata(value)}


def _is_metadata(value: object) -> bool:
    text = json.dumps(value, ensure_ascii=False)
    return len(text) <= MAX_METADATA and text == escaped(text)  # W&B's client raises for half of a surrogate pair


def artifact_name(split: str, run_id: str) -> str:
    """A name that trackers take, whatever the split and the run are called.

    Example:
        >>> artifact_name("train", "vit lr=3e-4")
        'vog-scores-train-vit_lr_3e-4'
    """
    parts = [re.sub(r"[^\w.-]", "_", part, flags=re.ASCII) for part in (split, run_id) if part]
    return "-".join(["vog-scores", *parts])[:MAX_NAME]
