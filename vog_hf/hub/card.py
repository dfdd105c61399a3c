"""The card: what the scores are, how they were made, and what they show, between two marks in the repository's README.

Names and texts of the data are shown as text. Every character of theirs that Markdown or HTML could read as more is
written as an entity, and what is long is cut, so that no name of a class can end a table, open a tag or run a link.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vog_hf.errors import ConfigError, DataError
from vog_hf.hub.repo_paths import DECILES_NAME, SHEET_NAME, split_key
from vog_hf.hub.scored_splits import Part
from vog_hf.scores.descriptions import column_meanings, run_facts, verdict
from vog_hf.scores.findings import Findings
from vog_hf.scores.formatting import number, printable, shortened
from vog_hf.scores.pictures import contact_sheet, decile_plot, show_rows
from vog_hf.scores.ranking import most_extreme, row_values
from vog_hf.scores.storage import MANIFEST_NAME
from vog_hf.scores.vog_scores import VoGScores

TEMPLATE = Path(__file__).parent / "dataset_card.md"
SHEET_ROWS = 9  # of each end, as thumbnails
LISTED_ROWS = 8  # of each end, as lines of a table
NAME_WIDTH, TEXT_WIDTH, FACT_WIDTH, SECTION_WIDTH = 60, 200, 400, 20_000

REGION = re.compile(r"<!-- vog_hf: begin\b[^>]*-->(?:(?!<!-- vog_hf: begin\b).)*?<!-- vog_hf: end -->", re.DOTALL)
PIECE = re.compile(r"<!-- vog_hf: piece ([^>]*?) -->(.*?)<!-- vog_hf: piece end -->", re.DOTALL)
# What Markdown and HTML give a meaning to. Others stay, so that the source can be read.
MEANINGFUL = re.compile(
    r"""[!"#$&'*/<>@\[\\\]^_`{|}~]|:(?=\S)|(?<=www)\.|^[-+=]|(?<=^\d)[.)]|(?<=^\d\d)[.)]""", re.IGNORECASE
)
REORDERING = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they turn around what stands beside them


def as_text(value: object, width: int) -> Markup:
    r"""A name or text of the data on one line, with nothing in it that Markdown or HTML would act on.

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
        """Whether any of the rows has a text."""
        return any(row.text for row in self.rows)


def describe_split(
    part: Part, config: str, heading: str, pictures: Path, place: str, *, with_rows: bool
) -> tuple[str, Markup]:
    """A split's piece of the card: its key, and its text; the pictures that it shows are written to a folder.

    Args:
        part: With scores.
        config: Of the data.
        heading: Of the piece.
        pictures: A folder.
        place: Where that folder will be in the repository.
        with_rows: Whether pictures and texts of rows are shown.
    """
    if part.scores is None:
        raise TypeError(f"the split {part.split!r} has no scores to describe")
    scores, found = part.scores, Findings(part.scores)
    deciles = found.deciles
    if deciles is not None:
        decile_plot(deciles, column=found.column).save(pictures / DECILES_NAME)
    has_sheet = with_rows and _draw_sheet(scores, part.dataset, found.column, pictures / SHEET_NAME)
    ends = [] if has_sheet else _ends(scores, part.dataset if with_rows else None, found.column)
    names = part.columns
    meanings = [replace(m, column=names[m.column]) for m in column_meanings(scores) if m.column in names]
    text = _template("scored_split.md").render(
        heading=as_text(heading, NAME_WIDTH),
        verdict=verdict(found.tail.tail),
        evidence=found.tail.evidence,
        no_errors=found.no_errors,
        column=as_text(found.column, NAME_WIDTH),
        deciles=quote(f"{place}/{DECILES_NAME}") if deciles is not None else None,
        sheet=quote(f"{place}/{SHEET_NAME}") if has_sheet else None,
        ends=ends,
        meanings=[[as_text(value, FACT_WIDTH) for value in (m.column, m.what, m.unit, m.higher)] for m in meanings],
        facts=[(name, as_text(value, FACT_WIDTH)) for name, value in _facts(scores)],
        manifest=quote(f"{place}/{MANIFEST_NAME}"),
    )
    return split_key(config, part.split), Markup(text)  # noqa: S704 (rendered with every value escaped)


def sections(given: Mapping[str, str], config: str, splits: Sequence[str]) -> dict[str, Markup]:
    """Further pieces of the card, from titles and plain texts; empty lines divide paragraphs.

    Args:
        given: Texts by title.
        config: Of the data that they are about.
        splits: That they are about.

    Raises:
        ConfigError: Two titles that differ in punctuation alone, or one of nothing else.
    """
    found = {}
    about = as_text(", ".join([*([] if config == "default" else [config]), *splits]), NAME_WIDTH)
    for title, text in given.items():
        paragraphs = [
            Markup("<br>\n").join(as_text(line, SECTION_WIDTH) for line in paragraph.strip().splitlines())
            for paragraph in re.split(r"\n\s*\n", str(text))
            if paragraph.strip()
        ]
        body = Markup("\n\n").join([Markup("### {} ({})").format(as_text(title, NAME_WIDTH), about), *paragraphs])
        key = " ".join(["section", _slug(title), *(split_key(config, split) for split in splits)])
        if key in found or not _slug(title):
            raise ConfigError(f"titles of sections need words of their own, got {sorted(given)}; rename {title!r}")
        found[key] = body
    return found


def merged_card(
    existing: DatasetCard | None, pieces: Mapping[str, Markup], *, pushed: Collection[str], title: str, **about: Any
) -> DatasetCard:
    """The card with these pieces between the marks; everything outside them stays as it is.

    Pieces of earlier pushes stay, too, but for those that are about a split that is pushed now.

    Args:
        existing: The repository's card.
        pieces: By key.
        pushed: Keys of the splits that are pushed.
        title: Of a card that is new.
        about: What else the template asks for.
    """
    region = REGION.search("" if existing is None else existing.text)
    found = [] if region is None else PIECE.finditer(region[0])
    old = {m[1]: Markup(m[2].strip()) for m in found if not _about(m[1]) & {*pushed}}  # noqa: S704 (ours)
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
        raise ValueError("the template of the card has lost its marks")
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


def _draw_sheet(scores: VoGScores, dataset: Any, column: str, path: Path) -> bool:
    """Thumbnails of both ends of the ranking; False where rows have no pictures."""
    try:
        contact_sheet(scores, dataset, column=column, count=min(SHEET_ROWS, len(scores))).save(path)
    except DataError:
        return False
    return True


def _ends(scores: VoGScores, dataset: Any, column: str) -> list[End]:
    """Both ends of the ranking in numbers, with their texts where there are any and a data set is given."""
    found = []
    for title, rows in zip(("Highest", "Lowest"), most_extreme(scores, column, LISTED_ROWS), strict=True):
        known = rows[np.isfinite(scores.column(column)[rows].astype(np.float64))]
        texts = [None] * len(known) if dataset is None else show_rows(dataset, known)
        labels, predictions = (
            row_values(scores, name, known) if name in scores.column_names else [None] * len(known)
            for name in ("label", "prediction")
        )
        values = row_values(scores, column, known)
        lines = [
            Row(int(row), _value(label), _value(guess), number(value), as_text(text or "", TEXT_WIDTH))
            for row, label, guess, value, text in zip(known, labels, predictions, values, texts, strict=True)
        ]
        found.append(End(title, lines))
    return [end for end in found if end.rows]


def _value(value: Any) -> Markup:
    return as_text(value if isinstance(value, str) else number(value), NAME_WIDTH)


def _facts(scores: VoGScores) -> list[tuple[str, str]]:
    """How the scores were made; nothing where their manifest says nothing."""
    manifest = scores.manifest
    return run_facts(scores) if manifest.get("snapshots") or manifest.get("config", {}).get("target") else []


def _slug(title: str) -> str:
    return re.sub(r"[^\w]+", "-", str(title).lower()).strip("-")[:NAME_WIDTH]
