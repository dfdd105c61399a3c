"""Pushes and pulls in a process of its own, as `hub_client.HubClient` asks for them: one line of JSON each."""

import json
import logging
import os
import sys
import tempfile
import time
import traceback
from functools import cache
from pathlib import Path

import numpy as np
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset
from huggingface_hub import HfApi
from PIL import Image as Pillow
from report_cases import make_scores

from vog_hf import VoGScores, add_vog_columns, push_scored_dataset
from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import VoGError
from vog_hf.hub import pull_scores, shards
from vog_hf.hub import upload_check as check
from vog_hf.scores import RowUnits

ROWS = 61
FOLDER = tempfile.TemporaryDirectory()  # of pictures that rows name
NAMES = ["cat", "dog"]
BREAKING = [
    "a | b\n| c |",
    "---\nconfigs: []\n---",
    "<!-- vog_hf: end --><script>alert(1)</script>",
    "# **bold** [link](javascript:alert(1)) ![x](y) `code` ```",
    "{{ 7 * 7 }} {% raw %} $x$ \\ www.example.org",
    "yes",
    "long " * 2_000,
]


@cache
def dataset(kind):
    """A dataset of a kind, the same every time."""
    label = np.arange(ROWS) % 2
    features = {"label": ClassLabel(names=NAMES)}
    columns = {"label": label.tolist()}
    if kind in ("pictures", "changed pictures"):
        shift = 7 if kind == "changed pictures" else 0
        columns["image"] = [Pillow.new("RGB", (8, 8), (i, 100, 255 - i - shift)) for i in range(ROWS)]
        features["image"] = Image()
    elif kind == "everything":
        columns["image"] = [Pillow.new("RGB", (8, 8), (i, 100, 255 - i)) for i in range(ROWS)]
        columns["weight"] = [None if i == 3 else float("nan") if i == 5 else i / 3 for i in range(ROWS)]
        columns["text"] = ["" if i == 2 else f"línea {i}\nof <b>text</b> | \u2028 \U0001f600" for i in range(ROWS)]
        columns["audio"] = [{"bytes": b"RIFF" + bytes([i]) * 50, "path": f"{i}.wav"} for i in range(ROWS)]
        columns["tokens"] = [list(range(i % 4)) for i in range(ROWS)]
        features |= {"image": Image(), "weight": Value("float32"), "text": Value("string")}
        features["tokens"] = List(Value("int16"))
        features["audio"] = {"bytes": Value("binary"), "path": Value("string")}
        made = Dataset.from_dict(columns, features=Features(features))
        return made.cast_column("audio", Audio())  # as which it would be encoded with torchcodec alone
    elif kind == "files":
        columns["image"] = [str(Path(FOLDER.name) / f"{i}.png") for i in range(ROWS)]
        for i, path in enumerate(columns["image"]):
            Pillow.new("RGB", (8, 8), (i, 100, 255 - i)).save(path)
        features["image"] = Image()
    elif kind == "breaking":
        features = {"label": ClassLabel(names=BREAKING)}
        columns = {"label": (np.arange(ROWS) % len(BREAKING)).tolist()}
        columns["text"] = [f"{BREAKING[i % len(BREAKING)]} {i}" for i in range(ROWS)]
        features["text"] = Value("string")
    elif kind == "unwritable":  # YAML has no way to write a "next line" as the client writes it
        features = {"label": ClassLabel(names=["a\x85b", "c"])}
    elif kind == "tags":
        columns["tokens"] = [[f"word{j}" for j in range(i % 5)] for i in range(ROWS)]
        columns["ner_tags"] = [[(i + j) % 3 for j in range(i % 5)] for i in range(ROWS)]
        features["tokens"] = List(Value("string"))
        features["ner_tags"] = List(ClassLabel(names=["O", "B-PER", "I-PER"]))
    elif kind == "numbers":
        columns["x"], features["x"] = [i / 7 for i in range(ROWS)], Value("float64")
    elif kind == "numbers as texts":
        columns["x"], features["x"] = [str(i / 7) for i in range(ROWS)], Value("string")
    return Dataset.from_dict(columns, features=Features(features))


@cache
def scores(kind):
    """Scores of it, which know its rows."""
    rows = dataset(kind)
    names = rows.features["label"].names
    made = make_scores(ROWS, names=names)
    identity = identify_rows(rows)
    columns = {name: made.column(name) for name in made.column_names}
    columns["label"] = np.asarray(rows.with_format("numpy")["label"][:]).astype(np.int32)
    columns["prediction"] = columns["prediction"] % len(names)
    columns["loss"] = columns["loss"].copy()
    columns["loss"][4] = np.nan
    trajectories = {name: made.trajectory(name) for name in made.trajectory_names}
    manifest = {**made.manifest, "class_names": list(names), "data": {"columns": identity.columns}}
    if kind == "skipped":
        for values in (*columns.values(), *trajectories.values()):
            values[[4, 60]] = np.nan if np.issubdtype(values.dtype, np.floating) else -1
        manifest["skipped"] = {"count": 2, "rows": [{"row": row, "reason": "broken"} for row in (4, 60)]}
    parts = {
        "trajectories": trajectories,
        "heat_maps": made._heat_maps,
        "units": units(rows) if kind == "tags" else None,
    }
    return VoGScores(columns, manifest, row_hash=identity.row_hash, **parts)


def units(rows):
    """Units of the first three words of each row."""
    labels = [tags[:3] for tags in rows["ner_tags"][:]]
    sizes = np.array([len(tags) for tags in labels], dtype=np.int32)
    given = np.concatenate([np.array(tags, dtype=np.int32) for tags in labels])
    loss = np.arange(len(given), dtype=np.float32)
    places = {"label_token": given, "position_token": given, "prediction_token": given[::-1].copy()}
    return RowUnits(sizes, {**places, "vog_token": loss / 7, "loss_token": loss, "confidence_token": 1 / (1 + loss)})


def push(
    kind,
    repo_id,
    *,
    columns="core",
    form="columns",
    splits=None,
    clock=None,
    shard_bytes=None,
    whole=None,
    given_token=None,
    **given,
):
    """Push a dataset.

    Args:
        kind: Of `dataset`.
        repo_id: Where to.
        columns: Of the scores.
        form: ``"columns"``: with scores as columns; ``"scores"``: with ``scores=``; ``"bare"``: with columns and
            without anything that knows of them; ``"other rows"``, ``"edited scores"``: with scores that do not fit;
            ``"none"``: without scores.
        splits: Kinds by name, for a DatasetDict; those that begin with "-" have no scores.
        clock: Seconds that a wait takes at most; None = as long as the client says.
        shard_bytes: Size of a shard.
        whole: Bytes up to which all is compared.
        given_token: For push_scored_dataset.
        given: For push_scored_dataset.
    """
    shards.SHARD_BYTES = shard_bytes or 500 * 2**20
    check.WHOLE = 2 * 2**30 if whole is None else whole
    time.sleep = real_sleep if clock is None else lambda seconds: real_sleep(min(seconds, clock))
    if given_token:
        given["token"] = given_token
    if splits:
        data = DatasetDict({name: dataset(of.removeprefix("-")) for name, of in splits.items()})
        scored = {name: scores(of) for name, of in splits.items() if not of.startswith("-")}
        return push_scored_dataset(data, repo_id, scores=scored, columns=columns, **given)
    data = dataset(kind)
    if form == "other rows":
        return push_scored_dataset(data.select(range(ROWS - 1, -1, -1)), repo_id, scores=scores(kind), **given)
    if form == "edited scores":
        scored = add_vog_columns(data, scores(kind))
        edited = scored.remove_columns("vog").add_column("vog", [0.5] * ROWS, feature=scored.features["vog"])
        return push_scored_dataset(edited, repo_id, scores=scores(kind), **given)
    if form == "none":
        return push_scored_dataset(data, repo_id, **given)
    if form == "scores":
        return push_scored_dataset(data, repo_id, scores=scores(kind), columns=columns, **given)
    data = add_vog_columns(data, scores(kind), columns)
    return push_scored_dataset(data.with_format("numpy") if form == "bare" else data, repo_id, **given)


def push_raw(kinds, repo_id, **given):
    """Push data without scores as people do it."""
    return str(DatasetDict({name: dataset(kind) for name, kind in kinds.items()}).push_to_hub(repo_id, **given))


def load(repo_id, kind=None, split="train", columns="core", **given):
    """Names of the splits' columns; and whether a split is, in features and in every value, what was meant."""
    loaded = load_dataset(repo_id, **given)
    found = {"splits": {name: rows.column_names for name, rows in loaded.items()}}
    found["rows"] = {name: len(rows) for name, rows in loaded.items()}
    if kind is not None:
        meant = add_vog_columns(dataset(kind), scores(kind), columns)
        rows = loaded[split]
        found["equal"] = (
            rows.features == meant.features
            and identify_rows(rows).columns == identify_rows(meant).columns
            and repr(rows.with_format("arrow")[:].to_pylist()) == repr(meant.with_format("arrow")[:].to_pylist())
        )
    return found


def values(repo_id, column, split="train", **given):
    """A column as it loads."""
    return load_dataset(repo_id, **given)[split][column][:]


def pull(repo_id, kind=None, **given):
    """Whether pulled scores are those that were pushed; of several, by split."""
    found = pull_scores(repo_id, **given)
    if isinstance(found, dict):
        return {split: is_equal(part, scores(kind)) for split, part in found.items()}
    return is_equal(found, scores(kind)) if kind else found.column_names


def belong(repo_id, split="train"):
    """Pulled scores to the rows that load from next to them: the columns by which they know them."""
    return pull_scores(repo_id).identity.verify(identify_rows(load_dataset(repo_id, split=split)))


def are_equal_units(one, other):
    """Whether units are the same, or there are none."""
    if one is None or other is None:
        return one is other
    return np.array_equal(one.sizes, other.sizes) and all(
        np.array_equal(one.column(name), values) for name, values in other.columns.items()
    )


def is_equal(one, other):
    """Whether scores are the same in everything."""
    return (
        one.column_names == other.column_names
        and all(np.array_equal(one.column(n), other.column(n), equal_nan=True) for n in one.column_names)
        and all(one.column(n).dtype == other.column(n).dtype for n in one.column_names)
        and one.trajectory_names == sorted(other.trajectory_names)
        and are_equal_units(one.units, other.units)
        and all(np.array_equal(one.trajectory(n), other.trajectory(n), equal_nan=True) for n in one.trajectory_names)
        and one.has_heat_maps == other.has_heat_maps
        and all(np.array_equal(one.heat_map(row), other.heat_map(row)) for row in range(len(one)))
        and np.array_equal(one.row_hash, other.row_hash)
        and one.manifest == json.loads(json.dumps(other.manifest))
    )


def make_repo(repo_id, **given):
    """An empty repository."""
    return str(HfApi().create_repo(repo_id, repo_type="dataset", **given))


def answer(line):
    """Carry out a call; its result, or its error if that is one of ours."""
    asked = json.loads(line)
    token = asked.pop("environment_token")
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    try:
        return {"result": globals()[asked["call"]](*asked["given"], **asked["options"])}
    except VoGError as error:
        logging.getLogger().exception("refused")
        return {"error": type(error).__name__, "message": str(error)}
    except Exception:  # noqa: BLE001 (of which the test is told)
        return {"crash": traceback.format_exc()}
    finally:
        time.sleep = real_sleep


if __name__ == "__main__":
    real_sleep = time.sleep
    logging.basicConfig(level=logging.DEBUG)
    for line in sys.stdin:
        print("answer", json.dumps(answer(line)), flush=True)
