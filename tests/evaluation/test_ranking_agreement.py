import tracemalloc
from itertools import pairwise, permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from vog_hf.errors import ConfigError, NonFiniteError
from vog_hf.evaluation import agreement_table, merge_rankings, rank_agreement, ranking_stability, stability_in_words

N = 53
OVERLAPS = [f"overlap_{end}_{percent}" for end in ("top", "bottom") for percent in (1, 5, 10)]


def overlap(a, b, count):
    """How many of the ``count`` highest rows are the same: sets, without ties."""
    first_of_a, first_of_b = (set(sorted(range(len(x)), key=lambda row: -x[row])[:count]) for x in (a, b))
    return len(first_of_a & first_of_b) / count


def overlap_over_all_orders(a, b, count):
    """The same where ties are broken in every possible way, in each column by itself: the mean."""

    def firsts(values):
        orders = permutations(range(len(values)))
        return [set(o[:count]) for o in orders if all(values[i] >= values[j] for i, j in pairwise(o))]

    return np.mean([len(x & y) / count for x in firsts(a) for y in firsts(b)])


def test_rank_agreement_is_scipys_spearman_and_overlaps_of_sets():
    """Ten percent of 53 rows are six, five percent three, one percent one: rounded up."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=N)
    b = a + rng.normal(size=N)
    found = rank_agreement(a, b)
    assert list(found.index) == ["spearman", *OVERLAPS]
    expected = [spearmanr(a, b).statistic]
    expected += [overlap(sign * a, sign * b, count) for sign in (1, -1) for count in (1, 3, 6)]
    assert found.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 3


def test_rounding_up_is_of_the_share_that_was_meant():
    """0.07 * 100 is 7.000000000000001 in floats, and still seven rows; a share of 1 is every row."""
    a, b = np.random.default_rng(1).normal(size=(2, 100))
    b[np.argsort(a)[-7:]] += 10
    assert rank_agreement(a, b, top=[0.07])["overlap_top_7"] == 1 != overlap(a, b, 8)
    assert rank_agreement(a, b, top=[1, 1e-9]).tolist()[1:] == [1, overlap(a, b, 1), 1, overlap(-a, -b, 1)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=5), st.integers(1, 5))
def test_ties_at_the_cut_count_as_the_mean_over_all_ways_to_break_them(rows, count):
    """Against every order of the tied rows, and Spearman against scipy."""
    count = min(count, len(rows))
    a, b = np.array(rows).T
    found = rank_agreement(a, b, top=[count / len(rows)])
    expected = [overlap_over_all_orders(sign * a, sign * b, count) for sign in (1, -1)]
    assert found.tolist()[1:] == pytest.approx(expected)
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert found["spearman"] == pytest.approx(spearmanr(a, b).statistic)


def test_equal_scores_agree_by_chance_alone():
    """Columns that rank nothing have no Spearman and the overlap of two random choices, whatever the order of rows."""
    found = rank_agreement(np.ones(20), np.ones(20))
    assert np.isnan(found["spearman"])
    assert found[OVERLAPS].tolist() == pytest.approx([0.05, 0.05, 0.1] * 2)


def test_rank_agreement_refuses_what_cannot_be_compared():
    """Values that are not finite, other lengths, no rows, and shares out of range; the nearest that can be is."""
    with pytest.raises(NonFiniteError, match="b must be finite, got nan at row 1"):
        rank_agreement([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ConfigError, match="one value per row"):
        rank_agreement([1.0, 2.0], [1.0])
    for rows, top in ((0, [0.1]), (2, [0]), (2, [1.1])):
        with pytest.raises(ConfigError, match=f"above 0 and at most 1, got {rows} rows, top="):
            rank_agreement(np.arange(rows), np.arange(rows), top=top)
    assert rank_agreement([1.0], [1.0], top=[1]).tolist()[1:] == [1, 1]


def test_ranking_stability_by_the_definition():
    """Line k compares the ranking of k snapshots with that of k - 1 and with the last."""
    running = np.random.default_rng(0).normal(size=(N, 5)).cumsum(axis=1)
    table = ranking_stability(running)
    assert list(table) == ["snapshots", *(f"{n}_{to}" for to in ("previous", "final") for n in ("spearman", *OVERLAPS))]
    assert table["snapshots"].tolist() == [2, 3, 4, 5]
    for line, k in enumerate((2, 3, 4, 5)):
        for to, other in (("previous", k - 1), ("final", 5)):
            found = table.filter(regex=f"_{to}$").iloc[line]
            if (to, k) == ("previous", 2):
                assert found.isna().all()
            else:
                expected = rank_agreement(running[:, k - 1], running[:, other - 1])
                assert found.tolist() == pytest.approx(expected.tolist())
    assert table.filter(regex="_final$").iloc[-1].tolist() == pytest.approx([1] * 7)


def test_ranking_stability_reads_a_memory_map_column_by_column(tmp_path):
    """What is held at once is a few columns, not rows x snapshots."""
    rows, snapshots = 20_000, 60
    running = np.lib.format.open_memmap(tmp_path / "vog.npy", "w+", dtype=np.float32, shape=(rows, snapshots))
    running[:] = np.random.default_rng(0).random((rows, snapshots))
    mapped = np.load(tmp_path / "vog.npy", mmap_mode="r")
    ranking_stability(mapped[:100])
    tracemalloc.start()
    ranking_stability(mapped)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes


def test_ranking_stability_refuses_what_has_no_rankings():
    """One snapshot has no variance; a value that is not finite is named with its row and snapshot."""
    for shape in ((N, 1), (N,), (0, 3)):
        with pytest.raises(ConfigError, match=r"\[rows, snapshots\] of at least one row and two snapshots, got shape"):
            ranking_stability(np.zeros(shape))
    running = np.random.default_rng(0).random((N, 3))
    running[7, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"got inf at row 7 after 2 snapshots \(1 rows\)"):
        ranking_stability(running)
    assert len(ranking_stability(np.random.default_rng(0).random((N, 2)))) == 1


def test_stability_in_words_says_what_was_measured():
    """The numbers of the last step, and an outlook that follows from them."""
    rng = np.random.default_rng(0)
    values = rng.random(1000)
    settled = np.stack([rng.random(1000), values, values + 0.001 * rng.random(1000)], axis=1)
    table = ranking_stability(settled)
    words = stability_in_words(table)
    assert words.startswith("The last of 3 snapshots left the ranking by VoG almost unchanged (Spearman 1.000 ")
    assert words.endswith("% of its highest 10 % kept): one more would likely change it little.")
    moving = stability_in_words(ranking_stability(settled[:, [1, 1, 0]]))
    assert moving.startswith("The last of 3 snapshots changed the ranking by VoG (Spearman ")
    assert moving.endswith("one more would likely change it further.")
    kept = table["overlap_top_10_previous"].iloc[-1]
    assert f"{100 * kept:.0f} % of its highest" in words
    # either number alone keeps it from being called settled
    for name in ("spearman_previous", "overlap_top_10_previous"):
        assert "change it further" in stability_in_words(table.assign(**{name: 0.5}))
    assert "cannot be estimated" in stability_in_words(ranking_stability(settled[:, :2]))
    assert "All scores are equal" in stability_in_words(ranking_stability(np.zeros((N, 3))))


def test_merge_rankings_by_hand():
    """Percentiles of average ranks, their mean and their population deviation, a line per row."""
    table = merge_rankings({"first": [0.1, 0.3, 0.3, 0.9], "second": [4, 3, 2, 1]})
    expected = pd.DataFrame(
        {
            "first": [12.5, 50.0, 50.0, 87.5],
            "second": [87.5, 62.5, 37.5, 12.5],
            "mean_rank": [50.0, 56.25, 43.75, 50.0],
            "disagreement": [37.5, 6.25, 6.25, 37.5],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


def test_merging_equal_rankings_changes_none():
    """Rising functions of a column are the same ranking: no disagreement, and the mean is the percentile."""
    vog = np.random.default_rng(0).random(N)
    table = merge_rankings({"a": vog, "b": np.exp(vog), "c": 3 * vog})
    assert table["disagreement"].to_numpy() == pytest.approx(np.zeros(N), abs=1e-12)
    assert table["mean_rank"].to_numpy() == pytest.approx((np.argsort(np.argsort(vog)) + 0.5) * 100 / N)


def test_agreement_table_has_a_line_per_pair():
    """Pairs in the order of the runs, each with the values of `rank_agreement`."""
    runs = dict(zip("xyz", np.random.default_rng(0).normal(size=(3, N)), strict=True))
    table = agreement_table(runs)
    assert table[["first", "second"]].to_numpy().tolist() == [["x", "y"], ["x", "z"], ["y", "z"]]
    for line in table.to_dict("records"):
        expected = rank_agreement(runs[line.pop("first")], runs[line.pop("second")])
        assert line == pytest.approx(expected.to_dict())


def test_runs_that_cannot_be_merged_are_refused():
    """One run, runs of other lengths, values that are not finite, and a name that the result needs."""
    vog = [0.1, 0.2]
    for function in (merge_rankings, agreement_table):
        with pytest.raises(ConfigError, match="at least two runs over at least one row are needed, got 1 over 2 rows"):
            function({"a": vog})
        with pytest.raises(ConfigError, match="got 2 over 0 rows"):
            function({"a": [], "b": []})
        with pytest.raises(ConfigError, match="one value per row"):
            function({"a": vog, "b": [0.1]})
        with pytest.raises(NonFiniteError, match="b must be finite"):
            function({"a": vog, "b": [0.1, np.nan]})
        assert len(function({"a": vog, "b": vog})) > 0
    with pytest.raises(ConfigError, match="no run may be named 'mean_rank'"):
        merge_rankings({"a": vog, "mean_rank": vog})
