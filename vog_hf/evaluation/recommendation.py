"""The recommended ranking of rows to review first, with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError, require_type
from vog_hf.evaluation.detection import detection_table
from vog_hf.evaluation.tail_verdict import MIN_OF_EACH, RANKING_COLUMNS, Tabular, hard_tail
from vog_hf.evaluation.validation import binary_or_unknown, require_one_value_per_row

CORRUPTED = "is_corrupted"  # `vog_hf.data.plant_label_noise` leaves this column
MARGIN, LOSS = "margin", "loss"
PREFERENCES = "preference_optimization"  # name of the task of `vog_hf.gradients.preferences` whose rows have no loss
AS_GOOD = 0.01  # of AUROC; columns this close are as good as each other
# By how much AUROC the loss was at most behind the best column of the scores at finding planted wrong labels: means
# over the seeds of each record of recipes/experiments/results. The regime's own column was within `AS_GOOD`.
RECORDED_GAP = 0.05
MEANING_OF_MARGIN = "logit of the given label minus the largest other; below 0 the model prefers another label"
# AUROC of chance with these many rows of each kind is 0.5 with this many standard errors around it (Mann-Whitney); the
# best of some fifteen columns is beyond three of them in 1 of 25 sets of rows picked at random.
CHANCE_ERRORS = 3.0
NOT_A_RANKING = (
    *("row", "id", "row_hash", "label", "prediction", "prediction_probability"),
    *("observations", "vog_percentile", CORRUPTED),
)

Known = npt.NDArray[np.float64]
Direction = Literal["high", "low"]


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
    direction: Direction
    reason: str
    basis: Literal["known rows", "recorded experiments", "this run"]

    def __str__(self) -> str:
        return f"Start with {self.column}, {self.end} first: {self.reason}."

    @property
    def end(self) -> str:
        """``"highest"`` or ``"lowest"``."""
        return "highest" if self.direction == "high" else "lowest"


def recommended_ranking(
    scores: Tabular | Mapping[str, npt.ArrayLike] | pd.DataFrame,
    *,
    known_wrong: npt.ArrayLike | None = None,
    is_pretrained: bool | None = None,
) -> RecommendedRanking:
    """Recommend the column and the direction to review first.

    Known rows decide, where at least 10 of them are wrong and 10 are right: the column with the highest AUROC for the
    wrong ones, if that is better than chance. Otherwise, and where it is within 0.01 of that column, a default is
    recommended, by the recorded experiments with planted wrong labels (recipes/experiments/results/regimes.md):

    - Of a classification after fine-tuning pretrained weights, the mean ``margin``, lowest first: it was best in each
      experiment of that kind, or within 0.01 AUROC of the best of the columns of the scores.
    - Else the mean ``loss``, highest first: likewise in each training from scratch, and within 0.05 AUROC of the best
      of them in all experiments. These are classifications; other tasks were not measured.
    - Of preferences after DPO (the manifest of the scores names the task; they have no loss), the ``margin``, lowest
      first: it found planted swapped pairs.

    Args:
        scores: `VoGScores`, or columns by name. A column ``is_corrupted`` marks the wrong rows.
        known_wrong: ``[rows]``, true (1) for wrong rows and false (0) for right ones; NaN if unknown, for example
            for rows without a review decision.
        is_pretrained: Whether the training began with pretrained weights. It matters for classifications, whose
            ``prediction`` is whole numbers. Default: whether the manifest of the scores names such weights; a model
            whose weights have no name counts as trained from scratch, and so do columns without a manifest.

    Raises:
        ConfigError: No column to rank by, lengths differ, or an argument holds other values.

    Example:
        >>> wrong = np.arange(40) < 12
        >>> found = recommended_ranking({"vog": np.where(wrong, 2.0, 1.0), "loss": np.arange(40.0)}, known_wrong=wrong)
        >>> print(found)
        Start with vog, highest first: it finds the 12 rows known to be wrong best of 2 columns (AUROC 1.00).
    """
    require_type("is_pretrained", is_pretrained, (bool, type(None)), "pass True, False or None")
    given: Any = scores.to_pandas() if isinstance(scores, Tabular) else scores
    table = pd.DataFrame(require_one_value_per_row(given))
    facts = getattr(scores, "facts", None)  # of `VoGScores`
    if is_pretrained is None:
        is_pretrained = bool(getattr(facts, "is_pretrained", False))
    are_preferences = getattr(facts, "task", None) == PREFERENCES
    marked = table.get(CORRUPTED) if known_wrong is None else known_wrong
    known = None if marked is None else binary_or_unknown("known_wrong", marked, len(table))
    rankings = _rankings(table)
    known = None if known is None else np.where(_is_blank(rankings), np.nan, known)
    default = _default(table, is_pretrained=is_pretrained, are_preferences=are_preferences)
    best, why_not = _best_known(rankings, known, default)
    if best is not None:
        return best
    if default is None:
        return _by_this_run(table, why_not)
    column, direction = default
    if _is_unlabeled(table):
        reason = "no row has a label, so the loss is that of the last prediction: the least certain rows come first"
        return RecommendedRanking(column, direction, reason, "this run")
    evidence = _evidence(table, column, is_pretrained=is_pretrained)
    return RecommendedRanking(column, direction, f"{why_not}, and {evidence}", "recorded experiments")


def _default(table: pd.DataFrame, *, is_pretrained: bool, are_preferences: bool) -> tuple[str, Direction] | None:
    """The column and the direction to start with where no known row decides; None where nothing was measured."""
    has_margin, has_loss = (_has_values(table, name) for name in (MARGIN, LOSS))
    if has_margin and is_pretrained and _is_classification(table) and not _is_unlabeled(table):
        return MARGIN, "low"
    if has_loss:
        return LOSS, "high"
    return (MARGIN, "low") if has_margin and are_preferences else None


def _evidence(table: pd.DataFrame, column: str, *, is_pretrained: bool) -> str:
    """What was measured of a default column, as a clause."""
    is_classification = _is_classification(table)
    if column == MARGIN and not is_classification:
        return (
            "in recorded trainings on preferences the lowest margins (below 0 the model prefers the rejected text) "
            "found planted swapped pairs with an AUROC of 0.93 to 1.00"
        )
    where, gap = "experiments", RECORDED_GAP
    if column == MARGIN:
        where, gap = "fine-tunings", AS_GOOD
    elif is_classification and not is_pretrained:
        where, gap = "trainings from scratch", AS_GOOD
    where += "" if is_classification else ", which are classifications,"
    name = f"{column} ({MEANING_OF_MARGIN})" if column == MARGIN else column
    return (
        f"in all recorded {where} the {name} found planted wrong labels best of the columns of the scores, or within "
        f"{gap} AUROC of the best"
    )


def _has_values(table: pd.DataFrame, name: str) -> bool:
    rankings = _rankings(table)
    return name in rankings and bool(np.isfinite(rankings[name].to_numpy(dtype=float)).any())


def _is_classification(table: pd.DataFrame) -> bool:
    return "prediction" in table and pd.api.types.is_integer_dtype(table["prediction"])


def _is_unlabeled(table: pd.DataFrame) -> bool:
    """True for a classification in which no row has a label."""
    if not _is_classification(table) or "label" not in table:
        return _is_classification(table)
    label = table["label"]
    return not (label >= 0 if pd.api.types.is_numeric_dtype(label) else label.notna()).any()


def _rankings(table: pd.DataFrame) -> pd.DataFrame:
    """The columns by which rows can be ranked."""
    numeric = table.select_dtypes("number")
    return numeric[[name for name in numeric if name not in NOT_A_RANKING]]


def _is_blank(rankings: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """``[rows]``, whether a row could not be scored: none of its values, of those that may be NaN, is a number."""
    floats = rankings[[name for name, values in rankings.items() if pd.api.types.is_float_dtype(values)]]
    return np.asarray(floats.isna().all(axis=1)) & (floats.shape[1] > 0)


def _best_known(
    rankings: pd.DataFrame, known: Known | None, default: tuple[str, Direction] | None
) -> tuple[RecommendedRanking | None, str]:
    """The column that finds known wrong rows best, or the default if it is as good; or the reason for none."""
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
    close = order[order >= order.iloc[0] - AS_GOOD]
    name = next((n for n in close.index if (n, detected["direction"][n]) == default), str(order.index[0]))
    finds = "best" if name == order.index[0] else f"within {AS_GOOD} of the best"
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
    direction: Direction = "low" if tail.tail == "low" else "high"
    return RecommendedRanking(name, direction, f"{why_not} and these scores have no loss; {shown}", "this run")
