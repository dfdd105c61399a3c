"""Models and snapshots as named on the command line."""

import logging
import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vog_hf.errors import ModelError, SnapshotError
from vog_hf.snapshots import in_order

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)


CHECKPOINT = re.compile(r"checkpoint-(\d+)")
HEADS = (
    "ImageClassification",
    "SequenceClassification",
    "AudioClassification",  # regressions included
    "ForQuestionAnswering",
    "ForSemanticSegmentation",
    "ForCTC",
)
# Errors of transformers for unreadable files; the last three for classes that it does not have.
UNREADABLE = (OSError, ValueError, AttributeError, KeyError, TypeError)


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
        ModelError: No model, not a model of transformers with one of these heads, or pickled weights.
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
        raise ModelError(f"the model {name} cannot be opened: {one_line(error)}") from error
    architecture = next(iter(config.architectures or []), None)
    kind: Any = getattr(transformers, str(architecture), None)
    # A class of transformers itself: an Auto class could run code of the folder.
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if not is_model or not any(head in str(architecture) for head in HEADS):
        raise ModelError(
            "vog-hf score takes classification, regression, question answering, semantic segmentation and CTC of "
            f"transformers, and {name} is a {architecture or 'model without architectures in its config.json'}; score "
            "others from Python with VoGScorer"
        )
    try:
        return kind.from_pretrained(name, config=config, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the weights of {name} cannot be loaded (as safetensors): {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The message of an error on one line, shortened."""
    return " ".join(str(error).split())[:400].rstrip(".")
