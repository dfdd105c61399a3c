"""Situations of two processes: rows that are skipped on one, streams and splits, folders and models that differ."""

import json
import re

import numpy as np
import pytest
from launch import run
from situations import BAD, SCORING, breaking

from vog_hf.config import VoGConfig

pytestmark = pytest.mark.slow
ODD = list(range(1, 53, 2))
# The rows that have no score, and the options of the same scoring on one process.
SCORED = {
    "one row": ([], {"rows": SCORING.rows()[:1]}),
    "one bad row is skipped": ([BAD], {}),
    "all rows of process 1 are bad": (ODD, {"rows": breaking({*ODD})}),
    "skipped on process 1 only": ([BAD], {}),
    "predicted labels, one skipped": ([BAD], {"config": VoGConfig(label="predicted")}),
    "other batch sizes": ([], {}),
    "other memory budgets": ([], {}),
    "a stream of one row": ([], {"rows": SCORING.rows()[:1]}),
    "a stream with a bad row": ([BAD], {}),
    "continued after an error, skipping": ([BAD], {}),
}
SAME = "every process must hold the same data, configuration and snapshots, but process 0: "
# Whether the two processes say the same, the error of process 1, and what its message has.
REFUSED = {
    "one bad row": (False, "DataError", rf"row {BAD} cannot be read: OSError: row {BAD} cannot be decoded"),
    "more than half are bad": (True, "DataError", "rows 0, 1, 2 and 4 others cannot be read, and most of them fail"),
    "a folder of its own for each process": (False, "OutputFolderError", "does not see what the main process has"),
    "a snapshot less on process 1": (True, "ProcessError", SAME + "{'snapshots': '4 of them'}; .*'3 of them'"),
    "rows in another order on process 1": (True, "ProcessError", SAME + "{'first batch': "),
    "a table in another order on process 1": (True, "ProcessError", SAME + "{'data': {'features': "),
    "a dict of splits": (True, "DataError", "one dataset is scored at a time"),
    "an empty split": (True, "DataError", "the dataset is empty: there is no row"),
    "an empty stream": (True, "DataError", "the stream is empty: there is no row"),
    "a stream that is shorter on process 1": (True, "ProcessError", "process 0 scored 27, process 1 scored 22"),
    "another model on process 1": (False, "ModelError", "none of forward's parameters"),
}


@pytest.fixture(scope="module")
def noted(tmp_path_factory):
    """What each process got, by situation; all of them one after another on the same two processes."""
    folder = tmp_path_factory.mktemp("situations")
    run("situations.py", folder, processes=2)
    found = json.loads((folder / "noted.json").read_text())
    assert set(found) == {*SCORED, *REFUSED}
    return found


@pytest.mark.parametrize("name", SCORED)
def test_two_processes_score_what_one_does(noted, name):
    """Every row that can be read has the score of a single process, and both processes hold it."""
    skipped, options = SCORED[name]
    rows = options.pop("rows", None) or (breaking({BAD}) if skipped else SCORING.rows())
    alone = SCORING.score(rows=rows, on_error="skip", **options).column("vog")
    mine, other = noted[name]
    assert mine == other
    assert mine["skipped"] == skipped
    np.testing.assert_allclose(np.array(mine["vog"], dtype=float), alone, rtol=1e-5)
    assert np.flatnonzero(np.isnan(alone)).tolist() == skipped


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_on_both(noted, name):
    """Each process raises an error that names what is wrong; none waits for the other."""
    alike, kind, message = REFUSED[name]
    main, other = noted[name]
    assert other[0] == kind
    assert re.search(message, other[1])
    assert (main == other) is alike
    if not alike:
        assert main[0] == "ProcessError"
        assert main[1].endswith(other[1])
