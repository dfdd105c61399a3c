"""The yield of a review: counts, limits and verdicts from decisions, and a reason wherever there is no number."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, hypergeom

from vog_hf.errors import ConfigError
from vog_hf.evaluation import Forecast, review_yield
from vog_hf.evaluation.yield_forecast import prediction_limits

ROOT = Path(__file__).parents[2]
N = 1_000


def queue(*parts, n=N):
    """Decisions over a queue: the parts in its order, then rows without a decision."""
    known = np.full(n, np.nan)
    decided = np.concatenate([np.asarray(part, dtype=float) for part in parts]) if parts else np.zeros(0)
    known[: len(decided)] = decided
    return known


def alternating(count, period):
    """Rows of which every ``period``-th is wrong."""
    return np.arange(count) % period == 0


@pytest.mark.parametrize(("wrong", "reviewed", "rows"), [(0, 20, 100), (3, 100, 100), (7, 20, 53), (20, 20, 9)])
def test_prediction_limits_are_those_of_thatcher(wrong, reviewed, rows):
    """Any number of wrong rows inside the limits explains the reviewed ones at 2.5 % on either side, none outside."""
    totals = np.arange(rows + 1) + wrong
    at_least = hypergeom.sf(wrong - 1, reviewed + rows, totals, reviewed)  # probability of this many wrong rows or more
    at_most = hypergeom.cdf(wrong, reviewed + rows, totals, reviewed)
    inside = np.flatnonzero((at_least > 0.025) & (at_most > 0.025))
    assert prediction_limits(wrong, reviewed, rows) == (inside[0], inside[-1])


def test_limits_of_many_rows_are_scaled_outward():
    """A forecast for more rows than are computed exactly is as wide, or a little wider."""
    low, high = prediction_limits(10, 200, 100_000)
    assert prediction_limits(10, 200, 1_000_000) == (10 * low, 10 * high)


def test_counts_and_next_rows():
    """Right, wrong and unsure rows are counted; the next rows lie after the last reviewed one, with an interval."""
    known = queue(alternating(120, 3))
    unsure = np.zeros(N, dtype=bool)
    unsure[[5, 7]] = True
    known[unsure] = np.nan
    found = review_yield(known, unsure=unsure)
    assert (found.rows, found.reviewed, found.wrong, found.unsure, found.depth) == (N, 118, 40, 2, 120)
    assert found.next.rows == 100
    assert found.next.low < found.next.expected < found.next.high
    assert str(found).startswith("118 reviewed, 40 wrong (2 unsure left out); the next 100 hold about ")
    assert review_yield(queue(alternating(960, 3))).next.rows == 40


def test_shares_by_place_have_exact_intervals_and_do_not_rise():
    """Ten groups with the interval of scipy; the fitted share is the isotonic one, equal groups pooled."""
    first, second = np.ones(50), alternating(50, 5)
    found = review_yield(queue(first, second))
    assert [(group.first, group.last, group.reviewed) for group in found.shares[:2]] == [(1, 10, 10), (11, 20, 10)]
    assert [group.wrong for group in found.shares] == [10] * 5 + [2] * 5
    interval = binomtest(2, 10).proportion_ci()
    assert (found.shares[9].low, found.shares[9].high) == (interval.low, interval.high)
    risen = review_yield(queue(second, first))
    assert [group.fitted for group in risen.shares] == pytest.approx([0.6] * 10)
    assert [group.share for group in risen.shares] == [0.2] * 5 + [1.0] * 5


def test_a_total_from_the_ranking_is_a_pair_of_limits():
    """At least the next rows' lower limit, at most if the share stays; where it rises there is no upper limit."""
    falling = review_yield(queue(np.ones(60), alternating(100, 4)))
    assert (falling.basis, falling.total.expected) == ("extrapolated from the ranking", None)
    assert falling.total.low == 85 + falling.next.low
    assert falling.total.high == 85 + prediction_limits(20, 80, N - 160)[1]
    assert f"at most {falling.total.high:,} if the share of wrong rows does not rise" in falling.sentences()[1]
    rising = review_yield(queue(np.zeros(60), alternating(100, 2)))
    assert (rising.total.low, rising.total.high) == (50 + rising.next.low, None)
    assert "no upper limit, because the share of wrong rows rises" in rising.sentences()[1]


def test_a_total_from_random_rows_is_unbiased():
    """Random rows below the reviewed part stand for all rows there; those inside it do not."""
    known, random = queue(alternating(100, 2)), np.zeros(N, dtype=bool)
    sample = np.arange(105, 105 + 40 * 20, 20)
    known[sample] = alternating(40, 8)
    random[sample] = random[10] = True
    found = review_yield(known, random=random)
    assert (found.basis, found.depth, found.random) == ("from random rows", 100, 40)
    assert found.rest == Forecast(860, 5 / 40 * 860, *prediction_limits(5, 40, 860))
    assert found.total == Forecast(N, 55 + 5 / 40 * 860, 55 + found.rest.low, 55 + found.rest.high)
    assert "from 40 random rows" in found.sentences()[1]


def test_a_total_holds_at_least_the_next_rows():
    """Random rows that are all right do not contradict what the ranking shows for the next rows."""
    known, random = queue(alternating(100, 2)), np.zeros(N, dtype=bool)
    sample = np.arange(105, 105 + 40 * 20, 20)
    known[sample] = 0
    random[sample] = True
    found = review_yield(known, random=random)
    low, high = prediction_limits(0, 40, 860)
    assert low == 0 < found.next.low
    assert found.rest == Forecast(860, min(found.next.expected, high), found.next.low, high)
    assert Forecast(9, 2.0, 1, 3).at_least(Forecast(5, 1.0, 0, 2)) == Forecast(9, 2.0, 1, 3)


def test_only_random_rows_give_a_total_and_no_next_rows():
    """Without reviewed rows at the top nothing is said about the next ones."""
    known, random = queue(), np.zeros(N, dtype=bool)
    random[::20] = True
    known[random] = alternating(50, 10)
    found = review_yield(known, random=random)
    assert (found.next, found.worth, found.total.expected) == (None, "unclear", 100)
    assert "only 0 rows from the top of this queue are reviewed (50 more lie further down)" in str(found)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        (queue(), "no row is reviewed yet"),
        (queue(n=0), "no row is in this queue; change its filters"),
        (queue(alternating(19, 2)), "only 19 rows from the top of this queue are reviewed, and 20 are needed"),
        (queue(alternating(30, 2), n=49), "this queue has only 49 rows, and 50 are needed"),
        (queue(np.ones(40)), "all 40 reviewed rows from the top are wrong: their share has yet to fall"),
        (
            queue(np.zeros(40)),
            "none of the 40 reviewed rows from the top is wrong; if they are no more frequent",
        ),
        (queue(alternating(30, 2))[::-1], "only 0 rows from the top of this queue are reviewed (30 more lie further"),
    ],
)
def test_without_a_basis_there_is_a_reason_and_no_number(known, reason):
    """Each names what is missing, and neither the next rows nor the total get a number."""
    found = review_yield(known)
    assert (found.next, found.rest, found.total, found.basis) == (None, None, None, "unclear")
    assert f"unclear how many the next rows hold, because {reason}" in str(found)
    assert "The total is unclear" in found.sentences()[1]


def test_the_nearest_queues_with_a_basis_get_numbers():
    """20 reviewed rows, 50 rows, one wrong or one right row are enough."""
    for known in (
        queue(alternating(20, 2)),
        queue(alternating(30, 2), n=50),
        queue(np.ones(39), [0]),
        queue(np.zeros(39), [1]),
    ):
        assert review_yield(known).next is not None


def test_only_unsure_decisions():
    """Decisions that say neither are counted, and give no number."""
    found = review_yield(queue(), unsure=np.arange(N) < 30)
    assert "0 reviewed, 0 wrong (30 unsure left out); unclear" in str(found)
    assert found.unclear == "all 30 decisions are unsure"


def test_a_queue_that_is_reviewed_whole_has_an_exact_total():
    """Even of a few rows, and with unsure ones, which stay out of it."""
    unsure = np.arange(30) == 29
    found = review_yield(np.where(unsure, np.nan, alternating(30, 3)), unsure=unsure)
    assert (found.basis, found.total, found.worth) == ("every row is reviewed", Forecast(29, 10, 10, 10), "no")
    assert found.sentences()[1] == "In total 10 of 29 rows are wrong: every row is reviewed."


def test_skipped_rows_belong_to_the_rest():
    """A few rows without a decision inside the reviewed part may be wrong or not; many of them end that part."""
    known = queue(alternating(200, 4))
    whole = review_yield(known)
    known[[1, 2, 3, 9]] = np.nan
    skipped = review_yield(known)
    assert (skipped.depth, skipped.rest.rows) == (200, whole.rest.rows + 4)
    assert skipped.rest.low <= whole.rest.low
    assert skipped.total.rows == N
    known[100:199] = np.nan
    assert review_yield(known).depth == 100
    ended = review_yield(queue(alternating(60, 4), [np.nan] * 4, n=64))
    assert (ended.unclear, ended.rest.rows) == ("", 4)
    left = queue(alternating(64, 4), n=64)
    left[[1, 2]] = np.nan
    found = review_yield(left)
    assert "only rows that were skipped" in found.unclear
    assert (found.rest.low, found.rest.high, found.total.low, found.total.high) == (0, 2, 16, 18)


@pytest.mark.parametrize(("worth_at", "worth"), [(0.02, "yes"), (0.25, "likely"), (0.5, "unlikely"), (0.9, "no")])
def test_going_on_is_judged_by_the_threshold(worth_at, worth):
    """Certain where the whole interval of the next rows lies on one side of it, else by their expected number."""
    found = review_yield(queue(alternating(300, 3)), worth_at=worth_at)
    assert found.worth == worth
    assert f"(threshold: {100 * worth_at:g} % of the next rows wrong)" in found.sentences()[2]


def test_going_on_where_all_are_wrong_or_none_is():
    """All wrong: continue. None of many: likely not worth it. None of few: nothing is said."""
    assert review_yield(queue(np.ones(40))).worth == "likely"
    assert review_yield(queue(np.zeros(300))).worth == "unlikely"
    assert review_yield(queue(np.zeros(30))).worth == "unclear"


def test_the_yield_is_json_and_the_same_each_time():
    """Every figure and the words; two estimates of the same decisions are equal."""
    known = queue(alternating(120, 3))
    found = review_yield(known)
    assert found == review_yield(known)
    written = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (written["reviewed"], written["next"]["rows"], written["shares"][0]["first"]) == (120, 100, 1)
    assert written["summary"] == " ".join(found.sentences())


def test_invalid_arrays_are_refused():
    """Another value, another length, a row that is both known and unsure, an invalid threshold."""
    known = queue(alternating(30, 2))
    with pytest.raises(ConfigError, match="wrong must be true, false or NaN"):
        review_yield(known * 2)
    with pytest.raises(ConfigError, match="random must have one value for each of 1,000 rows"):
        review_yield(known, random=[True])
    with pytest.raises(ConfigError, match="unsure rows are neither right nor wrong, got 1 at place 1"):
        review_yield(known, unsure=np.arange(N) < 1)
    with pytest.raises(ConfigError, match="worth_at"):
        review_yield(known, worth_at=5)
    with pytest.raises(ConfigError, match="next_rows"):
        review_yield(known, next_rows=0)


def program():
    """The benchmark that simulates reviews."""
    specification = importlib.util.spec_from_file_location("simulated_reviews", ROOT / "benchmarks/review_yield.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_intervals_hold_the_truth_in_simulated_reviews():
    """In 90 % of the reviews of each ranking with a claim, over the rates of wrong rows (of 18 x 200 in the docs)."""
    simulated = program()
    held: dict[tuple[str, str], list[float]] = {}
    for ranking in simulated.RANKINGS:
        for rate in simulated.RATES:
            for name, share in simulated.simulate(ranking, rate, 20, 2_000).held_to.items():
                held.setdefault((ranking, name), []).append(share)
    means = {key: np.nanmean(shares) for key, shares in held.items()}
    assert len(means) == 23
    assert all(share >= 0.9 for share in means.values()), means
