"""The ranking while a model trains: what every process holds by now, put together on the main one."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.data.batch_reader import Batch
from vog_hf.data.row_identity import RowIdentity
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.runtime.processes import Processes, gathered_on_main, run_together
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.assembly import final_results, normalized_columns
from vog_hf.scoring.live_checkpoint import LiveBatch
from vog_hf.scoring.plan import ScoringPlan

Rows = npt.NDArray[np.int64]
Maps = dict[int, tuple[npt.NDArray[np.float16], npt.NDArray[np.int32], np.float32]]


def current_ranking(
    processes: Processes,
    plan: ScoringPlan,
    held: Sequence[LiveBatch],
    *,
    identity: RowIdentity,
    manifest: Mapping[str, object],
    skipped: Collection[int],
) -> VoGScores | None:
    """Scores of all rows without heat maps, on the main process; None on the others. All must call this.

    ``vog`` is the only trajectory.

    Args:
        processes: Processes that share the rows.
        plan: Plan of the scoring.
        held: Batches of this process.
        identity: Identity of all rows.
        manifest: Manifest of the scores.
        skipped: Rows of this process without a score.
    """
    own = run_together(processes, "reading the moments", _own_rows, plan, held, skipped)
    parts = [part for part in gathered_on_main(processes, own) if part]  # one without rows has no columns
    if not processes.is_main_process:
        return None
    rows = np.concatenate([part["row"] for part in parts])
    placed = {name: np.concatenate([part[name] for part in parts])[np.argsort(rows)] for name in parts[0]}
    del placed["row"]
    running = placed.pop("running")
    columns = normalized_columns(placed, plan.config, has_classes=plan.has_classes)
    return VoGScores(columns, manifest, trajectories={"vog": running}, row_hash=identity.row_hash)


def gathered_heat_maps(
    processes: Processes, held: Sequence[LiveBatch], rows: Rows, *, n_rows: int
) -> RaggedMaps | None:
    """Heat maps of some rows, empty ones for all others, on the main process; None on the others. All must call this.

    Args:
        processes: Processes that share the rows.
        held: Batches of this process.
        rows: Rows that have a heat map, the same on every process.
        n_rows: Number of all rows.
    """
    chosen = set(rows.tolist())
    own = run_together(processes, "making heat maps", _own_maps, held, chosen)
    maps_by_row = {row: maps for part in gathered_on_main(processes, own) for row, maps in part.items()}
    return _of_all_rows(maps_by_row, n_rows) if processes.is_main_process else None


def _own_rows(plan: ScoringPlan, held: Sequence[LiveBatch], skipped: Collection[int]) -> dict[str, npt.NDArray[Any]]:
    """Columns of this process's rows, with ``row`` and the trajectory as ``running``."""
    parts = []
    for batch in held:
        results = final_results(
            plan, batch.accumulator.results(of_parts=False), Batch(batch.rows, {}, batch.labels), skipped
        )
        rows = np.asarray(batch.rows, dtype=np.int64)
        parts.append({"row": rows, "running": results.trajectories["vog"], **results.columns})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _own_maps(held: Sequence[LiveBatch], wanted: set[int]) -> Maps:
    """Heat maps of those wanted rows that this process has."""
    found: Maps = {}
    for batch in held:
        places = [i for i, row in enumerate(batch.rows) if row in wanted]
        maps = batch.accumulator.heat_maps() if places else None
        if maps is not None:
            ends = np.cumsum(maps.shapes.prod(axis=1))
            for i in places:
                values = maps.values[ends[i] - maps.shapes[i].prod() : ends[i]]
                found[batch.rows[i]] = values, maps.shapes[i], maps.scale[i]
    return found


def _of_all_rows(maps: Maps, n_rows: int) -> RaggedMaps | None:
    """Maps of some rows among those of all, of which the others are empty."""
    if not maps:
        return None
    n_axes = len(next(iter(maps.values()))[1])
    shapes, scale = np.zeros((n_rows, n_axes), dtype=np.int32), np.zeros(n_rows, dtype=np.float32)
    for row, (_, shape, largest) in maps.items():
        shapes[row], scale[row] = shape, largest
    return RaggedMaps(np.concatenate([maps[row][0] for row in sorted(maps)]), shapes, scale)
