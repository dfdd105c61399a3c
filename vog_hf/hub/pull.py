"""pull_scores: the scores that were pushed with a dataset, unchanged."""

from pathlib import Path

from huggingface_hub import snapshot_download

from vog_hf.errors import HubError, as_path, require_type
from vog_hf.hub.repo_paths import require_config_name, scored_splits, scores_folder
from vog_hf.hub.retries import connect, hub_errors, with_retries
from vog_hf.runtime.hub_names import require_repo_id
from vog_hf.scores.vog_scores import VoGScores


def pull_scores(
    repo_id: str,
    *,
    revision: str | None = None,
    config_name: str = "default",
    split: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> VoGScores | dict[str, VoGScores]:
    """Download the scores that `push_scored_dataset` pushed, equal to what was pushed.

    Only the files of the scores are downloaded, into the cache of `huggingface_hub`; trajectories and heat maps are
    memory-mapped from there. Every file is compared with the checksum in its manifest.

    Args:
        repo_id: ``"user/data"``.
        revision: Branch, tag, commit or pull request (``"refs/pr/1"``); default: the main branch.
        config_name: Configuration that was scored.
        split: Name of one split; default: all splits.
        token: Hub access token, for private datasets; default: the one that ``hf auth login`` stored.
        cache_dir: Folder for the files; default: the cache of `huggingface_hub`.

    Returns:
        `VoGScores`, or one per split by name if there are several and none was chosen.

    Raises:
        ConfigError: A name that no repository, revision, configuration or split can have.
        HubError: There are no such scores, or the Hub cannot be reached.
        OutputFolderError: A file of the scores is damaged.

    Example:
        >>> scores = pull_scores("user/data-vog")  # doctest: +SKIP
        >>> scores.heat_map(0).shape  # doctest: +SKIP
        (8, 8)
    """
    _require_names(repo_id, revision, config_name)
    require_type("split", split, (str, type(None)), "pass the name of a split")
    cache_dir = None if cache_dir is None else as_path("cache_dir", cache_dir)
    api = connect(token)
    with hub_errors(f"the scores of {repo_id} cannot be fetched", left="what has arrived is kept"):
        sha = str(with_retries(api.dataset_info, repo_id, revision=revision).sha)
        files = with_retries(api.list_repo_files, repo_id, repo_type="dataset", revision=sha)
        splits = scored_splits(files, config_name)
        names = list(splits) if split is None else [split]
        missing = [name for name in names if name not in splits]
        if missing or not names:
            available = ", ".join(splits) or "no scores"
            raise HubError(
                f"{repo_id} has no scores of {', '.join(map(repr, missing)) or 'any split'} in the configuration "
                f"{config_name!r}, but {available}; pass another split=, config_name= or revision=",
                argument=("split=", "config_name=", "revision="),
            )
        patterns = [file for name in names for file in splits[name]]
        root = with_retries(
            snapshot_download,
            repo_id,
            repo_type="dataset",
            revision=sha,
            token=api.token,
            cache_dir=cache_dir,
            allow_patterns=patterns,
        )
    scores = {name: VoGScores.load(Path(root) / scores_folder(config_name, name)) for name in names}
    return next(iter(scores.values())) if len(scores) == 1 else scores


def pushed_splits(
    repo_id: str, *, revision: str | None = None, config_name: str = "default", token: str | None = None
) -> list[str]:
    """Names of the splits of a dataset on the Hub that have scores there.

    Args:
        repo_id: ``"user/data"``.
        revision: A branch, tag, commit or pull request; default: the main branch.
        config_name: The configuration that was scored.
        token: Hub access token, for private datasets; default: the one that ``hf auth login`` stored.

    Raises:
        HubError: There is no such dataset, or the Hub cannot be reached.
    """
    _require_names(repo_id, revision, config_name)
    api = connect(token)
    with hub_errors(f"the files of {repo_id} cannot be listed"):
        files = with_retries(api.list_repo_files, repo_id, repo_type="dataset", revision=revision)
    return sorted(scored_splits(files, config_name))


def _require_names(repo_id: str, revision: str | None, config_name: str) -> None:
    require_repo_id(repo_id)
    require_type("revision", revision, (str, type(None)), "pass a branch, tag or commit")
    require_config_name(config_name)
