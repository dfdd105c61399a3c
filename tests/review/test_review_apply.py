"""Decisions given back to the data: what changes, what does not, and what is refused."""

import dataclasses

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from PIL import Image as Pillow
from report_cases import make_regression, make_scores

from vog_hf.data.row_identity import identify_rows
from vog_hf.errors import ConfigError, DataError, JournalError, RowMismatchError
from vog_hf.review import Decision, Journal, apply_review, resolve, reviewer_agreement
from vog_hf.review.apply import MODES, plan_review
from vog_hf.review.card_summary import summary
from vog_hf.scores.dataset_columns import add_vog_columns
from vog_hf.scores.scored_rows import verify_rows
from vog_hf.scores.vog_scores import VoGScores

N = 31
NAMES = ["cat", "dog", "<b>frog</b>"]
LABELS = [*(i % 3 for i in range(N - 2)), -1, None]


def pictures():
    """Pictures with labels and ids; the last two rows have no label, one as -1 and one as null."""
    features = {"image": Image(), "label": ClassLabel(names=NAMES), "id": Value("string")}
    columns = {
        "image": [Pillow.new("RGB", (4, 4), (i, 0, 0)) for i in range(N)],
        "label": LABELS,
        "id": [f"row {i}" for i in range(N)],
    }
    return Dataset.from_dict(columns, features=Features(features), split="train")


def scores_of(dataset, **config):
    """Scores of such rows, with trajectories and heat maps."""
    made, identity = make_scores(len(dataset), names=NAMES), identify_rows(dataset)
    label = np.array([-1 if value is None else value for value in LABELS], np.int32)
    manifest = {**made.manifest, "class_names": NAMES, "data": {"columns": identity.columns}}
    manifest["config"] = {**manifest["config"], **config}
    columns = {name: label if name == "label" else made.column(name) for name in made.column_names}
    found = {name: made.trajectory(name) for name in made.trajectory_names}
    return VoGScores(columns, manifest, trajectories=found, heat_maps=made._heat_maps, row_hash=identity.row_hash)


@pytest.fixture(scope="module")
def data():
    """The rows and their scores."""
    dataset = pictures()
    return dataset, scores_of(dataset)


@pytest.fixture
def journal(data, tmp_path):
    """A review of some rows."""
    made = Journal.open(tmp_path / "review.jsonl", data[1])
    made.decide(0, "keep", reviewer="Ada")
    made.decide(4, "relabel", reviewer="Ada", label=2)
    made.decide(7, "drop", reviewer="Ada", note="blurred")
    made.decide(11, "unsure", reviewer="Ada")
    made.decide(N - 2, "relabel", reviewer="Ada", label=0)
    made.decide(N - 1, "relabel", reviewer="Ada", label=1)
    made.decide(20, "drop", reviewer="Ada")
    made.undo("Ada")
    return made


REVIEW = {0: "keep", 4: "relabel", 7: "drop", 11: "unsure", N - 2: "relabel", N - 1: "relabel"}
NEW = {4: 2, N - 2: 0, N - 1: 1}


@pytest.mark.parametrize("mode", MODES)
def test_the_changes_are_exactly_the_decisions(data, journal, mode, tmp_path):
    """Two columns more, labels changed or rows left out as the mode says, everything else equal, also from disk."""
    dataset, _ = data
    applied = apply_review(dataset.with_format("numpy"), journal.path, mode=mode)
    applied.save_to_disk(str(tmp_path / "applied"))
    kept = [row for row in range(N) if not (mode in ("filter", "clean") and row == 7)]
    reviewed = [NEW.get(row, LABELS[row]) for row in kept]
    for found in (applied, load_from_disk(str(tmp_path / "applied"))):
        assert found.column_names == ["image", "label", "id", "review", "label_reviewed"]
        assert found.features == Features(
            {**dataset.features, "review": Value("string"), "label_reviewed": dataset.features["label"]}
        )
        assert found.split == dataset.split
        assert found["review"][:] == [REVIEW.get(row) for row in kept]
        assert found["label_reviewed"][:] == reviewed
        corrected = mode in ("correct", "clean")
        assert found["label"][:] == (reviewed if corrected else [LABELS[row] for row in kept])
        assert found["id"][:] == [f"row {row}" for row in kept]
        assert [picture.getpixel((0, 0))[0] for picture in found["image"]] == kept
    assert dataset["label"][:] == LABELS  # the dataset that was given is as it was


def test_a_review_is_applied_again(data, journal, caplog):
    """The same journal, continued, replaces its columns; a journal without some decisions gives a warning."""
    dataset, scores = data
    flagged = apply_review(add_vog_columns(dataset, scores), journal)
    journal.decide(12, "drop", reviewer="Ada")
    journal.decide(4, "keep", reviewer="Ada")
    for given in (dataset, flagged):
        found = apply_review(given, journal, mode="clean")
        assert found.column_names[-2:] == ["review", "label_reviewed"]
        kept = [row for row in range(N) if row not in (7, 12)]
        assert found["review"][:] == [{**REVIEW, 4: "keep"}.get(row) for row in kept]
        labels = [{**NEW, 4: LABELS[4]}.get(row, LABELS[row]) for row in kept]
        assert found["label"][:] == found["label_reviewed"][:] == labels
    assert not caplog.messages
    other = [dataclasses.replace(decision, row_hash=None) for decision in journal.standing().values()][:2]
    assert apply_review(flagged, other)["review"][7] is None
    assert "rows without one in this review (4)" in caplog.text


def test_a_path_a_journal_and_decisions_give_the_same(data, journal):
    """Whatever holds the decisions, and whether or not the scores are there to verify the rows by."""
    dataset, scores = data
    expected = apply_review(dataset, str(journal.path)).to_pandas()
    for decisions in (journal, list(journal.standing().values())):
        for given in (None, scores):
            assert apply_review(dataset, decisions, given).to_pandas().equals(expected)


def test_columns_of_scores_are_no_other_data(data, journal):
    """The scored dataset is the data that was reviewed; without some of its columns it still is."""
    dataset, scores = data
    scored = add_vog_columns(dataset, scores)
    assert apply_review(scored, journal)["review"][:] == [REVIEW.get(row) for row in range(N)]
    few = apply_review(dataset.select_columns(["label", "id"]), journal)
    assert few["label_reviewed"][4] == 2


def edited(dataset, row):
    """One id changed: the same labels, another row."""
    return dataset.map(lambda one, i: {"id": "edited" if i == row else one["id"]}, with_indices=True)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda rows: rows.select(range(N - 1)), "31 rows and the dataset has 30"),
        (lambda rows: rows.shuffle(seed=0), "column 'image' of the dataset is not the one"),
        (lambda rows: edited(rows, 0), "column 'id'"),
        (lambda rows: rows.cast_column("label", ClassLabel(names=["dog", "cat", NAMES[2]])), "reviewers saw cat, dog"),
    ],
)
def test_a_journal_of_other_data_is_refused(data, journal, other, message):
    """Fewer rows, another order, one changed value, classes in another order: nothing is applied."""
    with pytest.raises(RowMismatchError, match=message):
        apply_review(other(data[0]), journal)


def test_decisions_alone_tell_their_rows_by_hash_and_label(data, journal):
    """Without a journal the hash of each row counts: an edited row is refused, one next to it does not matter."""
    dataset, scores = data
    decisions = list(journal.standing().values())
    with pytest.raises(RowMismatchError, match="row 4 has the hash"):
        apply_review(edited(dataset, 4), decisions)
    assert apply_review(edited(dataset, 5), decisions)["review"][4] == "relabel"
    with pytest.raises(RowMismatchError, match="without columns that were added since, or its scores"):
        apply_review(add_vog_columns(dataset, scores), decisions)
    unhashed = [dataclasses.replace(decision, row_hash=None) for decision in decisions]
    moved = dataset.select([1, 0, *range(2, N)])
    with pytest.raises(RowMismatchError, match="row 0 has the label 1, and the decision about it was made under 0"):
        apply_review(moved, unhashed)


def test_labels_as_names_stay_names(tmp_path):
    """A column of texts whose classes the scores know gets the new label as a text."""
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["dog", "cat", None]})
    identity = identify_rows(dataset)
    columns = {"label": np.array([1, 0, -1], np.int32), "prediction": np.zeros(3, np.int32), "vog": np.ones(3)}
    manifest = {"class_names": ["cat", "dog"], "data": {"columns": identity.columns}}
    scores = VoGScores(columns, manifest, row_hash=identity.row_hash)
    journal = Journal.open(tmp_path / "review.jsonl", scores)
    journal.decide(0, "relabel", reviewer="Ada", label=0)
    journal.decide(2, "relabel", reviewer="Ada", label=1)
    found = apply_review(dataset, journal, mode="correct")
    assert found["label"][:] == ["cat", "cat", "dog"]
    assert found.features["label_reviewed"] == Value("string")


def test_rows_without_a_class_can_be_kept_and_dropped(tmp_path):
    """A regression gets its decisions and loses the rows to drop."""
    scores = make_regression(9)
    dataset = Dataset.from_dict({"x": list(range(9)), "label": [i / 2 for i in range(9)]})
    journal = Journal.open(tmp_path / "review.jsonl", scores)
    journal.decide(3, "drop", reviewer="Ada")
    found = apply_review(dataset, journal, mode="clean")
    assert found["x"][:] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert found["label_reviewed"][:] == found["label"][:]
    bare = apply_review(dataset.remove_columns("label"), journal)
    assert bare.column_names == ["x", "review"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda rows, done: apply_review(rows, done, mode="fix"),
            ConfigError,
            "filter, clean, got 'fix'",
        ),
        (lambda rows, done: apply_review(rows, done, label_column="class"), ConfigError, "no label column 'class'"),
        (lambda rows, done: apply_review(rows.remove_columns("label"), done), ConfigError, "pass label_column="),
        (
            lambda rows, done: apply_review(rows.rename_column("id", "review"), done),
            ConfigError,
            r"has \['review'\], which no review has written; rename your own first",
        ),
        (
            lambda rows, done: apply_review(rows.add_column("label_reviewed", LABELS), done),
            ConfigError,
            r"has \['label_reviewed'\], which no review",
        ),
        (lambda rows, done: apply_review(DatasetDict(train=rows), done), DataError, r"pass one split"),
        (lambda rows, done: apply_review([1, 2], done), DataError, "got a list"),
        (lambda rows, done: apply_review(rows, "nowhere.jsonl"), JournalError, "cannot be read"),
        (
            lambda rows, done: apply_review(rows, 2 * list(done.standing().values())),
            ConfigError,
            "there are 2 decisions",
        ),
    ],
)
def test_what_cannot_be_applied_is_refused(data, journal, call, error, message):
    """Each mistake is one error that says what to do."""
    with pytest.raises(error, match=message):
        call(data[0], journal)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"row": N}, "got 31"),
        ({"decision": "delete"}, "got 'delete'"),
        ({"decision": "relabel"}, "must be a class in 0..2, got None"),
        ({"decision": "relabel", "label": 3}, "got 3"),
    ],
)
def test_decisions_that_no_journal_takes_are_refused(data, changed, message):
    """Decisions made by hand are checked as a journal checks them."""
    decision = Decision(1, "keep", None, "", "Ada", "", "1", 1, None)
    assert apply_review(data[0], [decision])["review"][1] == "keep"
    with pytest.raises(ConfigError, match=message):
        apply_review(data[0], [dataclasses.replace(decision, **changed)])


def test_labels_that_are_no_classes_are_not_replaced():
    """Where labels are texts and nobody says of which classes, a number for one of them is refused."""
    rows = Dataset.from_dict({"text": ["a", "b"], "label": ["cat", "dog"]})
    with pytest.raises(ConfigError, match="column 'label' has no such classes; pass label_column="):
        apply_review(rows, [Decision(0, "relabel", 1, "", "Ada", "", "1", 0, None)], mode="correct")
    assert apply_review(rows, [Decision(0, "drop", None, "", "Ada", "", "1", 0, None)], mode="clean")["text"] == ["b"]


def votes(row, *given):
    """Decisions of reviewers a, b, c ... about a row."""
    parts = [vote.partition(" ") for vote in given]
    return [
        Decision(row, name, int(label) if label else None, "", chr(97 + place), "", f"{row}-{place}", 0, None)
        for place, (name, _, label) in enumerate(parts)
    ]


@pytest.mark.parametrize(
    ("given", "decision", "label"),
    [
        (["keep"], "keep", None),
        (["relabel 1"], "relabel", 1),
        (["keep", "keep"], "keep", None),
        (["keep", "drop"], "unsure", None),
        (["relabel 1", "relabel 2"], "unsure", None),
        (["relabel 1", "relabel 2", "relabel 2"], "relabel", 2),
        (["keep", "drop", "relabel 1"], "unsure", None),
        (["drop", "drop", "keep", "keep"], "unsure", None),
        (["drop", "drop", "drop", "keep"], "drop", None),
        (["drop", "drop", "keep", "unsure"], "unsure", None),
        (["unsure", "keep", "keep"], "keep", None),
    ],
)
def test_more_than_half_decide(given, decision, label):
    """What more than half of a row's reviewers decided counts, label included, in whatever order; else it is unsure."""
    for order in (given, given[::-1]):
        found = resolve(votes(5, *order))[5]
        assert (found.decision, found.label, found.reviewers) == (decision, label, len(given))
        assert found.agreed == (len(set(given)) == 1)


def test_conflicts_leave_the_given_label(data, tmp_path):
    """Two reviewers who relabel a row differently leave it unsure with its label; a third decides."""
    dataset, scores = data
    journal = Journal.open(tmp_path / "review.jsonl", scores)
    journal.decide(3, "relabel", reviewer="Ada", label=1)
    journal.decide(3, "relabel", reviewer="Bob", label=2)
    found = apply_review(dataset, journal, mode="correct")
    assert (found["review"][3], found["label"][3]) == ("unsure", 0)
    journal.decide(3, "relabel", reviewer="Eve", label=2)
    found = apply_review(dataset, journal, mode="correct")
    assert (found["review"][3], found["label"][3]) == ("relabel", 2)


def test_agreement_counts_rows_that_several_decided():
    """Shares and Cohen's kappa by pair, by hand: relabeling to two classes is two answers."""
    decisions = [
        *votes(0, "keep", "keep"),
        *votes(1, "keep", "drop"),
        *votes(2, "relabel 1", "relabel 2", "relabel 2"),
        *votes(3, "drop", "drop"),
        *votes(4, "keep"),
    ]
    found = reviewer_agreement(decisions)
    assert (found.rows, found.share) == (4, 0.5)
    assert found.pairs[["a", "b", "rows", "share"]].to_numpy().tolist() == [
        ["a", "b", 4, 0.5],
        ["a", "c", 1, 0.0],
        ["b", "c", 1, 1.0],
    ]
    # a: keep, keep, 1, drop; b: keep, drop, 2, drop: by chance 2/4 * 1/4 (keep) + 1/4 * 2/4 (drop)
    chance = 0.25
    np.testing.assert_allclose(found.pairs["kappa"], [(0.5 - chance) / (1 - chance), 0.0, np.nan])
    nobody = reviewer_agreement(votes(0, "keep"))
    assert nobody.rows == len(nobody.pairs) == 0
    assert np.isnan(nobody.share)


def test_the_summary_says_what_was_done_and_names_nobody(data, journal):
    """Counts, classes and agreement in words; neither reviewers nor notes, which nobody has agreed to publish."""
    journal.decide(7, "drop", reviewer="Bob Secret", note="a private note")
    journal.decide(0, "drop", reviewer="Bob Secret")
    review = plan_review(data[0], journal)
    differed = (
        "Reviewers agreed on 50 % of the 2 rows with several reviewers (Cohen's kappa 0.00). If they disagreed, the "
        "majority decides, and without a majority the row is unsure (1 row)."
    )
    computed = "Scores were computed with the given labels over all rows that were scored"
    assert summary(review, "clean").splitlines() == [
        "6 rows of 31 reviewed by 2 people: 3 relabeled, 2 left as unsure, 1 to be dropped.",
        "Relabeled: dog to <b>frog</b> (1), no label to cat (1), no label to dog (1).",
        "This version has the label of the review in 3 rows, without 1 row.",
        differed,
        f"{computed}; errors are counted against the labels of this version.",
    ]
    assert summary(review, "flag").endswith(f"{computed}.")
    for mode in MODES:
        assert "Bob" not in summary(review, mode)
        assert "private" not in summary(review, mode)


@pytest.mark.parametrize("mode", MODES)
def test_the_scores_that_go_along_are_those_of_the_rows(data, journal, mode):
    """Values, trajectories and heat maps of the kept rows, which are verified to be those of the dataset's."""
    dataset, scores = data
    review = plan_review(add_vog_columns(dataset, scores), journal, scores)
    applied = review.apply(mode)
    kept = review.scores(scores, applied, mode)
    verify_rows(applied, kept)
    rows = review.kept(mode)
    np.testing.assert_array_equal(kept.column("vog"), scores.column("vog")[rows])
    np.testing.assert_array_equal(kept.column("vog"), np.array(applied["vog"][:], np.float32))
    shown = [-1 if label is None else label for label in applied["label"]]
    assert kept.column("label").tolist() == shown, "the scores name the labels that the data has"
    assert scores.column("label").tolist() == [-1 if label is None else label for label in LABELS]
    np.testing.assert_array_equal(kept.trajectory("vog"), scores.trajectory("vog")[rows])
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(kept.heat_map(place), scores.heat_map(int(row)))
    if mode != "flag":
        with pytest.raises(RowMismatchError):
            verify_rows(applied.select([1, 0, *range(2, len(applied))]), kept)
        labels = "given" if mode == "filter" else "reviewed"
        assert kept.manifest["review"] == {"mode": mode, "rows_scored": N, "labels": labels}


def test_scores_keep_their_source_and_their_number_of_rows(data, journal, tmp_path):
    """Through two rounds: of which dataset they are, among how many rows they were computed, that labels changed."""
    dataset, scores = data
    source = {"name": "someone/pictures", "config": None, "split": None, "revision": None}
    scores = VoGScores(
        {name: scores.column(name) for name in scores.column_names},
        {**scores.manifest, "data": {**scores.manifest["data"], "source": source}},
        row_hash=scores.row_hash,
    )
    first = plan_review(dataset, journal, scores)
    cleaned = first.apply("clean")
    kept = first.scores(scores, cleaned, "clean")
    again = Journal.open(tmp_path / "again.jsonl", kept)
    again.decide(0, "drop", reviewer="Eve")
    second = plan_review(cleaned, again, kept)
    last = second.scores(kept, second.apply("filter"), "filter")
    assert len(last) == N - 2
    assert last.manifest["data"]["source"] == source
    assert last.manifest["review"] == {"mode": "filter", "rows_scored": N, "labels": "reviewed"}
    verify_rows(second.apply("filter"), last)


def test_scores_of_a_reviewed_data_set_go_along(data, journal, tmp_path):
    """Where its columns of an earlier review were scored, too, what replaces them is the same rows to the scores."""
    dataset, _ = data
    flagged = apply_review(dataset, journal)
    scores = scores_of(flagged)
    again = Journal.open(tmp_path / "again.jsonl", scores)
    again.decide(1, "drop", reviewer="Eve")
    review = plan_review(flagged, again, scores)
    for mode in MODES:
        applied = review.apply(mode)
        verify_rows(applied, review.scores(scores, applied, mode))
