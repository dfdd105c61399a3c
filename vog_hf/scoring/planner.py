"""Planner: the dry run of a scorer, with batches of a size that works, and its warnings."""

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

from torch import nn

from vog_hf.config import VoGConfig
from vog_hf.data.bad_rows import OnError
from vog_hf.data.batch_reader import TRANSFORM_CHECK_ROWS, BatchReader
from vog_hf.gradients.model_mode import preserved_rng
from vog_hf.runtime.memory import AdaptiveBatchSize
from vog_hf.scoring.batch_checks import warnings_for
from vog_hf.scoring.batch_size import roomier, with_working_size
from vog_hf.scoring.block_folder import batches
from vog_hf.scoring.dry_run import model_in_use, plan_scoring
from vog_hf.scoring.plan import ScoringPlan
from vog_hf.scoring.skipped_rows import try_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans the scoring of a model's rows by a dry run on the first of them.

    Attributes:
        model: Unwrapped.
        config: What is computed.
        batch_size: Rows per forward pass.
        training_batch_size: Rows per step of the training, tried where ``batch_size`` rows do not work.
        fold: Run the model with its BatchNorms folded, if that gives the same.
        torch_compile: Run it through ``torch.compile``, if that gives the same.
        on_error: ``"skip"`` leaves out rows that cannot be scored.
        rows_per_pass: Rows that fit into memory, of all passes of the scorer.
        warns: Whether this process warns of what is unusual.
    """

    model: nn.Module
    config: VoGConfig
    batch_size: int
    training_batch_size: int | None
    fold: bool
    torch_compile: bool
    on_error: OnError
    rows_per_pass: AdaptiveBatchSize
    warns: bool
    _warned: WeakSet[BatchReader] = field(default_factory=WeakSet)  # readers with rows that were warned about

    @property
    def n_first_rows(self) -> int:
        """Number of the first rows that a dry run may read."""
        return max(TRANSFORM_CHECK_ROWS, self.batch_size, self.training_batch_size or 1)

    def plan(self, reader: BatchReader, *, require_finite: bool = True, roomy_bytes: int | None = None) -> ScoringPlan:
        """The dry run on the first rows, see `vog_hf.scoring.scorer.VoGScorer.plan`.

        Args:
            reader: Reader over all rows.
            require_finite: Whether the model as it is now will be scored, so that it must not have diverged.
            roomy_bytes: Memory of a block, up to which batches may be larger than the reader's; None: they may not.
        """
        sizes = [reader.batch_size, self.training_batch_size or reader.batch_size, 1]
        dry_run = partial(self._dry_run, reader, require_finite=require_finite)
        plan = with_working_size(reader, sizes, dry_run, trained_singly=self.training_batch_size == 1, warns=self.warns)
        works = reader.batch_size == sizes[0]
        return plan if roomy_bytes is None or not works else roomier(reader, plan, roomy_bytes, dry_run)

    def _dry_run(self, reader: BatchReader, *, require_finite: bool) -> ScoringPlan:
        """The dry run with batches of the reader's size."""
        rows: Sequence[int] = range(min(len(reader.dataset), self.n_first_rows))
        if self.on_error == "skip":
            trial = partial(try_batch, self.model, None, self.rows_per_pass)
            with preserved_rng(), model_in_use(self.model, self.config), reader.trying(trial):
                rows = reader.good_rows(rows)
        reader.check_deterministic(batches(rows, reader.batch_size))
        rows = rows[: reader.batch_size]
        plan, first = self.rows_per_pass.run(
            len(rows),
            lambda part: plan_scoring(
                self.model,
                reader,
                self.config,
                rows[part],
                require_finite=require_finite,
                fold=self.fold,
                torch_compile=self.torch_compile,
            ),
        )[0]
        if self.warns:
            lines = [] if reader in self._warned else warnings_for(self.model, reader, plan, first)
            for line in [*lines, *([first.why_not_fast] if first.why_not_fast else [])]:
                logger.warning("VoG: %s", line)
        self._warned.add(reader)
        return plan
