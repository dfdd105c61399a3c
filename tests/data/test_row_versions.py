"""Folders, journals and pushes whose rows an earlier version has identified."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from torch import nn

from vog_hf import VoGScorer, VoGScores, add_vog_columns
from vog_hf.data.row_identity import RowIdentity, identify_rows
from vog_hf.errors import OutputFolderError, RowMismatchError
from vog_hf.review import Journal, apply_review
from vog_hf.runtime.files import read_json

N = 70
MODEL = nn.Linear(4, 3)
STATES = [
    (
        f"s{k}",
        {
            name: torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
            for name, p in MODEL.named_parameters()
        },
    )
    for k in range(3)
]


def rows(first=0):
    """Rows with four bytes each, which the transform turns into an input."""
    raw = [bytes([first if i == 0 else i, i // 2, 7, i % 5]) for i in range(N)]
    values = {"raw": raw, "labels": [i % 3 for i in range(N)]}
    return Dataset.from_dict(values, features=Features({"raw": Value("binary"), "labels": Value("int64")}))


def pixels(batch):
    """The bytes of each row as numbers."""
    return {"input": [torch.tensor(list(raw)) / 255 for raw in batch["raw"]], "labels": batch["labels"]}


def score(dataset, folder, **options):
    """Scores in a folder, in blocks of eight rows."""
    scorer = VoGScorer(MODEL, batch_size=8, memory_budget=1, progress=False, **options)
    return scorer.score(dataset.with_transform(pixels), STATES, output_dir=folder)


def as_version_1(dataset):
    """The identity that version 1 gave these rows."""
    return identify_rows(dataset, like=RowIdentity(len(dataset), dict.fromkeys(dataset.column_names, ""), None))


def rewritten(path, change):
    """A JSON file with a change, without a checksum, as version 1 wrote none."""
    values = read_json(path)
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def old(tmp_path):
    """A finished folder as version 1 wrote it."""
    score(rows(), tmp_path / "scores")
    columns = as_version_1(rows()).columns
    rewritten(tmp_path / "scores" / "plan.json", lambda plan: plan["fingerprint"].update(data=columns))
    rewritten(tmp_path / "scores" / "manifest.json", lambda manifest: manifest["data"].update(columns=columns))
    return tmp_path / "scores"


def test_a_finished_folder_of_version_1_is_returned_and_known_as_its_rows(old):
    """The same rows get its scores, as columns and from the scorer, and other rows do not."""
    created = VoGScores.load(old).manifest["created"]
    again = score(rows(), old)
    assert again.manifest["created"] == created
    assert again.identity.columns == as_version_1(rows()).columns
    assert add_vog_columns(rows(), again)["vog"][:] == again.column("vog").tolist()
    with pytest.raises(OutputFolderError, match="data"):
        score(rows(first=200), old)
    with pytest.raises(RowMismatchError, match="column 'raw'"):
        add_vog_columns(rows().shuffle(seed=0), again)


def test_an_interrupted_folder_of_version_1_is_continued(tmp_path, monkeypatch):
    """Blocks that it has finished are kept, and the scores are those of a run without a break."""
    whole = score(rows(), tmp_path / "whole")
    from vog_hf.scoring.replay import Replay

    write, written = Replay.write, []

    def until_the_third(self, number, scored):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, scored)

    monkeypatch.setattr(Replay, "write", until_the_third)
    with pytest.raises(KeyboardInterrupt):
        score(rows(), tmp_path / "scores")
    columns = as_version_1(rows()).columns
    rewritten(tmp_path / "scores" / "plan.json", lambda plan: plan["fingerprint"].update(data=columns))
    after = []
    monkeypatch.setattr(
        Replay, "write", lambda self, number, scored: (after.append(number), write(self, number, scored))
    )
    scores = score(rows(), tmp_path / "scores")
    assert 0 not in after
    assert len(written) + len(after) == -(-N // 8)
    assert np.array_equal(scores.column("vog"), whole.column("vog"))


def test_a_journal_of_version_1_takes_decisions_under_scores_made_again(old, tmp_path):
    """Decisions of both versions are applied to the rows they are about, and to no others."""
    before = VoGScores.load(old)
    before.row_hash = as_version_1(rows()).row_hash
    Journal.open(tmp_path / "journal.jsonl", before).decide(3, "drop", reviewer="Ada")
    journal = Journal.open(tmp_path / "journal.jsonl", score(rows(), tmp_path / "again"))
    journal.decide(5, "drop", reviewer="Ada")
    assert len(apply_review(rows(), journal, mode="filter")) == N - 2
    with pytest.raises(RowMismatchError):
        apply_review(rows().select([1, 0, *range(2, N)]), journal)
