"""Heat maps: the variance per element of a row, pooled to at most 32 x 32."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vog_hf.metric.host_copies import host_copies

HEAT_MAP_SIDE = 32


@dataclass(frozen=True)
class RaggedMaps:
    """One heat map per row, end to end: ``values`` (share of the row's largest, 0..1), ``shapes [rows, 1 or 2]``.

    ``scale [rows]`` is each row's largest value: VoG of small targets would vanish in float16.
    """

    values: npt.NDArray[np.float16]
    shapes: npt.NDArray[np.int32]
    scale: npt.NDArray[np.float32]

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """``[rows + 1]``, where each row's values begin, and where the last ones end."""
        sizes = np.asarray(self.shapes).prod(axis=1, dtype=np.int64)
        return np.concatenate([[0], np.cumsum(sizes)])

    def row(self, row: int) -> npt.NDArray[np.float32]:
        """The heat map of a row, in its shape and in the unit of the score."""
        values = np.asarray(self.values[self._starts[row] : self._starts[row + 1]], dtype=np.float32)
        return values.reshape(self.shapes[row]) * np.float32(self.scale[row])

    def select(self, rows: npt.NDArray[np.int64]) -> "RaggedMaps":
        """The heat maps of some rows, in their order; negative numbers count from the end."""
        values = [self.values[self._starts[:-1][row] : self._starts[1:][row]] for row in rows]
        joined = np.concatenate([np.zeros(0, self.values.dtype), *values])
        return RaggedMaps(joined, self.shapes[rows], self.scale[rows])

    def fault(self, n_rows: int) -> str | None:
        """The fault of these heat maps for ``n_rows`` rows; None if there is none."""
        shapes, scale = self.shapes, self.scale
        if shapes.ndim != 2 or len(shapes) != n_rows or scale.shape != (n_rows,) or self.values.ndim != 1:
            return f"heat maps of the shapes {shapes.shape} and scales {scale.shape}, expected {n_rows:,} rows"
        is_whole = np.issubdtype(shapes.dtype, np.integer) and (not shapes.size or shapes.min() >= 0)
        if not is_whole or shapes.prod(axis=1, dtype=np.float64).sum() != len(self.values):
            return f"the heat maps hold {len(self.values):,} values, and their shapes need another number"
        return None


def pooled_maps(deviation: Tensor, mask: Tensor | None) -> RaggedMaps:
    """Per-element VoG ``[rows, *input']`` pooled to the stored resolution.

    ``[rows, tokens, width]`` with a token mask: the mean over the width, one value per included token. Other maps with
    two axes are pooled to at most 32 x 32, with one axis to at most 1,024 values. A row's padding is removed first, so
    that its map does not depend on the other rows of the batch; masked elements inside are 0.
    """
    return ragged_maps(host_copies(map_parts(deviation, mask)))


def map_parts(deviation: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Values that `ragged_maps` needs on the host, as few as a device can give without knowing the lengths of rows."""
    if mask is not None and deviation.dim() == mask.dim() + 1:
        return {"per_token": deviation.mean(-1), "mask": mask}
    plane = deviation.unsqueeze(1) if deviation.dim() == 1 else deviation
    plane = plane.flatten(1, -3).mean(1) if plane.dim() > 3 else plane
    if mask is None or mask.shape != plane.shape:
        return {"pooled": _pooled(plane)}
    return {"plane": plane, "mask": mask}


def ragged_maps(parts: Mapping[str, Tensor]) -> RaggedMaps:
    """The heat maps of `map_parts`, which are on the CPU."""
    if "pooled" in parts:
        maps = list(parts["pooled"])
    elif "per_token" in parts:
        maps = [row[mask] for row, mask in zip(parts["per_token"], parts["mask"], strict=True)]
    else:
        rows = zip(parts["plane"], parts["mask"], strict=True)
        maps = [_pooled(_cropped(row, mask).unsqueeze(0))[0] for row, mask in rows]
    scale = torch.stack([row.amax() for row in maps])
    tiny = torch.finfo(scale.dtype).tiny
    shares = [row.flatten() / largest.clamp(min=tiny) for row, largest in zip(maps, scale, strict=True)]
    return RaggedMaps(
        torch.cat(shares).to(torch.float16).numpy(),
        np.array([row.shape for row in maps], dtype=np.int32),
        scale.float().numpy(),
    )


def _pooled(values: Tensor) -> Tensor:
    """Means over at most 32 x 32 parts of ``[rows, height, width]``, over at most 1,024 of ``[rows, positions]``."""
    if values.dim() == 3:
        height, width = (min(HEAT_MAP_SIDE, n) for n in values.shape[1:])
        return F.adaptive_avg_pool2d(values.unsqueeze(1), (height, width)).squeeze(1)
    return F.adaptive_avg_pool1d(values.unsqueeze(1), min(HEAT_MAP_SIDE**2, values.shape[1])).squeeze(1)


def _cropped(values: Tensor, mask: Tensor) -> Tensor:
    """The bounding box of the included elements of ``values``; excluded elements inside are 0."""
    box = tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero(as_tuple=True))
    return (values * mask)[box]
