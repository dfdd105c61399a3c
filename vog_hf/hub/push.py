"""push_scored_dataset: push rows, scores, card and manifest to the Hub in one commit."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset, DatasetDict

from vog_hf.data.referenced_files import require_own_files
from vog_hf.errors import ConfigError, require_type
from vog_hf.hub import repo_paths as places
from vog_hf.hub.card import describe_splits, sections
from vog_hf.hub.retries import connect, require_writer
from vog_hf.hub.scored_splits import collect_splits, score_tables
from vog_hf.hub.upload import PushedUrl, Target, Upload
from vog_hf.runtime.hub_names import require_repo_id
from vog_hf.scores.vog_scores import VoGScores

logger = logging.getLogger(__name__)


def push_scored_dataset(
    dataset: Dataset | DatasetDict,
    repo_id: str,
    *,
    scores: VoGScores | Mapping[str, VoGScores] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    scores_only: bool = False,
    config_name: str = "default",
    split: str | None = None,
    columns: str | Sequence[str] = "core",
    prefix: str = "",
    heat_maps: bool | None = None,
    show_rows: bool = True,
    card_sections: Mapping[str, str] | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> PushedUrl:
    """Push a scored dataset to the Hub: its rows, its scores, and a card that says what they are and what they show.

    Everything is in one commit, so that in every revision the card fits the data. All other content of the repository
    stays: other splits (score columns that they do not have load as None), configurations and files, and the card's own
    text; our section of the card is delimited by two comment markers, and a later push rewrites it. Conflicts with
    other commits and transient errors are retried, and an interrupted push can be repeated without sending again the
    files that have arrived. Finally the dataset is reloaded from the commit and compared with the local one.

    Files that rows reference by path are published with the rows if the column was created here: a folder of images,
    or ``cast_column("path", Image())``. If the dataset was read with that column (from the Hub, parquet, Arrow,
    `save_to_disk`), such a row is refused: its author could reference any file of this machine.

    Args:
        dataset: Result of `VoGCallback.scored_dataset` or `add_vog_columns`, or the dataset that was scored, with
            ``scores``. Splits of a `DatasetDict` without scores are pushed along.
        repo_id: ``"user/name"``, or ``"name"`` for your own; created if it does not exist.
        scores: Scores of the dataset, or of its splits by name; default: those that were added to this very object,
            else the values of its score columns.
        private: Visibility of the repository if it is created; default: public, or the default of its organization.
        revision: Branch (created if it does not exist), or pull request (``"refs/pr/1"``); default: the main branch.
        create_pr: Whether to open a pull request instead.
        scores_only: Push only a small configuration ``vog_scores`` with row number, label and every score.
        config_name: Configuration of the data.
        split: Name of the split of a single `Dataset`; default: its own name, else ``"train"``.
        columns: Scores to add to a dataset without score columns: see `add_vog_columns`.
        prefix: Prefix of the names of these columns, see there; also selects the scores of a dataset with several.
        heat_maps: Whether the heat maps are pushed with the scores (at most 2 kB a row); default: up to 500,000 rows.
        show_rows: Whether the card shows thumbnails or texts of the rows at both ends of the ranking.
        card_sections: Titles and plain texts to add to the card; they stay until these splits are pushed again.
        commit_message: Message of the commit; default: "Scores of Variance of Gradients".
        token: Hub access token; default: the one that ``hf auth login`` stored.

    Returns:
        The address of the dataset, of its branch, or of the pull request. Its attribute ``is_new`` is False if the
        repository already held all of this: then no commit was made, and no pull request was opened.

    Raises:
        ConfigError: Invalid options, or data that is incompatible with what the repository holds.
        RowMismatchError: The scores belong to other rows.
        DataError: Rows that reference files chosen by someone else, or no rows at all.
        HubError: The Hub refused, could not be reached, or the reloaded dataset differs; the message says which, and
            how the repository is left.

    Example:
        >>> push_scored_dataset(scored, "user/data-vog", private=True)  # doctest: +SKIP
        'https://huggingface.co/datasets/user/data-vog'
    """
    places.require_config_name(config_name)
    require_type("split", split, (str, type(None)), "pass the name of a split")
    _require_target(repo_id, revision, create_pr=create_pr)
    api = connect(token)
    splits = collect_splits(dataset, scores, columns, split, prefix=prefix)
    if show_rows or not scores_only:
        require_own_files(dataset)
    repo_id = _with_owner(repo_id, require_writer(api))
    config = places.scores_config(config_name) if scores_only else config_name
    tables = score_tables(splits) if scores_only else splits
    with TemporaryDirectory(prefix="vog_hf-") as folder:
        beside = describe_splits(
            splits, config_name, Path(folder), heat_maps=heat_maps, rows_pushed=not scores_only, rows_shown=show_rows
        )
        beside.pieces.update(sections(card_sections or {}, config_name, [table.name for table in tables]))
        target = Target(api, repo_id, revision, create_pr)
        upload = Upload(target, config, tables, beside, Path(folder))
        upload.prepare(private=private)
        upload.send()
        address = upload.commit(commit_message or "Scores of Variance of Gradients")
        logger.info("the scores are at %s%s", address, "" if address.is_new else ", and were there already")
        return address


def _require_target(repo_id: str, revision: str | None, *, create_pr: bool) -> None:
    """Raise ConfigError for an invalid name, or for a revision that cannot be committed to."""
    require_repo_id(repo_id)
    require_type("revision", revision, (str, type(None)), "pass the name of a branch, or 'refs/pr/<number>'")
    if revision is None:
        return
    if create_pr:
        raise ConfigError(
            "create_pr=True opens a pull request against the main branch, and "
            f"revision={revision!r} names another one; pass one of the two",
            argument=("create_pr=True", f"revision={revision!r}"),
        )
    if re.fullmatch(r"[0-9a-f]{40}", revision) or not re.fullmatch(r"[^\s~^:?*\[\\\x00-\x1f\x7f]+", revision):
        raise ConfigError(
            f"revision must be the name of a branch or 'refs/pr/<number>', got {revision!r}; commits cannot be changed"
        )


def _with_owner(repo_id: str, owner: str) -> str:
    return repo_id if "/" in repo_id else f"{owner}/{repo_id}"
