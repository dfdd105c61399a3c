"""`vog-hf apply`: decisions applied to files and to a local Hub server, through the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_hub import hub_with_commands
from cli_runs import MODULE, launch, run, train_on_images
from datasets import Dataset, DatasetDict, load_from_disk
from hub_server import ACCEPTED, READING, HubServer
from test_cli import made_scores

from vog_hf.review import Filter, Journal, Queue
from vog_hf.scores.dataset_columns import add_vog_columns
from vog_hf.scores.vog_scores import VoGScores

N = 20
REPO = "someone/digits-vog"


@pytest.fixture
def scores(tmp_path):
    """A folder with scores of 20 digits and their review."""
    folder = made_scores(tmp_path, range(N))
    journal = Journal.open(tmp_path / "scores.review.jsonl", VoGScores.load(folder))
    journal.decide(3, "drop", reviewer="Ada")
    journal.decide(5, "relabel", reviewer="Ada", label=int((VoGScores.load(folder).column("label")[5] + 1) % 10))
    journal.decide(9, "keep", reviewer="Ada")
    journal.decide(9, "drop", reviewer="Bob")
    return folder


def test_decisions_become_a_data_set(scores, tmp_path, capfd):
    """The journal next to the scores is applied to the recorded dataset, and one JSON document reports it."""
    done = run(capfd, "apply", scores, "--mode", "clean", "--output", tmp_path / "clean", "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert "Yield: 2 reviewed, 2 wrong (1 unsure left out); unclear" in done.values["summary"]
    assert "this queue has only 20 rows" in done.values["yield"]["unclear"]
    assert {name: value for name, value in done.values.items() if name != "yield"} | {"summary": ""} == {
        "rows": N - 1,
        "reviewed": 3,
        "decisions": {"drop": 1, "relabel": 1, "unsure": 1},
        "relabeled": 1,
        "dropped": 1,
        "reviewers": 2,
        "differing": 1,
        "mode": "clean",
        "summary": "",
        "saved": str(tmp_path / "clean"),
        "url": None,
        "pushed": False,
    }
    given, found = load_from_disk(str(tmp_path / "digits")), load_from_disk(str(tmp_path / "clean"))
    kept = [row for row in range(N) if row != 3]
    assert found["vog"][:] == kept
    assert found["review"][:] == [{5: "relabel", 9: "unsure"}.get(row) for row in kept]
    assert [row for row, label in zip(kept, found["label"], strict=True) if label != given["label"][row]] == [5]
    told = run(capfd, "apply", scores, "--output", tmp_path / "flagged.parquet")
    assert "3 rows of 20 reviewed by 2 people" in told.stdout
    assert "3 decisions applied" in told.stdout
    flagged = Dataset.from_parquet(str(tmp_path / "flagged.parquet"), cache_dir=str(tmp_path / "cache"))
    assert flagged["label"][:] == given["label"][:]
    assert flagged["review"][3] == "drop"


def test_a_named_journal_and_data_set_count(scores, tmp_path, capfd):
    """Journal, dataset and columns can be chosen by options."""
    (tmp_path / "scores.review.jsonl").rename(tmp_path / "ada.jsonl")
    (tmp_path / "digits").rename(tmp_path / "moved")
    asked = [scores, tmp_path / "ada.jsonl", "--dataset", tmp_path / "moved", "--output", tmp_path / "new"]
    done = run(capfd, "apply", *asked, "--columns", "all", "--json")
    assert done.code == 0, done.stderr
    assert done.values["decisions"] == {"drop": 1, "relabel": 1, "unsure": 1}


def test_the_commands_of_the_page_run(scores, tmp_path, capfd, monkeypatch):
    """The `vog-hf apply` commands of docs/review.md work; a push stops without a network."""
    page = (Path(__file__).parents[2] / "docs" / "review.md").read_text(encoding="utf-8")
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
    """Each mistake is reported before anything is written."""
    to = ["--output", tmp_path / "new"]
    for arguments, code, message in (
        ([], 2, "give --output, --push, or both"),
        ([*to, "--create-pr"], 2, "nothing is pushed; leave out --create-pr, or add --push"),
        ([*to, "--config-name", "x"], 2, "leave out --config-name, or"),
        ([*to, "--split-name", "x", "--public"], 2, "leave out --private/--public, --split-name, or add"),
        ([*to, "--hide-rows"], 2, "leave out --show-rows/--hide-rows, or"),
        ([*to, "--commit-message", "x"], 2, "leave out --commit-message, or"),
        (["--push", REPO, "--create-pr", "--revision", "x"], 2, "leave out --revision or"),
        ([*to, "--mode", "fix"], 2, "'fix'"),
        (["--output", tmp_path / "digits"], 1, "already exists; choose another path"),
        (["--output", tmp_path / "new.csv"], 1, "--output takes a *.parquet file or a folder, got "),
        ([tmp_path / "nowhere.jsonl", *to], 1, "cannot be read"),
        ([tmp_path / "digits" / "state.json", *to], 1, "is not a valid journal line"),
        ([*to, "--label-column", "class"], 1, "no label column 'class', only"),
        ([*to, "--label-column", "class"], 1, "pass another --label-column"),
    ):
        done = run(capfd, "apply", scores, *arguments)
        assert (done.code, done.stdout) == (code, ""), done.stderr
        assert message in " ".join(done.stderr.replace("│", "").split())
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "new").exists()


def test_a_journal_of_other_data_is_refused(scores, tmp_path, capfd):
    """The review of one dataset does not change another."""
    other = made_scores(tmp_path / "other", range(N - 1))
    done = run(capfd, "apply", other, tmp_path / "scores.review.jsonl", "--output", tmp_path / "new")
    assert done.code == 1
    assert "belongs to a different dataset" in done.stderr
    assert not (tmp_path / "new").exists()


def test_columns_go_with_data_that_has_none(scores, tmp_path, capfd):
    """A dataset with score columns gets no others."""
    rows = add_vog_columns(load_from_disk(str(tmp_path / "digits")), VoGScores.load(scores))
    rows.save_to_disk(str(tmp_path / "scored"))
    given = ["apply", scores, "--dataset", tmp_path / "scored", "--output", tmp_path / "new"]
    for columns in ("core", "all"):
        refused = run(capfd, *given, "--columns", columns)
        assert refused.code == 1
        assert "gets no others from --columns; leave that out" in refused.stderr
    assert run(capfd, *given).code == 0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A local Hub and commands that use it."""
    with hub_with_commands(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture
def hub(server):
    """The empty Hub."""
    server[0].clear()
    return server[0]


@pytest.fixture
def command(server):
    """Run a command in a process that uses the local Hub."""
    return server[1]


def pushed_splits(hub):
    """The splits of the dataset on the Hub."""
    names = [name for name in hub.dataset(REPO).files() if name.startswith("data/")]
    return {name.removeprefix("data/").partition("-")[0] for name in names}


def test_a_push_that_failed_can_be_tried_again(scores, hub, command, tmp_path):
    """The output is written only after a successful push of the same command."""
    given = ["apply", scores, "--output", tmp_path / "reviewed", "--push", REPO, "--json"]
    before = sorted(tmp_path.iterdir())
    refused = command(*given, token=READING)
    assert refused.code == 1
    assert "may only read" in refused.stderr
    assert sorted(tmp_path.iterdir()) == before
    done = command(*given, token=ACCEPTED)
    assert done.code == 0, done.stderr
    assert done.values["url"].endswith(REPO)
    assert load_from_disk(str(tmp_path / "reviewed"))["review"][3] == "drop"


def test_a_pull_request_without_anything_new_is_not_claimed(scores, hub, command, tmp_path):
    """The same review again says that nothing was pushed and opens no pull request; one more decision does."""
    given = ["apply", scores, "--push", REPO]
    first = command(*given, "--json", token=ACCEPTED)
    assert first.values["pushed"] is True
    assert "Nothing was pushed" not in first.stdout
    for options in (["--create-pr"], []):
        again = command(*given, *options, "--json", token=ACCEPTED)
        assert (again.code, again.values["pushed"]) == (0, False), again.stderr
        told = command(*given, *options, token=ACCEPTED)
        assert "Nothing was pushed: the repository already holds these rows, scores and card" in told.stdout
        assert "discussions" not in told.stdout
    journal = Journal.open(tmp_path / "scores.review.jsonl", VoGScores.load(scores))
    journal.decide(11, "drop", reviewer="Ada")
    proposed = command(*given, "--create-pr", "--json", token=ACCEPTED)
    assert proposed.values["pushed"] is True
    assert proposed.values["url"].endswith("/discussions/1")


def test_a_split_of_another_name_is_read_with_its_token(scores, hub, command, tmp_path):
    """A private dataset with a single scored split other than train is found by its id and pushed to that split."""
    journal = tmp_path / "scores.review.jsonl"
    pushed = command("push", scores, REPO, "--private", "--split-name", "held", token=ACCEPTED)
    assert pushed.code == 0, pushed.stderr
    given = ["apply", REPO, journal, "--output", tmp_path / "reviewed"]
    stranger = command(*given)
    assert stranger.code == 1
    assert not (tmp_path / "reviewed").exists()
    done = command(*given, "--push", REPO, token=ACCEPTED)
    assert done.code == 0, done.stderr
    assert load_from_disk(str(tmp_path / "reviewed"))["review"][3] == "drop"
    assert pushed_splits(hub) == {"held"}
    other = command("apply", REPO, journal, "--output", tmp_path / "other", "--split", "train", token=ACCEPTED)
    assert "holds scores of the splits held; choose one with --split, got 'train'" in other.stderr
    nowhere = command("apply", REPO, journal, "--output", tmp_path / "other", "--config", "b", token=ACCEPTED)
    assert "has no scores in this configuration; name another with --config" in nowhere.stderr


def test_private_rows_are_read_with_the_token(scores, hub, command, tmp_path):
    """Every command that reads from the Hub uses the token, and fails without it."""
    for repo, asked in (
        ("someone/one", ["report", scores, "-o", tmp_path / "report.html"]),
        ("someone/two", ["push", scores, "someone/three"]),
    ):
        assert command("push", scores, repo, "--private", token=ACCEPTED).code == 0
        refused = command(*asked, "--dataset", repo)
        assert refused.code == 1
        assert "cannot be loaded" in refused.stderr
        done = command(*asked, "--dataset", repo, token=ACCEPTED)
        assert done.code == 0, done.stderr


def test_a_split_on_disk_keeps_its_name(scores, hub, command, tmp_path):
    """Of several splits, saved without their names in them, the one that was reviewed is pushed under its own."""
    rows = load_from_disk(str(tmp_path / "digits"))
    kept = VoGScores.load(scores)
    kept.save(tmp_path / "parts" / "test")
    made_scores(tmp_path / "more", range(3)).rename(tmp_path / "parts" / "train")
    parts = DatasetDict(train=load_from_disk(str(tmp_path / "more" / "digits")), test=rows)
    parts.save_to_disk(str(tmp_path / "plain"))
    asked = ["--split", "test", "--push", REPO]
    journal = tmp_path / "scores.review.jsonl"
    done = command("apply", tmp_path / "parts", journal, "--dataset", tmp_path / "plain", *asked, token=ACCEPTED)
    assert done.code == 0, done.stderr
    assert pushed_splits(hub) == {"test"}
    parts["test"] = add_vog_columns(rows, kept)
    parts["train"] = add_vog_columns(parts["train"], VoGScores.load(tmp_path / "parts" / "train"))
    parts.save_to_disk(str(tmp_path / "scored"))
    hub.clear()
    done = command("apply", tmp_path / "scored", journal, *asked, token=ACCEPTED)
    assert done.code == 0, done.stderr
    assert pushed_splits(hub) == {"test"}


@pytest.mark.slow
def test_a_reviewed_data_set_is_reviewed_again(scores, hub, command, tmp_path):
    """A pushed review continues its journal while rows and labels are unchanged; corrected labels need a new one.

    The labels of the scores are those of the data, so that what is decided is about what is shown.
    """
    journal = tmp_path / "scores.review.jsonl"
    first = Journal.open(journal, VoGScores.load(scores))
    assert command("push", scores, REPO, token=ACCEPTED).code == 0
    flagged = command("apply", REPO, journal, "--push", REPO, token=ACCEPTED)
    assert flagged.code == 0, flagged.stderr
    first.decide(11, "drop", reviewer="Ada")
    again = command("apply", REPO, journal, "--mode", "clean", "--push", REPO, token=ACCEPTED)
    assert (again.code, again.stderr) == (0, "")

    rows = load_back(hub, tmp_path, "main")
    assert len(rows) == N - 2
    place = [row for row in range(N) if row not in (3, 11)].index(5)
    assert (rows["review"][place], rows["label"][place]) == ("relabel", rows["label_reviewed"][place])
    now = pulled(hub, tmp_path)
    assert now.column("label").tolist() == rows["label"][:]
    assert now.manifest["review"] == {"mode": "clean", "rows_scored": N, "labels": "reviewed"}
    second = Journal.open(tmp_path / "second.jsonl", now)
    assert second.decide(place, "keep", reviewer="Eve").old_label == rows["label"][place]
    third = command("apply", REPO, second.path, "--mode", "clean", "--output", tmp_path / "third", token=ACCEPTED)
    assert third.code == 0, third.stderr
    assert third.stderr == (
        "WARNING: an earlier review has decisions about rows without one in this review (1); its columns are replaced, "
        "and these decisions stay only in its journal\n"
    )
    assert [decision for decision in load_from_disk(str(tmp_path / "third"))["review"] if decision] == ["keep"]
    old = command("apply", REPO, journal, "--output", tmp_path / "fourth", token=ACCEPTED)
    assert "belongs to a different dataset" in old.stderr


def pulled(hub, tmp_path):
    """The scores on the Hub, read from its files."""
    folder = tmp_path / "pulled"
    folder.mkdir()
    for name, content in hub.dataset(REPO).files().items():
        if name.startswith("vog/default/train/"):
            (folder / name.rpartition("/")[2]).write_bytes(content)
    return VoGScores.load(folder)


LOAD_BACK = """
import sys
from datasets import load_dataset
load_dataset(sys.argv[1], split="train", revision=sys.argv[2]).save_to_disk(sys.argv[3])
"""


def load_back(hub, tmp_path, revision):
    """Load a dataset from the local Hub in a separate process."""
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
    """The first 50 rows of a real training's queue are reviewed, applied, pushed and reloaded.

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
