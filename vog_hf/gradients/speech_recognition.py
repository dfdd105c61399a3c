"""Speech recognition by CTC: the loss sums over all ways to align the transcript with the frames."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from vog_hf.errors import DataError, LabelError, ModelError
from vog_hf.gradients.model_outputs import CALLABLE_TARGET, base_model, find_logits
from vog_hf.gradients.task import Task, required_labels

LENGTH_METHODS = ("_get_feat_extract_output_lengths", "_get_subsampling_output_length")  # of transformers


class SpeechRecognition(Task):
    """Logits ``[batch, frames, vocabulary]``, minus infinity behind a row's end; labels ``[batch, tokens]``.

    Negative labels (-100) are left out, as in transformers. The loss is that of CTC for the row's whole transcript, in
    nats; the logit is minus the loss, the logarithm of the transcript's probability. A row is as long as the model says
    by the batch's attention mask.

    Args:
        blank: Number of the blank token.
        n_frames: From numbers of samples ``[batch]`` to numbers of frames; None: rows have no padding.
    """

    name = "speech_recognition"
    is_observed_in_training = False
    labels_need_room = True
    targets = ("logit", "loss")

    def __init__(self, blank: int = 0, n_frames: Callable[[Tensor], Tensor] | None = None) -> None:
        self._blank = blank
        self._n_frames = n_frames

    @override
    @classmethod
    def for_model(cls, model: nn.Module) -> Self:
        inner: Any = base_model(model)
        methods: Iterator[Any] = (getattr(inner, name, None) for name in LENGTH_METHODS)
        blank = getattr(getattr(inner, "config", None), "pad_token_id", None)
        return cls(0 if blank is None else blank, next((method for method in methods if method is not None), None))

    @override
    def logits(self, outputs: object, inputs: Mapping[str, object]) -> Tensor:
        logits, mask = find_logits(outputs), inputs.get("attention_mask")
        if logits.dim() != 3:
            raise ModelError(
                f"speech recognition needs logits [batch, frames, vocabulary], got {tuple(logits.shape)}; for others "
                f"pass {CALLABLE_TARGET}"
            )
        if not isinstance(mask, Tensor):
            return logits
        if self._n_frames is None:
            raise ModelError(
                "the batch has an attention mask, and the model does not say how many frames a row has (by "
                f"{' or '.join(LENGTH_METHODS)}); pass {CALLABLE_TARGET}"
            )
        n_frames = self._n_frames(mask.sum(-1)).long()
        behind = torch.arange(logits.shape[1], device=logits.device) >= n_frames.unsqueeze(-1)
        return logits.masked_fill(behind.unsqueeze(-1), float("-inf"))

    @override
    def check_labels(self, labels: Tensor, n_outputs: int | None) -> None:
        if labels.dim() != 2 or labels.is_floating_point():
            raise DataError(
                f"a transcript must be whole numbers [batch, tokens], got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        outside = torch.zeros_like(labels, dtype=torch.bool) if n_outputs is None else labels >= n_outputs
        if bool(outside.any()):
            at = int(outside.any(1).nonzero()[0])
            raise LabelError(
                f"token {int(labels[outside][0])} of a transcript is outside the vocabulary of {n_outputs}",
                at,
            )

    @override
    def check_fit(self, labels: Tensor, batch: Mapping[str, object]) -> None:
        n_samples = _n_samples(batch)
        if n_samples is None or self._n_frames is None:
            return
        n_frames, width = self._n_frames(n_samples).long(), labels.shape[1]
        tokens = _packed(labels.long(), labels >= 0, width)
        n_tokens = (labels >= 0).sum(1)
        n_needed = n_tokens + ((tokens[:, 1:] == tokens[:, :-1]) & (tokens[:, 1:] >= 0)).sum(1)
        too_long = n_needed > n_frames.to(labels.device)
        if bool(too_long.any()):
            at = int(too_long.nonzero()[0])
            raise LabelError(
                f"a transcript of {int(n_tokens[at])} tokens needs {int(n_needed[at])} frames (one for each, and one "
                f"between equal ones), and its recording has {int(n_frames[at])}: CTC cannot align them; leave such "
                "rows out, or pass on_error='skip'",
                at,
            )

    @override
    def scalar(self, target: str, logits: Tensor, labels: Tensor | None) -> Tensor:
        loss = self._loss(logits, required_labels(labels, self.name).long())
        return loss if target == "loss" else -loss

    @override
    def observation(self, logits: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        labels = required_labels(labels, self.name).long()
        path, width = logits.argmax(-1), max(logits.shape[1], labels.shape[1])
        is_token = (path != self._blank) & ~_is_behind(logits)
        is_token[:, 1:] &= path[:, 1:] != path[:, :-1]
        right = _packed(path, is_token, width) == _packed(labels, labels >= 0, width)
        return {"loss": self._loss(logits, labels), "correct": right.all(1).to(logits.dtype)}

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        behind, counts = _is_behind(logits), labels >= 0
        log_probability = F.log_softmax(logits.masked_fill(behind.unsqueeze(-1), 0.0), -1)
        return F.ctc_loss(
            log_probability.to(torch.promote_types(logits.dtype, torch.float32)).transpose(0, 1),
            labels.masked_select(counts),
            (~behind).sum(-1),
            counts.sum(-1),
            blank=self._blank,
            reduction="none",
        )


def _n_samples(batch: Mapping[str, object]) -> Tensor | None:
    """Length of each recording, ``[batch]``: samples, or frames of a spectrogram; None where it is not known."""
    mask, waves, features = (batch.get(name) for name in ("attention_mask", "input_values", "input_features"))
    if isinstance(mask, Tensor):
        return mask.sum(-1)
    for value, axis in ((waves, -1), (features, 1)):
        if isinstance(value, Tensor) and value.dim() > 1:
            return torch.full((len(value),), value.shape[axis], device=value.device)
    return None


def _is_behind(logits: Tensor) -> Tensor:
    """Frames behind a row's end, ``[batch, frames]``."""
    return logits[..., 0] == float("-inf")


def _packed(values: Tensor, counts: Tensor, width: int) -> Tensor:
    """The values that count, in their order from the left, filled up with -1 to ``[batch, width]``."""
    order = (~counts).to(torch.int8).argsort(dim=1, stable=True)
    packed = values.masked_fill(~counts, -1).gather(1, order)
    return F.pad(packed, (0, width - packed.shape[1]), value=-1)
