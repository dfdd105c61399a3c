"""PartAccumulator: VoG of parts of a row's input (each text of a pair), and of another input (the image of a text)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vog_hf.metric.definition import mean_over_elements
from vog_hf.metric.moments import GradientMoments

PART = "part/"  # begins the names of masks of parts, among what is observed of rows
BESIDE = "beside/"  # begins those of an input beside the main one, which end with its own name
GRADIENT, MASK, SHARE, MOMENTS = (f"{BESIDE}{what}/" for what in ("gradient", "mask", "share", "moments"))
# Names in moments of before there were other inputs than images beside a text.
OLD_NAMES = {"image/share": f"{SHARE}image", "image/mask": f"{MASK}image", "image/moments/": f"{MOMENTS}image/"}


class PartAccumulator:
    """Moments of the parts of the input of a batch, streamed over the snapshots."""

    def __init__(self) -> None:
        self._masks: dict[str, Tensor] = {}
        self._moments: dict[str, GradientMoments] = {}
        self._moment_masks: dict[str, Tensor] = {}
        self._shares: dict[str, Tensor] = {}
        self._is_restored = False  # then nothing is begun that was not there before

    def update(self, observation: Mapping[str, Tensor]) -> None:
        """Add one snapshot.

        Args:
            observation: Masks of parts under names that begin with `PART`, over the first axes of the input. Of an
                input beside it the gradient and its mask, and of either its share in the squared gradient, under names
                that begin with `GRADIENT`, `MASK` and `SHARE`.
        """
        self._masks = {name: mask for name, mask in observation.items() if name.startswith(PART)}
        for name, share in _under(SHARE, observation).items():
            if self._is_restored and name not in self._shares:
                continue
            self._shares[name] = self._shares[name] + share if name in self._shares else share
        for name, gradient in _under(GRADIENT, observation).items():
            if name not in self._moments:
                if self._is_restored:
                    continue
                dtype = torch.promote_types(gradient.dtype, torch.float32)
                moments = GradientMoments(len(gradient), gradient.shape[1:], dtype, device=gradient.device)
                self._moments[name] = moments
            self._moments[name].update(slice(None), gradient)
            self._moment_masks[name] = observation[f"{MASK}{name}"]

    def columns(self, deviation: Tensor, n_snapshots: int) -> dict[str, Tensor]:
        """VoG of each part, ``[batch]``, NaN for a row without it, and the shares; {} without parts.

        Args:
            deviation: ``[batch, *input]`` of the first target.
            n_snapshots: Number of snapshots that were added.
        """
        columns = {
            f"vog_{name}": mean_over_elements(deviation, mask) for name, mask in _under(PART, self._masks).items()
        }
        for name, moments in self._moments.items():
            columns[f"vog_{name}"] = mean_over_elements(moments.deviation(), self._moment_masks[name])
        for name, share in self._shares.items():
            columns.setdefault(f"vog_{name}", torch.full_like(share, torch.nan))
            columns[f"{name}_share"] = share / n_snapshots
        return columns

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`; shares memory with the accumulator."""
        state = dict(self._masks)
        state |= {f"{SHARE}{name}": share for name, share in self._shares.items()}
        state |= {f"{MASK}{name}": mask for name, mask in self._moment_masks.items()}
        for name, moments in self._moments.items():
            state |= {f"{MOMENTS}{name}/{key}": values for key, values in moments.state().items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the `state`, also of an earlier version; what it lacks is not begun any more."""
        state = {_renamed(name): values for name, values in state.items()}
        self._is_restored = True
        self._masks = {name: mask for name, mask in state.items() if name.startswith(PART)}
        self._shares, self._moment_masks = _under(SHARE, state), _under(MASK, state)
        self._moments = {
            name: GradientMoments.from_state(_under(f"{MOMENTS}{name}/", state)) for name in self._moment_masks
        }


def _renamed(name: str) -> str:
    """The name of today for a name in a state."""
    return next((new + name.removeprefix(old) for old, new in OLD_NAMES.items() if name.startswith(old)), name)


def _under(prefix: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
