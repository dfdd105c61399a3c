"""``max_cost`` on two processes: the main one measures, and both leave out the same snapshots."""

import json

import numpy as np
import pytest
from collected import case_of, labeled
from launch import run
from models import collate
from thin_snapshots import ROWS, TRAININGS

from vog_hf import VoGScorer
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.snapshots import open_folder

pytestmark = pytest.mark.slow  # a launch

TAKEN = [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of both trainings, and what each process scored."""
    made = tmp_path_factory.mktemp("thinned")
    run("thin_snapshots.py", made, processes=2)
    return made


@pytest.mark.parametrize("name", TRAININGS)
def test_both_processes_score_the_same_snapshots(folder, name):
    """Also of a sharded model, which each scores as a whole; all snapshots stay in the folder."""
    one, other = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one["steps"] == [3, 6]
    assert one["thinned"].startswith("2 of 6 snapshots are scored (the fewest that VoG can have; ")
    stored = open_folder(folder / name / "_vog").snapshots
    assert [snapshot.step for snapshot in stored] == TAKEN
    scores = VoGScores.load(folder / name / "_vog" / "scores")
    assert scores.manifest["n_processes"] == 2
    case_name, _ = TRAININGS[name]
    case = case_of(case_name, ROWS)
    files = [str(snapshot.files[0]) for snapshot in stored if snapshot.step in (3, 6)]
    alone = VoGScorer(case.model, batch_size=4, progress=False).score(labeled(case), files, collate_fn=collate)
    np.testing.assert_allclose(scores.column("vog"), alone.column("vog"), rtol=1e-6)
