"""The first and last snapshots of a run, from which the columns `early` and `late` are computed."""

from dataclasses import dataclass

MIN_SNAPSHOTS = 2


@dataclass(frozen=True)
class Windows:
    """Snapshots of the columns ``early`` and ``late``: the first and last max(2, K // 3) of K."""

    n_snapshots: int

    @property
    def width(self) -> int:
        """Number of snapshots in each window."""
        return max(MIN_SNAPSHOTS, self.n_snapshots // 3)

    def is_late(self, index: int) -> bool:
        """True if the snapshot with this index (from 0) is in the late window."""
        return index >= self.n_snapshots - self.width
