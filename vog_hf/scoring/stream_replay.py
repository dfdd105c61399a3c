"""Replay over a stream: blocks of rows are read until it ends."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vog_hf.data.batch_digests import batch_digest, joined_digest
from vog_hf.data.batch_reader import Batch
from vog_hf.errors import OutputFolderError, ProcessError
from vog_hf.runtime.processes import gathered, together
from vog_hf.runtime.progress import progress_bar
from vog_hf.scoring.replay import Replay, require_same_rows

if TYPE_CHECKING:
    from vog_hf.data.streams import StreamRows


def score_stream(replay: Replay) -> int:
    """Score the blocks of a stream until it ends, on every process; the number of its rows.

    Raises:
        OutputFolderError: The stream gives other rows than when its first blocks were scored.
        ProcessError: The stream has other rows on another process.
    """
    processes = replay.processes
    number, totals = 0, [0] * processes.num_processes
    with progress_bar(None, is_shown=replay.shows_progress) as bar:
        ended = False
        while not ended:
            bar.set_description(f"VoG, block {number + 1}")
            with together(processes, f"scoring block {number + 1}"):
                n_scored = _next_block(replay, number, bar)
            counts = gathered(processes, n_scored)
            totals = [total + count for total, count in zip(totals, counts, strict=True)]
            ended = min(counts) < replay.folder.plan.block_rows
            number += 1
    _require_same_length(totals)
    return sum(totals)


def _require_same_length(totals: Sequence[int]) -> None:
    """Raise ProcessError unless processes scored as many rows as every n-th row of one stream has."""
    n_rows, n_processes = sum(totals), len(totals)
    if any(total != len(range(n_rows)[rank::n_processes]) for rank, total in enumerate(totals)):
        listed = ", ".join(f"process {rank} scored {total:,}" for rank, total in enumerate(totals))
        raise ProcessError(
            f"every process must read the same stream, but of the rows that they share in turn {listed}: it has not "
            "the same length everywhere; open the same stream on each"
        )


def _next_block(replay: Replay, number: int, bar: Any) -> int:
    """Finish one block of this process; how many rows it has, fewer than planned where the stream has ended."""
    rank, folder, rows = replay.processes.process_index, replay.folder, replay.reader.dataset
    finished = folder.read(rank, number)
    has_ids = finished is not None and rows.id_column is not None
    if finished is not None:
        replay.take_skipped(number)
    if finished is not None and not (has_ids and folder.id_type(rank, number) != rows.id_type):
        bar.update(len(finished["rows"]) * len(replay.snapshots.snapshots))
        return len(finished["rows"])
    if number and not rows.has_begun:
        before = folder.plan.block(rank, number - 1)
        read = _held(replay, before, [])
        found = joined_digest(batch_digest(batch) for batch in read if not replay.skips(batch.rows))
        require_same_rows(found, folder.batch_digest(rank, number - 1), folder.folder)
    ids: list[pa.Table] = []
    scored = replay.score(replay.groups(_held(replay, folder.plan.block(rank, number), ids)), bar)
    if scored is None:
        return 0
    if ids:
        folder.write_ids(rank, number, pa.concat_tables(ids))
    replay.write(number, scored)
    return len(scored.rows)


def _held(replay: Replay, block: Sequence[range], ids: list[pa.Table]) -> Iterator[Batch]:
    """The batches of a block, one after another, until the stream ends; what names their rows is put into ``ids``."""
    stream = replay.reader.dataset
    for rows in block:
        held = stream.hold(rows)
        if held:
            if stream.id_column is not None:
                ids.append(stream.ids())
            yield from replay.reader.read([held])
        if len(held) < len(rows):
            return


def require_length(rows: "StreamRows", n_rows: int, folder: Path) -> None:
    """Raise OutputFolderError where a stream no longer has as many rows as were scored; reads it to its end."""
    left = len(rows.hold(range(n_rows - 1, n_rows + 1)))
    if left != 1:
        change = "fewer" if left == 0 else "more"
        raise OutputFolderError(
            f"the stream has {change} rows than the {n_rows:,} whose scores are in {folder}; choose another "
            "output_dir, or delete the folder to score again",
            argument="output_dir",
        )
