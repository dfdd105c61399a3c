"""A scoring that is on one process only is refused there, in seconds (a callback: test_failing_processes.py)."""

import pytest
from launch import run


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_who_scores_alone_is_told_so_and_can_score_with_the_others_later(rank):
    """No collective is entered alone, so that the next scoring, of both processes, works."""
    printed = run("score_on_one.py", rank, processes=2)
    message = f"VoGScorer.score belongs on every process: it is on process {rank}, and 0.5 s later not on {1 - rank}"
    assert f"process {rank}: {message}" in printed
    assert all(f"process {each}: 5 rows" in printed for each in (0, 1))
