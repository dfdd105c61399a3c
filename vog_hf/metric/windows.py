"""The first and the last snapshots of a run, which the columns `early` and `late` are computed from."""

from dataclasses import dataclass

MIN_SNAPSHOTS = 2


@dataclass(frozen=True)
class Windows:
    """Which snapshots the columns cover: ``early`` and ``late`` are the first and last max(2, K // 3) of K."""

    n_snapshots: int

    @property
    def width(self) -> int:
        """Snapshots in the windows early and late."""
        return max(MIN_SNAPSHOTS, self.n_snapshots // 3)

    def is_late(self, index: int) -> bool:
        """Whether the snapshot of this index (from 0) is in the window late."""
        return index >= self.n_snapshots - self.width
