"""Outputs of a fine-tuned classifier start with the lowest margins; of one from scratch, with the highest losses."""

import numpy as np
import pytest
from cli_runs import run, train_on_images
from html_page import read_page
from report_cases import make_pictures, make_scores
from trainers import digits, network, plain, trained
from transformers import ResNetForImageClassification

from vog_hf import VoGCallback, VoGScorer
from vog_hf.hub.card import describe_split
from vog_hf.report import write_report
from vog_hf.review import Filter, Journal, Queue
from vog_hf.review.queue_yield import reviewed_queue
from vog_hf.review.service import ReviewService
from vog_hf.scores.findings import Findings
from vog_hf.scores.formatting import number
from vog_hf.scores.ranking import most_extreme
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.contents import contents
from vog_hf.trainer.announcements import summary_lines

STARTS = {True: "Start with margin, lowest first: ", False: "Start with loss, highest first: "}


def with_margin(*, is_pretrained):
    """Scores with a margin, of a model that was loaded from named weights or made from a configuration."""
    scores = make_scores()
    columns = {name: scores.column(name) for name in scores.column_names if name not in scores.text_column_names}
    columns["margin"] = np.random.default_rng(5).normal(size=len(scores)).astype(np.float32)
    model = {"class": "Net", "name": "google/net" if is_pretrained else None}
    trajectories = {name: scores.trajectory(name) for name in scores.trajectory_names}
    return VoGScores(columns, scores.manifest | {"model": model}, trajectories=trajectories)


@pytest.fixture(scope="module", params=[True, False], ids=["fine-tuned", "from scratch"])
def case(request):
    """Scores with their rows; whether the model was fine-tuned; and the rows in the order to review them."""
    scores = with_margin(is_pretrained=request.param)
    first = most_extreme(scores, "margin", 50)[1] if request.param else most_extreme(scores, "loss", 50)[0]
    return ScoredSplit("train", scores, make_pictures()), request.param, first.tolist()


def test_findings_and_lines(case):
    """The line after training, and what every other output reads."""
    split, is_pretrained, _ = case
    assert str(Findings(split).recommended).startswith(STARTS[is_pretrained])
    lines = list(summary_lines({"": split.scores}, {"": split.rows}))
    assert lines[2].startswith(STARTS[is_pretrained])


def test_report(case, tmp_path):
    """The box at the top, the gallery of rows to open first, and the value of the column on each card."""
    split, is_pretrained, first = case
    write_report(split.scores, split.rows, tmp_path / "report.html", top_k=7)
    page = read_page(tmp_path / "report.html")
    assert str(Findings(split).recommended) in page.find(class_name="verdict").text
    gallery = page.find(id="s0-rows").find("section", "gallery")
    cards = gallery.find_all("li", "card")
    assert [int(card.find(class_name="row").text[1:]) for card in cards] == first[:7]
    values = cards[0].find("dl", "values").find_all("div")
    shown = {div.find("dt").text: div.find("dd").text for div in values}
    assert ("margin" in shown) == is_pretrained
    column = "margin" if is_pretrained else "loss"
    assert shown[column] == number(split.scores.column(column)[first[0]])


def test_tracked_tables(case):
    """The table of rows to review first has the column, and the legend explains the columns of all tables of rows."""
    split, is_pretrained, first = case
    found = contents(split, 7)
    table = found.values["review_first"]
    assert table.columns["row"] == first[:7]
    assert ("margin" in table.columns) == is_pretrained
    assert STARTS[is_pretrained] in table.caption
    assert STARTS[is_pretrained] in found.about.start
    legend = dict(found.about.legend)
    assert {"vog_class_normalized", *table.columns} <= set(legend)
    assert "vog_class_normalized" in found.values["highest"].columns
    if is_pretrained:
        assert "below 0 the model prefers another label" in legend["margin"]


def test_card(case, tmp_path):
    """The card of the dataset names the ranking."""
    split, is_pretrained, _ = case
    text = describe_split(split.without_rows(), {"vog": "vog"}, "default", tmp_path, "vog/train")
    assert STARTS[is_pretrained] in text


def test_review(case, tmp_path):
    """The queue opens with that column from that end, on the page and for the yield of a journal without queues."""
    split, is_pretrained, first = case
    desk = ReviewService(split, Journal.open(tmp_path / "journal.jsonl", split.scores))
    start = desk.about({})["start"]
    expected = {"order": "margin", "tail": "lowest"} if is_pretrained else {"order": "loss", "tail": "highest"}
    assert start == expected
    assert desk.show({"reviewer": "ada", "skip": "me", "filter": start})["row"] == first[0]
    assert STARTS[is_pretrained] in desk.facts({"reviewer": "ada", "skip": "me", "filter": start})["verdict"]
    assert reviewed_queue(Queue(split.scores), []) == Filter(**expected)


# --- the manifest -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with pretrained weights."""
    folder = tmp_path_factory.mktemp("models") / "my-resnet"
    ResNetForImageClassification(network().config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("collect", ["replay", "live", "training"])
def test_a_training_notes_where_it_began(tmp_path, weights, collect):
    """Pretrained weights are named without their folder, and a model from a configuration has no name."""
    fine_tuned = ResNetForImageClassification.from_pretrained(weights)
    for model, name in ((fine_tuned, "my-resnet"), (network(), None)):
        vog = VoGCallback(collect=collect, log=False)
        trained(tmp_path / str(name), [vog], rows=digits(32).with_transform(plain), model=model, num_train_epochs=2)
        described = VoGScores.load(vog.scores.folder).manifest["model"]
        assert (described["name"], described["pretrained"]) == (name, name is not None)
        assert Findings(ScoredSplit("", vog.scores)).recommended.column == ("loss" if name is None else "margin")


def test_a_checkpoint_of_the_run_itself_says_nothing(capfd, tmp_path):
    """A model from the folder of the snapshots may have been trained from scratch; from another folder it was not."""
    made = train_on_images(tmp_path)
    assert made.scores.manifest["model"]["pretrained"] is False
    snapshots = sorted(made.folder.glob("checkpoint-*"))
    ResNetForImageClassification.from_pretrained(snapshots[0]).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_bytes(
        (snapshots[0] / "preprocessor_config.json").read_bytes()
    )
    own_snapshots = made.folder / "_vog" / "snapshots"
    for model, states, is_pretrained in (
        (made.folder, [], False),
        (snapshots[-1], [made.folder / "checkpoint-*"], False),
        (snapshots[-1], [own_snapshots], False),
        (tmp_path / "base", [made.folder / "checkpoint-*"], True),
        (tmp_path / "base", [own_snapshots], True),
    ):
        done = run(capfd, "score", model, *states, "-d", made.data, "-o", tmp_path / "scores", "--json")
        assert done.code == 0, done.stderr
        assert VoGScores.load(tmp_path / "scores").manifest["model"]["pretrained"] is is_pretrained
        assert done.values["review_first"]["sentence"].startswith(STARTS[is_pretrained])
        (tmp_path / "scores").rename(tmp_path / f"scores-{len(list(tmp_path.iterdir()))}")


def pretrained(name, states):
    """What the manifest notes of a model of that name, scored on stored snapshots."""
    model = network()
    model.config.name_or_path = str(name)
    scores = VoGScorer(model, progress=False).score(digits(20).with_transform(plain), states)
    return scores.manifest["model"]["pretrained"]


def saved(*folders):
    """Two snapshots, as folders of models."""
    for seed, folder in enumerate(folders):
        network(seed).save_pretrained(folder)
    return list(folders)


def test_revisions_of_the_model_itself_say_nothing(tmp_path):
    """Snapshots in the Hub's cache of the repository that the model was loaded from are those of its own training."""
    cache = tmp_path / "models--me--net"
    states = saved(cache / "snapshots" / "0", cache / "snapshots" / "1")
    (cache / "blobs").mkdir()
    for state in states:  # as `huggingface_hub` stores them
        file = state / "model.safetensors"
        file.symlink_to(file.rename(cache / "blobs" / state.name))
    assert pretrained("me/net", states) is False
    assert pretrained("me/other", states) is True


def test_the_run_is_the_folder_that_holds_the_snapshots(tmp_path, monkeypatch):
    """By whatever path it is named; a folder further up, or a name on the Hub that is none here, is another model."""
    base = tmp_path / "models" / "base"
    states = saved(base / "run1" / "checkpoint-1", base / "run1" / "checkpoint-2")
    files = [base / "run1" / f"epoch-{i}.safetensors" for i in range(2)]
    for state, file in zip(states, files, strict=True):
        file.write_bytes((state / "model.safetensors").read_bytes())
    (tmp_path / "link").symlink_to(base / "run1", target_is_directory=True)
    monkeypatch.chdir(base)
    for own in ("run1", base / "run1", base / ".." / "base" / "run1", tmp_path / "link", "run1/../run1/checkpoint-2"):
        assert pretrained(own, states) is False, own
        assert pretrained(own, files) is False, own
    assert pretrained("run1", [tmp_path / "link" / state.name for state in states]) is False
    links = [tmp_path / f"{i}.safetensors" for i in range(2)]
    for link, state in zip(links, states, strict=True):
        link.symlink_to(state / "model.safetensors")
    assert pretrained("run1", links) is False
    for other in (base, tmp_path / "models", "../base", "run1/checkpoint-3", "me/run1"):
        assert pretrained(other, states) is True, other
        assert pretrained(other, files) is True, other
