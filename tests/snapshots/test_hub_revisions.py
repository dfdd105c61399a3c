import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import models
import numpy as np
import pytest
from hub_server import ACCEPTED, HubServer
from safetensors.torch import save

from vog_hf.errors import ConfigError
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.snapshots import from_hub

REPO = "someone/model"
PROGRAM = """
import json, sys
from vog_hf.errors import VoGError
from vog_hf.snapshots import from_hub

for line in sys.stdin:
    given, options = json.loads(line)
    try:
        answer = {"folders": [str(path) for path in from_hub(*given, **options)]}
    except VoGError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    print("answer", json.dumps(answer), flush=True)
"""


class Client:
    """`from_hub` in a process of its own: its folders, or the message of its SnapshotError."""

    def __init__(self, variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**environment, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *given, **options):
        print(json.dumps([given, options]), file=self._process.stdin, flush=True)
        line = next(line for line in self._process.stdout if line.startswith("answer "))
        answer = json.loads(line.removeprefix("answer "))
        assert answer.get("error", "SnapshotError") == "SnapshotError", answer
        return [Path(folder) for folder in answer["folders"]] if "folders" in answer else answer["message"]

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A Hub, and clients of it that are online and offline."""
    with HubServer() as hub:
        variables = hub.environment(tmp_path_factory.mktemp("home"))
        clients = [Client(variables | {"HF_HUB_OFFLINE": offline}) for offline in "01"]
        yield hub, *clients
        for client in clients:
            client.close()


@pytest.fixture
def hub(server):
    """The Hub, empty."""
    server[0].repositories.clear()
    server[0].requests.clear()
    return server[0]


@pytest.fixture
def fetch(server, tmp_path):
    """`from_hub`, into a cache of the test's own."""
    return partial(server[1], cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def fetch_offline(server, tmp_path):
    """As `fetch`, without a network."""
    return partial(server[2], cache_dir=str(tmp_path / "cache"))


def uploaded(repository, states, **files):
    """Each state as the model of a commit that a tag names."""
    return [
        repository.commit({"model.safetensors": save(state), "config.json": b"{}", **files}, name=f"epoch-{k}")
        for k, state in enumerate(states)
    ]


def test_revisions_are_scored_like_the_weights_they_hold(hub, fetch):
    """A tag, a commit and a branch, in the order given; of the files just safetensors and configs are fetched."""
    model = models.mlp().model
    states = models.perturbed_states(model, 3)
    others = {"pytorch_model.bin": b"pickle", "optimizer.pt": b"pickle", "checkpoint-1/model.safetensors": b"old"}
    repository = hub.repository(REPO)
    commits = uploaded(repository, states, **others)
    repository.names["later/branch"] = commits[1]
    folders = fetch(REPO, ["epoch-2", commits[0], "later/branch"])
    rows = [{**row, "labels": y} for row, y in zip(models.mlp().rows, models.mlp().labels, strict=True)]
    scores = VoGScorer(model).score(rows, folders)
    expected = VoGScorer(model).score(rows, [("a", states[2]), ("b", states[0]), ("c", states[1])])
    np.testing.assert_array_equal(scores.column("vog"), expected.column("vog"))
    assert [entry["name"] for entry in scores.manifest["snapshots"]] == [commits[2], commits[0], commits[1]]
    assert set(hub.downloads()) == {"model.safetensors", "config.json"}


def test_sharded_models_and_adapters_are_fetched(hub, fetch, tmp_path):
    """Index and all shards; adapter and its config."""
    models.bert().model.save_pretrained(tmp_path / "sharded", max_shard_size="3KB")
    models.lora_bert().model.save_pretrained(tmp_path / "adapter")
    for name in ("sharded", "adapter"):
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        hub.repository(f"someone/{name}").commit(files)
        (folder,) = fetch(f"someone/{name}", ["main"])
        wanted = {n for n in files if n.endswith(("safetensors", "index.json", "config.json"))}
        assert {path.name for path in folder.iterdir()} == wanted


def test_what_was_fetched_needs_no_network(hub, fetch, fetch_offline, tmp_path):
    """Offline, the cache is used; what is not in it is refused, and a revision that arrived in part is not used."""
    uploaded(hub.repository(REPO), models.perturbed_states(models.mlp().model, 2))
    message = fetch_offline(REPO, ["epoch-0"])
    assert message.startswith("the Hub cannot be reached, and someone/model at 'epoch-0' is not")
    folders = fetch(REPO, ["epoch-0"])
    assert folders[0].is_relative_to(tmp_path / "cache")
    assert fetch_offline(REPO, ["epoch-0"]) == folders
    assert "'epoch-1' is not (or not wholly) in the local cache" in fetch_offline(REPO, ["epoch-1"])
    (folders[0] / "model.safetensors").unlink()
    assert "someone/model at 'epoch-0'" in fetch_offline(REPO, ["epoch-0"])
    assert fetch(REPO, ["epoch-0"]) == folders
    assert fetch_offline(REPO, ["epoch-0"]) == folders


def test_a_revision_or_model_that_does_not_exist_is_refused(hub, fetch):
    """By its name; also where a token would be needed."""
    uploaded(hub.repository(REPO), models.perturbed_states(models.mlp().model, 1))
    assert fetch(REPO, ["epoch-0", "epoch-7"]).startswith("someone/model has no revision 'epoch-7'")
    assert fetch(REPO, ["0" * 40]).startswith(f"someone/model has no revision '{'0' * 40}'")
    assert fetch("someone/other", ["main"]).startswith("there is no model 'someone/other' on the Hub, or it is private")
    uploaded(hub.repository("someone/secret", private=True), models.perturbed_states(models.mlp().model, 1))
    assert "pass a token" in fetch("someone/secret", ["epoch-0"])
    assert fetch("someone/secret", ["epoch-0"], token="wrong").startswith(  # noqa: S106 (of our own server)
        "someone/secret at 'epoch-0' cannot be downloaded: "
    )
    assert len(fetch("someone/secret", ["epoch-0"], token=ACCEPTED)) == 1


def test_a_revision_without_safetensors_is_refused(hub, fetch):
    """Pickled weights are named, with the way to convert them, and not fetched."""
    repository = hub.repository(REPO)
    repository.commit({"pytorch_model.bin": b"pickle", "config.json": b"{}"}, name="pickled")
    repository.commit({"README.md": b"# words"}, name="empty")
    repository.commit({"model.safetensors.index.json": b'{"weight_map": {"w": "model-1.safetensors"}}'}, name="torn")
    message = fetch(REPO, ["pickled"])
    assert "holds no model.safetensors" in message
    assert "'pytorch_model.bin'" in message
    assert "save_pretrained" in message
    assert fetch(REPO, ["empty"]).endswith("holds no model.safetensors (nor a sharded one, nor an adapter)")
    assert "lacks 'model-1.safetensors', which its index names" in fetch(REPO, ["torn"])
    assert set(hub.downloads()) == {"config.json", "model.safetensors.index.json"}


def test_one_commit_under_two_names_is_refused(hub, fetch):
    """The same weights twice would count twice; two commits of equal weights are two snapshots."""
    state = models.perturbed_states(models.mlp().model, 1)[0]
    repository = hub.repository(REPO)
    uploaded(repository, [state, state])
    repository.names["final"] = repository.names["epoch-1"]
    assert fetch(REPO, ["epoch-0", "epoch-1", "final"]).startswith(
        "someone/model: 'epoch-1' and 'final' are the same commit"
    )
    assert len(fetch(REPO, ["epoch-0", "epoch-1"])) == 2


def test_a_single_name_is_refused():
    """Its letters would be taken for revisions."""
    with pytest.raises(
        ConfigError, match=r"must be a list of branches, tags or commits, got 'main' \(str\); pass a list"
    ):
        from_hub(REPO, "main")
