"""Data sets and scores by the names that a person gives them on a command line."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.errors import ConfigError, DataError, OutputFolderError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from vog_hf.scores import VoGScores

READERS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
SOURCE_NAME = "source.json"  # beside scores: which data set they are of
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes

ScoresArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SCORES", help="Folder with scores: of `vog-hf score`, `VoGScores.save`, or of a VoGCallback."
    ),
]
DatasetOption = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="DATASET",
        help="Data set on the Hub, folder of save_to_disk or of images, or a parquet, csv or json file. "
        "Default: the one that `vog-hf score` has noted beside the scores.",
    ),
]
ConfigOption = Annotated[str | None, typer.Option("--config", metavar="NAME", help="Configuration of the data set.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", metavar="NAME", help="Split of the data set. Default: train.")
]
DatasetRevisionOption = Annotated[
    str | None,
    typer.Option("--dataset-revision", metavar="REVISION", help="Branch, tag or commit of a data set on the Hub."),
]


class Columns(StrEnum):
    """Which scores become columns of the data set."""

    CORE = "core"
    ALL = "all"


@dataclass(frozen=True)
class Source:
    """Which data set: what `open_dataset` takes.

    Attributes:
        name: Hub id, or path of a folder or file.
        config: Configuration.
        split: One split, as `load_dataset` names it (``"train[:10%]"``); None: ``"train"``.
        revision: Of a data set on the Hub.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return Path(self.name).expanduser().exists()

    def absolute(self) -> "Source":
        """The same from whatever folder."""
        return replace(self, name=str(Path(self.name).expanduser().resolve())) if self.is_local else self

    def public(self) -> dict[str, str | None]:
        """What may be published: of a local path just its last part."""
        return asdict(replace(self, name=Path(self.name).name) if self.is_local else self)

    def __str__(self) -> str:
        parts = [self.name, *(f"{key} {value}" for key, value in asdict(self).items() if value and key != "name")]
        return ", ".join(parts)


def quieten(*, progress: bool) -> None:
    """Switch off the progress bars of datasets and huggingface_hub, unless there is a terminal for them."""
    if progress:
        return
    import datasets
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined] # loaded on first use

    datasets.disable_progress_bars()
    disable_progress_bars()


def open_dataset(source: Source) -> "Dataset":
    """One split of a data set, without a transform.

    Raises:
        DataError: There is no such data set, configuration or split, or it cannot be read.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    path = Path(source.name).expanduser()
    try:
        if path.is_dir() and any((path / name).is_file() for name in SAVED):
            return _split_of(datasets.load_from_disk(str(path)), source)
        return _loaded(source, path)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        msg = f"the data set {source} cannot be opened: {reason:.400}{_advice(source)}"
        raise DataError(msg) from error


def open_splits(source: Source, names: Iterable[str]) -> "DatasetDict":
    """The splits that have scores, by name."""
    from datasets import DatasetDict

    return DatasetDict({name: open_dataset(replace(source, split=name)) for name in names})


def _loaded(source: Source, path: Path) -> "Dataset":
    from datasets import load_dataset

    split = source.split or "train"
    if not path.exists():
        return load_dataset(source.name, source.config, split=split, revision=source.revision)
    if source.revision is not None:
        msg = f"--dataset-revision is of a data set on the Hub, and {path} is on this machine; leave it out"
        raise DataError(msg)
    if path.is_dir():
        return load_dataset(str(path), source.config, split=split)
    if path.suffix not in READERS:
        msg = f"--dataset {path} must be a folder or one of {', '.join('*' + suffix for suffix in READERS)}"
        raise DataError(msg)
    return load_dataset(READERS[path.suffix], data_files={"train": str(path)}, split=split)


def _split_of(saved: Any, source: Source) -> Any:
    """Of what `load_from_disk` has found."""
    if not isinstance(saved, Mapping):
        name = None if saved.split is None else str(saved.split)
        if source.split not in (None, name):
            msg = f"{source.name} holds one data set (split {name}), not --split {source.split}; leave --split out"
            raise DataError(msg)
        return saved
    split = source.split or "train"
    if split not in saved:
        msg = f"{source.name} has the splits {', '.join(map(str, saved))}, not {split!r}; name one with --split"
        raise DataError(msg)
    return saved[split]


def _advice(source: Source) -> str:
    if source.is_local:
        return "; check --config and --split"
    if source.name.count("/") <= 1 and not source.name.startswith((".", "/", "~")):
        return "; it is no file or folder here, so it was looked for on the Hub: check --dataset, --config and --split"
    return "; there is no such file or folder"


def find_scores(folder: Path) -> "VoGScores | dict[str, VoGScores]":
    """The scores in a folder, in the folder of a callback or of its training; by split where there are several.

    Raises:
        OutputFolderError: There are none.
    """
    from vog_hf.scores import MANIFEST_NAME, VoGScores

    for place in (folder, folder / "scores", folder / "_vog" / "scores"):
        if (place / MANIFEST_NAME).is_file():
            return VoGScores.load(place)
        splits = sorted(path.parent for path in place.glob(f"*/{MANIFEST_NAME}"))
        if splits:
            return {split.name: VoGScores.load(split) for split in splits}
    if not folder.exists():
        msg = f"there is no folder {folder}; pass a folder that `vog-hf score` or a VoGCallback has filled"
        raise OutputFolderError(msg)
    msg = f"{folder} holds no finished scores (no {MANIFEST_NAME}); score into it, or pass another folder"
    raise OutputFolderError(msg)


def one_split(folder: Path) -> "VoGScores":
    """The scores in a folder that holds those of one data set.

    Raises:
        OutputFolderError: There are none, or those of several splits.
    """
    scores = find_scores(folder)
    if isinstance(scores, dict):
        msg = f"{folder} holds scores of the splits {', '.join(scores)}; pass the folder of one of them"
        raise OutputFolderError(msg)
    return scores


def note_source(folder: Path, source: Source) -> None:
    """Write beside scores which data set they are of, so that `noted_source` finds it; not part of the scores."""
    from vog_hf.files import write_json

    write_json(folder / SOURCE_NAME, asdict(source.absolute()))


def noted_source(folder: Path) -> Source | None:
    """What `note_source` wrote; None where nothing is noted."""
    from vog_hf.files import read_json

    if not (folder / SOURCE_NAME).is_file():
        return None
    try:
        return Source(**read_json(folder / SOURCE_NAME))
    except TypeError as error:
        msg = f"{folder / SOURCE_NAME} is not what vog-hf writes; delete it and name the data set with --dataset"
        raise OutputFolderError(msg) from error


def source_for(
    folder: Path, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> Source:
    """The data set that options name, else the one that is noted beside scores.

    Raises:
        ConfigError: No data set is named, and none is noted.
    """
    if dataset is not None:
        return Source(dataset, config, split, revision)
    noted = noted_source(folder)
    if noted is None:
        msg = f"which data set was scored is not noted in {folder}; name it with --dataset (and --config, --split)"
        raise ConfigError(msg)
    return Source(noted.name, config or noted.config, split or noted.split, revision or noted.revision)


def scored_rows(source: Source, scores: "VoGScores | dict[str, VoGScores]", *, progress: bool = False) -> Any:
    """The data set of scores, or a `DatasetDict` where they are of several splits."""
    quieten(progress=progress)
    return open_splits(source, scores) if isinstance(scores, dict) else open_dataset(source)
