"""The repository of a dataset at one commit: its files, its card, its configurations and their splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyarrow.parquet as pq
import yaml  # type: ignore[import-untyped]
from datasets import DatasetInfo, Features, SplitInfo, get_dataset_config_names, load_dataset_builder
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, HfApi, HfFileSystem, get_session
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from vog_hf.errors import ConfigError, HubError
from vog_hf.hub.card_yaml import CardWithOriginalYaml
from vog_hf.hub.retries import described, is_transient, with_retries
from vog_hf.scores.formatting import shortened

CARD = "README.md"
INVALID = 400
# What `datasets` and the client raise for metadata that they cannot read.
CARD_ERRORS = (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class KnownSplit:
    """A split that is in the repository.

    Attributes:
        files: Names of its files.
        patterns: Patterns that the card names them by.
    """

    files: Sequence[str]
    patterns: Sequence[str]


class Repository:
    """One commit of the repository of a dataset.

    Args:
        api: Client of the Hub.
        repo_id: Name of the dataset.
        sha: Hash of the commit.
        cache_dir: Cache folder for `datasets`.
    """

    def __init__(self, api: HfApi, repo_id: str, sha: str, cache_dir: Path) -> None:
        self.api, self.repo_id, self.sha, self._cache_dir = api, repo_id, sha, str(cache_dir)

    @cached_property
    def _files(self) -> dict[str, RepoFile]:
        return with_retries(self._listed_files)

    def _listed_files(self) -> dict[str, RepoFile]:
        entries = self.api.list_repo_tree(self.repo_id, repo_type="dataset", revision=self.sha, recursive=True)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by name."""
        return {name: entry.size for name, entry in self._files.items()}

    def content_id(self, name: str) -> str | None:
        """The hash by which the client identifies the content of a file; None for a file that does not exist."""
        entry = self._files.get(name)
        return None if entry is None else entry.blob_id if entry.lfs is None else entry.lfs.sha256

    def fetched(self, name: str) -> Path:
        """Download a file, and return its local path."""
        download: Callable[..., str] = self.api.hf_hub_download  # overloaded, for which ParamSpec has no answer
        return Path(with_retries(download, self.repo_id, name, repo_type="dataset", revision=self.sha))

    @cached_property
    def card(self) -> DatasetCard | None:
        """Its card, with its own line breaks; None without one.

        Raises:
            ConfigError: `datasets` cannot read its metadata.
        """
        if CARD not in self.sizes:
            return None
        path = self.fetched(CARD)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                card = CardWithOriginalYaml(file.read(), ignore_metadata_errors=True)
            MetadataConfigs.from_dataset_card_data(card.data).get_default_config_name()
            DatasetInfosDict.from_dataset_card_data(card.data)
        except CARD_ERRORS as error:
            raise ConfigError(
                f"the card of {self.repo_id} cannot be read ({described(error)}); fix its metadata on the Hub first"
            ) from error
        return card

    @cached_property
    def configs(self) -> list[dict[str, Any]]:
        """Its configurations as its card declares them, or as `datasets` finds them in its files."""
        declared = None if self.card is None else self.card.data.get("configs")
        if declared:
            return [dict(config) for config in declared]
        if set(self.sizes) <= {CARD, ".gitattributes"}:
            return []
        options: dict[str, Any] = {"revision": self.sha, "token": self.api.token}
        names = self._asked(get_dataset_config_names, self.repo_id, **options) or []
        return [
            {"config_name": name, "data_files": [{"split": s, "path": as_path(k.patterns)} for s, k in splits.items()]}
            for name in names
            if (splits := self.splits(name))
        ]

    def splits(self, config: str) -> dict[str, KnownSplit]:
        """The splits of one of its configurations; empty for a configuration without data."""
        builder = self._builder(config)
        if builder is None:
            return {}
        prefix = f"hf://datasets/{self.repo_id}@{self.sha}/"
        resolved = builder.config.data_files or {}
        files_of = {str(split): [str(f).removeprefix(prefix) for f in files] for split, files in resolved.items()}
        return {split: KnownSplit(files, self._patterns(files)) for split, files in files_of.items()}

    def features(self, split: KnownSplit, config: str) -> Features:
        """The columns of a split's first file, with the types from the card for the columns that it names."""
        stored = Features.from_arrow_schema(self._schema(split.files[0]))
        from_card = self.info(config).features or {}
        same = {
            name
            for name, feature in stored.items()
            if name in from_card and Features({name: feature}).type == Features({name: from_card[name]}).type
        }
        return Features({name: from_card[name] if name in same else feature for name, feature in stored.items()})

    @cached_property
    def foreign_file(self) -> str | None:
        """A data file that is not parquet, in the configuration by which `datasets` chooses the format of all."""
        for config in self.configs[:1]:
            files = [file for split in self.splits(str(config["config_name"])).values() for file in split.files]
            return next((file for file in files if not file.endswith(".parquet")), None)
        return None

    def split_info(self, name: str, split: KnownSplit, config: str) -> SplitInfo:
        """Rows and bytes of a split, from the card, or else from its files."""
        from_card = (self.info(config).splits or {}).get(name)
        if from_card is not None and from_card.num_examples:
            return SplitInfo(name=name, num_bytes=from_card.num_bytes, num_examples=from_card.num_examples)
        footers = [self._footer(file) for file in split.files]
        n_bytes = sum(f.row_group(g).total_byte_size for f in footers for g in range(f.num_row_groups))
        return SplitInfo(name=name, num_bytes=n_bytes, num_examples=sum(footer.num_rows for footer in footers))

    def info(self, config: str) -> DatasetInfo:
        """The description of a configuration in the card."""
        builder = self._builder(config)
        return DatasetInfo() if builder is None else builder.info

    def _builder(self, config: str) -> Any:
        if config not in self._builders:
            self._builders[config] = self._load_builder(config)
        return self._builders[config]

    @cached_property
    def _builders(self) -> dict[str, Any]:
        return {}

    def _load_builder(self, config: str) -> Any:
        options: dict[str, Any] = {"revision": self.sha, "token": self.api.token, "cache_dir": self._cache_dir}
        return self._asked(load_dataset_builder, self.repo_id, config, **options)

    def _asked(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Ask `datasets` about the repository; None if it finds no data, or a script, which it no longer runs.

        A failed connection is not an answer, although its errors are of the same types.
        """

        def attempt() -> T | None:
            try:
                return call(*args, **kwargs)
            except (DataFilesNotFoundError, EmptyDatasetError, RuntimeError, *CARD_ERRORS) as error:
                if is_transient(error):
                    raise ConnectionError(described(error)) from error
                if isinstance(error, CARD_ERRORS):
                    raise ConfigError(
                        f"`datasets` cannot read {self.repo_id} as it is ({described(error)}); fix it on the Hub "
                        "first, or push to a repository of its own"
                    ) from error
                if isinstance(error, RuntimeError) and "script" not in str(error):
                    raise
                return None

        return with_retries(attempt)

    def _patterns(self, files: Sequence[str]) -> list[str]:
        """The files of a split as a card names them: their folder, where it holds nothing else, or one by one."""
        folders = {file.rpartition("/")[0] for file in files}
        folder = min(folders, key=len)
        under = [name for name in self.sizes if name.startswith(f"{folder}/")]
        if folder and set(under) <= set(files):
            return [f"{folder}/**"]
        return sorted(files)

    def _footer(self, file: str) -> pq.FileMetaData:
        with self._open(file) as opened:
            return pq.read_metadata(opened)

    def _schema(self, file: str) -> Any:
        with self._open(file) as opened:
            return pq.read_schema(opened)

    def _open(self, file: str) -> Any:
        system = HfFileSystem(token=self.api.token)
        return system.open(f"datasets/{self.repo_id}@{self.sha}/{file}", "rb", block_size=2**16)


def as_path(patterns: Sequence[str]) -> str | list[str]:
    """Patterns as a card has them."""
    return patterns[0] if len(patterns) == 1 else list(patterns)


def require_valid(api: HfApi, repo_id: str, card: DatasetCard) -> None:
    """Raise HubError if the Hub rejects a card; any other answer is left to the commit, which asks again."""
    # DatasetCard.validate asks huggingface.co in older versions of the client, whatever the endpoint.
    body = {"repoType": "dataset", "content": card.content}
    answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body)
    if answer.status_code == INVALID:
        reason = shortened(answer.text, 300)
        raise HubError(f"the Hub rejects the card of {repo_id} ({reason}); fix its metadata there first")


def require_branch(api: HfApi, repo_id: str, branch: str) -> None:
    """Create the branch if it does not exist; raise ConfigError for a tag, to which nothing can be committed."""
    tags = with_retries(api.list_repo_refs, repo_id, repo_type="dataset").tags
    if branch in {tag.name for tag in tags}:
        raise ConfigError(
            f"revision must be the name of a branch, and {branch!r} is a tag of {repo_id}; tags cannot be changed"
        )
    with_retries(api.create_branch, repo_id, branch=branch, repo_type="dataset", exist_ok=True)


def require_repository(api: HfApi, repo_id: str, *, private: bool | None) -> None:
    """Create the repository if it does not exist; raise ConfigError if it exists with another visibility."""
    try:
        info = with_retries(api.dataset_info, repo_id)
    except RepositoryNotFoundError:
        with_retries(api.create_repo, repo_id, repo_type="dataset", private=private, exist_ok=True)
        info = with_retries(api.dataset_info, repo_id)  # another process may have created it differently
    if private is not None and bool(info.private) != private:
        is_what = "private" if info.private else "public"
        raise ConfigError(
            f"{repo_id} exists already and is {is_what}, and private={private} applies to a new one; "
            f"leave it out, or change its visibility first: HfApi().update_repo_settings({repo_id!r}, "
            f"private={private}, repo_type='dataset')"
        )
