"""The recipes, small, through their real command lines."""

import io
import json
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hub_server import ACCEPTED, HubServer
from safetensors import safe_open
from scipy.io import wavfile
from transformers import (
    HfArgumentParser,
    PretrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)
from wandb_runs import inspect

from vog_hf.demo import load_digits_dataset
from vog_hf.errors import DataError, LabelError
from vog_hf.scores.vog_scores import VoGScores

pytestmark = pytest.mark.timeout(900)  # programs that train; several of them start at once

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ROWS = 53
TRAINER = (
    "--num_train_epochs",
    "2",
    "--per_device_train_batch_size",
    "16",
    "--use_cpu",
    "True",
    "--disable_tqdm",
    "True",
)
CLASSES = ("negative", "positive")
TEXT, SOUND, TIMM, CURATE = "text_classification", "audio_classification", "timm_accelerate", "curate_and_push"
LORA, OLD, IMAGE = "instruction_tuning_lora", "score_checkpoints", "image_classification"
ALL = (TEXT, SOUND, TIMM, CURATE, LORA, OLD, IMAGE)


def start(recipe, *arguments, launcher=(sys.executable,), **variables):
    """A recipe's own command line, without an account, a network or a second thread."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    command = [*launcher, str(RECIPES / f"{recipe}.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """What a started program printed; it must have ended well."""
    output, errors = process.communicate()  # pytest ends a test that takes too long
    assert process.returncode == 0, errors
    return output


def sentences(n=ROWS):
    """Texts whose class one word gives away."""
    words = {0: "dull", 1: "fine"}
    labels = [i % 2 for i in range(n)]
    texts = [f"the film number {i} is a {words[label]} one , {'really ' * (i % 5)}" for i, label in enumerate(labels)]
    features = Features({"note": Value("int64"), "sentence": Value("string"), "label": ClassLabel(names=CLASSES)})
    return Dataset.from_dict({"note": list(range(n)), "sentence": texts, "label": labels}, features=features)


def sounds(n=ROWS):
    """Clips of a low or a high tone, of different lengths."""
    draw = np.random.default_rng(0)
    clips = []
    for i in range(n):
        seconds = np.arange(800 + 40 * i) / 8000
        tone = np.sin(2 * np.pi * (300 + 500 * (i % 2)) * seconds) + 0.1 * draw.standard_normal(len(seconds))
        file = io.BytesIO()
        wavfile.write(file, 8000, (tone * 10_000).astype(np.int16))
        clips.append({"bytes": file.getvalue(), "path": f"{i}.wav"})
    features = Features(
        {"audio": {"bytes": Value("binary"), "path": Value("string")}, "label": ClassLabel(names=CLASSES)}
    )
    return Dataset.from_dict({"audio": clips, "label": [i % 2 for i in range(n)]}, features=features)


def save_sounds(folder, rows):
    """A folder of sounds with one subfolder per class."""
    for number, row in enumerate(rows):
        path = folder / CLASSES[row["label"]] / f"{number:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["audio"]["bytes"])
    return folder


def save_images(folder, rows):
    """A folder of images with one subfolder per class."""
    for number, row in enumerate(rows):
        path = folder / str(row["label"]) / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    return folder


def save_parquet(path, rows):
    """A parquet file of rows."""
    rows.to_parquet(path)
    return path


def place_of(recipe, output):
    """Where a recipe leaves its scores."""
    return output / ("scores" if recipe in (TIMM, OLD) else "_vog/scores")


@pytest.fixture
def run_here(monkeypatch):
    """A recipe in this process, as its command line starts it, except for the imports; the log stays as it was."""
    logger = logging.getLogger("vog_hf")
    level = logger.level

    def run(recipe, *arguments):
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")

    yield run
    logger.setLevel(level)


# --- the default tier: what every recipe is, and one that runs --------------------------------------------------------


@pytest.mark.parametrize("recipe", ALL)
def test_a_recipe_is_read_at_a_sitting(recipe):
    """A recipe is short, and its header says what it needs, how long it takes and what to expect."""
    text = (RECIPES / f"{recipe}.py").read_text(encoding="utf-8")
    assert 80 <= len(text.splitlines()) <= (165 if recipe == CURATE else 150)  # which trains three times
    header = text.split('"""')[1]
    for part in (
        "Needs: pip install",
        f"python recipes/{recipe}.py --dataset",
        "In --output_dir: ",
        "Time on",
        "Expected: ",
    ):
        assert part in header, part


def documented_commands():
    """Each command for a recipe in headers and READMEs: its recipe and its arguments."""
    found = []
    for path in [*RECIPES.rglob("*.py"), *RECIPES.rglob("*.md"), *RECIPES.rglob("*.sbatch")]:
        text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
        found += re.findall(r"recipes/(\w+)\.py +(--[^\n`]*)", text)
    return [(recipe, shlex.split(arguments)) for recipe, arguments in found if "..." not in arguments]


@pytest.mark.parametrize("recipe", ALL)
def test_documented_commands_are_taken(recipe):
    """Every command that a header or a page gives for a recipe is one that its parser takes."""
    commands = [arguments for name, arguments in documented_commands() if name == recipe]
    assert len(commands) >= 2
    names = runpy.run_path(str(RECIPES / f"{recipe}.py"))
    parser = HfArgumentParser([names[name] for name in ("Arguments", "TrainingArguments") if name in names])
    for arguments in commands:
        assert parser.parse_args(arguments).dataset


def test_a_training_and_its_old_checkpoints_give_the_same_scores(run_here, tmp_path, capsys):
    """A classifier is trained and its rows are scored; scored again from its checkpoints, no score differs in a bit."""
    sentences().to_parquet(tmp_path / "texts.parquet")
    sentences(20).to_parquet(tmp_path / "more.parquet")
    run, again, found = tmp_path / "run", tmp_path / "again", tmp_path / "run" / "_vog" / "scores"
    options = (
        "--eval_dataset",
        tmp_path / "more.parquet",
        *TRAINER,
        "--snapshots",
        "epoch",
        "--save_strategy",
        "epoch",
    )
    run_here(TEXT, "--dataset", tmp_path / "texts.parquet", *options, "--output_dir", run)
    old = ("--checkpoints", run, "--compare_with", found, "--output_dir", again)
    run_here(OLD, "--dataset", tmp_path / "texts.parquet", *old)
    assert f"largest difference from {found}, relative: 0.0e+00" in capsys.readouterr().out
    scores, others = VoGScores.load(again / "scores"), VoGScores.load(found)
    assert [snapshot["name"] for snapshot in scores.manifest["snapshots"]] == ["checkpoint-4", "checkpoint-8"]
    np.testing.assert_array_equal(scores.column("vog"), others.column("vog"))
    table = pd.read_parquet(run / "scored.parquet")
    assert table["sentence"].tolist() == sentences()["sentence"][:]
    assert not {"input_ids", "labels", "attention_mask"} & set(table)
    assert "the film number 7" in (run / "report.html").read_text()
    assert 0 <= json.loads((run / "eval_results.json").read_text())["eval_accuracy"] <= 1


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (
            TEXT,
            ("--label_column", "y"),
            "the dataset has no column 'y'; name one of its columns: note, sent",
        ),
        (TEXT, ("--train_split", "test"), "with split 'test' cannot be loaded: Unknown split"),
        (IMAGE, (), "the dataset has no image column; name one of its columns: note, sentence, label"),
        (LORA, ("--model", "x"), "the dataset has no column 'prompt'"),
    ],
)
def test_wrong_data_ends_a_recipe_before_it_trains(run_here, tmp_path, recipe, options, message):
    """The library's own error names what is missing and what there is; nothing is trained or written."""
    sentences(20).to_parquet(tmp_path / "texts.parquet")
    with pytest.raises(DataError, match=re.escape(message)):
        run_here(recipe, "--dataset", tmp_path / "texts.parquet", *options, "--output_dir", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    "wrong", [(), ("--revisions", "main"), ("--revisions", "a", "--checkpoints", "b", "--model", "c")]
)
def test_old_checkpoints_are_in_one_place(run_here, wrong, capsys):
    """Checkpoints here and revisions there do not go together, and revisions need a model."""
    with pytest.raises(SystemExit):
        run_here(OLD, "--dataset", "x", *wrong)
    assert "pass either --checkpoints, or --revisions with the --model" in capsys.readouterr().err


def test_tokenizer_of_the_same_texts_is_the_same():
    """Trained again, the tokenizer from scratch gives every token the same number, so that a seed fixes a run."""
    train = runpy.run_path(str(RECIPES / f"{TEXT}.py"))["train_tokenizer"]
    first, *others = (train(sentences()["sentence"][:]) for _ in range(4))
    assert all(other.get_vocab() == first.get_vocab() for other in others)
    assert first.tokenize("a really dull film") == ["a", "really", "dull", "film"]
    assert first("film")["input_ids"] == [2, first.get_vocab()["film"], 3]


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["low", "high"], ["high", "low", "high"], [1, 0, 1]),
        (["high", "low"], [0, 1, 0], [1, 0, 1]),  # the same names in another order
        (["high", "low", "other"], [0, 1, 0], [1, 0, 1]),  # a class that no row has
        (["high"], [0, 0, 0], [1, 1, 1]),  # one class of two
        (["0", "1"], [0, 1, 0], [0, 1, 0]),  # classes without names: their numbers
        (None, [1, 0, 1], [1, 0, 1]),
    ],
)
def test_old_checkpoints_get_their_own_classes(names, labels, expected):
    """Labels are the model's classes by name, as at the command line; a class of another name is refused."""
    match = runpy.run_path(str(RECIPES / f"{OLD}.py"))["with_classes_of"]
    model = SimpleNamespace(config=PretrainedConfig(id2label={0: "low", 1: "high"}, label2id={"low": 0, "high": 1}))
    rows = Dataset.from_dict({"label": labels})
    if names is not None and not isinstance(labels[0], str):
        rows = rows.cast_column("label", ClassLabel(names=names))
    assert match(model, rows, "label")["label"][:] == expected
    with pytest.raises(LabelError, match="row 1: label column 'label' holds 'yes', which is not a class of the model"):
        match(model, Dataset.from_dict({"label": ["low", "yes"]}), "label")
    with pytest.raises(LabelError, match="1 of 1 rows have no label"):
        match(model, Dataset.from_dict({"label": [None]}, features=Features({"label": Value("int64")})), "label")


# --- the slow tier: every recipe runs -----------------------------------------------------------------------


def parquet_bytes(rows):
    """The content of a parquet file of rows."""
    file = io.BytesIO()
    rows.to_parquet(file)
    return file.getvalue()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Training and test rows of each kind, and two small models each for images and for questions on numbers."""
    folder = tmp_path_factory.mktemp("sources")
    rows = {"texts": sentences(ROWS + 20), "images": load_digits_dataset().select(range(ROWS + 20))}
    for kind, found in {**rows, "sounds": sounds(ROWS + 20)}.items():
        parts = DatasetDict(train=found.select(range(ROWS)), test=found.select(range(ROWS, ROWS + 20)))
        parts.save_to_disk(str(folder / kind))
        for split, part in parts.items():
            part.to_parquet(folder / f"{kind}-{split}.parquet")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=10)
    for name in ("first", "last"):
        ResNetForImageClassification(config).save_pretrained(folder / name)
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / name)
    make = ("--n_rows", ROWS, "--wrong_answers", "0.2", "--epochs", "1", "--output_dir", folder / "numbers")
    finish(start("experiments/number_questions", *make))
    return folder


def options_of(recipe, folder):
    """What a recipe is started with, besides the rows and the output folder."""
    small = {
        TEXT: ("--eval_split", "test"),
        SOUND: ("--eval_split", "test", "--model", "scratch:waveform"),
        IMAGE: ("--eval_split", "test", "--image_size", "32", "--vog_target", "logit", "loss", "--snapshots", "2,3,4"),
        CURATE: ("--share", "0.3", "--column", "loss"),
        LORA: ("--model", folder / "numbers" / "model"),
        TIMM: (
            "--eval_split",
            "test",
            "--model",
            "test_resnet",
            "--image_size",
            "32",
            "--epochs",
            "2",
            "--batch_size",
            "16",
        ),
        OLD: ("--checkpoints", folder / "first", folder / "last"),
    }[recipe]
    return small if recipe in (TIMM, OLD) else (*small, *TRAINER)


def rows_of(recipe, folder):
    """Where the rows of a recipe are."""
    if recipe == LORA:
        return folder / "numbers" / "questions.parquet"
    return folder / {TEXT: "texts", SOUND: "sounds"}.get(recipe, "images")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ALL)
def test_a_recipe_runs(sources, tmp_path, recipe):
    """Started by its command line, a recipe writes every row with its scores, and a report."""
    output = tmp_path / "out"
    command = ("--dataset", rows_of(recipe, sources), *options_of(recipe, sources), "--output_dir", output)
    printed = finish(start(recipe, *command))
    assert printed.count("Everything is in") == 1
    table, scores = pd.read_parquet(output / "scored.parquet"), VoGScores.load(place_of(recipe, output))
    np.testing.assert_array_equal(table["vog"], scores.column("vog"))
    assert len(table) == ROWS
    assert (output / "report.html").stat().st_size > 10_000
    if "--eval_split" in command:
        assert 0 <= json.loads((output / "eval_results.json").read_text())["eval_accuracy"] <= 1
    {IMAGE: check_image, SOUND: check_sound, LORA: check_lora, CURATE: check_curated}.get(recipe, lambda *_: None)(
        output, table, scores
    )


def check_image(output, table, scores):
    """Targets and steps are those of the command line, and there is a contact sheet."""
    assert scores.manifest["config"]["target"] == ["logit", "loss"]
    assert [snapshot["step"] for snapshot in scores.manifest["snapshots"]] == [2, 3, 4]
    assert "vog_loss_class_normalized" in table
    assert (output / "contact-sheet.png").stat().st_size > 1000


def check_sound(output, table, scores):
    """The heat map of a padded waveform covers the clip alone, and its mean is the score."""
    assert len(scores.heat_map(0)) == 800
    assert scores.heat_map(0).mean() == pytest.approx(scores.column("vog")[0], rel=1e-3)


def check_lora(output, table, scores):
    """A snapshot holds the adapter alone; the score of a row is the mean over its prompt's and its answer's tokens."""
    for path in (output / "_vog" / "snapshots").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert all("lora_" in name for name in file.keys())  # noqa: SIM118 (not a mapping)
    assert table["is_corrupted"].sum() == round(0.2 * ROWS)
    n_prompt = table["prompt"].map(lambda text: sum(len(w) if w.isdigit() else 1 for w in text.split()))
    n_answer = table["answer"].map(lambda text: len(text) if text.isdigit() else 1)
    whole = (table["vog_prompt"] * n_prompt + table["vog_answer"] * n_answer) / (n_prompt + n_answer + 1)  # its end: 0
    np.testing.assert_allclose(whole, table["vog"], rtol=5e-3)


def check_curated(output, table, scores):
    """The highest rows by the column have weight 0, and the accuracies of the three trainings are recorded."""
    dropped = table["training_weight"] == 0
    assert dropped.sum() == round(0.3 * ROWS)
    assert table["loss"][dropped].min() >= table["loss"][~dropped].max()
    headline = json.loads((output / "results.json").read_text())["headline"]
    assert [name for name in headline if name.startswith("test accuracy")] == [
        "test accuracy, all rows",
        "test accuracy, without the highest 30% by loss",
        "test accuracy, without as many rows at random",
    ]


@pytest.mark.slow
def test_the_loop_logs_to_its_tracker(sources, tmp_path):
    """With --with_tracking the run that Accelerate started holds the losses and the scores; an earlier run is kept."""
    folder = str(tmp_path)
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_DATA_DIR": folder, "WANDB_SILENT": "true"}
    command = ("--dataset", sources / "images", *options_of(TIMM, sources), "--output_dir", tmp_path / "out")
    finish(start(TIMM, *command, "--with_tracking", **offline))
    (path,) = {path.resolve() for path in tmp_path.rglob("run-*.wandb")}  # older clients link to the latest
    logged = {key for record in inspect(path) if record["type"] == "history" for key in record["history"]["item"]}
    assert {"train/loss", "vog/n_rows", "vog/highest.path"} <= logged
    again = start(TIMM, *command)
    assert "exists; name a new folder" in again.communicate()[1]


@pytest.mark.slow
def test_a_training_on_hub_rows_is_pushed_there(sources, tmp_path):
    """Rows come from the Hub by their id; with scores and weights they go to a private dataset there."""
    with HubServer() as hub:
        files = {
            f"data/{split}-00000-of-00001.parquet": (sources / f"images-{split}.parquet").read_bytes()
            for split in ("train", "test")
        }
        hub.repository("someone/rows", kind="datasets").commit(files)
        online = {**hub.environment(tmp_path / "hub"), "HF_TOKEN": ACCEPTED}
        push = ("--push_to", "someone/curated", "--private", "--train_split", "train[:40]")
        command = ("--dataset", "someone/rows", *options_of(CURATE, sources), *push, "--output_dir", tmp_path / "out")
        assert "someone/curated" in finish(start(CURATE, *command, **online))
        files, is_private = dict(hub.dataset("someone/curated").files()), hub.dataset("someone/curated").private
    assert is_private
    (data,) = [content for name, content in files.items() if re.fullmatch(r"data/train-.*\.parquet", name)]
    pushed, table = pd.read_parquet(io.BytesIO(data)), pd.read_parquet(tmp_path / "out" / "scored.parquet")
    pd.testing.assert_series_equal(pushed["training_weight"], table["training_weight"])
    pd.testing.assert_series_equal(pushed["vog"], table["vog"])
    assert "without the highest 30%" in files["README.md"].decode()


@pytest.mark.slow
def test_a_hub_id_is_trained_on_and_its_revisions_are_scored(tmp_path):
    """A recipe runs on a dataset of the Hub; models pushed there as revisions are scored from there."""
    with HubServer() as hub:
        online = {**hub.environment(tmp_path / "hub"), "HF_TOKEN": ACCEPTED}
        content = parquet_bytes(sentences())
        hub.repository("someone/texts", kind="datasets").commit({"data/train-00000-of-00001.parquet": content})
        options = ("--dataset", "someone/texts", "--output_dir", tmp_path / "run", *TRAINER)
        finish(start(TEXT, *options, "--save_strategy", "epoch", "--snapshots", "epoch", **online))
        model = hub.repository("someone/model")
        for number, folder in enumerate((tmp_path / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-8")):
            files = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")]
            model.commit({path.name: path.read_bytes() for path in files}, f"epoch-{number + 1}")
        old = ("--dataset", "someone/texts", "--model", "someone/model", "--revisions", "epoch-1", "epoch-2")
        finish(start(OLD, *old, "--output_dir", tmp_path / "out", **online))
    ours, theirs = (
        VoGScores.load(path) for path in (tmp_path / "out" / "scores", tmp_path / "run" / "_vog" / "scores")
    )
    np.testing.assert_array_equal(ours.column("vog"), theirs.column("vog"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [SOUND, IMAGE])
def test_scores_do_not_depend_on_where_the_rows_are(sources, tmp_path, recipe):
    """The same rows from save_to_disk and from a folder of files, one subfolder per class: the same scores."""
    rows = DatasetDict.load_from_disk(str(rows_of(recipe, sources)))["train"].sort("label")
    rows.save_to_disk(str(tmp_path / "saved"))
    (save_sounds if recipe == SOUND else save_images)(tmp_path / "files", rows)
    small = ("--model", "scratch:waveform") if recipe == SOUND else ("--image_size", "32")
    found = []
    for source in ("saved", "files"):
        finish(
            start(recipe, "--dataset", tmp_path / source, *small, *TRAINER, "--output_dir", tmp_path / f"{source}-out")
        )
        found.append(VoGScores.load(place_of(recipe, tmp_path / f"{source}-out")).column("vog"))
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ALL)
def test_two_processes_write_once(sources, tmp_path, recipe):
    """Launched on two processes, the rows are shared, and one process alone prints and writes."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    output = tmp_path / "out"
    command = ("--dataset", rows_of(recipe, sources), *options_of(recipe, sources), "--output_dir", output)
    printed = finish(start(recipe, *command, launcher=launcher, ACCELERATE_USE_CPU="true"))
    assert printed.count("Everything is in") == 1
    scores = VoGScores.load(place_of(recipe, output))
    assert (len(scores), scores.manifest["n_processes"]) == (ROWS, 2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [TEXT, TIMM])
def test_accelerate_launch(sources, tmp_path, recipe):
    """Started by `accelerate launch`, a recipe gives the scores that `python` gives."""
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    found = []
    for name, using in (("python", (sys.executable,)), ("accelerate", launcher)):
        output = tmp_path / name
        command = ("--dataset", rows_of(recipe, sources), *options_of(recipe, sources), "--output_dir", output)
        finish(start(recipe, *command, launcher=using))
        found.append(VoGScores.load(place_of(recipe, output)).column("vog"))
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_a_killed_training_resumes(sources, tmp_path):
    """--resume_from_checkpoint True starts again where there is no checkpoint, and else from the last one."""
    command = ("--dataset", sources / "texts", *TRAINER, "--save_strategy", "epoch", "--output_dir", tmp_path)
    finish(start(TEXT, *command, "--resume_from_checkpoint", "True"))
    finish(start(TEXT, *command, "--resume_from_checkpoint", "True", "--num_train_epochs", "3"))
    assert json.loads((tmp_path / "checkpoint-12" / "trainer_state.json").read_text())["global_step"] == 12
    assert len(VoGScores.load(tmp_path / "_vog" / "scores")) == ROWS
