import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, spearmanr

from vog_hf.errors import ConfigError, NonFiniteError
from vog_hf.evaluation import class_table, early_late_table, error_by_decile, rank_correlations

N = 53


def test_error_by_decile_of_a_hand_made_ranking():
    """Rows are sorted by score and cut into bins; a line says how many rows, from where to where, and their error."""
    scores = [0.9, 0.1, 0.5, 0.3, 0.7, 0.2]
    errors = [True, False, True, False, False, False]
    table = error_by_decile(scores, errors, bins=3)
    expected = pd.DataFrame(
        {
            "decile": [1, 2, 3],
            "rows": [2, 2, 2],
            "lowest": [0.1, 0.3, 0.7],
            "highest": [0.2, 0.5, 0.9],
            "error": [0.0, 0.5, 0.5],
        }
    )
    pd.testing.assert_frame_equal(table[list(expected.columns)], expected)
    assert list(table.columns) == [*expected.columns, "error_low", "error_high"]


def test_bins_cover_every_row_once_and_differ_by_at_most_one_row():
    """With 53 rows ten bins hold five or six each, and their errors average to the error of all."""
    rng = np.random.default_rng(0)
    scores, errors = rng.normal(size=N), rng.random(N) < 0.3
    table = error_by_decile(scores, errors)
    assert table["decile"].tolist() == list(range(1, 11))
    assert table["rows"].sum() == N
    assert set(table["rows"]) == {5, 6}
    assert (table["error"] * table["rows"]).sum() == pytest.approx(errors.sum())
    assert (table["lowest"].to_numpy()[1:] >= table["highest"].to_numpy()[:-1]).all()


@pytest.mark.parametrize("digits", [None, 1, 0])
def test_the_order_of_rows_does_not_matter(digits):
    """A shuffled table has the same deciles, also where many scores are equal."""
    rng = np.random.default_rng(0)
    scores, errors, order = rng.normal(size=N), rng.random(N) < 0.3, rng.permutation(N)
    scores = scores if digits is None else scores.round(digits)
    pd.testing.assert_frame_equal(error_by_decile(scores[order], errors[order]), error_by_decile(scores, errors))


def test_equal_scores_share_their_errors():
    """Where a cut parts rows of one score, both bins have their mean error; the sum over the bins stays."""
    table = error_by_decile([0.5] * 4, [False, False, True, True], bins=2)
    assert table["error"].tolist() == [0.5, 0.5]
    table = error_by_decile([0.1, 0.5, 0.5, 0.5, 0.5, 0.9], [True, False, False, True, False, True], bins=3)
    assert table["error"].tolist() == [0.625, 0.25, 0.625]


def test_fewer_rows_than_bins_are_refused():
    """A decile without rows has no error rate; as many rows as bins is enough."""
    with pytest.raises(ConfigError, match="at least one row per bin, got 9 rows for 10 bins"):
        error_by_decile(np.arange(9), np.zeros(9))
    with pytest.raises(ConfigError, match="bins must be at least 1, got 0"):
        error_by_decile(np.arange(9), np.zeros(9), bins=0)
    assert error_by_decile(np.arange(10), np.zeros(10))["rows"].tolist() == [1] * 10


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_column_and_row(bad):
    """A NaN would sort last and pass for the highest score."""
    with pytest.raises(NonFiniteError, match=r"scores must be finite, got (nan|inf) at row 1 \(1 rows\)"):
        error_by_decile([0.0, bad, 1.0], [0, 0, 1], bins=1)
    with pytest.raises(NonFiniteError, match="is_error must be finite"):
        error_by_decile([0.0, 2.0, 1.0], [0, bad, 1], bins=1)
    with pytest.raises(NonFiniteError, match="loss must be finite"):
        rank_correlations({"vog": [0.0, 1.0], "loss": [bad, 1.0]})


def test_columns_of_different_lengths_are_refused():
    """Columns are of the same rows, or they cannot be compared."""
    with pytest.raises(ConfigError, match=r"'scores': \(3,\), 'is_error': \(2,\)"):
        error_by_decile([0.0, 1.0, 2.0], [0, 1], bins=1)
    with pytest.raises(ConfigError, match=r"'vog': \(2, 1\)"):
        rank_correlations({"vog": [[0.0], [1.0]]})


@given(st.lists(st.booleans(), min_size=4, max_size=200), st.integers(1, 4))
def test_the_interval_of_a_bin_is_scipys_wilson_interval(errors, bins):
    """No error and nothing but errors among them, in bins of one row and of many."""
    table = error_by_decile(np.arange(len(errors)), errors, bins=bins)
    for line in table.itertuples():
        test = binomtest(round(line.error * line.rows), line.rows).proportion_ci(method="wilson")
        assert (line.error_low, line.error_high) == pytest.approx((test.low, test.high), abs=1e-12)


@pytest.mark.parametrize("n_rows", [1, 20, 53, 1234])
def test_an_interval_ends_exactly_at_0_or_1(n_rows):
    """Without an error it begins at 0, with nothing but errors it ends at 1: no rounding error is printed."""
    none, every = (error_by_decile(np.arange(n_rows), np.full(n_rows, value), bins=1) for value in (0, 1))
    assert none["error_low"].tolist() == [0.0]
    assert every["error_high"].tolist() == [1.0]
    assert 0 < none["error_high"][0] <= 1
    assert 0 <= every["error_low"][0] < 1


def test_the_interval_of_shares_covers_their_mean():
    """Shares have the interval of errors of the same mean, which is too wide: it covers 99 of 100 simulated cases."""
    rng = np.random.default_rng(0)
    shares = rng.beta(1, 3, size=(1000, N))
    tables = [error_by_decile(np.arange(N), row, bins=1) for row in shares]
    covered = np.mean([table["error_low"][0] <= 0.25 <= table["error_high"][0] for table in tables])
    assert covered > 0.99
    counted = error_by_decile(np.arange(N), np.arange(N) < 13, bins=1)
    same_mean = error_by_decile(np.arange(N), np.full(N, 13 / N), bins=1)
    pd.testing.assert_frame_equal(counted, same_mean)


def test_errors_are_shares():
    """What is not a share 0..1 of an error is refused, by row; both ends are accepted."""
    for bad in (-0.1, 1.5):
        with pytest.raises(ConfigError, match=f"true, false or a share 0..1, got {bad} at row 2; pass prediction !="):
            error_by_decile([1, 2, 3], [0, 1, bad], bins=1)
    assert error_by_decile([1, 2, 3], [0, 1, 0.5], bins=1)["error"].tolist() == [0.5]


def test_early_late_table_is_both_tables_side_by_side():
    """The error columns are those of `error_by_decile` for each score, under its name."""
    rng = np.random.default_rng(0)
    early, late, errors = rng.normal(size=N), rng.normal(size=N), rng.random(N) < 0.3
    table = early_late_table(early, late, errors, bins=4)
    ends = ("", "_low", "_high")
    assert list(table) == ["decile", "rows", *(f"error_{name}{end}" for name in ("early", "late") for end in ends)]
    for name, score in (("early", early), ("late", late)):
        expected = error_by_decile(score, errors, bins=4)
        assert table["rows"].tolist() == expected["rows"].tolist()
        for end in ends:
            assert table[f"error_{name}{end}"].tolist() == expected[f"error{end}"].tolist()
    with pytest.raises(NonFiniteError, match="late must be finite"):
        early_late_table([1.0, 2.0], [np.nan, 2.0], [0, 1], bins=1)
    with pytest.raises(ConfigError, match="one value per row"):
        early_late_table([1.0, 2.0], [2.0], [0, 1], bins=1)


def test_rank_correlations_are_scipys_spearman_with_ties():
    """Every pair is scipy's spearmanr, ties included; the table is symmetric with ones on its diagonal."""
    rng = np.random.default_rng(0)
    columns = {"vog": rng.normal(size=N), "loss": rng.normal(size=N).round(1), "forgetting": rng.integers(0, 3, N)}
    table = rank_correlations(columns)
    assert list(table.columns) == list(table.index) == list(columns)
    expected = spearmanr(np.stack(list(columns.values()), axis=1)).statistic
    np.testing.assert_allclose(table.to_numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(rank_correlations(pd.DataFrame(columns)).to_numpy(), expected, rtol=1e-12)


def test_only_ranks_matter_to_rank_correlations():
    """A rising function of a column changes nothing; a falling one changes the sign."""
    values = np.random.default_rng(0).normal(size=N)
    table = rank_correlations({"x": values, "exp": np.exp(values), "negative": -values})
    np.testing.assert_allclose(table.loc["x"], [1, 1, -1])


def test_a_column_of_equal_values_has_no_rank_correlation():
    """Where nothing is ranked, the answer is NaN and not 0."""
    table = rank_correlations({"x": [1.0, 2.0, 3.0], "flat": [5.0, 5.0, 5.0]})
    assert table["flat"].isna().all()
    assert table.loc["x", "x"] == pytest.approx(1)


def test_class_table_by_hand():
    """One line per class that occurs: rows, mean and population deviation of the score, error and confidence."""
    table = class_table(
        [2, 0, 2, -1, 0, -100],
        [1.0, 4.0, 3.0, 7.0, 4.0, 9.0],
        prediction=[2, 1, 0, 0, 0, 1],
        confidence=[0.5, 0.25, 0.75, 0.0, 0.75, 1.0],
    )
    expected = pd.DataFrame(
        {
            "class": [-1, 0, 2],
            "rows": [2, 2, 2],
            "vog_mean": [8.0, 4.0, 2.0],
            "vog_std": [1.0, 0.0, 1.0],
            "error": [np.nan, 0.5, 0.5],  # a row without a label is neither right nor wrong
            "confidence": [0.5, 0.5, 0.625],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


def test_class_table_has_only_the_columns_it_was_given():
    """Without predictions there is no error and without confidences no confidence."""
    assert list(class_table([0, 1], [1.0, 2.0]).columns) == ["class", "rows", "vog_mean", "vog_std"]
    with pytest.raises(ConfigError, match="one value per row"):
        class_table([0, 1], [1.0, 2.0], prediction=[0])
    with pytest.raises(NonFiniteError, match="vog must be finite"):
        class_table([0, 1], [1.0, np.nan])
