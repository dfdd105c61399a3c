"""`vog-hf apply`: decisions into files and onto a Hub on the loopback interface, through the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_runs import MODULE, launch, run, train_on_images
from datasets import Dataset, load_from_disk
from hub_server import ACCEPTED, HubServer
from test_cli import made_scores

from vog_hf.review import Filter, Journal, Queue
from vog_hf.scores import VoGScores

N = 20
REPO = "someone/digits-vog"


@pytest.fixture
def scores(tmp_path):
    """A folder with scores of 20 digits, and a review of them beside it."""
    folder = made_scores(tmp_path, range(N))
    journal = Journal.open(tmp_path / "scores.review.jsonl", VoGScores.load(folder))
    journal.decide(3, "drop", reviewer="Ada")
    journal.decide(5, "relabel", reviewer="Ada", label=int((VoGScores.load(folder).column("label")[5] + 1) % 10))
    journal.decide(9, "keep", reviewer="Ada")
    journal.decide(9, "drop", reviewer="Bob")
    return folder


def test_decisions_become_a_data_set(scores, tmp_path, capfd):
    """The journal beside the scores is applied to the data set that was noted; what was done is one JSON document."""
    done = run(capfd, "apply", scores, "--mode", "clean", "--output", tmp_path / "clean", "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert done.values | {"summary": ""} == {
        "rows": N - 1,
        "reviewed": 3,
        "decisions": {"drop": 1, "relabel": 1, "unsure": 1},
        "relabelled": 1,
        "dropped": 1,
        "reviewers": 2,
        "differing": 1,
        "mode": "clean",
        "summary": "",
        "saved": str(tmp_path / "clean"),
        "url": None,
    }
    given, found = load_from_disk(str(tmp_path / "digits")), load_from_disk(str(tmp_path / "clean"))
    kept = [row for row in range(N) if row != 3]
    assert found["vog"][:] == kept
    assert found["review"][:] == [{5: "relabel", 9: "unsure"}.get(row) for row in kept]
    assert [row for row, label in zip(kept, found["label"], strict=True) if label != given["label"][row]] == [5]
    told = run(capfd, "apply", scores, "--output", tmp_path / "flagged.parquet")
    assert "3 rows of 20 reviewed by 2 people" in told.stdout
    flagged = Dataset.from_parquet(str(tmp_path / "flagged.parquet"), cache_dir=str(tmp_path / "cache"))
    assert flagged["label"][:] == given["label"][:]
    assert flagged["review"][3] == "drop"


def test_a_named_journal_and_data_set_count(scores, tmp_path, capfd):
    """Another journal, another place of the data, scores of every kind as columns."""
    (tmp_path / "scores.review.jsonl").rename(tmp_path / "ada.jsonl")
    (tmp_path / "digits").rename(tmp_path / "moved")
    asked = [scores, tmp_path / "ada.jsonl", "--dataset", tmp_path / "moved", "--output", tmp_path / "new"]
    done = run(capfd, "apply", *asked, "--columns", "all", "--json")
    assert done.code == 0, done.stderr
    assert done.values["decisions"] == {"drop": 1, "relabel": 1, "unsure": 1}


def test_the_commands_of_the_page_run(scores, tmp_path, capfd, monkeypatch):
    """What docs/review.md says of `vog-hf apply` is understood; a push stops where there is no network."""
    page = (Path(__file__).parent.parent / "docs" / "review.md").read_text(encoding="utf-8")
    commands = [line.split("#")[0].split()[1:] for line in page.splitlines() if line.startswith("vog-hf apply")]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    written, pushed = (run(capfd, *command) for command in commands)
    assert written.code == 0, written.stderr
    assert (tmp_path / "clean-data").is_dir()
    assert pushed.code == 1
    assert "HF_HUB_OFFLINE" in pushed.stderr


def test_what_cannot_be_applied_is_one_line(scores, tmp_path, capfd):
    """Each mistake is said before anything is written."""
    to = ["--output", tmp_path / "new"]
    for arguments, code, message in (
        ([], 2, "give --output, --push, or both"),
        ([*to, "--create-pr"], 2, "go with --push"),
        (["--push", REPO, "--create-pr", "--revision", "x"], 2, "leave out --revision or"),
        ([*to, "--mode", "fix"], 2, "'fix'"),
        (["--output", tmp_path / "digits"], 1, "exists already; choose another path"),
        ([tmp_path / "nowhere.jsonl", *to], 1, "cannot be read"),
        ([tmp_path / "digits" / "state.json", *to], 1, "is not what a journal has there"),
        ([*to, "--label-column", "class"], 1, "no label column 'class'"),
    ):
        done = run(capfd, "apply", scores, *arguments)
        assert (done.code, done.stdout) == (code, ""), done.stderr
        assert message in " ".join(done.stderr.replace("│", "").split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "new").exists()


def test_a_journal_of_other_data_is_refused(scores, tmp_path, capfd):
    """The review of one data set does not change another."""
    other = made_scores(tmp_path / "other", range(N - 1))
    done = run(capfd, "apply", other, tmp_path / "scores.review.jsonl", "--output", tmp_path / "new")
    assert done.code == 1
    assert "is of other data" in done.stderr
    assert not (tmp_path / "new").exists()


LOAD_BACK = """
import sys
from datasets import load_dataset
load_dataset(sys.argv[1], split="train", revision=sys.argv[2]).save_to_disk(sys.argv[3])
"""


def load_back(hub, tmp_path, revision):
    """What a user loads from the Hub, in a process of its own, whose client talks to it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    where = tmp_path / f"loaded-{revision.replace('/', '-')}"
    subprocess.run(
        [sys.executable, "-c", LOAD_BACK, REPO, revision, str(where)],
        env={**clean, **hub.environment(tmp_path / "home"), "HF_TOKEN": ACCEPTED},
        check=True,
        capture_output=True,
    )
    return load_from_disk(str(where))


@pytest.mark.slow
def test_the_loop_from_scores_to_the_hub_and_back(tmp_path):
    """Of a real training's scores the first 50 rows of the queue are decided about, applied, pushed and loaded back.

    The changes are exactly the decisions: as a pull request with the columns, on a branch with them carried out.
    """
    training = train_on_images(tmp_path)
    queue = Queue(training.scores).rows(Filter(tail="lowest"))[:50].tolist()
    labels = training.scores.column("label").tolist()
    journal = Journal.open(tmp_path / "digits.jsonl", training.scores)
    decided = {}
    for place, row in enumerate(queue):
        decision = ("keep", "relabel", "drop", "unsure")[place % 4]
        label = (labels[row] + 1 + place % 7) % 10 if decision == "relabel" else None
        journal.decide(row, decision, reviewer="Ada", label=label)
        decided[row] = decision, label
    with HubServer() as hub:
        variables = {**hub.environment(tmp_path / "home"), "HF_TOKEN": ACCEPTED}
        asked = ["apply", training.folder, journal.path, "--dataset", training.data, "--push", REPO, "--json"]
        first = launch(MODULE, *asked, **variables)
        assert first.code == 0, first.stderr
        proposed = launch(MODULE, *asked, "--mode", "clean", "--create-pr", **variables)
        assert proposed.code == 0, proposed.stderr
        branch = launch(MODULE, *asked, "--mode", "correct", "--revision", "corrected", **variables)
        assert branch.code == 0, branch.stderr
        card = hub.dataset(REPO).files("refs/pr/1")["README.md"].decode()
        assert "### Review" in card
        assert "50 rows of 64 reviewed by 1 person" in card
        assert "Ada" not in card
        assert json.loads(first.stdout)["reviewed"] == 50
        versions = {name: load_back(hub, tmp_path, name) for name in ("main", "refs/pr/1", "corrected")}
    reviewed = [label if (label := decided.get(row, ("", None))[1]) is not None else labels[row] for row in range(64)]
    kept = [row for row in range(64) if decided.get(row, ("",))[0] != "drop"]
    for name, loaded in versions.items():
        rows = kept if name == "refs/pr/1" else range(64)
        assert loaded["review"][:] == [decided.get(row, (None,))[0] for row in rows]
        assert loaded["label_reviewed"][:] == [reviewed[row] for row in rows]
        assert loaded["label"][:] == [(labels if name == "main" else reviewed)[row] for row in rows]
        vog = training.scores.column("vog")[list(rows)]
        np.testing.assert_array_equal(np.array(loaded["vog"][:], np.float32), vog)
    given = load_from_disk(str(training.data))
    for name, rows in (("main", range(64)), ("refs/pr/1", kept)):
        for place, row in enumerate(rows):
            assert versions[name][place]["image"].tobytes() == given[row]["image"].tobytes()
