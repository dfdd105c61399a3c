"""write_report: write scores and their dataset as one HTML file."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from vog_hf.data.rows import AnyDataset
from vog_hf.errors import ConfigError, OutputFolderError, as_path, require_type, whole_number
from vog_hf.report.page import GENERATOR, page
from vog_hf.report.section import Options, Section
from vog_hf.runtime.files import explained_disk_errors, write_atomically
from vog_hf.scores.formatting import escaped
from vog_hf.scores.scored_rows import ScoredSplit, pair_with_rows, require_scores
from vog_hf.scores.vog_scores import VoGScores

MAX_CARDS = 500  # of a gallery
HEAD = 4_096  # bytes in which a report has its generator tag


def write_report(
    scores: VoGScores | Mapping[str, VoGScores],
    dataset: AnyDataset,
    path: str | Path,
    *,
    title: str | None = None,
    top_k: int = 24,
    per_class: int = 6,
    max_table_rows: int = 1_000,
) -> Path:
    """Write everything that scores show as one HTML file, which loads nothing from elsewhere.

    The report says how the scores were computed and which tail of the ranking is the hard one in this run, with the
    evidence. It shows errors, agreement and stability of the ranking, the rows at both ends with their heat maps,
    classes, and a sortable table. Without JavaScript everything except sorting and filtering works.

    Args:
        scores: Scores of ``dataset``, or of its splits by name, each a section of the page.
        dataset: Dataset that was scored, for its images or texts; for several splits a mapping; None = none are shown.
        path: Path of the file. An earlier report is replaced; any other file is refused.
        title: Title of the page; default: the name of the dataset if it is known, otherwise "VoG report" with the name
            of the model.
        top_k: Number of rows in each gallery of a whole split, 1..500.
        per_class: Number of rows at each end of each class's ranking, 0..500; 0 = no galleries of classes.
        max_table_rows: Number of rows in the table, half of them from each end of the ranking; 0 = no table.

    Returns:
        The path.

    Raises:
        ConfigError: An option out of range, scores without rows, or splits that do not fit those of the dataset.
        RowMismatchError: The rows of the dataset are not the ones that were scored.
        OutputFolderError: Another file is at ``path``, or it cannot be written.

    Example:
        >>> import tempfile, numpy as np
        >>> scores = VoGScores({"vog": np.array([0.2, 0.1, 0.4])}, {})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(scores, None, Path(folder) / "report.html").name
        'report.html'
    """
    for option, value, least, most in (
        ("top_k", top_k, 1, MAX_CARDS),
        ("per_class", per_class, 0, MAX_CARDS),
        ("max_table_rows", max_table_rows, 0, None),
    ):
        whole_number(option, value, least, most)
    require_type("title", title, (str, type(None)), "pass a text, or leave it out")
    path = as_path("path", path)
    _require_ours(path)
    options = Options(top_k, per_class, max_table_rows)
    sections = [Section(split, f"s{place}", options) for place, split in enumerate(_splits(scores, dataset))]
    text = page(title or _default_title(sections), sections)
    with explained_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, partial(Path.write_text, data=escaped(text), encoding="utf-8"))
    return path


def _splits(scores: VoGScores | Mapping[str, VoGScores], dataset: AnyDataset) -> list[ScoredSplit]:
    """The splits of the page; every one of them is verified before anything is drawn."""
    require_scores(scores)
    sizes = [len(of_split) for of_split in scores.values()] if isinstance(scores, Mapping) else [len(scores)]
    if not sizes or not all(sizes):
        raise ConfigError("a report needs scores of at least one row for every split; leave out splits without rows")
    return pair_with_rows(scores, dataset)


def _default_title(sections: list[Section]) -> str:
    if name := sections[0].dataset_name:
        return name
    model = sections[0].scores.facts.model
    name = model.get("name") or model.get("class")
    return f"VoG report: {name}" if name else "VoG report"


def _require_ours(path: Path) -> None:
    """Raise OutputFolderError for an existing file that is not a report."""
    if not path.exists():
        return
    if path.is_file():
        with path.open("rb") as file:
            if f'<meta name="generator" content="{GENERATOR}">'.encode() in file.read(HEAD):
                return
    raise OutputFolderError(f"{path} exists and is not a vog_hf report; choose another path, or delete it")
