"""`vog-hf push`: scores and their data set to a Hub on the loopback interface, through the real client."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import MODULE, SCRIPT, Done, launch, run
from datasets import Dataset
from hub_server import ACCEPTED, READING, HubServer
from test_cli import made_scores

REPO = "someone/digits-vog"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Hub, and a command line that talks to it: a process of its own, because the client reads its settings once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    with HubServer() as hub:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("cli_program.py"))],
            env={**clean, **hub.environment(tmp_path_factory.mktemp("home"))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

        def push(*arguments, token=ACCEPTED):
            given = ["push", *map(str, arguments), *(["--token", token] if token else [])]
            print(json.dumps(given), file=process.stdin, flush=True)
            done = Done(*json.loads(process.stdout.readline()))
            assert not token or token not in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            return done

        yield hub, push
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@pytest.fixture
def hub(server):
    """The Hub, empty."""
    server[0].clear()
    return server[0]


@pytest.fixture
def push(server):
    """`vog-hf push` with a token that may write."""
    return server[1]


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Of 20 digits, with a note which they are."""
    return made_scores(tmp_path_factory.mktemp("scores"), range(20))


def test_a_push_makes_a_repository_with_data_scores_and_card(hub, push, scores, tmp_path):
    """Private where that is asked for; the address is the result; the data set is the one that was noted."""
    section = ["--card-section", "Where from=A [drawer] in the attic", "--commit-message", "The digits"]
    done = push(scores, REPO, "--private", *section, "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert done.values == {"url": f"{hub.url}/datasets/{REPO}"}
    repository = hub.dataset(REPO)
    files = repository.files()
    assert repository.private
    assert "## Where from" in files["README.md"].decode()
    (tmp_path / "data.parquet").write_bytes(files["data/train-00000-of-00001.parquet"])
    pushed = Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path))
    assert pushed["vog"][:] == list(range(20))
    assert pushed[3]["image"].size == (8, 8)


def test_scores_alone_a_branch_and_a_pull_request(hub, push, scores):
    """Options reach the push: no data, another branch, another configuration, split and columns; a proposal."""
    push(scores, REPO)
    only = push(scores, REPO, "--scores-only", "--revision", "vog")
    assert only.code == 0, only.stderr
    assert "✓ Pushed" in only.stdout
    names = set(hub.dataset(REPO).files("vog"))
    assert any(name.startswith("vog_scores/") for name in names), names
    done = push(scores, REPO, "--create-pr", "--hide-rows", "--json")
    assert "/discussions/" in done.values["url"]
    done = push(scores, REPO, "--config-name", "small", "--split-name", "held", "--columns", "all", "--no-heat-maps")
    assert done.code == 0, done.stderr
    assert any("small/held" in name for name in hub.dataset(REPO).files())


def test_what_cannot_be_pushed_is_one_line(hub, push, scores, tmp_path):
    """A bad, a read-only and a missing token; rows that were not scored; a name that cannot be one; no scores."""
    Dataset.from_dict({"label": [0] * 20}).to_parquet(tmp_path / "other.parquet")
    cases = [
        ([scores, REPO], "hf_wrong"),
        ([scores, REPO], READING),
        ([scores, REPO], None),
        ([scores, REPO, "--dataset", tmp_path / "other.parquet"], ACCEPTED),
        ([scores, "a//b"], ACCEPTED),
        ([scores.parent / "nowhere", REPO], ACCEPTED),
    ]
    for arguments, token in cases:
        done = push(*arguments, token=token)
        assert (done.code, done.stdout) == (1, ""), arguments
        assert done.stderr.startswith("Error: "), arguments
        assert done.stderr.count("\n") == 1, done.stderr
        assert hub.repositories == {}, arguments


@pytest.mark.slow
@pytest.mark.parametrize("command", [SCRIPT, MODULE], ids=["script", "module"])
def test_push_in_a_process_of_its_own(hub, scores, tmp_path, command):
    """With the token of the environment, which is printed nowhere; and refused without one."""
    variables = {**hub.environment(tmp_path), "HF_TOKEN": ACCEPTED}
    done = launch(command, "push", scores, REPO, "--json", **variables)
    assert (done.code, done.stderr) == (0, "")
    assert done.values["url"].endswith(REPO)
    refused = launch(command, "push", scores, REPO, **{**variables, "HF_TOKEN": "hf_wrong"})
    assert refused.code == 1
    assert "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stdout + refused.stderr


def test_push_without_a_network_says_so(capfd, scores):
    """Offline mode is an error that names itself."""
    done = run(capfd, "push", scores, REPO, "--token", "hf_x")
    assert done.code == 1
    assert done.stderr.startswith("Error: ")
    assert "HF_HUB_OFFLINE" in done.stderr
