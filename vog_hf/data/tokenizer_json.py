"""The tokenizer behind what a trainer calls its processing class, as a file that finds and spells tokens anywhere."""

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from vog_hf.data.spelled_tokens import spelled_out


def tokenizer_json(processing_class: object) -> str | None:
    """A tokenizer as JSON, the content of a ``tokenizer.json``; None without one that can be written so.

    A slow tokenizer gives one that only decodes (see `spelled_out`).

    Args:
        processing_class: A tokenizer of transformers, a processor with one, or anything else.

    Example:
        >>> tokenizer_json(None) is None
        True
    """
    candidates = (processing_class, getattr(processing_class, "tokenizer", None))
    for candidate in candidates:
        backend = getattr(candidate, "backend_tokenizer", None)
        if isinstance(backend, Tokenizer):
            return backend.to_str()
        if isinstance(candidate, PreTrainedTokenizerBase):
            return spelled_out(candidate)
    return None
