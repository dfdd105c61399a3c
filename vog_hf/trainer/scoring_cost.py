"""The time of scoring as a share of the training's: estimated before the training, kept below ``max_cost`` after it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from torch import nn

from vog_hf.errors import OutputFolderError
from vog_hf.metric.windows import MIN_SNAPSHOTS
from vog_hf.runtime.files import read_json, write_json
from vog_hf.snapshots.schedule import evenly

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Thinning:
    """The snapshots of a training that are scored.

    Attributes:
        max_cost: Largest share of the training's time that scoring may take.
        taken: Steps of all snapshots, in ascending order.
        scored: Steps of those that are scored.
        why: Reason in words; None if all are scored within ``max_cost``.
    """

    max_cost: float
    taken: list[int]
    scored: list[int]
    why: str | None

    @classmethod
    def to_fit(cls, taken: Sequence[int], max_cost: float, *, training_seconds: float, snapshot_seconds: float) -> Self:
        """Leave out snapshots, evenly and keeping the last one, until scoring fits; never below two.

        Args:
            taken: Steps of the snapshots, in ascending order.
            max_cost: Largest share of the training's time that scoring may take.
            training_seconds: Time that the training took.
            snapshot_seconds: Time that scoring takes for each snapshot.

        Example:
            >>> Thinning.to_fit([10, 20, 30, 40], 0.5, training_seconds=60, snapshot_seconds=14).scored
            [20, 40]
        """
        allowed = max_cost * training_seconds
        fitting = len(taken) if snapshot_seconds <= 0 else int(min(allowed / snapshot_seconds, len(taken)))
        scored = evenly(taken, max(fitting, MIN_SNAPSHOTS))
        if fitting >= len(taken):
            return cls(max_cost, list(taken), scored, None)
        fewest = f" (the fewest that VoG can have; {fitting} would fit)" if fitting < MIN_SNAPSHOTS else ""
        why = (
            f"{len(scored)} of {len(taken)} snapshots are scored{fewest}, those after steps "
            f"{', '.join(map(str, scored))}: max_cost={max_cost:g} of the training's {training_seconds:,.2f} s is "
            f"{allowed:,.2f} s, and scoring takes about {snapshot_seconds:,.2f} s for each snapshot"
        )
        return cls(max_cost, list(taken), scored, why)


def find_thinning(
    path: Path,
    taken: Sequence[int],
    max_cost: float,
    training_seconds: float | None,
    measure_snapshot: Callable[[], float],
) -> Thinning | None:
    """The thinning in a file, if it is of the same snapshots, else a new one that is written there.

    So an interrupted scoring continues with the same snapshots. None if the training was not timed.

    Args:
        path: The file.
        taken: Steps of the snapshots, in ascending order.
        max_cost: Largest share of the training's time that scoring may take.
        training_seconds: Time that the training took; None: unknown, since none of its steps were run here.
        measure_snapshot: Measures the time that scoring takes for each snapshot, in seconds.
    """
    try:
        earlier = Thinning(**read_json(path)) if path.is_file() else None
    except (OutputFolderError, TypeError):  # damaged: measure again
        earlier = None
    if earlier is not None and (earlier.taken, earlier.max_cost) == (list(taken), max_cost):
        return earlier
    if training_seconds is None:
        logger.warning("VoG: max_cost=%g has no effect: no step of the training was run, so none was timed", max_cost)
        return None
    times = {"training_seconds": training_seconds, "snapshot_seconds": measure_snapshot()}
    thinning = Thinning.to_fit(taken, max_cost, **times)
    write_json(path, asdict(thinning))
    return thinning


def estimated_share(model: nn.Module, n_scored: int, n_trained: int, n_targets: int) -> float:
    """Time of scoring as a share of the training's, estimated by counting operations; > 0.

    A training step costs a forward pass and as much again for the gradients of activations and, as far as weights are
    trained, for those of weights; a scored row a forward pass and as much again for each target.

    Args:
        model: Model that trains.
        n_scored: Number of rows that are scored, times snapshots.
        n_trained: Number of rows of all training steps.
        n_targets: Number of targets.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    of_step = 2 + (trained / total if total else 1)  # parameters that are partitioned have no elements here
    return n_scored * (1 + n_targets) / (n_trained * of_step)


def share_in_words(share: float) -> str:
    """A share of the training's time, in words.

    Example:
        >>> share_in_words(0.447), share_in_words(2.23)
        ("about 45 % of the training's time", "about 2.2 times the training's time")
    """
    if share < 0.995:
        return f"about {100 * share:.2g} % of the training's time"
    return f"about {share:.1f} times the training's time"
