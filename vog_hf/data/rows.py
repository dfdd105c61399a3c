"""Types of what holds rows: datasets of Hugging Face, and map-style ones of torch."""

from typing import Any, Protocol, TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset


class MapStyle(Protocol):
    """Rows by number, as `torch.utils.data.DataLoader` reads them."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Any: ...


AnyDataset: TypeAlias = Dataset | DatasetDict | IterableDataset | MapStyle
