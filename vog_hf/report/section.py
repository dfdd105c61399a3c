"""A section of the page: everything it shows of one split, as the template asks for it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.evaluation import HardTail, stability_in_words
from vog_hf.report import figures
from vog_hf.report.cards import SOUND_BYTES, CardMaker
from vog_hf.report.data_columns import dataset_name
from vog_hf.report.galleries import Gallery, class_galleries, most_changed, places
from vog_hf.report.tables import (
    RowsTable,
    TextTable,
    classes_table,
    detection_table,
    measures_table,
    rows_table,
    units_table,
)
from vog_hf.runtime.files import format_bytes
from vog_hf.scores import descriptions as wording
from vog_hf.scores.findings import Findings
from vog_hf.scores.formatting import signed
from vog_hf.scores.ranking import class_names, has_classes, most_extreme
from vog_hf.scores.scored_rows import ScoredSplit

MAX_CLASS_GALLERIES = 20


@dataclass(frozen=True)
class Options:
    """The numbers of rows that are shown, as in `vog_hf.report.write_report`."""

    top_k: int
    per_class: int
    max_table_rows: int


class Section:
    """The section of the page about one split.

    Args:
        split: Scores of at least one row with their rows; without rows, no pictures and texts are shown.
        ident: Beginning of the section's element ids.
        options: Numbers of rows that are shown.
    """

    def __init__(self, split: ScoredSplit, ident: str, options: Options) -> None:
        self.scores = scores = split.scores
        self.name = split.name
        self.ident = ident
        self.findings = Findings(split)
        self.column = self.findings.column
        self.title = self.findings.title
        self.n_excluded = int((~self.findings.is_finite).sum())
        self.run_facts = wording.run_facts(scores)
        self.digests = wording.digests(scores)
        self.meanings = wording.column_meanings(scores)
        self.dataset_name = dataset_name(split)
        self._split = split
        self._options = options
        self._make = CardMaker(split, self.column, self.findings.recommended.column)

    # Findings

    @property
    def tail(self) -> HardTail:
        """The hard tail of the ranking in this run."""
        return self.findings.tail

    @property
    def opening(self) -> list[str]:
        """The verdict, the ranking to start with, and the next command, a sentence each."""
        return self.findings.opening("vog-hf review SCORES, with the folder of the scores.")

    @property
    def measures(self) -> TextTable | None:
        """The numbers behind the verdict."""
        return measures_table(self.tail)

    @property
    def correlations(self) -> pd.DataFrame | None:
        """Spearman rank correlations."""
        return self.findings.correlations

    @property
    def detection(self) -> TextTable | None:
        """Table of how well each column finds the rows that are known to be mislabeled."""
        return None if self.findings.detection is None else detection_table(self.findings.detection)

    @property
    def detection_note(self) -> str:
        """Explanation of that table."""
        return wording.DETECTION_NOTE

    @property
    def key_figures(self) -> list[tuple[str, str]]:
        """A few key numbers for the top of this section: names and values."""
        shown = [("rows", f"{len(self.scores):,}")]
        if snapshots := self.scores.facts.snapshots:
            shown.append(("snapshots", str(len(snapshots))))
        if self.findings.no_errors is None:
            shown.append(("last prediction wrong", f"{self.findings.is_error.mean():.1%}"))
        raw = self.findings.raw  # named, because the headline's correlation is that of the ranking column
        for other, name in (("loss", "loss"), ("gradient_magnitude", "mean |gradient|")):
            if self.correlations is not None and other in self.correlations and other != raw:
                shown.append((f"Spearman of {raw} with {name}", signed(float(self.correlations[raw][other]))))
        return shown

    @cached_property
    def charts(self) -> list[figures.Drawing]:
        """Every figure that the columns allow, the most informative first; that of classes is next to their table."""
        findings, table, ident, drawn = self.findings, self.findings.table, self.ident, []
        if (deciles := findings.deciles) is not None:
            drawn.append(figures.decile_figure(deciles, self.column, f"{ident}-deciles"))
        if (early_late := findings.early_late) is not None:
            drawn.append(figures.early_late_figure(early_late, f"{ident}-early-late"))
        if len(table) and {"confidence", "variability"} <= set(table):
            x, y, color = (table[name].to_numpy() for name in ("variability", "confidence", findings.raw))
            drawn.append(figures.data_map_figure(x, y, color, f"{ident}-map", name=findings.title))
        if len(table):
            values = table[findings.raw].to_numpy(dtype=np.float64)
            unit = wording.unit_of_column(self.scores, findings.raw)
            drawn.append(figures.histogram_figure(values, unit, f"{ident}-spread", name=findings.title))
        if (patterns := findings.learning_patterns) is not None:
            drawn.append(figures.learning_pattern_figure(patterns, f"{ident}-patterns"))
        if (stability := findings.stability) is not None:
            drawn.append(figures.stability_figure(stability, stability_in_words(stability), f"{ident}-stability"))
        return drawn

    # Rows

    @cached_property
    def galleries(self) -> list[Gallery]:
        """The rows to open first, the two ends of the ranking, and the rows that changed most."""
        count = min(self._options.top_k, max(1, int(self.findings.is_finite.sum()) // 2))  # no row at both ends
        highest, lowest = most_extreme(self.scores, self.column, count)
        by = f"By {self.column}, most extreme first."
        candidates = [
            *self._first_rows(count),
            (wording.tail_title(self.tail.named_tail, "highest"), by, "high", highest),
            (wording.tail_title(self.tail.named_tail, "lowest"), by, "low", lowest),
        ]
        changed = most_changed(self.scores, self._options.top_k)
        if changed is not None:
            candidates.append((changed.title, changed.note, "changed", changed.rows))
        known = [(title, note, tone, rows[self.findings.is_finite[rows]]) for title, note, tone, rows in candidates]
        return [
            Gallery(title, note, tone, f"{self.ident}-{tone}", self._make.cards(rows))
            for title, note, tone, rows in known
            if len(rows)
        ]

    def _first_rows(self, count: int) -> list[tuple[str, str, str, npt.NDArray[np.int64]]]:
        """The gallery of the recommended ranking; none if that is the ranking of the other galleries."""
        start = self.findings.recommended
        if start.column == self.column:
            return []
        rows = most_extreme(self.scores, start.column, count)[0 if start.end == "highest" else 1]
        return [(f"Rows to open first: {start.end} {start.column}", "", "start", rows)]

    @cached_property
    def places(self) -> dict[int, str]:
        """Id of the first card of each row that is in a gallery."""
        return places([*self.galleries, *(one for _, of_class in self.class_galleries for one in of_class)])

    @cached_property
    def class_galleries(self) -> list[tuple[str, list[Gallery]]]:
        """The ends of the ranking within each class, with the class's name."""
        classes, per_class = self.findings.classes, self._options.per_class
        if classes is None or not per_class:
            return []
        return class_galleries(
            self.scores,
            self._make,
            self.column,
            classes,
            self.ident,
            per_class=per_class,
            limit=MAX_CLASS_GALLERIES,
        )

    @property
    def class_galleries_note(self) -> str:
        """Classes with galleries; empty if all have."""
        classes = self.findings.classes
        n_classes = 0 if classes is None else int((classes["class"] >= 0).sum())
        if classes is None or n_classes <= MAX_CLASS_GALLERIES:
            return ""
        by = "the highest error" if "error" in classes else "the most rows"
        return f"Of {n_classes:,} classes, the {MAX_CLASS_GALLERIES} with {by}."

    @property
    def has_classes(self) -> bool:
        """Return whether each row has one class."""
        return has_classes(self.scores)

    @property
    def has_traces(self) -> bool:
        """Return whether cards have a line of the confidence."""
        return "confidence" in self.scores.trajectory_names

    @property
    def heat_kinds(self) -> set[str]:
        """The forms that heat maps have here: those of `Heat.kind`, and ``"words"``."""
        cards = [card for gallery in self.galleries for card in gallery.cards]
        kinds = {card.heat.kind for card in cards if card.heat is not None}
        return kinds | {"words" for card in cards if card.words is not None}

    @property
    def boxes_note(self) -> str:
        """Text about the boxes in pictures; "" without boxes."""
        return wording.boxes_note(self.scores).strip()

    @property
    def heat_note(self) -> str | None:
        """Explanation of the heat maps in the forms that they have here; None without heat maps."""
        return wording.heat_note(self.scores, self.heat_kinds) if self.heat_kinds else None

    @property
    def sounds_note(self) -> str:
        """Number of shown rows without their sound; empty if none."""
        cards = [*self.galleries, *(gallery for _, galleries in self.class_galleries for gallery in galleries)]
        n_left_out = self._make.n_unplayed if cards else 0
        most = format_bytes(SOUND_BYTES)
        return f"{n_left_out:,} sounds are left out: a page holds at most {most} of them." if n_left_out else ""

    @cached_property
    def worst_units(self) -> TextTable | None:
        """The table of the units with the highest loss."""
        return units_table(self._split, self._options.top_k)

    @property
    def class_figure(self) -> figures.Drawing | None:
        """The chart of classes."""
        classes = self.findings.classes
        if classes is None:
            return None
        known = classes[classes["class"] >= 0].reset_index(drop=True)
        return figures.class_figure(
            known, class_names(self.scores, known["class"]), f"{self.ident}-classes", name=self.title
        )

    @property
    def classes(self) -> TextTable | None:
        """The table of classes."""
        return None if self.findings.classes is None else classes_table(self.scores, self.findings.classes, self.title)

    @cached_property
    def table(self) -> RowsTable | None:
        """The table of rows; None if it is turned off."""
        if not self._options.max_table_rows:
            return None
        are_texts = any(card.text is not None for gallery in self.galleries for card in gallery.cards)
        return rows_table(self._split, self.column, self._options.max_table_rows, has_texts=are_texts)

    @cached_property
    def listed(self) -> frozenset[int]:
        """Rows of that table."""
        return frozenset(self.table.rows if self.table else ())

    @property
    def label_column(self) -> int | None:
        """Index of the column of that table that holds the label as a class; None without one."""
        words = list(self.table.headings[: self.table.text_columns]) if self.table else []
        return words.index("label") if "label" in words else None
