"""Rows that cannot be scored: tried before they are scored, named or skipped, blank in the results, in the manifest."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from vog_hf.data.bad_rows import concerns_rows
from vog_hf.data.batch_reader import Batch, BatchReader, Trial
from vog_hf.errors import DataError, NonFiniteError, OutputFolderError, VoGError
from vog_hf.gradients.batchnorm_folding import FastPathError
from vog_hf.gradients.model_inputs import copied, doubled, to_device
from vog_hf.gradients.model_mode import model_device_and_dtype
from vog_hf.metric.batch_accumulator import BatchAccumulator, RowResults
from vog_hf.metric.heat_maps import RaggedMaps
from vog_hf.runtime.memory import AdaptiveBatchSize
from vog_hf.runtime.processes import Processes, gathered
from vog_hf.scoring.passes import sliced
from vog_hf.scoring.plan import ScoringPlan

logger = logging.getLogger(__name__)

LISTED_ROWS = 100  # in the manifest
NAMED_ROWS = 3  # in the warning


def try_batch(model: nn.Module, plan: ScoringPlan | None, rows_per_pass: AdaptiveBatchSize, batch: Batch) -> None:
    """Run the plain model on a batch, so that rows that it does not take raise here; labels and padding as well.

    Args:
        model: Model in use, with any weights.
        plan: Plan of the scoring; None before there is one.
        rows_per_pass: Number of rows that fit into memory.
        batch: Batch as it was read.
    """
    if plan is not None:
        plan.check(batch)
    inputs, n_rows = to_device(batch.inputs, *model_device_and_dtype(model)), len(batch)
    if n_rows == 1:  # some models take no batch of one row
        inputs, n_rows = doubled(inputs), 2

    def forward(rows: slice) -> None:
        model(**copied(sliced(inputs, rows, n_rows)))

    with torch.no_grad():
        rows_per_pass.run(n_rows, forward)


@contextmanager
def rows_named(reader: BatchReader, rows: Sequence[int], trial: Trial) -> Iterator[None]:
    """Raise an error that names the row where the model fails on a batch of some rows."""
    try:
        yield
    except (VoGError, FastPathError):
        raise
    except Exception as error:
        if not concerns_rows(error):
            raise
        raise reader.forward_error(rows, error, trial) from error


def check_finite(
    reader: BatchReader,
    rows: Sequence[Sequence[int]],
    accumulators: Sequence[BatchAccumulator],
    require_finite: Callable[[BatchAccumulator, Sequence[int]], None],
    snapshot: str,
) -> None:
    """Skip the rows of some batches with a gradient that was not finite in the last pass; asks the device once.

    Args:
        reader: Reader of the rows.
        rows: Row numbers of each batch.
        accumulators: Moments of each batch.
        require_finite: Function that raises NonFiniteError for moments and their rows.
        snapshot: Name of the snapshot of the last pass.

    Raises:
        NonFiniteError: Rows are not skipped, or no row of several is finite: the weights have diverged.
    """
    if not accumulators or bool(torch.isfinite(torch.cat([one.running.flatten() for one in accumulators])).all()):
        return
    n_finite, failures = 0, dict[int, NonFiniteError]()
    for numbers, accumulator in zip(rows, accumulators, strict=True):
        try:
            require_finite(accumulator, numbers)
            n_finite += len(numbers)
        except NonFiniteError as error:
            if reader.bad_rows.on_error == "raise":
                raise
            bad = (~torch.isfinite(accumulator.running).all(0)).cpu().numpy()
            failures |= dict.fromkeys((numbers[at] for at in np.flatnonzero(bad).tolist()), error)
            n_finite += int((~bad).sum())
    if not n_finite and len(failures) > 1:
        raise next(iter(failures.values()))
    new = failures.keys() - reader.bad_rows.skipped.keys()
    reader.bad_rows.skipped.update(dict.fromkeys(new, f"its gradient is not finite at snapshot {snapshot!r}"))


def without_skipped(results: RowResults, rows: Sequence[int], skipped: Collection[int]) -> RowResults:
    """Results with NaN for the rows that are skipped, -1 where they are whole numbers, heat maps of 0, and no units."""
    at = [place for place, row in enumerate(rows) if row in skipped] if skipped else []
    if not at:
        return results
    return RowResults(
        {name: _blank(values, at) for name, values in results.columns.items()},
        {name: _blank(values, at) for name, values in results.trajectories.items()},
        None if results.heat_maps is None else _blank_maps(results.heat_maps, at),
        None if results.units is None else results.units.without(at),
        None if results.pixels is None else results.pixels.without(at),
    )


def _blank(values: npt.NDArray[Any], at: Sequence[int]) -> npt.NDArray[Any]:
    values = values.copy()
    values[at] = np.nan if np.issubdtype(values.dtype, np.floating) else -1
    return values


def _blank_maps(maps: RaggedMaps, at: Sequence[int]) -> RaggedMaps:
    values, scale = maps.values.copy(), maps.scale.copy()
    stops = np.cumsum(maps.shapes.prod(axis=1))
    for place in at:
        values[stops[place] - maps.shapes[place].prod() : stops[place]] = 0
    scale[at] = 0
    return RaggedMaps(values, maps.shapes, scale)


def require_few_skipped(skipped: Mapping[int, str], n_rows: int) -> None:
    """Raise DataError where more than half of the rows are skipped: then something else is wrong."""
    if 2 * len(skipped) > n_rows:
        raise DataError(
            f"{len(skipped):,} of {n_rows:,} rows cannot be scored, more than half of them ({_first(skipped)}); "
            "on_error='skip' is for single rows: fix the dataset, its transform or the collator"
        )


def require_skipping(reader: BatchReader, n_skipped: int, folder: Path) -> None:
    """Raise OutputFolderError where a folder's scores leave out rows and the reader does not skip any."""
    if n_skipped and reader.bad_rows.on_error == "raise":
        raise OutputFolderError(
            f"the scores in {folder} leave out {n_skipped:,} rows that could not be scored; pass on_error='skip' to "
            "use them, or another output_dir to score again",
            argument=("on_error='skip'", "output_dir"),
        )


def skipped_entry(reader: BatchReader, processes: Processes, n_rows: int) -> dict[str, Any]:
    """The manifest's entry about the rows that were skipped, ``{}`` without any; warns. All processes must call this.

    Raises:
        DataError: They are more than half of the rows.
    """
    skipped = {row: reason for part in gathered(processes, reader.bad_rows.skipped) for row, reason in part.items()}
    if not skipped:
        return {}
    require_few_skipped(skipped, n_rows)
    if processes.is_main_process:
        logger.warning("VoG: %d of %d rows cannot be scored and are skipped: %s", len(skipped), n_rows, _first(skipped))
    listed = [{"row": row, "reason": skipped[row]} for row in sorted(skipped)[:LISTED_ROWS]]
    return {"skipped": {"count": len(skipped), "rows": listed}}


def _first(skipped: Mapping[int, str]) -> str:
    rows = sorted(skipped)
    named = "; ".join(f"row {row}: {skipped[row]}" for row in rows[:NAMED_ROWS])
    return named + (f"; and {len(rows) - NAMED_ROWS} others" if len(rows) > NAMED_ROWS else "")
