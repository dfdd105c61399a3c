"""The card: what the scores are, how they were computed and what they show, between two marks in the README.

Names and texts of the data are shown as text: every character that Markdown or HTML could interpret is written as an
entity, and long texts are cut, so that no class name can end a table, open a tag or run a link.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vog_hf.errors import ConfigError, DataError
from vog_hf.hub.repo_paths import DECILES_NAME, SHEET_NAME, scores_folder, split_key
from vog_hf.hub.scored_splits import PushedSplit, published_scores
from vog_hf.scores.descriptions import NUMBERS_NOTE, column_meanings, run_facts
from vog_hf.scores.findings import Findings
from vog_hf.scores.formatting import number, printable, shortened
from vog_hf.scores.pictures import RowView, RowViews, decile_plot, draw_contact_sheet
from vog_hf.scores.ranking import most_extreme
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.storage import MANIFEST_NAME
from vog_hf.scores.vog_scores import VoGScores

TEMPLATE = Path(__file__).parent / "dataset_card.md"
SHEET_ROWS = 9  # of each end, as thumbnails
LISTED_ROWS = 8  # of each end, as lines of a table
NAME_WIDTH, TEXT_WIDTH, FACT_WIDTH, SECTION_WIDTH = 60, 200, 400, 20_000

REGION = re.compile(r"<!-- vog_hf: begin\b[^>]*-->(?:(?!<!-- vog_hf: begin\b).)*?<!-- vog_hf: end -->", re.DOTALL)
PIECE = re.compile(r"<!-- vog_hf: piece ([^>]*?) -->(.*?)<!-- vog_hf: piece end -->", re.DOTALL)
# Characters that Markdown and HTML interpret. Others stay, so that the source can be read.
MEANINGFUL = re.compile(
    r"""[!"#$&'*/<>@\[\\\]^_`{|}~]|:(?=\S)|(?<=www)\.|^[-+=]|(?<=^\d)[.)]|(?<=^\d\d)[.)]""", re.IGNORECASE
)
REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they reverse the text next to them


def as_text(value: object, width: int) -> Markup:
    r"""Escape a name or text of the data for Markdown and HTML, on one line.

    Example:
        >>> print(as_text("a | <b>b</b>\n# c", 80))
        a &#124; &#60;b&#62;b&#60;&#47;b&#62; &#35; c
    """
    line = shortened(REORDERING.sub("", printable(str(value))), width)
    return Markup(MEANINGFUL.sub(lambda match: f"&#{ord(match[0])};", line))  # noqa: S704 (escaped just here)


@dataclass(frozen=True)
class Row:
    """A line of a table of rows."""

    number: int
    label: Markup
    prediction: Markup
    value: str
    text: Markup


@dataclass(frozen=True)
class End:
    """One end of the ranking as a table."""

    title: str
    rows: Sequence[Row]

    @property
    def has_texts(self) -> bool:
        """Return whether any of the rows has a text."""
        return any(row.text for row in self.rows)


@dataclass(frozen=True)
class CardAndFiles:
    """Files that are pushed next to the data.

    Attributes:
        config: Configuration of the rows that were scored.
        pieces: Pieces of the card, by key.
        files: Files of scores and pictures: local paths by their names in the repository.
    """

    config: str
    pieces: dict[str, Markup]
    files: dict[str, Path]


def describe_splits(
    splits: Sequence[PushedSplit],
    config: str,
    folder: Path,
    *,
    heat_maps: bool | None,
    rows_pushed: bool,
    rows_shown: bool,
) -> CardAndFiles:
    """Write the files of the scores, with the pictures of the card, to a folder; returned with the card's pieces.

    Args:
        splits: Splits to push; those without scores are skipped.
        config: Configuration of the data.
        folder: Folder for the files.
        heat_maps: Whether heat maps are pushed; None: up to 500,000 rows.
        rows_pushed: Whether the rows are pushed with their scores.
        rows_shown: Whether the card shows pictures and texts of rows.
    """
    pieces: dict[str, Markup] = {}
    files: dict[str, Path] = {}
    for split in splits:
        if split.scored is None:
            continue
        local, in_repo = folder / "scores" / split.name, scores_folder(config, split.name)
        published_scores(split.scored, with_rows=rows_pushed, heat_maps=heat_maps).save(local)
        scored = split.scored if rows_shown else split.scored.without_rows()
        pieces[split_key(config, split.name)] = describe_split(scored, split.columns, config, local, in_repo)
        files |= {f"{in_repo}/{path.name}": path for path in sorted(local.iterdir())}
    return CardAndFiles(config, pieces, files)


def describe_split(split: ScoredSplit, columns: Mapping[str, str], config: str, pictures: Path, in_repo: str) -> Markup:
    """Write the card's piece about a split, and the pictures that it shows to a folder.

    Args:
        split: A split, with the rows that may be shown.
        columns: Columns of the dataset that hold scores, by their names among the scores.
        config: Configuration of the data.
        pictures: Folder for the pictures.
        in_repo: Path of that folder in the repository.
    """
    scores, findings = split.scores, Findings(split)
    deciles = findings.deciles
    if deciles is not None:
        decile_plot(deciles, column=findings.column).save(pictures / DECILES_NAME)
    has_sheet = split.rows is not None and _draw_sheet(split, findings.column, pictures / SHEET_NAME)
    ends = [] if has_sheet else _ends(split, findings.column)
    name = split.name if config == "default" else f"{config}, {split.name}"
    text = _template("scored_split.md").render(
        heading=as_text(f"Scores of {name}: {len(scores):,} rows", NAME_WIDTH),
        opening=[
            as_text(sentence, SECTION_WIDTH)
            for sentence in findings.opening("vog-hf review, with the name of this repository.")
        ],
        evidence=findings.tail.evidence,
        has_vog=findings.raw == "vog",
        numbers=_numbers(findings),
        numbers_note=NUMBERS_NOTE,
        no_errors=findings.no_errors,
        column=as_text(findings.column, NAME_WIDTH),
        deciles=quote(f"{in_repo}/{DECILES_NAME}") if deciles is not None else None,
        sheet=quote(f"{in_repo}/{SHEET_NAME}") if has_sheet else None,
        ends=ends,
        meanings=_meanings(scores, columns),
        folder=as_text(in_repo, FACT_WIDTH),
        facts=[(name, as_text(value, FACT_WIDTH)) for name, value in _facts(scores)],
        manifest=quote(f"{in_repo}/{MANIFEST_NAME}"),
    )
    return Markup(text)  # noqa: S704 (rendered with every value escaped)


def sections(given: Mapping[str, str], config: str, splits: Sequence[str]) -> dict[str, Markup]:
    """Make further pieces of the card from titles and plain texts; empty lines separate paragraphs.

    Args:
        given: Texts by title.
        config: Configuration that they are about.
        splits: Splits that they are about.

    Raises:
        ConfigError: Titles that differ only in punctuation, or without a letter or digit.
    """
    pieces: dict[str, Markup] = {}
    about = as_text(", ".join([*([] if config == "default" else [config]), *splits]), NAME_WIDTH)
    for title, text in given.items():
        paragraphs = [
            Markup("<br>\n").join(as_text(line, SECTION_WIDTH) for line in paragraph.strip().splitlines())
            for paragraph in re.split(r"\n\s*\n", str(text))
            if paragraph.strip()
        ]
        body = Markup("\n\n").join([Markup("### {} ({})").format(as_text(title, NAME_WIDTH), about), *paragraphs])
        key = " ".join(["section", _slug(title), *(split_key(config, split) for split in splits)])
        if key in pieces or not _slug(title):
            raise ConfigError(f"titles of sections need different words, got {sorted(given)}; rename {title!r}")
        pieces[key] = body
    return pieces


def merged_card(
    existing: DatasetCard | None, pieces: Mapping[str, Markup], *, pushed: Collection[str], title: str, **about: Any
) -> DatasetCard:
    """Merge these pieces into the card between the marks; everything outside the marks stays as it is.

    Pieces of earlier pushes stay as well, except those about a split that is pushed now.

    Args:
        existing: Card of the repository.
        pieces: Pieces by key.
        pushed: Keys of the splits that are pushed.
        title: Title of a new card.
        about: Other values for the template.
    """
    region = REGION.search("" if existing is None else existing.text)
    earlier = [] if region is None else PIECE.finditer(region[0])
    old = {m[1]: Markup(m[2].strip()) for m in earlier if not _about(m[1]) & {*pushed}}  # noqa: S704 (ours)
    marked = [
        Markup(f"<!-- vog_hf: piece {key} -->\n") + text + Markup("\n<!-- vog_hf: piece end -->")  # noqa: S704 (keys)
        for key, text in sorted({**old, **pieces}.items(), key=lambda piece: piece[0].startswith("section "))
    ]
    data = DatasetCardData()
    new = DatasetCard.from_template(
        data, template_path=str(TEMPLATE), pieces=marked, title=as_text(title, NAME_WIDTH), **about
    )
    if existing is None:
        return new
    written = REGION.search(new.text)
    if written is None:
        raise ValueError("the template of the card does not have its marks")
    line_end = "\r\n" if "\r\n" in existing.text else "\n"
    text = written[0].replace("\r\n", "\n").replace("\n", line_end)
    if region is not None:
        existing.text = existing.text[: region.start()] + text + existing.text[region.end() :]
    else:
        ending = existing.text[len(existing.text.rstrip("\r\n")) :]
        gap = line_end * max(0, 2 - ending.count("\n"))
        existing.text = f"{existing.text}{gap}{text}{line_end}"
    return existing


def _about(key: str) -> set[str]:
    """Keys of the splits that a piece is about."""
    words = key.split()
    return {*words[2:]} if words[:1] == ["section"] else {key}


def _template(name: str) -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _draw_sheet(split: ScoredSplit, column: str, path: Path) -> bool:
    """Draw thumbnails of both ends of the ranking; return False for rows without pictures."""
    try:
        draw_contact_sheet(RowViews(split), column=column, count=min(SHEET_ROWS, len(split))).save(path)
    except DataError:
        return False
    return True


def _ends(split: ScoredSplit, column: str) -> list[End]:
    """Both ends of the ranking in numbers, with their texts where the split has any."""
    views, ends = RowViews(split), []
    for title, rows in zip(("Highest", "Lowest"), most_extreme(split.scores, column, LISTED_ROWS), strict=True):
        known = rows[np.isfinite(split.scores.column(column)[rows].astype(np.float64))]
        ends.append(End(title, [_row(view, column) for view in views.views(known)]))
    return [end for end in ends if end.rows]


def _row(view: RowView, column: str) -> Row:
    text = as_text(view.text or "", TEXT_WIDTH)
    return Row(view.row, _value(view.label), _value(view.prediction), number(view.value(column)), text)


def _value(value: object) -> Markup:
    return as_text(value if isinstance(value, str) else number(value), NAME_WIDTH)


def _numbers(findings: Findings) -> list[list[str]]:
    """The numbers behind the verdict, with their intervals where they have one."""
    table = findings.tail.table()
    intervals = [
        f"{number(low)} to {number(high)}" if np.isfinite(low) else ""
        for low, high in table[["low", "high"]].to_numpy(dtype=float)
    ]
    values = table["value"].map(number)
    return [list(line) for line in zip(table["measure"], table["statistic"], values, intervals, strict=True)]


def _meanings(scores: VoGScores, columns: Mapping[str, str]) -> list[tuple[list[Markup], bool]]:
    """Every column of the scores in words, by its name in the dataset where it is there, and whether it is."""
    meanings = column_meanings(scores)
    named = [(columns.get(m.column, m.column), m.what, m.unit, m.higher) for m in meanings]
    lines = [[as_text(value, FACT_WIDTH) for value in line] for line in named]
    return list(zip(lines, [m.column in columns for m in meanings], strict=True))


def _facts(scores: VoGScores) -> list[tuple[str, str]]:
    """Facts about how the scores were computed; none if the manifest has none."""
    return run_facts(scores) if scores.facts.snapshots or scores.facts.targets else []


def _slug(title: str) -> str:
    return re.sub(r"[^\w]+", "-", str(title).lower()).strip("-")[:NAME_WIDTH]
