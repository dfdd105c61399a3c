import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

from vog_hf.demo import load_digits_dataset
from vog_hf.evaluation import error_by_decile
from vog_hf.scores.vog_scores import VoGScores

pytestmark = pytest.mark.timeout(900)  # programs that train; several of them start at once

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "image_classification.py"
ROWS = 53
SMALL = ["--image_size", "32", "--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--use_cpu", "True"]


def start(*arguments, launcher=(sys.executable,), **variables):
    """The recipe's own command line, without an account, a network or a second thread."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    command = [*launcher, str(RECIPE), "--disable_tqdm", "True", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """A started program once it has ended, with what it printed."""
    output, errors = process.communicate(timeout=900)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def digits(n=ROWS):
    """The first ``n`` handwritten digits."""
    return load_digits_dataset().select(range(n))


def save_parquet(path, rows):
    """A parquet file of rows."""
    rows.to_parquet(path)
    return path


def save_images(folder, rows):
    """A folder of images with one subfolder per class."""
    for number, row in enumerate(rows):
        (folder / f"digit-{row['label']}").mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / f"digit-{row['label']}" / f"{number:03d}.png")
    return folder


def save_splits(folder, rows):
    """A DatasetDict under other names, with numbers for labels, and a column whose name the scores do not use."""
    features = Features({"scan": Image(), "note": Value("string"), "digit": Value("int64")})
    columns = {"scan": rows["image"][:], "note": ["a"] * len(rows), "digit": rows["label"][:]}
    DatasetDict({"first": Dataset.from_dict(columns, features=features)}).save_to_disk(str(folder))
    return folder


def save_resnet(folder, n_classes):
    """A folder with a small ResNet for ``n_classes`` and its image processor."""
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=n_classes
    )
    ResNetForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_timm(folder, n_classes):
    """A folder with timm's smallest ResNet for ``n_classes``."""
    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=n_classes, pretrained_cfg=shape)
    TimmWrapperForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """A function that gives the output folder and the finished process of runs; those of one call go on together."""
    folder = tmp_path_factory.mktemp("recipe")
    rows = digits()
    commands = {
        "parquet": [
            *("--dataset", save_parquet(folder / "digits.parquet", rows), "--eval_split", "train[40:]", *SMALL),
            *("--vog_target", "logit", "loss", "--vog_label", "predicted", "--snapshots", "2,4,8"),
        ],
        "images": [
            *("--dataset", save_images(folder / "images", rows), *SMALL, "--collect", "live", "--snapshots", "epoch"),
            *("--model", save_timm(folder / "timm", 10), "--max_train_samples", "40"),
        ],
        "saved": [
            *("--dataset", save_splits(folder / "saved", rows), "--train_split", "first"),
            *("--image_column", "scan", "--label_column", "digit"),
            *("--model", save_resnet(folder / "resnet", 3), "--ignore_mismatched_sizes", *SMALL, "--no_augment"),
        ],
        "wrong": ["--dataset", folder / "digits.parquet", "--label_column", "klass"],
    }

    def launch(*names):
        started = {name: start(*commands[name], "--output_dir", folder / f"{name}-out") for name in names}
        return {name: (folder / f"{name}-out", finish(process)) for name, process in started.items()}

    return launch


@pytest.fixture(scope="module")
def runs(launched):
    """One run, and one that is stopped by a wrong option."""
    return launched("parquet", "wrong")


@pytest.fixture(scope="module")
def more_runs(launched):
    """Runs on other sources, with other models."""
    return launched("images", "saved")


def check_results(runs, name, label, n_rows):
    """Accuracy and deciles in results.json follow from the scored file, which holds every row with its scores."""
    results, table = read_run(runs, name)
    wrong = table["prediction"] != table[label]
    assert results["rows"] == len(table) == n_rows
    assert results["train_accuracy"] == pytest.approx(1 - wrong.mean())
    assert {"vog", "vog_class_normalized", "loss"} <= set(results["error_by_decile"])
    for column, errors in results["error_by_decile"].items():
        assert errors == pytest.approx(error_by_decile(table[column], 1 - table["correctness"])["error"].tolist())
    spearman = table[["vog", "loss"]].corr(method="spearman").loc["vog", "loss"]
    assert results["spearman"]["vog"]["loss"] == pytest.approx(spearman)
    assert results["training_seconds"] > 0
    assert results["scoring_seconds"] >= 0


def check_output_folder(runs, name):
    """Saved data set, parquet file and scores folder agree; sheet and model are there, and the text says where."""
    output, finished = runs[name]
    _, table = read_run(runs, name)
    saved = load_from_disk(str(output / "scored"))
    scores = VoGScores.load(output / "_vog" / "scores")
    assert any(isinstance(feature, Image) for feature in saved.features.values())
    np.testing.assert_array_equal(table["vog"], np.asarray(saved["vog"][:], dtype=np.float32))
    np.testing.assert_array_equal(table["vog"], scores.column("vog"))
    assert (output / "contact-sheet.png").stat().st_size > 1000
    assert (output / "model.safetensors").is_file()
    for expected in ("training", "scoring", "accuracy", "vog_class_normalized", "Spearman", str(output)):
        assert expected in finished.stdout


def read_run(runs, name):
    """results.json and the scored rows of a run."""
    assert runs[name][1].returncode == 0, runs[name][1].stderr
    return json.loads((runs[name][0] / "results.json").read_text()), pd.read_parquet(runs[name][0] / "scored.parquet")


def test_results_and_output_folder(runs):
    """What is written and printed of a run from scratch agrees with its scores, of which every row has some."""
    check_results(runs, "parquet", "label", ROWS)
    check_output_folder(runs, "parquet")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "label", "n_rows"), [("images", "label", 40), ("saved", "digit", ROWS)])
def test_other_sources_and_models(more_runs, name, label, n_rows):
    """So it is of a folder of images with a timm model, and of a saved data set with a pretrained one."""
    check_results(more_runs, name, label, n_rows)
    check_output_folder(more_runs, name)


def test_options_reach_the_scores(runs):
    """Targets, label and steps of the snapshots are those of the command line."""
    results, table = read_run(runs, "parquet")
    manifest = VoGScores.load(runs["parquet"][0] / "_vog" / "scores").manifest
    assert manifest["config"]["target"] == ["logit", "loss"]
    assert manifest["config"]["label"] == "predicted"
    assert results["snapshots"] == [2, 4, 8]
    assert {"vog", "vog_loss", "vog_loss_class_normalized"} <= set(table)
    assert (runs["parquet"][0] / "contact-sheet-vog_loss.png").is_file()
    assert 0 <= results["eval_accuracy"] <= 1


@pytest.mark.slow
def test_live_scores_of_a_folder_of_images(more_runs):
    """The way of collecting is that of the command line; classes have the names of the folders."""
    manifest = VoGScores.load(more_runs["images"][0] / "_vog" / "scores").manifest
    assert manifest["collect"] == "live"
    assert manifest["class_names"][3] == "digit-3"
    assert manifest["model"]["class"] == "TimmWrapperForImageClassification"


@pytest.mark.slow
def test_numbers_as_labels_become_classes(more_runs):
    """A label column of numbers is scored and saved as classes, in a new head of the pretrained model."""
    saved = load_from_disk(str(more_runs["saved"][0] / "scored"))
    assert isinstance(saved.features["digit"], ClassLabel)
    assert saved.features["digit"].int2str(saved["digit"][:]) == [str(label) for label in digits()["label"]]
    assert json.loads((more_runs["saved"][0] / "config.json").read_text())["id2label"]["9"] == "9"


def test_error_is_one_line(runs):
    """A wrong option ends the program with one line and a failing exit code, before anything is written."""
    output, finished = runs["wrong"]
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == (
        "error: --label_column 'klass' is not a column of the data set; it has ['image', 'label']"
    )
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    assert not output.exists()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Parquet files that lack something each, a good one, and a model for three classes."""
    folder = tmp_path_factory.mktemp("sources")
    rows = digits(20)
    save_parquet(folder / "good.parquet", rows)
    save_parquet(folder / "no-image.parquet", rows.remove_columns("image"))
    save_parquet(folder / "no-class.parquet", rows.rename_column("label", "y").cast_column("y", Value("int64")))
    save_parquet(folder / "scored.parquet", rows.add_column("vog", [0.0] * 20))
    missing = [*rows["label"][:-1], -1]
    save_parquet(
        folder / "unlabelled.parquet",
        rows.remove_columns("label").add_column("label", missing, feature=rows.features["label"]),
    )
    save_resnet(folder / "three-classes", 3)
    return folder


@pytest.fixture
def run_here(monkeypatch):
    """The recipe in this process, with these arguments; the logger is left as it was."""
    logger = logging.getLogger("vog_hf")
    level = logger.level

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, arguments)])
        runpy.run_path(str(RECIPE), run_name="__main__")

    yield run
    logger.setLevel(level)


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("nowhere", [], "nowhere with split 'train' cannot be loaded"),
        ("good.parquet", ["--train_split", "nosplit"], "cannot be loaded: Unknown split"),
        ("good.parquet", ["--image_column", "img"], "--image_column 'img' is not a column"),
        ("good.parquet", ["--image_column", "label"], "--image_column 'label' holds ClassLabel.*expected images"),
        ("no-image.parquet", [], r"no column is of type Image; name one of \['label'\] with --image_column"),
        ("no-class.parquet", [], "no column is of type ClassLabel; .*--label_column"),
        ("unlabelled.parquet", [], "rows of split 'train' have no label in column 'label'"),
        ("scored.parquet", [], "has a column 'vog' already"),
        (
            "good.parquet",
            ["--model", "scratch:resnet99"],
            "there are small-resnet, resnet18, resnet18-cifar, resnet50, vit-tiny",
        ),
        ("good.parquet", ["--model", "nowhere/model"], "--model nowhere/model cannot be loaded"),
        ("good.parquet", ["--model", "{folder}/three-classes"], "has not 10 outputs; --ignore_mismatched_sizes"),
        ("good.parquet", ["--vog_target", "logits"], "target must be logit, probability, loss"),
        ("good.parquet", ["--collect", "live", "--vog_label", "predicted"], "use collect='replay'"),
    ],
)
def test_error_lines(sources, run_here, file, arguments, message):
    """What is wrong with data, columns, model or options is said in one line that names the option."""
    arguments = [argument.format(folder=sources) for argument in arguments]
    with pytest.raises(SystemExit, match=message) as stopped:
        run_here("--dataset", sources / file, "--output_dir", sources / "out", "--use_cpu", "True", *arguments)
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)


def test_help_shows_the_defaults_of_the_recipe(run_here, capsys):
    """--help lists the recipe's own options with what they default to."""
    with pytest.raises(SystemExit) as stopped:
        run_here("--help")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: scratch:small-resnet)" in text
    assert "'train[:90%]'" in text


@pytest.mark.slow
def test_two_processes_write_once(tmp_path):
    """Launched on two processes, the rows are shared, and one process alone prints and writes."""
    path = save_parquet(tmp_path / "digits.parquet", digits())
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    output = tmp_path / "out"
    options = [*SMALL, "--snapshots", "epoch"]
    finished = finish(
        start("--dataset", path, "--output_dir", output, *options, launcher=launcher, ACCELERATE_USE_CPU="true")
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((output / "results.json").read_text())
    assert finished.stdout.count("Everything is in") == 1
    assert results["rows"] == ROWS
    assert VoGScores.load(output / "_vog" / "scores").manifest["n_processes"] == 2
