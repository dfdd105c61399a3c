"""A model loaded by name, and the transform from rows to its inputs, made of its processor."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vog_hf.cli.models import UNREADABLE, one_line
from vog_hf.cli.token_limits import ROWS_AT_ONCE, require_padding, require_tokens, token_limit
from vog_hf.data.classes import class_numbers, model_classes
from vog_hf.errors import ConfigError, DataError, ModelError
from vog_hf.gradients.model_inputs import LABEL_NAMES

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from vog_hf.data.column_kinds import Kind

logger = logging.getLogger(__name__)

MOST_OF_8_BITS = 255


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
    """

    processor: Any
    kind: str
    inputs: tuple[str, ...]
    label: str | None
    mode: str = "RGB"
    max_length: int | None = None
    numbers: Mapping[Any, int] | None = None
    class_names: list[str] | None = None

    def __call__(self, rows: Mapping[str, list[object]]) -> dict[str, Any]:
        """Inputs and labels of some rows, one list each."""
        inputs = {"image": self._images, "text": self._texts, "audio": self._sounds}[self.kind](rows)
        return inputs if self.label is None else {**inputs, self.label: self._labels(rows[self.label])}

    @property
    def takes_single_rows(self) -> bool:
        """True if texts of different lengths cannot share a batch because the tokenizer has no padding token."""
        return self.kind == "text" and getattr(self.processor, "pad_token", None) is None

    def collate(self, rows: list[dict[str, object]]) -> dict[str, Any]:
        """Collate transformed rows; text and audio are padded to the longest row."""
        from transformers import DataCollatorWithPadding, default_data_collator

        inputs = [{name: value for name, value in row.items() if name != self.label} for row in rows]
        stacks = self.kind == "image" or self.takes_single_rows
        pad = default_data_collator if stacks else DataCollatorWithPadding(self.processor)
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

    def _images(self, rows: Mapping[str, list[object]]) -> dict[str, Any]:
        images = [_converted(_image(value, self.inputs[0]), self.mode) for value in rows[self.inputs[0]]]
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

    def _texts(self, rows: Mapping[str, list[object]]) -> dict[str, Any]:
        texts = [rows[name] for name in self.inputs]
        return dict(self.processor(*texts, truncation=self.max_length is not None, max_length=self.max_length))

    def _sounds(self, rows: Mapping[str, list[object]]) -> dict[str, Any]:
        waves = [_wave(value) for value in rows[self.inputs[0]]]
        return dict(self.processor(waves, sampling_rate=self.processor.sampling_rate))

    def _labels(self, values: list[Any]) -> list[Any]:
        """Labels as class numbers of the model; None, NaN, -1 and -100 mean no label."""
        if self.numbers is None:
            return values
        return [self.numbers.get(value) for value in values]


def prepare(
    model: "nn.Module",
    dataset: "Dataset",
    *,
    processor: str,
    revision: str | None = None,
    input_columns: Sequence[str] = (),
    label_column: str | None = None,
    max_length: int | None = None,
    skips_rows: bool = False,
) -> Preparation:
    """The transform of a dataset for a model.

    Args:
        model: Model; its main input determines the kind of data.
        dataset: Dataset to transform.
        processor: Folder or Hub id of the processor.
        revision: Revision of the processor on the Hub.
        input_columns: Image, text (one or two) or audio column; default: found by type.
        label_column: Label column; default: the usual names, else the only ClassLabel column.
        max_length: Maximum length of texts in tokens; default: the limit of tokenizer and model.
        skips_rows: Whether rows without an input are skipped when they are read, and so are not refused here.

    Raises:
        ConfigError: A column does not exist, or several could be meant.
        ModelError: There is no processor.
        DataError: The classes of the dataset do not match the model's.
    """
    kind = _kind_of(model)
    for name in (*input_columns, *filter(None, [label_column])):
        if name not in dataset.column_names:
            raise ConfigError(f"the dataset has no column {name!r}; it has {', '.join(dataset.column_names)}")
    label = label_column or _find_label(dataset)
    inputs = tuple(input_columns) or (_find_input(dataset, kind, label),)
    if len(inputs) > (2 if kind == "text" else 1):
        raise ConfigError(
            f"a model of {kind} takes {'one or two columns' if kind == 'text' else 'one column'}, got {inputs}"
        )
    if max_length is not None and kind != "text":
        raise ConfigError(f"--max-length applies to text, and this model takes {kind}; leave it out")
    if not skips_rows:
        _require_inputs(dataset, inputs)
    config: Any = model.config
    loaded = _load_processor(kind, processor, revision)
    if kind == "text":
        require_padding(loaded, config)
        if not skips_rows:
            require_tokens(dataset, inputs, loaded)
    return Preparation(
        loaded,
        kind,
        inputs,
        label,
        mode="L" if getattr(config, "num_channels", 3) == 1 else "RGB",
        max_length=token_limit(loaded, model, max_length) if kind == "text" else None,
        numbers=None if label is None else class_numbers(dataset, label, config),
        class_names=model_classes(config),
    )


def prepared(dataset: "Dataset", preparation: Preparation) -> "Dataset":
    """The dataset with the transform; audio is resampled to the rate of the feature extractor."""
    from datasets import Audio, ClassLabel, Features

    name = preparation.inputs[0]
    if preparation.kind == "audio" and isinstance(dataset.features[name], Audio):
        dataset = dataset.cast_column(name, Audio(sampling_rate=preparation.processor.sampling_rate))
    transformed = dataset.with_transform(preparation)
    if preparation.numbers is not None and isinstance(transformed.features[preparation.label], ClassLabel):
        # The transform maps stored labels to the model's class numbers, so the class names are also the model's.
        transformed.info.features = Features(
            {**transformed.features, preparation.label: ClassLabel(names=preparation.class_names)}
        )
    return transformed


def _kind_of(model: "nn.Module") -> "Kind":
    name = str(model.main_input_name)
    kinds: dict[str, Kind] = {
        "pixel_values": "image",
        "input_ids": "text",
        "input_values": "audio",
        "input_features": "audio",
    }
    if name not in kinds:
        raise ModelError(
            f"vog-hf score supports the inputs {', '.join(kinds)}, and this model takes {name!r}; use VoGScorer"
        )
    return kinds[name]


def _load_processor(kind: str, name: str, revision: str | None) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    loader: Any = {"image": AutoImageProcessor, "text": AutoTokenizer, "audio": AutoFeatureExtractor}[kind]
    try:
        return loader.from_pretrained(name, revision=revision, trust_remote_code=False)
    except UNREADABLE as error:
        what = {"image": "image processor", "text": "tokenizer", "audio": "feature extractor"}[kind]
        raise ModelError(
            f"{name} has no {what}; pass the folder or Hub id of one with --processor ({one_line(error):.200})"
        ) from error


def _find_input(dataset: "Dataset", kind: "Kind", label: str | None) -> str:
    from vog_hf.data.column_kinds import columns_of_kind

    others = [name for name in dataset.column_names if name != label]
    candidates = [name for name in columns_of_kind(dataset, kind) if name != label]
    if len(candidates) != 1:
        which = f"several columns of {kind} ({', '.join(candidates)})" if candidates else f"no column of {kind}"
        pairs = ", twice for pairs of texts" if kind == "text" and len(candidates) > 1 else ""
        raise ConfigError(f"the dataset has {which}; name one of {', '.join(others)} with --input-column{pairs}")
    return candidates[0]


def _find_label(dataset: "Dataset") -> str | None:
    from vog_hf.data.column_kinds import columns_of_kind

    usual = [name for name in LABEL_NAMES if name in dataset.column_names]
    if usual:
        return usual[0]
    classes = columns_of_kind(dataset, "class")
    if len(classes) > 1:
        raise ConfigError(
            f"the dataset has several columns of classes ({', '.join(classes)}); name one with --label-column"
        )
    return classes[0] if classes else None


def _require_inputs(dataset: "Dataset", inputs: Sequence[str]) -> None:
    """Raise DataError if a row has no image, text or audio; nothing is decoded."""
    stored = dataset.with_format("arrow")
    for name in inputs:
        first = 0
        for part in stored.select_columns([name]).iter(ROWS_AT_ONCE):
            column = part.column(name)
            if column.null_count:
                row = first + column.is_null().index(True).as_py()
                raise DataError(
                    f"row {row:,} has no value in column {name!r}; remove rows without a value, fill them, or pass "
                    "on_error='skip'",
                    argument="on_error='skip'",
                )
            first += len(column)


def _image(value: object, column: str) -> Any:
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
