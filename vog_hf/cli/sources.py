"""Datasets and scores as named on the command line."""

import os
from collections.abc import Collection, Iterable, Iterator
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


def find_scores(folder: Path) -> "VoGScores | dict[str, VoGScores]":
    """The scores in a folder, in the folder of a callback or of its training; by split if there are several.

    Raises:
        OutputFolderError: The folder holds no scores.
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
            f"there is no folder {folder}; pass a folder written by `vog-hf score` or a VoGCallback"
        )
    raise OutputFolderError(
        f"{folder} holds no finished scores (no {MANIFEST_NAME}); score into it, or pass another folder"
    )


def one_split(folder: Path) -> "VoGScores":
    """The scores in a folder that holds the scores of one dataset.

    Raises:
        OutputFolderError: The folder holds no scores, or those of several splits.
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
    """The scores of one split if ``split`` is given and there are several; otherwise all scores.

    Raises:
        ConfigError: The split has no scores.
    """
    if split is None or not isinstance(scores, dict):
        return scores
    return scores[one_of(scores, split, place)]


def one_of(splits: Collection[str], split: str | None, place: Path | str) -> str:
    """The given split, else the only one with scores.

    Raises:
        ConfigError: The split does not exist, or there are several and none is given.
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
    """Raise OutputFolderError if a path exists that a dataset would replace."""
    if path is not None and path.exists():
        raise OutputFolderError(f"{option} {path} already exists; choose another path, or delete it")


@contextmanager
def saved(dataset: "Dataset", path: Path | None) -> Iterator[None]:
    """Write a dataset to a parquet file (path ending in .parquet) or a folder; do nothing without a path.

    The dataset is written before the block and moved into place after it succeeds: whole or not at all.
    """
    from vog_hf.runtime.files import explained_disk_errors

    if path is None:
        yield
        return
    with ExitStack() as stack:
        with naming_options(output_dir="path"), explained_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(TemporaryDirectory(dir=path.parent, prefix=f".{path.name}."))
            written = Path(folder) / path.name
            if path.suffix == ".parquet":
                dataset.to_parquet(written)
            else:
                dataset.save_to_disk(str(written))
        yield
        written.rename(path)


@dataclass(frozen=True)
class ScoredSource:
    """Scores with their rows.

    Attributes:
        title: Title of the page.
        journal: Default journal of decisions.
        is_from_hub: The rows come from the Hub.
        split: Name of the split, if scores are stored by split.
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
) -> ScoredSource:
    """Open scores with their rows: a folder with scores, a dataset on disk, or a dataset on the Hub.

    Raises:
        ConfigError: Several splits and none selected, or options that cannot be combined.
        VoGError: It does not exist or cannot be read.
    """
    from vog_hf.data.loading import is_saved

    folder = Path(scored).expanduser()
    if dataset is None and is_saved(folder):
        return _from_disk(folder, Source(scored, config, split, revision), prefix or None)
    if not folder.exists() and scored.count("/") == 1 and not scored.startswith((".", "~", "/")):
        with naming_options(split="--split", config_name="--config", revision="--dataset-revision", token="--token"):  # noqa: S106 (no token)
            return _from_hub(scored, dataset=dataset, config=config, split=split, revision=revision)
    scores = find_scores(folder)
    source = source_for(folder, dataset=dataset, config=config, split=split, revision=revision)
    title = Path(source.name).name
    if not isinstance(scores, dict):
        return ScoredSource(scores, open_dataset(source), title, _beside(folder, None), not source.is_local)
    split = one_of(scores, split, scored)
    rows, journal = open_dataset(replace(source, split=split)), _beside(folder, split if len(scores) > 1 else None)
    return ScoredSource(scores[split], rows, f"{title}, {split}", journal, not source.is_local, split)


def _from_disk(folder: Path, source: Source, prefix: str | None) -> ScoredSource:
    from vog_hf.scores.dataset_columns import scores_from_columns

    rows = open_dataset(source)
    is_alone = not (folder / "dataset_dict.json").is_file()
    # The split that `load_rows` opens by default: of a dataset that was saved alone, its own.
    default = str(rows.split or "train").partition("[")[0].partition("+")[0] if is_alone else "train"
    journal = _beside(folder, None if source.split in (None, default) else source.split)
    split = None if is_alone else source.split or default
    return ScoredSource(
        scores_from_columns(rows, prefix=prefix), rows, folder.name, journal, is_from_hub=False, split=split
    )


def _from_hub(
    repo_id: str, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> ScoredSource:
    from vog_hf.hub.pull import pull_scores, pushed_splits

    scores_revision, config_name = None if dataset else revision, config or "default"
    splits = pushed_splits(repo_id, revision=scores_revision, config_name=config_name)
    split = one_of(splits, split, repo_id)
    scores: Any = pull_scores(repo_id, revision=scores_revision, config_name=config_name, split=split)
    source = Source(dataset or repo_id, config, split, revision)
    journal = _beside(Path.cwd() / repo_id.rpartition("/")[2], split if len(splits) > 1 else None)
    return ScoredSource(scores, open_dataset(source), repo_id, journal, not source.is_local, split)


def _beside(folder: Path, split: str | None) -> Path:
    """``scores.review.jsonl`` next to the folder ``scores``: scoring again replaces the folder but not the decisions.

    The name contains the split only if several splits exist: the same rows have the same journal, whether or not the
    split was given.
    """
    name = folder.resolve().name + ("" if split is None else f".{split}")
    return folder.resolve().with_name(f"{name}.review.jsonl")
