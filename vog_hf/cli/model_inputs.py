"""The transform from rows to the inputs of a classifier or a regression, made of the model's processor."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vog_hf.cli.columns import find_input, find_label
from vog_hf.cli.models import one_line
from vog_hf.cli.token_limits import require_padding
from vog_hf.data.classes import class_numbers, model_classes
from vog_hf.errors import DataError
from vog_hf.gradients.model_inputs import LABEL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import BatchEncoding, PreTrainedTokenizerBase

    from vog_hf.data.column_kinds import Kind

MOST_OF_8_BITS = 255
Rows = Mapping[str, list[Any]]  # columns of some rows
Row = dict[str, Any]  # one row behind the transform
Loader = Callable[[], Any]  # of a processor


@dataclass(frozen=True)
class Preparation:
    """A deterministic transform from rows to inputs, with its collator.

    Attributes:
        processor: Image processor, tokenizer or feature extractor.
        kind: ``"image"``, ``"text"`` or ``"audio"``.
        inputs: Input column, or two text columns.
        label: Label column; None: the dataset has no labels.
        mode: Mode of images: ``"RGB"`` or ``"L"``.
        max_length: Maximum length of texts in tokens.
        numbers: Class numbers of the model by stored label; None: labels are class numbers already.
        class_names: Class names of the model.
        task: Name of the task; None: the model's configuration tells it.
        takes: Kind of its input columns; None: the model's main input tells it.
        needs_label_column: Whether a given label is a column; else the transform makes labels, or there are none.
    """

    task: ClassVar[str | None] = None
    takes: ClassVar["Kind | None"] = None
    needs_label_column: ClassVar[bool] = True
    processor: Any
    kind: str
    inputs: tuple[str, ...]
    label: str | None
    mode: str = "RGB"
    max_length: int | None = None
    numbers: Mapping[Any, int] | None = None
    class_names: list[str] | None = None

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Inputs and labels of some rows, one list each."""
        transforms: dict[str, Callable[[Rows], Mapping[str, Any]]] = {
            "image": self._images,
            "text": self._texts,
            "audio": self._sounds,
        }
        inputs = dict(transforms[self.kind](rows))
        return inputs if self.label is None else {**inputs, self.label: self._labels(rows[self.label])}

    @classmethod
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        """Input columns and label column: those that are named, else those of the usual names and types.

        Raises:
            ConfigError: Several could be meant.
        """
        label = label or find_label(dataset)
        return inputs or (find_input(dataset, kind, label),), label

    @classmethod
    def most_inputs(cls, kind: "Kind") -> int | None:
        """The most columns that it takes; None: any number."""
        return 2 if kind == "text" else 1

    @classmethod
    def pad(cls, tokenizer: "PreTrainedTokenizerBase", config: object) -> None:
        """Give a tokenizer a padding token if it has none."""
        require_padding(tokenizer, config)

    @classmethod
    def own_options(
        cls,
        dataset: "Dataset",
        label: str | None,
        model: "nn.Module",
        load_tokenizer: Loader,  # noqa: ARG003 (of some heads)
    ) -> dict[str, Any]:
        """Those of the attributes that tell what labels mean, or that only some heads have."""
        numbers = None if label is None else class_numbers(dataset, label, model.config)
        return {"numbers": numbers, "class_names": model_classes(model.config)}

    def check(self, dataset: "Dataset") -> None:
        """Raise VoGError where processor or columns are not what the model's head needs."""

    @property
    def label_column(self) -> str | None:
        """Label column for `VoGConfig`; None if the scorer finds the label itself."""
        return None if self.label in LABEL_NAMES else self.label

    @property
    def takes_single_rows(self) -> bool:
        """True if texts of different lengths cannot share a batch because the tokenizer has no padding token."""
        return self.kind == "text" and getattr(self.processor, "pad_token", None) is None

    def collate(self, rows: list[Row]) -> dict[str, Any]:
        """Collate transformed rows; text and audio are padded to the longest row."""
        from transformers import default_data_collator

        pad = self._pad
        inputs = [{name: value for name, value in row.items() if name != self.label} for row in rows]
        if self.label not in LABEL_NAMES:  # then the scorer reads it from the rows by name
            return dict(pad(inputs))
        return {**pad(inputs), **default_data_collator([{self.label: row[self.label]} for row in rows])}

    def described(self) -> dict[str, Any]:
        """Details of the transform for the manifest."""
        return {
            "processor": type(self.processor).__qualname__,
            "input_columns": list(self.inputs),
            "label_column": self.label,
            **({"mode": self.mode} if self.kind == "image" else {}),
            **({"max_length": self.max_length} if self.kind == "text" else {}),
        }

    @property
    def _pad(self) -> Callable[[list[Row]], Mapping[str, Any]]:
        """Collator of inputs without labels."""
        from transformers import DataCollatorWithPadding, default_data_collator

        stacks = self.kind == "image" or self.takes_single_rows
        pad: Callable[[list[Row]], Mapping[str, Any]] = (
            default_data_collator if stacks else DataCollatorWithPadding(self.processor)
        )
        return pad

    def _images(self, rows: Rows) -> dict[str, Any]:
        images = self._converted_images(rows)
        options: dict[str, Any] = {}
        if self.mode == "L":  # older processors accept gray images only as arrays with a channel
            images = [np.array(image)[..., None] for image in images]
            options["input_data_format"] = "channels_last"
        try:
            return {"pixel_values": list(self.processor(images, return_tensors="pt", **options)["pixel_values"])}
        except ValueError as error:
            raise DataError(
                f"{type(self.processor).__name__} cannot process these images ({one_line(error)}); see --processor"
            ) from error

    def _converted_images(self, rows: Rows) -> list[Any]:
        return [_converted(require_image(value, self.inputs[0]), self.mode) for value in rows[self.inputs[0]]]

    def _texts(self, rows: Rows, **options: bool) -> "BatchEncoding":
        texts = [rows[name] for name in self.inputs]
        encoded: BatchEncoding = self.processor(
            *texts, truncation=self.max_length is not None, max_length=self.max_length, **options
        )
        return encoded

    def _sounds(self, rows: Rows) -> dict[str, Any]:
        waves = [_wave(value) for value in rows[self.inputs[0]]]
        return dict(self.processor(waves, sampling_rate=self.processor.sampling_rate))

    def _labels(self, values: list[Any]) -> list[Any]:
        """Labels as class numbers of the model; None, NaN, -1 and -100 mean no label."""
        if self.numbers is None:
            return values
        return [self.numbers.get(value) for value in values]


def require_image(value: object, column: str) -> Any:
    """An image; raises DataError where a value is none."""
    if not hasattr(value, "convert"):
        raise DataError(
            f"column {column!r} holds values of type {type(value).__name__}, expected images; see --input-column"
        )
    return value


def _converted(image: Any, mode: str) -> Any:
    """An image in the mode of the model, as Pillow converts it."""
    image = _eight_bits(image)
    try:
        return image.convert(mode)
    except ValueError as error:
        raise DataError(
            f"an image of mode {image.mode!r} cannot be converted to {mode!r} ({error}); store the images as RGB"
        ) from error


def _eight_bits(image: Any) -> Any:
    """An image that conversion does not clip; raises if it has values beyond 8 bits, since their scaling is unknown."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)  # Pillow itself finds no extremes of big-endian numbers, and does not convert them
    low, high = values.min(), values.max()
    if low < 0 or high > MOST_OF_8_BITS or image.mode == "F":
        raise DataError(
            f"an image of mode {image.mode!r} has values from {low:g} to {high:g}, expected 0 to 255: conversion to 8 "
            "bits would clip it, and how training scaled it is not known; store the images in 8 bits as they were "
            "scaled for training, or score from Python: VoGScorer(...).score(dataset.with_transform(...), ...)"
        )
    from PIL import Image

    return Image.fromarray(values.astype(np.uint8))


def _wave(value: Any) -> Any:
    """``[samples]`` of decoded audio or a list of numbers."""
    return np.asarray(value if isinstance(value, (list, np.ndarray)) else value["array"], dtype=np.float32)
