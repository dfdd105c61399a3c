"""What a person names to be reviewed: scores with their rows, from a folder, from disk or from the Hub."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vog_hf.cli.data import Source, find_scores, one_of, open_dataset, source_for
from vog_hf.cli.output import in_options

if TYPE_CHECKING:
    from vog_hf.scores import VoGScores


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
    scored: str, *, dataset: str | None, config: str | None, split: str | None, revision: str | None
) -> Scored:
    """The scores and rows that a person names: a folder with scores, a data set on disk, or one on the Hub.

    Raises:
        ConfigError: There are several splits and none was chosen, or options that do not go together.
        VoGError: There is no such thing, or it cannot be read.
    """
    from vog_hf.loading import is_saved

    folder = Path(scored).expanduser()
    if dataset is None and is_saved(folder):
        return _from_disk(folder, Source(scored, config, split, revision))
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


def _from_disk(folder: Path, source: Source) -> Scored:
    from vog_hf.columns import scores_from_columns

    rows = open_dataset(source)
    is_alone = not (folder / "dataset_dict.json").is_file()
    # What `load_rows` opens where no split is named: of a data set that was saved alone, its own.
    default = str(rows.split or "train").partition("[")[0].partition("+")[0] if is_alone else "train"
    journal = _beside(folder, None if source.split in (None, default) else source.split)
    split = None if is_alone else source.split or default
    return Scored(scores_from_columns(rows), rows, folder.name, journal, is_from_hub=False, split=split)


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
