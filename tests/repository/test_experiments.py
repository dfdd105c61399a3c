"""toy_blobs, label_noise, error_by_decile and ood_detection, small, through their command lines."""

import contextlib
import io
import os
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Value
from experiments import EXPERIMENTS, functions_of, read_results, run_in_this_process
from hub_server import HubServer
from PIL import Image
from sklearn.metrics import roc_auc_score
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
)

from vog_hf.data.label_noise import plant_label_noise
from vog_hf.demo import load_digits_dataset
from vog_hf.scores.vog_scores import VoGScores

pytestmark = pytest.mark.timeout(900)  # programs that train; several of them start at once

IMAGE_RECIPES = ("label_noise", "error_by_decile", "ood_detection")
TRAIN, TEST = 53, 101
SPLITS = ("--train_split", f"train[:{TRAIN}]", "--eval_split", f"train[{TRAIN}:]")
SMALL = ("--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--use_cpu", "True", "--seed", "0")
OPTIONS = {
    "label_noise": ("--drop", "0.3"),
    "error_by_decile": ("--short_epochs", "1"),
    "ood_detection": ("--others", "shuffled", "noise", "--max_eval_samples", "41"),
}


def start(recipe, *arguments, launcher=(sys.executable,), **variables):
    """A recipe's own command line, without an account, a network or a second thread."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    command = [*launcher, str(EXPERIMENTS / f"{recipe}.py"), "--disable_tqdm", "True", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What a started program printed; it must have ended well."""
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A parquet file of 154 handwritten digits, which has one split."""
    path = tmp_path_factory.mktemp("digits") / "digits.parquet"
    load_digits_dataset().select(range(TRAIN + TEST)).to_parquet(path)
    return path


def save_images(folder, rows):
    """A folder of images with a subfolder per split and, in it, one per class."""
    for number, row in enumerate(rows):
        place = folder / ("train" if number < TRAIN else "test") / f"digit-{row['label']}"
        place.mkdir(parents=True, exist_ok=True)
        row["image"].save(place / f"{number:03d}.png")
    return folder


def save_timm(folder, n_classes):
    """A folder with timm's smallest ResNet for ``n_classes``."""
    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=n_classes, pretrained_cfg=shape)
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_of(tmp_path_factory, digits):
    """A function that gives output folder, results and printed text of an experiment, which runs once."""

    @cache
    def run(name):
        output = tmp_path_factory.mktemp(name)
        options = ("--dataset", digits, *SPLITS, *SMALL, *OPTIONS[name], "--disable_tqdm", "True")
        with contextlib.redirect_stdout(io.StringIO()) as text:
            run_in_this_process(name, *options, "--output_dir", output)
        return output, read_results(output), text.getvalue()

    return run


# --- toy_blobs ---


def test_toy_results_and_figure(tmp_path, capsys):
    """Correlations for three networks, targets and windows, the steps from the published script, and a picture."""
    run_in_this_process("toy_blobs", "--num_train_epochs", "4", "--output_dir", tmp_path)
    results = read_results(tmp_path)
    assert results["distinct_values"]["none"]["logit"] == 2  # without a non-linearity, one gradient for each class
    assert results["distinct_values"]["relu"]["loss"] > 400
    for network in ("relu", "tanh", "none"):
        assert {"logit, early", "probability, late", "loss, all", "loss"} <= set(
            results["spearman_with_distance"][network]
        )
    steps = results["published"]["steps"]["late"]
    assert next(iter(steps)) == "as published"
    assert steps["and the logit: the paper's definition"]["with_distance"] == results["headline"]["logit VoG late"]
    assert Image.open(tmp_path / "toy-blobs.png").size[0] > 800
    assert "Spearman" in capsys.readouterr().out


def test_distance_to_the_boundary_is_that_to_a_line():
    """For a linear network the nearest boundary point lies as far away as geometry says."""
    toy = functions_of("toy_blobs")
    model = torch.nn.Linear(2, 2)
    x = torch.randn(53, 2, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        model.bias.copy_(torch.tensor([0.5, 0.0]))
    expected = ((x @ torch.tensor([1.0, 3.0]) + 0.5).abs() / 10**0.5).numpy()
    np.testing.assert_allclose(toy["distance_to_boundary"](model, x), expected, atol=0.02)


def test_published_spread_subtracts_the_sum_over_all_steps():
    """The script's score, by plain arithmetic: the mean is the sum over all steps, divided by the window's length."""
    gradients = np.random.default_rng(0).normal(size=(7, 5, 2))
    window = gradients[-3:]
    expected = np.sqrt(((window - gradients.sum(0) / 3) ** 2).mean(0)).mean(-1)
    found = functions_of("toy_blobs")["published_spread"](torch.tensor(gradients), slice(-3, None))
    np.testing.assert_allclose(found.numpy(), expected)


def test_published_gradients_are_added_up():
    """What the script calls a gradient is the sum of all before it and of the loss's, so that scores are larger."""
    toy = functions_of("toy_blobs")
    x, y, *_ = toy["make_points"](0)
    published = toy["as_published"](x, y)
    assert published["before"] < 0.01  # at the published points the first weights are wrong nearly everywhere
    assert published["after"] == 1.0
    alone = published["gradients of each step alone"]["late"]
    assert (published["as published"]["late"] > alone).double().mean() > 0.9


@pytest.mark.parametrize("option", [("--num_train_epochs", "1"), ("--hidden", "0")])
def test_toy_refuses_what_has_no_variance(tmp_path, option):
    """One snapshot or no hidden unit is one line, and nothing is written."""
    with pytest.raises(SystemExit, match="error: --num_train_epochs must be at least 2"):
        run_in_this_process("toy_blobs", *option, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- label_noise ---


@pytest.mark.slow
def test_noise_results_are_those_of_the_scores(run_of, digits):
    """Detection follows from the stored scores and the labels that were planted; the table says what was left out."""
    output, results, printed = run_of("label_noise")
    planted = np.asarray(plant_label_noise(load_digits_dataset().select(range(TRAIN)), 0.2)["is_corrupted"][:])
    scores = VoGScores.load(output / "_vog" / "scores")
    assert results["wrong_labels"] == planted.sum() == 11
    for name, found in results["auroc_high_means_wrong"].items():
        assert found == pytest.approx(roc_auc_score(planted, scores.column(name)))
    table = pd.DataFrame(results["dropped"]).set_index("left out")
    assert table["rows"].tolist() == [0] + [16] * 7  # 0.3 of 53
    assert table.loc["wrong labels (known)", "wrong labels among them"] == 11 / 16
    highest = np.argsort(-scores.column("vog_class_normalized"), kind="stable")[:16]
    assert table.loc["highest VoG", "wrong labels among them"] == pytest.approx(planted[highest].mean())
    assert results["headline"]["accuracy without highest VoG"] == table.loc["highest VoG", "test accuracy"]
    better = "highest" if results["headline"]["AUROC vog_class_normalized"] > 0.5 else "lowest"
    assert f"the {better} VoG is the better sign" in printed
    assert len(pd.read_csv(output / "detection.csv")) == len(results["auroc_high_means_wrong"]) + 1


# --- error_by_decile ---


@pytest.mark.slow
def test_deciles_are_those_of_the_scores(run_of):
    """Error by decile follows from each training's stored scores of the test rows; memorizing saw wrong labels."""
    output, results, _ = run_of("error_by_decile")
    table = pd.DataFrame(results["deciles"])
    assert len(table) == 3 * 2 * 3 * 3 * 2  # trainings, labels, targets, windows, raw and normalized
    for training in ("short", "converged", "memorizing"):
        scores = VoGScores.load(output / training / "_vog" / "scores")
        assert len(scores) == TEST
        wrong = scores.column("prediction") != scores.column("label")
        assert results["accuracy"][training]["test"] == pytest.approx(1 - wrong.mean())
        assert results["headline"][f"{training}: all"] == pytest.approx(wrong.mean())
        line = table.query(f"training == '{training}' and label == 'given' and target == 'loss'")
        line = line[(line.window == "late") & (line.score == "raw")].iloc[0]
        parts = np.array_split(np.argsort(scores.column("vog_loss_late"), kind="stable"), 10)
        assert [line[str(i)] for i in range(1, 11)] == pytest.approx([wrong[part].mean() for part in parts])
    steps = {
        name: VoGScores.load(output / name / "_vog" / "scores").manifest["snapshots"][-1]["step"]
        for name in ("short", "converged")
    }
    assert steps == {"short": 4, "converged": 8}


@pytest.mark.slow
def test_decile_files_are_complete(run_of):
    """The class table has the error of each class of each training, and the picture is there."""
    output, results, printed = run_of("error_by_decile")
    classes = pd.read_csv(output / "classes.csv")
    assert len(classes) == 3 * 10
    assert (classes.groupby("training").rows.sum() == TEST).all()
    assert set(results["class_error_with_class_vog"]) == {"short", "converged", "memorizing"}
    assert Image.open(output / "error-by-decile.png").size[0] > 800
    assert printed.count("Rank correlation of a class's error") == 3


# --- ood_detection ---


def test_separation_by_hand():
    """AUROC, area under precision and recall, and false positives at 95 %, for five rows worked out by hand."""
    separation = functions_of("ood_detection")["separation"]
    source = np.array(["test rows", "test rows", "other", "other", "third"])
    found = separation(np.array([0.1, 0.5, 0.4, 0.9, 0.0]), source, "other")
    assert found == pytest.approx({"auroc": 0.75, "aupr": (1 + 2 / 3) / 2, "fpr_at_95": 0.5})


@pytest.mark.slow
def test_ood_results_are_those_of_the_scores(run_of):
    """The table follows from the stored scores, which are of the predicted label, in blocks of as many rows."""
    output, results, printed = run_of("ood_detection")
    scores = VoGScores.load(output / "_vog" / "scores")
    assert results["rows"] == {"training": TRAIN, "test rows": 41, "shuffled": 41, "noise": 41}
    assert scores.manifest["config"]["label"] == "predicted"
    assert (scores.column("label") == -1).all()
    vog = scores.column("vog")
    table = pd.DataFrame(results["detection"]).set_index(["others", "column"])
    for part, kind in enumerate(("shuffled", "noise"), 1):
        values = np.concatenate([vog[:41], vog[41 * part : 41 * (part + 1)]])
        assert table.loc[(kind, "vog"), "auroc"] == pytest.approx(roc_auc_score([0] * 41 + [1] * 41, values))
    assert results["headline"]["AUROC vog"] == pytest.approx(table.xs("vog", level="column")["auroc"].mean())
    assert Image.open(output / "ood-detection.png").size[0] > 800
    assert "fpr_at_95" in printed


def test_changed_images():
    """Shuffled images keep their pixels, inverted ones are their complement, and any other name is a dataset's."""
    ood = functions_of("ood_detection")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    made = {
        kind: np.asarray(ood["make_others"](kind, [Image.fromarray(pixels)], rng)[0])
        for kind in ("shuffled", "inverted")
    }
    assert (made["shuffled"] != pixels).any()
    np.testing.assert_array_equal(np.sort(made["shuffled"].reshape(-1, 3), 0), np.sort(pixels.reshape(-1, 3), 0))
    np.testing.assert_array_equal(made["inverted"], 255 - pixels)
    assert ood["make_others"]("some/data", [Image.fromarray(pixels)], rng) is None


# --- errors ---


@pytest.fixture(scope="module")
def sources(tmp_path_factory, digits):
    """Data that lacks something each."""
    folder = tmp_path_factory.mktemp("sources")
    rows = load_digits_dataset().select(range(TRAIN + 20))
    rows.remove_columns("image").to_parquet(folder / "no-image.parquet")
    rows.rename_column("label", "y").cast_column("y", Value("int64")).to_parquet(folder / "no-class.parquet")
    unlabeled = rows.remove_columns("label").add_column("label", [-1] * len(rows), feature=rows.features["label"])
    unlabeled.to_parquet(folder / "unlabeled.parquet")
    (folder / "digits.parquet").symlink_to(digits)
    save_images(folder / "images", rows.select(range(20)))  # a train split only
    return folder


@pytest.mark.parametrize("recipe", IMAGE_RECIPES)
@pytest.mark.parametrize(
    "case",
    [
        ("nowhere", SPLITS, "nowhere with split .* cannot be loaded"),
        ("digits.parquet", (), "split 'test' cannot be loaded: Unknown split"),
        ("images", (), "split 'test' cannot be loaded: Unknown split"),
        (
            "digits.parquet",
            (*SPLITS, "--label_column", "y"),
            "the dataset has no column 'y'; name one of its columns: image, label",
        ),
        ("digits.parquet", (*SPLITS, "--image_column", "img"), "the dataset has no column 'img'; name one"),
        (
            "digits.parquet",
            (*SPLITS, "--image_column", "label"),
            "column 'label' holds ClassLabel.*name a column of kind image",
        ),
        ("no-image.parquet", SPLITS, "the dataset has no image column; name one"),
        ("no-class.parquet", SPLITS, "the dataset has no class column; name one of its columns: image, y"),
        ("unlabeled.parquet", SPLITS, "have no label in column 'label'"),
        ("digits.parquet", (*SPLITS, "--model", "scratch:resnet99"), "there are small-resnet, resnet18"),
    ],
)
def test_error_lines(sources, recipe, case):
    """What is wrong with data, columns, splits or model is said in one line before anything is trained or written."""
    file, arguments, message = case
    arguments = [argument.format(folder=sources) for argument in arguments]
    with pytest.raises(SystemExit, match=message) as stopped:
        run_in_this_process(
            recipe, "--dataset", sources / file, "--output_dir", sources / "out", "--use_cpu", "True", *arguments
        )
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)
    assert not (sources / "out").exists()


@pytest.mark.parametrize(
    "case",
    [
        ("label_noise", ("--label_noise", "0"), "0 of 53 rows are corrupted"),
        ("label_noise", ("--label_noise", "2"), "fraction must lie in 0..1"),
        ("error_by_decile", ("--max_eval_samples", "99"), "99 rows, expected at least 100"),
        ("ood_detection", ("--others", "nowhere/at-all"), "nowhere/at-all with split 'test' cannot be loaded"),
    ],
)
def test_error_lines_of_one_recipe(digits, tmp_path, case):
    """Noise, number of test rows and other data that cannot be used are one line, too."""
    recipe, arguments, message = case
    with pytest.raises(SystemExit, match=message) as stopped:
        run_in_this_process(
            recipe, "--dataset", digits, *SPLITS, "--output_dir", tmp_path / "out", "--use_cpu", "True", *arguments
        )
    assert str(stopped.value).startswith("error: ")
    assert not (tmp_path / "out").exists()


# --- other data, other launchers ---


@pytest.mark.slow
@pytest.mark.parametrize("recipe", IMAGE_RECIPES)
def test_folder_of_images_and_timm_model(tmp_path, recipe):
    """A folder of images with a test split, and a model from a folder that gets a new head."""
    images = save_images(tmp_path / "images", load_digits_dataset().select(range(TRAIN + TEST)))
    model = ("--model", save_timm(tmp_path / "timm", 3), "--ignore_mismatched_sizes")
    finish(start(recipe, "--dataset", images, *model, *SMALL, *OPTIONS[recipe], "--output_dir", tmp_path / "out"))
    results = read_results(tmp_path / "out")
    assert (results["rows"] if recipe == "label_noise" else results["rows"]["training"]) == TRAIN


@pytest.mark.slow
@pytest.mark.parametrize("recipe", IMAGE_RECIPES)
def test_hub_id(tmp_path, recipe):
    """A dataset is found on a Hub by its id, with its train and its test split; other images, too."""
    rows = load_digits_dataset().select(range(TRAIN + TEST))
    parts = {"train": rows.select(range(TRAIN)), "test": rows.select(range(TRAIN, TRAIN + TEST))}
    files = {}
    for split, part in parts.items():
        part.to_parquet(tmp_path / f"{split}.parquet")
        files[f"data/{split}-00000-of-00001.parquet"] = (tmp_path / f"{split}.parquet").read_bytes()
    options = ("--others", "someone/digits") if recipe == "ood_detection" else OPTIONS[recipe]
    with HubServer() as hub:
        hub.repository("someone/digits", kind="datasets").commit(files)
        online = hub.environment(tmp_path / "home")
        finish(
            start(recipe, "--dataset", "someone/digits", *SMALL, *options, "--output_dir", tmp_path / "out", **online)
        )
        assert set(hub.downloads()) >= set(files)
    rows = read_results(tmp_path / "out")["rows"]
    assert rows == TRAIN if recipe == "label_noise" else rows["training"] == TRAIN
    assert recipe != "ood_detection" or rows["someone/digits"] == TEST


@pytest.mark.slow
def test_known_noise_is_not_planted_again(tmp_path):
    """A dataset with a column is_corrupted is used as it is."""
    rows = plant_label_noise(load_digits_dataset().select(range(TRAIN + TEST)), 0.1, seed=5)
    rows.train_test_split(test_size=TEST, shuffle=False).save_to_disk(str(tmp_path / "saved"))
    finish(start("label_noise", "--dataset", tmp_path / "saved", *SMALL, "--output_dir", tmp_path / "out"))
    results = read_results(tmp_path / "out")
    assert results["wrong_labels"] == sum(rows["is_corrupted"][:TRAIN])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", IMAGE_RECIPES)
def test_accelerate_launch(digits, tmp_path, recipe):
    """Started by `accelerate launch`, a recipe gives the figures that `python` gives."""
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    options = ("--dataset", digits, *SPLITS, *SMALL, *OPTIONS[recipe])
    results = []
    for name, using in (("python", (sys.executable,)), ("accelerate", launcher)):
        finish(start(recipe, *options, "--output_dir", tmp_path / name, launcher=using))
        results.append(read_results(tmp_path / name))
    assert results[0]["headline"] == results[1]["headline"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", IMAGE_RECIPES)
def test_two_processes_write_once(digits, tmp_path, recipe):
    """Launched on two processes, the rows are shared, and one process alone prints and writes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    options = ("--dataset", digits, *SPLITS, *SMALL, *OPTIONS[recipe], "--output_dir", tmp_path)
    printed = finish(start(recipe, *options, launcher=launcher, ACCELERATE_USE_CPU="true"))
    assert printed.count("Everything is in") == 1
    folder = tmp_path / "converged" if recipe == "error_by_decile" else tmp_path
    assert VoGScores.load(folder / "_vog" / "scores").manifest["n_processes"] == 2


@pytest.mark.slow
def test_toy_under_two_processes(tmp_path):
    """The same figures as one process, up to the order of summation, from rows that are shared by two."""
    commands = {
        "one": (sys.executable,),
        "two": (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
    }
    results = {}
    for name, launcher in commands.items():
        command = [
            *launcher,
            str(EXPERIMENTS / "toy_blobs.py"),
            "--num_train_epochs",
            "3",
            "--output_dir",
            str(tmp_path / name),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(re.findall("Everything is in", done.stdout)) == 1
        results[name] = read_results(tmp_path / name)["headline"]
    assert results["one"] == pytest.approx(results["two"], abs=1e-3)
