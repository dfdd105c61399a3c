"""The schedule of snapshots."""

from collections.abc import Sequence
from numbers import Integral

from vog_hf.errors import ConfigError
from vog_hf.metric.windows import MIN_SNAPSHOTS

MAX_SNAPSHOTS = 8  # the fewest of those tried with Spearman 0.95 with 20: benchmarks/README.md, "Fewer snapshots"


def plan_snapshots(
    snapshots: str | int | Sequence[int],
    *,
    max_snapshots: int,
    max_steps: int,
    steps_per_epoch: int | None,
) -> list[int]:
    """Plan the training steps after which snapshots are taken, in ascending order.

    Args:
        snapshots: ``"auto"`` (every epoch if there are 8 or more, else `max_snapshots` evenly spaced steps),
            ``"epoch"``, every n steps, or a list of steps.
        max_snapshots: Maximum number; more are thinned evenly, keeping the last one. Does not apply to a list.
        max_steps: Steps of the whole training.
        steps_per_epoch: Steps per epoch; None if the data has no length.

    Raises:
        ConfigError: An unknown schedule, one that needs epochs without having any, or one with fewer than two
            snapshots.

    Example:
        >>> plan_snapshots("auto", max_snapshots=8, max_steps=800, steps_per_epoch=100)
        [100, 200, 300, 400, 500, 600, 700, 800]
        >>> plan_snapshots("auto", max_snapshots=4, max_steps=100, steps_per_epoch=None)
        [25, 50, 75, 100]
    """
    snapshots = snapshots.tolist() if hasattr(snapshots, "tolist") else snapshots  # of numpy or torch
    if max_snapshots < MIN_SNAPSHOTS:
        raise ConfigError(
            f"max_snapshots must be at least {MIN_SNAPSHOTS} (a variance over fewer is always 0), got {max_snapshots}"
        )
    epochs = [] if steps_per_epoch is None else [*range(steps_per_epoch, max_steps, steps_per_epoch), max_steps]
    if snapshots == "auto":
        steps = epochs if len(epochs) >= MAX_SNAPSHOTS else evenly(range(1, max_steps + 1), int(max_snapshots))
    elif snapshots == "epoch":
        if steps_per_epoch is None:
            raise ConfigError(
                "snapshots='epoch' needs training data with a length, got data without one (an IterableDataset with "
                "max_steps); pass a number of steps, e.g. snapshots=500, or 'auto'"
            )
        steps = epochs
    elif isinstance(snapshots, Integral) and not isinstance(snapshots, bool):
        if snapshots < 1:
            raise ConfigError(f"snapshots must be every n >= 1 steps, got {snapshots}")
        steps = list(range(int(snapshots), max_steps + 1, int(snapshots)))
    elif isinstance(snapshots, Sequence) and not isinstance(snapshots, str):
        return _listed(snapshots, max_steps)
    else:
        raise ConfigError(f"snapshots must be 'auto', 'epoch', a number of steps or a list of steps, got {snapshots!r}")
    return _enough(
        evenly(steps, int(max_snapshots)),
        f"snapshots={snapshots!r} over {max_steps} steps",
        can_be_denser=max_steps > 1,
    )


def _listed(steps: Sequence[int], max_steps: int) -> list[int]:
    if any(isinstance(step, bool) or not isinstance(step, Integral) for step in steps):
        raise ConfigError(f"snapshots as a list must be steps, whole numbers, got {list(steps)}")
    outside = [step for step in steps if not 1 <= step <= max_steps]
    if outside or len(set(steps)) < len(steps):
        raise ConfigError(
            f"snapshots must be different steps in 1..{max_steps} (this training's length), got {list(steps)}"
        )
    return _enough(sorted(int(step) for step in steps), f"snapshots={list(steps)}")


def _enough(steps: list[int], schedule: str, *, can_be_denser: bool = True) -> list[int]:
    if len(steps) < MIN_SNAPSHOTS:
        longer = "train longer (num_train_epochs, max_steps, or a smaller per_device_train_batch_size)"
        advice = f"{longer} or take snapshots more often, e.g. snapshots='auto'" if can_be_denser else longer
        raise ConfigError(f"VoG needs at least {MIN_SNAPSHOTS} snapshots, {schedule} gives {len(steps)}; {advice}")
    return steps


def evenly(steps: Sequence[int], at_most: int) -> list[int]:
    """At most ``at_most`` of the steps, evenly spaced and including the last one.

    Example:
        >>> evenly([1, 2, 3, 4, 5], 2)
        [2, 5]
    """
    n = len(steps)
    if n <= at_most:
        return list(steps)
    return [steps[(i * n) // at_most - 1] for i in range(1, at_most + 1)]
