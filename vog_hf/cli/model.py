"""A model by its name, and from its processor the transform that turns rows into its inputs."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vog_hf.errors import ConfigError, DataError, ModelError, SnapshotError
from vog_hf.gradients import LABEL_NAMES
from vog_hf.snapshots import in_order

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

logger = logging.getLogger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HEADS = ("ImageClassification", "SequenceClassification", "AudioClassification")  # regressions are of these, too
TEXT_COLUMNS = ("text", "sentence", "content")
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
            msg = f"there is no snapshot at {name}; pass model folders, .safetensors files or a pattern in quotes"
            raise SnapshotError(msg)
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
        msg = (
            f"{last} is a PEFT adapter, whose model cannot be told from the folder alone; score it from Python: "
            "VoGScorer(peft_model).score(dataset, snapshots)"
        )
        raise ModelError(msg)
    if not (last / "config.json").is_file():
        msg = (
            f"{name} holds no model (no config.json, nor a checkpoint-<step> with one); pass a model folder or a Hub id"
        )
        raise ModelError(msg)
    return str(last)


def load_model(name: str, *, revision: str | None = None) -> "nn.Module":
    """The model of a folder or Hub id, of the class that its configuration names, from safetensors.

    Raises:
        ModelError: There is none, it is no classifier or regression of transformers, or its weights are pickled.
    """
    import transformers
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)  # else it asks
    except (OSError, ValueError) as error:
        msg = f"the model {name} cannot be opened: {_line(error)}"
        raise ModelError(msg) from error
    architecture = next(iter(config.architectures or []), None)
    kind = getattr(transformers, architecture or "", None)
    if kind is None or not any(head in str(architecture) for head in HEADS):
        msg = (
            f"vog-hf score scores classifiers and regressions of transformers, and {name} is a "
            f"{architecture or 'model without architectures in its config.json'}; score others from Python with "
            "VoGScorer"
        )
        raise ModelError(msg)
    try:
        return kind.from_pretrained(name, revision=revision, config=config, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        msg = f"the weights of {name} cannot be loaded (as safetensors): {_line(error)}"
        raise ModelError(msg) from error


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
        numbers: Class numbers of labels that are texts.
    """

    processor: Any
    kind: str
    inputs: tuple[str, ...]
    label: str | None
    mode: str = "RGB"
    max_length: int | None = None
    numbers: Mapping[str, int] | None = None

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
        images = [_image(value, self.inputs[0]).convert(self.mode) for value in rows[self.inputs[0]]]
        options: dict[str, Any] = {}
        if self.mode == "L":  # older processors take no grey pictures but as arrays with a channel
            images = [np.array(image)[..., None] for image in images]
            options["input_data_format"] = "channels_last"
        try:
            return {"pixel_values": list(self.processor(images, return_tensors="pt", **options)["pixel_values"])}
        except ValueError as error:
            msg = f"{type(self.processor).__name__} makes no batch of these images ({_line(error)}); see --processor"
            raise DataError(msg) from error

    def _texts(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[name] for name in self.inputs]
        return dict(self.processor(*texts, truncation=self.max_length is not None, max_length=self.max_length))

    def _sounds(self, rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        waves = [_wave(value) for value in rows[self.inputs[0]]]
        return dict(self.processor(waves, sampling_rate=self.processor.sampling_rate))

    def _labels(self, values: list[Any]) -> list[Any]:
        if self.numbers is None:
            return values
        unknown = next((value for value in values if value is not None and value not in self.numbers), None)
        if unknown is not None:
            msg = (
                f"label column {self.label!r} holds {unknown!r}, which is no class of the model "
                f"({', '.join(map(str, list(self.numbers)[:10]))}); score the data that it was trained on"
            )
            raise DataError(msg)
        return [None if value is None else self.numbers[value] for value in values]


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
            msg = f"the data set has no column {name!r}; it has {', '.join(dataset.column_names)}"
            raise ConfigError(msg)
    label = label_column or _find_label(dataset)
    inputs = tuple(input_columns) or (_find_input(dataset, kind, label),)
    if len(inputs) > (2 if kind == "text" else 1):
        msg = f"a model of {kind} takes {'one or two columns' if kind == 'text' else 'one column'}, got {inputs}"
        raise ConfigError(msg)
    if max_length is not None and kind != "text":
        msg = f"--max-length is of texts, and this model takes {kind}; leave it out"
        raise ConfigError(msg)
    loaded = _load_processor(kind, processor, revision)
    config: Any = model.config
    return Preparation(
        loaded,
        kind,
        inputs,
        label,
        mode="L" if getattr(config, "num_channels", 3) == 1 else "RGB",
        max_length=_max_length(loaded, config, max_length) if kind == "text" else None,
        numbers=_class_numbers(dataset, label, config),
    )


def prepared(dataset: "Dataset", preparation: Preparation) -> "Dataset":
    """The data set with the transform; sounds at the sampling rate of the feature extractor."""
    from datasets import Audio

    name = preparation.inputs[0]
    if preparation.kind == "audio" and isinstance(dataset.features[name], Audio):
        dataset = dataset.cast_column(name, Audio(sampling_rate=preparation.processor.sampling_rate))
    return dataset.with_transform(preparation)


def _kind_of(model: "nn.Module") -> str:
    name = str(model.main_input_name)
    kinds = {"pixel_values": "image", "input_ids": "text", "input_values": "audio", "input_features": "audio"}
    if name not in kinds:
        msg = f"vog-hf score makes inputs of {', '.join(kinds)}, and this model takes {name!r}; use VoGScorer"
        raise ModelError(msg)
    return kinds[name]


def _load_processor(kind: str, name: str, revision: str | None) -> Any:
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    loader: Any = {"image": AutoImageProcessor, "text": AutoTokenizer, "audio": AutoFeatureExtractor}[kind]
    try:
        return loader.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        what = {"image": "image processor", "text": "tokenizer", "audio": "feature extractor"}[kind]
        msg = f"{name} has no {what}; name the folder or Hub id that has it with --processor ({_line(error):.200})"
        raise ModelError(msg) from error


def _find_input(dataset: "Dataset", kind: str, label: str | None) -> str:
    from datasets import Audio, Image, Value

    features = {name: feature for name, feature in dataset.features.items() if name != label}
    if kind == "text":
        found = [n for n, f in features.items() if isinstance(f, Value) and f.dtype in ("string", "large_string")]
        usual = [name for name in TEXT_COLUMNS if name in found]
        found = usual[:1] or found
    else:
        found = [n for n, f in features.items() if isinstance(f, Image if kind == "image" else Audio)]
    if len(found) != 1:
        which = f"several columns of {kind} ({', '.join(found)})" if found else f"no column of {kind}"
        msg = f"the data set has {which}; name one of {', '.join(features)} with --input-column"
        raise ConfigError(msg)
    return found[0]


def _find_label(dataset: "Dataset") -> str | None:
    from datasets import ClassLabel

    usual = [name for name in LABEL_NAMES if name in dataset.column_names]
    if usual:
        return usual[0]
    classes = [name for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)]
    if len(classes) > 1:
        msg = f"the data set has several columns of classes ({', '.join(classes)}); name one with --label-column"
        raise ConfigError(msg)
    return classes[0] if classes else None


def _class_numbers(dataset: "Dataset", label: str | None, config: Any) -> Mapping[str, int] | None:
    """Numbers of labels that are texts; labels that are numbers are the model's own, or refused."""
    from datasets import ClassLabel, Value

    feature = None if label is None else dataset.features[label]
    numbers = dict(config.label2id or {})
    if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        return numbers
    if isinstance(feature, ClassLabel) and set(feature.names) == set(numbers):
        moved = next((name for i, name in enumerate(feature.names) if numbers[name] != i), None)
        if moved is not None:
            msg = (
                f"class {moved!r} has number {feature.str2int(moved)} in the data set and {numbers[moved]} in the "
                "model: the same names in another order; save the data set after "
                f"dataset.align_labels_with_mapping(model.config.label2id, {label!r}), and score that"
            )
            raise DataError(msg)
    return None


def _max_length(tokenizer: Any, config: Any, wanted: int | None) -> int | None:
    """Tokens beyond which texts are cut; None where nothing says."""
    if wanted is not None:
        return wanted
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNBOUNDED]
    return min(known, default=None)


def _image(value: Any, column: str) -> Any:
    if not hasattr(value, "convert"):
        msg = f"column {column!r} holds values of type {type(value).__name__}, expected images; see --input-column"
        raise DataError(msg)
    return value


def _wave(value: Any) -> Any:
    """``[samples]`` of a decoded sound, or of a list of numbers."""
    return np.asarray(value if isinstance(value, (list, np.ndarray)) else value["array"], dtype=np.float32)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400].rstrip(".")
