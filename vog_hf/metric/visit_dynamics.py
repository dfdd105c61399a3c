"""The companions of rows that a training visited: at most one observation per row and epoch, some rows with fewer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.metric.vocabulary import CSG, FIRST_LOSS, OBSERVATIONS

MEANS = {"loss": "loss", "correct": "correctness", "margin": "margin", "el2n": "el2n", CSG: CSG}

Values = npt.NDArray[np.floating]


class VisitDynamics:
    """The columns of `vog_hf.metric.training_dynamics.training_dynamics` over the epochs that visited each row.

    Streams one epoch at a time, in memory that does not grow with their number.

    Args:
        n_rows: Number of all rows.

    Example:
        >>> dynamics = VisitDynamics(2)
        >>> dynamics.add(np.array([0, 1]), {"loss": np.array([3.0, 1.0])})
        >>> dynamics.add(np.array([0]), {"loss": np.array([1.0])})  # this epoch left row 1 out
        >>> {name: values.tolist() for name, values in dynamics.columns().items()}
        {'loss': [2.0, 1.0], 'first_loss': [3.0, 1.0], 'observations': [2, 1]}
    """

    def __init__(self, n_rows: int) -> None:
        self._n_rows = n_rows
        self._sums: dict[str, Values] = {}
        self._counts: dict[str, npt.NDArray[np.int32]] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._first_loss = np.full(n_rows, np.nan)
        self._confidence_mean = np.zeros(n_rows)
        self._confidence_sum_sq_dev = np.zeros(n_rows)
        self._forgotten = np.zeros(n_rows, dtype=np.int32)
        self._was_correct = np.zeros(n_rows, dtype=bool)
        self._learned = np.zeros(n_rows, dtype=bool)
        self._observations = np.zeros(n_rows, dtype=np.int32)

    def add(self, rows: npt.NDArray[np.int64], values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Add one epoch's observations.

        Args:
            rows: Numbers of different rows, ``[visited]``.
            values: ``loss`` and what else the task observes, ``[visited]`` each. A row whose loss is NaN (it has no
                label) is not observed; any other value may be NaN by itself.
        """
        seen = ~np.isnan(values["loss"])
        rows, values = rows[seen], {name: of_all[seen] for name, of_all in values.items()}
        is_first = self._observations[rows] == 0
        self._first_loss[rows[is_first]] = values["loss"][is_first]
        self._observations[rows] += 1
        for name in MEANS.keys() & values.keys():
            self._add_to_sum(name, rows, values[name])
        if "confidence" in values:
            self._add_confidence(rows, values["confidence"])
        if "correct" in values and "prediction" in values:
            self._add_correct(rows, values["correct"] > 0)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """The current columns, ``[rows]`` each; NaN, and -1 in ``forgetting``, for a row that was never observed."""
        seen = self._observations > 0
        blank = np.where(seen, 1.0, np.nan)
        columns: dict[str, npt.NDArray[Any]] = {}
        for name, total in self._sums.items():
            count = self._counts[name]
            mean = np.divide(total, count, out=np.full(self._n_rows, np.nan), where=count > 0)
            columns[MEANS[name]] = mean.astype(self._dtypes[name])
        if "confidence" in self._dtypes:
            dtype = self._dtypes["confidence"]
            variance = self._confidence_sum_sq_dev / np.maximum(self._observations, 1)
            columns["confidence"] = (self._confidence_mean * blank).astype(dtype)
            columns["variability"] = (np.sqrt(variance) * blank).astype(dtype)
        if "forgetting" in self._dtypes:
            forgetting = np.where(self._learned, self._forgotten, self._observations)
            columns["forgetting"] = np.where(seen, forgetting, -1).astype(np.int32)
        if "loss" in self._dtypes:
            columns[FIRST_LOSS] = self._first_loss.astype(self._dtypes["loss"])
        return {**columns, OBSERVATIONS: self._observations.copy()}

    def _add_to_sum(self, name: str, rows: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> None:
        total = self._sums.setdefault(name, np.zeros(self._n_rows))
        count = self._counts.setdefault(name, np.zeros(self._n_rows, dtype=np.int32))
        self._dtypes.setdefault(name, values.dtype)
        known = ~np.isnan(values)
        total[rows[known]] += values[known]
        count[rows[known]] += 1

    def _add_confidence(self, rows: npt.NDArray[np.int64], confidence: npt.NDArray[Any]) -> None:
        self._dtypes.setdefault("confidence", confidence.dtype)
        n = self._observations[rows]
        deviation = confidence - self._confidence_mean[rows]
        self._confidence_mean[rows] += deviation / n
        self._confidence_sum_sq_dev[rows] += deviation**2 * ((n - 1) / n)

    def _add_correct(self, rows: npt.NDArray[np.int64], correct: npt.NDArray[np.bool_]) -> None:
        self._dtypes.setdefault("forgetting", np.dtype(np.int32))
        self._forgotten[rows] += self._was_correct[rows] & ~correct
        self._was_correct[rows] = correct
        self._learned[rows] |= correct
