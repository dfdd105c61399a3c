"""`vog-hf push`: scores and dataset pushed to a local Hub server, through the real client."""

import pytest
from cli_hub import hub_with_commands
from cli_runs import MODULE, SCRIPT, launch, run
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from hub_server import ACCEPTED, READING
from test_cli import made_scores

from vog_hf.cli.sources import Source, note_source
from vog_hf.scores.dataset_columns import add_vog_columns
from vog_hf.scores.vog_scores import VoGScores

REPO = "someone/digits-vog"


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
def push(server):
    """Run `vog-hf push` with a write token."""
    return lambda *arguments, token=ACCEPTED: server[1]("push", *arguments, token=token)


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Scores of 20 digits with a record of their dataset."""
    return made_scores(tmp_path_factory.mktemp("scores"), range(20))


def test_a_push_makes_a_repository_with_data_scores_and_card(hub, push, scores, tmp_path):
    """A push of the recorded dataset prints its address and can be private."""
    section = ["--card-section", "Where from=A [drawer] in the attic", "--commit-message", "The digits"]
    done = push(scores, REPO, "--private", *section, "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == ""
    assert done.values == {"url": f"{hub.url}/datasets/{REPO}", "pushed": True}
    repository = hub.dataset(REPO)
    files = repository.files()
    assert repository.private
    assert "## Where from" in files["README.md"].decode()
    (tmp_path / "data.parquet").write_bytes(files["data/train-00000-of-00001.parquet"])
    pushed = Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path))
    assert pushed["vog"][:] == list(range(20))
    assert pushed[3]["image"].size == (8, 8)


def test_scores_alone_a_branch_and_a_pull_request(hub, push, scores):
    """Options reach the push: scores only, branch, configuration, split, columns and pull request."""
    push(scores, REPO)
    same = push(scores, REPO, "--create-pr")
    assert "✓ Nothing was pushed: the repository already holds these rows, scores and card" in same.stdout
    assert "discussions" not in same.stdout
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


@pytest.fixture
def splits(tmp_path):
    """Scores of the splits test and train, as a callback writes them, and their dataset."""
    rows = {}
    for split, count in (("train", 6), ("test", 4)):
        folder = made_scores(tmp_path / split, range(count))
        rows[split] = load_from_disk(str(tmp_path / split / "digits"))
        VoGScores.load(folder).save(tmp_path / "_vog" / "scores" / split)
    DatasetDict(rows).save_to_disk(str(tmp_path / "digits"))
    return tmp_path / "_vog"


def test_one_of_several_splits_is_pushed(hub, push, splits, tmp_path):
    """--split pushes that split, under its name or another; without it all splits; a missing split is refused."""
    given = [splits, REPO, "--dataset", tmp_path / "digits"]
    done = push(*given, "--split", "test")
    assert done.code == 0, done.stderr
    held = push(*given, "--split", "test", "--split-name", "held", "--config-name", "other")
    assert held.code == 0, held.stderr
    shards = {name for name in hub.dataset(REPO).files() if name.endswith(".parquet") and not name.startswith("vog/")}
    assert shards == {"data/test-00000-of-00001.parquet", "other/held-00000-of-00001.parquet"}
    for options, said in (
        (["--split", "dev"], "holds scores of the splits test, train; choose one with --split, got 'dev'"),
        (["--split-name", "x"], "--split-name names one split, and "),
    ):
        refused = push(*given, *options)
        assert refused.code == 1
        assert said in refused.stderr
    assert push(*given).code == 0
    assert {"data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"} <= set(hub.dataset(REPO).files())


def test_what_the_library_refuses_is_said_in_options(hub, push, tmp_path):
    """Errors name the options for splits, configurations, columns and tokens."""
    folder = made_scores(tmp_path, range(20))
    scores, rows = VoGScores.load(folder), load_from_disk(str(tmp_path / "digits"))
    concatenate_datasets([rows, rows.select([0])]).to_parquet(tmp_path / "more.parquet")
    part = ["--dataset", tmp_path / "more.parquet", "--split", "train[:20]"]
    done = push(folder, REPO, *part)
    assert done.code == 1
    assert "got 'train[:20]'; pass --split-name 'train'" in done.stderr
    assert push(folder, REPO, *part, "--split-name", "train").code == 0
    note_source(folder, Source(str(tmp_path / "more.parquet"), split="train[:20]"))
    assert "pass --split-name 'train'" in push(folder, REPO).stderr
    add_vog_columns(rows, scores, ["vog"]).to_parquet(tmp_path / "scored.parquet")
    scored = ["--dataset", tmp_path / "scored.parquet"]
    for options, token, said in (
        ([*part, "--config-name", "a/b"], ACCEPTED, "--config-name must be letters"),
        (
            [*scored, "--columns", "all"],
            ACCEPTED,
            "leave --columns out, or pass SCORES and a dataset without score columns",
        ),
        ([*scored], READING, "pass it as --token\n"),
        ([*scored], None, "or pass --token"),
    ):
        refused = push(folder, "someone/other", *options, token=token)
        assert refused.code == 1
        assert said in refused.stderr
    assert ("datasets", "someone/other") not in hub.repositories


def test_what_cannot_be_pushed_is_one_line(hub, push, scores, tmp_path):
    """`push` refuses bad tokens, different rows, invalid names and missing scores."""
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
    """The token of the environment is used and never printed; without one the push is refused."""
    variables = {**hub.environment(tmp_path), "HF_TOKEN": ACCEPTED}
    done = launch(command, "push", scores, REPO, "--json", **variables)
    assert (done.code, done.stderr) == (0, "")
    assert done.values["url"].endswith(REPO)
    refused = launch(command, "push", scores, REPO, **{**variables, "HF_TOKEN": "hf_wrong"})
    assert refused.code == 1
    assert "Traceback" not in refused.stderr
    assert "hf_wrong" not in refused.stdout + refused.stderr


@pytest.mark.slow
def test_push_without_a_network_says_so(capfd, scores):
    """Offline mode is named in the error."""
    done = run(capfd, "push", scores, REPO, "--token", "hf_x")
    assert done.code == 1
    assert done.stderr.startswith("Error: ")
    assert "HF_HUB_OFFLINE" in done.stderr
