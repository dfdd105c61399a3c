"""fine_tuned_noise and full_cifar10, small, through their command lines, and the parts they are made of."""

from itertools import pairwise

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from experiments import functions_of, read_results, run_in_this_process, save_texts
from PIL import Image
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from vog_hf.demo import load_digits_dataset
from vog_hf.evaluation import error_by_decile
from vog_hf.scores.vog_scores import VoGScores

pytestmark = pytest.mark.timeout(900)

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WORDS = ["bad", "poor", "dull", "good", "fine", "great"]
ROWS = 120
SIMILAR = (("cat", "dog"), ("automobile", "truck"), ("deer", "horse"), ("airplane", "bird"))
FIVE_FOLD = "five-fold self-confidence"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A parquet file of 120 small noisy images with the classes of CIFAR-10, each class of a color of its own."""
    rng = np.random.default_rng(0)
    labels = np.arange(ROWS) % len(CLASSES)
    colors = rng.integers(0, 256, (len(CLASSES), 1, 1, 3))
    pixels = (0.7 * colors[labels] + 0.3 * rng.integers(0, 256, (ROWS, 32, 32, 3))).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [Image.fromarray(x) for x in pixels], "label": labels.tolist()}
    path = tmp_path_factory.mktemp("images") / "images.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A parquet file of 120 sentences in two classes, and a folder with a tiny BERT for them."""
    sentences = [f"a {WORDS[i % 6]} film" for i in range(ROWS)]
    return save_texts(tmp_path_factory.mktemp("texts"), sentences, [i % 6 // 3 for i in range(ROWS)])


# --- fine_tuned_noise ---


@pytest.mark.slow
def test_figures_of_images_are_those_of_the_stored_columns(images, tmp_path):
    """AUROC, average precision and recall follow from the columns; similar classes are swapped; cost is recorded."""
    options = ("--noise", "0.2", "--noise_kind", "pairs", "--epochs", "2", "--image_size", "32", "--snapshots", "3")
    more = ("--folds", "3", "--score_halves", "True", "--weights", "random", "--output_dir", tmp_path)
    run_in_this_process("fine_tuned_noise", "--kind", "image", "--dataset", images, *options, *more)
    found = read_results(tmp_path)["details"]
    table = pd.read_parquet(tmp_path / "columns.parquet")
    assert found["wrong"] == table["is_corrupted"].sum() == 24
    partner = {CLASSES.index(a): CLASSES.index(b) for pair in SIMILAR for a, b in (pair, pair[::-1])}
    true = np.arange(ROWS) % len(CLASSES)
    changed = table["label"] != true
    assert (changed == table["is_corrupted"]).all()
    assert [partner[label] for label in true[changed]] == table["label"][changed].tolist()
    for name, sign in (("loss", 1), ("csg", 1), ("confidence at the end (two halves)", -1), (FIVE_FOLD, -1)):
        expected = average_precision_score(table["is_corrupted"], sign * table[name])
        assert found["columns"][name][1] == pytest.approx(expected)
    assert {"one training", "two halves", "two halves with snapshots", "cross-validation"} <= set(found["cpu_seconds"])


@pytest.mark.slow
def test_texts_without_cross_validation(texts, tmp_path):
    """With --folds 0 one training gives its columns alone; the last snapshot's confidence is that of the end."""
    path, model = texts
    options = ("--noise", "0.1", "--epochs", "2", "--snapshots", "2", "--folds", "0", "--weights", model)
    run_in_this_process(
        "fine_tuned_noise", "--kind", "text", "--dataset", path, *options, "--output_dir", tmp_path / "out"
    )
    found = read_results(tmp_path / "out")
    assert set(found["details"]["cpu_seconds"]) == {"one training", "its companions", "its scores"}
    assert not any("halves" in name or "five" in name for name in found["details"]["columns"])
    table = pd.read_parquet(tmp_path / "out" / "columns.parquet")
    np.testing.assert_allclose(table["confidence after snapshot 2"], table["confidence at the end"], atol=1e-5)


@pytest.mark.slow
def test_digits_need_no_dataset_and_pairs_are_the_next_class(tmp_path):
    """Without --dataset scikit-learn's digits are used; a class that CIFAR-10 lacks is mistaken for the next."""
    options = ("--epochs", "2", "--max_train_samples", "200", "--noise_kind", "pairs", "--folds", "0")
    run_in_this_process("fine_tuned_noise", "--kind", "digits", *options, "--output_dir", tmp_path)
    table = pd.read_parquet(tmp_path / "columns.parquet")
    true = np.array(load_digits_dataset()["label"][:200])
    wrong = table["is_corrupted"].to_numpy()
    assert wrong.sum() == 20
    assert (table["label"] == np.where(wrong, (true + 1) % 10, true)).all()
    assert (table["mean loss at the visits"] != table["loss at the first visit"]).all()


def test_the_loss_at_the_first_visit_is_compared_with_that_of_the_rows_around_it():
    """The mean of the up to 100 rows visited before and after a row, by a plain loop."""
    rng = np.random.default_rng(0)
    loss, place = rng.random(253), rng.permutation(253)
    by_place = loss[np.argsort(place)]
    expected = [by_place[max(0, i - 100) : i + 101].mean() for i in place]
    np.testing.assert_allclose(functions_of("fine_tuned_noise")["mean_of_neighbors"](loss, place), expected)


def test_rows_tied_at_the_last_place_share_it():
    """Two wrong rows, one above a tie of four with the other: recall (1 + 1 / 4) / 2."""
    wrong = np.array([True, True, False, False, False, False])
    found = functions_of("fine_tuned_noise")["detection"]("loss", np.array([3.0, 2, 2, 2, 2, 1]), wrong)
    assert found[2] == pytest.approx(0.625)


@pytest.mark.parametrize(
    ("name", "auroc"), [("loss", 1), ("confidence (two halves)", 0), (FIVE_FOLD, 0), ("margin", 0), ("vog_late", 1)]
)
def test_a_name_says_which_direction_means_wrong(name, auroc):
    """High loss and VoG, low confidence and margin: never the direction that fits the rows better."""
    wrong = np.array([False, True, False, True])
    found = functions_of("fine_tuned_noise")["detection"](name, np.array([0.1, 0.8, 0.2, 0.9]), wrong)
    assert found[0] == auroc
    assert found[2] == auroc  # recall among the two first


# --- full_cifar10 ---


@pytest.mark.slow
def test_deciles_are_those_of_the_scores(images, tmp_path):
    """Errors by decile follow from the stored scores; a finished training is scored again, not repeated."""
    c_scores = tmp_path / "c-scores.npz"
    np.savez(c_scores, scores=np.linspace(0, 1, ROWS), labels=np.arange(ROWS) % len(CLASSES))
    options = ("--dataset", images, "--eval_dataset", images, "--epochs", "2", "--batch_size", "20")
    more = ("--widths", "4", "4", "4", "--scored_train_rows", "50", "--output_dir", tmp_path / "run")
    run_in_this_process("full_cifar10", *options, *more)
    found = read_results(tmp_path / "run")["details"]
    assert found["record"]["snapshots_after"] == [1, 2, 3, 5, 7, 8, 10, 12]
    scores = VoGScores.load(tmp_path / "run" / "scores" / "test" / "given")
    wrong = scores.column("prediction") != scores.column("label")
    assert found["test"]["error"] == wrong.mean()
    for name, column in (("mean loss", "loss"), ("CSG", "csg")):
        expected = error_by_decile(scores.column(column), wrong)["error"].tolist()
        assert found["test"]["deciles"][name] == expected
    written = (tmp_path / "run" / "training.json").stat().st_mtime_ns
    run_in_this_process("full_cifar10", *options, *more, "--c_scores", c_scores)
    assert (tmp_path / "run" / "training.json").stat().st_mtime_ns == written
    again = read_results(tmp_path / "run")["details"]
    assert -1 <= again.pop("c_scores")["mean loss"] <= 1
    assert again == found


def test_a_shift_and_a_flip_move_pixels_and_change_none():
    """Every augmented image is a window of the padded one, flipped in every other epoch."""
    fast = functions_of("fast_training")
    images = torch.arange(7 * 3 * 8 * 8, dtype=torch.int64).reshape(7, 3, 8, 8)
    padded = torch.nn.functional.pad(images.double(), [2] * 4, mode="reflect").long()
    rows = torch.tensor([5, 0, 3])
    for epoch in range(4):
        found = fast["augmented"](padded, rows, epoch, torch.Generator().manual_seed(epoch))
        for image, row in zip(found, rows, strict=True):
            windows = [padded[row, :, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
            assert sum(torch.equal(image, w) or torch.equal(image.flip(2), w) for w in windows) == 1
    still = fast["augmented"].__globals__
    assert still["SHIFT"] == 2
    epochs = [fast["augmented"](padded, rows, e, torch.Generator().manual_seed(0)) for e in range(3)]
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])


def test_the_learning_rate_rises_and_falls():
    """A fifth of its peak at first, the peak at 23 % of the training, the given share of it at the end."""
    triangle = functions_of("fast_training")["triangle"]
    assert [triangle(x, 0.07) for x in (0, 0.23, 1)] == [0.2, 1, pytest.approx(0.07)]
    assert triangle(1, 0.0) == 0
    assert all(a > b for a, b in pairwise(triangle(x, 0.0) for x in (0.23, 0.5, 0.9)))


def test_whitening_makes_patches_uncorrelated():
    """The covariance of the twelve filters' outputs on the patches is the unit matrix."""
    images = torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(0)).cumsum(3)
    filters = functions_of("fast_training")["whitening_filters"](images)
    outputs = torch.nn.functional.conv2d(images, filters[:12]).permute(1, 0, 2, 3).reshape(12, -1)
    covariance = outputs @ outputs.T / outputs.shape[1]
    np.testing.assert_allclose(covariance.numpy(), np.eye(12), atol=0.01)
    torch.testing.assert_close(filters[12:], -filters[:12])


# --- C-scores ---


@pytest.fixture
def c_score_file(tmp_path):
    """A file as the authors' one: scores and labels of 60 rows."""
    path = tmp_path / "c-scores.npz"
    rng = np.random.default_rng(0)
    np.savez(path, scores=rng.random(60), labels=rng.integers(0, 3, 60))
    return path


def test_c_scores_are_compared_by_rank(c_score_file):
    """Spearman by an oracle: Pearson of the ranks, of the rows that were scored."""
    file = np.load(c_score_file)
    rows = np.array([3, 50, 17, 20, 41, 8])
    columns = {"loss": np.array([0.1, 0.5, 0.2, 0.9, 0.4, 0.3]), "vog": np.arange(6.0)}
    found = functions_of("c_scores")["c_score_correlations"](columns, c_score_file, rows, file["labels"][rows])
    for name, values in columns.items():
        expected = np.corrcoef(rankdata(values), rankdata(file["scores"][rows]))[0, 1]
        assert found[name] == pytest.approx(expected)


def test_c_scores_of_other_rows_are_refused(c_score_file, tmp_path):
    """Other labels, fewer rows, and a file without scores: one line each; the same labels pass."""
    compare = functions_of("c_scores")["c_score_correlations"]
    labels = np.load(c_score_file)["labels"]
    rows = np.arange(5)
    assert compare({"loss": rows}, c_score_file, rows, labels[:5])
    other = labels[:5].copy()
    other[2] += 1
    with pytest.raises(SystemExit, match=f"has label {labels[2]} at row 2, the dataset {other[2]}; both must be in"):
        compare({"loss": rows}, c_score_file, rows, other)
    with pytest.raises(SystemExit, match="has 60 scores, expected one for each row up to 60"):
        compare({"loss": rows}, c_score_file, rows + 56, labels[:5])
    np.savez(tmp_path / "bare.npz", labels=labels)
    with pytest.raises(SystemExit, match="must be an npz with `scores` and `labels`"):
        compare({"loss": rows}, tmp_path / "bare.npz", rows, labels[:5])
