"""VisitMoments: moments of rows that come in any order, each over its own visits, with inputs of different lengths."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vog_hf.errors import DataError, MemoryBudgetError
from vog_hf.metric.moments import GradientMoments

AT_A_TIME = 2**12  # units of which the deviation is computed, or that are merged, at once
GROWTH = 1.25

Rows = npt.NDArray[np.int64]


class VisitMoments:
    """Moments of the gradients of rows, each row over its own visits.

    A row is one unit (an image), or several of one shape (the tokens of a text): they are neighbors in one
    `GradientMoments`. A row gets its place at its first visit.

    Args:
        n_rows: Number of all rows.
        units: Expected number of units of all rows.
        limit: Maximum size of the moments in bytes.

    Attributes:
        nbytes: Current size in bytes.

    Example:
        >>> moments = VisitMoments(2, units=2, limit=1000)
        >>> moments.add(np.array([1]), np.array([2]), torch.tensor([[1.0], [2.0]]))
        >>> moments.add(np.array([1]), np.array([2]), torch.tensor([[3.0], [2.0]]))
        >>> moments.scores().tolist()
        [nan, 0.5]
    """

    def __init__(self, n_rows: int, *, units: int, limit: int) -> None:
        self._first: Rows = np.full(n_rows, -1, dtype=np.int64)
        self._sizes: Rows = np.zeros(n_rows, dtype=np.int64)
        self._expected, self._limit = units, limit
        self._used = 0
        self._moments: GradientMoments | None = None
        self.nbytes = 0

    def add(self, rows: Rows, sizes: Rows, units: Tensor, mask: Tensor | None = None) -> None:
        """Add a visit of some rows.

        Args:
            rows: Numbers of different rows, ``[visited]``.
            sizes: Number of units of each, ``[visited]``.
            units: Gradients of all their units in turn, ``[sum(sizes), *element_shape]``, on the CPU.
            mask: ``[sum(sizes), *first axes]``, true for elements to include; None: all.

        Raises:
            DataError: A row has another length than at its first visit.
            MemoryBudgetError: There is no room for more rows.
        """
        if not len(rows):
            return
        is_new = self._first[rows] < 0
        changed = np.flatnonzero(~is_new & (self._sizes[rows] != sizes))
        shape = units.shape[1:] if self._moments is None else self._moments.grad_mean.shape[1:]
        if len(changed) or units.shape[1:] != shape:
            row = rows[changed[0]] if len(changed) else rows[0]
            raise DataError(f"row {row} does not have the same shape in every epoch")
        new = rows[is_new]
        self._make_room(int(sizes[is_new].sum()), units)
        self._sizes[new] = sizes[is_new]
        self._first[new] = self._used + np.cumsum(sizes[is_new]) - sizes[is_new]
        self._used += int(sizes[is_new].sum())
        assert self._moments is not None  # noqa: S101 (there is room)
        self._moments.update(torch.from_numpy(self._places(rows)), units, mask)

    def scores(self) -> npt.NDArray[np.floating]:
        """VoG of each row over its visits, ``[rows]``: NaN for a row with fewer than two."""
        values = np.full(len(self._first), np.nan)
        if self._moments is None:
            return values
        state = self._moments.state()
        parts = [slice(start, min(start + AT_A_TIME, self._used)) for start in range(0, self._used, AT_A_TIME)]
        of_units = [GradientMoments.from_state(_of(state, part)).scores().numpy() for part in parts]
        rows = np.flatnonzero(self._first >= 0)
        rows = rows[np.argsort(self._first[rows])]
        sums = np.add.reduceat(np.concatenate(of_units).astype(np.float64), self._first[rows])
        n_visits = self._moments.count.numpy()[self._first[rows]]
        values[rows] = np.where(n_visits > 1, sums / self._sizes[rows], np.nan)
        return values.astype(state["grad_mean"].numpy().dtype)

    def state(self) -> dict[str, Tensor]:
        """The state for `merge`; shares memory with the moments."""
        places = {"first": torch.from_numpy(self._first), "sizes": torch.from_numpy(self._sizes)}
        return places if self._moments is None else places | _of(self._moments.state(), slice(0, self._used))

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the visits of another `state` of the same rows.

        Raises:
            DataError, MemoryBudgetError: As `add`.
        """
        if "count" not in state:
            return
        first, sizes = state["first"].numpy(), state["sizes"].numpy()
        rows = np.flatnonzero(first >= 0)
        rows = rows[np.argsort(first[rows])]
        at_a_time = max(1, AT_A_TIME // max(1, int(sizes[rows].max(initial=1))))
        for start in range(0, len(rows), at_a_time):
            part = rows[start : start + at_a_time]
            of_part = slice(int(first[part[0]]), int(first[part[-1]] + sizes[part[-1]]))
            self._merge(part, sizes[part], GradientMoments.from_state(_of(state, of_part)))

    def _merge(self, rows: Rows, sizes: Rows, other: GradientMoments) -> None:
        """Add moments of rows that are neighbors there."""
        is_new = self._first[rows] < 0
        new = torch.from_numpy(np.repeat(is_new, sizes))
        if is_new.any():  # gives them a place; this visit is replaced below
            zeros = torch.zeros_like(other.grad_mean)[new]
            self.add(rows[is_new], sizes[is_new], zeros, None if other.mask is None else other.mask[new])
        assert self._moments is not None  # noqa: S101 (`add` has made it)
        places = torch.from_numpy(self._places(rows))
        own = GradientMoments.from_state({name: of_all[places] for name, of_all in self._moments.state().items()})
        own.count[new] = 0
        own.merge(other)
        for name, values in own.state().items():
            self._moments.state()[name][places] = values

    def _places(self, rows: Rows) -> Rows:
        """Place of each unit of some rows."""
        sizes = self._sizes[rows]
        before = np.cumsum(sizes) - sizes
        return np.repeat(self._first[rows] - before, sizes) + np.arange(int(sizes.sum()))

    def _make_room(self, n_units: int, units: Tensor) -> None:
        """Make room for more units like these."""
        needed, old = self._used + n_units, self._moments
        if old is not None and needed <= len(old.count):
            return
        room = max(needed, self._expected if old is None else int(GROWTH * len(old.count)))
        shape, dtype = units.shape[1:], torch.promote_types(units.dtype, torch.float32)
        nbytes = GradientMoments.nbytes(room, shape, dtype)
        if nbytes > self._limit:
            raise MemoryBudgetError(
                f"the rows are longer than the first ones: their moments take {nbytes:,} bytes, and {self._limit:,} "
                "are allowed"
            )
        new = GradientMoments(room, shape, dtype)
        if old is not None:
            for name, values in _of(old.state(), slice(0, self._used)).items():
                if name == "mask":
                    new.mask = torch.ones((room, *values.shape[1:]), dtype=torch.bool)
                new.state()[name][: self._used] = values
        self._moments, self.nbytes = new, nbytes


def _of(state: Mapping[str, Tensor], units: slice) -> dict[str, Tensor]:
    """The state of some units, without the places of rows."""
    return {name: values[units] for name, values in state.items() if name not in ("first", "sizes")}
