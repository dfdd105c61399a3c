"""Snapshots on the Hugging Face Hub: download revisions of a model."""

from collections.abc import Sequence
from pathlib import Path

from vog_hf.errors import ConfigError, SnapshotError, as_path, require_type, shown
from vog_hf.runtime.hub_names import require_repo_id
from vog_hf.snapshots.source import PICKLED, weight_files

PATTERNS = ("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json")


def from_hub(
    repo_id: str, revisions: Sequence[str], *, token: str | None = None, cache_dir: str | Path | None = None
) -> list[Path]:
    """Download the weights of a model at several revisions; pass the returned folders to `VoGScorer.score`.

    Only safetensors and configs at the top of the repository are downloaded, into the cache of `huggingface_hub`.
    Cached files need no network.

    Args:
        repo_id: ``"user/model"``.
        revisions: Branches, tags or commits, in the order of training.
        token: Access token for private repositories; default: the token stored by ``hf auth login``.
        cache_dir: Cache folder; default: the cache of `huggingface_hub`.

    Raises:
        ConfigError: ``revisions`` is a single name, or ``repo_id`` is invalid.
        SnapshotError: A revision does not exist, has no safetensors, is the same commit as another, or cannot be
            reached.

    Example:
        >>> folders = from_hub("user/model", ["epoch-1", "epoch-2", "epoch-3"])  # doctest: +SKIP
        >>> scores = VoGScorer(model).score(dataset, folders)  # doctest: +SKIP
    """
    advice = "pass a list of branches, tags or commits, ['epoch-1', ...]"
    require_type("revisions", revisions, Sequence, advice)
    if isinstance(revisions, str) or not all(map(_is_name, revisions)):
        raise ConfigError(f"revisions must be a list of branches, tags or commits, got {shown(revisions)}; {advice}")
    require_repo_id(repo_id)
    require_type("token", token, (str, type(None)), "pass it as it is shown on huggingface.co/settings/tokens")
    cache_dir = None if cache_dir is None else as_path("cache_dir", cache_dir)
    folders: dict[Path, str] = {}
    for revision in revisions:
        folder = _downloaded(repo_id, revision, token, cache_dir)
        if folder in folders:
            raise SnapshotError(
                f"{repo_id}: {folders[folder]!r} and {revision!r} are the same commit; name each snapshot once"
            )
        _require_weights(folder, repo_id, revision, token)
        folders[folder] = revision
    return list(folders)


def _is_name(revision: object) -> bool:
    return isinstance(revision, str) and bool(revision.strip())


def _downloaded(repo_id: str, revision: str, token: str | None, cache_dir: str | Path | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                allow_patterns=list(PATTERNS),
                ignore_patterns=["*/*"],
            )
        )
    except RevisionNotFoundError as error:
        raise SnapshotError(
            f"{repo_id} has no revision {revision!r}; pass branches, tags or commits that it has"
        ) from error
    except RepositoryNotFoundError as error:
        raise SnapshotError(
            f"there is no model {repo_id!r} on the Hub, or it is private or gated; check its name, or pass a token "
            "that may read it"
        ) from error
    except LocalEntryNotFoundError as error:
        raise SnapshotError(
            f"the Hub cannot be reached, and {repo_id} at {revision!r} is not (or not wholly) in the local cache; go "
            f"online (HF_HUB_OFFLINE=0) and try again ({_first_line(error)})"
        ) from error
    except HfHubHTTPError as error:
        raise SnapshotError(
            f"{repo_id} at {revision!r} cannot be downloaded: {_first_line(error)}; try again, finished files are kept"
        ) from error


def _require_weights(folder: Path, repo_id: str, revision: str, token: str | None) -> None:
    try:
        files = weight_files(folder)
    except SnapshotError as error:
        pickled = [name for name in _files_on_hub(repo_id, revision, token) if name.endswith(PICKLED)]
        msg = f"{repo_id} at {revision!r} holds no model.safetensors (nor a sharded one, nor an adapter)"
        if pickled:
            msg = (
                f"{msg} but {pickled[0]!r}, and pickled weights are not read because unpickling runs code; load the "
                "model once where you trust the file and save it with model.save_pretrained(folder)"
            )
        raise SnapshotError(msg) from error
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise SnapshotError(
            f"{repo_id} at {revision!r} lacks {missing[0]!r}, which its index names; complete the upload or the cache"
        )


def _files_on_hub(repo_id: str, revision: str, token: str | None) -> list[str]:
    """Names of all files of a revision; empty if the Hub cannot be reached."""
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi(token=token).list_repo_files(repo_id, revision=revision))
    except OSError:  # every error of the client and of the network is one
        return []


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
