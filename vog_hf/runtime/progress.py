"""A progress bar for a terminal."""

from typing import Any

from tqdm.auto import tqdm


def progress_bar(total: int | None, *, is_shown: bool) -> Any:
    """A bar that counts rows times snapshots up to ``total``, if known; only shown on a terminal."""
    return tqdm(total=total, unit="row", desc="VoG", disable=None if is_shown else True)
