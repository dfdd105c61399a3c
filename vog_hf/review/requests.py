"""The page's requests: every value is checked before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vog_hf.errors import ConfigError
from vog_hf.evaluation import PATTERNS
from vog_hf.review.decision import DECISIONS
from vog_hf.review.queue import TAILS, Filter
from vog_hf.scores.formatting import escaped

MAX_NAME = 80  # characters of a reviewer's name
MAX_NOTE = 2_000
MAX_SEARCH = 200
MAX_ROWS = 500  # of one decision about several
SKIPPED = ("", "me", "anyone")  # hidden rows: none, those reviewed by the reviewer, those reviewed by anyone
Request = Mapping[str, Any]


@dataclass(frozen=True)
class RequestReader:
    """Reader of requests about a dataset under review; every method raises ConfigError for an invalid value.

    Attributes:
        n_rows: Number of rows.
        n_classes: Number of classes; 0 for rows without classes.
        columns: Columns that rows can be ordered by.
        start: Column and end that the page opens with.
        random_share: Share of random rows that it opens with, 0..1.
    """

    n_rows: int
    n_classes: int
    columns: list[str]
    start: tuple[str, str]
    random_share: float = 0.0

    def row(self, request: Request) -> int:
        """The row that is named."""
        return whole(request, "row", self.n_rows)

    def optional_row(self, request: Request) -> int | None:
        """The row that is named; None without one."""
        return None if request.get("row") is None else self.row(request)

    def rows(self, request: Request) -> list[int]:
        """Several rows that are named, each once, at least one."""
        given = request.get("rows")
        if not isinstance(given, list) or not 0 < len(given) <= MAX_ROWS:
            raise ConfigError(f"rows must be a list of 1 to {MAX_ROWS} row numbers, got {given!r:.40}")
        return list(dict.fromkeys(whole({"row": row}, "row", self.n_rows) for row in given))

    def offset(self, request: Request) -> int:
        """The number of rows of the queue before the grid; 0 without one."""
        return whole(request, "at", self.n_rows) if request.get("at") else 0

    def ids(self, request: Request) -> list[str]:
        """Ids of decisions."""
        given = request.get("ids")
        if not isinstance(given, list) or len(given) > MAX_ROWS:
            raise ConfigError(f"ids must be a list of at most {MAX_ROWS} ids of decisions, got {given!r:.40}")
        return [text({"id": one}, "id", MAX_NAME) for one in given]

    def step(self, request: Request) -> int:
        """The number of rows to move on by: -1, 0 or 1."""
        step = request.get("step", 0)
        if step not in (-1, 0, 1):
            raise ConfigError(f"step must be -1, 0 or 1, got {step!r:.40}")
        return int(step)

    def reviewer(self, request: Request, *, required: bool = False) -> str:
        """The name of the reviewer; empty without one."""
        reviewer = text(request, "reviewer", MAX_NAME).strip()
        if required and not reviewer:
            raise ConfigError("a decision needs the name of its reviewer; give yours at the top of the page")
        return reviewer

    def skip(self, request: Request) -> str:
        """The reviewed rows that are hidden, one of `SKIPPED`."""
        skip = request.get("skip", "")
        if skip not in SKIPPED:
            raise ConfigError(f"skip must be one of {SKIPPED}, got {skip!r:.40}")
        return str(skip)

    def decision(self, request: Request) -> tuple[str, int | None, str]:
        """The decision, the new label of ``"relabel"``, and the note."""
        decision = request.get("decision")
        if decision not in DECISIONS:
            raise ConfigError(f"decision must be one of {', '.join(DECISIONS)}, got {decision!r:.40}")
        label = whole(request, "label", self.n_classes) if decision == "relabel" else None
        return decision, label, text(request, "note", MAX_NOTE)

    def last(self, request: Request) -> str:
        """The id of the reviewer's last decision that the page knows of."""
        return text(request, "last", MAX_NAME)

    def filter(self, request: Request) -> Filter:
        """The queue that the page walks through."""
        given = request.get("filter") or {}
        if not isinstance(given, dict):
            raise ConfigError(f"filter must be an object, got {given!r:.40}")
        low, high = (share(given, name, default) for name, default in (("low", 0.0), ("high", 100.0)))
        start, end = self.start
        order, tail = given.get("order", start), given.get("tail", "highest" if "order" in given else end)
        if order not in self.columns or tail not in TAILS or low > high:
            raise ConfigError(
                f"no queue can be ordered by {order!r:.40}, {tail!r:.40} first, from percentile {low} to {high}"
            )
        return Filter(
            order=order,
            tail=tail,
            classes=self._classes(given.get("classes") or []),
            mismatched=bool(given.get("mismatched")),
            percentile=(low, high),
            search=text(given, "search", MAX_SEARCH).strip(),
            patterns=_patterns(given.get("patterns") or []),
            random_share=share(given, "random", 100 * self.random_share) / 100,
        )

    def _classes(self, given: object) -> tuple[int, ...]:
        """Class numbers, each once."""
        if not isinstance(given, list):
            raise ConfigError(f"classes must be a list of class numbers, got {given!r:.40}")
        return tuple(dict.fromkeys(whole({"class": one}, "class", self.n_classes) for one in given))


def _patterns(given: object) -> tuple[str, ...]:
    """Names of learning patterns, each once."""
    if not isinstance(given, list) or any(not isinstance(one, str) or one not in PATTERNS for one in given):
        raise ConfigError(f"patterns must be a list of {', '.join(PATTERNS)}, got {given!r:.40}")
    return tuple(dict.fromkeys(given))


def whole(request: Request, name: str, count: int) -> int:
    """A whole number from 0 to ``count - 1``."""
    value = request.get(name)
    if not count:
        raise ConfigError(f"{name} cannot be given: these rows have no classes")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise ConfigError(f"{name} must be a whole number from 0 to {count - 1}, got {value!r:.40}")
    return value


def share(request: Request, name: str, default: float) -> float:
    """A percentile, 0..100."""
    value = request.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 100:
        raise ConfigError(f"a percentile lies in 0..100, got {value!r:.40}")
    return float(value)


def text(request: Request, name: str, length: int) -> str:
    """A text of at most ``length`` characters; empty without one."""
    value = request.get(name, "")
    if not isinstance(value, str) or len(value) > length:
        raise ConfigError(f"{name} must be a text of at most {length} characters, got {str(value)[:40]!r}")
    return escaped(value)
