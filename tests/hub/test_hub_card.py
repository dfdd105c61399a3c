"""The card and the names of files, without a Hub."""

import fnmatch
import html
import re
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from markupsafe import Markup
from PIL import Image
from report_cases import make_pictures, make_regression, make_scores

from vog_hf import add_vog_columns
from vog_hf.errors import ConfigError
from vog_hf.evaluation import hard_tail, recommended_ranking
from vog_hf.hub.card import as_text, describe_split, merged_card, sections
from vog_hf.hub.card_yaml import CardWithOriginalYaml
from vog_hf.hub.commit_check import require_loadable
from vog_hf.hub.repo_paths import earlier_scores, earlier_shards, require_config_name, scored_splits, shard_pattern
from vog_hf.hub.scored_splits import collect_splits, score_tables
from vog_hf.hub.shards import count_shards
from vog_hf.report.section import Options, Section
from vog_hf.scores.dataset_columns import score_columns
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores

ABOUT = {"pushed": ["default/train"], "title": "data", "repo_id": "me/data", "config": "default", "scored": "default"}
HEAD = "---\nlicense: mit\n---\n"


def described(dataset, scores, tmp_path, *, with_rows=True):
    """The piece of a split, and the names of its pictures."""
    split = ScoredSplit("train", scores, dataset)
    split = split if with_rows else split.without_rows()
    text = describe_split(split, score_columns(dataset), "default", tmp_path, "vog/default/train")
    return str(text), sorted(path.name for path in tmp_path.iterdir())


def test_a_card_without_classes_says_so(tmp_path):
    """A regression has no errors to count, and rows with nothing to show are listed by their numbers; NaN is not."""
    scores = make_regression()
    dataset = add_vog_columns(Dataset.from_dict({"x": np.arange(len(scores))}), scores, ["vog"])
    text, pictures = described(dataset, scores, tmp_path)
    assert pictures == []
    assert "Rows have no single class label" in text
    assert "| row | label | last prediction | vog&#95;normalized |\n|--:|---|---|--:|\n" in text
    assert "\n| 3 |" not in text
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert page.count("<table>") == 4


def test_rows_are_shown_only_where_they_may_be(tmp_path):
    """Without pictures and texts of rows there are their numbers."""
    scores = make_scores()
    text, pictures = described(make_pictures(len(scores)), scores, tmp_path)
    assert pictures == ["both-ends.png", "error-by-tenth.png"]
    assert "(vog/default/train/both-ends.png)" in text
    (tmp_path / "both-ends.png").unlink()
    text, pictures = described(make_pictures(len(scores)), scores, tmp_path, with_rows=False)
    assert pictures == ["error-by-tenth.png"]
    assert "| row | label |" in text


def test_a_card_opens_with_the_headline(tmp_path):
    """Headline, the ranking to start with and the next command come first; numbers follow in a table."""
    scores = make_scores()
    text, _ = described(make_pictures(len(scores)), scores, tmp_path)
    tail = hard_tail(scores)
    opening = [
        tail.headline,
        str(recommended_ranking(scores)),
        "Next: vog-hf review, with the name of this repository.",
    ]
    shown = [str(as_text(sentence, 1000)) for sentence in opening]
    assert text.split("\n\n")[1] == f"**{shown[0]}** {shown[1]} {shown[2]}"
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert page.count("<td>misclassified</td>") == page.count("<td>loss</td>") == 6


@pytest.mark.parametrize("columns", ["core", "all"])
def test_a_card_explains_every_column_that_the_report_explains(columns, tmp_path):
    """By its name in the dataset, or by its name among the scores where the dataset does not have it."""
    scores = make_scores()
    dataset = add_vog_columns(make_pictures(len(scores)), scores, columns, prefix="run2_")
    text, _ = described(dataset, scores, tmp_path)
    page = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    table = page[page.index("<th>where</th>") :].partition("</table>")[0]
    lines = re.findall(r"<tr>\n<td><code>(\w+)</code></td>\n<td>(\w+)</td>\n<td>(.*?)</td>", table)
    section = Section(ScoredSplit("train", scores, None), "s", Options(top_k=1, per_class=0, max_table_rows=0))
    in_dataset = score_columns(dataset)
    assert lines == [
        (
            in_dataset.get(m.column, m.column),
            "dataset" if m.column in in_dataset else "scores",
            html.escape(m.what, quote=False),
        )
        for m in section.meanings
    ]
    assert len(in_dataset) in (3, len(lines) + 1), (
        "the core columns; else all, with the prediction, which is not explained"
    )
    assert ("which <code>pull_scores</code> loads" in page) == (columns == "core")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n"])
def test_our_part_comes_behind_the_text_that_is_there(end):
    """After one empty line; the text keeps its own end; a second push changes nothing more."""
    card = merged_card(DatasetCard(f"{HEAD}# Mine{end}"), sections({"One": "text"}, "default", ["train"]), **ABOUT)
    gap = end if len(end) > 1 else "\n\n"
    assert card.text.startswith(f"# Mine{gap}<!-- vog_hf: begin")
    assert card.text.endswith("<!-- vog_hf: end -->\n")
    again = merged_card(DatasetCard(card.content), sections({"One": "text"}, "default", ["train"]), **ABOUT)
    assert again.content == card.content


@pytest.mark.parametrize("titles", [["A b", "a-b"], ["??"]])
def test_sections_are_told_from_one_another(titles):
    """None takes the place of another one."""
    with pytest.raises(ConfigError, match="need different words"):
        sections(dict.fromkeys(titles, "text"), "default", ["train"])


def test_what_a_card_says_of_a_split_goes_when_the_split_is_pushed_again():
    """Scores and sections; those of other splits and configurations stay."""
    pieces = {"default/train": Markup("scores of train"), "default/test": Markup("scores of test")}
    card = DatasetCard(f"{HEAD}# Mine\n")
    for config, splits, given in (
        ("default", ["train", "test"], {"Review": "of both"}),
        ("en", ["train"], {"Review": "of another configuration"}),
        ("default", ["test"], {"Review": "of test"}),
    ):
        pushed = [f"{config}/{split}" for split in splits]
        told = {key: text for key, text in pieces.items() if key in pushed} | sections(given, config, splits)
        card = merged_card(DatasetCard(card.content), told, **{**ABOUT, "pushed": pushed})
    assert "scores of train" in card.text
    assert card.text.count("scores of test") == 1
    headings = [line for line in card.text.splitlines() if line.startswith("### Review")]
    assert headings == ["### Review (en, train)", "### Review (test)"]
    card = merged_card(DatasetCard(card.content), {}, **{**ABOUT, "pushed": ["default/train", "default/test"]})
    assert "scores of" not in card.text
    assert "of test" not in card.text
    assert "of another configuration" in card.text


def test_a_mark_without_its_other_half_is_text():
    """And is left alone."""
    given = sections({"One": "1"}, "default", ["train"])
    card = merged_card(DatasetCard(f"{HEAD}<!-- vog_hf: begin -->\nMine\n"), given, **ABOUT)
    card = merged_card(DatasetCard(card.content), given, **ABOUT)
    assert card.text.startswith("<!-- vog_hf: begin -->\nMine\n\n<!-- vog_hf: begin.")
    assert card.text.count("<!-- vog_hf: end -->") == 1


WRITTEN = """\
# Of mine
language: no
version: 1.10
license:
tags: [birds]  # and more
# Which are new
configs: []
size: 012
"""


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_metadata_of_others_stays_as_it_is_written(line_end):
    """What YAML reads otherwise than it is meant, and comments; just the entries of a push are written again."""
    card = CardWithOriginalYaml(f"---\n{WRITTEN}---\n# Mine\n".replace("\n", line_end))
    card.data["tags"] = ["birds", "vog"]
    card.data["dataset_info"] = {"features": []}
    wanted = WRITTEN.replace("tags: [birds]  # and more", "tags:\n- birds\n- vog")
    wanted = f"---\n{wanted}dataset_info:\n  features: []\n---\n# Mine\n"
    assert card.content == wanted.replace("\n", line_end)
    assert CardWithOriginalYaml(card.content).content == card.content


@pytest.mark.parametrize("head", ["{license: mit, tags: [a]}", "license: &a mit\ntags: [*a]", "", "# nothing\n"])
def test_metadata_of_an_unusual_form_has_the_meaning_that_it_had(head):
    """On one line, with entries that refer to one another, none at all."""
    card = CardWithOriginalYaml(f"---\n{head}\n---\nMine\n")
    meant = {**card.data.to_dict(), "tags": ["b"]}
    card.data["tags"] = ["b"]
    assert CardWithOriginalYaml(card.content).data.to_dict() == meant
    assert card.text == "Mine\n"


@pytest.mark.parametrize("line", ["- item", "+ item", "1. item", "12) item", "=====", "-----", "> said", "    code"])
def test_the_start_of_a_line_is_no_more_than_text(line):
    """Lists, underlines, quotes and code blocks begin there."""
    (section,) = sections({"T": f"above\n{line}"}, "default", ["train"]).values()
    page = MarkdownIt("gfm-like", {"linkify": False}).render(str(section))
    assert page.split("</h3>")[1].strip().replace("&gt;", ">") == f"<p>above<br>\n{line.strip()}</p>"


def test_names_from_a_repository_are_checked():
    """Files of scores have our names in our folders, whatever else is in a repository."""
    files = [
        "vog/default/train/manifest.json",
        "vog/default/train/scores.parquet",
        "vog/default/train/evil.pkl",
        "vog/default/train/../../x/manifest.json",
        "vog/default/a b/manifest.json",
        "vog/default/test/scores.parquet",
        "vog/other/train/manifest.json",
    ]
    assert scored_splits(files, "default") == {"train": files[:2]}
    assert earlier_scores([*files, "vog/default/train/both-ends.png"], "default", "train") == [
        *files[:2],
        "vog/default/train/both-ends.png",
    ]
    shards = ["data/train-00000-of-00001.parquet", "data/train-00000-of-00002-b42a775f407cee45.parquet"]
    others = ["data/train-00000-of-00001.parquet.txt", "data/train-notes.parquet", "data/train-0-of-1.parquet"]
    others += ["x/data/train-00000-of-00001.parquet", "data/train-00000-of-00001-mine.parquet"]
    assert earlier_shards([*shards, *others], "default", "train") == shards
    assert fnmatch.filter([*shards, *others], shard_pattern("default", "train")) == shards[:1]
    for name in ("data", "vog", "vog_scores", "a_vog_scores", "..", "a/b", "", "-a"):
        with pytest.raises(ConfigError, match="config_name must be"):
            require_config_name(name)
    require_config_name("v1.0-beta")


REHEARSED = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.parquet
- config_name: other
  data_dir: data
---
"""


def rehearse(tmp_path, card, files, meant, beside=()):
    """Whether a repository with these files would load as it is meant."""
    (tmp_path / "beside").write_text("".join(beside))
    repository = SimpleNamespace(
        repo_id="me/data", sizes={".huggingface.yaml": 1} if beside else {}, fetched=lambda name: tmp_path / "beside"
    )
    require_loadable(repository, DatasetCard(card), files, {"default": meant}, folder=tmp_path)


def test_what_a_commit_leaves_is_tried_before_it_is_made(tmp_path):
    """By the names of the files alone, as `datasets` finds them; a name that leads elsewhere makes no file there."""
    shard, old = "data/train-00000-of-00001.parquet", "data/train-00000-of-00001-b42a775f407cee45.parquet"
    rehearse(tmp_path, REHEARSED, [shard, "notes.txt", "../outside.parquet"], {"train": [shard]})
    assert [path.name for path in tmp_path.iterdir()] == ["beside"]
    with pytest.raises(
        ConfigError, match=r"the split 'train' .* of me/data would load with 'data/train-00000-of-00001-b"
    ):
        rehearse(tmp_path, REHEARSED, [shard, old], {"train": [shard]})
    with pytest.raises(ConfigError, match=f"would load without '{old}'"):
        rehearse(tmp_path, REHEARSED, [shard], {"train": [shard, old]})
    with pytest.raises(ConfigError, match=r"the split 'test' .* would load without"):
        rehearse(tmp_path, REHEARSED, [shard], {"train": [shard], "test": [old]})
    with pytest.raises(ConfigError, match=r"'default' of me/data would not load .*several default configs"):
        rehearse(tmp_path, REHEARSED.replace("data_dir", "default: true\n  data_dir"), [shard], {"train": [shard]})
    configs = "configs:\n- config_name: default\n  data_files: x.parquet\n"
    with pytest.raises(ConfigError, match=r"would load with 'x\.parquet'"):
        rehearse(tmp_path, REHEARSED, [shard, "x.parquet"], {"train": [shard]}, beside=configs)


def test_scores_alone_have_the_classes_of_the_column_that_was_scored():
    """Which has a name of its own, next to another column of classes with a usual name."""
    scores = make_scores(maps=None, names=["cat", "dog", "cow"])
    scores.manifest["config"]["label_column"] = "fine"
    fine = ClassLabel(names=["cat", "dog", "cow"])
    columns = {"label": [0] * len(scores), "fine": scores.column("label").tolist()}
    coarse = ClassLabel(names=["w", "x", "y", "z"])
    dataset = Dataset.from_dict(columns, features=Features({"label": coarse, "fine": fine}))
    (part,) = score_tables(collect_splits(dataset, scores, "core", None))
    assert part.table.features["label"] == fine
    assert part.table.features["prediction"].names == fine.names
    with_usual_name = dataset.remove_columns("label").rename_column("fine", "label")
    scores.manifest["config"]["label_column"] = None
    (part,) = score_tables(collect_splits(with_usual_name, scores, "core", None))
    assert part.table.features["label"] == fine
    assert part.table.features["prediction"].names == fine.names


def test_splits_of_one_push_have_one_set_of_columns():
    """Columns of scores are filled in, others are not; scores need a split of theirs."""
    scores = make_scores(maps=None)
    plain = Dataset.from_dict({"text": ["a"] * len(scores)})
    parts = collect_splits({"train": plain, "test": plain.select(range(5))}, {"train": scores}, "core", None)
    assert parts[1].table.features == parts[0].table.features
    assert parts[1].table["vog"][:] == [None] * 5
    assert [part.name for part in score_tables(parts)] == ["train"]
    with pytest.raises(ConfigError, match="has no 'x'"):
        collect_splits({"train": plain, "test": Dataset.from_dict({"x": [1]})}, {"train": scores}, "core", None)
    with pytest.raises(ConfigError, match=r"needs a mapping from its splits \['train'\] to scores, got \['test'\]"):
        collect_splits({"train": plain}, {"test": scores}, "core", None)
    with pytest.raises(ConfigError, match="'text' of 'test' is"):
        collect_splits({"train": plain, "test": Dataset.from_dict({"text": [1]})}, {"train": scores}, "core", None)


def test_columns_that_are_not_there_are_not_left_out_in_silence():
    """Of a dataset with columns of scores, more are asked for than it has; those that it has may be named."""
    scores = make_scores(maps=None)
    scored = add_vog_columns(Dataset.from_dict({"text": ["a"] * len(scores)}), scores)
    for columns in ("all", ["vog", "loss"]):
        with pytest.raises(ConfigError, match=r"also asks for \[.*'loss'.*\]"):
            collect_splits(scored, None, columns, None)
    assert collect_splits(scored, None, ["vog"], None)[0].table.column_names == scored.column_names
    everything = add_vog_columns(scored.select_columns("text"), scores, "all")
    assert collect_splits(everything, None, "all", None)[0].scored.scores is scores


def test_the_number_of_shards_follows_the_files_that_rows_name(tmp_path, monkeypatch):
    """Pictures that lie next to the dataset count with their bytes."""
    monkeypatch.setattr("vog_hf.hub.shards.SHARD_BYTES", 10_000)
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
    paths = sorted(str(path) for path in tmp_path.iterdir())
    dataset = Dataset.from_dict({"image": paths}, features=Features({"image": ImageFeature()}))
    assert dataset.data.nbytes < 1_000
    assert count_shards(dataset) == 4
    assert count_shards(dataset.select([0])) == 1


def test_a_data_set_with_columns_alone_keeps_what_they_say():
    """Label and prediction as whole numbers, and the names of the classes."""
    columns = {"vog": np.float32([0.5, 0.25]), "loss": np.float32([1.0, 2.0]), "prediction": np.int32([1, 1])}
    scores = VoGScores(columns, {})
    dataset = add_vog_columns(Dataset.from_dict({"label": [1, 0]}), scores, "all")
    dataset = Dataset(dataset.data, info=dataset.info)
    (part,) = collect_splits(dataset, None, "core", None)
    assert part.scored.scores.column_names == ["label", "prediction", "vog", "loss"]
    assert part.scored.scores.column("prediction").tolist() == [1, 1]
    assert part.scored.scores.column("vog").tolist() == scores.column("vog").tolist()
