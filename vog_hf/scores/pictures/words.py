"""The heat of a text on its words: the tokens that the model saw, found again in the text by its tokenizer."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from tokenizers import Encoding, Tokenizer

from vog_hf.scores.formatting import printable

logger = logging.getLogger(__name__)

# A page sets --h of each token to its share of the row's largest heat; ink on this stays readable in light and dark.
WORDS_STYLE = """.words span { background: color-mix(in srgb, #e8590c calc(var(--h) * 60%), transparent); \
border-radius: .2em; } .words i { opacity: .6; font-style: normal; } \
.words b { font-weight: inherit; border-bottom: 2px dotted; }"""
SHADES = 20  # steps of --h
SPACE_MARKS = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")  # byte pairs, SentencePiece
CONTINUED = "##"  # of WordPiece


@dataclass(frozen=True)
class Word:
    """A part of a text.

    Attributes:
        text: The part, as it stands in the text.
        heat: Share of the largest heat among the tokens of the text, 0..1; None between tokens.
        is_unseen: Whether it lies behind the tokens that the model saw.
        note: What is known of it, to be shown where it is pointed at.
        is_mismatched: Whether its given label is not the predicted one.
    """

    text: str
    heat: float | None = None
    is_unseen: bool = False
    note: str = ""
    is_mismatched: bool = False


class WordFinder:
    """Finds the tokens of a heat map in the text of a row.

    Args:
        tokenizer: A tokenizer as JSON, the content of its ``tokenizer.json``; one that only decodes finds no token in a
            text, and spells token ids.

    Raises:
        ValueError: It is not one.

    Example:
        >>> from tokenizers.models import WordLevel
        >>> from tokenizers.pre_tokenizers import Whitespace
        >>> tokenizer = Tokenizer(WordLevel({"a": 0, "cat": 1}, unk_token="a"))
        >>> tokenizer.pre_tokenizer = Whitespace()
        >>> finder = WordFinder(tokenizer.to_str())
        >>> [(word.text, word.heat) for word in finder.words(["a cat"], np.array([1.0, 2.0]))]
        [('a', 0.5), (' ', None), ('cat', 1.0)]
        >>> finder.words(["a cat"], np.array([1.0, 2.0, 3.0])) is None
        True
    """

    def __init__(self, tokenizer: str) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        except Exception as error:  # the library raises no other class
            raise ValueError(f"not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._lock = threading.Lock()  # truncation is a state of the tokenizer

    def words(
        self, texts: Sequence[str], heat: npt.NDArray[np.float32], *, cut_at: int | None = None
    ) -> list[Word] | None:
        """The parts of a text, or of a pair of texts on two lines; None if its tokens are not those of the heat map.

        Args:
            texts: One text or two.
            heat: ``[tokens]``, special ones included.
            cut_at: Number of tokens at which inputs were cut, if they were.
        """
        encoded = self._encoded(texts, len(heat), cut_at)
        if encoded is None:
            return None
        places = list(zip(encoded.offsets, encoded.sequence_ids, heat.tolist(), strict=True))
        largest = max((value for _, of_text, value in places if of_text is not None), default=0.0)
        words: list[Word] = []
        for number, text in enumerate(texts):
            words += [Word("\n")] if number else []
            tokens = [(offsets, _share(value, largest)) for offsets, of_text, value in places if of_text == number]
            words += _parts(text, tokens)
        return words

    def part(self, texts: Sequence[str], n_tokens: int, ends: tuple[int, int], *, cut_at: int) -> str | None:
        """The part of a text from one token to another; None where they are not in one text.

        Args:
            texts: One text or two.
            n_tokens: Number of tokens that the model saw, special ones included.
            ends: Numbers of the first and the last token.
            cut_at: Number of tokens at which inputs were cut, if they were.
        """
        encoded = self._encoded(texts, n_tokens, cut_at)
        if encoded is None or not 0 <= ends[0] <= ends[1] < n_tokens:
            return None
        first, last = (encoded.sequence_ids[at] for at in ends)
        if first is None or first != last:
            return None
        return texts[first][encoded.offsets[ends[0]][0] : encoded.offsets[ends[1]][1]]

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special ones."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def words_of_ids(self, ids: Sequence[int], heat: npt.NDArray[np.float32]) -> list[Word] | None:
        """The parts of the text of token ids; None if there are not as many as tokens in the heat map."""
        if len(ids) != len(heat):
            return None
        text = self.text(ids)
        encoded = self._tokenizer.encode(text)
        if encoded.ids == list(ids):
            return self.words([text], heat)
        return self._token_by_token(ids, heat)

    def _encoded(self, texts: Sequence[str], n_tokens: int, cut_at: int | None) -> Encoding | None:
        """The tokens of texts, cut where the inputs were; None if there are not as many as the model saw."""
        if not 1 <= len(texts) <= 2:
            return None
        text, pair = texts[0], texts[1] if len(texts) > 1 else None
        encoded = self._tokenizer.encode(text, pair)
        if len(encoded.ids) > n_tokens == cut_at:
            with self._lock:
                self._tokenizer.enable_truncation(n_tokens)
                try:
                    encoded = self._tokenizer.encode(text, pair)
                finally:
                    self._tokenizer.no_truncation()
        return encoded if len(encoded.ids) == n_tokens else None

    def _token_by_token(self, ids: Sequence[int], heat: npt.NDArray[np.float32]) -> list[Word]:
        """Each token by itself, for ids that no text gives: pairs of texts, unknown words, additions of a collator."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        added = self._tokenizer.get_added_tokens_decoder().items()
        special = {number for number, token in added if token.special and token.content != unknown}
        plain = [(number, value) for number, value in zip(ids, heat.tolist(), strict=True) if number not in special]
        largest = max((value for _, value in plain), default=0.0)
        names = [str(self._tokenizer.id_to_token(number) or "") for number, _ in plain]
        words: list[Word] = []
        for (number, value), begins in zip(plain, _begin_words(names), strict=True):
            words += [Word(" ")] if words and begins else []
            token = self._tokenizer.decode([number], skip_special_tokens=False).strip().removeprefix(CONTINUED)
            words.append(Word(token, _share(value, largest)))
        return words


def _begin_words(names: Sequence[str]) -> list[bool]:
    """Whether each token begins a word, by the marks for spaces before words, behind words, or of pieces of a word."""
    if any(name.startswith(SPACE_MARKS) for name in names):
        return [name.startswith(SPACE_MARKS) for name in names]
    if any(name.endswith(SPACE_MARKS) for name in names):
        return [before.endswith(SPACE_MARKS) for before in ["", *names[:-1]]]
    return [not name.startswith(CONTINUED) for name in names]


def _parts(text: str, tokens: Sequence[tuple[tuple[int, int], float]]) -> list[Word]:
    """A text in parts: its tokens with their heat, and what lies between them; tokens of one character are joined."""
    spans: list[tuple[int, int, float]] = []
    for offsets, heat in tokens:
        inside = text[slice(*offsets)]
        start = offsets[0] + len(inside) - len(inside.lstrip())
        end = offsets[0] + len(inside.rstrip())
        if spans and start < spans[-1][1]:
            first, last, before = spans[-1]
            spans[-1] = (first, max(last, end), max(before, heat))
        elif start < end:
            spans.append((start, end, heat))
    words, at = [], 0
    for start, end, heat in spans:
        words += [Word(text[at:start])] if at < start else []
        words.append(Word(text[start:end], heat))
        at = end
    rest = text[at:]
    return [*words, Word(rest, is_unseen=bool(rest.strip()))] if rest else words


def beginning(words: Sequence[Word], length: int) -> list[Word]:
    """The first parts of a text, of this many characters in all; then an ellipsis if there are more.

    Example:
        >>> [word.text for word in beginning([Word("cat", 1.0), Word(" dog")], 5)]
        ['cat', ' …']
    """
    kept: list[Word] = []
    left = length
    for word in words:
        if len(word.text) > left:
            return [*kept, replace(word, text=word.text[: max(0, left - 1)] + "…")]
        kept.append(word)
        left -= len(word.text)
    return kept


def words_markup(words: Sequence[Word]) -> Markup:
    """Parts of a text as HTML for a page with `WORDS_STYLE`, inside an element of the class ``words``.

    Example:
        >>> words_markup([Word("a", 0.5), Word(" <"), Word("b", is_unseen=True)])
        Markup('<span style="--h:0.5">a</span> &lt;<i>b</i>')
    """
    return Markup("").join(_markup(word) for word in words)


def _markup(word: Word) -> Markup:
    text = escape(printable(word.text))
    if word.is_unseen:
        return Markup("<i>{}</i>").format(text)
    if word.is_mismatched:
        text = Markup("<b>{}</b>").format(text)
    shade = round(SHADES * (word.heat or 0.0)) / SHADES
    note = Markup(' title="{}"').format(printable(word.note)) if word.note else Markup("")
    if not shade and not note:
        return text
    return Markup('<span style="--h:{}"{}>{}</span>').format(f"{shade:g}", note, text)


@lru_cache(maxsize=4)
def word_finder(tokenizer: str | None) -> WordFinder | None:
    """The finder of a tokenizer; None without one, or with one that cannot be read, which is logged."""
    if tokenizer is None:
        return None
    try:
        return WordFinder(tokenizer)
    except ValueError as error:
        logger.warning("texts are shown without the heat of their words: %s", error)
        return None


def _share(value: float, largest: float) -> float:
    return value / largest if largest > 0 else 0.0
