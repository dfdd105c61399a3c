"""Transforms from rows to the inputs and labels of heads with a task of their own: answers, masks, transcripts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from vog_hf.cli.columns import find_input
from vog_hf.cli.model_inputs import Loader, Preparation, Row, Rows, require_image
from vog_hf.cli.models import one_line
from vog_hf.data.column_kinds import columns_of_kind
from vog_hf.errors import ConfigError, DataError, ModelError
from vog_hf.gradients.question_answering import QuestionAnswering
from vog_hf.gradients.segmentation import SemanticSegmentation
from vog_hf.gradients.speech_recognition import SpeechRecognition
from vog_hf.gradients.task import IGNORED_TOKEN
from vog_hf.gradients.token_tasks import TokenPrediction

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from vog_hf.data.column_kinds import Kind

QUESTIONS, ANSWERS = ("question", "context"), "answers"  # columns of published datasets
TRANSCRIPTS = ("text", "sentence", "transcription", "transcript")


class HeadPreparation(Preparation):
    """As `Preparation`, with labels that the transform makes under the names that the model has for them."""

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        return {}

    @property
    @override
    def label_column(self) -> str | None:
        return None

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        batch = dict(self._pad([{name: value for name, value in row.items() if name != "labels"} for row in rows]))
        if "labels" in rows[0]:
            labels = [torch.as_tensor(row["labels"], dtype=torch.long) for row in rows]
            side = getattr(self.processor, "padding_side", "right") if self.kind == "text" else "right"
            batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORED_TOKEN, padding_side=side)
        return batch


class Answers(HeadPreparation):
    """Question and context as one text; the answer as the numbers of its first and last token.

    A row without an answer has the first token for both. An answer that is cut off has a number behind the row's end,
    which does not count.
    """

    task: ClassVar[str | None] = QuestionAnswering.name

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        usual = QUESTIONS if set(QUESTIONS) <= set(dataset.column_names) else ()
        if len(inputs or usual) != 2:
            raise ConfigError(
                f"question answering needs two columns, question and context, and the dataset has "
                f"{', '.join(dataset.column_names)}; name them with --input-column, twice"
            )
        return inputs or usual, label or (ANSWERS if ANSWERS in dataset.column_names else None)

    @override
    def check(self, dataset: "Dataset") -> None:
        require_places(self.processor, "answers")

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        encoded = self.processor(
            *(rows[name] for name in self.inputs),
            truncation=False if self.max_length is None else "only_second",
            max_length=self.max_length,
            return_offsets_mapping=True,
        )
        offsets = encoded.pop("offset_mapping")
        if self.label is None:
            return dict(encoded)
        parts = [encoded.sequence_ids(at) for at in range(len(offsets))]
        ends = [answer_tokens(*row) for row in zip(parts, offsets, rows[self.label], strict=True)]
        return {**encoded, "start_positions": [start for start, _ in ends], "end_positions": [end for _, end in ends]}


def require_places(tokenizer: object, what: str) -> None:
    """Raise ModelError where a tokenizer cannot tell where in a text its tokens are."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} does not say where in the text a token is, which {what} need; save the fast "
            "tokenizer with the model, or name one with --processor"
        )


def answer_tokens(
    parts: Sequence[int | None], offsets: Sequence[tuple[int, int]], answer: Mapping[str, Any] | None
) -> tuple[int, int]:
    """Numbers of the first and the last token of an answer; the number of tokens for an end that was cut off.

    Args:
        parts: For each token 0 in the question, 1 in the context, None for special tokens.
        offsets: Where each token begins and ends in its text.
        answer: ``text`` and ``answer_start``, a list each, of which the first counts; None or empty: no answer.
    """
    if not answer or not answer["text"]:
        return 0, 0
    start = answer["answer_start"][0]
    stop, n_tokens = start + len(answer["text"][0]), len(offsets)
    context = [(at, *offsets[at]) for at in range(n_tokens) if parts[at] == 1]
    first = next((at for at, begin, end in context if begin <= start < end), n_tokens)
    return first, next((at for at, begin, end in context if begin < stop <= end), n_tokens)


class Masks(HeadPreparation):
    """Images with their masks, which the processor brings to one size."""

    task: ClassVar[str | None] = SemanticSegmentation.name

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        images = columns_of_kind(dataset, "image")
        if not inputs and len(images) > 1 and "image" in images and label != "image":
            inputs = ("image",)
        inputs = inputs or (find_input(dataset, kind, label),)
        others = [name for name in images if name not in inputs]
        if label is None and len(others) != 1:
            raise ConfigError(
                "segmentation needs a column of images with the masks, whose pixels are class numbers; name one of "
                f"{', '.join(dataset.column_names)} with --label-column"
            )
        return inputs, label or others[0]

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        masks = [np.array(require_image(mask, str(self.label))) for mask in rows[str(self.label)]]
        shape = next((mask.shape for mask in masks if mask.ndim != 2), None)
        if shape is not None:
            raise DataError(
                f"masks in column {self.label!r} must have one class number per pixel, got an image of shape {shape}; "
                "store them as images of mode L, I or P"
            )
        try:
            made = self.processor(self._converted_images(rows), segmentation_maps=masks, return_tensors="pt")
            return {"pixel_values": list(made["pixel_values"]), "labels": list(made["labels"])}
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{type(self.processor).__name__} cannot process these images with their masks ({one_line(error)}); "
                "see --processor"
            ) from error


@dataclass(frozen=True)
class Transcripts(HeadPreparation):
    """Sounds with the tokens of their transcripts.

    Attributes:
        tokenizer: Tokenizer of the transcripts, saved with the model.
        decoder_start: Token that a decoder begins with.
    """

    task: ClassVar[str | None] = SpeechRecognition.name
    tokenizer: Any = None
    decoder_start: int | None = None

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        label = label or next((name for name in TRANSCRIPTS if name in dataset.column_names), None)
        if label is None:
            raise ConfigError(
                "speech recognition needs a column with the transcripts; name one of "
                f"{', '.join(dataset.column_names)} with --label-column"
            )
        return inputs or (find_input(dataset, kind, label),), label

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        return {"tokenizer": load_tokenizer()}

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        return {**self._sounds(rows), "labels": [self.tokenizer(text)["input_ids"] for text in rows[str(self.label)]]}


class SpokenTexts(Transcripts):
    """Sounds with the tokens that an encoder-decoder is to write, without the one that its decoder begins with."""

    task: ClassVar[str | None] = TokenPrediction.name

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        config: Any = model.config
        return {"tokenizer": load_tokenizer(), "decoder_start": config.decoder_start_token_id}

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        made = super().__call__(rows)
        return {**made, "labels": [ids[ids[:1] == [self.decoder_start] :] for ids in made["labels"]]}
