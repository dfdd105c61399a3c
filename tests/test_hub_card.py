"""The card and the names of files, without a Hub."""

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt
from PIL import Image
from report_cases import make_pictures, make_regression, make_scores

from vog_hf import add_vog_columns
from vog_hf.errors import ConfigError
from vog_hf.hub.card import describe_split, merged_card, sections
from vog_hf.hub.head import WrittenCard
from vog_hf.hub.parts import Part, collect_parts, score_tables
from vog_hf.hub.places import earlier_scores, earlier_shards, require_config_name, scored_splits
from vog_hf.hub.shards import count_shards
from vog_hf.scores import VoGScores

ABOUT = {"title": "data", "repo_id": "me/data", "config": "default", "scored": "default"}
HEAD = "---\nlicense: mit\n---\n"


def described(dataset, scores, tmp_path, **options):
    """The piece of a split, and the names of its pictures."""
    part = Part("train", dataset, scores)
    _, text = describe_split(part, "default", "Scores", tmp_path, "vog/default/train", **{"with_rows": True, **options})
    return str(text), sorted(path.name for path in tmp_path.iterdir())


def test_a_card_without_classes_says_so(tmp_path):
    """A regression has no errors to count, and rows with nothing to show are listed by their numbers; NaN is not."""
    scores = make_regression()
    dataset = Dataset.from_dict({"x": np.arange(len(scores)), "vog": scores.column("vog")})
    text, pictures = described(dataset, scores, tmp_path)
    assert pictures == []
    assert "Rows have no single class here" in text
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


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n"])
def test_our_part_comes_behind_the_text_that_is_there(end):
    """After one empty line; the text keeps its own end; a second push changes nothing more."""
    card = merged_card(DatasetCard(f"{HEAD}# Mine{end}"), sections({"One": "text"}), **ABOUT)
    gap = end if len(end) > 1 else "\n\n"
    assert card.text.startswith(f"# Mine{gap}<!-- vog_hf: begin")
    assert card.text.endswith("<!-- vog_hf: end -->\n")
    again = merged_card(DatasetCard(card.content), sections({"One": "text"}), **ABOUT)
    assert again.content == card.content


@pytest.mark.parametrize("titles", [["A b", "a-b"], ["??"]])
def test_sections_are_told_from_one_another(titles):
    """None takes the place of another one."""
    with pytest.raises(ConfigError, match="need words of their own"):
        sections(dict.fromkeys(titles, "text"))


def test_pieces_of_earlier_pushes_stay_until_they_are_replaced():
    """By the key they have; a mark without its other half is text, and is left alone."""
    card = merged_card(
        DatasetCard(f"{HEAD}<!-- vog_hf: begin -->\nMine\n"), sections({"One": "1", "Two": "2"}), **ABOUT
    )
    card = merged_card(DatasetCard(card.content), sections({"Two": "22"}), **ABOUT)
    assert card.text.startswith("<!-- vog_hf: begin -->\nMine\n\n<!-- vog_hf: begin.")
    assert [line for line in card.text.splitlines() if line in ("1", "2", "22")] == ["1", "22"]
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
    """What YAML reads otherwise than it is meant, and comments; just the entries of a push are written anew."""
    card = WrittenCard(f"---\n{WRITTEN}---\n# Mine\n".replace("\n", line_end))
    card.data["tags"] = ["birds", "vog"]
    card.data["dataset_info"] = {"features": []}
    wanted = WRITTEN.replace("tags: [birds]  # and more", "tags:\n- birds\n- vog")
    wanted = f"---\n{wanted}dataset_info:\n  features: []\n---\n# Mine\n"
    assert card.content == wanted.replace("\n", line_end)
    assert WrittenCard(card.content).content == card.content


@pytest.mark.parametrize("head", ["{license: mit, tags: [a]}", "license: &a mit\ntags: [*a]", "", "# nothing\n"])
def test_metadata_of_an_unusual_form_has_the_meaning_that_it_had(head):
    """On one line, with entries that refer to one another, none at all."""
    card = WrittenCard(f"---\n{head}\n---\nMine\n")
    meant = {**card.data.to_dict(), "tags": ["b"]}
    card.data["tags"] = ["b"]
    assert WrittenCard(card.content).data.to_dict() == meant
    assert card.text == "Mine\n"


@pytest.mark.parametrize("line", ["- item", "+ item", "1. item", "12) item", "=====", "-----", "> said", "    code"])
def test_the_start_of_a_line_is_no_more_than_text(line):
    """Lists, underlines, quotes and code blocks begin there."""
    page = MarkdownIt("gfm-like", {"linkify": False}).render(str(sections({"T": f"above\n{line}"})["section t"]))
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
    shards = ["data/train-00000-of-00001.parquet", "data/train-00000-of-00001.parquet.txt", "data/train-notes.parquet"]
    assert earlier_shards([*shards, "x/data/train-00000-of-00001.parquet"], "default", "train") == shards[:1]
    for name in ("data", "vog", "vog_scores", "a_vog_scores", "..", "a/b", "", "-a"):
        with pytest.raises(ConfigError, match="config_name must be"):
            require_config_name(name)
    require_config_name("v1.0-beta")


def test_splits_of_one_push_have_one_set_of_columns():
    """Columns of scores are filled in, others are not; scores need a split of theirs."""
    scores = make_scores(maps=None)
    plain = Dataset.from_dict({"text": ["a"] * len(scores)})
    parts = collect_parts({"train": plain, "test": plain.select(range(5))}, {"train": scores}, "core", None)
    assert parts[1].dataset.features == parts[0].dataset.features
    assert parts[1].dataset["vog"][:] == [None] * 5
    assert [part.split for part in score_tables(parts)] == ["train"]
    with pytest.raises(ConfigError, match="has no 'x'"):
        collect_parts({"train": plain, "test": Dataset.from_dict({"x": [1]})}, {"train": scores}, "core", None)
    with pytest.raises(ConfigError, match=r"needs a mapping from its splits \['train'\] to scores, got \['test'\]"):
        collect_parts({"train": plain}, {"test": scores}, "core", None)
    with pytest.raises(ConfigError, match="'text' of 'test' is"):
        collect_parts({"train": plain, "test": Dataset.from_dict({"text": [1]})}, {"train": scores}, "core", None)


def test_columns_that_are_not_there_are_not_left_out_in_silence():
    """Of a data set with columns of scores, more are asked for than it has; those that it has may be named."""
    scores = make_scores(maps=None)
    scored = add_vog_columns(Dataset.from_dict({"text": ["a"] * len(scores)}), scores)
    for columns in ("all", ["vog", "loss"]):
        with pytest.raises(ConfigError, match=r"asks for \[.*'loss'.*\] beside them"):
            collect_parts(scored, None, columns, None)
    assert collect_parts(scored, None, ["vog"], None)[0].dataset.column_names == scored.column_names
    everything = add_vog_columns(scored.select_columns("text"), scores, "all")
    assert collect_parts(everything, None, "all", None)[0].scores is scores


def test_the_number_of_shards_follows_the_files_that_rows_name(tmp_path, monkeypatch):
    """Pictures that lie beside the data set count with their bytes."""
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
    scores = VoGScores({"vog": np.array([0.5, 0.25], dtype=np.float32)}, {})
    dataset = Dataset.from_dict({"vog": [0.5, 0.25], "loss": [1.0, 2.0], "label": [1, 0], "prediction": [1, 1]})
    (part,) = collect_parts(dataset, None, "core", None)
    assert part.scores.column_names == ["label", "prediction", "vog", "loss"]
    assert part.scores.column("prediction").tolist() == [1, 1]
    assert part.scores.column("vog").tolist() == scores.column("vog").tolist()
