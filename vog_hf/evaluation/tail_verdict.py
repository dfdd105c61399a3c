"""The hard tail of a ranking in this run, by errors and by loss, with intervals and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError, require_type, whole_number
from vog_hf.evaluation.bootstrap import CHANCE, RankedRows, Tail, TailMeasure, TiedOrder, tail_measures
from vog_hf.evaluation.guide_strength import Strength, guide_strength
from vog_hf.evaluation.validation import real_numbers, require_one_value_per_row

RANKING_COLUMNS = ("vog_class_normalized", "vog_normalized", "vog")
MIN_ROWS = 50
MIN_OF_EACH = 10  # misclassified rows, and correctly classified ones
MIN_RESAMPLES = 40  # fewer do not determine a standard error, let alone the largest deviation
USED = ("label", "prediction", "loss")  # with the ranking itself
_PARTS = {"high": "the highest values", "low": "the lowest values", "both": "both tails", "unclear": "neither tail"}


@runtime_checkable
class Tabular(Protocol):
    """An object with columns by row, like `VoGScores`."""

    def to_pandas(self) -> pd.DataFrame:
        """All columns, one line per row."""
        ...


@dataclass(frozen=True)
class HardTail:
    """The tail of a column with the hard rows of this run, and the quality of the column as a guide to them.

    Attributes:
        tail: ``"high"``, ``"low"``, ``"both"`` or ``"unclear"``.
        column: Column that the rows are ranked by.
        evidence: What decided, in words; the numbers are in `table`.
        measures: All numbers of ``"misclassified"`` and ``"loss"``; None for a measure that cannot tell.
        strength: ``"none"``, ``"weak"``, ``"moderate"`` or ``"strong"``: see `vog_hf.evaluation.guide_strength`.
        headline: The verdict in one or two sentences.
        loss_advantage: AUROC of the mean loss for errors less that of the column; None where either is missing.
    """

    tail: Tail
    column: str
    evidence: str
    measures: Mapping[str, TailMeasure | None]
    strength: Strength = "none"
    headline: str = ""
    loss_advantage: float | None = None

    def __str__(self) -> str:
        table = self.table()
        if table.empty:
            return self.headline
        return f"{self.headline}\n{self.evidence}\n{table.to_string(index=False, float_format='{:.3f}'.format)}"

    @property
    def named_tail(self) -> Tail:
        """The tail that titles and captions may call the hard one: that of a moderate or strong guide, else unclear."""
        return self.tail if self.strength in ("moderate", "strong") else "unclear"

    def table(self) -> pd.DataFrame:
        """The numbers behind the verdict, one line per statistic with its interval.

        Returns:
            ``measure``, ``statistic``, ``value`` and the interval ``low``, ``high``. Errors are shares 0..1 of rows,
            losses percentiles 0..100 of the rows by loss; the parts are the lowest 20 %, the middle 60 % and the
            highest 20 % of the column. Intervals are simultaneous: all of them together hold with 99 % confidence. The
            means of the parts have none.
        """
        lines = [line for found in self.measures.values() if found is not None for line in _lines(found)]
        return pd.DataFrame(lines, columns=["measure", "statistic", "value", "low", "high"])

    def to_dict(self) -> dict[str, Any]:
        """The same as numbers, texts, lists and None, for JSON."""
        measures = {name: None if found is None else asdict(found) for name, found in self.measures.items()}
        for values in filter(None, measures.values()):
            values |= {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**{name: getattr(self, name) for name in self.__dataclass_fields__}, "measures": measures}


def hard_tail(
    scores: Tabular | Mapping[str, npt.ArrayLike] | pd.DataFrame,
    *,
    column: str | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> HardTail:
    """Determine the hard tail of a ranking in this run: high, low, both or unclear.

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
        column: Column to rank by; default: ``vog_class_normalized``, else ``vog_normalized``, else ``vog``.
        n_resamples: Bootstrap resamples, at least 40; a few milliseconds each for 200,000 rows.
        seed: Seed of the resamples.

    Returns:
        The verdict with its strength, its reasons in words, and all numbers. "unclear", with the reason in the
        headline, where there is no basis: fewer than 50 rows with a score (and a label, in a classification), equal
        scores, or neither errors nor losses that differ. Fewer than 10 rows that are misclassified, or that are not,
        leave the verdict to the loss.

    Raises:
        ConfigError: No such column, columns of different lengths, or too few resamples.

    Example:
        >>> vog = np.arange(200)
        >>> found = hard_tail({"vog": vog, "loss": np.sin(vog) + vog / 50})
        >>> found.tail, found.strength, found.measures["loss"].high
        ('high', 'strong', 83.45)
        >>> print(found.headline)
        VoG is a strong guide in this run (rank correlation 0.86 with the loss). Its highest rows are the hard ones.
    """
    seed = whole_number("seed", seed, 0)
    n_resamples = whole_number("n_resamples", n_resamples)
    if n_resamples < MIN_RESAMPLES:
        raise ConfigError(
            f"n_resamples must be at least {MIN_RESAMPLES} for intervals, got {n_resamples}; 1000 is usual"
        )
    column, arrays = _columns(scores, column)
    usable, reasons = _usable_rows(column, arrays)
    measures: dict[str, TailMeasure | None] = dict.fromkeys(CHANCE)
    advantage = None
    if usable is not None:
        known, advantage = tail_measures(usable, n_resamples, seed)
        measures |= known
    tail, conclusion = _together(measures["misclassified"], measures["loss"])
    deciding = _deciding(measures["misclassified"], measures["loss"], tail)
    strength: Strength = "none" if deciding is None else guide_strength(deciding, tail)
    sentences = [
        _verdict(tail, strength, column, deciding, _why_unclear(measures["misclassified"], measures["loss"], reasons)),
        "Mean loss orders the same rows better." if advantage and column != "loss" and advantage[1][0] > 0 else "",
    ]
    return HardTail(
        tail=tail,
        column=column,
        evidence=" ".join([*(f"{reason[0].upper()}{reason[1:]}." for reason in reasons), *conclusion]),
        measures=measures,
        strength=strength,
        headline=" ".join(filter(None, sentences)),
        loss_advantage=None if advantage is None else advantage[0],
    )


def _columns(
    scores: Tabular | Mapping[str, npt.ArrayLike] | pd.DataFrame, column: str | None
) -> tuple[str, dict[str, npt.NDArray[Any]]]:
    """The name of the column to rank by, and the columns needed."""
    table: Any = scores.to_pandas() if isinstance(scores, Tabular) else scores
    require_type("scores", table, (Mapping, pd.DataFrame), "pass VoGScores, or arrays by name")
    require_type("column", column, (str, type(None)), "pass the name of a column")
    name = column or next((name for name in RANKING_COLUMNS if name in table), RANKING_COLUMNS[-1])
    if name not in table:
        raise ConfigError(
            f"there is no column {name!r} to rank by; these scores have {', '.join(map(str, table)) or 'none'}"
        )
    return name, require_one_value_per_row({used: table[used] for used in (name, *USED) if used in table})


def _usable_rows(column: str, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[RankedRows | None, list[str]]:
    """The usable rows with their usable measures, and the reasons against the others."""
    values = real_numbers(column, arrays[column])
    keep = np.isfinite(values)
    is_classification = "prediction" in arrays and np.issubdtype(arrays["prediction"].dtype, np.integer)
    if is_classification:  # a row without a label has the loss of its prediction, and cannot be wrong
        has_label = arrays["label"] >= 0 if "label" in arrays else np.zeros(len(keep), dtype=bool)
        if not has_label.any():
            return None, ["no row has a label"]
        keep &= has_label
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(values[rows], kind="stable")]
    if len(rows) < MIN_ROWS:
        needed = f"a label and a finite {column}" if is_classification else f"a finite {column}"
        return None, [_too_few(len(rows), len(keep), needed)]
    values = values[rows]
    if values[0] == values[-1]:
        return None, [f"all {len(rows):,} rows have the same {column}, which ranks nothing"]
    is_error = (arrays["prediction"] != arrays["label"])[rows] if is_classification else None
    loss = real_numbers("loss", arrays["loss"])[rows] if "loss" in arrays else None
    against_errors, against_loss = _against_errors(is_error), _against_loss(loss, column)
    reasons = [reason for reason in (against_errors, against_loss) if reason]
    if len(reasons) == len(CHANCE):
        return None, reasons
    return RankedRows(
        TiedOrder(values),
        None if is_error is None or against_errors else is_error.astype(float),
        None if loss is None or against_loss else TiedOrder(loss),
    ), reasons


def _too_few(n_usable: int, n_rows: int, needed: str) -> str:
    """The reason against a verdict on a few rows."""
    if n_usable == n_rows:
        have = "there is only 1 row" if n_rows == 1 else f"there are only {n_rows:,} rows"
    else:
        have = f"only {n_usable:,} of {n_rows:,} rows have {needed}"
    return f"{have}; at least {MIN_ROWS} are needed"


def _against_errors(is_error: npt.NDArray[np.bool_] | None) -> str | None:
    """The reason why errors cannot distinguish the tails; None if they can."""
    if is_error is None:
        return "there are no given and predicted classes to count errors by"
    n_rows, n_errors = len(is_error), int(is_error.sum())
    if n_errors == 0:
        return f"all {n_rows:,} rows are predicted as labeled (the model may have memorized them)"
    if n_errors == n_rows:
        return f"all {n_rows:,} rows are misclassified"
    kind, count = ("misclassified", n_errors) if 2 * n_errors <= n_rows else ("correctly classified", n_rows - n_errors)
    if count < MIN_OF_EACH:
        return f"only {count:,} of {n_rows:,} rows are {kind}; at least {MIN_OF_EACH} are needed"
    return None


def _against_loss(loss: npt.NDArray[np.float64] | None, column: str) -> str | None:
    """The reason why the loss cannot distinguish the tails of a column; None if it can."""
    if column == "loss":
        return "the loss is the ranking itself"
    if loss is None:
        return "there is no loss"
    infinite = int((~np.isfinite(loss)).sum())
    if infinite:
        return f"the loss is not finite for {infinite:,} of the rows, so it is not used"
    return "the loss is the same for all rows" if loss.min() == loss.max() else None


def _together(errors: TailMeasure | None, loss: TailMeasure | None) -> tuple[Tail, list[str]]:
    """The verdict of both measures, with a sentence on its origin."""
    if errors is None:
        return (
            ("unclear", []) if loss is None else (loss.verdict, [f"Singled out by the loss: {_PARTS[loss.verdict]}."])
        )
    if loss is None:
        return errors.verdict, [f"Singled out by the errors: {_PARTS[errors.verdict]}."]
    if errors.verdict == loss.verdict:
        return errors.verdict, [f"Singled out by the errors and by the loss: {_PARTS[errors.verdict]}."]
    votes = f"Singled out by the errors: {_PARTS[errors.verdict]}; by the loss: {_PARTS[loss.verdict]}"
    if "unclear" in (errors.verdict, loss.verdict):
        return (loss.verdict if errors.verdict == "unclear" else errors.verdict), [f"{votes}."]
    if "both" in (errors.verdict, loss.verdict):
        return errors.verdict, [f"{votes}, which says otherwise; the errors decide."]
    return "unclear", [f"{votes}, a contradiction."]


def _deciding(errors: TailMeasure | None, loss: TailMeasure | None, tail: Tail) -> TailMeasure | None:
    """The measure that the verdict is taken from: errors, unless the loss alone singles out a tail."""
    if errors is None or (loss is not None and errors.verdict == "unclear" and loss.verdict == tail != "unclear"):
        return loss
    return errors


def _verdict(tail: Tail, strength: Strength, column: str, deciding: TailMeasure | None, why_unclear: str) -> str:
    """The headline, without the sentence about the loss."""
    name = "VoG" if column in RANKING_COLUMNS else column
    figure = "" if deciding is None else f" ({_figure(deciding, tail)})"
    if tail == "unclear":
        return f"It is unclear whether {name} is a guide in this run, because {why_unclear}{figure}."
    guide = "not a guide" if strength == "none" else f"a {strength} guide"
    ends = {"high": "highest rows are", "low": "lowest rows are", "both": "highest and lowest rows are both"}
    says = f" Its {ends[tail]} the hard ones." if strength in ("moderate", "strong") else ""
    return f"{name} is {guide} in this run{figure}.{says}"


def _why_unclear(errors: TailMeasure | None, loss: TailMeasure | None, reasons: list[str]) -> str:
    """The reason why no tail is singled out, as a clause."""
    if errors is None and loss is None:
        return " and ".join(reasons)
    if errors is not None and loss is not None and {errors.verdict, loss.verdict} == {"high", "low"}:
        return "errors and loss are at opposite ends of the ranking"
    return "neither end of the ranking is reliably harder than its middle"


def _figure(deciding: TailMeasure, tail: Tail) -> str:
    """The association that the strength is named by, in the direction of the verdict."""
    low_first = ", lowest rows first" if tail == "low" else ""
    if deciding.measure == "misclassified":
        area = 1 - deciding.association if low_first else deciding.association
        figure = f"AUROC {area:.2f} for errors{low_first}"
    else:
        figure = f"rank correlation {deciding.association:.2f} with the loss"
    return f"{figure}; both ends are harder than the middle" if tail == "both" else figure


def _lines(found: TailMeasure) -> list[tuple[str, str, float, float | None, float | None]]:
    """The numbers of a measure as lines of a table."""
    name = found.measure
    association = "AUROC of high values" if name == "misclassified" else "Spearman correlation of high values"
    return [
        (name, association, found.association, *found.association_interval),
        (name, "lowest 20 %", found.low, None, None),
        (name, "middle 60 %", found.middle, None, None),
        (name, "highest 20 %", found.high, None, None),
        (name, "lowest less middle", found.low_excess, *found.low_interval),
        (name, "highest less middle", found.high_excess, *found.high_interval),
    ]
