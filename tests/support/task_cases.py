"""Tiny models of heads with a task of their own, 53 rows each, and what a row's scalars are by plain loops.

`TASK_CASES` maps a task's name to its `TaskCase`. The oracle's functions see one row alone, without padding: the
outputs of a batch of one, and the row as the dataset holds it.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import models
import numpy as np
import torch
import torch.nn.functional as F
import transformers as T
from reference import _call, _gradient, _inputs, _scalar, _snapshots, reference_dynamics, reference_vog

N_ROWS = 53
BLANK = 2
TEXT = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class TaskCase:
    """A head, rows that it can be trained on, and the oracle of its task.

    Attributes:
        model: Makes the model, the same in every call.
        rows: Rows without padding, with their labels.
        fed: The keys of a row that `forward` gets without labels, the main input first.
        scalar: ``scalar(outputs, row, target) -> number`` of a row.
        observed: ``observed(outputs, row) -> {companion: number}`` of a row at one snapshot.
        targets: The targets that the task has.
        absent: Companions that it does not have.
        predicted: ``predicted(outputs) -> {key: label}`` of a row; None: the task predicts no label.
        collate_fn: Collator that pads.
        channels: Whether gradients are averaged over channels.
        counted: Mask of the elements of a row that enter its score; None: all.
        trainer: Class of the trainer.
    """

    model: Callable[[], Any]
    rows: Callable[[], list[dict[str, Any]]]
    fed: tuple[str, ...]
    scalar: Callable[[Any, dict[str, Any], str], torch.Tensor]
    observed: Callable[[Any, dict[str, Any]], dict[str, float]]
    targets: tuple[str, ...] = ("logit", "probability", "loss")
    absent: tuple[str, ...] = ()
    predicted: Callable[[Any], dict[str, torch.Tensor]] | None = None
    collate_fn: Callable[[list[Any]], Any] = models.collate
    channels: bool = False
    counted: Callable[[dict[str, Any]], np.ndarray] | None = None
    trainer: type[T.Trainer] = T.Trainer

    def expected_vog(self, states: list[dict[str, torch.Tensor]], *, predicted: bool = False) -> dict[str, np.ndarray]:
        """VoG of each row by target, ``[rows]``: one row and one snapshot at a time."""
        rows = self.predicted_rows(states) if predicted else self.rows()
        gradients = {target: [[] for _ in rows] for target in self.targets}
        for snapshot in _snapshots(self.model(), states):
            for target, of_rows in gradients.items():
                for of_row, row in zip(of_rows, rows, strict=True):
                    scalar = partial(self._scalar_of_batch, row=row, target=target)
                    gradient = _gradient(snapshot, self._alone(row), None, scalar, "callable")
                    of_row.append(gradient if self.counted is None else gradient[self.counted(row)])
        stacked = {target: [np.stack(of_row) for of_row in of_rows] for target, of_rows in gradients.items()}
        return {target: reference_vog(of_rows, channel_mean=self.channels) for target, of_rows in stacked.items()}

    def predicted_rows(self, states: list[dict[str, torch.Tensor]]) -> list[dict[str, Any]]:
        """The rows with the labels that the last snapshot predicts."""
        *_, last = _snapshots(self.model(), states)
        return [row | self.predicted(self._outputs(last, row)) for row in self.rows()]

    def expected_companions(self, states: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
        """Mean of each observation over the snapshots, ``[rows]``."""
        values: dict[str, list[list[float]]] = {}
        for snapshot in _snapshots(self.model(), states):
            of_rows = [self._observed(snapshot, row) for row in self.rows()]
            for name in of_rows[0]:
                values.setdefault(name, []).append([float(of_row[name]) for of_row in of_rows])
        return {name: np.mean(of_snapshots, axis=0) for name, of_snapshots in values.items()}

    def _alone(self, row: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: row[name] for name in self.fed}

    def _scalar_of_batch(self, outputs: Any, _inputs: Any, *, row: dict[str, Any], target: str) -> torch.Tensor:
        return self.scalar(outputs, row, target).reshape(1)

    def _observed(self, snapshot: Any, row: dict[str, Any]) -> dict[str, float]:
        return self.observed(self._outputs(snapshot, row), row)

    def _outputs(self, snapshot: Any, row: dict[str, Any]) -> Any:
        with torch.no_grad():
            return _call(snapshot, _inputs(snapshot, self._alone(row), None))


# --- question answering ---------------------------------------------------------------------------------------------


def _answers() -> list[dict[str, Any]]:
    """Answers of one or more tokens; before the row, cut off at its end, inside the padding of others, and none."""
    lengths = [3 + 5 * i % 11 for i in range(N_ROWS)]
    rows = models.token_rows(0, lengths=tuple(lengths))
    for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
        start = i % n
        end = min(start + i % 3, n - 1)
        start, end = {0: (-1, end), 1: (start, n), 2: (start, 99), 3: (n + 1, end), 4: (0, 0)}.get(i % 9, (start, end))
        row |= {"start_positions": torch.tensor(start), "end_positions": torch.tensor(end)}
    return rows


def _ends(outputs: Any, row: dict[str, Any]) -> list[tuple[torch.Tensor, int]]:
    """Logits and position of the ends that lie inside the row."""
    both = [(outputs.start_logits[0], "start_positions"), (outputs.end_logits[0], "end_positions")]
    return [(z, max(int(row[name]), 0)) for z, name in both if row[name] < len(z)]


def _answer_scalar(outputs: Any, row: dict[str, Any], target: str) -> torch.Tensor:
    ends = _ends(outputs, row)
    if target == "logit":
        return sum(z[p] for z, p in ends)
    logs = [z[p] - z.exp().sum().log() for z, p in ends]
    return -sum(logs) / len(logs) if target == "loss" else sum(logs).exp()


def _answer_observed(outputs: Any, row: dict[str, Any]) -> dict[str, float]:
    """The answer is one class among all spans of the row."""
    ends = _ends(outputs, row)
    spans = {(): 0.0}
    for z, _ in ends:
        spans = {(*span, p): total + float(z[p]) for span, total in spans.items() for p in range(len(z))}
    given = spans.pop(tuple(p for _, p in ends))
    return {
        "loss": float(_answer_scalar(outputs, row, "loss")),
        "confidence": np.exp(given) / (np.exp(given) + sum(map(np.exp, spans.values()))),
        "correctness": given > max(spans.values()),
        "margin": given - max(spans.values()),
    }


# --- segmentation ---------------------------------------------------------------------------------------------------


def segmenter(**options: Any) -> Any:
    """SegFormer with two stages, with logits at half of the image's side."""
    config = T.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[1, 1], hidden_sizes=[4, 8], patch_sizes=[3, 3],
        strides=[2, 2], num_attention_heads=[1, 1], mlp_ratios=[2, 2], decoder_hidden_size=8,
        **{"num_labels": 3, **options},
    )  # fmt: skip
    return models._made(lambda: T.SegformerForSemanticSegmentation(config), 0)


def _masked_images() -> list[dict[str, Any]]:
    """Images with masks of another size, in which more and more pixels have no class."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn((N_ROWS, 3, 8, 8), generator=generator)
    masks = torch.randint(3, (N_ROWS, 9, 7), generator=generator)
    for i, mask in enumerate(masks):
        mask.view(-1)[torch.randperm(63, generator=generator)[:i]] = 255
    return [{"pixel_values": image, "labels": mask} for image, mask in zip(pixels, masks, strict=True)]


def _interpolation(n_out: int, n_in: int) -> torch.Tensor:
    """Weights ``[n_out, n_in]`` of linear interpolation between the centers of pixels."""
    weights = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        at = max((i + 0.5) * n_in / n_out - 0.5, 0.0)
        low = int(at)
        weights[i, low] += 1 - (at - low)
        weights[i, min(low + 1, n_in - 1)] += at - low
    return weights


def _at_pixels(outputs: Any, row: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[pixels, classes]`` and classes of the pixels that have one."""
    z, mask = outputs.logits[0], row["labels"]
    z = torch.einsum("yh,chw,xw->yxc", _interpolation(9, z.shape[1]), z, _interpolation(7, z.shape[2]))
    return z[mask != 255], mask[mask != 255]


def _mask_scalar(outputs: Any, row: dict[str, Any], target: str) -> torch.Tensor:
    z, classes = _at_pixels(outputs, row)
    values = z if target == "logit" else z - z.exp().sum(1, keepdim=True).log()
    values = values[torch.arange(len(z)), classes]
    return {"logit": values, "probability": values.exp(), "loss": -values}[target].sum() / len(z)


def _mask_observed(outputs: Any, row: dict[str, Any]) -> dict[str, float]:
    z, classes = _at_pixels(outputs, row)
    right = [int(max(range(3), key=pixel.__getitem__)) == k for pixel, k in zip(z.tolist(), classes, strict=True)]
    return {
        "loss": float(_mask_scalar(outputs, row, "loss")),
        "confidence": float(_mask_scalar(outputs, row, "probability")),
        "correctness": np.mean(right),
    }


# --- speech recognition ---------------------------------------------------------------------------------------------


def recognizer() -> Any:
    """A recognizer of waveforms with layer norm, for which padding changes nothing."""
    config = copy.deepcopy(models.wav2vec2().model.config)
    config.pad_token_id = BLANK
    return models._made(lambda: T.Wav2Vec2ForCTC(config), 0)


def _speech() -> list[dict[str, Any]]:
    """Waveforms with transcripts of 0 to 4 tokens, some of them said twice."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for i in range(N_ROWS):
        wave = torch.randn(40 + 7 * i % 23, generator=generator)
        tokens = 4 + torch.randint(models.VOCABULARY - 4, (i % 5,), generator=generator)
        if i % 3 == 0:
            tokens = tokens[[0, 0, *range(1, len(tokens))]] if len(tokens) else tokens
        mask = torch.ones(len(wave), dtype=torch.int64)
        rows.append({"input_values": wave, "attention_mask": mask, "labels": tokens})
    return rows


def ctc_loss(p: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """Minus the logarithm of the sum over all alignments, by the forward recursion over ``p [frames, tokens]``."""
    path = [BLANK]
    for token in tokens:
        path += [token, BLANK]
    alpha = [p[0, token] if s < 2 else p.new_zeros(()) for s, token in enumerate(path)]
    for t in range(1, len(p)):
        alpha = [
            (
                alpha[s]
                + (alpha[s - 1] if s else 0)
                + (alpha[s - 2] if s > 1 and path[s] != BLANK and path[s] != path[s - 2] else 0)
            )
            * p[t, path[s]]
            for s in range(len(path))
        ]
    return -sum(alpha[-2:]).log()


def _speech_scalar(outputs: Any, row: dict[str, Any], target: str) -> torch.Tensor:
    loss = ctc_loss(outputs.logits[0].softmax(-1), row["labels"].tolist())
    return loss if target == "loss" else -loss


def _speech_observed(outputs: Any, row: dict[str, Any]) -> dict[str, float]:
    runs = [token for token, _ in itertools.groupby(outputs.logits[0].argmax(-1).tolist())]
    return {
        "loss": float(_speech_scalar(outputs, row, "loss")),
        "correctness": [token for token in runs if token != BLANK] == row["labels"].tolist(),
    }


# --- multiple choice ------------------------------------------------------------------------------------------------


def _choices() -> list[dict[str, Any]]:
    """Rows of three texts of several lengths, padded to the longest of the row."""
    rows = []
    for i in range(N_ROWS):
        lengths = (3 + i % 4, 2 + i % 7, 4)
        texts = models.token_rows(i, lengths=lengths)
        padded = [torch.stack([_widened(text[name], max(lengths)) for text in texts]) for name in TEXT]
        rows.append(dict(zip(TEXT, padded, strict=True)) | {"labels": torch.tensor(i % 3)})
    return rows


def _widened(values: torch.Tensor, width: int) -> torch.Tensor:
    return F.pad(values, (0, width - values.shape[-1]))


def collate_choices(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows padded to the longest text of the batch."""
    width = max(row["input_ids"].shape[1] for row in rows)
    batch = {name: torch.stack([_widened(row[name], width) for row in rows]) for name in TEXT}
    return batch | {"labels": torch.stack([row["labels"] for row in rows])} if "labels" in rows[0] else batch


def _choice_scalar(outputs: Any, row: dict[str, Any], target: str) -> torch.Tensor:
    return _scalar(outputs.logits[0], int(row["labels"]), target, "single_label_classification")


def _choice_observed(outputs: Any, row: dict[str, Any]) -> dict[str, float]:
    values = reference_dynamics([outputs.logits.numpy()], [row["labels"]])
    return {name: values[name][0] for name in ("loss", "confidence", "margin", "el2n", "correctness")}


TASK_CASES = {
    "question_answering": TaskCase(
        lambda: models._made(lambda: T.BertForQuestionAnswering(models.bert_config(num_labels=2)), 0),
        _answers,
        ("input_ids", "attention_mask"),
        _answer_scalar,
        _answer_observed,
        absent=("label", "prediction", "forgetting", "el2n"),
        predicted=lambda outputs: {
            "start_positions": outputs.start_logits[0].argmax(),
            "end_positions": outputs.end_logits[0].argmax(),
        },
    ),
    "semantic_segmentation": TaskCase(
        segmenter,
        _masked_images,
        ("pixel_values",),
        _mask_scalar,
        _mask_observed,
        absent=("label", "prediction", "forgetting", "margin", "el2n"),
        channels=True,
    ),
    "speech_recognition": TaskCase(
        recognizer,
        _speech,
        ("input_values", "attention_mask"),
        _speech_scalar,
        _speech_observed,
        targets=("logit", "loss"),
        absent=("label", "prediction", "confidence", "variability", "forgetting", "margin", "el2n"),
    ),
    "multiple_choice": TaskCase(
        lambda: models._made(lambda: T.BertForMultipleChoice(models.bert_config()), 0),
        _choices,
        TEXT,
        _choice_scalar,
        _choice_observed,
        absent=("vog_class_normalized",),
        predicted=lambda outputs: {"labels": outputs.logits[0].argmax()},
        collate_fn=collate_choices,
        counted=lambda row: row["attention_mask"].bool().numpy(),
    ),
}
