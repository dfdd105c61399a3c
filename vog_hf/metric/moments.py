"""GradientMoments: the same value as `vog_hf.vog`, streamed one snapshot at a time."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import torch
from torch import Tensor

from vog_hf.errors import ConfigError, require_type, shown, whole_number
from vog_hf.metric.definition import as_values, mean_over_elements, require_elements

Rows = slice | Sequence[int] | Tensor


class GradientMoments:
    """Running mean and sum of squared deviations of the gradients of some examples, element by element.

    Updates may come in any order, split and batch size, and two accumulators can be merged without loss (Welford 1962;
    Chan, Golub & LeVeque 1979). Memory: two arrays ``[examples, *element_shape]``. Squares must fit ``dtype``:
    deviations below about 1e-19 vanish in float32, those below about 1e-154 in float64.

    Args:
        examples: Number of examples.
        element_shape: Shape of one example's gradient (after a channel mean, if there is one).
        dtype: Dtype of the moments, independent of the gradients.
        device: Device of the moments.

    Raises:
        ConfigError: A size, dtype or device that does not exist.

    Example:
        >>> moments = GradientMoments(examples=2, element_shape=(2,))
        >>> moments.update([0, 1], torch.tensor([[1.0, 0.0], [2.0, 2.0]]))  # snapshot 1
        >>> moments.update([0, 1], torch.tensor([[3.0, 0.0], [2.0, 2.0]]))  # snapshot 2
        >>> moments.scores()
        tensor([0.5000, 0.0000])
    """

    def __init__(
        self,
        examples: int,
        element_shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        require_type("dtype", dtype, torch.dtype, "pass e.g. torch.float32")
        if not dtype.is_floating_point:
            raise ConfigError(f"dtype must be a floating dtype of torch, got {shown(dtype)}; pass e.g. torch.float32")
        require_type("element_shape", element_shape, Sequence, "pass a tuple of sizes")
        most = torch.iinfo(torch.int64).max
        sizes = [whole_number("element_shape", size, 0, most) for size in element_shape]
        shape = (whole_number("examples", examples, 0, most), *sizes)
        try:
            device = None if device is None else torch.device(device)
        except (TypeError, RuntimeError) as error:
            raise ConfigError(
                f"device must be one of torch's, got {shown(device)}: {error}; pass e.g. 'cpu'"
            ) from error
        self.count = torch.zeros(shape[0], dtype=torch.int64)  # snapshots seen per example; stays on the CPU
        self.grad_mean = torch.zeros(shape, dtype=dtype, device=device)
        self.sum_sq_dev = torch.zeros(shape, dtype=dtype, device=device)
        self.mask: Tensor | None = None  # included elements, over the first axes; None = all

    @staticmethod
    def nbytes(examples: int, element_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> int:
        """Size in bytes of an accumulator."""
        return 2 * examples * int(torch.Size(element_shape).numel()) * dtype.itemsize

    def state(self) -> dict[str, Tensor]:
        """The state for `from_state`; shares memory with the accumulator."""
        state = {"count": self.count, "grad_mean": self.grad_mean, "sum_sq_dev": self.sum_sq_dev}
        return state if self.mask is None else {**state, "mask": self.mask}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "GradientMoments":
        """The accumulator with this `state`, on the device of its tensors.

        Raises:
            ConfigError: Not a result of `state`.
        """
        names = ("count", "grad_mean", "sum_sq_dev")
        require_type("state", state, Mapping, "pass the result of state()")
        if not all(isinstance(state.get(name), Tensor) for name in names):
            raise ConfigError(
                f"the state of moments holds tensors {', '.join(names)}, got {shown(state)}; pass the result of state()"
            )
        mean = state["grad_mean"]
        moments = cls(0, mean.shape[1:], mean.dtype, device=mean.device)
        moments.count, moments.grad_mean, moments.sum_sq_dev = state["count"].cpu(), mean, state["sum_sq_dev"]
        moments.mask = state.get("mask")
        return moments

    def update(self, rows: Rows, gradients: Tensor, mask: Tensor | None = None, *, consume: bool = False) -> None:
        """Add one snapshot's gradients of some examples.

        Args:
            rows: Examples to update, each at most once; a slice updates in place without a copy.
            gradients: ``[len(rows), *element_shape]``.
            mask: ``[len(rows), *first axes]``, true for elements to include. Pass it with the first update of an
                example; without one, later updates keep the first mask.
            consume: Allow overwriting ``gradients``, which saves as much memory as they occupy.

        Raises:
            ConfigError: Repeated rows, rows out of range, a wrong shape, a changed mask, or one without an element.
        """
        rows = self._checked_rows(rows)
        require_type("gradients", gradients, Tensor, "pass torch.as_tensor(gradients)")
        if gradients.is_complex():
            raise ConfigError(f"gradients must be real, got {gradients.dtype}; pass gradients of a real target")
        count = self.count[rows]
        if gradients.shape != (len(count), *self.grad_mean.shape[1:]):
            expected = (len(count), *self.grad_mean.shape[1:])
            raise ConfigError(
                f"gradients of {len(count)} rows must have shape {expected}, got {tuple(gradients.shape)}"
            )
        if mask is not None:
            self._set_mask(rows, mask)
        gradients = gradients.detach().to(self.grad_mean)
        if len(count) and bool((count == count[0]).all()):
            self._update_alike(rows, gradients, int(count[0]) + 1, consume=consume)
        else:
            n_seen_per_row = self._per_row(count + 1)
            deviation = gradients - self.grad_mean[rows]
            self.grad_mean[rows] += deviation / n_seen_per_row
            # In this order an example's first update adds 0 * deviation = 0 also where the square would overflow.
            self.sum_sq_dev[rows] += deviation * ((n_seen_per_row - 1) / n_seen_per_row) * deviation
        self.count[rows] = count + 1

    def _update_alike(self, rows: slice | Tensor, gradients: Tensor, n_seen: int, *, consume: bool) -> None:
        """`update` of rows that have been seen as often, with as few passes over memory as there can be."""
        if isinstance(rows, slice):
            mean = self.grad_mean[rows]
            deviation = torch.sub(gradients, mean, out=gradients if consume else None)
            mean.add_(deviation, alpha=1 / n_seen)
            self.sum_sq_dev[rows].addcmul_(deviation, deviation, value=(n_seen - 1) / n_seen)
            return
        rows = rows.to(self.grad_mean.device)
        mean = self.grad_mean.index_select(0, rows)
        deviation = torch.sub(gradients, mean, out=mean)
        self.grad_mean.index_add_(0, rows, deviation, alpha=1 / n_seen)
        if n_seen > 1:  # the square of a first gradient may overflow, and counts 0 times
            self.sum_sq_dev.index_add_(0, rows, deviation.square_(), alpha=(n_seen - 1) / n_seen)

    def merge(self, other: "GradientMoments") -> None:
        """Add the values of another accumulator of the same examples in place; the other one is unchanged.

        Raises:
            ConfigError: Shapes or masks differ.
        """
        require_type("other", other, GradientMoments, "pass moments of the same examples")
        if other.grad_mean.shape != self.grad_mean.shape:
            raise ConfigError(
                f"cannot merge moments of {tuple(other.grad_mean.shape)} into {tuple(self.grad_mean.shape)}"
            )
        mask = other.mask
        if mask is None and self.mask is not None:
            mask = torch.ones_like(self.mask)
        if mask is not None:
            is_seen = other.count > 0
            self._set_mask(is_seen.nonzero().flatten(), mask[is_seen.to(mask.device)])
        n_self, n_other = self._per_row(self.count), self._per_row(other.count)
        total = (n_self + n_other).clamp(min=1)
        deviation = other.grad_mean.to(self.grad_mean) - self.grad_mean
        self.sum_sq_dev += other.sum_sq_dev.to(self.sum_sq_dev) + deviation * (n_self * n_other / total) * deviation
        self.grad_mean += deviation * (n_other / total)
        self.count += other.count

    def deviation(self) -> Tensor:
        """Population standard deviation over the snapshots, per element: ``[examples, *element_shape]``, >= 0."""
        is_uniform = len(self.count) > 0 and bool((self.count == self.count[0]).all())
        return (self.sum_sq_dev / (int(self.count[0]) if is_uniform else self._per_row(self.count))).sqrt_()

    def scores(self) -> Tensor:
        """VoG of each example, ``[examples]``: see `vog_hf.vog`. NaN for an example without an update."""
        return mean_over_elements(self.deviation(), self.mask)

    def _per_row(self, count: Tensor) -> Tensor:
        """Counts as a factor that broadcasts over the elements."""
        return count.to(self.grad_mean).reshape(-1, *[1] * (self.grad_mean.dim() - 1))

    def _checked_rows(self, rows: Rows) -> slice | Tensor:
        if isinstance(rows, slice):
            ends = (rows.start, rows.stop, rows.step)
            is_whole = all(end is None or isinstance(end, Integral) for end in ends)
            if not is_whole or (rows.step is not None and rows.step < 1):
                raise ConfigError(
                    f"a slice of rows must have whole numbers and a step above 0, got {rows}; pass a list of rows"
                )
            return rows
        numbers = as_values("rows", rows)
        is_whole = not (numbers.is_floating_point() or numbers.dtype == torch.bool) or not numbers.numel()
        if not is_whole or numbers.dim() != 1:
            raise ConfigError(
                f"rows must be a slice or a list of whole numbers, got {shown(rows)}; pass the numbers of examples"
            )
        rows = numbers.to(device="cpu", dtype=torch.int64)
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(self.count)):
            raise ConfigError(f"rows must lie in 0..{len(self.count) - 1}, got {int(rows.min())}..{int(rows.max())}")
        unique, times = torch.unique(rows, return_counts=True)
        if len(unique) < len(rows):
            repeated = unique[times > 1][:5].tolist()
            raise ConfigError(
                f"each row may come once per update, got rows {repeated} more than once; update them one by one"
            )
        return rows

    def _set_mask(self, rows: slice | Tensor, mask: Tensor) -> None:
        require_type("mask", mask, Tensor, "pass a tensor of true and false")
        mask = mask.to(device=self.grad_mean.device, dtype=torch.bool)
        require_elements(mask, torch.Size((len(self.count[rows]), *self.grad_mean.shape[1:])))
        if self.mask is None:
            self.mask = torch.ones((len(self.count), *mask.shape[1:]), dtype=torch.bool, device=self.grad_mean.device)
        elif self.mask.shape[1:] != mask.shape[1:]:
            raise ConfigError(
                f"masks must keep their shape: first {tuple(self.mask.shape[1:])}, now {tuple(mask.shape[1:])}"
            )
        is_seen = self.count[rows] > 0
        if bool(is_seen.any()):
            is_seen = is_seen.to(mask.device)
            if not torch.equal(self.mask[rows][is_seen], mask[is_seen]):
                raise ConfigError(
                    "a row's mask must be the same in every snapshot, got another one; collate deterministically"
                )
        self.mask[rows] = mask
