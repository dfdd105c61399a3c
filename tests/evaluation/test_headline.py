"""The one line that a run opens with: how good a guide VoG is, and what it says where there is nothing to go by."""

import re

import numpy as np
import pytest
from scipy.stats import norm

from vog_hf.errors import ConfigError
from vog_hf.evaluation import TailMeasure, hard_tail
from vog_hf.evaluation.guide_strength import guide_strength
from vog_hf.scores.findings import Findings
from vog_hf.scores.scored_rows import ScoredSplit
from vog_hf.scores.vog_scores import VoGScores
from vog_hf.tracking.row_tables import extreme_caption

N = 4000
UNCLEAR = "It is unclear whether VoG is a guide in this run, because "


def run_apart(distance, *, share=0.25, n=N, loss=None, seed=0):
    """A run with wrong rows ``distance`` standard deviations above the others: AUROC = Phi(distance / sqrt 2)."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < share
    label = rng.integers(0, 3, n)
    return {
        "vog": rng.normal(size=n) + distance * wrong,
        "label": label,
        "prediction": np.where(wrong, (label + 1) % 3, label),
        "loss": rng.exponential(size=n) if loss is None else rng.normal(size=n) + loss * wrong,
    }


@pytest.mark.parametrize(
    ("distance", "strength"),
    [(0.3, "weak"), (-0.3, "weak"), (0.65, "moderate"), (-0.65, "moderate"), (1.3, "strong"), (-1.3, "strong")],
)
def test_the_strength_is_that_of_the_auroc_in_either_direction(distance, strength):
    """Small, medium and large differences are weak, moderate and strong; the headline names AUROC and direction."""
    found = hard_tail(run_apart(distance), n_resamples=60)
    assert (found.strength, found.tail) == (strength, "high" if distance > 0 else "low")
    area = norm.cdf(abs(distance) / np.sqrt(2))
    shown = float(found.headline.split("AUROC ")[1].split(" ")[0])
    assert shown == pytest.approx(area, abs=0.03)
    assert found.headline.startswith(f"VoG is a {strength} guide in this run (AUROC ")
    assert ("lowest rows first" in found.headline) == (distance < 0)
    assert ("rows are the hard ones" in found.headline) == (strength != "weak")
    assert found.named_tail == (found.tail if strength != "weak" else "unclear")


def test_a_flat_ranking_is_not_called_the_hard_end():
    """AUROC 0.54 in a large run is told from chance, and called a weak guide with the better column next to it."""
    found = hard_tail(run_apart(0.14, n=20_000, loss=3.0, seed=3), n_resamples=60)
    assert found.tail == "high"
    assert re.fullmatch(
        r"VoG is a weak guide in this run \(AUROC 0\.5[345] for errors\)\. Mean loss orders the same rows better\.",
        found.headline,
    )
    assert found.loss_advantage == pytest.approx(norm.cdf(3 / np.sqrt(2)) - 0.54, abs=0.02)


def test_no_caption_calls_an_end_of_a_weak_guide_hard():
    """A strong guide has a hard end, a weak one is called weak and an unclear one unclear, in both captions."""
    captions = {
        distance: [
            extreme_caption(VoGScores(columns, {}), end, 5, hard_tail(columns, n_resamples=60))
            for end in ("highest", "lowest")
        ]
        for distance, columns in ((distance, run_apart(distance)) for distance in (0.0, 0.3, -1.3))
    }
    assert [caption.split(". ")[1] for caption in captions[-1.3]] == [
        "In this run the hard rows are at the other end.",
        "In this run the hard rows are here.",
    ]
    assert all("too weak a guide to call either end the hard one" in caption for caption in captions[0.3])
    assert all("is unclear in this run" in caption for caption in captions[0.0])


def test_the_loss_is_named_only_where_it_is_reliably_better():
    """Not where it is worse, nor as good, nor where it is the ranking itself; with a tail or without one."""
    better = "Mean loss orders the same rows better."
    assert better not in hard_tail(run_apart(1.0, loss=0.5), n_resamples=60).headline
    assert better not in hard_tail(run_apart(1.0, loss=1.0), n_resamples=60).headline
    assert better not in hard_tail(run_apart(1.0, loss=3.0), column="loss", n_resamples=60).headline
    noise = hard_tail(run_apart(0.0, loss=3.0), n_resamples=60)
    assert noise.headline.endswith(f"). {better}")
    assert noise.headline.startswith(
        f"{UNCLEAR}neither end of the ranking is reliably harder than its middle (AUROC 0."
    )


def measure(association, low, middle, high, name="misclassified"):
    """A measure of 10,000 rows whose intervals do not matter."""
    none = (0.0, 0.0)
    return TailMeasure(
        name, 10_000, association, none, low, middle, high, low - middle, none, high - middle, none, "high"
    )


@pytest.mark.parametrize(
    ("found", "tail", "strength"),
    [
        (measure(0.51, 0.10, 0.10, 0.13), "high", "none"),  # told from chance, and of no use
        (measure(0.60, 0.05, 0.10, 0.16), "high", "weak"),
        (measure(0.68, 0.03, 0.10, 0.22), "high", "moderate"),
        (measure(0.68, 0.03, 0.10, 0.105), "high", "weak"),  # the end is hardly harder than the middle
        (measure(0.80, 0.02, 0.10, 0.12), "high", "moderate"),  # two levels less at the end than over all rows
        (measure(0.80, 0.02, 0.10, 0.35), "high", "strong"),
        (measure(0.20, 0.35, 0.10, 0.02), "low", "strong"),
        (measure(0.50, 0.35, 0.10, 0.16), "both", "weak"),  # the smaller excess of the two
        (measure(0.50, 0.35, 0.10, 0.40), "both", "strong"),
        (measure(0.80, 0.02, 0.10, 0.35), "unclear", "none"),
        (measure(0.20, 40, 49, 62, "loss"), "high", "weak"),
        (measure(-0.40, 65, 49, 40, "loss"), "low", "moderate"),
        (measure(0.60, 25, 50, 75, "loss"), "high", "strong"),
        (measure(0.03, 49, 50, 51, "loss"), "high", "none"),
    ],
)
def test_strength_from_association_and_excess(found, tail, strength):
    """The association's level, one less where the end does not keep what it promises; both ends: the smaller excess."""
    assert guide_strength(found, tail) == strength


def test_the_excess_does_not_depend_on_how_many_rows_are_wrong():
    """The same distance between wrong and right rows is as strong with 2 % of errors as with half of them."""
    for share in (0.02, 0.5):
        assert hard_tail(run_apart(1.3, share=share, n=20_000), n_resamples=40).strength == "strong"


def changed(**columns):
    """A run with a strong guide, some of its columns replaced; None takes one away."""
    return {name: values for name, values in (run_apart(1.5, n=200) | columns).items() if values is not None}


MEMORIZED = "all 200 rows are predicted as labeled (the model may have memorized them) and "
LABELS, VOG = run_apart(1.5, n=200)["label"], run_apart(1.5, n=200)["vog"]
NO_BASIS = {
    "no labels": (changed(label=np.full(200, -1)), "no row has a label."),
    "no label column": (changed(label=None), "no row has a label."),
    "49 labels": (
        changed(label=np.where(np.arange(200) < 49, LABELS, -1)),
        "only 49 of 200 rows have a label and a finite vog; at least 50 are needed.",
    ),
    "49 rows": (
        {name: values[:49] for name, values in changed().items()},
        "there are only 49 rows; at least 50 are needed.",
    ),
    "one row": (
        {name: values[:1] for name, values in changed().items()},
        "there is only 1 row; at least 50 are needed.",
    ),
    "one class that the model can only predict": (
        changed(label=np.zeros(200, int), prediction=np.zeros(200, int), loss=np.zeros(200)),
        f"{MEMORIZED}the loss is the same for all rows.",
    ),
    "all rows right, no loss": (
        changed(prediction=LABELS, loss=None),
        f"{MEMORIZED}there is no loss.",
    ),
    "all rows wrong, no loss": (
        changed(prediction=LABELS + 1, loss=None),
        "all 200 rows are misclassified and there is no loss.",
    ),
    "no loss that is finite": (
        changed(prediction=LABELS, loss=np.full(200, np.nan)),
        f"{MEMORIZED}the loss is not finite for 200 of the rows, so it is not used.",
    ),
    "scores that are NaN": (
        changed(vog=np.full(200, np.nan)),
        "only 0 of 200 rows have a label and a finite vog; at least 50 are needed.",
    ),
    "equal scores": (changed(vog=np.ones(200)), "all 200 rows have the same vog, which ranks nothing."),
}


@pytest.mark.parametrize("kind", NO_BASIS)
def test_without_a_basis_the_headline_says_why_and_has_no_figure(kind):
    """Unclear, with the reason, no strength, and an empty table, where nothing can be counted or compared."""
    columns, reason = NO_BASIS[kind]
    found = hard_tail(columns, n_resamples=40)
    assert found.headline == UNCLEAR + reason
    assert (found.tail, found.strength, found.loss_advantage) == ("unclear", "none", None)
    assert found.table().empty
    assert set(found.measures.values()) == {None}
    assert str(found) == found.headline


@pytest.mark.parametrize("prediction", [LABELS, LABELS + 1], ids=["all rows right", "all rows wrong"])
def test_without_errors_or_without_right_rows_the_loss_decides(prediction):
    """The headline then names the rank correlation with the loss, and no AUROC of errors that are not there."""
    found = hard_tail(changed(prediction=prediction, loss=VOG + 0.1), n_resamples=40)
    assert (found.tail, found.strength) == ("high", "strong")
    assert found.headline == (
        "VoG is a strong guide in this run (rank correlation 1.00 with the loss). Its highest rows are the hard ones."
    )
    assert set(found.table()["measure"]) == {"loss"}


def test_opposite_measures_are_unclear():
    """Errors at the one end and losses at the other: the headline gives no strength, the evidence the contradiction."""
    found = hard_tail(run_apart(1.0) | {"loss": -run_apart(1.0)["vog"]}, n_resamples=60)
    assert (found.tail, found.strength) == ("unclear", "none")
    assert found.headline.startswith(
        f"{UNCLEAR}errors and loss are at opposite ends of the ranking (AUROC 0.76 for errors)."
    )
    assert found.evidence.endswith("a contradiction.")


def test_the_headline_names_another_column_by_its_name():
    """VoG is what the ranking columns are; any other column is called what it is called."""
    columns = run_apart(1.3)
    assert hard_tail(VoGScores(columns, {}), n_resamples=40).headline.startswith("VoG is a strong guide")
    columns["vog_late"] = columns.pop("vog")
    found = hard_tail(columns, column="vog_late", n_resamples=40)
    assert found.headline.startswith("vog_late is a strong guide in this run (AUROC 0.8")
    with pytest.raises(ConfigError, match="no column 'vog' to rank by"):
        hard_tail(columns)


@pytest.mark.parametrize(("snapshots", "is_cautious"), [(2, True), (3, False)])
def test_two_snapshots_are_said_to_be_two(snapshots, is_cautious):
    """The line that a person reads first says that two snapshots show no stability; the next two name what to do."""
    scores = VoGScores(run_apart(1.3, n=400), {"snapshots": [{"name": str(number)} for number in range(snapshots)]})
    verdict, start, command = Findings(ScoredSplit("", scores)).opening("vog-hf review ./scores")
    assert verdict.startswith("VoG is a strong guide in this run")
    caution = "It is based on two snapshots, so the stability of the ranking cannot be estimated."
    assert verdict.endswith(caution) == is_cautious
    assert start.startswith("Start with loss, highest first: no row is known to be wrong")
    assert command == "Next: vog-hf review ./scores"
