"""One row as every output shows it; each writes it in its own form."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vog_hf.metric.pixel_maps import GIVEN_MAP, LOSS_MAP, PREDICTED_MAP, map_of_row
from vog_hf.metric.unit_kinds import CHOICE
from vog_hf.scores.audio import Sound
from vog_hf.scores.label_lists import LabelLists
from vog_hf.scores.pictures.boxes import Box, row_boxes, with_boxes
from vog_hf.scores.pictures.heat_maps import THUMBNAIL, finite_heat, heat_by_itself, overlay, thumbnail
from vog_hf.scores.pictures.row_content import ShownRows
from vog_hf.scores.pictures.unit_lines import UnitLine, unit_lines
from vog_hf.scores.pictures.unit_words import heat_of_units, words_of_units
from vog_hf.scores.pictures.words import Word, word_finder
from vog_hf.scores.ranking import has_classes, row_values
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores


@dataclass(frozen=True, eq=False)
class RowView:
    """Everything about one row that an output can show.

    Attributes:
        scores: Scores of all rows.
        row: Number of the row.
        picture: Its picture, in the size in which it is shown; None without one.
        size: Width and height of the picture before it was brought to that size.
        text: Its text; None for a row with a picture, or with neither.
        file: Name of the file that its picture or sound was read from, without its folder; None without one.
        shown: The rows, to read more of it.
        label_lists: Labels of the units of all rows in the dataset; None where they are not known, or there are none.
    """

    scores: VoGScores
    row: int
    picture: Image.Image | None = None
    size: tuple[int, int] | None = None
    text: str | None = None
    file: str | None = None
    shown: ShownRows | None = None
    label_lists: LabelLists | None = None

    @property
    def sound(self) -> Sound | None:
        """Its sound, read again each time; None without one that can be played, or over the budget of the views."""
        return None if self.shown is None else self.shown.sounds.sound(self.row)

    @property
    def id(self) -> str | None:
        """The row's id; None for scores without ids."""
        return None if self.scores.ids is None else str(self.scores.ids[self.row])

    @cached_property
    def label(self) -> str | int | float | None:
        """The given label: name or number of a class, or the number itself; None for a row without one."""
        return self.value("label")

    @cached_property
    def prediction(self) -> str | int | float | None:
        """The last prediction, likewise."""
        return self.value("prediction")

    @property
    def is_misclassified(self) -> bool:
        """Return whether label and last prediction are known classes and differ."""
        return has_classes(self.scores) and None not in (self.label, self.prediction) and self.label != self.prediction

    def value(self, column: str) -> str | int | float | None:
        """A column's value as a reader wants it (see `row_values`); None without a value or without the column."""
        names = self.scores.column_names + self.scores.text_column_names
        return row_values(self.scores, column, [self.row])[0] if column in names else None

    @cached_property
    def boxes(self) -> list[Box]:
        """The objects of this row, given and predicted; none where rows have no objects."""
        return [] if self.picture is None else row_boxes(self.scores, self.row)

    @property
    def boxed_picture(self) -> Image.Image | None:
        """Its picture with the boxes of its objects; the picture itself without objects."""
        return None if self.picture is None else with_boxes(self.picture, self.boxes)

    @cached_property
    def heat_map(self) -> npt.NDArray[np.float32] | None:
        """The heat map of this row, finite and >= 0, with one or two axes; of a mask, its loss; None without one."""
        if self.scores.pixels is not None:
            loss = map_of_row(self.scores.pixels, LOSS_MAP, self.row)
            return None if loss is None else finite_heat(loss)
        if not self.scores.has_heat_maps:
            return None
        heat = finite_heat(self.scores.heat_map(self.row))
        return heat if heat.size and heat.ndim in (1, 2) else None

    @property
    def masks(self) -> dict[str, npt.NDArray[Any]]:
        """The ``given`` and the ``predicted`` classes of its mask, ``[height, width]``; {} without a mask."""
        pixels = self.scores.pixels
        if pixels is None or not pixels.sizes[self.row]:
            return {}
        named = {"given": GIVEN_MAP, "predicted": PREDICTED_MAP}
        return {name: np.asarray(map_of_row(pixels, column, self.row)) for name, column in named.items()}

    @cached_property
    def heat_picture(self) -> Image.Image | None:
        """The heat map over the row's picture, or by itself; None without one."""
        if self.heat_map is None:
            return None
        if self.picture is not None and self.heat_map.ndim == 2:
            return overlay(self.picture, self.heat_map)
        return heat_by_itself(self.heat_map)

    @cached_property
    def words(self) -> list[Word] | None:
        """The text in parts with the heat of its tokens; None where they cannot be found in it.

        Of a row with units the heat is their loss: see `vog_hf.scores.pictures.unit_words`.
        """
        if self.shown is None or not self.scores.facts.reads_tokens:
            return None
        words = None
        if self.listed_words is not None and self.label_lists is not None:
            words = words_of_units(self.scores, self.row, self.listed_words, self.label_lists.names)
        if words is not None:
            return words
        if self.heat_map is None or self.heat_map.ndim != 1:
            return None
        heat = heat_of_units(self.scores, self.row, len(self.heat_map))
        return self.shown.words(self.row, self.heat_map if heat is None else heat, self.scores.longest_heat_map)

    @cached_property
    def listed_words(self) -> list[str] | None:
        """The words of a row that has a label for each of them; None for any other."""
        lists = self.label_lists
        listed = None if lists is None or self.shown is None else self.shown.word_list(self.row)
        return None if lists is None or listed is None or len(listed) != lists.counts[self.row] else listed

    @cached_property
    def unit_lines(self) -> list[UnitLine]:
        """The row's units in words, of kinds of which a row has few: see `vog_hf.scores.pictures.unit_lines`."""
        return unit_lines(self.scores, self.row, self._part, self.choices)

    @cached_property
    def choices(self) -> list[str] | None:
        """The text of each choice of the row; None where they are not known, or rows have no choices."""
        units = self.scores.units
        if self.shown is None or units is None or units.unit != CHOICE.name:
            return None
        return self.shown.choices.of_row(self.row, int(units.sizes[self.row]))

    def token(self, place: int) -> str | None:
        """The text of a token of the row; None where it is not known."""
        return self._part(place, place)

    def _part(self, first: int, last: int) -> str | None:
        """The row's text from one token to another."""
        if self.shown is None or self.heat_map is None:
            return None
        return self.shown.part(self.row, (first, last), self.heat_map.size, self.scores.longest_heat_map)

    @property
    def confidence(self) -> npt.NDArray[np.float64] | None:
        """Probability of the given label, ``[snapshots]``; None with fewer than two finite values."""
        if "confidence" not in self.scores.trajectory_names:
            return None
        values = np.asarray(self.scores.trajectory("confidence")[self.row], dtype=np.float64)
        return values if np.isfinite(values).sum() > 1 else None

    @property
    def is_correct(self) -> npt.NDArray[np.bool_] | None:
        """``[snapshots]``, whether the model predicted the given label; None without classes or a label."""
        scores = self.scores
        if not has_classes(scores) or "prediction" not in scores.trajectory_names or self.label is None:
            return None
        return np.asarray(scores.trajectory("prediction")[self.row] == scores.column("label")[self.row])


class RowViews:
    """Views of the rows of a split; a row is read once, and its thumbnail made once, while its view is cached.

    Args:
        split: Scores with their rows; without rows, views have numbers alone.
        side: Longer side of pictures in pixels.
        fit: Function that brings a picture to that side; default: `thumbnail`.
        is_from_hub: Whether the rows are known to be from the Hub: see `vog_hf.data.referenced_files`.
        cache_size: Number of most recent views that are kept; default: all.
        sound_bytes: Bytes of sounds that the views give out in all; default: no bound.

    Example:
        >>> split = ScoredSplit("", VoGScores({"vog": np.array([0.2, 0.1])}, {}), ["a text", "another"])
        >>> RowViews(split).view(1).text
        'another'
    """

    def __init__(
        self,
        split: ScoredSplit,
        side: int = THUMBNAIL,
        *,
        fit: Callable[[Image.Image, int], Image.Image] = thumbnail,
        is_from_hub: bool = False,
        cache_size: int | None = None,
        sound_bytes: int | None = None,
    ) -> None:
        self.scores = split.scores
        self._split = split
        self.side = side
        self._fit = fit
        self._rows = None
        if split.rows is not None:
            self._rows = ShownRows(
                split.rows,
                self.scores.facts,
                finder=word_finder(self.scores.tokenizer),
                is_from_hub=is_from_hub,
                sound_bytes=sound_bytes,
            )
        self._view = lru_cache(maxsize=cache_size)(self._read)

    @property
    def have_sounds(self) -> bool:
        """Whether the rows are known to have a column of sounds."""
        return self._rows is not None and self._rows.sounds.any

    @property
    def n_unplayed(self) -> int:
        """Number of rows with a sound that was not given out, because of the bound on all sounds."""
        return 0 if self._rows is None else self._rows.sounds.n_over_budget

    def view(self, row: int) -> RowView:
        """The view of a row."""
        return self._view(int(row))

    def views(self, rows: Iterable[int]) -> list[RowView]:
        """The views of these rows, in this order."""
        return [self.view(row) for row in rows]

    def _read(self, row: int) -> RowView:
        if self._rows is None:
            return RowView(self.scores, row)
        content, file = self._rows.show(row, self.side), self._rows.file(row)
        if isinstance(content, Image.Image):
            picture = self._fit(content, self.side)
            return RowView(self.scores, row, picture, content.size, file=file, shown=self._rows)
        labels = self._split.label_lists
        return RowView(self.scores, row, text=content, file=file, shown=self._rows, label_lists=labels)
