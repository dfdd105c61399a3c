"""Maps of masks: the loss, the given and the predicted class at the places of a grid of at most 64 x 64 per row.

They are units like others, of the kind ``pixel``, with columns of their own: see `PixelMapAccumulator.columns`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vog_hf.metric.row_units import RowUnits

PIXEL = "pixel/"  # begins the names of what is observed of pixels, among what is observed of rows
MAP_SIDE = 64
MAP_BYTES = 10 * MAP_SIDE**2  # of one row, before compression
LOSS_MAP, GIVEN_MAP, PREDICTED_MAP, MAP_WIDTH = "loss_pixel", "label_pixel", "prediction_pixel", "width_pixel"


def pixel_observation(loss: Tensor, label: Tensor, prediction: Tensor, counts: Tensor) -> dict[str, Tensor]:
    """Bring what is observed of pixels ``[batch, height, width]`` to at most 64 x 64.

    Args:
        loss: Loss of each pixel; the mean over those of a place that count, 0 where none does.
        label: Given classes; that of the pixel in the middle of a place, -100 where it does not count.
        prediction: Predicted classes, likewise.
        counts: Which pixels have a label.
    """
    size = (min(MAP_SIDE, loss.shape[1]), min(MAP_SIDE, loss.shape[2]))
    share = F.adaptive_avg_pool2d(counts.to(loss.dtype).unsqueeze(1), size)
    total = F.adaptive_avg_pool2d(loss.masked_fill(~counts, 0.0).unsqueeze(1), size)
    rows, columns = (
        ((torch.arange(n, device=loss.device) + 0.5) * (whole / n)).long()
        for n, whole in zip(size, loss.shape[1:], strict=True)
    )
    at = (slice(None), rows[:, None], columns)
    return {
        "loss": torch.where(share > 0, total / share, 0.0).squeeze(1),
        "label": label.masked_fill(~counts, -100)[at],
        "prediction": prediction[at],
    }


class PixelMapAccumulator:
    """Maps of a batch, streamed over the snapshots."""

    def __init__(self) -> None:
        self._loss_sum: Tensor | None = None
        self._last: dict[str, Tensor] = {}

    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Add one snapshot: `pixel_observation`."""
        loss = observation["loss"]
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum + loss
        self._last = {name: observation[name] for name in ("label", "prediction")}

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`; shares memory with the accumulator."""
        return {} if self._loss_sum is None else {"loss": self._loss_sum, **self._last}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the `state`; nothing is begun of one that has none."""
        self._loss_sum = state.get("loss")
        self._last = {name: state[name] for name in ("label", "prediction") if name in state}

    @property
    def has_begun(self) -> bool:
        """True once a snapshot was added."""
        return self._loss_sum is not None

    def columns(self, n_snapshots: int) -> dict[str, Tensor]:
        """``[batch, height * width]``: mean loss, classes of the last snapshot, the map's width; {} without maps."""
        if self._loss_sum is None:
            return {}
        maps = {LOSS_MAP: self._loss_sum.float() / n_snapshots}
        maps |= {GIVEN_MAP: self._last["label"], PREDICTED_MAP: self._last["prediction"]}
        maps[MAP_WIDTH] = torch.full_like(self._last["label"], self._loss_sum.shape[2])
        return {name: values.flatten(1) for name, values in maps.items()}


def units_of_pixels(dense: Mapping[str, Tensor]) -> RowUnits:
    """The maps of `PixelMapAccumulator.columns`, which are on the CPU, row after row."""
    n_rows, n_pixels = dense[LOSS_MAP].shape
    sizes = np.full(n_rows, n_pixels, dtype=np.int32)
    small = {name: values if values.is_floating_point() else values.to(torch.int16) for name, values in dense.items()}
    return RowUnits(sizes, {name: values.flatten().numpy() for name, values in small.items()})


def map_of_row(pixels: RowUnits, name: str, row: int) -> npt.NDArray[Any] | None:
    """A map of a row, ``[height, width]``; None for a row without one (it was skipped)."""
    values = pixels.of_row(name, row)
    return values.reshape(-1, int(pixels.of_row(MAP_WIDTH, row)[0])) if len(values) else None
