import sys

import launch
import pytest

LARGEST = 1.05


def peak(folder, n_rows, n_snapshots, kind="rows"):
    """The most memory, in KiB, of a fresh process that scores rows of some snapshots in blocks of 32 MiB."""
    # glibc raises this threshold whenever a large block is freed, and keeps what lies below it: up to 6 % by chance.
    environment = {"MALLOC_MMAP_THRESHOLD_": "131072"}
    with launch.launched("measure_memory.py", n_rows, n_snapshots, folder, kind, **environment) as program:
        return int(program.succeed().split()[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_rows_or_snapshots(tmp_path):
    """Twenty times the rows, eight times the snapshots, or a stream take at most 5 % more memory at their peak."""
    few = peak(tmp_path / "few", 2_000, 5)
    assert peak(tmp_path / "rows", 40_000, 5) <= LARGEST * few
    assert peak(tmp_path / "snapshots", 2_000, 40) <= LARGEST * few
    assert peak(tmp_path / "stream", 4_000, 5, "stream") <= LARGEST * few
