"""A scoring of which one process ends or does not come in time: the others end too, and the work is continued."""

import re

import pytest
from launch import launched, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ENDS = {
    "interrupted": "KeyboardInterrupt",
    "exited": "exitcode  : 7",
    "killed": "exitcode  : 9",
    "slow": r"another process has ended, or was too slow \(.*Timed out.*ddp_timeout of TrainingArguments",
}


@pytest.mark.parametrize(("how", "message"), ENDS.items())
@pytest.mark.parametrize("n_processes", [1, 2])
def test_where_one_process_ends_all_do_and_the_scoring_is_continued(how, message, n_processes, tmp_path):
    """Long before any time-out of a collective; on as many processes or another number, the rest is scored."""
    with launched("end_on_one.py", tmp_path, how, processes=2) as launch:
        assert launch.wait(limit=400) != 0
        assert re.search(message, launch.output, re.DOTALL)
        assert "scored" not in launch.output
        assert launch.alive() == []
    assert not (tmp_path / "scores" / "manifest.json").exists()
    printed = run("end_on_one.py", tmp_path, "whole", processes=n_processes, limit=400)
    assert f"scored 53 rows on {n_processes} processes" in printed
