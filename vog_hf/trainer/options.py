"""TrainingOptions: the options of `VoGCallback`, and which of them have no effect on observed passes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from vog_hf.config import VoGConfig
from vog_hf.data.bad_rows import OnError
from vog_hf.data.batch_collator import CollateFunction
from vog_hf.data.numbered_rows import INSTEAD
from vog_hf.errors import ConfigError, real_number, require_type
from vog_hf.metric.windows import MIN_SNAPSHOTS
from vog_hf.snapshots.schedule import MAX_SNAPSHOTS, plan_snapshots
from vog_hf.trainer.run_folder import RunFolder
from vog_hf.trainer.splits import ONLY_SPLIT, splits_of

COLLECT = ("replay", "live", "training")
FOLDER_NAME = "_vog"  # Trainer's push_to_hub skips names that begin with an underscore
WITHOUT_EFFECT = {  # options of scoring passes, with their defaults
    "collate_fn": None,
    "snapshots": "auto",
    "max_snapshots": MAX_SNAPSHOTS,
    "max_cost": None,
    "batch_size": None,
    "store": "trainable",
    "num_workers": None,
    "id_column": None,
    "fold": True,
    "torch_compile": False,
    "on_error": "raise",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The options of `VoGCallback`; documented there."""

    dataset: Any
    config: VoGConfig
    collate_fn: CollateFunction | None
    output_dir: Path | None
    collect: str
    snapshots: str | int | Sequence[int]
    max_snapshots: int
    max_cost: float | None
    batch_size: int | None
    store: str
    memory_budget: int | None
    num_workers: int | None
    id_column: str | None
    fold: bool
    torch_compile: bool
    on_error: OnError
    processing_class: object = None  # of the trainer, known when training begins

    @property
    def is_live(self) -> bool:
        """True if moments are kept in memory while training."""
        return self.collect == "live"

    def run_folder(self, args: TrainingArguments) -> RunFolder:
        """The folder of snapshots, moments, visits and scores."""
        return RunFolder(self.output_dir or Path(args.output_dir or "") / FOLDER_NAME)

    def plan(self, begun: Sequence[int], *, max_steps: int, steps_per_epoch: int | None) -> list[int]:
        """The steps after which snapshots are taken.

        A resumed training with the default schedule keeps the steps that it ``begun`` with, which another version may
        have planned, if they end where it ends.
        """
        is_auto = isinstance(self.snapshots, str) and self.snapshots == "auto"
        is_default = is_auto and self.max_snapshots == MAX_SNAPSHOTS
        if is_default and len(begun) >= MIN_SNAPSHOTS and begun[-1] == max_steps:
            return list(begun)
        return plan_snapshots(
            self.snapshots, max_snapshots=self.max_snapshots, max_steps=max_steps, steps_per_epoch=steps_per_epoch
        )

    def collating(self, args: TrainingArguments, train_dataloader: object) -> dict[str, Any]:
        """Options of a `BatchReader`: the callback's collator, else the trainer's, with the columns that it gets."""
        if self.collate_fn is not None:
            return {"collate_fn": self.collate_fn}
        return {
            "collate_fn": getattr(train_dataloader, "collate_fn", None),
            "only_model_columns": args.remove_unused_columns,
            "trainer_columns": getattr(getattr(train_dataloader, "dataset", None), "column_names", None) or (),
        }


def require_collect(collect: str) -> None:
    """Raise ConfigError unless ``collect`` is one of `COLLECT`."""
    require_type("collect", collect, str, "pass 'replay', 'live' or 'training'")
    if collect not in COLLECT:
        raise ConfigError(f"collect must be 'replay', 'live' or 'training', got {collect!r}")


def resolved_config(config: VoGConfig | None, collect: str, label_column: str | None) -> VoGConfig:
    """The configuration, by default with the target of ``collect``, and with the callback's label column.

    Raises:
        ConfigError: It is of another type, or cannot be computed with ``collect``.
    """
    require_type("config", config, (VoGConfig, type(None)), "pass VoGConfig(...), or leave it out")
    config = config or VoGConfig(target="loss" if collect == "training" else "logit")
    if label_column is not None:
        config = dataclasses.replace(config, label_column=label_column)
    if collect == "live" and config.label == "predicted":
        raise ConfigError(
            "collect='live' cannot use label='predicted': the last snapshot's prediction is not known during training; "
            "use collect='replay'",
            argument="label=",
        )
    return config


def require_max_cost(max_cost: float | None, collect: str) -> float | None:
    """Raise ConfigError for a share of the training's time that is out of range, or cannot be kept."""
    if max_cost is None:
        return None
    if collect == "live":
        raise ConfigError(
            "max_cost= leaves out stored snapshots once the training has ended, and collect='live' scores during it; "
            "pass max_snapshots=, or collect='replay'",
            argument="max_cost=",
        )
    return real_number("max_cost", max_cost, 0.001, 10)


def require_collectable(options: TrainingOptions) -> None:
    """Raise ConfigError for options of the callback that have no effect on observed passes."""
    config = options.config
    for split in splits_of(options.dataset):
        if split != ONLY_SPLIT:
            raise ConfigError(
                f"collect='training' scores the rows of the training, and a DatasetDict has other splits ({split!r}); "
                f"pass its training split, or {INSTEAD}, which scores all of them"
            )
    if config.targets != ("loss",):
        raise ConfigError(
            f"collect='training' has the gradient of the training's loss, got target {config.target!r}; pass "
            f"VoGConfig(target='loss'), leave config out, or {INSTEAD}",
            argument="target",
        )
    if config.label != "given":
        raise ConfigError(
            f"collect='training' observes the loss of the given label, got label={config.label!r}; pass label='given', "
            f"or {INSTEAD}",
            argument="label=",
        )
    if config.token_units:
        raise ConfigError(
            f"collect='training' observes rows and not their tokens, got token_units=True; leave it out, or {INSTEAD}",
            argument="token_units=",
        )
    for name, default in WITHOUT_EFFECT.items():
        if getattr(options, name) != default:
            raise ConfigError(
                f"collect='training' observes rows in the batches of the training, so {name}= has no effect; leave it "
                f"out, or {INSTEAD}",
                argument=f"{name}=",
            )
