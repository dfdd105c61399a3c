"""Records as Weights & Biases shows them."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from vog_hf.scores.audio import Sound
from vog_hf.scores.pictures.boxes import KINDS
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.artifacts import artifact_files, artifact_metadata, artifact_name
from vog_hf.tracking.media import (
    NO_CLASS,
    BarChart,
    BoxedPicture,
    Histogram,
    LineChart,
    MaskedPicture,
    Page,
    Picture,
    Table,
    audio,
)

if TYPE_CHECKING:
    import wandb

HOW_TO_START = "set report_to='wandb' in TrainingArguments, or call wandb.init() before log_scores(scores, dataset)"
SHOWS_LAST_FIRST = False  # its pages sort by name


def active_run() -> Any:
    """The run of this process; wandb is not loaded for the question."""
    return getattr(sys.modules.get("wandb"), "run", None)


@contextmanager
def reopened(run: "wandb.Run | None") -> Iterator[Any]:
    """The run as it is: Trainer leaves it open."""
    yield active_run() or run


def translated(values: Mapping[str, object]) -> dict[str, Any]:
    """Records as media and custom charts."""
    return {name: _translated(value) for name, value in values.items()}


def hidden_columns(values: Mapping[str, object]) -> tuple[()]:  # noqa: ARG001 (a tracker may have to look at them)
    """None: cells show pictures, sounds and pages."""
    return ()


def page(html: str) -> Any:
    """A panel of HTML, without the style sheet of W&B's server that its client would link."""
    import wandb

    return wandb.Html(html, inject=False, data_is_not_path=True)


def summarize(run: "wandb.Run", summary: Mapping[str, str]) -> None:
    """Into the run's summary."""
    run.summary.update(dict(summary))


def download_command(run: "wandb.Run", split: str) -> str:
    """The command that downloads the artifact; the entity of an offline run is not known yet."""
    path = "/".join([run.entity or "ENTITY", run.project or "PROJECT", f"{artifact_name(split, run.id)}:latest"])
    return f"wandb artifact get {shlex.quote(path)} --root scores"


def log_artifact(run: "wandb.Run", split: str, scores: VoGScores, tables: Mapping[str, pd.DataFrame]) -> None:
    """The scores as files; as metadata every entry of the manifest that is short and that the client can encode."""
    import wandb

    artifact = wandb.Artifact(artifact_name(split, run.id), type="dataset", metadata=artifact_metadata(scores))
    with artifact_files(scores, tables) as files:
        for file in files:
            artifact.add_file(str(file), file.name)  # copied into W&B's staging folder at once
        run.log_artifact(artifact)


@singledispatch
def _translated(value: object) -> Any:
    return value


@_translated.register
def _(value: Table) -> Any:
    import wandb

    columns = {name: list(map(_cell, cells)) for name, cells in value.columns.items()}
    return wandb.Table(columns=list(columns), data=[list(row) for row in zip(*columns.values(), strict=True)])


@_translated.register
def _(value: LineChart) -> Any:
    import wandb

    known = {
        name: [(x, y) for x, y in zip(value.x, ys, strict=True) if y is not None] for name, ys in value.lines.items()
    }
    points = [tuple(zip(*line, strict=True)) or ((), ()) for line in known.values()]
    return wandb.plot.line_series(
        xs=[list(xs) for xs, _ in points],
        ys=[list(ys) for _, ys in points],
        keys=list(known),
        title=value.title,
        xname=value.x_name,
        split_table=True,  # its numbers go to a section of their own, away from the tables that a person reads
    )


@_translated.register
def _(value: BarChart) -> Any:
    import wandb

    table = wandb.Table(columns=[value.label_name, value.value_name], data=[list(bar) for bar in value.bars.items()])
    return wandb.plot.bar(table, value.label_name, value.value_name, title=value.title, split_table=True)


@_translated.register
def _(value: Picture) -> Any:
    import wandb

    return wandb.Image(value.image, caption=value.caption)


@_translated.register
def _(value: Histogram) -> Any:
    import wandb

    return wandb.Histogram(np_histogram=np.histogram(value.values, bins=64))


def _cell(value: object) -> Any:
    import wandb

    if isinstance(value, Sound):
        return audio(wandb.Audio, value)
    if isinstance(value, Page):
        return page(value.html)
    if isinstance(value, MaskedPicture):
        return _with_masks(value)
    if isinstance(value, BoxedPicture):
        return wandb.Image(value.image, boxes={kind: _overlay(value, kind) for kind in KINDS})
    return wandb.Image(value) if isinstance(value, Image.Image) else value


def _with_masks(value: MaskedPicture) -> Any:
    """A picture whose masks W&B's own viewer turns on and off, class by class."""
    import wandb

    masks = value.masks_of_pixels
    numbers = sorted({int(number) for mask in masks.values() for number in np.unique(mask)} | set(value.class_names))
    names = {number: value.class_names.get(number, str(number)) for number in numbers}
    names |= {NO_CLASS: "not labeled"} if NO_CLASS in names else {}
    return wandb.Image(
        value.image,
        masks={name: {"mask_data": mask, "class_labels": names} for name, mask in masks.items()},
        classes=[{"id": number, "name": name} for number, name in names.items()],
    )


def _overlay(picture: BoxedPicture, kind: str) -> dict[str, Any]:
    """The boxes of a kind in W&B's own format: its page shows and hides them by class."""
    data = [
        {
            "position": {
                "minX": _share(box.left),
                "minY": _share(box.top),
                "maxX": _share(box.left + box.width),
                "maxY": _share(box.top + box.height),
            },
            "class_id": box.label,
            "box_caption": f"{box.name} ({box.note})" if box.note else box.name,
        }
        for box in picture.boxes
        if box.kind == kind
    ]
    return {"box_data": data, "class_labels": dict(picture.classes)}


def _share(place: float) -> float:
    """A place inside of the picture: models may predict others, which W&B's page would draw over what is next to it."""
    return min(max(place, 0.0), 1.0)
