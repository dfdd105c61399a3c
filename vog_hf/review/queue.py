"""The queue of rows that a reviewer sees: their order, filters, and neighbors for comparison."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vog_hf.errors import ConfigError, real_number, require_type, shown, whole_number
from vog_hf.evaluation import PATTERNS
from vog_hf.metric.definition import percentile
from vog_hf.metric.vocabulary import LEARNING_PATTERN
from vog_hf.review.decision import is_whole
from vog_hf.review.random_rows import random_order, with_random_rows
from vog_hf.scores.ranking import has_classes, ranking_column, values_to_rank
from vog_hf.scores.unit_columns import unit_orders
from vog_hf.scores.vog_scores import VoGScores

TAILS = ("highest", "lowest")
NOT_AN_ORDER = ("label", "prediction")
PASSING = ("undecided", "random_share")  # fields of a filter that a journal does not record with its decisions

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Filter:
    """Order and filters of a queue; the defaults include every row.

    Attributes:
        order: Column of the scores to order by; None: the ranking column (class-normalized VoG).
        tail: End that comes first: ``"highest"`` or ``"lowest"``.
        classes: Only rows with one of these given labels (-1: rows without a label).
        mismatched: Only rows with a last prediction that differs from their given label.
        patterns: Only rows with one of these learning patterns, see `vog_hf.evaluation.learning_pattern`.
        percentile: Only rows between these two percentiles (0..100) of the column ``order`` over all rows.
        search: Only rows with this in their text; case does not matter.
        undecided: Only rows without a decision.
        random_share: Share of rows (0..1) that are drawn at random from the queue and mixed in, so that
            `vog_hf.review.review_yield` can estimate the total without bias.
    """

    order: str | None = None
    tail: str = "highest"
    classes: tuple[int, ...] = ()
    mismatched: bool = False
    percentile: tuple[float, float] = (0.0, 100.0)
    search: str = ""
    undecided: bool = False
    random_share: float = 0.0
    patterns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_type("order", self.order, (str, type(None)), "pass the name of a column")
        require_type("search", self.search, str, "pass a text; '' = none")
        require_type("classes", self.classes, (Sequence, AbstractSet), "pass a tuple of classes")
        if any(not is_whole(number) for number in self.classes):
            raise ConfigError(f"classes must be whole numbers, got {shown(self.classes)}; pass the numbers of classes")
        require_type("patterns", self.patterns, (Sequence, AbstractSet), "pass a tuple of learning patterns")
        unknown = [name for name in self.patterns if name not in PATTERNS]
        if unknown:
            raise ConfigError(
                f"patterns must be a tuple of {', '.join(PATTERNS)}, got {shown(self.patterns)}; pass their names"
            )
        require_type("tail", self.tail, str, "pass 'highest' or 'lowest'")
        if self.tail not in TAILS:
            raise ConfigError(f"tail must be 'highest' or 'lowest', got {self.tail!r}")
        require_type("percentile", self.percentile, (tuple, list), "pass two numbers in 0..100")
        ends = [real_number("percentile", end, 0, 100) for end in self.percentile]
        if len(ends) != 2 or ends[0] > ends[1]:
            raise ConfigError(f"percentile must be two numbers in 0..100, the lower one first, got {self.percentile}")
        real_number("random_share", self.random_share, 0, 1)

    @classmethod
    def narrowing(cls) -> tuple[str, ...]:
        """Names of the fields that leave rows out."""
        return tuple(field.name for field in fields(cls) if field.name not in ("order", "tail", *PASSING))

    def to_record(self) -> dict[str, Any]:
        """Order and filters that differ from the defaults, for JSON."""
        names = ("order", "tail", *self.narrowing())
        values = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(Filter, name)}
        plain = {name: list(value) if isinstance(value, AbstractSet) else value for name, value in values.items()}
        return {name: np.asarray(value).tolist() for name, value in plain.items()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Filter | None":
        """The filter that `to_record` wrote; None for a record of another version."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        try:
            return cls(**values)
        except (ConfigError, TypeError):
            return None


class Queue:
    """The rows of scores, ordered and filtered.

    Args:
        scores: Scores of one dataset.
        texts: ``[rows]``, a text per row to search in; None: there is nothing to search.

    Attributes:
        columns: Names of the columns that rows can be ordered by, the ranking column first; by a column of units
            (tokens) a row has the place of its most extreme one.

    Raises:
        ConfigError: Not scores, or texts that are not one per row.

    Example:
        >>> import numpy as np
        >>> queue = Queue(VoGScores({"vog": np.array([0.1, 0.3, 0.2])}, {}), ["a cat", "a dog", "A CAT"])
        >>> queue.rows(Filter()).tolist(), queue.rows(Filter(search="cat", tail="lowest")).tolist()
        ([1, 2, 0], [0, 2])
    """

    def __init__(self, scores: VoGScores, texts: Sequence[str] | None = None) -> None:
        require_type("scores", scores, VoGScores, "pass the scores of one dataset")
        require_type("texts", texts, (Sequence, np.ndarray, type(None)), "pass one text per row, or leave them out")
        for text in () if texts is None else texts:
            require_type("a text", text, str, "pass one text per row")
        if texts is not None and len(texts) != len(scores):
            raise ConfigError(f"texts must be one per row, got {len(texts):,} for {len(scores):,} rows")
        self.scores = scores
        self.texts = None if texts is None else [text.casefold() for text in texts]
        first = ranking_column(scores)
        others = (name for name in scores.column_names if name != first and self._can_order(name))
        self.columns = [first, *others, *unit_orders(scores)]
        self._orders: dict[tuple[str, str], Rows] = {}
        self._percentile: dict[str, npt.NDArray[np.float64]] = {}

    def rows(self, chosen: Filter, decided: AbstractSet[int] = frozenset()) -> Rows:
        """The rows that pass a filter, in its order; ties by row number, rows without a finite value last.

        With ``Filter.random_share``, random rows are mixed in.

        Args:
            chosen: Filter of the queue.
            decided: Rows with a decision, for ``Filter.undecided``.

        Returns:
            ``[rows that pass]`` row numbers.

        Raises:
            ConfigError: A column, labels, predictions or texts that the scores do not have.
        """
        return self.mixed_rows(chosen, decided)[0]

    def mixed_rows(self, chosen: Filter, decided: AbstractSet[int] = frozenset()) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """The rows of `rows`, and ``[queue]`` true at the places of those that were drawn at random."""
        ordered = self._ranked(chosen, decided)
        if chosen.random_share == 0:
            return ordered, np.zeros(len(ordered), dtype=bool)
        drawn = random_order(self.scores)
        return with_random_rows(ordered, drawn[np.isin(drawn, ordered)], chosen.random_share)

    def _ranked(self, chosen: Filter, decided: AbstractSet[int]) -> Rows:
        require_type("chosen", chosen, Filter, "pass Filter(...)")
        require_type("decided", decided, AbstractSet, "pass a set of row numbers")
        keep = np.ones(len(self.scores), dtype=bool)
        if tuple(chosen.percentile) != (0, 100):  # rows without a finite value have no percentile: they are left out
            percentiles = self._percentiles(chosen.order)
            keep &= (percentiles >= chosen.percentile[0]) & (percentiles <= chosen.percentile[1])
        if chosen.classes:
            keep &= np.isin(self._column_of_classes("label"), list(chosen.classes))
        if chosen.patterns:
            keep &= np.isin(self.scores.column(LEARNING_PATTERN), list(chosen.patterns))
        if chosen.mismatched:
            label, prediction = (self._column_of_classes(name) for name in NOT_AN_ORDER)
            keep &= (label >= 0) & (prediction >= 0) & (label != prediction)
        if chosen.search:
            keep &= self._has_text(chosen.search)
        if chosen.undecided and decided:
            keep[[whole_number("decided", row, 0, len(keep) - 1) for row in decided]] = False
        ordered = self._ordered(chosen.order, chosen.tail)
        return ordered[keep[ordered]]

    def neighbors(self, row: int, chosen: Filter, count: int = 6) -> Rows:
        """Rows of the same class next to a row in the queue's order, without other filters.

        The class is the given label, else the last prediction; without classes, any row is a neighbor.

        Args:
            row: Number of the row.
            chosen: Filter, of which only order and tail are used.
            count: Number of neighbors: half before and half after the row, more on one side if the other has fewer.

        Returns:
            ``[at most count]`` row numbers.

        Raises:
            ConfigError: There is no such row or column.
        """
        row, count = whole_number("row", row, 0, len(self.scores) - 1), whole_number("count", count, 0)
        ordered = self._ordered(chosen.order, chosen.tail)
        classes = self._classes()
        alike = ordered if classes is None else ordered[classes[ordered] == classes[row]]
        place = int(np.flatnonzero(alike == row)[0])
        start = max(0, min(place - count // 2, len(alike) - 1 - count))
        near = alike[start : start + count + 1]
        return near[near != row][:count]

    def _can_order(self, name: str) -> bool:
        return name not in NOT_AN_ORDER and np.issubdtype(self.scores.column(name).dtype, np.number)

    def _ordered(self, order: str | None, tail: str) -> Rows:
        """All rows, this end of a column first; ties by row number, rows without a finite value last."""
        name = self._known(order)
        if (name, tail) not in self._orders:
            values = values_to_rank(self.scores, name, highest=tail == "highest")
            sign = -1 if tail == "highest" else 1
            last_if_not_finite = np.where(np.isfinite(values), sign * values, np.inf)
            self._orders[name, tail] = np.argsort(last_if_not_finite, kind="stable").astype(np.int64)
        return self._orders[name, tail]

    def _percentiles(self, order: str | None) -> npt.NDArray[np.float64]:
        """Each row's percentile in a column, NaN for a row without a finite value."""
        name = self._known(order)
        if name not in self._percentile:
            values = values_to_rank(self.scores, name)
            is_finite = np.isfinite(values)
            percentiles = np.full(len(values), np.nan)
            percentiles[is_finite] = percentile(torch.from_numpy(values[is_finite])).numpy()
            self._percentile[name] = percentiles
        return self._percentile[name]

    def _known(self, order: str | None) -> str:
        name = order or self.columns[0]
        if name not in self.columns:
            raise ConfigError(f"rows cannot be ordered by {name!r}; choose one of {', '.join(self.columns)}")
        return name

    def _column_of_classes(self, name: str) -> npt.NDArray[np.int64]:
        if name not in self.scores.column_names or not has_classes(self.scores):
            raise ConfigError(f"these scores have no single {name} per row to filter by; leave that filter out")
        return self.scores.column(name).astype(np.int64)

    def _classes(self) -> npt.NDArray[np.int64] | None:
        """Each row's class: its label, else its prediction; None for rows without a single class."""
        if not has_classes(self.scores):
            return None
        names = [name for name in NOT_AN_ORDER if name in self.scores.column_names]
        if not names:
            return None
        classes = self._column_of_classes(names[0])
        return np.where(classes < 0, self._column_of_classes(names[-1]), classes)

    def _has_text(self, search: str) -> npt.NDArray[np.bool_]:
        if self.texts is None:
            raise ConfigError(f"these rows have no text to search for {search!r}; leave the search empty")
        searched = search.casefold()
        return np.fromiter((searched in text for text in self.texts), dtype=bool, count=len(self.texts))
