"""Scores of `collect="training"`, which have no VoG, through every command: the local Hub server, the real client."""

import numpy as np
import pytest
from cli_hub import hub_with_commands
from datasets import Dataset, load_from_disk
from hub_server import ACCEPTED
from trainers import digits, plain, trained

from vog_hf import VoGCallback
from vog_hf.review import Journal
from vog_hf.scores.vog_scores import VoGScores

N = 160
REPO = "someone/digits-loss"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A local Hub and commands that use it."""
    with hub_with_commands(tmp_path_factory.mktemp("home")) as started:
        yield started


@pytest.fixture(scope="module")
def command(server):
    """A command that must succeed."""

    def run(*arguments, token=None):
        done = server[1](*arguments, token=token)
        assert done.code == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two trainings of the same rows with other seeds, and the rows: their folders."""
    root = tmp_path_factory.mktemp("trainings")
    rows = digits(N)
    rows.save_to_disk(str(root / "digits"))
    for seed in (0, 1):
        vog = VoGCallback(collect="training", log=False)
        trained(root / str(seed), [vog], rows=rows.with_transform(plain), learning_rate=1e-2, seed=seed)
        assert {"loss", "csg", "first_loss", "vog_loss"} <= set(vog.scores.column_names)
    return root


@pytest.fixture
def scores(folders):
    """The folder of the first training's scores."""
    return folders / "0" / "_vog" / "scores"


def test_info_names_the_columns_and_how_they_were_collected(command, scores):
    """The verdict is about the loss, by which rows are ranked."""
    printed = command("info", scores).stdout
    assert "first_loss" in printed
    assert "loss is a" in printed
    manifest = command("info", scores, "--json").values["scores"]
    assert manifest["collect"] == "training"
    assert manifest["training"]["mode"] == "train"


def test_two_trainings_are_compared_by_their_loss(command, folders):
    """The default column is the loss; any other that both have can be named."""
    both = [folders / seed / "_vog" / "scores" for seed in "01"]
    by_loss = command("compare", *both, "--json").values
    assert by_loss["column"] == "loss"
    assert by_loss["n_rows"] == N
    assert 0 < by_loss["agreement"]["spearman"] < 1
    assert command("compare", *both, "--column", "first_loss", "--json").values["column"] == "first_loss"


def test_a_report_is_about_the_loss(command, scores, folders, tmp_path):
    """With rows and without: nothing is called VoG that is not."""
    for rows in (["--dataset", folders / "digits"], ["--numbers-only"]):
        command("report", scores, *rows, "--output", tmp_path / "report.html")
        html = (tmp_path / "report.html").read_text()
        assert "Distribution of loss" in html
        assert "Distribution of VoG" not in html


def test_a_push_has_columns_scores_and_a_card(server, command, scores, folders, tmp_path):
    """Rows with loss and csg; the scores load again with the rows of each step; the card says what there is."""
    hub = server[0]
    hub.clear()
    url = command("push", scores, REPO, "--dataset", folders / "digits", "--json", token=ACCEPTED).values["url"]
    assert url == f"{hub.url}/datasets/{REPO}"
    files = hub.dataset(REPO).files()
    (tmp_path / "data.parquet").write_bytes(files["data/train-00000-of-00001.parquet"])
    pushed = Dataset.from_parquet(str(tmp_path / "data.parquet"), cache_dir=str(tmp_path))
    assert pushed.column_names == ["image", "label", "loss", "csg"]
    expected = VoGScores.load(scores)
    np.testing.assert_array_equal(np.array(pushed["loss"][:], dtype=np.float32), expected.column("loss"))
    assert any(name.endswith("steps.parquet") for name in files)
    card = files["README.md"].decode()
    assert "Both ends of the ranking, by <code>loss</code>" in card
    assert "no VoG to rank by" in card
    for name in ("first&#95;loss", "observations", "vog&#95;loss"):
        assert name in card
    pushed_again = command("push", scores, REPO, "--dataset", folders / "digits", token=ACCEPTED)
    assert "Nothing was pushed" in pushed_again.stdout
    only = command("push", scores, REPO, "--dataset", folders / "digits", "--scores-only", token=ACCEPTED)
    assert "Pushed" in only.stdout
    status = command("review", REPO, "--status", "--json", token=ACCEPTED)
    assert status.values["queue"].endswith("highest first")


def test_a_review_is_applied(server, command, scores, folders, tmp_path):
    """The queue begins with the highest loss; decisions become columns and labels, on disk and on the Hub."""
    hub = server[0]
    hub.clear()
    journal = Journal.open(tmp_path / "review.jsonl", VoGScores.load(scores))
    order = np.argsort(-VoGScores.load(scores).column("loss"), kind="stable")
    label = int(VoGScores.load(scores).column("label")[order[0]])
    journal.decide(int(order[0]), "relabel", reviewer="Ada", label=(label + 1) % 10)
    journal.decide(int(order[1]), "drop", reviewer="Ada")
    journal.decide(int(order[2]), "keep", reviewer="Ada")
    place = [scores, tmp_path / "review.jsonl", "--dataset", folders / "digits"]
    status = command("review", scores, "--status", "--json", "--journal", *place[1:]).values
    assert status["queue"].endswith("highest first")
    done = command("apply", *place, "--mode", "clean", "--output", tmp_path / "clean", "--json").values
    assert (done["rows"], done["relabeled"], done["dropped"]) == (N - 1, 1, 1)
    clean = load_from_disk(str(tmp_path / "clean"))
    assert {"loss", "csg", "review", "label_reviewed"} <= set(clean.column_names)
    pushed = command("apply", *place, "--push", REPO, "--json", token=ACCEPTED).values
    assert pushed["pushed"]
    assert "## Review" in hub.dataset(REPO).files()["README.md"].decode()
    assert pushed["decisions"] == {"relabel": 1, "drop": 1, "keep": 1}
