import functools
import io
import logging
from enum import Enum

import models
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Split, Value, load_from_disk
from PIL import Image as Pictures
from torch import nn

from vog_hf.config import VoGConfig
from vog_hf.data.loading import part_of, with_columns
from vog_hf.data.map_style import check_map_style
from vog_hf.errors import ConfigError, DataError, RowMismatchError
from vog_hf.hub.scored_splits import collect_splits
from vog_hf.scores.dataset_columns import add_vog_columns, check_column_names, core_column_names, scores_from_columns
from vog_hf.scores.scored_rows import pair_with_rows, verify_rows
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.scoring.scorer import VoGScorer
from vog_hf.trainer.splits import splits_of

N = 20
NAMES = ["cat", "dog", "frog"]


def png(row):
    """A small picture as a file's bytes."""
    pixels = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


@functools.cache
def images():
    """Pictures with names, ids, captions, nested and missing values, and labels."""
    columns = {
        "image": [png(row) for row in range(N)],
        "id": [f"row-{row}" for row in range(N)],
        "label": [row % 3 for row in range(N)],
        "boxes": [[float(row)] * (row % 4) for row in range(N)],
        "caption": [None if row == 3 else f"caption {row}" for row in range(N)],
        "weight": [row / 7 for row in range(N)],
    }
    features = {
        "image": Image(),
        "id": Value("string"),
        "label": ClassLabel(names=NAMES),
        "boxes": List(Value("float32")),
        "caption": Value("string"),
        "weight": Value("float64"),
    }
    return Dataset.from_dict(columns, features=Features(features), split="train")


def evaluation_transform(rows):
    """Pictures as tensors in 0..1."""
    pixels = [torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255 for image in rows["image"]]
    return {"image": pixels, "label": rows["label"]}


def scores_of(dataset, *, model=None, transform=evaluation_transform, states=None, **options):
    """Scores of a dataset, seen through a transform."""
    model = model or models.conv_net().model
    named = [(f"epoch-{k}", state) for k, state in enumerate(states or models.perturbed_states(model, 3))]
    shown = dataset.with_transform(transform) if transform else dataset
    return VoGScorer(model, config=VoGConfig(**options)).score(shown, named)


@functools.cache
def image_scores(**options):
    """Scores of `images`, computed once."""
    return scores_of(images(), **options)


def stored(dataset):
    """Every value as Arrow holds it, undecoded, in row order."""
    return dataset.with_format("arrow")[:].to_pydict()


CORE = ["vog", "vog_class_normalized", "vog_percentile"]


# --- what is added --------------------------------------------------------------------------------------------------


def test_every_other_column_stays_as_it_is():
    """Images, class labels, lists and nulls: values and features, bit for bit, with the core columns behind them."""
    scored = add_vog_columns(images(), image_scores())
    assert scored.column_names == [*images().column_names, *CORE]
    assert {name: scored.features[name] for name in images().column_names} == dict(images().features)
    before, after = stored(images()), stored(scored)
    assert {name: after[name] for name in before} == before
    assert scored.split == "train"
    assert scored[0]["image"].size == (8, 8)


def test_core_all_and_a_list_choose_the_columns():
    """What one sorts by is core, of every target; all is everything but the label; a list keeps its order."""
    scores = image_scores(target=("logit", "loss"))

    def added(columns):
        return add_vog_columns(images(), scores, columns).column_names[len(images().column_names) :]

    losses = ["vog_loss", "vog_loss_class_normalized", "vog_loss_percentile"]
    assert added("core") == [*CORE, *losses]
    assert added("all") == [*(name for name in scores.column_names if name != "label"), "learning_pattern"]
    expected = {"vog_early", "vog_late", "vog_loss_late", "gradient_magnitude", "loss", "confidence", "variability"}
    assert expected | {"correctness", "forgetting", "margin", "el2n", "prediction", "csg"} <= set(added("all"))
    assert added(["loss", "vog"]) == ["loss", "vog"]


def test_a_column_csg_of_the_user_stays_theirs():
    """It is refused where scores would replace it, has another name with a prefix, and is never read as a score."""
    scores = image_scores(target=("logit", "loss"))
    own = images().add_column("csg", [float(i) for i in range(len(images()))])
    with pytest.raises(ConfigError, match=r"the dataset has \['csg'\] already; pass prefix="):
        add_vog_columns(own, scores, "all")
    scored = add_vog_columns(own, scores, "all", prefix="my_")
    np.testing.assert_allclose(scored["my_csg"], scores.column("csg"))
    assert scored["csg"][:] == own["csg"][:]
    assert "csg" not in scores_from_columns(add_vog_columns(own, scores)).column_names
    assert "csg" not in image_scores().column_names


def test_columns_are_typed_for_the_hub():
    """float32 for numbers, int32 for counts, and the prediction a ClassLabel with the label's names."""
    scored = add_vog_columns(images(), image_scores(), "all")
    added = {name: scored.features[name] for name in scored.column_names if name not in images().column_names}
    assert added.pop("prediction") == ClassLabel(names=NAMES, id="vog_hf::prediction")
    assert added.pop("learning_pattern") == Value("string", id="vog_hf::learning_pattern")
    assert added.pop("forgetting") == Value("int32", id="vog_hf::forgetting")
    assert all(feature == Value("float32", id=f"vog_hf::{name}") for name, feature in added.items())
    for name in ("vog", "prediction", "forgetting", "vog_percentile"):
        np.testing.assert_array_equal(np.asarray(scored[name]), image_scores().column(name))


def test_the_prediction_has_the_names_of_the_configured_label_column():
    """``label_column`` decides whose class names the prediction gets, also next to a column called label."""
    coarse = images().rename_column("label", "animal").add_column("label", [0] * N)
    coarse = coarse.cast_column("label", ClassLabel(names=["a", "b", "c", "d"]))

    def transform(rows):
        return {**evaluation_transform({**rows, "label": rows["animal"]}), "animal": rows["animal"]}

    scores = scores_of(coarse, transform=transform, label_column="animal")
    scored = add_vog_columns(coarse, scores, ["prediction"])
    assert scored.features["prediction"].names == NAMES
    assert add_vog_columns(images(), image_scores(), ["prediction"]).features["prediction"].names == NAMES


def test_rows_without_a_class_have_another_core():
    """A regression is normalized over the whole dataset; its label and prediction are numbers."""

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = nn.Linear(5, 4)
            self.out = nn.Linear(4, 1)

        def forward(self, features):
            return self.out(self.hidden(features).tanh())

    rows = models._float_rows("features", (5,), seed=1, n=N)
    columns = {"features": [row["features"].tolist() for row in rows], "label": [row / 3 for row in range(N)]}
    dataset = Dataset.from_dict(columns)
    scored = add_vog_columns(dataset, scores_of(dataset, model=Line(), transform=None), "all")
    assert scored.column_names[2:6] == ["prediction", "vog", "vog_normalized", "vog_percentile"]
    assert repr(scored.features["prediction"]) == repr(Value("float32"))


def test_a_float64_model_gives_float32_columns():
    """The dataset does not change its types with the precision of the scoring."""
    model = models.conv_net().model.double()
    scores = scores_of(images(), model=model)
    assert scores.column("vog").dtype == np.float64
    assert repr(add_vog_columns(images(), scores).features["vog"]) == repr(Value("float32"))


# --- the same rows --------------------------------------------------------------------------------------------------


def test_a_transform_or_a_format_makes_no_other_rows():
    """What was scored through a transform is added to the raw rows, and the other way round; stored rows come out."""
    for view in (images().with_transform(evaluation_transform), images().with_format("torch")):
        scored = add_vog_columns(view, image_scores())
        assert stored(scored) == stored(add_vog_columns(images(), image_scores()))
        assert scored.format["type"] is None


@pytest.mark.parametrize(
    "select",
    [
        lambda dataset: dataset.select([4, 2, 0, 11, 19, 7]),
        lambda dataset: dataset.shuffle(seed=3),
        lambda dataset: dataset.filter(lambda row: row["label"] != 1),
        lambda dataset: dataset.filter(lambda row: row["label"] >= 0),
        lambda dataset: dataset.select(range(5, 15)),
        lambda dataset: dataset.sort("caption", reverse=True),
    ],
    ids=["select", "shuffle", "filter", "filter that keeps all", "slice", "sort"],
)
def test_a_selection_made_before_scoring_is_a_data_set_like_any_other(select):
    """Scored and extended in its own order: each row gets the score it has in the whole."""
    selected = select(images())
    scored = add_vog_columns(selected, scores_of(selected))
    before, after = stored(selected), stored(scored)
    assert {name: after[name] for name in before} == before
    whole = dict(zip(images()["id"], image_scores().column("vog"), strict=True))
    np.testing.assert_allclose(scored["vog"][:], [whole[name] for name in scored["id"]], rtol=1e-5)
    flattened = selected.flatten_indices()
    assert stored(add_vog_columns(flattened, scores_of(selected))) == after


def test_tokenized_rows_are_the_raw_rows(caplog):
    """Scored with the tokens next to the text: the scores go onto the dataset that has only the text."""
    case = models.bert()
    raw = Dataset.from_dict({"text": ["a b", "c", "d e f", "g", "h i"], "label": case.labels})
    tokens = [row["input_ids"].tolist() for row in case.rows]
    tokenized = raw.map(
        lambda row, i: {"input_ids": tokens[i], "attention_mask": [1] * len(tokens[i])}, with_indices=True
    )

    def collate(rows):
        kept = [{name: row[name] for name in ("input_ids", "attention_mask", "label")} for row in rows]
        return models.collate(kept)

    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(case.model, 3))]
    scores = VoGScorer(case.model).score(tokenized, states, collate_fn=collate)
    scored = add_vog_columns(raw, scores)
    assert scored.column_names == ["text", "label", *CORE]
    without_text = VoGScorer(case.model).score(tokenized.remove_columns("text"), states, collate_fn=collate)
    np.testing.assert_array_equal(add_vog_columns(raw, without_text)["vog"], scored["vog"][:])
    assert not caplog.records


def test_a_data_set_dict_gets_the_scores_of_each_split():
    """One VoGScores per split; a split without scores is left out, an unknown one is refused."""
    splits = DatasetDict(train=images().select(range(12)), test=images().select(range(12, N)), extra=images())
    scores = {name: scores_of(splits[name]) for name in ("train", "test")}
    scored = add_vog_columns(splits, scores)
    assert isinstance(scored, DatasetDict)
    assert {name: len(part) for name, part in scored.items()} == {"train": 12, "test": 8}
    np.testing.assert_array_equal(scored["test"]["vog"][:], scores["test"].column("vog"))
    with pytest.raises(ConfigError, match=r"mapping from its splits \['extra', 'test', 'train'\] to scores, got VoGSc"):
        add_vog_columns(splits, scores["train"])
    with pytest.raises(ConfigError, match=r"got \['validation'\]"):
        add_vog_columns(splits, {"validation": scores["test"]})
    with pytest.raises(ConfigError, match=r"mapping of \['test', 'train'\]; pass scores\[split\]"):
        add_vog_columns(images(), scores)
    with pytest.raises(RowMismatchError):
        add_vog_columns(splits, {"train": scores["test"], "test": scores["train"]})


# --- other rows -----------------------------------------------------------------------------------------------------


def edited(column, row, value):
    """A dataset with one value changed."""

    def edit(dataset):
        return dataset.map(lambda example, i: {column: value} if i == row else {}, with_indices=True)

    return edit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dataset: dataset.shuffle(seed=0), "column 'image' of the dataset is not the one that was scored"),
        (
            lambda dataset: dataset.select([1, 0, *range(2, N)]),
            "is not the one that was scored: the rows were shuffled",
        ),
        (lambda dataset: dataset.filter(lambda row: row["label"] != 1), "scores cover 20 rows and the dataset has 13"),
        (lambda dataset: dataset.select(range(N - 1)), "scores cover 20 rows and the dataset has 19"),
        (edited("label", 7, 2), "column 'label' of the dataset is not the one that was scored"),
        (edited("caption", 3, "no longer missing"), "column 'caption'"),
        (edited("boxes", 5, [5.0, 5.5]), "column 'boxes'"),
        (lambda dataset: dataset.remove_columns("image").shuffle(seed=0), "column 'id'"),
    ],
    ids=["shuffle", "swap", "filter", "shorter", "label", "text", "list", "shuffle without images"],
)
def test_other_rows_are_refused(change, message):
    """Shuffled, filtered, edited or shortened after scoring: every shared column must agree, or is named."""
    with pytest.raises(RowMismatchError, match=message):
        add_vog_columns(change(images()), image_scores())


def test_another_picture_of_the_same_size_is_refused():
    """Of binary columns the lengths of all rows and the bytes of 64 of them are compared."""
    columns = stored(images())
    content = bytearray(columns["image"][4]["bytes"])
    content[-20] ^= 1
    columns["image"][4] = {"bytes": bytes(content), "path": None}
    with pytest.raises(RowMismatchError, match="column 'image'"):
        add_vog_columns(Dataset.from_dict(columns, features=images().features), image_scores())


def test_a_new_column_beside_the_scored_ones_is_accepted():
    """Columns that only one side has cannot disagree."""
    extended = images().add_column("note", [f"note {row}" for row in range(N)])
    assert add_vog_columns(extended, image_scores())["vog"][:] == image_scores().column("vog").tolist()
    assert len(add_vog_columns(images().remove_columns(["image", "weight"]), image_scores())) == N


def test_a_column_of_ones_own_is_not_replaced():
    """A column that happens to be called like a score can be renamed or dropped, as the message says."""
    dataset = images().add_column("vog", ["mine"] * N)
    with pytest.raises(ConfigError) as refused:
        add_vog_columns(dataset, image_scores())
    assert str(refused.value) == (
        "the scores add the columns ['vog', 'vog_class_normalized', 'vog_percentile'], and the dataset has ['vog'] "
        "already; pass prefix= for other names, e.g. 'run2_', or "
        "rename your own columns first, e.g. dataset.rename_column('vog', 'my_vog'), or drop them: "
        "dataset.remove_columns(['vog'])"
    )
    scored = add_vog_columns(dataset.rename_column("vog", "my_vog"), image_scores())
    assert scored.column_names == [*images().column_names, "my_vog", *CORE]


@pytest.mark.parametrize(("columns", "taken"), [("core", CORE), (["loss", "vog"], ["vog"])])
def test_scores_of_an_earlier_run_are_not_replaced(columns, taken):
    """They are recognized by what every run adds; the message says what to drop, and then it works."""
    dataset = add_vog_columns(images(), image_scores())
    with pytest.raises(ConfigError) as refused:
        add_vog_columns(dataset, image_scores(), columns)
    assert str(refused.value).endswith(
        f"the dataset has {taken} already; pass prefix= for other names, e.g. 'run2_', or "
        f"drop the scores of the earlier run first: dataset.remove_columns({taken})"
    )
    scored = add_vog_columns(dataset.remove_columns(taken), image_scores(), columns)
    assert set(scored.column_names) == {*images().column_names, *CORE, *(columns if columns != "core" else [])}


@pytest.mark.parametrize("has_classes", [True, False])
def test_names_are_checked_before_there_are_scores(has_classes):
    """A configuration and whether rows have classes tell what will be added, on top of the scores themselves."""
    names = core_column_names(VoGConfig(target=("logit", "loss")).column_names, has_classes=has_classes)
    normalized = "class_normalized" if has_classes else "normalized"
    assert names == [f"{name}{end}" for name in ("vog", "vog_loss") for end in ("", f"_{normalized}", "_percentile")]
    if has_classes:
        assert add_vog_columns(images(), image_scores(target=("logit", "loss"))).column_names[-6:] == names
    check_column_names(images(), names)
    check_column_names([(0, 1)], names)  # a torch dataset
    with pytest.raises(
        ConfigError, match=rf"the dataset has \['vog_loss_{normalized}'\] already; pass prefix= .* or rename"
    ):
        check_column_names(images().rename_column("weight", f"vog_loss_{normalized}"), names)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["vog", "vogue"], r"no columns \['vogue'\]; they have prediction, prediction_probability, vog,"),
        ("vog", "must be 'core', 'all' or a list of names, got 'vog'"),
        ([], "no columns"),
        (["label"], r"no columns \['label'\]"),
    ],
)
def test_unknown_columns_are_refused(columns, message):
    """What the scores do not have cannot be added; the message lists what they have."""
    with pytest.raises(ConfigError, match=message):
        add_vog_columns(images(), image_scores(), columns)
    add_vog_columns(images(), image_scores(), ["vog"])


def test_a_torch_data_set_has_no_columns():
    """Scores of one are read with to_pandas, which the message says."""
    pairs = [(row["image"], row["label"]) for row in images().with_transform(evaluation_transform)]
    scores = scores_of_pairs(pairs)
    with pytest.raises(DataError, match=r"got a list; read the scores with \.to_pandas\(\)"):
        add_vog_columns(pairs, scores)


def scores_of_pairs(pairs):
    """Scores of a torch dataset."""
    model = models.conv_net().model
    states = [(f"epoch-{k}", state) for k, state in enumerate(models.perturbed_states(model, 3))]
    return VoGScorer(model).score(pairs, states)


def test_without_a_shared_column_the_labels_are_compared_and_a_warning_says_so(caplog):
    """Scores of a torch dataset go onto the Dataset it was made of, if length and labels agree."""
    pairs = [(row["image"], row["label"]) for row in images().with_transform(evaluation_transform)]
    scores = scores_of_pairs(pairs)
    with caplog.at_level(logging.WARNING, logger="vog_hf"):
        scored = add_vog_columns(images(), scores)
    assert "shares no column" in caplog.text
    assert "only the number of rows and the labels could be compared" in caplog.text
    np.testing.assert_array_equal(scored["vog"][:], scores.column("vog"))
    with pytest.raises(
        RowMismatchError, match=r"row 7 has label 2 in the dataset and 1 in the scores \(1 rows differ\)"
    ):
        add_vog_columns(edited("label", 7, 2)(images()), scores)
    with pytest.raises(RowMismatchError, match="scores cover 20 rows and the dataset has 19"):
        add_vog_columns(images().select(range(19)), scores)
    caplog.clear()
    renamed = images().rename_column("label", "animal").add_column("label", [2] * N)
    configured = VoGScores(
        {name: scores.column(name) for name in ("vog", "label")}, {"config": {"label_column": "animal"}}
    )
    verify_rows(renamed, configured)
    assert "and the labels could be compared" in caplog.text
    with pytest.raises(RowMismatchError, match="row 7 has label 2"):
        verify_rows(edited("animal", 7, 2)(renamed), configured)
    caplog.clear()
    verify_rows(images().remove_columns("label"), scores)
    assert "only the number of rows could be compared" in caplog.text


def test_scores_know_their_rows_after_a_round_trip(tmp_path):
    """Digests and hashes are saved with the scores."""
    image_scores().save(tmp_path / "scores")
    loaded = VoGScores.load(tmp_path / "scores")
    assert stored(add_vog_columns(images(), loaded)) == stored(add_vog_columns(images(), image_scores()))
    with pytest.raises(RowMismatchError):
        add_vog_columns(images().shuffle(seed=0), loaded)


def test_scores_read_from_columns_know_their_labels_by_the_classes_of_the_prediction():
    """Whatever the column is called, and whatever else is called label; one may be named where nothing tells it."""
    fine, coarse = ClassLabel(names=NAMES), ClassLabel(names=["w", "x", "y"])
    columns = {"label": [0, 0, 0], "fine": [2, 1, -1], "label_reviewed": [1, 1, 1]}
    features = {"label": coarse, "fine": fine, "label_reviewed": fine}
    own = Dataset.from_dict(columns, features=Features(features))
    values = {"vog": np.float32([0.5, 0.25, 1.0]), "prediction": np.int32([2, 0, 1])}
    rows = add_vog_columns(own, VoGScores(values, {"config": {"label_column": "fine"}}), ["vog", "prediction"])
    found = scores_from_columns(rows)
    assert found.column("label").tolist() == [2, 1, -1]
    assert found.manifest["class_names"] == NAMES
    assert found.manifest["config"]["label_column"] == "fine"
    verify_rows(rows, found)
    without = rows.remove_columns(["fine", "label_reviewed"])
    assert "label" not in scores_from_columns(without).column_names
    unknown = rows.remove_columns("prediction")
    assert scores_from_columns(unknown).column("label").tolist() == [0, 0, 0]
    assert scores_from_columns(unknown, label_column="fine").column("label").tolist() == [2, 1, -1]
    with pytest.raises(ConfigError, match="label_column must name a column of whole numbers or classes, got 'text'"):
        scores_from_columns(rows, label_column="text")


VALUES = {
    "prediction": np.int32([1, 0, 1, 1]),
    "vog": np.float32([0.5, np.nan, 2.0, 1.0]),
    "loss": np.float32([4.0, 3.0, 2.0, 1.0]),
    "forgetting": np.int32([3, 4, 0, 1]),
}
OWN = {"loss": [400.0, 20.0, 1.0, 7.0], "prediction": ["spam", "ham", "ham", "spam"], "confidence": [0.9] * 4}


def through_disk(dataset, folder):
    """The dataset as `load_from_disk` gives it."""
    dataset.save_to_disk(str(folder))
    return load_from_disk(str(folder))


def through_parquet(dataset, folder):
    """The dataset as it is read from a parquet file."""
    dataset.to_parquet(folder / "rows.parquet")
    return Dataset.from_parquet(str(folder / "rows.parquet"), cache_dir=str(folder / "cache"))


def through_a_card(dataset, folder):
    """The dataset with the features that a card on the Hub keeps."""
    features = Features._from_yaml_list(dataset.features._to_yaml_list())
    return Dataset.from_dict(dataset.to_dict(), features=features)


@pytest.mark.parametrize("way", [through_disk, through_parquet, through_a_card])
def test_scores_are_known_by_their_declaration_and_not_by_their_names(way, tmp_path):
    """Own columns with the names of scores stay own ones, and the scores come back without the prefix."""
    scored = add_vog_columns(Dataset.from_dict(OWN), VoGScores(VALUES, {}), "all", prefix="run2_")
    assert scored.column_names == [*OWN, *(f"run2_{name}" for name in VALUES)]
    assert scored.select_columns([*OWN])[:] == OWN
    found = scores_from_columns(way(scored, tmp_path))
    assert found.column_names == [*VALUES]
    for name, values in VALUES.items():
        np.testing.assert_array_equal(found.column(name), values)


def test_a_column_in_place_of_a_score_is_ones_own():
    """What was dropped and added by the user under the same name is no longer read as the model's."""
    scored = add_vog_columns(Dataset.from_dict({"x": [1, 2, 3, 4]}), VoGScores(VALUES, {}), "all")
    mine = scored.remove_columns("loss").add_column("loss", OWN["loss"])
    assert scores_from_columns(mine).column_names == ["prediction", "vog", "forgetting"]
    assert scores_from_columns(mine.map(lambda row: {"y": row["x"]})).column_names == [
        "prediction",
        "vog",
        "forgetting",
    ]


def test_scores_of_two_runs_stay_apart():
    """Two scorings of a dataset have a prefix each; which one is read has to be said."""
    rows = Dataset.from_dict({"x": [1, 2]})
    one, two = (VoGScores({"vog": np.float32(values)}, {}) for values in ([0.5, 0.25], [3.0, 4.0]))
    scored = add_vog_columns(add_vog_columns(rows, one, ["vog"]), two, ["vog"], prefix="run2_")
    with pytest.raises(ConfigError, match=r"scores with the prefixes \['', 'run2_'\]; choose one with prefix="):
        scores_from_columns(scored)
    assert scores_from_columns(scored, prefix="").column("vog").tolist() == [0.5, 0.25]
    assert scores_from_columns(scored, prefix="run2_").column("vog").tolist() == [3.0, 4.0]
    (part,) = collect_splits(scored, two, "core", None, prefix="run2_")
    assert part.columns == {"vog": "run2_vog"}
    with pytest.raises(ConfigError, match="prefix must be letters, digits and _, got 'run:'"):
        add_vog_columns(rows, two, prefix="run:")


def test_undeclared_scores_are_read_where_they_prove_themselves():
    """Through pandas the declaration is lost: a percentile that is that of its score is proof, and a name is none."""
    plain = Dataset.from_dict(add_vog_columns(images().select_columns("label"), image_scores(), "all").to_dict())
    assert scores_from_columns(plain).column_names == ["label", *CORE]
    np.testing.assert_array_equal(scores_from_columns(plain).column("vog"), image_scores().column("vog"))
    for own in (plain.select(range(10)), plain.remove_columns("vog_percentile"), Dataset.from_dict({"vog": [1.0]})):
        with pytest.raises(DataError, match="the dataset has no score column 'vog'"):
            scores_from_columns(own)


def test_an_own_column_of_text_does_not_stop_a_push():
    """Own columns are neither compared with the scores nor emptied in other splits, and a clash names the option."""
    rows = Dataset.from_dict(OWN)
    scores = VoGScores(VALUES, {})
    scored = add_vog_columns(rows, scores, ["vog"])
    (part,) = collect_splits(Dataset(scored.data, info=scored.info), scores, "core", None)
    assert part.columns == {"vog": "vog"}
    assert part.table["prediction"][:] == OWN["prediction"]
    with pytest.raises(ConfigError, match=r"has \['prediction', 'loss'\] already; pass prefix="):
        collect_splits(rows, scores, "all", None)
    (part,) = collect_splits(rows, scores, "all", None, prefix="run2_")
    assert part.columns == {name: f"run2_{name}" for name in VALUES}
    other = {"train": rows, "test": rows.add_column("vog", [1.0] * 4)}
    with pytest.raises(ConfigError, match="'test' has a column 'vog' of its own, and in another split"):
        collect_splits(DatasetDict(other), {"train": scores}, ["vog"], None)


@pytest.mark.parametrize("order", ["shuffled", "some"])
def test_a_selection_is_not_copied(order):
    """Scores are put next to rows where they are stored: no image of a shuffled dataset moves, and the order stays."""
    chunk = pa.array([bytes([i]) * 2**23 for i in range(4)], pa.binary())  # its memory is shared by all chunks
    stored = pa.table({"raw": pa.chunked_array([chunk] * 65), "row": pa.chunked_array([pa.array(range(260))])})
    rows = Dataset(stored, fingerprint="large")
    rows = rows.shuffle(seed=0) if order == "shuffled" else rows.select([259, 3, 128, 0])
    values = np.array(rows["row"][:], dtype=np.float32)
    scored = with_columns(rows, pa.table({"vog": values, "raw2": values}))
    assert scored["vog"][:] == rows["row"][:]
    assert scored.column_names == ["raw", "row", "vog", "raw2"]
    assert scored.data.column("raw").chunk(64).buffers()[2].address == chunk.buffers()[2].address


def test_rows_that_a_selection_repeats_have_a_score_each():
    """A row that is shown twice is two rows."""
    rows = Dataset.from_dict({"text": ["a", "b"]}).select([1, 0, 1])
    scored = add_vog_columns(rows, VoGScores({"vog": np.array([0.5, 0.25, 0.75], dtype=np.float32)}, {}), ["vog"])
    assert list(zip(scored["text"][:], scored["vog"][:], strict=True)) == [("b", 0.5), ("a", 0.25), ("b", 0.75)]


class Stage(Enum):
    """Names of splits as a program may keep them."""

    TRAIN = "train"
    TEST = "test"


@pytest.mark.parametrize("kind", [Stage, Split], ids=["enumeration", "datasets.Split"])
def test_splits_may_be_named_by_members(kind):
    """`Split.TRAIN` and the member of an enumeration are the split "train", in scores and rows alike."""
    rows = {kind.TRAIN: Dataset.from_dict({"x": [1, 2]}), kind.TEST: Dataset.from_dict({"x": [3]})}
    scores = {"train": VoGScores({"vog": np.zeros(2)}, {}), kind.TEST: VoGScores({"vog": np.zeros(1)}, {})}
    scored = add_vog_columns(rows, scores, ["vog"])
    assert {name: len(part) for name, part in scored.items()} == {"train": 2, "test": 1}
    assert all(type(name) is str for name in scored)
    assert [split.name for split in pair_with_rows(scores, rows)] == ["train", "test"]
    with pytest.raises(ConfigError, match=r"splits \['test', 'train'\]"):
        add_vog_columns(rows, {"other": scores["train"]})
    with pytest.raises(DataError, match=r"mapping of \['test', 'train'\]"):
        check_map_style(rows)
    assert list(splits_of(rows)) == ["train", "test"]
    assert [part.name for part in collect_splits(rows, scores, ["vog"], None)] == ["train", "test"]
    assert [part.name for part in collect_splits(rows[kind.TEST], scores[kind.TEST], ["vog"], kind.TEST)] == ["test"]
    assert part_of(rows, "test")["x"][:] == [3]
