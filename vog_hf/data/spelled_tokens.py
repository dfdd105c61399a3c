"""Slow tokenizers spelled out: the letters of each token, which only Python code knows, as a tokenizer that decodes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # of SentencePiece
MAX_TOKENS = 500_000
N_NEIGHBORS = 50  # tokens that are tried as the neighbor of all others
N_CHECKS, CHECKED_TOKENS = 100, 20


@dataclass(frozen=True)
class _Token:
    """The letters of a token between two others, and whether spaces surround them there."""

    letters: str
    has_space_before: bool
    has_space_after: bool


def spelled_out(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A tokenizer that decodes as a slow one does, as the content of a ``tokenizer.json``; it encodes nothing.

    A token is spelled by `convert_tokens_to_string` between two others, and random sequences are compared with it. None
    where they differ: the letters of a token depend on other tokens, or a token is a byte or a single character.

    Args:
        tokenizer: A tokenizer in Python. Its vocabulary is read; nothing of it is changed.
    """
    try:
        if tokenizer.vocab_size > MAX_TOKENS:
            return None
        names = {number: name for name, number in tokenizer.get_vocab().items()}
        special = {number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id}
        tokens = _spelled(tokenizer, {number: name for number, name in names.items() if number not in special})
    except Exception:  # a tokenizer may be anybody's code
        logger.debug("the tokens of %s are not spelled out", type(tokenizer).__name__, exc_info=True)
        return None
    if tokens is None:
        return None
    pieces = _pieces(tokens)
    vocabulary = [pieces.get(number, names.get(number, f"[{number}]")) for number in range(max(names) + 1)]
    spelled = Tokenizer(models.Unigram([(piece, 0.0) for piece in vocabulary]))
    spelled.add_special_tokens([AddedToken(names[number], normalized=False) for number in sorted(special)])
    spelled.normalizer = normalizers.Replace(Regex(r"[\s\S]+"), "")  # a text has no tokens, rather than wrong ones
    spelled.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 1)])
    return spelled.to_str()


def _spelled(tokenizer: PreTrainedTokenizerBase, names: Mapping[int, str]) -> dict[int, _Token] | None:
    """The tokens by number, as they are spelled between two others; None if that is not how texts are made of them."""
    ordered = [names[number] for number in sorted(names)]
    step = max(1, len(ordered) // N_NEIGHBORS)
    neighbor = next((name for name in ordered[::step] if _is_word(tokenizer, name)), None)
    if neighbor is None:
        return None
    tokens = {number: _between(tokenizer, name, neighbor) for number, name in names.items()}
    known = {number: token for number, token in tokens.items() if token is not None}
    one_side = all(t.has_space_after for t in known.values()) or all(t.has_space_before for t in known.values())
    if len(known) < len(names) or not one_side:
        return None
    return known if _are_texts(tokenizer, names, known, neighbor) else None


def _is_word(tokenizer: PreTrainedTokenizerBase, name: str) -> bool:
    """True if a token by itself is a word: twice, it gives its letters twice with a space between them."""
    letters = tokenizer.convert_tokens_to_string([name])
    return letters.isalpha() and tokenizer.convert_tokens_to_string([name, name]) == f"{letters} {letters}"


def _between(tokenizer: PreTrainedTokenizerBase, name: str, neighbor: str) -> _Token | None:
    """A token as it is spelled between two others; None if these are spelled in another way there."""
    word = tokenizer.convert_tokens_to_string([neighbor])
    text = tokenizer.convert_tokens_to_string([neighbor, name, neighbor])
    if len(text) < 2 * len(word) or not (text.startswith(word) and text.endswith(word)):
        return None
    middle = text[len(word) : len(text) - len(word)]
    return _Token(middle.strip(), middle[:1] == " ", middle[-1:] == " ")


def _are_texts(
    tokenizer: PreTrainedTokenizerBase, names: Mapping[int, str], tokens: Mapping[int, _Token], neighbor: str
) -> bool:
    """True if random sequences of tokens, between two words, are spelled as the tokens one by one."""
    draw, numbers, pieces = np.random.default_rng(0), sorted(names), _pieces(tokens)
    (word,) = (number for number in numbers if names[number] == neighbor)
    for _ in range(N_CHECKS):
        drawn = [word, *draw.choice(numbers, CHECKED_TOKENS).tolist(), word]
        text = "".join(pieces[number] for number in drawn).replace(SPACE, " ").strip()
        if text != tokenizer.convert_tokens_to_string([names[number] for number in drawn]).strip():
            return False
    return True


def _pieces(tokens: Mapping[int, _Token]) -> dict[int, str]:
    """The letters of tokens with a mark for the space before a word or, where that depends on its end, behind it."""
    if all(token.has_space_after for token in tokens.values()):
        return {number: SPACE * token.has_space_before + token.letters for number, token in tokens.items()}
    return {number: token.letters + SPACE * token.has_space_after for number, token in tokens.items()}
