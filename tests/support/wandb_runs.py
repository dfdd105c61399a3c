"""Runs of the real W&B client, offline: made, and read back as the client itself reads them."""

import json
import re
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from PIL import Image

from vog_hf.tracking import log_scores


@dataclass
class Run:
    """A run as it lies on disk: its records, and the artifacts by type and name with their files."""

    records: list[dict[str, Any]]
    run_id: str
    folder: Path

    @property
    def history(self):
        return [record["history"]["item"] for record in self.records if record["type"] == "history"]

    @property
    def all_logged(self):
        """The records that log_scores wrote."""
        return [item for item in self.history if "vog/n_rows" in item]

    @property
    def logged(self):
        """The only one of them."""
        (found,) = self.all_logged
        return found

    @property
    def summary(self):
        """The last value under each name."""
        return {
            k: v
            for record in self.records
            if record["type"] == "summary"
            for k, v in record["summary"]["update"].items()
        }

    def chart(self, key):
        """A chart's specification and the columns of its table."""
        updates = [record["config"]["update"] for record in self.records if record["type"] == "config"]
        (spec,) = [u[f"_wandb.visualize.{key}"]["panel_config"] for u in updates if f"_wandb.visualize.{key}" in u]
        return spec, self.table(f"Custom Chart Tables/{key}_table")

    def file(self, key):
        """A medium that lies next to the run."""
        return self.folder / "files" / self.logged[f"{key}.path"]

    def artifact(self, kind, name=""):
        """The record of an artifact, with its files by path."""
        found = [r["artifact"] for r in self.records if r["type"] == "artifact"]
        found = [a for a in found if a["type"] == kind and name in a["name"]]
        assert len(found) == 1, [a["name"] for a in found]
        files = {entry["path"]: Path(entry["local_path"]) for entry in found[0]["manifest"]["contents"]}
        return found[0], files

    def table(self, key):
        """A logged table as a frame, its pictures opened, its pages as paths."""
        _, files = self.artifact("run_table", f"-{re.sub('[/ ]', '', key)}-")
        content = json.loads(files[f"{key}.table.json"].read_text())
        frame = pd.DataFrame(content["data"], columns=content["columns"]).astype(object)
        assert len(frame) == self.logged[f"{key}.nrows"]
        for name in {"image", "heat_map"} & set(frame):
            frame[name] = [cell and _opened(cell["path"], files) for cell in frame[name]]
        return frame.where(frame.notna(), None)


def _opened(path, files):
    return files[path] if path.endswith(".html") else Image.open(files[path])


@contextmanager
def offline_client(folder):
    """The real client, without a network or an account, in a folder of its own."""
    wandb.teardown()  # its settings are read from the environment once
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("WANDB_MODE", "offline")
        environment.setenv("WANDB_SILENT", "true")
        for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            environment.setenv(name, str(folder))
        yield folder
        wandb.teardown()


def inspect(path):
    """The records of a run on disk, as the client itself reads them."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and "No such command" in done.stderr:
        pytest.skip(f"wandb {wandb.__version__} has no `leet inspect` to read a run back")
    assert not done.returncode, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def logged_run(offline, scores, dataset, *, prepare=lambda run: None, **options):
    """Log into a new run, finish it, read it back."""
    with wandb.init(project="vog", settings=wandb.Settings(console="off")) as run:
        prepare(run)
        assert log_scores(scores, dataset, **options) is True
        assert wandb.run is run, "the run stays the user's"
    return read_back(offline, run.id)


def read_back(offline, run_id):
    """A finished run."""
    (run,) = all_parts(offline, run_id)
    return run


def all_parts(offline, run_id):
    """A run that was resumed is on disk once for each part, in the order of time."""
    paths = sorted(offline.rglob(f"run-{run_id}.wandb"), key=lambda path: path.stat().st_mtime)
    return [Run(inspect(path), run_id, path.parent) for path in paths]
