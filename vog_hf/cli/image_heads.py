"""Transforms from rows to the inputs of heads without labels: images to reconstruct, images with their captions."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from vog_hf.cli.columns import find_input, find_text, refuse_label
from vog_hf.cli.head_inputs import HeadPreparation
from vog_hf.cli.model_inputs import Loader, Row, Rows
from vog_hf.cli.token_limits import require_padding, token_limit
from vog_hf.data.collating import SeededPerRow
from vog_hf.errors import ConfigError
from vog_hf.gradients.dual_encoders import PairSimilarity, text_encoder
from vog_hf.gradients.reconstruction import MASK, PixelReconstruction

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from vog_hf.data.column_kinds import Kind

MASKED_SHARE, MASKED_SIDE = 0.6, 32  # of transformers' run_mim.py: share of an image, side of what is masked as one


class Reconstructions(HeadPreparation):
    """Images of which a masked autoencoder hides patches: it gets the noise that it would draw."""

    task: ClassVar[str | None] = PixelReconstruction.name
    needs_label_column: ClassVar[bool] = False

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        refuse_label(label, "the reconstruction of images", "name the images with --input-column")
        return inputs or (find_input(dataset, kind, None),), None

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        return self._images(rows)


@dataclass(frozen=True)
class MaskedImages(Reconstructions):
    """Images of which patches are masked, drawn once for each row as transformers' `run_mim.py` does it.

    Attributes:
        patches: Patches along a side of the image.
        side: Patches along a side of what is masked as one.
    """

    patches: int = 1
    side: int = 1

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        config: Any = model.config
        patches, side = config.image_size // config.patch_size, max(MASKED_SIDE // config.patch_size, 1)
        return {"patches": patches, "side": side if patches % side == 0 and patches > side else 1}

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        return SeededPerRow(self._masked)(rows)

    @override
    def described(self) -> dict[str, Any]:
        return {**super().described(), "masked_share": MASKED_SHARE}

    def _masked(self, rows: list[Any]) -> dict[str, Any]:
        n = self.patches // self.side
        order = torch.rand(len(rows), n * n).argsort(1)
        mask = (order < math.ceil(n * n * MASKED_SHARE)).unflatten(1, (n, n))
        whole = mask.repeat_interleave(self.side, 1).repeat_interleave(self.side, 2)
        return {**super().collate(rows), MASK: whole.flatten(1)}


@dataclass(frozen=True)
class Captions(HeadPreparation):
    """Images with a text each, of dual encoders.

    Attributes:
        tokenizer: Tokenizer of the texts, saved with the model.
    """

    task: ClassVar[str | None] = PairSimilarity.name
    takes: ClassVar["Kind | None"] = "image"  # first; the main input of CLIP is its text
    needs_label_column: ClassVar[bool] = False
    tokenizer: Any = None

    @classmethod
    @override
    def find_columns(
        cls, dataset: "Dataset", kind: "Kind", inputs: tuple[str, ...], label: str | None
    ) -> tuple[tuple[str, ...], str | None]:
        refuse_label(label, "a dual encoder", "name image and text with --input-column, twice")
        if inputs and len(inputs) != 2:
            raise ConfigError(
                f"a dual encoder takes two columns, image and text, got {', '.join(inputs)}; name both with "
                "--input-column, image first"
            )
        return inputs or (find_input(dataset, kind, None), find_text(dataset)), None

    @classmethod
    @override
    def most_inputs(cls, kind: "Kind") -> int | None:
        return 2

    @classmethod
    @override
    def own_options(
        cls, dataset: "Dataset", label: str | None, model: "nn.Module", load_tokenizer: Loader
    ) -> dict[str, Any]:
        tokenizer, encoder = load_tokenizer(), text_encoder(model)
        if encoder is None:
            return {"tokenizer": tokenizer}
        require_padding(tokenizer, encoder.config)
        return {"tokenizer": tokenizer, "max_length": token_limit(tokenizer, encoder, None)}

    @override
    def __call__(self, rows: Rows) -> dict[str, Any]:
        has_mask = "attention_mask" in self.tokenizer.model_input_names  # SigLIP has none, and reads its padding
        encoded = self.tokenizer(
            rows[self.inputs[1]],
            truncation=self.max_length is not None,
            max_length=self.max_length,
            padding=False if has_mask else "max_length",
        )
        return {**self._images(rows), **encoded}

    @override
    def collate(self, rows: list[Row]) -> dict[str, Any]:
        texts = [{name: value for name, value in row.items() if name != "pixel_values"} for row in rows]
        images = torch.stack([row["pixel_values"] for row in rows])
        return {**self.tokenizer.pad(texts, return_tensors="pt"), "pixel_values": images}
