"""Live moments and streams do not depend on the number of processes either."""

from contextlib import ExitStack

import launch
import numpy as np
import pytest
from scorings import SCORINGS, everything

from vog_hf.scores.vog_scores import VoGScores


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Live scores of one process without a break."""
    folder = tmp_path_factory.mktemp("whole")
    launch.run("resume_live.py", folder, 1, 0, 4)
    return folder


def assert_equal(scores, expected):
    """Everything but the hashes of rows, which a stream and live rows of a list have not; maps are float16."""
    got, wanted = everything(scores), everything(expected)
    wanted.pop("row hash", None)
    assert list(got) == list(wanted)
    for name, values in wanted.items():
        tolerance = 1e-3 if name.startswith("heat map") else 1e-6
        np.testing.assert_allclose(
            got[name], values, rtol=tolerance, atol=tolerance * np.abs(values).max(), err_msg=name
        )


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2, 1), (2, 1, 3), (1, 2), (3, 3, 2, 1)])
def test_live_moments_go_on_on_any_number_of_processes(counts, uninterrupted, tmp_path):
    """Saved on one number of processes and taken up on another, again and again, they give the same scores."""
    bounds = [0, *range(5 - len(counts), 4), 4]
    for n_processes, first, last in zip(counts, bounds[:-1], bounds[1:], strict=True):
        launch.run("resume_live.py", tmp_path, n_processes, first, last, processes=n_processes)
    for kind in ("images", "texts"):
        assert_equal(VoGScores.load(tmp_path / f"{kind}-scores"), VoGScores.load(uninterrupted / f"{kind}-scores"))


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(2,), (1, 2, 3)])
def test_a_stream_on_several_processes_scores_what_its_rows_score(counts, tmp_path):
    """Interrupted once, on any number of processes: every row once, under its place in the stream."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(launch.launched("score_streams.py", tmp_path / str(n), n, processes=n)) for n in counts
        ]
        for program in started:
            assert "interrupted" in program.succeed()
    for scoring in SCORINGS:
        expected = scoring.score()
        for n in counts:
            assert_equal(VoGScores.load(tmp_path / str(n) / scoring.name), expected)
