"""Which ranking to review first: by what is known of this dataset, else by what was recorded in experiments."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vog_hf.errors import ConfigError
from vog_hf.evaluation import recommended_ranking
from vog_hf.evaluation.recommendation import AS_GOOD, PREFERENCES, RECORDED_GAP
from vog_hf.gradients.preferences import PreferenceOptimization
from vog_hf.metric.vocabulary import COLUMNS
from vog_hf.scores.vog_scores import VoGScores

ROOT = Path(__file__).parents[2]
LOW_MEANS_WRONG = ("confidence", "correctness", "margin")
NAMED = {"model": {"class": "ViT", "name": "google/vit"}}
N = 400
WRONG = np.arange(N) % 8 == 0  # 50 rows


def scores_with(seed=0, **distances):
    """Columns in which wrong rows lie a given number of standard deviations above the others."""
    rng = np.random.default_rng(seed)
    columns = {name: rng.normal(size=N) + distance * WRONG for name, distance in distances.items()}
    return {"label": np.zeros(N, int), "prediction": np.zeros(N, int), **columns}


def test_known_wrong_rows_choose_column_and_direction():
    """The column that finds them best, from the end where they are; the reason has their number and the AUROC."""
    columns = scores_with(vog=0.2, loss=1.0, variability=-2.5)
    found = recommended_ranking(columns, known_wrong=WRONG)
    assert (found.column, found.direction, found.basis) == ("variability", "low", "known rows")
    assert str(found).startswith(
        "Start with variability, lowest first: it finds the 50 rows known to be wrong best of 3"
    )
    assert recommended_ranking(columns | {"is_corrupted": WRONG}) == found
    assert recommended_ranking(VoGScores(columns, {}), known_wrong=WRONG.astype(float)) == found
    assert recommended_ranking(pd.DataFrame(columns), known_wrong=WRONG.tolist()) == found


def test_only_rows_that_are_known_count():
    """NaN is a row that nobody decided about, whatever its values are."""
    columns = scores_with(vog=2.0, loss=0.5)
    known = np.where(np.arange(N) < 200, WRONG, np.nan)
    columns["loss"][200:] = np.where(WRONG[200:], 99, columns["loss"][200:])
    found = recommended_ranking(columns, known_wrong=known)
    assert (found.column, found.direction) == ("vog", "high")
    assert "the 25 rows known to be wrong" in found.reason


@pytest.mark.parametrize(
    ("default", "direction", "sign", "is_pretrained"), [("loss", "high", 1, False), ("margin", "low", -1, True)]
)
def test_the_default_goes_first_where_it_is_as_good(default, direction, sign, is_pretrained):
    """Within 0.01 AUROC of the best, the column that is recommended without known rows is recommended."""

    def found():
        return recommended_ranking(columns, known_wrong=WRONG, is_pretrained=is_pretrained)

    columns = scores_with(vog=1.5)
    columns[default] = sign * columns["vog"]
    columns["vog"][np.flatnonzero(WRONG)[:1]] += 5.0  # a hair better
    assert (found().column, found().direction) == (default, direction)
    assert "within 0.01 of the best of 2 columns" in found().reason
    assert recommended_ranking(columns, known_wrong=WRONG, is_pretrained=not is_pretrained).column != "margin"
    columns["vog"][WRONG] += 1.0  # now far better
    assert found().column == "vog"
    columns = scores_with(vog=0.5) | {default: -sign * scores_with(vog=0.5)["vog"]}  # the wrong ones at the other end
    assert found().column == "vog"


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (None, "no row is known to be wrong"),
        (np.zeros(N), "no row is known to be wrong"),
        (np.full(N, np.nan), "no row is known to be wrong"),
        (np.where(np.arange(N) < 30, WRONG, np.nan), "only 4 rows are known to be wrong and 26 to be right"),
        (np.ones(N), "only 400 rows are known to be wrong and 0 to be right"),
        (np.random.default_rng(5).random(N) < 0.1, "known to be wrong better than chance"),
    ],
    ids=["not given", "none", "undecided", "too few", "all", "noise"],
)
def test_else_the_recorded_experiments_decide(known, why):
    """Without enough known rows, or where no column finds them, the regime's column comes first, and both reasons."""
    columns = scores_with(vog=0.0, margin=0.0, loss=0.0)
    found = recommended_ranking(columns, known_wrong=known)
    assert (found.column, found.direction, found.basis) == ("loss", "high", "recorded experiments")
    assert why in found.reason
    assert found.reason.endswith(
        ", and in all recorded trainings from scratch the loss found planted wrong labels best of the columns of the "
        "scores, or within 0.01 AUROC of the best"
    )
    found = recommended_ranking(columns, known_wrong=known, is_pretrained=True)
    assert (found.column, found.direction, found.basis) == ("margin", "low", "recorded experiments")
    assert str(found).startswith("Start with margin, lowest first: ")
    assert why in found.reason
    assert found.reason.endswith(
        ", and in all recorded fine-tunings the margin (logit of the given label minus the largest other; below 0 the "
        "model prefers another label) found planted wrong labels best of the columns of the scores, or within 0.01 "
        "AUROC of the best"
    )


@pytest.mark.parametrize(
    ("model", "column"),
    [
        (NAMED["model"], "margin"),
        ({"class": "ViT", "name": "google/vit", "pretrained": False}, "loss"),
        ({"class": "ViT", "name": "checkpoint-12", "pretrained": True}, "margin"),
        ({"class": "ViT", "name": "checkpoint-12"}, "loss"),
        ({"class": "ViT", "name": "checkpoint-best"}, "margin"),
        ({"class": "ViT", "name": None}, "loss"),
        (None, "loss"),
    ],
    ids=["named", "own snapshots", "said so", "of a checkpoint", "no step", "no name", "no model"],
)
def test_the_manifest_names_the_regime(model, column):
    """Pretrained weights that it names mean a fine-tuning, unless an argument says otherwise; columns have no names."""
    columns = scores_with(vog=0.0, margin=0.0, loss=0.0)
    scores = VoGScores(columns, {} if model is None else {"model": model})
    assert recommended_ranking(scores).column == column
    assert recommended_ranking(scores.select(range(50))).column == column
    for is_pretrained, other in ((True, "margin"), (False, "loss")):
        assert recommended_ranking(scores, is_pretrained=is_pretrained).column == other
    assert recommended_ranking(scores.to_pandas()).column == "loss"
    assert recommended_ranking(scores.to_pandas(), is_pretrained=True).column == "margin"


def test_the_margin_needs_values_and_classes():
    """Without a margin, and for tasks whose margin was not measured, the loss comes first, with what is known of it."""
    best = "the loss found planted wrong labels best of the columns of the scores, or within 0.05 AUROC of the best"
    for columns in (scores_with(loss=0.0), scores_with(loss=0.0) | {"margin": np.full(N, np.nan)}):
        found = recommended_ranking(VoGScores(columns, NAMED))
        assert (found.column, found.direction, found.basis) == ("loss", "high", "recorded experiments")
        assert found.reason.endswith(f", and in all recorded experiments {best}")
    answers = scores_with(loss=0.0, margin=0.0)  # as question answering: no class is predicted
    del answers["label"], answers["prediction"]
    for is_pretrained in (True, False):
        found = recommended_ranking(answers, is_pretrained=is_pretrained)
        assert (found.column, found.direction, found.basis) == ("loss", "high", "recorded experiments")
        assert found.reason.endswith(f", and in all recorded experiments, which are classifications, {best}")
    some = scores_with(margin=0.0, loss=0.0)
    some["margin"][1:] = np.nan  # rows that were skipped
    assert recommended_ranking(some, is_pretrained=True).column == "margin"


def test_preferences_without_a_loss_start_with_the_margin():
    """Scores of DPO have no loss; their lowest margins are what planted swapped pairs had."""
    assert PreferenceOptimization.name == PREFERENCES
    columns = {"vog": np.arange(N), "margin": np.arange(N)}
    found = recommended_ranking(VoGScores(columns, {"task": PREFERENCES}))
    assert (found.column, found.direction, found.basis) == ("margin", "low", "recorded experiments")
    assert found.reason.endswith("found planted swapped pairs with an AUROC of 0.93 to 1.00")


@pytest.mark.parametrize("manifest", [None, {}, {"task": "token_classification"}], ids=["columns", "no task", "other"])
@pytest.mark.parametrize("prediction", [{}, {"prediction": np.ones(N)}], ids=["no prediction", "numbers"])
def test_a_margin_without_a_loss_is_a_preference_only_if_the_task_says_so(manifest, prediction):
    """Of other columns with a margin and no loss nothing was measured, so this run decides."""
    columns = {"vog": np.arange(N), "margin": np.arange(N)} | prediction
    found = recommended_ranking(columns if manifest is None else VoGScores(columns, manifest))
    assert (found.column, found.basis) == ("vog", "this run")
    assert "preference" not in found.reason


@pytest.mark.parametrize("name", ["label", "loss", "margin"])
def test_texts_in_a_column_do_not_keep_known_rows_from_deciding(name):
    """Labels may be texts, and a loss or margin of texts does not count."""
    columns = scores_with(vog=2.0, loss=0.0, margin=0.0)
    columns[name] = np.where(WRONG, "cat", "dog").astype(object)
    for is_pretrained in (True, False):
        found = recommended_ranking(pd.DataFrame(columns), known_wrong=WRONG, is_pretrained=is_pretrained)
        assert (found.column, found.basis) == ("vog", "known rows")
    default = "loss" if name == "margin" else "margin"
    found = recommended_ranking(pd.DataFrame(columns), is_pretrained=True)
    assert (found.column, found.basis) == (default, "recorded experiments")
    columns["label"] = np.full(N, None)
    assert recommended_ranking(pd.DataFrame(scores_with(loss=0.0) | {"label": columns["label"]})).basis == "this run"


def test_rows_without_labels_and_scores_without_a_loss():
    """What the experiments measured is not claimed of rows without labels, nor of another column."""
    columns = scores_with(vog=0.0, loss=0.0, margin=0.0) | {"label": np.full(N, -1)}
    found = recommended_ranking(VoGScores(columns, NAMED))
    assert (found.column, found.basis) == ("loss", "this run")
    assert found.reason.startswith("no row has a label, so the loss is that of the last prediction")
    bare = {"vog": np.arange(N), "label": np.zeros(N, int), "prediction": (np.arange(N) < 80).astype(int)}
    found = recommended_ranking(bare)
    assert (found.column, found.direction, found.basis) == ("vog", "low", "this run")
    assert "these scores have no loss; its low tail is the hard one in this run" in found.reason
    found = recommended_ranking({"vog": np.arange(N)})
    assert (found.column, found.direction) == ("vog", "high")
    lost = scores_with(vog=0.0) | {"loss": np.full(N, np.nan)}
    assert recommended_ranking(lost).column == "vog"


@pytest.mark.parametrize("unit", [1, -3])
def test_a_regression_with_labels_of_any_sign_has_labels(unit):
    """Negative numbers are labels where predictions are not classes."""
    columns = scores_with(vog=0.0, loss=0.0) | {"label": np.full(N, float(unit)), "prediction": np.ones(N)}
    assert recommended_ranking(columns).basis == "recorded experiments"


def test_what_cannot_be_known_is_refused():
    """Another length, other values than true and false, texts, and no column to rank by."""
    columns = scores_with(vog=0.0, loss=0.0)
    with pytest.raises(ConfigError, match="one value for each of 400 rows"):
        recommended_ranking(columns, known_wrong=WRONG[1:])
    with pytest.raises(ConfigError, match=r"true, false or NaN \(not known\), got 2"):
        recommended_ranking(columns, known_wrong=WRONG * 2)
    with pytest.raises(ConfigError, match="known_wrong"):
        recommended_ranking(columns, known_wrong=["no"] * N)
    with pytest.raises(ConfigError, match="there is no column to rank by; these scores have label"):
        recommended_ranking({"label": np.zeros(N, int)})
    with pytest.raises(ConfigError, match=r"is_pretrained must be bool or None, got 'google/vit'"):
        recommended_ranking(columns, is_pretrained="google/vit")
    with pytest.raises(ConfigError, match="pass arrays by name"):
        recommended_ranking(7)


def recorded_areas(seed):
    """AUROC of each column for the wrong rows of a recorded training, from the end where wrong labels are expected."""
    high = {n.removeprefix("AUROC "): v for n, v in seed["headline"].items() if n.startswith("AUROC ")}
    areas = {name: 1 - area if name in LOW_MEANS_WRONG else area for name, area in high.items()}
    areas |= {name: figures[0] for name, figures in seed.get("details", {}).get("columns", {}).items()}
    return {name: area for name, area in areas.items() if name in COLUMNS or name.startswith("vog_")}


def recorded_gaps():
    """By record with AUROCs for wrong rows: how far each column is behind the best one (means over seeds).

    Margin and loss count from the end that is recommended, the others from their better one.
    """
    gaps = {}
    for path in sorted((ROOT / "recipes").rglob("*.json")):
        areas = pd.DataFrame([recorded_areas(seed) for seed in json.loads(path.read_text()).get("seeds", [])])
        if {"margin", "loss"} <= {*areas}:
            means = areas.dropna(axis=1).mean()
            areas = means.where((means > 0.5) | means.index.isin(["margin", "loss"]), 1 - means)
            gaps[path.stem] = (areas.max() - areas).to_dict()
    return gaps


def test_the_recommended_column_is_close_to_the_best_in_every_recorded_result():
    """Within 0.01 of it are the margin after fine-tuning and the loss from scratch; within 0.05 the loss everywhere."""
    gaps = recorded_gaps()
    from_scratch = [name for name in gaps if not name.startswith("pretrained_")]
    assert len(gaps) >= 12
    assert len(from_scratch) >= 3
    for name, gap in gaps.items():
        assert gap["loss" if name in from_scratch else "margin"] <= AS_GOOD, name
        assert gap["loss"] <= RECORDED_GAP, name


def test_no_single_column_is_close_to_the_best_in_every_recorded_result():
    """So the regime has to be known: each column of all records is far behind in one of them."""
    gaps = recorded_gaps()
    shared = set.intersection(*map(set, gaps.values()))
    assert {*gaps["label_noise"]} == shared >= {"margin", "loss", "csg", "vog_loss", "vog_class_normalized", "vog_late"}
    largest = {name: max(gap[name] for gap in gaps.values()) for name in shared}
    assert min(largest, key=largest.get) == "margin"
    assert min(largest.values()) > 4 * AS_GOOD
    assert largest["margin"] == gaps["label_noise"]["margin"] == pytest.approx(0.044, abs=0.0005)
    assert largest["loss"] == gaps["pretrained_image_pairs_20"]["loss"] == pytest.approx(0.049, abs=0.0005)
