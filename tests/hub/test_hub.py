"""Scored datasets pushed to a Hub on the loopback interface by the real clients, in a process of their own."""

import re

import pytest
import yaml
from hub_client import HubClient
from hub_server import ACCEPTED, READING, STRANGER, HubServer
from markdown_it import MarkdownIt

from vog_hf.hub.repo_paths import shard_pattern

REPO = "someone/data"
CORE = ["vog", "vog_class_normalized", "vog_percentile"]


@pytest.fixture(scope="module")
def server():
    """A Hub."""
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def processes(server, tmp_path_factory):
    """One process that pushes, and one, with a cache of its own, that loads what is there."""
    started = [HubClient(server, tmp_path_factory.mktemp(name)) for name in ("pushing", "loading")]
    yield started
    for process in started:
        process.close()


@pytest.fixture
def hub(server):
    """The Hub, empty."""
    server.clear()
    return server


@pytest.fixture
def client(hub, processes):
    """Calls to these processes, and an empty Hub."""

    def call(what, /, *given, **options):
        return processes[what in ("load", "values", "pull", "belong")](what, *given, **options)

    return call


def readme(hub, revision="main", repo_id=REPO):
    """The card."""
    return hub.dataset(repo_id).files(revision)["README.md"].decode()


def body(card):
    """What stands under the card's metadata."""
    return re.sub(r"\A---\r?\n.*?\n---[ \t]*\r?\n", "", card, flags=re.DOTALL)


def test_every_kind_of_column_comes_back_equal(hub, client):
    """Pictures, classes, float32, texts, sounds and lists in values and features; scores with all that is theirs."""
    assert client("push", "everything", REPO) == f"{hub.url}/datasets/{REPO}"
    assert client("load", REPO, "everything")["equal"]
    assert client("pull", REPO, "everything") is True
    manifest = hub.dataset(REPO).files()["vog/default/train/manifest.json"]
    assert b'"rows_digest": "d1665d1665d1665d"' in manifest
    assert len(hub.dataset(REPO).commits) == 2  # that which made it, and ours


@pytest.mark.parametrize("columns", ["core", "all"])
def test_units_come_back_as_lists_and_as_scores(hub, client, columns):
    """Lists of tokens' scores load with their features, next to the labels; the scores know the units again."""
    client("push", "tags", REPO, columns=columns)
    assert client("load", REPO, "tags", columns=columns)["equal"]
    assert client("values", REPO, "loss_token")[4] == [6.0, 7.0, 8.0, None]
    assert client("pull", REPO, "tags") is True
    assert "vog/default/train/units.parquet" in hub.dataset(REPO).files()
    client("push", "tags", f"{REPO}-alone", form="scores", scores_only=True)
    assert client("values", f"{REPO}-alone", "loss_token", name="vog_scores")[4] == [6.0, 7.0, 8.0, None]


def test_the_same_push_again_changes_nothing(hub, client):
    """Same rows, same scores: no further commit."""
    first = client("push", "pictures", REPO)
    commits = len(hub.dataset(REPO).commits)
    assert client("push", "pictures", "data", form="scores") == first  # the name alone is one's own
    assert len(hub.dataset(REPO).commits) == commits


def test_other_columns_replace_the_first_ones(hub, client):
    """A second push with more scores, and other pictures, loads with just its own; its shards are the only ones."""
    client("push", "pictures", REPO, shard_bytes=3_000)
    assert len([name for name in hub.dataset(REPO).files() if name.startswith("data/")]) == 3
    client("push", "changed pictures", REPO, columns="all")
    assert client("load", REPO, "changed pictures", columns="all")["equal"]
    assert [name for name in hub.dataset(REPO).files() if name.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert client("pull", REPO, "changed pictures") is True


def test_a_second_split_is_added(hub, client):
    """The first one stays; a push of both in one DatasetDict gives the same."""
    client("push", "pictures", REPO)
    client("push", "changed pictures", REPO, split="test")
    for split, kind in (("train", "pictures"), ("test", "changed pictures")):
        assert client("load", REPO, kind, split)["equal"]
        assert client("pull", REPO, kind, split=split) is True
    assert body(readme(hub)).count("### Scores of") == 2
    client("push", None, "someone/both", splits={"train": "pictures", "test": "changed pictures"})
    found = [
        client("load", "someone/both", kind, split)
        for split, kind in (("train", "pictures"), ("test", "changed pictures"))
    ]
    assert all(each["equal"] for each in found)
    assert client("pull", "someone/both", "pictures", split="train") is True
    assert set(client("pull", "someone/both", "pictures")) == {"train", "test"}


def test_scores_onto_data_that_was_there(hub, client):
    """Raw data of two splits, one of which gets scores: the other stays, and loads with nothing in these columns."""
    client("push_raw", {"train": "pictures", "test": "changed pictures"}, REPO)
    client("push", "pictures", REPO)
    found = client("load", REPO, "pictures")
    assert found["equal"]
    assert found["splits"]["test"] == ["label", "image", *CORE]
    assert client("values", REPO, "vog", "test") == [None] * 61
    assert client("values", REPO, "label", "test") == [i % 2 for i in range(61)]


@pytest.mark.slow
def test_a_column_that_only_another_split_has_stays(hub, client):
    """The card names it, too: there it has its values, and nothing in the rows that were pushed."""
    client("push_raw", {"test": "numbers"}, REPO)
    client("push", "labels", REPO)
    assert client("values", REPO, "x", "test") == [i / 7 for i in range(61)]
    assert client("values", REPO, "x", "train") == [None] * 61


@pytest.mark.slow
def test_a_split_without_scores_goes_along(hub, client):
    """Of a DatasetDict, with empty columns."""
    client("push", None, REPO, splits={"train": "pictures", "test": "-changed pictures"})
    assert client("load", REPO, "pictures")["equal"]
    assert client("values", REPO, "vog", "test") == [None] * 61
    assert client("pull", REPO, "pictures") is True


def test_a_branch_and_a_pull_request(hub, client):
    """Where they are wanted, and the main branch stays as it is; a pull request can be pushed to again."""
    client("push_raw", {"train": "pictures"}, REPO)
    main = dict(hub.dataset(REPO).files())
    assert client("push", "pictures", REPO, revision="with/vog") == f"{hub.url}/datasets/{REPO}/tree/with%2Fvog"
    pull = f"{hub.url}/datasets/{REPO}/discussions/1"
    assert client("push", "pictures", REPO, create_pr=True) == pull
    assert hub.dataset(REPO).files() == main
    for revision in ("with/vog", "refs/pr/1"):
        assert client("load", REPO, "pictures", revision=revision)["equal"]
        assert client("pull", REPO, "pictures", revision=revision) is True
    assert client("push", "pictures", REPO, revision="refs/pr/1", columns="all") == pull
    assert client("load", REPO, "pictures", columns="all", revision="refs/pr/1")["equal"]
    error, message = client("push", "pictures", REPO, revision="main", create_pr=True)
    assert error == "ConfigError"
    assert "pass one of the two" in message
    error, message = client("push", "pictures", REPO, revision=hub.dataset(REPO).sha("main"))
    assert "commits cannot be changed" in message
    hub.dataset(REPO).names["v1"] = hub.dataset(REPO).sha("main")
    hub.dataset(REPO).tags.add("v1")
    hub.requests.clear()
    error, message = client("push", "pictures", REPO, revision="v1")
    assert (error, "is a tag of someone/data" in message) == ("ConfigError", True)
    assert not any(request.method == "PUT" for request in hub.requests)


def test_private_and_public(hub, client):
    """A new repository is what was asked for; one that is there, and is not, is refused before anything is sent."""
    client("push", "pictures", REPO, private=True)
    assert hub.dataset(REPO).private
    assert client("load", REPO, "pictures")["equal"]
    client("push", "pictures", "someone/public")
    assert not hub.dataset("someone/public").private
    before = len(hub.dataset("someone/public").commits)
    error, message = client("push", "pictures", "someone/public", private=True)
    assert error == "ConfigError"
    assert "exists already and is public" in message
    assert len(hub.dataset("someone/public").commits) == before
    assert "private" in client("pull", REPO, token=None)[1]


OWN_CARD = """---
license: cc-by-4.0
tags: [birds]
pretty_name: "Birds: 'all'"
version: 1.10  # of mine
---
# Birds

Text of my own,   with	spaces.\x20\x20

| a | b |
|---|---|
"""


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_the_card_and_the_files_of_others_stay(hub, client, line_end):
    """Its text to the letter, its metadata, files of any kind; a push made twice has one part of ours, up to date."""
    own = OWN_CARD.replace("\n", line_end)
    client("push_raw", {"train": "pictures"}, REPO)
    repository = hub.dataset(REPO)
    metadata = readme(hub).removeprefix("---\n").split("---")[0].replace("\n", line_end)
    files = {"notes/a.txt": b"a", "vog/mine.txt": b"b", "data/train-notes.md": b"c"}
    repository.edit({"README.md": own.replace("license", metadata + "license").encode(), **files})
    client("push", "pictures", REPO)
    client("push", "pictures", REPO, columns="all")
    card = hub.dataset(REPO).files()["README.md"].decode()
    text = own.split("---" + line_end, 2)[2]
    assert text + line_end + "<!-- vog_hf: begin" in card
    assert card.count("<!-- vog_hf: begin") == card.count("<!-- vog_hf: end -->") == 1
    assert ("\r" in card) == (line_end == "\r\n")
    assert "\n" not in card.replace("\r\n", "") or line_end == "\n"
    assert f"license: cc-by-4.0{line_end}" in card
    assert "- birds" in card
    assert f"pretty_name: \"Birds: 'all'\"{line_end}version: 1.10  # of mine{line_end}" in card
    assert files.items() <= repository.files().items()
    assert client("load", REPO, "pictures", columns="all")["equal"]
    after = card.replace("# Birds", "# Two birds") + f"{line_end}Below it.{line_end}"
    repository.edit({"README.md": after.encode()})
    client("push", "pictures", REPO)
    assert body(readme(hub)).startswith(f"# Two birds{line_end}")
    assert readme(hub).endswith(f"{line_end}Below it.{line_end}")


def test_other_configurations_stay(hub, client):
    """One that was the default because it was the only one stays so."""
    client("push_raw", {"train": "numbers"}, REPO, config_name="plain")
    client("push", "pictures", REPO, config_name="scored")
    assert client("load", REPO)["splits"] == {"train": ["label", "x"]}
    assert client("load", REPO, "pictures", name="scored")["equal"]
    assert client("pull", REPO, "pictures", config_name="scored") is True


@pytest.mark.parametrize("mark", ["", "  default: true\n- config_name: other\n  data_files: other/*.parquet\n"])
@pytest.mark.slow
def test_two_configurations_that_would_load_where_none_is_named_are_refused(hub, client, mark):
    """Which `datasets` refuses, too, and then loads neither; by a name of its own the same goes next to it."""
    client("push_raw", {"train": "numbers"}, REPO, config_name="plain")
    repository = hub.dataset(REPO)
    card = readme(hub)
    if mark:
        files = {"other/a.parquet": repository.files()["plain/train-00000-of-00001.parquet"]}
        head = f"---\nconfigs:\n- config_name: plain\n  data_files: plain/*.parquet\n{mark}---\n"
        repository.edit({"README.md": head.encode(), **files})
        card = head
    before = repository.sha("main")
    hub.requests.clear()
    error, message = client("push", "pictures", REPO)
    assert error == "ConfigError"
    assert "loads its configuration 'plain' by default, and 'default' would be a second default" in message
    assert "--config-name" in message
    assert repository.sha("main") == before
    assert readme(hub) == card
    assert not any(request.method == "PUT" for request in hub.requests)
    client("push", "pictures", REPO, scores_only=True)
    assert client("load", REPO)["splits"] == {"train": ["label", "x"]}
    client("push", "numbers", REPO, config_name="plain")
    assert client("load", REPO, "numbers")["equal"]


@pytest.mark.slow
def test_scores_alone_give_way_to_data(hub, client):
    """Pushed later, where the data loads when no configuration is named."""
    client("push", "pictures", REPO, scores_only=True)
    client("push", "pictures", REPO)
    assert client("load", REPO, "pictures")["equal"]
    assert "row" in client("load", REPO, name="vog_scores")["splits"]["train"]


@pytest.mark.parametrize("config", ["default", "plain"])
@pytest.mark.slow
def test_shards_that_an_older_version_of_datasets_has_left_are_replaced(hub, client, config):
    """They have a fingerprint in their names; next to ours they would double the rows."""
    client("push_raw", {"train": "numbers"}, REPO, config_name=config)
    repository, folder = hub.dataset(REPO), {"default": "data", "plain": "plain"}[config]
    files = dict(repository.files())
    shard = files.pop(f"{folder}/train-00000-of-00001.parquet")
    repository.commit({**files, f"{folder}/train-00000-of-00001-b42a775f407cee45.parquet": shard})
    assert client("load", REPO)["rows"] == {"train": 61}
    client("push", "numbers", REPO, config_name=config)
    assert client("load", REPO, "numbers")["equal"]
    shards = [name for name in repository.files() if name.startswith(f"{folder}/")]
    assert shards == [f"{folder}/train-00000-of-00001.parquet"]


def elsewhere(hub):
    """A file that `datasets` reads instead of the card's metadata, and data that it names."""
    other = hub.dataset(REPO).files()["data/train-00000-of-00001.parquet"]
    told = "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: other/*.parquet\n"
    return {".huggingface.yaml": told.encode(), "other/a.parquet": other}


def test_what_would_not_load_as_it_is_meant_is_not_committed(hub, client):
    """It is found before anything is sent, or, where others commit meanwhile, before the commit is made on top."""
    client("push_raw", {"train": "numbers"}, REPO)
    repository, files = hub.dataset(REPO), elsewhere(hub)

    def slip_in(there):
        hub.before_commit = None
        there.edit(files)

    hub.before_commit = slip_in
    error, message = client("push", "numbers", REPO, clock=0.01)
    assert (error, "would load with 'other/a.parquet', which does not belong to it" in message) == ("ConfigError", True)
    assert "vog" not in readme(hub)
    before = repository.sha("main")
    hub.requests.clear()
    error, message = client("push", "numbers", REPO)
    assert (error, "would load with 'other/a.parquet', which does not belong to it" in message) == ("ConfigError", True)
    assert repository.sha("main") == before
    assert not any(request.method == "PUT" for request in hub.requests)


@pytest.mark.parametrize(
    "head",
    [
        "license: [mit",
        "configs: default",
        "configs:\n- data_files: data/*.parquet",
        "configs:\n- 5",
        "configs:\n- config_name: a\n  default: true\n- config_name: b\n  default: true",
        "dataset_info:\n- 5",
        "dataset_info:\n  features:\n  - name: x\n    dtype: nothing",
    ],
)
def test_metadata_that_cannot_be_read_is_one_clear_error(hub, client, head):
    """Of YAML, or of `datasets`; nothing is sent, and the card stays as it is."""
    client("push_raw", {"train": "numbers"}, REPO)
    repository = hub.dataset(REPO)
    repository.edit({"README.md": f"---\n{head}\n---\n# Mine\n".encode()})
    before = repository.sha("main")
    hub.requests.clear()
    error, message = client("push", "numbers", REPO)
    assert error == "ConfigError"
    assert "the card of someone/data cannot be read (" in message
    assert message.endswith("fix its metadata on the Hub first")
    assert repository.sha("main") == before
    assert not any(request.method == "PUT" for request in hub.requests)


@pytest.mark.slow
def test_what_datasets_cannot_read_beside_the_card_is_one_clear_error(hub, client):
    """A file of metadata of its own."""
    client("push_raw", {"train": "numbers"}, REPO)
    hub.dataset(REPO).edit({".huggingface.yaml": b"configs: [", "README.md": b"# Mine\n"})
    error, message = client("push", "numbers", REPO)
    assert (error, "`datasets` cannot read someone/data as it is (" in message) == ("ConfigError", True)


@pytest.mark.slow
def test_what_else_the_card_says_of_the_configuration_stays(hub, client):
    """Next to its columns and its splits."""
    client("push_raw", {"train": "numbers"}, REPO)
    told = readme(hub).replace("dataset_info:\n", "dataset_info:\n  homepage: https://example.org\n")
    hub.dataset(REPO).edit({"README.md": told.encode()})
    client("push", "numbers", REPO)
    info = yaml.safe_load(readme(hub).split("---\n")[1])["dataset_info"]
    assert info["homepage"] == "https://example.org"
    assert [feature["name"] for feature in info["features"]] == ["label", "x", *CORE]
    assert client("load", REPO, "numbers")["equal"]


def test_scores_alone(hub, client):
    """Next to the data, which is not sent again and loads as before, also where the card names no configurations."""
    client("push_raw", {"train": "pictures", "test": "pictures"}, REPO)
    repository = hub.dataset(REPO)
    repository.edit({"README.md": b"# Birds\n"})
    data = {name: content for name, content in repository.files().items() if name.startswith("data/")}
    hub.requests.clear()
    client("push", "pictures", REPO, form="scores", scores_only=True)
    assert data.items() <= repository.files().items()
    assert client("load", REPO)["splits"] == {"train": ["label", "image"], "test": ["label", "image"]}
    found = client("load", REPO, name="vog_scores")
    assert found["splits"]["train"][:4] == ["row", "label", "prediction", "vog"]
    assert client("values", REPO, "row", name="vog_scores") == list(range(61))
    assert client("values", REPO, "label", name="vog_scores") == [i % 2 for i in range(61)]
    assert client("pull", REPO, "pictures") is True
    client("push", "pictures", REPO)
    assert client("load", REPO, "pictures")["equal"]
    assert "row" in client("load", REPO, name="vog_scores")["splits"]["train"]


@pytest.mark.slow
def test_a_configuration_in_short_form_is_understood(hub, client):
    """One whose card names its files by a pattern, or a folder, that would take in ours: it has what it had."""
    client("push_raw", {"train": "numbers"}, REPO)
    repository = hub.dataset(REPO)
    configs = "- config_name: default\n  data_files: data/*.parquet\n- config_name: all\n  data_dir: data\n"
    repository.edit({"README.md": f"---\nconfigs:\n{configs}---\n".encode()})
    assert client("push", "numbers", REPO, split="test", heat_maps=False) == f"{hub.url}/datasets/{REPO}"
    assert client("load", REPO, "numbers", "test")["equal"]
    assert client("load", REPO)["rows"] == {"train": 61, "test": 61}
    assert client("load", REPO, name="all")["rows"] == {"train": 61}
    assert client("values", REPO, "x") == [i / 7 for i in range(61)]
    assert not any("heat-map" in name for name in repository.files())


@pytest.mark.slow
def test_a_split_of_which_others_are_made_is_not_replaced(hub, client):
    """Its files would be gone from under another configuration, which would no longer load; next to them is room."""
    client("push_raw", {"train": "numbers"}, REPO)
    repository = hub.dataset(REPO)
    configs = "- config_name: default\n  data_files: data/*.parquet\n- config_name: all\n  data_dir: data\n"
    repository.edit({"README.md": f"---\nconfigs:\n{configs}---\n".encode()})
    before = repository.sha("main")
    hub.requests.clear()
    error, message = client("push", "numbers", REPO, shard_bytes=500)
    assert error == "ConfigError"
    assert "replaces 'data/train-00000-of-00001.parquet', which the configuration 'all' of someone/data" in message
    assert repository.sha("main") == before
    assert not any(request.method == "PUT" for request in hub.requests)
    client("push", "numbers", REPO, config_name="scored")
    assert client("load", REPO, name="all")["rows"] == {"train": 61}
    assert client("load", REPO, "numbers", name="scored")["equal"]


@pytest.mark.slow
def test_data_of_another_kind_is_not_lost(hub, client):
    """Next to data that is read as CSV nothing can be pushed, since it would not load any more."""
    client("make_repo", REPO)
    repository = hub.dataset(REPO)
    repository.edit({"train.csv": b"a,b\n1,2\n", "test.csv": b"a,b\n3,4\n"})
    before = repository.sha("main")
    for options in ({}, {"scores_only": True}, {"config_name": "scored"}):
        error, message = client("push", "pictures", REPO, **options)
        assert error == "ConfigError"
        assert "has data that is not parquet ('t" in message
    assert repository.sha("main") == before
    assert client("load", REPO)["rows"] == {"train": 1, "test": 1}


def test_a_column_of_another_type_is_refused(hub, client):
    """Of another split, before anything is sent."""
    client("push_raw", {"train": "numbers", "test": "numbers"}, REPO)
    before = hub.dataset(REPO).sha("main")
    hub.requests.clear()
    error, message = client("push", "numbers as texts", REPO)
    assert error == "ConfigError"
    assert "the column 'x' is" in message
    assert hub.dataset(REPO).sha("main") == before
    assert not any(request.method == "PUT" for request in hub.requests)


def test_a_card_that_the_hub_refuses_ends_the_push_before_it_begins(hub, client):
    """As it does where metadata of others has become invalid: nothing is sent."""
    client("make_repo", REPO)
    before = hub.dataset(REPO).sha("main")
    hub.fail("POST", "/validate-yaml", status=400)
    error, message = client("push", "numbers", REPO)
    assert error == "HubError"
    assert "the Hub rejects the card of someone/data (" in message
    assert hub.dataset(REPO).sha("main") == before
    assert not any(request.method == "PUT" for request in hub.requests)


# Faults


@pytest.mark.slow
def test_a_commit_that_fails_is_made_again(hub, client):
    """After conflicts of both kinds and errors of the server, one after the other."""
    client("push_raw", {"train": "numbers"}, REPO)
    for status in (409, 412, 500, 503):
        hub.fail("POST", "/commit/", status=status)
    client("push", "numbers", REPO, clock=0.01)
    assert client("load", REPO, "numbers")["equal"]


STEPS = [
    ("GET", "whoami"),
    ("GET", "/api/datasets/someone/data$"),
    ("POST", "/repos/create"),
    ("POST", "/branch/"),
    ("GET", "/tree/"),
    ("POST", "/preupload/"),
    ("POST", "/lfs/objects/batch"),
    ("PUT", "/_lfs/"),
    ("POST", "/validate-yaml"),
    ("HEAD", "/resolve/"),
]


@pytest.mark.parametrize("status", [503, 0])
def test_what_fails_once_is_tried_again(hub, client, status):
    """Every step of a push fails once: with an error of the server, and with a connection that is cut."""
    for method, path in STEPS:
        hub.fail(method, path, status=status)
    assert client("push", "numbers", REPO, revision="new", clock=0.01) == f"{hub.url}/datasets/{REPO}/tree/new"
    assert [fault for fault in hub.faults if fault.times] == []
    assert client("load", REPO, "numbers", revision="new")["equal"]


def test_a_commit_by_somebody_else_is_not_lost(hub, client):
    """One that comes between our look at the repository and our commit: both are there."""
    client("push_raw", {"train": "numbers"}, REPO)

    def slip_in(repository):
        hub.before_commit = None
        repository.edit({"README.md": repository.files()["README.md"] + b"\nNew text.\n", "new.txt": b"new"})

    hub.before_commit = slip_in
    client("push", "numbers", REPO, clock=0.01)
    assert client("load", REPO, "numbers")["equal"]
    assert "\nNew text.\n" in readme(hub)
    assert hub.dataset(REPO).files()["new.txt"] == b"new"


@pytest.mark.parametrize("theirs", ["other rows", "more shards", "nothing"])
@pytest.mark.parametrize("ours", ["as it was", "new"])
@pytest.mark.slow
def test_a_commit_by_somebody_else_of_the_same_shard(hub, client, theirs, ours):
    """Between our look and our commit: theirs is replaced by ours, also where ours is what was there at first."""
    kind = {"as it was": "pictures", "new": "numbers"}[ours]
    client("push", "changed pictures", "someone/other", shard_bytes=3_000 if theirs == "more shards" else None)
    other = {
        name: content
        for name, content in hub.dataset("someone/other").files().items()
        if theirs != "nothing" and name.startswith(("data/", "vog/", "README"))
    }
    client("push", "pictures", REPO)

    def slip_in(repository):
        hub.before_commit = None
        kept = {name: old for name, old in repository.files().items() if not name.startswith(("data/", "vog/"))}
        repository.commit({**kept, **other})

    hub.before_commit = slip_in
    client("push", kind, REPO, clock=0.01, card_sections={"New": "text"})
    assert hub.before_commit is None
    assert client("load", REPO, kind)["equal"]
    assert client("pull", REPO, kind) is True
    assert [name for name in hub.dataset(REPO).files() if name.startswith("data/")] == [
        "data/train-00000-of-00001.parquet"
    ]
    assert "### New (train)" in readme(hub)


@pytest.mark.slow
def test_a_last_commit_of_which_nothing_was_heard_is_no_error(hub, client):
    """It is found; where it cannot be looked for, the error does not say that nothing was changed."""
    client("push_raw", {"train": "numbers"}, REPO)
    before = len(hub.dataset(REPO).commits)
    hub.fail("POST", "/commit/", status=503, times=5)
    hub.fail("POST", "/commit/", status=0, carried_out=True)
    assert client("push", "numbers", REPO, clock=0.01) == f"{hub.url}/datasets/{REPO}"
    assert len(hub.dataset(REPO).commits) == before + 1
    hub.fail("POST", "/commit/", status=503, times=5)
    hub.fail("POST", "/commit/", status=0, carried_out=True)
    hub.fail("GET", "/commits/", status=503, times=1_000, skip=5)
    error, message = client("push", "pictures", REPO, clock=0.01)
    assert error == "HubError"
    assert "the commit to someone/data got no response" in message
    assert "it is unknown whether the commit succeeded" in message
    assert "no revision" not in message


@pytest.mark.slow
def test_a_commit_of_which_nothing_was_heard_is_found_whatever_became_of_the_repository(hub, client):
    """Before the next one is prepared on top of what others have committed since, which may be impossible."""
    client("push_raw", {"train": "numbers"}, REPO)
    repository = hub.dataset(REPO)
    made = repository.commit

    def commit(*given, **options):
        del repository.commit
        sha = made(*given, **options)
        repository.edit({"README.md": b"---\nconfigs: [\n---\n"})
        return sha

    repository.commit = commit
    hub.fail("POST", "/commit/", status=0, carried_out=True)
    assert client("push", "numbers", REPO, clock=0.01) == f"{hub.url}/datasets/{REPO}"


def test_a_commit_of_which_nothing_was_heard_is_made_once(hub, client):
    """The connection is cut after the commit: no second one, and no second pull request."""
    client("push_raw", {"train": "numbers"}, REPO)
    before = len(hub.dataset(REPO).commits)
    hub.fail("POST", "/commit/", status=0, carried_out=True)
    client("push", "numbers", REPO, clock=0.01)
    assert len(hub.dataset(REPO).commits) == before + 1
    assert client("load", REPO, "numbers")["equal"]
    hub.fail("POST", "/commit/", status=0, carried_out=True)
    url = client("push", "pictures", REPO, create_pr=True, clock=0.01)
    assert url.endswith("/discussions/1")
    assert [name for name in hub.dataset(REPO).names if name.startswith("refs/pr/")] == ["refs/pr/1"]


@pytest.mark.parametrize("status", [503, 412])
@pytest.mark.slow
def test_a_commit_that_fails_for_ever_changes_nothing(hub, client, status):
    """One error says so; the repository loads as before."""
    client("push_raw", {"train": "numbers"}, REPO)
    before = hub.dataset(REPO).sha("main")
    hub.fail("POST", "/commit/", status=status, times=1_000)
    error, message = client("push", "numbers", REPO, clock=0.01)
    assert error == "HubError"
    assert ("several times" if status == 503 else "6 times") in message
    assert "no revision of the repository was changed; push again" in message
    assert hub.dataset(REPO).sha("main") == before
    assert client("load", REPO)["splits"] == {"train": ["label", "x"]}


def test_a_broken_upload_goes_on(hub, client):
    """What had arrived is not sent again, and the repository had no commit meanwhile."""
    client("make_repo", REPO)
    before = hub.dataset(REPO).sha("main")
    client("push", "pictures", "someone/scores", scores_only=True)  # the files of the scores arrive here
    arrived = set(hub.blobs)
    hub.fail("PUT", "/_lfs/", status=0, times=1_000, skip=1)
    error, message = client("push", "pictures", REPO, shard_bytes=3_000, clock=0.01)
    assert error == "HubError"
    assert "the upload to someone/data was interrupted" in message
    assert "files that have arrived are not sent again" in message
    assert hub.dataset(REPO).sha("main") == before
    first = set(hub.blobs) - arrived
    assert len(first) == 1
    hub.faults.clear()
    hub.requests.clear()
    client("push", "pictures", REPO, shard_bytes=3_000)
    sent = {request.path.rpartition("/")[2] for request in hub.requests if request.method == "PUT"}
    assert len(sent) == 2
    assert not sent & first
    assert client("load", REPO, "pictures")["equal"]


@pytest.mark.slow
def test_the_clients_own_patience(hub, client):
    """With the waits of the real clock: a server that is away for ever, in mid-upload."""
    hub.fail("PUT", "/_lfs/", status=503, times=1_000)
    error, message = client("push", "pictures", REPO)
    assert error == "HubError"
    assert "the Hub failed several times" in message
    assert list(hub.dataset(REPO).files()) == [".gitattributes"]


def test_what_does_not_load_as_it_was_meant_is_an_error(hub, client):
    """Values that differ on the Hub are found after the push, in the whole or in the rows that are read."""
    client("push", "changed pictures", "someone/other")
    other = hub.dataset("someone/other").files()["data/train-00000-of-00001.parquet"]

    def swap(repository):
        for oid, content in hub.blobs.items():
            if content[:4] == b"PAR1" and b"image" in content:
                hub.blobs[oid] = other

    for whole in (None, 0):
        client("push", "pictures", REPO, whole=whole)  # as it is, nothing is found
        hub.repositories.pop(("datasets", REPO))
        hub.before_commit = swap
        error, message = client("push", "pictures", REPO, whole=whole)
        hub.before_commit = None
        assert error == "HubError"
        assert "values of the column 'image' of 'train' differ from row 0 on" in message
        hub.repositories.pop(("datasets", REPO))
        hub.blobs.clear()


# Tokens and arguments


def test_tokens_that_may_not_write(hub, client):
    """None, a wrong one, a read-only one, one of somebody else: one error each, and no repository is made."""
    cases = {
        None: "got none; run `hf auth login`",
        "hf_NobodyHasThisOne": "the token is not valid",
        READING: "the token of someone may only read",
        STRANGER: "the token may not write there",
    }
    for token, expected in cases.items():
        error, message = client("push", "pictures", REPO, token=token)
        assert error == "HubError"
        assert expected in message
        assert "nothing was changed" in message or token in (None, READING)
    assert not hub.repositories
    assert client("push", "pictures", REPO, token=None, given_token=ACCEPTED) == f"{hub.url}/datasets/{REPO}"
    error, message = client("push", "pictures", REPO, token=None, given_token=f"{ACCEPTED}\n")
    assert error == "ConfigError"
    assert ACCEPTED not in message


def test_a_token_that_cannot_be_one_is_not_sent_and_not_shown(hub, client):
    """Of the environment, for a push and a pull."""
    for call in (["push", "pictures", REPO], ["pull", REPO]):
        error, message = client(*call, token="hf_Secr\u00e9t")  # noqa: S106 (no token at all)
        assert (error, "Secr" in message) == ("ConfigError", False)
        assert "must be a text without spaces" in message
    assert not hub.requests


@pytest.mark.slow
def test_a_branch_that_cannot_be_made_leaves_an_empty_repository(hub, client):
    """Which the error says."""
    hub.fail("POST", "/branch/", status=503, times=1_000)
    error, message = client("push", "numbers", REPO, revision="new", clock=0.01)
    assert (error, "a new repository is empty" in message) == ("HubError", True)
    assert list(hub.dataset(REPO).files()) == [".gitattributes"]


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(hub, client):
    """Scores of other rows, no scores, names that cannot be."""
    cases = [
        (("RowMismatchError", "is not the one that was scored"), ("pictures", REPO), {"form": "other rows"}),
        (("ConfigError", "no score column 'vog' and no scores"), ("pictures", REPO), {"form": "none"}),
        (("ConfigError", "repo_id must be"), ("pictures", "a/b/c"), {}),
        (("ConfigError", "config_name must be"), ("pictures", REPO), {"config_name": "../x"}),
        (("ConfigError", "config_name must be"), ("pictures", REPO), {"config_name": "vog_scores"}),
        (("ConfigError", "the name of a split"), ("pictures", REPO), {"split": "../train"}),
        (("ConfigError", "the name of a branch"), ("pictures", REPO), {"revision": "a b"}),
        (("ConfigError", "differs from the scores"), ("pictures", REPO), {"form": "edited scores"}),
    ]
    for (kind, words), given, options in cases:
        error, message = client("push", *given, **options)
        assert (error, words in message) == (kind, True), (options, message)
    assert not hub.requests


def test_scores_without_a_record_are_pushed_as_such(hub, client):
    """The card says that nothing is known of how they were computed."""
    client("push", "pictures", REPO, form="bare")
    assert client("load", REPO, "pictures")["equal"]
    assert "pushed without a record of how they were computed" in readme(hub)
    assert client("pull", REPO) == ["label", *CORE]


@pytest.mark.parametrize("form", ["columns", "bare"])
@pytest.mark.slow
def test_scores_know_the_rows_whose_files_were_put_in(hub, client, form):
    """Pictures that lay next to the dataset are in it on the Hub: the pulled scores are of those rows all the same."""
    client("push", "files", REPO, form=form)
    known = client("belong", REPO)
    assert {"label", "image"} <= set(known)


def test_scores_that_are_not_there_cannot_be_pulled(hub, client):
    """Of no repository, of one without, of another split."""
    assert "there is no such dataset" in client("pull", REPO)[1]
    client("push_raw", {"train": "pictures"}, REPO)
    assert "has no scores of any split" in client("pull", REPO)[1]
    client("push", "pictures", REPO)
    assert "has no scores of 'test' in the configuration 'default', but train" in client("pull", REPO, split="test")[1]
    manifest = hub.dataset(REPO).files()["vog/default/train/manifest.json"]
    changed = manifest.replace(b'"scores.parquet"', b'"../../../x"').replace(b'"checksum"', b'"none"')
    hub.dataset(REPO).edit({"vog/default/train/manifest.json": changed})
    error, message = client("pull", REPO)
    assert error == "OutputFolderError"
    assert "lies outside its folder" in message


# The card


def test_names_and_texts_that_would_break_a_card(hub, client):
    """Markdown, HTML, YAML, marks of our own and 10,000 characters: shown as text, and the data loads with them."""
    client("push", "breaking", REPO, card_sections={"<b>Review</b>": "one | two\n<script>\n\n- three"})
    assert client("load", REPO, "breaking")["equal"]
    client("push", "breaking", REPO, split="test")
    assert client("load", REPO, "breaking", "test")["equal"]
    card = readme(hub)
    assert body(card).count("<!-- vog_hf: begin") == body(card).count("<!-- vog_hf: end -->") == 1
    assert max(map(len, body(card).splitlines())) < 3_000
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body(card))
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert len([h for h in headings if h.startswith("Scores of")]) == 2
    assert sum(token.type == "table_open" for token in tokens) == 2 * (
        2 + 1 + 1 + 1
    )  # both ends, columns, how computed, verdict
    page = MarkdownIt("gfm-like", {"linkify": False}).render(body(card))
    tags = set(re.findall(r"<(/?[a-z0-9]+)", re.sub("<!--.*?-->", "", page, flags=re.DOTALL)))
    assert {tag for tag in tags if not tag.startswith("/")} <= {
        *("h1", "h2", "h3", "h4", "p", "a", "strong", "em", "code", "pre", "img", "br", "ul", "li"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert set(re.findall(r'(?:href|src)="([^"]*)"', page)) == {
        "https://arxiv.org/abs/2008.11600",
        *(
            f"vog/default/{split}/{name}"
            for split in ("train", "test")
            for name in ("error-by-tenth.png", "manifest.json")
        ),
    }
    assert "&lt;b&gt;Review&lt;/b&gt;" in page
    assert "one | two<br>\n&lt;script&gt;" in page
    assert "7 * 7" in page


@pytest.mark.slow
def test_a_name_that_no_card_can_hold_stands_in_the_files(hub, client):
    """YAML has no way to write it: the data loads all the same."""
    client("push", "unwritable", REPO)
    assert client("load", REPO, "unwritable")["equal"]
    assert "features" not in readme(hub)


@pytest.mark.slow
def test_what_the_card_says_of_a_push_goes_with_the_next_one_of_the_same_split(hub, client):
    """A section, and scores that a split no longer has; what is said of other splits stays."""
    client("push", None, REPO, splits={"train": "pictures", "test": "pictures"})
    client("push", "pictures", REPO, card_sections={"Review": "without 6 rows"})
    client("push", "pictures", REPO, split="test", card_sections={"Review": "without 7 rows"})
    assert "without 6 rows" in readme(hub)
    client("push", "pictures", REPO)
    assert "without 6 rows" not in readme(hub)
    assert "### Review (test)\n\nwithout 7 rows" in readme(hub)
    client("push", None, REPO, splits={"train": "pictures", "test": "-pictures"})
    card = readme(hub)
    assert re.findall("### (?:Scores of|Review).*", card) == ["### Scores of train: 61 rows"]
    assert all(name in hub.dataset(REPO).files() for name in re.findall(r"\]\((vog/.*?)\)", card))


def test_the_card_says_what_there_is(hub, client):
    """Pictures of both ends and of the errors, columns, run; and the metadata that the Hub's viewer reads."""
    client("push", "pictures", REPO)
    card, files = readme(hub), hub.dataset(REPO).files()
    for words in (
        "higher means",
        "logit per unit of input, at least 0",
        "| Snapshots | 5, after the steps 10",
        "in this run",  # the headline of the verdict
    ):
        assert words in card
    assert "torch 2.9" in card
    for name in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert files[name].startswith(b"\x89PNG")
    assert len(re.findall(r"!\[.*?\]\((.*?)\)", card)) == 2
    data = yaml.safe_load(card.split("---\n")[1])
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": shard_pattern("default", "train")}]}
    ]
    info = data["dataset_info"]
    assert [feature["name"] for feature in info["features"]] == ["label", "image", *CORE]
    assert info["splits"][0]["num_examples"] == 61
    assert info["download_size"] == len(files["data/train-00000-of-00001.parquet"])
    assert info["dataset_size"] == info["splits"][0]["num_bytes"] > 0
    assert data["tags"] == ["variance-of-gradients", "vog"]
    client("push", "pictures", REPO, show_rows=False)
    assert "both-ends.png" not in readme(hub)
    assert "vog/default/train/both-ends.png" not in hub.dataset(REPO).files()


def test_no_token_is_written_anywhere(hub, processes):
    """Not into what is said at the most talkative level, nor into a file, here or on the Hub."""
    process = processes[0]
    process("push", "pictures", REPO)
    process("push", "pictures", REPO, token=READING)
    process("push", "pictures", REPO, token="hf_NobodyHasThisOne")  # noqa: S106 (of our own server)
    process("push", "pictures", REPO, token=None, given_token=ACCEPTED)
    said = process.output.read_text()
    assert "HTTP Request: POST" in said
    assert "the token is not valid" in said
    kept = [path.read_bytes() for path in process.home.rglob("*") if path.is_file()]
    pushed = [content for commit in hub.dataset(REPO).commits.values() for content in commit.files.values()]
    told = [f"{commit.title} {commit.description}".encode() for commit in hub.dataset(REPO).commits.values()]
    assert kept
    for token in (ACCEPTED, READING, "hf_NobodyHasThisOne"):
        assert token not in said
        assert not any(token.encode() in content for content in kept + pushed + told)
