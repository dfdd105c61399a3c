import re

import launch
import pytest


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_live_training_that_is_killed_at_any_moment_scores_the_same_after_resuming(kills, tmp_path):
    """SIGKILL between and in the midst of checkpoints: every resumed training has the scores of one left in peace."""
    printed = launch.run("kill_live.py", tmp_path, kills, limit=1500)
    assert f"kills {kills}, differing 0" in printed
    steps = re.search(r"resumed at steps \[(.*)\]", printed)[1].split(", ")
    assert kills < 10 or len(set(steps)) >= 5, "all kills fell between the same checkpoints"
