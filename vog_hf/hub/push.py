"""push_scored_dataset: rows, scores, card and manifest to the Hub in one commit."""

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
from vog_hf.hub.upload import Target, Upload
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
) -> str:
    """Push a scored data set to the Hub: its rows, its scores, and a card that says what they are and what they show.

    Everything comes in one commit, so that no revision has a card that does not fit its data. What else is in the
    repository stays: other splits (without a column of scores they load with None there), configurations and files, and
    the card's own text; our part of the card stands between two marks, and a later push writes it anew. Conflicts with
    other commits and errors that pass are tried again; a push that broke is made again with what had arrived. In the
    end the data set is loaded from the commit and compared with what was meant.

    Files that rows name without holding them are published with the rows where the column was made here: a folder of
    pictures, ``cast_column("path", Image())``. Where the data set was read with that column (from the Hub, parquet,
    Arrow, `save_to_disk`), such a row is refused: whoever wrote it may have named any file of this machine.

    Args:
        dataset: What `VoGCallback.scored_dataset` or `add_vog_columns` gave, or the data set that was scored, with
            ``scores``. Of a `DatasetDict`, splits without scores go along.
        repo_id: ``"user/name"``, or ``"name"`` for one's own; made where it is not there.
        scores: Of the data set, or of its splits by name; default: those that were put onto this very object, else what
            its columns say.
        private: Of a new repository; default: public, or what its organisation has set.
        revision: A branch, made where it is not there, or a pull request (``"refs/pr/1"``); default: the main branch.
        create_pr: Open a pull request instead.
        scores_only: Push no data but a small configuration ``vog_scores`` with row number, label and every score.
        config_name: The configuration of the data.
        split: Name of the split of a single `Dataset`; default: the name it has, else ``"train"``.
        columns: Which scores to add to a data set without them: see `add_vog_columns`.
        prefix: Put before the names of these columns, see there; chooses the scores of a data set with several.
        heat_maps: Whether the heat maps are pushed with the scores (at most 2 kB a row); default: up to 500,000 rows.
        show_rows: Whether the card shows pictures (as thumbnails) or texts of the rows at both ends of the ranking.
        card_sections: Titles and plain texts to add to the card; they stand there until these splits are pushed again.
        commit_message: Default: "Scores of Variance of Gradients".
        token: Default: the one that ``hf auth login`` stored.

    Returns:
        The address of the data set, of its branch, or of the pull request.

    Raises:
        ConfigError: An option that cannot be carried out, or data that cannot stand beside what the repository holds.
        RowMismatchError: The scores are of other rows.
        DataError: Rows that name files which somebody else has chosen, or no rows at all.
        HubError: The Hub refused, could not be reached, or holds something else than was meant; says which, and how the
            repository is left.

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
        logger.info("the scores are at %s", address)
        return address


def _require_target(repo_id: str, revision: str | None, *, create_pr: bool) -> None:
    """Raise ConfigError where a name cannot be one, or nothing could be committed there."""
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
