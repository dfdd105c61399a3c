"""Models and snapshots as named on the command line."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vog_hf.errors import ModelError, SnapshotError
from vog_hf.scores.manifest import CHECKPOINT
from vog_hf.snapshots import in_order

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Architecture:
    """A model before its weights are loaded.

    Attributes:
        name: Folder or Hub id.
        revision: Revision on the Hub.
        config: Configuration.
        model_class: Class of transformers that the configuration names.
    """

    name: str
    revision: str | None
    config: Any
    model_class: Any


def read_architecture(name: str, *, revision: str | None = None) -> Architecture:
    """Read the configuration of a folder or Hub id, and find the class that it names.

    Raises:
        ModelError: No model, or not one of transformers.
    """
    import transformers
    from transformers import AutoConfig, PreTrainedModel

    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except UNREADABLE as error:
        raise ModelError(f"the model {name} cannot be opened: {one_line(error)}") from error
    architecture = next(iter(config.architectures or []), None)
    model_class: Any = getattr(transformers, str(architecture), None)
    # A class of transformers itself: an Auto class could run code of the folder.
    if not (isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)):
        raise ModelError(
            f"vog-hf score takes models of transformers, and {name} is a "
            f"{architecture or 'model without architectures in its config.json'}; score it from Python with VoGScorer"
        )
    return Architecture(name, revision, config, model_class)


def load_weights(architecture: Architecture) -> "nn.Module":
    """Load a model from safetensors.

    Raises:
        ModelError: There are none.
    """
    # Without trust_remote_code transformers asks on a terminal.
    options = {"revision": architecture.revision, "trust_remote_code": False, "use_safetensors": True}
    try:
        model: nn.Module = architecture.model_class.from_pretrained(
            architecture.name, config=architecture.config, **options
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"the weights of {architecture.name} cannot be loaded (as safetensors): {one_line(error)}"
        ) from error
    return model


def one_line(error: Exception) -> str:
    """The message of an error on one line, shortened."""
    return " ".join(str(error).split())[:400].rstrip(".")
