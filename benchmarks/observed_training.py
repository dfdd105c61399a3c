"""(l) An epoch of training whose passes are observed (collect="training") against one that is not, in CPU time."""

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from measuring import Figure, Options, Target, compared, in_turns, keep_freed_memory
from scipy.stats import spearmanr
from transformers import TrainerCallback
from ways import train
from workloads import BATCH, Workload, bert_mini, llama_lora, small_resnet, vit_tiny

from vog_hf import VoGCallback, VoGConfig
from vog_hf.demo import load_digits_dataset, to_pixels
from vog_hf.demo import small_resnet as digits_resnet

OBSERVED = "observed"
SIDES = (OBSERVED, "not")
COLUMNS = ("loss", "confidence", "margin", "el2n", "correctness", "forgetting", "variability", "csg")
EPOCHS = 5
WORKLOADS = ((small_resnet, 2_000), (vit_tiny, 384), (bert_mini, 512), (llama_lora, 128))


def measure(options: Options) -> list[Figure]:
    """Compare an epoch of each model, and the columns with those of replay; freed memory is kept from then on."""
    keep_freed_memory()
    figures = [compare(make(options.rows(n_rows)), options) for make, n_rows in WORKLOADS]
    return [*figures, *columns_beside_replay(options)]


def compare(workload: Workload, options: Options) -> Figure:
    """The figure for one model."""
    workload = workload.to(options.device)
    of_head = {side: partial(epoch_seconds, workload.head(BATCH), options, observed=side == OBSERVED) for side in SIDES}
    in_turns(of_head, 1)  # warm-up
    sides = {side: partial(epoch_seconds, workload, options, observed=side == OBSERVED) for side in SIDES}
    seconds = in_turns(sides, options.pairs)
    what = f"{workload}, an epoch, CPU time"
    return compared("observed", what, seconds, SIDES, target=Target(at_most=1.03))


def epoch_seconds(workload: Workload, options: Options, *, observed: bool) -> float:
    """CPU seconds of all threads for the second of two epochs, with what the callback does in it and at its end."""
    clock = EpochClock()
    added = [VoGCallback(collect="training", log=False)] if observed else []
    train(workload, epochs=2, callbacks=[*added, clock], device=options.device)  # one epoch keeps no moments
    if observed:
        len(added[0].scores)  # raises what went wrong
    return clock.seconds


def columns_beside_replay(options: Options) -> list[Figure]:
    """Rank correlation of each column with that of replay after the same training on handwritten digits."""
    rows = load_digits_dataset()
    n_rows = min(len(rows), options.rows(len(rows)))
    workload = Workload(
        "ResNet of the demo, digits", digits_resnet(), rows.select(range(n_rows)).with_transform(to_pixels)
    )
    with TemporaryDirectory(prefix="vog-bench-") as folder:
        config = VoGConfig(target="loss", heat_maps=False)
        replayed = VoGCallback(config=config, snapshots="epoch", log=False, output_dir=Path(folder, "replay"))
        observed = VoGCallback(collect="training", log=False, output_dir=Path(folder, "training"))
        train(workload, epochs=EPOCHS, callbacks=[replayed, observed], device=options.device)
        what = f"{workload}, {EPOCHS} epochs, with replay: "
        correlations = {name: correlation(observed, replayed, name) for name in COLUMNS}
    return [Figure("observed", what + name, [value], unit="Spearman") for name, value in correlations.items()]


def correlation(one: VoGCallback, other: VoGCallback, column: str) -> float:
    """Spearman correlation; 0 for a column without differences."""
    values = [callback.scores.column(column) for callback in (one, other)]
    return float(np.nan_to_num(spearmanr(*values).statistic)) if all(map(np.ptp, values)) else 0.0


class EpochClock(TrainerCallback):
    """Measures the CPU time of the last epoch; placed behind other callbacks, so that their work in it counts."""

    seconds = 0.0

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self._begun = time.process_time()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.seconds = time.process_time() - self._begun
