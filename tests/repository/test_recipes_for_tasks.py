"""The recipes for texts, sound, instructions, timm, old checkpoints and curation, small, by their command lines."""

import io
import json
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import partial
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
    ASTFeatureExtractor,
    BertConfig,
    BertForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
    WhisperFeatureExtractor,
)
from wandb_runs import inspect

from vog_hf.demo import load_digits_dataset
from vog_hf.errors import LabelError
from vog_hf.evaluation import error_by_decile
from vog_hf.scores.vog_scores import VoGScores

pytestmark = pytest.mark.timeout(900)  # programs that train; several of them start at once

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
ROWS = 53
TRAINER = ("--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--use_cpu", "True")
CLASSES = ("negative", "positive")


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


def questions(n):
    """Prompts on numbers and their answers."""
    answers = ["even" if i % 2 == 0 else "odd" for i in range(n)]
    return Dataset.from_dict({"prompt": [f"is {i} even or odd ?" for i in range(n)], "answer": answers})


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


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Output folder and printed text of each recipe; they go on at the same time, since most of it is importing."""
    folder = tmp_path_factory.mktemp("recipes")
    texts, clips, digits = sentences(), sounds(), load_digits_dataset().select(range(ROWS))
    pictures = save_parquet(folder / "digits.parquet", digits)
    with HubServer() as hub:
        online = {**hub.environment(folder / "hub"), "HF_TOKEN": ACCEPTED}
        offline = {
            "WANDB_MODE": "offline",
            "WANDB_DIR": str(folder),
            "WANDB_DATA_DIR": str(folder),
            "WANDB_SILENT": "true",
        }
        commands = {
            "text_classification": (
                [
                    *("--dataset", save_parquet(folder / "texts.parquet", texts), "--eval_dataset"),
                    *(save_parquet(folder / "more.parquet", sentences(20)), *TRAINER, "--snapshots", "epoch"),
                    *("--save_strategy", "epoch"),
                ],
                {},
            ),
            "audio_classification": (
                ["--dataset", save_sounds(folder / "sounds", clips), "--model", "scratch:waveform", *TRAINER],
                {},
            ),
            "instruction_tuning_lora": (
                [
                    *("--dataset", "synthetic", "--n_synthetic", ROWS, "--wrong_answers", "0.2", *TRAINER),
                    *("--pretraining_epochs", "1", "--trainer", "transformers"),
                ],
                {},
            ),
            "timm_accelerate": (
                [
                    *("--dataset", pictures, "--eval_split", "train[40:]", "--model", "test_resnet"),
                    *("--image_size", "32", "--epochs", "2", "--batch_size", "16", "--with_tracking"),
                ],
                offline,
            ),
            "curate_and_push": (
                [
                    *("--dataset", pictures, "--train_split", "train[:40]", "--eval_split", "train[40:]", *TRAINER),
                    *("--share", "0.3", "--column", "loss", "--push_to", "someone/curated", "--private"),
                ],
                online,
            ),
        }
        started = {
            name: start(name, *command, "--output_dir", folder / name, **variables)
            for name, (command, variables) in commands.items()
        }
        printed = {name: finish(process) for name, process in started.items()}
        pushed = dict(hub.dataset("someone/curated").files()), hub.dataset("someone/curated").private
    return {name: (folder / name, printed[name]) for name in printed} | {"folder": folder, "pushed": pushed}


def read_run(runs, name, table="scored.parquet"):
    """results.json and the scored rows of a run."""
    folder, printed = runs[name]
    assert str(folder) in printed.splitlines()[-1] or "someone/curated" in printed.splitlines()[-1]
    results = json.loads((folder / "results.json").read_text())
    assert all(np.isfinite(value) for value in results["headline"].values())
    return results, pd.read_parquet(folder / table)


@pytest.mark.parametrize("name", ["text_classification", "audio_classification", "timm_accelerate"])
def test_results_are_those_of_the_scored_rows(runs, name):
    """Accuracy, deciles and headline in results.json follow from the scored file, which holds every row."""
    results, table = read_run(runs, name)
    assert results["rows"] == len(table) == ROWS
    assert results["train_accuracy"] == pytest.approx((table["prediction"] == table["label"]).mean())
    mistakes = 1 - table["correctness"]
    for column, errors in results["error_by_decile"].items():
        assert errors == pytest.approx(error_by_decile(table[column], mistakes)["error"].tolist(), abs=1e-6)
    highest = results["headline"]["training error, highest tenth by loss"]
    assert highest == pytest.approx(results["error_by_decile"]["loss"][-1])
    spearman = table[["vog", "loss"]].corr(method="spearman").loc["vog", "loss"]
    assert results["headline"]["rank correlation of vog with loss"] == pytest.approx(spearman)


def test_texts_are_kept_as_they_were(runs):
    """The scored file has the columns of the data and no tokens; test rows come from a file of their own."""
    results, table = read_run(runs, "text_classification")
    assert table["sentence"].tolist() == sentences()["sentence"][:]
    assert not {"input_ids", "labels", "attention_mask"} & set(table)
    assert 0 <= results["eval_accuracy"] <= 1
    assert "the film number 7" in (runs["text_classification"][0] / "report.html").read_text()


def test_tokenizer_of_the_same_texts_is_the_same():
    """Trained again, the tokenizer from scratch gives every token its number again, so that a seed fixes a run."""
    train = runpy.run_path(str(RECIPES / "text_classification.py"))["train_tokenizer"]
    first, *others = (train(sentences()["sentence"][:]) for _ in range(4))
    assert all(other.get_vocab() == first.get_vocab() for other in others)
    assert first.tokenize("a really dull film") == ["a", "really", "dull", "film"]
    assert first("film")["input_ids"] == [2, first.get_vocab()["film"], 3]


def test_added_silence_does_not_count(runs):
    """Of a waveform that was filled up, the heat map covers the clip, and its mean is the score."""
    folder, _ = runs["audio_classification"]
    scores = VoGScores.load(folder / "_vog" / "scores")
    lengths = {row: 800 + 40 * number for row, number in enumerate([*range(0, ROWS, 2), *range(1, ROWS, 2)])}
    short, long = (row for row in lengths if lengths[row] in (800, 800 + 40 * (ROWS - 1)))
    assert len(scores.heat_map(short)) == 800
    assert scores.heat_map(short).mean() == pytest.approx(scores.column("vog")[short], rel=1e-3)
    assert len(scores.heat_map(long)) <= 1024
    assert (folder / "clips.png").stat().st_size > 10_000


def test_snapshots_are_adapters_and_parts_make_up_the_score(runs):
    """A snapshot holds the adapter alone; a row's score is the mean over its prompt's and its answer's tokens."""
    folder, _ = runs["instruction_tuning_lora"]
    results, table = read_run(runs, "instruction_tuning_lora")
    for path in (folder / "_vog" / "snapshots").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert all("lora_" in name for name in file.keys())  # noqa: SIM118 (not a mapping)
    assert results["trained_parameters"] < results["parameters"]
    assert table["is_corrupted"].sum() == round(0.2 * ROWS)
    n_prompt = table["prompt"].map(lambda text: sum(len(w) if w.isdigit() else 1 for w in text.split()))
    n_answer = table["answer"].map(lambda text: len(text) if text.isdigit() else 1)
    whole = (table["vog_prompt"] * n_prompt + table["vog_answer"] * n_answer) / (n_prompt + n_answer + 1)  # its end: 0
    np.testing.assert_allclose(whole, table["vog"], rtol=5e-3)


def test_the_loop_logs_to_its_tracker(runs):
    """With --with_tracking the run that Accelerate started holds the losses and the scores."""
    (path,) = {path.resolve() for path in runs["folder"].rglob("run-*.wandb")}  # older clients link to the latest
    logged = {key for record in inspect(path) if record["type"] == "history" for key in record["history"]["item"]}
    assert {"train/loss", "vog/n_rows", "vog/highest.path"} <= logged


def test_rows_are_dropped_and_pushed(runs):
    """The highest rows by the column have weight 0, and the rows with scores and weight are on the Hub, privately."""
    results, table = read_run(runs, "curate_and_push", "curated.parquet")
    dropped = table["training_weight"] == 0
    assert dropped.sum() == round(0.3 * 40)
    assert table["loss"][dropped].min() >= table["loss"][~dropped].max()
    assert len(results["test_accuracy"]) == 3
    files, is_private = runs["pushed"]
    assert is_private
    (data,) = [content for name, content in files.items() if re.fullmatch(r"data/train-.*\.parquet", name)]
    pushed = pd.read_parquet(io.BytesIO(data))
    pd.testing.assert_series_equal(pushed["training_weight"], table["training_weight"])
    pd.testing.assert_series_equal(pushed["vog"], table["vog"])
    assert "without the highest 30%" in files["README.md"].decode()


@pytest.fixture
def run_here(monkeypatch):
    """A recipe in this process, with these arguments; the logger is left as it was."""
    logger = logging.getLogger("vog_hf")
    level = logger.level

    def run(recipe, *arguments):
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, arguments)])
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")

    yield run
    logger.setLevel(level)


def test_old_checkpoints_give_the_callbacks_scores(runs, run_here, tmp_path, capsys):
    """Scored again from the checkpoint-* folders of the run, at the same steps, no score differs in a bit."""
    folder, _ = runs["text_classification"]
    found = folder / "_vog" / "scores"
    arguments = ("--dataset", runs["folder"] / "texts.parquet", "--checkpoints", folder, "--compare_with", found)
    run_here("score_checkpoints", *arguments, "--output_dir", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["snapshots"] == ["checkpoint-4", "checkpoint-8"]
    assert results["headline"]["largest difference from them, relative"] == 0
    table = pd.read_parquet(tmp_path / "out" / "scored.parquet")
    np.testing.assert_array_equal(table["vog"], VoGScores.load(found).column("vog"))
    assert "Everything is in" in capsys.readouterr().out


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Data that lacks something each, good data, and models for three classes."""
    folder = tmp_path_factory.mktemp("sources")
    texts, clips, digits = sentences(20), sounds(20), load_digits_dataset().select(range(20))
    for kind, rows in (("texts", texts), ("sounds", clips), ("images", digits)):
        save_parquet(folder / f"{kind}.parquet", rows)
        save_parquet(folder / f"{kind}-unlabelled.parquet", without_a_label(rows))
        save_parquet(folder / f"{kind}-scored.parquet", rows.add_column("vog", [0.0] * 20))
        save_parquet(
            folder / f"{kind}-numbers.parquet", rows.select_columns("label").cast_column("label", Value("int64"))
        )
        other = rows.cast_column("label", ClassLabel(names=[f"other-{name}" for name in rows.features["label"].names]))
        save_parquet(folder / f"{kind}-other.parquet", other)
        DatasetDict(train=rows).save_to_disk(str(folder / f"{kind}-saved"))
    gaps = texts.remove_columns("sentence").add_column("sentence", [None, *texts["sentence"][1:]])
    save_parquet(folder / "texts-with-gaps.parquet", gaps)
    save_parquet(folder / "texts-with-labels.parquet", texts.add_column("labels", [0] * 20))
    save_sounds(folder / "sounds", clips)
    save_images(folder / "images", digits)
    Dataset.from_dict({"prompt": ["a", ""], "answer": ["b", "c"], "n": [1, 2]}).to_parquet(folder / "pairs.parquet")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForSequenceClassification(BertConfig(**small, vocab_size=40, num_labels=3)).save_pretrained(folder / "bert")
    tokenizer = runpy.run_path(str(RECIPES / "text_classification.py"))["train_tokenizer"](texts["sentence"][:])
    tokenizer.save_pretrained(folder / "bert")
    resnet = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(resnet).save_pretrained(folder / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "resnet")
    shape = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
    timm = TimmWrapperConfig(architecture="test_resnet", num_labels=3, pretrained_cfg=shape)
    TimmWrapperForImageClassification(timm).save_pretrained(folder / "timm")
    ears = Wav2Vec2Config(
        **small,
        conv_dim=(4,),
        conv_stride=(80,),
        conv_kernel=(80,),
        num_labels=3,
        num_conv_pos_embeddings=3,
        num_conv_pos_embedding_groups=1,
    )
    Wav2Vec2ForSequenceClassification(ears).save_pretrained(folder / "wav2vec2")
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(folder / "wav2vec2")
    return folder


def without_a_label(rows):
    """The same rows, the last one with no label."""
    labels = [*rows["label"][:-1], -1]
    return rows.remove_columns("label").add_column("label", labels, feature=rows.features["label"])


TEXT, SOUND, TIMM, CURATE = "text_classification", "audio_classification", "timm_accelerate", "curate_and_push"
LORA, OLD, IMAGE = "instruction_tuning_lora", "score_checkpoints", "image_classification"
WRONG = [
    *(
        case
        for recipe, kind in (
            (TEXT, "texts"),
            (SOUND, "sounds"),
            (TIMM, "images"),
            (CURATE, "images"),
            (IMAGE, "images"),
        )
        for case in (
            (recipe, "nowhere", "", "nowhere with split 'train' cannot be loaded"),
            (recipe, f"{kind}-saved", "--eval_split test", "with split 'test' cannot be loaded: Unknown split"),
            (recipe, f"{kind}.parquet", "--eval_split test", "with split 'test' cannot be loaded: Unknown split"),
            (
                recipe,
                f"{kind}.parquet",
                "--label_column y",
                "--label_column 'y' is not a column of the data set; it has",
            ),
            (recipe, f"{kind}-unlabelled.parquet", "", "rows of split 'train' have no label in column 'label'"),
            (recipe, f"{kind}-scored.parquet", "", "has a column 'vog' already"),
            (
                recipe,
                f"{kind}.parquet",
                f"--eval_dataset {{folder}}/{kind}-other.parquet",
                "which is none of the classes",
            ),
        )
    ),
    *(
        (recipe, "images", "--eval_split test", "images with split 'test' cannot be loaded: Unknown split")
        for recipe in (TIMM, CURATE, IMAGE)
    ),
    (CURATE, "images.parquet", "", "with split 'test' cannot be loaded: Unknown split"),
    (CURATE, "images.parquet", "--share 1.5", "--share must lie between 0 and 1, got 1.5"),
    (CURATE, "images.parquet", "--action remove", "--action must be drop or reweight"),
    (CURATE, "images.parquet", "--column vog_los", "--column 'vog_los' is not a column of the scores; they will have"),
    (CURATE, "images.parquet", "--push_to me/data", "--push_to me/data cannot be pushed to"),
    *(
        (recipe, "images.parquet", f"--eval_split train --model {{folder}}/{model}", "has not 10 outputs; --ignore_mis")
        for recipe in (CURATE, IMAGE)
        for model in ("resnet", "timm")
    ),
    (TEXT, "texts.parquet", "--model {folder}/bert", "has not 2 outputs; --ignore_mismatched_sizes"),
    (TEXT, "texts.parquet", "--model scratch:bert", "from scratch there is small-bert"),
    (TEXT, "texts.parquet", "--text_column note", "--text_column 'note' holds Value.*expected texts"),
    (TEXT, "texts-numbers.parquet", "", "no column holds texts; name one of .*with --text_column"),
    (SOUND, "sounds.parquet", "--model {folder}/wav2vec2", "has not 2 outputs; --ignore_mismatched_sizes"),
    (SOUND, "sounds", "--eval_split test", "a folder of sounds, with split 'test' cannot be loaded: Unknown split"),
    (SOUND, "sounds.parquet", "--audio_column label", "--audio_column 'label' holds ClassLabel.*expected audio"),
    (SOUND, "sounds-numbers.parquet", "", "no column holds audio; name one of .*with --audio_column"),
    (TIMM, "images.parquet", "--model resnet0", "--model resnet0 cannot be made"),
    (TIMM, "images.parquet", "--model test_resnet --image_size 32", "20 rows are fewer than a batch of 64 per process"),
    (LORA, "pairs.parquet", "--prompt_column question", "--prompt_column 'question' is not a column"),
    (LORA, "pairs.parquet", "--answer_column n", "--answer_column 'n' holds Value.*expected texts"),
    (LORA, "pairs.parquet", "", "--prompt_column 'prompt' has rows without a text"),
    (LORA, "pairs.parquet", "--wrong_answers 0.1", "--wrong_answers is for --dataset synthetic"),
    (LORA, "texts.parquet", "--train_split test", "with split 'test' cannot be loaded"),
    (OLD, "texts.parquet", "", "say either --checkpoints or --revisions"),
    (OLD, "texts.parquet", "--revisions a b", "--revisions are of a model on the Hub; name it with --model"),
    (OLD, "texts.parquet", "--checkpoints nowhere", "--checkpoints nowhere does not exist"),
    (
        OLD,
        "texts.parquet",
        "--checkpoints {folder}/bert {folder}/bert",
        "the model has 3 outputs and 'label' has 2 classes",
    ),
    *(
        (OLD, source, f"--checkpoints {{folder}}/bert {{folder}}/bert {wrong}", message)
        for source, wrong, message in (
            ("images.parquet", "", "no column holds texts"),
            ("texts-saved", "--split test", "with split 'test' cannot be loaded: Unknown split"),
            ("texts.parquet", "--split test", "with split 'test' cannot be loaded: Unknown split"),
            ("texts.parquet", "--input_column y", "--input_column 'y' is not a column of the data set; it has"),
            ("texts.parquet", "--input_column note", "--input_column 'note' holds Value.*the model takes texts"),
            ("texts.parquet", "--label_column y", "--label_column 'y' is not a column of the data set; it has"),
        )
    ),
    (OLD, "texts.parquet", "--checkpoints {folder}/resnet {folder}/resnet", "no column holds images"),
    (TEXT, "texts-with-gaps.parquet", "", "1 of 20 rows have no text in column 'sentence'; leave them out"),
    (
        TEXT,
        "texts-with-labels.parquet",
        "--label_column label",
        "a column 'labels', as the model's own input is called",
    ),
    *((recipe, "images.parquet", "--label_column image", "expected classes") for recipe in (TIMM, CURATE, IMAGE)),
    (IMAGE, "images.parquet", "--momentum 0.9", "--momentum is of --optim sgd, got --optim adamw"),
    (CURATE, "images.parquet", "--resume_from_checkpoint True", "--resume_from_checkpoint: several trainings"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: " ".join(case[:3]))
def test_error_lines(sources, run_here, case, tmp_path):
    """What is wrong with data, columns, splits, model or options is said in one line before anything is trained."""
    recipe, source, arguments, message = case
    arguments = [argument.format(folder=sources) for argument in shlex.split(arguments)]
    device = () if recipe in (TIMM, OLD) else ("--use_cpu", "True")
    with pytest.raises(SystemExit, match=message) as stopped:
        run_here(recipe, "--dataset", sources / source, "--output_dir", tmp_path / "out", *device, *arguments)
    assert str(stopped.value).startswith("error: ")
    assert "\n" not in str(stopped.value)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def documented_commands():
    """Each command for a recipe in headers and READMEs: its recipe and its arguments."""
    found = []
    for path in [*RECIPES.glob("*.py"), *RECIPES.rglob("README.md"), *RECIPES.rglob("*.sbatch")]:
        text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
        found += re.findall(r"recipes/(\w+)\.py +(--[^\n`]*)", text)
    return [(recipe, shlex.split(arguments)) for recipe, arguments in found if "..." not in arguments]


def test_a_folder_of_an_earlier_run_is_refused(runs, run_here):
    """The loop of one's own trains into no folder that holds snapshots or scores already."""
    folder, _ = runs[TIMM]
    before = sorted((folder / "snapshots").iterdir())
    with pytest.raises(SystemExit, match=r"error: --output_dir .* holds an earlier run; name another folder"):
        run_here(TIMM, "--dataset", runs["folder"] / "digits.parquet", "--output_dir", folder)
    assert sorted((folder / "snapshots").iterdir()) == before


@pytest.mark.parametrize("recipe", [TEXT, SOUND, LORA, IMAGE])
def test_a_killed_training_goes_on(tmp_path, recipe):
    """Of --resume_from_checkpoint True the last checkpoint is taken, and none where there is none yet."""
    choose = runpy.run_path(str(RECIPES / f"{recipe}.py"))["checkpoint_to_resume"]
    for output, expected in (
        (tmp_path / "nothing", None),
        (tmp_path, None),
        (tmp_path / "run", str(tmp_path / "run" / "checkpoint-10")),
    ):
        for step in (9, 10):
            (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        assert choose(SimpleNamespace(resume_from_checkpoint="True", output_dir=str(output))) == expected
    assert choose(SimpleNamespace(resume_from_checkpoint="mine", output_dir=str(tmp_path / "run"))) == "mine"


@pytest.mark.parametrize(
    ("extractor", "expected"),
    [(ASTFeatureExtractor(max_length=80, num_mel_bins=80), 1), (WhisperFeatureExtractor(), 0)],
)
def test_heat_of_a_spectrogram_runs_along_time(extractor, expected):
    """The axis that is averaged away is that of frequencies, wherever the extractor puts it."""
    find = runpy.run_path(str(RECIPES / f"{SOUND}.py"))["frequency_axis"]
    (features,) = extractor([np.zeros(8000)], sampling_rate=16_000)[extractor.model_input_names[0]]
    assert find(features, extractor) == expected


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (["low", "high"], ["high", "low", "high"], [1, 0, 1]),
        (["high", "low"], [0, 1, 0], [1, 0, 1]),  # the same names in another order
        (["no", "yes"], [0, 1, 0], [0, 1, 0]),  # other names: their numbers
        (None, [1, 0, 1], [1, 0, 1]),
    ],
)
def test_old_checkpoints_get_their_own_classes(names, labels, expected):
    """Labels are the model's classes by name; numbers, and classes of other names, are its numbers."""
    match = runpy.run_path(str(RECIPES / f"{OLD}.py"))["with_classes_of"]
    model = SimpleNamespace(config=SimpleNamespace(id2label={0: "low", 1: "high"}, num_labels=2))
    rows = Dataset.from_dict({"label": labels})
    if names is not None and not isinstance(labels[0], str):
        rows = rows.cast_column("label", ClassLabel(names=names))
    assert match(model, rows, "label")["label"][:] == expected
    with pytest.raises(LabelError, match="1 of 1 rows have no label"):
        match(model, Dataset.from_dict({"label": [None]}, features=Features({"label": Value("int64")})), "label")


@pytest.mark.parametrize("recipe", [TEXT, SOUND, TIMM, CURATE, LORA, OLD, IMAGE])
def test_documented_commands_are_taken(recipe):
    """Every command that a header or a README gives for a recipe is one that its parser takes."""
    commands = [arguments for name, arguments in documented_commands() if name == recipe]
    assert len(commands) >= 2
    parser = runpy.run_path(str(RECIPES / f"{recipe}.py"))["make_parser"]()
    for arguments in commands:
        assert parser.parse_args(arguments).dataset


def save_resnets(folder):
    """Two folders, first and last, with a small ResNet for ten classes each and its image processor."""
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=10)
    for name in ("first", "last"):
        ResNetForImageClassification(config).save_pretrained(folder / name)
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / name)


def parquet_bytes(rows):
    """The content of a parquet file of rows."""
    file = io.BytesIO()
    rows.to_parquet(file)
    return file.getvalue()


# Rows and options of each recipe, and what writes the rows as a folder of files.
SOURCES = {
    TEXT: (partial(sentences, ROWS + 20), TRAINER, None),
    SOUND: (partial(sounds, ROWS + 20), TRAINER, save_sounds),
    LORA: (partial(questions, ROWS + 20), (*TRAINER, "--pretraining_epochs", "1"), None),
    IMAGE: (load_digits_dataset, ("--image_size", "32", *TRAINER), save_images),
    CURATE: (load_digits_dataset, TRAINER, save_images),
    TIMM: (
        load_digits_dataset,
        ("--model", "test_resnet", "--image_size", "32", "--epochs", "2", "--batch_size", "16"),
        save_images,
    ),
    OLD: (load_digits_dataset, ("--checkpoints", "{folder}/first", "{folder}/last"), save_images),
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SOURCES)
def test_scores_do_not_depend_on_where_the_rows_are(tmp_path, recipe):
    """The same rows, and test rows, from save_to_disk, from the Hub and from a folder of files: the same scores."""
    make_rows, options, save_files = SOURCES[recipe]
    options = [option.format(folder=tmp_path) for option in options]
    if recipe in (IMAGE, TIMM, TEXT):
        options += ["--eval_split", "test"]
    if recipe == OLD:
        save_resnets(tmp_path)
    parts = make_parts(make_rows(), is_by_class=save_files is not None)
    sources = [*save_parts(tmp_path, parts, save_files), "someone/rows"]
    outputs = [tmp_path / f"out-{number}" for number in range(len(sources))]
    with HubServer() as hub:
        files = {f"data/{split}-00000-of-00001.parquet": parquet_bytes(part) for split, part in parts.items()}
        hub.repository("someone/rows", kind="datasets").commit(files)
        online = {**hub.environment(tmp_path / "hub"), "HF_TOKEN": ACCEPTED}
        started = [
            start(recipe, "--dataset", source, *options, "--output_dir", output, **online)
            for source, output in zip(sources, outputs, strict=True)
        ]
        for process in started:
            finish(process)
        assert "data/train-00000-of-00001.parquet" in hub.downloads()
    place = "scores" if recipe in (TIMM, OLD) else "_vog/scores"
    saved, *others = (VoGScores.load(output / place) for output in outputs)
    assert len(saved) == ROWS
    for other in others:
        assert other.column_names == saved.column_names
        for name in saved.column_names:
            np.testing.assert_array_equal(other.column(name), saved.column(name), err_msg=name)


def make_parts(rows, *, is_by_class):
    """A train and a test split; by class they are in the order of files in one subfolder per class."""
    parts = DatasetDict(train=rows.select(range(ROWS)), test=rows.select(range(ROWS, ROWS + 20)))
    return parts.sort("label") if is_by_class else parts


def save_parts(folder, parts, save_files):
    """Both splits as `save_to_disk` writes them and, where there is a way, as files; sounds without the test split."""
    parts.save_to_disk(str(folder / "saved"))
    files = folder / "files"
    if save_files is save_images:
        for split, part in parts.items():
            save_files(files / split, part)
    elif save_files is save_sounds:
        save_files(files, parts["train"])
    return [folder / "saved", *([files] if files.exists() else [])]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(SOURCES))
def test_two_processes_write_once(tmp_path, recipe):
    """Launched on two processes, the rows are shared, and one process alone prints and writes."""
    make_rows, options, _ = SOURCES[recipe]
    options = [option.format(folder=tmp_path) for option in options]
    if recipe == OLD:
        save_resnets(tmp_path)
    parts = make_parts(make_rows(), is_by_class=False)
    parts.save_to_disk(str(tmp_path / "saved"))
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = ("--dataset", tmp_path / "saved", *options, "--output_dir", tmp_path / "out")
    printed = finish(start(recipe, *command, launcher=launcher, ACCELERATE_USE_CPU="true"))
    assert printed.count("Everything is in") == 1
    place = "scores" if recipe in (TIMM, OLD) else "_vog/scores"
    scores = VoGScores.load(tmp_path / "out" / place)
    assert (len(scores), scores.manifest["n_processes"]) == (ROWS, 2)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", list(SOURCES))
def test_accelerate_launch(tmp_path, recipe):
    """Started by `accelerate launch`, a recipe gives the scores that `python` gives."""
    make_rows, options, _ = SOURCES[recipe]
    options = [option.format(folder=tmp_path) for option in options]
    if recipe == OLD:
        save_resnets(tmp_path)
    make_parts(make_rows(), is_by_class=False).save_to_disk(str(tmp_path / "saved"))
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    found = []
    for name, using in (("python", (sys.executable,)), ("accelerate", launcher)):
        command = ("--dataset", tmp_path / "saved", *options, "--output_dir", tmp_path / name)
        finish(start(recipe, *command, launcher=using))
        place = "scores" if recipe in (TIMM, OLD) else "_vog/scores"
        found.append(VoGScores.load(tmp_path / name / place).column("vog"))
    np.testing.assert_array_equal(*found)


@pytest.mark.slow
def test_a_hub_id_is_trained_on_and_its_revisions_are_scored(tmp_path):
    """A recipe runs on a data set of the Hub; models pushed there as revisions are scored from there."""
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
def test_two_processes_give_the_columns_of_one(tmp_path):
    """The image recipe on two processes, with half the rows a step on each, gives the columns of a single process."""
    rows = save_parquet(tmp_path / "digits.parquet", load_digits_dataset().select(range(48)))
    # A model without batch norm, whose statistics each process takes from its own part of a step's rows.
    options = ["--dataset", rows, "--model", "scratch:vit-tiny", "--image_size", "32", "--no_augment", "--snapshots"]
    options += ["epoch", "--num_train_epochs", "2", "--use_cpu", "True", "--learning_rate", "1e-4"]
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    runs = {
        1: start(IMAGE, *options, "--per_device_train_batch_size", "16", "--output_dir", tmp_path / "one"),
        2: start(
            *(IMAGE, *options, "--per_device_train_batch_size", "8", "--output_dir", tmp_path / "two"),
            launcher=launcher,
            ACCELERATE_USE_CPU="true",
        ),
    }
    for process in runs.values():
        finish(process)
    one, two = (VoGScores.load(tmp_path / name / "_vog" / "scores") for name in ("one", "two"))
    assert two.manifest["n_processes"] == 2
    assert one.manifest["n_processes"] == 1
    for name in one.column_names:
        np.testing.assert_allclose(two.column(name), one.column(name), rtol=2e-3, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["scratch:resnet18-cifar", "scratch:resnet50"])
def test_the_papers_settings_run(tmp_path, model):
    """The documented CIFAR and ImageNet commands run, shorter and on other rows, with the published windows."""
    rows = save_parquet(tmp_path / "digits.parquet", load_digits_dataset().select(range(32)))
    (arguments, *_) = [found for name, found in documented_commands() if name == IMAGE and model in found]
    wanted = "1,2,3,4,5,6,7,8,9" if model.endswith("50") else "auto"
    shorter = ["--dataset", rows, "--eval_split", "train[:8]", "--max_steps", "9", "--snapshots", wanted]
    shorter += ["--image_size", "32", "--per_device_train_batch_size", "16", "--dataloader_num_workers", "0"]
    shorter += ["--warmup_steps", "1", "--learning_rate", "1e-3", "--use_cpu", "True", "--output_dir", tmp_path / "out"]
    finish(start(IMAGE, *arguments, *shorter))
    manifest = VoGScores.load(tmp_path / "out" / "_vog" / "scores").manifest
    assert [snapshot["step"] for snapshot in manifest["snapshots"]][-1] == 9
    if model.endswith("50"):
        steps = {name: [int(snapshot[-9:]) for snapshot in window] for name, window in manifest["windows"].items()}
        assert steps == {"early": [1, 2, 3], "late": [7, 8, 9], "all": list(range(1, 10))}
