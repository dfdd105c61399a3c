"""A model loaded by name, and the transform from rows to its inputs, made of its processor."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vog_hf.data.loading import class_numbers, model_classes
from vog_hf.errors import ConfigError, DataError, ModelError, SnapshotError
from vog_hf.gradients.model_inputs import LABEL_NAMES
from vog_hf.snapshots import in_order

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from vog_hf.data.column_kinds import Kind

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HEADS = ("ImageClassification", "SequenceClassification", "AudioClassification")  # regressions included
ROWS_AT_ONCE = 10_000  # in memory during the search for missing inputs
# Errors of transformers for unreadable files; the last three for classes that it does not have.
UNREADABLE = (OSError, ValueError, AttributeError, KeyError, TypeError)
MOST_OF_8_BITS = 255
UNBOUNDED = 10**6  # tokens; tokenizers without a limit report a larger number


def find_snapshots(given: Sequence[str]) -> str | list[str]:
    """Snapshots for `VoGScorer.score`: the folder of a run, or model folders and files in the order of training.

    Patterns are expanded in the order of the numbers in names. Names that are all ``checkpoint-<n>``, ``epoch_<n>`` or
    ``step_<n>`` are sorted by number, because a shell sorts 1000 before 200.

    Raises:
        SnapshotError: A path or pattern without a match.
    """
    paths: list[str] = []
    for name in given:
        at = str(Path(name).expanduser())
        matches = [at] if Path(at).exists() else sorted(glob(at), key=_in_numbers) if has_magic(at) else []  # noqa: PTH207 (absolute)
        if not matches:
            raise SnapshotError(
                f"there is no snapshot at {name}; pass model folders, .safetensors files or a pattern in quotes"
            )
        paths += matches
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return paths[0]
    ordered = in_order([Path(path) for path in paths])
    if ordered is not None:
        return [str(path) for path in ordered]
    if len({re.sub(r"\d+", "0", path) for path in paths}) == 1 and paths != sorted(paths, key=_in_numbers):
        logger.warning(
            "snapshots are used in the order given, which differs from the order of their numbers: %s", paths
        )
    return paths


def _in_numbers(path: str) -> list[tuple[str, int]]:
    """A key that sorts epoch-2 before epoch-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", path)]


def model_folder(name: str) -> str:
    """The folder or Hub id of a model; for the folder of a run, its last checkpoint.

    Raises:
        ModelError: A folder without a model or checkpoint.
    """
    folder = Path(name).expanduser()
    if not folder.exists() or (folder / "config.json").is_file():
        return name if not folder.exists() else str(folder)
    steps = {int(m[1]): path for path in folder.glob("checkpoint-*") if (m := CHECKPOINT.fullmatch(path.name))}
    last = steps[max(steps)] if steps else folder
    if (last / "adapter_config.json").is_file():
        raise ModelError(
            f"{last} is a PEFT adapter, and the folder alone does not determine its model; score it from Python: "
            "VoGScorer(peft_model).score(dataset, snapshots)"
        )
    if steps and not (last / "config.json").is_file():
        raise ModelError(f"the last checkpoint {last} holds no config.json; restore it, or remove it from {name}")
    if not steps:
        raise ModelError(
            f"{name} holds no model (no config.json, nor a checkpoint-<step> with one); pass a model folder or a Hub id"
        )
    return str(last)


def load_model(name: str, *, revision: str | None = None) -> "nn.Module":
    """Load the model of a folder or Hub id from safetensors, with the class named in its configuration.

    Raises:
        ModelError: No model, not a classification or regression model of transformers, or pickled weights.
    """
    import transformers
    from transformers import AutoConfig, PreTrainedModel

    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": False,
    }  # otherwise transformers asks on a terminal
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except UNREADABLE as error:
        raise ModelError(f"the model {name} cannot be opened: {_line(error)}") from error
    architecture = next(iter(config.architectures or []), None)
    kind: Any = getattr(transformers, str(architecture), None)
    # A class of transformers itself: an Auto class could run code of the folder.
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if not is_model or not any(head in str(architecture) for head in HEADS):
        raise ModelError(
            f"vog-hf score scores classifiers and regressions of transformers, and {name} is a "
            f"{architecture or 'model without architectures in its config.json'}; score others from Python with "
            "VoGScorer"
        )
    try:
        return kind.from_pretrained(name, config=config, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the weights of {name} cannot be loaded (as safetensors): {_line(error)}") from error


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
        images = [_eight_bits(_image(value, self.inputs[0])).convert(self.mode) for value in rows[self.inputs[0]]]
        options: dict[str, Any] = {}
        if self.mode == "L":  # older processors accept gray images only as arrays with a channel
            images = [np.array(image)[..., None] for image in images]
            options["input_data_format"] = "channels_last"
        try:
            return {"pixel_values": list(self.processor(images, return_tensors="pt", **options)["pixel_values"])}
        except ValueError as error:
            raise DataError(
                f"{type(self.processor).__name__} cannot process these images ({_line(error)}); see --processor"
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
    _require_inputs(dataset, inputs)
    config: Any = model.config
    loaded = _load_processor(kind, processor, revision)
    if kind == "text":
        _require_padding(loaded, config)
        _require_tokens(dataset, inputs, loaded)
    return Preparation(
        loaded,
        kind,
        inputs,
        label,
        mode="L" if getattr(config, "num_channels", 3) == 1 else "RGB",
        max_length=_max_length(loaded, model, max_length) if kind == "text" else None,
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
            f"{name} has no {what}; pass the folder or Hub id of one with --processor ({_line(error):.200})"
        ) from error


def _require_padding(tokenizer: "PreTrainedTokenizerBase", config: Any) -> None:
    """Set the tokenizer's padding token from the model's configuration if it has none.

    Raises:
        ModelError: The model has no padding token either.
    """
    if tokenizer.pad_token is not None:
        return
    if config.pad_token_id is None:
        raise ModelError(
            "neither tokenizer nor model has a padding token, so texts of different lengths cannot share a batch; set "
            "pad_token in the tokenizer and pad_token_id in the model's config.json as in the training"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)


def _require_tokens(dataset: "Dataset", inputs: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError if a text is empty and the tokenizer adds no special tokens."""
    if len(tokenizer("")["input_ids"]):
        return
    first = 0
    for part in dataset.with_format("arrow").select_columns(list(inputs)).iter(ROWS_AT_ONCE):
        texts = zip(*(part.column(name).to_pylist() for name in inputs), strict=True)
        empty = next((row for row, row_texts in enumerate(texts, first) if not "".join(row_texts).strip()), None)
        if empty is not None:
            raise DataError(
                f"row {empty:,} has an empty text in column {inputs[0]!r}, which gives no tokens; leave it out"
            )
        first += len(part)


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
                    f"row {row:,} has no value in column {name!r}; remove rows without a value, or fill them"
                )
            first += len(column)


def _max_length(tokenizer: "PreTrainedTokenizerBase", model: "nn.Module", requested: int | None) -> int | None:
    """Maximum length of texts in tokens; None: no known limit.

    Raises:
        ConfigError: The model has fewer positions than the requested length.
    """
    positions = n_positions(model, tokenizer)
    if requested is not None and positions is not None and requested > positions:
        raise ConfigError(
            f"--max-length {requested} is more than the {positions} tokens that the model has positions for; lower it"
        )
    if requested is not None:
        return requested
    limits = [tokenizer.model_max_length, positions]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNBOUNDED]
    return min(known, default=None)


def n_positions(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Number of tokens for which a model has learned positions; None: positions are relative and unlimited.

    The table of positions is the embedding that a short text reads at consecutive rows. The first of these rows
    determines how many are left: RoBERTa starts at ``padding_idx + 1``, OPT and BART at 2.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    batch = tokenizer(["a a a a"], return_tensors="pt")
    tokens, pad = batch["input_ids"], getattr(model.config, "pad_token_id", None)
    if pad is not None:
        tokens = tokens.masked_fill(tokens == pad, 0 if pad else 1)  # an unknown word may become padding
    n_tokens, limits = tokens.shape[1], []

    class Reads(TorchDispatchMode):
        """Records each table that is read at consecutive rows, one per token."""

        def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.embedding.default:
                table, rows = args[0], args[1].flatten()[:n_tokens]
                if n_tokens > 1 and len(rows) == n_tokens and bool((rows.diff() == 1).all()):
                    limits.append(len(table) - int(rows[0]))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Reads():
        model(input_ids=tokens, attention_mask=batch["attention_mask"])
    return min(limits, default=None)


def _image(value: object, column: str) -> Any:
    if not hasattr(value, "convert"):
        raise DataError(
            f"column {column!r} holds values of type {type(value).__name__}, expected images; see --input-column"
        )
    return value


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400].rstrip(".")
