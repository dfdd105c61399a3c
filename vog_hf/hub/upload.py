"""The upload: files first, which are in no commit yet, then one commit with all of them and the card."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from datasets import SplitInfo
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCard, HfApi
from huggingface_hub.utils.tqdm import tqdm

from vog_hf.hub import repo_paths as places
from vog_hf.hub.card import CardAndFiles, merged_card
from vog_hf.hub.card_metadata import CardMetadata
from vog_hf.hub.commit_check import require_loadable
from vog_hf.hub.repository import CARD, Repository, require_branch, require_repository, require_valid
from vog_hf.hub.retries import (
    CLIENT_ERROR,
    CONFLICTS,
    WAITS,
    Conflict,
    described,
    hub_errors,
    is_transient,
    retry_call,
    status,
    with_retries,
)
from vog_hf.hub.scored_splits import PushedSplit
from vog_hf.hub.shards import count_shards, write_shards
from vog_hf.hub.upload_check import require_equal

logger = logging.getLogger(__name__)

Operation = CommitOperationAdd | CommitOperationDelete
AGAIN = "push again; files that have arrived are not sent again"
UNCHANGED = f"no revision of the repository was changed; {AGAIN}"
UNKNOWN = f"it is unknown whether the commit succeeded; check the Hub, or {AGAIN}"


class PushedUrl(str):
    """Address of a pushed dataset, with a note of whether there was anything to push.

    Attributes:
        is_new: False if the repository already held these rows, scores and card: no commit was made, and no pull
            request was opened.
    """

    __slots__ = ("is_new",)
    is_new: bool

    @classmethod
    def of(cls, address: str, *, is_new: bool) -> "PushedUrl":
        """The address with its note."""
        url = cls(address)
        url.is_new = is_new
        return url


@dataclass(frozen=True)
class Target:
    """The destination of a push."""

    api: HfApi
    repo_id: str
    revision: str | None
    create_pr: bool

    @property
    def branch(self) -> str:
        """The branch that the commit is made on, or that a pull request is opened against."""
        return self.revision or "main"

    @property
    def address(self) -> str:
        """Address of the dataset on the Hub, or of its branch."""
        pull = re.fullmatch(r"refs/pr/(\d+)", self.branch)
        if pull:
            return self.pull_address(int(pull[1]))
        tree = "" if self.revision is None else f"/tree/{quote(self.revision, safe='')}"
        return f"{self.api.endpoint}/datasets/{self.repo_id}{tree}"

    def pull_address(self, number: int) -> str:
        """Address of a pull request."""
        return f"{self.api.endpoint}/datasets/{self.repo_id}/discussions/{number}"


@dataclass
class Upload:
    """A push in three steps: `prepare`, `send`, `commit`.

    `datasets.Dataset.push_to_hub` is not used: on an existing repository it keeps the old columns of the card, so that
    new ones do not load, refuses columns that another split does not have, and commits its own card. Here data, card
    and scores are one commit, prepared for the parent commit that was inspected, or prepared again.

    Attributes:
        target: Destination.
        config: Configuration that is written.
        tables: Splits of the configuration.
        beside: Card and files that are pushed with the data.
        folder: Folder for temporary files.
    """

    target: Target
    config: str
    tables: Sequence[PushedSplit]
    beside: CardAndFiles
    folder: Path
    _additions: list[CommitOperationAdd] = field(default_factory=list)
    _splits: dict[str, SplitInfo] = field(default_factory=dict)
    _patterns: dict[str, str] = field(default_factory=dict)
    _shards: dict[str, dict[str, int]] = field(default_factory=dict)  # bytes of each file of each split

    def prepare(self, *, private: bool | None) -> None:
        """Create repository and branch if needed, and verify that the push is compatible with what they hold."""
        api, repo_id, branch = self.target.api, self.target.repo_id, self.target.branch
        with hub_errors(f"{repo_id} cannot be prepared"):
            require_repository(api, repo_id, private=private)
        with hub_errors(f"{repo_id} cannot be prepared", "its content is unchanged; a new repository is empty"):
            if branch != "main" and not branch.startswith("refs/"):
                require_branch(api, repo_id, branch)
            for table in self.tables:
                self._splits[table.name] = SplitInfo(table.name, num_bytes=0, num_examples=len(table.table))
                self._patterns[table.name] = places.shard_pattern(self.config, table.name)
                self._shards[table.name] = {places.shard_name(self.config, table.name, 0, count=1): 0}  # for now
            repository = self.look()
            card = self._card(repository, self.declare(repository))
            with_retries(require_valid, api, repo_id, card)

    def send(self) -> None:
        """Send everything except the card to the Hub."""
        beside = [CommitOperationAdd(name, str(path)) for name, path in self.beside.files.items()]
        self._preupload(beside)
        counts = [count_shards(table.table) for table in self.tables]
        with tqdm(total=sum(counts), desc="Pushing shards", unit="shard") as bar:
            for table, count in zip(self.tables, counts, strict=True):
                n_bytes, self._shards[table.name] = 0, {}
                name_of = partial(places.shard_name, self.config, table.name, count=count)
                for shard in write_shards(table.table, name_of, count, self.folder / "shards" / table.name):
                    addition = CommitOperationAdd(shard.name, str(shard.path))
                    self._preupload([addition])
                    if isinstance(addition.path_or_fileobj, bytes):  # it went through LFS and is no longer needed
                        shard.path.unlink()
                    self._additions.append(addition)
                    self._shards[table.name][shard.name] = shard.file_bytes
                    n_bytes += shard.n_bytes
                    bar.update()
                rows = len(table.table)
                self._splits[table.name] = SplitInfo(table.name, num_bytes=n_bytes, num_examples=rows)
        self._additions += beside

    def commit(self, message: str) -> PushedUrl:
        """Make the commit, unless nothing is new; reload and verify what it holds, and return the address."""
        target, attempt = self.target, _Attempt(self, message)
        with hub_errors(f"the commit to {target.repo_id} was not made", UNCHANGED):
            try:
                sha, address = retry_call(attempt, conflicts=True)
            except (CLIENT_ERROR, OSError, Conflict):
                commit = attempt.commit_without_response()
                if commit is None:
                    raise
                sha, address = commit
        with hub_errors(f"{target.repo_id} at {sha} cannot be loaded", "the commit was made; check it on the Hub"):
            cache_dir = self.folder / "datasets"
            require_equal(target.api, target.repo_id, sha, self.tables, attempt.metadata, cache_dir=cache_dir)
        return address

    def _preupload(self, additions: list[CommitOperationAdd]) -> None:
        target = self.target
        options: dict[str, Any] = {"repo_type": "dataset", "revision": target.branch, "create_pr": target.create_pr}

        def attempt() -> None:
            try:
                target.api.preupload_lfs_files(target.repo_id, additions, **options)
            except RuntimeError as error:  # the client wraps errors in it, after its own retries or none
                if not is_transient(error):
                    raise
                raise ConnectionError(described(error)) from error

        with hub_errors(f"the upload to {target.repo_id} was interrupted", UNCHANGED, also=(RuntimeError,)):
            retry_call(attempt, waits=WAITS[:3])

    def look(self) -> Repository:
        """The repository at its current commit."""
        api, repo_id = self.target.api, self.target.repo_id
        sha = str(with_retries(api.dataset_info, repo_id, revision=self.target.branch).sha)
        return Repository(api, repo_id, sha, self.folder / "datasets")

    def declare(self, repository: Repository) -> CardMetadata:
        """The metadata of the configuration, merged with what the repository holds."""
        return CardMetadata(
            repository,
            self.config,
            self.tables[0].table.features,
            self._splits,
            self._patterns,
            new_files=self._new_files(),
            replaced=self._earlier_files(repository.sizes),
        )

    def operations(self, repository: Repository, metadata: CardMetadata) -> list[Operation]:
        """The operations of the commit on the repository."""
        card = self._card(repository, metadata)
        for addition in self._additions:
            # The client uses it to skip unchanged files; it asked when the file was sent, and others may have changed
            # or deleted the file since.
            addition._remote_oid = repository.content_id(addition.path_in_repo)  # noqa: SLF001 (it has no public name)
        return [
            CommitOperationAdd(CARD, card.content.encode()),
            *self._additions,
            *(CommitOperationDelete(file, is_folder=False) for file in self._deleted_files(repository)),
        ]

    def _card(self, repository: Repository, metadata: CardMetadata) -> DatasetCard:
        name = self.target.repo_id.rpartition("/")[2]
        existing = {config["config_name"] for config in repository.configs}
        shown = self.beside.config if self.beside.config in existing else self.config
        about = {"repo_id": self.target.repo_id, "config": shown, "scored": self.beside.config}
        pushed = [places.split_key(self.beside.config, table.name) for table in self.tables]
        card = merged_card(repository.card, self.beside.pieces, pushed=pushed, title=name, **about)
        metadata.apply(card.data, {file: size for sizes in self._shards.values() for file, size in sizes.items()})
        card = metadata.require_readable(card)
        files_after = ({*repository.sizes} - {*self._deleted_files(repository)}) | {*self._new_files()}
        expected = metadata.files({split: list(sizes) for split, sizes in self._shards.items()})
        require_loadable(repository, card, files_after, expected, folder=self.folder)
        return card

    def _new_files(self) -> list[str]:
        """All files that the commit adds, except the card."""
        return [*(file for sizes in self._shards.values() for file in sizes), *self.beside.files]

    def _deleted_files(self, repository: Repository) -> list[str]:
        """All files that the commit deletes."""
        new = set(self._new_files())
        return [file for file in self._earlier_files(repository.sizes) if file not in new]

    def _earlier_files(self, files: Iterable[str]) -> list[str]:
        """Files of earlier pushes of these splits: their shards, their scores and pictures."""
        files = list(files)
        shards = [f for table in self.tables for f in places.earlier_shards(files, self.config, table.name)]
        beside = [f for table in self.tables for f in places.earlier_scores(files, self.beside.config, table.name)]
        return shards + beside


class _Attempt:
    """Make the commit, once per call; raise Conflict if another client was faster."""

    def __init__(self, upload: Upload, message: str) -> None:
        self._upload, self._target, self._message = upload, upload.target, message
        self._mark = f"vog_hf push {uuid4()}"  # by which a commit without a response is found
        self._is_in_doubt = False  # whether a try ended without a response
        self.metadata: CardMetadata

    def __call__(self) -> tuple[str, PushedUrl]:
        """Return the commit and the address of the pushed dataset."""
        if self._is_in_doubt and (commit := self._find_commit()):
            return commit
        repository = self._upload.look()
        self.metadata = self._upload.declare(repository)
        operations = self._upload.operations(repository, self.metadata)
        try:
            info = self._target.api.create_commit(
                self._target.repo_id,
                operations,
                commit_message=self._message,
                commit_description=self._mark,
                repo_type="dataset",
                revision=self._target.branch,
                create_pr=self._target.create_pr,
                parent_commit=repository.sha,
            )
        except (CLIENT_ERROR, OSError) as error:
            if status(error) in CONFLICTS:
                raise Conflict(f"another client commits to {self._target.repo_id} ({described(error)})") from error
            self._is_in_doubt |= is_transient(error)
            raise
        is_new = info.oid != repository.sha  # the client makes no empty commit
        return info.oid, PushedUrl.of(info.pr_url or self._target.address, is_new=is_new)

    def commit_without_response(self) -> tuple[str, PushedUrl] | None:
        """Return the commit after the last try, if it was made without a response."""
        if not self._is_in_doubt:
            return None
        with hub_errors(f"the commit to {self._target.repo_id} got no response", UNKNOWN):
            return with_retries(self._find_commit)

    def _find_commit(self) -> tuple[str, PushedUrl] | None:
        """Find the commit of an earlier try without a response."""
        api, repo_id = self._target.api, self._target.repo_id
        if not self._target.create_pr:
            commits = api.list_repo_commits(repo_id, repo_type="dataset", revision=self._target.branch)
            made = next((commit.commit_id for commit in commits if self._mark in commit.message), None)
            return None if made is None else (made, PushedUrl.of(self._target.address, is_new=True))
        pulls = api.list_repo_refs(repo_id, repo_type="dataset", include_pull_requests=True).pull_requests or []
        for pull in pulls:
            last = api.list_repo_commits(repo_id, repo_type="dataset", revision=pull.ref)[0]
            if self._mark in last.message:
                address = self._target.pull_address(int(pull.ref.rpartition("/")[2]))
                return pull.target_commit, PushedUrl.of(address, is_new=True)
        return None
