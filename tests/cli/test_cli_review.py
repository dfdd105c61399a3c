"""`vog-hf review` and `vog-hf space`: accepted and refused inputs, and their output."""

import ast
import io
import json
import re
import shlex
import socket
import sys
import zipfile
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import trainers
import yaml
from cli_hub import hub_with_commands
from cli_runs import MODULE, launch, run
from datasets import Dataset, DatasetDict, NamedSplit
from hub_server import ACCEPTED, HubServer
from PIL import Image
from review_cases import Launched
from test_cli import made_scores

import vog_hf
from vog_hf.cli.scored_sources import open_scored
from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import ConfigError, DataError, OutputFolderError, RowMismatchError
from vog_hf.review import Journal, read_decisions
from vog_hf.review.space import SpaceOf, write_space
from vog_hf.scores.dataset_columns import add_vog_columns
from vog_hf.scores.vog_scores import VoGScores

REPO = "someone/digits-vog"
NOTHING = {"dataset": None, "config": None, "split": None, "revision": None}


def digits_scores(count, start=0):
    """Some digits and scores of them."""
    rows = trainers.digits(count, start=start)
    values = np.arange(count, dtype=np.float32)
    names = [str(i) for i in range(10)]
    manifest = {"data": {"columns": identify_rows(rows).columns}, "class_names": names}
    label = np.array(rows["label"], dtype=np.int32)
    columns = {"label": label, "prediction": label, "vog": values, "vog_class_normalized": values}
    return rows, VoGScores(columns, manifest)


@pytest.fixture
def folder(tmp_path):
    """A folder with scores of 12 digits and a record of their dataset."""
    return made_scores(tmp_path / "scores", range(12))


def test_a_scored_folder_is_opened(folder):
    """The review opens the recorded dataset and puts the journal next to the folder with scores."""
    opened = open_scored(str(folder), **NOTHING)
    assert (len(opened.scores), len(opened.dataset)) == (12, 12)
    assert opened.journal == folder.with_name(f"{folder.name}.review.jsonl")


def test_a_saved_data_set_keeps_own_columns_apart(tmp_path):
    """With a prefix, the review reads the scores and not the dataset's own `prediction`."""
    rows, scores = digits_scores(12)
    own = rows.add_column("prediction", ["spam"] * len(rows))
    add_vog_columns(own, scores, "all", prefix="m_").save_to_disk(str(tmp_path / "scored"))
    opened = open_scored(str(tmp_path / "scored"), **NOTHING)
    np.testing.assert_array_equal(opened.scores.column("prediction"), scores.column("prediction"))
    assert opened.dataset["prediction"][:] == own["prediction"][:]


def test_a_saved_data_set_with_columns_is_opened(tmp_path):
    """A saved dataset with score columns is enough; without them the error says what is missing."""
    rows, scores = digits_scores(12)
    add_vog_columns(rows, scores, "all").save_to_disk(str(tmp_path / "scored"))
    opened = open_scored(str(tmp_path / "scored"), **NOTHING)
    np.testing.assert_array_equal(opened.scores.column("vog"), scores.column("vog"))
    assert opened.scores.column("label").tolist() == rows["label"][:]
    Journal.open(tmp_path / "journal.jsonl", opened.scores).decide(3, "drop", reviewer="ada")
    Journal.open(tmp_path / "journal.jsonl", scores)  # the same rows without the columns
    rows.save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(DataError, match="no score column 'vog'"):
        open_scored(str(tmp_path / "plain"), **NOTHING)


def test_one_of_several_splits_is_chosen(tmp_path):
    """Scores of several splits need --split, and each split has a separate journal."""
    parts = {"train": digits_scores(12), "test": digits_scores(9, start=12)}
    for name, (_, scores) in parts.items():
        scores.save(tmp_path / "scores" / name)
    DatasetDict({name: rows for name, (rows, _) in parts.items()}).save_to_disk(str(tmp_path / "digits"))
    given = NOTHING | {"dataset": str(tmp_path / "digits")}
    with pytest.raises(ConfigError, match="splits test, train; choose one with --split, got none"):
        open_scored(str(tmp_path / "scores"), **given)
    opened = open_scored(str(tmp_path / "scores"), **given | {"split": "test"})
    assert (len(opened.scores), len(opened.dataset)) == (9, 9)
    assert opened.journal == tmp_path / "scores.test.review.jsonl"


def test_the_same_rows_have_the_same_journal(tmp_path):
    """A review with --split and an apply without it use the same journal."""
    rows, scores = digits_scores(12)
    scored = add_vog_columns(rows, scores)

    def journal(name, split=None):
        return open_scored(str(tmp_path / name), **NOTHING | {"split": split}).journal.name

    scored.save_to_disk(str(tmp_path / "alone"))
    assert journal("alone") == journal("alone", "train") == "alone.review.jsonl"
    assert journal("alone", "train[:5]") == "alone.train[:5].review.jsonl", "other rows"
    loaded = Dataset(scored.data, info=scored.info, split=NamedSplit("test[:50%]"))
    loaded.save_to_disk(str(tmp_path / "part"))
    assert journal("part") == journal("part", "test") == "part.review.jsonl"
    DatasetDict(train=scored, test=scored).save_to_disk(str(tmp_path / "splits"))
    assert journal("splits") == journal("splits", "train") == "splits.review.jsonl"
    assert journal("splits", "test") == "splits.test.review.jsonl"
    scores.save(tmp_path / "one" / "held")
    DatasetDict(held=rows).save_to_disk(str(tmp_path / "digits"))
    for split in (None, "held"):
        opened = open_scored(str(tmp_path / "one"), **NOTHING | {"dataset": str(tmp_path / "digits"), "split": split})
        assert (opened.journal.name, opened.split) == ("one.review.jsonl", "held")


@pytest.mark.parametrize("place", ["nowhere", "./some/where"])
def test_what_is_not_there(place):
    """A missing folder is reported as missing."""
    with pytest.raises(OutputFolderError, match="there is no folder"):
        open_scored(place, **NOTHING)


def test_without_gradio_one_line_names_the_extra(capfd, monkeypatch, folder):
    """A missing extra is reported before long work."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "needs Gradio" in run(capfd, "review", folder.parent / "nowhere").stderr
    done = run(capfd, "review", folder)
    assert done.code == 1
    assert done.stderr == "Error: the review needs Gradio; install it with: pip install 'vog-hf[review]'\n"
    assert done.stdout == ""


def test_what_cannot_be_opened_is_one_line(capfd, tmp_path, folder):
    """A port in use, an unknown host, and a journal or dataset of other rows end the command before the page opens."""
    pytest.importorskip("gradio", reason="the extra `review` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(capfd, "review", folder, "--port", port)
    assert done.code == 1
    assert f"Error: cannot listen on port {port} of 127.0.0.1" in done.stderr
    done = run(capfd, "review", folder, "--host", "no-such-host.invalid")
    assert done.code == 1
    assert re.search(r"^Error: cannot listen on .* of no-such-host\.invalid \(", done.stderr, re.MULTILINE)
    Journal.open(tmp_path / "other.jsonl", digits_scores(12, start=40)[1])
    done = run(capfd, "review", folder, "--journal", tmp_path / "other.jsonl")
    assert "the journal" in done.stderr
    assert "belongs to a different dataset" in done.stderr
    trainers.digits(12, start=12).save_to_disk(str(tmp_path / "others"))
    done = run(capfd, "review", folder, "--dataset", tmp_path / "others")
    assert done.code == 1
    assert "Traceback" not in done.stderr


def test_an_app_of_other_rows_is_refused(tmp_path):
    """The Python function works like the command."""
    from vog_hf.review import review_app

    with pytest.raises(RowMismatchError):
        review_app(digits_scores(12)[1], trainers.digits(13), tmp_path / "journal.jsonl")
    assert not (tmp_path / "journal.jsonl").exists()


@pytest.mark.slow
def test_a_data_set_of_the_hub_may_be_named_with_or_without_its_only_split(tmp_path):
    """A split with any name is found, and so is its journal.

    The rows are the Hub's, also where just the scores are on this machine.
    """
    rows, scores = digits_scores(12)
    scores.save(tmp_path / "scores")
    rows.save_to_disk(str(tmp_path / "digits"))
    program = (
        "import json, sys\nfrom vog_hf.cli.scored_sources import open_scored\n"
        "found = [open_scored(name, dataset=data, config=None, split=split, revision=None) for name, data, split in "
        "json.loads(sys.argv[1])]\n"
        "print(json.dumps([[one.journal.name, one.split, len(one.dataset), one.is_from_hub] for one in found]))"
    )
    with hub_with_commands(tmp_path / "home") as (hub, command):
        given = ["push", tmp_path / "scores", REPO, "--dataset", tmp_path / "digits", "--split-name", "held"]
        assert command(*given, token=ACCEPTED).code == 0
        asked = [[REPO, None, None], [REPO, None, "held"], [str(tmp_path / "scores"), REPO, "held"]]
        variables = {**hub.environment(tmp_path / "home"), "HF_TOKEN": ACCEPTED}
        done = launch([sys.executable, "-c", program], json.dumps(asked), cwd=tmp_path, **variables)
    assert done.code == 0, done.stderr
    by_id = ["digits-vog.review.jsonl", "held", 12, True]
    assert done.values == [by_id, by_id, ["scores.review.jsonl", None, 12, True]]


@pytest.mark.slow
def test_pictures_that_were_fetched_lie_in_a_cache(tmp_path):
    """Files of a Hub dataset, single or in an archive, lie in folders that the review serves."""
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(picture, "PNG")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("train/cat/a.png", picture.getvalue())
    program = (
        "import sys\nfrom datasets import load_dataset\nfrom vog_hf.data.referenced_files import NamedFiles\n"
        "rows = load_dataset(sys.argv[1], split='train')\n"
        "paths = rows.with_format('arrow')[:].column('image').combine_chunks()\n"
        "print([paths.field('bytes').null_count, NamedFiles(rows).require_shown(0) is None])"
    )
    with HubServer() as hub:
        files = {"files": {"train/cat/a.png": picture.getvalue()}, "zipped": {"pictures.zip": archive.getvalue()}}
        for name, content in files.items():
            hub.repository(f"someone/{name}", kind="datasets").commit(content)
            asked = [sys.executable, "-c", program], f"someone/{name}"
            done = launch(*asked, cwd=tmp_path, **hub.environment(tmp_path / "home"))
            assert done.stdout == "[1, True]\n", done.stderr


def test_the_folder_of_a_space(tmp_path):
    """The Space has a program with its options as values, its requirements, and valid metadata."""
    pytest.importorskip("gradio", reason="the extra `review` is not installed")
    hostile = '"""\n\' {{ 7 * 7 }} ---'
    written = write_space(tmp_path / "space", SpaceOf(REPO, "default", "test", hostile))
    described = f"vog_hf-{vog_hf.__version__}.dist-info"
    names = {"app.py", "requirements.txt", "README.md", "vog_hf", described}
    assert {path.name for path in written.iterdir()} == names
    tree = ast.parse((written / "app.py").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert values == {"REPO_ID": REPO, "CONFIG": "default", "SPLIT": "test", "REVISION": hostile}
    (call,) = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "review_app")
    assert any(k.arg == "is_from_hub" and k.value.value is True for k in call.keywords), "whoever made the data"
    requirements = (written / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("datasets>=") for line in requirements)
    assert not any("extra" in line or "timm" in line for line in requirements)
    metadata = yaml.safe_load((written / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    command = re.search(r"`(vog-hf apply .*?) --output FOLDER`", (written / "README.md").read_text("utf-8"), re.DOTALL)
    options = ["--config", "default", "--split", "test", "--dataset-revision", hostile]
    assert shlex.split(command[1]) == ["vog-hf", "apply", REPO, "review.jsonl", *options]
    assert (metadata["sdk"], metadata["app_file"], metadata["datasets"]) == ("gradio", "app.py", [REPO])
    assert (written / "vog_hf" / "review" / "templates" / "review.js").is_file()
    assert not list(written.rglob("__pycache__"))
    with pytest.raises(OutputFolderError, match="must be a new or an empty folder"):
        write_space(written, SpaceOf(REPO))
    with pytest.raises(ConfigError, match=r"named like 'user/data', got '\.\./x/y'"):
        write_space(tmp_path / "other", SpaceOf("../x/y"))
    assert not (tmp_path / "other").exists()
    slim = write_space(tmp_path / "slim", SpaceOf(REPO), package="vog-hf[review]==0.1.0")
    assert (slim / "requirements.txt").read_text(encoding="utf-8") == "vog-hf[review]==0.1.0\n"
    assert not (slim / "vog_hf").exists()


def decide(url, row, reviewer="ada"):
    """Drop a row like the page does."""
    with urlopen(f"{url}/config") as config:  # noqa: S310 (our own server)
        components = json.loads(config.read())["components"]
    component = next(c["id"] for c in components if c["type"] == "html")
    question = {"reviewer": reviewer, "row": row, "decision": "drop", "filter": {}}
    body = {"data": question, "component_id": component, "fn_name": "decide", "session_hash": "x"}
    headers = {"Content-Type": "application/json"}
    request = Request(f"{url}/gradio_api/component_server", json.dumps(body).encode(), headers)  # noqa: S310
    with urlopen(request) as answer:  # noqa: S310
        return json.loads(answer.read())


@pytest.mark.slow
def test_a_process_listens_on_the_loopback_alone(tmp_path, folder):
    """The server listens on this machine unless --host says otherwise, with a notice; Ctrl-C is not an error."""
    for host, address in ((None, "127.0.0.1"), ("::1", "::1"), ("0.0.0.0", "0.0.0.0")):  # noqa: S104
        arguments = () if host is None else ("--host", host)
        output = tmp_path / f"{address}.txt"
        launched = Launched(folder, *arguments, output=output)
        launched.url()
        connections = psutil.Process(launched.process.pid).net_connections()
        assert {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN} == {address}
        assert launched.end(2) == 0
        assert ("on the network can see the rows" in output.read_text()) == (host == "0.0.0.0")  # noqa: S104
        assert "Traceback" not in output.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)  # five programs, one after the other
def test_review_and_space_of_a_data_set_on_the_hub(tmp_path):
    """A pushed dataset is reviewed by its id, and the program of its Space runs and writes decisions.

    It is private: the review is given a token, and so is everything else by the environment.
    """
    rows, scores = digits_scores(20)
    scores.save(tmp_path / "scores")
    rows.save_to_disk(str(tmp_path / "digits"))
    with HubServer() as hub:
        environment = {**hub.environment(tmp_path / "home"), "HF_TOKEN": ACCEPTED}
        pushed = launch(
            MODULE, "push", tmp_path / "scores", REPO, "--dataset", tmp_path / "digits", "--private", **environment
        )
        assert pushed.code == 0, pushed.stderr
        tokenless = hub.environment(tmp_path / "home")
        review = Launched(REPO, "--token", ACCEPTED, output=tmp_path / "review.txt", cwd=tmp_path, **tokenless)
        assert decide(review.url(), 7)["decided"] == 1
        review.end()
        assert [d.row for d in read_decisions(tmp_path / "digits-vog.review.jsonl")] == [7]

        none = launch(MODULE, "space", REPO, "-o", tmp_path / "none", "--split", "test", **environment)
        assert (none.code, "scores of the splits train; choose one with --split" in none.stderr) == (1, True)
        assert not (tmp_path / "none").exists()
        written = launch(MODULE, "space", REPO, "-o", tmp_path / "space", "--json", **environment)
        assert written.values == {"folder": str(tmp_path / "space"), "dataset": REPO, "split": "train"}
        space = Launched(
            command=(sys.executable, "app.py"),
            cwd=tmp_path / "space",
            output=tmp_path / "space.txt",
            **environment,
        )
        url = space.url(r"(http://127\.0\.0\.1:\d+)")
        assert decide(url, 4)["decided"] == 1
        space.end()
    assert [d.row for d in read_decisions(tmp_path / "space" / "review.jsonl")] == [4]
    where = "from importlib.metadata import distribution as d; import vog_hf; print(vog_hf.__file__, d('vog-hf')._path)"
    found = launch([sys.executable, "-c", where], cwd=tmp_path / "space").stdout.split()
    assert found[0].startswith(str(tmp_path / "space")), "it ran the copy in its folder"
    assert found[1].startswith("vog_hf-"), "and needs no other one to be installed"
