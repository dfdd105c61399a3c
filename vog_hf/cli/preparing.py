"""From a model and a dataset to the transform between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vog_hf.cli.columns import require_inputs
from vog_hf.cli.heads import for_preferences, head_of
from vog_hf.cli.model_inputs import Preparation
from vog_hf.cli.models import UNREADABLE, Architecture, one_line
from vog_hf.cli.token_limits import require_tokens, token_limit
from vog_hf.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from vog_hf.data.column_kinds import Kind


@dataclass(frozen=True)
class InputColumns:
    """Inputs that a transform makes of a dataset, known before a model is loaded.

    Attributes:
        head: Transform for the model's head.
        kind: ``"image"``, ``"text"`` or ``"audio"``.
        inputs: Input columns.
        label: Label column; None: the dataset has none, or the transform makes labels of the inputs.
    """

    head: type[Preparation]
    kind: "Kind"
    inputs: tuple[str, ...]
    label: str | None


def choose_columns(
    architecture: Architecture, dataset: "Dataset", input_columns: Sequence[str], label_column: str | None
) -> InputColumns:
    """The columns that a model takes.

    Args:
        architecture: Model; its main input determines the kind of data.
        dataset: Dataset to transform.
        input_columns: Input columns; default: found by name and type.
        label_column: Label column; default: the usual names, else the only one of its type.

    Raises:
        ConfigError: A column does not exist, or several could be meant.
        ModelError: A head without a transform.
    """
    head = head_of(architecture)
    kind = head.takes or _kind_of(architecture)
    for name in (*input_columns, *filter(None, [label_column])):
        if name not in dataset.column_names:
            raise ConfigError(f"the dataset has no column {name!r}; it has {', '.join(dataset.column_names)}")
    head = for_preferences(head, architecture, dataset, kind=kind, inputs=input_columns, label=label_column)
    inputs, label = head.find_columns(dataset, kind, tuple(input_columns), label_column)
    most = head.most_inputs(kind)
    if most is not None and len(inputs) > most:
        raise ConfigError(f"a model of {kind} takes {'one or two columns' if most > 1 else 'one column'}, got {inputs}")
    return InputColumns(head, kind, inputs, label)


def prepare(
    model: "nn.Module",
    dataset: "Dataset",
    columns: InputColumns,
    *,
    processor: str,
    revision: str | None = None,
    max_length: int | None = None,
    skips_rows: bool = False,
) -> Preparation:
    """The transform of a dataset for a model.

    Args:
        model: Model.
        dataset: Dataset to transform.
        columns: Columns and transform for the model's head.
        processor: Folder or Hub id of the processor.
        revision: Revision of the processor on the Hub.
        max_length: Maximum length of texts in tokens; default: the limit of tokenizer and model.
        skips_rows: Whether rows without an input are skipped when they are read, and so are not refused here.

    Raises:
        ConfigError: Texts longer than the model has positions for.
        ModelError: There is no processor.
        DataError: The classes of the dataset do not match the model's.
    """
    head, kind, inputs, label = columns.head, columns.kind, columns.inputs, columns.label
    if not skips_rows:
        require_inputs(dataset, inputs)
    config: Any = model.config
    loaded = load_processor(kind, processor, revision)
    limits: dict[str, Any] = {}
    if kind == "text":
        head.pad(loaded, config)
        if not skips_rows:
            require_tokens(dataset, inputs, loaded)
        limits["max_length"] = token_limit(loaded, model, max_length)
    own = head.own_options(dataset, label, model, partial(load_processor, "text", processor, revision))
    mode = "L" if getattr(config, "num_channels", 3) == 1 else "RGB"
    preparation = head(loaded, kind, inputs, label, mode=mode, **limits, **own)
    preparation.check(dataset)
    return preparation


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


def _kind_of(architecture: Architecture) -> "Kind":
    name = architecture.model_class.main_input_name
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


def load_processor(kind: str, name: str, revision: str | None) -> Any:
    """Image processor, tokenizer or feature extractor; raises ModelError where there is none."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    loader: Any = {"image": AutoImageProcessor, "text": AutoTokenizer, "audio": AutoFeatureExtractor}[kind]
    try:
        return loader.from_pretrained(name, revision=revision, trust_remote_code=False)
    except UNREADABLE as error:
        what = {"image": "image processor", "text": "tokenizer", "audio": "feature extractor"}[kind]
        raise ModelError(
            f"{name} has no {what}; pass the folder or Hub id of one with --processor ({one_line(error):.200})"
        ) from error
