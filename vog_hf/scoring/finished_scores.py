"""Finished scores of a folder, loaded after its rows are proven to be the same."""

import logging
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from vog_hf.data.arrow_columns import has_table
from vog_hf.data.batch_digests import batch_digest, joined_digest
from vog_hf.data.batch_reader import BatchReader
from vog_hf.data.streams import StreamRows
from vog_hf.runtime.processes import Processes, gathered, run_together
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.block_folder import BlockPlan
from vog_hf.scoring.replay import require_same_rows
from vog_hf.scoring.skipped_rows import require_skipping
from vog_hf.scoring.stream_replay import require_length

logger = logging.getLogger(__name__)


def load_finished(processes: Processes, reader: BatchReader, folder: Path) -> VoGScores:
    """Load the finished scores of a folder on every process; reads the rows if need be.

    Raises:
        OutputFolderError: The rows are not those that were scored, or some were skipped and the reader skips none.
    """
    scores = run_together(processes, "loading the scores", VoGScores.load, folder)
    require_skipping(reader, scores.manifest.get("skipped", {}).get("count", 0), folder)
    rows = reader.dataset
    if isinstance(rows, StreamRows):
        logger.info("VoG: the scores are finished; the stream is read to its end, to compare its length")
        run_together(processes, "reading the stream", require_length, rows, len(scores), folder)
    elif not has_table(rows):  # the digests of a table are in the fingerprint
        logger.info("VoG: the scores are finished; all rows are read once, to compare them with those scored")
        batches = _scored_batches(scores, folder)[processes.process_index :: processes.num_processes]
        digests = run_together(processes, "reading rows", _batch_digests, reader, batches)
        digest = joined_digest(chain.from_iterable(gathered(processes, digests)))
        require_same_rows(digest, scores.facts.rows_digest, folder)
    return scores


def _scored_batches(scores: VoGScores, folder: Path) -> list[Sequence[int]]:
    """Batches of the plan without those that held a skipped row."""
    plan = BlockPlan.read(folder)
    batches = [batch for rank in range(plan.n_processes) for block in plan.blocks(rank) for batch in block]
    skipped = set(np.flatnonzero(~np.isfinite(scores.column("vog"))).tolist())
    return [batch for batch in batches if skipped.isdisjoint(batch)]


def _batch_digests(reader: BatchReader, batches: Sequence[Sequence[int]]) -> list[int]:
    return list(map(batch_digest, reader.read(batches)))
