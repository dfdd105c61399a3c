"""PartAccumulator: VoG of parts of a row's input (each text of a pair), and of the image beside a text."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vog_hf.metric.definition import mean_over_elements
from vog_hf.metric.moments import GradientMoments

PART = "part/"  # begins the names of masks of parts, among what is observed of rows
IMAGE = "image/"
IMAGE_GRADIENT, IMAGE_MASK, IMAGE_SHARE = f"{IMAGE}gradient", f"{IMAGE}mask", f"{IMAGE}share"


class PartAccumulator:
    """Moments of the parts of the input of a batch, streamed over the snapshots."""

    def __init__(self) -> None:
        self._masks: dict[str, Tensor] = {}
        self._image: GradientMoments | None = None
        self._image_mask: Tensor | None = None
        self._share: Tensor | None = None

    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Add one snapshot.

        Args:
            observation: Masks of parts under names that begin with `PART`, over the first axes of the input; of
                images the gradient, its mask and its share in the squared gradient, under names that begin with
                `IMAGE`.
        """
        self._masks = {name: mask for name, mask in observation.items() if name.startswith(PART)}
        share, gradient = observation.get(IMAGE_SHARE), observation.get(IMAGE_GRADIENT)
        if share is not None:
            self._share = share if self._share is None else self._share + share
        if gradient is None:
            return
        if self._image is None:
            dtype = torch.promote_types(gradient.dtype, torch.float32)
            self._image = GradientMoments(len(gradient), gradient.shape[1:], dtype, device=gradient.device)
        self._image.update(slice(None), gradient)
        self._image_mask = observation[IMAGE_MASK]

    def columns(self, deviation: Tensor, n_snapshots: int) -> dict[str, Tensor]:
        """VoG of each part, ``[batch]``, NaN for a row without it, and the share of the image; {} without parts.

        Args:
            deviation: ``[batch, *input]`` of the first target.
            n_snapshots: Number of snapshots that were added.
        """
        parts = {
            f"vog_{name.removeprefix(PART)}": mean_over_elements(deviation, mask) for name, mask in self._masks.items()
        }
        if self._share is None:
            return parts
        none = torch.full_like(self._share, torch.nan)
        of_image = none if self._image is None else mean_over_elements(self._image.deviation(), self._image_mask)
        return parts | {"vog_image": of_image, "image_share": self._share / n_snapshots}

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`; shares memory with the accumulator."""
        state = dict(self._masks)
        if self._share is not None:
            state[IMAGE_SHARE] = self._share
        if self._image is not None and self._image_mask is not None:
            state |= {f"{IMAGE}moments/{name}": values for name, values in self._image.state().items()}
            state[IMAGE_MASK] = self._image_mask
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the `state`; of moments without, nothing."""
        begin = f"{IMAGE}moments/"
        moments = {name.removeprefix(begin): values for name, values in state.items() if name.startswith(begin)}
        self._masks = {name: mask for name, mask in state.items() if name.startswith(PART)}
        self._image = GradientMoments.from_state(moments) if moments else None
        self._share, self._image_mask = state.get(IMAGE_SHARE), state.get(IMAGE_MASK)
