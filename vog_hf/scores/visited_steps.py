"""VisitedSteps: the rows of each optimizer step, of scores that were observed while training."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vog_hf.errors import ConfigError, OutputFolderError

STEPS_NAME = "steps.parquet"


@dataclass(frozen=True)
class VisitedSteps:
    """The file of steps, if scores have one.

    Attributes:
        path: The file; None for scores that were not observed while training.
    """

    path: Path | None

    @classmethod
    def of_folder(cls, folder: Path) -> "VisitedSteps":
        """The steps of a folder of scores."""
        path = folder / STEPS_NAME
        return cls(path if path.is_file() else None)

    def table(self, step: int | None = None) -> pd.DataFrame:
        """``step``, ``row`` and ``loss`` of each visit, in the order of steps.

        Args:
            step: Only this step; None: all.

        Raises:
            ConfigError: There is no file.
            OutputFolderError: The file is damaged.
        """
        if self.path is None:
            raise ConfigError(
                "these scores do not know the rows of steps; score with VoGCallback(collect='training'), and load "
                "the whole folder"
            )
        filters = None if step is None else [("step", "=", step)]
        try:
            table: pd.DataFrame = pq.read_table(self.path, filters=filters, page_checksum_verification=True).to_pandas()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise OutputFolderError(
                f"the rows of steps in {self.path} are damaged ({error}); restore the file"
            ) from error
        return table
