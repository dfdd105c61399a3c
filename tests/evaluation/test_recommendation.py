"""Which ranking to review first: by what is known of this dataset, else by what was recorded in experiments."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from vog_hf.errors import ConfigError
from vog_hf.evaluation import recommended_ranking
from vog_hf.evaluation.recommendation import RECORDED_GAP
from vog_hf.metric.vocabulary import COLUMNS
from vog_hf.scores.vog_scores import VoGScores

ROOT = Path(__file__).parents[2]
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


def test_the_loss_goes_first_where_it_is_as_good():
    """Within 0.01 AUROC of the best, the column that was best in all experiments is recommended."""
    columns = scores_with(loss=1.5)
    columns["vog"] = columns["loss"].copy()
    columns["vog"][np.flatnonzero(WRONG)[:1]] += 5.0  # a hair better
    found = recommended_ranking(columns, known_wrong=WRONG)
    assert (found.column, found.direction) == ("loss", "high")
    assert "within 0.01 of the best of 2 columns" in found.reason


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
    """Without enough known rows, or where no column finds them, the mean loss comes first, and the reason says both."""
    found = recommended_ranking(scores_with(vog=0.0, loss=0.0), known_wrong=known)
    assert (found.column, found.direction, found.basis) == ("loss", "high", "recorded experiments")
    assert why in found.reason
    assert found.reason.endswith(
        ", and in all recorded experiments the loss found planted wrong labels best, or within 0.07 AUROC of the best "
        "column"
    )


def test_rows_without_labels_and_scores_without_a_loss():
    """What the experiments measured is not claimed of rows without labels, nor of another column."""
    columns = scores_with(vog=0.0, loss=0.0) | {"label": np.full(N, -1)}
    found = recommended_ranking(columns)
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
    with pytest.raises(ConfigError, match="pass arrays by name"):
        recommended_ranking(7)


def test_the_loss_is_close_to_the_best_column_in_every_recorded_result():
    """In each seed of each record with AUROCs for wrong rows, no column of the training is further ahead than said."""
    compared = 0
    for path in (ROOT / "recipes").rglob("*.json"):
        for seed in json.loads(path.read_text()).get("seeds", []):
            areas = {n.rpartition(" ")[2]: v for n, v in seed["headline"].items() if n.startswith("AUROC ")}
            columns = seed.get("details", {}).get("columns", {})
            areas |= {name: figures[0] for name, figures in columns.items() if name in COLUMNS}
            if "loss" in areas:
                assert areas["loss"] >= max(max(area, 1 - area) for area in areas.values()) - RECORDED_GAP
                compared += 1
    assert compared >= 8
