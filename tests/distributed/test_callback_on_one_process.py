"""A callback or a scoring that is on one process only is refused there, in seconds."""

import pytest
from launch import run


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_who_comes_alone_is_told_that_the_callback_belongs_on_every_process(rank):
    """Nobody waits in a collective: the next one, of the training, is undisturbed."""
    printed = run("begin_on_one.py", rank, processes=2)
    message = f"VoGCallback belongs on every process: it is on process {rank}, and 0.5 s later not on {1 - rank} of 2;"
    assert f"process {rank}: {message}" in printed


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_who_scores_alone_is_told_so_and_can_score_with_the_others_later(rank):
    """No collective is entered alone, so that the next scoring, of both processes, works."""
    printed = run("score_on_one.py", rank, processes=2)
    message = f"VoGScorer.score belongs on every process: it is on process {rank}, and 0.5 s later not on {1 - rank}"
    assert f"process {rank}: {message}" in printed
    assert all(f"process {each}: 5 rows" in printed for each in (0, 1))
