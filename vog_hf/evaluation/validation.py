"""Checks of input tables: columns of the same rows with one finite value per row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vog_hf.errors import ConfigError, NonFiniteError, require_type, shown

Columns = Mapping[str, npt.ArrayLike] | pd.DataFrame


def require_one_value_per_row(columns: Columns) -> dict[str, npt.NDArray[Any]]:
    """Columns by name, each ``[rows]``, with values of any type.

    Raises:
        ConfigError: Columns of different lengths, or not one value per row.
    """
    require_type("columns", columns, (Mapping, pd.DataFrame), "pass arrays by name, or a table")
    arrays = {str(name): one_array(str(name), values) for name, values in columns.items()}
    lengths = {name: array.shape for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or any(array.ndim != 1 for array in arrays.values()):
        raise ConfigError(f"columns must be one value per row of the same rows, got shapes {lengths}")
    return arrays


def finite_table(columns: Columns) -> pd.DataFrame:
    """A table of finite values from columns of the same rows.

    Raises:
        ConfigError: Columns of different lengths, or not one value per row.
        NonFiniteError: A value is NaN or infinite.
    """
    arrays = require_one_value_per_row(columns)
    for name, array in arrays.items():
        bad = ~np.isfinite(real_numbers(name, array))
        if bad.any():
            raise NonFiniteError(
                f"{name} must be finite, got {array[bad][0]} at row {int(bad.argmax())} ({int(bad.sum())} rows)"
            )
    return pd.DataFrame(arrays)


def one_array(name: str, values: object) -> npt.NDArray[Any]:
    """Values as an array of any shape and type; raises ConfigError if they are ragged."""
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name} must be one number per row, got {shown(values)}: {error}; pass a list or an array"
        ) from error


def real_numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Values as floats.

    Raises:
        ConfigError: A value is not a real number.
    """
    array = one_array(name, values)
    try:
        if np.iscomplexobj(array):
            raise TypeError("complex numbers")  # noqa: TRY301 (said below)
        return array.astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"{name} must be one real number per row, got {shown(values)}: {error}; pass a list or an array"
        ) from error


def require_binary(name: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Booleans from values that are all 0 or 1.

    Raises:
        ConfigError: Another value, or no row at all.
    """
    other = values[(values != 0) & (values != 1)]
    if len(other) or not len(values):
        got = f"got {other[0]} ({len(other)} rows)" if len(other) else "got no rows"
        raise ConfigError(
            f"{name} must be true or false (1 or 0) for each row, {got}; pass a comparison, e.g. prediction != label"
        )
    return values.astype(bool)


def binary_or_unknown(name: str, values: npt.ArrayLike, n_rows: int) -> npt.NDArray[np.float64]:
    """``[rows]`` 1 = true, 0 = false, NaN = not known.

    Raises:
        ConfigError: Another value, or not one value per row.
    """
    known = real_numbers(name, one_array(name, values))
    if known.shape != (n_rows,):
        raise ConfigError(f"{name} must have one value for each of {n_rows:,} rows, got shape {known.shape}")
    other = known[~np.isnan(known) & (known != 0) & (known != 1)]
    if len(other):
        raise ConfigError(
            f"{name} must be true, false or NaN (not known), got {other[0]:g}; pass one of these for each row"
        )
    return known
