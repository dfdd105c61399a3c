"""Evaluation of the scores of one split, over the rows and columns that allow it."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from datasets import Value

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.column_kinds import CORRUPTED
from vog_hf.evaluation import (
    HardTail,
    RecommendedRanking,
    class_table,
    detection_table,
    early_late_table,
    error_by_decile,
    hard_tail,
    learning_pattern_table,
    rank_correlations,
    ranking_stability,
    recommended_ranking,
)
from vog_hf.metric.vocabulary import COMPANIONS, LEARNING_PATTERN, VOG_LOSS, title_of
from vog_hf.scores.ranking import has_classes, ranking_column, raw_column
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.storage import ROW_ID
from vog_hf.scores.vog_scores import VoGScores

DECILES = 10
MAX_CORRELATED = 24  # columns; the table would be too wide for any screen; three targets and all companions are 18


def headline(scores: VoGScores, tail: HardTail) -> str:
    """The verdict on a ranking, with what few snapshots mean for it.

    Args:
        scores: The scores that the verdict is about.
        tail: The verdict of `vog_hf.evaluation.hard_tail` on them.
    """
    if len(scores.facts.snapshots or []) != 2:
        return tail.headline
    return f"{tail.headline} It is based on two snapshots, so the stability of the ranking cannot be estimated."


class Findings:
    """Tables about the ranking of one split; each is None if the columns do not allow it.

    Args:
        split: Scores of at least one row (rows without a finite score are excluded from everything); its rows tell
            which of them are known to be mislabeled.

    Attributes:
        column: Column that rows are ranked by.
        raw: The same, not normalized: ``vog``, or ``loss`` in scores without VoG.
        title: Name of that column for people.
        is_finite: ``[rows]``, whether a row has a finite score.
    """

    def __init__(self, split: ScoredSplit) -> None:
        self.scores = scores = split.scores
        self._rows = split.rows
        self.column = ranking_column(scores)
        self.raw = raw_column(scores)
        self.title = "VoG" if self.raw == "vog" else title_of(self.raw)
        values = [scores.column(name).astype(np.float64) for name in dict.fromkeys((self.raw, self.column))]
        self.is_finite = np.logical_and.reduce([np.isfinite(v) for v in values])

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows with a finite score, and the columns that have a value for each of them."""
        unused = [ROW_ID, *self.scores.text_column_names]
        table = self.scores.to_pandas().drop(columns=unused, errors="ignore")[self.is_finite]
        return table[[name for name, values in table.items() if np.isfinite(values.to_numpy()).all()]]

    @cached_property
    def labeled(self) -> pd.DataFrame:
        """The rows of `table` with a class as label."""
        has_label = self.table["label"] >= 0 if "label" in self.table else np.zeros(len(self.table), dtype=bool)
        return self.table[has_label]

    @property
    def no_errors(self) -> str | None:
        """The reason why errors cannot be counted; None if they can."""
        if not has_classes(self.scores):
            return "Rows have no single class label, so error by decile is not available."
        if "prediction" not in self.scores.column_names:
            return "These scores have no predictions, so error by decile is not available."
        if len(self.labeled) < DECILES:
            return f"Fewer than {DECILES} rows have a label, so error by decile is not available."
        return None

    @property
    def is_error(self) -> npt.NDArray[np.bool_]:
        """``[labeled rows]``, whether the last prediction is another class."""
        return (self.labeled["prediction"] != self.labeled["label"]).to_numpy()

    @property
    def has_verdict(self) -> bool:
        """True if the scores allow a verdict on the ranking."""
        return "loss" in self.scores.column_names

    @property
    def has_start(self) -> bool:
        """True if there is a ranking to start with, by what is known of wrong rows or by recorded experiments."""
        return self.has_verdict or self.recommended.basis != "this run"

    @cached_property
    def tail(self) -> HardTail:
        """The hard tail of the ranking in this run."""
        return hard_tail(self.scores, column=self.column)

    def opening(self, next_command: str) -> list[str]:
        """Lines that a person reads first: the verdict, the ranking to start with, and the next command."""
        return [headline(self.scores, self.tail), str(self.recommended), f"Next: {next_command}"]

    @property
    def deciles(self) -> pd.DataFrame | None:
        """Error by decile of the ranking."""
        if self.no_errors is not None:
            return None
        return error_by_decile(self.labeled[self.column], self.is_error, bins=DECILES)

    @property
    def early_late(self) -> pd.DataFrame | None:
        """Error by decile of early and of late VoG."""
        if self.no_errors is not None or not {"vog_early", "vog_late"} <= set(self.table):
            return None
        return early_late_table(self.labeled["vog_early"], self.labeled["vog_late"], self.is_error, bins=DECILES)

    @cached_property
    def correlations(self) -> pd.DataFrame | None:
        """Spearman rank correlations of `raw` and the other columns; None with fewer than two that differ."""
        if self.table.empty:
            return None
        compared = [name for name in self._compared if np.ptp(self.table[name].to_numpy()) > 0][:MAX_CORRELATED]
        return rank_correlations(self.table[compared]) if self.raw in compared and len(compared) > 1 else None

    @cached_property
    def known_wrong(self) -> npt.NDArray[np.bool_] | None:
        """``[rows]``, whether a row is known to be mislabeled, by the dataset's column ``is_corrupted``.

        None without that column (`vog_hf.data.plant_label_noise` adds it).
        """
        if not has_table(self._rows) or self._rows.features.get(CORRUPTED) != Value("bool"):
            return None
        known = self._rows.select_columns([CORRUPTED]).with_format("arrow")[:].column(CORRUPTED)
        return np.asarray(known.fill_null(False).to_numpy())

    @cached_property
    def recommended(self) -> RecommendedRanking:
        """The ranking to review first."""
        return recommended_ranking(self.scores, known_wrong=self.known_wrong)

    @cached_property
    def detection(self) -> pd.DataFrame | None:
        """Detection of rows that are known to be mislabeled, by VoG and its companions; None if none or all are."""
        if self.known_wrong is None:
            return None
        wrong = self.known_wrong[self.is_finite]
        if wrong.all() or not wrong.any():
            return None
        return detection_table(self.table[list(dict.fromkeys([self.column, *self._compared]))], wrong)

    @cached_property
    def classes(self) -> pd.DataFrame | None:
        """Mean, spread and error of each class; rows without a label are class -1."""
        if not has_classes(self.scores) or not len(self.labeled):
            return None
        given: dict[str, Any] = {n: self.table[n] for n in ("prediction", "confidence") if n in self.table}
        return class_table(self.table["label"], self.table[self.raw], **given)

    @cached_property
    def learning_patterns(self) -> pd.DataFrame | None:
        """Rows of each learning pattern with errors and known wrong labels; None where rows have no pattern."""
        scores = self.scores
        if not scores.text_column_names or not {"label", "prediction"} <= set(scores.column_names):
            return None
        is_error = scores.column("prediction") != scores.column("label")
        return learning_pattern_table(scores.column(LEARNING_PATTERN), is_error=is_error, known_wrong=self.known_wrong)

    @property
    def stability(self) -> pd.DataFrame | None:
        """Stability of the ranking with each snapshot; None with fewer than three snapshots or ten rows."""
        if "vog" not in self.scores.trajectory_names:
            return None
        running = self.scores.trajectory("vog")
        if running.shape[1] < 3 or self.is_finite.sum() < DECILES:
            return None
        return ranking_stability(running if self.is_finite.all() else running[self.is_finite])

    @property
    def _compared(self) -> list[str]:
        """The columns to compare: VoG, its companions, other targets and windows."""
        targets = self.scores.facts.targets
        others = [f"vog_{str(target).rpartition('.')[2]}" for target in targets[1:]]
        windows = [str(name) for name in self.table if str(name).endswith(("_early", "_late"))]
        names = dict.fromkeys(("vog", *COMPANIONS, *others, VOG_LOSS, *windows))
        return [name for name in names if name in self.table]
