"""Texts as tokens: padding, empty texts, and the length that tokenizer and model allow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vog_hf.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase


ROWS_AT_ONCE = 10_000  # in memory during the search for missing inputs
UNBOUNDED = 10**6  # tokens; tokenizers without a limit report a larger number


def require_padding(tokenizer: "PreTrainedTokenizerBase", config: Any) -> None:
    """Set the tokenizer's padding token from the model's configuration if it has none.

    Raises:
        ModelError: The model has no padding token either.
    """
    if tokenizer.pad_token is not None:
        return
    if config.pad_token_id is None:
        raise ModelError(
            "neither tokenizer nor model has a padding token, so texts of different lengths cannot share a batch; set "
            "pad_token in the tokenizer and pad_token_id in the model's config.json as in the training"
        )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)


def require_tokens(dataset: "Dataset", inputs: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> None:
    """Raise DataError if a text is empty and the tokenizer adds no special tokens."""
    from vog_hf.data.column_kinds import columns_of_kind

    if not set(inputs) <= set(columns_of_kind(dataset, "text")) or len(tokenizer("")["input_ids"]):
        return
    first = 0
    for part in dataset.with_format("arrow").select_columns(list(inputs)).iter(ROWS_AT_ONCE):
        texts = zip(*(part.column(name).to_pylist() for name in inputs), strict=True)
        empty = next((row for row, row_texts in enumerate(texts, first) if not "".join(row_texts).strip()), None)
        if empty is not None:
            raise DataError(
                f"row {empty:,} has an empty text in column {inputs[0]!r}, which gives no tokens; leave it out, or "
                "pass on_error='skip'",
                argument="on_error='skip'",
            )
        first += len(part)


def token_limit(tokenizer: "PreTrainedTokenizerBase", model: "nn.Module", requested: int | None) -> int | None:
    """Maximum length of texts in tokens; None: no known limit.

    Raises:
        ConfigError: The model has fewer positions than the requested length.
    """
    positions = n_positions(model, tokenizer)
    if requested is not None and positions is not None and requested > positions:
        raise ConfigError(
            f"--max-length {requested} is more than the {positions} tokens that the model has positions for; lower it"
        )
    if requested is not None:
        return requested
    limits = [tokenizer.model_max_length, positions]
    known = [limit for limit in limits if isinstance(limit, int) and 0 < limit < UNBOUNDED]
    return min(known, default=None)


def n_positions(model: "nn.Module", tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Number of tokens for which a model has learned positions; None: positions are relative and unlimited.

    The table of positions is the embedding that a short text reads at consecutive rows. The first of these rows
    determines how many are left: RoBERTa starts at ``padding_idx + 1``, OPT and BART at 2.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    batch = tokenizer(["a a a a"], return_tensors="pt")
    tokens, pad = batch["input_ids"], getattr(model.config, "pad_token_id", None)
    if pad is not None:
        tokens = tokens.masked_fill(tokens == pad, 0 if pad else 1)  # an unknown word may become padding
    n_tokens, limits = tokens.shape[1], []

    class Reads(TorchDispatchMode):
        """Records each table that is read at consecutive rows, one per token."""

        def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.embedding.default:
                table, rows = args[0], args[1].flatten()[:n_tokens]
                if n_tokens > 1 and len(rows) == n_tokens and bool((rows.diff() == 1).all()):
                    limits.append(len(table) - int(rows[0]))
            return func(*args, **(kwargs or {}))

    inner: Any = getattr(model, "base_model", model)  # some heads take several texts per row
    config: Any = model.config
    decoder = {"decoder_input_ids": tokens} if config.is_encoder_decoder else {}
    with torch.no_grad(), Reads():
        inner(input_ids=tokens, attention_mask=torch.ones_like(tokens), **decoder)
    return min(limits, default=None)
