"""Records as Trackio shows them; it has no charts to be filled with values, so that those are tables there."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import pandas as pd
from PIL import Image

from vog_hf.errors import ConfigError
from vog_hf.scores.audio import Sound
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.artifacts import artifact_files, artifact_metadata, artifact_name
from vog_hf.tracking.media import (
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

HOW_TO_START = (
    "set report_to='trackio' in TrainingArguments, or call trackio.init(project=...) before "
    "log_scores(scores, dataset, to='trackio')"
)
SHOWS_LAST_FIRST = True

MAX_PLAYERS = 12  # of the sounds of a table
DIGITS = 4  # of numbers in tables, which the dashboard shows in full; the artifact has all digits
CAPTION = ("label", "prediction", "file")


def active_run() -> Any:
    """The run of this process; trackio is not loaded for the question."""
    variables = getattr(sys.modules.get("trackio"), "context_vars", None)
    return None if variables is None else variables.current_run.get()


@contextmanager
def reopened(run: Any) -> Iterator[Any]:
    """Yield a run that is active, or resume one that Trainer has finished for as long."""
    trackio = _trackio()
    active = active_run()
    if active is not None:
        yield active
        return
    space = trackio.context_vars.current_space_id.get()
    again = trackio.init(
        project=run.project,
        name=run.name,
        space_id=space,
        config={name: value for name, value in run.config.items() if not name.startswith("_")},  # it is written again
        resume="must",
        embed=False,
    )
    try:
        yield again
    finally:
        trackio.finish()


def translated(values: Mapping[str, object]) -> dict[str, Any]:
    """Records as media and tables; the first sounds of a table on their own, since its cells have no player."""
    sounds = {name: _players(value) for name, value in values.items() if isinstance(value, Table)}
    return {name: _translated(value) for name, value in values.items()} | {
        f"{name}_sounds/{place}": player for name, players in sounds.items() for place, player in players.items()
    }


def _players(table: Table) -> dict[str, Any]:
    """Players of the first rows with a sound, by place and row."""
    lines = (dict(zip(table.columns, line, strict=True)) for line in table.rows)
    heard = [line for line in lines if isinstance(line.get("sound"), Sound)][:MAX_PLAYERS]
    return {
        f"{place:02d} row {line['row']}": audio(
            _trackio().Audio,
            line["sound"],
            ", ".join(f"{name} {line[name]}" for name in CAPTION if line.get(name) is not None),
        )
        for place, line in enumerate(heard, 1)
    }


def hidden_columns(values: Mapping[str, object]) -> set[str]:
    """The columns of sounds and of colored words."""
    tables = [value for value in values.values() if isinstance(value, Table)]
    return {name for table in tables for name, cells in table.columns.items() if _have_no_cell(cells)}


def page(html: str) -> Any:
    """A panel of HTML, the same as in W&B."""
    return _trackio().Html(html, inject=False)


def summarize(run: object, summary: Mapping[str, str]) -> None:
    """Nothing: a run of Trackio has no summary, and the words are in `about`."""


def download_command(run: object, split: str) -> None:
    """None: the dashboard names the artifact, and its client is in Python."""


def log_artifact(run: Any, split: str, scores: VoGScores, tables: Mapping[str, pd.DataFrame]) -> None:
    """The scores as files, as in W&B."""
    trackio = _trackio()
    artifact = trackio.Artifact(artifact_name(split, run.name), type="dataset", metadata=artifact_metadata(scores))
    with artifact_files(scores, tables) as files:
        for file in files:
            artifact.add_file(file, file.name)
        run.log_artifact(artifact)


def _trackio() -> Any:
    try:
        import trackio
    except ImportError as error:
        raise ConfigError("to='trackio' needs Trackio: pip install 'vog_hf[trackio]'") from error
    return trackio


@singledispatch
def _translated(value: object) -> Any:
    return value


@_translated.register
def _(value: Table) -> Any:
    columns = {name: list(map(_cell, cells)) for name, cells in value.columns.items() if not _have_no_cell(cells)}
    return _trackio().Table(data=[dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])


@_translated.register
def _(value: LineChart) -> Any:
    return _translated(Table({value.x_name: value.x, **value.lines}))


@_translated.register
def _(value: BarChart) -> Any:
    return _translated(Table({value.label_name: list(value.bars), value.value_name: list(value.bars.values())}))


@_translated.register
def _(value: Picture) -> Any:
    return _trackio().Image(value.image, caption=value.caption)


@_translated.register
def _(value: Histogram) -> Any:
    return _trackio().Histogram(value.values)


def _have_no_cell(cells: Sequence[object]) -> bool:
    """Whether the dashboard cannot show these in a table."""
    return any(isinstance(cell, Sound | Page) for cell in cells)


def _cell(value: object) -> Any:
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.{DIGITS}g}")
    value = value.image if isinstance(value, MaskedPicture) else value
    value = value.drawn if isinstance(value, BoxedPicture) else value
    return _trackio().Image(value) if isinstance(value, Image.Image) else value
