"""Our small files with a flipped bit: the same contents, or an error."""

import json

import numpy as np
import pytest
from torch import nn

from vog_hf import VoGScores
from vog_hf.errors import OutputFolderError, VoGError
from vog_hf.review.journal import Journal
from vog_hf.review.journal_events import read_journal
from vog_hf.runtime.files import read_json, write_json
from vog_hf.runtime.processes import current_processes
from vog_hf.scores.storage import read_manifest
from vog_hf.scoring.block_folder import BlockFolder, BlockPlan
from vog_hf.scoring.live_checkpoint import STATE_NAME, read_header, save_state
from vog_hf.snapshots import INDEX_NAME, SnapshotWriter
from vog_hf.snapshots.snapshot_set import read_index

SCORES = VoGScores({"label": np.array([0, 1, 1]), "vog": np.array([0.1, 0.3, 0.2])}, {"class_names": ["cat", "dog"]})


def plan(folder):
    """A plan of blocks with its contents."""
    BlockFolder.prepare(folder, {"rows": 7, "data": {"text": "0a"}}, BlockPlan(7, 1, 2, 4))
    return folder / "plan.json", lambda: BlockPlan.read(folder)


def index(folder):
    """The index of two snapshots."""
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    writer = SnapshotWriter(folder, model)
    for step in (3, 6):
        writer.take(model, step)
    return folder / INDEX_NAME, lambda: read_index(folder)


def moments(folder):
    """The header of live moments, with ignored extra keys."""
    header = {"rows": 7, "data": {"text": "0a"}, "snapshots": [{"name": "3", "step": 3, "digest": None}]}
    save_state(folder, current_processes(), [], header)
    known = read_header(folder)
    return folder / STATE_NAME, lambda: {name: read_header(folder).get(name) for name in known}


def manifest(folder):
    """The manifest of scores."""
    SCORES.save(folder)
    known = read_manifest(folder)
    return folder / "manifest.json", lambda: {name: read_manifest(folder).get(name) for name in known}


def journal(folder):
    """A journal with its header and two decisions."""
    path = folder / "journal.jsonl"
    opened = Journal.open(path, SCORES)
    opened.decide(0, "relabel", label=1, reviewer="Ada", note="a dog")
    opened.decide(2, "drop", reviewer="Bob")
    return path, lambda: read_journal(path)


@pytest.mark.parametrize("write", [plan, index, moments, manifest, journal])
@pytest.mark.parametrize("bit", [0, 4])
def test_no_flipped_bit_changes_what_is_read(tmp_path, write, bit):
    """With any damaged byte, a small file is read correctly or raises a VoGError."""
    path, read = write(tmp_path)
    expected, whole = read(), path.read_bytes()
    refused = 0
    for place in range(len(whole) - 1):  # without its last line end, a journal has a line that was cut off
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << bit)]) + whole[place + 1 :])
        try:
            assert read() == expected, whole[place - 20 : place + 20]
        except VoGError:
            refused += 1
    assert refused > 0.6 * len(whole)  # all but spaces and the name of the checksum


@pytest.mark.parametrize("write", [plan, index, moments, manifest, journal])
def test_files_without_a_checksum_are_read(tmp_path, write):
    """Files of earlier versions without a checksum are still read."""
    path, read = write(tmp_path)
    expected = read()
    lines = path.read_text().splitlines() if write is journal else [path.read_text()]
    stripped = [{name: value for name, value in json.loads(line).items() if name != "checksum"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in stripped))
    assert read() == expected


@pytest.mark.parametrize(
    ("write", "change"),
    [
        (index, {"snapshots": [{"name": "a", "file": "a.safetensors", "step": "3", "digest": None}]}),
        (index, {"snapshots": [{"name": "a", "file": "a.safetensors", "step": -3, "digest": None}]}),
        (index, {"frozen": {"bias": 1}}),
        (plan, {"fingerprint": [1]}),
        (plan, {"fingerprint": {"rows": "7"}}),
        (moments, {"batches": [[0, 4, 0, "part"]]}),
        (moments, {"batches": [[0, 4, 1, "of nobody"]]}),
        (moments, {"batches": [1]}),
        (moments, {"snapshots": [3]}),
        (moments, {"digests": None}),
        (manifest, {"n_rows": "three"}),
        (journal, {"n_rows": -3}),
        (journal, {"columns": [1]}),
        (journal, {"class_names": "cat"}),
    ],
)
def test_wrong_values_without_a_checksum_are_refused(tmp_path, write, change):
    """Types and ranges are also checked, which protects files without a checksum."""
    path, read = write(tmp_path)
    first, *others = path.read_text().splitlines(keepends=True) if write is journal else [path.read_text()]
    values = {**json.loads(first), **change}
    del values["checksum"]
    path.write_text("".join([json.dumps(values) + "\n", *others]))
    with pytest.raises(VoGError, match=path.name):
        read()


def test_a_checksum_is_of_the_values_and_not_of_their_order_or_spaces(tmp_path):
    """A file rewritten by another program with the same values is still read."""
    write_json(tmp_path / "values.json", {"b": [1, 2.5, None], "a": "\u00e9"})
    written = json.loads((tmp_path / "values.json").read_text())
    (tmp_path / "values.json").write_text(json.dumps(dict(sorted(written.items())), ensure_ascii=False))
    assert read_json(tmp_path / "values.json") == {"a": "\u00e9", "b": [1, 2.5, None]}
    (tmp_path / "values.json").write_text(json.dumps(written | {"a": "e"}))
    with pytest.raises(OutputFolderError, match=r"values\.json .*checksum '[0-9a-f]{8}' was written"):
        read_json(tmp_path / "values.json")


def test_a_decision_that_was_damaged_is_refused(tmp_path):
    """A row number with a flipped bit is detected by the checksum of its line."""
    path, read = journal(tmp_path)
    path.write_text(path.read_text().replace('"row": 2', '"row": 0'))
    with pytest.raises(VoGError, match=r"line 3 .*checksum"):
        read()
