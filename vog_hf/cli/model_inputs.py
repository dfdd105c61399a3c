"""A model by its name, and from its processor the transform that turns rows into its inputs."""

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

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HEADS = ("ImageClassification", "SequenceClassification", "AudioClassification")  # regressions are of these, too
ROWS_AT_ONCE = 10_000  # whose column is in memory while missing inputs are looked for
# What transformers raises for a folder's files: of the last three where they name classes that it does not have.
UNREADABLE = (OSError, ValueError, AttributeError, KeyError, TypeError)
MOST_OF_8_BITS = 255
UNBOUNDED = 10**6  # tokens; tokenizers without a limit name an even larger number


def find_snapshots(given: Sequence[str]) -> str | list[str]:
    """What `VoGScorer.score` takes: one folder of a run, or model folders and files in the order of training.

    Patterns are expanded in the order of the numbers in names, and what is named ``checkpoint-<n>``, ``epoch_<n>``
    or ``step_<n>`` throughout is put in the order of the numbers, because a shell puts 1000 before 200.

    Raises:
        SnapshotError: A pattern or a path that nothing is at.
    """
    paths: list[str] = []
    for name in given:
        at = str(Path(name).expanduser())
        found = [at] if Path(at).exists() else sorted(glob(at), key=_in_numbers) if has_magic(at) else []  # noqa: PTH207 (absolute)
        if not found:
            raise SnapshotError(
                f"there is no snapshot at {name}; pass model folders, .safetensors files or a pattern in quotes"
            )
        paths += found
    if len(paths) == 1 and Path(paths[0]).is_dir():
        return paths[0]
    ordered = in_order([Path(path) for path in paths])
    if ordered is not None:
        return [str(path) for path in ordered]
    if len({re.sub(r"\d+", "0", path) for path in paths}) == 1 and paths != sorted(paths, key=_in_numbers):
        logger.warning("the snapshots are taken in the order given, which is not that of their numbers: %s", paths)
    return paths


def _in_numbers(path: str) -> list[tuple[str, int]]:
    """A key that sorts epoch-2 before epoch-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", path)]


def model_folder(name: str) -> str:
    """Where the model of a name is: a run's folder without one has it in its last checkpoint; Hub ids as they are.

    Raises:
        ModelError: A folder with neither.
    """
    folder = Path(name).expanduser()
    if not folder.exists() or (folder / "config.json").is_file():
        return name if not folder.exists() else str(folder)
    steps = {int(m[1]): path for path in folder.glob("checkpoint-*") if (m := CHECKPOINT.fullmatch(path.name))}
    last = steps[max(steps)] if steps else folder
    if (last / "adapter_config.json").is_file():
        raise ModelError(
            f"{last} is a PEFT adapter, whose model cannot be told from the folder alone; score it from Python: "
            "VoGScorer(peft_model).score(dataset, snapshots)"
        )
    if not (last / "config.json").is_file():
        raise ModelError(
            f"{name} holds no model (no config.json, nor a checkpoint-<step> with one); pass a model folder or a Hub id"
        )
    return str(last)


def load_model(name: str, *, revision: str | None = None) -> "nn.Module":
    """The model of a folder or Hub id, of the class that its configuration names, from safetensors.

    Raises:
        ModelError: There is none, it is no classifier or regression of transformers, or its weights are pickled.
    """
    import transformers
    from transformers import AutoConfig, PreTrainedModel

    options: dict[str, Any] = {"revision": revision, "trust_remote_code": False}  # else a terminal is asked
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except UNREADABLE as error:
        raise ModelError(f"the model {name} cannot be opened: {_line(error)}") from error
    architecture = next(iter(config.architectures or []), None)
    kind: Any = getattr(transformers, str(architecture), None)
    # A class of the library itself: an Auto class would look for another one in the folder's own code.
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
    """How rows become inputs: a deterministic transform, and how a batch is made of its rows.

    Attributes:
        processor: The image processor, tokenizer or feature extractor.
        kind: ``"image"``, ``"text"`` or ``"audio"``.
        inputs: Column, or two columns of texts.
        label: Column of the labels; None: the data set has none.
        mode: Of images: ``"RGB"`` or ``"L"``.
        max_length: Of texts, in tokens.
        numbers: The model's numbers of classes by stored label; None: the labels are such numbers.
        class_names: The model's names of its classes.
    """

    processor: Any
    kind: str
    inputs: tuple[str, ...]
    label: str | None
    mode: str = "RGB"
    max_length: int | None = None
    numbers: Mapping[Any, int] | None = None
    class_names: list[str] | None = None

    def __call__(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Some rows as inputs and labels, a list for each."""
        made = {"image": self._images, "text": self._texts, "audio": self._sounds}[self.kind](rows)
        return made if self.label is None else {**made, self.label: self._labels(rows[self.label])}

    @property
    def takes_single_rows(self) -> bool:
        """Whether texts of different lengths cannot share a batch, because the tokenizer has no padding token."""
        return self.kind == "text" and getattr(self.processor, "pad_token", None) is None

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows of the transform as a batch; texts and sounds are padded to the longest."""
        from transformers import DataCollatorWithPadding, default_data_collator

        inputs = [{name: value for name, value in row.items() if name != self.label} for row in rows]
        stacks = self.kind == "image" or self.takes_single_rows
        pad = default_data_collator if stacks else DataCollatorWithPadding(self.processor)
        if self.label not in LABEL_NAMES:  # then the scorer takes it from the rows, by its name
            return dict(pad(inputs))
        return {**pad(inputs), **default_data_collator([{self.label: row[self.label]} for row in rows])}

    def described(self) -> dict[str, Any]:
        """For the manifest: what cannot be told from the scores."""
        return {
            "processor": type(self.processor).__qualname__,
            "input_columns": list(self.inputs),
            "label_column": self.label,
            **({"mode": self.mode} if self.kind == "image" else {}),
            **({"max_length": self.max_length} if self.kind == "text" else {}),
        }

    def _images(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        images = [_eight_bits(_image(value, self.inputs[0])).convert(self.mode) for value in rows[self.inputs[0]]]
        options: dict[str, Any] = {}
        if self.mode == "L":  # older processors take no grey pictures but as arrays with a channel
            images = [np.array(image)[..., None] for image in images]
            options["input_data_format"] = "channels_last"
        try:
            return {"pixel_values": list(self.processor(images, return_tensors="pt", **options)["pixel_values"])}
        except ValueError as error:
            raise DataError(
                f"{type(self.processor).__name__} makes no batch of these images ({_line(error)}); see --processor"
            ) from error

    def _texts(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[name] for name in self.inputs]
        return dict(self.processor(*texts, truncation=self.max_length is not None, max_length=self.max_length))

    def _sounds(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        waves = [_wave(value) for value in rows[self.inputs[0]]]
        return dict(self.processor(waves, sampling_rate=self.processor.sampling_rate))

    def _labels(self, values: list[Any]) -> list[Any]:
        """Labels as the model numbers them; None, NaN, -1 and -100 are no label."""
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
    """The transform of a data set for a model.

    Args:
        model: Tells what it eats by its main input.
        dataset: Tells which columns there are.
        processor: Folder or Hub id that the processor is loaded from.
        revision: Of the processor on the Hub.
        input_columns: Names of the image, the text (or two texts) or the sound; default: by their types.
        label_column: Name of the label; default: by its usual names, else the only column of classes.
        max_length: Longer texts are cut; default: at what tokenizer and model can take.

    Raises:
        ConfigError: A column that does not exist, or a choice that has to be made.
        ModelError: There is no processor.
        DataError: Classes whose numbers are not the model's.
    """
    kind = _kind_of(model)
    for name in (*input_columns, *filter(None, [label_column])):
        if name not in dataset.column_names:
            raise ConfigError(f"the data set has no column {name!r}; it has {', '.join(dataset.column_names)}")
    label = label_column or _find_label(dataset)
    inputs = tuple(input_columns) or (_find_input(dataset, kind, label),)
    if len(inputs) > (2 if kind == "text" else 1):
        raise ConfigError(
            f"a model of {kind} takes {'one or two columns' if kind == 'text' else 'one column'}, got {inputs}"
        )
    if max_length is not None and kind != "text":
        raise ConfigError(f"--max-length is of texts, and this model takes {kind}; leave it out")
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
    """The data set with the transform; sounds at the sampling rate of the feature extractor."""
    from datasets import Audio, ClassLabel, Features

    name = preparation.inputs[0]
    if preparation.kind == "audio" and isinstance(dataset.features[name], Audio):
        dataset = dataset.cast_column(name, Audio(sampling_rate=preparation.processor.sampling_rate))
    made = dataset.with_transform(preparation)
    if preparation.numbers is not None and isinstance(made.features[preparation.label], ClassLabel):
        # The transform makes the model's numbers of the stored ones, so the names of classes are the model's, too.
        made.info.features = Features({**made.features, preparation.label: ClassLabel(names=preparation.class_names)})
    return made


def _kind_of(model: "nn.Module") -> str:
    name = str(model.main_input_name)
    kinds = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}
    if name not in kinds:
        raise ModelError(
            f"vog-hf score makes inputs of {', '.join(kinds)}, and this model takes {name!r}; use VoGScorer"
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
            f"{name} has no {what}; name the folder or Hub id that has it with --processor ({_line(error):.200})"
        ) from error


def _require_padding(tokenizer: Any, config: Any) -> None:
    """Give the tokenizer the model's padding token where it names none.

    Raises:
        ModelError: The model has none, either.
    """
    if tokenizer.pad_token is not None:
        return
    if config.pad_token_id is None:
        raise ModelError(
            "neither tokenizer nor model has a padding token, so that texts of different lengths make no batch; set "
            "pad_token in the tokenizer and pad_token_id in the model's config.json as in the training"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)


def _require_tokens(dataset: "Dataset", inputs: Sequence[str], tokenizer: Any) -> None:
    """Raise DataError where a text is empty and the tokenizer adds no tokens of its own, so that a row has none."""
    if len(tokenizer("")["input_ids"]):
        return
    first = 0
    for part in dataset.with_format("arrow").select_columns(list(inputs)).iter(ROWS_AT_ONCE):
        texts = zip(*(part.column(name).to_pylist() for name in inputs), strict=True)
        empty = next((row for row, row_texts in enumerate(texts, first) if not "".join(row_texts).strip()), None)
        if empty is not None:
            raise DataError(
                f"row {empty:,} has an empty text in column {inputs[0]!r}, which makes no tokens; leave it out"
            )
        first += len(part)


def _find_input(dataset: "Dataset", kind: str, label: str | None) -> str:
    from datasets import Audio, Image, Value

    features = {name: feature for name, feature in dataset.features.items() if name != label}
    if kind == "text":
        found = [n for n, f in features.items() if isinstance(f, Value) and f.dtype in ("string", "large_string")]
    else:
        found = [n for n, f in features.items() if isinstance(f, Image if kind == "image" else Audio)]
    if len(found) != 1:
        which = f"several columns of {kind} ({', '.join(found)})" if found else f"no column of {kind}"
        pairs = ", twice for pairs of texts" if kind == "text" and len(found) > 1 else ""
        raise ConfigError(f"the data set has {which}; name one of {', '.join(features)} with --input-column{pairs}")
    return found[0]


def _find_label(dataset: "Dataset") -> str | None:
    from datasets import ClassLabel

    usual = [name for name in LABEL_NAMES if name in dataset.column_names]
    if usual:
        return usual[0]
    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if len(classes) > 1:
        raise ConfigError(
            f"the data set has several columns of classes ({', '.join(classes)}); name one with --label-column"
        )
    return classes[0] if classes else None


def _require_inputs(dataset: "Dataset", inputs: Sequence[str]) -> None:
    """Raise DataError where a row has no image, text or sound; nothing is decoded."""
    stored = dataset.with_format("arrow")
    for name in inputs:
        first = 0
        for part in stored.select_columns([name]).iter(ROWS_AT_ONCE):
            column = part.column(name)
            if column.null_count:
                row = first + column.is_null().index(True).as_py()
                raise DataError(
                    f"row {row:,} has nothing in column {name!r}; leave out the rows without one, or fill them"
                )
            first += len(column)


def _max_length(tokenizer: Any, model: "nn.Module", wanted: int | None) -> int | None:
    """Tokens beyond which texts are cut; None where nothing says.

    Raises:
        ConfigError: The model has no positions for as many tokens as are wanted.
    """
    positions = n_positions(model, tokenizer)
    if wanted is not None and positions is not None and wanted > positions:
        raise ConfigError(
            f"--max-length {wanted} is more than the {positions} tokens that the model has positions for; lower it"
        )
    if wanted is not None:
        return wanted
    limits = [tokenizer.model_max_length, positions]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNBOUNDED]
    return min(known, default=None)


def n_positions(model: "nn.Module", tokenizer: Any) -> int | None:
    """How many tokens a model has learned positions for; None: they are relative, so there is no end of them.

    A table of positions is what a short text reads at consecutive numbers. Where the first of them is tells how many
    are left: RoBERTa reads from ``padding_idx + 1`` on, OPT and BART from 2.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    batch = tokenizer(["a a a a"], return_tensors="pt")
    tokens, pad = batch["input_ids"], getattr(model.config, "pad_token_id", None)
    if pad is not None:
        tokens = tokens.masked_fill(tokens == pad, 0 if pad else 1)  # a word may be unknown, and so read as padding
    n_tokens, limits = tokens.shape[1], []

    class Reads(TorchDispatchMode):
        """Notes each table that is read at consecutive numbers, one for each token."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.embedding.default:
                table, rows = args[0], args[1].flatten()[:n_tokens]
                if n_tokens > 1 and len(rows) == n_tokens and bool((rows.diff() == 1).all()):
                    limits.append(len(table) - int(rows[0]))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Reads():
        model(input_ids=tokens, attention_mask=batch["attention_mask"])
    return min(limits, default=None)


def _image(value: Any, column: str) -> Any:
    if not hasattr(value, "convert"):
        raise DataError(
            f"column {column!r} holds values of type {type(value).__name__}, expected images; see --input-column"
        )
    return value


def _eight_bits(image: Any) -> Any:
    """An image that conversion does not clip; raises where it has more than 8 bits, scaled in training in some way."""
    if not image.mode.startswith(("I", "F")):
        return image
    low, high = image.getextrema()
    if low < 0 or high > MOST_OF_8_BITS or image.mode == "F":
        raise DataError(
            f"an image of mode {image.mode!r} has values from {low:g} to {high:g}, expected 0 to 255: conversion to 8 "
            "bits would clip it, and how training scaled it is not known; store the images in 8 bits as they were "
            "scaled for training, or score from Python: VoGScorer(...).score(dataset.with_transform(...), ...)"
        )
    return image


def _wave(value: Any) -> Any:
    """``[samples]`` of a decoded sound, or of a list of numbers."""
    return np.asarray(value if isinstance(value, (list, np.ndarray)) else value["array"], dtype=np.float32)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400].rstrip(".")
