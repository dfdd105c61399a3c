"""Transforms from rows to the inputs and labels of detectors: images with boxes of objects."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow.compute as pc
import torch
from datasets import Features
from typing_extensions import override

from vog_hf.cli.columns import find_input
from vog_hf.cli.head_inputs import HeadPreparation
from vog_hf.cli.model_inputs import Loader, Row, Rows
from vog_hf.cli.models import one_line
from vog_hf.cli.word_heads import numbers_in_lists
from vog_hf.errors import ConfigError, DataError
from vog_hf.gradients.detection import ObjectDetection

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from vog_hf.data.column_kinds import Kind

OBJECTS, BOX, CATEGORY = "objects", "bbox", "category"  # as in datasets of transformers' examples


class Objects(HeadPreparation):
    """Images with objects, as transformers' `run_object_detection.py` has them: boxes in pixels, and categories."""

    task: ClassVar[str | None] = ObjectDetection.name

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        label = label or (OBJECTS if OBJECTS in dataset.column_names else None)
        feature = None if label is None else dataset.features[label]
        if not isinstance(feature, dict) or not {BOX, CATEGORY} <= set(feature):
            raise ConfigError(
                f"detection needs a column with lists {BOX} (left, top, width, height, in pixels) and {CATEGORY}, and "
                f"the dataset has {', '.join(dataset.column_names)}; name it with --label-column"
            )
        return inputs or (find_input(dataset, kind, label),), label

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        objects = dataset.select_columns([str(label)]).with_format("arrow")[:].column(str(label))
        categories: Any = dataset.features[str(label)][CATEGORY]
        item = Features({str(label): categories.feature})
        return {"numbers": numbers_in_lists(pc.struct_field(objects, CATEGORY), item, str(label), model.config)}

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        made = [self._made(*row) for row in zip(self._converted_images(rows), rows[str(self.label)], strict=True)]
        return {name: [row[name] for row in made] for name in made[0]}

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        shapes = {tuple(row["pixel_values"].shape) for row in rows}
        if len(shapes) > 1:
            raise DataError(
                f"{type(self.processor).__name__} gives images of several sizes ({sorted(shapes)}), which padding "
                "would change; set size to a height and a width, or pad_size, in its preprocessor_config.json"
            )
        names = [name for name in rows[0] if name != "labels"]
        return {
            **{name: torch.stack([row[name] for row in rows]) for name in names},
            "labels": [r["labels"] for r in rows],
        }

    def _made(self, image: Any, objects: Mapping[str, Any]) -> Row:
        """Inputs and labels of a row."""
        categories = self._labels(objects[CATEGORY])
        annotations = [
            {"image_id": 0, "category_id": category, "iscrowd": 0, "area": box[2] * box[3], "bbox": list(box)}
            for category, box in zip(categories, objects[BOX], strict=True)
        ]
        try:
            made = self.processor(
                images=[image], annotations=[{"image_id": 0, "annotations": annotations}], return_tensors="pt"
            )
        except (TypeError, ValueError, KeyError) as error:
            raise DataError(
                f"{type(self.processor).__name__} cannot process this image with its objects ({one_line(error)}); see "
                "--processor"
            ) from error
        return {name: value[0] for name, value in made.items()}
