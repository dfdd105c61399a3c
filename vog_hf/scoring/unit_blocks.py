"""The units of rows in a block: a number for each row, and the values of all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vog_hf.metric.row_units import RowUnits
from vog_hf.metric.unit_kinds import unit_column_place

UNITS, PIXELS = "units/", "pixels/"  # begin the keys of what is stored of units, and of the pixels of masks


def stored_units(parts: Sequence[RowUnits], kind: str = UNITS) -> dict[str, npt.NDArray[Any]]:
    """The units of some rows, and of those behind them, as arrays of a block; {} without any.

    Args:
        parts: Units.
        kind: Beginning of the keys.
    """
    if not parts:
        return {}
    columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return {f"{kind}sizes": np.concatenate([part.sizes for part in parts])} | {
        f"{kind}columns/{name}": np.ascontiguousarray(values) for name, values in columns.items()
    }


def units_of_block(block: Mapping[str, npt.NDArray[Any]], kind: str = UNITS) -> RowUnits | None:
    """The units of a block's rows; None where it has none."""
    if f"{kind}sizes" not in block:
        return None
    beginning = f"{kind}columns/"
    names = [name.removeprefix(beginning) for name in block if name.startswith(beginning)]
    ordered = sorted(names, key=unit_column_place)  # a block has its arrays in the order of the alphabet
    return RowUnits(block[f"{kind}sizes"], {name: block[f"{beginning}{name}"] for name in ordered})
