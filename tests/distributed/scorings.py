"""What the programs of this folder score: models, rows, snapshots and options, the same on every process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
from datasets import Dataset
from torch import nn

from vog_hf.config import VoGConfig
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer

SNAPSHOTS = 4
ROWS_PER_BLOCK = 7


def label_of(row: int) -> int:
    """The label of a row."""
    return (row * row + row // 3) % models.CLASSES


def vectors(n: int) -> Dataset:
    """Rows of five numbers, with a table."""
    rows = models._float_rows("features", (5,), seed=7, n=n)
    columns = {"features": [row["features"].tolist() for row in rows], "label": [label_of(i) for i in range(n)]}
    return Dataset.from_dict(columns).with_format("torch")


def images(n: int) -> list[dict[str, Any]]:
    """Images, as a list."""
    rows = models._float_rows("image", (3, 8, 8), seed=7, n=n)
    return [{**row, "labels": label_of(i)} for i, row in enumerate(rows)]


def texts(n: int) -> list[dict[str, Any]]:
    """Token ids of varying length; every fifth row has no label."""
    rows = models.token_rows(7, lengths=tuple(3 + 7 * i % 11 for i in range(n)))
    return [{**row, "labels": -1 if i % 5 == 3 else label_of(i)} for i, row in enumerate(rows)]


def tags(n: int) -> list[dict[str, Any]]:
    """Token ids of varying length with a label for each token, but for some."""
    rows = models.token_rows(7, lengths=tuple(3 + 7 * i % 11 for i in range(n)))
    labels = [
        [-100 if (i + j) % 4 == 1 else (i * j + j) % models.CLASSES for j in range(len(r["input_ids"]))]
        for i, r in enumerate(rows)
    ]
    return [{**row, "labels": torch.tensor(label)} for row, label in zip(rows, labels, strict=True)]


@dataclass(frozen=True)
class Scoring:
    """One scoring: which rows of which kind, in batches of which size."""

    kind: str
    n_rows: int
    batch_size: int
    config: VoGConfig = field(default_factory=lambda: VoGConfig(target=("logit", "loss")))

    @property
    def name(self) -> str:
        """For a folder."""
        return f"{self.kind}-{self.n_rows}-by-{self.batch_size}"

    @property
    def same_batches(self) -> bool:
        """Whether the batches are the same on any number of processes."""
        return self.batch_size == 1 or self.n_rows == 1

    def model(self) -> nn.Module:
        """In float64: what differs between two runs is an error, not the order of a sum."""
        return models.CASES[MODELS[self.kind]]().model.double()

    def rows(self) -> Any:
        """The dataset."""
        return ROWS[self.kind](self.n_rows)

    def states(self) -> list[tuple[str, dict[str, torch.Tensor]]]:
        """The snapshots."""
        return [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(self.model(), SNAPSHOTS))]

    def score(
        self, *, rows: Any = None, snapshots: Any = None, output_dir: Path | None = None, **options: Any
    ) -> VoGScores:
        """Scores in blocks of seven rows on each process; options of the scorer."""
        rows, model = self.rows() if rows is None else rows, self.model()
        options = {"config": self.config, "batch_size": self.batch_size, "progress": False, **options}
        if "memory_budget" not in options:
            scorer = VoGScorer(model, **options)
            bytes_per_row = scorer.plan(scorer.reader(self.rows(), collate_fn=models.collate)).bytes_per_row
            options["memory_budget"] = ROWS_PER_BLOCK * bytes_per_row
        scorer = VoGScorer(model, **options)
        return scorer.score(rows, snapshots or self.states(), collate_fn=models.collate, output_dir=output_dir)


ROWS: dict[str, Callable[[int], Any]] = {"vectors": vectors, "images": images, "texts": texts, "tags": tags}
MODELS = {"vectors": "mlp", "images": "conv_net", "texts": "bert", "tags": "token_bert"}
SCORINGS = [
    *(Scoring("vectors", n, batch_size) for n in (53, 2, 1) for batch_size in (1, 7)),
    *(Scoring("texts", n, batch_size) for n in (53, 2, 1) for batch_size in (1, 7)),
    *(Scoring("images", 53, batch_size, VoGConfig(label="predicted")) for batch_size in (1, 7)),
    Scoring("tags", 53, 7),
]


def everything(scores: VoGScores) -> dict[str, np.ndarray]:
    """All that scores hold, in arrays: columns, trajectories, heat maps, units, hashes of the rows."""
    arrays = {name: scores.column(name) for name in scores.column_names}
    arrays |= {f"trajectory {name}": np.array(scores.trajectory(name)) for name in scores.trajectory_names}
    arrays |= {f"heat map {row}": scores.heat_map(row) for row in range(len(scores))}
    if scores.units is not None:
        arrays |= {"units of rows": scores.units.sizes} | {f"unit {n}": v for n, v in scores.units.columns.items()}
    return arrays if scores.row_hash is None else {**arrays, "row hash": scores.row_hash}


def assert_bit_equal(scores: VoGScores, expected: VoGScores) -> None:
    """Every column, trajectory and heat map, bit for bit."""
    got, wanted = everything(scores), everything(expected)
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        assert got[name].dtype == values.dtype, name
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def assert_close(scores: VoGScores, expected: VoGScores) -> None:
    """Every column, trajectory, unit and heat map to 1e-6, and whole numbers exactly; maps are kept in float16."""
    got, wanted = everything(scores), everything(expected)
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        assert got[name].shape == values.shape
        if np.issubdtype(values.dtype, np.integer):
            np.testing.assert_array_equal(got[name], values, err_msg=name)
        else:
            tolerance = 1e-3 if name.startswith("heat map") else 1e-6
            scale = np.abs(values[np.isfinite(values)]).max(initial=0)
            np.testing.assert_allclose(got[name], values, rtol=tolerance, atol=tolerance * scale)
