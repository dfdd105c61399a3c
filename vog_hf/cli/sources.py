"""Data sets and scores by the names that a person gives them on a command line."""

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vog_hf.cli.output import in_options
from vog_hf.errors import ConfigError, DataError, OutputFolderError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from vog_hf.scores.vog_scores import VoGScores

SOURCE_NAME = "source.json"  # beside scores: which data set they are of

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
TokenOption = Annotated[
    str | None,
    typer.Option("--token", metavar="TOKEN", help="Of the Hub. Default: HF_TOKEN, or what `hf auth login` stored."),
]
PrefixOption = Annotated[
    str, typer.Option(metavar="TEXT", help="Put before the names of the columns of scores, e.g. run2_.")
]
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


@contextmanager
def hub_token(token: str | None) -> Iterator[None]:
    """Whatever asks the Hub meanwhile does so with this token, where one was given."""
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
    """One split of a data set, without a transform.

    Raises:
        DataError: There is no such data set, configuration or split, or it cannot be read.
    """
    from vog_hf.data.loading import load_rows

    try:
        return load_rows(source.name, source.split, config=source.config, revision=source.revision)
    except DataError as error:
        raise DataError(f"{error}{_advice(source)}") from error


def open_splits(source: Source, names: Iterable[str]) -> "DatasetDict":
    """The splits that have scores, by name."""
    from datasets import DatasetDict

    return DatasetDict({name: open_dataset(replace(source, split=name)) for name in names})


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
    from vog_hf.scores.storage import MANIFEST_NAME
    from vog_hf.scores.vog_scores import VoGScores

    places = (folder, folder / "scores", folder / "_vog" / "scores")
    for place in places:
        if (place / MANIFEST_NAME).is_file():
            return VoGScores.load(place)
    for place in places:
        splits = sorted(path.parent for path in place.glob(f"*/{MANIFEST_NAME}"))
        if splits:
            return {split.name: VoGScores.load(split) for split in splits}
    if not folder.exists():
        raise OutputFolderError(
            f"there is no folder {folder}; pass a folder that `vog-hf score` or a VoGCallback has filled"
        )
    raise OutputFolderError(
        f"{folder} holds no finished scores (no {MANIFEST_NAME}); score into it, or pass another folder"
    )


def one_split(folder: Path) -> "VoGScores":
    """The scores in a folder that holds those of one data set.

    Raises:
        OutputFolderError: There are none, or those of several splits.
    """
    scores = find_scores(folder)
    if isinstance(scores, dict):
        raise OutputFolderError(
            f"{folder} holds scores of the splits {', '.join(scores)}; pass the folder of one of them"
        )
    return scores


def of_split(
    scores: "VoGScores | dict[str, VoGScores]", split: str | None, place: Path
) -> "VoGScores | dict[str, VoGScores]":
    """The scores of the split that was asked for, where there are those of several; all of them where none was.

    Raises:
        ConfigError: There are none of that split.
    """
    if split is None or not isinstance(scores, dict):
        return scores
    return scores[one_of(scores, split, place)]


def one_of(splits: Collection[str], split: str | None, place: Path | str) -> str:
    """The split that was asked for, else the only one that has scores.

    Raises:
        ConfigError: There is no such split, or there are several and none was asked for.
    """
    if not splits:
        raise ConfigError(
            f"{place} has no scores in this configuration; name another with --config, or `vog-hf push` scores to it"
        )
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split is None or split not in splits:
        got = "none" if split is None else repr(split)
        raise ConfigError(f"{place} holds scores of the splits {', '.join(splits)}; choose one with --split, got {got}")
    return split


def note_source(folder: Path, source: Source) -> None:
    """Write beside scores which data set they are of, so that `noted_source` finds it; not part of the scores."""
    from vog_hf.runtime.files import write_json

    write_json(folder / SOURCE_NAME, asdict(source.absolute()))


def noted_source(folder: Path) -> Source | None:
    """What `note_source` wrote; None where nothing is noted."""
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
    """The data set that options name, else the one that is noted beside scores.

    Raises:
        ConfigError: No data set is named, and none is noted.
    """
    if dataset is not None:
        return Source(dataset, config, split, revision)
    noted = noted_source(folder)
    if noted is None:
        raise ConfigError(
            f"which data set was scored is not noted in {folder}; name it with --dataset (and --config, --split)"
        )
    return Source(noted.name, config or noted.config, split or noted.split, revision or noted.revision)


def scored_rows(source: Source, scores: "VoGScores | dict[str, VoGScores]", *, progress: bool = False) -> Any:
    """The data set of scores, or a `DatasetDict` where they are of several splits."""
    quieten(progress=progress)
    return open_splits(source, scores) if isinstance(scores, dict) else open_dataset(source)


def require_new(path: Path | None, option: str) -> None:
    """Raise OutputFolderError where a data set would replace something."""
    if path is not None and path.exists():
        raise OutputFolderError(f"{option} {path} exists already; choose another path, or delete it")


@contextmanager
def saved(dataset: "Dataset", path: Path | None) -> Iterator[None]:
    """Write a data set as a parquet file, where the path is called so, or a folder; nothing without a path.

    It is written before what is done meanwhile, and it is in its place only once that went well: whole or not at all.
    """
    from vog_hf.runtime.files import explained_disk_errors

    if path is None:
        yield
        return
    with ExitStack() as kept:
        with in_options(output_dir="path"), explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = kept.enter_context(TemporaryDirectory(dir=path.parent, prefix=f".{path.name}."))
            written = Path(folder) / path.name
            if path.suffix == ".parquet":
                dataset.to_parquet(written)
            else:
                dataset.save_to_disk(str(written))
        yield
        written.rename(path)


@dataclass(frozen=True)
class Scored:
    """Scores and their rows.

    Attributes:
        title: Name, for the page.
        journal: Where decisions go unless another file is named.
        is_from_hub: Whether the rows are somebody's on the Hub.
        split: Name of the split, where the scores are kept by split.
    """

    scores: "VoGScores"
    dataset: Any
    title: str
    journal: Path
    is_from_hub: bool
    split: str | None = None


def open_scored(
    scored: str,
    *,
    dataset: str | None,
    config: str | None,
    split: str | None,
    revision: str | None,
    prefix: str | None = None,
) -> Scored:
    """The scores and rows that a person names: a folder with scores, a data set on disk, or one on the Hub.

    Raises:
        ConfigError: There are several splits and none was chosen, or options that do not go together.
        VoGError: There is no such thing, or it cannot be read.
    """
    from vog_hf.data.loading import is_saved

    folder = Path(scored).expanduser()
    if dataset is None and is_saved(folder):
        return _from_disk(folder, Source(scored, config, split, revision), prefix or None)
    if not folder.exists() and scored.count("/") == 1 and not scored.startswith((".", "~", "/")):
        with in_options(split="--split", config_name="--config", revision="--dataset-revision", token="--token"):  # noqa: S106 (no token)
            return _from_hub(scored, dataset=dataset, config=config, split=split, revision=revision)
    scores = find_scores(folder)
    source = source_for(folder, dataset=dataset, config=config, split=split, revision=revision)
    title = Path(source.name).name
    if not isinstance(scores, dict):
        return Scored(scores, open_dataset(source), title, _beside(folder, None), not source.is_local)
    split = one_of(scores, split, scored)
    rows, journal = open_dataset(replace(source, split=split)), _beside(folder, split if len(scores) > 1 else None)
    return Scored(scores[split], rows, f"{title}, {split}", journal, not source.is_local, split)


def _from_disk(folder: Path, source: Source, prefix: str | None) -> Scored:
    from vog_hf.scores.dataset_columns import scores_from_columns

    rows = open_dataset(source)
    is_alone = not (folder / "dataset_dict.json").is_file()
    # What `load_rows` opens where no split is named: of a data set that was saved alone, its own.
    default = str(rows.split or "train").partition("[")[0].partition("+")[0] if is_alone else "train"
    journal = _beside(folder, None if source.split in (None, default) else source.split)
    split = None if is_alone else source.split or default
    return Scored(scores_from_columns(rows, prefix=prefix), rows, folder.name, journal, is_from_hub=False, split=split)


def _from_hub(
    repo_id: str, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> Scored:
    from vog_hf.hub.pull import pull_scores, pushed_splits

    scores_revision, config_name = None if dataset else revision, config or "default"
    splits = pushed_splits(repo_id, revision=scores_revision, config_name=config_name)
    split = one_of(splits, split, repo_id)
    scores: Any = pull_scores(repo_id, revision=scores_revision, config_name=config_name, split=split)
    source = Source(dataset or repo_id, config, split, revision)
    journal = _beside(Path.cwd() / repo_id.rpartition("/")[2], split if len(splits) > 1 else None)
    return Scored(scores, open_dataset(source), repo_id, journal, not source.is_local, split)


def _beside(folder: Path, split: str | None) -> Path:
    """``scores.review.jsonl`` beside the folder ``scores``: scoring again replaces that, and not the decisions.

    The name of a split is in it only where another one could have been opened: the same rows have the same journal,
    whether or not their split was named.
    """
    name = folder.resolve().name + ("" if split is None else f".{split}")
    return folder.resolve().with_name(f"{name}.review.jsonl")
