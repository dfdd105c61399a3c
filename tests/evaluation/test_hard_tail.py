import json
from itertools import pairwise, permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, norm, rankdata, spearmanr
from sklearn.metrics import roc_auc_score

from vog_hf.errors import ConfigError
from vog_hf.evaluation import hard_tail
from vog_hf.evaluation.bootstrap import RankedRows, TiedOrder, simultaneous_intervals, verdict
from vog_hf.scores.vog_scores import VoGScores

N = 2000

SHAPES = {  # difficulty 0..1 over the quantile of the ranking
    "rising": lambda q: q,
    "falling": lambda q: 1 - q,
    "U": lambda q: 4 * (q - 0.5) ** 2,
    "inverted U": lambda q: 1 - 4 * (q - 0.5) ** 2,
    "saturating": lambda q: np.minimum(1, 2 * q),
    "flat": lambda q: np.full(len(q), 0.5),
}
HARD = {"rising": "high", "falling": "low", "U": "both", "inverted U": "unclear", "saturating": "high"}


def run_of(errors="flat", loss="flat", *, n=N, seed=0):
    """The scores of a run: errors and losses that depend on the ranking as said; three classes, rows in any order."""
    rng = np.random.default_rng(seed)
    q = (rng.permutation(n) + 0.5) / n
    label = rng.integers(0, 3, n)
    wrong = rng.random(n) < 0.1 + 0.4 * SHAPES[errors](q)
    return {
        "vog_class_normalized": np.log(q / (1 - q)),
        "label": label,
        "prediction": np.where(wrong, (label + 1) % 3, label),
        "loss": SHAPES[loss](q) + rng.exponential(size=n),
    }


def without(columns, *names):
    """All columns but these."""
    return {name: values for name, values in columns.items() if name not in names}


def parts_of(values, measure):
    """Means of the lowest 20 % (rounded up), of the middle and of the highest 20 % of rows without ties."""
    ranked = measure[np.argsort(values)]
    count = int(np.ceil(len(ranked) / 5))
    return [part.mean() for part in (ranked[:count], ranked[count:-count], ranked[-count:])]


@pytest.mark.parametrize("measured", ["errors", "loss", "both measures"])
@pytest.mark.parametrize("shape", HARD)
def test_the_hard_tail_of_a_run_whose_tail_is_known(shape, measured):
    """By errors alone, by the loss alone (no error, a regression), and by both, each shape has its verdict."""
    columns = run_of(shape, shape)
    if measured != "both measures":
        columns = without(columns, *(("loss",) if measured == "errors" else ("label", "prediction")))
    found = hard_tail(columns, n_resamples=200)
    assert found.tail == HARD[shape]
    assert found.column == "vog_class_normalized"
    assert {name for name, value in found.measures.items() if value is not None} == {
        "errors": {"misclassified"},
        "loss": {"loss"},
        "both measures": {"misclassified", "loss"},
    }[measured]


NOISE = {  # runs in which nothing depends on the ranking: what is known of difficulty, and how often rows are wrong
    "errors and a loss": (0.3, ()),
    "few errors and a loss": (0.1, ()),
    "errors alone": (0.3, ("loss",)),
    "most rows wrong": (0.85, ()),
    "a loss alone": (0.0, ("label", "prediction")),
}


def unclear_in_noise(kind, *, runs, n, n_resamples):
    """How many of some runs of pure noise are called unclear, and without strength."""
    share, missing = NOISE[kind]
    count = 0
    for seed in range(runs):
        rng = np.random.default_rng([7, seed])
        label, wrong = rng.integers(0, 4, n), rng.random(n) < share
        columns = {
            "vog": rng.lognormal(size=n),
            "label": label,
            "prediction": np.where(wrong, (label + 1) % 4, label),
            "loss": rng.exponential(size=n) + wrong,
        }
        found = hard_tail(without(columns, *missing), n_resamples=n_resamples, seed=seed)
        count += (found.tail, found.strength) == ("unclear", "none")
        assert found.headline.startswith("It is unclear whether VoG is a guide") == (found.tail == "unclear")
    return count


def test_noise_is_called_unclear():
    """Where nothing depends on the ranking, hardly a run has a hard tail: 40 small runs of errors with a loss."""
    assert unclear_in_noise("errors and a loss", runs=40, n=80, n_resamples=100) >= 38


@pytest.mark.slow
@pytest.mark.parametrize("n", [60, 300])
@pytest.mark.parametrize("kind", NOISE)
def test_noise_is_called_unclear_in_95_of_100_runs(kind, n):
    """By errors, by the loss, by both, and with few rows of one kind: the correction keeps its promise."""
    assert unclear_in_noise(kind, runs=100, n=n, n_resamples=300) >= 95


@pytest.mark.parametrize(
    ("association", "low", "high", "expected"),
    [
        ((0.6, 0.7), False, True, "high"),
        ((0.6, 0.7), False, False, "high"),
        ((0.6, 0.7), True, True, "both"),
        ((0.6, 0.7), True, False, "unclear"),
        ((0.3, 0.4), True, False, "low"),
        ((0.3, 0.4), False, False, "low"),
        ((0.3, 0.4), True, True, "both"),
        ((0.3, 0.4), False, True, "unclear"),
        ((0.4, 0.6), False, False, "unclear"),
        ((0.4, 0.6), True, False, "low"),
        ((0.4, 0.6), False, True, "high"),
        ((0.4, 0.6), True, True, "both"),
        ((0.5, 0.6), False, False, "unclear"),  # touching chance is not beyond it
        ((0.4, 0.5), False, False, "unclear"),
    ],
)
def test_verdict_of_one_measure(association, low, high, expected):
    """Every combination of the association and of what lies above the middle."""
    low, high = ((0.01, 0.1) if is_hard else (-0.05, 0.05) for is_hard in (low, high))
    assert verdict(association, 0.5, low, high) == expected
    shifted = (association[0] - 0.5, association[1] - 0.5)
    assert verdict(shifted, 0.0, low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        ((-0.05, 0.05), (-0.2, -0.1), ["unclear", "low"]),  # the high tail lies below the middle
        ((-0.2, -0.1), (-0.05, 0.05), ["high", "unclear"]),
        ((-0.2, -0.1), (-0.2, -0.1), ["unclear", "unclear"]),
        ((-0.05, 0.0), (-0.05, 0.0), ["high", "low"]),  # touching it is not below it
    ],
)
def test_a_tail_below_the_middle_is_not_the_hard_one(low, high, expected):
    """Whatever the association says, with high values and with low ones."""
    assert [verdict(association, 0.5, low, high) for association in ((0.6, 0.7), (0.3, 0.4))] == expected


def test_most_errors_in_the_middle_are_no_hard_tail():
    """Of 10 % errors in the low tail, 50 % in the middle and 20 % in the high tail the AUROC is above chance."""
    q = (np.arange(5000) + 0.5) / 5000
    wrong = np.random.default_rng(0).random(5000) < np.select([q < 0.2, q < 0.8], [0.1, 0.5], 0.2)
    found = hard_tail({"vog": q, "label": np.zeros(5000, int), "prediction": wrong.astype(int)}, n_resamples=200)
    assert found.measures["misclassified"].association_interval[0] > 0.5
    assert found.tail == "unclear"


@pytest.mark.parametrize(
    ("errors", "loss", "expected", "words"),
    [
        (
            "rising",
            "falling",
            "unclear",
            "errors: the highest values; by the loss: the lowest values, a contradiction.",
        ),
        (
            "rising",
            "U",
            "high",
            "errors: the highest values; by the loss: both tails, which says otherwise; the errors",
        ),
        (
            "U",
            "falling",
            "both",
            "errors: both tails; by the loss: the lowest values, which says otherwise; the errors",
        ),
        ("inverted U", "falling", "low", "by the errors: neither tail; by the loss: the lowest values."),
        ("rising", "inverted U", "high", "by the errors: the highest values; by the loss: neither tail."),
        ("falling", "falling", "low", "by the errors and by the loss: the lowest values."),
        ("inverted U", "inverted U", "unclear", "by the errors and by the loss: neither tail."),
    ],
)
def test_the_two_measures_together(errors, loss, expected, words):
    """One that singles out a tail goes first, then errors; opposite tails contradict each other. The words say so."""
    found = hard_tail(run_of(errors, loss, n=4000), n_resamples=200)
    assert found.tail == expected
    assert words in found.evidence


def test_the_estimates_are_those_of_scipy_and_scikit_learn():
    """AUROC, Spearman and the means of the three parts, of rows without ties."""
    columns = run_of("U", "rising", n=53)
    found = hard_tail(columns, n_resamples=40)
    wrong, vog = columns["prediction"] != columns["label"], columns["vog_class_normalized"]
    errors, loss = found.measures["misclassified"], found.measures["loss"]
    assert errors.association == pytest.approx(roc_auc_score(wrong, vog))
    assert loss.association == pytest.approx(spearmanr(columns["loss"], vog).statistic)
    percentile = 100 * (rankdata(columns["loss"]) - 0.5) / 53
    for measure, values in ((errors, wrong), (loss, percentile)):
        assert [measure.low, measure.middle, measure.high] == pytest.approx(parts_of(vog, values))
        assert measure.low_excess == measure.low - measure.middle
        assert measure.high_excess == measure.high - measure.middle
        assert measure.rows == 53


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2), st.integers(0, 3)), min_size=2, max_size=9
    ).filter(lambda rows: sum(row[3] for row in rows) >= 4)
)
def test_a_row_that_counts_twice_is_two_rows(rows):
    """Statistics with weights are those of scipy and scikit-learn on rows repeated, ties and all."""
    value, wrong, loss, weights = (np.array(column) for column in zip(*sorted(rows), strict=True))
    ranked = RankedRows(TiedOrder(value.astype(float)), wrong.astype(float), TiedOrder(loss.astype(float)))
    found = ranked.statistics(weights.astype(float))
    value, wrong, loss = (np.repeat(column, weights) for column in (value, wrong, loss))
    area = roc_auc_score(wrong, value) if 0 < wrong.sum() < len(wrong) else 0.5
    both_vary = len(set(value)) > 1 and len(set(loss)) > 1
    spearman = spearmanr(value, loss).statistic if both_vary else 0
    assert found["misclassified"][0] == pytest.approx(area)
    assert found["loss"][0] == pytest.approx(spearman, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.integers(0, 2)), min_size=5, max_size=6))
def test_ties_at_a_cut_share_the_places(rows):
    """The means of the three parts are those over every order of the tied rows."""
    value, wrong, loss = (np.array(column) for column in zip(*sorted(rows), strict=True))
    ranked = RankedRows(TiedOrder(value.astype(float)), wrong.astype(float), TiedOrder(loss.astype(float)))
    found = ranked.statistics(np.ones(len(rows)))
    percentile = 100 * (rankdata(loss) - 0.5) / len(rows)
    orders = [
        np.array(order)
        for order in permutations(range(len(rows)))
        if all(value[i] <= value[j] for i, j in pairwise(order))
    ]
    for name, measure in (("misclassified", wrong), ("loss", percentile)):
        expected = np.mean([parts_of(np.arange(len(rows)), measure[order]) for order in orders], axis=0)
        assert found[name][1:] == pytest.approx(expected)


def test_the_standard_errors_are_those_of_scipys_bootstrap():
    """All intervals are one multiple of the standard errors that scipy finds, larger than that of a single interval."""
    columns = run_of("rising", "U", n=120)
    found = hard_tail(columns, n_resamples=600)
    wrong, vog = (columns["prediction"] != columns["label"]).astype(float), columns["vog_class_normalized"]

    def excess(measure, end):
        def statistic(rows):
            values = measure[rows] if measure is wrong else 100 * (rankdata(measure[rows]) - 0.5) / len(rows)
            parts = parts_of(vog[rows], values)
            return parts[end] - parts[1]

        return statistic

    def error(statistic):
        return bootstrap(
            (np.arange(120),),
            statistic,
            method="percentile",
            n_resamples=150,
            vectorized=False,
            random_state=np.random.default_rng(1),
        ).standard_error

    errors, loss = found.measures["misclassified"], found.measures["loss"]
    pairs = [
        (errors.association_interval, error(lambda rows: roc_auc_score(wrong[rows], vog[rows]))),
        (loss.association_interval, error(lambda rows: spearmanr(columns["loss"][rows], vog[rows]).statistic)),
    ]
    for measure, values in ((errors, wrong), (loss, columns["loss"])):
        pairs += [(measure.low_interval, error(excess(values, 0))), (measure.high_interval, error(excess(values, 2)))]
    multiples = [(end - start) / 2 / of for (start, end), of in pairs]
    assert multiples == pytest.approx([np.mean(multiples)] * len(pairs), rel=0.25)
    assert 2.6 < np.mean(multiples) < 3.6


def test_intervals_hold_together():
    """The multiple is the normal distribution's, for independent statistics and for equal ones, which are like one."""
    independent = np.random.default_rng(0).normal(size=(20_000, 6))
    half = np.diff(simultaneous_intervals(np.zeros(6), independent)).ravel() / 2
    assert half == pytest.approx(norm.isf((1 - 0.99 ** (1 / 6)) / 2), abs=0.1)
    equal = np.repeat(independent[:, :1], 6, axis=1) * [1, 2, 3, 4, 5, 0]
    found = simultaneous_intervals(np.ones(6), 1 + equal)
    assert np.diff(found).ravel() / 2 == pytest.approx(norm.isf(0.005) * np.array([1, 2, 3, 4, 5, 0]), rel=0.05)
    assert found.mean(axis=1) == pytest.approx(1)


def test_the_intervals_cover_the_truth_together():
    """In at least 28 of 30 simulated runs of 200 rows every interval has the value of a run of 100,000 rows."""
    truth = hard_tail(run_of("rising", "U", n=100_000), n_resamples=40).measures
    names = {"association": "association_interval", "low_excess": "low_interval", "high_excess": "high_interval"}
    covered = 0
    for seed in range(1, 31):
        found = hard_tail(run_of("rising", "U", n=200, seed=seed), n_resamples=100).measures
        covered += all(
            getattr(found[measure], interval)[0] <= getattr(of, name) <= getattr(found[measure], interval)[1]
            for measure, of in truth.items()
            for name, interval in names.items()
        )
    assert covered >= 28


def test_the_loss_decides_for_a_memorized_run():
    """Without an error, with fewer than ten, or with fewer than ten right rows, errors say nothing; words say why."""
    columns = run_of("flat", "rising")
    memorized = columns | {"prediction": columns["label"]}
    found = hard_tail(memorized, n_resamples=100)
    assert (found.tail, found.measures["misclassified"]) == ("high", None)
    assert found.evidence.startswith("All 2,000 rows are predicted as labeled (the model may have memorized them).")
    assert found.evidence.endswith("Singled out by the loss: the highest values.")
    for count, tells in ((9, False), (10, True)):
        few = columns["label"].copy()
        few[:count] = (few[:count] + 1) % 3
        found = hard_tail(columns | {"prediction": few}, n_resamples=40)
        assert (found.measures["misclassified"] is not None) == tells
        assert (f"Only {count} of 2,000 rows are misclassified; at least 10 are needed." in found.evidence) != tells
        right = (columns["label"] + 1) % 3
        right[:count] = columns["label"][:count]
        found = hard_tail(columns | {"prediction": right}, n_resamples=40)
        assert (found.measures["misclassified"] is not None) == tells
        assert (f"Only {count} of 2,000 rows are correctly classified; at least" in found.evidence) != tells


def test_a_regression_has_a_loss_and_no_errors():
    """Labels and predictions that are not a whole numbers are not compared, and negative labels are labels."""
    columns = run_of("rising", "falling")
    rng = np.random.default_rng(0)
    columns |= {"label": rng.normal(size=N).astype("f4"), "prediction": rng.normal(size=N).astype("f4")}
    found = hard_tail(columns, n_resamples=100)
    assert (found.tail, found.measures["misclassified"], found.measures["loss"].rows) == ("low", None, N)
    assert found.evidence == (
        "There are no given and predicted classes to count errors by. Singled out by the loss: the lowest values."
    )


def test_rows_without_a_label_or_a_score_do_not_count():
    """The result is that of the other rows alone; a label is missing as -1, or as NaN where a table was made of it."""
    columns = run_of("rising", "rising")
    some = np.random.default_rng(0).random(N) < 0.3
    expected = hard_tail({name: values[~some] for name, values in columns.items()}, n_resamples=50)
    assert expected.measures["loss"].rows == (~some).sum()
    missing = {
        "label": [np.where(some, -1, columns["label"]), np.where(some, np.nan, columns["label"])],
        "vog_class_normalized": [np.where(some, bad, columns["vog_class_normalized"]) for bad in (np.nan, np.inf)],
    }
    for name, ways in missing.items():
        for values in ways:
            loss = np.where(some, np.nan, columns["loss"])
            assert hard_tail(columns | {name: values, "loss": loss}, n_resamples=50) == expected


def test_without_labels_nothing_is_hard():
    """A classification without any label: no row counts, and the verdict says so."""
    found = hard_tail(run_of("rising", "rising") | {"label": np.full(N, -1)})
    assert (found.tail, found.measures) == ("unclear", {"misclassified": None, "loss": None})
    assert found.evidence == "No row has a label."


def test_few_rows_are_unclear():
    """49 rows are too few for intervals and 50 are enough."""
    columns = run_of("rising", "rising", n=50)
    columns |= {"vog_class_normalized": columns["loss"]}
    found = hard_tail(columns)
    assert (found.tail, found.measures["loss"].rows) == ("high", 50)
    columns["vog_class_normalized"][0] = np.nan
    for known, needed in ((columns, "a label and "), (without(columns, "label", "prediction"), "")):
        found = hard_tail(known)
        assert (found.tail, found.measures["loss"]) == ("unclear", None)
        assert (
            found.evidence == f"Only 49 of 50 rows have {needed}a finite vog_class_normalized; at least 50 are needed."
        )
        found = hard_tail({name: values[1:] for name, values in known.items()})
        assert found.evidence == "There are only 49 rows; at least 50 are needed."


def test_equal_values_rank_nothing():
    """A ranking of equal scores, equal losses, losses that are not finite, or none: each is said, none is an error."""
    columns = run_of("rising", "rising")
    found = hard_tail(columns | {"vog_class_normalized": np.ones(N)})
    assert found.tail == "unclear"
    assert found.evidence == "All 2,000 rows have the same vog_class_normalized, which ranks nothing."
    losses = {
        "The loss is the same for all rows.": np.ones(N),
        "The loss is not finite for 1 of the rows, so it is not used.": np.append(columns["loss"][1:], np.nan),
    }
    for words, loss in losses.items():
        found = hard_tail(columns | {"loss": loss}, n_resamples=50)
        assert (found.tail, found.measures["loss"]) == ("high", None)
        assert found.evidence == f"{words} Singled out by the errors: the highest values."
    nothing = hard_tail({"vog": columns["loss"]})
    assert nothing.tail == "unclear"
    assert nothing.evidence == "There are no given and predicted classes to count errors by. There is no loss."


def test_a_resample_that_ranks_nothing_counts_as_chance():
    """One loss differs, so every third resample has equal losses only: no warning, and chance is in the interval."""
    columns = run_of()
    loss = np.zeros(N)
    loss[columns["vog_class_normalized"].argmax()] = 1
    found = hard_tail({"vog": columns["vog_class_normalized"], "loss": loss}, n_resamples=100).measures["loss"]
    assert found.association_interval[0] < 0 < found.association
    assert np.isfinite([*found.association_interval, *found.low_interval, *found.high_interval]).all()


def test_a_ranking_with_many_ties():
    """A column of three values works as any: the tied rows share the places of the tails."""
    columns = run_of("rising", "rising")
    coarse = np.digitize(columns["vog_class_normalized"], [-1, 1])
    found = hard_tail(columns | {"vog_class_normalized": coarse}, n_resamples=100)
    assert found.tail == "high"
    wrong = columns["prediction"] != columns["label"]
    assert found.measures["misclassified"].low == pytest.approx(wrong[coarse == 0].mean())


def test_the_seed_fixes_the_result_and_the_order_of_rows_does_not_matter():
    """The same call gives the same, so do shuffled rows; another seed moves the intervals and no estimate."""
    columns = run_of("rising", "U")
    first = hard_tail(columns, n_resamples=50)
    assert hard_tail(columns, n_resamples=50) == first
    order = np.random.default_rng(1).permutation(N)
    shuffled = {name: values[order] for name, values in columns.items()}
    assert hard_tail(shuffled, n_resamples=50) == first
    other = hard_tail(columns, n_resamples=50, seed=1).measures["loss"]
    assert other.association == first.measures["loss"].association
    assert other.association_interval != first.measures["loss"].association_interval


def test_only_ranks_matter():
    """A rising function of the column and of the loss changes nothing; a falling one of the column turns the tails."""
    columns = run_of("rising", "rising")
    changed = columns | {"vog_class_normalized": np.exp(columns["vog_class_normalized"]), "loss": columns["loss"] ** 3}
    first = hard_tail(columns, n_resamples=50)
    assert hard_tail(changed, n_resamples=50).measures == first.measures
    turned = hard_tail(columns | {"vog_class_normalized": -columns["vog_class_normalized"]}, n_resamples=50)
    assert (first.tail, turned.tail) == ("high", "low")
    assert turned.measures["loss"].association == pytest.approx(-first.measures["loss"].association)
    assert turned.measures["loss"].low == pytest.approx(first.measures["loss"].high)


def test_scores_tables_and_mappings_are_the_same():
    """Whatever holds the columns; the default column is the one that tables are ranked by."""
    columns = run_of("rising", "rising")
    expected = hard_tail(columns, n_resamples=50)
    assert hard_tail(pd.DataFrame(columns), n_resamples=50) == expected
    assert hard_tail(VoGScores(columns, {}), n_resamples=50) == expected
    vog = columns.pop("vog_class_normalized")
    for names, default in ((("vog", "vog_normalized"), "vog_normalized"), (("vog", "vog_late"), "vog")):
        found = hard_tail(columns | dict.fromkeys(names, vog), n_resamples=50)
        assert (found.column, found.measures) == (default, expected.measures)
    assert hard_tail(columns | {"vog": vog, "vog_late": -vog}, column="vog_late", n_resamples=50).tail == "low"


def test_the_verdict_as_text_and_as_json():
    """The headline names the tail; every number survives the way through JSON."""
    found = hard_tail(run_of("falling", "falling"), n_resamples=50)
    assert str(found).startswith(f"{found.headline}\n{found.evidence}\n")
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told == found.to_dict()
    assert told["tail"] == "low"
    assert told["measures"]["loss"]["low_interval"] == list(found.measures["loss"].low_interval)
    assert set(told["measures"]["loss"]) == set(vars(found.measures["loss"]))
    nothing = hard_tail({"vog": np.ones(N)})
    assert json.loads(json.dumps(nothing.to_dict()))["measures"] == {"misclassified": None, "loss": None}
    assert str(nothing) == (
        "It is unclear whether VoG is a guide in this run, because all 2,000 rows have the same vog, which ranks "
        "nothing."
    )
    assert {"headline", "strength", "loss_advantage"} < set(told)


def test_the_table_carries_the_numbers():
    """Every number of both measures is a line of the table, those with an interval with it; no word has a number."""
    found = hard_tail(run_of("rising", "rising"), n_resamples=50)
    lines = found.table().set_index(["measure", "statistic"])
    assert len(lines) == 12
    for name, measure in found.measures.items():
        of = lines.loc[name]
        assert of["value"].tolist() == [
            measure.association, measure.low, measure.middle, measure.high, measure.low_excess, measure.high_excess
        ]  # fmt: skip
        intervals = [measure.association_interval, measure.low_interval, measure.high_interval]
        assert of[["low", "high"]].dropna().to_numpy().tolist() == [list(interval) for interval in intervals]
    assert not any(letter.isdigit() for letter in found.evidence)
    assert hard_tail({"vog": np.ones(N)}).table().empty


def test_what_cannot_be_carried_out_is_refused():
    """A column that is not there, columns of other lengths, and fewer resamples than an interval has ends."""
    columns = run_of(n=100)
    with pytest.raises(
        ConfigError, match="there is no column 'vog' to rank by; these scores have label, prediction, lo"
    ):
        hard_tail(without(columns, "vog_class_normalized"))
    with pytest.raises(ConfigError, match="there is no column 'vogue'"):
        hard_tail(columns, column="vogue")
    with pytest.raises(ConfigError, match="one value per row of the same rows"):
        hard_tail(columns | {"loss": [0.0]})
    with pytest.raises(ConfigError, match="n_resamples must be at least 40 for intervals, got 39"):
        hard_tail(columns, n_resamples=39)
    assert hard_tail(columns, n_resamples=40).column == "vog_class_normalized"
