"""Published scripts of every task with a few lines more, and the page that says which lines."""

import importlib.util
import re
import sys
from itertools import count
from pathlib import Path

import cli_runs
import numpy as np
import pytest
import torch
from example_data import DATA, N_ROWS
from example_scripts import N_TRAIN, SCRIPTS

from vog_hf import VoGCallback
from vog_hf.gradients.tasks import TASKS
from vog_hf.scores.vog_scores import VoGScores

pytest.importorskip("torchvision")

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "example-scripts.md"
TASK_OF_SCRIPT = {
    "ner": "token_classification",
    "qa": "question_answering",
    "swag": "multiple_choice",
    "segmentation": "semantic_segmentation",
    "clm": "causal_language_model",
    "mlm": "token_prediction",
    "mae": "pixel_reconstruction",
    "clip": "pair_similarity",
    "ctc": "speech_recognition",
    "nli_bi_encoder": "text_contrast",
    "duplicates_cross_encoder": "pair_score",
    "nlp_loop": "single_label_classification",
    "cv_loop": "single_label_classification",
    "sft": "causal_language_model",
    "dpo": "preference_optimization",
    "reward": "reward_modeling",
}
TRL = {  # options of its scripts beyond those that all have
    "sft": ["--packing", "--max_length", 32, "--use_peft", "--lora_r", 4, "--lora_target_modules", "all-linear"],
    "dpo": [],
    "reward": [],
}
NEEDS = {
    "cv_loop": "timm",
    "nli_bi_encoder": "sentence_transformers",
    "duplicates_cross_encoder": "sentence_transformers",
    **dict.fromkeys(TRL, "trl"),
}
_numbers = count()


def options_of(name, file, data):
    """The words of a script's command line, without those for the output."""
    if name == "nlp_loop":
        return ["--train_file", file, "--model_name_or_path", data / "model"]
    if name == "cv_loop":
        return ["--data_dir", file, "--model_name", "test_resnet"]
    if NEEDS.get(name) == "sentence_transformers":
        return ["--train_file", file, "--validation_file", data / "dev.json", "--model_name_or_path", data / "model"]
    options = ["--dataset_name" if name in TRL else "--train_file", file, "--model_name_or_path", data / "model"]
    options += ["--num_train_epochs", 3, "--per_device_train_batch_size", 4, "--use_cpu", "--report_to", "none"]
    options += ["--disable_tqdm", "True", "--dataloader_pin_memory", "False", *TRL.get(name, [])]
    return options + ["--remove_unused_columns", "False"] * (name in ("segmentation", "mae", "clip"))


def run(monkeypatch, tmp_path, name, *, with_vog=True):
    """What the ``main`` of a script returns, called with its command line, as it is or without the lines for VoG."""
    data = tmp_path / "data"
    data.mkdir()
    options = options_of(name, DATA[name](data), data)
    path = SCRIPTS / f"{name}_script.py"
    if not with_vog:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        path = tmp_path / path.name
        path.write_text("".join(line for line in lines if "VoGCallback(" not in line and "from vog_hf" not in line))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, options), "--output_dir", str(tmp_path / "out")])
    module_name = f"task_script_{next(_numbers)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module_name, module)
    spec.loader.exec_module(module)
    if name in TRL:
        return module.main(*module.make_parser().parse_args_and_config(fail_with_unknown_args=False))
    return module.main()


@pytest.mark.slow
@pytest.mark.parametrize("name", TASK_OF_SCRIPT)
def test_a_script_scores_its_rows(monkeypatch, tmp_path, name):
    """Every row of the training has its score, of the task that the page names."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"the script needs {NEEDS[name]}, which is not installed")
    made = run(monkeypatch, tmp_path, name)
    if not isinstance(made, VoGScores):
        (callback,) = [found for found in made.callback_handler.callbacks if isinstance(found, VoGCallback)]
        made = callback.scores
    assert made.manifest["task"] == TASK_OF_SCRIPT[name]
    assert len(made) == (N_TRAIN if name.endswith("loop") else N_ROWS)
    assert np.isfinite(made.column("vog")).all()
    assert np.ptp(made.column("vog")) > 0
    assert (made.units is None) == (TASKS[made.manifest["task"]].unit is None)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRL)
def test_a_training_of_trl_is_as_without_the_lines(monkeypatch, tmp_path, name):
    """The same weights, bit for bit."""
    pytest.importorskip("trl", reason="the script needs trl, which is not installed")
    trainers = {}
    for with_vog in (True, False):
        folder = tmp_path / str(with_vog)
        folder.mkdir()
        trainers[with_vog] = run(monkeypatch, folder, name, with_vog=with_vog)
        callbacks = trainers[with_vog].callback_handler.callbacks
        assert any(isinstance(callback, VoGCallback) for callback in callbacks) == with_vog
    states = [trainer.model.state_dict() for trainer in trainers.values()]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert trainers[True].state.global_step == trainers[False].state.global_step > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_the_command_line_scores_the_checkpoints_of_trl(monkeypatch, capfd, tmp_path, name):
    """From the rows as they are stored, with the scores of the callback, which has those that TRL prepared."""
    pytest.importorskip("trl", reason="the script needs trl, which is not installed")
    monkeypatch.setitem(TRL, name, ["--max_steps", 6, "--save_strategy", "steps", "--save_steps", 1])
    trainer = run(monkeypatch, tmp_path, name)
    (callback,) = [found for found in trainer.callback_handler.callbacks if isinstance(found, VoGCallback)]
    data, output = tmp_path / "data" / "rows" / "train.json", tmp_path / "scores"
    done = cli_runs.run(capfd, "score", tmp_path / "out", "-d", data, "-o", output)
    assert done.code == 0, done.stderr
    scores = VoGScores.load(output)
    assert len(scores.manifest["snapshots"]) == len(callback.scores.manifest["snapshots"]) == trainer.state.global_step
    for column in ("vog", "margin"):
        np.testing.assert_allclose(scores.column(column), callback.scores.column(column), rtol=1e-3, atol=1e-6)


def rows_of_page():
    """Published script, the lines to add, and what one gets, of each line of the table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_page_names_the_lines_of_every_script():
    """Each script of the table is here, with at most three lines more, which are those of the table."""
    named = set()
    for published, added, result in rows_of_page():
        name, path = re.fullmatch(r"\[`(.*?)`\]\(https://[^)]*/\1\) \(\[here\]\((.*?)\)\)", published).groups()
        source = (PAGE.parent / path).read_text(encoding="utf-8")
        assert name in source.split('"""')[1]
        lines = re.findall(r"`([^`]+)`", added)
        assert all(line in source for line in lines), (name, lines)
        imports = [line for line in source.splitlines() if line.startswith("from vog_hf")]
        assert 2 <= len(lines) + len(imports) <= 3, name
        assert result
        named.add(Path(path).name)
    assert named == {path.name for path in SCRIPTS.glob("*_script.py")}
