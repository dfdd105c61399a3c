"""The tasks of heads of their own do not depend on the number of processes either."""

import launch
import numpy as np
import pytest
from score_tasks import CASES, folder_name
from scorings import assert_close

from vog_hf.scores.vog_scores import VoGScores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of every task, scored on one process and on two."""
    made = {n: tmp_path_factory.mktemp(f"on-{n}") for n in (1, 2)}
    for n, folder in made.items():
        launch.run("score_tasks.py", folder, n, processes=None if n == 1 else n)
    return made


@pytest.mark.parametrize("task", CASES)
def test_scores_of_a_task_do_not_depend_on_the_number_of_processes(folders, task):
    """Answers, masks, boxes, transcripts, choices, reconstructions, pairs, preferences; tags: among the other rows."""
    one, two = (VoGScores.load(folders[n] / folder_name(task)) for n in (1, 2))
    assert np.ptp(one.column("vog")) > 0
    assert_close(two, one)
