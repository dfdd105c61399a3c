"""Scores, alone or with their rows, as named on the command line."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vog_hf.cli.output import naming_options
from vog_hf.errors import ConfigError, OutputFolderError

if TYPE_CHECKING:
    from vog_hf.scores.vog_scores import VoGScores
from vog_hf.cli.sources import Source, open_dataset, source_for


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
