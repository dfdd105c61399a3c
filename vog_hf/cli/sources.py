"""Datasets and scores as named on the command line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.cli.output import naming_options
from vog_hf.errors import ConfigError, DataError, OutputFolderError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from vog_hf.scores.vog_scores import VoGScores

SOURCE_NAME = "source.json"  # next to scores: their dataset
OTHER_FORMATS = (".arrow", ".csv", ".feather", ".json", ".jsonl", ".tsv", ".xlsx", ".zip")  # no names for a folder

ScoresArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SCORES", help="Folder with scores, from `vog-hf score`, `VoGScores.save` or a VoGCallback."
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        help="Dataset on the Hub, folder written by save_to_disk, folder of images, or parquet, csv or json file. "
        "Default: the dataset that `vog-hf score` recorded with the scores.",
    ),
]
ConfigOption = Annotated[str | None, typer.Option("--config", metavar="NAME", help="Configuration of the dataset.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", metavar="NAME", help="Split of the dataset. Default: train.")
]
DatasetRevisionOption = Annotated[
    str | None,
    typer.Option("--dataset-revision", metavar="REVISION", help="Branch, tag or commit of a dataset on the Hub."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="Hub access token. Default: HF_TOKEN, or the token stored by `hf auth login`."
    ),
]
PrefixOption = Annotated[str, typer.Option(metavar="TEXT", help="Prefix for the names of score columns, e.g. run2_.")]
NOTHING_NEW = "Nothing was pushed: the repository already holds these rows, scores and card"
PUSH_OPTIONS = {  # by the name of the argument of `push_scored_dataset`
    "columns": "--columns",
    "config_name": "--config-name",
    "create_pr": "--create-pr",
    "prefix": "--prefix",
    "revision": "--revision",
    "scores": "SCORES",
    "scores_only": "`vog-hf push --scores-only`",
    "split": "--split-name",
    "token": "--token",
}


class Columns(StrEnum):
    """Scores that become columns of the dataset."""

    CORE = "core"
    ALL = "all"


@dataclass(frozen=True)
class Source:
    """A dataset as `open_dataset` takes it.

    Attributes:
        name: Hub id, or path of a folder or file.
        config: Configuration.
        split: Split in the notation of `load_dataset` (``"train[:10%]"``); None: ``"train"``.
        revision: Revision of a dataset on the Hub.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """True if it is on this machine."""
        return Path(self.name).expanduser().exists()

    def absolute(self) -> "Source":
        """The same source, independent of the working directory."""
        return replace(self, name=str(Path(self.name).expanduser().resolve())) if self.is_local else self

    def public(self) -> dict[str, str | None]:
        """The source for publication: only the last part of a local path."""
        return asdict(replace(self, name=Path(self.name).name) if self.is_local else self)

    def __str__(self) -> str:
        parts = [self.name, *(f"{key} {value}" for key, value in asdict(self).items() if value and key != "name")]
        return ", ".join(parts)


def quieten(*, progress: bool) -> None:
    """Disable the progress bars of datasets and huggingface_hub unless ``progress``."""
    if progress:
        return
    import datasets
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined] # loaded on first use

    datasets.disable_progress_bars()
    disable_progress_bars()


@contextmanager
def hub_token(token: str | None) -> Iterator[None]:
    """Use this token for all Hub requests in the block, if one is given."""
    before = os.environ.get("HF_TOKEN")
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        yield
    finally:
        if token is not None:
            os.environ.pop("HF_TOKEN", None)
            os.environ |= {} if before is None else {"HF_TOKEN": before}


def open_dataset(source: Source) -> "Dataset":
    """One split of a dataset, without a transform.

    Raises:
        DataError: The dataset, configuration or split does not exist or cannot be read.
    """
    from vog_hf.data.loading import load_rows

    try:
        return load_rows(source.name, source.split, config=source.config, revision=source.revision)
    except DataError as error:
        raise DataError(f"{error}{_advice(source)}") from error


def open_splits(source: Source, names: Iterable[str]) -> "DatasetDict":
    """The named splits of a dataset."""
    from datasets import DatasetDict

    return DatasetDict({name: open_dataset(replace(source, split=name)) for name in names})


def _advice(source: Source) -> str:
    if source.is_local:
        return "; check --config and --split"
    if source.name.count("/") <= 1 and not source.name.startswith((".", "/", "~")):
        return (
            "; it is not a local file or folder, so it was looked up on the Hub; check --dataset, --config and --split"
        )
    return "; there is no such file or folder"


def note_source(folder: Path, source: Source) -> None:
    """Record the dataset of scores next to them for `noted_source`; it is not part of the scores."""
    from vog_hf.runtime.files import write_json

    write_json(folder / SOURCE_NAME, asdict(source.absolute()))


def noted_source(folder: Path) -> Source | None:
    """The source that `note_source` recorded, or None."""
    from vog_hf.runtime.files import read_json
    from vog_hf.scores.manifest import SOURCE, fault_in

    if not (folder / SOURCE_NAME).is_file():
        return None
    noted = read_json(folder / SOURCE_NAME)
    unknown = {*noted} - {field.name for field in fields(Source)} if isinstance(noted, dict) else None
    fault = f"unknown {sorted(unknown)}" if unknown else fault_in(noted, SOURCE, "it")
    if fault is not None:
        raise OutputFolderError(
            f"{folder / SOURCE_NAME} is not what vog-hf writes ({fault}); delete it and pass --dataset"
        )
    return Source(**noted)


def source_for(
    folder: Path, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> Source:
    """The dataset given by options, else the one recorded with the scores.

    Raises:
        ConfigError: No dataset is given, and none is recorded.
    """
    if dataset is not None:
        return Source(dataset, config, split, revision)
    noted = noted_source(folder)
    if noted is None:
        raise ConfigError(f"{folder} does not record which dataset was scored; pass --dataset (and --config, --split)")
    return Source(noted.name, config or noted.config, split or noted.split, revision or noted.revision)


def scored_rows(source: Source, scores: "VoGScores | dict[str, VoGScores]", *, progress: bool = False) -> Any:
    """The dataset of scores, or a `DatasetDict` for several splits."""
    quieten(progress=progress)
    return open_splits(source, scores) if isinstance(scores, dict) else open_dataset(source)


def require_new(path: Path | None, option: str) -> None:
    """Raise if a dataset cannot be written to a path: it exists, or its suffix is that of another kind of file."""
    if path is None:
        return
    if path.exists():
        raise OutputFolderError(f"{option} {path} already exists; choose another path, or delete it")
    if path.suffix.lower() in OTHER_FORMATS:
        instead = path.with_suffix(".parquet")
        raise ConfigError(f"{option} takes a *.parquet file or a folder, got {path}; choose {instead}")


@contextmanager
def saved(dataset: "Dataset", path: Path | None) -> Iterator[None]:
    """Write a dataset with `save_dataset`; do nothing without a path.

    The dataset is written before the block and moved into place after it succeeds: whole or not at all.
    """
    from vog_hf.data.saving import save_dataset
    from vog_hf.runtime.files import explained_disk_errors

    if path is None:
        yield
        return
    with ExitStack() as stack:
        with naming_options(output_dir="path"), explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(TemporaryDirectory(dir=path.parent, prefix=f".{path.name}."))
            written = Path(folder) / path.name
            save_dataset(dataset, written)
        yield
        written.rename(path)
