"""The check that rows are the same each time they are read, since VoG would measure a random transform."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from vog_hf.errors import DataError
from vog_hf.gradients.model_mode import preserved_rng, seed_global_streams


def require_deterministic(
    batches: Sequence[Sequence[int]],
    read: Callable[[Sequence[Sequence[int]]], list[list[Any]]],
    collate: Callable[[Sequence[int], list[Any]], Mapping[str, object]],
) -> None:
    """Read the rows of batches twice under different random states.

    Args:
        batches: Row numbers of each batch.
        read: Function that reads the rows of each batch.
        collate: Function from row numbers and rows to the inputs of a batch.

    Raises:
        DataError: They differ: the transform or the collator is random, and VoG would measure it instead of the model.
    """
    with preserved_rng():
        readings: list[list[Mapping[str, object]]] = []
        rows_of_batches: list[list[Any]] = []
        for seed in (0, 1):
            seed_global_streams(seed)
            rows_of_batches = read(batches)
            readings.append([collate(rows, several) for rows, several in zip(batches, rows_of_batches, strict=True)])
        for rows, several, first, second in zip(batches, rows_of_batches, *readings, strict=True):
            name = _differing(first, second)
            if name is not None:
                seed_global_streams(0)
                again = _differing(collate(rows, several), second)
                raise DataError(_random(name, rows, in_collator=again is not None))


def _differing(first: Mapping[str, object], second: Mapping[str, object]) -> str | None:
    """The first tensor that is another one in two readings."""
    return next((n for n, value in first.items() if isinstance(value, Tensor) and not _equal(value, second[n])), None)


def _random(name: str, rows: Sequence[int], *, in_collator: bool) -> str:
    """Text of the error for rows that differ between two readings."""
    differs = f"{name!r} of rows {rows[0]}-{rows[-1]} differs between two readings"
    if in_collator:
        return (
            f"{differs}: the collator is random (masks, noise), so VoG would measure its draws. Fix each row's draw: "
            "collate_fn=SeededPerRow(collator), from vog_hf.data, or pass a collator that draws nothing"
        )
    return (
        f"{differs}: the dataset's transform is random (crop, flip, dropout, masking), so VoG would measure the "
        "transform. Pass the rows with the evaluation transform: VoGCallback(dataset.with_transform(eval_transform)); "
        "draw a mask that the task needs in the collator: collate_fn=SeededPerRow(collator), from vog_hf.data"
    )


def _equal(first: Tensor, second: object) -> bool:
    """Same values, NaN equal to NaN (a NaN input is another check's to name)."""
    if not isinstance(second, Tensor) or first.shape != second.shape:
        return False
    same = first == second
    return bool((same | (first.isnan() & second.isnan())).all() if first.is_floating_point() else same.all())
