"""The recommended ranking of rows to review first, with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError
from vog_hf.evaluation.detection import detection_table
from vog_hf.evaluation.tail_verdict import MIN_OF_EACH, RANKING_COLUMNS, Tabular, hard_tail
from vog_hf.evaluation.validation import binary_or_unknown, real_numbers, require_one_value_per_row

CORRUPTED = "is_corrupted"  # `vog_hf.data.plant_label_noise` leaves this column
RECORDED_BEST = ("loss", "high")
RECORDED_GAP = 0.07  # AUROC by which it was behind the best column of its training, at most
MARGIN = 0.01  # of AUROC; columns this close are as good as each other
# AUROC of chance with these many rows of each kind is 0.5 with this many standard errors around it (Mann-Whitney); the
# best of some fifteen columns is beyond three of them in 1 of 25 sets of rows picked at random.
CHANCE_ERRORS = 3.0
NOT_A_RANKING = (
    *("row", "id", "row_hash", "label", "prediction", "prediction_probability"),
    *("observations", "vog_percentile", CORRUPTED),
)

Known = npt.NDArray[np.float64]


@dataclass(frozen=True)
class RecommendedRanking:
    """The ranking to review first.

    Attributes:
        column: Column of the scores.
        direction: ``"high"``: highest values first; ``"low"``: lowest first.
        reason: Reason for it, as a clause.
        basis: ``"known rows"`` of this dataset, ``"recorded experiments"``, or ``"this run"`` where that column is
            missing or no row has a label.
    """

    column: str
    direction: Literal["high", "low"]
    reason: str
    basis: Literal["known rows", "recorded experiments", "this run"]

    def __str__(self) -> str:
        return f"Start with {self.column}, {self.end} first: {self.reason}."

    @property
    def end(self) -> str:
        """``"highest"`` or ``"lowest"``."""
        return "highest" if self.direction == "high" else "lowest"


def recommended_ranking(
    scores: Tabular | Mapping[str, npt.ArrayLike] | pd.DataFrame, *, known_wrong: npt.ArrayLike | None = None
) -> RecommendedRanking:
    """Recommend the column and the direction to review first.

    Known rows decide, where at least 10 of them are wrong and 10 are right: the column with the highest AUROC for the
    wrong ones, if that is better than chance. Otherwise, and where it is within 0.01 of that column, the mean loss is
    recommended, highest first: it was never more than 0.07 AUROC behind the best column at finding planted wrong
    labels in the recorded experiments (recipes/experiments/label_noise.py and fine_tuned_noise.py).

    Args:
        scores: `VoGScores`, or columns by name. A column ``is_corrupted`` marks the wrong rows.
        known_wrong: ``[rows]``, true (1) for wrong rows and false (0) for right ones; NaN if unknown, for example
            for rows without a review decision.

    Raises:
        ConfigError: No column to rank by, lengths differ, or ``known_wrong`` holds other values.

    Example:
        >>> wrong = np.arange(40) < 12
        >>> found = recommended_ranking({"vog": np.where(wrong, 2.0, 1.0), "loss": np.arange(40.0)}, known_wrong=wrong)
        >>> print(found)
        Start with vog, highest first: it finds the 12 rows known to be wrong best of 2 columns (AUROC 1.00).
    """
    given: Any = scores.to_pandas() if isinstance(scores, Tabular) else scores
    table = pd.DataFrame(require_one_value_per_row(given))
    marked = table.get(CORRUPTED) if known_wrong is None else known_wrong
    known = None if marked is None else binary_or_unknown("known_wrong", marked, len(table))
    rankings = _rankings(table)
    best, why_not = _best_known(rankings, None if known is None else np.where(_is_blank(rankings), np.nan, known))
    if best is not None:
        return best
    if (loss := RECORDED_BEST[0]) in table and np.isfinite(real_numbers(loss, table[loss].to_numpy())).any():
        if _is_unlabeled(table):
            reason = "no row has a label, so the loss is that of the last prediction: the least certain rows come first"
            return RecommendedRanking(loss, "high", reason, "this run")
        found = f"found planted wrong labels best, or within {RECORDED_GAP} AUROC of the best column"
        reason = f"{why_not}, and in all recorded experiments the {loss} {found}"
        return RecommendedRanking(loss, "high", reason, "recorded experiments")
    return _by_this_run(table, why_not)


def _is_unlabeled(table: pd.DataFrame) -> bool:
    """True for a classification in which no row has a label."""
    is_classification = "prediction" in table and pd.api.types.is_integer_dtype(table["prediction"])
    return is_classification and not ("label" in table and (table["label"] >= 0).any())


def _rankings(table: pd.DataFrame) -> pd.DataFrame:
    """The columns by which rows can be ranked."""
    numeric = table.select_dtypes("number")
    return numeric[[name for name in numeric if name not in NOT_A_RANKING]]


def _is_blank(rankings: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """``[rows]``, whether a row could not be scored: none of its values, of those that may be NaN, is a number."""
    floats = rankings[[name for name, values in rankings.items() if pd.api.types.is_float_dtype(values)]]
    return np.asarray(floats.isna().all(axis=1)) & (floats.shape[1] > 0)


def _best_known(rankings: pd.DataFrame, known: Known | None) -> tuple[RecommendedRanking | None, str]:
    """The column that finds known wrong rows best, or the reason why there is none."""
    if known is None or not (known == 1).any():
        return None, "no row is known to be wrong"
    rows = ~np.isnan(known)
    wrong = known[rows] == 1
    n_wrong, n_right = int(wrong.sum()), int((~wrong).sum())
    if min(n_wrong, n_right) < MIN_OF_EACH:
        return None, f"only {n_wrong:,} rows are known to be wrong and {n_right:,} to be right"
    at = rankings[rows]
    usable = at.loc[:, [bool(np.isfinite(values.to_numpy(dtype=float)).all()) for _, values in at.items()]]
    detected = detection_table(usable, wrong)[:-1].set_index("column")  # without the random column
    order = detected["auroc"].sort_values(ascending=False, kind="stable")
    chance = 0.5 + CHANCE_ERRORS * np.sqrt((n_wrong + n_right + 1) / (12 * n_wrong * n_right))
    if order.empty or order.iloc[0] < chance:
        return None, f"no column finds the {n_wrong:,} rows known to be wrong better than chance"
    loss, direction = RECORDED_BEST
    is_close = loss in order and order[loss] >= order.iloc[0] - MARGIN and detected["direction"][loss] == direction
    name = loss if is_close else str(order.index[0])
    finds = "best" if name == order.index[0] else f"within {MARGIN} of the best"
    reason = (
        f"it finds the {n_wrong:,} rows known to be wrong {finds} of {len(order)} columns (AUROC {order[name]:.2f})"
    )
    return RecommendedRanking(name, detected["direction"][name], reason, "known rows"), ""


def _by_this_run(table: pd.DataFrame, why_not: str) -> RecommendedRanking:
    """VoG from the end that this run shows to be the hard one, for scores without a loss."""
    name = next((name for name in RANKING_COLUMNS if name in table), None)
    if name is None:
        raise ConfigError(f"there is no column to rank by; these scores have {', '.join(map(str, table)) or 'none'}")
    tail = hard_tail(table, column=name)
    shown = f"its {tail.tail} tail is the hard one in this run" if tail.tail in ("high", "low") else "as in the paper"
    direction: Literal["high", "low"] = "low" if tail.tail == "low" else "high"
    return RecommendedRanking(name, direction, f"{why_not} and these scores have no loss; {shown}", "this run")
