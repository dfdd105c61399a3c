"""Check of a commit before it is made: `datasets` lists the splits of a folder with empty files of the same names."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from datasets import load_dataset_builder
from datasets.config import DATASETDICT_INFOS_FILENAME, REPOYAML_FILENAME
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DatasetsError
from huggingface_hub import DatasetCard

from vog_hf.errors import ConfigError
from vog_hf.hub.repository import CARD, CARD_ERRORS, Repository
from vog_hf.hub.retries import described, is_transient

ELSEWHERE = "push under another config_name=, or to a repository of its own"
READ = (REPOYAML_FILENAME, DATASETDICT_INFOS_FILENAME)  # what `datasets` also reads to find the files of a split


def require_loadable(
    repository: Repository,
    card: DatasetCard,
    files: Iterable[str],
    expected: Mapping[str, Mapping[str, Sequence[str]]],
    *,
    folder: Path,
) -> None:
    """Raise ConfigError if the repository would not load as intended after a commit.

    Args:
        repository: The repository before the commit.
        card: That is committed.
        files: Names of all files that there are after the commit.
        expected: The files that each split must consist of, by configuration.
        folder: For what is made here, and deleted in the end.
    """
    name = repository.repo_id.rpartition("/")[2]
    with TemporaryDirectory(dir=folder) as made:
        root = Path(made).resolve() / name
        _lay_out(root, files)
        (root / CARD).write_bytes(card.content.encode())
        for read in READ:
            if read in repository.sizes:
                shutil.copyfile(repository.fetched(read), root / read)
        for config, splits in expected.items():
            _require_splits(repository.repo_id, config, splits, _found(repository.repo_id, root, config))


def _lay_out(root: Path, files: Iterable[str]) -> None:
    """Create empty files of these names; names that lead out of the folder are skipped, since they are not data."""
    root.mkdir()
    for file in files:
        place = PurePosixPath(file)
        if ".." not in place.parts and not place.is_absolute():
            (root / place).parent.mkdir(parents=True, exist_ok=True)
            (root / place).touch()


def _found(repo_id: str, root: Path, config: str) -> dict[str, list[str]]:
    """The files that `datasets` assigns to each split."""
    options: dict[str, Any] = {"cache_dir": str(root.parent / "cache")}
    try:
        resolved = load_dataset_builder(str(root), config, **options).config.data_files or {}
    except (DatasetsError, EmptyDatasetError, RuntimeError, *CARD_ERRORS) as error:
        if is_transient(error):
            raise ConnectionError(described(error)) from error
        raise ConfigError(
            f"after the push the configuration {config!r} of {repo_id} would not load ({described(error)}), so nothing "
            f"is committed; {ELSEWHERE}",
            argument="config_name=",
        ) from error
    return {
        str(split): [str(f).removeprefix(f"{root.as_posix()}/") for f in names] for split, names in resolved.items()
    }


def _require_splits(
    repo_id: str, config: str, expected: Mapping[str, Sequence[str]], listed: Mapping[str, Sequence[str]]
) -> None:
    for split in sorted({*expected, *listed}):
        more = sorted({*listed.get(split, ())} - {*expected.get(split, ())})
        fewer = sorted({*expected.get(split, ())} - {*listed.get(split, ())})
        if more or fewer:
            what = f"with {more[0]!r}, which does not belong to it" if more else f"without {fewer[0]!r}"
            raise ConfigError(
                f"after the push the split {split!r} of the configuration {config!r} of {repo_id} would load {what}, "
                f"so nothing is committed; {ELSEWHERE}",
                argument="config_name=",
            )
