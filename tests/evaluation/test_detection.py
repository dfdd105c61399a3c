import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from vog_hf.errors import ConfigError, NonFiniteError
from vog_hf.evaluation import auroc, detection_table

N = 53


def draw(seed=0):
    """Columns with and without ties, and positive rows that some of them find."""
    rng = np.random.default_rng(seed)
    positive = rng.random(N) < 0.3
    columns = {
        "loss": positive + rng.normal(size=N),
        "forgetting": rng.integers(0, 3, N) + positive,
        "confidence": -1.5 * positive + rng.normal(size=N),
    }
    return columns, positive


def precision_over_all_orders(values, positive, k):
    """Share of positive rows among the first k where ties are broken in every possible way: the mean."""
    orders = [
        order for order in permutations(range(len(values))) if all(values[i] >= values[j] for i, j in pairwise(order))
    ]
    return np.mean([np.mean([positive[row] for row in order[:k]]) for order in orders])


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12))
def test_auroc_is_the_share_of_pairs_in_the_right_order(rows):
    """Pair by pair, a tie counts half; NaN where there is no pair."""
    pairs = [(a > b) + (a == b) / 2 for a, wrong in rows for b, also in rows if wrong and not also]
    found = auroc([value for value, _ in rows], [wrong for _, wrong in rows])
    assert found == pytest.approx(np.mean(pairs)) if pairs else math.isnan(found)


def test_auroc_is_scikit_learns():
    """With ties and without; only ranks matter; equal scores give 0.5."""
    columns, positive = draw()
    for values in columns.values():
        assert auroc(values, positive) == pytest.approx(roc_auc_score(positive, values))
        assert auroc(np.exp(values), positive) == pytest.approx(1 - auroc(-values, positive))
    assert auroc(np.ones(N), positive) == 0.5


def test_auroc_refuses_what_is_no_score_or_no_class():
    """NaN, other lengths, no rows, and labels that are neither true nor false; 0 and 1 are accepted."""
    with pytest.raises(NonFiniteError, match="score must be finite"):
        auroc([0.0, np.nan], [True, False])
    with pytest.raises(ConfigError, match="one value per row"):
        auroc([0.0, 1.0], [True])
    with pytest.raises(ConfigError, match=r"is_positive must be true or false .* got 0.5 \(1 rows\); pass a compar"):
        auroc([0.0, 1.0], [1, 0.5])
    with pytest.raises(ConfigError, match="got no rows"):
        auroc([], [])
    assert auroc([0.0, 1.0], [0.0, 1.0]) == 1.0


def test_detection_table_is_scikit_learns_in_the_better_direction():
    """A line per column in the order given, then the random one; low columns are ranked from the lowest value up."""
    columns, positive = draw()
    table = detection_table(columns, positive)
    n_positive = int(positive.sum())
    at = [f"precision_at_{n_positive}", f"recall_at_{n_positive}"]
    assert list(table) == ["column", "direction", "auroc", "average_precision", *at]
    assert table["column"].tolist() == [*columns, "random"]
    assert table["direction"].tolist()[:3] == ["high", "high", "low"]
    for line in table.to_dict("records")[:3]:
        ranked = columns[line["column"]] * (1 if line["direction"] == "high" else -1)
        assert line["auroc"] == pytest.approx(roc_auc_score(positive, ranked))
        assert line["average_precision"] == pytest.approx(average_precision_score(positive, ranked))
        assert line[at[0]] == pytest.approx(line[at[1]])  # as many rows as positive ones
    assert (table["auroc"] >= 0.5).all()
    first = np.argsort(-columns["loss"])[:n_positive]
    assert table[at[0]][0] == pytest.approx(positive[first].mean())


def test_k_are_counts_or_shares_of_the_rows():
    """A share is rounded up to rows; precision is over the rows looked at, recall over the positive ones."""
    columns, positive = draw()
    table = detection_table({"loss": columns["loss"]}, positive, ks=[1, 10, 0.1, N])
    order = np.argsort(-columns["loss"])
    for name, count in (("1", 1), ("10", 10), ("0.1", 6), (str(N), N)):
        hits = positive[order[:count]].sum()
        assert table[f"precision_at_{name}"][0] == pytest.approx(hits / count)
        assert table[f"recall_at_{name}"][0] == pytest.approx(hits / positive.sum())
    for bad in (0, N + 1, 1.0, 0.0, -0.1, True, 2.5):
        with pytest.raises(ConfigError, match=f"whole number 1..{N} of rows or a fraction between 0 and 1, got"):
            detection_table(columns, positive, ks=[bad])


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=5), st.integers(1, 5))
def test_ties_at_k_are_shared(rows, k):
    """Precision is the mean over every order of the tied rows, in the direction that the table names."""
    values, positive = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if positive.all() or not positive.any():
        return
    k = min(k, len(rows))
    line = detection_table({"x": values}, positive, ks=[k]).iloc[0]
    ranked = values if line["direction"] == "high" else -values
    expected = precision_over_all_orders(ranked, positive, k)
    assert line[f"precision_at_{k}"] == pytest.approx(expected)
    assert line[f"recall_at_{k}"] == pytest.approx(expected * k / positive.sum())


def test_equal_scores_find_what_chance_finds():
    """AUROC 0.5, and precision and average precision as large as the share of positive rows."""
    _, positive = draw()
    line = detection_table({"x": np.ones(N)}, positive, ks=[7]).iloc[0]
    assert (line["direction"], line["auroc"]) == ("high", 0.5)
    assert [line["precision_at_7"], line["average_precision"]] == pytest.approx([positive.mean()] * 2)


def test_the_random_column_is_seeded():
    """The same seed gives the same line, another one another, and the other lines stay."""
    columns, positive = draw()
    first, again, other = (detection_table(columns, positive, seed=seed) for seed in (0, 0, 1))
    assert first.equals(again)
    assert first.iloc[:3].equals(other.iloc[:3])
    assert not first.iloc[3].equals(other.iloc[3])


def test_detection_needs_both_kinds_of_rows():
    """Without a positive row, or without another one, nothing can be told apart; names of the table are refused."""
    columns, positive = draw()
    for one_kind, count in ((np.zeros(N), 0), (np.ones(N), N)):
        with pytest.raises(ConfigError, match=f"positive rows and others are needed .* got {count} positive of {N}"):
            detection_table(columns, one_kind)
    for name in ("random", "is_positive"):
        with pytest.raises(ConfigError, match=f"no column may be named '{name}'"):
            detection_table({name: columns["loss"]}, positive)
    with pytest.raises(NonFiniteError, match="loss must be finite"):
        detection_table({"loss": np.full(N, np.nan)}, positive)
    with pytest.raises(ConfigError, match="one value per row"):
        detection_table({"loss": columns["loss"][1:]}, positive)
