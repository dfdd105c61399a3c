"""The fast tokenizer behind what a trainer calls its processing class."""

from tokenizers import Tokenizer


def fast_tokenizer(processing_class: object) -> str | None:
    """A fast tokenizer as JSON, the content of its ``tokenizer.json``; None without one.

    Args:
        processing_class: A tokenizer of transformers, a processor with one, or anything else.

    Example:
        >>> fast_tokenizer(None) is None
        True
    """
    candidates = (processing_class, getattr(processing_class, "tokenizer", None))
    backends = (getattr(candidate, "backend_tokenizer", None) for candidate in candidates)
    return next((backend.to_str() for backend in backends if isinstance(backend, Tokenizer)), None)
