"""Which tail of a ranking is the hard one in this run: by the errors and by the loss, with intervals and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError, require_type, whole_number
from vog_hf.evaluation.bootstrap import (
    Interval,
    RankedRows,
    Tail,
    TailMeasure,
    TiedOrder,
    resampled,
    tail_measure,
)
from vog_hf.evaluation.validation import real_numbers, require_one_value_per_row

RANKING_COLUMNS = ("vog_class_normalized", "vog_normalized", "vog")
MIN_ROWS = 50
MIN_OF_EACH = 10  # misclassified rows, and rightly classified ones
MIN_RESAMPLES = 40  # the outermost 2.5 % of fewer are less than one of them
USED = ("label", "prediction", "loss")  # beside the ranking itself
CHANCE = {"misclassified": 0.5, "loss": 0.0}
_PARTS = {"high": "the highest values", "low": "the lowest values", "both": "both tails", "unclear": "neither tail"}
_HEADLINES = {
    "high": "high tail is the hard one",
    "low": "low tail is the hard one",
    "both": "both tails are hard",
    "unclear": "which tail is hard is unclear",
}


@runtime_checkable
class Tabular(Protocol):
    """What has columns by row, as `VoGScores` has."""

    def to_pandas(self) -> pd.DataFrame:
        """All columns, one line per row."""
        ...


@dataclass(frozen=True)
class HardTail:
    """Which tail of a column holds the hard rows of this run.

    Attributes:
        tail: ``"high"``, ``"low"``, ``"both"`` or ``"unclear"``.
        column: What the rows are ranked by.
        evidence: The reasons, with numbers and 95 % intervals, in one to three sentences.
        measures: All numbers of ``"misclassified"`` and ``"loss"``; None for one that cannot tell.
    """

    tail: Tail
    column: str
    evidence: str
    measures: Mapping[str, TailMeasure | None]

    def __str__(self) -> str:
        return f"{_HEADLINES[self.tail]}: {self.evidence}"

    def to_dict(self) -> dict[str, Any]:
        """The same as numbers, texts, lists and None, for JSON."""
        measures = {name: None if found is None else asdict(found) for name, found in self.measures.items()}
        for values in filter(None, measures.values()):
            values |= {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {"tail": self.tail, "column": self.column, "evidence": self.evidence, "measures": measures}


def hard_tail(
    scores: Tabular | Mapping[str, npt.ArrayLike] | pd.DataFrame,
    *,
    column: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> HardTail:
    """Which tail of a ranking is the hard one in this run: high, low, both or unclear.

    Two measures of difficulty are compared between the lowest 20 %, the middle 60 % and the highest 20 % of the column:
    whether a row is misclassified, and the percentile of its loss. A measure says "both" where both tails lie above the
    middle; "high" where high values go with difficulty, the low tail does not lie above the middle and the high one not
    below it, "low" the other way round; without such an association, the one tail that lies above the middle. All this
    by 95 % percentile bootstrap intervals over the rows (Efron & Tibshirani 1993, chapter 13), which say nothing about
    another training of the same model. Where the measures differ, one that singles out a tail goes before one that does
    not, errors go before the loss, and "high" against "low" is "unclear".

    Args:
        scores: `VoGScores`, or columns by name: the ranking, and ``loss``, or ``label`` and ``prediction``. Rows are
            those with a finite value and, in a classification (whole numbers as predictions), a label of at least 0.
        column: What to rank by; default: ``vog_class_normalized``, else ``vog_normalized``, else ``vog``.
        n_resamples: Bootstrap resamples, at least 40; a few milliseconds each for 200,000 rows.
        seed: Of the resamples.

    Returns:
        The verdict, its reasons in words, and all numbers. "unclear" for fewer than 50 rows.

    Raises:
        ConfigError: No such column, columns of different lengths, or too few resamples.

    Example:
        >>> vog = np.arange(200)
        >>> found = hard_tail({"vog": vog, "loss": np.sin(vog) + vog / 50})
        >>> found.tail, found.measures["loss"].high
        ('high', 83.45)
    """
    seed = whole_number("seed", seed, 0)
    n_resamples = whole_number("n_resamples", n_resamples)
    if n_resamples < MIN_RESAMPLES:
        raise ConfigError(
            f"n_resamples must be at least {MIN_RESAMPLES} for 95 % intervals, got {n_resamples}; 1000 is usual"
        )
    column, arrays = _columns(scores, column)
    usable, reasons = _usable_rows(column, arrays)
    measures: dict[str, TailMeasure | None] = dict.fromkeys(CHANCE)
    if usable is not None:
        estimate, resamples = resampled(usable, n_resamples, seed)
        for name, values in estimate.items():
            drawn = np.array([resample[name] for resample in resamples])
            measures[name] = tail_measure(name, CHANCE[name], usable.n_rows, values, drawn)
    tail, conclusion = _together(measures["misclassified"], measures["loss"])
    described = [_described(found, column) for found in measures.values() if found is not None]
    return HardTail(tail, column, " ".join([*reasons, *described, *conclusion]), measures)


def _columns(
    scores: Tabular | Mapping[str, npt.ArrayLike] | pd.DataFrame, column: str | None
) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """The name of the column to rank by, and what is needed of the scores."""
    table: Any = scores.to_pandas() if isinstance(scores, Tabular) else scores
    require_type("scores", table, (Mapping, pd.DataFrame), "pass VoGScores, or arrays by name")
    require_type("column", column, (str, type(None)), "pass the name of a column")
    name = column or next((name for name in RANKING_COLUMNS if name in table), RANKING_COLUMNS[-1])
    if name not in table:
        raise ConfigError(
            f"there is no column {name!r} to rank by; these scores have {', '.join(map(str, table)) or 'none'}"
        )
    return name, require_one_value_per_row({wanted: table[wanted] for wanted in (name, *USED) if wanted in table})


def _usable_rows(column: str, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[RankedRows | None, list[str]]:
    """The rows that can tell, with the measures that can, and why others cannot."""
    values = real_numbers(column, arrays[column])
    keep = np.isfinite(values)
    has_classes = {"label", "prediction"} <= set(arrays) and np.issubdtype(arrays["prediction"].dtype, np.integer)
    if has_classes:  # a row without a label has the loss of its prediction, and cannot be wrong
        keep &= arrays["label"] >= 0
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(values[rows], kind="stable")]
    if len(rows) < MIN_ROWS:
        needed = f"a label and a finite {column}" if has_classes else f"a finite {column}"
        return None, [f"Rows with {needed} number {len(rows):,}, fewer than the {MIN_ROWS} that intervals need."]
    values = values[rows]
    if values[0] == values[-1]:
        return None, [f"All {len(rows):,} rows have the same {column}, which ranks nothing."]
    is_error = (arrays["prediction"] != arrays["label"])[rows] if has_classes else None
    loss = real_numbers("loss", arrays["loss"])[rows] if "loss" in arrays else None
    against_errors, against_loss = _against_errors(is_error), _against_loss(loss)
    reasons = [reason for reason in (against_errors, against_loss) if reason]
    if len(reasons) == len(CHANCE):
        return None, reasons
    return RankedRows(
        TiedOrder(values),
        None if is_error is None or against_errors else is_error.astype(float),
        None if loss is None or against_loss else TiedOrder(loss),
    ), reasons


def _against_errors(is_error: npt.NDArray[np.bool_] | None) -> str | None:
    """Why errors cannot tell the tails apart; None where they can."""
    if is_error is None:
        return "There are no given and predicted classes to count errors by."
    n_rows, n_errors = len(is_error), int(is_error.sum())
    if n_errors == 0:
        return f"All {n_rows:,} rows are predicted as labelled (the model may have memorised them)."
    if min(n_errors, n_rows - n_errors) < MIN_OF_EACH:
        return f"Misclassified are {n_errors:,} of {n_rows:,} rows; {MIN_OF_EACH} of each kind are needed."
    return None


def _against_loss(loss: npt.NDArray[np.float64] | None) -> str | None:
    """Why the loss cannot tell the tails apart; None where it can."""
    if loss is None:
        return "There is no loss."
    infinite = int((~np.isfinite(loss)).sum())
    if infinite:
        return f"The loss is not finite for {infinite:,} of the rows, so it is not used."
    return "The loss is the same for all rows." if loss.min() == loss.max() else None


def _together(errors: TailMeasure | None, loss: TailMeasure | None) -> tuple[Tail, list[str]]:
    """The verdict of both measures, and a sentence on how it came about."""
    if errors is None:
        return (
            ("unclear", []) if loss is None else (loss.verdict, [f"Singled out by the loss: {_PARTS[loss.verdict]}."])
        )
    if loss is None:
        return errors.verdict, [f"Singled out by the errors: {_PARTS[errors.verdict]}."]
    if errors.verdict == loss.verdict:
        return errors.verdict, [f"Singled out by the errors and by the loss: {_PARTS[errors.verdict]}."]
    said = f"Singled out by the errors: {_PARTS[errors.verdict]}; by the loss: {_PARTS[loss.verdict]}"
    if "unclear" in (errors.verdict, loss.verdict):
        return (loss.verdict if errors.verdict == "unclear" else errors.verdict), [f"{said}."]
    if "both" in (errors.verdict, loss.verdict):
        return errors.verdict, [f"{said}, which says otherwise; the errors decide."]
    return "unclear", [f"{said}, a contradiction."]


def _described(found: TailMeasure, column: str) -> str:
    """A sentence with the numbers of a measure and their intervals."""
    what, statistic, scale, unit = "Mean loss percentile", "Spearman correlation with the loss", 1, ""
    if found.measure == "misclassified":
        what, statistic, scale, unit = "Misclassified", "AUROC of high values for errors", 100, " %"
    low, middle, high = (f"{scale * mean:.1f}{unit}" for mean in (found.low, found.middle, found.high))
    low_excess = _with_interval(found.low_excess, found.low_interval, scale, "+.1f")
    high_excess = _with_interval(found.high_excess, found.high_interval, scale, "+.1f")
    association = _with_interval(found.association, found.association_interval, 1, ".3f")
    return (
        f"{what}: {low} in the lowest 20 % of {found.rows:,} rows by {column}, {middle} in the middle 60 % and {high} "
        f"in the highest 20 %, that is {low_excess} and {high_excess} points from the middle; {statistic} "
        f"{association}, chance {CHANCE[found.measure]:g} (95 % intervals)."
    )


def _with_interval(value: float, interval: Interval, scale: float, form: str) -> str:
    """A number with its interval: ``+3.1 [+1.0, +5.2]``."""
    low, high = interval
    return f"{scale * value:{form}} [{scale * low:{form}}, {scale * high:{form}}]"
