"""A dataset written to a parquet file or a folder, whole: with the bytes of the files that its rows name."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.features.features import require_storage_embed
from datasets.table import embed_array_storage

from vog_hf.data.referenced_files import Origin, origin, require_own_files

ROWS_AT_A_TIME = 100  # as `datasets` writes images; fewer rows in memory than 2 GiB of them


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Write a dataset to a parquet file (a path that ends in .parquet) or to a folder for `load_from_disk`.

    The bytes of images, sounds and other files that the rows name are written with them, and of their paths only the
    last part; so what is written does not depend on these files. Addresses that somebody else wrote stay addresses.

    Raises:
        DataError: A row names a file of this machine that somebody else has chosen.
    """
    require_own_files(dataset, copied_to=path)
    if path.suffix != ".parquet":
        dataset.save_to_disk(str(path))
        return
    features = dataset.features
    named = [name for name, feature in features.items() if require_storage_embed(feature)]
    if not named:
        dataset.to_parquet(path)
        return
    embedded = [name for name in named if origin(dataset, name) is not Origin.FOREIGN]
    with pq.ParquetWriter(path, schema=features.arrow_schema) as writer:  # `to_parquet` asks addresses for their size
        for batch in dataset.with_format("arrow").iter(batch_size=ROWS_AT_A_TIME):
            columns = {name: batch.column(name) for name in features}
            columns |= {name: embed_array_storage(columns[name], features[name]) for name in embedded}
            writer.write_table(pa.table(columns, schema=features.arrow_schema))
