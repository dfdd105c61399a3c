"""The same program on one, two and three processes gives the same scores, written once."""

import json
import re

import numpy as np
import pytest
from launch import launched
from reference import reference_csg_trajectory, reference_gradients
from scorings import SCORINGS, Scoring, assert_bit_equal, assert_close

from vog_hf.scores.vog_scores import VoGScores

COUNTS = (1, 2, pytest.param(3, marks=pytest.mark.slow))
BLOCK = re.compile(r"blocks/\.?process-(\d{5})-of-\d{5}-block-\d{6}\.safetensors(\.\d+\.tmp)?")


class Launches(dict):
    """A folder for each number of processes, with every scoring in it; made when it is asked for."""

    def __init__(self, make_folder):
        super().__init__()
        self.make_folder = make_folder

    def __missing__(self, n_processes):
        made = self[n_processes] = self.make_folder(f"on-{n_processes}")
        with launched("score_rows.py", made, n_processes, processes=None if n_processes == 1 else n_processes) as run:
            run.succeed()
            assert run.alive() == []
        return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders of this module."""
    return Launches(tmp_path_factory.mktemp)


@pytest.mark.parametrize("n_processes", COUNTS[1:])
@pytest.mark.parametrize("scoring", SCORINGS, ids=lambda scoring: scoring.name)
def test_scores_do_not_depend_on_the_number_of_processes(folders, scoring, n_processes):
    """Every column, trajectory and heat map is that of one process: to 1e-6, and bit for bit where batches agree."""
    expected = VoGScores.load(folders[1] / scoring.name)
    scores = VoGScores.load(folders[n_processes] / scoring.name)
    assert (expected.column("vog") > 0).all()
    if scoring.same_batches:
        assert_bit_equal(scores, expected)
        return
    assert_close(scores, expected)


@pytest.mark.slow  # the oracle takes its time
@pytest.mark.parametrize("kind", ["vectors", "texts"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_csg_on_two_processes_is_the_oracles(folders, kind, batch_size):
    """The Cumulative Sample Gradient of each row is that of a loop over single rows, also of a row without a label."""
    scoring = Scoring(kind, 53, batch_size)
    rows = [dict(row) for row in scoring.rows()]
    labels = [int(row.pop("label" if kind == "vectors" else "labels")) for row in rows]
    states = [state for _, state in scoring.states()]
    expected = reference_csg_trajectory(reference_gradients(scoring.model(), states, rows, "loss", labels))
    scores = VoGScores.load(folders[2] / scoring.name)
    np.testing.assert_allclose(scores.trajectory("csg"), expected, rtol=1e-6)
    np.testing.assert_allclose(scores.column("csg"), expected.mean(1), rtol=1e-6)


@pytest.mark.parametrize("n_processes", COUNTS)
def test_only_the_main_process_writes_but_for_blocks(folders, n_processes):
    """The others open, rename and remove nothing in the folder but the blocks of their own rows."""
    folder = folders[n_processes]
    for rank in range(n_processes):
        written = json.loads((folder / f"written-by-{rank}.json").read_text())
        blocks = [match for path in written if (match := BLOCK.search(path))]
        assert len(blocks) > len(SCORINGS) // 2
        assert {int(match[1]) for match in blocks} == {rank}
        others = [path for path in written if not BLOCK.search(path)]
        assert len(others) > 9 * len(SCORINGS) if rank == 0 else others == []


@pytest.mark.parametrize("n_processes", COUNTS)
def test_a_finished_folder_holds_the_scores_and_nothing_else(folders, n_processes):
    """No block, no temporary file."""
    for scoring in SCORINGS:
        names = {path.name for path in (folders[n_processes] / scoring.name).iterdir()}
        scores = VoGScores.load(folders[n_processes] / scoring.name)
        trajectories = {f"trajectory-{name}.npy" for name in scores.trajectory_names}
        maps = {f"heat-map-{part}.npy" for part in ("values", "shapes", "scale")}
        units = set() if scores.units is None else {"units.parquet"}
        assert names == {".lock", "plan.json", "manifest.json", "scores.parquet"} | trajectories | maps | units
